"""The selective scan of Mamba: whole sequences, forward and backward, and one step in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from .._validate import as_array, as_floats, check_dims
from ..errors import ArgumentError, ShapeError
from ._packed import check_packing
from ._tensor import check_state, expect, finish, optional, place, same_dtype

__all__ = ["SelectiveScanGrads", "selective_scan", "selective_scan_backward", "selective_state_update"]

Array = NDArray[Any]
Given = tuple[
    tuple[Array, Array, Array, Array, Array],
    tuple[Array | None, Array | None, Array | None, Array | None],
    tuple[Array | None, Array | None],
    tuple[bool, bool],
]


class SelectiveScanGrads(NamedTuple):
    """Gradients of :func:`selective_scan`, each shaped like its argument; None where there was none."""

    u: Array
    delta: Array
    A: Array
    B: Array
    C: Array
    D: Array | None
    z: Array | None
    delta_bias: Array | None
    initial_state: Array | None


def _strided(name: str, value: ArrayLike) -> Array:
    """Return an array as the kernel reads it, at any distances that are whole elements; else a copy."""
    array = value if type(value) is np.ndarray else as_array(name, value)
    size = array.dtype.itemsize
    plain = array.dtype.kind == "f" and size in (4, 8) and array.dtype.isnative and array.flags.aligned
    if plain and all(step >= 0 and step % size == 0 for step in array.strides):
        return array
    (contiguous,) = as_floats(**{name: array})
    return contiguous


@dataclass(frozen=True, slots=True)
class _Call:
    """Arguments as the kernels take them."""

    given: Given
    states: tuple[int, int, int]

    @property
    def u(self) -> Array:
        return self.given[0][0]


def _coefficient_shape(name: str, array: Array, sizes: tuple[int, int, int, int], last: bool) -> int | None:
    """Return the number of groups of ``B`` or ``C``, None where it is constant."""
    B, D, L, S = sizes
    if array.ndim == 2:
        expect(name, array, (D, S))
        return None
    if array.ndim not in (3, 4):
        raise ShapeError(f"{name} has shape {array.shape}, expected 2, 3 or 4 dimensions")
    groups = 1 if array.ndim == 3 else array.shape[2 if last else 1]
    group = () if array.ndim == 3 else (groups,)
    expect(name, array, (B, L, *group, S) if last else (B, *group, S, L))
    if D and (not groups or D % groups):
        raise ArgumentError(f"{name} has G={groups}, which does not divide D={D} of u")
    return groups


def _call(
    u: ArrayLike,
    delta: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None,
    z: ArrayLike | None,
    delta_bias: ArrayLike | None,
    delta_softplus: bool,
    initial_state: ArrayLike | None,
    seq_idx: ArrayLike | None,
    cu_seqlens: ArrayLike | None,
    channels_last: bool,
) -> _Call:
    """Check everything against everything."""
    u, delta, A = _strided("u", u), _strided("delta", delta), as_floats(A=A)[0]
    B, C = (_strided(n, v) if np.ndim(v) > 2 else as_floats(**{n: v})[0] for n, v in (("B", B), ("C", C)))
    D, delta_bias = optional("D", D), optional("delta_bias", delta_bias)
    initial_state = optional("initial_state", initial_state)
    z = None if z is None else _strided("z", z)
    same_dtype("u", u.dtype, delta=delta, A=A, B=B, C=C, D=D, z=z)
    same_dtype("u", u.dtype, delta_bias=delta_bias, initial_state=initial_state)
    dims = "B L D" if channels_last else "B D L"
    found = check_dims(f"{dims}, {dims}, D S", u=u, delta=delta, A=A)
    sizes = batch, channels, length, state = found["B"], found["D"], found["L"], found["S"]
    groups = {_coefficient_shape(n, a, sizes, channels_last) for n, a in (("B", B), ("C", C))} - {None}
    if len(groups) > 1:
        raise ShapeError(f"C has shape {C.shape}, expected as many groups as B of shape {B.shape}")
    expect("D", D, (channels,))
    expect("z", z, u.shape)
    expect("delta_bias", delta_bias, (channels,))
    ids, offsets, states = check_packing(batch, length, seq_idx, cu_seqlens)
    expect("initial_state", initial_state, (states, channels, state))
    given = ((u, delta, A, B, C), (D, z, delta_bias, initial_state), (ids, offsets))
    return _Call((*given, (bool(delta_softplus), bool(channels_last))), (states, channels, state))


def selective_scan(
    u: ArrayLike,
    delta: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None = None,
    z: ArrayLike | None = None,
    delta_bias: ArrayLike | None = None,
    delta_softplus: bool = False,
    initial_state: ArrayLike | None = None,
    return_last_state: bool = False,
    *,
    seq_idx: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    channels_last: bool = False,
    return_checkpoints: bool = False,
    out: Array | None = None,
) -> Any:
    """Return Mamba's scan: ``h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t``, ``y_t = C_t h_t + D u_t``.

    Names and layouts are those of ``mamba_ssm``'s ``selective_scan_fn``. Time is linear in L; no array with
    both L and S is made but what is given. A sequence may be cut anywhere and its state carried: results and
    states are the same bits, as they are for any number of threads. A NaN stays in its row and channel,
    unless it is in ``B`` or ``C``, which all channels of a group read.

    Parameters
    ----------
    u : array (B, D, L), or (B, L, D) with ``channels_last``
        Inputs, ``float32`` or ``float64``. Views are read where they are.
    delta : array as ``u``
        Step sizes, before ``delta_bias`` and softplus.
    A : array (D, S)
        Rates, negative in a model that forgets.
    B, C : array (B, S, L) or (B, G, S, L); with ``channels_last`` (B, L, S) or (B, L, G, S); or (D, S)
        How an input enters the state, and how the state is read. Channel ``d`` reads group ``d // (D / G)``;
        an array (D, S) is the same at every token.
    D : array (D,), optional
        Factor of ``u`` in ``y``.
    z : array as ``u``, optional
        Gate: ``y`` is multiplied by ``z * sigmoid(z)`` in the end.
    delta_bias : array (D,), optional
        Added to ``delta``.
    delta_softplus : bool
        Take ``log(1 + exp(delta))`` of the sum.
    initial_state : array (B, D, S), optional
        State before the first token, zero where None; ``(n, D, S)`` with ``cu_seqlens``.
    return_last_state : bool
        Also return the state after the last token.
    seq_idx : array (B, L) of integers, optional
        Sequence of each token: where it changes, the state begins anew, from zero.
    cu_seqlens : array (n + 1,) of integers, optional
        Where the n sequences of a batch of one row begin and end, instead of ``seq_idx``; each has states of
        its own.
    channels_last : bool
        Whether channels are the last axis.
    return_checkpoints : bool
        Also return what saves :func:`selective_scan_backward` a scan of its own.
    out : array as ``u``, optional
        Where to write ``y``, apart from the arguments; without a copy where it is contiguous.

    Returns
    -------
    y : array as ``u``
    last_state : array (B, D, S) or (n, D, S)
        Only with ``return_last_state``.
    checkpoints : array
        Only with ``return_checkpoints``.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where an argument does not fit; the message names it.

    References
    ----------
    Gu and Dao 2023, arXiv:2312.00752.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import selective_scan
    >>> u, one = np.ones((1, 1, 4)), np.ones((1, 1))
    >>> selective_scan(u, u, -np.log([[2.0]]), one, one)[0, 0]  # halves, and adds one
    array([1.   , 1.5  , 1.75 , 1.875])
    """
    call = _call(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, seq_idx, cu_seqlens, channels_last
    )
    like = call.u
    if out is None:
        to = np.empty(like.shape, like.dtype)
    else:
        names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
        arrays = (*call.given[0], *call.given[1])
        inputs = {n: a for n, a in zip(names, arrays, strict=True) if a is not None}
        to = place("out", out, like.dtype, like.shape, inputs)
        if not to.flags.c_contiguous:
            to = np.empty(like.shape, like.dtype)
    last, kept = _core.selective_scan(call.given, to, (bool(return_last_state), bool(return_checkpoints)))
    results: list[Any] = [finish(out, to)]
    results += [last] if return_last_state else []
    results += [kept] if return_checkpoints else []
    return results[0] if len(results) == 1 else tuple(results)


def selective_scan_backward(
    grad_out: ArrayLike,
    u: ArrayLike,
    delta: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None = None,
    z: ArrayLike | None = None,
    delta_bias: ArrayLike | None = None,
    delta_softplus: bool = False,
    initial_state: ArrayLike | None = None,
    *,
    grad_last_state: ArrayLike | None = None,
    seq_idx: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    channels_last: bool = False,
    checkpoints: ArrayLike | None = None,
) -> SelectiveScanGrads:
    """Return the gradients of :func:`selective_scan` by all that it reads.

    States are computed again from checkpoints, one every 64 tokens: there is no array (B, D, L, S). The same
    bits with any number of threads.

    Parameters
    ----------
    grad_out : array as ``u``
        Gradient by ``y``.
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, seq_idx, cu_seqlens, channels_last
        As given to :func:`selective_scan`.
    grad_last_state : array (B, D, S) or (n, D, S), optional
        Gradient by the last state; zero where None.
    checkpoints : array, optional
        As :func:`selective_scan` returned them for the same arguments; computed again where None.

    Returns
    -------
    SelectiveScanGrads
        ``(u, delta, A, B, C, D, z, delta_bias, initial_state)``, the last four None where the argument was.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where an argument does not fit; the message names it.

    References
    ----------
    Gu and Dao 2023, arXiv:2312.00752.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import selective_scan_backward
    >>> u, one = np.ones((1, 1, 3)), np.ones((1, 1))
    >>> selective_scan_backward(u, u, u, -np.log([[2.0]]), one, one).u[0, 0]
    array([1.75, 1.5 , 1.  ])
    """
    call = _call(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, seq_idx, cu_seqlens, channels_last
    )
    grad_out = _strided("grad_out", grad_out)
    grad_last_state, checkpoints = (
        optional("grad_last_state", grad_last_state),
        optional("checkpoints", checkpoints),
    )
    same_dtype("u", call.u.dtype, grad_out=grad_out, grad_last_state=grad_last_state, checkpoints=checkpoints)
    expect("grad_out", grad_out, call.u.shape)
    expect("grad_last_state", grad_last_state, call.states)
    always, sometimes = _core.selective_scan_backward(grad_out, call.given, grad_last_state, checkpoints)
    return SelectiveScanGrads(*always, *sometimes)


def selective_state_update(
    state: Array,
    x: ArrayLike,
    dt: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    D: ArrayLike | None = None,
    z: ArrayLike | None = None,
    dt_bias: ArrayLike | None = None,
    dt_softplus: bool = False,
) -> Array:
    """Return ``y`` of one more token, and update the state in place: a step of :func:`selective_scan`.

    Parameters
    ----------
    state : array (B, D, S)
        States, ``float32`` or ``float64``, contiguous and writeable; updated in place.
    x : array (B, D)
        The token, of the dtype of the state.
    dt : array (B, D)
        Step sizes, before ``dt_bias`` and softplus.
    A : array (D, S)
    B, C : array (B, S) or (B, G, S)
    D : array (D,), optional
    z : array (B, D), optional
    dt_bias : array (D,), optional
    dt_softplus : bool
        As for :func:`selective_scan`.

    Returns
    -------
    y : array (B, D)

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import selective_state_update
    >>> state, one = np.zeros((1, 1, 1)), np.ones((1, 1))
    >>> for _ in range(3):
    ...     y = selective_state_update(state, one, one, -np.log([[2.0]]), one, one)
    >>> y[0, 0], state[0, 0, 0]
    (np.float64(1.75), np.float64(1.75))
    """
    check_state(state)
    x, dt, A, B, C = as_floats(x=x, dt=dt, A=A, B=B, C=C)
    D, z, dt_bias = optional("D", D), optional("z", z), optional("dt_bias", dt_bias)
    same_dtype("state", state.dtype, x=x, D=D, z=z, dt_bias=dt_bias)
    if not (state.ndim == 3 and state.shape[:2] == x.shape == dt.shape and state.shape[1:] == A.shape):
        check_dims("B D S, B D, B D, D S", state=state, x=x, dt=dt, A=A)  # Finds the words: 3 microseconds.
    batch, channels, size = state.shape
    if B.ndim not in (2, 3):
        raise ShapeError(f"B has shape {B.shape}, expected 2 or 3 dimensions")
    groups = B.shape[1] if B.ndim == 3 else 1
    expect("B", B, (batch, groups, size) if B.ndim == 3 else (batch, size))
    expect("C", C, B.shape)
    if channels and (not groups or channels % groups):
        raise ArgumentError(f"B has G={groups}, which does not divide D={channels} of state")
    expect("D", D, (channels,))
    expect("z", z, x.shape)
    expect("dt_bias", dt_bias, (channels,))
    return _core.selective_state_update(state, [x, dt, A, B, C], [D, z, dt_bias], bool(dt_softplus))
