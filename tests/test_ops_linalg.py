"""Matrix products against sums of higher precision, with bounds that follow from the arithmetic."""

import numpy as np
import pytest
import sensorium
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from sensorium import _core, ops

FORMS = ("plain", "transposed", "strided", "reversed", "swapped", "readonly")
# Around the sizes of tiles (8 rows, 48 columns at most), blocks (128 rows) and steps of k (512).
SIZES = st.one_of(
    st.integers(0, 20), st.sampled_from([31, 47, 48, 49, 97, 128, 131, 144, 200, 257, 513, 620])
)


@pytest.fixture(params=_core.isa_available(), autouse=True, scope="module")
def isa(request):
    before = _core.isa_level()
    assert _core.set_isa(request.param) == request.param
    yield request.param
    _core.set_isa(before)


def formed(array, form):
    """The same values in another memory layout."""
    if form == "transposed":
        out = array.T.copy().T
    elif form == "strided":
        out = np.repeat(np.repeat(array, 2, axis=0), 3, axis=1)[::2, ::3]
    elif form == "reversed":
        out = array[::-1, ::-1].copy()[::-1, ::-1]
    elif form == "swapped":
        out = array.astype(array.dtype.newbyteorder())
    else:
        out = array.copy()
    out.flags.writeable = form != "readonly"
    assert_array_equal(out, array)
    return out


@st.composite
def cases(draw):
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    m, n, k = draw(SIZES), draw(SIZES), draw(SIZES)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = 10.0 ** draw(st.integers(-12, 15))
    a = (scale * rng.standard_normal((m, k))).astype(dtype)
    b = rng.standard_normal((k, n)).astype(dtype)
    return formed(a, draw(st.sampled_from(FORMS))), formed(b, draw(st.sampled_from(FORMS)))


@given(cases())
def test_product(case):
    a, b = case
    k = a.shape[1]
    got = ops.matmul(a, b)
    native = a.dtype.newbyteorder("=")
    assert got.dtype == native
    wide = np.float64 if native == np.float32 else np.longdouble
    x, y = a.astype(wide), b.astype(wide)
    # Every addition and, without fused multiply-add, every product rounds once (Higham 2002, 3.1). The
    # reference's own roundings count too: where long double is no wider, they are as many again.
    roundings = (k + k // 256 + 2) * (1 + (np.finfo(wide).eps / np.finfo(native).eps))
    unit = np.finfo(native).eps / 2
    bound = roundings * unit / (1 - roundings * unit) * (abs(x) @ abs(y))
    excess = abs(got - x @ y) - bound
    assert not np.isnan(excess).any()
    assert (excess <= 0).all()


@given(cases(), st.integers(2, 5))
def test_the_number_of_threads_changes_no_bit(case, n):
    a, b = case
    with sensorium.num_threads(1):
        want = ops.matmul(a, b)
    with sensorium.num_threads(n):
        assert_array_equal(ops.matmul(a, b), want)


@pytest.mark.parametrize("shape", [(700, 500, 300), (96, 288, 1500), (40, 900, 900)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_number_of_threads_changes_no_bit_of_large_products(shape, dtype):
    m, n, k = shape
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    results = []
    for threads in (1, 2, 3):
        with sensorium.num_threads(threads):
            results += [ops.matmul(a, b), ops.matmul(a.T.copy().T, b), ops.matmul(a, b.T.copy().T)]
    for got in results[1:]:
        assert_array_equal(got, results[0])


def test_infinities_and_nans_stay_in_their_rows_and_columns():
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((19, 33)), rng.standard_normal((33, 70))
    a[3, 5], a[7, 2], b[4, 60], a[18, 32] = np.inf, np.nan, -np.inf, np.inf
    b[32, 69] = 0.0
    with np.errstate(invalid="ignore"):
        want = a @ b
    assert np.isnan(want[18, 69])
    for dtype in (np.float32, np.float64):
        got = ops.matmul(a.astype(dtype), b.astype(dtype))
        assert_array_equal(np.isnan(got), np.isnan(want))
        assert_array_equal(got[np.isinf(want)], want[np.isinf(want)])
        finite = np.isfinite(want)
        assert_array_equal(np.isfinite(got), finite)
        np.testing.assert_allclose(got[finite], want[finite], rtol=0, atol=100 * np.finfo(dtype).eps)


def test_sums_too_large_are_infinite():
    a = np.full((9, 40), 1e20, dtype=np.float32)
    assert_array_equal(ops.matmul(a, a.T), np.full((9, 9), np.inf))


@pytest.mark.parametrize(
    ("a", "b", "error", "words"),
    [
        (np.zeros((2, 3)), np.zeros((4, 2)), sensorium.ShapeError, "b has K=4, expected K=3"),
        (np.zeros(3), np.zeros((3, 2)), sensorium.ShapeError, r"a has shape \(3,\), expected 2 dimensions"),
        (
            np.zeros((2, 3)),
            np.zeros((3, 2), "f4"),
            sensorium.DTypeError,
            "b has dtype float32 but a has float64",
        ),
        (
            np.zeros((2, 3)),
            np.zeros((3, 2), int),
            sensorium.DTypeError,
            "b has dtype int64, expected float32",
        ),
        (np.zeros((2**40, 0)), np.zeros((0, 2**40)), MemoryError, "out is too large: its size overflows"),
    ],
)
def test_errors_name_the_argument(a, b, error, words):
    with pytest.raises(error, match=words):
        ops.matmul(a, b)
