"""Which component a row's sample comes from, samples of mixtures of experts, and densities of mixtures."""

import re
from pathlib import Path

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_array_equal
from reference import mixture as reference
from sensorium import autodiff, ops
from sensorium.errors import ArgumentError, DTypeError, ShapeError


def components(B, M, seed, **how):
    """Components that a batch of experts without content is given."""
    nothing = np.zeros((M, B, 1), np.float32)
    return ops.mixture_of_products(nothing, nothing, rng=seed, **how).component


def share_out(counts):
    return max(counts) - min(counts) <= 1


@pytest.mark.parametrize(("B", "M"), [(1, 3), (2, 3), (6, 3), (7, 3), (20, 3), (31, 5), (100, 5), (5, 1)])
def test_stratified_counts_differ_by_at_most_one(B, M):
    for seed in range(20):
        counts = np.bincount(components(B, M, seed), minlength=2**M - 1)
        assert len(counts) == 2**M - 1
        assert counts.sum() == B
        assert share_out(counts)


def test_a_batch_below_the_number_of_subsets_is_not_given_the_last_one():
    """Batches of two over seven subsets: two different ones each time, and over time all of them alike."""
    drawn = np.array([components(2, 3, seed) for seed in range(700)])
    assert (drawn[:, 0] != drawn[:, 1]).all()
    for row in drawn.T:
        counts = np.bincount(row, minlength=7)
        # A chance below 1e-6 to be further out, for a choice that is even.
        assert scipy.stats.chisquare(counts).pvalue > 1e-6, counts


@pytest.mark.parametrize("selection", ["stratified", "sampled"])
def test_every_row_has_its_subsets_with_the_same_probability(selection):
    mask = np.array([[1, 1, 0, 1], [1, 1, 1, 1], [1, 0, 1, 1]], bool)  # two rows lack one expert each
    drawn = np.array([components(4, 3, seed, mask=mask, selection=selection) for seed in range(900)])
    subsets = reference.all_subsets(3)
    for b, row in enumerate(drawn.T):
        mine = [k for k, s in enumerate(subsets) if mask[list(s), b].all()]
        counts = np.bincount(row, minlength=7)
        assert counts[mine].sum() == 900
        assert scipy.stats.chisquare(counts[mine]).pvalue > 1e-6, counts


def test_rows_with_the_same_experts_share_their_subsets_out():
    rng = np.random.default_rng(0)
    mask = rng.random((4, 200)) < 0.7
    mask[rng.integers(4, size=200), np.arange(200)] = True
    listed = [s for s in reference.all_subsets(4) if len(s) != 2]
    subsets = np.array(listed, dtype=object)
    which = components(200, 4, 1, mask=mask, subsets=listed)
    for pattern in np.unique(mask, axis=1).T:
        rows = (mask == pattern[:, None]).all(axis=0)
        mine = [k for k, s in enumerate(subsets) if pattern[list(s)].all()]
        counts = np.bincount(which[rows], minlength=len(subsets))
        assert counts[mine].sum() == rows.sum()
        assert share_out(counts[mine])


@pytest.mark.parametrize("samples", [None, 1, 2, 6, 7, 0])
@pytest.mark.parametrize("B", [0, 1, 5])
def test_experts_are_shared_out_over_rows_and_over_the_samples_of_a_row(B, samples):
    nothing = np.zeros((3, B, 2))
    for seed in range(5):
        z, component = ops.mixture_of_experts(nothing, nothing, rng=seed, num_samples=samples)
        assert z.shape == (*component.shape, 2)
        assert component.shape == ((B,) if samples is None else (samples, B))
        assert share_out(np.bincount(component.reshape(-1), minlength=3))
        for row in component.reshape(1 if samples is None else samples, B).T:
            assert share_out(np.bincount(row, minlength=3))


def test_weights_are_stepped_through():
    nothing, weights = np.zeros((4, 50, 1)), np.array([0.5, 0.0, 3.0, 1.5])
    for seed in range(20):
        component = ops.mixture_of_experts(nothing, nothing, weights=weights, rng=seed).component
        counts = np.bincount(component, minlength=4)
        assert (np.abs(counts - 50 * weights / 5) < 1).all()
        assert counts[1] == 0
    rows = np.array([[1.0, 0.0], [3.0, 2.0]])
    nothing = np.zeros((2, 2, 1))
    for selection in ("stratified", "sampled"):
        how = {"weights": rows, "selection": selection, "num_samples": 4000}
        component = ops.mixture_of_experts(nothing, nothing, rng=1, **how).component
        assert (component[:, 1] == 1).all()
        # Five deviations of 4,000 tries.
        assert abs((component[:, 0] == 0).mean() - 0.25) < 5 * (0.25 * 0.75 / 4000) ** 0.5


def test_samples_are_those_of_the_experts():
    rng = np.random.default_rng(2)
    mu, logvar = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    noise = rng.normal(size=(6, 4, 5)).astype(np.float32)
    z, component = ops.mixture_of_experts(mu, logvar, rng=0, noise=noise, num_samples=6)
    rows = np.arange(4)
    want = mu[component, rows] + np.exp(logvar[component, rows] / 2) * noise
    np.testing.assert_allclose(z, want, rtol=1e-6)
    assert z.dtype == np.float32
    again = ops.mixture_of_experts(mu, logvar, component=component, noise=noise, num_samples=6)
    assert_array_equal(again.z, z)
    drawn = ops.mixture_of_experts(mu, logvar, rng=3)
    assert_array_equal(drawn.z, ops.mixture_of_experts(mu, logvar, rng=3).z)


def grid(low, high, number=4001):
    return np.linspace(low, high, number), (high - low) / (number - 1)


@pytest.mark.parametrize("weights", [None, np.array([1.0, 5.0, 0.0])])
def test_a_density_integrates_to_one(weights):
    rng = np.random.default_rng(3)
    mu, logvar = rng.normal(size=(2, 3, 1, 1))
    z, step = grid(-40, 40)
    log = ops.gaussian_mixture_log_prob(z[:, None, None], mu, logvar, weights=weights)
    assert log.shape == (4001, 1)
    assert abs(np.exp(log).sum() * step - 1) < 1e-9


def test_the_density_of_a_mixture_of_products_integrates_to_one_and_is_what_samples_have():
    rng = np.random.default_rng(4)
    mu, logvar = 3 * rng.normal(size=(3, 2, 1)), rng.normal(size=(3, 2, 1))
    mask = np.array([[True, True], [True, False], [True, True]])
    parts = ops.subset_products(mu, logvar, mask=mask)
    z, step = grid(-30, 30)
    points = np.broadcast_to(z[:, None, None], (4001, 2, 1))
    density = np.exp(ops.gaussian_mixture_log_prob(points, parts.mean, parts.logvar, mask=parts.present))
    np.testing.assert_allclose(density.sum(axis=0) * step, 1, atol=1e-9)
    # Moments of samples, within five deviations.
    number = 20_000
    many = [np.repeat(a, number, axis=1) for a in (mu, logvar)]
    drawn = ops.mixture_of_products(*many, mask=np.repeat(mask, number, axis=1), rng=5).z.reshape(2, number)
    for row, of in zip(drawn, density.T, strict=True):
        mean = (z * of).sum() * step
        var = ((z - mean) ** 2 * of).sum() * step
        assert abs(row.mean() - mean) < 5 * (var / number) ** 0.5
        assert abs(row.var() / var - 1) < 0.1


def test_the_mean_divergence_bounds_that_of_the_mixture():
    rng = np.random.default_rng(5)
    mu, logvar = rng.normal(size=(2, 3, 1, 1))
    parts = ops.subset_products(mu, logvar)
    z, step = grid(-30, 30)
    log = ops.gaussian_mixture_log_prob(z[:, None, None], parts.mean, parts.logvar)[:, 0]
    kl = (np.exp(log) * (log - scipy.stats.norm.logpdf(z))).sum() * step
    mean_kl = ops.mixture_of_products(mu, logvar, rng=0).kl[0]
    assert 0 < kl < mean_kl
    np.testing.assert_allclose(mean_kl, ops.gaussian_kl(parts.mean, parts.logvar).mean(), rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_densities_agree_with_the_reference(dtype):
    rng = np.random.default_rng(6)
    mu, logvar = rng.normal(size=(2, 4, 3, 5)).astype(dtype)
    z = rng.normal(size=(2, 7, 3, 5)).astype(dtype)
    mask = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1], [0, 0, 1]], bool)
    weights = rng.uniform(0.1, 1, (4, 3)).astype(dtype)
    got = ops.gaussian_mixture_log_prob(z, mu, logvar, mask=mask, weights=weights)
    assert got.dtype == dtype
    want = reference.log_prob(z, mu, logvar, np.where(mask, weights, 0))
    np.testing.assert_allclose(got, want, rtol=4 * np.finfo(dtype).eps)


def test_a_density_far_away_and_of_narrow_experts_has_no_nan():
    mu, logvar = np.zeros((2, 1, 1), np.float32), np.float32([[[-200.0]], [[-190.0]]])
    far = np.float32([[[0.0]], [[1e-30]], [[1.0]], [[1e30]]])
    log = ops.gaussian_mixture_log_prob(far, mu, logvar)[:, 0]
    assert not np.isnan(log).any()
    np.testing.assert_allclose(
        log[0], 100 - 0.5 * np.log(2 * np.pi) + np.log((1 + np.exp(-5)) / 2), rtol=1e-6
    )
    assert log[3] == -np.inf

    def loss(mu):
        return anp.sum(autodiff.gaussian_mixture_log_prob(far[:2], mu, logvar))

    assert np.isfinite(autograd.grad(loss)(mu)).all()


def test_gradients_of_samples_and_densities_along_a_random_direction():
    rng = np.random.default_rng(7)
    mu, logvar, way_mu, way_logvar = rng.normal(size=(4, 3, 4, 2))
    mask = np.array([[1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 0]], bool)
    noise, g = rng.normal(size=(5, 4, 2)), rng.normal(size=(5, 4))
    weights = np.array([0.2, 0.5, 0.3])
    component = ops.mixture_of_experts(mu, logvar, mask=mask, rng=0, num_samples=5).component

    def loss(mu, logvar):
        sample = autodiff.mixture_of_experts(
            mu, logvar, mask=mask, component=component, noise=noise, num_samples=5
        )
        density = autodiff.gaussian_mixture_log_prob(sample.z, mu, logvar, mask=mask, weights=weights)
        return anp.sum(density * g) + anp.sum(sample.z * sample.z)

    grads = autograd.grad(loss, (0, 1))(mu, logvar)
    h = 1e-5
    slope = (grads[0] * way_mu).sum() + (grads[1] * way_logvar).sum()
    ends = [loss(mu + s * h * way_mu, logvar + s * h * way_logvar) for s in (1, -1)]
    np.testing.assert_allclose((ends[0] - ends[1]) / (2 * h), slope, rtol=1e-7)
    assert_array_equal(grads[0][~mask], 0)


def test_subsets_have_the_products_of_their_experts():
    rng = np.random.default_rng(8)
    mu, logvar = rng.normal(size=(2, 4, 5, 3))
    weights, prior = rng.uniform(0.2, 2, 4), (rng.normal(size=3), rng.normal(size=3))
    mask = rng.random((4, 5)) < 0.7
    mask[0] = True
    for how in ({}, {"weights": weights}, {"prior": False}, {"prior": prior, "weights": weights}):
        parts = ops.subset_products(mu, logvar, mask=mask, **how)
        assert parts.subsets == tuple(reference.all_subsets(4))
        for k, subset in enumerate(parts.subsets):
            has = mask[list(subset)].all(axis=0)
            assert_array_equal(parts.present[k], has)
            assert_array_equal(parts.mean[k, ~has], 0)
            assert_array_equal(parts.logvar[k, ~has], 0)
            only = np.zeros((4, 1), bool)
            only[list(subset)] = True
            mean, log = ops.product_of_experts(mu, logvar, mask=np.broadcast_to(only, (4, 5)), **how)
            np.testing.assert_allclose(parts.mean[k, has], mean[has], rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(parts.logvar[k, has], log[has], rtol=1e-12, atol=1e-14)


def test_errors_of_arguments():
    mu = np.zeros((2, 3, 4))
    lacking = np.array([[1, 0, 1], [1, 0, 1]], bool)
    for kind, words, change in [
        (ArgumentError, "mask leaves row 1 without an expert", {"mask": lacking}),
        (ArgumentError, "selection must be", {"selection": "all"}),
        (ArgumentError, "num_samples must be at least 0", {"num_samples": -1}),
        (DTypeError, "num_samples must be an integer", {"num_samples": 1.5}),
        (ArgumentError, "component or rng must be given", {"rng": None}),
        (ShapeError, r"noise has shape \(3, 4\), expected \(2, 3, 4\)", {"noise": mu[0], "num_samples": 2}),
        (ShapeError, r"component has shape \(2,\), expected \(3,\)", {"component": [0, 1]}),
        (
            ArgumentError,
            "component chooses an expert that row 2 lacks",
            {"component": [1, 1, 1], "mask": np.array([[1, 1, 1], [1, 1, 0]], bool)},
        ),
        (ArgumentError, "weights must be finite and not negative", {"weights": np.array([-1.0, 1.0])}),
        (ArgumentError, "weights must be finite and not negative", {"weights": np.array([np.nan, 1.0])}),
    ]:
        with pytest.raises(kind, match=words):
            ops.mixture_of_experts(mu, mu, **({"rng": 0} | change))
    with pytest.raises(ArgumentError, match="noise or rng must be given"):
        ops.mixture_of_experts(mu, mu, component=[0, 0, 0])
    with pytest.raises(ShapeError, match=r"z has shape \(2, 4\), expected \(\.\.\., 3, 4\)"):
        ops.gaussian_mixture_log_prob(mu[0, :2], mu, mu)
    with pytest.raises(DTypeError, match="z has dtype float32 but mu has float64"):
        ops.gaussian_mixture_log_prob(mu[0].astype(np.float32), mu, mu)


def test_the_examples_of_the_page_run():
    page = Path(__file__).parent.parent / "docs" / "mixtures.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 2
    assert names["log_q"].shape == names["kl"].shape == (8,)
    assert (names["grads"].mu[1, 4:] == 0).all()
