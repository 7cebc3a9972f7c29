"""Causal depthwise convolution: over whole sequences, forward and backward, and one step at a time."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from .._validate import as_array, as_floats, check_dims
from ..errors import ArgumentError, DTypeError, ShapeError
from ._packed import check_packing
from ._tensor import expect

__all__ = ["CausalConv1dGrads", "causal_conv1d", "causal_conv1d_backward", "causal_conv1d_update"]

Array = NDArray[Any]
Activation = Literal["silu"]


class CausalConv1dGrads(NamedTuple):
    """Gradients of :func:`causal_conv1d`, None where there was no such input."""

    x: Array
    weight: Array
    bias: Array | None
    initial_state: Array | None


def _rows(name: str, value: ArrayLike) -> Array:
    """Return an array as the kernel reads it: as it is where rows are contiguous, otherwise a copy."""
    array = value if type(value) is np.ndarray else as_array(name, value)
    size = array.dtype.itemsize
    if array.dtype.kind == "f" and size in (4, 8) and array.dtype.isnative and array.ndim == 3:
        sample, row, column = array.strides
        if column == size and array.flags.aligned and min(sample, row) >= 0 and (sample | row) % size == 0:
            return array
    (contiguous,) = as_floats(**{name: array})
    return contiguous


def _fit(x: Array, **others: ArrayLike) -> list[Array]:
    """Return the other arrays contiguous, of the dtype of ``x``."""
    arrays: list[Array] = []
    for name, value in others.items():
        (array,) = as_floats(**{name: value})
        if array.dtype != x.dtype:
            raise DTypeError(f"{name} has dtype {array.dtype} but x has {x.dtype}")
        arrays.append(array)
    return arrays


def _fit_given(x: Array, **others: ArrayLike | None) -> list[Array | None]:
    """Return the same of those that are not None."""
    return [None if value is None else _fit(x, **{name: value})[0] for name, value in others.items()]


def _is_silu(activation: str | None) -> bool:
    if activation is not None and activation != "silu":
        raise ArgumentError(f'activation must be None or "silu", not {activation!r}')
    return activation is not None


def _check_filter(x: Array, weight: Array, bias: Array | None, dims: str) -> dict[str, int]:
    sizes = check_dims(f"{dims}, D K", x=x, weight=weight)
    if sizes["K"] == 0:
        raise ShapeError(f"weight has shape {weight.shape}, expected one tap at least")
    if bias is not None:
        check_dims("D K, D", weight=weight, bias=bias)
    return sizes


def causal_conv1d(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    activation: Activation | None = None,
    initial_state: ArrayLike | None = None,
    return_last_state: bool = False,
    seq_idx: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    channels_last: bool = False,
) -> Any:
    """Return the causal convolution of each channel with a filter of its own.

    ``y_t = act(bias + sum_k w_k x_{t-K+1+k})``: the last tap meets the present input. Inputs before a
    sequence are its initial state, or zero. A sequence cut anywhere, with the state carried, gives the same
    bits as the whole; so do both layouts, packed rows, and any number of threads.

    Parameters
    ----------
    x : array (B, D, L), or (B, L, D) with ``channels_last``
        ``float32`` or ``float64``. Only the last axis needs to be contiguous: some channels of a wider
        (B, L, D) array are read in place.
    weight : array (D, K)
        Filters, K at least 1; fastest for K up to 4.
    bias : array (D,), optional
        Added to each channel.
    activation : {"silu"}, optional
        Applied after the bias.
    initial_state : array (B, D, K - 1), optional
        Inputs before the first, oldest first, in either layout; (n, D, K - 1) with ``cu_seqlens``.
    return_last_state : bool
        Also return the last K - 1 inputs of each row, or of each sequence of ``cu_seqlens``.
    seq_idx : array (B, L) of integers, optional
        A new sequence begins wherever the number changes. The first sequence of a row begins from its initial
        state, those after it from zero; the last one leaves the row's last state.
    cu_seqlens : array (n + 1,) of integers, optional
        Sequences packed in a batch of 1, from ``cu_seqlens[i]`` to ``cu_seqlens[i + 1]``.
    channels_last : bool
        Whether ``x`` is (B, L, D).

    Returns
    -------
    y : array
        Of the shape and dtype of ``x``, contiguous.
    last_state : array (B, D, K - 1), or (n, D, K - 1) with ``cu_seqlens``
        Only with ``return_last_state``.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other; the message names the argument.

    References
    ----------
    Gu and Dao (2023), Mamba, arXiv:2312.00752. Names are those of the package causal-conv1d.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import causal_conv1d
    >>> x = np.array([[[1.0, 2.0, 3.0]]])
    >>> y, state = causal_conv1d(x, np.array([[10.0, 1.0]]), return_last_state=True)
    >>> y, state
    (array([[[ 1., 12., 23.]]]), array([[[3.]]]))
    >>> causal_conv1d(x, np.array([[10.0, 1.0]]), initial_state=state)
    array([[[31., 12., 23.]]])
    """
    x = _rows("x", x)
    (weight,) = _fit(x, weight=weight)
    bias, initial_state = _fit_given(x, bias=bias, initial_state=initial_state)
    sizes = _check_filter(x, weight, bias, "B L D" if channels_last else "B D L")
    ids, offsets, states = check_packing(sizes["B"], sizes["L"], seq_idx, cu_seqlens)
    expect("initial_state", initial_state, (states, sizes["D"], sizes["K"] - 1))
    silu = _is_silu(activation)
    y, last = _core.causal_conv1d(
        x, weight, bias, initial_state, ids, offsets, silu, channels_last, return_last_state
    )
    return (y, last) if return_last_state else y


def causal_conv1d_backward(
    grad_out: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    activation: Activation | None = None,
    initial_state: ArrayLike | None = None,
    grad_last_state: ArrayLike | None = None,
    seq_idx: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    channels_last: bool = False,
) -> CausalConv1dGrads:
    """Return the gradients of :func:`causal_conv1d`.

    Sums before the activation are computed anew: the forward keeps nothing.

    Parameters
    ----------
    grad_out : array
        Gradient of ``y``, of the shape of ``x``.
    x, weight, bias, activation, initial_state, seq_idx, cu_seqlens, channels_last
        As given to the forward.
    grad_last_state : array (B, D, K - 1), or (n, D, K - 1) with ``cu_seqlens``, optional
        Gradient of the last state, where the forward returned it.

    Returns
    -------
    CausalConv1dGrads
        ``x``, ``weight``, ``bias`` and ``initial_state``, the last two None where they were not given.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other; the message names the argument.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import causal_conv1d_backward
    >>> x = np.array([[[1.0, 2.0, 3.0]]])
    >>> grads = causal_conv1d_backward(np.ones((1, 1, 3)), x, np.array([[10.0, 1.0]]))
    >>> grads.x, grads.weight
    (array([[[11., 11.,  1.]]]), array([[3., 6.]]))
    """
    x = _rows("x", x)
    weight, grad_out = _fit(x, weight=weight, grad_out=grad_out)
    bias, initial_state, grad_last_state = _fit_given(
        x, bias=bias, initial_state=initial_state, grad_last_state=grad_last_state
    )
    sizes = _check_filter(x, weight, bias, "B L D" if channels_last else "B D L")
    ids, offsets, states = check_packing(sizes["B"], sizes["L"], seq_idx, cu_seqlens)
    expect("grad_out", grad_out, x.shape)
    for name, state in (("initial_state", initial_state), ("grad_last_state", grad_last_state)):
        expect(name, state, (states, sizes["D"], sizes["K"] - 1))
    silu = _is_silu(activation)
    grads = _core.causal_conv1d_backward(
        grad_out, x, weight, bias, initial_state, grad_last_state, ids, offsets, silu, channels_last
    )
    return CausalConv1dGrads(*grads)


def causal_conv1d_update(
    x: ArrayLike,
    state: Array,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    activation: Activation | None = None,
) -> Array:
    """Return one step of :func:`causal_conv1d` and move ``state`` on, in place.

    Parameters
    ----------
    x : array (B, D)
        One input of each channel.
    state : array (B, D, K - 1)
        Inputs before it, oldest first; drops the oldest and takes in ``x``.
    weight, bias, activation
        As for :func:`causal_conv1d`.

    Returns
    -------
    array (B, D)
        The same bits as the forward gives for that token.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other, or ``state`` cannot be written.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import causal_conv1d_update
    >>> state = np.array([[[1.0, 2.0]]])
    >>> causal_conv1d_update(np.array([[3.0]]), state, np.array([[100.0, 10.0, 1.0]])), state
    (array([[123.]]), array([[[2., 3.]]]))
    """
    if not isinstance(state, np.ndarray):
        raise DTypeError(f"state must be an ndarray, not {type(state).__name__}")
    (x,) = as_floats(x=x)
    weight, held = _fit(x, weight=weight, state=state)
    (bias,) = _fit_given(x, bias=bias)
    sizes = _check_filter(x, weight, bias, "B D")
    expect("state", state, (sizes["B"], sizes["D"], sizes["K"] - 1))
    silu = _is_silu(activation)
    if not state.flags.writeable:
        raise ArgumentError("state is read-only")
    y = _core.causal_conv1d_update(x, held, weight, bias, silu)
    if held is not state:
        state[...] = held
    return y
