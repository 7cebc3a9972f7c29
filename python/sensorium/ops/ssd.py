"""Structured state-space duality, the scan of Mamba-2: chunks on matrix products, and one step in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from .._validate import as_floats, check_dims, check_integer
from ..errors import ArgumentError, DTypeError, ShapeError
from ._packed import check_packing
from ._tensor import check_state, expect, finish, optional, place, same_dtype, tensor

__all__ = ["SSDGrads", "ssd", "ssd_backward", "ssd_state_update"]

Array = NDArray[Any]
Limit = tuple[float, float]

#: Tokens of a chunk where none is asked for: the fastest of 32, 64, 96, 128 and 256 at S 128 and P 64.
_CHUNK = 64
_NO_LIMIT = (0.0, math.inf)


class SSDGrads(NamedTuple):
    """Gradients of :func:`ssd`, each shaped like its argument; None where there was none."""

    x: Array
    dt: Array
    A: Array
    B: Array
    C: Array
    D: Array | None
    z: Array | None
    dt_bias: Array | None
    initial_states: Array | None


def _limit(value: Sequence[float]) -> Limit:
    """Return ``dt_limit`` as two numbers."""
    if value is _NO_LIMIT:
        return _NO_LIMIT
    try:
        least, most = (float(x) for x in value)
    except (TypeError, ValueError):
        raise ArgumentError(f"dt_limit must be two numbers, not {value!r}") from None
    if not least <= most:
        raise ArgumentError(f"dt_limit must not fall, not {(least, most)}")
    return least, most


def _rows(name: str, value: ArrayLike) -> Array:
    """Return an array whose rows the kernel reads where they are, or a copy."""
    array = tensor(name, value)
    if array.dtype.itemsize == 2:
        raise DTypeError(f"{name} has dtype {array.dtype}, expected float32 or float64")
    return array


@dataclass(frozen=True, slots=True)
class _Call:
    """Arguments as the kernels take them."""

    five: tuple[Array, Array, Array, Array, Array]
    options: tuple[Array | None, Array | None, Array | None, Array | None]
    steps: tuple[bool, float, float]
    packing: tuple[Array | None, Array | None, int]
    states: tuple[int, int, int, int]

    @property
    def x(self) -> Array:
        return self.five[0]


def _call(
    x: ArrayLike,
    dt: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    chunk_size: int | None,
    D: ArrayLike | None,
    z: ArrayLike | None,
    dt_bias: ArrayLike | None,
    dt_softplus: bool,
    initial_states: ArrayLike | None,
    seq_idx: ArrayLike | None,
    cu_seqlens: ArrayLike | None,
    dt_limit: Sequence[float],
) -> _Call:
    """Check everything against everything."""
    x, B, C = _rows("x", x), _rows("B", B), _rows("C", C)
    dt, A = as_floats(dt=dt)[0], as_floats(A=A)[0]
    D, dt_bias = optional("D", D), optional("dt_bias", dt_bias)
    initial_states = optional("initial_states", initial_states)
    z = None if z is None else _rows("z", z)
    same_dtype("x", x.dtype, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias, initial_states=initial_states)
    sizes = check_dims("B L H P, B L H, H, B L G S, B L G S", x=x, dt=dt, A=A, B=B, C=C)
    batch, length, heads, width, groups, state = (sizes[k] for k in "BLHPGS")
    if heads and (not groups or heads % groups):
        raise ArgumentError(f"B has G={groups}, which does not divide H={heads} of x")
    if D is not None and D.shape not in ((heads,), (heads, width)):
        raise ShapeError(f"D has shape {D.shape}, expected {(heads,)} or {(heads, width)} to fit x")
    if z is not None:
        check_dims("B L H P, B L H P", x=x, z=z)
    if dt_bias is not None:
        check_dims("B L H, H", dt=dt, dt_bias=dt_bias)
    ids, offsets, states = check_packing(batch, length, seq_idx, cu_seqlens)
    shape = (states, heads, width, state)
    expect("initial_states", initial_states, shape)
    chunk = _CHUNK if chunk_size is None else check_integer("chunk_size", chunk_size, least=1)
    return _Call(
        (x, dt, A, B, C),
        (D, z, dt_bias, initial_states),
        (bool(dt_softplus), *_limit(dt_limit)),
        (ids, offsets, min(chunk, 1 << 20)),
        shape,
    )


def ssd(
    x: ArrayLike,
    dt: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    chunk_size: int | None = None,
    D: ArrayLike | None = None,
    z: ArrayLike | None = None,
    dt_bias: ArrayLike | None = None,
    dt_softplus: bool = False,
    initial_states: ArrayLike | None = None,
    seq_idx: ArrayLike | None = None,
    return_final_states: bool = False,
    *,
    cu_seqlens: ArrayLike | None = None,
    dt_limit: Sequence[float] = _NO_LIMIT,
    return_checkpoints: bool = False,
    out: Array | None = None,
) -> Any:
    """Return the scan of Mamba-2: ``h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t``, ``y_t = C_t h_t + D x_t``.

    Names and layouts are those of ``mamba_ssm``'s ``mamba_chunk_scan_combined``. Head ``h`` reads the ``B``
    and ``C`` of group ``h // (H / G)``. Time and memory are linear in L. Results agree for every
    ``chunk_size`` up to rounding, and do not depend on the number of threads, bit for bit. A NaN in channel
    ``p`` of ``x`` stays in that channel, and reaches no earlier token and no other sequence.

    Parameters
    ----------
    x : array (B, L, H, P)
        ``float32`` or ``float64``. Any view whose last axis is contiguous is read without a copy, as are
        those of ``B``, ``C`` and ``z``.
    dt : array (B, L, H)
        Step sizes, before ``dt_bias``, softplus and limits.
    A : array (H,)
        Rate of each head, negative in a model that forgets.
    B, C : array (B, L, G, S)
        How a token enters the state, and how it is read; ``G`` divides ``H``.
    chunk_size : int, optional
        Tokens that are taken together, at most 256 of them whatever is asked for; 64 where None.
    D : array (H,) or (H, P), optional
        Factor of ``x`` in ``y``.
    z : array (B, L, H, P), optional
        Gate: ``y`` is multiplied by ``z * sigmoid(z)`` in the end.
    dt_bias : array (H,), optional
        Added to ``dt``.
    dt_softplus : bool
        Take ``log(1 + exp(dt))`` of the sum.
    initial_states : array (B, H, P, S), optional
        States before the first token, zero where None; ``(n, H, P, S)`` with ``cu_seqlens``.
    seq_idx : array (B, L) of integers, optional
        Sequence of each token: where it changes, the state begins anew, from zero.
    return_final_states : bool
        Also return the states after the last token.
    cu_seqlens : array (n + 1,) of integers, optional
        Where the n sequences of a batch of one row begin and end, instead of ``seq_idx``; each has states of
        its own.
    dt_limit : (float, float)
        What step sizes are held to, after softplus.
    return_checkpoints : bool
        Also return what saves :func:`ssd_backward` a scan of its own.
    out : array (B, L, H, P), optional
        Where to write ``y``, apart from the arguments; without a copy where it is contiguous.

    Returns
    -------
    y : array (B, L, H, P)
    final_states : array (B, H, P, S) or (n, H, P, S)
        Only with ``return_final_states``.
    checkpoints : array
        Only with ``return_checkpoints``.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where an argument does not fit; the message names it.

    References
    ----------
    Dao and Gu 2024, arXiv:2405.21060.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import ssd
    >>> x = np.ones((1, 4, 1, 1))
    >>> one = np.ones((1, 4, 1, 1))
    >>> ssd(x, np.ones((1, 4, 1)), -np.log([2.0]), one, one)[0, :, 0, 0]  # halves, and adds one
    array([1.   , 1.5  , 1.75 , 1.875])
    """
    call = _call(
        x, dt, A, B, C, chunk_size, D, z, dt_bias, dt_softplus, initial_states, seq_idx, cu_seqlens, dt_limit
    )
    like = call.x
    if out is None:
        to = np.empty(like.shape, like.dtype)
    else:
        given = {"x": like, "dt": call.five[1], "A": call.five[2], "B": call.five[3], "C": call.five[4]}
        names = ("D", "z", "dt_bias", "initial_states")
        given |= {n: a for n, a in zip(names, call.options, strict=True) if a is not None}
        to = place("out", out, like.dtype, like.shape, given)
        if not to.flags.c_contiguous:
            to = np.empty(like.shape, like.dtype)
    final = np.empty(call.states, like.dtype) if return_final_states else None
    kept = _core.ssd_forward(
        call.five, call.options, call.steps, call.packing, to, final, bool(return_checkpoints)
    )
    results: list[Array | None] = [finish(out, to)]
    if return_final_states:
        results.append(final)
    if return_checkpoints:
        results.append(kept)
    return results[0] if len(results) == 1 else tuple(results)


def ssd_backward(
    grad_out: ArrayLike,
    x: ArrayLike,
    dt: ArrayLike,
    A: ArrayLike,
    B: ArrayLike,
    C: ArrayLike,
    chunk_size: int | None = None,
    D: ArrayLike | None = None,
    z: ArrayLike | None = None,
    dt_bias: ArrayLike | None = None,
    dt_softplus: bool = False,
    initial_states: ArrayLike | None = None,
    seq_idx: ArrayLike | None = None,
    *,
    grad_final_states: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
    dt_limit: Sequence[float] = _NO_LIMIT,
    checkpoints: ArrayLike | None = None,
) -> SSDGrads:
    """Return the gradients of :func:`ssd` by all that it reads.

    States are computed again from those at the begin of every 512 tokens: memory beyond inputs and
    gradients is a state for each of these, and what one of them takes. Where a limit holds a step size,
    ``dt`` has no gradient. Deterministic, and the same bits with any number of threads.

    Parameters
    ----------
    grad_out : array (B, L, H, P)
        Gradient by ``y``.
    x, dt, A, B, C, chunk_size, D, z, dt_bias, dt_softplus, initial_states, seq_idx, cu_seqlens, dt_limit
        As given to :func:`ssd`.
    grad_final_states : array (B, H, P, S) or (n, H, P, S), optional
        Gradient by the states that :func:`ssd` left; zero where None.
    checkpoints : array, optional
        As :func:`ssd` returned them for the same arguments; computed again where None.

    Returns
    -------
    SSDGrads
        ``(x, dt, A, B, C, D, z, dt_bias, initial_states)``, the last four None where the argument was.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where an argument does not fit; the message names it.

    References
    ----------
    Dao and Gu 2024, arXiv:2405.21060.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import ssd_backward
    >>> one = np.ones((1, 3, 1, 1))
    >>> ssd_backward(one, one, np.ones((1, 3, 1)), -np.log([2.0]), one, one).x[0, :, 0, 0]
    array([1.75, 1.5 , 1.  ])
    """
    call = _call(
        x, dt, A, B, C, chunk_size, D, z, dt_bias, dt_softplus, initial_states, seq_idx, cu_seqlens, dt_limit
    )
    grad_out = _rows("grad_out", grad_out)
    grad_final_states = optional("grad_final_states", grad_final_states)
    checkpoints = optional("checkpoints", checkpoints)
    same_dtype(
        "x", call.x.dtype, grad_out=grad_out, grad_final_states=grad_final_states, checkpoints=checkpoints
    )
    if grad_out.shape != call.x.shape:
        raise ShapeError(f"grad_out has shape {grad_out.shape}, expected {call.x.shape} to fit x")
    expect("grad_final_states", grad_final_states, call.states)
    grads = _core.ssd_backward(
        grad_out, grad_final_states, call.five, call.options, call.steps, call.packing, checkpoints
    )
    return SSDGrads(*grads)


def ssd_state_update(
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
    *,
    dt_limit: Sequence[float] = _NO_LIMIT,
) -> Array:
    """Return ``y`` of one more token, and update the state in place: a step of :func:`ssd`.

    The cost is that of reading and writing the state once.

    Parameters
    ----------
    state : array (B, H, P, S)
        States, ``float32`` or ``float64``, contiguous and writeable; updated in place.
    x : array (B, H, P)
        The token, of the dtype of the state.
    dt : array (B, H)
        Step sizes, before ``dt_bias``, softplus and limits.
    A : array (H,)
    B, C : array (B, G, S)
    D : array (H,) or (H, P), optional
    z : array (B, H, P), optional
    dt_bias : array (H,), optional
    dt_softplus : bool
    dt_limit : (float, float)
        As for :func:`ssd`.

    Returns
    -------
    y : array (B, H, P)

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import ssd_state_update
    >>> state, one = np.zeros((1, 1, 1, 1)), np.ones((1, 1, 1))
    >>> for _ in range(3):
    ...     y = ssd_state_update(state, one, np.ones((1, 1)), -np.log([2.0]), one, one)
    >>> y[0, 0, 0], state[0, 0, 0, 0]
    (np.float64(1.75), np.float64(1.75))
    """
    check_state(state)
    x, dt, A, B, C = (as_floats(**{k: v})[0] for k, v in (("x", x), ("dt", dt), ("A", A), ("B", B), ("C", C)))
    D, z, dt_bias = optional("D", D), optional("z", z), optional("dt_bias", dt_bias)
    same_dtype("state", state.dtype, x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias)
    _check_step(state, x, dt, A, B, C, D, z, dt_bias)
    return _core.ssd_step(state, (x, dt, A, B, C), D, z, dt_bias, (bool(dt_softplus), *_limit(dt_limit)))


def _check_step(
    state: Array,
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array | None,
    z: Array | None,
    dt_bias: Array | None,
) -> None:
    """Hold the sizes of a step to each other."""
    if state.ndim == 4 and B.ndim == 3:
        batch, heads, width, size = state.shape
        groups = B.shape[1]
        if (
            x.shape == (batch, heads, width)
            and dt.shape == (batch, heads)
            and A.shape == (heads,)
            and B.shape == (batch, groups, size) == C.shape
            and (D is None or D.shape in ((heads,), (heads, width)))
            and (z is None or z.shape == x.shape)
            and (dt_bias is None or dt_bias.shape == (heads,))
            and (not heads or (groups and not heads % groups))
        ):
            return
    sizes = check_dims("B H P S, B H P, B H, H, B G S, B G S", state=state, x=x, dt=dt, A=A, B=B, C=C)
    heads, width, groups = sizes["H"], sizes["P"], sizes["G"]
    if heads and (not groups or heads % groups):
        raise ArgumentError(f"B has G={groups}, which does not divide H={heads} of state")
    if z is not None:
        check_dims("B H P, B H P", x=x, z=z)
    if dt_bias is not None:
        check_dims("B H, H", dt=dt, dt_bias=dt_bias)
    assert D is not None
    raise ShapeError(f"D has shape {D.shape}, expected {(heads,)} or {(heads, width)} to fit state")
