"""The fused operations of :mod:`sensorium.ops` as operators of torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .. import ops
from ._register import Tensor, check_float, define, differentiable

__all__ = ["cross_entropy", "embedding", "gelu", "layer_norm", "linear", "rms_norm", "silu"]

Array = np.ndarray[Any, Any]


def _or_empty(array: Array | None, like: Array) -> Array:
    """Return what an operator must return for a result that there is not."""
    return np.empty(0, dtype=like.dtype) if array is None else array


def _new(name: str, like: Tensor, *shapes: Any) -> Any:
    """Return contiguous tensors without data in the dtype of an argument: one, or a tuple."""
    check_float(name, like)
    made = tuple(like.new_empty(shape) for shape in shapes)
    return made if len(made) > 1 else made[0]


# layer_norm and rms_norm


def _layer_norm_backward_run(
    grad: Array, x: Array, weight: Array, mean: Array, rstd: Array, has_bias: bool
) -> tuple[Array, Array, Array]:
    dx, dweight, dbias = ops.layer_norm_backward(grad, x, weight, mean, rstd, has_bias=has_bias)
    return dx, dweight, _or_empty(dbias, dx)


_layer_norm = define(
    "layer_norm",
    "(Tensor x, Tensor weight, Tensor? bias, float eps) -> (Tensor y, Tensor mean, Tensor rstd)",
    lambda x, weight, bias, eps: ops.layer_norm(x, weight, bias, eps=eps, return_stats=True),
    lambda x, weight, bias, eps: _new("x", x, x.shape, x.shape[:-1], x.shape[:-1]),
)
_layer_norm_backward = define(
    "layer_norm_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor mean, Tensor rstd, bool has_bias)"
    " -> (Tensor dx, Tensor dweight, Tensor dbias)",
    _layer_norm_backward_run,
    lambda grad, x, weight, mean, rstd, has_bias: _new(
        "x", x, x.shape, weight.shape, weight.shape if has_bias else 0
    ),
    backward_of="layer_norm",
)
differentiable(
    _layer_norm,
    ["x", "weight", "bias"],
    save=lambda inputs, output: (*inputs[:2], *output[1:], inputs[2] is not None),
    backward=_layer_norm_backward,
    constant_results=[1, 2],
)
_rms_norm = define(
    "rms_norm",
    "(Tensor x, Tensor weight, float eps) -> (Tensor y, Tensor rstd)",
    lambda x, weight, eps: ops.rms_norm(x, weight, eps=eps, return_stats=True),
    lambda x, weight, eps: _new("x", x, x.shape, x.shape[:-1]),
)
_rms_norm_backward = define(
    "rms_norm_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor rstd) -> (Tensor dx, Tensor dweight)",
    ops.rms_norm_backward,
    lambda grad, x, weight, rstd: _new("x", x, x.shape, weight.shape),
    backward_of="rms_norm",
)
differentiable(
    _rms_norm,
    ["x", "weight"],
    save=lambda inputs, output: (*inputs[:2], output[1]),
    backward=_rms_norm_backward,
    constant_results=[1],
)


# gelu and silu


def _activation(name: str, forward: Any, backward: Any) -> Any:
    operator = define(name, "(Tensor x) -> Tensor", forward, lambda x: _new("x", x, x.shape))
    operator_backward = define(
        f"{name}_backward",
        "(Tensor grad, Tensor x) -> Tensor",
        backward,
        lambda grad, x: _new("x", x, x.shape),
        backward_of=name,
    )
    differentiable(
        operator,
        ["x"],
        save=lambda inputs, output: inputs,
        backward=lambda grad, x: (operator_backward(grad, x),),
    )
    return operator


_gelu = _activation("gelu", ops.gelu, ops.gelu_backward)
_silu = _activation("silu", ops.silu, ops.silu_backward)


# linear


def _linear_run(
    x: Array, weight: Array, bias: Array | None, residual: Array | None, activation: Any, keep: bool
) -> tuple[Array, Array]:
    how = {"activation": activation, "residual": residual, "return_slope": keep}
    out = ops.linear(x, weight, bias, **how)
    out, slope = out if keep else (out, None)
    return out, _or_empty(slope, out)


def _linear_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: Any, keep: bool
) -> Any:
    shape = (*x.shape[:-1], weight.shape[1])
    return _new("x", x, shape, shape if keep and activation is not None else 0)


def _linear_backward_run(
    grad: Array, x: Array, weight: Array, slope: Array | None, has_bias: bool
) -> tuple[Array, Array, Array]:
    dx, dweight, dbias = ops.linear_backward(grad, x, weight, has_bias=has_bias, slope=slope)
    return dx, dweight, _or_empty(dbias, dx)


_linear = define(
    "linear",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, str? activation, bool keep_slope)"
    " -> (Tensor out, Tensor slope)",
    _linear_run,
    _linear_fake,
)
_linear_backward = define(
    "linear_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor? slope, bool has_bias)"
    " -> (Tensor dx, Tensor dweight, Tensor dbias)",
    _linear_backward_run,
    lambda grad, x, weight, slope, has_bias: _new(
        "x", x, x.shape, weight.shape, weight.shape[1] if has_bias else 0
    ),
    backward_of="linear",
)
differentiable(
    _linear,
    ["x", "weight", "bias", "residual"],
    save=lambda inputs, output: (
        *inputs[:2],
        None if inputs[4] is None else output[1],
        inputs[2] is not None,
    ),
    backward=lambda grad, *saved: (*_linear_backward(grad, *saved), grad),
    constant_results=[1],
)


# cross_entropy and embedding


_cross_entropy = define(
    "cross_entropy",
    "(Tensor logits, Tensor targets, Tensor? weights) -> (Tensor loss, Tensor lse)",
    lambda logits, targets, weights: ops.cross_entropy(logits, targets, weights, return_lse=True),
    lambda logits, targets, weights: _new("logits", logits, (), targets.shape),
)
_cross_entropy_backward = define(
    "cross_entropy_backward",
    "(Tensor grad, Tensor logits, Tensor targets, Tensor? weights, Tensor lse) -> Tensor",
    ops.cross_entropy_backward,
    lambda grad, logits, targets, weights, lse: _new("logits", logits, logits.shape),
    backward_of="cross_entropy",
)
differentiable(
    _cross_entropy,
    ["logits"],
    save=lambda inputs, output: (*inputs, output[1]),
    backward=lambda grad, *saved: (_cross_entropy_backward(grad, *saved),),
    constant_results=[1],
)
_embedding = define(
    "embedding",
    "(Tensor table, Tensor indices) -> Tensor",
    ops.embedding,
    lambda table, indices: _new("table", table, (*indices.shape, table.shape[1])),
)
_embedding_backward = define(
    "embedding_backward",
    "(Tensor grad, Tensor indices, SymInt num_embeddings) -> Tensor",
    ops.embedding_backward,
    lambda grad, indices, num_embeddings: _new("grad", grad, (num_embeddings, grad.shape[-1])),
    backward_of="embedding",
)
differentiable(
    _embedding,
    ["table"],
    save=lambda inputs, output: (inputs[1], inputs[0].shape[0]),
    backward=lambda grad, *saved: (_embedding_backward(grad, *saved),),
)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """Differentiable :func:`sensorium.ops.layer_norm` of tensors.

    Examples
    --------
    >>> import torch
    >>> from sensorium.torch import layer_norm
    >>> layer_norm(torch.tensor([[1.0, 3.0]]), torch.ones(2), eps=0.0)
    tensor([[-1.,  1.]])
    """
    return _layer_norm(x, weight, bias, eps)[0]


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Differentiable :func:`sensorium.ops.rms_norm` of tensors.

    Examples
    --------
    >>> import torch
    >>> from sensorium.torch import rms_norm
    >>> rms_norm(torch.tensor([[3.0, 3.0]]), torch.tensor([1.0, 2.0]), eps=0.0)
    tensor([[1., 2.]])
    """
    return _rms_norm(x, weight, eps)[0]


def gelu(x: Tensor) -> Tensor:
    """Differentiable :func:`sensorium.ops.gelu` of a tensor: torch's with ``approximate="tanh"``.

    Examples
    --------
    >>> import torch
    >>> from sensorium.torch import gelu
    >>> gelu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.1588,  0.0000,  0.8412])
    """
    return _gelu(x)


def silu(x: Tensor) -> Tensor:
    """Differentiable :func:`sensorium.ops.silu` of a tensor.

    Examples
    --------
    >>> import torch
    >>> from sensorium.torch import silu
    >>> silu(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-0.2689,  0.0000,  0.7311])
    """
    return _silu(x)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Differentiable :func:`sensorium.ops.linear` of tensors: ``residual + activation(x @ weight + bias)``.

    ``weight`` is ``(D_in, D_out)``, as in :mod:`sensorium.ops`: that of a ``torch.nn.Linear`` is its
    transpose, which works as ``layer.weight.T`` and is copied in every call.

    Examples
    --------
    >>> import torch
    >>> from sensorium.torch import linear
    >>> linear(torch.tensor([[1.0, 2.0]]), torch.eye(2), torch.tensor([0.5, 0.0]))
    tensor([[1.5000, 2.0000]])
    """
    keep = activation is not None and torch.is_grad_enabled()
    return _linear(x, weight, bias, residual, activation, keep)[0]


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Differentiable :func:`sensorium.ops.cross_entropy` of tensors: with respect to the logits.

    Examples
    --------
    >>> import torch
    >>> from sensorium.torch import cross_entropy
    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([1, -1]), torch.tensor([1.0, 0.0]))
    tensor(1.3863)
    """
    return _cross_entropy(logits, targets, weights)[0]


def embedding(table: Tensor, indices: Tensor) -> Tensor:
    """Differentiable :func:`sensorium.ops.embedding` of tensors: the rows ``table[indices]``.

    Examples
    --------
    >>> import torch
    >>> from sensorium.torch import embedding
    >>> embedding(torch.tensor([[1.0], [2.0]]), torch.tensor([1, 1, 0])).ravel()
    tensor([2., 2., 1.])
    """
    return _embedding(table, indices)
