"""Products of experts that are not independent: powers of densities, and covariance intersection."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, ShapeError
from ._experts import Given, Prior
from ._gaussian import quarter, quiet, standardised
from ._matrices import cholesky, symmetric
from ._stacked import read_experts, read_prior, read_weights

__all__ = ["CovarianceIntersection", "covariance_intersection", "generalised_product"]

Array = NDArray[Any]

_LOG_2PI = float(np.log(2 * np.pi))
_BARRIERS = 10.0 ** -np.arange(0, 11)  # The last leaves M times 1e-10 of the criterion.
_STEPS = 30  # Newton steps at each; two to five are taken.


def generalised_product(
    mu: Given,
    logvar: Given,
    *,
    alpha: Any = None,
    mask: Any = None,
    prior: Prior = False,
    return_log_normaliser: bool = False,
) -> tuple[Array, ...]:
    """Return the product of Gaussian experts to powers, and of a prior to what these leave of 1.

    ``q(z) ~ p_0(z)^(1 - sum_m alpha_m) prod_m p_m(z)^alpha_m``. What the powers say:

    - They sum to 1, as they do where none are given: the logarithmic opinion pool, a weighted geometric mean.
      Experts that agree make it no surer than they are, and the prior has no part in it.
    - All are 1, with a prior: experts are posteriors that share the prior, and are independent given ``z``.
      The prior that each of them holds is taken out but once (the Bayesian committee machine).
    - In between, experts count for less because what they know overlaps.

    Without a prior, powers need not sum to anything.

    Parameters
    ----------
    mu, logvar : array (M, B, D), or dict of arrays (B, D)
        Means and logarithms of variances, ``float32`` or ``float64``. Arithmetic is ``float64``.
    alpha : array (M,) or (M, B), or dict of numbers or (B,), optional
        Powers, at least 0; one over the number of experts in the row where None.
    mask : bool array (M,) or (M, B), or dict of bool or (B,), optional
        Who is there; the entries of others are never read. Everybody where None.
    prior : bool or pair
        False for none, True for N(0, I), or a mean (D,) with logarithms of variances (D,). A row without
        experts is the prior.
    return_log_normaliser : bool
        Also return the logarithm of the integral of the product.

    Returns
    -------
    mean, logvar : array (B, D)
    log_normaliser : array (B,)
        Only with ``return_log_normaliser``. Never above 0 where powers sum to 1: its negative says how far
        apart the experts are.

    Raises
    ------
    ShapeError, DTypeError
        Where an argument does not fit; the message names it.
    ArgumentError
        Where a row has neither an expert nor a prior, or where experts that are less sure than the prior
        leave no density once it is taken out; the message names the row.

    References
    ----------
    Genest and Zidek (1986), Combining Probability Distributions. Tresp (2000), A Bayesian Committee Machine.
    Cao and Fleet (2014), Generalized Product of Experts for Automatic and Principled Fusion of Gaussian
    Process Predictions, arXiv:1410.7827. Deisenroth and Ng (2015), arXiv:1502.02843.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import generalised_product
    >>> mu, logvar = np.array([[[0.0]], [[2.0]]]), np.zeros((2, 1, 1))
    >>> mean, log = generalised_product(mu, logvar)
    >>> mean, np.exp(log)  # no surer than either: nobody said that they know different things
    (array([[1.]]), array([[1.]]))
    """
    experts = read_experts(mu, mask, None)
    M, B, D = experts.mu.shape
    logvars = experts.read("logvar", logvar, "M B D", 0.0)
    first = read_prior(prior, D, experts.dtype)
    if first is not None and first[1].ndim != 1:
        raise ShapeError(f"prior has shapes ({D},) and {first[1].shape}, expected ({D},) and ({D},)")
    if alpha is None:
        powers = experts.present / np.maximum(experts.present.sum(axis=0), 1)
    else:
        powers = read_weights(alpha, experts.keys, experts.present, "alpha")
    means = experts.mu
    if first is not None:
        powers = np.concatenate([powers, 1 - powers.sum(axis=0, keepdims=True)])
        means = np.concatenate([means, np.broadcast_to(first[0], (1, B, D))])
        logvars = np.concatenate([logvars, np.broadcast_to(first[1], (1, B, D))])
    elif not (powers > 0).any(axis=0).all():
        row = int(np.argmin((powers > 0).any(axis=0)))
        raise ArgumentError(f"row {row} has no expert that counts, and there is no prior")
    with quiet(), np.errstate(divide="ignore"):
        size = np.log(np.abs(powers))[..., None] - logvars
        most = size.max(axis=0)
        parts = np.sign(powers)[..., None] * np.exp(size - most)
        whole = parts.sum(axis=0)
        gone = (whole <= 4 * (M + 1) * np.finfo(np.float64).eps).any(axis=-1)
        if gone.any():
            raise ArgumentError(
                f"row {int(np.argmax(gone))} has experts that together are less sure than the prior: "
                "taking it out of each leaves no density"
            )
        mean = (parts * means).sum(axis=0) / whole
        log = -(most + np.log(whole))
        found = [mean, log]
        if return_log_normaliser:
            away = standardised(mean - means, quarter(logvars))
            terms = powers[..., None] * (_LOG_2PI + logvars + away * away)
            terms = np.where(powers[..., None] == 0, 0.0, terms)
            found.append((_LOG_2PI + log - terms.sum(axis=0)).sum(axis=-1) / 2)
        return tuple(one.astype(experts.dtype, copy=False) for one in found)


class CovarianceIntersection(NamedTuple):
    """What :func:`covariance_intersection` returns."""

    mean: Array
    cov: Array
    weights: Any
    gap: Array


def covariance_intersection(
    mu: Given, cov: Given, *, mask: Any = None, criterion: Literal["determinant", "trace"] = "determinant"
) -> CovarianceIntersection:
    """Return the fusion of Gaussian estimates whose errors are correlated in ways that nobody knows.

    ``P = sum_m w_m P_m``, ``mean = P^-1 sum_m w_m P_m mu_m`` with weights that sum to 1, chosen so that the
    covariance ``P^-1`` is least. Whatever the correlations are: where each ``cov`` is at least that of its
    estimate's error, so is the result's. The product of experts promises that for independent errors alone.

    The weights solve a convex problem, by Newton's method within a barrier, row by row at once.

    Parameters
    ----------
    mu : array (M, B, D), or dict of arrays (B, D)
        Estimates, ``float32`` or ``float64``. Arithmetic is ``float64``.
    cov : array (M, B, D, D), or dict of arrays (B, D, D)
        Covariances: symmetric and positive definite.
    mask : bool array (M,) or (M, B), or dict of bool or (B,), optional
        Who is there; the entries of others are never read. Everybody where None.
    criterion : {"determinant", "trace"}
        What of the covariance is made least; its trace has units, its determinant does not ask for them.

    Returns
    -------
    CovarianceIntersection
        ``mean`` (B, D), ``cov`` (B, D, D), ``weights`` (M, B) or by name, and ``gap`` (B,): a bound, by
        convexity, of how far the logarithm of the criterion is above its least: about 1e-9, more where a
        covariance is ill-conditioned.

    Raises
    ------
    ShapeError, DTypeError
        Where an argument does not fit; the message names it.
    ArgumentError
        Where a covariance is not positive definite, or a row has no expert; the message says which.

    References
    ----------
    Julier and Uhlmann (1997), A Non-divergent Estimation Algorithm in the Presence of Unknown Correlations.
    Boyd and Vandenberghe (2004), Convex Optimization, chapter 11.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import covariance_intersection
    >>> mu = np.zeros((2, 1, 2))
    >>> cov = np.stack([np.diag([1.0, 4.0]), np.diag([4.0, 1.0])])[:, None]
    >>> fused = covariance_intersection(mu, cov)
    >>> np.round(fused.weights[:, 0], 6), np.round(np.diag(fused.cov[0]), 6)
    (array([0.5, 0.5]), array([1.6, 1.6]))
    """
    if criterion not in ("determinant", "trace"):
        raise ArgumentError(f"criterion must be 'determinant' or 'trace', not {criterion!r}")
    experts = read_experts(mu, mask, None)
    experts.check_informed(False)
    D = experts.mu.shape[-1]
    matrices = experts.read("cov", cov, "M B D D", np.eye(D))
    lower = cholesky("cov", symmetric("cov", matrices, experts.dtype, experts.place), experts.place)
    roots = np.linalg.solve(lower, np.eye(D))
    precisions = (np.swapaxes(roots, -1, -2) @ roots).transpose(1, 0, 2, 3)
    there = experts.present.T
    problem = _Intersection(precisions, there, criterion == "trace")
    weights = problem.solve()
    _, fused, slopes, _ = problem.at(weights, curved=False)
    gap = np.where(there, -slopes, -np.inf).max(axis=1, initial=0.0) - (-slopes * weights).sum(axis=1)
    linear = np.einsum("bm,bmij,mbj->bi", weights, precisions, experts.mu)
    mean = np.einsum("bij,bj->bi", fused, linear)
    kept = weights.T.astype(experts.dtype)
    named = kept if experts.keys is None else dict(zip(experts.keys, kept, strict=True))
    return CovarianceIntersection(mean.astype(experts.dtype), fused.astype(experts.dtype), named, gap)


class _Intersection:
    """The logarithm of the criterion, by the weights ``(B, M)`` of precisions ``(B, M, D, D)``."""

    def __init__(self, precisions: Array, there: NDArray[np.bool_], trace: bool) -> None:
        self.precisions, self.there, self.trace = precisions, there, trace

    def value(self, weights: Array) -> Array:
        """Return the criterion's logarithm."""
        whole = np.einsum("bm,bmij->bij", weights, self.precisions)
        if self.trace:
            inverse = np.linalg.inv(whole)
            return np.asarray(np.log(np.trace(inverse, axis1=-2, axis2=-1)))
        return np.asarray(-np.linalg.slogdet(whole)[1])

    def at(self, weights: Array, curved: bool = True) -> tuple[Array, Array, Array, Array]:
        """Return the criterion's logarithm, the covariance, and first and second derivatives."""
        whole = np.einsum("bm,bmij->bij", weights, self.precisions)
        cov = np.linalg.inv(whole)
        cov = (cov + np.swapaxes(cov, -1, -2)) / 2
        shares = cov[:, None] @ self.precisions
        if not self.trace:
            slopes = -np.trace(shares, axis1=-2, axis2=-1)
            curves = np.einsum("bmij,bnji->bmn", shares, shares) if curved else slopes
            return -np.linalg.slogdet(whole)[1], cov, slopes, curves
        size = np.trace(cov, axis1=-2, axis2=-1)[:, None]
        less = shares @ cov[:, None]
        slopes = -np.trace(less, axis1=-2, axis2=-1) / size
        curves = slopes
        if curved:
            curves = 2 * np.einsum("bmij,bnji->bmn", shares, less) / size[..., None]
            curves -= slopes[:, :, None] * slopes[:, None]
        value: Array = np.log(size[:, 0])
        return value, cov, slopes, curves

    def solve(self) -> Array:
        """Return the weights that make the criterion least, within the last barrier."""
        there = self.there
        weights: Array = there / there.sum(axis=1, keepdims=True)
        for barrier in _BARRIERS:
            for _ in range(_STEPS):
                step, decrement = self._newton(weights, barrier)
                if (decrement <= 1e-9 * barrier).all():
                    break
                weights = self._along(weights, step, decrement, barrier)
        return weights

    def _newton(self, weights: Array, barrier: float) -> tuple[Array, Array]:
        there = self.there
        safe = np.where(there, weights, 1.0)
        _, _, slopes, curves = self.at(weights)
        slopes = np.where(there, slopes - barrier / safe, 0.0)
        both = there[:, :, None] & there[:, None]
        M = there.shape[1]
        system = np.zeros((len(there), M + 1, M + 1))
        system[:, :M, :M] = np.where(both, curves, 0.0)
        system[:, range(M), range(M)] += np.where(there, barrier / safe**2, 1.0)
        system[:, M, :M] = system[:, :M, M] = there
        right = np.concatenate([-slopes, np.zeros((len(there), 1))], axis=1)
        step = np.linalg.solve(system, right[..., None])[:, :M, 0]
        return step, np.einsum("bm,bmn,bn->b", step, system[:, :M, :M], step)

    def _along(self, weights: Array, step: Array, decrement: Array, barrier: float) -> Array:
        """Go along a step until the barrier problem is better, each row by its own length."""
        there = self.there

        def worth(w: Array) -> Array:
            logs = np.log(np.where(there, w, 1.0)).sum(axis=1)
            return np.asarray(self.value(w) - barrier * logs)

        with np.errstate(divide="ignore"):
            room = np.where(step < 0, weights / -np.where(step < 0, step, 1.0), np.inf).min(
                axis=1, initial=np.inf
            )
        length = np.minimum(1.0, 0.99 * room)
        before = worth(weights)
        for _ in range(40):
            tried = weights + length[:, None] * step
            worse = worth(tried) > before - 0.1 * length * decrement + 1e-14 * np.abs(before)
            if not worse.any():
                break
            length = np.where(worse, length / 2, length)
        tried = weights + length[:, None] * step
        return np.asarray(tried / tried.sum(axis=1, keepdims=True))
