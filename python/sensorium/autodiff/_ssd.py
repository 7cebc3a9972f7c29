"""Structured state-space duality."""

from __future__ import annotations

from typing import Any

from autograd.core import defvjp_argnums

from .. import ops
from ._primitive import Vjp, chosen, like, primitive

__all__ = ["ssd"]


@primitive
def _ssd(
    x: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any,
    z: Any,
    dt_bias: Any,
    initial_states: Any,
    final: bool,
    how: dict[str, Any],
    kept: list[Any],
) -> Any:
    results = ops.ssd(
        x,
        dt,
        A,
        B,
        C,
        D=D,
        z=z,
        dt_bias=dt_bias,
        initial_states=initial_states,
        return_final_states=final,
        return_checkpoints=True,
        **how,
    )
    kept[:] = results[-1:]
    return results[:2] if final else results[0]


def _ssd_vjp(argnums: tuple[int, ...], ans: Any, args: Any, kwargs: Any) -> Vjp:
    x, dt, A, B, C, D, z, dt_bias, initial_states, final, how, kept = args

    def vjp(g: Any) -> tuple[Any, ...]:
        grad_out, grad_final = g if final else (g, None)
        grads = ops.ssd_backward(
            like(grad_out, x),
            x,
            dt,
            A,
            B,
            C,
            D=D,
            z=z,
            dt_bias=dt_bias,
            initial_states=initial_states,
            grad_final_states=None if grad_final is None else like(grad_final, ans[1]),
            checkpoints=kept[0],
            **how,
        )
        return chosen(argnums, grads)

    return vjp


defvjp_argnums(_ssd, _ssd_vjp)


def ssd(
    x: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    chunk_size: int | None = None,
    D: Any = None,
    z: Any = None,
    dt_bias: Any = None,
    dt_softplus: bool = False,
    initial_states: Any = None,
    seq_idx: Any = None,
    return_final_states: bool = False,
    *,
    cu_seqlens: Any = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
) -> Any:
    """Differentiable :func:`sensorium.ops.ssd`, in all its arrays of floats.

    With ``return_final_states`` so are those.
    """
    how = {
        "chunk_size": chunk_size,
        "dt_softplus": dt_softplus,
        "seq_idx": seq_idx,
        "cu_seqlens": cu_seqlens,
        "dt_limit": dt_limit,
    }
    return _ssd(x, dt, A, B, C, D, z, dt_bias, initial_states, bool(return_final_states), how, [])
