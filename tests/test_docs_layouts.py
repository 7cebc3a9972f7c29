"""The page on layouts: its examples run and say what it says, its pictures are those of the script."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from sensorium.ops import Layout, Segment

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "layouts.md").read_text(encoding="utf-8")
BLOCKS = [
    re.sub("(?m)^  ", "", b) if b.startswith("  ") else b
    for b in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
]


def run():
    names = {}
    seen = []
    for block in BLOCKS:
        exec(block, names)
        seen.append({k: v for k, v in names.items() if isinstance(v, Layout)})
    return names, seen


def mask(*rows):
    return np.array([[c == "1" for c in row.replace(" ", "")] for row in rows], dtype=bool)


def test_examples_run():
    names, seen = run()
    assert len(BLOCKS) >= 15
    assert names["same"] == Layout.from_lengths([4, 7, 3])
    assert names["out"].shape == (1, 2, 6, 4)
    np.testing.assert_allclose(names["out"], 1.0)
    assert "Layout([causal 4, full 4, causal 4])" in {repr(s["layout"]) for s in seen if "layout" in s}


def test_pictures_are_those_of_the_script(tmp_path):
    script = runpy.run_path(str(ROOT / "scripts" / "draw_layouts.py"))
    script["main"](tmp_path)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_bytes() for path in (ROOT / "docs" / "images").glob("layout-*.svg")}
    assert made == kept, "run python scripts/draw_layouts.py"
    shown = set(re.findall(r"images/(layout-[\w-]+\.svg)", PAGE))
    assert shown == set(made)


@pytest.mark.parametrize(
    "name", ["bagel", "frames", "block-diffusion", "sliding-window", "padded", "image-sees-all"]
)
def test_a_picture_shows_the_mask(name):
    # Fill the shapes of the picture: paths of whole tokens, even-odd along each row of tokens.
    script = runpy.run_path(str(ROOT / "scripts" / "draw_layouts.py"))
    layout, labels = script["PICTURES"][name]
    picture = script["svg"](layout, labels)
    n = len(layout)
    got = np.zeros((n, n), dtype=bool)
    for shapes in re.findall(r'<path fill="#\w+" d="([^"]*)"', picture):
        for shape in re.findall(r"M[^M]*z", shapes):
            x, y = map(int, re.match(r"M(\d+) (\d+)", shape).groups())
            crossings = np.zeros((n, n + 1), dtype=int)
            start = y
            for axis, step in re.findall(r"([hv])(-?\d+)", shape[shape.index(" ") :]):
                if axis == "h":
                    x += int(step)
                else:
                    crossings[min(y, y + int(step)) : max(y, y + int(step)), x] += 1
                    y += int(step)
            crossings[min(y, start) : max(y, start), x] += 1
            got |= np.cumsum(crossings, axis=1)[:, :n] % 2 == 1
    np.testing.assert_array_equal(got, layout.dense())


def test_masks_of_published_code():
    # The rules of the last section, token by token, for a prompt of 2, an image of 2 and text of 2.
    see = np.array([[0, 0, 0], [1, 0, 1], [1, 1, 0]], dtype=bool)
    layout = Layout([Segment("causal", 2), Segment("full", 2), Segment("causal", 2)], visible=see)
    want = mask("10 00 00", "11 00 00", "11 11 11", "11 11 11", "11 11 10", "11 11 11")
    np.testing.assert_array_equal(layout.dense(), want)
    see = np.array([[0, 1, 0], [1, 0, 0], [1, 1, 0]], dtype=bool)
    layout = Layout([Segment("causal", 2), Segment("full", 2), Segment("causal", 2)], visible=see)
    want = np.tri(6, dtype=bool)
    want[:, 2:4] = True
    np.testing.assert_array_equal(layout.dense(), want)
    layout = Layout.packed([[Segment("diagonal", 2)], Layout.causal(2)])
    np.testing.assert_array_equal(layout.dense(), mask("10 00", "01 00", "00 10", "00 11"))
