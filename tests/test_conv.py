"""Causal convolution against its float64 reference, with bounds that follow from the arithmetic."""

import itertools
from dataclasses import dataclass

import autograd
import numpy as np
import pytest
import sensorium
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from reference import conv as reference
from sensorium import autodiff, ops
from sensorium.errors import ArgumentError, DTypeError, ShapeError

SLACK = 3  # Bounds count roundings; this covers second-order terms and the reference's own.
FORMS = [
    "plain",
    "channels of a wider array",
    "reversed",
    "read-only",
    "byte-swapped",
    "broadcast",
    "unaligned",
]


def in_form(array, form):
    """The same numbers, held in memory in another way."""
    if form == "channels of a wider array":
        wide = np.full((*array.shape[:2], array.shape[2] + 5), np.nan, array.dtype)
        wide[:, :, 2 : 2 + array.shape[2]] = array
        return wide[:, :, 2 : 2 + array.shape[2]]
    if form == "reversed":
        return array[:, ::-1, ::-1].copy()[:, ::-1, ::-1]
    if form == "byte-swapped":
        return array.astype(array.dtype.newbyteorder())
    if form == "broadcast" and array.shape[0]:
        return np.broadcast_to(array[:1], array.shape)
    if form == "unaligned":
        buffer = np.zeros(array.nbytes + 1, np.uint8)
        view = buffer[1:].view(array.dtype).reshape(array.shape)
        view[...] = array
        return view
    array = array.copy()
    array.flags.writeable = form != "read-only"
    return array


@dataclass
class Case:
    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray | None
    initial_state: np.ndarray | None
    grad_out: np.ndarray
    grad_last_state: np.ndarray
    how: dict
    about: str

    def __repr__(self):
        return f"{self.about} x{self.x.shape} {self.x.dtype} weight{self.weight.shape} {self.how}"

    @property
    def inputs(self):
        return self.x, self.weight, self.bias

    @property
    def options(self):
        return {**self.how, "initial_state": self.initial_state}


@st.composite
def cases(draw, dtypes=(np.float32, np.float64)):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    B, D = draw(st.sampled_from([1, 2, 3, 0])), draw(st.sampled_from([1, 2, 5, 16, 17, 37, 0]))
    L, K = draw(st.one_of(st.integers(0, 70), st.just(600))), draw(st.sampled_from([4, 1, 2, 3, 5, 9, 20]))
    packing, channels_last = draw(st.sampled_from(["none", "ids", "lengths"])), draw(st.booleans())
    how = {"channels_last": channels_last, "activation": draw(st.sampled_from([None, "silu"]))}
    states = B
    if packing == "ids":
        how["seq_idx"] = np.cumsum(rng.random((B, L)) < rng.choice([0.01, 0.2, 0.9]), axis=1)
    elif packing == "lengths":
        B, n = 1, draw(st.integers(1, 6))
        how["cu_seqlens"] = np.array([0, *sorted(rng.integers(0, L + 1, n - 1)), L])
        states = n
    dtype, scale = draw(st.sampled_from(dtypes)), draw(st.sampled_from([1.0, 30.0, 1e-3]))
    shape = (B, L, D) if channels_last else (B, D, L)
    form = draw(st.sampled_from(FORMS))

    def array(*shape):
        return rng.normal(size=shape, scale=scale).astype(dtype)

    return Case(
        in_form(array(*shape), form),
        array(D, K) / np.dtype(dtype).type(scale),
        array(D) if draw(st.booleans()) else None,
        array(states, D, K - 1) if draw(st.booleans()) else None,
        array(*shape),
        array(states, D, K - 1),
        how,
        form,
    )


def magnitudes(case):
    """The sums with every term positive: what roundings are relative to."""
    how = {**case.how, "activation": None}
    size = [None if a is None else np.abs(a) for a in (*case.inputs, case.initial_state)]
    return size, {**how, "initial_state": size[3]}


def close(got, want, bound):
    assert got.shape == want.shape
    excess = np.abs(got - want) - bound
    assert not np.isnan(excess).any()
    assert (excess <= 0).all(), f"worst excess {excess.max():.3g}"


def agree(case):
    u = np.finfo(case.x.dtype).eps / 2
    K = case.weight.shape[1]
    size, how = magnitudes(case)
    terms = reference.causal_conv1d(*size[:3], **how)
    got, last = ops.causal_conv1d(*case.inputs, return_last_state=True, **case.options)
    want, last_want = reference.causal_conv1d(*case.inputs, return_last_state=True, **case.options)
    assert got.dtype == last.dtype == case.weight.dtype
    # K + 1 terms; SiLU has a slope below 1.1, and a few roundings of its own.
    slip = (K + 1) * u * terms
    tiny = 1e-34 if case.weight.dtype == np.float32 else 0.0  # What SiLU leaves far below zero.
    close(got, want, SLACK * (1.1 * slip + 6 * u * np.abs(want)) + tiny)
    assert_array_equal(last, last_want)

    grads = ops.causal_conv1d_backward(
        case.grad_out, *case.inputs, grad_last_state=case.grad_last_state, **case.options
    )
    wanted = reference.causal_conv1d_backward(
        case.grad_out, *case.inputs, grad_last_state=case.grad_last_state, **case.options
    )
    # The slope of SiLU has a slope below 1/2 itself; sums over all tokens take as many roundings at most.
    rounded = np.abs(case.grad_out) * (1.1 * max(K + 1, case.x.size) * u)
    if case.how["activation"] == "silu":
        rounded = rounded + np.abs(case.grad_out) * (0.5 * slip + 8 * u)
    bounds = reference.causal_conv1d_backward(
        rounded, *size[:3], grad_last_state=2 * u * np.abs(case.grad_last_state), **how
    )
    for name, one, ref, bound in zip(grads._fields, grads, wanted, bounds, strict=True):
        assert (one is None) == (ref is None), name
        if one is not None:
            assert one.dtype == case.weight.dtype
            close(one, ref, SLACK * bound + tiny)


@given(case=cases())
def test_agrees_with_the_reference(case):
    agree(case)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=6)
@given(data=st.data())
def test_agrees_at_every_level(channels_last, dtype, data):
    case = data.draw(cases((dtype,)).filter(lambda c: c.how["channels_last"] == channels_last))
    agree(case)


def long_case(rng, B, D, L, K, dtype=np.float32):
    x, w, b = rng.normal(size=(B, D, L)), rng.normal(size=(D, K)), rng.normal(size=D)
    return [a.astype(dtype) for a in (x, w, b, rng.normal(size=(B, D, K - 1)), rng.normal(size=(B, D, L)))]


@pytest.mark.parametrize("K", [1, 3, 4, 7])
def test_long_sequences_agree_in_both_layouts_bit_for_bit(K):
    """Several pieces of a sequence, and several blocks of channels."""
    rng = np.random.default_rng(0)
    x, w, b, state, _ = long_case(rng, 1, 700, 700, K)
    want = reference.causal_conv1d(x, w, b, initial_state=state, activation="silu")
    y = ops.causal_conv1d(x, w, b, initial_state=state, activation="silu")
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)
    last = np.ascontiguousarray(x.swapaxes(1, 2))
    across = ops.causal_conv1d(last, w, b, initial_state=state, activation="silu", channels_last=True)
    assert_array_equal(across.swapaxes(1, 2), y)


@pytest.mark.parametrize("channels_last", [False, True])
def test_gradients_of_long_sequences(channels_last):
    rng = np.random.default_rng(1)
    x, w, b, state, g = long_case(rng, 2, 3, 9000, 4, np.float64)
    how = {"initial_state": state, "activation": "silu", "channels_last": channels_last}
    if channels_last:
        x, g = x.swapaxes(1, 2), g.swapaxes(1, 2)
    got = ops.causal_conv1d_backward(g, x, w, b, grad_last_state=state, **how)
    want = reference.causal_conv1d_backward(g, x, w, b, grad_last_state=state, **how)
    for one, ref in zip(got, want, strict=True):
        np.testing.assert_allclose(one, ref, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("K", [1, 2, 4, 6])
def test_parts_with_the_state_carried_give_the_same_bits(K, channels_last):
    rng = np.random.default_rng(2)
    x, w, b, state, _ = long_case(rng, 2, 21, 47, K)
    axis = 1 if channels_last else 2
    x = x.swapaxes(1, 2) if channels_last else x
    how = {"activation": "silu", "channels_last": channels_last, "return_last_state": True}
    whole, last = ops.causal_conv1d(x, w, b, initial_state=state, **how)
    for cut in range(48):
        left, right = np.split(x, [cut], axis=axis)
        y0, carried = ops.causal_conv1d(left, w, b, initial_state=state, **how)
        y1, end = ops.causal_conv1d(right, w, b, initial_state=carried, **how)
        assert_array_equal(np.concatenate([y0, y1], axis), whole)
        assert_array_equal(end, last)
    carried = state.copy()
    for t in range(47):
        y = ops.causal_conv1d_update(x.take(t, axis), carried, w, b, activation="silu")
        assert_array_equal(y, whole.take(t, axis))
    assert_array_equal(carried, last)


@pytest.mark.parametrize("channels_last", [False, True])
def test_packed_sequences_give_the_same_bits_as_each_alone(channels_last):
    rng = np.random.default_rng(3)
    x, w, b, _, g = long_case(rng, 1, 19, 900, 4)
    states = rng.normal(size=(4, 19, 3)).astype(np.float32)
    cuts = np.array([0, 5, 5, 310, 900])
    how = {"activation": "silu", "channels_last": channels_last}
    arrange = (lambda a: a.swapaxes(1, 2)) if channels_last else (lambda a: a)
    y, last = ops.causal_conv1d(
        arrange(x), w, b, initial_state=states, cu_seqlens=cuts, return_last_state=True, **how
    )
    grads = ops.causal_conv1d_backward(
        arrange(g), arrange(x), w, b, initial_state=states, grad_last_state=last, cu_seqlens=cuts, **how
    )
    for i, (start, end) in enumerate(itertools.pairwise(cuts)):
        one, part, state = arrange(x[:, :, start:end]), arrange(g[:, :, start:end]), states[i : i + 1]
        alone, left = ops.causal_conv1d(one, w, b, initial_state=state, return_last_state=True, **how)
        assert_array_equal(arrange(alone), arrange(y)[:, :, start:end])
        assert_array_equal(left[0], last[i])
        own = ops.causal_conv1d_backward(
            part, one, w, b, initial_state=state, grad_last_state=last[i : i + 1], **how
        )
        assert_array_equal(arrange(own.x), arrange(grads.x)[:, :, start:end])
        assert_array_equal(own.initial_state[0], grads.initial_state[i])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(1, 700, 3000), (40, 48, 64), (1, 2, 100_000)])
def test_threads_do_not_change_a_bit(shape, channels_last):
    rng = np.random.default_rng(4)
    x, w, b, state, g = long_case(rng, *shape, 4)
    if channels_last:
        x, g = x.swapaxes(1, 2).copy(), g.swapaxes(1, 2).copy()
    how = {"activation": "silu", "initial_state": state, "channels_last": channels_last}
    results = []
    for n in (1, 2, 5):
        with sensorium.num_threads(n):
            results.append(
                [ops.causal_conv1d(x, w, b, **how), *ops.causal_conv1d_backward(g, x, w, b, **how)]
            )
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert_array_equal(one, two)


@settings(max_examples=20)
@given(case=cases((np.float64,)), seed=st.integers(0, 2**32 - 1))
def test_gradients_along_a_random_direction(case, seed):
    rng = np.random.default_rng(seed)
    inputs = [*case.inputs, case.initial_state]
    scale = max(1.0, np.abs(case.x).max(initial=0.0))
    inputs = [None if a is None else np.asarray(a, np.float64) / scale for a in inputs]
    ways = [None if a is None else rng.normal(size=a.shape) for a in inputs]

    def value(step):
        moved = [None if a is None else a + step * way for a, way in zip(inputs, ways, strict=True)]
        y, last = ops.causal_conv1d(*moved[:3], initial_state=moved[3], return_last_state=True, **case.how)
        return (y * case.grad_out).sum() + (last * case.grad_last_state).sum()

    grads = ops.causal_conv1d_backward(
        case.grad_out,
        *inputs[:3],
        initial_state=inputs[3],
        grad_last_state=case.grad_last_state,
        **case.how,
    )
    pairs = [(g * way) for g, way in zip(grads, ways, strict=True) if g is not None]
    slope = sum(p.sum() for p in pairs)
    size = sum(np.abs(p).sum() for p in pairs) + np.abs(case.grad_out).sum() + 1
    h = 1e-4
    # Differences of fourth order: h^4 from the series, and rounding over h.
    steps = [value(s * h) for s in (1, -1, 2, -2)]
    found = (8 * (steps[0] - steps[1]) - (steps[2] - steps[3])) / (12 * h)
    assert abs(found - slope) <= 1e-7 * size * case.weight.shape[1] ** 2


def test_autodiff_differentiates_both_results():
    rng = np.random.default_rng(5)
    x, w, b, state, g = long_case(rng, 2, 3, 11, 4, np.float64)

    def loss(x, w, b, state, with_last):
        how = {"initial_state": state, "activation": "silu"}
        if not with_last:
            return autograd.numpy.sum(autodiff.causal_conv1d(x, w, b, **how) * g)
        y, last = autodiff.causal_conv1d(x, w, b, return_last_state=True, **how)
        return autograd.numpy.sum(y * g) + autograd.numpy.sum(last * last)

    for with_last in (False, True):
        found = autograd.grad(loss, (0, 1, 2, 3))(x, w, b, state, with_last)
        _, last = ops.causal_conv1d(x, w, b, initial_state=state, return_last_state=True)
        want = reference.causal_conv1d_backward(
            g,
            x,
            w,
            b,
            initial_state=state,
            activation="silu",
            grad_last_state=2 * last if with_last else None,
        )
        for one, ref in zip(found, want, strict=True):
            np.testing.assert_allclose(one, ref, rtol=1e-12, atol=1e-12)
    only = autograd.grad(lambda w: loss(x, w, b, state, True))(w)
    np.testing.assert_allclose(only, want[1], rtol=1e-12, atol=1e-12)
    narrow = autograd.grad(lambda x: autograd.numpy.sum(autodiff.causal_conv1d(x, np.float32(w))))(
        np.float32(x)
    )
    assert narrow.dtype == np.float32


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_nan_stays_in_its_channel_and_what_follows(channels_last):
    rng = np.random.default_rng(6)
    x, w, b, _, g = long_case(rng, 2, 20, 40, 4)
    ids = np.repeat([[0, 1]], [22, 18], axis=1).repeat(2, axis=0)
    how = {"activation": "silu", "seq_idx": ids, "channels_last": channels_last}
    arrange = (lambda a: a.swapaxes(1, 2)) if channels_last else (lambda a: a)
    clean = arrange(ops.causal_conv1d(arrange(x), w, b, **how))
    grads = ops.causal_conv1d_backward(arrange(g), arrange(x), w, b, **how)
    x[1, 7, 20] = np.nan
    y = arrange(ops.causal_conv1d(arrange(x), w, b, **how))
    hit = np.zeros(x.shape, bool)
    hit[1, 7, 20:22] = True  # The sequence ends before K tokens are through.
    assert np.isnan(y[hit]).all()
    assert_array_equal(y[~hit], clean[~hit])
    after = ops.causal_conv1d_backward(arrange(g), arrange(x), w, b, **how)
    dx = arrange(after.x)
    hit[1, 7, 17:22] = True
    assert np.isnan(dx[hit]).all()
    assert_array_equal(dx[~hit], arrange(grads.x)[~hit])
    assert np.isnan(after.weight[7]).all()
    assert_array_equal(np.delete(after.weight, 7, 0), np.delete(grads.weight, 7, 0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_very_large_inputs_stay_finite(dtype):
    huge = np.finfo(dtype).max / 8
    x = np.array([[[huge, -huge, np.inf, 1.0]]], dtype)
    w = np.array([[0.0, 1.0]], dtype)
    y = ops.causal_conv1d(x[:, :, :2], w, activation="silu")
    assert y[0, 0, 0] == huge
    assert abs(y[0, 0, 1]) < 1e-34
    grads = ops.causal_conv1d_backward(np.ones((1, 1, 2), dtype), x[:, :, :2], w, activation="silu")
    assert np.isfinite(np.concatenate([g.ravel() for g in grads if g is not None])).all()
    assert ops.causal_conv1d(x, w[:, 1:])[0, 0, 2] == np.inf


def test_a_state_is_updated_in_place_whatever_holds_it():
    rng = np.random.default_rng(7)
    w, x = rng.normal(size=(5, 4)), rng.normal(size=(2, 5))
    held = rng.normal(size=(2, 5, 3))
    want, last = reference.causal_conv1d_update(x, held, w, activation="silu")
    for state in (held.copy(), held.copy(order="F"), held.astype(held.dtype.newbyteorder())):
        y = ops.causal_conv1d_update(x, state, w, activation="silu")
        np.testing.assert_allclose(y, want, rtol=1e-13)
        assert_array_equal(state, last)
    assert ops.causal_conv1d_update(x, np.zeros((2, 5, 0)), w[:, :1]).shape == (2, 5)
    assert ops.causal_conv1d_update(x[:0], held[:0].copy(), w).shape == (0, 5)


GOOD = {"x": np.zeros((2, 3, 7)), "weight": np.zeros((3, 4))}


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (ShapeError, r"x has shape \(7,\), expected 3 dimensions \(B, D, L\)", {"x": np.zeros(7)}),
        (ShapeError, r"expected 3 dimensions \(B, L, D\)", {"x": np.zeros(7), "channels_last": True}),
        (ShapeError, "weight has D=5 but x has D=3", {"weight": np.zeros((5, 4))}),
        (ShapeError, r"weight has shape \(3, 0\), expected one tap at least", {"weight": np.zeros((3, 0))}),
        (ShapeError, "bias has D=2 but weight has D=3", {"bias": np.zeros(2)}),
        (
            ShapeError,
            r"initial_state has shape \(2, 3, 4\), expected \(2, 3, 3\)",
            {"initial_state": np.zeros((2, 3, 4))},
        ),
        (DTypeError, "weight has dtype float32 but x has float64", {"weight": np.zeros((3, 4), np.float32)}),
        (DTypeError, "x has dtype int64, expected float32 or float64", {"x": np.zeros((2, 3, 7), int)}),
        (DTypeError, "bias has dtype complex128", {"bias": np.zeros(3, complex)}),
        (ArgumentError, "activation must be None or \"silu\", not 'relu'", {"activation": "relu"}),
        (ShapeError, r"seq_idx has shape \(7,\), expected \(2, 7\)", {"seq_idx": np.zeros(7, int)}),
        (ShapeError, "cu_seqlens needs a batch of 1, not 2", {"cu_seqlens": [0, 7]}),
        (
            ArgumentError,
            "cu_seqlens must end with the length, 7",
            {"x": np.zeros((1, 3, 7)), "cu_seqlens": [0, 6]},
        ),
    ],
)
def test_errors_name_the_argument(error, words, change):
    given = {**GOOD, **change}
    with pytest.raises(error, match=words):
        ops.causal_conv1d(**given)
    with pytest.raises(error, match=words):
        ops.causal_conv1d_backward(np.zeros(np.shape(given["x"])), **given)


def test_errors_of_gradients_and_of_one_step():
    with pytest.raises(ShapeError, match=r"grad_out has shape \(2, 3, 6\), expected \(2, 3, 7\)"):
        ops.causal_conv1d_backward(np.zeros((2, 3, 6)), **GOOD)
    with pytest.raises(ShapeError, match=r"grad_last_state has shape \(2, 3, 7\), expected \(2, 3, 3\)"):
        ops.causal_conv1d_backward(np.zeros((2, 3, 7)), **GOOD, grad_last_state=np.zeros((2, 3, 7)))
    x, state, weight = np.zeros((2, 3)), np.zeros((2, 3, 3)), np.zeros((3, 4))
    with pytest.raises(DTypeError, match="state must be an ndarray, not list"):
        ops.causal_conv1d_update(x, state.tolist(), weight)
    with pytest.raises(ShapeError, match=r"state has shape \(2, 3, 2\), expected \(2, 3, 3\)"):
        ops.causal_conv1d_update(x, state[:, :, :2], weight)
    with pytest.raises(ArgumentError, match="state is read-only"):
        ops.causal_conv1d_update(x, np.broadcast_to(state, state.shape), weight)
    with pytest.raises(
        ArgumentError, match="state must be writeable and share memory with no other argument"
    ):
        ops.causal_conv1d_update(state[0, 0][None], state[:1], weight)
