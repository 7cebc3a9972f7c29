"""What training minimises: minus the multimodal evidence lower bound, over the posteriors of several subsets.

For a subset ``S`` of the modalities ``T`` that a row has, with ``z ~ q(z | x_S)``,
``L = E[sum_{m in T} w_m log p(x_m | z)] - beta KL(q(z | x_S) || p(z))``. A missing modality's term leaves
the sum, and its expert leaves ``q``. Private latents come from a modality's own encoder where it is in ``S``,
else from a learnt Gaussian; both pay their divergence from the prior. With ``K`` samples the bound is
``log 1/K sum_k p(x_T, z_k) / q(z_k)``; a mixture has the mean of one such for each component.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from autograd import numpy as anp
from numpy.typing import NDArray

from ... import autodiff as ad
from ...errors import ArgumentError
from .config import Config
from .likelihood import log_prob
from .network import Expert, Params, decode, dtype_of, encode_rows, log_scale
from .posterior import stacked, subset_products, subsets
from .rows import Batch, Mask, Rows, read_rows

__all__ = ["loss"]


@dataclass(frozen=True, eq=False)
class _Passes:
    """Posteriors of a step: from what, ``given (P, M, B)`` of bool, and their ``weight (P, B)``."""

    given: NDArray[np.bool_]
    weight: NDArray[Any]


def loss(
    params: Params,
    config: Config,
    batch: Batch,
    mask: Mask = None,
    *,
    rng: np.random.Generator,
    beta: float | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Return minus the bound in nats a row, and its parts.

    Parameters
    ----------
    params, config
        The model.
    batch : mapping of str to array (B, ...)
        Items by modality. Modalities that are not in it are missing from every row.
    mask : mapping of str to array (B,) of bool, or array (M, B) of bool, optional
        Which items are there. Rows without any count for nothing.
    rng : numpy.random.Generator
        Source of the draws.
    beta : float, optional
        In place of the configuration's.

    Returns
    -------
    loss : scalar
        Differentiable with respect to ``params``. The mean over the posteriors of a step (:class:`Config`).
    parts : dict of str to scalar
        ``-log p(x_m | z)`` of each modality in nats an item, by its name, and ``kl`` in nats a row.

    Raises
    ------
    ArgumentError, ShapeError, DTypeError
        Where the batch does not fit the model, or there is no item in it.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.models.vae import ModalityConfig, init, loss, mopoe
    >>> config = mopoe({"a": ModalityConfig(shape=3), "b": ModalityConfig(shape=2)}, 2)
    >>> params = init(config, np.random.default_rng(0))
    >>> value, parts = loss(params, config, {"a": np.ones((4, 3))}, rng=np.random.default_rng(1))
    >>> sorted(parts)
    ['a', 'kl']
    """
    rows = read_rows(config, batch, mask, dtype_of(params))
    rows = rows.take(np.logical_or.reduce(rows.present))
    if not len(rows):
        raise ArgumentError("mask leaves no item in batch")
    beta = config.beta if beta is None else beta
    experts = encode_rows(params, config, rows)
    if config.posterior == "mixture" or config.samples > 1:
        return _weighted(params, config, rows, experts, beta, rng)
    return _analytic(params, config, rows, experts, beta, rng)


def _passes(config: Config, present: NDArray[np.bool_], rng: np.random.Generator) -> _Passes:
    """Return the subsets of a product's step: the whole row, single modalities, random subsets."""
    M, B = present.shape
    given = [present]
    if M > 1 and config.singles:
        given += [present & (np.arange(M)[:, None] == m) for m in range(M)]
    for _ in range(config.subsets if M > 1 else 0):
        drawn = present & (rng.random((M, B)) < 0.5)
        given.append(np.where(drawn.any(axis=0), drawn, present))
    return _shared(np.array(given), config.part_weight)


def _components(config: Config, present: NDArray[np.bool_]) -> _Passes:
    """Return the subsets that are components of a mixture."""
    M = len(present)
    which = [(m,) for m in range(M)] if config.posterior == "mixture" else subsets(M)
    inside = np.array([[m in subset for m in range(M)] for subset in which])[..., None]
    whole = (present | ~inside).all(axis=1, keepdims=True)  # (C, 1, B)
    return _shared(inside & whole)


def _shared(given: NDArray[np.bool_], part_weight: float = 1.0) -> _Passes:
    """Weigh rows equally, and the posteriors in each, but for ``part_weight``, that of all after the first.

    A posterior from nothing counts for nothing.
    """
    there = given.any(axis=1)
    weight = there * np.where(np.arange(len(given)) == 0, 1.0, part_weight)[:, None]
    weight /= np.where(there.any(axis=0), weight.sum(axis=0), 1) * max(int(there.any(axis=0).sum()), 1)
    return _Passes(given, weight)


def _products(
    config: Config, present: NDArray[np.bool_], mu: Any, logvar: Any, rng: np.random.Generator
) -> tuple[_Passes, Any, Any]:
    """Return samples ``(P, B, D)`` of the products of a step, and their divergences ``(P, B)``."""
    passes = _passes(config, present, rng)
    P, M, B = passes.given.shape
    mu, logvar = (anp.concatenate([a] * P, axis=1) for a in (mu, logvar))  # (M, P B, D)
    mask = passes.given.transpose(1, 0, 2).reshape(M, P * B)
    z, kl, *_ = ad.fused_posterior(mu, logvar, mask=mask, rng=rng, moments=False)
    return passes, anp.reshape(z, (P, B, config.latent_dim)), anp.reshape(kl, (P, B))


def _one_of_the_products(
    config: Config, present: NDArray[np.bool_], mu: Any, logvar: Any, rng: np.random.Generator
) -> tuple[_Passes, Any, Any]:
    """Return a sample of one subset's product, and the mean divergence of all."""
    z, kl, component = ad.mixture_of_products(mu, logvar, mask=present, rng=rng)
    M = len(present)
    inside = np.array([[m in subset for m in range(M)] for subset in subsets(M)])
    return _shared(inside[component].T[None]), z[None], kl[None]


def _analytic(
    params: Params, config: Config, rows: Rows, experts: dict[str, Expert], beta: float, rng: Any
) -> tuple[Any, dict[str, Any]]:
    """One sample of each posterior; divergences in closed form."""
    dtype = dtype_of(params)
    passes, z, kl = (_products if config.posterior == "product" else _one_of_the_products)(
        config, rows.present, *stacked(experts), rng
    )
    P, _, B = passes.given.shape
    targets = _targets(config, rows, passes)
    total = np.zeros((P, B), dtype)
    parts: dict[str, Any] = {}
    for m, name in enumerate(config.names):
        own, guess = passes.given[:, m], None
        private = None
        if config.private_dim:
            private, guess = _private(params, name, experts[name], own, rng, dtype)
            kl = kl + targets[:, m] * guess
        score = _score(params, config, rows, name, z, private)
        total, parts = _add(config, total, parts, name, score, targets[:, m], passes.weight)
    weight = passes.weight.astype(dtype)
    parts["kl"] = anp.sum(weight * kl)
    return -anp.sum(weight * (total - dtype.type(beta) * kl)), parts


def _weighted(
    params: Params, config: Config, rows: Rows, experts: dict[str, Expert], beta: float, rng: Any
) -> tuple[Any, dict[str, Any]]:
    """``K`` samples of each posterior, weighted by their importance."""
    dtype = dtype_of(params)
    K, B, D = config.samples, len(rows), config.latent_dim
    mu, logvar = stacked(experts)
    if config.posterior == "product":
        passes = _passes(config, rows.present, rng)
        pairs = [ad.product_of_experts(mu, logvar, mask=given) for given in passes.given]
        mu, logvar = (anp.concatenate([pair[i][None] for pair in pairs]) for i in (0, 1))
    else:
        passes = _components(config, rows.present)
        if config.posterior == "mixture_of_products":
            mu, logvar = subset_products(mu, logvar)
    P = len(passes.given)
    z = mu + anp.exp(0.5 * logvar) * rng.standard_normal((K, P, B, D), dtype)
    if config.posterior == "product":
        log_q = ad.gaussian_log_prob(z, mu, logvar)
    else:
        log_q = ad.gaussian_mixture_log_prob(z, mu, logvar, mask=passes.given.any(axis=1))
    ratio = ad.gaussian_log_prob(z) - log_q  # (K, P, B)
    targets = _targets(config, rows, passes)
    total = np.zeros((K, P, B), dtype)
    parts: dict[str, Any] = {}
    for m, name in enumerate(config.names):
        private = None
        if config.private_dim:
            private, own = _private_ratio(
                params, config, name, experts[name], passes.given[:, m], K, rng, dtype
            )
            ratio = ratio + targets[:, m] * own
        score = _score(params, config, rows, name, z, private)
        total, parts = _add(config, total, parts, name, score, targets[:, m], passes.weight)
    weight = passes.weight.astype(dtype)
    parts["kl"] = -anp.sum(weight * ratio) / K
    each = total + dtype.type(beta) * ratio
    top = np.max(getattr(each, "_value", each), axis=0)
    bound = anp.log(anp.sum(anp.exp(each - top), axis=0) * dtype.type(1 / K)) + top
    return -anp.sum(weight * bound), parts


def _targets(config: Config, rows: Rows, passes: _Passes) -> NDArray[Any]:
    """Return what each posterior is to explain, ``(P, M, B)`` of 0 and 1."""
    there = (
        passes.given if config.reconstruct == "given" else np.broadcast_to(rows.present, passes.given.shape)
    )
    return there.astype(next(iter(rows.values.values())).dtype)


def _score(params: Params, config: Config, rows: Rows, name: str, z: Any, private: Any) -> Any:
    out = decode(params, config, name, z, private)
    return log_prob(config.modalities[name], log_scale(params, config, name), out, rows.values[name])


def _add(
    config: Config,
    total: Any,
    parts: dict[str, Any],
    name: str,
    score: Any,
    target: NDArray[Any],
    weight: NDArray[Any],
) -> tuple[Any, dict[str, Any]]:
    """Add a modality's term, and keep its mean over the items that were asked for."""
    share = (target * weight).astype(target.dtype)
    if share.any():
        parts = parts | {name: -anp.sum(score * share) / (share.sum() * (score.size // share.size))}
    return total + score * (target * target.dtype.type(config.modalities[name].weight)), parts


def _private(
    params: Params, name: str, expert: Expert, own: NDArray[np.bool_], rng: Any, dtype: Any
) -> tuple[Any, Any]:
    """Return a private latent ``(P, B, D)`` for each posterior, and its divergence ``(P, B)``."""
    guess = params[name]["guess"]
    is_own = own.astype(dtype)
    noise = rng.standard_normal((*own.shape, guess["mean"].shape[0]), dtype)
    w = is_own[..., None] * (expert.private_mu + anp.exp(0.5 * expert.private_logvar) * noise)
    w = w + (1 - is_own)[..., None] * (guess["mean"] + anp.exp(0.5 * guess["logvar"]) * noise)
    kl = is_own * ad.gaussian_kl(expert.private_mu, expert.private_logvar)
    return w, kl + (1 - is_own) * ad.gaussian_kl(guess["mean"], guess["logvar"])


def _private_ratio(
    params: Params,
    config: Config,
    name: str,
    expert: Expert,
    own: NDArray[np.bool_],
    samples: int,
    rng: Any,
    dtype: Any,
) -> tuple[Any, Any]:
    """Return private latents ``(K, P, B, D)`` and ``log p(w) - log q(w)``, ``(K, P, B)``."""
    guess = params[name]["guess"]
    is_own = own.astype(dtype)
    noise = rng.standard_normal((samples, *own.shape, config.private_dim), dtype)
    mine = expert.private_mu + anp.exp(0.5 * expert.private_logvar) * noise
    theirs = guess["mean"] + anp.exp(0.5 * guess["logvar"]) * noise
    w = is_own[..., None] * mine + (1 - is_own)[..., None] * theirs
    ratio = is_own * (
        ad.gaussian_log_prob(mine) - ad.gaussian_log_prob(mine, expert.private_mu, expert.private_logvar)
    )
    other = ad.gaussian_log_prob(theirs) - ad.gaussian_log_prob(theirs, guess["mean"], guess["logvar"])
    return w, ratio + (1 - is_own) * other
