"""The cases that attention is measured on, their work, and their results in float64.

- `showo2`: text N/4 causal, then an image of 3N/4, full.
- `bagel`: repeated [text 64 causal | image 192 full], all earlier segments visible.
- `decoupled`: the same segments, where text sees text only.
- `causal`: one segment.
- `quickstart`: rows of many short samples, as the quickstart trains on (B 16, H 3, D 32).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from sensorium.ops import Layout, Segment

LAYOUTS = ("showo2", "bagel", "decoupled", "causal")
SIZES = (512, 2048, 4096, 8192)
#: Widths that are measured at every size, and those that are measured at one.
WIDTHS, OTHER_WIDTHS = (64, 128), (32, 48, 80)
OTHER_SIZE = 2048
PASSES = ("forward", "both")
#: Elements of a token over all heads: eight heads of 64, four of 128.
MODEL_WIDTH = 512
#: Text and image of `bagel` and `decoupled`.
TEXT, IMAGE = 64, 192
#: A sample of `quickstart`.
SAMPLE = (("causal", 6), ("full", 16), ("full", 16))
SAMPLE_TOKENS = sum(length for _, length in SAMPLE)
#: Queries at a time of the results in float64.
BLOCK = 512


@dataclass(frozen=True)
class Case:
    """A layout, a number of tokens, a width and a pass."""

    layout_name: str
    tokens: int
    width: int
    passes: str

    @property
    def name(self) -> str:
        """What it is called in tables and results."""
        return f"{self.passes} {self.layout_name} N={self.tokens} D={self.width}"

    @property
    def batch(self) -> int:
        """Rows of tokens."""
        return 16 if self.layout_name == "quickstart" else 1

    @property
    def heads(self) -> int:
        """Heads of queries, and of keys."""
        return 3 if self.layout_name == "quickstart" else MODEL_WIDTH // self.width

    @cached_property
    def layout(self) -> Layout:
        """What sees what."""
        n = self.tokens
        if self.layout_name == "showo2":
            return Layout([Segment("causal", n // 4), Segment("full", n - n // 4)])
        if self.layout_name == "causal":
            return Layout([Segment("causal", n)])
        if self.layout_name == "quickstart":
            sample = [Segment(inner, length) for inner, length in SAMPLE]
            return Layout.packed([sample] * (n // SAMPLE_TOKENS))
        segments = [Segment("causal", TEXT), Segment("full", IMAGE)] * (n // (TEXT + IMAGE))
        if self.layout_name == "bagel":
            return Layout(segments)
        earlier = np.tri(len(segments), k=-1, dtype=bool)
        text = np.arange(len(segments)) % 2 == 0
        return Layout(segments, visible=earlier & (text[None, :] | ~text[:, None]))

    @cached_property
    def arrays(self) -> list[np.ndarray]:
        """``q``, ``k``, ``v`` and ``grad_out``, ``(B, H, N, D)``."""
        rng = np.random.default_rng(0)
        shape = (self.batch, self.heads, self.tokens, self.width)
        return [rng.standard_normal(shape, np.float32) for _ in range(4)]

    @property
    def flops(self) -> int:
        """Over the visible pairs: 4 D a pair forward, 10 D backward."""
        each = 4 if self.passes == "forward" else 14
        return each * self.width * self.layout.pairs * self.batch * self.heads

    @cached_property
    def truth(self) -> list[np.ndarray]:
        """``out``, or ``dq``, ``dk`` and ``dv``, of the last head in float64, by blocks of queries."""
        q, k, v, grad_out = (x[-1, -1].astype(np.float64) for x in self.arrays)
        visible, scale = self.layout.dense(), self.width**-0.5
        out, dq, dk, dv = (np.zeros_like(q) for _ in range(4))
        for start in range(0, self.tokens, BLOCK):
            rows = slice(start, start + BLOCK)
            p = np.where(visible[rows], scale * (q[rows] @ k.T), -np.inf)
            p = np.exp(p - p.max(axis=-1, keepdims=True))
            p /= p.sum(axis=-1, keepdims=True)
            out[rows] = p @ v
            if self.passes == "both":
                dv += p.T @ grad_out[rows]
                delta = (grad_out[rows] * out[rows]).sum(axis=-1, keepdims=True)
                ds = scale * p * (grad_out[rows] @ v.T - delta)
                dq[rows] = ds @ k
                dk += ds.T @ q[rows]
        return [out] if self.passes == "forward" else [dq, dk, dv]

    def error(self, results: list[Any]) -> float:
        """Largest distance of any element to the result in float64, in units of the largest element.

        Raises
        ------
        AssertionError
            Where that is more than rounding explains.
        """
        assert len(results) == len(self.truth)
        worst = 0.0
        for got, want in zip(results, self.truth, strict=True):
            distance = np.abs(np.asarray(got)[-1, -1] - want).max() / np.abs(want).max()
            assert distance < 2e-5, f"{self.name}: off by {distance:.1e} of the largest element"
            worst = max(worst, float(distance))
        return worst


def cases(full: bool) -> list[Case]:
    """All of them, or a few that show the rest."""
    sizes, widths = (SIZES, WIDTHS) if full else ((512, 2048), (64,))
    shapes = [(name, n, d) for d in widths for name in LAYOUTS for n in sizes]
    if full:
        shapes += [(name, OTHER_SIZE, d) for d in OTHER_WIDTHS for name in LAYOUTS]
    shapes.append(("quickstart", 4 * SAMPLE_TOKENS, 32))
    return [Case(*shape, passes) for shape in shapes for passes in PASSES]
