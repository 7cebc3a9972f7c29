"""AdamW, clipping and running means against their references."""

import math

import numpy as np
import pytest
import sensorium
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from reference import nn as reference
from sensorium import _core
from sensorium._tree import tree_items, tree_leaves, tree_map
from sensorium.optim import adamw_init, adamw_step, clip_grad_norm, ema_update


@pytest.fixture(params=_core.isa_available(), autouse=True, scope="module")
def isa(request):
    before = _core.isa_level()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)


def tree(rng, dtype, scale=1.0):
    shapes = {"a": (3, 17), "b": {"w": (40, 5), "empty": (0, 4)}, "list": [(1,), ()]}
    return tree_map_shapes(shapes, lambda s: np.asarray(scale * rng.standard_normal(s), dtype))


def tree_map_shapes(shapes, make):
    if isinstance(shapes, dict):
        return {k: tree_map_shapes(v, make) for k, v in shapes.items()}
    if isinstance(shapes, list):
        return [tree_map_shapes(v, make) for v in shapes]
    return make(shapes)


@given(
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from([np.float32, np.float64]),
    betas=st.tuples(st.sampled_from([0.0, 0.9]), st.sampled_from([0.0, 0.95, 0.999])),
    weight_decay=st.sampled_from([0.0, 0.1]),
    exponent=st.integers(-6, 6),
)
def test_adamw_over_several_steps(seed, dtype, betas, weight_decay, exponent):
    rng = np.random.default_rng(seed)
    params = tree(rng, dtype)
    state = adamw_init(params)
    how = {"lr": 0.01, "betas": betas, "eps": 1e-8}
    u = np.finfo(dtype).eps / 2
    for step in (1, 2, 3):
        grads = tree(rng, dtype, 10.0**exponent)
        before = [np.copy(a) for a in tree_leaves(params) + tree_leaves(state["m"]) + tree_leaves(state["v"])]
        assert adamw_step(params, grads, state, weight_decay=weight_decay, **how) is None
        assert state["step"] == step
        n = len(before) // 3
        for i, (g, p, m, v) in enumerate(
            zip(
                tree_leaves(grads),
                tree_leaves(params),
                tree_leaves(state["m"]),
                tree_leaves(state["v"]),
                strict=True,
            )
        ):
            p0, m0, v0 = before[i], before[n + i], before[2 * n + i]
            decay = weight_decay if p.ndim >= 2 else 0.0
            want = reference.adamw_step(p0, g, m0, v0, step, weight_decay=decay, **how)
            size_m = betas[0] * np.abs(m0) + (1 - betas[0]) * np.abs(g)
            denominator = np.sqrt(want[2] / (1 - betas[1] ** step)) + 1e-8
            error_m = 4 * u * size_m + np.finfo(dtype).tiny
            error_p = (
                4 * u * np.abs(p0) + 0.01 / (1 - betas[0] ** step) * (error_m + 16 * u * size_m) / denominator
            )
            assert p.dtype == m.dtype == v.dtype == dtype
            assert (np.abs(m - want[1]) <= error_m).all()
            assert (np.abs(v - want[2]) <= 8 * u * want[2] + np.finfo(dtype).tiny).all()
            assert (np.abs(p - want[0]) <= 2 * error_p).all()


def test_which_arrays_decay():
    def after(decay):
        params = {"w": np.ones((2, 2)), "b": np.ones(2)}
        zeros = {"w": np.zeros((2, 2)), "b": np.zeros(2)}
        adamw_step(params, zeros, adamw_init(params), lr=0.5, weight_decay=0.5, decay=decay)
        return params["w"][0, 0], params["b"][0]

    assert after(None) == (0.75, 1.0)
    assert after(lambda path, array: path == "b") == (1.0, 0.75)
    assert after({"w": True, "b": True}) == (0.75, 0.75)


def test_max_norm_scales_gradients_and_leaves_them_alone():
    rng = np.random.default_rng(0)
    grads = tree(rng, np.float64, 100.0)
    one, two = tree(np.random.default_rng(1), np.float64), tree(np.random.default_rng(1), np.float64)
    kept = [np.copy(g) for g in tree_leaves(grads)]
    norm = adamw_step(one, grads, adamw_init(one), lr=0.1, eps=1.0, max_norm=2.0)
    for g, k in zip(tree_leaves(grads), kept, strict=True):
        assert_array_equal(g, k)
    assert clip_grad_norm(grads, 2.0) == norm
    adamw_step(two, grads, adamw_init(two), lr=0.1, eps=1.0)
    for a, b in zip(tree_leaves(one), tree_leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)


def test_a_step_of_gradients_that_are_not_finite_is_skipped():
    params, grads = {"w": np.ones(3)}, {"w": np.array([1.0, np.inf, 0.0])}
    state = adamw_init(params)
    norm = adamw_step(params, grads, state, lr=0.1, max_norm=1.0)
    assert norm == math.inf
    assert state["step"] == 0
    assert_array_equal(params["w"], np.ones(3))
    assert_array_equal(state["v"]["w"], np.zeros(3))


def test_gradients_that_are_read_only_or_strided():
    params = {"w": np.ones((2, 3), np.float32)}
    adamw_step(params, {"w": np.broadcast_to(np.float32(1), (2, 3))}, adamw_init(params), lr=0.1)
    np.testing.assert_allclose(params["w"], 0.9, rtol=1e-6)
    params = {"w": np.ones((2, 3))}
    adamw_step(params, {"w": np.ones((3, 2)).T}, adamw_init(params), lr=0.1)
    np.testing.assert_allclose(params["w"], 0.9, rtol=1e-6)


@given(seed=st.integers(0, 2**32), dtype=st.sampled_from([np.float32, np.float64]), scale=st.integers(-3, 3))
def test_clip_grad_norm(seed, dtype, scale):
    grads = tree(np.random.default_rng(seed), dtype, 10.0**scale)
    before = [np.copy(g) for g in tree_leaves(grads)]
    norm = clip_grad_norm(grads, 1.0)
    want = math.sqrt(math.fsum(float(x) ** 2 for g in before for x in g.ravel()))
    assert abs(norm - want) <= 1e-13 * want
    factor = min(1.0, 1.0 / want)
    for g, b in zip(tree_leaves(grads), before, strict=True):
        assert g.dtype == dtype
        np.testing.assert_allclose(g, factor * b.astype(np.float64), rtol=4 * np.finfo(dtype).eps)


def test_clip_grad_norm_of_shared_and_read_only_arrays():
    shared = np.full(4, 3.0)
    grads = {"a": shared, "b": shared[::-1], "c": {"d": shared, "e": np.broadcast_to(3.0, (4,))}}
    assert clip_grad_norm(grads, 1.2) == 12.0
    for path, g in tree_items(grads):
        np.testing.assert_allclose(g, np.full(4, 0.3), err_msg=path)


def test_clip_leaves_what_is_small_or_not_finite():
    grads = {"w": np.array([0.3, 0.4])}
    assert clip_grad_norm(grads, 1.0) == 0.5
    assert_array_equal(grads["w"], [0.3, 0.4])
    grads = {"w": np.array([np.nan, 1.0])}
    assert math.isnan(clip_grad_norm(grads, 1.0))
    assert_array_equal(grads["w"], [np.nan, 1.0])


def test_ema_update():
    rng = np.random.default_rng(2)
    ema, params = tree(rng, np.float32), tree(rng, np.float32)
    want = tree_map(lambda m, x: 0.9 * m.astype(float) + 0.1 * x.astype(float), ema, params)
    ema_update(ema, params, 0.9)
    for got, w in zip(tree_leaves(ema), tree_leaves(want), strict=True):
        np.testing.assert_allclose(got, w, atol=1e-6)
    ema_update(ema, params, 0.0)
    for got, x in zip(tree_leaves(ema), tree_leaves(params), strict=True):
        np.testing.assert_allclose(got, x, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_do_not_change_a_bit(dtype):
    def run(n):
        rng = np.random.default_rng(3)
        params = {"a": rng.standard_normal((700, 300)).astype(dtype), "b": np.ones(5, dtype)}
        grads = {"a": rng.standard_normal((700, 300)).astype(dtype), "b": np.ones(5, dtype)}
        state = adamw_init(params)
        with sensorium.num_threads(n):
            norms = [adamw_step(params, grads, state, lr=0.1, max_norm=1.0), clip_grad_norm(grads, 0.5)]
            ema_update(params, grads, 0.3)
        return [*norms, *tree_leaves(params), *tree_leaves(grads), *tree_leaves(state["v"])]

    for a, b in zip(run(1), run(3), strict=True):
        assert_array_equal(a, b)


def test_mixed_dtypes_in_one_tree():
    params = {"a": np.ones(2, np.float32), "b": np.ones(2)}
    grads = {"a": np.ones(2, np.float32), "b": np.ones(2)}
    assert adamw_step(params, grads, adamw_init(params), lr=0.1, max_norm=10.0) == 2.0
    np.testing.assert_allclose(params["a"], 0.9, rtol=1e-6)
    np.testing.assert_allclose(params["b"], 0.9, rtol=1e-6)


W = {"w": np.ones(2)}
ERRORS = [
    (
        lambda: adamw_step(W, {"v": np.ones(2)}, adamw_init(W), lr=0.1),
        sensorium.ArgumentError,
        "grads lacks the key 'w'",
    ),
    (
        lambda: adamw_step(W, {"w": np.ones(2), "v": 1}, adamw_init(W), lr=0.1),
        sensorium.ArgumentError,
        "grads has an unknown key 'v'",
    ),
    (
        lambda: adamw_step(W, {"w": np.ones(3)}, adamw_init(W), lr=0.1),
        sensorium.ShapeError,
        r"grads.w has shape \(3,\), expected \(2,\)",
    ),
    (
        lambda: adamw_step(W, {"w": np.ones(2, np.float32)}, adamw_init(W), lr=0.1),
        sensorium.DTypeError,
        "grads.w has dtype float32, expected float64",
    ),
    (
        lambda: adamw_step(W, W, adamw_init(W), lr=-0.1),
        sensorium.ArgumentError,
        "lr must not be negative, not -0.1",
    ),
    (
        lambda: adamw_step(W, W, adamw_init(W), lr=0.1, betas=(0.9, 1.0)),
        sensorium.ArgumentError,
        r"betas\[1\] must be from 0 to below 1, not 1",
    ),
    (
        lambda: adamw_step(W, W, adamw_init(W), lr=0.1, eps=0),
        sensorium.ArgumentError,
        "eps must be above 0, not 0",
    ),
    (
        lambda: adamw_step(W, {"w": np.ones(2)}, adamw_init(W), lr=0.1, max_norm=0),
        sensorium.ArgumentError,
        "max_norm must be above 0",
    ),
    (
        lambda: adamw_step(
            {"w": np.ones(2, int)}, {"w": np.ones(2, int)}, adamw_init({"w": np.ones(2, int)}), lr=0.1
        ),
        sensorium.DTypeError,
        "w has dtype int64, expected float32 or float64",
    ),
    (
        lambda: adamw_step(
            {"w": np.ones((2, 2)).T[:1]}, {"w": np.ones((1, 2))}, adamw_init({"w": np.ones((1, 2))}), lr=0.1
        ),
        sensorium.ArgumentError,
        "params must be C-contiguous to be updated in place",
    ),
    (lambda: clip_grad_norm({"w": np.ones(2, int)}, 1.0), sensorium.DTypeError, "grads.w has dtype int64"),
    (lambda: clip_grad_norm({"w": 1.0}, 1.0), sensorium.DTypeError, "grads.w is a float, expected an array"),
    (lambda: clip_grad_norm(W, -1.0), sensorium.ArgumentError, "max_norm must be above 0, not -1"),
    (
        lambda: ema_update(W, {"w": np.ones(2)}, 1.5),
        sensorium.ArgumentError,
        "decay must be from 0 to 1, not 1.5",
    ),
    (lambda: ema_update(W, {"w": np.ones(3)}, 0.5), sensorium.ShapeError, r"params.w has shape \(3,\)"),
    (
        lambda: ema_update(W, {"w": {"x": np.ones(3)}}, 0.5),
        sensorium.ArgumentError,
        "params.w is a dict, expected a leaf",
    ),
    (
        lambda: ema_update({"w": [np.ones(1)]}, {"w": []}, 0.5),
        sensorium.ArgumentError,
        "params.w must be a sequence of 1",
    ),
    (lambda: ema_update(W, np.ones(1), 0.5), sensorium.ArgumentError, "params is a ndarray, expected a dict"),
]


@pytest.mark.parametrize(("call", "error", "words"), ERRORS)
def test_errors_name_the_array(call, error, words):
    with pytest.raises(error, match=words):
        call()
