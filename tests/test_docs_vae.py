"""The page on multimodal VAEs: its examples run as they stand there, but for the half minute of training."""

import re
from pathlib import Path

from sensorium import _vae_cli
from sensorium.vae_jobs import KINDS

PAGE = Path(__file__).parent.parent / "docs" / "vae.md"


def test_the_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    assert "seconds=30" in blocks[0]
    names = {}
    for block in blocks:
        exec(block.replace("seconds=30", "steps=2"), names)
    assert names["result"].steps == 2
    assert names["seen"].means.shape == (1, len(names["test"]), 6)
    assert names["made"]["text"].shape == (1, len(names["test"]), *names["encoding"].shapes["text"])


def test_every_kind_and_command_is_on_the_page():
    page = PAGE.read_text(encoding="utf-8")
    for kind in KINDS:
        assert f"| `{kind}` |" in page
    for command in _vae_cli.app.registered_commands:
        assert f"sensorium vae {command.callback.__name__}" in page
