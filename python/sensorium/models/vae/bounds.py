"""Importance-weighted bounds on log-likelihoods (Burda et al. 2016, arXiv:1509.00519)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._validate import check_integer
from ...errors import ArgumentError
from ...ops import gaussian_log_prob
from .config import Config
from .likelihood import log_prob
from .network import Params, decode, dtype_of, encode_rows, log_scale, private_expert
from .posterior import components
from .rows import Batch, Mask, chosen, read_rows

__all__ = ["bound"]

AT_ONCE = 1 << 12  # Latents that are decoded at a time.


def bound(
    params: Params,
    config: Config,
    batch: Batch,
    mask: Mask = None,
    *,
    given: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    num_samples: int = 64,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return a lower bound of the log-likelihood of each row, in nats.

    Without ``given`` it bounds ``log p(x_T)``: ``log 1/K sum_k p(x_T, z_k) / q(z_k | x_T)``. With ``given``
    it bounds ``log p(x_T | x_G)``, where ``z ~ q(z | x_G)`` as when :func:`generate` writes; half of the
    samples come from ``q(z | x_G, x_T)``, weighted for it. The bound holds in the mean over the draws, rises
    with ``num_samples`` and reaches the log-likelihood in the limit. Neither ``beta`` nor the weights of
    modalities enter.

    Parameters
    ----------
    params, config
        The model.
    batch : mapping of str to array (B, ...)
        Items by modality. Modalities that are not in it are missing from every row.
    mask : mapping of str to array (B,) of bool, or array (M, B) of bool, optional
        Which items are there.
    given : sequence of str, optional
        Modalities ``G`` to condition on.
    targets : sequence of str, optional
        Modalities ``T`` whose likelihood is asked for; all, or all but ``given``.
    num_samples : int
        Samples ``K``. One makes it an unbiased draw of the evidence lower bound.
    rng : numpy.random.Generator
        Source of the draws.

    Returns
    -------
    array (B,) of float64
        0 where a row has none of the targets.

    Raises
    ------
    ArgumentError, ShapeError, DTypeError
        Where the batch does not fit the model, or a target is given.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.models.vae import ModalityConfig, bound, init, mvae
    >>> config = mvae({"a": ModalityConfig(shape=3), "b": ModalityConfig(shape=2)}, 2)
    >>> params = init(config, np.random.default_rng(0))
    >>> batch = {"a": np.ones((4, 3)), "b": np.ones((4, 2))}
    >>> bound(params, config, batch, given=["a"], rng=np.random.default_rng(1)).shape
    (4,)
    """
    K = check_integer("num_samples", num_samples, 1)
    rows = read_rows(config, batch, mask, dtype_of(params))
    is_given = chosen(config, "given", given) if given is not None else np.zeros(len(config.names), bool)
    is_target = chosen(config, "targets", targets) if targets is not None else ~is_given
    if (is_given & is_target).any():
        both = config.names[int((is_given & is_target).argmax())]
        raise ArgumentError(f"targets holds {both!r}, which is given")
    experts = encode_rows(params, config, rows)
    proposal = components(config, experts, rows.present & (is_given | is_target)[:, None])
    base, from_there = None, rows.present & is_given[:, None]
    if given is not None:
        base = components(config, experts, from_there)
        proposal = base.mixed(proposal)
    z = proposal.draw(K, rng)
    total = np.full(len(rows), -np.inf)
    step = max(1, AT_ONCE // max(len(rows), 1))
    for start in range(0, K, step):
        some = z[start : start + step]
        each = (gaussian_log_prob(some) if base is None else base.log_prob(some)) - proposal.log_prob(some)
        for m in np.flatnonzero(is_target):
            name = config.names[m]
            private: Any = None
            ratio: Any = 0.0
            if config.private_dim:
                mu, logvar = experts[name].private_mu, experts[name].private_logvar
                noise = rng.standard_normal((*some.shape[:2], config.private_dim)).astype(some.dtype)
                private = mu + np.exp(0.5 * logvar) * noise
                drawn_from = private_expert(params, name, experts[name], from_there, int(m))
                ratio = gaussian_log_prob(private, *drawn_from) - gaussian_log_prob(private, mu, logvar)
            out = decode(params, config, name, some, private)
            scale = log_scale(params, config, name)
            score = log_prob(config.modalities[name], scale, out, rows.values[name]) + ratio
            each = each + np.where(rows.present[m], score, 0)
        total = np.logaddexp(total, np.logaddexp.reduce(each.astype(np.float64), axis=0))
    nothing = ~(rows.present & is_target[:, None]).any(axis=0)
    return np.where(nothing, 0.0, total - np.log(K))
