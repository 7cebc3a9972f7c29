"""Training that is killed goes on from a whole checkpoint, and ends as if nothing had been."""

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sensorium import checkpoint
from sensorium.data.corpus import Corpus
from sensorium.train import Recipe, fit

STEPS = 300
TINY = Recipe(width=16, depth=1, heads=2, hidden=16, rows=2, image_codes=8, audio_codes=8, jitter=0)

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from test_killed import train
train(sys.argv[2])
"""


def corpus() -> Corpus:
    """Bright and dark pictures, low and high sounds, and their two words."""
    rng = np.random.default_rng(0)
    group = np.arange(12) % 2
    level = group[:, None, None] * 0.5
    pitch = 300 + 400 * group[:, None]
    return Corpus(
        texts=["dark", "bright"], text_group=np.arange(2), text_split=np.full(2, "train"),
        images=(level + 0.4 * rng.random((12, 8, 8))).astype(np.float32), image_group=group,
        image_split=np.full(12, "train"),
        audios=list(0.5 * np.sin(2 * np.pi * pitch * np.arange(2000) / 8000 + rng.random((12, 1))).astype(np.float32)),
        audio_group=group, audio_split=np.full(12, "train"), sample_rate=8000,
    )  # fmt: skip


def train(path):
    return fit(
        corpus(),
        TINY,
        steps=STEPS,
        seed=5,
        checkpoint_path=path,
        checkpoint_every=0.0,
        resume=True,
    )


def wait_for_another(path, process):
    """Wait until the checkpoint at ``path`` is another one than now."""

    def identity():
        try:
            return path.stat().st_ino, path.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    before = identity()
    while identity() == before:
        assert process.poll() is None, "training ended before it could be killed"
        time.sleep(0.001)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_and_resumed_is_the_same_as_never_killed(tmp_path):
    killed, whole = tmp_path / "killed.safetensors", tmp_path / "whole.safetensors"
    rng = random.Random(0)
    reached = [0]
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(killed)])
        try:
            for _ in range(rng.randint(1, 5)):
                wait_for_another(killed, process)
            time.sleep(rng.uniform(0.0, 0.01))
        finally:
            process.kill()
            process.wait()
        step = checkpoint.load(killed)[1]["training"]["step"]
        assert step > reached[-1]
        reached.append(step)
    assert reached[-1] < STEPS, f"killed too late to show anything: {reached}"
    resumed = train(killed)
    assert resumed.steps == STEPS
    never_killed = train(whole)
    a, b = (checkpoint.load(path)[0] for path in (killed, whole))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert (
        resumed.model.generate("dark", to="image")[0].tobytes()
        == never_killed.model.generate("dark", to="image")[0].tobytes()
    )
