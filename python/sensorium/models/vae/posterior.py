"""The posterior of the shared latent, from any subset of the modalities: a mixture of Gaussians.

A product of experts is one Gaussian; a mixture has one for each modality that is there; a mixture of products
one for each non-empty subset of those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from autograd import numpy as anp
from numpy.typing import NDArray

from ... import autodiff as ad
from ... import ops
from .config import Config
from .network import Expert, Params, dtype_of, encode_rows
from .rows import Batch, Mask, chosen, read_rows

__all__ = [
    "Posterior",
    "components",
    "posterior",
    "stacked",
    "subsets",
]


@dataclass(frozen=True, eq=False)
class Posterior:
    """``sum_c exp(log_weights_c) N(means_c, diag(exp(logvars_c)))`` for each row.

    Parameters
    ----------
    means, logvars : array (C, B, D)
        Components.
    log_weights : array (C, B)
        Logarithms of their weights, ``-inf`` where a row has no such component.
    """

    means: NDArray[Any]
    logvars: NDArray[Any]
    log_weights: NDArray[Any]

    @property
    def mean(self) -> NDArray[Any]:
        """Mean ``(B, D)``."""
        out: NDArray[Any] = (np.exp(self.log_weights)[..., None] * self.means).sum(axis=0)
        return out

    @property
    def logvar(self) -> NDArray[Any]:
        """Logarithm of the variance ``(B, D)``, that between components included."""
        apart = self.means - self.mean
        var = (np.exp(self.log_weights)[..., None] * (np.exp(self.logvars) + apart * apart)).sum(axis=0)
        out: NDArray[Any] = np.log(var)
        return out

    def log_prob(self, z: NDArray[Any]) -> NDArray[np.float64]:
        """Return the log-density ``(..., B)`` of latents ``z (..., B, D)``."""
        weights = np.exp(self.log_weights).astype(self.means.dtype)
        out = ops.gaussian_mixture_log_prob(z, self.means, self.logvars, mask=weights > 0, weights=weights)
        return out.astype(np.float64)

    def draw(self, num_samples: int, rng: np.random.Generator) -> NDArray[Any]:
        """Return ``num_samples`` draws, ``(num_samples, B, D)``.

        They are stratified: each component has its weight's share of them, rounded up or down.
        """
        C, B, D = self.means.shape
        at = (np.arange(num_samples)[:, None] + rng.random(B)) / max(num_samples, 1)
        edges = np.cumsum(np.exp(self.log_weights.astype(np.float64)), axis=0)
        which = np.minimum((at[:, None] >= edges).sum(axis=1), C - 1)  # (num_samples, B)
        which = np.where(
            np.isneginf(self.log_weights[which, np.arange(B)]), self.log_weights.argmax(0), which
        )
        noise = rng.standard_normal((num_samples, B, D)).astype(self.means.dtype)
        mu, logvar = self.means[which, np.arange(B)], self.logvars[which, np.arange(B)]
        out: NDArray[Any] = mu + np.exp(0.5 * logvar) * noise
        return out

    def mixed(self, other: Posterior) -> Posterior:
        """Return the mixture of this and another in equal parts."""
        half = np.log(0.5)
        return Posterior(
            np.concatenate([self.means, other.means]),
            np.concatenate([self.logvars, other.logvars]),
            np.concatenate([self.log_weights + half, other.log_weights + half]),
        )


def posterior(
    params: Params, config: Config, batch: Batch, mask: Mask = None, *, given: Sequence[str] | None = None
) -> Posterior:
    """Return the posterior of the shared latent of each row.

    Parameters
    ----------
    params, config
        The model.
    batch : mapping of str to array (B, ...)
        Items by modality. Modalities that are not in it are missing from every row.
    mask : mapping of str to array (B,) of bool, or array (M, B) of bool, optional
        Which items are there.
    given : sequence of str, optional
        Modalities to infer from; all that are there where not given. Of a row that has none of them the
        posterior is the prior.

    Returns
    -------
    Posterior
        ``mean`` and ``logvar`` are its moments, ``(B, D)``.

    Raises
    ------
    ArgumentError, ShapeError, DTypeError
        Where the batch does not fit the model.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.models.vae import ModalityConfig, init, mvae, posterior
    >>> config = mvae({"a": ModalityConfig(shape=3), "b": ModalityConfig(shape=2)}, 2)
    >>> params = init(config, np.random.default_rng(0))
    >>> one = posterior(params, config, {"a": np.ones((1, 3))})
    >>> two = posterior(params, config, {"a": np.ones((1, 3)), "b": np.ones((1, 2))})
    >>> bool((two.logvar < one.logvar).all())
    True
    """
    rows = read_rows(config, batch, mask, dtype_of(params))
    there = rows.present & chosen(config, "given", given)[:, None]
    return components(config, encode_rows(params, config, rows), there)


def components(config: Config, experts: dict[str, Expert], given: NDArray[np.bool_]) -> Posterior:
    """Return the posterior from the experts that are ``given (M, B)``; the prior where none is."""
    mu, logvar = stacked(experts)
    M, B = given.shape
    if config.posterior == "product":
        mean, log = ops.product_of_experts(mu, logvar, mask=given)
        return Posterior(mean[None], log[None], np.zeros((1, B)))
    if config.posterior == "mixture":
        means, logvars, there = mu, logvar, given
    else:
        means, logvars = subset_products(mu, logvar)
        there = np.array([given[list(subset)].all(axis=0) for subset in subsets(M)])
    empty = ~there.any(axis=0)
    first = np.arange(len(there))[:, None] == 0
    blank = (~there | empty)[..., None]  # What a missing modality's expert says is not looked at.
    return Posterior(
        np.where(blank, 0, means),
        np.where(blank, 0, logvars),
        log_shares(there | (first & empty)),
    )


def subsets(modalities: int) -> list[tuple[int, ...]]:
    """Return every non-empty subset of so many modalities, in the order of their bits.

    Examples
    --------
    >>> subsets(2)
    [(0,), (1,), (0, 1)]
    """
    return [tuple(m for m in range(modalities) if code >> m & 1) for code in range(1, 1 << modalities)]


def log_shares(there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the logarithm of equal weights over the components of each row, ``(C, B)``."""
    share = 1 / np.maximum(there.sum(axis=0), 1)
    return np.where(there, np.log(share), -np.inf)


def stacked(experts: dict[str, Expert]) -> tuple[Any, Any]:
    """Return means and log-variances of the shared latent, ``(M, B, D)``."""
    return (
        anp.concatenate([e.mu[None] for e in experts.values()]),
        anp.concatenate([e.logvar[None] for e in experts.values()]),
    )


def subset_products(mu: Any, logvar: Any) -> tuple[Any, Any]:
    """Return the product of each subset with the prior, ``(C, B, D)``, differentiable."""
    parts = [ad.product_of_experts(mu[list(s)], logvar[list(s)]) for s in subsets(len(mu))]
    return anp.concatenate([m[None] for m, _ in parts]), anp.concatenate([v[None] for _, v in parts])
