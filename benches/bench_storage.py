"""Half precision and rotary embeddings, by themselves and in attention, in relation to plain float32.

Each row first agrees with what it stands for. `extra_info` states the bytes read and written, or the flops.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from sensorium.ops import Layout, Rotary, Segment, attention, attention_backward, rotary

SHORT = Layout([Segment("causal", 6), Segment("full", 16), Segment("full", 16)])
CASES = {
    "causal 64": (Layout([Segment("causal", 1024)]), (1, 8, 1024, 64)),
    "causal 128": (Layout([Segment("causal", 1024)]), (1, 8, 1024, 128)),
    "short rows": (Layout.packed([SHORT] * 4), (16, 3, 152, 32)),
}
ROWS = {
    "float32": (np.float32, None),
    "rotary": (np.float32, Rotary()),
    "rotary before": (np.float32, Rotary()),
    "interleaved": (np.float32, Rotary(interleaved=True)),
    "bfloat16": (ml_dtypes.bfloat16, None),
    "float16": (np.float16, None),
}


def arrays(shape, dtype):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(np.float32).astype(dtype) for _ in range(4)]


def numpy_rotary(x):
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[-2])[:, None] * 10_000.0 ** (-np.arange(half) / half)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


@pytest.mark.parametrize("name", ["numpy", "halves", "neighbours", "bfloat16"])
def test_rotary(benchmark, name):
    x = arrays((1, 8, 2048, 64), np.float32)[0]
    how = Rotary(interleaved=name == "neighbours")
    if name == "bfloat16":
        x = x.astype(ml_dtypes.bfloat16)
    if name in ("numpy", "halves"):
        np.testing.assert_allclose(rotary(x, how), numpy_rotary(x), rtol=0, atol=1e-5)
    benchmark.extra_info["bytes"] = 2 * x.nbytes
    benchmark((lambda: numpy_rotary(x)) if name == "numpy" else (lambda: rotary(x, how)))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_attention(benchmark, case, name, direction):
    layout, shape = CASES[case]
    dtype, how = ROWS[name]
    q, k, v, grad = arrays(shape, dtype)
    out, lse = attention(q, k, v, layout, rotary=how)
    wide = [x.astype(np.float32) for x in (q, k, v)]
    if how is not None:
        wide[:2] = rotary(wide[0], how), rotary(wide[1], how)
    want, _ = attention(*wide, layout)
    np.testing.assert_array_equal(out, want.astype(dtype))

    def before():
        return attention(rotary(q, how), rotary(k, how), v, layout)

    def before_and_after():
        turned = rotary(q, how), rotary(k, how)
        dq, dk, dv = attention_backward(grad, *turned, v, out, lse, layout)
        return rotary(dq, how, inverse=True), rotary(dk, how, inverse=True), dv

    benchmark.group = f"{case}, {direction}"
    flops = (4 if direction == "forward" else 10) * shape[-1]
    benchmark.extra_info["flops"] = flops * layout.pairs * shape[0] * shape[1]
    if name == "rotary before":
        benchmark(before if direction == "forward" else before_and_after)
    elif direction == "forward":
        benchmark(lambda: attention(q, k, v, layout, rotary=how))
    else:
        benchmark(lambda: attention_backward(grad, q, k, v, out, lse, layout, rotary=how))
