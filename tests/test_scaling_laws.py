"""Scaling laws: planted parameters, SciPy's optimiser, known standard errors, intervals, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import sensorium
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special
from sensorium import scaling
from sensorium.errors import ArgumentError, ShapeError
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError


def chinchilla(points: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = np.exp(rng.uniform(np.log([1e7, 1e9]), np.log([1e10, 1e12]), size=(points, 2)))
    loss = 1.69 + 406.4 * X[:, 0] ** -0.34 + 410.7 * X[:, 1] ** -0.28
    return X, loss * np.exp(noise * rng.standard_normal(points))


def huber(theta: np.ndarray, X: np.ndarray, y: np.ndarray, delta: float) -> float:
    """The objective, written as the paper has it."""
    e, a, b, alpha, beta = theta
    terms = [np.full(len(y), e), a - alpha * np.log(X[:, 0]), b - beta * np.log(X[:, 1])]
    return float(special.huber(delta, special.logsumexp(terms, axis=0) - np.log(y)).sum())


PLANTED = [
    (
        scaling.ChinchillaLaw,
        {"E": 1.7, "A": 400.0, "B": 500.0, "alpha": 0.34, "beta": 0.28},
        (1e7, 1e9),
        (1e10, 1e12),
    ),
    (scaling.KaplanLaw, {"N_c": 8e8, "D_c": 5e9, "alpha_N": 0.2, "alpha_D": 0.3}, (1e6, 1e7), (1e9, 1e11)),
    (scaling.OverTrainingLaw, {"E": 1.7, "A": 50.0, "B": 200.0, "eta": 0.12}, (1e15, 2.0), (1e20, 600.0)),
    (scaling.PowerLaw, {"E": 0.5, "A": 3.0, "alpha": 0.4}, (1.0,), (1e5,)),
    (scaling.JointComputeLaw, {"E": 0.2, "A": 5.0, "alpha": 0.2, "beta": 0.3}, (1.0, 1.0), (1e5, 1e4)),
    (
        scaling.BrokenPowerLaw,
        {"E": 0.1, "b": 3.0, "c0": 0.1, "c1": 0.5, "d": 300.0, "f": 0.4},
        (1.0,),
        (1e6,),
    ),
]


@pytest.mark.parametrize(("law", "planted", "low", "high"), PLANTED, ids=lambda v: getattr(v, "__name__", ""))
def test_planted_parameters_are_found(law, planted, low, high):
    rng = np.random.default_rng(1)
    X = np.exp(rng.uniform(np.log(low), np.log(high), size=(60, len(low))))
    p = planted
    x = X.T
    y = {
        scaling.ChinchillaLaw: lambda: p["E"] + p["A"] * x[0] ** -p["alpha"] + p["B"] * x[1] ** -p["beta"],
        scaling.KaplanLaw: lambda: (
            ((p["N_c"] / x[0]) ** (p["alpha_N"] / p["alpha_D"]) + p["D_c"] / x[1]) ** p["alpha_D"]
        ),
        scaling.OverTrainingLaw: lambda: (
            p["E"] + (p["A"] * x[1] ** p["eta"] + p["B"] * x[1] ** -p["eta"]) * x[0] ** -p["eta"]
        ),
        scaling.PowerLaw: lambda: p["E"] + p["A"] * x[0] ** -p["alpha"],
        scaling.JointComputeLaw: lambda: p["E"] + p["A"] * x[0] ** -p["alpha"] * x[1] ** -p["beta"],
        scaling.BrokenPowerLaw: lambda: (
            p["E"] + p["b"] * x[0] ** -p["c0"] * (1 + (x[0] / p["d"]) ** (1 / p["f"])) ** (-p["c1"] * p["f"])
        ),
    }[law]()
    fitted = law(loss="gaussian").fit(X, y)
    assert fitted.converged_
    for name, value in planted.items():
        assert fitted.parameters_[name] == pytest.approx(value, rel=1e-4), name
    np.testing.assert_allclose(fitted.predict(X), y, rtol=1e-8)


def test_laws_of_quality_are_found():
    t = np.linspace(0, 12, 30)
    law = scaling.SaturatingExponential(top=None).fit(t, 0.8 * (1 - np.exp(-0.4 * t)))
    assert (law.top_, law.alpha_) == pytest.approx((0.8, 0.4), rel=1e-6)
    assert scaling.SaturatingExponential().fit(t, 1 - np.exp(-0.4 * t)).top_ == 1.0
    k = np.arange(1.0, 20)
    law = scaling.InverseRootLaw().fit(k, 0.9 - 0.5 * k**-0.7)
    assert (law.Q_inf_, law.C_, law.gamma_) == pytest.approx((0.9, 0.5, 0.7), rel=1e-5)
    x = np.linspace(-4, 8, 40)
    law = scaling.Sigmoid().fit(x, 0.2 + 0.7 / (1 + np.exp(-1.5 * (x - 2))))
    assert (law.low_, law.high_, law.slope_, law.middle_) == pytest.approx((0.2, 0.9, 1.5, 2.0), rel=1e-5)


def test_repeated_tokens_are_worth_less():
    rng = np.random.default_rng(3)
    X = np.exp(rng.uniform(np.log([1e7, 1e9]), np.log([1e10, 1e11]), size=(80, 2)))
    X = np.column_stack([X[:, 0], X[:, 1] * rng.choice([1, 4, 20, 60], 80), X[:, 1]])
    repeats = X[:, 1] / X[:, 2] - 1
    worth = X[:, 2] * (1 + 15.4 * (1 - np.exp(-repeats / 15.4)))
    law = scaling.DataConstrainedLaw(loss="gaussian").fit(X, 1.7 + 400 * X[:, 0] ** -0.34 + 500 * worth**-0.3)
    assert law.repeats_ == pytest.approx(15.4, rel=1e-3)
    with pytest.raises(ArgumentError, match="unique_tokens must not be above tokens; row 1 is"):
        law.predict([[1e8, 1e9, 1e9], [1e8, 1e9, 2e9]])


def test_the_fit_is_no_worse_than_scipy_from_many_starts():
    X, y = chinchilla(100, 0.01)
    law = scaling.ChinchillaLaw().fit(X, y)
    rng = np.random.default_rng(0)
    best = min(
        optimize.minimize(
            huber, start, args=(X, y, 1e-3), method="Nelder-Mead", options={"maxiter": 4000}
        ).fun
        for start in rng.uniform([0, 4, 4, 0.2, 0.2], [1, 8, 8, 0.5, 0.5], size=(3, 5))
    )
    theta = np.array([np.log(law.E_), np.log(law.A_), np.log(law.B_), law.alpha_, law.beta_])
    assert law.objective_ == pytest.approx(huber(theta, X, y, 1e-3), rel=1e-10)
    assert law.objective_ <= best * (1 + 1e-9)
    assert law.ends_.converged.all()
    assert np.abs(law.ends_.gradient).max() < 1e-7


def test_standard_errors_are_those_of_least_squares_where_it_is_linear():
    rng = np.random.default_rng(4)
    x = np.exp(rng.uniform(0, 8, 50))
    y = 3 * x**-0.4 * np.exp(0.1 * rng.standard_normal(50))
    law = scaling.PowerLaw(floor=False, loss="gaussian").fit(x, y)
    design = np.column_stack([np.ones(50), -np.log(x)])
    theta, *_ = np.linalg.lstsq(design, np.log(y), rcond=None)
    assert (np.log(law.A_), law.alpha_) == pytest.approx(tuple(theta), rel=1e-9)
    # White's sandwich with the n / (n - p) of HC1.
    residual = np.log(y) - design @ theta
    bread = np.linalg.inv(design.T @ design)
    robust = bread @ (design.T * residual**2) @ design @ bread * 50 / 48
    assert law.standard_errors_["alpha"] == pytest.approx(np.sqrt(robust[1, 1]), rel=1e-8)
    assert law.standard_errors_["A"] == pytest.approx(law.A_ * np.sqrt(robust[0, 0]), rel=1e-8)
    # The profile of a linear model is a parabola: its interval is Student's.
    low, high = law.interval(0.95, method="profile")["alpha"]
    from scipy import stats

    half = stats.t.ppf(0.975, 48) * np.sqrt(bread[1, 1] * (residual**2).sum() / 48)
    assert (low, high) == pytest.approx((theta[1] - half, theta[1] + half), rel=2e-4)


def test_absolute_deviations_pass_through_the_median():
    # Of a power law without slope, least absolute deviations is the median of the logarithms.
    rng = np.random.default_rng(5)
    x = np.repeat([1.0, np.e], 11)
    y = np.exp(rng.standard_normal(22))
    law = scaling.PowerLaw(floor=False, loss="lad").fit(x, y)
    groups = np.log(y).reshape(2, 11)
    np.testing.assert_allclose(np.log(law.predict([1.0, np.e])), np.median(groups, axis=1), atol=1e-7)
    total = np.abs(groups - np.median(groups, axis=1)[:, None]).sum()
    assert law.objective_ == pytest.approx(total, rel=1e-6)


def test_bootstrap_is_refitting():
    X, y = chinchilla(60, 0.02)
    law = scaling.ChinchillaLaw(loss="gaussian").fit(X, y)
    indices = np.random.default_rng(0).integers(60, size=(20, 60))
    rows = law.bootstrap(20, indices=indices)
    alone = scaling.ChinchillaLaw(loss="gaussian").fit(X[indices[3]], y[indices[3]])
    np.testing.assert_allclose(rows[3], list(alone.parameters_.values()), rtol=1e-5)
    for method in ("percentile", "bca"):
        for name, (low, high) in law.interval(0.9, method=method).items():
            assert low < high, name
    best = law.compute_optimal(6e20)
    assert best.params * best.tokens == pytest.approx(1e20)
    assert best.params_interval[0] < best.params < best.params_interval[1]
    nearby = law.predict([[best.params * 1.1, best.tokens / 1.1], [best.params / 1.1, best.tokens * 1.1]])
    assert (nearby > best.loss).all()


def test_intervals_cover_what_was_planted():
    """95 % profile and normal intervals of alpha in 120 data sets: from 88 to 100 % of them, three deviations."""
    covered = {"profile": 0, "normal": 0}
    for seed in range(120):
        rng = np.random.default_rng(seed)
        x = np.geomspace(1, 1e4, 30)
        law = scaling.PowerLaw(loss="gaussian").fit(
            x, (0.5 + 3 * x**-0.5) * np.exp(0.02 * rng.standard_normal(30))
        )
        for method in covered:
            low, high = law.interval(0.95, method=method)["alpha"]
            covered[method] += low <= 0.5 <= high
    assert all(106 <= count <= 120 for count in covered.values()), covered


@settings(max_examples=6)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_units_and_order_do_not_matter(seed, unit):
    X, y = chinchilla(40, 0.01, seed % 7)
    order = np.random.default_rng(seed).permutation(40)
    law = scaling.ChinchillaLaw().fit(X, y)
    other = scaling.ChinchillaLaw().fit((X * unit)[order], y[order])
    assert other.objective_ == pytest.approx(law.objective_, rel=1e-7)
    assert other.alpha_ == pytest.approx(law.alpha_, rel=1e-3)


def test_weights_count_points():
    X, y = chinchilla(50, 0.01)
    weights = np.ones(50)
    weights[:10] = 3
    law = scaling.ChinchillaLaw().fit(X, y, weights)
    again = scaling.ChinchillaLaw().fit(
        np.concatenate([X, X[:10], X[:10]]), np.concatenate([y, y[:10], y[:10]])
    )
    assert law.objective_ == pytest.approx(again.objective_, rel=1e-9)


def test_threads_do_not_matter():
    X, y = chinchilla(40, 0.01)
    with sensorium.num_threads(1):
        one = scaling.ChinchillaLaw().fit(X, y)
    many = scaling.ChinchillaLaw().fit(X, y)
    np.testing.assert_array_equal(one.ends_.theta, many.ends_.theta)


def test_flat_directions_are_warned_of():
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(0, 1, 20))
    with pytest.warns(ConvergenceWarning, match=r"do not determine every parameter|did not converge"):
        law = scaling.ChinchillaLaw(loss="gaussian").fit(np.column_stack([x, x]), 2 * x**-0.3)
    assert np.isnan(law.covariance_).all() or not law.converged_


def test_what_cannot_be_fitted_is_named():
    X, y = chinchilla(20, 0.01)
    law = scaling.ChinchillaLaw()
    for bad, error, words in [
        (X[:, :1], ShapeError, r"X has shape \(20, 1\), expected \(n, 2\): params, tokens"),
        (
            np.where(X[3] == X, 0, X),
            ArgumentError,
            "X's column params must be above 0, as its logarithm is taken; row 3",
        ),
        (np.where(X[2] == X, np.nan, X), ArgumentError, "X's column params must be finite; row 2 is nan"),
        (X[:3], ShapeError, r"y has shape \(20,\), expected \(3,\)"),
    ]:
        with pytest.raises(error, match=words):
            law.fit(bad, y)
    with pytest.raises(ArgumentError, match="X has 4 points that count, fewer than the 5 parameters"):
        law.fit(X[:4], y[:4])
    with pytest.raises(ArgumentError, match="y must be above 0"):
        law.fit(X, -y)
    with pytest.raises(ArgumentError, match="sample_weight must be finite and not negative"):
        law.fit(X, y, -np.ones(20))
    with pytest.raises(ArgumentError, match='loss must be "huber", "lad" or "gaussian"'):
        scaling.ChinchillaLaw(loss="mse").fit(X, y)
    with pytest.raises(NotFittedError):
        law.predict(X)
    fitted = law.fit(X, y)
    with pytest.raises(NotFittedError, match="needs bootstrap"):
        fitted.interval()
    with pytest.raises(ArgumentError, match="name must be one of E, A, B, alpha, beta"):
        fitted.profile("gamma", [1.0])
    with pytest.raises(ArgumentError, match="rng must be given"):
        fitted.bootstrap(5)
    with pytest.raises(ShapeError, match="indices must be integers of shape"):
        fitted.bootstrap(5, indices=np.zeros((4, 20), int))


def test_estimators_can_be_cloned():
    law = scaling.PowerLaw(floor=False, loss="lad", delta=0.1)
    assert clone(law).get_params() == {"floor": False, "loss": "lad", "delta": 0.1, "max_iter": 400}
