"""Fused operations against their float64 references, with bounds that follow from the arithmetic."""

import numpy as np
import pytest
import sensorium
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from reference import nn as reference
from sensorium import _core, ops

DTYPES = (np.float32, np.float64)
FORMS = ("plain", "strided", "transposed", "swapped", "readonly")
SHAPES = st.lists(st.integers(0, 5), max_size=2).map(tuple)
WIDTHS = st.sampled_from([1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 64, 97])
SLACK = 4  # Each bound counts roundings; this covers the second-order terms that it leaves out.


@pytest.fixture(params=_core.isa_available(), autouse=True, scope="module")
def isa(request):
    before = _core.isa_level()
    assert _core.set_isa(request.param) == request.param
    yield request.param
    _core.set_isa(before)


def roundoff(dtype):
    return np.finfo(dtype).eps / 2


def formed(array, form):
    """The same values in another memory layout."""
    if form == "strided":
        out = np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array
    elif form == "transposed":
        out = array.T.copy().T
    elif form == "swapped":
        out = array.astype(array.dtype.newbyteorder())
    else:
        out = array.copy()
    out.flags.writeable = form != "readonly"
    return out


def close(got, want, bound):
    """Hold ``got`` to ``want`` within ``bound``, element by element."""
    got = np.asarray(got, dtype=np.float64)
    assert got.shape == np.shape(want)
    excess = np.abs(got - want) - bound
    assert not np.isnan(excess).any()
    assert (excess <= 0).all(), f"worst excess {excess.max():.3g}"


@st.composite
def norm_cases(draw):
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (*draw(SHAPES), draw(WIDTHS))
    scale, shift = 10.0 ** draw(st.integers(-6, 12)), draw(st.sampled_from([0.0, 1.0, -1e4]))
    x = scale * (shift + rng.standard_normal(shape))
    if draw(st.booleans()) and x.size:
        x.reshape(-1, shape[-1])[0] = scale * 3.7  # A constant row.
    form = draw(st.sampled_from(FORMS))
    weight, bias, grad = rng.standard_normal((3, shape[-1])), None, rng.standard_normal(shape)
    weight, bias = weight[0], weight[1]
    arrays = [formed(a.astype(dtype), form) for a in (x, weight, bias, grad, rng.standard_normal(shape))]
    return *arrays, draw(st.booleans())


def norm_bound(x, weight, bias, y, rstd, centred):
    """Rounding of the centre and of the sums over D, carried through the division."""
    u, d = roundoff(x.dtype), x.shape[-1] + 8
    x = np.asarray(x, dtype=np.float64)
    centre = x.mean(-1, keepdims=True) if centred else 0
    far, rstd = np.abs(x).max(-1, keepdims=True), np.asarray(rstd)[..., None]
    spread = np.abs(x - centre).max(-1, keepdims=True) + d * u * far
    lost = 1 + (d * u * far * rstd) ** 2
    own = 2 * d * roundoff(np.float64) * far  # The reference rounds its mean, the kernel does not.
    spread = spread + own / (d * u)
    return SLACK * d * u * (spread * rstd * lost * np.abs(weight) + np.abs(bias) + np.abs(y)) + 1e-300


@given(norm_cases())
def test_layer_norm(case):
    x, weight, bias, grad, residual, has_bias = case
    b = bias if has_bias else None
    y, mean, rstd = ops.layer_norm(x, weight, b, return_stats=True)
    want, _, rstd_want = reference.layer_norm(x, weight, b, return_stats=True)
    assert y.dtype == mean.dtype == rstd.dtype == x.dtype.newbyteorder("=")
    close(y, want, norm_bound(x, weight, bias if has_bias else 0, want, rstd_want, True))
    assert_array_equal(ops.layer_norm(x, weight, b), y)
    around = residual if has_bias else None
    got = ops.layer_norm_backward(grad, x, weight, mean, rstd, has_bias=has_bias, residual=around)
    want = reference.layer_norm_backward(grad, x, weight, mean, rstd, has_bias=has_bias, residual=around)
    check_norm_gradients(got, want, case, mean, rstd)


@given(norm_cases())
def test_rms_norm(case):
    x, weight, _, grad, residual, has_residual = case
    y, rstd = ops.rms_norm(x, weight, return_stats=True)
    want, rstd_want = reference.rms_norm(x, weight, return_stats=True)
    close(y, want, norm_bound(x, weight, 0, want, rstd_want, False))
    around = residual if has_residual else None
    got = ops.rms_norm_backward(grad, x, weight, rstd, residual=around)
    want = reference.rms_norm_backward(grad, x, weight, rstd, residual=around)
    check_norm_gradients((*got, None), (*want, None), case, 0 * rstd, rstd)


def check_norm_gradients(got, want, case, mean, rstd):
    x, weight, _, grad, residual, flag = case
    u, d, rows = roundoff(x.dtype), x.shape[-1] + 8, x.size // x.shape[-1] + 8
    wide = [np.asarray(a, dtype=np.float64) for a in (x, weight, grad, mean, rstd, residual)]
    x, weight, grad, mean, rstd, residual = wide
    rstd = rstd[..., None]
    h, g = np.abs((x - mean[..., None]) * rstd), np.abs(grad * weight)
    terms = g + g.mean(-1, keepdims=True) + h * (g * h).mean(-1, keepdims=True)
    close(got[0], want[0], SLACK * u * (d * rstd * terms + flag * np.abs(residual)) + 1e-300)
    axes = tuple(range(x.ndim - 1))
    close(got[1], want[1], SLACK * rows * u * (np.abs(grad) * h).sum(axes) + 1e-300)
    if want[2] is not None:
        close(got[2], want[2], SLACK * rows * u * np.abs(grad).sum(axes) + 1e-300)
    else:
        assert got[2] is None


def test_rows_whose_squares_overflow_single_precision():
    x = (np.random.default_rng(0).standard_normal((3, 40)) * 1e30).astype(np.float32)
    ones = np.ones(40, np.float32)
    for name in ("layer_norm", "rms_norm"):
        close(getattr(ops, name)(x, ones), getattr(reference, name)(x, ones), 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.3e7, 1.7e15])
def test_a_constant_row_gives_the_bias(dtype, value):
    x, bias = np.full((2, 37), value, dtype), np.arange(37, dtype=dtype)
    y = ops.layer_norm(x, np.ones(37, dtype), bias, eps=1e-5)
    close(y, np.tile(bias, (2, 1)), 1e-2 if value > 1e14 and dtype == np.float32 else 1e-4)


def test_norm_of_a_row_is_standard():
    x = np.random.default_rng(0).standard_normal((9, 50)) * 12 + 3
    y = ops.layer_norm(x, np.ones(50), eps=0.0)
    close(y.mean(-1), np.zeros(9), 1e-14)
    close((y**2).mean(-1), np.ones(9), 1e-13)


def test_nan_stays_in_its_row():
    x = np.ones((3, 20)) * np.arange(20)
    x[1, 7] = np.nan
    for y in (ops.layer_norm(x, np.ones(20)), ops.rms_norm(x, np.ones(20))):
        assert np.isnan(y[1]).all()
        assert np.isfinite(y[[0, 2]]).all()


# What is left of an activation where its sigmoid underflows: |x| exp(-|t|) at the bound of x, by bytes of a float.
FLOOR = {4: 1e-34, 8: 1e-297}


@st.composite
def elementwise_cases(draw):
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (*draw(SHAPES), draw(st.integers(0, 70)))
    x = rng.standard_normal(shape) * 10.0 ** draw(st.integers(-20, 30))
    form = draw(st.sampled_from(FORMS))
    return formed(x.astype(dtype), form), formed(rng.standard_normal(shape).astype(dtype), form)


@pytest.mark.parametrize("name", ["gelu", "silu"])
@given(elementwise_cases())
def test_activation(name, case):
    x, grad = case
    u, floor = roundoff(x.dtype), FLOOR[x.dtype.itemsize]
    with np.errstate(over="ignore", invalid="ignore"):
        wide = np.clip(np.asarray(x, dtype=np.float64), -800, 800)
        want = reference.ACTIVATIONS[name](wide) * np.where(np.abs(x) > 800, np.abs(x) / 800.0, 1)
    # The sigmoid's relative error is that of its argument t times |t|: at most 90 before it flushes to 0.
    got = getattr(ops, name)(x)
    assert got.dtype == x.dtype.newbyteorder("=")
    t = np.minimum(np.abs(wide), 12 if name == "gelu" else 800) ** (3 if name == "gelu" else 1)
    close(got, want, u * np.abs(want) * (16 + 4 * t) + floor)
    slope = reference.SLOPES[name](1.0, wide)
    got = getattr(ops, name + "_backward")(grad, x)
    steep = u * (16 + 8 * np.abs(wide) + 4 * t) * np.minimum(1.2, np.abs(slope) + 1)
    close(got, slope * grad, np.abs(grad) * (steep + floor))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_activation_at_the_ends(name, dtype):
    huge = np.finfo(dtype).max
    x = np.array([0.0, huge, np.inf, np.nan, 1e20, -1e20, -huge, -np.inf], dtype)
    y = getattr(ops, name)(x)
    assert_array_equal(y[:5], np.array([0, huge, np.inf, np.nan, 1e20], dtype))
    assert (np.abs(y[5:]) <= FLOOR[x.itemsize]).all()
    slope = getattr(ops, name + "_backward")(np.ones_like(x), x)
    assert_array_equal(slope[:5], np.array([0.5, 1, 1, np.nan, 1], dtype))
    assert (np.abs(slope[5:]) <= FLOOR[x.itemsize]).all()


@st.composite
def linear_cases(draw):
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape, k, n = draw(SHAPES), draw(st.integers(0, 40)), draw(st.integers(0, 40))
    scale = 10.0 ** draw(st.integers(-3, 3))
    form = draw(st.sampled_from(FORMS))
    arrays = [
        formed((scale * rng.standard_normal(s)).astype(dtype), form)
        for s in ((*shape, k), (k, n), (n,), (*shape, n), (*shape, n))
    ]
    flags = draw(st.tuples(st.booleans(), st.booleans()))
    return *arrays, *flags, draw(st.sampled_from([None, "gelu", "silu"]))


@given(linear_cases())
def test_linear(case):
    x, weight, bias, residual, grad, has_bias, has_residual, act = case
    b, r = bias if has_bias else None, residual if has_residual else None
    out, slope = ops.linear(x, weight, b, activation=act, residual=r, return_slope=True)
    want, slope_want = reference.linear(x, weight, b, activation=act, residual=r, return_slope=True)
    u = roundoff(x.dtype)
    (k, n), m = weight.shape, int(np.prod(x.shape[:-1]))
    wide = [np.abs(np.asarray(a, dtype=np.float64)) for a in (x, weight, bias, residual, grad)]
    product = SLACK * (k + 4) * u * (wide[0] @ wide[1] + has_bias * wide[2]) + 1e-300
    # An activation adds its own error, see `test_activation`; none is steeper than 1.13 or bends more than 1.
    pre = np.abs(reference.linear(x, weight, b))
    own = u * (np.abs(pre) + 1) * 64 if act else 0
    close(out, want, 1.13 * product + own + 2 * u * (np.abs(want) + has_residual * wide[3]))
    if act:
        close(slope, slope_want, np.minimum(product + 64 * u * (1 + np.minimum(pre, 30)), 2.3))
    else:
        assert slope is None
    assert_array_equal(ops.linear(x, weight, b, activation=act, residual=r), out)

    got = ops.linear_backward(grad, x, weight, has_bias=has_bias, slope=slope)
    want = reference.linear_backward(grad, x, weight, has_bias=has_bias, slope=slope)
    dp = (wide[4] * (1.13 if act else 1)).reshape(m, n)
    close(got[0], want[0], SLACK * (n + 4) * u * (dp @ wide[1].T).reshape(x.shape) + 1e-300)
    close(got[1], want[1], SLACK * (m + 4) * u * (wide[0].reshape(m, k).T @ dp) + 1e-300)
    if has_bias:
        close(got[2], want[2], SLACK * (m + 4) * u * dp.sum(0) + 1e-300)
    else:
        assert got[2] is None


@st.composite
def loss_cases(draw):
    dtype = draw(st.sampled_from(DTYPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape, k = draw(st.lists(st.integers(0, 12), min_size=1, max_size=2)), draw(st.integers(1, 70))
    logits = (rng.standard_normal((*shape, k)) * 10.0 ** draw(st.integers(-2, 4))).astype(dtype)
    targets = rng.integers(0, k, shape)
    kind = draw(st.sampled_from(["none", "mask", "floats", "zeros"]))
    weights = {
        "none": None,
        "mask": rng.random(shape) < 0.5,
        "floats": (rng.random(shape) * (rng.random(shape) < 0.7)).astype(dtype),
        "zeros": np.zeros(shape, dtype),
    }[kind]
    if weights is not None:
        targets[weights == 0] = rng.choice([-1, k, 2**40])
        logits[weights == 0] = np.nan
    form = draw(st.sampled_from(FORMS))
    return formed(logits, form), formed(targets, form), weights


@given(loss_cases())
def test_cross_entropy(case):
    logits, targets, weights = case
    loss, lse = ops.cross_entropy(logits, targets, weights, return_lse=True)
    assert loss.dtype == lse.dtype == logits.dtype.newbyteorder("=")
    u, k = roundoff(logits.dtype), logits.shape[-1]
    seen = np.abs(logits[np.isfinite(logits)]).max(initial=0)
    error = SLACK * (k + 12) * u * (1 + float(seen))
    close(loss, reference.cross_entropy(logits, targets, weights), error)
    want = reference.cross_entropy_backward(0.7, logits, targets, weights)
    got = ops.cross_entropy_backward(0.7, logits, targets, weights, lse)
    largest = np.abs(want).max(initial=0)
    close(got, want, error * largest + 8 * u * largest + 1e-38)
    assert_array_equal(ops.cross_entropy_backward(0.7, logits, targets, weights), got)


def test_cross_entropy_with_impossible_classes():
    logits = np.array([[0.0, -np.inf, 1.0, -np.inf]])
    loss = ops.cross_entropy(logits, np.array([2]))
    close(loss, np.log(1 + np.exp(-1)), 1e-15)
    assert_array_equal(ops.cross_entropy_backward(1.0, logits, np.array([2]))[0, [1, 3]], [0, 0])


def test_gradient_of_cross_entropy_sums_to_zero_over_classes():
    rng = np.random.default_rng(1)
    d = ops.cross_entropy_backward(1.0, rng.standard_normal((40, 9)), rng.integers(0, 9, 40))
    close(d.sum(-1), np.zeros(40), 1e-16)


@given(
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32),
    shape=SHAPES,
    v=st.integers(1, 200),
    d=st.integers(0, 33),
    form=st.sampled_from(FORMS),
)
def test_embedding(dtype, seed, shape, v, d, form):
    rng = np.random.default_rng(seed)
    table, indices = rng.standard_normal((v, d)).astype(dtype), rng.integers(0, v, shape)
    grad = rng.standard_normal((*shape, d)).astype(dtype)
    assert_array_equal(ops.embedding(formed(table, form), indices), table[indices])
    want = reference.embedding_backward(grad, indices, v)
    total = reference.embedding_backward(np.abs(grad), indices, v)
    got = ops.embedding_backward(formed(grad, form), indices, v)
    close(got, want, indices.size * roundoff(dtype) * total)


def big(dtype):
    """Sizes at which every kernel uses its threads."""
    rng = np.random.default_rng(7)
    x, grad = rng.standard_normal((2, 5000, 96)).astype(dtype)
    weight, bias = rng.standard_normal((96, 80)).astype(dtype), rng.standard_normal(80).astype(dtype)
    targets = rng.integers(0, 96, 5000)
    return x, grad, weight, bias, targets, rng.standard_normal((5000, 80)).astype(dtype)


def everything(dtype):
    x, grad, weight, bias, targets, wide = big(dtype)
    gain = np.ascontiguousarray(weight[:, 0])
    y, mean, rstd = ops.layer_norm(x, gain, gain, return_stats=True)
    z, scale = ops.rms_norm(x, gain, return_stats=True)
    out, slope = ops.linear(x, weight, bias, activation="gelu", residual=wide, return_slope=True)
    loss, lse = ops.cross_entropy(x, targets, return_lse=True)
    return [
        y,
        *ops.layer_norm_backward(grad, x, gain, mean, rstd, residual=x),
        z,
        *ops.rms_norm_backward(grad, x, gain, scale),
        ops.gelu(x),
        ops.gelu_backward(grad, x),
        ops.silu(x),
        ops.silu_backward(grad, x),
        out,
        slope,
        *ops.linear_backward(wide, x, weight, slope=slope),
        loss,
        lse,
        ops.cross_entropy_backward(1.0, x, targets, None, lse),
        ops.embedding(x, targets),
        ops.embedding_backward(grad, targets, 700),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_a_bit(dtype):
    with sensorium.num_threads(1):
        one = everything(dtype)
    for n in (2, 3, 5):
        with sensorium.num_threads(n):
            for a, b in zip(one, everything(dtype), strict=True):
                assert_array_equal(a, b)


def test_single_agrees_with_double():
    # Sums run over 5,000 rows: their relative error in float32 stays below 5000 * 2^-24.
    for a, b in zip(everything(np.float32), everything(np.float64), strict=True):
        assert np.abs(a - b).max() <= 3e-4 * np.abs(b).max()


def test_results_are_new_arrays():
    x = np.ones((2, 3))
    assert not np.shares_memory(ops.linear(x, np.eye(3)), x)
    assert not np.shares_memory(ops.embedding(x, np.array([0])), x)


ONES = np.ones((2, 3))
ERRORS = [
    (
        lambda: ops.layer_norm(ONES, np.ones(4)),
        sensorium.ShapeError,
        r"weight has shape \(4,\), expected \(3,\) to fit x",
    ),
    (
        lambda: ops.layer_norm(ONES, np.ones(3), np.ones(2)),
        sensorium.ShapeError,
        r"bias has shape \(2,\), expected \(3,\) to fit weight",
    ),
    (
        lambda: ops.layer_norm(1.0, np.ones(3)),
        sensorium.ShapeError,
        r"x has shape \(\), expected at least one dimension",
    ),
    (
        lambda: ops.layer_norm(ONES, np.ones(3), eps=-1),
        sensorium.ArgumentError,
        "eps must not be negative, not -1",
    ),
    (
        lambda: ops.layer_norm(ONES, np.ones(3), eps=np.nan),
        sensorium.ArgumentError,
        "eps must be finite, not nan",
    ),
    (
        lambda: ops.layer_norm(ONES, np.ones(3, np.float32)),
        sensorium.DTypeError,
        "weight has dtype float32 but x has float64",
    ),
    (
        lambda: ops.layer_norm(np.ones((2, 3), int), np.ones(3)),
        sensorium.DTypeError,
        "x has dtype int64, expected float32 or float64",
    ),
    (
        lambda: ops.layer_norm_backward(ONES, ONES, np.ones(3), np.ones(3), np.ones(2)),
        sensorium.ShapeError,
        "mean has shape",
    ),
    (
        lambda: ops.rms_norm_backward(ONES, ONES, np.ones(3), np.ones(3)),
        sensorium.ShapeError,
        "rstd has shape",
    ),
    (
        lambda: ops.rms_norm_backward(ONES[:1], ONES, np.ones(3), np.ones(2)),
        sensorium.ShapeError,
        "grad has shape",
    ),
    (
        lambda: ops.rms_norm_backward(ONES, ONES, np.ones(3), np.ones(2), residual=ONES.T),
        sensorium.ShapeError,
        "residual has shape",
    ),
    (
        lambda: ops.gelu_backward(ONES, ONES.T),
        sensorium.ShapeError,
        r"grad has shape \(2, 3\), expected \(3, 2\) to fit x",
    ),
    (lambda: ops.silu(np.ones(3, np.float16)), sensorium.DTypeError, "x has dtype float16"),
    (lambda: ops.linear(ONES, np.ones((4, 2))), sensorium.ShapeError, "weight has D_in=4 but x has D_in=3"),
    (
        lambda: ops.linear(ONES, np.ones(3)),
        sensorium.ShapeError,
        r"weight has shape \(3,\), expected 2 dimensions",
    ),
    (lambda: ops.linear(ONES, np.eye(3), np.ones(2)), sensorium.ShapeError, "bias has shape"),
    (lambda: ops.linear(ONES, np.eye(3), residual=ONES.T), sensorium.ShapeError, "residual has shape"),
    (
        lambda: ops.linear(ONES, np.eye(3), activation="relu"),
        sensorium.ArgumentError,
        'activation must be None, "gelu" or "silu", not "relu"',
    ),
    (lambda: ops.linear_backward(ONES.T, ONES, np.eye(3)), sensorium.ShapeError, "grad has shape"),
    (
        lambda: ops.linear_backward(ONES, ONES, np.eye(3), slope=ONES.T),
        sensorium.ShapeError,
        "slope has shape",
    ),
    (
        lambda: ops.cross_entropy(ONES, np.array([0, 3])),
        sensorium.ArgumentError,
        "targets holds 3, expected classes from 0 to 2",
    ),
    (lambda: ops.cross_entropy(ONES, np.array([0, -1])), sensorium.ArgumentError, "targets holds -1"),
    (lambda: ops.cross_entropy(ONES, np.array([0])), sensorium.ShapeError, "targets has shape"),
    (
        lambda: ops.cross_entropy(ONES, np.array([0.0, 1.0])),
        sensorium.DTypeError,
        "targets has dtype float64, expected integers",
    ),
    (
        lambda: ops.cross_entropy(ONES, np.array([0, 1]), np.array([1.0, -2.0])),
        sensorium.ArgumentError,
        "weights must be finite and not negative, found -2",
    ),
    (
        lambda: ops.cross_entropy(ONES, np.array([0, 1]), np.array([1.0, np.nan])),
        sensorium.ArgumentError,
        "weights must be finite and not negative, found NaN",
    ),
    (
        lambda: ops.cross_entropy(ONES, np.array([0, 1]), np.ones(3)),
        sensorium.ShapeError,
        "weights has shape",
    ),
    (
        lambda: ops.cross_entropy(ONES, np.array([0, 1]), np.array(["a", "b"])),
        sensorium.DTypeError,
        "weights has dtype",
    ),
    (
        lambda: ops.cross_entropy_backward(1.0, ONES, np.array([0, 1]), None, np.ones(3)),
        sensorium.ShapeError,
        "lse has shape",
    ),
    (
        lambda: ops.embedding(ONES, np.array([2])),
        sensorium.ArgumentError,
        "indices holds 2, expected indices from 0 to 1",
    ),
    (lambda: ops.embedding(ONES, np.array([-1])), sensorium.ArgumentError, "indices holds -1"),
    (
        lambda: ops.embedding(np.ones(3), np.array([0])),
        sensorium.ShapeError,
        r"table has shape \(3,\), expected 2 dimensions \(V, D\)",
    ),
    (lambda: ops.embedding_backward(ONES, np.array([0]), 2), sensorium.ShapeError, "grad has shape"),
    (lambda: ops.embedding_backward(ONES, np.array([0, 2]), 2), sensorium.ArgumentError, "indices holds 2"),
]


@pytest.mark.parametrize(("call", "error", "words"), ERRORS)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()
