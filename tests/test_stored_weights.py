"""Linear maps whose weights are used as they are stored: transposed, of half precision, mapped from a file."""

import ml_dtypes
import numpy as np
import pytest
import sensorium
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from reference import nn as reference
from sensorium import ops
from sensorium.errors import DTypeError, ShapeError
from sensorium.ops import nn

BFLOAT16 = ml_dtypes.bfloat16
STORED = [np.float32, np.float64, np.float16, BFLOAT16]
FORMS = ["rows", "transposed", "strided", "byte-swapped", "read-only", "unaligned"]


def in_form(array, form):
    """The same numbers, held in memory in another way."""
    if form == "transposed":
        return np.ascontiguousarray(array.T).T
    if form == "strided":
        wide = np.zeros((array.shape[0], 2 * array.shape[1]), array.dtype)
        wide[:, ::2] = array
        return wide[:, ::2]
    if form == "byte-swapped" and array.dtype != BFLOAT16:
        return array.astype(array.dtype.newbyteorder())
    if form == "unaligned":
        view = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
        view[...] = array
        return view
    array = array.copy()
    array.flags.writeable = form != "read-only"
    return array


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    m = draw(st.one_of(st.integers(0, 10), st.sampled_from([33, 200])))
    k = draw(st.one_of(st.integers(0, 40), st.sampled_from([64, 129])))
    n = draw(st.one_of(st.integers(0, 40), st.sampled_from([64, 300])))
    stored = draw(st.sampled_from(STORED))
    dtype = np.float64 if stored is np.float64 else np.float32
    weight = in_form((rng.normal(size=(k, n)) / 4).astype(stored), draw(st.sampled_from(FORMS)))
    x, bias, residual = (rng.normal(size=s).astype(dtype) for s in ((m, k), (n,), (m, n)))
    flags = draw(st.tuples(st.booleans(), st.booleans()))
    return x, weight, bias, residual, *flags, draw(st.sampled_from([None, "gelu", "silu"]))


def agree(case):
    x, weight, bias, residual, has_bias, has_residual, act = case
    b, r = bias if has_bias else None, residual if has_residual else None
    out, slope = ops.linear(x, weight, b, activation=act, residual=r, return_slope=True)
    wide = weight.astype(np.float64)
    want, slope_want = reference.linear(x, wide, b, activation=act, residual=r, return_slope=True)
    assert out.dtype == x.dtype
    u = np.finfo(x.dtype).eps / 2
    terms = np.abs(x).astype(float) @ np.abs(wide) + has_bias * np.abs(bias)
    # Weights are widened exactly. An activation is nowhere steeper than 1.13.
    bound = 3 * (x.shape[1] + 4) * u * terms + 1e-300
    own = 64 * u * (np.abs(reference.linear(x, wide, b)) + 1) if act else 0
    error = np.abs(out - want) - (1.13 * bound + own + 2 * u * (np.abs(want) + np.abs(residual)))
    assert (error <= 0).all()
    if act:
        assert (np.abs(slope - slope_want) <= bound + 64 * u * (1 + np.abs(want) + np.abs(residual))).all()
    assert_array_equal(ops.linear(x, weight, b, activation=act, residual=r), out)


@given(case=cases())
def test_agrees_with_the_reference(case):
    agree(case)


@pytest.mark.usefixtures("isa")
@settings(max_examples=15)
@given(case=cases())
def test_agrees_at_every_level(case):
    agree(case)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("m", [1, 3, 70])
def test_large_weights_agree_whatever_the_number_of_threads(stored, transposed, m):
    rng = np.random.default_rng(0)
    dtype = np.float64 if stored is np.float64 else np.float32
    x, weight = rng.normal(size=(m, 700)).astype(dtype), rng.normal(size=(700, 900)).astype(stored)
    weight = in_form(weight, "transposed" if transposed else "rows")
    results = []
    for n in (1, 2, 5):
        with sensorium.num_threads(n):
            results.append(ops.linear(x, weight))
    np.testing.assert_allclose(results[0], x @ weight.astype(dtype), rtol=1e-3, atol=1e-3)
    for other in results[1:]:
        assert_array_equal(other, results[0])


@pytest.mark.parametrize("stored", STORED)
def test_few_rows_give_the_same_bits_however_many(stored):
    rng = np.random.default_rng(1)
    dtype = np.float64 if stored is np.float64 else np.float32
    x, weight = rng.normal(size=(8, 99)).astype(dtype), rng.normal(size=(77, 99)).astype(stored)
    together = ops.linear(x, weight.T)
    for m in range(2, 8):
        assert_array_equal(ops.linear(x[:m], weight.T), together[:m])
    np.testing.assert_allclose(ops.linear(x[0], weight.T), together[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stored", STORED)
def test_weights_are_read_where_they_lie(stored, tmp_path):
    """Of a file mapped read-only, in both orders, and of some outputs only, nothing is copied."""
    dtype = np.dtype(np.float64 if stored is np.float64 else np.float32)
    rng = np.random.default_rng(2)
    array = rng.normal(size=(48, 32)).astype(stored)
    (tmp_path / "weights").write_bytes(b"12345678" + array.tobytes())
    mapped = np.memmap(tmp_path / "weights", stored, "r", offset=8, shape=(48, 32))
    x = rng.normal(size=(2, 32)).astype(dtype)
    for weight in (mapped.T, mapped.T[:, 8:24]):
        _, held, transposed, _ = nn._stored_weight(x, weight)
        assert transposed
        assert np.shares_memory(held, mapped)
        np.testing.assert_allclose(ops.linear(x, weight), x @ np.asarray(weight, dtype), rtol=1e-4, atol=1e-4)
    x = rng.normal(size=(2, 48)).astype(dtype)
    _, held, transposed, _ = nn._stored_weight(x, mapped)
    assert not transposed
    assert np.shares_memory(held, mapped)


def test_a_nan_and_an_infinity_stay_in_their_column():
    weight = np.zeros((20, 10), BFLOAT16)
    weight[3, 4], weight[5, 6] = np.nan, np.inf
    for stored in (weight, np.ascontiguousarray(weight.T).T):
        out = ops.linear(np.ones((2, 20), np.float32), stored)
        assert np.isnan(out[:, 4]).all()
        assert (out[:, 6] == np.inf).all()
        assert (np.delete(out, [4, 6], 1) == 0).all()


def test_subnormal_half_precision_is_kept():
    for stored in (np.float16, BFLOAT16):
        tiny = ml_dtypes.finfo(stored).smallest_subnormal
        weight = np.full((4, 3), tiny, stored)
        assert_array_equal(ops.linear(np.ones((1, 4), np.float32), weight), np.float32(4) * np.float32(tiny))


X = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("error", "words", "x", "weight"),
    [
        (
            DTypeError,
            "weight has dtype float16 but x has float64",
            X.astype(float),
            np.zeros((3, 4), np.float16),
        ),
        (DTypeError, "weight has dtype float64 but x has float32", X, np.zeros((3, 4))),
        (
            DTypeError,
            "weight has dtype int8, expected float32, float64, float16 or bfloat16",
            X,
            np.zeros((3, 4), np.int8),
        ),
        (ShapeError, "weight has D_in=4 but x has D_in=3", X, np.zeros((4, 3), np.float16)),
        (ShapeError, r"weight has shape \(3,\), expected 2 dimensions", X, np.zeros(3, BFLOAT16)),
        (DTypeError, "x has dtype float16, expected float32 or float64", X.astype(np.float16), X.T),
    ],
)
def test_errors_name_the_argument(error, words, x, weight):
    with pytest.raises(error, match=words):
        ops.linear(x, weight)


def test_half_precision_has_no_backward():
    with pytest.raises(DTypeError, match="weight has dtype float16"):
        ops.linear_backward(np.zeros((2, 4), np.float32), X, np.zeros((3, 4), np.float16))
