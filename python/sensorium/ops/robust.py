"""Products of Student-t experts: an expert that is far from all others is let go instead of followed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._validate import as_array, check_integer, check_positive
from ..errors import ArgumentError, DTypeError, ShapeError
from ._experts import Given, Prior, same_keys
from ._gaussian import quiet
from ._stacked import Experts, read_experts, read_prior

__all__ = ["StudentTProduct", "student_t_product"]

Array = NDArray[Any]

_EXTREME = 600.0  # Logarithms of squared scales beyond it count as it.
_UPRIGHT = 1e-6  # A curvature that is this share of the precisions or less is none.
_PANEL = 0.5  # Panels of the quadrature are this long, on the scale of asinh.
_REACH = 57  # Panels to each side of a centre: sinh(28.5) is 1.2e12 scales.
_NODES, _SHARES = np.polynomial.legendre.leggauss(8)
_AT_ONCE = 2**21  # Numbers of one array of the quadrature.


class StudentTProduct(NamedTuple):
    """What :func:`student_t_product` returns."""

    mean: Array
    logvar: Array
    share: Any
    converged: NDArray[np.bool_]


def student_t_product(
    mu: Given,
    logvar: Given,
    dof: Any,
    *,
    joint: bool = False,
    mask: Any = None,
    weights: Any = None,
    prior: Prior = True,
    approximation: Literal["laplace", "moments"] = "laplace",
    tolerance: float = 1e-8,
    max_iterations: int = 200,
) -> StudentTProduct:
    """Return a Gaussian that stands for the product of Student-t experts and a Gaussian prior.

    The product ``p_0(z) prod_m t(z; mu_m, exp(logvar_m), dof_m)^w_m`` has no closed form, and may have
    several modes. What is computed:

    - ``"laplace"``: the highest mode that is found, and the curvature of the logarithm of the product there.
      A mode is climbed to by expectation-maximisation, which is least squares with each expert's precision
      multiplied by its share ``w (dof + n) / (dof + distance^2)``, and by Newton's step where that climbs
      higher. It starts at the mean of every expert, at that of the Gaussian product and at that of the prior;
      nothing proves that no higher mode is elsewhere.
    - ``"moments"``: mean and variance of the product itself, by quadrature in each dimension; not ``joint``.

    The further an expert is from what the others say, the less it counts; far away, not at all. A product
    of Gaussian experts follows it however far it is.

    Parameters
    ----------
    mu, logvar : array (M, B, D), or dict of arrays (B, D)
        Locations, and logarithms of squared scales: ``float32`` or ``float64``. The variance of an expert is
        ``dof / (dof - 2)`` times its squared scale. Arithmetic is ``float64``; a ``logvar`` beyond 600 counts
        as 600.
    dof : float, array (M,), or dict of numbers
        Degrees of freedom, above 0; infinite for a Gaussian expert.
    joint : bool
        Whether an expert is one distribution over all dimensions, right or wrong in all of them (``n = D``),
        or one for each (``n = 1``).
    mask : bool array (M,) or (M, B), or dict of bool or (B,), optional
        Who is there; the entries of others are never read. Everybody where None.
    weights : array (M,) or (M, B), or dict of numbers or (B,), optional
        Powers of densities, at least 0; 1 where None.
    prior : bool or pair
        True for N(0, I), False for none, or a mean (D,) with logarithms of variances (D,).
    approximation : {"laplace", "moments"}
        See above. For ``"moments"``, the powers times ``dof + 1`` must sum to at least 4 without a prior.
    tolerance : float
        Of the mode, in standard deviations of the result.
    max_iterations : int
        Steps from each start.

    Returns
    -------
    StudentTProduct
        ``mean`` and ``logvar`` (B, D); ``share`` (M, B, D), or (M, B) if ``joint``, by name if ``mu`` is:
        what each expert's precision is multiplied by at the mode, 0 if missing; and ``converged`` (B,).
        Where a row has not converged, or the curvature at what was found is not positive, so that
        ``logvar`` is infinite there, ``converged`` is False.

    Raises
    ------
    ShapeError, DTypeError
        Where an argument does not fit; the message names it.
    ArgumentError
        Where a value is out of range, or a row has neither an expert nor a prior.

    References
    ----------
    Lange, Little and Taylor (1989), Robust Statistical Modeling Using the t Distribution. Welling, Hinton and
    Osindero (2002), Learning Sparse Topographic Representations with Products of Student-t Distributions.
    Tierney and Kadane (1986), Accurate Approximations for Posterior Moments and Marginal Densities.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import student_t_product
    >>> mu = np.array([[[1.0]], [[1.2]], [[50.0]]])  # the third is broken
    >>> robust = student_t_product(mu, np.zeros((3, 1, 1)), dof=4.0)
    >>> robust.mean.round(2), robust.share[:, 0, 0].round(2), robust.converged
    (array([[0.81]]), array([1.24, 1.2 , 0.  ]), array([ True]))
    """
    if approximation not in ("laplace", "moments"):
        raise ArgumentError(f"approximation must be 'laplace' or 'moments', not {approximation!r}")
    if joint and approximation == "moments":
        raise ArgumentError("approximation 'moments' needs joint=False")
    tolerance = check_positive("tolerance", tolerance)
    max_iterations = check_integer("max_iterations", max_iterations, 1)
    experts = read_experts(mu, mask, weights)
    D = experts.mu.shape[-1]
    before = read_prior(prior, D, experts.dtype)
    if before is not None and before[1].ndim != 1:
        raise ShapeError(f"prior has shapes ({D},) and {before[1].shape}, expected ({D},) and ({D},)")
    experts.check_informed(before is not None)
    logvars = np.clip(experts.read("logvar", logvar, "M B D", 0.0), -_EXTREME, _EXTREME)
    inverse_dof = 1 / _dof(dof, experts)[:, None, None]
    with quiet():
        mean, tau = (np.zeros(D), np.zeros(D)) if before is None else (before[0], np.exp(-before[1]))
        product = _Product(
            experts.mu, np.exp(-logvars), experts.weights[..., None], inverse_dof, mean, tau, joint
        )
        mode = product.climb(tolerance, max_iterations)
        share = product.shares(mode)[0]
        share = share[..., 0] if joint else share
        var, steep = product.laplace(mode)
        sigma = np.where(np.isfinite(var), np.sqrt(var), np.inf)
        converged = np.all((steep <= tolerance) & np.isfinite(var), axis=-1)
        if approximation == "moments":
            _check_moments(experts, inverse_dof, before is not None)
            mode, var = _moments(product, mode, np.where(np.isfinite(sigma), sigma, 1.0))
        log = np.log(var)
        dtype = experts.dtype
        share = share.astype(dtype)
        named = share if experts.keys is None else dict(zip(experts.keys, share, strict=True))
        return StudentTProduct(
            mode.astype(dtype, copy=False), log.astype(dtype, copy=False), named, converged
        )


def _dof(dof: Any, experts: Experts) -> Array:
    """Return degrees of freedom ``(M,)``."""
    M = len(experts.mu)
    if isinstance(dof, Mapping):
        if experts.keys is None:
            raise ArgumentError("dof must be an array, as mu is")
        same_keys("dof", dof, experts.keys)
        dof = [dof[key] for key in experts.keys]
    array = as_array("dof", dof)
    if array.dtype.kind not in "fiu":
        raise DTypeError(f"dof has dtype {array.dtype}, expected numbers")
    if array.shape not in ((), (M,)):
        raise ShapeError(f"dof has shape {array.shape}, expected () or ({M},)")
    values = np.broadcast_to(array, (M,)).astype(np.float64)
    bad = ~(values > 0)
    if bad.any():
        m = int(np.argmax(bad))
        raise ArgumentError(f"dof of {experts.word(m)} must be above 0, not {values[m]:g}")
    return values


def _check_moments(experts: Experts, inverse_dof: Array, prior: bool) -> None:
    """Hold every row to tails that are thin enough for a variance that quadrature can find."""
    if prior:
        return
    powers = np.where(experts.weights > 0, experts.weights * (1 + 1 / inverse_dof[..., 0]), 0.0).sum(axis=0)
    if (powers < 4).any():
        row = int(np.argmax(powers < 4))
        raise ArgumentError(
            f"row {row} has powers times (dof + 1) that sum to {powers[row]:g}: without a prior, "
            "approximation 'moments' needs 4"
        )


@dataclass(frozen=True, slots=True)
class _Product:
    """Experts ``(M, B, D)`` by precision; ``weights`` and ``inverse_dof`` broadcast; a prior ``(D,)``."""

    mu: Array
    tau: Array
    weights: Array
    inverse_dof: Array
    prior_mean: Array
    prior_tau: Array
    joint: bool

    @property
    def dims(self) -> int:
        """Dimensions of one distribution."""
        return self.mu.shape[-1] if self.joint else 1

    def squares(self, z: Array) -> Array:
        """Return squared distances in scales, ``(..., M, B, D)``, or ``(..., M, B, 1)`` over all."""
        away = (z[..., None, :, :] - self.mu) * np.sqrt(self.tau)
        square = away * away
        return np.asarray(square.sum(axis=-1, keepdims=True) if self.joint else square)

    def shares(self, z: Array) -> tuple[Array, Array]:
        """Return what precisions are multiplied by, and what falls off faster by a factor."""
        less = 1 / (1 + self.squares(z) * self.inverse_dof)
        return self.weights * (1 + self.dims * self.inverse_dof) * less, self.inverse_dof * less

    def log_density(self, z: Array) -> Array:
        """Return the logarithm of the product but for a constant: ``(..., B, D)``, or ``(..., B, 1)``."""
        square = self.squares(z)
        finite = np.where(self.inverse_dof > 0, self.inverse_dof, 1.0)
        terms = np.where(self.inverse_dof > 0, (1 / finite + self.dims) * np.log1p(square * finite), square)
        away = z - self.prior_mean
        own = self.prior_tau * away * away
        if self.joint:
            own = own.sum(axis=-1, keepdims=True)
        return np.asarray(np.where(self.weights > 0, self.weights * terms, 0.0).sum(axis=-3) + own) / -2

    def step(self, z: Array) -> tuple[Array, Array, Array, Array]:
        """Return the steps of expectation-maximisation and of Newton, variances, and steepness in sigmas.

        Where the curvature is not positive, the variance is infinite and Newton's step is that of the former.
        """
        share, fall = self.shares(z)
        away = z[..., None, :, :] - self.mu
        pull = share * self.tau
        slope = -(self.prior_tau * (z - self.prior_mean) + (pull * away).sum(axis=-3))
        whole = self.prior_tau + pull.sum(axis=-3)
        em = slope / whole
        bends = np.sqrt(2 * share * fall) * self.tau * away
        if self.joint:
            newton, var = _downdated(whole, bends, slope)
        else:
            curve = whole - (bends * bends).sum(axis=-3)
            upright = curve > _UPRIGHT * whole
            var = np.where(upright, 1 / np.where(upright, curve, 1.0), np.inf)
            newton = np.where(upright, slope * var, em)
        if self.joint:
            newton = np.where(np.isfinite(var).all(axis=-1, keepdims=True), newton, em)
        return em, newton, var, np.abs(slope) / np.sqrt(whole)

    def laplace(self, z: Array) -> tuple[Array, Array]:
        """Return the variances by curvature, and how steep it still is, in standard deviations."""
        _, newton, var, steep = self.step(z)
        upright = np.isfinite(var)
        return var, np.where(upright, np.abs(newton) / np.sqrt(np.where(upright, var, 1.0)), steep)

    def climb(self, tolerance: float, max_iterations: int) -> Array:
        """Return the highest mode found from all starts."""
        _, B, D = self.mu.shape
        pull = self.weights * self.tau
        whole = self.prior_tau + pull.sum(axis=0)
        gaussian = (self.prior_tau * self.prior_mean + (pull * self.mu).sum(axis=0)) / whole
        first = np.broadcast_to(self.prior_mean, (1, B, D))
        z = np.concatenate([np.where(self.weights > 0, self.mu, gaussian), gaussian[None], first])
        for _ in range(max_iterations):
            em, newton, var, steep = self.step(z)
            upright = np.isfinite(var)
            left = np.where(upright, np.abs(newton) / np.sqrt(np.where(upright, var, 1.0)), steep)
            if not (left > tolerance / 10).any():
                break
            one, two = z + em, z + newton
            higher = self.log_density(two) > self.log_density(one)
            z = np.where(higher, two, one)
        best = np.argmax(self.log_density(z), axis=0)
        return np.asarray(np.take_along_axis(z, np.broadcast_to(best, (B, D))[None], axis=0)[0])


def _downdated(diag: Array, columns: Array, right: Array) -> tuple[Array, Array]:
    """Solve ``(diag - V V^T) x = right`` with columns ``(..., M, B, D)``.

    Return ``x`` and the diagonal of the inverse, which is infinite where that is not positive definite.
    """
    V = np.moveaxis(columns, -3, -1)
    scaled = V / diag[..., None]
    M = V.shape[-1]
    inner = np.eye(M) - np.swapaxes(V, -1, -2) @ scaled
    values, vectors = np.linalg.eigh(inner)
    upright = values.min(axis=-1, initial=1.0) > _UPRIGHT
    turned = scaled @ vectors
    over = 1 / np.where(upright[..., None], values, 1.0)
    x = right / diag + (turned @ (over[..., None] * (np.swapaxes(turned, -1, -2) @ right[..., None])))[..., 0]
    inverse = 1 / diag + (turned * turned * over[..., None, :]).sum(axis=-1)
    return x, np.where(upright[..., None], inverse, np.inf)


def _moments(product: _Product, mode: Array, sigma: Array) -> tuple[Array, Array]:
    """Return mean and variance of the product in every dimension, by Gauss-Legendre on panels.

    Panels are as long as the nearest centre asks: they grow from every expert, from the prior and from the
    mode as sinh does, and those of all centres are cut by each other.
    """
    M, B, D = product.mu.shape
    flat = [
        np.broadcast_to(a, (M, B, D)).reshape(M, B * D) for a in (product.mu, product.tau, product.weights)
    ]
    prior = [np.broadcast_to(a, (B, D)).reshape(B * D) for a in (product.prior_mean, product.prior_tau)]
    spread = np.sqrt(np.minimum(1.0, 1 / np.where(product.inverse_dof > 0, product.inverse_dof, 1.0)))[
        :, :, 0
    ]
    scales = np.where(flat[2] > 0, spread / np.sqrt(flat[1]), sigma.reshape(-1))
    centres = np.where(flat[2] > 0, flat[0], mode.reshape(-1))
    wide = np.where(prior[1] > 0, 1 / np.sqrt(np.where(prior[1] > 0, prior[1], 1.0)), sigma.reshape(-1))
    centres = np.concatenate(
        [centres, mode.reshape(1, -1), np.where(prior[1] > 0, prior[0], mode.reshape(-1))[None]]
    )
    scales = np.concatenate([scales, sigma.reshape(1, -1), wide[None]])
    offsets = np.sinh(_PANEL * np.arange(-_REACH, _REACH + 1))
    mean, var = np.empty(B * D), np.empty(B * D)
    chunk = max(1, _AT_ONCE // max(1, len(centres) * len(offsets) * len(_NODES)))
    for start in range(0, B * D, chunk):
        part = slice(start, start + chunk)
        # Distances from the mode, so that a narrow product far from 0 keeps its digits.
        middle = mode.reshape(-1)[part, None]
        edges = (centres[:, part] - middle[:, 0])[..., None] + scales[:, part, None] * offsets
        edges = np.sort(edges.transpose(1, 0, 2).reshape(middle.shape[0], -1), axis=-1)
        half = np.diff(edges, axis=-1)[..., None] / 2
        away = ((edges[:, :-1, None] + half) + half * _NODES).reshape(middle.shape[0], -1)
        size = (half * _SHARES).reshape(middle.shape[0], -1)
        here = replace(
            product,
            mu=flat[0][:, part, None] - middle,
            tau=flat[1][:, part, None],
            weights=flat[2][:, part, None],
            prior_mean=prior[0][part, None] - middle,
            prior_tau=prior[1][part, None],
        )
        log = here.log_density(away)
        density = np.exp(log - log.max(axis=-1, keepdims=True)) * size
        total = density.sum(axis=-1)
        shift = (density * away).sum(axis=-1) / total
        mean[part] = middle[:, 0] + shift
        var[part] = (density * (away - shift[:, None]) ** 2).sum(axis=-1) / total
    return mean.reshape(B, D), var.reshape(B, D)
