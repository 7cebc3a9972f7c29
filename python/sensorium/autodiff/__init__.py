"""The operations of `sensorium.ops`, differentiable under HIPS ``autograd``.

Each is one node of the tape with one joint backward. First derivatives only: the backward of a native
operation is not itself on the tape.
"""

from ._attention import attention as attention
from ._attention import rotary as rotary
from ._attention import self_attention as self_attention
from ._conv import causal_conv1d as causal_conv1d
from ._conv import gated_linear_scan as gated_linear_scan
from ._fusion import fused_posterior as fused_posterior
from ._fusion import product_of_experts as product_of_experts
from ._gaussian import gaussian_entropy as gaussian_entropy
from ._gaussian import gaussian_jeffreys as gaussian_jeffreys
from ._gaussian import gaussian_kl as gaussian_kl
from ._gaussian import gaussian_log_prob as gaussian_log_prob
from ._gaussian import gaussian_wasserstein as gaussian_wasserstein
from ._gradient import value_and_grad as value_and_grad
from ._mixture import gaussian_mixture_log_prob as gaussian_mixture_log_prob
from ._mixture import mixture_of_experts as mixture_of_experts
from ._mixture import mixture_of_products as mixture_of_products
from ._nn import cross_entropy as cross_entropy
from ._nn import embedding as embedding
from ._nn import gated_rms_norm as gated_rms_norm
from ._nn import gelu as gelu
from ._nn import layer_norm as layer_norm
from ._nn import linear as linear
from ._nn import rms_norm as rms_norm
from ._nn import silu as silu
from ._scan import selective_scan as selective_scan
from ._ssd import ssd as ssd
from ._transformer import transformer_block as transformer_block
from ._ttt import ttt_linear as ttt_linear
from ._ttt import ttt_mlp as ttt_mlp
