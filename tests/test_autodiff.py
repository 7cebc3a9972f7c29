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
from sensorium._tree import tree_items, tree_leaves, tree_map, tree_unflatten
from sensorium.ops import Layout, Segment


def directional(function, arrays, rng):
    """Hold the gradient along one random direction to a Richardson-extrapolated central difference."""
    direction = {k: rng.standard_normal(a.shape) for k, a in arrays.items()}

    def along(t):
        return float(function({k: a + t * direction[k] for k, a in arrays.items()}))

    def central(h):
        return (along(h) - along(-h)) / (2 * h)

    def richardson(h):
        return (4 * central(h / 2) - central(h)) / 3  # Error of order h^4.

    want = richardson(1e-4)
    truncation = abs(want - richardson(2e-4))  # 15 times the error of `want`, where the order holds.
    value, grads = ad.value_and_grad(function)(arrays)
    got = sum(float((grads[k] * direction[k]).sum()) for k in arrays)
    size = sum(float(np.abs(grads[k] * direction[k]).sum()) for k in arrays)
    assert value == function(arrays)
    assert truncation <= 1e-5 * (1 + size + abs(value))  # Else the differences say nothing.
    assert abs(got - want) <= 1e-8 * (1 + size + abs(value)) + truncation
    assert size > 0


def weighted(y):
    """A scalar that weighs every element differently, and is not linear in them."""
    return anp.sum(anp.sin(anp.arange(1.0, y.size + 1).reshape(y.shape)) * (y + 0.1 * y * y))


RNG = np.random.default_rng
LAYOUT = Layout([Segment("causal", 3), Segment("full", 4)])


def block_by_parts(p, x, layout, *, heads, norm="rms", activation="gelu", eps=1e-6):
    """What `transformer_block` says it is."""
    B, N, D = x.shape

    def normed(x, q):
        if norm == "rms":
            return ad.rms_norm(x, q["weight"], eps=eps)
        return ad.layer_norm(x, q["weight"], q.get("bias"), eps=eps)

    def linear(x, q, **how):
        return ad.linear(x, q["weight"], q.get("bias"), **how)

    t = anp.reshape(linear(normed(x, p["norm1"]), p["qkv"]), (B, N, 3, heads, D // heads))
    x = linear(ad.self_attention(t, layout), p["out"], residual=x)
    return linear(linear(normed(x, p["norm2"]), p["up"], activation=activation), p["down"], residual=x)


def block_params(rng, D=6, F=10, biases=("norm1", "qkv", "out", "norm2", "up", "down")):
    shapes = {"norm1": (D,), "qkv": (D, 3 * D), "out": (D, D), "norm2": (D,), "up": (D, F), "down": (F, D)}
    return {
        part: {"weight": rng.standard_normal(shape)}
        | ({"bias": rng.standard_normal(shape[-1])} if part in biases else {})
        for part, shape in shapes.items()
    }


CASES = {
    "attention": (
        lambda p: ad.attention(p["q"], p["k"], p["v"], LAYOUT, scale=0.3),
        {"q": (2, 4, 7, 3), "k": (2, 2, 7, 3), "v": (2, 2, 7, 3)},
    ),
    "self_attention": (lambda p: ad.self_attention(p["qkv"], LAYOUT), {"qkv": (2, 7, 3, 2, 3)}),
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


@pytest.mark.parametrize("activation", ["gelu", "silu"])
@pytest.mark.parametrize(
    ("norm", "biases"),
    [
        ("layer", ("norm1", "qkv", "out", "norm2", "up", "down")),
        ("layer", ("qkv", "norm2", "down")),
        ("rms", ("up",)),
        ("rms", ()),
    ],
)
def test_a_block_is_its_parts(norm, biases, activation):
    rng = RNG(11)
    params = {"p": block_params(rng, biases=biases), "x": rng.standard_normal((2, 7, 6))}
    how = {"heads": 2, "norm": norm, "activation": activation, "eps": 1e-3}
    got, grads = ad.value_and_grad(lambda a: weighted(ad.transformer_block(a["p"], a["x"], LAYOUT, **how)))(
        params
    )
    want, wanted = ad.value_and_grad(lambda a: weighted(block_by_parts(a["p"], a["x"], LAYOUT, **how)))(
        params
    )
    assert abs(got - want) <= 1e-12 * abs(want)
    for (path, g), w in zip(tree_items(grads), tree_leaves(wanted), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-9, atol=1e-11, err_msg=path)


@given(seed=st.integers(0, 2**32))
def test_gradient_of_a_block_along_a_random_direction(seed):
    rng = RNG(seed)
    params = block_params(rng, biases=("up",))
    flat = dict(tree_items(params))

    def function(arrays):
        nested = tree_unflatten(params, [arrays[path] for path in flat])
        return weighted(ad.transformer_block(nested, arrays["x"], LAYOUT, heads=3))

    directional(function, {**flat, "x": rng.standard_normal((1, 7, 6))}, rng)


def test_a_block_in_single_precision():
    rng = RNG(12)
    params = {"p": block_params(rng, biases=("up",)), "x": rng.standard_normal((2, 7, 6))}
    function = ad.value_and_grad(lambda a: weighted(ad.transformer_block(a["p"], a["x"], LAYOUT, heads=2)))
    _, want = function(params)
    _, got = function(tree_map(lambda a: a.astype(np.float32), params))
    for g, w in zip(tree_leaves(got), tree_leaves(want), strict=True):
        assert g.dtype == np.float32
        assert np.abs(g - w).max() <= 1e-4 * np.abs(w).max()


BLOCK = block_params(RNG(0), biases=())
X = np.ones((1, 7, 6))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: ad.transformer_block({}, X, LAYOUT, heads=2),
            sensorium.ArgumentError,
            "params lacks the key",
        ),
        (
            lambda: ad.transformer_block(BLOCK, X[0], LAYOUT, heads=2),
            sensorium.ShapeError,
            r"x has shape \(7, 6\), expected 3 dimensions \(B, N, D\)",
        ),
        (
            lambda: ad.transformer_block(BLOCK, X, LAYOUT, heads=4),
            sensorium.ArgumentError,
            "heads must divide D=6, not 4",
        ),
        (
            lambda: ad.transformer_block(BLOCK, X, LAYOUT, heads=2, norm="batch"),
            sensorium.ArgumentError,
            'norm must be "layer" or "rms", not \'batch\'',
        ),
        (
            lambda: ad.transformer_block(BLOCK, X, LAYOUT, heads=2, activation="relu"),
            sensorium.ArgumentError,
            "activation must be",
        ),
        (
            lambda: ad.transformer_block({**BLOCK, "out": {"weight": np.ones((6, 5))}}, X, LAYOUT, heads=2),
            sensorium.ShapeError,
            r"out.weight has shape \(6, 5\), expected \(6, 6\)",
        ),
        (
            lambda: ad.transformer_block(
                {**BLOCK, "up": {"weight": np.ones((6, 10)), "bias": np.ones(6)}}, X, LAYOUT, heads=2
            ),
            sensorium.ShapeError,
            r"up.bias has shape \(6,\), expected \(10,\)",
        ),
        (
            lambda: ad.transformer_block(
                {**BLOCK, "norm1": {"weight": np.ones(6), "bias": np.ones(6)}}, X, LAYOUT, heads=2
            ),
            sensorium.ArgumentError,
            "norm1.bias must not be given with an RMS norm",
        ),
        (
            lambda: ad.transformer_block(BLOCK, X.astype(np.float32), LAYOUT, heads=2),
            sensorium.DTypeError,
            "norm1.weight has dtype float64 but x has float32",
        ),
    ],
)
def test_errors_of_a_block(call, error, words):
    with pytest.raises(error, match=words):
        call()


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
