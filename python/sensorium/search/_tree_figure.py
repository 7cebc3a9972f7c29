"""The picture of a tree: the most visited nodes, the root on top."""

from __future__ import annotations

import heapq
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ArgumentError

if TYPE_CHECKING:
    from .tree import Tree


def draw(tree: Tree, path: str | os.PathLike[str], node: int, most: int) -> None:
    """Write the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    kind = Path(path).suffix.lstrip(".").lower()
    known = FigureCanvasAgg.get_supported_filetypes()
    if kind not in known:
        raise ArgumentError(f"path ends with .{kind}, expected one of {', '.join(sorted(known))}")
    kept = _most_visited(tree, node, most)
    x, depth = _places(kept)
    visits = {child: float(n) for child, n in _visits(tree, kept).items()}
    total = max(visits[node], 1.0)
    ids = list(kept)
    figure = Figure(figsize=(min(4 + 0.28 * len(ids), 24), min(2 + 0.9 * (max(depth.values()) + 1), 24)))
    axes = figure.add_subplot()
    edges = [
        (((x[parent], -depth[parent]), (x[child], -depth[child])), visits[child] / total)
        for parent in ids
        for child in kept[parent]
    ]
    if edges:
        lines, shares = zip(*edges, strict=True)
        axes.add_collection(
            LineCollection(lines, linewidths=[0.4 + 5 * share for share in shares], colors="0.6", zorder=1)
        )
    values = [tree.value(child) for child in ids]
    dots = axes.scatter(
        [x[child] for child in ids],
        [-depth[child] for child in ids],
        s=[30 + 170 * visits[child] / total for child in ids],
        c=values,
        cmap="viridis",
        edgecolors="0.3",
        linewidths=0.5,
        zorder=2,
    )
    if any(np.isfinite(values)):
        figure.colorbar(dots, ax=axes, label="value, as its own player sees it", shrink=0.6)
    for child in ids:
        label = (
            f"{visits[child]:.0f}" if child == node else f"{tree.action(child)!s:.12}\n{visits[child]:.0f}"
        )
        axes.annotate(
            _plain(label),
            (x[child], -depth[child]),
            xytext=(0, -8),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=6,
            parse_math=False,
        )
    axes.set_axis_off()
    axes.set_title(f"{len(ids)} of {len(tree)} nodes: action, visits", fontsize=9)
    figure.savefig(path, bbox_inches="tight")


def _plain(text: str) -> str:
    return "".join(c if c == "\n" or c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _most_visited(tree: Tree, node: int, most: int) -> dict[int, list[int]]:
    """Return the children to draw of each node to draw, parents before children."""
    kept: dict[int, list[int]] = {}
    parent_of: dict[int, int] = {}
    queue = [(0, node)]
    while queue and len(kept) < most:
        _, at = heapq.heappop(queue)
        kept[at] = []
        if at in parent_of:
            kept[parent_of[at]].append(at)
        for child, visits in zip(tree.children(at).tolist(), tree.visits(at).tolist(), strict=True):
            parent_of[child] = at
            heapq.heappush(queue, (-visits, child))
    for children in kept.values():
        children.sort()
    return kept


def _visits(tree: Tree, kept: dict[int, list[int]]) -> dict[int, int]:
    ids = np.array(list(kept), dtype=np.int64)
    return dict(zip(kept, tree._core.gather("visits", ids).tolist(), strict=True))


def _places(kept: dict[int, list[int]]) -> tuple[dict[int, float], dict[int, int]]:
    """Return how far to the right and how far down each node is: leaves side by side, parents between."""
    x: dict[int, float] = {}
    depth: dict[int, int] = {}
    column = 0
    stack: list[tuple[int, Any]] = []
    for root in list(kept)[:1]:
        depth[root] = 0
        stack.append((root, iter(kept[root])))
    while stack:
        node, children = stack[-1]
        child = next(children, None)
        if child is not None:
            depth[child] = depth[node] + 1
            stack.append((child, iter(kept[child])))
            continue
        stack.pop()
        if kept[node]:
            x[node] = sum(x[child] for child in kept[node]) / len(kept[node])
        else:
            x[node] = float(column)
            column += 1
    return x, depth
