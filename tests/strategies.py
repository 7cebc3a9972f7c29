"""Whole cases for property tests. Values come from a seeded generator, so that shrinking finds the smallest shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from sensorium.ops import Layout, Segment

INNER = ["none", "diagonal", "causal", "full"]


@st.composite
def segments(draw, *, max_segments=6, max_length=60):
    """Segments of one sample; may be empty."""
    longest = draw(st.sampled_from([3, 17, max_length]))
    one = st.builds(
        Segment,
        st.sampled_from(INNER),
        st.integers(1, longest),
        hidden=st.booleans(),
        anchor=st.booleans(),
    )
    return draw(st.lists(one, max_size=max_segments))


@st.composite
def samples(draw, **sizes):
    """``(segments, window, visible)``; at most one of the last two is given."""
    parts = draw(segments(**sizes))
    kind = draw(st.sampled_from(["rules", "window", "visible"]))
    window = draw(st.integers(0, 3)) if kind == "window" else None
    visible = None
    if kind == "visible":
        row = st.lists(st.booleans(), min_size=len(parts), max_size=len(parts))
        visible = draw(st.lists(row, min_size=len(parts), max_size=len(parts)))
    return parts, window, visible


@dataclass
class Row:
    """A layout, and the samples that it was made of."""

    layout: Layout
    samples: list

    def __repr__(self):
        return repr(self.layout)


@st.composite
def layouts(draw, **sizes):
    """A layout of one to three samples."""
    parts = draw(st.lists(samples(**sizes), min_size=1, max_size=3))
    made = [
        Layout(s, w, None if v is None else np.array(v, dtype=bool).reshape(len(s), len(s)))
        for s, w, v in parts
    ]
    layout = made[0] if len(made) == 1 else Layout.packed(made)
    return Row(layout, parts)


FORMS = ["contiguous", "packed", "strided", "reversed", "read-only", "byte-swapped", "fortran", "unaligned"]


def in_form(array, form):
    """The same numbers, held in memory in another way."""
    batch, heads, tokens, width = array.shape
    if form == "packed":
        packed = np.zeros((batch, tokens, 3, heads, width), dtype=array.dtype)
        packed[:, :, 1] = array.transpose(0, 2, 1, 3)
        return packed[:, :, 1].transpose(0, 2, 1, 3)
    if form == "strided":
        wide = np.zeros((batch, heads, 2 * tokens, width + 3), dtype=array.dtype)
        wide[:, :, ::2, 1 : 1 + width] = array
        return wide[:, :, ::2, 1 : 1 + width]
    if form == "reversed":
        return array[:, :, ::-1].copy()[:, :, ::-1]
    if form == "read-only":
        array = array.copy()
        array.flags.writeable = False
        return array
    if form == "byte-swapped":
        return array.astype(array.dtype.newbyteorder())
    if form == "fortran":
        return np.asfortranarray(array)
    if form == "unaligned":
        buffer = np.zeros(array.nbytes + 1, dtype=np.uint8)
        view = buffer[1:].view(array.dtype).reshape(array.shape)
        view[...] = array
        return view
    return array


@dataclass
class Attention:
    """A whole call of attention."""

    row: Row
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    grad_out: np.ndarray
    scale: float | None
    about: str

    @property
    def layout(self):
        return self.row.layout

    def __repr__(self):
        return (
            f"{self.about} q{self.q.shape} k{self.k.shape} {self.q.dtype} scale={self.scale} {self.layout!r}"
        )


@st.composite
def attentions(draw, *, dtypes=(np.float32, np.float64), **sizes):
    """A layout, and arrays that fit it."""
    row = draw(layouts(**sizes))
    tokens = row.layout.length
    batch, kv_heads = draw(st.sampled_from([1, 2, 0])), draw(st.integers(1, 2))
    heads = kv_heads * draw(st.integers(1, 3))
    width = draw(st.one_of(st.sampled_from([1, 8, 16, 24, 32, 64]), st.integers(0, 130)))
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    magnitude = draw(st.sampled_from([1.0, 1e-3, 4.0, 60.0]))
    scale = draw(st.sampled_from([None, 0.25, 1.0, -0.3, 0.0]))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    arrays = []
    forms = []
    for heads_of in (heads, kv_heads, kv_heads, heads):
        values = rng.normal(scale=magnitude, size=(batch, heads_of, tokens, width)).astype(dtype)
        forms.append(draw(st.sampled_from(FORMS)))
        arrays.append(in_form(values, forms[-1]))
    q, k, v, grad_out = arrays
    return Attention(row, q, k, v, grad_out, scale, f"seed {seed}, forms {forms}")
