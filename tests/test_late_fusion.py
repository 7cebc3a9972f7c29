"""Late fusion: Bayes' rule on models that are known, what missing means, estimators, and a small run of the page."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from sensorium.errors import ArgumentError, DTypeError, ShapeError
from sensorium.late_fusion import LateFusionClassifier, LateFusionRegressor, fuse_predictions
from sklearn.naive_bayes import GaussianNB
from sklearn.utils.estimator_checks import check_estimator

ROOT = Path(__file__).parent.parent


def probabilities(rng, *shape):
    return rng.dirichlet(np.full(shape[-1], 0.7), size=shape[:-1])


@given(seed=st.integers(0, 2**32 - 1), M=st.integers(1, 4), C=st.integers(2, 4))
def test_the_product_is_bayes_rule_where_senses_are_independent(seed, M, C):
    """Tables of what each sense shows for each class: posteriors of each, and of all, by counting."""
    rng = np.random.default_rng(seed)
    prior = probabilities(rng, C) + 0.01
    prior /= prior.sum()
    shows = probabilities(rng, M, C, 5) + 1e-3  # Of class c, sense m shows one of five signs.
    shows /= shows.sum(-1, keepdims=True)
    seen = rng.integers(0, 5, size=(M, 6))
    there = rng.random((M, 6)) < 0.7
    likelihood = np.stack([shows[m][:, seen[m]].T for m in range(M)])  # (M, B, C)
    single = prior * likelihood
    single /= single.sum(-1, keepdims=True)
    whole = prior * np.where(there[..., None], likelihood, 1).prod(axis=0)
    whole /= whole.sum(-1, keepdims=True)
    assert_allclose(fuse_predictions(single, prior=prior, mask=there), whole, rtol=1e-10)
    holes = np.where(there[..., None], single, np.nan)
    assert_array_equal(
        fuse_predictions(holes, prior=prior), fuse_predictions(single, prior=prior, mask=there)
    )


@given(seed=st.integers(0, 2**32 - 1), M=st.integers(1, 4))
def test_regressors_give_the_posterior_of_all_observations(seed, M):
    rng = np.random.default_rng(seed)
    m0, v0 = rng.normal(), rng.uniform(0.5, 3)
    y, r = rng.normal(size=(M, 5)), rng.uniform(0.1, 4, size=(M, 5))
    there = rng.random((M, 5)) < 0.7
    var = 1 / (1 / v0 + 1 / r)
    mean = np.where(there, var * (m0 / v0 + y / r), np.nan)
    got = fuse_predictions(mean, np.where(there, var, np.nan), prior=(m0, v0))
    precision = 1 / v0 + np.where(there, 1 / r, 0).sum(0)
    assert_allclose(got.variance, 1 / precision, rtol=1e-10)
    assert_allclose(got.mean, (m0 / v0 + np.where(there, y / r, 0).sum(0)) / precision, rtol=1e-9, atol=1e-10)
    named = fuse_predictions(
        {f"m{i}": m for i, m in enumerate(mean)}, {f"m{i}": v for i, v in enumerate(var)}, prior=(m0, v0)
    )
    assert_allclose(named.mean, got.mean, rtol=1e-12)


@given(seed=st.integers(0, 2**32 - 1), M=st.integers(1, 5), rho=st.floats(0, 1))
def test_correlation_is_exact_for_errors_of_equal_size(seed, M, rho):
    rng = np.random.default_rng(seed)
    mean, var = rng.normal(size=(M, 3)), 0.7
    got = fuse_predictions(mean, np.full((M, 3), var), correlation=rho)
    assert_allclose(got.mean, mean.mean(0), rtol=1e-9, atol=1e-12)
    cov = var * ((1 - rho) * np.eye(M) + rho)
    assert_allclose(got.variance, cov.mean(), rtol=1e-9)  # The variance of the mean.


@given(seed=st.integers(0, 2**32 - 1), M=st.integers(1, 4))
def test_pools(seed, M):
    rng = np.random.default_rng(seed)
    p, weights = probabilities(rng, M, 4, 3) + 1e-3, rng.uniform(0.1, 2, size=M)
    p /= p.sum(-1, keepdims=True)
    share = weights / weights.sum()
    assert_allclose(
        fuse_predictions(p, method="linear", weights=weights), np.einsum("m,mbc->bc", share, p), rtol=1e-12
    )
    log = np.prod(p ** share[:, None, None], axis=0)
    want = log / log.sum(-1, keepdims=True)
    assert_allclose(
        fuse_predictions(p, method="log", weights=weights, prior=[0.2, 0.3, 0.5]), want, rtol=1e-10
    )
    assert_allclose(fuse_predictions(p, correlation=1.0), fuse_predictions(p, method="log"), rtol=1e-10)
    order = rng.permutation(M)
    assert_allclose(fuse_predictions(p[order]), fuse_predictions(p), rtol=1e-10)
    same = np.stack([p[0]] * M)  # Pools are idempotent: one opinion said often is one opinion.
    for method in ("log", "linear"):
        assert_allclose(fuse_predictions(same, method=method), p[0], rtol=1e-10)


def test_the_linear_pool_of_regressors_has_the_moments_of_the_mixture():
    mean, var, weights = np.array([[0.0], [3.0]]), np.array([[1.0], [0.25]]), np.array([0.25, 0.75])
    got = fuse_predictions(mean, var, method="linear", weights=weights)
    z = np.linspace(-12, 15, 20001)
    density = sum(
        w * scipy.stats.norm.pdf(z, m[0], np.sqrt(v[0])) for w, m, v in zip(weights, mean, var, strict=True)
    )
    density /= density.sum()
    assert_allclose(got.mean, (density * z).sum(), rtol=1e-10)
    assert_allclose(got.variance, (density * (z - (density * z).sum()) ** 2).sum(), rtol=1e-9)


def test_targets_dtypes_and_rows_without_anything():
    rng = np.random.default_rng(0)
    mean, var = rng.normal(size=(2, 4, 3)).astype(np.float32), np.ones((2, 4, 3), np.float32)
    mean[:, 1] = np.nan
    for method in ("product", "log", "linear"):
        got = fuse_predictions(mean, var, method=method, prior=(0.5, [1.0, 2.0, 3.0]))
        assert got.mean.dtype == got.variance.dtype == np.float32
        assert got.mean.shape == (4, 3)
        assert_allclose(got.mean[1], 0.5)
        assert_allclose(got.variance[1], [1, 2, 3], rtol=1e-6)
    p = np.full((2, 3, 2), np.nan, np.float32)
    for method in ("product", "log", "linear"):
        assert_allclose(fuse_predictions(p, method=method, prior=[1, 3]), [[0.25, 0.75]] * 3)
    assert fuse_predictions(np.zeros((2, 0, 3))).shape == (0, 3)
    one = np.array([[[1.0, 0.0, 0.0]], [[0.0, 0.5, 0.5]]])
    assert_allclose(fuse_predictions(one, weights=[1, 0]), one[0])  # What has no weight excludes nothing.
    assert_allclose(fuse_predictions(one, method="linear"), [[0.5, 0.25, 0.25]])


P, NAN = np.full((2, 3, 2), 0.5), np.nan


def changed(row, m=1, b=2):
    p = P.copy()
    p[m, b] = row
    return p


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: fuse_predictions(changed([0.5, 0.7])), ArgumentError, "predictions of expert 1, row 2, are not probabilities: .* sum to 1.2"),
        (lambda: fuse_predictions(changed([1.5, -0.5])), ArgumentError, "predictions of expert 1, row 2, are not probabilities: they are from -0.5 to 1.5"),
        (lambda: fuse_predictions(changed([0.5, NAN])), ArgumentError, "predictions of expert 1, row 2, is NaN in part"),
        (lambda: fuse_predictions({"a": P[0], "b": changed([2, 2])[1]}), ArgumentError, "predictions of expert 'b', row 2"),
        (lambda: fuse_predictions(np.full((2, 3, 2), NAN)), ArgumentError, "row 0 has no prediction that counts, and there is no prior"),
        (lambda: fuse_predictions(np.array([[[1.0, 0.0]], [[0.0, 1.0]]])), ArgumentError, "row 0 has no class left"),
        (lambda: fuse_predictions(P, prior=[1.0, 0.0]), ArgumentError, "prior must be finite and above 0"),
        (lambda: fuse_predictions(P, prior=[1.0]), ShapeError, r"prior has shape \(1,\), expected \(2,\)"),
        (lambda: fuse_predictions(P, method="vote"), ArgumentError, "method must be 'product', 'log' or 'linear', not 'vote'"),
        (lambda: fuse_predictions(P, correlation=1.5), ArgumentError, "correlation must be from 0 to 1, not 1.5"),
        (lambda: fuse_predictions(P, weights=[1, -1]), ArgumentError, "weights of expert 1, row 0, must be finite and at least 0"),
        (lambda: fuse_predictions(P[0]), ShapeError, "predictions has shape"),
        (lambda: fuse_predictions(P.astype(int)), DTypeError, "predictions has dtype int64"),
        (lambda: fuse_predictions(P, P[:, :1]), ShapeError, "variances has shape"),
        (lambda: fuse_predictions(P, 0 * P), ArgumentError, "variances of expert 0, row 0, must be finite and above 0"),
        (lambda: fuse_predictions(P, P.astype(np.float32)), DTypeError, "variances has dtype float32 but predictions has float64"),
        (lambda: fuse_predictions(P, P, prior=3.0), DTypeError, r"prior must be a pair \(mean, variance\)"),
        (lambda: fuse_predictions(P, P, prior=(0.0, -1.0)), ArgumentError, "prior must be finite, and its variance above 0"),
        (lambda: fuse_predictions(P, 3 + P, prior=(0.0, 1.0)), ArgumentError, "row 0 has experts that together are less sure than the prior"),
        (lambda: LateFusionClassifier({}).fit(P[0], [0, 1, 1]), ArgumentError, "groups must be a dict of columns"),
        (lambda: LateFusionClassifier({"a": ["x"]}).fit(P[0], [0, 1, 1]), ArgumentError, r"groups\['a'\] has the column 'x', which X does not have"),
        (lambda: LateFusionClassifier({"a": [2]}).fit(P[0], [0, 1, 1]), ArgumentError, r"groups\['a'\] must be at most 1, not 2"),
        (lambda: LateFusionClassifier({"a": []}).fit(P[0], [0, 1, 1]), ArgumentError, r"groups\['a'\] has no column"),
        (lambda: LateFusionClassifier().fit(P[0], [0, 1, 1]), ArgumentError, "group 'all' has 1 rows of class 0, expected 2 at least"),
        (lambda: LateFusionClassifier(correlation="none").fit(P[0], [0, 1, 1]), ArgumentError, "correlation must be 'fit' or a number"),
        (lambda: LateFusionRegressor({"a": [0], "b": [1]}).fit(np.array([[1, NAN]] * 4), np.arange(4)), ArgumentError, "group 'b' has 0 rows"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("kind", [LateFusionClassifier, LateFusionRegressor])
def test_scikit_learn_finds_nothing_to_say(kind):
    results = check_estimator(kind(cv=2), on_skip=None)
    assert {r["check_name"] for r in results if r["status"] == "passed"} >= {
        "check_n_features_in_after_fitting",
        "check_fit_idempotent",
    }
    for result in results:  # Two checks need what is not installed.
        assert result["status"] == "passed" or re.search(
            "not installed|SCIPY_ARRAY_API", str(result["exception"])
        )


def two_senses(rng, rows, shared):
    """Two groups of three columns for two classes; noise is shared by a share of its variance."""
    y = rng.integers(0, 2, size=rows)
    common = rng.normal(size=(rows, 3))
    noise = [np.sqrt(shared) * common + np.sqrt(1 - shared) * rng.normal(size=(rows, 3)) for _ in range(2)]
    return np.concatenate([n + 0.8 * y[:, None] for n in noise], axis=1), y


GROUPS = {"one": [0, 1, 2], "two": [3, 4, 5]}


def test_the_correlation_that_is_fitted_is_that_of_the_groups():
    rng = np.random.default_rng(1)
    fitted = {
        shared: LateFusionClassifier(GROUPS).fit(*two_senses(rng, 3000, shared)).correlation_
        for shared in (0.0, 0.5, 1.0)
    }
    assert fitted[0.0] < 0.15
    assert 0.3 < fitted[0.5] < 0.7
    assert fitted[1.0] > 0.95
    X, _ = two_senses(rng, 3000, 0.0)
    y = X.sum(axis=1) + rng.normal(size=3000)
    copies = LateFusionRegressor(GROUPS).fit(np.tile(X[:, :3], 2), y)
    assert copies.correlation_ > 0.95
    one = LateFusionRegressor({"one": [0, 1, 2]}).fit(X, y)
    for got, want in zip(
        copies.predict(np.tile(X[:, :3], 2), return_std=True), one.predict(X, return_std=True), strict=True
    ):
        assert_allclose(got, want, rtol=0.05, atol=0.05)


def test_a_missing_group_is_left_out_in_fitting_and_in_predicting():
    rng = np.random.default_rng(2)
    X, y = two_senses(rng, 400, 0.0)
    holes = X.copy()
    holes[200:, 4] = np.nan  # One column of a group takes the whole group with it.
    model = LateFusionClassifier(GROUPS).fit(holes, y)
    other = LateFusionClassifier({"two": [3, 4, 5]}).fit(X[:200], y[:200])
    each = model.predict_groups(holes)
    assert_array_equal(np.isnan(each["two"]).all(axis=1), np.arange(400) >= 200)
    assert_array_equal(each["two"][:200], other.predict_groups(X[:200])["two"])
    assert_allclose(model.predict_proba(holes)[200:], each["one"][200:], rtol=1e-12)
    gone = np.full((2, 6), np.nan)
    assert_allclose(model.predict_proba(gone), np.tile(model.prior_, (2, 1)), rtol=1e-12)
    assert_allclose(LateFusionRegressor(GROUPS).fit(holes, y).predict(gone), y.mean(), rtol=1e-12)


def test_overconfident_classifiers_are_calibrated():
    rng = np.random.default_rng(3)
    X, y = two_senses(rng, 1200, 0.0)
    wide = np.tile(X[:, :3], 6)  # To naive Bayes, six copies are six witnesses.
    train, test = slice(600), slice(600, None)
    raw = GaussianNB().fit(wide[train], y[train]).predict_proba(wide[test])
    model = LateFusionClassifier(estimator=GaussianNB()).fit(wide[train], y[train])
    loss = [-np.log(p[np.arange(600), y[test]]).mean() for p in (raw, model.predict_proba(wide[test]))]
    assert loss[1] < loss[0] - 0.2
    assert model.calibrations_["all"].slope_ < 0.5


def test_deviations_of_a_regressor_cover():
    rng = np.random.default_rng(4)
    X, _ = two_senses(rng, 2000, 0.3)
    y = X[:, 0] + X[:, 3] + rng.normal(size=2000)
    X[rng.random(2000) < 0.3, 1] = np.nan
    model = LateFusionRegressor(GROUPS).fit(X[:1000], y[:1000])
    mean, std = model.predict(X[1000:], return_std=True)
    inside = np.mean(np.abs(y[1000:] - mean) < 1.96 * std)
    assert 0.92 < inside < 0.98  # 0.95, and four deviations of a share of a thousand.
    assert std.max() > 1.05 * std.min()  # Fewer groups, less sure.


def test_columns_by_name():
    from sensorium.late_fusion._estimators import _columns

    found = _columns({"b": ["y", 0], "a": ["x"]}, np.array(["x", "y"], object), 2)
    assert {k: v.tolist() for k, v in found.items()} == {"b": [1, 0], "a": [0]}


@pytest.fixture(scope="module")
def script():
    import sys

    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        yield runpy.run_path(str(ROOT / "scripts" / "late_fusion_results.py"))
    finally:
        sys.path.remove(str(ROOT / "scripts"))


def test_a_small_run_of_the_page(script):
    """One split of wine: with half of the groups gone, late fusion is ahead of means in their place."""
    runs = script["measure_one"]("wine", only=1)
    assert {run["condition"] for run in runs} == set(script["names"]("wine"))
    for what in ("error", "surprise"):
        mean = {
            model: np.mean(script["pick"](runs, what, model=model, condition="half missing"))
            for model in (script["FUSED"], script["JOINED"])
        }
        assert mean[script["FUSED"]] < mean[script["JOINED"]]
    for group in ("phenols", "colour"):  # With one group there, late fusion is what fitting anew is.
        where = {"condition": f"only {group}"}
        assert script["pick"](runs, "surprise", model=script["FUSED"], **where) == pytest.approx(
            script["pick"](runs, "surprise", model=script["ANEW"], **where), rel=1e-6
        )


def test_the_examples_of_the_page_run():
    page = (ROOT / "docs" / "late_fusion.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    names = {}
    for block in blocks:
        exec(block, names)
    assert_allclose(names["fused"][1], [0.6, 0.4])
    assert_allclose(names["variance"], 1 / (2 - 1 / 4))
    assert names["accuracy"] > 0.9
    assert set(names["each"]) == set(names["groups"])
