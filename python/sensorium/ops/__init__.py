"""Public operations over the kernels."""

from .attention import attention as attention
from .attention import attention_backward as attention_backward
from .attention import self_attention as self_attention
from .attention import self_attention_backward as self_attention_backward
from .layout import Layout as Layout
from .layout import Segment as Segment
from .linalg import matmul as matmul
from .nn import cross_entropy as cross_entropy
from .nn import cross_entropy_backward as cross_entropy_backward
from .nn import embedding as embedding
from .nn import embedding_backward as embedding_backward
from .nn import gelu as gelu
from .nn import gelu_backward as gelu_backward
from .nn import layer_norm as layer_norm
from .nn import layer_norm_backward as layer_norm_backward
from .nn import linear as linear
from .nn import linear_backward as linear_backward
from .nn import rms_norm as rms_norm
from .nn import rms_norm_backward as rms_norm_backward
from .nn import silu as silu
from .nn import silu_backward as silu_backward
from .rotary import Rotary as Rotary
from .rotary import rotary as rotary
from .scoring import alibi_slopes as alibi_slopes
from .scoring import attention_dropout_mask as attention_dropout_mask
