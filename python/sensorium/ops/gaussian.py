"""Densities, entropies and distances of Gaussians, in logarithms of variances."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DTypeError, ShapeError
from ._gaussian import (
    exp_less,
    gaussian_arguments,
    quarter,
    quiet,
    sigma_difference,
    standardised,
    total,
)
from ._matrices import root, symmetric

__all__ = [
    "gaussian_entropy",
    "gaussian_jeffreys",
    "gaussian_kl",
    "gaussian_log_prob",
    "gaussian_wasserstein",
    "gaussian_wasserstein_full",
]

Array = NDArray[Any]

_LOG_2PI = float(np.log(2 * np.pi))


def gaussian_kl(
    mu: ArrayLike, logvar: ArrayLike, other_mu: ArrayLike = 0.0, other_logvar: ArrayLike = 0.0
) -> Array:
    """Return the divergence of Kullback and Leibler of one diagonal Gaussian from another, in nats.

    ``KL(N(mu, exp(logvar)) || N(other_mu, exp(other_logvar)))``, summed over the last axis. By default the
    other is ``N(0, I)``. It is not symmetric, and never below 0. Any ``logvar`` that floats hold will do: no
    exponential overflows where the result is finite, and nothing cancels where the two are close.

    Parameters
    ----------
    mu, logvar, other_mu, other_logvar : array (..., D) or number
        Means, and logarithms of variances: ``float32`` or ``float64``, all of one dtype. They broadcast.

    Returns
    -------
    kl : array (...)
        Of the same dtype; arithmetic is ``float64``. Infinite where no float holds it, NaN where an argument
        is NaN.

    Raises
    ------
    ShapeError, DTypeError
        Where an argument does not fit; the message names it.

    References
    ----------
    Kullback and Leibler (1951), On Information and Sufficiency.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import gaussian_kl
    >>> gaussian_kl(np.array([[0.0, 0.0], [3.0, 4.0]]), np.zeros(2))
    array([ 0. , 12.5])
    """
    (mu, logvar, other_mu, other_logvar), dtype, shape = gaussian_arguments(
        mu=mu, logvar=logvar, other_mu=other_mu, other_logvar=other_logvar
    )
    with quiet():
        apart = standardised(mu - other_mu, quarter(other_logvar))
        return total((exp_less(logvar - other_logvar) + apart * apart) / 2, shape, dtype)


def gaussian_log_prob(z: ArrayLike, mu: ArrayLike = 0.0, logvar: ArrayLike = 0.0) -> Array:
    """Return the logarithm of a diagonal Gaussian's density, summed over the last axis.

    Parameters
    ----------
    z : array (..., D) or number
        Where: ``float32`` or ``float64``.
    mu, logvar : array (..., D) or number
        Mean and logarithm of the variance, of the dtype of ``z``. They broadcast.

    Returns
    -------
    log_prob : array (...)
        In nats, of the same dtype; arithmetic is ``float64``.

    Raises
    ------
    ShapeError, DTypeError
        Where an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import gaussian_log_prob
    >>> round(float(gaussian_log_prob(np.zeros(2))), 4)  # two dimensions, at the mean: -log(2 pi)
    -1.8379
    """
    (z, mu, logvar), dtype, shape = gaussian_arguments(z=z, mu=mu, logvar=logvar)
    with quiet():
        apart = standardised(z - mu, quarter(logvar))
        return total((_LOG_2PI + logvar + apart * apart) / -2, shape, dtype)


def gaussian_entropy(logvar: ArrayLike) -> Array:
    """Return the differential entropy of a diagonal Gaussian in nats, summed over the last axis.

    Parameters
    ----------
    logvar : array (..., D)
        Logarithm of the variance, ``float32`` or ``float64``.

    Returns
    -------
    entropy : array (...)
        Of the same dtype. Below 0 for a narrow Gaussian: it is an entropy of densities.

    Raises
    ------
    ShapeError, DTypeError
        Where the argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import gaussian_entropy
    >>> np.round(gaussian_entropy(np.zeros((2, 1))), 4)  # log(2 pi e) / 2
    array([1.4189, 1.4189])
    """
    (logvar,), dtype, shape = gaussian_arguments(logvar=logvar)
    with quiet():
        return total((1 + _LOG_2PI + logvar) / 2, shape, dtype)


def gaussian_jeffreys(
    mu: ArrayLike, logvar: ArrayLike, other_mu: ArrayLike = 0.0, other_logvar: ArrayLike = 0.0
) -> Array:
    """Return the divergence of Jeffreys between two diagonal Gaussians: the sum of both KL divergences.

    ``KL(p || q) + KL(q || p)``, not half of it, summed over the last axis. Symmetric.

    Parameters
    ----------
    mu, logvar, other_mu, other_logvar : array (..., D) or number
        As for :func:`gaussian_kl`.

    Returns
    -------
    jeffreys : array (...)
        In nats, of the same dtype; arithmetic is ``float64``.

    Raises
    ------
    ShapeError, DTypeError
        Where an argument does not fit; the message names it.

    References
    ----------
    Jeffreys (1946), An Invariant Form for the Prior Probability in Estimation Problems.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import gaussian_jeffreys
    >>> gaussian_jeffreys(np.array([[3.0, 4.0]]), np.zeros((1, 2)))
    array([25.])
    """
    (mu, logvar, other_mu, other_logvar), dtype, shape = gaussian_arguments(
        mu=mu, logvar=logvar, other_mu=other_mu, other_logvar=other_logvar
    )
    with quiet():
        one = standardised(mu - other_mu, quarter(logvar))
        two = standardised(mu - other_mu, quarter(other_logvar))
        spread = np.sinh((logvar - other_logvar) / 2)
        return total(2 * spread * spread + (one * one + two * two) / 2, shape, dtype)


def gaussian_wasserstein(
    mu: ArrayLike,
    logvar: ArrayLike,
    other_mu: ArrayLike = 0.0,
    other_logvar: ArrayLike = 0.0,
    *,
    squared: bool = False,
) -> Array:
    """Return the 2-Wasserstein distance between two diagonal Gaussians; its square only where asked for.

    The square is the sum over the last axis of ``(mu - other_mu)^2 + (sigma - other_sigma)^2``. The distance
    is a metric, in the units of ``mu``. Its square is smooth, which a loss should be.

    Parameters
    ----------
    mu, logvar, other_mu, other_logvar : array (..., D) or number
        As for :func:`gaussian_kl`.
    squared : bool
        Return the square.

    Returns
    -------
    distance : array (...)
        Of the same dtype; arithmetic is ``float64``. No square overflows where the distance is finite.

    Raises
    ------
    ShapeError, DTypeError
        Where an argument does not fit; the message names it.

    References
    ----------
    Dowson and Landau (1982), The Fréchet Distance between Multivariate Normal Distributions.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import gaussian_wasserstein
    >>> mu, logvar = np.array([[3.0, 4.0]]), np.zeros((1, 2))
    >>> gaussian_wasserstein(mu, logvar), gaussian_wasserstein(mu, logvar, squared=True)
    (array([5.]), array([25.]))
    """
    (mu, logvar, other_mu, other_logvar), dtype, shape = gaussian_arguments(
        mu=mu, logvar=logvar, other_mu=other_mu, other_logvar=other_logvar
    )
    with quiet():
        apart, spread = mu - other_mu, sigma_difference(logvar, other_logvar)
        if squared:
            return total(apart * apart + spread * spread, shape, dtype)
        each = np.hypot(apart, spread)
        most = np.max(np.broadcast_to(each, shape), axis=-1, initial=0.0, keepdims=True)
        unit = np.where((most > 0) & np.isfinite(most), most, 1.0)
        scaled = total((each / unit) ** 2, shape, np.dtype(np.float64))
        return np.asarray(np.sqrt(scaled) * unit[..., 0]).astype(dtype, copy=False)


def gaussian_wasserstein_full(
    mu: ArrayLike, cov: ArrayLike, other_mu: ArrayLike, other_cov: ArrayLike, *, squared: bool = False
) -> Array:
    """Return the 2-Wasserstein distance between two Gaussians with full covariances.

    The square is ``|mu - other_mu|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)``, as Fréchet distances between sets
    of features use. The trace is taken as ``|F - G U|^2`` with ``A = F F^T``, ``B = G G^T`` and the rotation
    ``U`` that makes it least: a sum of squares, in which nothing cancels, singular covariances included.

    Parameters
    ----------
    mu, other_mu : array (..., D)
        Means, ``float32`` or ``float64``, all of one dtype. Leading axes broadcast.
    cov, other_cov : array (..., D, D)
        Covariances: symmetric, and positive semidefinite.
    squared : bool
        Return the square.

    Returns
    -------
    distance : array (...)
        Of the same dtype; arithmetic is ``float64``.

    Raises
    ------
    ShapeError, DTypeError
        Where an argument does not fit; the message names it.
    ArgumentError
        Where a covariance is not finite, not symmetric, or has a negative eigenvalue.

    References
    ----------
    Dowson and Landau (1982); Bhatia, Jain and Lim (2019), On the Bures-Wasserstein Distance between Positive
    Definite Matrices, arXiv:1712.01504.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import gaussian_wasserstein_full
    >>> mu, cov = np.zeros((1, 2)), np.array([[2.0, 1.0], [1.0, 2.0]])
    >>> np.round(gaussian_wasserstein_full(mu, cov, mu + 3.0, cov, squared=True), 6)
    array([18.])
    """
    means, dtype, shape = gaussian_arguments(mu=mu, other_mu=other_mu)
    D = shape[-1]
    roots = []
    for name, matrix in (("cov", cov), ("other_cov", other_cov)):
        (array,), given, _ = gaussian_arguments(**{name: matrix})
        if given != dtype:
            raise DTypeError(f"{name} has dtype {given} but mu has {dtype}")
        if array.shape[-2:] != (D, D):
            raise ShapeError(f"{name} has shape {array.shape}, expected (..., {D}, {D})")
        try:
            shape = (*np.broadcast_shapes(shape[:-1], array.shape[:-2]), D)
        except ValueError:
            raise ShapeError(
                f"{name} has shape {array.shape}, whose leading axes do not broadcast to {shape[:-1]}"
            ) from None
        roots.append(root(name, symmetric(name, array, dtype), dtype))
    one, two = roots
    with quiet():
        left, _, right = np.linalg.svd(np.swapaxes(two, -1, -2) @ one)
        away = one - two @ (left @ right)
        square = ((means[0] - means[1]) ** 2).sum(axis=-1) + (away * away).sum(axis=(-2, -1))
        return np.asarray(square if squared else np.sqrt(square)).astype(dtype, copy=False)
