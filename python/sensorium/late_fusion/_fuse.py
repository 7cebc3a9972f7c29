"""The fusion itself, of probabilities and of means with variances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validate import check_finite_number
from ..errors import ArgumentError, DTypeError, ShapeError
from ..ops import generalised_product
from ..ops._experts import Given
from ..ops._stacked import floats, read_mask, read_stack, read_weights

__all__ = ["FusedPrediction", "fuse_predictions"]

Array = NDArray[Any]
Method = Literal["product", "log", "linear"]

_METHODS = ("product", "log", "linear")
_SUM = 1e-3  # Probabilities of a row may miss 1 by this much.


class FusedPrediction(NamedTuple):
    """What :func:`fuse_predictions` returns of means and variances."""

    mean: Array
    variance: Array


@overload
def fuse_predictions(
    predictions: Given,
    variances: None = None,
    *,
    method: Method = "product",
    prior: Any = None,
    mask: Any = None,
    weights: Any = None,
    correlation: float = 0.0,
) -> Array: ...
@overload
def fuse_predictions(
    predictions: Given,
    variances: Given,
    *,
    method: Method = "product",
    prior: Any = None,
    mask: Any = None,
    weights: Any = None,
    correlation: float = 0.0,
) -> FusedPrediction: ...
def fuse_predictions(
    predictions: Given,
    variances: Given | None = None,
    *,
    method: Method = "product",
    prior: Any = None,
    mask: Any = None,
    weights: Any = None,
    correlation: float = 0.0,
) -> Array | FusedPrediction:
    """Return one prediction from those of several models, of which any may be missing.

    Models of anybody's making: what is fused is the probabilities of classifiers, or means and variances of
    regressors. They should be calibrated. By ``method``:

    - ``"product"``: ``p ~ prior^(1 - sum w) prod_m p_m^w``, with ``w = 1`` for each by default. It is Bayes'
      rule where what the models look at is independent given the truth: each has the prior in it, and it is
      taken out but once. ``correlation`` is for models that repeat each other: with ``n`` of them in a row,
      powers are divided by ``1 + (n - 1) correlation``, which is right for errors of equal size that
      correlate by that much. At 1 it is the pool that follows.
    - ``"log"``: the product with powers that sum to 1, a weighted geometric mean. No prior takes part.
    - ``"linear"``: the weighted mean of the distributions, a mixture; that of Gaussians by its moments.

    A model that is missing from a row is left out of it. Nothing is imputed.

    Parameters
    ----------
    predictions : array (M, B, C), or dict of arrays (B, C)
        Probabilities of C classes by M models, ``float32`` or ``float64``; rows sum to 1, and a row of NaN is
        missing. With ``variances``, means: (M, B) or (M, B, T) for T targets, or dict of (B,) or (B, T).
    variances : array or dict, optional
        Of the shape of ``predictions``, above 0.
    method : {"product", "log", "linear"}
        See above.
    prior : array (C,), or pair, optional
        Frequencies of classes, above 0; all equal where None. With ``variances``, mean and variance before
        any prediction, numbers or (T,); where None there is no prior, and predictions count as likelihoods.
    mask : bool array (M,) or (M, B), or dict of bool or (B,), optional
        Which predictions are there; the others are never read. All but rows of NaN where None.
    weights : array (M,) or (M, B), or dict of numbers or (B,), optional
        At least 0; 1 where None.
    correlation : float
        From 0 to 1, for ``"product"``.

    Returns
    -------
    probabilities : array (B, C)
        Of the dtype of ``predictions``.
    FusedPrediction
        ``mean`` and ``variance``, (B,) or (B, T), where variances were given.

    Raises
    ------
    ShapeError, DTypeError
        Where an argument does not fit; the message names it.
    ArgumentError
        Where probabilities are none, a variance is not above 0, a row has neither a prediction nor a prior,
        models exclude all classes between them, or models that are less sure than the prior leave nothing.

    References
    ----------
    Kittler, Hatef, Duin and Matas (1998), On Combining Classifiers. Genest and Zidek (1986), Combining
    Probability Distributions. Tresp (2000), A Bayesian Committee Machine.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.late_fusion import fuse_predictions
    >>> sight, sound = np.array([[0.8, 0.2]]), np.array([[0.7, 0.3]])
    >>> fuse_predictions({"sight": sight, "sound": sound}).round(3)
    array([[0.903, 0.097]])
    >>> fuse_predictions({"sight": sight, "sound": sound * np.nan})  # not heard
    array([[0.8, 0.2]])
    >>> fuse_predictions([[1.0], [3.0]], [[1.0], [1.0]], prior=(0.0, 4.0))
    FusedPrediction(mean=array([2.28571429]), variance=array([0.57142857]))
    """
    if method not in _METHODS:
        raise ArgumentError(f"method must be 'product', 'log' or 'linear', not {method!r}")
    correlation = check_finite_number("correlation", correlation)
    if not 0 <= correlation <= 1:
        raise ArgumentError(f"correlation must be from 0 to 1, not {correlation:g}")
    if variances is None:
        return _classes(predictions, method, prior, mask, weights, correlation)
    return _numbers(predictions, variances, method, prior, mask, weights, correlation)


def _powers(weights: Array, method: str, correlation: float) -> Array:
    """Return the power of each prediction ``(M, B)``, or its share of a pool."""
    if method == "product":
        return np.asarray(weights / (1 + np.maximum((weights > 0).sum(axis=0) - 1, 0) * correlation))
    whole = weights.sum(axis=0)
    return np.asarray(weights / np.where(whole > 0, whole, 1.0))


def _there(stacked: Array, mask: Any, keys: tuple[str, ...] | None, name: str) -> NDArray[np.bool_]:
    """Return which predictions are there ``(M, B)``: rows of NaN are not."""
    M, B = stacked.shape[:2]
    there = read_mask(mask, keys, M, B)
    holes = np.isnan(stacked)
    gone = holes.all(axis=-1) & (stacked.shape[-1] > 0)
    partly = there & holes.any(axis=-1) & ~gone
    if partly.any():
        m, b = (int(i) for i in np.argwhere(partly)[0])
        raise ArgumentError(f"{name} of {_word(m, keys)}, row {b}, is NaN in part: a missing row is all NaN")
    return np.asarray(there & ~gone)


def _word(expert: int, keys: tuple[str, ...] | None) -> str:
    return f"expert {expert}" if keys is None else f"expert {keys[expert]!r}"


def _check_informed(weights: Array, prior: bool) -> None:
    bare = ~(weights > 0).any(axis=0)
    if bare.any() and not prior:
        raise ArgumentError(
            f"row {int(np.argmax(bare))} has no prediction that counts, and there is no prior"
        )


def _classes(
    predictions: Given, method: str, prior: Any, mask: Any, weights: Any, correlation: float
) -> Array:
    stacked, keys, dtype = read_stack("predictions", predictions, "M B C", None)
    C = stacked.shape[-1]
    there = _there(stacked, mask, keys, "predictions")
    p = np.where(there[..., None], stacked, 1 / max(C, 1))
    inside = np.all((p >= 0) & (p <= 1 + _SUM), axis=-1)
    bad: NDArray[np.bool_] = np.asarray(there & ~(inside & (np.abs(p.sum(axis=-1) - 1) <= _SUM)))
    if bad.any():
        m, b = (int(i) for i in np.argwhere(bad)[0])
        raise ArgumentError(
            f"predictions of {_word(m, keys)}, row {b}, are not probabilities: they are from "
            f"{p[m, b].min(initial=0.0):g} to {p[m, b].max(initial=0.0):g} and sum to {p[m, b].sum():g}"
        )
    powers = _powers(read_weights(weights, keys, there), method, correlation)
    before = None if prior is None else _frequencies(prior, C)
    _check_informed(powers, before is not None)
    if before is None:
        before = np.full(C, 1 / max(C, 1))
    if method == "linear":
        fused = (powers[..., None] * p).sum(axis=0)
        informed = np.asarray((powers > 0).any(axis=0))[:, None]
        return np.where(informed, fused, before).astype(dtype)
    with np.errstate(divide="ignore"):
        logs = powers[..., None] * np.where(powers[..., None] > 0, np.log(p), 0.0)
    log = logs.sum(axis=0) + (1 - powers.sum(axis=0))[:, None] * np.log(before)
    most = log.max(axis=-1, initial=-np.inf, keepdims=True)
    none = np.asarray(np.isneginf(most[:, 0]) & (C > 0))
    if none.any():
        raise ArgumentError(
            f"row {int(np.argmax(none))} has no class left: each has probability 0 by one of the predictions"
        )
    fused = np.exp(log - most)
    return np.asarray(fused / fused.sum(axis=-1, keepdims=True)).astype(dtype)


def _frequencies(prior: ArrayLike, C: int) -> Array:
    array = np.asarray(prior)
    if array.dtype.kind not in "fiu":
        raise DTypeError(f"prior has dtype {array.dtype}, expected numbers")
    if array.shape != (C,):
        raise ShapeError(f"prior has shape {array.shape}, expected ({C},)")
    values = array.astype(np.float64)
    if not (np.isfinite(values) & (values > 0)).all():
        raise ArgumentError("prior must be finite and above 0 for every class")
    return np.asarray(values / values.sum())


def _numbers(
    means: Given, variances: Given, method: str, prior: Any, mask: Any, weights: Any, correlation: float
) -> FusedPrediction:
    flat = _ndim(means) == 2
    if flat:
        means, variances = _widened("predictions", means), _widened("variances", variances)
    mu, keys, dtype = read_stack("predictions", means, "M B T", None)
    var, _, other = read_stack("variances", variances, "M B T", keys)
    if other != dtype:
        raise DTypeError(f"variances has dtype {other} but predictions has {dtype}")
    if var.shape != mu.shape:
        raise ShapeError(f"variances has shape {var.shape} but predictions has {mu.shape}")
    there = _there(mu, mask, keys, "predictions")
    mu, var = np.where(there[..., None], mu, 0.0), np.where(there[..., None], var, 1.0)
    bad: NDArray[np.bool_] = np.asarray(~np.all(np.isfinite(var) & (var > 0), axis=-1))
    if bad.any():
        m, b = (int(i) for i in np.argwhere(bad)[0])
        raise ArgumentError(f"variances of {_word(m, keys)}, row {b}, must be finite and above 0")
    powers = _powers(read_weights(weights, keys, there), method, correlation)
    before = None if prior is None else _mean_and_variance(prior, mu.shape[-1])
    _check_informed(powers, before is not None)
    if method == "linear":
        informed = np.asarray((powers > 0).any(axis=0))[:, None]
        mean = (powers[..., None] * mu).sum(axis=0)
        spread = (powers[..., None] * (var + (mu - mean) ** 2)).sum(axis=0)
        if before is not None:
            mean, spread = np.where(informed, mean, before[0]), np.where(informed, spread, before[1])
    else:
        pair = False if before is None else (before[0], np.log(before[1]))
        mean, log = generalised_product(mu, np.log(var), alpha=powers, mask=there, prior=pair)
        spread = np.exp(log)
    mean, spread = mean.astype(dtype), spread.astype(dtype)
    return FusedPrediction(mean[:, 0], spread[:, 0]) if flat else FusedPrediction(mean, spread)


def _ndim(value: Given) -> int:
    """Return the dimensions of predictions, the axis of models included."""
    if isinstance(value, Mapping):
        return 1 + max((np.ndim(part) for part in value.values()), default=0)
    return np.ndim(value)


def _widened(name: str, value: Given) -> Given:
    """Return predictions of one target with an axis of targets."""
    if isinstance(value, Mapping):
        parts = {key: floats(f"{name}[{key!r}]", part) for key, part in value.items()}
        return {key: part[:, None] if part.ndim == 1 else part for key, part in parts.items()}
    array = floats(name, value)
    return array[..., None] if array.ndim == 2 else array


def _mean_and_variance(prior: Any, T: int) -> tuple[Array, Array]:
    if not isinstance(prior, tuple | list) or len(prior) != 2:
        raise DTypeError("prior must be a pair (mean, variance)")
    try:
        mean, variance = (np.broadcast_to(np.asarray(part, np.float64), (T,)) for part in prior)
    except ValueError:
        raise ShapeError(f"prior must be two numbers or arrays ({T},)") from None
    if not (np.isfinite(mean) & np.isfinite(variance) & (variance > 0)).all():
        raise ArgumentError("prior must be finite, and its variance above 0")
    return mean, variance
