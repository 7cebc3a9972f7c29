"""Draw the pictures of docs/layouts.md into docs/images: ``python scripts/draw_layouts.py [folder]``.

Small SVG without a library, so that the same layouts give the same bytes everywhere. Rows are queries,
columns are keys; yellow is another segment, other colours are a segment's own rule, as in ``Layout.draw``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sensorium.ops import Layout, Segment

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "images"
COLOURS = {"causal": "#228833", "full": "#4477aa", "diagonal": "#aa3377"}
OTHER = "#ccbb44"
SIDE = 216
LETTER = 6.2  # width of a letter of the labels, about

PICTURES: dict[str, tuple[Layout, list[str]]] = {
    "causal": (Layout.causal(12), ["text"]),
    "full": (Layout.full(12), ["image"]),
    "prefix-lm": (Layout.prefix_lm(5, 7), ["prefix", "suffix"]),
    "text-to-image": (Layout.text_to_image(5, 7), ["text", "image"]),
    "image-to-text": (Layout.image_to_text(6, 4, prompt=3), ["prompt", "image", "text"]),
    "transfusion": (
        Layout.interleaved([("text", 3), ("image", 4), ("text", 4), ("image", 4), ("text", 3)]),
        ["text", "image", "text", "image", "text"],
    ),
    "bagel": (
        Layout.interleaved(
            [("text", 3), ("noised", 4), ("image", 4), ("image", 3), ("text", 3), ("noised", 4), ("image", 4)]
        ),
        ["text", "noised", "clean", "encoded", "text", "noised", "clean"],
    ),
    "decoupled": (
        Layout.decoupled([("text", 3), ("image", 4), ("text", 4), ("image", 4), ("text", 3)]),
        ["text", "image", "text", "image", "text"],
    ),
    "frames": (
        Layout.frames(8, 3, window=2, keyframes=[0, 4], prompt=3),
        ["prompt", *(f"{'key' if t in (0, 4) else 'frame'} {t}" for t in range(8))],
    ),
    "sliding-window": (Layout.sliding_window(18, 5, sinks=2), []),
    "block-causal": (Layout.block_causal(15, 3), [f"block {b}" for b in range(5)]),
    "block-diffusion": (
        Layout.block_diffusion(12, 3),
        [*(f"noised {b}" for b in range(4)), *(f"clean {b}" for b in range(4))],
    ),
    "packed": (Layout.from_lengths([4, 7, 3]), ["first", "second", "third"]),
    "padded": (Layout.text_to_image(4, 5).padded(13, side="left"), ["padding", "text", "image"]),
    "cross": (Layout.cross(8, 6), ["memory", "queries"]),
    "cross-causal": (Layout.cross(8, 6, inner="causal"), ["memory", "queries"]),
    "prompt-sees-image": (Layout.prefix_lm(3 + 6, 4), ["prompt, image", "text"]),
    "image-sees-all": (
        Layout(
            [Segment("causal", 3), Segment("full", 6), Segment("causal", 4)],
            visible=[[False, False, False], [True, True, True], [True, True, True]],
        ),
        ["text", "image", "text"],
    ),
}


def own(inner: str, n: int) -> str:
    """Outline of what a segment of ``n`` tokens sees of itself, in tokens from its corner."""
    if inner == "full":
        return f"h{n}v{n}h-{n}z"
    down = "h1v1" * n
    return down + f"h-{n}z" if inner == "causal" else down + "h-1v-1" * n + "z"


def svg(layout: Layout, labels: list[str]) -> str:
    """Return the picture of a layout."""
    n, spans, visible = len(layout), layout.spans, layout.visible
    cell = SIDE / n
    margin = max((round(LETTER * len(label)) for label in labels), default=0) + 12
    size = margin + SIDE + 8
    paths: dict[str, list[str]] = {}
    for s, (segment, query) in enumerate(zip(layout.segments, spans, strict=True)):
        if segment.inner != "none":
            outline = f"M{query.start} {query.start}" + own(segment.inner, segment.length)
            paths.setdefault(COLOURS[segment.inner], []).append(outline)
        for r, key in enumerate(spans):
            if r != s and visible[s, r]:
                width, height = key.stop - key.start, query.stop - query.start
                paths.setdefault(OTHER, []).append(f"M{key.start} {query.start}h{width}v{height}h-{width}z")
    lines = [f"M0 {i}h{n}M{i} 0v{n}" for i in range(n + 1)]
    edges = [f"M0 {span.start}h{n}M{span.start} 0v{n}" for span in spans[1:] if labels]
    texts = []
    for label, span in zip(labels, spans, strict=False):
        middle = 8 + (span.start + span.stop) / 2 * cell
        across = middle + margin - 8
        texts.append(f'<text x="{margin - 6}" y="{middle + 4:.1f}" text-anchor="end">{label}</text>')
        turn = f'transform="translate({across + 4:.1f} {8 + SIDE + 6}) rotate(-90)"'
        texts.append(f'<text {turn} text-anchor="end">{label}</text>')
    move = f'transform="translate({margin} 8) scale({cell:.4f})"'
    fills = "".join(f'<path fill="{colour}" d="{"".join(d)}"/>' for colour, d in sorted(paths.items()))
    thin, thick = (f'stroke-width="{width / cell:.4f}"' for width in (0.5, 1.2))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}" viewBox="0 0 {size} {size}" '
        f'font-family="sans-serif" font-size="11" fill="#222">\n'
        f'<rect width="{size}" height="{size}" fill="#fff"/>\n'
        f"<g {move}>{fills}\n"
        f'<path stroke="#0002" {thin} fill="none" d="{"".join(lines)}"/>'
        f'<path stroke="#000a" {thick} fill="none" d="M0 0h{n}v{n}h-{n}z{"".join(edges)}"/></g>\n'
        + "\n".join(texts)
        + "\n</svg>\n"
    )


def main(folder: Path = FOLDER) -> None:
    """Write all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (layout, labels) in PICTURES.items():
        (folder / f"layout-{name}.svg").write_text(svg(layout, labels), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
