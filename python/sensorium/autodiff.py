"""The operations of `sensorium.ops`, differentiable under HIPS ``autograd``.

Each is one node of the tape with one joint backward. First derivatives only: the backward of a native
operation is not itself on the tape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from autograd.core import VJPNode, add_outgrads, defvjp_argnums
from autograd.extend import primitive as _untyped_primitive
from autograd.tracer import isbox, new_box, toposort, trace_stack
from numpy.typing import ArrayLike, NDArray

from . import _block, ops
from ._tree import Tree, tree_leaves, tree_unflatten
from ._validate import as_floats
from .errors import ArgumentError

__all__ = [
    "attention",
    "cross_entropy",
    "embedding",
    "gelu",
    "layer_norm",
    "linear",
    "rms_norm",
    "rotary",
    "self_attention",
    "silu",
    "transformer_block",
    "value_and_grad",
]

Array = NDArray[Any]
Vjp = Callable[[Any], tuple[Any, ...]]
F = TypeVar("F", bound=Callable[..., Any])


def primitive(function: F) -> F:
    """Return autograd's primitive of a function, with the function's types."""
    return cast(F, _untyped_primitive(function))


def _like(grad: Any, array: Array) -> Array:
    """Return a gradient in the dtype of the array that it belongs to: autograd's own are at times float64."""
    return np.asarray(grad, dtype=array.dtype)


def _chosen(argnums: tuple[int, ...], grads: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(grads[i] for i in argnums)


@primitive
def _layer_norm(x: Any, weight: Any, bias: Any, eps: float, kept: list[Any]) -> Any:
    y, mean, rstd = ops.layer_norm(x, weight, bias, eps=eps, return_stats=True)
    kept[:] = mean, rstd
    return y


def _layer_norm_vjp(argnums: tuple[int, ...], ans: Array, args: Any, kwargs: Any) -> Vjp:
    x, weight, bias, _, kept = args
    mean, rstd = kept
    return lambda g: _chosen(
        argnums,
        ops.layer_norm_backward(_like(g, x), x, weight, mean, rstd, has_bias=bias is not None),
    )


defvjp_argnums(_layer_norm, _layer_norm_vjp)


def layer_norm(x: Any, weight: Any, bias: Any = None, *, eps: float = 1e-5) -> Any:
    """Differentiable :func:`sensorium.ops.layer_norm`."""
    return _layer_norm(x, weight, bias, eps, [])


@primitive
def _rms_norm(x: Any, weight: Any, eps: float, kept: list[Any]) -> Any:
    y, rstd = ops.rms_norm(x, weight, eps=eps, return_stats=True)
    kept[:] = (rstd,)
    return y


def _rms_norm_vjp(argnums: tuple[int, ...], ans: Array, args: Any, kwargs: Any) -> Vjp:
    x, weight, _, kept = args
    (rstd,) = kept
    return lambda g: _chosen(argnums, ops.rms_norm_backward(_like(g, x), x, weight, rstd))


defvjp_argnums(_rms_norm, _rms_norm_vjp)


def rms_norm(x: Any, weight: Any, *, eps: float = 1e-6) -> Any:
    """Differentiable :func:`sensorium.ops.rms_norm`."""
    return _rms_norm(x, weight, eps, [])


@primitive
def gelu(x: Any) -> Any:
    """Differentiable :func:`sensorium.ops.gelu`."""
    return ops.gelu(x)


defvjp_argnums(
    gelu, lambda argnums, ans, args, kwargs: lambda g: (ops.gelu_backward(_like(g, ans), args[0]),)
)


@primitive
def silu(x: Any) -> Any:
    """Differentiable :func:`sensorium.ops.silu`."""
    return ops.silu(x)


defvjp_argnums(
    silu, lambda argnums, ans, args, kwargs: lambda g: (ops.silu_backward(_like(g, ans), args[0]),)
)


@primitive
def _rotary(x: Any, how: Any, positions: Any, inverse: bool) -> Any:
    return ops.rotary(x, how, positions, inverse=inverse)


def _rotary_vjp(argnums: tuple[int, ...], ans: Array, args: Any, kwargs: Any) -> Vjp:
    _, how, positions, inverse = args
    if argnums != (0,):
        raise ArgumentError("positions of rotary have no gradient")
    return lambda g: (ops.rotary(_like(g, ans), how, positions, inverse=not inverse),)


defvjp_argnums(_rotary, _rotary_vjp)


def rotary(x: Any, rotary: ops.Rotary | None = None, positions: Any = None, *, inverse: bool = False) -> Any:
    """Differentiable :func:`sensorium.ops.rotary`, by ``x``."""
    return _rotary(x, ops.Rotary() if rotary is None else rotary, positions, inverse)


@primitive
def _linear(x: Any, weight: Any, bias: Any, residual: Any, activation: Any, kept: list[Any]) -> Any:
    out, slope = ops.linear(x, weight, bias, activation=activation, residual=residual, return_slope=True)
    kept[:] = (slope,)
    return out


def _linear_vjp(argnums: tuple[int, ...], ans: Array, args: Any, kwargs: Any) -> Vjp:
    x, weight, bias, _, _, kept = args

    def vjp(g: Any) -> tuple[Any, ...]:
        g = _like(g, ans)
        grads = ops.linear_backward(g, x, weight, has_bias=bias is not None, slope=kept[0])
        return _chosen(argnums, (*grads, g))

    return vjp


defvjp_argnums(_linear, _linear_vjp)


def linear(x: Any, weight: Any, bias: Any = None, *, activation: Any = None, residual: Any = None) -> Any:
    """Differentiable :func:`sensorium.ops.linear`: ``residual + activation(x @ weight + bias)``."""
    return _linear(x, weight, bias, residual, activation, [])


@primitive
def _cross_entropy(logits: Any, targets: Any, weights: Any, kept: list[Any]) -> Any:
    loss, lse = ops.cross_entropy(logits, targets, weights, return_lse=True)
    kept[:] = (lse,)
    return loss


def _cross_entropy_vjp(argnums: tuple[int, ...], ans: Any, args: Any, kwargs: Any) -> Vjp:
    logits, targets, weights, kept = args
    if argnums != (0,):
        raise ArgumentError("targets and weights of cross_entropy have no gradient")
    return lambda g: (ops.cross_entropy_backward(float(g), logits, targets, weights, kept[0]),)


defvjp_argnums(_cross_entropy, _cross_entropy_vjp)


def cross_entropy(logits: Any, targets: Any, weights: Any = None) -> Any:
    """Differentiable :func:`sensorium.ops.cross_entropy`, with respect to the logits."""
    return _cross_entropy(logits, targets, weights, [])


@primitive
def embedding(table: Any, indices: Any) -> Any:
    """Differentiable :func:`sensorium.ops.embedding`; also the fast way to take rows of any matrix."""
    return ops.embedding(table, indices)


def _embedding_vjp(argnums: tuple[int, ...], ans: Array, args: Any, kwargs: Any) -> Vjp:
    table, indices = args
    return lambda g: (ops.embedding_backward(_like(g, table), indices, len(table)),)


defvjp_argnums(embedding, _embedding_vjp)


@primitive
def _attention(q: Any, k: Any, v: Any, layout: Any, options: Any, kept: list[Any]) -> Any:
    out, lse = ops.attention(q, k, v, layout, **options, return_lse=True)
    kept[:] = (lse,)
    return out


def _attention_vjp(argnums: tuple[int, ...], ans: Array, args: Any, kwargs: Any) -> Vjp:
    q, k, v, layout, options, kept = args

    def vjp(g: Any) -> tuple[Any, ...]:
        grads = ops.attention_backward(_like(g, ans), q, k, v, ans, kept[0], layout, **options)
        return _chosen(argnums, grads)

    return vjp


defvjp_argnums(_attention, _attention_vjp)


def attention(
    q: Any,
    k: Any,
    v: Any,
    layout: ops.Layout | Sequence[ops.Layout],
    *,
    scale: float | None = None,
    query_offset: int | None = None,
    key_offset: int = 0,
    softcap: float | None = None,
    alibi: ArrayLike | None = None,
    rotary: ops.Rotary | None = None,
    positions: ArrayLike | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
) -> Any:
    """Differentiable :func:`sensorium.ops.attention`; by ``q``, ``k`` and ``v``."""
    options: dict[str, Any] = {"scale": scale, "query_offset": query_offset, "key_offset": key_offset}
    options |= {"softcap": softcap, "alibi": alibi, "rotary": rotary, "positions": positions}
    options |= {"dropout": dropout, "seed": seed}
    return _attention(q, k, v, layout, options, [])


@primitive
def _self_attention(qkv: Any, layout: Any, options: Any, kept: list[Any]) -> Any:
    out, lse = ops.self_attention(qkv, layout, **options)
    kept[:] = (lse,)
    return out


def _self_attention_vjp(argnums: tuple[int, ...], ans: Array, args: Any, kwargs: Any) -> Vjp:
    qkv, layout, options, kept = args
    return lambda g: (ops.self_attention_backward(_like(g, ans), qkv, ans, kept[0], layout, **options),)


defvjp_argnums(_self_attention, _self_attention_vjp)


def self_attention(
    qkv: Any,
    layout: ops.Layout | Sequence[ops.Layout],
    *,
    scale: float | None = None,
    softcap: float | None = None,
    alibi: ArrayLike | None = None,
    rotary: ops.Rotary | None = None,
    positions: ArrayLike | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
) -> Any:
    """Differentiable :func:`sensorium.ops.self_attention`: ``qkv (B, N, 3, H, D)`` to ``(B, N, H D)``."""
    options: dict[str, Any] = {"scale": scale, "softcap": softcap, "alibi": alibi, "rotary": rotary}
    options |= {"positions": positions, "dropout": dropout, "seed": seed}
    return _self_attention(qkv, layout, options, [])


@primitive
def _transformer_block(x: Any, *arrays: Any, names: Any, layout: Any, how: Any, kept: list[Any]) -> Any:
    named = {f"{part}.{key}": array for (part, key), array in zip(names, arrays, strict=True)}
    x, *ready = as_floats(x=x, **named)
    params = _nested(names, ready)
    y, saved = _block.forward(x, params, layout, **how)
    kept[:] = x, params, saved
    return y


def _nested(names: list[tuple[str, str]], arrays: Any) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {part: {} for part in _block.PARTS}
    for (part, key), array in zip(names, arrays, strict=True):
        out[part][key] = array
    return out


def _transformer_block_vjp(argnums: tuple[int, ...], ans: Array, args: Any, kwargs: Any) -> Vjp:
    names, layout, kept = kwargs["names"], kwargs["layout"], kwargs["kept"]

    def vjp(g: Any) -> tuple[Any, ...]:
        x, params, saved = kept
        kept.clear()
        dx, grads = _block.backward(_like(g, ans), x, params, layout, saved)
        return _chosen(argnums, (dx, *(grads[part][key] for part, key in names)))

    return vjp


defvjp_argnums(_transformer_block, _transformer_block_vjp)


def transformer_block(
    params: Tree,
    x: Any,
    layout: ops.Layout,
    *,
    heads: int,
    norm: str = "rms",
    activation: str = "gelu",
    eps: float = 1e-6,
) -> Any:
    """Return a pre-norm transformer block of ``x`` as one node of the tape.

    ``x1 = x + out(attention(qkv(norm1(x))))``, then ``x1 + down(act(up(norm2(x1))))``.

    Parameters
    ----------
    params : dict of dicts
        ``norm1``, ``qkv (D, 3 D)``, ``out (D, D)``, ``norm2``, ``up (D, F)``, ``down (F, D)``, each with a
        ``weight`` and, where wanted, a ``bias``.
    x : array (B, N, D)
        ``float32`` or ``float64``.
    layout : Layout
        What each of the N tokens sees.
    heads : int
        Divides D.
    norm : {"rms", "layer"}
        Kind of both norms.
    activation : {"gelu", "silu"}
        Between ``up`` and ``down``.
    eps : float
        Of both norms.

    Returns
    -------
    array (B, N, D)

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other; the message names the array.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.autodiff import transformer_block
    >>> from sensorium.ops import Layout, Segment
    >>> shapes = {"norm1": 4, "qkv": (4, 12), "out": (4, 4), "norm2": 4, "up": (4, 8), "down": (8, 4)}
    >>> params = {name: {"weight": np.zeros(shape)} for name, shape in shapes.items()}
    >>> x = np.ones((1, 3, 4))
    >>> y = transformer_block(params, x, Layout([Segment("causal", 3)]), heads=2)
    >>> bool((y == x).all())
    True
    """
    try:
        names = [(part, key) for part in _block.PARTS for key in ("weight", "bias") if key in params[part]]
    except KeyError as error:
        raise ArgumentError(f"params lacks the key {error.args[0]!r}") from None
    arrays = [params[part][key] for part, key in names]
    how = {"heads": heads, "norm": norm, "activation": activation, "eps": eps}
    return _transformer_block(x, *arrays, names=names, layout=layout, how=how, kept=[])


def value_and_grad(function: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., tuple[Any, Tree]]:
    """Return a function that computes ``function(params, ...)`` and its gradient with respect to ``params``.

    Like autograd's own, for a nested dict of arrays whose leaves go on the tape directly: no node for each
    key that the function looks up, and what a node kept is freed as soon as its backward has run.

    Parameters
    ----------
    function : callable
        Takes a nested dict (or list) of arrays first and returns a scalar, or ``(scalar, aux)``.
    has_aux : bool
        Whether ``function`` returns a pair, whose second half comes back as it is.

    Returns
    -------
    callable
        Returns ``(value, grads)``, or ``((value, aux), grads)``. ``grads`` has the structure of ``params``,
        and each gradient the dtype of its array; a leaf that the value does not depend on gets zeros.

    Raises
    ------
    ArgumentError
        Where the value is not a scalar.

    Examples
    --------
    >>> import autograd.numpy as np
    >>> from sensorium.autodiff import value_and_grad
    >>> value, grads = value_and_grad(lambda p: np.sum(p["w"] ** 2))({"w": np.array([1.0, 2.0])})
    >>> float(value), grads
    (5.0, {'w': array([2., 4.])})
    """

    def run(params: Tree, *args: Any, **kwargs: Any) -> tuple[Any, Tree]:
        leaves = tree_leaves(params)
        with trace_stack.new_trace() as trace:
            nodes = [VJPNode.new_root() for _ in leaves]
            boxes = [new_box(leaf, trace, node) for leaf, node in zip(leaves, nodes, strict=True)]
            result = function(tree_unflatten(params, boxes), *args, **kwargs)
        end, aux = result if has_aux else (result, None)
        traced = isbox(end) and end._trace == trace
        value = end._value if traced else end
        if np.shape(value) != ():
            raise ArgumentError(f"function returned shape {np.shape(value)}, expected a scalar")
        found = _backward(value, end._node, nodes) if traced else [None] * len(nodes)
        grads = [
            np.zeros_like(leaf) if grad is None else np.asarray(grad, dtype=leaf.dtype)
            for leaf, grad in zip(leaves, found, strict=True)
        ]
        return ((value, _unboxed(aux)) if has_aux else value), tree_unflatten(params, grads)

    return run


def _unboxed(aux: Any) -> Any:
    return tree_unflatten(aux, [leaf._value if isbox(leaf) else leaf for leaf in tree_leaves(aux)])


def _backward(value: Any, end: Any, roots: list[Any]) -> list[Any]:
    """Gradients at ``roots``: autograd's backward pass, for several roots at once."""
    kept = {id(root): i for i, root in enumerate(roots)}
    found: list[Any] = [None] * len(roots)
    outgrads = {end: (np.ones_like(value)[()], False)}
    for node in toposort(end):
        grad = outgrads.pop(node)[0]
        if id(node) in kept:
            found[kept[id(node)]] = grad
            continue
        for parent, ingrad in zip(node.parents, node.vjp(grad), strict=True):
            outgrads[parent] = add_outgrads(outgrads.get(parent), ingrad)
        node.vjp = None
    return found
