"""The gated RMS norm of Mamba-2 against its float64 reference."""

import autograd
import numpy as np
import pytest
import sensorium
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from reference import nn as reference
from sensorium import autodiff, ops
from sensorium.errors import ArgumentError, DTypeError, ShapeError


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype, groups = draw(st.sampled_from([np.float32, np.float64])), draw(st.integers(1, 4))
    shape = (*draw(st.lists(st.integers(0, 5), max_size=2)), groups * draw(st.integers(1, 40)))
    x = 10.0 ** draw(st.integers(-6, 12)) * rng.normal(size=shape)
    z, grad = draw(st.sampled_from([1.0, 20.0])) * rng.normal(size=shape), rng.normal(size=shape)
    weight = rng.normal(size=shape[-1])
    x, z, grad, weight = (a.astype(dtype) for a in (x, z, grad, weight))
    if draw(st.booleans()):
        x, z = x.astype(x.dtype.newbyteorder()), np.repeat(z, 2, axis=-1)[..., ::2]
        x.flags.writeable = False
    return x, z, weight, grad, groups


def close(got, want, bound):
    assert got.shape == want.shape
    excess = np.abs(got - want) - bound
    assert not np.isnan(excess).any()
    assert (excess <= 0).all(), f"worst excess {excess.max():.3g}"


def agree(case):
    """A mean of d squares takes d + 2 roundings; the gate is right to 3 units in the last place, its slope to 8."""
    x, z, weight, grad, groups = case
    u, d = np.finfo(grad.dtype).eps / 2, x.shape[-1] // groups
    y, rstd = ops.gated_rms_norm(x, z, weight, groups=groups, return_stats=True)
    want, rstd_want = reference.gated_rms_norm(x, z, weight, groups=groups, return_stats=True)
    assert y.dtype == rstd.dtype == grad.dtype
    slip = 2 * u * (d + 16)
    close(rstd, rstd_want, slip * rstd_want)
    close(y, want, 2 * slip * np.abs(want) + 1e-30)
    got = ops.gated_rms_norm_backward(grad, x, z, weight, rstd, groups=groups)
    want = reference.gated_rms_norm_backward(grad, x, z, weight, rstd_want, groups=groups)
    # Terms that cancel are bounded by what each is alone: |g| and |h| mean |g h|, and |h| is below sqrt(d).
    each = np.broadcast_to(rstd_want[..., None], (*rstd.shape, d)).reshape(x.shape)
    gradient = np.abs(grad * weight).reshape(*rstd.shape, d)
    h = np.abs(reference.gated_rms_norm(x, z, np.ones_like(weight), groups=groups)).reshape(gradient.shape)
    most = (gradient + h * (gradient * h).mean(-1, keepdims=True)).reshape(x.shape) * each
    slope = 1.1 * np.abs(x.astype(float))
    close(got[0], want[0], 3 * slip * most * np.abs(reference.silu(z)) + 1e-30)
    close(got[1], want[1], 3 * slip * most * slope + 1e-30)
    rows = tuple(range(x.ndim - 1))
    count = max(1, int(np.prod(x.shape[:-1])))
    close(got[2], want[2], 3 * (slip + count * u) * (np.abs(grad) * h.reshape(x.shape)).sum(rows) + 1e-30)


@given(case=cases())
def test_agrees_with_the_reference(case):
    agree(case)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_agrees_at_every_level(dtype):
    rng = np.random.default_rng(0)
    x, z, grad = rng.normal(size=(3, 70, 99)).astype(dtype)
    agree((x, z, x[0], grad, 3))


def test_one_group_is_the_norm_of_the_product():
    rng = np.random.default_rng(1)
    x, z = rng.normal(size=(2, 5, 24))
    want = ops.rms_norm(x * ops.silu(z), x[0], eps=1e-3)
    np.testing.assert_allclose(ops.gated_rms_norm(x, z, x[0], eps=1e-3), want, rtol=1e-14)


def test_gradients_along_a_random_direction():
    rng = np.random.default_rng(2)
    inputs = [*rng.normal(size=(2, 4, 12)), rng.normal(size=12)]
    ways, g = [rng.normal(size=a.shape) for a in inputs], rng.normal(size=(4, 12))

    def value(*arrays):
        return autograd.numpy.sum(autodiff.gated_rms_norm(*arrays, groups=3) * g)

    grads = autograd.grad(value, (0, 1, 2))(*inputs)
    slope = sum((a * b).sum() for a, b in zip(grads, ways, strict=True))
    h = 1e-5
    ends = [value(*(a + s * h * way for a, way in zip(inputs, ways, strict=True))) for s in (1, -1)]
    assert abs((ends[0] - ends[1]) / (2 * h) - slope) < 1e-7


def test_squares_beyond_single_precision_and_nans():
    rng = np.random.default_rng(3)
    x, z, weight = rng.normal(size=(3, 8)), rng.normal(size=(3, 8)), np.ones(8, np.float32)
    x, z = (1e30 * x).astype(np.float32), z.astype(np.float32)
    want = reference.gated_rms_norm(x, z, weight)
    np.testing.assert_allclose(ops.gated_rms_norm(x, z, weight), want, rtol=1e-5)
    z[1, 3] = np.nan
    y = ops.gated_rms_norm(x, z, weight)
    assert np.isnan(y[1]).all()
    np.testing.assert_allclose(y[::2], want[::2], rtol=1e-5)


def test_threads_do_not_change_a_bit():
    rng = np.random.default_rng(4)
    x, z, grad = rng.normal(size=(3, 400, 768)).astype(np.float32)
    results = []
    for n in (1, 2, 5):
        with sensorium.num_threads(n):
            y, rstd = ops.gated_rms_norm(x, z, x[0], groups=2, return_stats=True)
            results.append([y, *ops.gated_rms_norm_backward(grad, x, z, x[0], rstd, groups=2)])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert_array_equal(one, two)


X = np.zeros((2, 6))


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (ShapeError, r"z has shape \(2, 5\), expected \(2, 6\) to fit x", {"z": np.zeros((2, 5))}),
        (ShapeError, r"weight has shape \(5,\), expected \(6,\) to fit x", {"weight": np.zeros(5)}),
        (DTypeError, "z has dtype float32 but x has float64", {"z": np.zeros((2, 6), np.float32)}),
        (ArgumentError, "groups must divide the width 6, not be 4", {"groups": 4}),
        (ArgumentError, "groups must be at least 1, not 0", {"groups": 0}),
        (DTypeError, "groups must be an integer, not float", {"groups": 2.0}),
    ],
)
def test_errors_name_the_argument(error, words, change):
    given = {"x": X, "z": X, "weight": X[0], "groups": 1, **change}
    with pytest.raises(error, match=words):
        ops.gated_rms_norm(**given)
    with pytest.raises(error, match=words):
        ops.gated_rms_norm_backward(X, rstd=np.zeros((2, 1)), **given)


def test_errors_of_the_rest():
    with pytest.raises(ArgumentError, match="eps must not be negative"):
        ops.gated_rms_norm(X, X, X[0], eps=-1.0)
    with pytest.raises(ShapeError, match=r"grad has shape \(6,\), expected \(2, 6\)"):
        ops.gated_rms_norm_backward(X[0], X, X, X[0], X[:, :1])
    with pytest.raises(ShapeError, match=r"rstd has shape \(2,\), expected \(2, 2\)"):
        ops.gated_rms_norm_backward(X, X, X, X[0], X[:, 0], groups=2)
