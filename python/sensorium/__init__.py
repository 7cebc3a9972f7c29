"""Unified multimodal models and inference-time compute, on the CPU you already have.

Kernels are in Rust; everything else is NumPy that reads as the mathematics it computes.
"""

from ._config import show_config as show_config
from ._core import __version__ as __version__
from ._memory import keep_pages as keep_pages
from ._threads import get_num_threads as get_num_threads
from ._threads import num_threads as num_threads
from ._threads import set_num_threads as set_num_threads
from .errors import ArgumentError as ArgumentError
from .errors import CheckpointError as CheckpointError
from .errors import DTypeError as DTypeError
from .errors import ManifestError as ManifestError
from .errors import MemoryLimitError as MemoryLimitError
from .errors import MissingExtraError as MissingExtraError
from .errors import SearchError as SearchError
from .errors import SensoriumError as SensoriumError
from .errors import ShapeError as ShapeError
from .errors import TraceError as TraceError
