"""The kernels as operators of PyTorch, on CPU tensors, without copies.

Imported on demand only: ``import sensorium`` never imports torch. Every operator is registered with
``torch.library`` as ``torch.ops.sensorium.<name>``, with its gradient and its rule for fake tensors, so that
it works in an ``nn.Module``, under ``torch.compile(fullgraph=True)`` and under ``torch.vmap``. First
derivatives only, but for :func:`rotary`.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    from ..errors import MissingExtraError

    raise MissingExtraError(
        "sensorium.torch needs PyTorch, which is not installed: pip install 'sensorium[torch]'"
    ) from error

from ._accelerate import Acceleration as Acceleration
from ._accelerate import accelerate as accelerate
from ._attention import attention as attention
from ._attention import self_attention as self_attention
from ._conv import causal_conv1d as causal_conv1d
from ._conv import causal_conv1d_update as causal_conv1d_update
from ._fusion import FusedPosterior as FusedPosterior
from ._fusion import fused_posterior as fused_posterior
from ._fusion import product_of_experts as product_of_experts
from ._layouts import layout_tensor as layout_tensor
from ._linear_scan import gated_linear_scan as gated_linear_scan
from ._mixture import MixtureOfProducts as MixtureOfProducts
from ._mixture import mixture_of_products as mixture_of_products
from ._nn import cross_entropy as cross_entropy
from ._nn import embedding as embedding
from ._nn import gelu as gelu
from ._nn import layer_norm as layer_norm
from ._nn import linear as linear
from ._nn import rms_norm as rms_norm
from ._nn import silu as silu
from ._rotary import rotary as rotary
from ._scan import selective_scan as selective_scan
from ._scan import selective_state_update as selective_state_update
from ._ssd import ssd as ssd
from ._ssd import ssd_state_update as ssd_state_update
from ._ttt import ttt_linear as ttt_linear
from ._ttt import ttt_mlp as ttt_mlp
