"""Gradients of test-time-training layers: along random directions, and against the definition differentiated."""

import autograd.numpy as anp
import numpy as np
import pytest
from autograd import grad
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from reference import ttt as reference
from sensorium import autodiff as ad
from sensorium import ops
from sensorium.ops import TTTState
from ttt_cases import NAMES, Case, at_level, bounds, cases, draw_case, flat, levels

RNG = np.random.default_rng


def cotangents(case, rng):
    """Weights of a sum over all results: of ``y``, and of the last state."""
    y = rng.standard_normal(case.arrays["q"].shape)
    weights = tuple(rng.standard_normal((y.shape[0], *w.shape)) for w in case.weights)
    sums = tuple(rng.standard_normal(w.shape) for w in weights)
    return y, TTTState(weights, sums)


def inputs(case):
    """Everything that has a gradient, by name."""
    found = dict(case.arrays)
    if case.token_scale is not None:
        found["token_scale"] = case.token_scale
    if case.state is not None:
        for i, (w, s) in enumerate(zip(case.state.weights, case.state.sums, strict=True)):
            found[f"weights{i}"] = w
            if case.state.position:
                found[f"sums{i}"] = s
    return found


def with_inputs(case, found):
    """The call with those inputs."""
    arrays = {name: found[name] for name in NAMES[case.layers]}
    state = case.state
    if state is not None:
        n = len(state.weights)
        sums = tuple(found.get(f"sums{i}", state.sums[i]) for i in range(n))
        state = TTTState(tuple(found[f"weights{i}"] for i in range(n)), sums, state.position)
    scale = found.get("token_scale")
    return Case(case.layers, arrays, scale, case.mini_batch_size, case.eps, state)


def gradients(case, cotangent, **more):
    """Gradients of the sum, by name."""
    y, last = cotangent
    grads = case.backward(y, grad_last_state=last, **more)
    found = dict(zip(NAMES[case.layers], grads[:-2], strict=True))
    found["token_scale"] = grads.token_scale
    if grads.initial_state is not None:
        for i, (w, s) in enumerate(zip(grads.initial_state.weights, grads.initial_state.sums, strict=True)):
            found |= {f"weights{i}": w, f"sums{i}": s}
    return {name: found[name] for name in inputs(case)}


def total(case, cotangent):
    y, state = case.forward(return_last_state=True)
    cy, last = cotangent
    parts = list(zip(state.weights, last.weights, strict=True))
    if state.position:  # Elsewhere the sums are zeros whatever the inputs.
        parts += zip(state.sums, last.sums, strict=True)
    return float(sum((a * c).sum() for a, c in [(y, cy), *parts]))


@given(case=cases(max_length=40), level=levels)
def test_gradient_along_a_random_direction(case, level):
    rng = RNG(1)
    cotangent, base = cotangents(case, rng), inputs(case)
    direction = {name: rng.standard_normal(a.shape) * (np.abs(a) + 0.01) for name, a in base.items()}

    def along(t):
        return total(with_inputs(case, {n: a + t * direction[n] for n, a in base.items()}), cotangent)

    def richardson(h):
        central = [(along(s) - along(-s)) / (2 * s) for s in (h, h / 2)]
        return (4 * central[1] - central[0]) / 3  # Error of order h^4.

    with at_level(level):
        # Where mini-batches learn fast, only small steps are small; where they do not, those are lost in rounding.
        tries = [(richardson(h), richardson(2 * h)) for h in (1e-4, 1e-5, 1e-6)]
        want, coarse = min(tries, key=lambda pair: abs(pair[0] - pair[1]))
        grads = gradients(case, cotangent)
    terms = [(grads[n] * direction[n]).sum() for n in base]
    size = 1 + abs(along(0)) + sum(np.abs(grads[n] * direction[n]).sum() for n in base)
    assume(abs(want - coarse) <= 1e-4 * size)  # Else the differences say nothing.
    assert abs(sum(terms) - want) <= 1e-8 * size + abs(want - coarse)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(
    ("b", "position", "L"), [(16, None, 7), (4, None, 11), (1, None, 4), (4, 3, 9), (5, 2, 2)]
)
def test_gradients_are_those_of_the_definition(layers, b, position, L):
    case = draw_case(RNG(2), layers, 2, 2, L, 5, 6, b, position=position, scaled=True)
    cotangent = cotangents(case, RNG(3))

    def reading(found):
        moved = with_inputs(case, found)
        run = (reference.ttt_linear, reference.ttt_mlp)[layers - 1]
        state = moved.state and (list(moved.state.weights), list(moved.state.sums), moved.state.position)
        how = {"mini_batch_size": b, "eps": case.eps, "token_scale": moved.token_scale, "state": state}
        y, (weights, sums, place) = run(**moved.arrays, **how)
        parts = [(y, cotangent[0]), *zip(weights, cotangent[1].weights, strict=True)]
        if place:
            parts += zip(sums, cotangent[1].sums, strict=True)
        return sum(anp.sum(a * c) for a, c in parts)

    want, got = grad(reading)(inputs(case)), gradients(case, cotangent)
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-12 * (1 + np.abs(want[name]).max()))


@given(case=cases(max_length=40), level=levels)
@settings(max_examples=15)
def test_single_precision_is_within_its_bound(case, level):
    case = case.to(np.float32).to(np.float64)
    y, last = cotangents(case, RNG(4))
    narrow = [a.astype(np.float32) for a in flat((y, last))]
    n = len(case.weights)
    cotangent = narrow[0], TTTState(tuple(narrow[1 : 1 + n]), tuple(narrow[1 + n :]))
    wide = [a.astype(np.float64) for a in narrow]
    exact = wide[0], TTTState(tuple(wide[1 : 1 + n]), tuple(wide[1 + n :]))

    def run(c):
        found = gradients(c, exact)
        return [found[name] for name in inputs(case)]

    with at_level(level):
        limits = bounds(case, run, np.float32, RNG(0))
        got = gradients(case.to(np.float32), cotangent)
        for (name, a), want, limit in zip(got.items(), run(case), limits, strict=True):
            assert a.dtype == np.float32
            # Forward and backward: twice the roundings.
            assert np.abs(a - want).max(initial=0) <= 2 * limit, name


@pytest.mark.parametrize("layers", [1, 2])
def test_checkpoints_spare_work_and_change_nothing(layers, isa):
    case = draw_case(RNG(5), layers, 2, 2, 83, 9, 12, 4, position=1)
    cotangent = cotangents(case, RNG(6))
    y, _, checkpoints = case.forward(return_last_state=True, return_checkpoints=True)
    same, again = case.forward(return_checkpoints=True)
    assert checkpoints.size > 0
    assert_array_equal(y, same)
    assert_array_equal(checkpoints, again)
    with_them = gradients(case, cotangent, checkpoints=checkpoints)
    for name, a in gradients(case, cotangent).items():
        assert_array_equal(a, with_them[name])
    # They are read: others give other gradients.
    other = gradients(case, cotangent, checkpoints=checkpoints + 1)
    assert np.abs(other["k"] - with_them["k"]).max() > 0


@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_of_pieces_are_those_of_the_whole(layers):
    case = draw_case(RNG(7), layers, 2, 2, 29, 6, 10, 8)
    y, last = cotangents(case, RNG(8))
    whole = case.backward(y, grad_last_state=last)
    _, state = case.tokens(0, 13, None).forward(return_last_state=True)
    second = case.tokens(13, 29, state).backward(y[:, :, 13:], grad_last_state=last)
    first = case.tokens(0, 13, None).backward(y[:, :, :13], grad_last_state=second.initial_state)
    for i, name in enumerate(NAMES[layers][:4]):
        got = np.concatenate([first[i], second[i]], axis=2)
        np.testing.assert_allclose(got, whole[i], rtol=0, atol=1e-12 * np.abs(whole[i]).max(), err_msg=name)
    for i, name in enumerate(NAMES[layers][4:-2], 4):
        np.testing.assert_allclose(
            first[i], whole[i], rtol=0, atol=1e-12 * np.abs(whole[i]).max(), err_msg=name
        )
        assert not second[i].any()  # Weights are not read where there is a state.
    for name in ("norm_weight", "norm_bias"):
        both = getattr(first, name) + getattr(second, name)
        want = getattr(whole, name)
        np.testing.assert_allclose(both, want, rtol=0, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("layers", [1, 2])
def test_under_autograd_in_two_pieces(layers):
    case = draw_case(RNG(9), layers, 2, 2, 21, 5, 7, 8, scaled=True)
    run = (ad.ttt_linear, ad.ttt_mlp)[layers - 1]
    how = {"mini_batch_size": 8, "eps": case.eps}
    cotangent = cotangents(case, RNG(10))

    def summed(y, state):
        parts = [
            (y, cotangent[0]),
            *zip(state.weights + state.sums, cotangent[1].weights + cotangent[1].sums, strict=True),
        ]
        return sum(anp.sum(anp.sin(a) * c) for a, c in parts)

    def whole(p):
        return summed(*run(**p, **how, return_last_state=True))

    def pieces(p):
        head = {n: p[n][:, :, :10] if n in ("q", "k", "v", "eta") else p[n] for n in p}
        tail = {n: p[n][:, :, 10:] if n in ("q", "k", "v", "eta") else p[n] for n in p}
        first, state = run(**head, **how, return_last_state=True)
        second, state = run(**tail, **how, initial_state=state, return_last_state=True)
        return summed(anp.concatenate([first, second], axis=2), state)

    p = {**case.arrays, "token_scale": case.token_scale}
    want, got = grad(whole)(p), grad(pieces)(p)
    assert whole(p) == pytest.approx(pieces(p), abs=1e-10)
    for name in p:
        assert np.abs(want[name]).max() > 0
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-11 * np.abs(want[name]).max())
    # Without the last state, the result is an array.
    alone = grad(lambda p: anp.sum(run(**p, **how) * cotangent[0]))(p)
    for name, g in zip(NAMES[layers], case.backward(cotangent[0])[:-2], strict=True):
        assert_array_equal(alone[name], g)


def test_a_step_of_the_outer_loop_lowers_its_loss():
    # The inner rates, weights and norm are trained through the inner steps to recall what was read.
    rng = RNG(11)
    keys, values = rng.standard_normal((2, 6, 8))
    pick = rng.integers(0, 6, (4, 1, 48))
    k, v = keys[pick], values[pick]
    params = {"W": np.zeros((1, 8, 8)), "b": np.zeros((1, 8)), "norm_weight": np.ones((1, 8))}
    params |= {"norm_bias": np.zeros((1, 8)), "eta": np.full((4, 1, 48), 0.05)}

    def loss(p):
        y = ad.ttt_linear(
            k, k, v, p["eta"], p["W"], p["b"], p["norm_weight"], p["norm_bias"], mini_batch_size=4
        )
        return anp.mean((y - v) ** 2)

    start = value = loss(params)
    for _ in range(50):
        value, grads = ad.value_and_grad(loss)(params)
        params = {n: a - grads[n] for n, a in params.items()}
    assert value < 0.8 * start


@given(st.integers(1, 2))
@settings(max_examples=2)
def test_gradients_of_float32_are_float32(layers):
    case = draw_case(RNG(12), layers, 1, 1, 5, 4, 3, 4, scaled=True).to(np.float32)
    grads = case.backward(case.arrays["q"])
    assert all(g.dtype == np.float32 for g in grads[:-1])
    assert isinstance(grads, (ops.TTTLinearGrads, ops.TTTMLPGrads))
