"""Memory of attention: in proportion to tokens, whatever the number of pairs.

Each case runs in a process of its own, and what the peak of resident memory rose by during the call is held
against the bytes of the arrays that it returns.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

STATUS = Path("/proc/self/status")
N, H, D = 32_768, 2, 64
#: What does not grow with the arrays: scratch of two threads, the plan, pages of the allocator.
FIXED = 6 << 20

CODE = """
import re, sys
from pathlib import Path
import numpy as np
from sensorium.ops import Layout, Segment, attention, attention_backward

N, H, H_kv, D, passes = *map(int, sys.argv[1:5]), sys.argv[5]

def resident(name):
    return 1024 * int(re.search(name + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

layout = Layout([Segment("causal", 32), Segment("full", 224)] * (N // 256), window=8)
rng = np.random.default_rng(0)
q, grad_out = (rng.standard_normal((1, H, N, D), np.float32) for _ in range(2))
k, v = (rng.standard_normal((1, H_kv, N, D), np.float32) for _ in range(2))
if len(sys.argv) > 6:  # What a dense mask would cost: the check must notice.
    np.ones((N, N), bool)
before = resident("VmRSS")
out, lse = attention(q, k, v, layout)
returned = out.nbytes + lse.nbytes
if passes == "both":
    returned += sum(x.nbytes for x in attention_backward(grad_out, q, k, v, out, lse, layout))
print(returned, resident("VmHWM") - before, layout.pairs)
"""

pytestmark = pytest.mark.skipif(
    not (STATUS.exists() and re.search(r"VmHWM:\s*\d+ kB", STATUS.read_text())),
    reason="the system does not say the peak of resident memory",
)


def rise(passes, kv_heads, *more):
    """Bytes returned, and bytes by which the peak rose."""
    arguments = [str(x) for x in (N, H, kv_heads, D, passes, *more)]
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, check=True
    )
    returned, rose, pairs = map(int, done.stdout.split())
    assert pairs > 1000 * N
    return returned, rose


def test_forward_needs_what_it_returns():
    returned, rose = rise("forward", H)
    assert returned == H * N * (D + 1) * 4
    assert rose <= returned + FIXED


@pytest.mark.parametrize("kv_heads", [H, 1])
def test_backward_needs_a_few_arrays_of_tokens_by_width(kv_heads):
    returned, rose = rise("both", kv_heads)
    assert returned == H * N * (2 * D + 1) * 4 + 2 * kv_heads * N * D * 4
    # Where heads are few, tasks that share a key head sum over the keys that they see, and a window is few keys.
    assert rose <= returned + 3 * H * N * D * 4 + FIXED


def test_an_array_of_pairs_would_be_noticed():
    returned, rose = rise("forward", H, "dense")
    assert rose > returned + FIXED
