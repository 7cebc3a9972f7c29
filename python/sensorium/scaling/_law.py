"""What all laws share: fitting from many starts, how sure the fit is, and resampling.

The objective is ``sum_i w_i rho(f(x_i) - t_i)``, where ``t`` is the logarithm of ``y`` for laws of losses.
It is a sum and not a mean: a tolerance on a mean of a thousandth of Huber's thresholds ends a fit too
early, which is how a published fit went wrong (Besiroglu et al. 2024, arXiv:2404.10102).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.utils.validation import check_is_fitted

from .. import _core
from .._validate import check_integer, check_positive
from ..errors import ArgumentError, ShapeError

__all__ = ["Ends", "Law"]

Floats = NDArray[np.float64]

#: Share of the largest eigenvalue below which a direction of the second derivatives counts as flat.
#: Parameters are scaled by their own columns first, so that units do not matter.
FLAT = 1e-7
#: Largest cosine between residuals and a column of derivatives at a stationary point.
STATIONARY = 1e-6


class Ends(NamedTuple):
    """Where every start, or every resample, ended: a row for each."""

    theta: Floats
    objective: Floats
    gradient: Floats
    hessian: Floats
    steps: NDArray[np.int32]

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Whether each ended at a stationary point."""
        return np.asarray(self.steps >= 0)


def _square(half: Floats, parameters: int) -> Floats:
    """Symmetric matrices from the lower halves of their rows."""
    full = np.zeros((*half.shape[:-1], parameters, parameters))
    rows, columns = np.tril_indices(parameters)
    full[..., rows, columns] = half
    full[..., columns, rows] = half
    return full


class Law(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A law with a few parameters, fitted from many starts at once.

    Subclasses say which family of the kernel they are, how features and targets enter it, where fits begin,
    and what its parameters are called outside.
    """

    _family: ClassVar[str]
    #: Columns of ``X``, for messages.
    _columns: ClassVar[tuple[str, ...]]
    #: Names of the kernel's parameters outside, and whether each is the exponential of the kernel's.
    _names: ClassVar[tuple[tuple[str, bool], ...]]
    #: Whether the logarithm of ``y`` is predicted, and the logarithms of the columns enter.
    _log_y: ClassVar[bool] = True
    _log_x: ClassVar[bool] = True

    def __init__(self, *, loss: str = "huber", delta: float = 1e-3, max_iter: int = 400) -> None:
        self.loss = loss
        self.delta = delta
        self.max_iter = max_iter

    # --- what a subclass says ---------------------------------------------------------------------

    def _starts(self, features: Floats, target: Floats) -> list[Sequence[float]]:
        """Values from which each of the kernel's parameters begins; all combinations are tried."""
        raise NotImplementedError

    def _free(self) -> list[bool]:
        """Which parameters are fitted; the others keep the value of their start."""
        return [True] * len(self._names)

    # --- input ------------------------------------------------------------------------------------

    def _features(self, X: ArrayLike) -> Floats:
        """Check the columns, and turn them into what enters the law."""
        try:
            values = np.asarray(X, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"X cannot be read as numbers: {error}") from error
        if values.ndim == 1 and len(self._columns) == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] != len(self._columns):
            want = ", ".join(self._columns)
            raise ShapeError(f"X has shape {values.shape}, expected (n, {len(self._columns)}): {want}")
        for j, name in enumerate(self._columns):
            _check_column(f"X's column {name}", values[:, j], positive=self._log_x)
        return self._enter(values)

    def _enter(self, values: Floats) -> Floats:
        """Columns as they enter the law."""
        return np.log(values) if self._log_x else values

    def _target(self, y: ArrayLike, points: int) -> Floats:
        """Check ``y``, and turn it into what the law predicts."""
        values = np.asarray(y, dtype=np.float64)
        if values.shape != (points,):
            raise ShapeError(f"y has shape {values.shape}, expected ({points},)")
        _check_column("y", values, positive=self._log_y)
        return np.log(values) if self._log_y else values

    def _weights(self, sample_weight: ArrayLike | None, points: int) -> Floats:
        if sample_weight is None:
            return np.ones(points)
        weights = np.asarray(sample_weight, dtype=np.float64)
        if weights.shape != (points,):
            raise ShapeError(f"sample_weight has shape {weights.shape}, expected ({points},)")
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise ArgumentError("sample_weight must be finite and not negative")
        return weights

    def _delta(self) -> float:
        check_positive("delta", self.delta)
        if self.loss in ("huber", "lad"):
            return float(self.delta)
        if self.loss == "gaussian":
            return float("inf")
        raise ArgumentError(f'loss must be "huber", "lad" or "gaussian", not {self.loss!r}')

    # --- fitting ----------------------------------------------------------------------------------

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the law from every start of its grid, and keep where each ended.

        Parameters
        ----------
        X : (n, columns) array
            One row a run.
        y : (n,) array
            What was reached.
        sample_weight : (n,) array, optional
            Weights of the points in the objective, at least 0.

        Returns
        -------
        self
            With each parameter as an attribute with a trailing underscore, and ``objective_``,
            ``converged_``, ``ends_`` (of every start), ``gradient_norm_``, ``eigenvalues_`` (of the second
            derivatives, scaled to a unit diagonal), ``covariance_`` and ``standard_errors_`` (robust to
            unequal variances), ``scale_`` (the residuals' root mean square).

        Raises
        ------
        ArgumentError
            Where a column is not positive or not finite, or there are fewer points than parameters.
        ShapeError
            Where shapes do not fit.
        """
        check_integer("max_iter", self.max_iter, 1)
        features = self._features(X)
        points = features.shape[0]
        target = self._target(y, points)
        weights = self._weights(sample_weight, points)
        self._delta()
        free = self._free()
        counted = int((weights > 0).sum())
        if counted < sum(free):
            raise ArgumentError(f"X has {counted} points that count, fewer than the {sum(free)} parameters")
        self.n_features_in_ = len(self._columns)
        self._x, self._t, self._w = features, target, weights
        grid = np.array(list(itertools.product(*self._starts(features, target))), dtype=np.float64)
        self.ends_ = self._solve(grid)
        self._adopt()
        return self

    def _solve(
        self,
        starts: Floats,
        *,
        target: Floats | None = None,
        weights: Floats | None = None,
        free: list[bool] | None = None,
        rows: tuple[bool, bool] = (False, False),
    ) -> Ends:
        """Solve from every start; ``rows``: whether each has its own row of targets, and of weights."""
        y = self._t if target is None else target
        w = self._w if weights is None else weights
        own = np.arange(len(starts), dtype=np.int64)
        free = self._free() if free is None else free
        x, y, w = (np.ascontiguousarray(a, dtype=np.float64) for a in (self._x, y, w))
        own_y, own_w = (own if each else None for each in rows)

        def run(begin: Floats, delta: float) -> Ends:
            begin = np.ascontiguousarray(begin, dtype=np.float64)
            return Ends(*_core.fit(self._family, x, y, w, begin, own_y, own_w, delta, free, self.max_iter))

        ends = run(starts, self._delta())
        if self.loss == "lad":
            # Absolute values as the limit of Huber's loss over its threshold, each from where the last ended.
            delta = self._delta()
            while delta > 1e-9:
                delta /= 10
                ends = run(ends.theta, delta)
            ends = ends._replace(
                objective=ends.objective / delta, gradient=ends.gradient / delta, hessian=ends.hessian / delta
            )
        return ends

    def _adopt(self) -> None:
        """Take the best end as the fit, and say how good it is."""
        ends = self.ends_
        objective = np.where(np.isfinite(ends.objective), ends.objective, np.inf)
        best = int(np.argmin(objective))
        if not np.isfinite(objective[best]):
            raise ArgumentError("y cannot be fitted: the objective is infinite at every start")
        theta = ends.theta[best]
        self._theta = theta
        for (name, _), value in zip(self._names, self._outside(theta), strict=True):
            setattr(self, f"{name}_", float(value))
        self.objective_ = float(objective[best])
        self.gradient_norm_ = float(np.abs(ends.gradient[best]).max())
        residual = self._residual(theta)
        self.scale_ = float(np.sqrt(np.average(residual**2, weights=self._w)))
        self._uncertainty(_square(ends.hessian[best], len(theta)), bool(ends.converged[best]))
        self.bootstrap_: Floats | None = None

    def _outside(self, theta: Floats) -> Floats:
        """Return the kernel's parameters as they are called outside; a row for each row."""
        out = np.array(theta, dtype=np.float64)
        with np.errstate(over="ignore"):
            for j, (_, exponential) in enumerate(self._names):
                if exponential:
                    out[..., j] = np.exp(out[..., j])
        return out

    def _value(self, theta: Floats, features: Floats) -> Floats:
        """Return what the law predicts, in the kernel's terms."""
        rows = np.ascontiguousarray(theta, dtype=np.float64).reshape(1, -1)
        return np.asarray(_core.fit_predict(self._family, rows, np.ascontiguousarray(features), False)[0][0])

    def _slopes(self) -> Floats:
        """Return derivatives of what is predicted, by the kernel's parameters ``(n, P)``."""
        found = _core.fit_predict(self._family, self._theta.reshape(1, -1), self._x, True)[1]
        assert found is not None
        return np.asarray(found[0])

    def _residual(self, theta: Floats) -> Floats:
        return self._value(theta, self._x) - self._t

    def _pull(self, residual: Floats) -> Floats:
        """Return the slope of the loss at residuals."""
        if self.loss == "huber":
            return np.clip(residual, -self.delta, self.delta)
        return np.sign(residual) if self.loss == "lad" else residual

    def _uncertainty(self, hessian: Floats, converged: bool) -> None:
        """Robust covariance, eigenvalues, and what to be warned of."""
        free = np.array(self._free())
        slopes = self._slopes()[:, free]
        residual = self._residual(self._theta)
        pull = self._pull(residual)
        bread = hessian[np.ix_(free, free)]
        scores = (self._w * pull)[:, None] * slopes
        diagonal = np.sqrt(np.maximum(np.diag(bread), 0))
        scaled = bread / np.where(diagonal > 0, diagonal, 1)[:, None] / np.where(diagonal > 0, diagonal, 1)
        self.eigenvalues_ = np.linalg.eigvalsh(scaled)
        self.identified_ = bool(self.eigenvalues_[0] > FLAT * self.eigenvalues_[-1])
        size = np.sqrt((self._w * pull**2).sum() * (self._w[:, None] * slopes**2).sum(axis=0))
        total = np.abs(scores.sum(axis=0))
        self.converged_ = bool(converged or (total <= STATIONARY * size + 1e-300).all())
        parameters = len(self._theta)
        self.covariance_ = np.full((parameters, parameters), np.nan)
        if self.identified_:
            inverse = np.linalg.inv(bread)
            n, p = int((self._w > 0).sum()), int(free.sum())
            meat = scores.T @ scores * (n / max(n - p, 1))
            inner = np.zeros((parameters, parameters))
            inner[np.ix_(free, free)] = inverse @ meat @ inverse
            jacobian = np.array(
                [
                    v if exponential else 1.0
                    for v, (_, exponential) in zip(self._parameters(), self._names, strict=True)
                ]
            )
            self.covariance_ = inner * jacobian[:, None] * jacobian
        with np.errstate(invalid="ignore"):
            errors = np.sqrt(np.diag(self.covariance_))
        self.standard_errors_ = {name: float(e) for (name, _), e in zip(self._names, errors, strict=True)}
        if not self.converged_:
            warnings.warn(
                f"{type(self).__name__} did not converge in max_iter={self.max_iter} steps "
                f"(gradient {self.gradient_norm_:.2g}): raise max_iter, or use a law with fewer parameters",
                ConvergenceWarning,
                stacklevel=4,
            )
        elif not self.identified_:
            warnings.warn(
                f"{type(self).__name__}: the data do not determine every parameter (a direction is flat: "
                f"smallest eigenvalue {self.eigenvalues_[0]:.2g}); add runs that vary what it depends on, or "
                "use a law with fewer parameters",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _parameters(self) -> Floats:
        return self._outside(self._theta)

    # --- use --------------------------------------------------------------------------------------

    def predict(self, X: ArrayLike) -> Floats:
        """Return what the law says for each row of ``X``, ``(n,)``."""
        check_is_fitted(self, "objective_")
        value = self._value(self._theta, self._features(X))
        return np.exp(value) if self._log_y else value

    @property
    def parameters_(self) -> dict[str, float]:
        """The fitted parameters by name."""
        check_is_fitted(self, "objective_")
        return {name: float(v) for (name, _), v in zip(self._names, self._parameters(), strict=True)}

    def bootstrap(
        self,
        n: int,
        rng: np.random.Generator | None = None,
        *,
        indices: ArrayLike | None = None,
        kind: str = "paired",
    ) -> Floats:
        """Refit the law to resampled data, all at once, each from the fit.

        Parameters
        ----------
        n : int
            Resamples.
        rng : numpy.random.Generator, optional
            Draws them; not needed where ``indices`` are given.
        indices : (n, points) array of int, optional
            The points of each resample.
        kind : "paired" or "residual"
            Whether points are drawn, or residuals are drawn anew for the points as they are.

        Returns
        -------
        (n, parameters) array
            The refitted parameters, in the order of ``parameters_``; kept for :meth:`interval`. Rows that did
            not converge are NaN; a warning says how many.

        Raises
        ------
        ArgumentError
            Where ``indices`` are out of bounds, or neither ``rng`` nor ``indices`` is given.
        """
        check_is_fitted(self, "objective_")
        check_integer("n", n, 1)
        points = len(self._t)
        if kind not in ("paired", "residual"):
            raise ArgumentError(f'kind must be "paired" or "residual", not {kind!r}')
        if indices is None:
            if rng is None:
                raise ArgumentError("rng must be given where indices are not")
            drawn = rng.integers(points, size=(n, points))
        else:
            drawn = np.asarray(indices)
            if drawn.shape != (n, points) or drawn.dtype.kind not in "iu":
                raise ShapeError(
                    f"indices must be integers of shape ({n}, {points}), not {drawn.dtype} {drawn.shape}"
                )
            if drawn.min(initial=0) < 0 or drawn.max(initial=0) >= points:
                raise ArgumentError(f"indices must be from 0 to {points - 1}")
        starts = np.tile(self._theta, (n, 1))
        if kind == "paired":
            counts = np.zeros((n, points))
            np.add.at(counts, (np.arange(n)[:, None], drawn), 1.0)
            ends = self._solve(starts, weights=counts * self._w, rows=(False, True))
        else:
            fitted = self._value(self._theta, self._x)
            ends = self._solve(starts, target=fitted + (self._t - fitted)[drawn], rows=(True, False))
        out = self._outside(ends.theta)
        lost = ~ends.converged
        if lost.any():
            out[lost] = np.nan
            warnings.warn(
                f"{int(lost.sum())} of {n} resamples did not converge, and are NaN: raise max_iter",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.bootstrap_ = out
        return out

    def interval(self, level: float = 0.95, *, method: str = "percentile") -> dict[str, tuple[float, float]]:
        """Return an interval for each parameter.

        Parameters
        ----------
        level : float
            Coverage asked for, between 0 and 1.
        method : "percentile", "bca", "normal" or "profile"
            Of the last :meth:`bootstrap`; the same, corrected for bias and skewness (Efron 1987); by robust
            standard errors; or by the objective's profile over each parameter (:meth:`profile`), which
            needs no resampling and does not take the parameter's distribution for symmetric.

        Raises
        ------
        NotFittedError
            Where a bootstrap is needed and there was none.
        """
        check_is_fitted(self, "objective_")
        if not 0 < level < 1:
            raise ArgumentError(f"level must be between 0 and 1, not {level}")
        names = [name for name, _ in self._names]
        if method == "normal":
            half = stats.norm.ppf(0.5 + level / 2)
            values = self._parameters()
            return {
                name: (
                    float(v - half * self.standard_errors_[name]),
                    float(v + half * self.standard_errors_[name]),
                )
                for name, v in zip(names, values, strict=True)
            }
        if method == "profile":
            return {name: self._profile_interval(j, level) for j, name in enumerate(names)}
        if method not in ("percentile", "bca"):
            raise ArgumentError(f'method must be "percentile", "bca", "normal" or "profile", not {method!r}')
        if self.bootstrap_ is None:
            raise NotFittedError("interval needs bootstrap() first, or another method")
        rows = self.bootstrap_[np.isfinite(self.bootstrap_).all(axis=1)]
        if method == "percentile":
            low, high = np.quantile(rows, [0.5 - level / 2, 0.5 + level / 2], axis=0)
            return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}
        return self._bca(rows, level)

    def _bca(self, rows: Floats, level: float) -> dict[str, tuple[float, float]]:
        """Bias-corrected and accelerated intervals, by the jackknife."""
        points = len(self._t)
        weights = np.tile(self._w, (points, 1))
        np.fill_diagonal(weights, 0.0)
        left_out = self._outside(
            self._solve(np.tile(self._theta, (points, 1)), weights=weights, rows=(False, True)).theta
        )
        away = left_out.mean(axis=0) - left_out
        with np.errstate(invalid="ignore", divide="ignore"):
            acceleration = np.nan_to_num((away**3).sum(axis=0) / (6 * (away**2).sum(axis=0) ** 1.5))
        out = {}
        for j, (name, value) in enumerate(zip([n for n, _ in self._names], self._parameters(), strict=True)):
            below = np.clip((rows[:, j] < value).mean(), 0.5 / len(rows), 1 - 0.5 / len(rows))
            bias = stats.norm.ppf(below)
            ends = []
            for share in (0.5 - level / 2, 0.5 + level / 2):
                z = bias + stats.norm.ppf(share)
                ends.append(
                    float(np.quantile(rows[:, j], stats.norm.cdf(bias + z / (1 - acceleration[j] * z))))
                )
            out[name] = (ends[0], ends[1])
        return out

    def profile(self, name: str, values: ArrayLike) -> Floats:
        """Return the least objective with a parameter held at each of some values, ``(k,)``.

        Parameters
        ----------
        name : str
            A parameter of ``parameters_``.
        values : (k,) array
            Where it is held, in its own units.

        Raises
        ------
        ArgumentError
            For a name that is no parameter's, or a value that it cannot have.
        """
        check_is_fitted(self, "objective_")
        names = [n for n, _ in self._names]
        if name not in names:
            raise ArgumentError(f"name must be one of {', '.join(names)}, not {name!r}")
        j = names.index(name)
        held = np.atleast_1d(np.asarray(values, dtype=np.float64))
        if self._names[j][1]:
            if (held <= 0).any():
                raise ArgumentError(f"values of {name} must be above 0")
            held = np.log(held)
        return self._profile(j, held)

    def _profile(self, j: int, held: Floats) -> Floats:
        free = list(self._free())
        free[j] = False
        starts = np.tile(self._theta, (len(held), 1))
        starts[:, j] = held
        return np.asarray(self._solve(starts, free=free).objective)

    def _threshold(self, level: float) -> float:
        """Rise of the objective at the ends of a profile interval (Schrader & Hettmansperger 1980)."""
        n, p = int((self._w > 0).sum()), sum(self._free())
        quantile = float(stats.f.ppf(level, 1, max(n - p, 1)))
        residual = self._residual(self._theta)
        if self.loss == "gaussian":
            return quantile * self.objective_ / max(n - p, 1)
        # The density of residuals at zero, from their share within a width: few are within the threshold.
        huber = self.loss == "huber"
        least = self._delta() if huber else 1e-9
        width = max(least, 1.06 * float(np.median(np.abs(residual))) / 0.6745 * n**-0.2)
        density = float(np.average(np.abs(residual) < width, weights=self._w)) / width
        curvature = max(least * density if huber else density, 1e-300)
        variance = float(np.average(self._pull(residual) ** 2, weights=self._w)) * n / max(n - p, 1)
        return float(0.5 * quantile * variance / curvature)

    def _profile_interval(self, j: int, level: float) -> tuple[float, float]:
        """Where the profile has risen by the threshold, by widening and then dividing."""
        if not self._free()[j]:
            value = float(self._parameters()[j])
            return value, value
        most = self.objective_ + self._threshold(level)
        ends = []
        for sign in (-1.0, 1.0):
            inner = float(self._theta[j])
            steps: Floats = 1e-4 * (1 + abs(inner)) * np.exp2(np.arange(24, dtype=np.float64))
            risen = self._profile(j, inner + sign * steps) > most
            if not risen.any():
                ends.append(sign * np.inf)
                continue
            first = int(np.argmax(risen))
            low = inner + sign * steps[first - 1] if first else inner
            high = inner + sign * steps[first]
            for _ in range(3):
                at = np.linspace(low, high, 18, dtype=np.float64)
                over = self._profile(j, np.asarray(at, dtype=np.float64)) > most
                over[-1] = True
                k = max(int(np.argmax(over)), 1)
                low, high = float(at[k - 1]), float(at[k])
            ends.append(high)
        both = np.tile(self._theta, (2, 1))
        both[:, j] = ends
        pair = self._outside(both)[:, j]
        return float(min(pair)), float(max(pair))


def _check_column(name: str, values: Floats, *, positive: bool) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        raise ArgumentError(f"{name} must be finite; row {int(np.argmax(bad))} is {values[bad][0]}")
    if positive and (values <= 0).any():
        row = int(np.argmax(values <= 0))
        raise ArgumentError(f"{name} must be above 0, as its logarithm is taken; row {row} is {values[row]}")
