"""A whole transformer block as one node."""

from __future__ import annotations

from typing import Any

from autograd.core import defvjp_argnums

from .. import _block, ops
from .._tree import Tree
from .._validate import as_floats
from ..errors import ArgumentError
from ._primitive import Array, Vjp, chosen, like, primitive

__all__ = ["transformer_block"]


@primitive
def _transformer_block(x: Any, *arrays: Any, names: Any, layout: Any, how: Any, kept: list[Any]) -> Any:
    named = {f"{part}.{key}": array for (part, key), array in zip(names, arrays, strict=True)}
    x, *ready = as_floats(x=x, **named)
    params = _nested(names, ready)
    y, saved = _block.forward(x, params, layout, **how)
    kept[:] = x, params, saved
    return y


def _nested(names: list[tuple[str, str]], arrays: Any) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {part: {} for part in _block.PARTS}
    for (part, key), array in zip(names, arrays, strict=True):
        out[part][key] = array
    return out


def _transformer_block_vjp(argnums: tuple[int, ...], ans: Array, args: Any, kwargs: Any) -> Vjp:
    names, layout, kept = kwargs["names"], kwargs["layout"], kwargs["kept"]

    def vjp(g: Any) -> tuple[Any, ...]:
        x, params, saved = kept
        kept.clear()
        dx, grads = _block.backward(like(g, ans), x, params, layout, saved)
        return chosen(argnums, (dx, *(grads[part][key] for part, key in names)))

    return vjp


defvjp_argnums(_transformer_block, _transformer_block_vjp)


def transformer_block(
    params: Tree,
    x: Any,
    layout: ops.Layout,
    *,
    heads: int,
    norm: str = "rms",
    activation: str = "gelu",
    eps: float = 1e-6,
) -> Any:
    """Return a pre-norm transformer block of ``x`` as one node of the tape.

    ``x1 = x + out(attention(qkv(norm1(x))))``, then ``x1 + down(act(up(norm2(x1))))``.

    Parameters
    ----------
    params : dict of dicts
        ``norm1``, ``qkv (D, 3 D)``, ``out (D, D)``, ``norm2``, ``up (D, F)``, ``down (F, D)``, each with a
        ``weight`` and, where wanted, a ``bias``.
    x : array (B, N, D)
        ``float32`` or ``float64``.
    layout : Layout
        What each of the N tokens sees.
    heads : int
        Divides D.
    norm : {"rms", "layer"}
        Kind of both norms.
    activation : {"gelu", "silu"}
        Between ``up`` and ``down``.
    eps : float
        Of both norms.

    Returns
    -------
    array (B, N, D)

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other; the message names the array.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.autodiff import transformer_block
    >>> from sensorium.ops import Layout, Segment
    >>> shapes = {"norm1": 4, "qkv": (4, 12), "out": (4, 4), "norm2": 4, "up": (4, 8), "down": (8, 4)}
    >>> params = {name: {"weight": np.zeros(shape)} for name, shape in shapes.items()}
    >>> x = np.ones((1, 3, 4))
    >>> y = transformer_block(params, x, Layout([Segment("causal", 3)]), heads=2)
    >>> bool((y == x).all())
    True
    """
    try:
        names = [(part, key) for part in _block.PARTS for key in ("weight", "bias") if key in params[part]]
    except KeyError as error:
        raise ArgumentError(f"params lacks the key {error.args[0]!r}") from None
    arrays = [params[part][key] for part, key in names]
    how = {"heads": heads, "norm": norm, "activation": activation, "eps": eps}
    return _transformer_block(x, *arrays, names=names, layout=layout, how=how, kept=[])
