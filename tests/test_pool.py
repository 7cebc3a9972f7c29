"""Powers of experts and covariance intersection: against quadrature, against brute force, and by what they promise."""

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sensorium.errors import ArgumentError, DTypeError, ShapeError
from sensorium.ops import covariance_intersection, fuse_full, gaussian_log_prob, generalised_product
from test_kalman import random_cov, turned


@given(
    seed=st.integers(0, 2**32 - 1),
    M=st.integers(1, 4),
    prior=st.booleans(),
    kind=st.sampled_from(["mean", "sum to one", "any"]),
)
def test_is_the_product_of_powers(seed, M, prior, kind):
    rng = np.random.default_rng(seed)
    mu, logvar = rng.normal(size=(2, M, 3, 2))
    mask = rng.random((M, 3)) < 0.8
    mask[0] = True
    given_prior = (rng.normal(size=2), rng.uniform(2, 3, size=2)) if prior else False
    alpha = np.where(mask, rng.uniform(0.1, 1, size=(M, 3)), np.nan)
    if kind == "mean":
        alpha = mask / mask.sum(0)
    elif kind == "sum to one":
        alpha = alpha / np.nansum(alpha, axis=0)
    mu[~mask], logvar[~mask] = np.nan, np.inf
    mean, log, normaliser = generalised_product(
        mu,
        logvar,
        alpha=None if kind == "mean" else alpha,
        mask=mask,
        prior=given_prior,
        return_log_normaliser=True,
    )
    z = rng.normal(size=(3, 2)) * 2
    want = np.zeros(3)
    for b in range(3):
        powers = alpha[mask[:, b], b]
        want[b] = powers @ gaussian_log_prob(z[b], mu[mask[:, b], b], logvar[mask[:, b], b])
        if prior:
            want[b] += (1 - powers.sum()) * gaussian_log_prob(z[b], *given_prior)
    assert_allclose(gaussian_log_prob(z, mean, log) + normaliser, want, rtol=1e-9, atol=1e-9)
    if kind != "any":
        assert (normaliser <= 1e-12).all()  # By the inequality of Hölder.


def test_powers_of_one_with_the_prior_are_bayes_rule_for_independent_posteriors():
    """Two observations of z, each fused with the prior by its own expert, give what both together give."""
    rng = np.random.default_rng(0)
    m0, v0 = np.array([0.3, -1.0]), np.array([2.0, 0.5])
    y, r = rng.normal(size=(2, 4, 2)), rng.uniform(0.1, 3, size=(2, 4, 2))
    var = 1 / (1 / v0 + 1 / r)
    mu = var * (m0 / v0 + y / r)
    mean, log = generalised_product(mu, np.log(var), alpha=np.ones(2), prior=(m0, np.log(v0)))
    both = 1 / (1 / v0 + (1 / r).sum(0))
    assert_allclose(np.exp(log), both, rtol=1e-12)
    assert_allclose(mean, both * (m0 / v0 + (y / r).sum(0)), rtol=1e-12)


def test_experts_that_agree_make_the_pool_no_surer():
    mu, logvar = np.full((5, 2, 3), 0.7), np.full((5, 2, 3), -1.3)
    mean, log, normaliser = generalised_product(mu, logvar, return_log_normaliser=True)
    assert_allclose(mean, 0.7, rtol=1e-14)
    assert_allclose(log, -1.3, rtol=1e-14)
    assert_allclose(normaliser, 0, atol=1e-13)


def test_names_dtypes_and_extremes():
    rng = np.random.default_rng(1)
    mu, logvar = rng.normal(size=(2, 2, 3, 2)).astype(np.float32)
    named = generalised_product(
        dict(zip("ab", mu, strict=True)), dict(zip("ab", logvar, strict=True)), alpha={"b": 0.25, "a": 0.75}
    )
    for one, two in zip(named, generalised_product(mu, logvar, alpha=[0.75, 0.25]), strict=True):
        assert one.dtype == np.float32
        assert_array_equal(one, two)
    for size in (-200, 200):
        mean, log = generalised_product(mu, np.full_like(logvar, size))
        assert_allclose(log, size, rtol=1e-6)
        assert_allclose(mean, mu.mean(0), rtol=1e-5, atol=1e-6)
    prior = generalised_product(mu, logvar, mask=np.zeros(2, bool), prior=True)
    assert_array_equal(prior[0], 0)
    assert_array_equal(prior[1], 0)


@pytest.mark.parametrize("criterion", ["determinant", "trace"])
@given(
    seed=st.integers(0, 2**32 - 1),
    M=st.integers(1, 5),
    D=st.integers(1, 4),
    spread=st.sampled_from([2.0, 1e3]),
)
def test_weights_are_the_best_there_are(criterion, seed, M, D, spread):
    rng = np.random.default_rng(seed)
    mu, cov = rng.normal(size=(M, 3, D)), random_cov(rng, (M, 3), D, spread)
    mask = rng.random((M, 3)) < 0.8
    mask[0] = True
    mu[~mask], cov[~mask] = np.nan, np.nan
    got = covariance_intersection(mu, cov, mask=mask, criterion=criterion)
    assert (got.gap <= 1e-7).all()
    assert (got.weights >= 0).all()
    assert_allclose(got.weights.sum(0), 1, rtol=1e-12)
    assert_array_equal(got.weights[~mask], 0)
    inverse = np.where(
        mask[..., None, None], np.linalg.inv(np.where(mask[..., None, None], cov, np.eye(D))), 0
    )

    def worth(weights):
        whole = np.einsum("mb,mbij->bij", weights, inverse)
        if criterion == "trace":
            return np.log(np.trace(np.linalg.inv(whole), axis1=-2, axis2=-1))
        return -np.linalg.slogdet(whole)[1]

    for _ in range(20):  # None of many others is better.
        other = rng.dirichlet(np.full(M, 0.5), size=3).T * mask
        other = np.where(other.sum(0) > 1e-3, other, mask)
        assert (worth(got.weights) <= worth(other / other.sum(0)) + 1e-7).all()
    # It is the product with these weights.
    mean, fused = fuse_full(mu, cov, mask=mask, weights=got.weights, prior=False)
    assert_allclose(got.cov, fused, rtol=1e-7, atol=1e-9 * spread)
    assert_allclose(got.mean, mean, rtol=1e-6, atol=1e-7 * spread)


def test_two_estimates_by_a_search_over_their_weight():
    rng = np.random.default_rng(2)
    cov = random_cov(rng, (2, 6), 3, 30.0)
    got = covariance_intersection(np.zeros((2, 6, 3)), cov, criterion="trace")
    inverse = np.linalg.inv(cov)
    for b in range(6):
        found = scipy.optimize.minimize_scalar(
            lambda w, b=b: np.trace(np.linalg.inv(w * inverse[0, b] + (1 - w) * inverse[1, b])),
            bounds=(0, 1), method="bounded", options={"xatol": 1e-10},
        )  # fmt: skip
        assert_allclose(np.trace(got.cov[b]), found.fun, rtol=1e-7)
        assert_allclose(got.weights[0, b], found.x, atol=1e-4)


@given(seed=st.integers(0, 2**32 - 1), D=st.integers(1, 4))
def test_it_is_never_surer_than_it_may_be_and_the_product_is(seed, D):
    """For any correlation of two errors, the error of the fusion is within the covariance that it claims."""
    rng = np.random.default_rng(seed)
    cov = random_cov(rng, (2, 1), D, 10.0)
    got = covariance_intersection(np.zeros((2, 1, D)), cov)
    gains = got.weights[..., None, None] * (got.cov @ np.linalg.inv(cov))
    roots = np.linalg.cholesky(cov[:, 0])
    turn = np.linalg.qr(rng.normal(size=(D, D)))[0] * rng.uniform(
        -1, 1
    )  # Any contraction makes a cross-covariance.
    cross = roots[0] @ turn @ roots[1].T
    a, b = gains[:, 0]
    actual = a @ cov[0, 0] @ a.T + b @ cov[1, 0] @ b.T + a @ cross @ b.T + b @ cross.T @ a.T
    slack = got.cov[0] - actual
    assert (np.linalg.eigvalsh((slack + slack.T) / 2) >= -1e-9 * np.trace(got.cov[0])).all()


def test_two_copies_of_one_estimate_add_nothing_and_the_product_believes_them():
    rng = np.random.default_rng(3)
    mu, cov = (
        np.tile(rng.normal(size=(1, 1, 2)), (2, 1, 1)),
        np.tile(random_cov(rng, (1, 1), 2), (2, 1, 1, 1)),
    )
    got = covariance_intersection(mu, cov)
    assert_allclose(got.cov, cov[0], rtol=1e-9, atol=1e-12)
    _, product = fuse_full(mu, cov, prior=False)
    assert_allclose(product, cov[0] / 2, rtol=1e-9, atol=1e-12)


def test_an_estimate_that_is_worse_in_every_direction_gets_no_weight():
    cov = np.stack([np.eye(2), 3 * np.eye(2)])[:, None]
    got = covariance_intersection(
        {"good": np.ones((1, 2)), "bad": np.zeros((1, 2))}, {"good": cov[0], "bad": cov[1]}
    )
    assert_allclose(got.weights["good"], 1, atol=1e-8)
    assert_allclose(got.cov[0], np.eye(2), atol=1e-8)
    assert_allclose(got.mean, 1, atol=1e-8)


MU, EYE = np.zeros((2, 3, 2)), np.broadcast_to(np.eye(2), (2, 3, 2, 2))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: generalised_product(MU, MU + 1, alpha=np.ones(2), prior=True),
            ArgumentError,
            "row 0 has experts that together are less sure than the prior",
        ),
        (lambda: generalised_product(MU, MU, mask=np.array([[True, True, False]] * 2)), ArgumentError, "row 2 has no expert that counts"),
        (lambda: generalised_product(MU, MU, alpha=[1.0, -2.0]), ArgumentError, "alpha of expert 1, row 0, must be finite and at least 0, not -2"),
        (lambda: generalised_product(MU, MU, alpha=[True, False]), DTypeError, "alpha has dtype bool, expected numbers"),
        (lambda: generalised_product(MU, MU, alpha=[1.0]), ShapeError, r"alpha has shape \(1,\), expected \(2, 3\) or \(2,\)"),
        (lambda: generalised_product(MU, MU[:, :1]), ShapeError, "logvar has B=1 but mu has B=3"),
        (lambda: generalised_product(MU, MU, prior=(np.zeros(2), np.eye(2))), ShapeError, "prior has shapes"),
        (lambda: covariance_intersection(MU, 0 * EYE), ArgumentError, "cov of expert 0, row 0, is not positive definite"),
        (lambda: covariance_intersection(MU, EYE, criterion="size"), ArgumentError, "criterion must be 'determinant' or 'trace', not 'size'"),
        (lambda: covariance_intersection(MU, EYE, mask=np.zeros(2, bool)), ArgumentError, "row 0 has no expert"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_no_rows_and_no_width():
    for shape in ((2, 0, 3), (2, 3, 0)):
        got = covariance_intersection(np.zeros(shape), np.zeros((*shape, shape[-1])))
        assert got.mean.shape == shape[1:]
        mean, _, normaliser = generalised_product(
            np.zeros(shape), np.zeros(shape), return_log_normaliser=True
        )
        assert mean.shape == shape[1:]
        assert_array_equal(normaliser, np.zeros(shape[1]))
    assert turned(np.zeros((0, 2))).shape == (2, 0)
