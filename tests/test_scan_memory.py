"""Memory of scans: in proportion to their inputs and outputs, with no array of the states of all steps.

Each case runs in a process of its own, and what the peak of resident memory rose by during the call is held
against the bytes of the arrays that it returns.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

STATUS = Path("/proc/self/status")
#: What does not grow with the arrays: scratch of two threads, pages of the allocator.
FIXED = 6 << 20

CODE = """
import re, sys
from pathlib import Path
import numpy as np
from sensorium import ops

name, passes = sys.argv[1:3]
rng = np.random.default_rng(0)

def draw(*shape):
    return rng.standard_normal(shape, np.float32)

def resident(name):
    return 1024 * int(re.search(name + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

if name == "selective_scan":
    B, D, L, S = 1, 128, 16_384, 16
    u, grad_out = draw(B, D, L), draw(B, D, L)
    given = {"u": u, "delta": draw(B, D, L), "A": -np.exp(draw(D, S)), "B": draw(B, S, L), "C": draw(B, S, L)}
    options, states = {"delta_softplus": True}, (L, B, D, S)
elif name == "ssd":
    B, L, H, P, S = 1, 8_192, 4, 32, 64
    u, grad_out = draw(B, L, H, P), draw(B, L, H, P)
    given = {"x": u, "dt": draw(B, L, H), "A": -np.exp(draw(H)), "B": draw(B, L, 1, S), "C": draw(B, L, 1, S)}
    options, states = {"dt_softplus": True}, (L, B, H, P, S)
else:
    B, H, L, D = 1, 2, 16_384, 32
    u, grad_out = draw(B, H, L, D), draw(B, H, L, D)
    given = {"q": u, "k": draw(B, H, L, D), "v": draw(B, H, L, D)}
    given |= {"eta": np.full((B, H, L), 0.01, np.float32), "W1": 0.02 * draw(H, D, 4 * D), "b1": draw(H, 4 * D)}
    given |= {"W2": 0.02 * draw(H, 4 * D, D), "b2": draw(H, D)}
    given |= {"norm_weight": np.ones((H, D), np.float32), "norm_bias": np.zeros((H, D), np.float32)}
    options, states = {}, (L // 16, B, H, 8, D, D)
run, back = getattr(ops, name), getattr(ops, name + "_backward")
if len(sys.argv) > 3:  # What an array of all states would cost: the check must notice.
    np.ones(states, np.float32)
before = resident("VmRSS")
found = [run(**given, **options)]
if passes == "both":
    found += [x for x in back(grad_out, **given, **options) if x is not None]
returned = sum(x.nbytes for x in found)
print(returned, resident("VmHWM") - before, 4 * np.prod(states), u.nbytes)
"""

pytestmark = pytest.mark.skipif(
    not (STATUS.exists() and re.search(r"VmHWM:\s*\d+ kB", STATUS.read_text())),
    reason="the system does not say the peak of resident memory",
)


def rise(*arguments):
    """Bytes returned, by which the peak rose, of an array of all states, and of one input."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=True
    )
    return map(int, done.stdout.split())


NAMES = ["selective_scan", "ssd", "ttt_mlp"]


@pytest.mark.parametrize("name", NAMES)
def test_forward_needs_what_it_returns_and_little_more(name):
    returned, rose, states, size = rise(name, "forward")
    assert returned == size
    assert states > 8 * size
    assert rose <= returned + size + FIXED


@pytest.mark.parametrize("name", NAMES)
def test_backward_keeps_no_array_of_all_states(name):
    returned, rose, states, size = rise(name, "both")
    assert rose <= returned + 3 * size + FIXED
    assert rose - returned < states / 4


def test_an_array_of_all_states_would_be_noticed():
    returned, rose, states, size = rise("selective_scan", "both", "states")
    assert rose > returned + 3 * size + FIXED
    assert rose - returned > states / 2
