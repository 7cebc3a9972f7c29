"""The gradient of a function of nested parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from autograd.core import VJPNode, add_outgrads
from autograd.tracer import isbox, new_box, toposort, trace_stack

from .._tree import Tree, tree_leaves, tree_unflatten
from ..errors import ArgumentError

__all__ = ["value_and_grad"]


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
