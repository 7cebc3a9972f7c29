"""Test-time-training layers: a network in every head that learns while the sequence is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from .._validate import as_floats, check_dims, check_finite_number, check_integer
from ..errors import ArgumentError, DTypeError, ShapeError
from ._tensor import like, tensor

__all__ = [
    "TTTLinearGrads",
    "TTTMLPGrads",
    "TTTState",
    "ttt_linear",
    "ttt_linear_backward",
    "ttt_mlp",
    "ttt_mlp_backward",
]

Array = NDArray[Any]
_Parts = tuple[Sequence[Array], Sequence[Array]]


@dataclass(eq=False)
class TTTState:
    """What a test-time-training layer remembers of a sequence, whatever its length.

    Parameters
    ----------
    weights : tuple of arrays
        Fast weights that the mini-batch at hand began with: ``(W, b)`` of shapes ``(B, H, D, D)`` and
        ``(B, H, D)``, or ``(W1, b1, W2, b2)`` of ``(B, H, D, F)``, ``(B, H, F)``, ``(B, H, F, D)`` and
        ``(B, H, D)``.
    sums : tuple of arrays
        Of the same shapes: over the tokens of the mini-batch that were read, the sum of ``eta`` times the
        gradient of the inner loss. Zeros where ``position`` is 0, and not read there.
    position : int
        Tokens of the mini-batch that were read, fewer than ``mini_batch_size``.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import TTTState
    >>> state = TTTState.initial(2, np.zeros((4, 8, 8)), np.zeros((4, 8)))
    >>> [a.shape for a in state.weights], state.position
    ([(2, 4, 8, 8), (2, 4, 8)], 0)
    """

    weights: tuple[Array, ...]
    sums: tuple[Array, ...]
    position: int = 0

    @classmethod
    def initial(cls, batch: int, *weights: ArrayLike) -> TTTState:
        """Return the state before the first token: the parameters ``(H, ...)`` in each of ``batch`` rows."""
        batch = check_integer("batch", batch)
        arrays = as_floats(**{f"weights[{i}]": w for i, w in enumerate(weights)})
        return cls(
            tuple(np.repeat(a[None], batch, axis=0) for a in arrays),
            tuple(np.zeros((batch, *a.shape), dtype=a.dtype) for a in arrays),
        )

    def copy(self) -> TTTState:
        """Return a state that shares no memory with this one."""
        return TTTState(
            tuple(np.array(a, order="C") for a in self.weights),
            tuple(np.array(a, order="C") for a in self.sums),
            self.position,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(a.nbytes for a in (*self.weights, *self.sums))


class TTTLinearGrads(NamedTuple):
    """Gradients of :func:`ttt_linear`; None where there was no such input."""

    q: Array
    k: Array
    v: Array
    eta: Array
    W: Array
    b: Array
    norm_weight: Array
    norm_bias: Array
    token_scale: Array | None
    initial_state: TTTState | None


class TTTMLPGrads(NamedTuple):
    """Gradients of :func:`ttt_mlp`; None where there was no such input."""

    q: Array
    k: Array
    v: Array
    eta: Array
    W1: Array
    b1: Array
    W2: Array
    b2: Array
    norm_weight: Array
    norm_bias: Array
    token_scale: Array | None
    initial_state: TTTState | None


@dataclass(eq=False)
class _Call:
    """Checked arguments, under the names that the kernel reads them by."""

    q: Array
    k: Array
    v: Array
    eta: Array
    weights: list[Array]
    norm_weight: Array
    norm_bias: Array
    token_scale: Array | None
    mini_batch_size: int
    eps: float
    initial: _Parts | None
    position: int


def _rows(name: str, value: ArrayLike, dtype: np.dtype[Any] | None) -> Array:
    array = tensor(name, value)
    if array.dtype.itemsize == 2:
        raise DTypeError(f"{name} has dtype {array.dtype}, expected float32 or float64")
    if dtype is not None and array.dtype != dtype:
        raise DTypeError(f"{name} has dtype {array.dtype} but q has {dtype}")
    return array


def _state(name: str, state: TTTState, weights: Sequence[Array], batch: int) -> _Parts:
    """Return the arrays of a state, held to the shapes of the weights."""
    if not isinstance(state, TTTState):
        raise DTypeError(f"{name} must be a TTTState, not {type(state).__name__}")
    parts = []
    for field, arrays in (("weights", state.weights), ("sums", state.sums)):
        if len(arrays) != len(weights):
            raise ShapeError(f"{name}.{field} has {len(arrays)} arrays, expected {len(weights)}")
        named = {f"{name}.{field}[{i}]": a for i, a in enumerate(arrays)}
        _, *held = as_floats(q=np.empty(0, weights[0].dtype), **named)
        for key, array, weight in zip(named, held, weights, strict=True):
            if array.shape != (batch, *weight.shape):
                raise ShapeError(f"{key} has shape {array.shape}, expected {(batch, *weight.shape)}")
        parts.append(held)
    return parts[0], parts[1]


def _call(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    eta: ArrayLike,
    weights: dict[str, ArrayLike],
    norm_weight: ArrayLike,
    norm_bias: ArrayLike,
    token_scale: ArrayLike | None,
    mini_batch_size: int,
    eps: float,
    initial_state: TTTState | None,
) -> _Call:
    q = _rows("q", q, None)
    k, v = _rows("k", k, q.dtype), _rows("v", v, q.dtype)
    rest: dict[str, Any] = {"eta": eta, **weights, "norm_weight": norm_weight, "norm_bias": norm_bias}
    if token_scale is not None:
        rest["token_scale"] = token_scale
    _, *arrays = as_floats(q=np.empty(0, q.dtype), **rest)
    held = dict(zip(rest, arrays, strict=True))
    dims = "H D D, H D" if len(weights) == 2 else "H D F, H F, H F D, H D"
    rows = {"q": q, "k": k, "v": v}
    b = check_integer("mini_batch_size", mini_batch_size, least=1, most=np.iinfo(np.int64).max)
    scale = held.pop("token_scale", None)
    check_dims(f"B H L D, B H L D, B H L D, B H L, {dims}, H D, H D", **rows, **held)
    if q.shape[3] == 0:
        raise ShapeError("q has D=0, expected at least 1")
    if scale is not None and scale.shape != (b,):
        raise ShapeError(f"token_scale has shape {scale.shape}, expected ({b},) to fit mini_batch_size")
    eps = check_finite_number("eps", eps)
    if eps < 0:
        raise ArgumentError(f"eps must not be negative, not {eps:g}")
    names = list(weights)
    initial, position = None, 0
    if initial_state is not None:
        initial = _state("initial_state", initial_state, [held[n] for n in names], q.shape[0])
        position = check_integer("initial_state.position", initial_state.position, most=b - 1)
    return _Call(
        **rows,
        eta=held["eta"],
        weights=[held[n] for n in names],
        norm_weight=held["norm_weight"],
        norm_bias=held["norm_bias"],
        token_scale=scale,
        mini_batch_size=b,
        eps=eps,
        initial=initial,
        position=position,
    )


def _begin(call: _Call, initial: TTTState | None, out_state: TTTState | None) -> TTTState:
    """Return the state that a call is to begin from and to leave: `out_state`, or a new one."""
    if out_state is None:
        if call.initial is None:
            return TTTState.initial(call.q.shape[0], *call.weights)
        weights, sums = (tuple(a.copy() for a in part) for part in call.initial)
        return TTTState(weights, sums, call.position)
    for given, held in zip(
        (out_state.weights, out_state.sums),
        _state("out_state", out_state, call.weights, call.q.shape[0]),
        strict=True,
    ):
        if any(a is not b for a, b in zip(given, held, strict=True)):
            raise ArgumentError("out_state must hold native, aligned, C-contiguous arrays")
    if any(not a.flags.writeable for a in (*out_state.weights, *out_state.sums)):
        raise ArgumentError("out_state is read-only")
    if out_state is not initial:
        begun = call.initial or (call.weights, [np.zeros((), a.dtype) for a in call.weights])
        for mine, theirs in zip((out_state.weights, out_state.sums), begun, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                a[...] = b
    return out_state


def _forward(
    call: _Call,
    initial: TTTState | None,
    return_last_state: bool,
    out_state: TTTState | None,
    return_checkpoints: bool,
) -> Any:
    y = like(call.q)
    if not (return_last_state or out_state is not None):
        _, kept = _core.ttt_forward(call, y, None, return_checkpoints)
        return (y, kept) if return_checkpoints else y
    state = _begin(call, initial, out_state)
    call.initial = None
    parts = (list(state.weights), list(state.sums))
    state.position, kept = _core.ttt_forward(call, y, parts, return_checkpoints)
    return (y, state, kept) if return_checkpoints else (y, state)


def _backward(
    grad_out: ArrayLike, call: _Call, grad_last_state: TTTState | None, checkpoints: ArrayLike | None
) -> tuple[list[Any], list[Any]]:
    """Return the gradients by q, k, v and eta, by the weights, and by what follows them."""
    grad = _rows("grad_out", grad_out, call.q.dtype)
    if grad.shape != call.q.shape:
        raise ShapeError(f"grad_out has shape {grad.shape}, expected {call.q.shape} to fit q")
    last = None
    if grad_last_state is not None:
        last = _state("grad_last_state", grad_last_state, call.weights, call.q.shape[0])
    if checkpoints is not None:
        _, checkpoints = as_floats(q=np.empty(0, call.q.dtype), checkpoints=checkpoints)
    rows = [like(call.q), like(call.k), like(call.v)]
    (deta, dweight, dbias), dscale, (dweights, dsums) = _core.ttt_backward(
        call, grad, last, checkpoints, rows
    )
    state = None
    if call.initial is None:
        parameters = [a[0] if len(a) == 1 else a.sum(axis=0, dtype=a.dtype) for a in dweights]
    else:
        state = TTTState(tuple(dweights), tuple(dsums), call.position)
        parameters = [np.zeros_like(a) for a in call.weights]
    return [*rows, deta, *parameters], [dweight, dbias, dscale, state]


def ttt_linear(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    eta: ArrayLike,
    W: ArrayLike,
    b: ArrayLike,
    norm_weight: ArrayLike,
    norm_bias: ArrayLike,
    *,
    token_scale: ArrayLike | None = None,
    mini_batch_size: int = 16,
    eps: float = 1e-6,
    initial_state: TTTState | None = None,
    return_last_state: bool = False,
    out_state: TTTState | None = None,
    return_checkpoints: bool = False,
) -> Any:
    """Read a sequence with a linear map that learns from it (TTT-Linear).

    Every head of every row has fast weights, ``f(x) = x W + b``, whose loss for a token is
    ``1/2 |LN(f(k)) - (v - k)|^2``. With ``G_j`` its gradient by the fast weights, taken at those that the
    mini-batch began with, token ``i`` of a mini-batch (from 0) reads ``y_i = q_i + LN(f(q_i))`` with weights
    moved by ``-token_scale[i] * sum(eta[j] * G_j for j <= i)``. The next mini-batch begins with the weights
    of the last token.

    Parameters
    ----------
    q, k, v : array (B, H, L, D)
        Queries, keys and values, ``float32`` or ``float64``; rows need to be contiguous along ``D`` only.
    eta : array (B, H, L)
        Inner rate of each token. The authors' layer has ``base_lr * sigmoid(gate) / D``.
    W, b : array (H, D, D), array (H, D)
        Fast weights before the first token. Not used where there is an ``initial_state``.
    norm_weight, norm_bias : array (H, D)
        Of the layer norm over each head.
    token_scale : array (mini_batch_size,), optional
        Factor of the summed gradients by the token's place in its mini-batch; ``1 / (i + 1)`` by default.
    mini_batch_size : int
        Tokens whose gradients are taken at the same weights; 1 is online gradient descent.
    eps : float
        Added to the variance.
    initial_state : TTTState, optional
        From an earlier call with the same parameters, with which the sequence goes on, mid mini-batch too.
    return_last_state : bool
        Also return the state after the last token.
    out_state : TTTState, optional
        Written with the last state, which is then returned; it may be ``initial_state`` itself, for
        generation without new memory.
    return_checkpoints : bool
        Also return what spares :func:`ttt_linear_backward` a forward.

    Returns
    -------
    y : array (B, H, L, D)
        With heads and tokens in memory in the order that ``q`` has them.
    last_state : TTTState
        Only with ``return_last_state`` or ``out_state``.
    checkpoints : array
        Only with ``return_checkpoints``: fast weights before every group of about ``sqrt(L / b)``
        mini-batches, of unspecified form.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other; the message names the argument.

    Notes
    -----
    Gradients and readings are causal, NaN included: what a token holds reaches neither earlier tokens nor
    other heads or rows. Without tokens (``L = 0``) the state stays as it is.

    References
    ----------
    Sun et al. (2024), Learning to (Learn at Test Time): RNNs with Expressive Hidden States, arXiv:2407.04620.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import ttt_linear
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 1, 2, 20, 8))
    >>> eta = np.full((1, 2, 20), 0.1)
    >>> parameters = np.zeros((2, 8, 8)), np.zeros((2, 8)), np.ones((2, 8)), np.zeros((2, 8))
    >>> y = ttt_linear(q, k, v, eta, *parameters)
    >>> first, state = ttt_linear(*(a[:, :, :7] for a in (q, k, v, eta)), *parameters, return_last_state=True)
    >>> rest = ttt_linear(*(a[:, :, 7:] for a in (q, k, v, eta)), *parameters, initial_state=state)
    >>> np.allclose(np.concatenate([first, rest], axis=2), y)
    True
    """
    weights = {"W": W, "b": b}
    call = _call(
        q, k, v, eta, weights, norm_weight, norm_bias, token_scale, mini_batch_size, eps, initial_state
    )
    return _forward(call, initial_state, return_last_state, out_state, return_checkpoints)


def ttt_linear_backward(
    grad_out: ArrayLike,
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    eta: ArrayLike,
    W: ArrayLike,
    b: ArrayLike,
    norm_weight: ArrayLike,
    norm_bias: ArrayLike,
    *,
    token_scale: ArrayLike | None = None,
    mini_batch_size: int = 16,
    eps: float = 1e-6,
    initial_state: TTTState | None = None,
    grad_last_state: TTTState | None = None,
    checkpoints: ArrayLike | None = None,
) -> TTTLinearGrads:
    """Return the gradients of :func:`ttt_linear`, through every inner step.

    Parameters
    ----------
    grad_out : array (B, H, L, D)
        Gradient of ``y``.
    q, k, v, eta, W, b, norm_weight, norm_bias, token_scale, mini_batch_size, eps, initial_state
        As given to the forward.
    grad_last_state : TTTState, optional
        Gradient of the last state, array by array; its ``position`` is not read. Gradients of ``sums`` count
        only where the last mini-batch is unfinished.
    checkpoints : array, optional
        From the forward with ``return_checkpoints``; without them the keys are run once more.

    Returns
    -------
    TTTLinearGrads
        Of every input. With an ``initial_state`` the gradients of ``W`` and ``b`` are zero, and its own is a
        :class:`TTTState` of gradients; otherwise that is None, as is that of ``token_scale`` by default.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other.

    Notes
    -----
    Takes memory for about ``sqrt(L / b)`` copies of the fast weights a head, not for every mini-batch's.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import ttt_linear_backward
    >>> rng = np.random.default_rng(0)
    >>> q, k, v, grad = rng.standard_normal((4, 1, 2, 20, 8))
    >>> parameters = np.zeros((2, 8, 8)), np.zeros((2, 8)), np.ones((2, 8)), np.zeros((2, 8))
    >>> grads = ttt_linear_backward(grad, q, k, v, np.full((1, 2, 20), 0.1), *parameters)
    >>> grads.q.shape, grads.W.shape, grads.initial_state
    ((1, 2, 20, 8), (2, 8, 8), None)
    """
    weights = {"W": W, "b": b}
    call = _call(
        q, k, v, eta, weights, norm_weight, norm_bias, token_scale, mini_batch_size, eps, initial_state
    )
    first, rest = _backward(grad_out, call, grad_last_state, checkpoints)
    return TTTLinearGrads(*first, *rest)


def ttt_mlp(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    eta: ArrayLike,
    W1: ArrayLike,
    b1: ArrayLike,
    W2: ArrayLike,
    b2: ArrayLike,
    norm_weight: ArrayLike,
    norm_bias: ArrayLike,
    *,
    token_scale: ArrayLike | None = None,
    mini_batch_size: int = 16,
    eps: float = 1e-6,
    initial_state: TTTState | None = None,
    return_last_state: bool = False,
    out_state: TTTState | None = None,
    return_checkpoints: bool = False,
) -> Any:
    """Read a sequence with a network of two layers that learns from it (TTT-MLP).

    As :func:`ttt_linear`, with ``f(x) = gelu(x W1 + b1) W2 + b2``, GELU in its tanh form. Both layers learn.

    Parameters
    ----------
    q, k, v : array (B, H, L, D)
        Queries, keys and values, ``float32`` or ``float64``; rows need to be contiguous along ``D`` only.
    eta : array (B, H, L)
        Inner rate of each token.
    W1, b1 : array (H, D, F), array (H, F)
        First layer before the first token; the authors' layer has ``F = 4 D``.
    W2, b2 : array (H, F, D), array (H, D)
        Second layer. None of them is used where there is an ``initial_state``.
    norm_weight, norm_bias : array (H, D)
        Of the layer norm over each head.
    token_scale, mini_batch_size, eps, initial_state, return_last_state, out_state, return_checkpoints
        As for :func:`ttt_linear`.

    Returns
    -------
    y : array (B, H, L, D)
        With heads and tokens in memory in the order that ``q`` has them.
    last_state : TTTState
        Only with ``return_last_state`` or ``out_state``.
    checkpoints : array
        Only with ``return_checkpoints``.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other; the message names the argument.

    References
    ----------
    Sun et al. (2024), Learning to (Learn at Test Time): RNNs with Expressive Hidden States, arXiv:2407.04620.
    Hendrycks and Gimpel (2016), Gaussian Error Linear Units, arXiv:1606.08415.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import TTTState, ttt_mlp
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.standard_normal((3, 1, 2, 20, 8))
    >>> weights = (0.1 * rng.standard_normal((2, 8, 32)), np.zeros((2, 32)))
    >>> weights += (0.1 * rng.standard_normal((2, 32, 8)), np.zeros((2, 8)))
    >>> norm = np.ones((2, 8)), np.zeros((2, 8))
    >>> state = TTTState.initial(1, *weights)
    >>> for t in range(20):
    ...     token = (a[:, :, t : t + 1] for a in (q, k, v, np.full((1, 2, 20), 0.1)))
    ...     y, _ = ttt_mlp(*token, *weights, *norm, initial_state=state, out_state=state)
    >>> y.shape, state.position
    ((1, 2, 1, 8), 4)
    """
    weights = {"W1": W1, "b1": b1, "W2": W2, "b2": b2}
    call = _call(
        q, k, v, eta, weights, norm_weight, norm_bias, token_scale, mini_batch_size, eps, initial_state
    )
    return _forward(call, initial_state, return_last_state, out_state, return_checkpoints)


def ttt_mlp_backward(
    grad_out: ArrayLike,
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    eta: ArrayLike,
    W1: ArrayLike,
    b1: ArrayLike,
    W2: ArrayLike,
    b2: ArrayLike,
    norm_weight: ArrayLike,
    norm_bias: ArrayLike,
    *,
    token_scale: ArrayLike | None = None,
    mini_batch_size: int = 16,
    eps: float = 1e-6,
    initial_state: TTTState | None = None,
    grad_last_state: TTTState | None = None,
    checkpoints: ArrayLike | None = None,
) -> TTTMLPGrads:
    """Return the gradients of :func:`ttt_mlp`, through every inner step.

    Parameters
    ----------
    grad_out : array (B, H, L, D)
        Gradient of ``y``.
    q, k, v, eta, W1, b1, W2, b2, norm_weight, norm_bias, token_scale, mini_batch_size, eps, initial_state
        As given to the forward.
    grad_last_state, checkpoints
        As for :func:`ttt_linear_backward`.

    Returns
    -------
    TTTMLPGrads
        Of every input. With an ``initial_state`` the gradients of the weights are zero, and its own is a
        :class:`TTTState` of gradients; otherwise that is None, as is that of ``token_scale`` by default.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import ttt_mlp_backward
    >>> rng = np.random.default_rng(0)
    >>> q, k, v, grad = rng.standard_normal((4, 1, 2, 20, 8))
    >>> weights = np.zeros((2, 8, 32)), np.zeros((2, 32)), np.zeros((2, 32, 8)), np.zeros((2, 8))
    >>> norm = np.ones((2, 8)), np.zeros((2, 8))
    >>> ttt_mlp_backward(grad, q, k, v, np.full((1, 2, 20), 0.1), *weights, *norm).W1.shape
    (2, 8, 32)
    """
    weights = {"W1": W1, "b1": b1, "W2": W2, "b2": b2}
    call = _call(
        q, k, v, eta, weights, norm_weight, norm_bias, token_scale, mini_batch_size, eps, initial_state
    )
    first, rest = _backward(grad_out, call, grad_last_state, checkpoints)
    return TTTMLPGrads(*first, *rest)
