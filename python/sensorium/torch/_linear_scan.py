"""Gated linear recurrences as operators of torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from .._validate import check_dims
from ._register import Tensor, check_float, define, differentiable, empty_like, or_empty

__all__ = ["gated_linear_scan"]

Array = np.ndarray[Any, Any]

_WRT = ("a", "x", "initial_state")
_INPUTS = (
    "Tensor a, Tensor x, Tensor? initial_state, Tensor? seq_idx, Tensor? cu_seqlens, bool reverse, "
    "bool channels_last"
)


def _options(*options: Any) -> dict[str, Any]:
    """Return what follows `a, x`, by name."""
    names = ("initial_state", "seq_idx", "cu_seqlens", "reverse", "channels_last")
    return dict(zip(names, options, strict=True))


def _fake(a: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *_, cu_seqlens, _, channels_last = rest
    check_float("a", a)
    sizes = check_dims("B L D, B L D" if channels_last else "B D L, B D L", a=a, x=x)
    states = sizes["B"] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return x.new_empty(x.shape), x.new_empty((states, sizes["D"]))


_gated_linear_scan = define(
    "gated_linear_scan",
    f"({_INPUTS}) -> (Tensor h, Tensor last_state)",
    lambda a, x, *rest: ops.gated_linear_scan(a, x, **_options(*rest), return_last_state=True),
    _fake,
)
_gated_linear_scan_backward = define(
    "gated_linear_scan_backward",
    f"(Tensor grad_h, Tensor grad_last_state, Tensor h, {_INPUTS})"
    " -> (Tensor da, Tensor dx, Tensor dinitial_state)",
    lambda grad_h, grad_last_state, h, a, x, *rest: or_empty(
        ops.gated_linear_scan_backward(grad_h, a, x, **_options(*rest), grad_last_state=grad_last_state, h=h)
    ),
    lambda grad_h, grad_last_state, h, *inputs: empty_like(inputs[: len(_WRT)]),
    backward_of="gated_linear_scan",
)
differentiable(
    _gated_linear_scan,
    _WRT,
    save=lambda inputs, output: (output[0], *inputs),
    backward=_gated_linear_scan_backward,
)


def gated_linear_scan(
    a: Tensor,
    x: Tensor,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    *,
    reverse: bool = False,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    channels_last: bool = False,
) -> Any:
    """Differentiable :func:`sensorium.ops.gated_linear_scan` of tensors, by all but the indices.

    Parameters
    ----------
    a, x, initial_state, return_last_state, reverse, channels_last
        As of :func:`sensorium.ops.gated_linear_scan`; ``float32`` or ``float64``.
    seq_idx, cu_seqlens
        As of :func:`sensorium.ops.gated_linear_scan`; they have no gradient.

    Returns
    -------
    h : tensor of the shape of x
    last_state : tensor (B, D)
        Only with ``return_last_state``; it has a gradient as well.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError, NotImplementedError
        As :func:`sensorium.torch.selective_scan`.

    Examples
    --------
    >>> import torch
    >>> from sensorium.torch import gated_linear_scan
    >>> a, x = torch.full((1, 1, 4), 0.5), torch.tensor([[[8.0, 0.0, 0.0, 1.0]]])
    >>> gated_linear_scan(a, x)
    tensor([[[8., 4., 2., 2.]]])
    """
    inputs = (a, x, initial_state, seq_idx, cu_seqlens, reverse, channels_last)
    h, last_state = _gated_linear_scan(*inputs)
    return (h, last_state) if return_last_state else h
