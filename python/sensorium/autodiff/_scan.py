"""The selective scan."""

from __future__ import annotations

from typing import Any

from autograd.core import defvjp_argnums

from .. import ops
from ._primitive import Vjp, chosen, like, primitive

__all__ = ["selective_scan"]


@primitive
def _selective_scan(
    u: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any,
    z: Any,
    delta_bias: Any,
    initial_state: Any,
    last: bool,
    how: dict[str, Any],
    kept: list[Any],
) -> Any:
    results = ops.selective_scan(
        u,
        delta,
        A,
        B,
        C,
        D,
        z,
        delta_bias,
        initial_state=initial_state,
        return_last_state=last,
        return_checkpoints=True,
        **how,
    )
    kept[:] = results[-1:]
    return results[:2] if last else results[0]


def _selective_scan_vjp(argnums: tuple[int, ...], ans: Any, args: Any, kwargs: Any) -> Vjp:
    u, delta, A, B, C, D, z, delta_bias, initial_state, last, how, kept = args

    def vjp(g: Any) -> tuple[Any, ...]:
        grad_out, grad_last = g if last else (g, None)
        grads = ops.selective_scan_backward(
            like(grad_out, u),
            u,
            delta,
            A,
            B,
            C,
            D,
            z,
            delta_bias,
            initial_state=initial_state,
            grad_last_state=None if grad_last is None else like(grad_last, ans[1]),
            checkpoints=kept[0],
            **how,
        )
        return chosen(argnums, grads)

    return vjp


defvjp_argnums(_selective_scan, _selective_scan_vjp)


def selective_scan(
    u: Any,
    delta: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any = None,
    z: Any = None,
    delta_bias: Any = None,
    delta_softplus: bool = False,
    initial_state: Any = None,
    return_last_state: bool = False,
    *,
    seq_idx: Any = None,
    cu_seqlens: Any = None,
    channels_last: bool = False,
) -> Any:
    """Differentiable :func:`sensorium.ops.selective_scan`, in all its arrays of floats.

    With ``return_last_state`` so is the state.
    """
    how = {
        "delta_softplus": delta_softplus,
        "seq_idx": seq_idx,
        "cu_seqlens": cu_seqlens,
        "channels_last": channels_last,
    }
    return _selective_scan(
        u, delta, A, B, C, D, z, delta_bias, initial_state, bool(return_last_state), how, []
    )
