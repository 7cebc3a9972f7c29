"""Causal convolution and the gated linear recurrence."""

from __future__ import annotations

from typing import Any

from autograd.core import defvjp_argnums

from .. import ops
from ._primitive import Vjp, chosen, like, primitive

__all__ = ["causal_conv1d", "gated_linear_scan"]


@primitive
def _causal_conv1d(
    x: Any, weight: Any, bias: Any, initial_state: Any, return_last_state: bool, how: dict[str, Any]
) -> Any:
    return ops.causal_conv1d(
        x, weight, bias, initial_state=initial_state, return_last_state=return_last_state, **how
    )


def _causal_conv1d_vjp(argnums: tuple[int, ...], ans: Any, args: Any, kwargs: Any) -> Vjp:
    x, weight, bias, initial_state, return_last_state, how = args

    def vjp(g: Any) -> tuple[Any, ...]:
        grad_out, grad_last = g if return_last_state else (g, None)
        if grad_last is not None:
            grad_last = like(grad_last, ans[1])
        grads = ops.causal_conv1d_backward(
            like(grad_out, x),
            x,
            weight,
            bias,
            initial_state=initial_state,
            grad_last_state=grad_last,
            **how,
        )
        return chosen(argnums, grads)

    return vjp


defvjp_argnums(_causal_conv1d, _causal_conv1d_vjp)


def causal_conv1d(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    activation: Any = None,
    initial_state: Any = None,
    return_last_state: bool = False,
    seq_idx: Any = None,
    cu_seqlens: Any = None,
    channels_last: bool = False,
) -> Any:
    """Differentiable :func:`sensorium.ops.causal_conv1d`, in all its arrays of floats.

    With ``return_last_state`` so is the last state.
    """
    how = {
        "activation": activation,
        "seq_idx": seq_idx,
        "cu_seqlens": cu_seqlens,
        "channels_last": channels_last,
    }
    return _causal_conv1d(x, weight, bias, initial_state, return_last_state, how)


@primitive
def _gated_linear_scan(
    a: Any, x: Any, initial_state: Any, return_last_state: bool, how: dict[str, Any]
) -> Any:
    return ops.gated_linear_scan(a, x, initial_state, return_last_state, **how)


def _gated_linear_scan_vjp(argnums: tuple[int, ...], ans: Any, args: Any, kwargs: Any) -> Vjp:
    a, x, initial_state, return_last_state, how = args

    def vjp(g: Any) -> tuple[Any, ...]:
        grad_out, grad_last = g if return_last_state else (g, None)
        if grad_last is not None:
            grad_last = like(grad_last, ans[1])
        grads = ops.gated_linear_scan_backward(
            like(grad_out, x),
            a,
            x,
            initial_state,
            grad_last_state=grad_last,
            h=ans[0] if return_last_state else ans,
            **how,
        )
        return chosen(argnums, grads)

    return vjp


defvjp_argnums(_gated_linear_scan, _gated_linear_scan_vjp)


def gated_linear_scan(
    a: Any,
    x: Any,
    initial_state: Any = None,
    return_last_state: bool = False,
    *,
    reverse: bool = False,
    seq_idx: Any = None,
    cu_seqlens: Any = None,
    channels_last: bool = False,
) -> Any:
    """Differentiable :func:`sensorium.ops.gated_linear_scan`, in ``a``, ``x`` and ``initial_state``.

    With ``return_last_state`` both results are differentiable.
    """
    how = {
        "reverse": reverse,
        "seq_idx": seq_idx,
        "cu_seqlens": cu_seqlens,
        "channels_last": channels_last,
    }
    return _gated_linear_scan(a, x, initial_state, return_last_state, how)
