"""Fusion of Gaussians whose dimensions are correlated: full covariances, observations, and low rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validate import as_array, check_dims
from ..errors import ArgumentError, DTypeError, ShapeError
from ._experts import Given, Prior, same_keys
from ._matrices import cholesky, root, symmetric
from ._stacked import Experts, floats, read_experts, read_prior

__all__ = ["fuse_full", "fuse_low_rank", "kalman_update"]

Array = NDArray[Any]

_LOG_2PI = float(np.log(2 * np.pi))


def fuse_full(
    mu: Given,
    cov: Given | None = None,
    *,
    precision: Given | None = None,
    mask: Any = None,
    weights: Any = None,
    prior: Prior = True,
    return_log_normaliser: bool = False,
) -> tuple[Array, ...]:
    """Return the product of Gaussian experts with full covariances, and of a prior where there is one.

    ``P = [P_0] + sum_m w_m P_m`` and ``mean = P^-1 ([P_0 mu_0] + sum_m w_m P_m mu_m)``, with ``P_m`` the
    inverse of ``cov``. It is computed as the least-squares problem that it is: each covariance is factored
    by Cholesky, and a QR decomposition of the stacked factors takes the place of the sum, so that no
    condition number is squared. Arithmetic is ``float64``; the time grows with ``M B D^3``.

    Parameters
    ----------
    mu : array (M, B, D), or dict of arrays (B, D)
        Means, ``float32`` or ``float64``.
    cov : array (M, B, D, D), or dict of arrays (B, D, D)
        Covariances of the same dtype: symmetric and positive definite.
    precision : array (M, B, D, D), or dict of arrays (B, D, D)
        Inverses of covariances, in place of ``cov``. They may be singular, as that of an expert which says
        nothing of some directions; together with the prior they must say something of each.
    mask : bool array (M,) or (M, B), or dict of bool or (B,), optional
        Who is there; the entries of others are never read. Everybody where None.
    weights : array (M,) or (M, B), or dict of numbers or (B,), optional
        At least 0. They multiply precisions; 1 where None.
    prior : bool or pair
        True for N(0, I), False for none, or a mean (D,) with either logarithms of variances (D,) or a
        covariance (D, D).
    return_log_normaliser : bool
        Also return the logarithm of the integral of the product of densities, each to the power of its
        weight: the evidence, where experts are likelihoods. It is ``-inf`` with a singular precision.

    Returns
    -------
    mean : array (B, D)
    cov : array (B, D, D)
    log_normaliser : array (B,)
        Only with ``return_log_normaliser``.

    Raises
    ------
    ShapeError, DTypeError
        Where an argument does not fit; the message names it.
    ArgumentError
        Where a covariance is not positive definite (the message names argument, expert and row), or a row
        has neither an expert nor a prior.

    References
    ----------
    Hinton (2002), Training Products of Experts by Minimizing Contrastive Divergence. Bierman (1977),
    Factorization Methods for Discrete Sequential Estimation (the square-root information filter).

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import fuse_full
    >>> mu = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])  # each of two experts is sure of one direction
    >>> cov = np.stack([np.diag([0.01, 100.0]), np.diag([100.0, 0.01])])[:, None]
    >>> mean, fused = fuse_full(mu, cov, prior=False)
    >>> np.round(mean, 3), np.round(fused, 3)
    (array([[1., 1.]]), array([[[0.01, 0.  ],
            [0.  , 0.01]]]))
    """
    experts = read_experts(mu, mask, weights)
    _, B, D = experts.mu.shape
    before = read_prior(prior, D, experts.dtype)
    if (cov is None) == (precision is None):
        raise ArgumentError("cov or precision must be given, and not both")
    experts.check_informed(before is not None)
    factors = _from_precision(experts, precision) if cov is None else _from_cov(experts, cov)
    means, powers = experts.mu, experts.weights
    if before is not None:
        first = np.broadcast_to(_prior_factor(before, experts.dtype), (1, B, D, D))
        factors = np.concatenate([first, factors])
        means = np.concatenate([np.broadcast_to(before[0], (1, B, D)), means])
        powers = np.concatenate([np.ones((1, B)), powers])
    mean, fused, log_normaliser = _least_squares(factors, means, powers)
    found = (mean, fused, log_normaliser) if return_log_normaliser else (mean, fused)
    with np.errstate(over="ignore"):
        return tuple(one.astype(experts.dtype, copy=False) for one in found)


def _from_cov(experts: Experts, cov: Given) -> Array:
    """Return ``F (M, B, D, D)`` with ``F^T F`` the precision: the inverse of the Cholesky factor."""
    D = experts.mu.shape[-1]
    matrices = experts.read("cov", cov, "M B D D", np.eye(D))
    lower = cholesky("cov", symmetric("cov", matrices, experts.dtype, experts.place), experts.place)
    return np.asarray(np.linalg.solve(lower, np.eye(D)))


def _from_precision(experts: Experts, precision: Any) -> Array:
    matrices = experts.read("precision", precision, "M B D D", np.eye(experts.mu.shape[-1]))
    matrices = symmetric("precision", matrices, experts.dtype, experts.place)
    return np.asarray(np.swapaxes(root("precision", matrices, experts.dtype, experts.place), -1, -2))


def _prior_factor(prior: tuple[Array, Array], dtype: np.dtype[Any]) -> Array:
    """Return ``F (D, D)`` with ``F^T F`` the precision of the prior."""
    _, spread = prior
    if spread.ndim == 1:
        return np.diag(np.exp(spread / -2))
    lower = cholesky("the covariance of prior", symmetric("the covariance of prior", spread, dtype))
    return np.asarray(np.linalg.solve(lower, np.eye(len(spread))))


def _least_squares(factors: Array, means: Array, powers: Array) -> tuple[Array, Array, Array]:
    """Minimise ``sum_m powers_m |F_m (z - mean_m)|^2`` for each row: mean, covariance, log normaliser."""
    M, B, D, _ = factors.shape
    scaled = np.sqrt(powers)[..., None, None] * factors
    wanted = scaled @ means[..., None]
    rows = np.concatenate([scaled, wanted], axis=-1).transpose(1, 0, 2, 3).reshape(B, M * D, D + 1)
    upper = _triangle(rows)
    inner, target, rest = upper[:, :D, :D], upper[:, :D, D:], upper[:, D:, D:]
    pivots = np.abs(np.diagonal(inner, axis1=-2, axis2=-1))
    most = pivots.max(axis=-1, initial=0.0)
    weak = pivots.min(axis=-1, initial=np.inf) <= M * D * np.finfo(np.float64).eps * most
    if D and weak.any():
        raise ArgumentError(f"row {int(np.argmax(weak))} has a direction of which nobody says anything")
    inverse = np.linalg.solve(inner, np.eye(D))
    mean = (inverse @ target)[..., 0]
    with np.errstate(divide="ignore"):
        halves = np.linalg.slogdet(factors)[1] - D / 2 * _LOG_2PI
    counted = np.where(powers > 0, powers * np.where(powers > 0, halves, 0.0), 0.0).sum(axis=0)
    log_normaliser = (
        counted + D / 2 * _LOG_2PI - np.log(pivots).sum(axis=-1) - (rest * rest).sum(axis=(-2, -1)) / 2
    )
    return mean, inverse @ np.swapaxes(inverse, -1, -2), log_normaliser


def kalman_update(
    mean: ArrayLike,
    cov: ArrayLike,
    observation: ArrayLike,
    H: ArrayLike,
    R: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    return_log_evidence: bool = False,
) -> tuple[Array, ...]:
    """Return what a Gaussian ``N(mean, cov)`` becomes after ``observation = H z + noise``, noise ``N(0, R)``.

    The product of the Gaussian and the observation's likelihood, :func:`fuse_full`, in the form of a filter:
    only a matrix of the observation's size is inverted. The covariance is updated in the form of Joseph,
    ``(I - G H) cov (I - G H)^T + G R G^T``: an error of the gain ``G`` enters it squared, where it enters the
    shorter ``(I - G H) cov`` as it is, and can make variances negative. Arithmetic is ``float64``.

    Parameters
    ----------
    mean : array (B, D)
        ``float32`` or ``float64``, as are all others.
    cov : array (B, D, D)
        Symmetric and positive semidefinite.
    observation : array (B, K)
        What was measured.
    H : array (K, D) or (B, K, D)
        What the observation would be without noise, for each dimension.
    R : array (K, K) or (B, K, K)
        Covariance of the noise: symmetric and positive semidefinite, 0 for an exact observation.
    mask : bool array (B,) or (B, K), optional
        Which rows, or which numbers, were observed; what was not is never read. All where None.
    return_log_evidence : bool
        Also return the logarithm of the density of what was observed, before it was.

    Returns
    -------
    mean : array (B, D)
    cov : array (B, D, D)
    log_evidence : array (B,)
        Only with ``return_log_evidence``; 0 where nothing was observed.

    Raises
    ------
    ShapeError, DTypeError
        Where an argument does not fit; the message names it.
    ArgumentError
        Where ``cov`` or ``R`` is not positive semidefinite, or ``H cov H^T + R`` not positive definite; the
        message names the row.

    References
    ----------
    Kalman (1960), A New Approach to Linear Filtering and Prediction Problems. Bucy and Joseph (1968).

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import kalman_update
    >>> mean, cov = np.zeros((1, 2)), np.array([[[1.0, 0.8], [0.8, 1.0]]])
    >>> H, R = np.array([[1.0, 0.0]]), np.array([[1.0]])
    >>> after, spread = kalman_update(mean, cov, np.array([[2.0]]), H, R)  # one coordinate tells of both
    >>> np.round(after, 3), np.round(spread, 3)
    (array([[1. , 0.8]]), array([[[0.5 , 0.4 ],
            [0.4 , 0.68]]]))
    """
    given = {"mean": mean, "cov": cov, "observation": observation, "H": H, "R": R}
    arrays = {name: floats(name, value) for name, value in given.items()}
    for name, array in arrays.items():
        if array.dtype != arrays["mean"].dtype:
            raise DTypeError(f"{name} has dtype {array.dtype} but mean has {arrays['mean'].dtype}")
    dtype = arrays["mean"].dtype
    lead = {name: "" if arrays[name].ndim == 2 else "B " for name in ("H", "R")}
    check_dims(f"B D, B D D, B K, {lead['H']}K D, {lead['R']}K K", **arrays)
    mean, cov, observation, H, R = (array.astype(np.float64, copy=False) for array in arrays.values())
    (B, K), D = observation.shape, mean.shape[1]
    seen = _observed(mask, B, K)
    cov, R = symmetric("cov", cov, dtype, _row), symmetric("R", R, dtype, _row)
    root("cov", cov, dtype, _row)
    root("R", R, dtype, _row)
    # What was not observed becomes an observation of nothing but noise, of variance 1.
    H = np.where(seen[..., None], H, 0.0)
    R = np.where(seen[..., None] & seen[:, None], R, np.eye(K))
    surprise = np.where(seen, observation, 0.0) - (H @ mean[..., None])[..., 0]
    crossed = H @ cov
    lower = cholesky("H cov H^T + R", crossed @ np.swapaxes(H, -1, -2) + R, _row)
    half = np.linalg.solve(lower, np.concatenate([crossed, surprise[..., None]], axis=-1))
    gain = np.swapaxes(np.linalg.solve(np.swapaxes(lower, -1, -2), half[..., :D]), -1, -2)
    after = mean + (gain @ surprise[..., None])[..., 0]
    kept = np.eye(D) - gain @ H
    spread = kept @ cov @ np.swapaxes(kept, -1, -2) + gain @ R @ np.swapaxes(gain, -1, -2)
    spread = (spread + np.swapaxes(spread, -1, -2)) / 2
    pivots = np.diagonal(lower, axis1=-2, axis2=-1)
    log_evidence = -(
        (half[..., D] ** 2).sum(axis=-1) / 2 + np.log(pivots).sum(axis=-1) + seen.sum(axis=-1) / 2 * _LOG_2PI
    )
    found = (after, spread, log_evidence) if return_log_evidence else (after, spread)
    with np.errstate(over="ignore"):
        return tuple(one.astype(dtype, copy=False) for one in found)


def _row(index: tuple[int, ...]) -> str:
    return f" of row {index[0]}" if index else ""


def _observed(mask: ArrayLike | None, B: int, K: int) -> NDArray[np.bool_]:
    """Return which numbers were observed, ``(B, K)``."""
    if mask is None:
        return np.ones((B, K), dtype=bool)
    array = as_array("mask", mask)
    if array.dtype.kind != "b":
        raise DTypeError(f"mask has dtype {array.dtype}, expected bool")
    if array.shape == (B,):
        array = array[:, None]
    elif array.shape != (B, K):
        raise ShapeError(f"mask has shape {array.shape}, expected ({B},) or ({B}, {K})")
    return np.broadcast_to(array, (B, K))


def fuse_low_rank(
    mu: Given,
    diag: Given,
    factors: Given,
    *,
    mask: Any = None,
    weights: Any = None,
    prior: Prior = True,
    return_log_normaliser: bool = False,
) -> tuple[Array, ...]:
    """Return the product of experts with covariances ``diag + U U^T``, in the same form.

    What :func:`fuse_full` computes, without an array of ``D x D``: the factors' coordinates are solved for
    beside ``z``, which leaves least squares over as many unknowns as all ranks together, ``T``, and the
    identity of Woodbury gives the covariance. These are solved by QR decompositions, so that nothing cancels
    however large the factors are. Time grows with ``M B D T^2``, memory with ``B D T``.

    Parameters
    ----------
    mu : array (M, B, D), or dict of arrays (B, D)
        Means, ``float32`` or ``float64``.
    diag : array (M, B, D), or dict of arrays (B, D)
        Variances of the part that is independent between dimensions: finite, above 0.
    factors : array (M, B, D, R), or dict of arrays (B, D, R)
        ``U``, of rank ``R``; in a dict each may have its own rank, from 0.
    mask, weights
        As for :func:`fuse_full`.
    prior : bool or pair
        True for N(0, I), False for none, or a mean (D,) with logarithms of variances (D,).
    return_log_normaliser : bool
        Also return the logarithm of the integral of the product, as :func:`fuse_full` does.

    Returns
    -------
    mean : array (B, D)
    diag : array (B, D)
    factors : array (B, D, T)
        The covariance is ``diag + factors factors^T``; ``T`` is the sum of all ranks.
    log_normaliser : array (B,)
        Only with ``return_log_normaliser``.

    Raises
    ------
    ShapeError, DTypeError
        Where an argument does not fit; the message names it.
    ArgumentError
        Where ``diag`` is not above 0 (the message names expert and row), or a row has neither an expert nor
        a prior.

    References
    ----------
    Woodbury (1950), Inverting Modified Matrices.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import fuse_low_rank
    >>> mu, diag = np.zeros((2, 1, 1000)), np.ones((2, 1, 1000))
    >>> mean, own, factors = fuse_low_rank(mu, diag, np.ones((2, 1, 1000, 3)))
    >>> own.shape, factors.shape
    ((1, 1000), (1, 1000, 6))
    """
    experts = read_experts(mu, mask, weights)
    D = experts.mu.shape[-1]
    before = read_prior(prior, D, experts.dtype)
    if before is not None and before[1].ndim != 1:
        raise ShapeError(f"prior has shapes ({D},) and {before[1].shape}, expected ({D},) and ({D},)")
    experts.check_informed(before is not None)
    own = experts.read("diag", diag, "M B D", 1.0)
    bad = ~(np.isfinite(own) & (own > 0))
    if bad.any():
        m, b, d = (int(i) for i in np.argwhere(bad)[0])
        raise ArgumentError(f"diag{experts.place((m, b))} must be finite and above 0, not {own[m, b, d]:g}")
    U, owner = _side_by_side(experts, factors)
    with np.errstate(over="ignore"):
        found = _woodbury(experts, own, U, owner, before)
        found = found if return_log_normaliser else found[:3]
        return tuple(one.astype(experts.dtype, copy=False) for one in found)


def _side_by_side(experts: Experts, factors: Given) -> tuple[Array, NDArray[np.int64]]:
    """Return all factors ``(B, D, T)``, 0 of missing experts, and whose each column is ``(T,)``."""
    M, B, D = experts.mu.shape
    if isinstance(factors, Mapping):
        if experts.keys is None:
            raise ArgumentError("factors must be an array, as mu is")
        factors = same_keys("factors", factors, experts.keys)
        parts = [floats(f"factors[{key!r}]", factors[key]) for key in experts.keys]
        names = [f"factors[{key!r}]" for key in experts.keys]
    else:
        stacked = floats("factors", factors)
        if stacked.ndim != 4 or len(stacked) != M:
            raise ShapeError(f"factors has shape {stacked.shape}, expected ({M}, {B}, {D}, R)")
        parts, names = list(stacked), [f"factors[{m}]" for m in range(M)]
    columns: list[Array] = [np.zeros((B, D, 0))]
    for name, part, there in zip(names, parts, experts.present, strict=True):
        if part.dtype != experts.dtype:
            raise DTypeError(f"{name} has dtype {part.dtype} but mu has {experts.dtype}")
        if part.ndim != 3 or part.shape[:2] != (B, D):
            raise ShapeError(f"{name} has shape {part.shape}, expected (..., {B}, {D}, R)")
        column = np.where(there[:, None, None], part, 0.0).astype(np.float64, copy=False)
        if not np.isfinite(column).all():
            row = int(np.argmax(~np.isfinite(column).all(axis=(-2, -1))))
            raise ArgumentError(f"{name} is not finite in row {row}")
        columns.append(column)
    owner = np.repeat(np.arange(M), [part.shape[-1] for part in parts])
    return np.concatenate(columns, axis=-1), owner


def _woodbury(
    experts: Experts, diag: Array, U: Array, owner: NDArray[np.int64], prior: tuple[Array, Array] | None
) -> tuple[Array, ...]:
    """Return mean, diagonal, factors and log normaliser.

    Expert m says ``z = mu_m + U_m a_m + noise`` with ``a_m`` of N(0, I). Given all ``a``, ``z`` is the mean
    of what they say by their shares; that leaves squares of ``a``, and of how far experts are apart.
    """
    (B, D, T), w = U.shape, experts.weights
    counts = w > 0
    # An expert to the power w has its covariance over w.
    U = U * np.where(counts, 1 / np.sqrt(np.where(counts, w, 1.0)), 0.0).T[:, None, owner]
    tau, means = w[..., None] / diag, experts.mu
    constant = -w * (D * _LOG_2PI + np.log(diag).sum(axis=-1)) / 2
    if prior is not None:
        tau = np.concatenate([tau, np.broadcast_to(np.exp(-prior[1]), (1, B, D))])
        means = np.concatenate([means, np.broadcast_to(prior[0], (1, B, D))])
        constant = np.concatenate([constant, np.full((1, B), (D * _LOG_2PI + prior[1].sum()) / -2)])
    whole = tau.sum(axis=0)
    share = tau / whole
    mid = (share * means).sum(axis=0)
    moved = share.transpose(1, 2, 0)[..., owner] * U  # How far a unit of each coordinate moves z.
    # The triangle of a QR decomposition of all squares so far, with their right-hand side beside it.
    upper = np.concatenate([np.tile(np.eye(T), (B, 1, 1)), np.zeros((B, T, 1))], axis=-1)
    inner = np.zeros(B)
    for m, (precision, mean) in enumerate(zip(tau, means, strict=True)):
        root_tau = np.sqrt(precision)[..., None]
        rows = [root_tau * (U * (owner == m) - moved), root_tau * (mid - mean)[..., None]]
        upper = _triangle(np.concatenate([upper, np.concatenate(rows, axis=-1)], axis=-2))
        if (owner == m).any():
            own = U[..., owner == m]
            gram = np.eye(own.shape[-1]) + np.swapaxes(own, -1, -2) @ (precision[..., None] * own)
            log_det = np.linalg.slogdet(gram)[1]
            constant[m] -= w[m] * log_det / 2
            inner += log_det
    system, target, rest = upper[:, :T, :T], upper[:, :T, T:], upper[:, T:, T:]
    fused = mid + (moved @ np.linalg.solve(system, target))[..., 0]
    factors = np.swapaxes(np.linalg.solve(np.swapaxes(system, -1, -2), np.swapaxes(moved, -1, -2)), -1, -2)
    pivots = np.abs(np.diagonal(system, axis1=-2, axis2=-1))
    log_det = np.log(whole).sum(axis=-1) + 2 * np.log(pivots).sum(axis=-1) - inner
    square = (rest * rest).sum(axis=(-2, -1))
    log_normaliser = constant.sum(axis=0) + (D * _LOG_2PI - log_det - square) / 2
    return fused, 1 / whole, factors, log_normaliser


def _triangle(rows: Array) -> Array:
    """Return ``R`` of the QR decomposition of each matrix of a stack."""
    return np.asarray(np.linalg.qr(rows, mode="r"))
