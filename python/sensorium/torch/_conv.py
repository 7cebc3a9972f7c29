"""Causal convolutions as operators of torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from .._validate import check_dims
from ._register import Tensor, check_float, define, differentiable, empty_like, or_empty, without_dispatch

__all__ = ["causal_conv1d", "causal_conv1d_update"]

Array = np.ndarray[Any, Any]

_CONV_WRT = ("x", "weight", "bias", "initial_state")
_CONV = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, Tensor? seq_idx, Tensor? cu_seqlens, "
    "str? activation, bool channels_last"
)


def _states(sizes: dict[str, int], cu_seqlens: Tensor | None) -> Any:
    return sizes["B"] if cu_seqlens is None else cu_seqlens.shape[0] - 1


def _conv_options(*options: Any) -> dict[str, Any]:
    names = ("initial_state", "seq_idx", "cu_seqlens", "activation", "channels_last")
    return dict(zip(names, options, strict=True))


def _conv_fake(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *_, cu_seqlens, _, channels_last = rest
    check_float("x", x)
    sizes = check_dims("B L D, D K" if channels_last else "B D L, D K", x=x, weight=weight)
    state = (_states(sizes, cu_seqlens), sizes["D"], sizes["K"] - 1)
    return x.new_empty(x.shape), x.new_empty(state)


_causal_conv1d = define(
    "causal_conv1d",
    f"({_CONV}) -> (Tensor y, Tensor last_state)",
    lambda x, weight, bias, *options: ops.causal_conv1d(
        x, weight, bias, **_conv_options(*options), return_last_state=True
    ),
    _conv_fake,
)
_causal_conv1d_backward = define(
    "causal_conv1d_backward",
    f"(Tensor grad_y, Tensor grad_last_state, {_CONV}) -> (Tensor dx, Tensor dweight, Tensor dbias, "
    "Tensor dinitial_state)",
    lambda grad_y, grad_last_state, x, weight, bias, *options: or_empty(
        ops.causal_conv1d_backward(
            grad_y, x, weight, bias, **_conv_options(*options), grad_last_state=grad_last_state
        )
    ),
    lambda grad_y, grad_last_state, *inputs: empty_like(inputs[: len(_CONV_WRT)]),
    backward_of="causal_conv1d",
)
differentiable(
    _causal_conv1d, _CONV_WRT, save=lambda inputs, output: inputs, backward=_causal_conv1d_backward
)
_causal_conv1d_update = define(
    "causal_conv1d_update",
    "(Tensor x, Tensor(a!) state, Tensor weight, Tensor? bias, str? activation) -> Tensor",
    lambda x, state, weight, bias, activation: ops.causal_conv1d_update(
        x, state, weight, bias, activation=activation
    ),
    lambda x, *rest: x.new_empty(x.shape),
    autocast=False,
    mutates=["state"],
)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    channels_last: bool = False,
) -> Any:
    """Differentiable :func:`sensorium.ops.causal_conv1d` of tensors, by all but the indices.

    Parameters
    ----------
    x, weight, bias, activation, initial_state, return_last_state, channels_last
        As of :func:`sensorium.ops.causal_conv1d`; ``float32`` or ``float64``.
    seq_idx, cu_seqlens
        As of :func:`sensorium.ops.causal_conv1d`; they have no gradient.

    Returns
    -------
    y : tensor of the shape of x
    last_state : tensor (B, D, K - 1)
        Only with ``return_last_state``; it has a gradient as well.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError, NotImplementedError
        As :func:`sensorium.torch.selective_scan`.

    Examples
    --------
    >>> import torch
    >>> from sensorium.torch import causal_conv1d
    >>> layer = torch.nn.Conv1d(4, 4, kernel_size=3, groups=4, padding=2)
    >>> x = torch.randn(2, 4, 9)
    >>> y = causal_conv1d(x, layer.weight.squeeze(1), layer.bias)
    >>> torch.allclose(y, layer(x)[..., :9], atol=1e-6)
    True
    """
    inputs = (x, weight, bias, initial_state, seq_idx, cu_seqlens, activation, channels_last)
    y, last_state = _causal_conv1d(*inputs)
    return (y, last_state) if return_last_state else y


def causal_conv1d_update(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str | None = None
) -> Tensor:
    """Take one step of :func:`sensorium.ops.causal_conv1d_update`, without a gradient.

    ``state (B, D, K - 1)`` is written in place. A graph of ``torch.compile`` knows that.

    Examples
    --------
    >>> import torch
    >>> from sensorium.torch import causal_conv1d_update
    >>> state = torch.tensor([[[1.0, 2.0]]])
    >>> causal_conv1d_update(torch.tensor([[4.0]]), state, torch.ones(1, 3)), state
    (tensor([[7.]]), tensor([[[2., 4.]]]))
    """
    return _causal_conv1d_update(x, state, weight, bias, activation)


def conv_step(x: Tensor, state: Tensor, *inputs: Any) -> Tensor:
    """Take a step on plain tensors, with the arguments of the operator."""
    return without_dispatch(_causal_conv1d_update, x, state, *inputs)
