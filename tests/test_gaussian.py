"""Gaussians in logarithms of variances: against the definitions in fifty digits, against SciPy, and by their laws.

Arithmetic is float64. A term of a sum loses some roundings of the exponentials and products in it, and, through the
exponential of a difference of two logarithms, that difference times a rounding; a sum of D terms loses D more.
"""

import itertools
from dataclasses import dataclass
from decimal import Decimal, localcontext

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sensorium import autodiff as ad
from sensorium import ops
from sensorium.errors import ArgumentError, DTypeError, ShapeError
from test_autodiff import directional, weighted

PI = Decimal("3.14159265358979323846264338327950288419716939937511")
EPS = np.finfo(np.float64).eps


def kl_term(m, v, n, w):
    return (w - v - 1 + (v - w).exp() + (m - n) ** 2 * (-w).exp()) / 2


def jeffreys_term(m, v, n, w):
    return kl_term(m, v, n, w) + kl_term(n, w, m, v)


def wasserstein_term(m, v, n, w):
    return (m - n) ** 2 + ((v / 2).exp() - (w / 2).exp()) ** 2


def log_prob_term(z, m, v):
    return ((2 * PI).ln() + v + (z - m) ** 2 * (-v).exp()) / -2


def entropy_term(v):
    return ((2 * PI).ln() + 1 + v) / 2


TERMS = {
    "gaussian_kl": kl_term,
    "gaussian_jeffreys": jeffreys_term,
    "gaussian_wasserstein": wasserstein_term,
    "gaussian_log_prob": log_prob_term,
    "gaussian_entropy": entropy_term,
}
COUNT = {
    "gaussian_kl": 4,
    "gaussian_jeffreys": 4,
    "gaussian_wasserstein": 4,
    "gaussian_log_prob": 3,
    "gaussian_entropy": 1,
}
LOGVARS = {  # Which of the arguments are logarithms of variances.
    "gaussian_kl": (1, 3),
    "gaussian_jeffreys": (1, 3),
    "gaussian_wasserstein": (1, 3),
    "gaussian_log_prob": (2,),
    "gaussian_entropy": (0,),
}


def defined(name, arrays):
    """The sum over the last axis in fifty digits, and the sum of the sizes of its terms."""
    arrays = np.broadcast_arrays(*arrays)
    out, size = (np.zeros(arrays[0].shape[:-1], dtype=object) for _ in range(2))
    with localcontext() as context:
        context.prec = 50
        for at in np.ndindex(arrays[0].shape[:-1]):
            rows = zip(*(a[at].tolist() for a in arrays), strict=True)
            terms = [TERMS[name](*(Decimal(x) for x in row)) for row in rows]
            out[at], size[at] = sum(terms, Decimal(0)), sum(map(abs, terms), Decimal(0))
    return out, size


@dataclass
class Case:
    name: str
    arrays: list
    about: str

    def __repr__(self):
        return f"{self.name} {[a.shape for a in self.arrays]} {self.arrays[0].dtype} {self.about}"


SHAPES = [
    [(2, 3)] * 4,
    [(2, 1), (3,), (2, 3), (1, 3)],
    [(5,)] * 4,
    [(2, 1, 4), (3, 4), (1,), (4,)],
    [(0, 3)] * 4,
    [(2, 0)] * 4,
]


@st.composite
def cases(draw, name=None):
    name = draw(st.sampled_from(sorted(TERMS))) if name is None else name
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    shapes = draw(st.sampled_from(SHAPES))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    spread = draw(st.sampled_from([0.0, 1e-6, 1.0, 10.0, 60.0]))
    near = draw(st.booleans())  # Whether both variances are about the same.
    centre = rng.normal(scale=30)
    arrays = []
    for i, shape in enumerate(shapes[: COUNT[name]]):
        values = rng.normal(size=shape)
        if i in LOGVARS[name]:
            values = values * spread + (centre if near else 0.0)
        elif near:
            values *= np.exp(centre / 2)
        arrays.append(in_form(values.astype(dtype), draw(st.sampled_from(FORMS))))
    return Case(name, arrays, f"seed {seed} spread {spread} near {near}")


FORMS = ["plain", "strided", "read-only", "byte-swapped", "reversed"]


def in_form(array, form):
    if form == "strided":
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        wide[..., ::2] = array
        return wide[..., ::2]
    if form == "reversed":
        return array[..., ::-1].copy()[..., ::-1]
    if form == "byte-swapped":
        return array.astype(array.dtype.newbyteorder())
    array.flags.writeable = form != "read-only"
    return array


@given(case=cases())
def test_agrees_with_the_definition_in_fifty_digits(case):
    options = {"squared": True} if case.name == "gaussian_wasserstein" else {}
    got = getattr(ops, case.name)(*case.arrays, **options)
    want, size = defined(case.name, case.arrays)
    dtype = case.arrays[0].dtype.newbyteorder("=")
    assert got.dtype == dtype
    assert got.shape == want.shape
    logvars = [np.abs(case.arrays[i]).max(initial=0) for i in LOGVARS[case.name]]
    share = np.finfo(dtype).eps + (20 + 2 * float(sum(logvars)) + case.arrays[0].shape[-1]) * EPS
    for at in np.ndindex(got.shape):
        if abs(want[at]) > Decimal(float(np.finfo(dtype).max)):
            assert np.isinf(got[at])
        else:
            off = abs(Decimal(float(got[at])) - want[at])
            assert off <= Decimal(share) * size[at] + Decimal(float(np.finfo(dtype).tiny)), (
                got[at],
                want[at],
            )


@given(case=cases("gaussian_wasserstein"))
def test_the_distance_is_the_root_of_its_square(case):
    got = ops.gaussian_wasserstein(*case.arrays)
    want, _ = defined(case.name, case.arrays)
    eps = np.finfo(got.dtype).eps
    share = eps + (20 + float(np.abs(case.arrays[1]).max(initial=0))) * EPS
    for at in np.ndindex(got.shape):
        root = float(want[at].sqrt())
        if root > float(np.finfo(got.dtype).max):
            assert np.isinf(got[at])
        else:
            assert_allclose(got[at], root, rtol=4 * share, atol=np.finfo(got.dtype).tiny)


def test_agrees_with_scipy():
    rng = np.random.default_rng(0)
    z, mu, logvar = rng.normal(size=(3, 4, 5))
    normal = scipy.stats.norm(mu, np.exp(logvar / 2))
    assert_allclose(ops.gaussian_log_prob(z, mu, logvar), normal.logpdf(z).sum(-1), rtol=1e-13)
    assert_allclose(ops.gaussian_entropy(logvar), normal.entropy().sum(-1), rtol=1e-13)


def test_divergence_and_distance_by_quadrature():
    m, v, n, w = 0.3, -0.7, -0.9, 0.4
    p, q = scipy.stats.norm(m, np.exp(v / 2)), scipy.stats.norm(n, np.exp(w / 2))
    kl, _ = scipy.integrate.quad(lambda z: p.pdf(z) * (p.logpdf(z) - q.logpdf(z)), -15, 15, epsabs=1e-12)
    other, _ = scipy.integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), -15, 15, epsabs=1e-12)
    arrays = [np.array([x]) for x in (m, v, n, w)]
    assert_allclose(ops.gaussian_kl(*arrays), kl, rtol=1e-9)
    assert_allclose(ops.gaussian_jeffreys(*arrays), kl + other, rtol=1e-9)
    # In one dimension the least transport takes quantile to quantile.
    square, _ = scipy.integrate.quad(lambda u: (p.ppf(u) - q.ppf(u)) ** 2, 0, 1, epsabs=1e-10, limit=200)
    assert_allclose(ops.gaussian_wasserstein(*arrays, squared=True), square, rtol=1e-6)
    assert_allclose(ops.gaussian_wasserstein(*arrays) ** 2, square, rtol=1e-6)


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-3, 1.0, 30.0]))
def test_laws(seed, scale):
    rng = np.random.default_rng(seed)
    p, q, r = rng.normal(size=(3, 2, 6, 4)) * np.array([1.0, scale])[:, None, None]
    pq, qp = ops.gaussian_kl(*p, *q), ops.gaussian_kl(*q, *p)
    assert (pq >= 0).all()
    assert_array_equal(ops.gaussian_kl(*p, *p), 0)
    assert_allclose(ops.gaussian_jeffreys(*p, *q), pq + qp, rtol=1e-12)
    assert_array_equal(ops.gaussian_jeffreys(*p, *q), ops.gaussian_jeffreys(*q, *p))
    distance = ops.gaussian_wasserstein
    assert_array_equal(distance(*p, *q), distance(*q, *p))
    assert_array_equal(distance(*p, *p), 0)
    assert (distance(*p, *r) <= (distance(*p, *q) + distance(*q, *r)) * (1 + 1e-12)).all()
    # The divergence does not know units: z -> a z + b takes nothing away.
    moved = [np.stack([3 * mu + 7, logvar + 2 * np.log(3)]) for mu, logvar in (p, q)]
    assert_allclose(ops.gaussian_kl(*moved[0], *moved[1]), pq, rtol=1e-9, atol=1e-12)


def test_the_default_is_the_standard_normal():
    rng = np.random.default_rng(1)
    mu, logvar = rng.normal(size=(2, 3, 4)).astype(np.float32)
    zero = np.zeros(4, np.float32)
    for function in (ops.gaussian_kl, ops.gaussian_jeffreys, ops.gaussian_wasserstein):
        assert_array_equal(function(mu, logvar), function(mu, logvar, zero, zero))
        assert function(mu, logvar).dtype == np.float32
    assert_array_equal(ops.gaussian_log_prob(mu), ops.gaussian_log_prob(mu, zero, zero))
    want = 0.5 * (np.exp(logvar) + mu**2 - 1 - logvar).sum(-1)
    assert_allclose(ops.gaussian_kl(mu, logvar), want, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_exponential_overflows_where_the_result_is_finite(dtype):
    tiny, narrow = np.array([1e-20], dtype), np.array([-100.0], dtype)
    want = float(np.float64(tiny[0]) ** 2 * np.exp(np.float64(100)) / 2)
    assert_allclose(
        ops.gaussian_kl(tiny, narrow, dtype(0), narrow), want, rtol=1e-6
    )  # exp(100) is no float32
    most = 200 if dtype is np.float32 else 1400
    for one, two in itertools.product(np.linspace(-most, most, 9), repeat=2):
        v, w = np.array([one], dtype), np.array([two], dtype)
        for function in (ops.gaussian_kl, ops.gaussian_jeffreys, ops.gaussian_wasserstein):
            assert not np.isnan(function(tiny, v, tiny, w))
        kl = ops.gaussian_kl(tiny, v, tiny, w)
        assert np.isfinite(kl) == (one - two <= (89 if dtype is np.float32 else 709))
        assert np.isfinite(ops.gaussian_log_prob(tiny, tiny, v))
    wide = np.array([150.0 if dtype is np.float32 else 1400.0], dtype)  # sigma is finite, its square is not
    assert_allclose(ops.gaussian_wasserstein(tiny, wide), np.exp(np.float64(wide[0]) / 2), rtol=1e-5)


def test_what_cannot_be_a_number_is_infinite_or_nan_and_stays_in_its_row():
    mu = np.array([[0.0, np.nan], [0.0, 0.0], [0.0, 0.0]])
    logvar = np.array([[0.0, 0.0], [0.0, 1e5], [0.0, 1.0]])
    for function in (ops.gaussian_kl, ops.gaussian_jeffreys):
        assert_array_equal(np.isnan(function(mu, logvar)), [True, False, False])
        assert_array_equal(np.isinf(function(mu, logvar)), [False, True, False])
    assert np.isinf(ops.gaussian_kl(np.zeros(1), np.array([np.inf])))
    assert np.isinf(ops.gaussian_kl(np.zeros(1), np.array([-np.inf])))


def random_cov(rng, shape, D, rank=None):
    factor = rng.normal(size=(*shape, D, D if rank is None else rank))
    return factor @ np.swapaxes(factor, -1, -2)


def test_full_wasserstein_is_its_formula():
    rng = np.random.default_rng(2)
    mu, other = rng.normal(size=(2, 3, 4))
    one, two = random_cov(rng, (3,), 4), random_cov(rng, (3,), 4)
    got = ops.gaussian_wasserstein_full(mu, one, other, two, squared=True)
    for i in range(3):
        root = scipy.linalg.sqrtm(one[i])
        cross = scipy.linalg.sqrtm(root @ two[i] @ root)
        want = ((mu[i] - other[i]) ** 2).sum() + np.trace(one[i] + two[i] - 2 * cross).real
        assert_allclose(got[i], want, rtol=1e-10)
    assert_allclose(ops.gaussian_wasserstein_full(mu, one, other, two) ** 2, got, rtol=1e-12)


@given(seed=st.integers(0, 2**32 - 1), D=st.integers(0, 5))
def test_full_wasserstein_of_diagonal_covariances_is_the_diagonal_one(seed, D):
    rng = np.random.default_rng(seed)
    mu, logvar, other_mu, other_logvar = rng.normal(size=(4, 3, D))
    full = [np.exp(v)[..., None] * np.eye(D) for v in (logvar, other_logvar)]
    assert_allclose(
        ops.gaussian_wasserstein_full(mu, full[0], other_mu, full[1]),
        ops.gaussian_wasserstein(mu, logvar, other_mu, other_logvar),
        rtol=1e-10,
    )


@given(seed=st.integers(0, 2**32 - 1), rank=st.integers(1, 4))
def test_full_wasserstein_of_equals_is_nothing_also_where_they_are_singular(seed, rank):
    rng = np.random.default_rng(seed)
    mu, cov = rng.normal(size=(2, 4)), random_cov(rng, (2,), 4, rank)
    # By the trace it would be about sqrt(EPS) of the size.
    size = np.sqrt(np.trace(cov, axis1=-2, axis2=-1))
    root = (
        np.sqrt(EPS * 40) if rank < 4 else 1e-7
    )  # A root of a rounded zero is all that a singular one loses.
    assert (ops.gaussian_wasserstein_full(mu, cov, mu, cov) <= root * size).all()
    orthogonal = scipy.stats.ortho_group.rvs(4, random_state=rng)
    other = random_cov(rng, (2,), 4)
    assert_allclose(
        ops.gaussian_wasserstein_full(
            mu @ orthogonal.T, orthogonal @ cov @ orthogonal.T, 0 * mu, orthogonal @ other @ orthogonal.T
        ),
        ops.gaussian_wasserstein_full(mu, cov, 0 * mu, other),
        rtol=1e-6,
    )


PAIRS = ["gaussian_kl", "gaussian_jeffreys", "gaussian_wasserstein"]


@pytest.mark.parametrize(
    "shapes", [[(3, 4)] * 4, [(2, 1), (3,), (2, 3), (1, 3)], [(4,), (2, 3, 4), (1,), (3, 4)]]
)
@pytest.mark.parametrize("name", [*TERMS, "squared"])
def test_gradients(name, shapes):
    function = getattr(ad, "gaussian_wasserstein" if name == "squared" else name)
    options = {"squared": True} if name == "squared" else {}
    rng = np.random.default_rng(3)
    arrays = {str(i): rng.normal(size=s) for i, s in enumerate(shapes[: COUNT.get(name, 4)])}
    directional(lambda p: weighted(function(*p.values(), **options)), arrays, rng)


def test_gradients_keep_the_dtype_and_are_finite_where_values_are():
    rng = np.random.default_rng(4)
    mu, other = rng.normal(size=(2, 3, 4)).astype(np.float32)
    for name, size in itertools.product(PAIRS, (0.0, 80.0)):
        logvar = np.full((3, 4), -size, np.float32)
        function = getattr(ad, name)
        value, grads = ad.value_and_grad(lambda p, f=function: f(*p).sum())([mu, logvar, other, logvar])
        assert np.isfinite(value)
        assert all(g.dtype == np.float32 and np.isfinite(g).all() for g in grads)
    _, (grad,) = ad.value_and_grad(lambda p: ad.gaussian_wasserstein(p[0], 0.0, mu, 0.0).sum())([mu])
    assert_array_equal(grad, 0)  # Nothing to divide by.


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: ops.gaussian_kl(np.zeros(2), np.zeros(3)),
            ShapeError,
            r"logvar has shape \(3,\), which does not broadcast to \(2,\)",
        ),
        (
            lambda: ops.gaussian_kl(np.zeros(2), np.zeros(2, np.float32)),
            DTypeError,
            "logvar has dtype float32 but mu has float64",
        ),
        (
            lambda: ops.gaussian_log_prob(np.zeros(2, int)),
            DTypeError,
            "z has dtype int64, expected float32 or float64",
        ),
        (lambda: ops.gaussian_log_prob(1.0), ShapeError, r"z is a number, expected an array \(..., D\)"),
        (lambda: ops.gaussian_entropy(np.float32(1.0)), ShapeError, "logvar is a number"),
        (lambda: ops.gaussian_jeffreys(np.zeros(2), True), DTypeError, "logvar has dtype bool"),
        (
            lambda: ops.gaussian_wasserstein_full(np.zeros((1, 2)), np.eye(3), np.zeros(2), np.eye(2)),
            ShapeError,
            r"cov has shape \(3, 3\), expected \(..., 2, 2\)",
        ),
        (
            lambda: ops.gaussian_wasserstein_full(
                np.zeros(2), np.eye(2, dtype=np.float32), np.zeros(2), np.eye(2, dtype=np.float32)
            ),
            DTypeError,
            "cov has dtype float32 but mu has float64",
        ),
        (
            lambda: ops.gaussian_wasserstein_full(
                np.zeros(2), np.eye(2), np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]])
            ),
            ArgumentError,
            "other_cov is not positive semidefinite: it has the eigenvalue -1",
        ),
        (
            lambda: ops.gaussian_wasserstein_full(
                np.zeros((2, 2)), np.stack([np.eye(2), [[1.0, 0.5], [0.0, 1.0]]]), np.zeros(2), np.eye(2)
            ),
            ArgumentError,
            r"cov\[1\] is not symmetric",
        ),
        (
            lambda: ops.gaussian_wasserstein_full(np.zeros(2), np.eye(2) * np.nan, np.zeros(2), np.eye(2)),
            ArgumentError,
            "cov is not finite",
        ),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()
