"""The Python in the README runs as it stands there, but for the half minute of training."""

import re
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_readme_has_its_examples():
    assert len(BLOCKS) == 6
    assert "seconds=30" in BLOCKS[0]


@pytest.mark.parametrize("block", BLOCKS)
def test_an_example_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(block.replace("seconds=30", "steps=2"), names)
    if "sound" in names:
        assert names["sound"].dtype == np.float32
        assert names["sound"].ndim == 1
        assert len(names["sound"]) > 0
    elif "state" in names:
        assert names["y"].shape == names["u"].shape
        assert names["y_next"].shape == names["u"].shape[::2]
        assert np.isfinite(names["y_next"]).all()
    elif "fused" in names:
        assert names["fused"].z.shape == (4, 16)
        assert np.isfinite(names["fused"].kl).all()
    elif "outcome" in names:
        assert abs(names["outcome"].answer - 3) < 1
    elif "law" in names:
        assert abs(names["law"].alpha_ - 0.3) < 1e-3
    else:
        assert names["out"].shape == names["q"].shape
        assert (tmp_path / "layout.png").stat().st_size > 1000
