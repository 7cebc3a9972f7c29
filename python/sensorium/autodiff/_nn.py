"""Norms, activations, linear maps, cross-entropy and embedding."""

from __future__ import annotations

from typing import Any

from autograd.core import defvjp_argnums

from .. import ops
from ..errors import ArgumentError
from ._primitive import Array, Vjp, chosen, like, primitive

__all__ = ["cross_entropy", "embedding", "gated_rms_norm", "gelu", "layer_norm", "linear", "rms_norm", "silu"]


@primitive
def _layer_norm(x: Any, weight: Any, bias: Any, eps: float, kept: list[Any]) -> Any:
    y, mean, rstd = ops.layer_norm(x, weight, bias, eps=eps, return_stats=True)
    kept[:] = mean, rstd
    return y


def _layer_norm_vjp(argnums: tuple[int, ...], ans: Array, args: Any, kwargs: Any) -> Vjp:
    x, weight, bias, _, kept = args
    mean, rstd = kept
    return lambda g: chosen(
        argnums,
        ops.layer_norm_backward(like(g, x), x, weight, mean, rstd, has_bias=bias is not None),
    )


defvjp_argnums(_layer_norm, _layer_norm_vjp)


def layer_norm(x: Any, weight: Any, bias: Any = None, *, eps: float = 1e-5) -> Any:
    """Differentiable :func:`sensorium.ops.layer_norm`."""
    return _layer_norm(x, weight, bias, eps, [])


@primitive
def _rms_norm(x: Any, weight: Any, eps: float, kept: list[Any]) -> Any:
    y, rstd = ops.rms_norm(x, weight, eps=eps, return_stats=True)
    kept[:] = (rstd,)
    return y


def _rms_norm_vjp(argnums: tuple[int, ...], ans: Array, args: Any, kwargs: Any) -> Vjp:
    x, weight, _, kept = args
    (rstd,) = kept
    return lambda g: chosen(argnums, ops.rms_norm_backward(like(g, x), x, weight, rstd))


defvjp_argnums(_rms_norm, _rms_norm_vjp)


def rms_norm(x: Any, weight: Any, *, eps: float = 1e-6) -> Any:
    """Differentiable :func:`sensorium.ops.rms_norm`."""
    return _rms_norm(x, weight, eps, [])


@primitive
def _gated_rms_norm(x: Any, z: Any, weight: Any, groups: int, eps: float, kept: list[Any]) -> Any:
    y, rstd = ops.gated_rms_norm(x, z, weight, groups=groups, eps=eps, return_stats=True)
    kept[:] = (rstd,)
    return y


def _gated_rms_norm_vjp(argnums: tuple[int, ...], ans: Array, args: Any, kwargs: Any) -> Vjp:
    x, z, weight, groups, _, kept = args
    (rstd,) = kept
    return lambda g: chosen(
        argnums, ops.gated_rms_norm_backward(like(g, x), x, z, weight, rstd, groups=groups)
    )


defvjp_argnums(_gated_rms_norm, _gated_rms_norm_vjp)


def gated_rms_norm(x: Any, z: Any, weight: Any, *, groups: int = 1, eps: float = 1e-5) -> Any:
    """Differentiable :func:`sensorium.ops.gated_rms_norm`."""
    return _gated_rms_norm(x, z, weight, groups, eps, [])


@primitive
def gelu(x: Any) -> Any:
    """Differentiable :func:`sensorium.ops.gelu`."""
    return ops.gelu(x)


defvjp_argnums(gelu, lambda argnums, ans, args, kwargs: lambda g: (ops.gelu_backward(like(g, ans), args[0]),))


@primitive
def silu(x: Any) -> Any:
    """Differentiable :func:`sensorium.ops.silu`."""
    return ops.silu(x)


defvjp_argnums(silu, lambda argnums, ans, args, kwargs: lambda g: (ops.silu_backward(like(g, ans), args[0]),))


@primitive
def _linear(x: Any, weight: Any, bias: Any, residual: Any, activation: Any, kept: list[Any]) -> Any:
    out, slope = ops.linear(x, weight, bias, activation=activation, residual=residual, return_slope=True)
    kept[:] = (slope,)
    return out


def _linear_vjp(argnums: tuple[int, ...], ans: Array, args: Any, kwargs: Any) -> Vjp:
    x, weight, bias, _, _, kept = args

    def vjp(g: Any) -> tuple[Any, ...]:
        g = like(g, ans)
        grads = ops.linear_backward(g, x, weight, has_bias=bias is not None, slope=kept[0])
        return chosen(argnums, (*grads, g))

    return vjp


defvjp_argnums(_linear, _linear_vjp)


def linear(x: Any, weight: Any, bias: Any = None, *, activation: Any = None, residual: Any = None) -> Any:
    """Differentiable :func:`sensorium.ops.linear`: ``residual + activation(x @ weight + bias)``."""
    return _linear(x, weight, bias, residual, activation, [])


@primitive
def _cross_entropy(logits: Any, targets: Any, weights: Any, kept: list[Any]) -> Any:
    loss, lse = ops.cross_entropy(logits, targets, weights, return_lse=True)
    kept[:] = (lse,)
    return loss


def _cross_entropy_vjp(argnums: tuple[int, ...], ans: Any, args: Any, kwargs: Any) -> Vjp:
    logits, targets, weights, kept = args
    if argnums != (0,):
        raise ArgumentError("targets and weights of cross_entropy have no gradient")
    return lambda g: (ops.cross_entropy_backward(float(g), logits, targets, weights, kept[0]),)


defvjp_argnums(_cross_entropy, _cross_entropy_vjp)


def cross_entropy(logits: Any, targets: Any, weights: Any = None) -> Any:
    """Differentiable :func:`sensorium.ops.cross_entropy`, with respect to the logits."""
    return _cross_entropy(logits, targets, weights, [])


@primitive
def embedding(table: Any, indices: Any) -> Any:
    """Differentiable :func:`sensorium.ops.embedding`; also the fast way to take rows of any matrix."""
    return ops.embedding(table, indices)


def _embedding_vjp(argnums: tuple[int, ...], ans: Array, args: Any, kwargs: Any) -> Vjp:
    table, indices = args
    return lambda g: (ops.embedding_backward(like(g, table), indices, len(table)),)


defvjp_argnums(embedding, _embedding_vjp)
