"""The picture of a layout, drawn from its ranges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_NAMES = ("none", "diagonal", "causal", "full")
_COLOURS = ("none", "#aa3377", "#228833", "#4477aa")
_OTHER = "#ccbb44"
_MAX_BORDERS = 64
_MAX_STEPS = 128
_MAX_TICKS = 24


def _own(inner: int, start: int, end: int) -> list[tuple[float, float]]:
    """Corners, (key, query), of what a segment sees of itself."""
    if inner == 3:
        return [(start, start), (end, start), (end, end), (start, end)]
    steps = end - start if end - start <= _MAX_STEPS else 0
    corners: list[tuple[float, float]] = [(start, start)]
    if not steps:
        # Steps of under a pixel: a straight edge, and for the diagonal a line one token thick at the corners.
        upper: list[tuple[float, float]] = [(start + 1, start), (end, end - 1), (end, end)]
        return corners + upper + ([(end - 1, end), (start, start + 1)] if inner == 1 else [(start, end)])
    for i in range(start, end):
        corners += [(i + 1, i), (i + 1, i + 1)]
    if inner == 1:
        for i in range(end - 1, start - 1, -1):
            corners += [(i, i + 1), (i, i)]
    else:
        corners.append((start, end))
    return corners


def draw_layout(
    path: Path,
    length: int,
    rows: Sequence[tuple[int, int, int, Sequence[tuple[int, int]]]],
    labels: Sequence[str] | None,
) -> None:
    """Write the picture to ``path``; see :meth:`sensorium.ops.Layout.draw`."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(5.6, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shapes: dict[str, list[list[tuple[float, float]]]] = {}
    for inner, start, end, ranges in rows:
        for first, last in ranges:
            corners: list[tuple[float, float]] = [(first, start), (last, start), (last, end), (first, end)]
            shapes.setdefault("another segment", []).append(corners)
        if inner:
            shapes.setdefault(f"own, {_NAMES[inner]}", []).append(_own(inner, start, end))
    legend = []
    for name, polygons in sorted(shapes.items()):
        colour = _OTHER if name == "another segment" else _COLOURS[_NAMES.index(name.removeprefix("own, "))]
        axes.add_collection(PolyCollection(polygons, facecolors=colour, edgecolors="none"))
        legend.append(Patch(color=colour, label=name))
    if len(rows) <= _MAX_BORDERS:
        for _, start, _, _ in rows[1:]:
            axes.axhline(start, color="#00000040", linewidth=0.6)
            axes.axvline(start, color="#00000040", linewidth=0.6)
    axes.set(xlim=(0, max(length, 1)), ylim=(max(length, 1), 0), aspect="equal", xlabel="key", ylabel="query")
    if labels is not None and len(rows) <= _MAX_TICKS:
        middles = [(start + end) / 2 for _, start, end, _ in rows]
        axes.set_xticks(middles, labels, rotation=90 if len(rows) > 4 else 0, fontsize="small")
        axes.set_yticks(middles, labels, fontsize="small")
        axes.tick_params(length=0)
    if legend:
        figure.legend(handles=legend, loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    # Without the salt and the date left out, two pictures of one layout would differ.
    with rc_context({"svg.hashsalt": "layout"}):
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
