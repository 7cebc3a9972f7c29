"""Test-time-training layers against their definition, and laws that hold whatever the numbers."""

import numpy as np
import pytest
import sensorium
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from sensorium import ops
from sensorium.ops import TTTState
from ttt_cases import at_level, bounds, cases, draw_case, flat, formed, forms, levels

RNG = np.random.default_rng
LAYERS = pytest.mark.parametrize("layers", [1, 2])


def held(got, want, limits):
    for a, b, limit in zip(got, want, limits, strict=True):
        assert a.shape == np.shape(b)
        assert not np.isnan(a).any()
        assert np.abs(a - b).max(initial=0) <= limit


@given(case=cases(), level=levels, dtype=st.sampled_from([np.float32, np.float64]), form=forms)
def test_agrees_with_the_definition(case, level, dtype, form):
    case = case.to(dtype).to(np.float64)  # Numbers that both types hold.
    want, limits = flat(case.reference()), bounds(case, lambda c: flat(c.reference()), dtype, RNG(0))
    with at_level(level):
        got = formed(case.to(dtype), form).forward(return_last_state=True)
    assert got[0].dtype == got[1].weights[0].dtype == dtype
    assert got[1].position == case.reference()[1][2]
    held(flat(got), want, limits)


@given(case=cases(max_length=60), level=levels, data=st.data())
def test_a_sequence_may_be_cut_anywhere(case, level, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, case.length), max_size=4)))
    in_place = data.draw(st.booleans())
    with at_level(level):
        y, last = case.forward(return_last_state=True)
        limits = bounds(case, lambda c: flat(c.forward(return_last_state=True)), np.float64, RNG(0))
        state, parts = case.state and case.state.copy(), []
        for start, stop in zip([0, *cuts], [*cuts, case.length], strict=True):
            piece = case.tokens(start, stop, state)
            before = state and state.copy()
            part, after = piece.forward(return_last_state=True, out_state=state if in_place else None)
            if before is not None:  # A state that is not given to be written is left alone.
                assert (after is state) == in_place
                if not in_place:
                    for a, b in zip(state.weights + state.sums, before.weights + before.sums, strict=True):
                        assert_array_equal(a, b)
            state = after
            parts.append(part)
    assert state.position == last.position
    # Both are within the bound of what would come without rounding.
    held(flat((np.concatenate(parts, axis=2), state)), flat((y, last)), [2 * limit for limit in limits])


@LAYERS
def test_token_by_token_is_the_whole(layers, isa):
    case = draw_case(RNG(1), layers, 2, 2, 23, 17, 20, 5).to(np.float32)
    limits = bounds(
        case.to(np.float64), lambda c: flat(c.forward(return_last_state=True)), np.float32, RNG(0)
    )
    whole = flat(case.forward(return_last_state=True))
    state = TTTState.initial(2, *case.weights)
    y = [case.tokens(t, t + 1, state).forward(out_state=state)[0] for t in range(23)]
    assert state.position == 3
    held(flat((np.concatenate(y, axis=2), state)), whole, [2 * limit for limit in limits])


def norm(x, weight, bias, eps):
    h = (x - x.mean()) / np.sqrt(x.var() + eps)
    return h * weight + bias, h


def test_one_token_a_mini_batch_is_online_gradient_descent():
    case = draw_case(RNG(2), 1, 1, 1, 12, 7, 0, 1, scaled=True)
    q, k, v, eta, W, b, weight, bias = (a[0] for a in case.arrays.values())
    W, b, weight, bias = W.copy(), b.copy(), weight, bias
    want = []
    for t in range(12):
        z = k[0, t] @ W + b
        y, h = norm(z, weight, bias, case.eps)
        e = weight * (y - (v[0, t] - k[0, t]))
        g = (e - e.mean() - h * (e * h).mean()) / np.sqrt(z.var() + case.eps)
        W -= case.token_scale[0] * eta[0, t] * np.outer(k[0, t], g)
        b -= case.token_scale[0] * eta[0, t] * g
        want.append(q[0, t] + norm(q[0, t] @ W + b, weight, bias, case.eps)[0])
    y, state = case.forward(return_last_state=True)
    np.testing.assert_allclose(y[0, 0], want, rtol=0, atol=1e-12)
    np.testing.assert_allclose(state.weights[0][0, 0], W, rtol=0, atol=1e-12)
    np.testing.assert_allclose(state.weights[1][0, 0], b, rtol=0, atol=1e-12)


@LAYERS
def test_with_zero_rates_every_token_reads_the_initial_map(layers, isa):
    case = draw_case(RNG(3), layers, 2, 3, 37, 12, 20, 16)
    case.arrays["eta"] = np.zeros((2, 3, 37))
    y, state = case.forward(return_last_state=True)
    x = case.arrays["q"]
    for i in range(0, len(case.weights), 2):
        if i:
            x = ops.gelu(x)
        x = x @ case.weights[i] + case.weights[i + 1][:, None]
    for h in range(3):
        weight, bias = case.arrays["norm_weight"][h], case.arrays["norm_bias"][h]
        want = case.arrays["q"][:, h] + ops.layer_norm(x[:, h], weight, bias, eps=case.eps)
        np.testing.assert_allclose(y[:, h], want, rtol=0, atol=1e-12)
    for a, w in zip(state.weights, case.weights, strict=True):
        assert_array_equal(a, np.broadcast_to(w, a.shape))


@LAYERS
def test_learning_lowers_the_inner_loss(layers):
    # Keys and values that repeat: what was read once is known the second time.
    rng, tokens = RNG(4), 128
    case = draw_case(rng, layers, 1, 1, tokens, 16, 64, 4)
    keys, values = rng.standard_normal((2, 4, 16))
    pick = np.arange(tokens) % 4
    case.arrays["k"] = keys[pick][None, None].copy()
    case.arrays["q"] = case.arrays["k"]
    case.arrays["v"] = values[pick][None, None].copy()
    case.arrays["eta"] = np.full((1, 1, tokens), 0.1)
    y = case.forward()[0, 0]
    error = np.square(y - values[pick]).mean(-1)  # y = q + LN(f(q)) is to be k + (v - k).
    assert error[-4:].mean() < 0.5 * error[:4].mean()


@LAYERS
def test_does_not_depend_on_the_number_of_threads(layers):
    case = draw_case(RNG(5), layers, 2, 3, 200, 32, 96, 16, position=3).to(np.float32)
    grad_out = RNG(6).standard_normal(case.arrays["q"].shape).astype(np.float32)
    results = []
    for threads in (1, 4):
        with sensorium.num_threads(threads):
            y, state = case.forward(return_last_state=True)
            grads = case.backward(grad_out, grad_last_state=state)
            parts = grads.initial_state
            results.append([y, *flat((y, state)), *grads[:-2], *parts.weights, *parts.sums])
    for a, b in zip(*results, strict=True):
        assert_array_equal(a, b)


@LAYERS
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["q", "k", "v", "eta"])
def test_what_is_not_a_number_stays_in_its_row_and_head_and_behind(layers, name, bad, isa):
    case = draw_case(RNG(7), layers, 2, 2, 40, 10, 12, 16)
    clean = case.forward()
    array = case.arrays[name] = case.arrays[name].copy()
    array[(1, 0, 20) + (3,) * (array.ndim - 3)] = bad
    y = case.forward()
    assert_array_equal(y[0], clean[0])
    assert_array_equal(y[1, 1], clean[1, 1])
    assert_array_equal(y[1, 0, :20], clean[1, 0, :20])
    assert np.isnan(y[1, 0, 20]).any()
    if name == "q":
        assert_array_equal(y[1, 0, 21:], clean[1, 0, 21:])
    else:
        assert np.isnan(y[1, 0, 21:]).all()


@LAYERS
def test_rows_whose_squares_overflow_are_read(layers, isa):
    case = draw_case(RNG(8), layers, 1, 2, 19, 12, 20, 4)
    case.arrays["q"] = case.arrays["q"] * 1e20
    case = case.to(np.float32)
    y = case.forward()
    want = case.to(np.float64).forward()
    q = case.arrays["q"]
    assert np.isfinite(y).all()
    assert np.abs(y - want).max() <= 1e-6 * np.abs(want).max()
    # What is added to q is of the size of one, and lost beside it; so it is looked at by itself.
    case.arrays["q"] = (q * 1e-20).astype(np.float32)
    wide = case.to(np.float64)
    assert np.abs(case.forward() - wide.forward()).max() < 1e-4


@LAYERS
@pytest.mark.parametrize("width", [1, 2, 3])
def test_narrow_heads_agree_with_the_definition(layers, width, isa):
    case = draw_case(RNG(16), layers, 2, 2, 13, width, 5, 4, eps=1e-2)
    for got, want in zip(flat(case.forward(return_last_state=True)), flat(case.reference()), strict=True):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_a_row_of_one_number_is_normed_to_zero():
    case = draw_case(RNG(9), 1, 1, 2, 5, 1, 0, 3)
    want = case.arrays["q"] + case.arrays["norm_bias"][:, None]
    assert_array_equal(case.forward(), want)


@LAYERS
@pytest.mark.parametrize("shape", [(1, 2, 0, 5), (0, 2, 9, 5), (2, 0, 9, 5)])
def test_without_elements(layers, shape):
    B, H, L, D = shape
    case = draw_case(RNG(10), layers, B, H, L, D, 7, 4, position=2)
    y, state = case.forward(return_last_state=True)
    assert y.shape == shape
    assert state.position == (2 + L) % 4
    for a, b in zip(flat((y, state))[1:], case.state.weights + case.state.sums, strict=True):
        assert_array_equal(a, b)
    grads = case.backward(np.zeros(shape), grad_last_state=state)
    for a, b in zip(grads.initial_state.weights, case.state.weights, strict=True):
        assert_array_equal(a, b)
    assert [g.shape for g in grads[:-2]] == [a.shape for a in case.arrays.values()]


def test_a_mini_batch_may_be_longer_than_anything():
    case = draw_case(RNG(11), 1, 1, 1, 9, 4, 0, 9)
    y = case.forward()
    case.mini_batch_size = 2**62
    assert_array_equal(case.forward(), y)
    case.backward(np.ones_like(y))


@given(case=cases(), form=forms)
@settings(max_examples=15)
def test_memory_of_the_arguments_does_not_matter(case, form):
    assert_array_equal(formed(case, form).forward(), case.forward())


def test_results_lie_in_memory_as_queries_do():
    case = draw_case(RNG(12), 1, 2, 3, 10, 4, 0, 4)
    for name in "qkv":
        case.arrays[name] = np.ascontiguousarray(case.arrays[name].transpose(0, 2, 1, 3)).transpose(
            0, 2, 1, 3
        )
    y = case.forward()
    assert y.transpose(0, 2, 1, 3).flags.c_contiguous
    grads = case.backward(y)
    assert all(g.transpose(0, 2, 1, 3).flags.c_contiguous for g in grads[:3])


def test_a_state_is_written_where_it_is_asked_for():
    case = draw_case(RNG(13), 2, 2, 2, 11, 4, 6, 4)
    y, want = case.forward(return_last_state=True)
    out = TTTState.initial(2, *(w + 1 for w in case.weights))
    got, state = case.forward(out_state=out)
    assert state is out
    assert state.position == 3
    assert_array_equal(got, y)
    for a, b in zip(out.weights + out.sums, want.weights + want.sums, strict=True):
        assert_array_equal(a, b)
    copied = state.copy()
    copied.weights[0][...] = 0
    assert state.weights[0].any()
    assert copied.nbytes == state.nbytes == sum(a.nbytes for a in flat((y, state))[1:])


def broken(**changes):
    case = draw_case(RNG(14), 1, 2, 3, 5, 4, 0, 4, position=1)
    arrays = {**case.arrays, **{k: v for k, v in changes.items() if k in case.arrays}}
    options = {**case.options, **{k: v for k, v in changes.items() if k not in case.arrays}}
    return lambda: ops.ttt_linear(**arrays, **options)


def state_of(shape_of_b=(2, 3, 4), position=1, dtype=np.float64):
    arrays = np.zeros((2, 3, 4, 4), dtype), np.zeros(shape_of_b, dtype)
    return TTTState(arrays, tuple(a.copy() for a in arrays), position)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"k": np.zeros((2, 3, 5, 3))}, sensorium.errors.ShapeError, "k has D=3 but q has D=4"),
        ({"eta": np.zeros((2, 3, 4))}, sensorium.errors.ShapeError, "eta has L=4 but q has L=5"),
        ({"W": np.zeros((3, 4, 5))}, sensorium.errors.ShapeError, "W has D=5 but q has D=4"),
        ({"b": np.zeros(4)}, sensorium.errors.ShapeError, r"b has shape \(4,\), expected 2 dimensions"),
        ({"norm_bias": np.zeros((1, 4))}, sensorium.errors.ShapeError, "norm_bias has H=1 but q has H=3"),
        ({"q": np.zeros((2, 3, 5))}, sensorium.errors.ShapeError, "q has shape"),
        ({"q": np.zeros((2, 3, 5, 4), np.float16)}, sensorium.errors.DTypeError, "q has dtype float16"),
        ({"v": np.zeros((2, 3, 5, 4), np.float32)}, sensorium.errors.DTypeError, "v has dtype float32 but q"),
        ({"eta": np.zeros((2, 3, 5), int)}, sensorium.errors.DTypeError, "eta has dtype int"),
        ({"mini_batch_size": 0}, sensorium.errors.ArgumentError, "mini_batch_size must be at least 1, not 0"),
        ({"mini_batch_size": 1.5}, sensorium.errors.DTypeError, "mini_batch_size must be an integer"),
        (
            {"token_scale": np.zeros(3)},
            sensorium.errors.ShapeError,
            r"token_scale has shape \(3,\), expected \(4,\)",
        ),
        ({"eps": -1.0}, sensorium.errors.ArgumentError, "eps must not be negative, not -1"),
        ({"eps": np.nan}, sensorium.errors.ArgumentError, "eps must be finite"),
        ({"initial_state": 3}, sensorium.errors.DTypeError, "initial_state must be a TTTState, not int"),
        (
            {"initial_state": state_of(position=4)},
            sensorium.errors.ArgumentError,
            "initial_state.position must be at most 3, not 4",
        ),
        (
            {"initial_state": state_of((2, 3, 5))},
            sensorium.errors.ShapeError,
            r"initial_state.weights\[1\] has shape \(2, 3, 5\), expected \(2, 3, 4\)",
        ),
        (
            {"initial_state": state_of(dtype=np.float32)},
            sensorium.errors.DTypeError,
            r"initial_state.weights\[0\] has dtype float32",
        ),
        (
            {"initial_state": TTTState((), ())},
            sensorium.errors.ShapeError,
            "initial_state.weights has 0 arrays, expected 2",
        ),
        (
            {"out_state": TTTState(*(tuple(a[..., ::-1] for a in p) for p in (state_of().weights,) * 2))},
            sensorium.errors.ArgumentError,
            "out_state must hold native, aligned, C-contiguous arrays",
        ),
    ],
)
def test_errors_name_the_argument(changes, error, words):
    with pytest.raises(error, match=words):
        broken(**changes)()


def test_other_errors():
    case = draw_case(RNG(15), 1, 1, 1, 5, 4, 0, 4)
    with pytest.raises(sensorium.errors.ShapeError, match="q has D=0"):
        draw_case(RNG(15), 1, 1, 1, 5, 0, 0, 4).forward()
    with pytest.raises(sensorium.errors.ShapeError, match="grad_out has shape"):
        case.backward(np.zeros((1, 1, 4, 4)))
    with pytest.raises(sensorium.errors.ShapeError, match="checkpoints has 3 elements, expected 0"):
        case.backward(np.zeros((1, 1, 5, 4)), checkpoints=np.zeros(3))
    state = TTTState.initial(1, *case.weights)
    state.weights[0].flags.writeable = False
    with pytest.raises(sensorium.errors.ArgumentError, match="out_state is read-only"):
        case.forward(out_state=state)
    with pytest.raises(sensorium.errors.DTypeError, match="weights\\[1\\] has dtype float32"):
        TTTState.initial(1, case.weights[0], case.weights[1].astype(np.float32))
    shared = TTTState(tuple(state.copy().weights), state.copy().sums)
    shared.sums = (shared.weights[0], shared.sums[1])
    with pytest.raises(sensorium.errors.ArgumentError, match="share memory"):
        case.forward(out_state=shared)
