"""Causal convolution, the gated linear recurrence, and products with few rows, against the same in NumPy.

Each row first agrees with the reference. `extra_info` states the `bytes` that must be read and written; the
row `copy` is what one thread of NumPy reaches at moving as many. To reproduce:
`python -m pytest benches/bench_conv.py --benchmark-only`.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import scipy.signal
import sensorium
from sensorium import ops

#: Batch, channels and tokens: a block of Mamba 130M over 1,024 and 4,096 tokens, and many short rows.
SIZES = {"1024": (1, 1536, 1024), "4096": (1, 1536, 4096), "batch": (8, 256, 512)}
TAPS = 4
#: Inputs and outputs of products: the projections of Mamba 130M and its vocabulary.
PRODUCTS = {"in_proj": (768, 3072), "out_proj": (1536, 768), "head": (768, 50_280)}
STORED = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def numpy_conv(x, weight, bias):
    """Channels last: a sum of shifted products."""
    padded = np.pad(x, ((0, 0), (TAPS - 1, 0), (0, 0)))
    out = np.repeat(bias[None, None], x.shape[1], axis=1) + 0 * x[:, :1]
    for k in range(TAPS):
        out += padded[:, k : k + x.shape[1]] * weight[:, k]
    return out / (1 + np.exp(-out))


def report(benchmark, group, moved):
    benchmark.group = group
    benchmark.extra_info.update(bytes=moved, threads=sensorium.get_num_threads())


@pytest.mark.parametrize("row", ["channels last", "channels first", "numpy", "copy"])
@pytest.mark.parametrize("size", SIZES)
def test_forward(benchmark, size, row):
    sensorium.keep_pages()
    B, D, L = SIZES[size]
    x, weight, bias = draw(B, L, D), draw(D, TAPS), draw(D)
    first, out = np.ascontiguousarray(x.swapaxes(1, 2)), np.empty_like(x)
    how = {"activation": "silu"}
    want = numpy_conv(x, weight, bias)
    calls = {
        "channels last": lambda: ops.causal_conv1d(x, weight, bias, channels_last=True, **how),
        "channels first": lambda: ops.causal_conv1d(first, weight, bias, **how),
        "numpy": lambda: numpy_conv(x, weight, bias),
        "copy": lambda: np.copyto(out, x),
    }
    np.testing.assert_allclose(calls["channels last"](), want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(calls["channels first"]().swapaxes(1, 2), want, rtol=1e-4, atol=1e-4)
    report(benchmark, f"convolution {size}", 2 * x.nbytes)
    benchmark(calls[row])


@pytest.mark.parametrize("row", ["channels last", "channels first"])
@pytest.mark.parametrize("size", SIZES)
def test_backward(benchmark, size, row):
    sensorium.keep_pages()
    B, D, L = SIZES[size]
    x, weight, bias, grad = draw(B, L, D), draw(D, TAPS), draw(D), draw(B, L, D, seed=1)
    h = np.float32(1e-2)
    # Along one direction, by differences.
    ends = [numpy_conv(x, weight + s * h, bias) for s in (1, -1)]
    want = float((((ends[0] - ends[1]) / (2 * h)).astype(np.float64) * grad).sum())
    last = row == "channels last"
    if not last:
        x, grad = (np.ascontiguousarray(a.swapaxes(1, 2)) for a in (x, grad))
    how = {"activation": "silu", "channels_last": last}
    got = float(ops.causal_conv1d_backward(grad, x, weight, bias, **how).weight.astype(np.float64).sum())
    np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-2 * x.size**0.5)
    report(benchmark, f"convolution backward {size}", 3 * x.nbytes)
    benchmark(lambda: ops.causal_conv1d_backward(grad, x, weight, bias, **how))


@pytest.mark.parametrize("row", ["sensorium", "scipy"])
@pytest.mark.parametrize("shape", [(1, 1, 1_000_000), (1, 1536, 1024)])
def test_linear_scan(benchmark, shape, row):
    """With a constant gate, which a filter can do too."""
    sensorium.keep_pages()
    x, a = draw(*shape), np.full(shape, 0.95, np.float32)
    calls = {
        "sensorium": lambda: ops.gated_linear_scan(a, x),
        "scipy": lambda: scipy.signal.lfilter([1.0], [1.0, -0.95], x),
    }
    np.testing.assert_allclose(calls["sensorium"](), calls["scipy"](), rtol=1e-3, atol=1e-3)
    report(benchmark, f"linear scan {shape}", 3 * x.nbytes)
    benchmark(calls[row])


@pytest.mark.parametrize("row", [*STORED, "numpy"])
@pytest.mark.parametrize("m", [1, 8])
@pytest.mark.parametrize("name", PRODUCTS)
def test_few_rows(benchmark, name, m, row):
    """`x @ weight.T`, as a step of decoding does with the weights of a checkpoint."""
    k, n = PRODUCTS[name]
    x, weight = draw(m, k), draw(n, k).astype(STORED.get(row, np.float32))
    call = (lambda: x @ weight.T) if row == "numpy" else (lambda: ops.linear(x, weight.T))
    np.testing.assert_allclose(call(), x @ weight.astype(np.float32).T, rtol=1e-3, atol=1e-2)
    report(benchmark, f"product {name} m={m}", weight.nbytes)
    benchmark(call)
