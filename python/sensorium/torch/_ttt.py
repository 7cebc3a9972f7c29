"""Test-time-training layers as operators of torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import ops
from .._validate import check_dims
from ..errors import DTypeError, ShapeError
from ..ops import TTTState
from ._register import Tensor, check_float, define, differentiable, empty_like, like, or_empty

__all__ = ["ttt_linear", "ttt_mlp"]

Array = np.ndarray[Any, Any]

_ROWS = ("q", "k", "v", "eta")
_NORM = ("norm_weight", "norm_bias", "token_scale")


class _Layer:
    """One kind of layer: the operation, its backward, and the operators made of them.

    The operators take rows, parameters, norm, the arrays of a state if there is one, and then plain values:
    ``mini_batch_size, eps, position, last``. They give ``y`` and the arrays of the last state, empty without
    `last`.
    """

    def __init__(
        self,
        name: str,
        run: Callable[..., Any],
        backward: Callable[..., Any],
        weights: Sequence[str],
        dims: str,
    ):
        self.run, self.backward, self.weights, self.dims = run, backward, tuple(weights), dims
        parts = tuple(f"{part}_{weight}" for part in ("state", "sums") for weight in weights)
        wrt = (*_ROWS, *weights, *_NORM, *parts)
        optional = ("token_scale", *parts)
        inputs = ", ".join(f"Tensor{'?' if one in optional else ''} {one}" for one in wrt)
        inputs += ", SymInt mini_batch_size, float eps, SymInt position, bool last"
        results = ", ".join(f"Tensor last_{part}" for part in parts)
        grads = ", ".join(f"Tensor d{one}" for one in wrt)
        given = ", ".join(f"Tensor grad_{part}" for part in ("y", *parts))
        self.operator = define(name, f"({inputs}) -> (Tensor y, {results})", self._forward, self._shapes)
        operator_backward = define(
            f"{name}_backward",
            f"({given}, {inputs}) -> ({grads})",
            self._backward,
            self._backward_shapes,
            backward_of=name,
        )
        differentiable(self.operator, wrt, save=lambda inputs, output: inputs, backward=operator_backward)

    def _named(self, inputs: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any], bool]:
        """Return the arguments of the operation, its options, and whether the last state is asked for."""
        *tensors, mini_batch_size, eps, position, last = inputs
        count = len(self.weights)
        arrays, scale, parts = tensors[: count + 6], tensors[count + 6], tensors[count + 7 :]
        state = None
        if parts[0] is not None:
            state = TTTState(tuple(parts[:count]), tuple(parts[count:]), position)
        options = {"mini_batch_size": mini_batch_size, "eps": eps, "token_scale": scale}
        return tuple(arrays), {**options, "initial_state": state}, last

    def _forward(self, *inputs: Any) -> tuple[Array, ...]:
        arrays, options, last = self._named(inputs)
        if not last:
            return or_empty([self.run(*arrays, **options), *[None] * (2 * len(self.weights))])
        y, state = self.run(*arrays, **options, return_last_state=True)
        return (y, *state.weights, *state.sums)

    def _shapes(self, *inputs: Any) -> tuple[Tensor, ...]:
        arrays, _, last = self._named(inputs)
        check_float("q", arrays[0])
        names = (*_ROWS, *self.weights)
        dims = f"B H L D, B H L D, B H L D, B H L, {self.dims}"
        check_dims(dims, **dict(zip(names, arrays, strict=False)))
        q, weights = arrays[0], arrays[4 : 4 + len(self.weights)]
        parts = [w.new_empty((q.shape[0], *w.shape) if last else 0) for _ in range(2) for w in weights]
        return (like(q), *parts)

    def _backward(self, *given: Any) -> tuple[Array, ...]:
        count = len(self.weights)
        grad_y, parts, inputs = given[0], given[1 : 1 + 2 * count], given[1 + 2 * count :]
        arrays, options, last = self._named(inputs)
        state = TTTState(tuple(parts[:count]), tuple(parts[count:])) if last else None
        *grads, before = self.backward(grad_y, *arrays, **options, grad_last_state=state)
        return or_empty(
            [*grads, *([None] * (2 * count) if before is None else (*before.weights, *before.sums))]
        )

    def _backward_shapes(self, *given: Any) -> tuple[Tensor, ...]:
        inputs = given[1 + 2 * len(self.weights) : -4]
        return (*map(like, inputs[:3]), *empty_like(inputs[3:]))

    def __call__(
        self,
        tensors: tuple[Tensor, ...],
        state: TTTState | None,
        mini_batch_size: int,
        eps: float,
        last: bool,
    ) -> Any:
        count = len(self.weights)
        parts: tuple[Any, ...] = (None,) * (2 * count)
        position = 0
        if state is not None:
            if not isinstance(state, TTTState):
                raise DTypeError(f"initial_state must be a TTTState, not {type(state).__name__}")
            parts, position = (*state.weights, *state.sums), state.position
            if len(parts) != 2 * count:
                raise ShapeError(f"initial_state has {len(parts)} tensors, expected {2 * count}")
        y, *made = self.operator(*tensors, *parts, mini_batch_size, float(eps), position, last)
        if not last:
            return y
        after = (position + tensors[0].shape[2]) % mini_batch_size
        return y, TTTState(tuple(made[:count]), tuple(made[count:]), after)


_linear = _Layer("ttt_linear", ops.ttt_linear, ops.ttt_linear_backward, ("W", "b"), "H D D, H D")
_mlp = _Layer(
    "ttt_mlp", ops.ttt_mlp, ops.ttt_mlp_backward, ("W1", "b1", "W2", "b2"), "H D F, H F, H F D, H D"
)


def ttt_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    W: Tensor,
    b: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    token_scale: Tensor | None = None,
    mini_batch_size: int = 16,
    eps: float = 1e-6,
    initial_state: TTTState | None = None,
    return_last_state: bool = False,
) -> Any:
    """Differentiable :func:`sensorium.ops.ttt_linear` of tensors, by every tensor.

    Parameters
    ----------
    q, k, v, eta, W, b, norm_weight, norm_bias, token_scale, mini_batch_size, eps
        As of :func:`sensorium.ops.ttt_linear`; ``float32`` or ``float64``.
    initial_state : TTTState, optional
        As this function returned it, of tensors; they have a gradient.
    return_last_state : bool
        Also return the state after the last token.

    Returns
    -------
    y : tensor (B, H, L, D)
        Laid out in memory like ``q``.
    last_state : TTTState
        Only with ``return_last_state``: its tensors have a gradient.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where an argument does not fit; the message names it.
    NotImplementedError
        From a second derivative.

    Examples
    --------
    >>> import torch
    >>> from sensorium.torch import ttt_linear
    >>> q, k, v = torch.randn(3, 1, 2, 20, 8)  # B 1, H 2, L 20, D 8
    >>> eta = torch.full((1, 2, 20), 0.1)
    >>> W, b, norm_weight = torch.zeros(2, 8, 8), torch.zeros(2, 8), torch.ones(2, 8)
    >>> parameters = (W.requires_grad_(), b, norm_weight, b)
    >>> y = ttt_linear(q, k, v, eta, *parameters)
    >>> y.sum().backward()
    >>> W.grad.shape
    torch.Size([2, 8, 8])
    >>> rows = [tensor.split([13, 7], 2) for tensor in (q, k, v, eta)]
    >>> head, state = ttt_linear(*(row[0] for row in rows), *parameters, return_last_state=True)
    >>> tail = ttt_linear(*(row[1] for row in rows), *parameters, initial_state=state)
    >>> torch.allclose(torch.cat([head, tail], 2), y, atol=1e-5)
    True
    """
    tensors = (q, k, v, eta, W, b, norm_weight, norm_bias, token_scale)
    return _linear(tensors, initial_state, mini_batch_size, eps, return_last_state)


def ttt_mlp(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: Tensor,
    W1: Tensor,
    b1: Tensor,
    W2: Tensor,
    b2: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    *,
    token_scale: Tensor | None = None,
    mini_batch_size: int = 16,
    eps: float = 1e-6,
    initial_state: TTTState | None = None,
    return_last_state: bool = False,
) -> Any:
    """Differentiable :func:`sensorium.ops.ttt_mlp` of tensors, by every tensor.

    Parameters, results and errors are those of :func:`ttt_linear`, with two layers of weights.

    Examples
    --------
    >>> import torch
    >>> from sensorium.torch import ttt_mlp
    >>> q, k, v = torch.randn(3, 1, 2, 20, 8)
    >>> parameters = [torch.zeros(2, *shape) for shape in ((8, 32), (32,), (32, 8), (8,), (8,), (8,))]
    >>> ttt_mlp(q, k, v, torch.full((1, 2, 20), 0.1), *parameters).shape
    torch.Size([1, 2, 20, 8])
    """
    tensors = (q, k, v, eta, W1, b1, W2, b2, norm_weight, norm_bias, token_scale)
    return _mlp(tensors, initial_state, mini_batch_size, eps, return_last_state)
