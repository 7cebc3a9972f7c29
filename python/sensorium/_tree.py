"""Nested dictionaries (and lists) of arrays: models' parameters, gradients and optimiser states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .errors import ArgumentError

__all__ = ["tree_items", "tree_leaves", "tree_map"]

Tree = Any  # A leaf, or a dict, list or tuple of trees.


def tree_items(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(path, leaf)`` of every leaf; a path joins keys and positions by dots.

    Examples
    --------
    >>> list(tree_items({"head": {"weight": 1}, "blocks": [2, 3]}))
    [('head.weight', 1), ('blocks.0', 2), ('blocks.1', 3)]
    """
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from tree_items(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from tree_items(value, f"{prefix}.{i}" if prefix else str(i))
    else:
        yield prefix, tree


def tree_leaves(tree: Tree, *, like: Tree | None = None, name: str = "tree") -> list[Any]:
    """Return the leaves in order; in the order of ``like``, with its structure, where that is given.

    Raises
    ------
    ArgumentError
        Where the structure differs from that of ``like``; the message names the path.
    """
    out: list[Any] = []
    if like is None:
        _collect(tree, out)
    else:
        _collect_like(tree, like, name, out)
    return out


def _collect(tree: Tree, out: list[Any]) -> None:
    if isinstance(tree, dict):
        for value in tree.values():
            _collect(value, out)
    elif isinstance(tree, list | tuple):
        for value in tree:
            _collect(value, out)
    else:
        out.append(tree)


def _collect_like(tree: Tree, like: Tree, name: str, out: list[Any]) -> None:
    if isinstance(like, dict):
        if not isinstance(tree, dict):
            raise ArgumentError(f"{name} is a {type(tree).__name__}, expected a dict")
        if len(tree) != len(like):
            more = [key for key in tree if key not in like]
            if more:
                raise ArgumentError(f"{name} has an unknown key {more[0]!r}")
        for key, value in like.items():
            if key not in tree:
                raise ArgumentError(f"{name} lacks the key {key!r}")
            _collect_like(tree[key], value, f"{name}.{key}", out)
    elif isinstance(like, list | tuple):
        if not isinstance(tree, list | tuple) or len(tree) != len(like):
            raise ArgumentError(f"{name} must be a sequence of {len(like)}")
        for i, value in enumerate(like):
            _collect_like(tree[i], value, f"{name}.{i}", out)
    elif isinstance(tree, dict | list | tuple):
        raise ArgumentError(f"{name} is a {type(tree).__name__}, expected a leaf")
    else:
        out.append(tree)


def tree_map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Return a tree of the same structure whose leaves are ``function(leaf, *leaves_of_others)``.

    Examples
    --------
    >>> tree_map(lambda x, y: x + y, {"a": 1, "b": [2]}, {"a": 10, "b": [20]})
    {'a': 11, 'b': [22]}
    """
    columns = [tree_leaves(tree), *(tree_leaves(other, like=tree) for other in others)]
    return tree_unflatten(tree, [function(*row) for row in zip(*columns, strict=True)])


def tree_unflatten(like: Tree, leaves: list[Any]) -> Tree:
    """Return a tree with the structure of ``like`` and the given leaves, in order."""
    return _rebuild(like, iter(leaves))


def _rebuild(like: Tree, leaves: Iterator[Any]) -> Tree:
    if isinstance(like, dict):
        return {key: _rebuild(value, leaves) for key, value in like.items()}
    if isinstance(like, list | tuple):
        return type(like)([_rebuild(value, leaves) for value in like])
    return next(leaves)
