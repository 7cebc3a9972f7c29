"""``log p(x | z)`` of each family, from what a decoder returns; each one node of the tape.

A decoder returns logits of Bernoulli and categorical values, and means of Gaussian and Laplace ones.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from autograd.core import defvjp_argnums
from numpy.typing import NDArray

from ...autodiff._primitive import Array, Vjp, chosen, like, primitive
from .config import ModalityConfig

__all__ = ["draw", "log_prob", "mean"]


def log_prob(modality: ModalityConfig, log_scale: Any, out: Any, x: NDArray[Any]) -> Any:
    """Return ``log p(x | z)``, ``(..., B)``, of items ``x (B, size)`` and a decoder's ``out (..., B, size)``.

    ``log_scale (1,)`` is the logarithm of a Gaussian's or Laplace's scale.
    """
    if modality.likelihood == "bernoulli":
        n = modality.trials
        ones = _log_binomial(x.astype(np.float64), n).sum(axis=-1).astype(x.dtype) if n > 1 else 0
        return _bernoulli(out, x, n) + ones
    if modality.likelihood == "categorical":
        return _categorical(out, x, modality.dims[-1])
    return (_gaussian if modality.likelihood == "gaussian" else _laplace)(out, log_scale, x)


def mean(modality: ModalityConfig, out: NDArray[Any]) -> NDArray[Any]:
    """Return the mean of ``p(x | z)``, of the shape of ``out (..., size)``: probabilities of categories."""
    if modality.likelihood == "bernoulli":
        return _sigmoid(out)
    if modality.likelihood == "categorical":
        return _softmax(_by_symbol(out, modality.dims[-1])).reshape(out.shape)
    return out


def draw(
    modality: ModalityConfig, log_scale: Any, out: NDArray[Any], rng: np.random.Generator
) -> NDArray[Any]:
    """Return a draw from ``p(x | z)``, of the shape of ``out (..., size)``: one 1 for each category."""
    centre = mean(modality, out)
    if modality.likelihood == "bernoulli":
        return np.asarray(rng.binomial(modality.trials, centre) / modality.trials, out.dtype)
    if modality.likelihood == "categorical":
        logits = _by_symbol(out, modality.dims[-1])
        drawn = (logits + rng.gumbel(size=logits.shape)).argmax(axis=-1)
        ones: NDArray[Any] = np.eye(modality.dims[-1], dtype=out.dtype)[drawn]
        return ones.reshape(out.shape)
    noise = rng.normal if modality.likelihood == "gaussian" else rng.laplace
    values: NDArray[Any] = (centre + np.exp(log_scale) * noise(size=out.shape)).astype(out.dtype)
    return values


def _by_symbol(out: Array, categories: int) -> Array:
    return out.reshape(*out.shape[:-1], out.shape[-1] // categories, categories)


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    out: Array = np.where(x >= 0, 1, e) / (1 + e)
    return out


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    out: Array = e / e.sum(axis=-1, keepdims=True)
    return out


def _log_binomial(share: Array, trials: int) -> Array:
    """Return ``log C(n, n share)``."""
    from scipy.special import gammaln

    k = share * trials
    out: Array = gammaln(trials + 1) - gammaln(k + 1) - gammaln(trials - k + 1)
    return out


def _rows(a: Array, b: Array) -> Array:
    """Sum of products over the last axis."""
    out: Array = np.einsum("...i,...i->...", a, b)
    return out


@primitive
def _bernoulli(logits: Any, x: Any, trials: int) -> Any:
    softplus = np.maximum(logits, 0) + np.log1p(np.exp(-np.abs(logits)))
    return trials * (_rows(logits, x) - softplus.sum(axis=-1))


defvjp_argnums(
    _bernoulli,
    lambda argnums, ans, args, kwargs: (
        lambda g: (like(g, ans)[..., None] * (args[2] * (args[1] - _sigmoid(args[0]))),)
    ),
)


@primitive
def _categorical(logits: Any, x: Any, categories: int) -> Any:
    by_symbol = _by_symbol(logits, categories)
    top = by_symbol.max(axis=-1, keepdims=True)
    lse = np.log(np.exp(by_symbol - top).sum(axis=-1)) + top[..., 0]
    return _rows(logits, x) - _rows(_by_symbol(x, categories).sum(axis=-1), lse)


def _categorical_vjp(argnums: tuple[int, ...], ans: Array, args: Any, kwargs: Any) -> Vjp:
    logits, x, categories = args
    share = _by_symbol(x, categories).sum(axis=-1, keepdims=True)
    expected = (share * _softmax(_by_symbol(logits, categories))).reshape(logits.shape)
    return lambda g: (like(g, ans)[..., None] * (x - expected),)


defvjp_argnums(_categorical, _categorical_vjp)


@primitive
def _gaussian(centre: Any, log_scale: Any, x: Any) -> Any:
    error = centre - x
    size = x.shape[-1]
    precision = np.exp(-2 * log_scale[0])
    return -0.5 * precision * _rows(error, error) - size * (log_scale[0] + 0.5 * math.log(2 * math.pi))


def _gaussian_vjp(argnums: tuple[int, ...], ans: Array, args: Any, kwargs: Any) -> Vjp:
    centre, log_scale, x = args

    def vjp(g: Any) -> tuple[Any, ...]:
        g = like(g, ans)
        error = (centre - x) * np.exp(-log_scale[0])
        by_scale = (g * (_rows(error, error) - x.shape[-1])).sum(keepdims=True).reshape(1)
        error *= -np.exp(-log_scale[0]) * g[..., None]
        return chosen(argnums, (error, by_scale))

    return vjp


defvjp_argnums(_gaussian, _gaussian_vjp)


@primitive
def _laplace(centre: Any, log_scale: Any, x: Any) -> Any:
    distance = np.abs(centre - x).sum(axis=-1)
    return -np.exp(-log_scale[0]) * distance - x.shape[-1] * (log_scale[0] + math.log(2))


def _laplace_vjp(argnums: tuple[int, ...], ans: Array, args: Any, kwargs: Any) -> Vjp:
    centre, log_scale, x = args

    def vjp(g: Any) -> tuple[Any, ...]:
        g = like(g, ans)
        rate = np.exp(-log_scale[0])
        distance = np.abs(centre - x).sum(axis=-1)
        by_scale = (g * (rate * distance - x.shape[-1])).sum(keepdims=True).reshape(1)
        return chosen(argnums, (np.sign(centre - x) * (-rate * g[..., None]), by_scale))

    return vjp


defvjp_argnums(_laplace, _laplace_vjp)
