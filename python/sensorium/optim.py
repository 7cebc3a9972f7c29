"""AdamW, gradient clipping and running means, in place over nested dicts of arrays."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import _core
from ._tree import Tree, tree_items, tree_leaves, tree_map
from ._validate import check_finite_number, check_positive
from .errors import ArgumentError, DTypeError, ShapeError

__all__ = ["adamw_init", "adamw_step", "clip_grad_norm", "ema_update"]


def adamw_init(params: Tree) -> dict[str, Any]:
    """Return the state of :func:`adamw_step` before the first step: zeros.

    Parameters
    ----------
    params : nested dict of arrays
        ``float32`` or ``float64``.

    Returns
    -------
    dict
        ``step``, the number of steps made, and the moments ``m`` and ``v``, of the structure of ``params``.

    Examples
    --------
    >>> import numpy as np
    >>> adamw_init({"w": np.ones(2)})
    {'step': 0, 'm': {'w': array([0., 0.])}, 'v': {'w': array([0., 0.])}}
    """
    return {"step": 0, "m": tree_map(np.zeros_like, params), "v": tree_map(np.zeros_like, params)}


def adamw_step(
    params: Tree,
    grads: Tree,
    state: dict[str, Any],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay: Callable[[str, Any], bool] | Tree | None = None,
    max_norm: float | None = None,
) -> float | None:
    """Update ``params`` and ``state`` in place by one step of AdamW, all arrays in one native call.

    ``m = b1 m + (1 - b1) g``, ``v = b2 v + (1 - b2) g^2``,
    ``p = p (1 - lr weight_decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)``.

    Parameters
    ----------
    params, grads : nested dict of arrays
        Of one structure and, array by array, one shape and dtype. ``params`` must be contiguous and
        writeable.
    state : dict
        From :func:`adamw_init`.
    lr : float
        Step size, not negative.
    betas : (float, float)
        Decays of the moments, from 0 to below 1.
    eps : float
        Added to the root of the second moment, above 0.
    weight_decay : float
        Decoupled weight decay, not negative.
    decay : callable, tree of bools or None
        Which arrays decay: ``decay(path, array)`` with the path's keys joined by dots, or a tree of bools.
        By default arrays of two and more dimensions do.
    max_norm : float, optional
        Use gradients scaled down so that their global norm is at most this; ``grads`` stay as they are.

    Returns
    -------
    float or None
        The global norm of ``grads`` where ``max_norm`` is given. Where the norm is not finite nothing is
        updated: the step is skipped, and the caller sees why.

    Raises
    ------
    ArgumentError, ShapeError, DTypeError
        Where arguments do not fit each other; the message names the array.

    References
    ----------
    Loshchilov and Hutter (2019), Decoupled Weight Decay Regularization.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.optim import adamw_init, adamw_step
    >>> params = {"w": np.array([1.0, 1.0])}
    >>> adamw_step(params, {"w": np.array([3.0, -5.0])}, adamw_init(params), lr=0.1)
    >>> params["w"].round(6)
    array([0.9, 1.1])
    """
    lr, weight_decay = _not_negative("lr", lr), _not_negative("weight_decay", weight_decay)
    eps = check_positive("eps", eps)
    beta1, beta2 = betas
    for name, beta in (("betas[0]", beta1), ("betas[1]", beta2)):
        if not 0.0 <= beta < 1.0:
            raise ArgumentError(f"{name} must be from 0 to below 1, not {beta:g}")
    p = tree_leaves(params)
    g = _matched("grads", grads, params, p)
    m = _matched("state['m']", state["m"], params, p)
    v = _matched("state['v']", state["v"], params, p)
    decays = _decays(decay, params, p)
    norm, scale = None, 1.0
    if max_norm is not None:
        norm = _norm(g)
        if not math.isfinite(norm):
            return norm
        scale = _clip_factor(norm, check_positive("max_norm", max_norm))
    state["step"] += 1
    for group in _by_dtype(p):
        _core.adamw_step(
            [p[i] for i in group],
            [g[i] for i in group],
            [m[i] for i in group],
            [v[i] for i in group],
            [decays[i] for i in group],
            lr,
            (beta1, beta2),
            eps,
            weight_decay,
            state["step"],
            scale,
        )
    return norm


def clip_grad_norm(grads: Tree, max_norm: float) -> float:
    """Scale ``grads`` in place so that their global norm is at most ``max_norm``; return the norm before.

    The norm is summed in double precision, in an order that does not depend on the number of threads. Where
    it is not finite the gradients stay as they are. An array that is read-only, not contiguous or shares
    memory with another is replaced in the dict by a scaled copy.

    Parameters
    ----------
    grads : nested dict of arrays
        ``float32`` or ``float64``.
    max_norm : float
        Above 0.

    Returns
    -------
    float

    Raises
    ------
    ArgumentError, DTypeError
        Where ``max_norm`` is not above 0, or a gradient of another dtype.

    Examples
    --------
    >>> import numpy as np
    >>> grads = {"w": np.array([3.0, 4.0])}
    >>> clip_grad_norm(grads, 1.0), grads["w"]
    (5.0, array([0.6, 0.8]))
    """
    max_norm = check_positive("max_norm", max_norm)
    for path, leaf in tree_items(grads):
        _check_leaf(f"grads.{path}", leaf)
    leaves = [np.ascontiguousarray(leaf) for leaf in tree_leaves(grads)]
    norm = _norm(leaves)
    scale = _clip_factor(norm, max_norm) if math.isfinite(norm) else 1.0
    if scale < 1.0:
        _own(grads)
        leaves = tree_leaves(grads)
        for group in _by_dtype(leaves):
            _core.scale_arrays([leaves[i] for i in group], scale)
    return norm


def ema_update(ema: Tree, params: Tree, decay: float) -> None:
    """Move the running means ``ema`` towards ``params`` in place: ``ema = decay ema + (1 - decay) params``.

    Parameters
    ----------
    ema, params : nested dict of arrays
        Of one structure and, array by array, one shape and dtype.
    decay : float
        From 0 to 1.

    Raises
    ------
    ArgumentError, ShapeError, DTypeError
        Where arguments do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> ema = {"w": np.zeros(1)}
    >>> ema_update(ema, {"w": np.ones(1)}, 0.75)
    >>> ema["w"]
    array([0.25])
    """
    decay = check_finite_number("decay", decay)
    if not 0.0 <= decay <= 1.0:
        raise ArgumentError(f"decay must be from 0 to 1, not {decay:g}")
    means = tree_leaves(ema)
    values = _matched("params", params, ema, means)
    for group in _by_dtype(means):
        _core.running_mean([means[i] for i in group], [values[i] for i in group], decay)


def _not_negative(name: str, value: float) -> float:
    value = check_finite_number(name, value)
    if value < 0:
        raise ArgumentError(f"{name} must not be negative, not {value:g}")
    return value


def _clip_factor(norm: float, max_norm: float) -> float:
    return max_norm / norm if norm > max_norm else 1.0


_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def _check_leaf(name: str, leaf: Any) -> None:
    if not isinstance(leaf, np.ndarray):
        raise DTypeError(f"{name} is a {type(leaf).__name__}, expected an array")
    if leaf.dtype not in _FLOATS:
        raise DTypeError(f"{name} has dtype {leaf.dtype}, expected float32 or float64")


def _matched(name: str, tree: Tree, like: Tree, leaves: list[Any]) -> list[Any]:
    """Leaves of ``tree`` in the order of ``like``, each checked against its counterpart."""
    out = tree_leaves(tree, like=like, name=name)
    for i, (array, leaf) in enumerate(zip(out, leaves, strict=True)):
        if array.dtype != leaf.dtype or array.shape != leaf.shape or leaf.dtype not in _FLOATS:
            path = [path for path, _ in tree_items(like)][i]
            _check_leaf(path, leaf)
            if array.shape != leaf.shape:
                raise ShapeError(f"{name}.{path} has shape {array.shape}, expected {leaf.shape}")
            raise DTypeError(f"{name}.{path} has dtype {array.dtype}, expected {leaf.dtype}")
    return [np.ascontiguousarray(array) for array in out] if name in ("grads", "params") else out


def _decays(decay: Callable[[str, Any], bool] | Tree | None, params: Tree, leaves: list[Any]) -> list[bool]:
    if decay is None:
        return [leaf.ndim >= 2 for leaf in leaves]
    if callable(decay):
        return [bool(decay(path, leaf)) for path, leaf in tree_items(params)]
    return [bool(flag) for flag in tree_leaves(decay, like=params, name="decay")]


def _by_dtype(leaves: list[Any]) -> list[list[int]]:
    """Return the indices of the leaves of each dtype; a native call takes one."""
    groups = ([i for i, leaf in enumerate(leaves) if leaf.dtype == dtype] for dtype in _FLOATS)
    return [group for group in groups if group]


def _norm(leaves: list[Any]) -> float:
    norms = [_core.global_norm([leaves[i] for i in group]) for group in _by_dtype(leaves)]
    return math.hypot(*norms)


def _own(tree: Tree) -> None:
    """Replace leaves that cannot be scaled in place, or share memory with an earlier one, by copies."""
    ends: list[tuple[int, int]] = []

    def owned(array: Any) -> Any:
        start = array.__array_interface__["data"][0]
        span = (start, start + array.nbytes)
        whole = array.flags.c_contiguous and array.flags.writeable and array.flags.aligned
        if not whole or any(a < span[1] and span[0] < b for a, b in ends):
            return np.array(array, order="C")
        ends.append(span)
        return array

    def walk(node: Tree) -> None:
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in list(pairs):
            if isinstance(value, dict | list):
                walk(value)
            else:
                node[key] = owned(value)

    walk(tree)
