"""Structured state-space duality as operators of torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from .._validate import check_dims
from ._register import Tensor, check_float, define, differentiable, empty_like, or_empty, without_dispatch

__all__ = ["ssd", "ssd_state_update"]

Array = np.ndarray[Any, Any]

_WRT = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states")
_GRADS = ", ".join(f"Tensor d{name}" for name in _WRT)
_INPUTS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, "
    "Tensor? initial_states, Tensor? seq_idx, Tensor? cu_seqlens, SymInt? chunk_size, bool dt_softplus, "
    "float least, float most"
)


def _named(tensors: tuple[Any, ...]) -> dict[str, Any]:
    """Return what follows `x, dt, A, B, C`, by name."""
    D, z, dt_bias, initial_states, seq_idx, cu_seqlens, chunk_size, dt_softplus, least, most = tensors
    options = {
        "D": D,
        "z": z,
        "dt_bias": dt_bias,
        "initial_states": initial_states,
        "seq_idx": seq_idx,
        "cu_seqlens": cu_seqlens,
        "dt_softplus": dt_softplus,
        "dt_limit": (least, most),
    }
    return options if chunk_size is None else {**options, "chunk_size": chunk_size}


def _run(*inputs: Any) -> Any:
    x, dt, A, B, C, *rest = inputs
    return ops.ssd(x, dt, A, B, C, **_named(tuple(rest)), return_final_states=True)


def _fake(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    check_float("x", x)
    sizes = check_dims("B L H P, B L H, H, B L G S, B L G S", x=x, dt=dt, A=A, B=B, C=C)
    cu_seqlens = rest[5]
    states = sizes["B"] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return x.new_empty(x.shape), x.new_empty((states, sizes["H"], sizes["P"], sizes["S"]))


def _backward_run(grad_y: Array, grad_final_states: Array, *inputs: Any) -> tuple[Array, ...]:
    named = _named(inputs[5:])
    return or_empty(ops.ssd_backward(grad_y, *inputs[:5], **named, grad_final_states=grad_final_states))


_ssd = define("ssd", f"({_INPUTS}) -> (Tensor y, Tensor final_states)", _run, _fake)
_ssd_backward = define(
    "ssd_backward",
    f"(Tensor grad_y, Tensor grad_final_states, {_INPUTS}) -> ({_GRADS})",
    _backward_run,
    lambda grad_y, grad_final_states, *inputs: empty_like(inputs[: len(_WRT)]),
    backward_of="ssd",
)
differentiable(_ssd, _WRT, save=lambda inputs, output: inputs, backward=_ssd_backward)
_ssd_state_update = define(
    "ssd_state_update",
    "(Tensor(a!) state, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? dt_bias, bool dt_softplus, float least, float most) -> Tensor",
    lambda *inputs: ops.ssd_state_update(*inputs[:-2], dt_limit=inputs[-2:]),
    lambda state, x, *rest: x.new_empty(x.shape),
    autocast=False,
    mutates=["state"],
)


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int | None = None,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    return_final_states: bool = False,
    *,
    cu_seqlens: Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
) -> Any:
    """Differentiable :func:`sensorium.ops.ssd` of tensors, by all but the indices.

    Parameters
    ----------
    x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_states, return_final_states, dt_limit
        As of :func:`sensorium.ops.ssd`; ``float32`` or ``float64``.
    chunk_size : int, optional
        As of :func:`sensorium.ops.ssd`, its default where None.
    seq_idx, cu_seqlens
        As of :func:`sensorium.ops.ssd`; they have no gradient.

    Returns
    -------
    y : tensor (B, L, H, P)
    final_states : tensor (B, H, P, S)
        Only with ``return_final_states``; they have a gradient as well.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError, NotImplementedError
        As :func:`sensorium.torch.selective_scan`.

    Examples
    --------
    >>> import torch
    >>> from sensorium.torch import ssd
    >>> x, dt = torch.randn(1, 10, 4, 8, requires_grad=True), torch.rand(1, 10, 4)
    >>> B, C = torch.randn(2, 1, 10, 1, 16)
    >>> y, states = ssd(x, dt, -torch.ones(4), B, C, return_final_states=True)
    >>> y.shape, states.shape
    (torch.Size([1, 10, 4, 8]), torch.Size([1, 4, 8, 16]))
    >>> y.sum().backward()
    >>> x.grad.shape
    torch.Size([1, 10, 4, 8])
    """
    tensors = (x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens)
    y, final_states = _ssd(*tensors, chunk_size, dt_softplus, *map(float, dt_limit))
    return (y, final_states) if return_final_states else y


def ssd_state_update(
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
    *,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
) -> Tensor:
    """Take one step of Mamba-2: :func:`sensorium.ops.ssd_state_update`, without a gradient.

    ``state (B, H, P, S)`` is written in place. A graph of ``torch.compile`` knows that.

    Examples
    --------
    >>> import torch
    >>> from sensorium.torch import ssd_state_update
    >>> state = torch.zeros(1, 2, 4, 3)
    >>> x, dt, A, B = torch.ones(1, 2, 4), torch.ones(1, 2), -torch.ones(2), torch.ones(1, 1, 3)
    >>> ssd_state_update(state, x, dt, A, B, B)[0, 0]
    tensor([3., 3., 3., 3.])
    """
    limit = map(float, dt_limit)
    return _ssd_state_update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, *limit)


def ssd_step(state: Tensor, x: Tensor, *inputs: Any) -> Tensor:
    """Take a step on plain tensors, with the arguments of the operator up to its flags."""
    return without_dispatch(_ssd_state_update, state, x, *inputs[:-1], True, *inputs[-1])
