"""Products of Gaussian experts in plain NumPy and float64, by precisions, with the kernels' signatures.

Arrays only, no dicts. Right while a float64 holds the precisions: for logarithms of variances from -700 to 700.
"""

import numpy as np


def _inputs(mu, logvar, mask, weights, prior):
    """Means, logarithms of variances and weights of all experts, the prior last where there is one; missing ones weigh 0."""
    mu, logvar = np.asarray(mu, dtype=np.float64), np.asarray(logvar, dtype=np.float64)
    M, B, D = mu.shape
    present = np.ones((M, B), dtype=bool) if mask is None else np.asarray(mask)
    present = np.broadcast_to(present[:, None] if present.ndim == 1 else present, (M, B))
    given = np.ones((M, B)) if weights is None else np.asarray(weights, dtype=np.float64)
    given = np.broadcast_to(given[:, None] if given.ndim == 1 else given, (M, B))
    w = np.where(present, given, 0.0)
    mu, logvar = (np.where(present[..., None], x, 0.0) for x in (mu, logvar))
    if prior is not False:
        mean, log = (
            (np.zeros(D), np.zeros(D)) if prior is True else (np.asarray(p, dtype=np.float64) for p in prior)
        )
        mu = np.concatenate([mu, np.broadcast_to(mean, (1, B, D))])
        logvar = np.concatenate([logvar, np.broadcast_to(log, (1, B, D))])
        w = np.concatenate([w, np.ones((1, B))])
    return mu, logvar, w, present


def product_of_experts(mu, logvar, *, mask=None, weights=None, prior=True, return_log_normaliser=False):
    mu, logvar, w, _ = _inputs(mu, logvar, mask, weights, prior)
    tau = w[..., None] * np.exp(-logvar)
    total = tau.sum(axis=0)
    mean, log = (tau * mu).sum(axis=0) / total, -np.log(total)
    if not return_log_normaliser:
        return mean, log
    # The densities at the mean, through that of the product there.
    own = -0.5 * (np.log(2 * np.pi) + logvar + (mean - mu) ** 2 * np.exp(-logvar))
    at_mean = (w[..., None] * own).sum(axis=0)
    return mean, log, (at_mean + 0.5 * (np.log(2 * np.pi) + log)).sum(axis=1)


def product_of_experts_backward(
    grad_mean, grad_logvar, mu, logvar, *, mask=None, weights=None, prior=True, grad_log_normaliser=None
):
    """Gradients of ``mu``, ``logvar``, ``weights`` and ``prior``, the last two as if they had been given ``(M, B)`` and a pair."""
    M = len(mu)
    mean, log = product_of_experts(mu, logvar, mask=mask, weights=weights, prior=prior)
    g = np.zeros_like(mean) if grad_mean is None else np.asarray(grad_mean, dtype=np.float64)
    l = np.zeros_like(mean) if grad_logvar is None else np.asarray(grad_logvar, dtype=np.float64)  # noqa: E741
    mu, logvar, w, present = _inputs(mu, logvar, mask, weights, prior)
    relative = np.exp(-logvar) / (w[..., None] * np.exp(-logvar)).sum(axis=0)
    of_tau = relative * (g * (mu - mean) - l)
    dmu, dlogvar = w[..., None] * relative * g, -w[..., None] * of_tau
    of_weights = of_tau[:M].sum(axis=2)
    if grad_log_normaliser is not None:
        # Expectations under the product: of the derivatives of each logarithm of a density, and of these themselves.
        n = np.asarray(grad_log_normaliser, dtype=np.float64)[:, None]
        square = ((mean - mu) ** 2 + np.exp(log)) * np.exp(-logvar)
        dmu += n * w[..., None] * np.exp(-logvar) * (mean - mu)
        dlogvar += n * w[..., None] * (square - 1) / 2
        of_weights = of_weights - 0.5 * (n * (np.log(2 * np.pi) + logvar + square)[:M]).sum(axis=2)
    dweights = np.where(present, of_weights, 0.0)
    dprior = None if prior is False else (dmu[-1].sum(axis=0), dlogvar[-1].sum(axis=0))
    return dmu[:M], dlogvar[:M], dweights, dprior


def _target(prior, D):
    return (
        (np.zeros(D), np.zeros(D))
        if prior is True or prior is False
        else (np.asarray(p, dtype=np.float64) for p in prior)
    )


def fused_posterior(mu, logvar, *, mask=None, weights=None, prior=True, noise):
    mean, log = product_of_experts(mu, logvar, mask=mask, weights=weights, prior=prior)
    m, v = _target(prior, mean.shape[1])
    z = mean + np.exp(log / 2) * np.asarray(noise, dtype=np.float64)
    kl = 0.5 * (np.exp(log - v) + (mean - m) ** 2 * np.exp(-v) - 1 - log + v).sum(axis=1)
    return z, kl, mean, log


def fused_posterior_backward(
    grad_z,
    grad_kl,
    mu,
    logvar,
    *,
    mask=None,
    weights=None,
    prior=True,
    noise,
    grad_mean=None,
    grad_logvar=None,
):
    how = {"mask": mask, "weights": weights, "prior": prior}
    mean, log = product_of_experts(mu, logvar, **how)
    m, v = _target(prior, mean.shape[1])
    dz = np.zeros_like(mean) if grad_z is None else np.asarray(grad_z, dtype=np.float64)
    dkl = np.zeros((len(mean), 1)) if grad_kl is None else np.asarray(grad_kl, dtype=np.float64)[:, None]
    g = dz + dkl * (mean - m) * np.exp(-v)
    l = dz * np.asarray(noise, dtype=np.float64) * np.exp(log / 2) / 2 + dkl * (np.exp(log - v) - 1) / 2  # noqa: E741
    g = g if grad_mean is None else g + grad_mean
    l = l if grad_logvar is None else l + grad_logvar  # noqa: E741
    dmu, dlogvar, dweights, dprior = product_of_experts_backward(g, l, mu, logvar, **how)
    if dprior is not None and prior is not True:
        own = dkl * (1 - np.exp(log - v) - (mean - m) ** 2 * np.exp(-v)) / 2
        dprior = dprior[0] - (dkl * (mean - m) * np.exp(-v)).sum(axis=0), dprior[1] + own.sum(axis=0)
    return dmu, dlogvar, dweights, dprior


def _philox(counter, key):
    """Ten rounds of Philox 4x32 over arrays of words, held in uint64."""
    low = np.uint64(0xFFFFFFFF)
    c, k = [np.asarray(w, dtype=np.uint64) for w in counter], [np.uint64(w) for w in key]
    for _ in range(10):
        first, second = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            second >> np.uint64(32) ^ c[1] ^ k[0],
            second & low,
            first >> np.uint64(32) ^ c[3] ^ k[1],
            first & low,
        ]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return c


def normal_noise(n, seed, *, stream=0, position=0):
    """Numbers `position` to `position + n`: four groups of 16 from 16 counters, pairs of words by Box and Muller."""
    i = np.arange(position, position + n, dtype=np.uint64)
    group, counter = (
        i % np.uint64(64) // np.uint64(16),
        i // np.uint64(64) * np.uint64(16) + i % np.uint64(16),
    )
    parts = [
        counter >> np.uint64(32),
        counter & np.uint64(0xFFFFFFFF),
        np.uint64(stream & 0xFFFFFFFF),
        np.uint64(stream >> 32),
    ]
    words = np.stack(np.broadcast_arrays(*_philox(parts, (seed & 0xFFFFFFFF, seed >> 32))))
    pair = (group // np.uint64(2) * np.uint64(2)).astype(int)
    radius = np.sqrt(-2 * np.log(((words[pair, np.arange(n)] >> np.uint64(1)) + 0.5) * 2.0**-31))
    angle = 2 * np.pi * 2.0**-32 * words[pair + 1, np.arange(n)].astype(np.uint32).view(np.int32)
    return radius * np.where(group % np.uint64(2) == 0, np.cos(angle), np.sin(angle))
