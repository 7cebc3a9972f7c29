"""Layers as pure functions of (parameters, inputs), over :mod:`sensorium.autodiff`.

Parameters are nested dicts of arrays; every ``init_*`` takes a NumPy generator and returns ``float32``.
"""

from ._layers import attention as attention
from ._layers import init_block as init_block
from ._layers import init_linear as init_linear
from ._layers import init_norm as init_norm
from ._layers import transformer as transformer
from ._layers import transformer_block as transformer_block
