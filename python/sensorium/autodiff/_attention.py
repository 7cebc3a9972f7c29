"""Attention over segment layouts, and rotary embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from autograd.core import defvjp_argnums
from numpy.typing import ArrayLike

from .. import ops
from ..errors import ArgumentError
from ._primitive import Array, Vjp, chosen, like, primitive

__all__ = ["attention", "rotary", "self_attention"]


@primitive
def _rotary(x: Any, how: Any, positions: Any, inverse: bool) -> Any:
    return ops.rotary(x, how, positions, inverse=inverse)


def _rotary_vjp(argnums: tuple[int, ...], ans: Array, args: Any, kwargs: Any) -> Vjp:
    _, how, positions, inverse = args
    if argnums != (0,):
        raise ArgumentError("positions of rotary have no gradient")
    return lambda g: (ops.rotary(like(g, ans), how, positions, inverse=not inverse),)


defvjp_argnums(_rotary, _rotary_vjp)


def rotary(x: Any, rotary: ops.Rotary | None = None, positions: Any = None, *, inverse: bool = False) -> Any:
    """Differentiable :func:`sensorium.ops.rotary`, by ``x``."""
    return _rotary(x, ops.Rotary() if rotary is None else rotary, positions, inverse)


@primitive
def _attention(q: Any, k: Any, v: Any, layout: Any, options: Any, kept: list[Any]) -> Any:
    out, lse = ops.attention(q, k, v, layout, **options, return_lse=True)
    kept[:] = (lse,)
    return out


def _attention_vjp(argnums: tuple[int, ...], ans: Array, args: Any, kwargs: Any) -> Vjp:
    q, k, v, layout, options, kept = args

    def vjp(g: Any) -> tuple[Any, ...]:
        grads = ops.attention_backward(like(g, ans), q, k, v, ans, kept[0], layout, **options)
        return chosen(argnums, grads)

    return vjp


defvjp_argnums(_attention, _attention_vjp)


def attention(
    q: Any,
    k: Any,
    v: Any,
    layout: ops.Layout | Sequence[ops.Layout],
    *,
    scale: float | None = None,
    query_offset: int | None = None,
    key_offset: int = 0,
    softcap: float | None = None,
    alibi: ArrayLike | None = None,
    rotary: ops.Rotary | None = None,
    positions: ArrayLike | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
) -> Any:
    """Differentiable :func:`sensorium.ops.attention`; by ``q``, ``k`` and ``v``."""
    options: dict[str, Any] = {"scale": scale, "query_offset": query_offset, "key_offset": key_offset}
    options |= {"softcap": softcap, "alibi": alibi, "rotary": rotary, "positions": positions}
    options |= {"dropout": dropout, "seed": seed}
    return _attention(q, k, v, layout, options, [])


@primitive
def _self_attention(qkv: Any, layout: Any, options: Any, kept: list[Any]) -> Any:
    out, lse = ops.self_attention(qkv, layout, **options)
    kept[:] = (lse,)
    return out


def _self_attention_vjp(argnums: tuple[int, ...], ans: Array, args: Any, kwargs: Any) -> Vjp:
    qkv, layout, options, kept = args
    return lambda g: (ops.self_attention_backward(like(g, ans), qkv, ans, kept[0], layout, **options),)


defvjp_argnums(_self_attention, _self_attention_vjp)


def self_attention(
    qkv: Any,
    layout: ops.Layout | Sequence[ops.Layout],
    *,
    scale: float | None = None,
    softcap: float | None = None,
    alibi: ArrayLike | None = None,
    rotary: ops.Rotary | None = None,
    positions: ArrayLike | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
) -> Any:
    """Differentiable :func:`sensorium.ops.self_attention`: ``qkv (B, N, 3, H, D)`` to ``(B, N, H D)``."""
    options: dict[str, Any] = {"scale": scale, "softcap": softcap, "alibi": alibi, "rotary": rotary}
    options |= {"positions": positions, "dropout": dropout, "seed": seed}
    return _self_attention(qkv, layout, options, [])
