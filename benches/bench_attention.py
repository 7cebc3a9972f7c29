"""Attention over segment layouts against NumPy and, where it is installed, PyTorch: forward, and with
backward.

Each row first agrees with the float64 reference on a few heads' worth of rows. `extra_info` states `flops`
over the visible pairs (4 D a pair forward, 10 D backward), so that rows of one group compare by time and
groups by rate; the group "sgemm" is the practical ceiling. The layouts are those that mixed models use:

- `showo2`: text N/4 causal, then an image of 3N/4, full.
- `bagel`: repeated [text 64 causal | image 192 full], all earlier segments visible.
- `decoupled`: the same segments, where text sees text only.
- `causal`: one segment.
- `quickstart`: rows of many short samples, as the quickstart trains on (B 16, H 3, D 32).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import sensorium
from sensorium.ops import Layout, Segment, attention, attention_backward
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference import attention as reference

try:
    import torch
except ImportError:
    torch = None

SIZES = (256, 512, 1024, 2048)
LAYOUTS = ("showo2", "bagel", "decoupled", "causal")
CASES = [(name, n) for name in LAYOUTS for n in SIZES] + [("quickstart", 152)]


def make_layout(name, n):
    if name == "showo2":
        return Layout([Segment("causal", n // 4), Segment("full", n - n // 4)])
    if name == "causal":
        return Layout([Segment("causal", n)])
    if name == "quickstart":
        sample = [Segment("causal", 6), Segment("full", 16), Segment("full", 16)]
        return Layout.packed([sample] * (n // 38))
    segments = [Segment("causal", 64), Segment("full", 192)] * (n // 256)
    if name == "bagel":
        return Layout(segments)
    earlier = np.tri(len(segments), k=-1, dtype=bool)
    text = np.arange(len(segments)) % 2 == 0
    return Layout(segments, visible=earlier & (text[None, :] | ~text[:, None]))


def make_arrays(name, n):
    batch, heads, width = (16, 3, 32) if name == "quickstart" else (1, 8, 64)
    rng = np.random.default_rng(0)
    return rng.standard_normal((4, batch, heads, n, width)).astype(np.float32)


class Sensorium:
    def __init__(self, q, k, v, grad_out, layout):
        self.q, self.k, self.v, self.grad_out, self.layout = q, k, v, grad_out, layout

    def forward(self):
        return attention(self.q, self.k, self.v, self.layout, return_lse=False)

    def both(self):
        out, lse = attention(self.q, self.k, self.v, self.layout)
        return attention_backward(self.grad_out, self.q, self.k, self.v, out, lse, self.layout)


class NumPy:
    """A head at a time, so that the scores of a head stay in the cache, with a dense mask, in place."""

    def __init__(self, q, k, v, grad_out, layout):
        self.q, self.k, self.v, self.grad_out = q, k, v, grad_out
        self.hidden = np.where(layout.dense(), np.float32(0), np.float32(-np.inf))
        self.scale = np.float32(q.shape[-1] ** -0.5)

    def probabilities(self, b, h):
        p = (self.q[b, h] * self.scale) @ self.k[b, h].T
        p += self.hidden
        p -= p.max(axis=-1, keepdims=True)
        np.exp(p, out=p)
        total = p.sum(axis=-1, keepdims=True)
        return p, total

    def forward(self):
        out = np.empty_like(self.q)
        for b, h in np.ndindex(self.q.shape[:2]):
            p, total = self.probabilities(b, h)
            np.matmul(p, self.v[b, h], out=out[b, h])
            out[b, h] /= total
        return out

    def both(self):
        dq, dk, dv = (np.empty_like(x) for x in (self.q, self.k, self.v))
        for b, h in np.ndindex(self.q.shape[:2]):
            q, k, v, grad_out = (x[b, h] for x in (self.q, self.k, self.v, self.grad_out))
            p, total = self.probabilities(b, h)
            p /= total
            out = p @ v
            np.matmul(p.T, grad_out, out=dv[b, h])
            ds = grad_out @ v.T
            ds -= (grad_out * out).sum(axis=-1, keepdims=True)
            ds *= p
            ds *= self.scale
            np.matmul(ds, k, out=dq[b, h])
            np.matmul(ds.T, q, out=dk[b, h])
        return dq, dk, dv


class Torch:
    """`scaled_dot_product_attention` with a dense boolean mask, or `is_causal` where the layout is."""

    def __init__(self, q, k, v, grad_out, layout):
        if torch is None:
            pytest.skip("PyTorch is not installed")
        torch.set_num_threads(sensorium.get_num_threads())
        self.q, self.k, self.v = (torch.from_numpy(x).requires_grad_() for x in (q, k, v))
        self.grad_out = torch.from_numpy(grad_out)
        causal = len(layout.segments) == 1
        self.options = {"is_causal": True} if causal else {"attn_mask": torch.from_numpy(layout.dense())}

    def run(self):
        return torch.nn.functional.scaled_dot_product_attention(self.q, self.k, self.v, **self.options)

    def forward(self):
        with torch.no_grad():
            return self.run().numpy()

    def both(self):
        return [x.numpy() for x in torch.autograd.grad(self.run(), (self.q, self.k, self.v), self.grad_out)]


ROWS = {"sensorium": Sensorium, "numpy": NumPy, "torch": Torch}


def check(passes, got, q, k, v, grad_out, mask):
    """Compare the last batch and head with the reference."""
    q, k, v, grad_out = (x[-1:, -1:] for x in (q, k, v, grad_out))
    out, lse = reference.attention(q, k, v, mask)
    if passes == "forward":
        np.testing.assert_allclose(got[-1:, -1:], out, rtol=0, atol=1e-5)
        return
    want = reference.attention_backward(grad_out, q, k, v, out, lse, mask)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a[-1:, -1:], b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("passes", ["forward", "both"])
@pytest.mark.parametrize(("name", "n"), CASES)
def test_attention(benchmark, name, n, passes, row):
    sensorium.keep_pages()
    layout = make_layout(name, n)
    arrays = make_arrays(name, n)
    threads = sensorium.get_num_threads()
    with threadpool_limits(threads):
        function = getattr(ROWS[row](*arrays, layout), passes)
        check(passes, function(), *arrays, layout.dense())
        batch, heads, _, width = arrays[0].shape
        flops = (4 if passes == "forward" else 14) * width * layout.pairs * batch * heads
        benchmark.group = f"{passes} {name} N={n}"
        benchmark.extra_info.update(flops=flops, threads=threads)
        benchmark(function)


def test_sgemm(benchmark):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 1024, 1024)).astype(np.float32)
    threads = sensorium.get_num_threads()
    with threadpool_limits(threads):
        assert abs((a @ b)[0, 0] - a[0].astype(float) @ b[:, 0].astype(float)) < 1e-3
        benchmark.group = "sgemm"
        benchmark.extra_info.update(flops=2 * 1024**3, threads=threads)
        benchmark(np.matmul, a, b)
