"""The page on Mamba: its examples run as they stand there, but for the minute of training."""

import re
from pathlib import Path

import numpy as np
from sensorium.models import language, mamba

PAGE = Path(__file__).parent.parent / "docs" / "mamba.md"


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    assert "seconds=60" in blocks[2]
    monkeypatch.chdir(tmp_path)
    config = mamba.Config(vocab_size=256, hidden_size=16, num_hidden_layers=1, tokenizer="bytes")
    mamba.Model.init(config, np.random.default_rng(0)).save("mamba-130m-hf")
    names = {}
    for block in blocks:
        exec(block.replace("seconds=60", "steps=2"), names)
    assert "bytes of state" in capsys.readouterr().out
    assert len(names["generation"].tokens[0]) == 300
    assert names["result"].steps == 2
    assert language.load("digits").parameters == names["result"].model.parameters
