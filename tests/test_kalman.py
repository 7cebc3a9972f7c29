"""Fusion with full covariances: against Bayes' rule by inverses, against quadrature, and against each other."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sensorium.errors import ArgumentError, DTypeError, ShapeError
from sensorium.ops import fuse_full, fuse_low_rank, kalman_update

EPS = np.finfo(float).eps


def turned(array):
    return np.swapaxes(array, -1, -2)


def random_cov(rng, shape, D, condition=100.0):
    """Covariances of random directions, whose eigenvalues are spread over ``condition``."""
    basis = np.linalg.qr(rng.normal(size=(*shape, D, D)))[0]
    values = condition ** rng.uniform(-0.5, 0.5, size=(*shape, D))
    return basis * values[..., None, :] @ turned(basis)


@dataclass
class Case:
    mu: np.ndarray
    cov: np.ndarray
    mask: np.ndarray
    weights: np.ndarray
    prior: object
    about: str

    def __repr__(self):
        return f"mu {self.mu.shape} {self.mu.dtype} prior {self.prior!r} {self.about}"

    @property
    def how(self):
        return {"mask": self.mask, "weights": self.weights, "prior": self.prior}


@st.composite
def cases(draw, dtypes=(np.float64, np.float32)):
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    M, B, D = draw(st.integers(1, 4)), draw(st.sampled_from([1, 3, 0])), draw(st.integers(1, 5))
    dtype = draw(st.sampled_from(dtypes))
    kind = draw(st.sampled_from(["standard", "none", "diagonal", "full"]))
    mask = rng.random((M, B)) < 0.7
    weights = rng.choice([0.0, 0.5, 1.0, 3.0], size=(M, B)) if draw(st.booleans()) else np.ones((M, B))
    if kind == "none":
        mask[0], weights[0] = True, 1.0
    prior = {
        "standard": True,
        "none": False,
        "diagonal": (rng.normal(size=D).astype(dtype), rng.normal(size=D).astype(dtype)),
        "full": (rng.normal(size=D).astype(dtype), random_cov(rng, (), D).astype(dtype)),
    }[kind]
    mu, cov = rng.normal(size=(M, B, D)).astype(dtype), random_cov(rng, (M, B), D).astype(dtype)
    mu[~mask], cov[~mask] = np.nan, np.nan
    return Case(mu, cov, mask, weights, prior, f"seed {seed} {kind}")


def bayes(case):
    """Sums of precisions, row by row, and the logarithm of the integral by completing the square."""
    _, B, D = case.mu.shape
    mean, cov, normaliser = np.zeros((B, D)), np.zeros((B, D, D)), np.zeros(B)
    for b in range(B):
        experts = [
            (w, m.astype(float), c.astype(float))
            for w, m, c, there in zip(
                case.weights[:, b], case.mu[:, b], case.cov[:, b], case.mask[:, b], strict=True
            )
            if there
        ]
        if case.prior is True:
            experts.append((1.0, np.zeros(D), np.eye(D)))
        elif case.prior is not False:
            first, spread = (part.astype(float) for part in case.prior)
            experts.append((1.0, first, np.diag(np.exp(spread)) if spread.ndim == 1 else spread))
        precision = sum(w * np.linalg.inv(c) for w, _, c in experts)
        linear = sum(w * np.linalg.inv(c) @ m for w, m, c in experts)
        cov[b] = np.linalg.inv(precision)
        mean[b] = cov[b] @ linear
        normaliser[b] = sum(w * scipy.stats.multivariate_normal(m, c).logpdf(mean[b]) for w, m, c in experts)
        normaliser[b] += D / 2 * np.log(2 * np.pi) - np.linalg.slogdet(precision)[1] / 2
    return mean, cov, normaliser


@given(case=cases())
def test_is_bayes_rule(case):
    got = fuse_full(case.mu, case.cov, return_log_normaliser=True, **case.how)
    # Eigenvalues spread over 100, and weights over 6: what the inverses here lose, and a rounding of the result.
    rtol = 1e-10 if case.mu.dtype == np.float64 else 1e-5
    for one, want in zip(got, bayes(case), strict=True):
        assert one.dtype == case.mu.dtype
        assert_allclose(one, want, rtol=rtol, atol=rtol * 10)


@given(case=cases(dtypes=(np.float64,)), seed=st.integers(0, 99))
def test_order_names_and_form_do_not_matter(case, seed):
    want = fuse_full(case.mu, case.cov, return_log_normaliser=True, **case.how)
    order = np.random.default_rng(seed).permutation(len(case.mu))
    parts = (case.mu, case.cov, case.mask, case.weights)
    mu, cov, mask, weights = ({f"e{m}": part[m] for m in order} for part in parts)
    swapped = {key: mask[key] for key in reversed(mask)}
    named = fuse_full(mu, cov, mask=swapped, weights=weights, prior=case.prior, return_log_normaliser=True)
    filled = np.where(case.mask[..., None, None], case.cov, np.eye(case.mu.shape[-1]))
    inverse = np.where(case.mask[..., None, None], np.linalg.inv(filled), np.nan)
    by_precision = fuse_full(case.mu, precision=inverse, return_log_normaliser=True, **case.how)
    for a, b, c in zip(want, named, by_precision, strict=True):
        assert_allclose(b, a, rtol=1e-9, atol=1e-11)
        assert_allclose(c, a, rtol=1e-8, atol=1e-10)


@given(case=cases(dtypes=(np.float64,)))
def test_one_at_a_time_is_all_at_once(case):
    want = fuse_full(case.mu, case.cov, return_log_normaliser=True, **case.how)
    whole = np.ones(len(case.mu))
    step = fuse_full(
        case.mu[:1],
        case.cov[:1],
        mask=case.mask[:1],
        weights=case.weights[:1],
        prior=case.prior,
        return_log_normaliser=True,
    )
    total = step[2]
    for m in range(1, len(whole)):
        mu, cov = np.stack([step[0], case.mu[m]]), np.stack([step[1], case.cov[m]])
        mask, weights = (
            np.stack([np.ones_like(case.mask[m]), case.mask[m]]),
            np.stack([np.ones_like(case.weights[m]), case.weights[m]]),
        )
        step = fuse_full(mu, cov, mask=mask, weights=weights, prior=False, return_log_normaliser=True)
        total = total + step[2]
    for one, two in zip((*step[:2], total), want, strict=True):
        assert_allclose(one, two, rtol=1e-8, atol=1e-9)


def test_the_normaliser_is_the_integral():
    rng = np.random.default_rng(0)
    mu, cov = rng.normal(size=(2, 1, 2)), random_cov(rng, (2, 1), 2, condition=4.0)
    weights = np.array([0.6, 1.7])
    _, _, got = fuse_full(mu, cov, weights=weights, return_log_normaliser=True)
    normals = [scipy.stats.multivariate_normal(mu[m, 0], cov[m, 0]) for m in range(2)]
    prior = scipy.stats.multivariate_normal(np.zeros(2))
    grid = np.linspace(
        -9, 9, 361
    )  # The trapezoid rule is exact but for rounding on what falls off like this.
    z = np.stack(np.meshgrid(grid, grid), axis=-1)
    density = prior.pdf(z) * normals[0].pdf(z) ** 0.6 * normals[1].pdf(z) ** 1.7
    assert_allclose(np.exp(got), density.sum() * (grid[1] - grid[0]) ** 2, rtol=1e-10)


@given(seed=st.integers(0, 2**32 - 1), D=st.integers(1, 5))
def test_two_equal_experts_halve_the_covariance_and_an_uninformed_one_changes_nothing(seed, D):
    rng = np.random.default_rng(seed)
    mu, cov = rng.normal(size=(1, 2, D)), random_cov(rng, (1, 2), D)
    mean, half = fuse_full(np.concatenate([mu, mu]), np.concatenate([cov, cov]), prior=False)
    assert_allclose(mean, mu[0], rtol=1e-9, atol=1e-11)
    assert_allclose(half, cov[0] / 2, rtol=1e-9, atol=1e-11)
    unknown = np.broadcast_to(1e30 * np.eye(D), cov.shape)
    mean, same = fuse_full(np.concatenate([mu, mu + 5]), np.concatenate([cov, unknown]), prior=False)
    assert_allclose(same, cov[0], rtol=1e-9, atol=1e-11)
    assert_allclose(mean, mu[0], rtol=1e-9, atol=1e-11)


@given(seed=st.integers(0, 2**32 - 1), D=st.integers(1, 5), K=st.integers(1, 4))
def test_kalman_update_is_the_product_with_the_likelihood(seed, D, K):
    rng = np.random.default_rng(seed)
    B = 3
    mean, cov, R = rng.normal(size=(B, D)), random_cov(rng, (B,), D), random_cov(rng, (B,), K)
    H, y = rng.normal(size=(B, K, D)), rng.normal(size=(B, K))
    after, spread, evidence = kalman_update(mean, cov, y, H, R, return_log_evidence=True)
    likelihood = turned(H) @ np.linalg.inv(R) @ H  # Singular where K < D.
    at = np.linalg.pinv(likelihood) @ (turned(H) @ np.linalg.inv(R) @ y[..., None])
    precision = np.stack([np.linalg.inv(cov), likelihood])
    product, fused = fuse_full(
        np.stack([mean, at[..., 0]]), precision=(precision + turned(precision)) / 2, prior=False
    )
    assert_allclose(after, product, rtol=1e-6, atol=1e-7)
    assert_allclose(spread, fused, rtol=1e-6, atol=1e-7)
    for b in range(B):
        seen = scipy.stats.multivariate_normal(H[b] @ mean[b], H[b] @ cov[b] @ H[b].T + R[b])
        assert_allclose(evidence[b], seen.logpdf(y[b]), rtol=1e-8, atol=1e-9)
    assert (np.linalg.eigvalsh(cov - spread) >= -1e-9).all()  # An observation takes nothing away.


def test_kalman_update_with_the_identity_is_fuse_full():
    rng = np.random.default_rng(1)
    mean, y, cov, R = *rng.normal(size=(2, 4, 3)), *random_cov(rng, (2, 4), 3)
    got = kalman_update(mean, cov, y, np.eye(3), R, return_log_evidence=True)
    want = fuse_full(np.stack([mean, y]), np.stack([cov, R]), prior=False, return_log_normaliser=True)
    for one, two in zip(got, want, strict=True):
        assert_allclose(one, two, rtol=1e-10, atol=1e-12)


def test_kalman_update_leaves_out_what_was_not_observed():
    rng = np.random.default_rng(2)
    mean, cov, R = rng.normal(size=(3, 4)), random_cov(rng, (3,), 4), random_cov(rng, (), 3)
    H, y = rng.normal(size=(3, 4)), rng.normal(size=(3, 3))
    mask = np.array([[True, True, True], [True, False, True], [False, False, False]])
    holes = np.where(mask, y, np.nan)
    got = kalman_update(mean, cov, holes, H, R, mask=mask, return_log_evidence=True)
    for b, seen in enumerate(mask):
        if not seen.any():
            continue
        part = kalman_update(
            mean[b : b + 1],
            cov[b : b + 1],
            y[b : b + 1, seen],
            H[seen],
            R[np.ix_(seen, seen)],
            return_log_evidence=True,
        )
        for one, two in zip(got, part, strict=True):
            assert_allclose(one[b], two[0], rtol=1e-10, atol=1e-12)
    assert_allclose(got[0][2], mean[2])
    assert_allclose(got[1][2], cov[2], rtol=1e-12)
    assert got[2][2] == 0
    rows = kalman_update(mean, cov, holes, H, R, mask=np.array([True, False, False]))
    assert_allclose(rows[0][1:], mean[1:])
    assert_allclose(rows[0][0], got[0][0])


@pytest.mark.parametrize("apart", [1e-4, 1e-5, 1e-6])
def test_an_error_of_the_gain_enters_the_covariance_squared(apart):
    """Two looks along nearly one direction: the gain loses digits, and the short form of the update with it."""
    H, r = np.array([[1.0, 1.0], [1.0, 1.0 + apart]]), 1e-12
    _, spread = kalman_update(np.zeros((1, 2)), np.eye(2)[None], np.zeros((1, 2)), H, r * np.eye(2))
    h = [[Fraction(x) for x in row] for row in H.tolist()]
    (a, b), (c, d) = [
        [(i == j) + sum(row[i] * row[j] for row in h) / Fraction(r) for j in range(2)] for i in range(2)
    ]
    exact = np.array([[d, -b], [-c, a]]) / (a * d - b * c)
    gain = np.linalg.solve(H @ H.T + r * np.eye(2), H).T
    short = np.abs(np.eye(2) - gain @ H - exact.astype(float)).max()
    ours = np.abs(spread[0] - exact.astype(float)).max()
    assert ours <= 1e-8
    assert ours <= 1e-3 * short


def test_an_exact_observation_is_taken_at_its_word():
    mean, cov = np.zeros((1, 2)), np.array([[[1.0, 0.5], [0.5, 1.0]]])
    after, spread = kalman_update(mean, cov, np.array([[2.0]]), np.array([[1.0, 0.0]]), np.zeros((1, 1)))
    assert_allclose(after, [[2.0, 1.0]], atol=1e-14)
    assert_allclose(spread, [[[0.0, 0.0], [0.0, 0.75]]], atol=1e-14)


@dataclass
class LowRank:
    mu: np.ndarray
    diag: np.ndarray
    factors: np.ndarray
    how: dict
    about: str

    def __repr__(self):
        return f"factors {self.factors.shape} {self.about}"


@st.composite
def low_rank(draw):
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    M, B, D, R = (
        draw(st.integers(1, 3)),
        draw(st.sampled_from([1, 3, 0])),
        draw(st.integers(1, 6)),
        draw(st.integers(0, 3)),
    )
    size = draw(st.sampled_from([0.0, 1.0, 1e3]))
    mask, weights = rng.random((M, B)) < 0.7, rng.choice([0.0, 0.5, 1.0, 3.0], size=(M, B))
    prior = draw(st.sampled_from([True, False, "pair"]))
    if prior is False:
        mask[0], weights[0] = True, 1.0
    if prior == "pair":
        prior = tuple(rng.normal(size=(2, D)))
    mu, diag = rng.normal(size=(M, B, D)), np.exp(rng.normal(size=(M, B, D)))
    factors = size * rng.normal(size=(M, B, D, R))
    for array in (mu, diag, factors):
        array[~mask] = np.nan
    return LowRank(
        mu, diag, factors, {"mask": mask, "weights": weights, "prior": prior}, f"seed {seed} size {size}"
    )


@given(case=low_rank())
def test_low_rank_is_fuse_full(case):
    mean, diag, factors, normaliser = fuse_low_rank(
        case.mu, case.diag, case.factors, return_log_normaliser=True, **case.how
    )
    full = case.diag[..., None] * np.eye(case.mu.shape[-1]) + case.factors @ turned(case.factors)
    want = fuse_full(case.mu, full, return_log_normaliser=True, **case.how)
    # A covariance with eigenvalues up to 1e7 above the least loses seven digits in its own Cholesky factor.
    got = (mean, diag[..., None] * np.eye(diag.shape[-1]) + factors @ turned(factors), normaliser)
    for one, two in zip(got, want, strict=True):
        assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    assert factors.shape[-1] == case.factors.shape[0] * case.factors.shape[-1]


def test_low_rank_keeps_its_digits_where_factors_are_large():
    """What two experts know well is kept, however little they know along their factors."""
    u = np.array([1.0, 1.0, 1.0]) / np.sqrt(3)
    mu = np.array([[[1.0, -1.0, 0.0]], [[3.0, 1.0, 2.0]]])  # They differ along u alone.
    for size in (1e3, 1e6, 1e9):
        factors = np.broadcast_to(size * u[:, None], (2, 1, 3, 1))
        mean, diag, fused = fuse_low_rank(mu, np.full((2, 1, 3), 1e-2), factors, prior=False)
        off = mean[0] - [2.0, 0.0, 1.0]
        assert abs(off @ u) <= 1e-12 * size  # A trillionth of what is left open along the factor.
        assert_allclose(off - (off @ u) * u, 0, atol=1e-9)
        along, across = (
            v @ (diag[0] * v) + ((v @ fused[0]) ** 2).sum() for v in (u, np.array([1, -1, 0]) / np.sqrt(2))
        )
        assert_allclose(
            along, size**2 / 2 + 5e-3, rtol=10 * EPS * size / 0.1
        )  # of the factors, in sigmas of diag
        assert_allclose(across, 5e-3, rtol=1e-9)


def test_low_rank_by_names_may_have_different_ranks():
    rng = np.random.default_rng(3)
    mu, diag = ({k: np.exp(rng.normal(size=(2, 4))) for k in "ab"} for _ in range(2))
    factors = {"b": rng.normal(size=(2, 4, 3)), "a": np.zeros((2, 4, 0))}
    mean, own, fused = fuse_low_rank(mu, diag, factors)
    full = {k: diag[k][..., None] * np.eye(4) + factors[k] @ turned(factors[k]) for k in "ab"}
    want = fuse_full(mu, full)
    assert fused.shape == (2, 4, 3)
    assert_allclose(mean, want[0], rtol=1e-10)
    assert_allclose(own[..., None] * np.eye(4) + fused @ turned(fused), want[1], rtol=1e-9, atol=1e-12)


def test_low_rank_holds_no_array_of_the_square_of_the_width():
    D = 100_000  # Its square would be 80 gigabytes.
    rng = np.random.default_rng(4)
    mu, diag, factors = rng.normal(size=(2, 1, D)), np.ones((2, 1, D)), rng.normal(size=(2, 1, D, 1))
    mean, own, fused = fuse_low_rank(mu, diag, factors)
    assert (mean.shape, own.shape, fused.shape) == ((1, D), (1, D), (1, D, 2))
    assert np.isfinite(fused).all()


FORMS = {
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: a[..., ::-1].copy()[..., ::-1],
    "broadcast": lambda a: np.broadcast_to(a, a.shape),  # read-only
    "list": lambda a: a.tolist(),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_in_memory_change_nothing(form):
    rng = np.random.default_rng(5)
    mu, cov, diag = rng.normal(size=(2, 3, 4)), random_cov(rng, (2, 3), 4), np.exp(rng.normal(size=(2, 3, 4)))
    factors, mask, change = rng.normal(size=(2, 3, 4, 2)), rng.random((2, 3)) < 0.7, FORMS[form]
    for function, arrays in (
        (fuse_full, (mu, cov)),
        (fuse_low_rank, (mu, diag, factors)),
        (lambda m, c, **how: kalman_update(m[0], c[0], m[1], np.eye(4), c[1]), (mu, cov)),
    ):
        for one, two in zip(
            function(*map(change, arrays), mask=change(mask)), function(*arrays, mask=mask), strict=True
        ):
            assert_array_equal(one, two)
            assert one.dtype == np.float64


def test_nan_in_a_mean_stays_in_its_row():
    mu, cov = np.zeros((2, 2, 2)), np.broadcast_to(np.eye(2), (2, 2, 2, 2))
    mu[1, 0, 1] = np.nan
    mean, fused = fuse_full(mu, cov)
    assert np.isnan(mean[0]).any()
    assert_array_equal(mean[1], 0)
    assert np.isfinite(fused).all()


def test_no_expert_at_all_is_the_prior():
    empty = np.zeros((0, 2, 3))
    mean, cov, normaliser = fuse_full(empty, np.zeros((0, 2, 3, 3)), return_log_normaliser=True)
    assert_array_equal(mean, 0)
    assert_allclose(cov, np.broadcast_to(np.eye(3), (2, 3, 3)), rtol=1e-15)
    assert_allclose(normaliser, 0, atol=1e-14)
    got = fuse_low_rank(empty, empty, np.zeros((0, 2, 3, 1)), return_log_normaliser=True)
    assert_array_equal(got[1], 1)
    assert_allclose(got[3], 0, atol=1e-14)


MU, EYE = np.zeros((2, 3, 2)), np.broadcast_to(np.eye(2), (2, 3, 2, 2))


def spoilt(value, m=1, b=2):
    cov = EYE.copy()
    cov[m, b] = value
    return cov


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: fuse_full(MU), ArgumentError, "cov or precision must be given, and not both"),
        (lambda: fuse_full(MU, EYE, precision=EYE), ArgumentError, "cov or precision must be given, and not both"),
        (lambda: fuse_full(MU, spoilt([[1, 2], [2, 1]])), ArgumentError, "cov of expert 1, row 2, is not positive definite"),
        (
            lambda: fuse_full({"eye": MU[0], "ear": MU[1]}, {"eye": EYE[0], "ear": spoilt([[1, 2], [2, 1]])[1]}),
            ArgumentError,
            "cov of expert 'ear', row 2, is not positive definite",
        ),
        (lambda: fuse_full(MU, spoilt([[1, 0.5], [0, 1]], 0, 1)), ArgumentError, "cov of expert 0, row 1, is not symmetric"),
        (lambda: fuse_full(MU, spoilt(np.nan)), ArgumentError, "cov of expert 1, row 2, is not finite"),
        (
            lambda: fuse_full(MU, precision=spoilt([[1, 2], [2, 1]])),
            ArgumentError,
            "precision of expert 1, row 2, is not positive semidefinite: it has the eigenvalue -1",
        ),
        (
            lambda: fuse_full(MU, precision=np.broadcast_to(np.diag([1.0, 0.0]), EYE.shape), prior=False),
            ArgumentError,
            "row 0 has a direction of which nobody says anything",
        ),
        (
            lambda: fuse_full(MU, EYE, mask=np.array([[True, False, True]] * 2), prior=False),
            ArgumentError,
            "row 1 has no expert that counts, and there is no prior",
        ),
        (lambda: fuse_full(MU, EYE, weights=[1.0, -1.0]), ArgumentError, "weights of expert 1, row 0, must be finite and at least 0, not -1"),
        (lambda: fuse_full(MU, EYE, weights=["a", "b"]), DTypeError, "weights has dtype <U1, expected numbers"),
        (lambda: fuse_full(MU, EYE, mask=[1, 0]), DTypeError, "mask has dtype int64, expected bool"),
        (lambda: fuse_full(MU, EYE, mask=np.ones((3, 2), bool)), ShapeError, r"mask has shape \(3, 2\), expected \(2, 3\) or \(2,\)"),
        (lambda: fuse_full(MU, EYE, mask={"a": True}), ArgumentError, "mask must be an array, as mu is"),
        (lambda: fuse_full(MU, EYE[..., :1]), ShapeError, "cov has D=1 but mu has D=2"),
        (lambda: fuse_full(MU, EYE.astype(np.float32)), DTypeError, "cov has dtype float32 but mu has float64"),
        (lambda: fuse_full(MU.astype(int), EYE), DTypeError, "mu has dtype int64"),
        (lambda: fuse_full(MU[0], EYE), ShapeError, r"mu has shape \(3, 2\), expected 3 dimensions \(M, B, D\)"),
        (lambda: fuse_full({}, {}), ArgumentError, "mu has no expert"),
        (lambda: fuse_full({"a": MU[0]}, {"b": EYE[0]}), ArgumentError, "cov has no 'a', which mu has"),
        (lambda: fuse_full({"a": MU[0], "b": MU[0, :1]}, {}), ShapeError, r"mu\['b'\] has shape \(1, 2\) but mu\['a'\] has \(3, 2\)"),
        (lambda: fuse_full(MU, EYE, prior=3), DTypeError, "prior must be True, False, or a pair"),
        (lambda: fuse_full(MU, EYE, prior=(np.zeros(3), np.zeros(3))), ShapeError, r"prior has shapes \(3,\) and \(3,\), expected \(2,\)"),
        (
            lambda: fuse_full(MU, EYE, prior=(np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]]))),
            ArgumentError,
            "the covariance of prior is not positive definite",
        ),
        (lambda: fuse_low_rank(MU, MU, EYE), ArgumentError, "diag of expert 0, row 0, must be finite and above 0, not 0"),
        (lambda: fuse_low_rank(MU, MU + 1, EYE[:, :1]), ShapeError, r"factors\[0\] has shape \(1, 2, 2\), expected \(..., 3, 2, R\)"),
        (lambda: fuse_low_rank(MU, MU + 1, spoilt(np.inf)), ArgumentError, r"factors\[1\] is not finite in row 2"),
        (lambda: fuse_low_rank(MU, MU + 1, MU), ShapeError, r"factors has shape \(2, 3, 2\), expected \(2, 3, 2, R\)"),
        (lambda: fuse_low_rank(MU, MU + 1, EYE, prior=(np.zeros(2), np.eye(2))), ShapeError, "prior has shapes"),
        (lambda: kalman_update(MU[0], EYE[0], MU[1], np.eye(3), np.eye(2)), ShapeError, "H has K=3 but observation has K=2"),
        (lambda: kalman_update(MU[0], EYE[0], MU[1], np.eye(2), -np.eye(2)), ArgumentError, "R is not positive semidefinite"),
        (lambda: kalman_update(MU[0], 0 * EYE[0], MU[1], np.eye(2), 0 * np.eye(2)), ArgumentError, r"H cov H\^T \+ R of row 0 is not positive definite"),
        (lambda: kalman_update(MU[0], EYE[0], MU[1], np.eye(2), np.eye(2), mask=np.ones(2, bool)), ShapeError, "mask has shape"),
        (lambda: kalman_update(MU[0], EYE[0], MU[1].astype(np.float32), np.eye(2), np.eye(2)), DTypeError, "observation has dtype float32"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()
