"""The page on experts: its examples give what stands there, and its figure can be drawn."""

import doctest
import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_examples_give_what_stands_there():
    page = (ROOT / "docs" / "experts.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```pycon\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 12
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "experts.md", "docs/experts.md", 0)
    failures = []
    doctest.DocTestRunner(verbose=False).run(test, out=failures.append)
    assert not failures, "".join(failures)


def test_every_function_of_the_page_is_there():
    import sensorium.ops

    page = (ROOT / "docs" / "experts.md").read_text(encoding="utf-8")
    table = page[page.index("| the function |") : page.index("Training on them")]
    named = set(re.findall(r"`([a-z_]+)[`(]", table)) | set(re.findall(r"`(gaussian_[a-z_]+)`", page))
    assert len(named) >= 14
    assert not [name for name in named if not hasattr(sensorium.ops, name)]


def test_the_figure_can_be_drawn(tmp_path):
    script = runpy.run_path(str(ROOT / "scripts" / "draw_experts.py"))
    script["draw"](tmp_path / "experts.svg")
    drawn = (tmp_path / "experts.svg").read_text(encoding="utf-8")
    for title in script["CASES"]:
        assert title in drawn
