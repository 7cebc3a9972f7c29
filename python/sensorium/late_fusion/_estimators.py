"""Estimators in the manner of scikit-learn: a calibrated model for each group of columns, fused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import scipy.optimize
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .._validate import check_integer
from ..errors import ArgumentError, DTypeError
from ._fuse import Method, fuse_predictions

__all__ = ["LateFusionClassifier", "LateFusionRegressor"]

Array = NDArray[Any]
Groups = Mapping[str, Any]


def _columns(groups: Groups | None, names: Any, features: int) -> dict[str, NDArray[np.int64]]:
    """Return the numbers of each group's columns."""
    if groups is None:
        return {"all": np.arange(features)}
    if not isinstance(groups, Mapping) or not groups:
        raise ArgumentError("groups must be a dict of columns by name, with one group at least")
    numbers = {} if names is None else {name: i for i, name in enumerate(names)}
    found = {}
    for group, columns in groups.items():
        picked = []
        for column in columns:
            if isinstance(column, str):
                if column not in numbers:
                    raise ArgumentError(f"groups[{group!r}] has the column {column!r}, which X does not have")
                picked.append(numbers[column])
            else:
                picked.append(check_integer(f"groups[{group!r}]", column, 0, features - 1))
        if not picked:
            raise ArgumentError(f"groups[{group!r}] has no column")
        found[group] = np.array(picked, dtype=np.int64)
    return found


def _complete(X: Array, columns: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return the rows that have a group whole."""
    return np.asarray(~np.any(np.isnan(X[:, columns]), axis=1))


class _Calibration:
    """``softmax(slope * log p + offset)``, as Platt (1999) fits it to predictions out of fold.

    Probabilities are first kept from 0 and 1 by the rule of succession for as many rows as there were, and
    targets are smoothed as Platt does, so that no finite number of rows makes anything certain.
    """

    def fit(self, p: Array, y: NDArray[np.int64], rows: int) -> _Calibration:
        count, C = p.shape
        self.rows_ = rows
        logs = self._logs(p)
        members = np.bincount(y, minlength=C)[y].astype(np.float64)
        targets = np.repeat((1 / (members + 2) / max(C - 1, 1))[:, None], C, axis=1)
        targets[np.arange(count), y] = (members + 1) / (members + 2)

        def loss(parameters: Array) -> tuple[float, Array]:
            scores = parameters[0] * logs + parameters[1:]
            scores = scores - scores.max(axis=1, keepdims=True)
            log_q = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
            wrong = (np.exp(log_q) * targets.sum(axis=1, keepdims=True) - targets) / count
            slope = np.concatenate([[(wrong * logs).sum()], wrong.sum(axis=0)])
            return float(-(targets * log_q).sum() / count), slope

        start = np.concatenate([[1.0], np.zeros(C)])
        bounds = [(0.0, None), *[(None, None)] * C]
        found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
        self.slope_, self.offset_ = float(found.x[0]), found.x[1:] - found.x[1:].mean()
        return self

    def _logs(self, p: Array) -> Array:
        return np.asarray(np.log((p * self.rows_ + 1 / p.shape[1]) / (self.rows_ + 1)))

    def __call__(self, p: Array) -> Array:
        scores = self.slope_ * self._logs(p) + self.offset_
        q = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(q / q.sum(axis=1, keepdims=True))


class _LateFusion(BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """What both estimators are made with and check, and how groups that repeat each other are found out."""

    def __init__(
        self,
        groups: Groups | None = None,
        estimator: Any = None,
        *,
        method: Method = "product",
        correlation: float | Literal["fit"] = "fit",
        cv: int = 5,
    ) -> None:
        self.groups = groups
        self.estimator = estimator
        self.method = method
        self.correlation = correlation
        self.cv = cv

    def _begin(self, features: int) -> int:
        """Check the parameters; set the columns of each group, and return the number of folds."""
        if isinstance(self.correlation, str) and self.correlation != "fit":
            raise ArgumentError(
                f"correlation must be 'fit' or a number from 0 to 1, not {self.correlation!r}"
            )
        folds = check_integer("cv", self.cv, 2)
        self.columns_ = _columns(self.groups, getattr(self, "feature_names_in_", None), features)
        return folds

    def _fitted_correlation(self, loss: Callable[[float], float]) -> float:
        """Return the correlation: as given, or that with the least loss on predictions out of fold."""
        if self.correlation != "fit":
            return float(self.correlation)
        if len(self.columns_) < 2 or self.method != "product":
            return 0.0
        found = scipy.optimize.minimize_scalar(
            loss, bounds=(0.0, 1.0), method="bounded", options={"xatol": 1e-3}
        )
        return float(min((found.x, 0.0, 1.0), key=loss))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


class LateFusionClassifier(ClassifierMixin, _LateFusion):  # type: ignore[misc] # scikit-learn has no types
    """A calibrated classifier for each group of columns, fused over the groups that a row has.

    A group with a NaN in any of its columns is missing from that row, when fitting and when predicting: it is
    left out, and nothing is imputed. A row without any group gets the frequencies of the classes.

    Parameters
    ----------
    groups : dict of lists, optional
        Columns of each group, by number or, for a data frame, by name. All columns are one group where None.
    estimator : estimator, optional
        What is fitted to each group: anything with ``predict_proba``. Where None, logistic regression over
        standardised columns.
    method : {"product", "log", "linear"}
        See :func:`~sensorium.late_fusion.fuse_predictions`.
    correlation : float or "fit"
        How far groups repeat each other, from 0 to 1: see :func:`~sensorium.late_fusion.fuse_predictions`. By
        default, what gives the least log loss on predictions out of fold.
    cv : int
        Folds, for predictions on rows that a model has not seen. These calibrate each group by a slope and
        offsets of its logarithms (Platt 1999).

    Attributes
    ----------
    classes_ : array (C,)
    prior_ : array (C,)
        Frequencies of the classes, with one more row counted for each.
    correlation_ : float
    estimators_ : dict
        The fitted estimator of each group.
    columns_ : dict
        The numbers of each group's columns.
    n_features_in_ : int

    References
    ----------
    Platt (1999), Probabilistic Outputs for Support Vector Machines. Kittler et al. (1998).

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.late_fusion import LateFusionClassifier
    >>> rng = np.random.default_rng(0)
    >>> y = np.arange(200) % 2
    >>> X = rng.normal(size=(200, 4)) + y[:, None]
    >>> model = LateFusionClassifier({"camera": [0, 1], "microphone": [2, 3]}).fit(X, y)
    >>> X[:, 2] = np.nan  # the microphone breaks
    >>> bool(model.score(X, y) > 0.7)
    True
    """

    def fit(self, X: Any, y: Any) -> LateFusionClassifier:
        """Fit a classifier to each group, calibrate it, and find how far groups repeat each other.

        Parameters
        ----------
        X : array or data frame (B, F)
            NaN where something is missing.
        y : array (B,)
            Classes: two at least.

        Returns
        -------
        self

        Raises
        ------
        ArgumentError
            Where a group has too few rows of a class for two folds, or a parameter does not fit.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_all_finite="allow-nan")
        check_classification_targets(y)
        folds = self._begin(X.shape[1])
        self.classes_, labels = np.unique(y, return_inverse=True)
        C = len(self.classes_)
        if C < 2:
            raise ArgumentError(f"y has 1 class, {self.classes_[0]}: a classifier needs two")
        counts = np.bincount(labels, minlength=C) + 1.0
        self.prior_ = counts / counts.sum()
        self.estimators_: dict[str, Any] = {}
        self.calibrations_: dict[str, _Calibration] = {}
        unseen = {}
        for group, columns in self.columns_.items():
            whole = _complete(X, columns)
            members = np.bincount(labels[whole], minlength=C)
            if members.min() < 2:
                rare = self.classes_[int(members.argmin())]
                raise ArgumentError(
                    f"group {group!r} has {members.min()} rows of class {rare}, expected 2 at least"
                )
            model = self.estimator
            if model is None:
                model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
            split = StratifiedKFold(min(folds, int(members.min())), shuffle=True, random_state=0)
            part, truth = X[np.ix_(whole, columns)], labels[whole]
            p = cross_val_predict(clone(model), part, truth, cv=split, method="predict_proba")
            calibration = _Calibration().fit(p, truth, len(p))
            self.calibrations_[group] = calibration
            self.estimators_[group] = clone(model).fit(part, truth)
            unseen[group] = np.full((len(X), C), np.nan)
            unseen[group][whole] = calibration(p)

        def loss(correlation: float) -> float:
            fused = fuse_predictions(
                unseen, method=self.method, prior=self.prior_, correlation=float(correlation)
            )
            return float(-np.log(np.maximum(fused[np.arange(len(X)), labels], 1e-300)).mean())

        self.correlation_ = self._fitted_correlation(loss)
        return self

    def predict_groups(self, X: Any) -> dict[str, Array]:
        """Return the calibrated probabilities ``(B, C)`` of each group, rows of NaN where it is missing."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        found = {}
        for group, columns in self.columns_.items():
            whole = _complete(X, columns)
            found[group] = np.full((len(X), len(self.classes_)), np.nan)
            if whole.any():
                p = self.estimators_[group].predict_proba(X[np.ix_(whole, columns)])
                found[group][whole] = self.calibrations_[group](p)
        return found

    def predict_proba(self, X: Any) -> Array:
        """Return probabilities ``(B, C)`` from the groups that each row has."""
        groups = self.predict_groups(X)
        return fuse_predictions(groups, method=self.method, prior=self.prior_, correlation=self.correlation_)

    def predict(self, X: Any) -> Array:
        """Return the most probable class of each row."""
        p = self.predict_proba(X)
        return np.asarray(self.classes_[p.argmax(axis=1)])


class LateFusionRegressor(RegressorMixin, _LateFusion):  # type: ignore[misc] # scikit-learn has no types
    """A regressor with a variance for each group of columns, fused over the groups that a row has.

    A group with a NaN in any of its columns is missing from that row, when fitting and when predicting: it is
    left out, and nothing is imputed. A row without any group gets the mean of ``y``.

    Parameters
    ----------
    groups : dict of lists, optional
        Columns of each group, by number or, for a data frame, by name. All columns are one group where None.
    estimator : estimator, optional
        What is fitted to each group. Where None, ridge regression over standardised columns, its penalty
        chosen by leave-one-out.
    method : {"product", "log", "linear"}
        See :func:`~sensorium.late_fusion.fuse_predictions`; the prior is the mean and variance of ``y``.
    correlation : float or "fit"
        How far groups repeat each other, from 0 to 1. By default, what gives the least negative logarithm of
        the density on predictions out of fold.
    cv : int
        Folds, for predictions on rows that a model has not seen. ``y`` is regressed on these, with a slope of
        at least 0; what is left is the variance of the group.

    Attributes
    ----------
    prior_ : tuple
        Mean and variance of ``y``.
    correlation_ : float
    variances_ : dict
        The variance of each group.
    estimators_ : dict
        The fitted estimator of each group.
    columns_ : dict
        The numbers of each group's columns.
    n_features_in_ : int

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.late_fusion import LateFusionRegressor
    >>> rng = np.random.default_rng(0)
    >>> y = rng.normal(size=200)
    >>> X = y[:, None] + rng.normal(size=(200, 2))
    >>> model = LateFusionRegressor({"left": [0], "right": [1]}).fit(X, y)
    >>> mean, std = model.predict([[1.0, 1.0], [1.0, np.nan], [np.nan, np.nan]], return_std=True)
    >>> bool(std[0] < std[1] < std[2])
    True
    """

    def fit(self, X: Any, y: Any) -> LateFusionRegressor:
        """Fit a regressor to each group, calibrate it, and find how far groups repeat each other.

        Parameters
        ----------
        X : array or data frame (B, F)
            NaN where something is missing.
        y : array (B,)

        Returns
        -------
        self

        Raises
        ------
        ArgumentError
            Where a group has fewer than three rows, or a parameter does not fit.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_all_finite="allow-nan", y_numeric=True)
        if y.ndim != 1:
            raise DTypeError("y must have one target")
        y = y.astype(np.float64)
        folds = self._begin(X.shape[1])
        least = max(float(np.finfo(np.float64).tiny), 1e-12 * float(np.abs(y).max(initial=0.0)) ** 2)
        self.prior_ = (float(y.mean()), max(float(y.var()), least))
        self.estimators_: dict[str, Any] = {}
        self.calibrations_: dict[str, tuple[float, float]] = {}
        self.variances_: dict[str, float] = {}
        unseen, spread = {}, {}
        for group, columns in self.columns_.items():
            whole = _complete(X, columns)
            rows = int(whole.sum())
            if rows < 3:
                raise ArgumentError(
                    f"group {group!r} has {rows} rows (n_samples = {rows}), expected 3 at least"
                )
            model = self.estimator
            if model is None:
                model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 13)))
            part, truth = X[np.ix_(whole, columns)], y[whole]
            split = KFold(min(folds, rows), shuffle=True, random_state=0)
            f = np.asarray(cross_val_predict(clone(model), part, truth, cv=split), np.float64)
            moved = f - f.mean()
            square = float(moved @ moved)
            slope = max(float(moved @ truth) / square, 0.0) if square > 0 else 0.0
            offset = float(truth.mean() - slope * f.mean())
            off = truth - (offset + slope * f)
            # A group that says nothing is the prior, and is worth nothing in the product.
            self.variances_[group] = float(np.clip(off @ off / (rows - 2), least, self.prior_[1]))
            self.calibrations_[group] = (slope, offset)
            self.estimators_[group] = clone(model).fit(part, truth)
            unseen[group], spread[group] = np.full(len(X), np.nan), np.full(len(X), self.variances_[group])
            unseen[group][whole] = offset + slope * f

        def loss(correlation: float) -> float:
            fused = fuse_predictions(
                unseen, spread, method=self.method, prior=self.prior_, correlation=float(correlation)
            )
            return float((np.log(fused.variance) + (y - fused.mean) ** 2 / fused.variance).mean())

        self.correlation_ = self._fitted_correlation(loss)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Return means ``(B,)`` from the groups that each row has, and with ``return_std`` deviations."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        means, spread = {}, {}
        for group, columns in self.columns_.items():
            whole = _complete(X, columns)
            means[group], spread[group] = np.full(len(X), np.nan), np.full(len(X), self.variances_[group])
            if whole.any():
                slope, offset = self.calibrations_[group]
                means[group][whole] = offset + slope * self.estimators_[group].predict(
                    X[np.ix_(whole, columns)]
                )
        fused = fuse_predictions(
            means, spread, method=self.method, prior=self.prior_, correlation=self.correlation_
        )
        return (fused.mean, np.sqrt(fused.variance)) if return_std else fused.mean
