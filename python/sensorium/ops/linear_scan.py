"""The gated linear recurrence that other recurrent layers are built from."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from .._validate import as_floats, check_dims
from ..errors import ShapeError
from ._packed import check_packing

__all__ = ["GatedLinearScanGrads", "gated_linear_scan", "gated_linear_scan_backward"]

Array = NDArray[Any]
Indices = NDArray[np.int64]


class GatedLinearScanGrads(NamedTuple):
    """Gradients of :func:`gated_linear_scan`; that of the initial state is None where there was none."""

    a: Array
    x: Array
    initial_state: Array | None


def _inputs(
    a: ArrayLike,
    x: ArrayLike,
    states: dict[str, ArrayLike | None],
    seq_idx: ArrayLike | None,
    cu_seqlens: ArrayLike | None,
    channels_last: bool,
) -> tuple[Array, Array, list[Array | None], Indices | None, Indices | None]:
    """Check everything against everything, and return it as the kernels take it."""
    a, x = as_floats(a=a, x=x)
    dims = "B L D" if channels_last else "B D L"
    sizes = check_dims(f"{dims}, {dims}", a=a, x=x)
    ids, offsets, count = check_packing(sizes["B"], sizes["L"], seq_idx, cu_seqlens)
    want = (count, sizes["D"])
    held: list[Array | None] = []
    for name, state in states.items():
        if state is None:
            held.append(None)
            continue
        _, array = as_floats(**{"a": a, name: state})
        if array.shape != want:
            raise ShapeError(f"{name} has shape {array.shape}, expected {want}")
        held.append(array)
    return a, x, held, ids, offsets


def gated_linear_scan(
    a: ArrayLike,
    x: ArrayLike,
    initial_state: ArrayLike | None = None,
    return_last_state: bool = False,
    *,
    reverse: bool = False,
    seq_idx: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    channels_last: bool = False,
) -> Any:
    """Return ``h_t = a_t h_{t-1} + x_t`` for each channel.

    Parallel over channels and, where these are few, over chunks of time. The number of threads changes no
    bit.

    Parameters
    ----------
    a, x : array (B, D, L), or (B, L, D) with ``channels_last``
        ``float32`` or ``float64``. ``a`` may be anything: zero, negative, larger than one.
    initial_state : array (B, D), optional
        ``h`` before the first token; zero where not given. With ``cu_seqlens`` of n sequences, (n, D).
    return_last_state : bool
        Also return ``h`` after the last token of each row, or of each sequence of ``cu_seqlens``.
    reverse : bool
        Read sequences from their ends, ``h_t = a_t h_{t+1} + x_t``: the initial state then comes after the
        last token of a row, and its last state is the first ``h``.
    seq_idx : array (B, L) of integers, optional
        A new sequence begins, from zero, wherever the number changes. Of a row, the sequence that is read
        first begins from the initial state, and the one that is read last leaves the last state.
    cu_seqlens : array (n + 1,) of integers, optional
        Sequences packed in a batch of 1, from ``cu_seqlens[i]`` to ``cu_seqlens[i + 1]``.
    channels_last : bool
        Whether tokens are rows of channels, (B, L, D).

    Returns
    -------
    h : array
        Of the shape and dtype of ``x``.
    last_state : array (B, D), or (n, D) with ``cu_seqlens``
        Only with ``return_last_state``.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other; the message names the argument.

    References
    ----------
    Blelloch (1990), Prefix Sums and Their Applications. Martin and Cundy (2018), Parallelizing Linear
    Recurrent Neural Nets over Sequence Length, arXiv:1709.04057.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import gated_linear_scan
    >>> a, x = np.full((1, 1, 4), 0.5), np.array([[[8.0, 0.0, 0.0, 1.0]]])
    >>> gated_linear_scan(a, x)
    array([[[8., 4., 2., 2.]]])
    >>> gated_linear_scan(a, x, reverse=True)
    array([[[8.125, 0.25 , 0.5  , 1.   ]]])
    """
    states = {"initial_state": initial_state}
    a, x, held, ids, offsets = _inputs(a, x, states, seq_idx, cu_seqlens, channels_last)
    h, last = _core.linear_scan(a, x, held[0], ids, offsets, reverse, channels_last, return_last_state)
    return (h, last) if return_last_state else h


def gated_linear_scan_backward(
    grad_out: ArrayLike,
    a: ArrayLike,
    x: ArrayLike,
    initial_state: ArrayLike | None = None,
    *,
    grad_last_state: ArrayLike | None = None,
    h: ArrayLike | None = None,
    reverse: bool = False,
    seq_idx: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    channels_last: bool = False,
) -> GatedLinearScanGrads:
    """Return the gradients of :func:`gated_linear_scan`: a scan in the other direction.

    Parameters
    ----------
    grad_out : array
        Gradient of ``h``, of the shape of ``x``.
    a, x, initial_state, reverse, seq_idx, cu_seqlens, channels_last
        As given to the forward.
    grad_last_state : array (B, D), or (n, D) with ``cu_seqlens``, optional
        Gradient of the last state, where the forward returned it.
    h : array, optional
        What the forward returned; computed anew where not given.

    Returns
    -------
    GatedLinearScanGrads
        ``a``, ``x`` and ``initial_state``, the last None where it was not given.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other; the message names the argument.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import gated_linear_scan_backward
    >>> a, x = np.full((1, 1, 3), 0.5), np.array([[[8.0, 0.0, 0.0]]])
    >>> grads = gated_linear_scan_backward(np.array([[[0.0, 0.0, 1.0]]]), a, x)
    >>> grads.x, grads.a
    (array([[[0.25, 0.5 , 1.  ]]]), array([[[0., 4., 4.]]]))
    """
    states = {"initial_state": initial_state, "grad_last_state": grad_last_state}
    a, x, held, ids, offsets = _inputs(a, x, states, seq_idx, cu_seqlens, channels_last)
    first, grad_last = held
    if h is None:
        h, _ = _core.linear_scan(a, x, first, ids, offsets, reverse, channels_last, False)
    _, grad_out, h = as_floats(a=a, grad_out=grad_out, h=h)
    for name, array in (("grad_out", grad_out), ("h", h)):
        if array.shape != x.shape:
            raise ShapeError(f"{name} has shape {array.shape}, expected {x.shape}")
    grads = _core.linear_scan_backward(grad_out, a, h, first, grad_last, ids, offsets, reverse, channels_last)
    return GatedLinearScanGrads(*grads)
