"""Products of Student-t experts: the mode against a search, curvature against autograd, moments against SciPy."""

import itertools
import math

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
import scipy.integrate
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sensorium.errors import ArgumentError, DTypeError, ShapeError
from sensorium.ops import fuse_full, student_t_product


def log_density(z, mu, logvar, dof, weights=None, prior=True):
    """Of one row, jointly over all dimensions, ``mu (M, D)``; under autograd too."""
    M, D = mu.shape
    weights = np.ones(M) if weights is None else weights
    square = anp.sum((z - mu) ** 2 * np.exp(-logvar), axis=-1)
    total = -anp.sum(weights * (dof + D) / 2 * anp.log(1 + square / dof))
    return total - anp.sum(z * z) / 2 if prior else total


def random_case(rng, M, B, D, spread=3.0):
    return rng.normal(size=(M, B, D)) * spread, rng.normal(size=(M, B, D)), rng.uniform(1, 8, size=M)


@given(seed=st.integers(0, 2**32 - 1), M=st.integers(1, 4), prior=st.booleans())
def test_the_mode_is_the_highest_of_a_line(seed, M, prior):
    rng = np.random.default_rng(seed)
    mu, logvar, dof = random_case(rng, M, 2, 1)
    weights = rng.uniform(0.5, 2, size=M)
    got = student_t_product(mu, logvar, dof, weights=weights, prior=prior)
    for b in range(2):
        line = np.concatenate([np.linspace(-15, 15, 3001), mu[:, b, 0]])
        square = (line[:, None] - mu[:, b, 0]) ** 2 * np.exp(-logvar[:, b, 0])
        values = -(weights * (dof + 1) / 2 * np.log1p(square / dof)).sum(1) - prior * line**2 / 2
        best = log_density(got.mean[b], mu[:, b], logvar[:, b], dof, weights, prior)
        assert best >= values.max() - 1e-12
        if got.converged[b]:
            curve = -autograd.hessian(log_density)(got.mean[b], mu[:, b], logvar[:, b], dof, weights, prior)
            assert_allclose(np.exp(-got.logvar[b]), curve[0], rtol=1e-6)


@given(seed=st.integers(0, 2**32 - 1), M=st.integers(1, 4), D=st.integers(1, 4))
def test_a_joint_mode_is_flat_and_its_variances_are_those_of_the_whole_curvature(seed, M, D):
    rng = np.random.default_rng(seed)
    mu, logvar, dof = random_case(rng, M, 2, D)
    got = student_t_product(mu, logvar, dof, joint=True)
    assert got.share.shape == (M, 2)
    for b in np.flatnonzero(got.converged):
        arguments = (got.mean[b], mu[:, b], logvar[:, b], dof)
        cov = np.linalg.inv(-autograd.hessian(log_density)(*arguments))
        assert_allclose(np.exp(got.logvar[b]), np.diag(cov), rtol=1e-6)
        slope = autograd.grad(log_density)(*arguments)
        assert (np.abs(cov @ slope) <= 1e-6 * np.sqrt(np.diag(cov))).all()
        starts = np.concatenate([mu[:, b], rng.normal(size=(20, D)) * 3])
        assert all(log_density(z, *arguments[1:]) <= log_density(*arguments) + 1e-12 for z in starts)


def test_nearly_all_rows_converge():
    rng = np.random.default_rng(0)
    mu, logvar, dof = random_case(rng, 3, 500, 4)
    for joint in (True, False):
        assert student_t_product(mu, logvar, dof, joint=joint).converged.mean() >= 0.99


def test_too_few_steps_are_told():
    rng = np.random.default_rng(1)
    mu, logvar, dof = random_case(rng, 3, 50, 4)
    assert not student_t_product(mu, logvar, dof, max_iterations=1).converged.any()
    # Between two equal modes that are about to part, the curvature is 0.
    flat = student_t_product(np.array([[[-1.0]], [[1.0]]]), np.zeros((2, 1, 1)), 1.0, prior=False)
    assert not flat.converged[0]


@given(seed=st.integers(0, 2**32 - 1), joint=st.booleans(), kind=st.sampled_from(["laplace", "moments"]))
def test_infinite_degrees_of_freedom_are_the_gaussian_product(seed, joint, kind):
    rng = np.random.default_rng(seed)
    mu, logvar, _ = random_case(rng, 3, 2, 2)
    weights, mask = rng.uniform(0.2, 2, size=(3, 2)), rng.random((3, 2)) < 0.7
    mu[~mask], logvar[~mask] = np.nan, np.nan
    kind = "laplace" if joint else kind
    got = student_t_product(mu, logvar, np.inf, joint=joint, weights=weights, mask=mask, approximation=kind)
    mean, cov = fuse_full(mu, np.exp(logvar)[..., None] * np.eye(2), weights=weights, mask=mask)
    assert got.converged.all()
    assert_allclose(got.mean, mean, rtol=1e-8, atol=1e-9)
    assert_allclose(np.exp(got.logvar), np.diagonal(cov, axis1=-2, axis2=-1), rtol=1e-8)
    want = np.where(mask, weights, 0)
    assert_allclose(got.share, want if joint else np.broadcast_to(want[..., None], mu.shape), rtol=1e-12)


@pytest.mark.parametrize("prior", [True, False])
def test_moments_are_those_of_the_product(prior):
    rng = np.random.default_rng(2)
    dof = np.array([0.7, 3.0, 8.0])
    scale = np.array([[0.02, 3.0], [1.0, 0.1], [0.3, 10.0]])[:, None]
    mu = rng.normal(size=(3, 1, 2)) * 3
    got = student_t_product(mu, 2 * np.log(scale), dof, prior=prior, approximation="moments")
    for d in range(2):
        m, s, top = mu[:, 0, d].tolist(), scale[:, 0, d].tolist(), 0.0

        def log(z, m=m, s=s):
            parts = [
                (n + 1) / 2 * math.log1p(((z - a) / b) ** 2 / n) for n, a, b in zip(dof, m, s, strict=True)
            ]
            return -sum(parts) - (z * z / 2 if prior else 0.0)

        top = log(got.mean[0, d])
        cuts = sorted({a + b * w for a, b in zip(m, s, strict=True) for w in (-20, -2, 0, 2, 20)})
        power = [
            sum(
                scipy.integrate.quad(
                    lambda z, k=k, log=log, top=top: math.exp(log(z) - top) * z**k,
                    a,
                    b,
                    epsabs=1e-13,
                    limit=200,
                )[0]
                for a, b in itertools.pairwise([-np.inf, *cuts, np.inf])
            )
            for k in range(3)
        ]
        mean = power[1] / power[0]
        assert_allclose(got.mean[0, d], mean, rtol=1e-7)
        assert_allclose(np.exp(got.logvar[0, d]), power[2] / power[0] - mean**2, rtol=1e-6)


def test_an_expert_that_is_far_away_is_ignored_where_the_gaussian_product_follows_it():
    rng = np.random.default_rng(3)
    mu, logvar = rng.normal(size=(3, 4, 2)), np.zeros((3, 4, 2))
    without = student_t_product(mu[:2], logvar[:2], 4.0)
    for away in (1e2, 1e4, 1e6):
        mu[2] = away
        for joint, kind in ((False, "laplace"), (True, "laplace"), (False, "moments")):
            got = student_t_product(mu, logvar, 4.0, joint=joint, approximation=kind)
            want = student_t_product(mu[:2], logvar[:2], 4.0, joint=joint, approximation=kind)
            assert got.converged.all()
            # It pulls by (dof + n) / away at most, on a product that gives way by its variance.
            assert (np.abs(got.mean - want.mean) <= 2 * 6 / away).all()
            assert (got.share[2] <= 2 * 6 / away**2).all()
        gaussian, _ = fuse_full(mu, np.broadcast_to(np.eye(2), (3, 4, 2, 2)))
        assert (gaussian >= away / 4 - 4).all()
    assert np.abs(without.mean).max() < 3


def test_jointly_an_expert_is_let_go_in_all_dimensions():
    """An expert that is wrong in one of three: each dimension for itself keeps the other two of it."""
    mu, logvar = np.zeros((3, 1, 3)), np.zeros((3, 1, 3))
    mu[2, 0] = [0.5, 0.5, 30.0]
    apart, joint = (student_t_product(mu, logvar, 4.0, joint=j) for j in (False, True))
    assert (apart.share[2, 0, :2] > 1).all()
    assert apart.share[2, 0, 2] < 0.01
    assert joint.share[2, 0] < 0.01
    assert (apart.mean[0, :2] > 0.1).all()
    assert (np.abs(joint.mean[0, :2]) < 0.01).all()


def test_order_names_dtype_and_masks():
    rng = np.random.default_rng(4)
    mu, logvar, dof = random_case(rng, 3, 5, 2)
    mask = rng.random((3, 5)) < 0.6
    want = student_t_product(mu, logvar, dof, mask=mask)
    parts = [{k: a[i] for i, k in enumerate("abc")} for a in (mu, logvar, dof, mask)]
    parts = [{k: part[k] for k in "cab"} for part in parts]
    got = student_t_product(parts[0], parts[1], parts[2], mask=parts[3])
    assert_allclose(got.mean, want.mean, rtol=1e-8, atol=1e-9)
    for i, key in enumerate("abc"):
        assert_allclose(got.share[key], want.share[i], rtol=1e-7, atol=1e-12)
    assert_array_equal(want.share[~mask], 0)
    single = student_t_product(mu.astype(np.float32), logvar.astype(np.float32), dof, mask=mask)
    assert single.mean.dtype == single.logvar.dtype == single.share.dtype == np.float32
    assert_allclose(single.mean, want.mean, rtol=1e-4, atol=1e-5)
    alone = student_t_product(mu, logvar, dof, mask=np.zeros(3, bool))
    assert_array_equal(alone.mean, 0)
    assert_allclose(alone.logvar, 0, atol=1e-12)


def test_extreme_scales_and_empty_arrays():
    mu = np.array([[[0.0]], [[1.0]]])
    for size in (-200.0, 200.0):
        for kind in ("laplace", "moments"):
            got = student_t_product(mu, np.full((2, 1, 1), size), 5.0, approximation=kind)
            assert np.isfinite(got.mean).all()
            assert np.isfinite(got.logvar).all()
    for shape in ((2, 0, 3), (2, 3, 0), (0, 2, 3)):
        got = student_t_product(np.zeros(shape), np.zeros(shape), 3.0)
        assert got.mean.shape == shape[1:]
    assert student_t_product(np.zeros((0, 2, 3)), np.zeros((0, 2, 3)), 3.0, joint=True).share.shape == (0, 2)


def test_a_nan_stays_in_its_row():
    mu = np.zeros((2, 3, 2))
    mu[0, 1, 0] = np.nan
    for joint in (False, True):
        got = student_t_product(mu, np.zeros_like(mu), 3.0, joint=joint)
        assert_array_equal(got.converged, [True, False, True])
        assert_array_equal(got.mean[[0, 2]], 0)
        assert np.isnan(got.mean[1]).any()


MU = np.zeros((2, 3, 2))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: student_t_product(MU, MU, 0.0), ArgumentError, "dof of expert 0 must be above 0, not 0"),
        (lambda: student_t_product({"a": MU[0]}, {"a": MU[0]}, {"a": -1}), ArgumentError, "dof of expert 'a' must be above 0, not -1"),
        (lambda: student_t_product(MU, MU, np.nan), ArgumentError, "dof of expert 0 must be above 0, not nan"),
        (lambda: student_t_product(MU, MU, [1.0]), ShapeError, r"dof has shape \(1,\), expected \(\) or \(2,\)"),
        (lambda: student_t_product(MU, MU, "a"), DTypeError, "dof has dtype <U1, expected numbers"),
        (lambda: student_t_product(MU, MU, {"a": 1}), ArgumentError, "dof must be an array, as mu is"),
        (lambda: student_t_product(MU, MU, 1.0, approximation="best"), ArgumentError, "approximation must be 'laplace' or 'moments', not 'best'"),
        (lambda: student_t_product(MU, MU, 1.0, joint=True, approximation="moments"), ArgumentError, "approximation 'moments' needs joint=False"),
        (
            lambda: student_t_product(MU, MU, 0.5, prior=False, approximation="moments"),
            ArgumentError,
            r"row 0 has powers times \(dof \+ 1\) that sum to 3",
        ),
        (lambda: student_t_product(MU, MU, 1.0, prior=False, mask=np.zeros(2, bool)), ArgumentError, "row 0 has no expert"),
        (lambda: student_t_product(MU, MU, 1.0, tolerance=0), ArgumentError, "tolerance must be above 0"),
        (lambda: student_t_product(MU, MU, 1.0, max_iterations=0), ArgumentError, "max_iterations must be at least 1"),
        (lambda: student_t_product(MU, MU[:1], 1.0), ShapeError, "logvar has M=1 but mu has M=2"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()
