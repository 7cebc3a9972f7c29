"""The gated linear recurrence against its float64 reference and against filters, with bounds that are derived.

A step rounds once, by u |h|, and what an earlier one lost goes through the same gates as h does. So after t steps the
loss is at most t u M, M being the recurrence over magnitudes. A product over a chunk of n tokens and what it ends with
from zero take n roundings each: t + 2 n + 2 in all.
"""

import itertools
from dataclasses import dataclass

import autograd
import numpy as np
import pytest
import scipy.signal
import sensorium
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from reference import linear_scan as reference
from sensorium import autodiff, ops
from sensorium.errors import ArgumentError, DTypeError, ShapeError

CHUNK = 4096


@dataclass
class Case:
    a: np.ndarray
    x: np.ndarray
    initial_state: np.ndarray | None
    grad_out: np.ndarray
    grad_last_state: np.ndarray
    how: dict

    def __repr__(self):
        return f"a{self.a.shape} {self.a.dtype} initial={self.initial_state is not None} {self.how}"


@st.composite
def cases(draw, dtypes=(np.float32, np.float64)):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    B, D = draw(st.sampled_from([1, 2, 3, 0])), draw(st.sampled_from([1, 3, 8, 17, 40, 70, 0]))
    L = draw(st.one_of(st.integers(0, 40), st.just(300)))
    channels_last, packing = draw(st.booleans()), draw(st.sampled_from(["none", "ids", "lengths"]))
    how = {"channels_last": channels_last, "reverse": draw(st.booleans())}
    states = B
    if packing == "ids":
        how["seq_idx"] = np.cumsum(rng.random((B, L)) < rng.choice([0.01, 0.2, 0.9]), axis=1)
    elif packing == "lengths":
        B, states = 1, draw(st.integers(1, 6))
        how["cu_seqlens"] = np.array([0, *sorted(rng.integers(0, L + 1, states - 1)), L])
    shape = (B, L, D) if channels_last else (B, D, L)
    dtype = draw(st.sampled_from(dtypes))
    gates = draw(st.sampled_from(["decay", "any", "zeros", "growth"]))
    a = rng.uniform(0, 1, shape)
    if gates == "any":
        a = rng.normal(size=shape, scale=0.7)
    elif gates == "zeros":
        a *= rng.random(shape) < 0.7
    elif gates == "growth":
        a = -1 - a / 50
    arrays = [a, rng.normal(size=shape), rng.normal(size=shape)]
    a, x, grad = (v.astype(dtype) for v in arrays)
    if draw(st.booleans()):
        a, x = a[:, :, ::-1].copy()[:, :, ::-1], x.astype(x.dtype.newbyteorder())
        a.flags.writeable = x.flags.writeable = False
    state, grad_last = rng.normal(size=(2, states, D)).astype(dtype)
    return Case(a, x, state if draw(st.booleans()) else None, grad, grad_last, how)


def bound(dtype, steps, size):
    return 1.5 * (steps + 4) * np.finfo(dtype).eps / 2 * size + np.finfo(dtype).tiny


def close(got, want, slack):
    assert got.shape == want.shape
    excess = np.abs(got - want) - slack
    assert not np.isnan(excess).any()
    assert (excess <= 0).all(), f"worst excess {excess.max():.3g}"


def agree(case):
    L = case.x.shape[1 if case.how["channels_last"] else 2]
    dtype = case.grad_out.dtype
    size = [
        np.abs(case.a),
        np.abs(case.x),
        None if case.initial_state is None else np.abs(case.initial_state),
    ]
    h, last = ops.gated_linear_scan(case.a, case.x, case.initial_state, True, **case.how)
    want, want_last = reference.gated_linear_scan(case.a, case.x, case.initial_state, True, **case.how)
    most, most_last = reference.gated_linear_scan(*size, True, **case.how)
    assert h.dtype == last.dtype == dtype
    close(h, want, bound(dtype, 2 * L, most))
    close(last, want_last, bound(dtype, 2 * L, most_last))
    grads = ops.gated_linear_scan_backward(
        case.grad_out, case.a, case.x, case.initial_state, grad_last_state=case.grad_last_state, **case.how
    )
    want = reference.gated_linear_scan_backward(
        case.grad_out, case.a, case.x, case.initial_state, grad_last_state=case.grad_last_state, **case.how
    )
    most = reference.gated_linear_scan_backward(
        np.abs(case.grad_out), *size, grad_last_state=np.abs(case.grad_last_state), **case.how
    )
    for one, ref, top in zip(grads, want, most, strict=True):
        assert (one is None) == (ref is None)
        if one is not None:
            assert one.dtype == dtype
            close(one, ref, bound(dtype, 4 * L, top))


@given(case=cases())
def test_agrees_with_the_reference(case):
    agree(case)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=8)
@given(data=st.data())
def test_agrees_at_every_level(dtype, data):
    agree(data.draw(cases((dtype,))))


def long(rng, *shape, dtype=np.float32, least=0.9):
    a, x = rng.uniform(least, 1, shape), rng.normal(size=shape)
    return a.astype(dtype), x.astype(dtype)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_long_sequences_of_few_channels_agree(channels_last, reverse):
    """Chunks of time: the product of each, what it ends with, and the state carried."""
    rng = np.random.default_rng(0)
    L = 2 * CHUNK + 77
    a, x = long(rng, *((1, L, 3) if channels_last else (1, 3, L)))
    a[:, -1] *= -1
    state = np.float32([[1.0, -2.0, 3.0]])
    agree(Case(a, x, state, x[::-1].copy(), state, {"channels_last": channels_last, "reverse": reverse}))


@pytest.mark.parametrize("length", [50, 3 * CHUNK + 5])
def test_a_constant_gate_is_a_filter(length):
    rng = np.random.default_rng(1)
    x, state = rng.normal(size=(2, 2, length)), rng.normal(size=(2, 2))
    for gate in (0.95, -0.5, 0.0, 1.0):
        want, last = scipy.signal.lfilter([1.0], [1.0, -gate], x, zi=gate * state[..., None])
        h, end = ops.gated_linear_scan(np.full_like(x, gate), x, state, True)
        np.testing.assert_allclose(h, want, rtol=1e-12, atol=1e-11)
        np.testing.assert_allclose(gate * end, last[..., 0], rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("channels_last", [False, True])
def test_cutting_anywhere_with_the_state_carried_changes_no_bit(channels_last):
    rng = np.random.default_rng(2)
    shape, axis = ((2, 40, 70), 1) if channels_last else ((2, 70, 40), 2)
    a, x = long(rng, *shape)
    how = {"channels_last": channels_last}
    state = rng.normal(size=(2, 70)).astype(np.float32)
    whole, last = ops.gated_linear_scan(a, x, state, True, **how)
    back = ops.gated_linear_scan(a, x, state, reverse=True, **how)
    for cut in range(0, 41, 3):
        (a0, a1), (x0, x1) = np.split(a, [cut], axis), np.split(x, [cut], axis)
        h0, carried = ops.gated_linear_scan(a0, x0, state, True, **how)
        h1, end = ops.gated_linear_scan(a1, x1, carried, True, **how)
        assert_array_equal(np.concatenate([h0, h1], axis), whole)
        assert_array_equal(end, last)
        h1, carried = ops.gated_linear_scan(a1, x1, state, True, reverse=True, **how)
        h0 = ops.gated_linear_scan(a0, x0, carried, reverse=True, **how)
        assert_array_equal(np.concatenate([h0, h1], axis), back)


def test_cutting_a_sequence_that_is_scanned_in_chunks_stays_within_the_bound():
    rng = np.random.default_rng(3)
    a, x = long(rng, 1, 2, 5 * CHUNK, least=0.999)
    whole = ops.gated_linear_scan(a, x)
    most = ops.gated_linear_scan(a.astype(float), np.abs(x).astype(float))
    for cut in (1, CHUNK - 1, 2 * CHUNK + 500):
        h0, carried = ops.gated_linear_scan(a[:, :, :cut], x[:, :, :cut], None, True)
        h1 = ops.gated_linear_scan(a[:, :, cut:], x[:, :, cut:], carried)
        steps = 2 * (np.arange(5 * CHUNK) + 2 * CHUNK + 2)
        close(np.concatenate([h0, h1], 2), whole, steps * np.finfo(np.float32).eps / 2 * most)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(1, 300, 900), (1, 1, 70_000), (1, 20, 20_000)])
def test_threads_do_not_change_a_bit(shape, channels_last):
    rng = np.random.default_rng(4)
    B, D, L = shape
    a, x = long(rng, *((B, L, D) if channels_last else shape))
    results = []
    for n in (1, 2, 5):
        with sensorium.num_threads(n):
            h = ops.gated_linear_scan(a, x, channels_last=channels_last)
            grads = ops.gated_linear_scan_backward(x, a, x, h=h, channels_last=channels_last)
            results.append([h, grads.a, grads.x])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert_array_equal(one, two)


@pytest.mark.parametrize("channels_last", [False, True])
def test_chunks_whose_products_leave_the_numbers_are_scanned_token_by_token(channels_last):
    """Gates above one: the product of a chunk overflows, where what it multiplies is zero or small."""
    L = 3 * CHUNK
    a, x = np.full((1, 2, L), 1.05, np.float32), np.zeros((1, 2, L), np.float32)
    x[0, 1, -50] = 1.0
    a[0, 0, CHUNK + 7] = 0.0
    state = np.float32([[1e-35, 0.0]])
    if channels_last:
        a, x = a.swapaxes(1, 2), x.swapaxes(1, 2)
    h = ops.gated_linear_scan(a, x, state, channels_last=channels_last)
    h = h.swapaxes(1, 2) if channels_last else h
    assert np.isfinite(h[0, 1]).all()
    assert_array_equal(h[0, 1, : L - 50], 0)
    np.testing.assert_allclose(h[0, 1, L - 50 :], 1.05 ** np.arange(50), rtol=1e-5)
    grown = 1e-35 * 1.05 ** np.arange(1.0, 3600.0)
    finite = grown < 1e38
    np.testing.assert_allclose(h[0, 0, : finite.sum()], grown[finite], rtol=CHUNK * 1e-7)
    assert (h[0, 0, finite.sum() + 30 : CHUNK + 7] == np.inf).all()
    assert np.isnan(h[0, 0, CHUNK + 7 :]).all()  # Infinity times the gate that is zero.


@pytest.mark.parametrize("L", [30, 3 * CHUNK])
def test_a_nan_stays_in_its_channel_and_what_follows(L):
    rng = np.random.default_rng(5)
    a, x = long(rng, 1, 3, L)
    clean = ops.gated_linear_scan(a, x)
    x[0, 1, 10] = np.nan
    h = ops.gated_linear_scan(a, x)
    assert np.isnan(h[0, 1, 10:]).all()
    h[0, 1, 10:] = clean[0, 1, 10:]
    assert_array_equal(h, clean)


def test_a_million_tokens():
    rng = np.random.default_rng(6)
    a, x = long(rng, 1, 1, 1_000_000, dtype=np.float64)
    h = ops.gated_linear_scan(a, x)
    # A token's own neighbourhood decides it: what is 20,000 tokens back has decayed by e^-1000.
    for end in (25_000, 500_001, 1_000_000):
        near = reference.gated_linear_scan(a[:, :, end - 20_000 : end], x[:, :, end - 20_000 : end])
        np.testing.assert_allclose(h[0, 0, end - 1], near[0, 0, -1], rtol=1e-11)


@settings(max_examples=10)
@given(case=cases((np.float64,)), seed=st.integers(0, 2**32 - 1))
def test_gradients_along_a_random_direction(case, seed):
    rng = np.random.default_rng(seed)
    inputs = [np.asarray(case.a, float), np.asarray(case.x, float), case.initial_state]
    ways = [None if v is None else rng.normal(size=v.shape) for v in inputs]

    def value(step):
        moved = [None if v is None else v + step * way for v, way in zip(inputs, ways, strict=True)]
        h, last = ops.gated_linear_scan(*moved, True, **case.how)
        return (h * case.grad_out).sum() + (last * case.grad_last_state).sum()

    grads = ops.gated_linear_scan_backward(
        case.grad_out, *inputs, grad_last_state=case.grad_last_state, **case.how
    )
    size = [np.abs(v) for v in inputs if v is not None]
    most = reference.gated_linear_scan_backward(
        np.abs(case.grad_out),
        *size[:2],
        size[2] if len(size) > 2 else None,
        grad_last_state=np.abs(case.grad_last_state),
        **case.how,
    )
    pairs = zip(grads, ways, most, strict=True)
    products = [((g * w).sum(), (m * np.abs(w)).sum()) for g, w, m in pairs if g is not None]
    slope, size = (sum(p) for p in zip(*products, strict=True)) if products else (0.0, 0.0)
    h = 1e-4 / (1 + case.x.size**0.5)
    steps = [value(s * h) for s in (1, -1, 2, -2)]
    found = (8 * (steps[0] - steps[1]) - (steps[2] - steps[3])) / (12 * h)
    assert abs(found - slope) <= 1e-5 * (size + 1)


def test_autodiff_differentiates_both_results():
    rng = np.random.default_rng(7)
    a, x = long(rng, 2, 3, 9, dtype=np.float64)
    state, g = rng.normal(size=(2, 3)), rng.normal(size=(2, 3, 9))

    def loss(a, x, state, with_last, reverse):
        if not with_last:
            return autograd.numpy.sum(autodiff.gated_linear_scan(a, x, state, reverse=reverse) * g)
        h, last = autodiff.gated_linear_scan(a, x, state, True, reverse=reverse)
        return autograd.numpy.sum(h * g) + autograd.numpy.sum(last * last)

    for with_last, reverse in itertools.product((False, True), repeat=2):
        found = autograd.grad(loss, (0, 1, 2))(a, x, state, with_last, reverse)
        _, last = ops.gated_linear_scan(a, x, state, True, reverse=reverse)
        want = reference.gated_linear_scan_backward(
            g, a, x, state, grad_last_state=2 * last if with_last else None, reverse=reverse
        )
        for one, ref in zip(found, want, strict=True):
            np.testing.assert_allclose(one, ref, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (ShapeError, r"a has shape \(7,\), expected 3 dimensions \(B, D, L\)", {"a": np.zeros(7)}),
        (ShapeError, "x has L=6 but a has L=7", {"x": np.zeros((2, 3, 6))}),
        (DTypeError, "x has dtype float32 but a has float64", {"x": np.zeros((2, 3, 7), np.float32)}),
        (DTypeError, "a has dtype int64, expected float32 or float64", {"a": np.zeros((2, 3, 7), int)}),
        (
            ShapeError,
            r"initial_state has shape \(2, 4\), expected \(2, 3\)",
            {"initial_state": np.zeros((2, 4))},
        ),
        (ShapeError, r"seq_idx has shape \(7,\), expected \(2, 7\)", {"seq_idx": np.zeros(7, int)}),
        (ShapeError, "cu_seqlens needs a batch of 1, not 2", {"cu_seqlens": [0, 7]}),
        (
            ArgumentError,
            "seq_idx and cu_seqlens cannot both be given",
            {"seq_idx": np.zeros((2, 7), int), "cu_seqlens": [0, 7]},
        ),
    ],
)
def test_errors_name_the_argument(error, words, change):
    given = {"a": np.zeros((2, 3, 7)), "x": np.zeros((2, 3, 7)), **change}
    with pytest.raises(error, match=words):
        ops.gated_linear_scan(**given)
    with pytest.raises(error, match=words):
        ops.gated_linear_scan_backward(np.zeros((2, 3, 7)), **given)


def test_errors_of_gradients():
    a = np.zeros((2, 3, 7))
    with pytest.raises(ShapeError, match=r"grad_out has shape \(2, 3, 6\), expected \(2, 3, 7\)"):
        ops.gated_linear_scan_backward(a[:, :, :6], a, a)
    with pytest.raises(ShapeError, match=r"h has shape \(2, 3, 6\), expected \(2, 3, 7\)"):
        ops.gated_linear_scan_backward(a, a, a, h=a[:, :, :6])
    with pytest.raises(ShapeError, match=r"grad_last_state has shape \(3,\), expected \(2, 3\)"):
        ops.gated_linear_scan_backward(a, a, a, grad_last_state=a[0, :, 0])
