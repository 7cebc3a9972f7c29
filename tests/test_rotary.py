"""Rotary embeddings against complex numbers, and the laws that they obey."""

import re

import ml_dtypes
import numpy as np
import pytest
import sensorium
from autograd.test_util import check_grads
from hypothesis import given
from hypothesis import strategies as st
from sensorium import _core, autodiff
from sensorium.ops import (
    Layout,
    Rotary,
    Segment,
    attention,
    attention_backward,
    rotary,
    self_attention,
    self_attention_backward,
)
from sensorium.ops.rotary import _tables
from strategies import FORMS, in_form


def turned(x, how, positions=None, inverse=False):
    """Features as complex numbers, times ``e^(i angle)``, in float64."""
    x = np.array(x, dtype=np.float64)
    tokens, features = x.shape[-2:]
    width = features if how.width is None else how.width
    half = width // 2
    positions = np.arange(tokens) if positions is None else np.asarray(positions, dtype=np.float64)
    # (B or 1, heads, tokens, pairs)
    if positions.ndim == 1:
        positions = positions[None]
    if positions.ndim == 2:
        positions = positions[:, :, None]
    angles = how.scale * positions * how.base ** (-2 * np.arange(half) / max(width, 1))
    angles = angles.reshape(len(positions), *[1] * (x.ndim - 3), tokens, half) if x.ndim > 2 else angles[0]
    first = slice(0, width, 2) if how.interleaved else slice(0, half)
    second = slice(1, width, 2) if how.interleaved else slice(half, width)
    points = (x[..., first] + 1j * x[..., second]) * np.exp((-1j if inverse else 1j) * angles)
    x[..., first], x[..., second] = points.real, points.imag
    return x


def bound(x, how, dtype):
    """Half a step for each table entry, product and sum, of two terms; and half a step of what is stored."""
    x = np.abs(np.array(x, dtype=np.float64))
    width = x.shape[-1] if how.width is None else how.width
    largest = x[..., :width].max(axis=-1, initial=0.0, keepdims=True)
    arithmetic = 4 * np.finfo(np.float64 if dtype == np.float64 else np.float32).eps * largest
    storage = np.finfo(dtype).eps / 2 * 1.5 * largest if np.dtype(dtype).itemsize == 2 else 0.0
    least = np.finfo(np.float16).smallest_subnormal if dtype == np.float16 else 0.0
    return arithmetic + storage + least


rotaries = st.builds(
    lambda base, interleaved, scale: Rotary(base, None, interleaved, scale),
    st.sampled_from([10_000.0, 500_000.0, 7.5, 0.5]),
    st.booleans(),
    st.sampled_from([1.0, 0.25, 3.7]),
)


@st.composite
def cases(draw):
    how = draw(rotaries)
    features = draw(st.one_of(st.sampled_from([2, 32, 64, 128]), st.integers(0, 70)))
    width = draw(st.one_of(st.none(), st.integers(0, features // 2).map(lambda pairs: 2 * pairs)))
    if features % 2 and width is None:
        width = features - 1
    how = Rotary(how.base, width, how.interleaved, how.scale)
    batch, heads, tokens = draw(st.sampled_from([(1, 1, 1), (2, 3, 5), (3, 1, 70), (1, 2, 0), (0, 2, 3)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pairs = (features if width is None else width) // 2
    shape = draw(st.sampled_from([None, (tokens,), (1, tokens), (batch, tokens), (batch, tokens, pairs)]))
    positions = None if shape is None else rng.integers(-50, 1000, size=shape)
    if positions is not None and draw(st.booleans()):
        positions = positions * 0.37
    dtype = draw(st.sampled_from([np.float32, np.float64, np.float16]))
    x = rng.normal(size=(batch, heads, tokens, features)).astype(dtype)
    return in_form(x, draw(st.sampled_from(FORMS))), how, positions


@given(cases(), st.booleans())
def test_agrees_with_complex_numbers(case, inverse):
    x, how, positions = case
    before = x.copy()
    got = rotary(x, how, positions, inverse=inverse)
    assert got.dtype == x.dtype.newbyteorder("=")
    assert got.shape == x.shape
    want = turned(x, how, positions, inverse)
    assert np.all(np.abs(got - want) <= bound(x, how, got.dtype))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("level", _core.isa_available())
@pytest.mark.parametrize("interleaved", [False, True])
def test_agrees_at_every_instruction_set(level, interleaved):
    rng = np.random.default_rng(0)
    how = Rotary(width=50, interleaved=interleaved)
    before = _core.isa_level()
    try:
        assert _core.set_isa(level) == level
        for dtype in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):
            x = rng.normal(size=(2, 3, 21, 55)).astype(dtype)
            got = rotary(x, how)
            assert got.dtype == x.dtype
            limit = 2.0**-8 * 3 * np.abs(x.astype(float)).max() if dtype is ml_dtypes.bfloat16 else None
            limit = bound(x, how, dtype) if limit is None else limit
            assert np.all(np.abs(got.astype(np.float64) - turned(x, how)) <= limit)
            np.testing.assert_array_equal(got[..., 50:], x[..., 50:])
    finally:
        _core.set_isa(before)


def test_known_values():
    # At position 1 the first pair turns by one radian, at position 2 by two; the second by a hundredth of that.
    x = np.array([[[1.0, 2.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]]])
    c, s = np.cos([1.0, 0.01]), np.sin([1.0, 0.01])
    want = [[[1.0, 2.0, 0.0, 0.0], [c[0], -s[1], s[0], c[1]]]]
    np.testing.assert_allclose(rotary(x), want, rtol=0, atol=1e-15)
    want = [[[1.0, 2.0, 0.0, 0.0], [c[0], s[0], -s[1], c[1]]]]
    np.testing.assert_allclose(rotary(x, Rotary(interleaved=True)), want, rtol=0, atol=1e-15)
    # Two positions of which the second is twice as far, or a scale of two: the same.
    np.testing.assert_array_equal(rotary(x, positions=[0, 2]), rotary(x, Rotary(scale=2.0)))
    np.testing.assert_array_equal(rotary(x, Rotary(width=0)), x)


@given(rotaries, st.integers(0, 2**32 - 1))
def test_scores_depend_on_distances_alone(how, seed):
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(2, 16))
    i, j, shift = rng.integers(0, 5000, size=3)

    def score(a, b):
        at = [rotary(x[None], how, np.array([p]))[0] for x, p in ((q, a), (k, b))]
        return at[0] @ at[1]

    # Angles of up to 10,000 radians have 12 digits left.
    assert score(i, j) == pytest.approx(score(i + shift, j + shift), abs=1e-9)


@given(cases())
def test_a_rotation_keeps_lengths_and_has_an_inverse(case):
    x, how, positions = case
    x = x.astype(np.float64)
    got = rotary(x, how, positions)
    np.testing.assert_allclose((got**2).sum(axis=-1), (x**2).sum(axis=-1), rtol=1e-13)
    np.testing.assert_allclose(rotary(got, how, positions, inverse=True), x, rtol=0, atol=1e-14)


def test_angles_are_exact_far_out():
    # In float32 the angle at this position is a multiple of 0.0078.
    position, x = 100_001.0, np.array([[1.0, 0.0]], dtype=np.float32)
    got = rotary(x, positions=[position])
    np.testing.assert_allclose(got, [[np.cos(position), np.sin(position)]], rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 8), (2, 3, 5, 8), (2, 3, 2, 5, 8)])
def test_any_number_of_dimensions(shape):
    x = np.random.default_rng(0).normal(size=shape)
    np.testing.assert_allclose(rotary(x), turned(x, Rotary()), rtol=0, atol=1e-14)
    if len(shape) > 2:
        swapped = np.random.default_rng(0).normal(size=(*shape[:-3], 5, *shape[-3:-2], 8)).swapaxes(-2, -3)
        got = rotary(swapped)
        np.testing.assert_allclose(got, turned(swapped, Rotary()), rtol=0, atol=1e-14)
        positions = np.random.default_rng(1).normal(size=(shape[0], 5))
        got = rotary(x, positions=positions)
        np.testing.assert_allclose(got, turned(x, Rotary(), positions), rtol=0, atol=1e-14)


def test_an_image_of_one_position_and_positions_of_time_height_and_width():
    x = np.random.default_rng(0).normal(size=(1, 2, 9, 12))
    at = [0, 1, 2, 2, 2, 2, 2, 2, 3]
    got = rotary(x, positions=at)
    same = rotary(np.repeat(x[:, :, 2:3], 6, axis=2), positions=[2] * 6)
    np.testing.assert_array_equal(rotary(x[:, :, 2:8], positions=at[2:8]), got[:, :, 2:8])
    assert np.all(same == same[:, :, :1])
    # Pairs 0 and 1 turn by time, 2 and 3 by height, 4 and 5 by width.
    time, height, width = np.random.default_rng(1).integers(0, 9, size=(3, 9))
    by_pair = np.repeat(np.stack([time, height, width], axis=-1), 2, axis=-1)[None]
    got = rotary(x, positions=by_pair)
    for axis, values in enumerate((time, height, width)):
        whole = rotary(x, positions=values)
        for pair in (2 * axis, 2 * axis + 1):
            np.testing.assert_array_equal(got[..., [pair, 6 + pair]], whole[..., [pair, 6 + pair]])


def test_memory_of_the_result_is_like_that_of_the_input():
    qkv = np.random.default_rng(0).normal(size=(2, 6, 3, 4, 8)).astype(np.float32)
    q = qkv.transpose(2, 0, 3, 1, 4)[0]
    assert rotary(q).transpose(0, 2, 1, 3).flags.c_contiguous
    assert rotary(np.ascontiguousarray(q)).flags.c_contiguous


def test_gradient():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 8))
    for how in (None, Rotary(width=4, interleaved=True)):
        for inverse in (False, True):
            check_grads(
                lambda x, how=how, inverse=inverse: autodiff.rotary(x, how, inverse=inverse),
                modes=["rev"],
                order=1,
            )(x)
    positions = np.arange(10.0).reshape(2, 5)
    check_grads(lambda x: autodiff.rotary(x, positions=positions), modes=["rev"], order=1)(x)


def test_tables_are_kept_but_not_for_ever():
    x = np.zeros((1, 64), dtype=np.float32)
    rotary(x, Rotary(base=123.0))
    key = (Rotary(base=123.0), 64, np.dtype(np.float32), 64)
    kept = _tables.find(key)
    assert kept is not None
    rotary(x, Rotary(base=123.0))
    assert _tables.find(key) is kept
    before, _tables.MOST = _tables.MOST, 3 * kept.nbytes
    try:
        for base in (11.0, 12.0, 13.0):
            rotary(x, Rotary(base=base))
        assert _tables.find(key) is None
        assert sum(table.nbytes for table in _tables._tables.values()) <= 3 * kept.nbytes
    finally:
        _tables.MOST = before
    np.testing.assert_array_equal(rotary(x + 1, positions=np.arange(1)), rotary(x + 1))


X = np.zeros((2, 3, 5, 8), dtype=np.float32)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Rotary(base=0.0), sensorium.ArgumentError, "base must be above 0, not 0"),
        (lambda: Rotary(base="big"), sensorium.DTypeError, "base must be a number, not str"),
        (lambda: Rotary(scale=np.inf), sensorium.ArgumentError, "scale must be finite, not inf"),
        (lambda: Rotary(width=3), sensorium.ArgumentError, "width must be even, not 3"),
        (lambda: Rotary(width=-2), sensorium.ArgumentError, "width must be at least 0, not -2"),
        (lambda: Rotary(width=2.0), sensorium.DTypeError, "width must be an integer, not float"),
        (lambda: Rotary(interleaved=1), sensorium.DTypeError, "interleaved must be a bool, not int"),
        (lambda: rotary(X, 10_000.0), sensorium.DTypeError, "rotary must be a Rotary, not float"),
        (lambda: rotary(X[0, 0, 0]), sensorium.ShapeError,
         "x has shape (8,), expected 2 dimensions or more (..., N, D)"),
        (lambda: rotary(X.astype(int)), sensorium.DTypeError,
         "x has dtype int64, expected float32, float64, float16 or bfloat16"),
        (lambda: rotary(X[..., :7]), sensorium.ArgumentError, "x has D=7: rotary needs a width, which is even"),
        (lambda: rotary(X, Rotary(width=10)), sensorium.ArgumentError, "rotary has width 10, more than D=8 of x"),
        (lambda: rotary(X, positions=np.zeros(4)), sensorium.ShapeError,
         "positions has shape (4,), expected (5,), (2, 5) or (2, 5, 4)"),
        (lambda: rotary(X, positions=np.zeros(6)), sensorium.ShapeError, "positions has N=6 but x has N=5"),
        (lambda: rotary(X, positions=np.zeros((3, 5))), sensorium.ShapeError,
         "positions has shape (3, 5), expected (5,), (2, 5) or (2, 5, 4)"),
        (lambda: rotary(X, positions=[True] * 5), sensorium.DTypeError,
         "positions has dtype bool, expected integers or floats"),
        (lambda: rotary(X, positions=[0, 1, 2, np.nan, 4]), sensorium.ArgumentError, "positions must be finite"),
    ],
)  # fmt: skip
def test_errors(make, error, words):
    with pytest.raises(error, match=f"^{re.escape(words)}$"):
        make()


@st.composite
def turned_calls(draw):
    """Attention with a rotary embedding over part of a row or all of it."""
    features = draw(st.sampled_from([8, 24, 50]))
    width = draw(st.sampled_from([None, 4, features - features % 4]))
    how = draw(rotaries)
    how = Rotary(how.base, width, how.interleaved, how.scale)
    layout = Layout([Segment("causal", 20), Segment("full", 50), Segment("causal", 13)])
    whole = draw(st.booleans())
    window = None if whole else (draw(st.integers(0, 40)), 43, 0, draw(st.integers(60, 83)))
    query, queries, key, keys = window or (0, 83, 0, 83)
    dtype = draw(st.sampled_from([np.float32, np.float64, np.float16, ml_dtypes.bfloat16]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    q, g = rng.normal(size=(2, 2, 4, queries, features)).astype(dtype)
    k, v = rng.normal(size=(2, 2, 2, keys, features)).astype(dtype)
    positions = draw(st.sampled_from(["none", "row", "batch", "pairs"]))
    shape = {"row": (83,), "batch": (2, 83), "pairs": (2, 83, (features if width is None else width) // 2)}
    positions = None if positions == "none" else rng.integers(0, 500, size=shape[positions])
    offsets = {} if whole else {"query_offset": query, "key_offset": key}
    return (q, k, v, g), layout, how, positions, offsets


@given(turned_calls())
def test_attention_turns_what_it_reads(case):
    """The bits of attention over what :func:`rotary` made, where that is not rounded to half precision between."""
    (q, k, v, g), layout, how, positions, offsets = case
    out, lse = attention(q, k, v, layout, rotary=how, positions=positions, **offsets)
    options = {"rotary": how, "positions": positions, **offsets}
    grads = attention_backward(g, q, k, v, out, lse, layout, **options)
    wide = np.float32 if q.dtype.itemsize == 2 else q.dtype
    at = np.arange(83) if positions is None else positions
    tokens = slice(offsets.get("query_offset", 0), offsets.get("query_offset", 0) + q.shape[2])
    at_q = at[tokens] if at.ndim == 1 else at[:, tokens]
    at_k = at[: k.shape[2]] if at.ndim == 1 else at[:, : k.shape[2]]
    wide_q, wide_k, wide_v, wide_g = (x.astype(wide) for x in (q, k, v, g))
    q_turned, k_turned = rotary(wide_q, how, at_q), rotary(wide_k, how, at_k)
    want, want_lse = attention(q_turned, k_turned, wide_v, layout, **offsets)
    np.testing.assert_array_equal(lse, want_lse)
    np.testing.assert_array_equal(out, want.astype(q.dtype))
    dq, dk, dv = attention_backward(
        wide_g, q_turned, k_turned, wide_v, out.astype(wide), lse, layout, **offsets
    )
    wants = (rotary(dq, how, at_q, inverse=True), rotary(dk, how, at_k, inverse=True), dv)
    for got, w in zip(grads, wants, strict=True):
        np.testing.assert_array_equal(got, w.astype(q.dtype))


def test_attention_depends_on_distances_alone():
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 1, 2, 30, 16))
    layout = Layout([Segment("causal", 30)])
    near, _ = attention(q, k, v, layout, rotary=Rotary())
    far, _ = attention(q, k, v, layout, rotary=Rotary(), positions=np.arange(30) + 4000)
    np.testing.assert_allclose(far, near, rtol=0, atol=1e-11)
    other, _ = attention(q, k, v, layout, rotary=Rotary(), positions=2 * np.arange(30))
    assert np.abs(other - near).max() > 0.01


def test_gradient_of_attention_that_turns():
    rng = np.random.default_rng(0)
    layout = Layout([Segment("causal", 4), Segment("full", 5)])
    q = rng.normal(size=(2, 2, 9, 6))
    k, v = rng.normal(size=(2, 2, 1, 9, 6))
    positions = rng.integers(0, 9, size=(2, 9))

    def call(q, k, v):
        return autodiff.attention(q, k, v, layout, rotary=Rotary(width=4), positions=positions)

    check_grads(call, modes=["rev"], order=1)(q, k, v)
    qkv = rng.normal(size=(2, 9, 3, 2, 6))
    check_grads(lambda x: autodiff.self_attention(x, layout, rotary=Rotary()), modes=["rev"], order=1)(qkv)


def test_packed_rows_restart_their_positions():
    rng = np.random.default_rng(0)
    qkv = rng.normal(size=(1, 25, 3, 2, 8)).astype(np.float32)
    parts = [Layout([Segment("causal", 10)]), Layout([Segment("full", 15)])]
    positions = np.concatenate([np.arange(10), np.arange(15)])
    how = {"rotary": Rotary(), "positions": positions}
    out, lse = self_attention(qkv, Layout.packed(parts), **how)
    grad = self_attention_backward(np.ones_like(out), qkv, out, lse, Layout.packed(parts), **how)
    for part, tokens in zip(parts, (slice(0, 10), slice(10, 25)), strict=True):
        alone, alone_lse = self_attention(qkv[:, tokens], part, rotary=Rotary())
        np.testing.assert_allclose(out[:, tokens], alone, rtol=0, atol=1e-6)
        back = self_attention_backward(
            np.ones_like(alone), qkv[:, tokens], alone, alone_lse, part, rotary=Rotary()
        )
        np.testing.assert_allclose(grad[:, tokens], back, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"rotary": 10_000.0}, sensorium.DTypeError, "rotary must be a Rotary, not float"),
        ({"positions": np.arange(5)}, sensorium.ArgumentError, "positions are for rotary, which is not given"),
        ({"rotary": Rotary(width=10)}, sensorium.ArgumentError, "rotary has width 10, more than D=8 of q"),
        ({"rotary": Rotary(), "positions": np.arange(4)}, sensorium.ShapeError,
         "positions has shape (4,), expected (5,), (2, 5) or (2, 5, 4)"),
        ({"rotary": Rotary(), "positions": np.zeros((3, 5))}, sensorium.ShapeError,
         "positions has shape (3, 5), expected (5,), (2, 5) or (2, 5, 4)"),
    ],
)  # fmt: skip
def test_errors_of_attention(how, error, words):
    layout = Layout([Segment("full", 5)])
    q = np.zeros((2, 3, 5, 8), dtype=np.float32)
    with pytest.raises(error, match=f"^{re.escape(words)}$"):
        attention(q, q, q, layout, **how)
    with pytest.raises(error, match=f"^{re.escape(words)}$"):
        attention_backward(q, q, q, q, q, q[..., 0], layout, **how)
    qkv = np.zeros((2, 5, 3, 3, 8), dtype=np.float32)
    with pytest.raises(error, match=f"^{re.escape(words)}$"):
        self_attention(qkv, layout, **how)
