"""The page on convolutions and recurrences: its examples run as they stand there."""

import re
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "convolution.md"


def test_the_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    names = {}
    for block in blocks:
        exec(block, names)
    assert names["state"].shape == (1, 6, 3)
    assert names["logits"].shape == (1, 50)
