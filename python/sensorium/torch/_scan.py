"""Selective scans as operators of torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from .._validate import check_dims
from ._register import Tensor, check_float, define, differentiable, empty_like, or_empty, without_dispatch

__all__ = ["selective_scan", "selective_state_update"]

Array = np.ndarray[Any, Any]

_WRT = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
_GRADS = ", ".join(f"Tensor d{name}" for name in _WRT)
_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? initial_state, Tensor? seq_idx, Tensor? cu_seqlens, bool delta_softplus, bool channels_last"
)


def _options(*options: Any) -> dict[str, Any]:
    """Return what follows the tensors, by name."""
    names = ("initial_state", "seq_idx", "cu_seqlens", "delta_softplus", "channels_last")
    return dict(zip(names, options, strict=True))


def _run(*inputs: Any) -> Any:
    u, delta, A, B, C, D, z, delta_bias, *rest = inputs
    options = _options(*rest)
    return ops.selective_scan(u, delta, A, B, C, D, z, delta_bias, **options, return_last_state=True)


def _fake(u: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *_, cu_seqlens, _, channels_last = rest
    check_float("u", u)
    dims = "B L D, B L D, D S" if channels_last else "B D L, B D L, D S"
    sizes = check_dims(dims, u=u, delta=delta, A=A)
    states = sizes["B"] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return u.new_empty(u.shape), u.new_empty((states, sizes["D"], sizes["S"]))


def _backward_run(grad_y: Array, grad_last_state: Array, *inputs: Any) -> tuple[Array, ...]:
    options = _options(*inputs[8:])
    return or_empty(
        ops.selective_scan_backward(grad_y, *inputs[:8], **options, grad_last_state=grad_last_state)
    )


_selective_scan = define("selective_scan", f"({_INPUTS}) -> (Tensor y, Tensor last_state)", _run, _fake)
_selective_scan_backward = define(
    "selective_scan_backward",
    f"(Tensor grad_y, Tensor grad_last_state, {_INPUTS}) -> ({_GRADS})",
    _backward_run,
    lambda grad_y, grad_last_state, *inputs: empty_like(inputs[: len(_WRT)]),
    backward_of="selective_scan",
)
differentiable(_selective_scan, _WRT, save=lambda inputs, output: inputs, backward=_selective_scan_backward)
_selective_state_update = define(
    "selective_state_update",
    "(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? dt_bias, bool dt_softplus) -> Tensor",
    ops.selective_state_update,
    lambda state, x, *rest: x.new_empty(x.shape),
    autocast=False,
    mutates=["state"],
)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    *,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    channels_last: bool = False,
) -> Any:
    """Differentiable :func:`sensorium.ops.selective_scan` of tensors, by all but the indices.

    Parameters
    ----------
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, return_last_state
        As of :func:`sensorium.ops.selective_scan`; ``float32`` or ``float64``.
    seq_idx, cu_seqlens, channels_last
        As of :func:`sensorium.ops.selective_scan`; indices have no gradient.

    Returns
    -------
    y : tensor of the shape of u
    last_state : tensor (B, D, S)
        Only with ``return_last_state``; it has a gradient as well.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where an argument does not fit; the message names it.
    NotImplementedError
        From a second derivative.

    Examples
    --------
    >>> import torch
    >>> from sensorium.torch import selective_scan
    >>> u, delta = torch.randn(2, 1, 4, 10)  # B 1, D 4, L 10
    >>> A, B, C = -torch.rand(4, 3), torch.randn(1, 3, 10), torch.randn(1, 3, 10)
    >>> y = selective_scan(u, delta, A, B, C, delta_softplus=True)
    >>> head, state = selective_scan(
    ...     u[..., :6], delta[..., :6], A, B[..., :6], C[..., :6], None, None, None, True, None, True
    ... )
    >>> tail = selective_scan(
    ...     u[..., 6:], delta[..., 6:], A, B[..., 6:], C[..., 6:], None, None, None, True, state
    ... )
    >>> torch.allclose(torch.cat([head, tail], -1), y, atol=1e-6)
    True
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx, cu_seqlens)
    y, last_state = _selective_scan(*tensors, delta_softplus, channels_last)
    return (y, last_state) if return_last_state else y


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """Take one step of a selective scan: :func:`sensorium.ops.selective_state_update`, without a gradient.

    ``state (B, D, S)`` is written in place. A graph of ``torch.compile`` knows that.

    Examples
    --------
    >>> import torch
    >>> from sensorium.torch import selective_state_update
    >>> state = torch.zeros(1, 4, 3)
    >>> x, dt = torch.ones(2, 1, 4)
    >>> y = selective_state_update(state, x, dt, -torch.ones(4, 3), torch.ones(1, 3), torch.ones(1, 3))
    >>> state[0, 0], y[0, 0]
    (tensor([1., 1., 1.]), tensor(3.))
    """
    return _selective_state_update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)


def scan_step(state: Tensor, x: Tensor, *inputs: Any) -> Tensor:
    """Take a step on plain tensors, with the arguments of the operator up to its flags."""
    return without_dispatch(_selective_state_update, state, x, *inputs, True)
