"""A search tree that is asked for leaves and told their values."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from .._validate import as_array, as_indices, check_finite_number, check_integer
from ..errors import ArgumentError, DTypeError, MemoryLimitError, ShapeError
from . import _tree_figure, _tree_file
from .policies import UCB1, Policy

__all__ = ["Tree"]

Array = NDArray[Any]
Ids = NDArray[np.int64]

MAX_NODES = 2**32 - 2
MAX_BYTES = 2**63 - 1
_INT64 = np.dtype(np.int64)
_FLOAT64 = np.dtype(np.float64)
_INT32 = np.iinfo(np.int32)


class Tree:
    """A search tree: ask for leaves, evaluate them in any way, tell their values.

    Nodes are numbered from 0, the root. A leaf that was handed out counts as a lost visit until it is told,
    so that leaves of a batch lie apart; each is handed out once. Nothing is lost where an evaluation fails:
    the leaf stays handed out until it is told, released or failed. All of it lies in columns in Rust, 29
    bytes a node and what the columns take that are used: priors 4, rewards 8, actions that are no positions
    4, squares 8, proofs 8, costs 8.

    Parameters
    ----------
    policy : Policy
        How walks choose: :class:`UCB1`, :class:`PUCT` and others.
    seed : int
        Of random choices; the same seed and calls give the same tree.
    discount : float
        What a step takes off a value, from 0 to 1.
    players : int
        1, or 2 who take turns, each of whom wants the opposite. Values are always as the player sees them who
        is to move, rewards as the player does who acted.
    normalise : bool
        Whether policies see mean returns on a scale from 0 to 1, the smallest to the largest so far
        (Schrittwieser et al. 2020).
    virtual_loss : float
        A leaf that is being evaluated counts as a visit that returned minus this, on the policy's scale.
    win : float, optional
        The largest return that there is. Given one, exact values are followed up the tree: a child proven to
        give it proves its parent, and so do children that are all proven. Returns must then be certain: one
        outcome for each action.
    max_nodes, max_bytes : int, optional
        Limits, checked before memory is taken; bytes are those of the nodes.

    Notes
    -----
    The return of an action is `reward + discount * value` of where it leads, and `reward - discount * value`
    where two players take turns. The value of a node is that of its state, before any action.

    A walk that arrives where an action has ended it, or where a value is proven, needs no evaluation: it
    is told at once and hands out nothing. So :meth:`select` may return fewer leaves than it makes walks, and
    :attr:`simulations` counts walks.

    Threads may share a tree; calls take turns.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.search import PUCT, Tree
    >>> tree = Tree(policy=PUCT(c=1.5))
    >>> while tree.simulations < 100:
    ...     leaves = tree.select(batch=4)
    ...     goals = [sum(tree.path(leaf)) for leaf in leaves]    # of the state that the path leads to
    ...     tree.expand(leaves, children=3, priors=np.full((len(leaves), 3), 1 / 3))
    ...     tree.backup(leaves, np.tanh(goals))
    >>> tree.visits()
    array([19, 31, 49])
    >>> tree.best_path()[:3]
    [2, 2, 2]
    """

    def __init__(
        self,
        *,
        policy: Policy | None = None,
        seed: int = 0,
        discount: float = 1.0,
        players: int = 1,
        normalise: bool = False,
        virtual_loss: float = 1.0,
        win: float | None = None,
        max_nodes: int | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self._open(
            {
                "policy": UCB1() if policy is None else policy,
                "seed": seed,
                "discount": discount,
                "players": players,
                "normalise": normalise,
                "virtual_loss": virtual_loss,
                "win": win,
                "max_nodes": MAX_NODES if max_nodes is None else max_nodes,
                "max_bytes": MAX_BYTES if max_bytes is None else max_bytes,
            }
        )

    def _open(
        self,
        settings: dict[str, Any],
        labels: Sequence[Any] = (),
        columns: dict[str, Array] | None = None,
        counters: tuple[int, float, float] | None = None,
    ) -> None:
        policy, win = settings["policy"], settings["win"]
        if not isinstance(getattr(policy, "name", None), str):
            raise DTypeError(f"policy must be one of sensorium.search, not {type(policy).__name__}")
        settings = {
            "policy": policy,
            "seed": check_integer("seed", settings["seed"], 0, 2**64 - 1),
            "discount": check_finite_number("discount", settings["discount"]),
            "players": check_integer("players", settings["players"], 1, 2),
            "normalise": bool(settings["normalise"]),
            "virtual_loss": check_finite_number("virtual_loss", settings["virtual_loss"]),
            "win": None if win is None else check_finite_number("win", win),
            "max_nodes": check_integer("max_nodes", settings["max_nodes"], 1, MAX_NODES),
            "max_bytes": check_integer("max_bytes", settings["max_bytes"], 1, MAX_BYTES),
        }
        self._settings = settings
        self._core = _core.SearchTree(
            policy.name,
            _numbers(policy),
            settings["discount"],
            settings["players"],
            settings["normalise"],
            settings["virtual_loss"],
            settings["win"],
            settings["max_nodes"],
            settings["max_bytes"],
            settings["seed"],
            columns,
            counters,
        )
        # Actions that are no small whole numbers, and where in the list they are: action -1 - i is label i.
        self._labels: list[Any] = []
        self._label_ids: dict[tuple[type, Hashable], int] = {}
        for label in labels:
            self._label(label)

    # --- ask and tell -------------------------------------------------------------------------------------

    def select(self, batch: int = 1) -> Ids:
        """Walk down from the root, and return the leaves that must be evaluated.

        Parameters
        ----------
        batch : int
            Walks to make.

        Returns
        -------
        array (K,) of int64
            Ids, each once; K is at most ``batch``, less where walks met a known return, or only leaves that
            are handed out already.

        Raises
        ------
        ArgumentError
            Where every action is forbidden or failed, so that no walk arrives anywhere.
        """
        return self._core.select(check_integer("batch", batch))

    def expand(
        self,
        leaves: ArrayLike,
        children: int | Sequence[Any] | Array,
        *,
        priors: ArrayLike | Sequence[ArrayLike] | None = None,
        rewards: ArrayLike | Sequence[ArrayLike] | None = None,
        terminal: ArrayLike | Sequence[ArrayLike] | None = None,
        forbidden: ArrayLike | Sequence[ArrayLike] | None = None,
    ) -> None:
        """Give leaves children, before or after they are told; they need not be handed out.

        Parameters
        ----------
        leaves : array (K,) of integers
            Nodes without children.
        children : int, or a sequence of K
            As many actions for each leaf, numbered from 0. Or for each leaf a number, or its actions: whole
            numbers, anything hashable, or arrays. An integer array (K, A) names the actions of each leaf. A
            leaf without actions is terminal; the first value that it is told is its value. Where the policy
            adds children itself, 0 is all that may be said.
        priors : array (K, A), optional
            Probability of each action, kept as ``float32``; equal where not given. Where leaves have
            different numbers of actions, a sequence of K arrays, or one array of all. So with the others.
        rewards : array (K, A), optional
            What taking the action gives at once.
        terminal : array (K, A) of bool, optional
            Whether the action ends it all, so that its return is the reward.
        forbidden : array (K, A) of bool, optional
            Whether the action may not be taken.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError
            Where an argument does not fit; the message names it.
        MemoryLimitError
            Where the tree would become larger than it may be. It is then as it was, as after every error.
        """
        ids = _ids("leaves", leaves)
        if type(children) is int:
            counts: int | Ids = _count(children)
            actions = None
        else:
            counts, actions = self._actions(ids.size, children)
        self._core.expand(
            ids,
            counts,
            actions,
            None if priors is None else _flat("priors", priors, _FLOAT64),
            None if rewards is None else _flat("rewards", rewards, _FLOAT64),
            None if terminal is None else _flat("terminal", terminal, np.dtype(np.bool_)),
            None if forbidden is None else _flat("forbidden", forbidden, np.dtype(np.bool_)),
        )

    def backup(self, leaves: ArrayLike, values: ArrayLike, *, cost: ArrayLike | None = None) -> None:
        """Tell the values of leaves, in any order and in any parts.

        Parameters
        ----------
        leaves : array (K,) of integers
            Leaves that are handed out.
        values : array (K,), or one number for all
            Value of each, as the player sees it who is to move there: finite, at most 1e100 in size.
        cost : array (K,), or one number for all, optional
            What each evaluation cost, in any unit. See :meth:`costs`.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError
            Where an id is wrong, or a value NaN, infinite or too large: the message names the leaf, and
            nothing is told. Use :meth:`fail` for a leaf that cannot be evaluated.
        """
        ids = _ids("leaves", leaves)
        self._core.backup(
            ids, _each("values", values, ids.size), None if cost is None else _each("cost", cost, ids.size)
        )

    def release(self, leaves: ArrayLike) -> None:
        """Take leaves back, as if they had not been handed out.

        Raises
        ------
        ArgumentError
            Where one is not handed out; all stay as they were.
        """
        self._core.release(_ids("leaves", leaves))

    def fail(self, leaves: ArrayLike) -> None:
        """Take leaves back that cannot be evaluated: no walk goes there again.

        Nor does one go where nothing else is left.

        Raises
        ------
        ArgumentError
            Where one is not handed out; all stay as they were.
        """
        self._core.fail(_ids("leaves", leaves))

    def pending(self) -> Ids:
        """Return the leaves that are handed out and not told, in order."""
        return self._core.pending()

    def forbid(self, nodes: ArrayLike) -> None:
        """Forbid the actions that lead to nodes; visits that went there stay counted.

        Raises
        ------
        ArgumentError
            Where there is no such node, or it is the root.
        """
        self._core.forbid(_ids("nodes", nodes), True)

    def allow(self, nodes: ArrayLike) -> None:
        """Take back what :meth:`forbid` said.

        Raises
        ------
        ArgumentError
            Where there is no such node, or it is the root.
        """
        self._core.forbid(_ids("nodes", nodes), False)

    def rename(self, nodes: ArrayLike, actions: Sequence[Any] | Array) -> None:
        """Say which actions lead to nodes, such as those that :meth:`select` added.

        Parameters
        ----------
        nodes : array (K,) of integers
            Any nodes but the root.
        actions : sequence of K
            Whole numbers, anything hashable, or arrays.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError
            Where a node or an action cannot be used.
        """
        ids = _ids("nodes", nodes)
        if isinstance(actions, str | bytes) or not hasattr(actions, "__len__"):
            raise DTypeError(f"actions must be a sequence, not {type(actions).__name__}")
        self._core.name(ids, np.array([self._label(action) for action in actions], dtype=np.int32))

    def reroot(self, action: Any = None, *, node: int | None = None) -> None:
        """Make the node that an action leads to the root, and keep what is below it; all ids change.

        Parameters
        ----------
        action : hashable or array
            An action of the root.
        node : int, optional
            Any node, in the place of an action.

        Raises
        ------
        ArgumentError
            Where there is no such action, or leaves are handed out.
        """
        if node is None:
            node = self.child(action)
        self._core.reroot(check_integer("node", node))

    # --- read ---------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return the number of nodes."""
        return len(self._core)

    @property
    def simulations(self) -> int:
        """Walks so far: told, and under way."""
        return self._core.simulations

    @property
    def nbytes(self) -> int:
        """Bytes that the nodes take."""
        return self._core.nbytes

    @property
    def policy(self) -> Policy:
        """The policy."""
        return cast("Policy", self._settings["policy"])

    def children(self, node: int = 0) -> Ids:
        """Return the ids of a node's children, in the order in which they were given."""
        return self._core.block("ids", check_integer("node", node))

    def actions(self, node: int = 0) -> list[Any]:
        """Return the actions of a node's children."""
        return [
            self._named(code) for code in self._core.block("actions", check_integer("node", node)).tolist()
        ]

    def visits(self, node: int = 0) -> Ids:
        """Return the visits of a node's children."""
        return self._core.block("visits", check_integer("node", node))

    def returns(self, node: int = 0) -> NDArray[np.float64]:
        """Return the mean returns of a node's actions, as its own player sees them; NaN without visits."""
        return self._core.block("means", check_integer("node", node))

    def priors(self, node: int = 0) -> NDArray[np.float64]:
        """Return the priors of a node's actions."""
        return self._core.block("priors", check_integer("node", node))

    def costs(self, node: int = 0) -> NDArray[np.float64]:
        """Return what evaluations of each of a node's children cost, all that is below them included."""
        return self._core.block("costs", check_integer("node", node))

    def value(self, node: int = 0) -> float:
        """Return the mean value of a node, as the player sees it who is to move there; NaN without visits."""
        return float(self._one("values", node))

    def cost(self, node: int = 0) -> float:
        """Return what evaluations of a node and of all below it cost."""
        return float(self._one("costs", node))

    def proven(self, node: int = 0) -> float | None:
        """Return the exact return of the action that leads to a node, of the root its value.

        None where it is not known.
        """
        exact = float(self._one("exact", node))
        return None if np.isnan(exact) else exact

    def parents(self, nodes: ArrayLike) -> Ids:
        """Return the nodes above; -1 above the root."""
        return self._core.gather("parents", _ids("nodes", nodes))

    def action(self, node: int) -> Any:
        """Return the action that leads to a node.

        Raises
        ------
        ArgumentError
            Where there is no such node, or it is the root.
        """
        if check_integer("node", node) == 0:
            raise ArgumentError("node is the root, which no action leads to")
        return self._named(self._one("actions", node))

    def path(self, node: int) -> list[Any]:
        """Return the actions that lead from the root to a node."""
        return self._along(self._core.path(check_integer("node", node)))

    def child(self, action: Any, node: int = 0) -> int:
        """Return the id of the child that an action leads to.

        Raises
        ------
        ArgumentError
            Where the node has no such action.
        """
        for child, other in zip(self.children(node), self.actions(node), strict=True):
            if _same(action, other):
                return int(child)
        raise ArgumentError(f"action {action!r} is none of node {node}")

    def best_action(self, node: int = 0) -> Any:
        """Return the action to take: that of the most visited child, the larger mean return among equals.

        A proven child is taken where it gives at least as much as that mean.

        Raises
        ------
        ArgumentError
            Where no child was visited or proven.
        """
        child = self._core.best_child(check_integer("node", node))
        if child < 0:
            raise ArgumentError(f"node {node} has no child that was visited")
        return self.action(child)

    def best_path(self, node: int = 0) -> list[Any]:
        """Return the actions of :meth:`best_action` from a node on, as far down as there were visits."""
        return self._along(self._core.best_path(check_integer("node", node)))

    def to_arrays(self) -> dict[str, Array]:
        """Return copies of the columns, an element a node.

        Returns
        -------
        dict of str to array
            Always ``parents`` (-1 for the root), ``firsts`` and ``counts`` of children, ``actions``,
            ``visits``, ``waiting`` (leaves handed out, here and below), ``sums`` of returns, and ``flags``: 1
            terminal, 2 forbidden, 4 failed, 8 proven, 16 handed out. Where used, ``squares``, ``priors``,
            ``rewards``, ``exact``, ``costs``, and with policies that add children ``nexts`` (the next
            sibling, 2^32 - 1 after the last) and ``owns`` (the return of its own evaluation). An action
            below 0 is that of :attr:`labels` at ``-1 - action``.
        """
        columns = self._core.columns()
        parents = columns["parents"].astype(np.int64)
        parents[0] = -1
        if "actions" not in columns:
            above = np.maximum(parents, 0)
            actions = np.arange(parents.size) - columns["firsts"][above]
            actions[0] = 0
            columns["actions"] = actions.astype(np.int32)
        return columns | {"parents": parents}

    @property
    def labels(self) -> tuple[Any, ...]:
        """Actions that are no whole numbers of 31 bits, in the order in which they came up."""
        return tuple(self._labels)

    # --- keep and show ------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tree to one checked ``safetensors`` file, or leave the file that is there as it is.

        Leaves that are handed out are saved as if they had been released.

        Parameters
        ----------
        path : path-like
            The file.

        Raises
        ------
        DTypeError
            Where an action is not made of numbers, strings, None, tuples and arrays.
        OSError
            Where the place cannot be written.
        """
        _tree_file.save(path, self._core.columns(), self._core.counters, self._labels, self._settings)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tree:
        """Read what :meth:`save` wrote; the search goes on as it would have.

        Raises
        ------
        CheckpointError
            Where the file is damaged, hostile, or not that of a tree.
        OSError
            Where there is no such file, or it cannot be read.
        """
        tree = cls.__new__(cls)
        _tree_file.load(path, tree._open)
        return tree

    def draw(self, path: str | os.PathLike[str], *, node: int = 0, most: int = 60) -> None:
        """Draw the most visited part of the tree.

        Parameters
        ----------
        path : path-like
            A file whose ending says the kind: ``.svg``, ``.png``, ``.pdf``.
        node : int
            The node to begin at.
        most : int
            Nodes to draw at most, the most visited first.

        Raises
        ------
        ArgumentError
            Where there is no such node, or the ending is not known.
        """
        check_integer("node", node, 0, len(self) - 1)
        _tree_figure.draw(self, path, node, check_integer("most", most, 1, 5000))

    def __repr__(self) -> str:
        """Return policy, nodes and simulations."""
        return f"<Tree {self.policy!r}, {len(self)} nodes, {self.simulations} simulations>"

    # --- inside -------------------------------------------------------------------------------------------

    def _one(self, name: str, node: int) -> Any:
        return self._core.gather(name, np.array([check_integer("node", node)], dtype=np.int64))[0].item()

    def _along(self, nodes: Ids) -> list[Any]:
        return [self._named(code) for code in self._core.gather("actions", nodes).tolist()]

    def _named(self, code: int) -> Any:
        return code if code >= 0 else self._labels[-1 - code]

    def _label(self, action: Any) -> int:
        """Return the number that stands for an action."""
        if (
            isinstance(action, int | np.integer)
            and not isinstance(action, bool)
            and 0 <= action <= _INT32.max
        ):
            return int(action)
        if isinstance(action, np.ndarray):
            key = (np.ndarray, (action.dtype.str, action.shape, action.tobytes()))
        else:
            try:
                hash(action)
            except TypeError:
                kind = type(action).__name__
                raise DTypeError(
                    f"an action has type {kind}, expected something hashable, or an array"
                ) from None
            key = (type(action), action)
        code = self._label_ids.setdefault(key, -1 - len(self._labels))
        if code == -1 - len(self._labels):
            self._labels.append(action)
        return code

    def _actions(self, leaves: int, children: Any) -> tuple[int | Ids, NDArray[np.int32] | None]:
        """Return the numbers of children, and the codes of their actions where these are no positions."""
        if isinstance(children, np.integer):
            return _count(int(children)), None
        if isinstance(children, str | bytes) or not hasattr(children, "__len__"):
            raise DTypeError(f"children must be a number or a sequence, not {type(children).__name__}")
        if len(children) != leaves:
            raise ShapeError(
                f"children has {len(children)} entries, expected one for each of {leaves} leaves"
            )
        if isinstance(children, np.ndarray) and children.dtype.kind in "iu":
            if children.ndim == 1:
                return as_indices("children", children), None
            if children.ndim == 2:
                codes = children.reshape(-1)
                if codes.size == 0 or (codes.min() >= 0 and codes.max() <= _INT32.max):
                    return children.shape[1], codes.astype(np.int32)
        counts, all_codes, named = np.zeros(leaves, dtype=np.int64), [], False
        for i, entry in enumerate(children):
            if isinstance(entry, int | np.integer) and not isinstance(entry, bool):
                counts[i] = _count(int(entry))
                all_codes.append(np.arange(counts[i], dtype=np.int32))
                continue
            if isinstance(entry, str | bytes) or not hasattr(entry, "__iter__"):
                raise DTypeError(
                    f"children has {entry!r:.60} for a leaf, expected a number or a list of actions"
                )
            codes = np.array([self._label(action) for action in entry], dtype=np.int32)
            counts[i], named = codes.size, True
            all_codes.append(codes)
        return counts, np.concatenate(all_codes) if named else None


def _numbers(policy: Policy) -> list[float | None]:
    """Return the numbers of a policy, each named where it is none."""
    if not dataclasses.is_dataclass(policy):
        raise DTypeError(f"policy must be a dataclass, not {type(policy).__name__}")
    for field in dataclasses.fields(policy):
        value = getattr(policy, field.name)
        if isinstance(getattr(value, "name", None), str):
            _numbers(value)
        elif value is not None:
            check_finite_number(f"policy's {field.name}", value)
    return policy.parameters()


def _count(children: int) -> int:
    """Return a number of children that a tree may have."""
    if children < 0:
        raise ArgumentError(f"children must be at least 0, not {children}")
    if children > MAX_NODES:
        raise MemoryLimitError(f"children is {children}, a tree has at most {MAX_NODES} nodes")
    return children


def _ids(name: str, value: Any) -> Ids:
    """Return ids as the core takes them."""
    if type(value) is np.ndarray and value.dtype is _INT64 and value.ndim == 1 and value.flags.c_contiguous:
        return value
    array = as_indices(name, value)
    if array.ndim > 1:
        raise ShapeError(f"{name} has shape {array.shape}, expected one dimension")
    return array.reshape(-1)


def _each(name: str, value: Any, count: int) -> NDArray[np.float64]:
    """Return a number for each leaf."""
    if type(value) is np.ndarray and value.dtype is _FLOAT64 and value.ndim == 1 and value.flags.c_contiguous:
        return value
    array = _numeric(name, value, _FLOAT64)
    if array.ndim == 0:
        return np.full(count, array)
    if array.ndim > 1:
        raise ShapeError(f"{name} has shape {array.shape}, expected one dimension")
    return array


def _numeric(name: str, value: Any, dtype: np.dtype[Any]) -> Array:
    array = as_array(name, value)
    if array.dtype.kind not in ("b" if dtype.kind == "b" else "biuf") and array.size:
        raise DTypeError(f"{name} has dtype {array.dtype}, expected {dtype}")
    return np.require(array, dtype=dtype, requirements=["C", "A"])


def _flat(name: str, value: Any, dtype: np.dtype[Any]) -> Array:
    """Return what is said of all children, those of the first leaf first."""
    if type(value) is np.ndarray and value.dtype is dtype and value.flags.c_contiguous:
        return value.reshape(-1)
    if isinstance(value, list | tuple) and any(hasattr(entry, "__len__") for entry in value):
        rows = [_numeric(name, entry, dtype).reshape(-1) for entry in value]
        return np.concatenate(rows) if rows else np.empty(0, dtype)
    return _numeric(name, value, dtype).reshape(-1)


def _same(action: Any, other: Any) -> bool:
    if isinstance(action, np.ndarray) or isinstance(other, np.ndarray):
        return (
            isinstance(action, np.ndarray) and isinstance(other, np.ndarray) and np.array_equal(action, other)
        )
    return bool(action == other)
