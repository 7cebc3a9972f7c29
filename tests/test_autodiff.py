"""Derivatives under autograd: along random directions, in float64, against central differences."""

import autograd.numpy as anp
import numpy as np
import pytest
import sensorium
from autograd import grad
from hypothesis import given
from hypothesis import strategies as st
from sensorium import autodiff as ad
from sensorium import ops


def directional(function, arrays, rng):
    """Hold the gradient along one random direction to a Richardson-extrapolated central difference."""
    direction = {k: rng.standard_normal(a.shape) for k, a in arrays.items()}

    def along(t):
        return float(function({k: a + t * direction[k] for k, a in arrays.items()}))

    def central(h):
        return (along(h) - along(-h)) / (2 * h)

    h = 1e-3
    want = (4 * central(h / 2) - central(h)) / 3  # Error of order h^4.
    value, grads = ad.value_and_grad(function)(arrays)
    got = sum(float((grads[k] * direction[k]).sum()) for k in arrays)
    size = sum(float(np.abs(grads[k] * direction[k]).sum()) for k in arrays)
    assert value == function(arrays)
    assert abs(got - want) <= 1e-8 * (1 + size + abs(value))
    assert size > 0


def weighted(y):
    """A scalar that weighs every element differently, and is not linear in them."""
    return anp.sum(anp.sin(anp.arange(1.0, y.size + 1).reshape(y.shape)) * (y + 0.1 * y * y))


RNG = np.random.default_rng
CASES = {
    "layer_norm": (lambda p: ad.layer_norm(p["x"], p["w"], p["b"]), {"x": (2, 5, 7), "w": (7,), "b": (7,)}),
    "layer_norm without bias": (lambda p: ad.layer_norm(p["x"], p["w"]), {"x": (3, 7), "w": (7,)}),
    "rms_norm": (lambda p: ad.rms_norm(p["x"], p["w"]), {"x": (2, 5, 7), "w": (7,)}),
    "gelu": (lambda p: ad.gelu(p["x"]), {"x": (4, 9)}),
    "silu": (lambda p: ad.silu(p["x"]), {"x": (4, 9)}),
    "linear": (lambda p: ad.linear(p["x"], p["w"], p["b"]), {"x": (2, 3, 5), "w": (5, 4), "b": (4,)}),
    "linear without bias": (lambda p: ad.linear(p["x"], p["w"]), {"x": (3, 5), "w": (5, 4)}),
    "linear and gelu": (
        lambda p: ad.linear(p["x"], p["w"], p["b"], activation="gelu", residual=p["r"]),
        {"x": (3, 5), "w": (5, 4), "b": (4,), "r": (3, 4)},
    ),
    "linear and silu": (
        lambda p: ad.linear(p["x"], p["w"], activation="silu"),
        {"x": (3, 5), "w": (5, 4)},
    ),
    "embedding": (lambda p: ad.embedding(p["t"], np.array([[1, 1], [0, 3]])), {"t": (5, 3)}),
    "cross_entropy": (
        lambda p: ad.cross_entropy(p["x"], np.array([1, 0, 3]), np.array([0.5, 0.0, 2.0])),
        {"x": (3, 4)},
    ),
}


@pytest.mark.parametrize("name", CASES)
@given(seed=st.integers(0, 2**32))
def test_gradient_along_a_random_direction(name, seed):
    function, shapes = CASES[name]
    rng = RNG(seed)
    arrays = {k: rng.standard_normal(shape) for k, shape in shapes.items()}
    directional(lambda p: weighted(function(p)), arrays, rng)


@pytest.mark.parametrize("name", CASES)
def test_gradients_have_the_dtype_of_their_arrays(name):
    function, shapes = CASES[name]
    rng = RNG(0)
    arrays = {k: rng.standard_normal(shape) for k, shape in shapes.items()}
    narrow = {k: a.astype(np.float32) for k, a in arrays.items()}
    _, want = ad.value_and_grad(lambda p: weighted(function(p)))(arrays)
    _, got = ad.value_and_grad(lambda p: weighted(function(p)))(narrow)
    for k in arrays:
        assert got[k].dtype == np.float32
        assert np.abs(got[k] - want[k]).max() <= 2e-5 * np.abs(want[k]).max()


def test_autograds_own_grad_gives_the_same():
    x, w = RNG(3).standard_normal((6, 5)), RNG(4).standard_normal(5)
    mine = ad.value_and_grad(lambda p: weighted(ad.rms_norm(p[0], p[1])))([x, w])[1]
    for i in (0, 1):
        theirs = grad(lambda x, w: weighted(ad.rms_norm(x, w)), i)(x, w)
        np.testing.assert_array_equal(theirs, mine[i])


def test_a_leaf_used_twice_gets_both_gradients():
    _, grads = ad.value_and_grad(lambda p: anp.sum(ad.linear(p["w"], p["w"])))({"w": np.eye(2)})
    np.testing.assert_array_equal(grads["w"], np.full((2, 2), 2.0))


def test_value_and_grad_of_nested_trees():
    params = {"a": {"x": np.ones(2)}, "b": [np.full(3, 2.0), np.zeros(1)]}
    function = ad.value_and_grad(
        lambda p, k: (k * anp.sum(p["a"]["x"]) + anp.sum(p["b"][0] ** 2), {"n": p["b"][0][0]}), has_aux=True
    )
    (value, aux), grads = function(params, 3.0)
    assert value == 18.0
    assert type(aux["n"]) is np.float64
    assert aux == {"n": 2.0}
    np.testing.assert_array_equal(grads["a"]["x"], [3.0, 3.0])
    np.testing.assert_array_equal(grads["b"][0], [4.0, 4.0, 4.0])
    np.testing.assert_array_equal(grads["b"][1], [0.0])


def test_value_that_depends_on_nothing():
    value, grads = ad.value_and_grad(lambda p: 1.5)({"x": np.ones(2, np.float32)})
    assert value == 1.5
    np.testing.assert_array_equal(grads["x"], np.zeros(2, np.float32))


def test_a_parameter_itself_as_the_value():
    _, grads = ad.value_and_grad(lambda p: p["x"])({"x": np.array(2.0)})
    np.testing.assert_array_equal(grads["x"], 1.0)


def test_inside_a_gradient_of_autograd():
    """The tape of a call is its own: an outer one does not see it."""

    def outer(t):
        inner = ad.value_and_grad(lambda p: anp.sum(p["x"] * p["x"]))({"x": np.array([1.0, 2.0])})[0]
        return t * inner

    assert grad(outer)(2.0) == 5.0


def test_errors():
    with pytest.raises(sensorium.ArgumentError, match=r"function returned shape \(2,\), expected a scalar"):
        ad.value_and_grad(lambda p: p["x"])({"x": np.ones(2)})
    with pytest.raises(
        sensorium.ArgumentError, match="targets and weights of cross_entropy have no gradient"
    ):
        grad(lambda w: ad.cross_entropy(np.ones((2, 3)), np.array([0, 1]), w))(np.ones(2))


def test_forward_values_are_those_of_the_operations():
    x, w = RNG(5).standard_normal((4, 6)), RNG(6).standard_normal(6)
    np.testing.assert_array_equal(ad.layer_norm(x, w, eps=1e-3), ops.layer_norm(x, w, eps=1e-3))
    np.testing.assert_array_equal(ad.gelu(x), ops.gelu(x))
