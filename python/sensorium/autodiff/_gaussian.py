"""Densities, entropies and distances of diagonal Gaussians."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from autograd.core import defvjp_argnums

from .. import ops
from ..ops._gaussian import gaussian_arguments, quarter, quiet, sigma_difference, standardised
from ._primitive import Array, Vjp, chosen, primitive

__all__ = [
    "gaussian_entropy",
    "gaussian_jeffreys",
    "gaussian_kl",
    "gaussian_log_prob",
    "gaussian_wasserstein",
]

Partials = Callable[..., tuple[Array, ...]]


def _to_argument(grad: Array, argument: Any) -> Array:
    """Return a gradient summed over what its argument was broadcast along, in the argument's dtype."""
    shape = np.shape(argument)
    grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))
    long = tuple(i for i, size in enumerate(shape) if size == 1 and grad.shape[i] != 1)
    grad = grad.sum(axis=long, keepdims=True)
    dtype = getattr(argument, "dtype", None)
    return np.asarray(grad, dtype=np.float64 if dtype is None else dtype.newbyteorder("="))


def _define(function: Callable[..., Any], names: tuple[str, ...], partials: Partials) -> None:
    """Give a primitive of ``len(names)`` arrays its joint backward, from the derivatives of one term."""

    def vjp_of(argnums: tuple[int, ...], ans: Any, args: Any, kwargs: Any) -> Vjp:
        arrays, options = args[: len(names)], args[len(names) :]
        wide, _, shape = gaussian_arguments(**dict(zip(names, arrays, strict=True)))

        def vjp(g: Any) -> tuple[Any, ...]:
            with quiet():
                outer = np.asarray(g, dtype=np.float64)[..., None]
                found = partials(*wide, *options, ans)
                grads = tuple(
                    _to_argument(np.broadcast_to(outer * part, shape), array)
                    for part, array in zip(found, arrays, strict=True)
                )
            return chosen(argnums, grads)

        return vjp

    defvjp_argnums(function, vjp_of)


def _over_variance(difference: Array, logvar: Array) -> tuple[Array, Array]:
    """Return ``difference / sigma`` and ``difference / sigma^2``."""
    root = quarter(logvar)
    one = standardised(difference, root)
    return one, standardised(one, root)


_PAIR = ("mu", "logvar", "other_mu", "other_logvar")


@primitive
def _kl(mu: Any, logvar: Any, other_mu: Any, other_logvar: Any) -> Any:
    return ops.gaussian_kl(mu, logvar, other_mu, other_logvar)


def _kl_partials(
    mu: Array, logvar: Array, other_mu: Array, other_logvar: Array, ans: Any
) -> tuple[Array, ...]:
    apart, by_mu = _over_variance(mu - other_mu, other_logvar)
    by_logvar = np.expm1(logvar - other_logvar) / 2
    return by_mu, by_logvar, -by_mu, -by_logvar - apart * apart / 2


_define(_kl, _PAIR, _kl_partials)


def gaussian_kl(mu: Any, logvar: Any, other_mu: Any = 0.0, other_logvar: Any = 0.0) -> Any:
    """Differentiable :func:`sensorium.ops.gaussian_kl`, in all its arguments."""
    return _kl(mu, logvar, other_mu, other_logvar)


@primitive
def _log_prob(z: Any, mu: Any, logvar: Any) -> Any:
    return ops.gaussian_log_prob(z, mu, logvar)


def _log_prob_partials(z: Array, mu: Array, logvar: Array, ans: Any) -> tuple[Array, ...]:
    apart, by_mu = _over_variance(z - mu, logvar)
    return -by_mu, by_mu, (apart * apart - 1) / 2


_define(_log_prob, ("z", "mu", "logvar"), _log_prob_partials)


def gaussian_log_prob(z: Any, mu: Any = 0.0, logvar: Any = 0.0) -> Any:
    """Differentiable :func:`sensorium.ops.gaussian_log_prob`, in all its arguments."""
    return _log_prob(z, mu, logvar)


@primitive
def _entropy(logvar: Any) -> Any:
    return ops.gaussian_entropy(logvar)


_define(_entropy, ("logvar",), lambda logvar, ans: (np.full_like(logvar, 0.5),))


def gaussian_entropy(logvar: Any) -> Any:
    """Differentiable :func:`sensorium.ops.gaussian_entropy`."""
    return _entropy(logvar)


@primitive
def _jeffreys(mu: Any, logvar: Any, other_mu: Any, other_logvar: Any) -> Any:
    return ops.gaussian_jeffreys(mu, logvar, other_mu, other_logvar)


def _jeffreys_partials(
    mu: Array, logvar: Array, other_mu: Array, other_logvar: Array, ans: Any
) -> tuple[Array, ...]:
    one, by_one = _over_variance(mu - other_mu, logvar)
    two, by_two = _over_variance(mu - other_mu, other_logvar)
    spread = np.sinh(logvar - other_logvar)
    return by_one + by_two, spread - one * one / 2, -by_one - by_two, -spread - two * two / 2


_define(_jeffreys, _PAIR, _jeffreys_partials)


def gaussian_jeffreys(mu: Any, logvar: Any, other_mu: Any = 0.0, other_logvar: Any = 0.0) -> Any:
    """Differentiable :func:`sensorium.ops.gaussian_jeffreys`, in all its arguments."""
    return _jeffreys(mu, logvar, other_mu, other_logvar)


@primitive
def _wasserstein(mu: Any, logvar: Any, other_mu: Any, other_logvar: Any, squared: bool) -> Any:
    return ops.gaussian_wasserstein(mu, logvar, other_mu, other_logvar, squared=squared)


def _wasserstein_partials(
    mu: Array, logvar: Array, other_mu: Array, other_logvar: Array, squared: bool, ans: Any
) -> tuple[Array, ...]:
    apart, spread = mu - other_mu, sigma_difference(logvar, other_logvar)
    if squared:
        apart, spread = 2 * apart, 2 * spread
    else:
        distance = np.asarray(ans, dtype=np.float64)[..., None]
        unit = np.where(distance == 0, 1.0, distance)  # At 0 a distance has no slope: 0 is one of many.
        apart, spread = apart / unit, spread / unit
    by_one = spread * np.exp(logvar / 2) / 2
    by_two = spread * np.exp(other_logvar / 2) / -2
    return apart, by_one, -apart, by_two


_define(_wasserstein, _PAIR, _wasserstein_partials)


def gaussian_wasserstein(
    mu: Any, logvar: Any, other_mu: Any = 0.0, other_logvar: Any = 0.0, *, squared: bool = False
) -> Any:
    """Differentiable :func:`sensorium.ops.gaussian_wasserstein`, in all its arrays.

    Where two are equal the distance has no gradient, and 0 is returned; its square has one everywhere.
    """
    return _wasserstein(mu, logvar, other_mu, other_logvar, squared)
