"""A pre-norm transformer block as one operation: its forward keeps what its backward needs.

``x1 = x + out(attention(qkv(norm1(x))))``, ``y = x1 + down(act(up(norm2(x1))))``. As one node of the tape it
saves autograd's work on nine nodes and the sums of gradients where the residual stream forks: the norms'
backward adds what came around, and the gradient of the activation's result is multiplied by its derivative
while it is in cache.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from . import _core, ops
from ._validate import as_floats
from .errors import ArgumentError, ShapeError

__all__ = ["PARTS", "backward", "forward"]

Array = NDArray[Any]

#: Sub-dicts of a block's parameters; each has a ``weight`` and may have a ``bias``.
PARTS = ("norm1", "qkv", "out", "norm2", "up", "down")


def check(p: dict[str, dict[str, Array]], x: Array, heads: int, norm: str) -> None:
    """Hold every array of a block to the width of ``x (B, N, D)``."""
    if norm not in ("layer", "rms"):
        raise ArgumentError(f'norm must be "layer" or "rms", not {norm!r}')
    if x.ndim != 3:
        raise ShapeError(f"x has shape {x.shape}, expected 3 dimensions (B, N, D)")
    D = x.shape[-1]
    if heads < 1 or D % heads:
        raise ArgumentError(f"heads must divide D={D}, not {heads}")
    hidden = p["up"]["weight"].shape[-1]
    want = {
        "norm1": (D,),
        "qkv": (D, 3 * D),
        "out": (D, D),
        "norm2": (D,),
        "up": (D, hidden),
        "down": (hidden, D),
    }
    for part, shape in want.items():
        got = p[part]["weight"].shape
        if got != shape:
            raise ShapeError(f"{part}.weight has shape {got}, expected {shape}")
        bias = p[part].get("bias")
        if bias is not None and bias.shape != shape[-1:]:
            raise ShapeError(f"{part}.bias has shape {bias.shape}, expected {shape[-1:]}")
        if bias is not None and norm == "rms" and part in ("norm1", "norm2"):
            raise ArgumentError(f"{part}.bias must not be given with an RMS norm")


def forward(
    x: Array,
    p: dict[str, dict[str, Array]],
    layout: ops.Layout,
    *,
    heads: int,
    norm: str,
    activation: str,
    eps: float,
) -> tuple[Array, tuple[Any, ...]]:
    """Return ``y`` and what :func:`backward` needs."""
    check(p, x, heads, norm)
    B, N, D = x.shape
    centred = norm == "layer"
    norm1, qkv, out, norm2, up, down = (p[part] for part in PARTS)
    h1, mean1, rstd1 = _core.norm(x, norm1["weight"], norm1.get("bias"), eps, centred)
    t, _ = _core.linear(h1, qkv["weight"], qkv.get("bias"), None, None, False)
    t = t.reshape(B, N, 3, heads, D // heads)
    a, lse = ops.self_attention(t, layout)
    x1, _ = _core.linear(a, out["weight"], out.get("bias"), None, x, False)
    h2, mean2, rstd2 = _core.norm(x1, norm2["weight"], norm2.get("bias"), eps, centred)
    g, slope = _core.linear(h2, up["weight"], up.get("bias"), activation, None, True)
    y, _ = _core.linear(g, down["weight"], down.get("bias"), None, x1, False)
    return y, (h1, mean1, rstd1, t, a, lse, x1, h2, mean2, rstd2, slope, g)


def backward(
    grad: Array,
    x: Array,
    p: dict[str, dict[str, Array]],
    layout: ops.Layout,
    kept: tuple[Any, ...],
) -> tuple[Array, dict[str, dict[str, Array | None]]]:
    """Return the gradients of ``x`` and of every parameter; the names are those of :func:`forward`."""
    grad, _ = as_floats(grad=grad, x=x)
    norm1, qkv, out, norm2, up, down = (p[part] for part in PARTS)
    h1, mean1, rstd1, t, a, lse, x1, h2, mean2, rstd2, slope, g = kept
    B, N, D = x.shape
    du, d_down, b_down = _core.linear_backward(grad, g, down["weight"], "bias" in down, slope)
    dh2, d_up, b_up = _core.linear_backward(du, h2, up["weight"], "bias" in up, None)
    dx1, d_norm2, b_norm2 = _core.norm_backward(dh2, x1, norm2["weight"], mean2, rstd2, grad, "bias" in norm2)
    da, d_out, b_out = _core.linear_backward(dx1, a, out["weight"], "bias" in out, None)
    dt = ops.self_attention_backward(da, t, a, lse, layout).reshape(B, N, 3 * D)
    dh1, d_qkv, b_qkv = _core.linear_backward(dt, h1, qkv["weight"], "bias" in qkv, None)
    dx, d_norm1, b_norm1 = _core.norm_backward(dh1, x, norm1["weight"], mean1, rstd1, dx1, "bias" in norm1)
    return dx, {
        "norm1": {"weight": d_norm1, "bias": b_norm1},
        "qkv": {"weight": d_qkv, "bias": b_qkv},
        "out": {"weight": d_out, "bias": b_out},
        "norm2": {"weight": d_norm2, "bias": b_norm2},
        "up": {"weight": d_up, "bias": b_up},
        "down": {"weight": d_down, "bias": b_down},
    }
