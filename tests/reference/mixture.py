"""Mixtures of products of Gaussian experts in float64, a subset at a time, each from its experts alone."""

import numpy as np


def all_subsets(M):
    """In the order of the numbers whose bits are the experts."""
    return [tuple(m for m in range(M) if s >> m & 1) for s in range(1, 2**M)]


def shares(logvar, weights, prior, subset):
    """Share of each expert of a subset in its product, the prior's last, and the logarithm of the precision."""
    logs = [np.log(weights[m])[:, None] - logvar[m] for m in subset]
    if prior is not None:
        logs.append(np.broadcast_to(-prior[1], logs[0].shape))
    most = np.max(logs, axis=0)
    parts = np.exp(np.array(logs) - most)
    total = parts.sum(axis=0)
    return parts / total, most + np.log(total)


def product(mu, logvar, weights, prior, subset):
    """Mean, logarithm of the precision and shares of the product over a subset."""
    parts, log = shares(logvar, weights, prior, subset)
    means = [mu[m] for m in subset] + ([] if prior is None else [np.broadcast_to(prior[0], log.shape)])
    return sum(p * m for p, m in zip(parts, means, strict=True)), log, parts


def _given(mu, logvar, mask, weights, prior):
    mu, logvar = np.asarray(mu, float), np.asarray(logvar, float)
    M, B, D = mu.shape
    mask = np.ones((M, B), bool) if mask is None else np.broadcast_to(mask, (M, B))
    weights = (
        np.ones((M, B)) if weights is None else np.array(weights, float).reshape(M, -1) * np.ones((M, B))
    )
    mask = mask & (weights > 0)
    if isinstance(prior, tuple):
        prior = tuple(np.asarray(p, float) for p in prior)
    else:
        prior = (np.zeros(D), np.zeros(D)) if prior else None
    target = (np.zeros(D), np.zeros(D)) if prior is None else prior
    clean = np.where(mask[:, :, None], mu, 0), np.where(mask[:, :, None], logvar, 0)
    return *clean, mask, np.where(mask, weights, 1), prior, target


def mixture_of_products(mu, logvar, *, component, noise, subsets=None, mask=None, weights=None, prior=True):
    """``z``, ``kl``, and what sizes the rounding of ``kl`` has: the same sum of magnitudes."""
    mu, logvar, mask, weights, prior, target = _given(mu, logvar, mask, weights, prior)
    subsets = all_subsets(len(mu)) if subsets is None else subsets
    B = mu.shape[1]
    z, kl, size, count = np.zeros(mu.shape[1:]), np.zeros(B), np.zeros(B), np.zeros(B)
    for k, subset in enumerate(subsets):
        has = mask[list(subset)].all(axis=0)
        mean, log, parts = product(mu, logvar, weights, prior, subset)
        var, far = np.exp(-log - target[1]), (mean - target[0]) ** 2 * np.exp(-target[1])
        terms = (var + far - 1 + log + target[1]).sum(axis=1) / 2
        means = [np.abs(mu[m]) for m in subset] + ([] if prior is None else [np.abs(target[0]) + 0 * log])
        most = sum(p * m for p, m in zip(parts, means, strict=True)) + np.abs(target[0])
        sizes = var + most**2 * np.exp(-target[1]) + 1 + np.abs(log) + np.abs(target[1])
        kl += np.where(has, terms, 0)
        size += np.where(has, sizes.sum(axis=1) / 2, 0)
        count += has
        chosen = (np.asarray(component) == k)[:, None]
        z = np.where(chosen, mean + np.exp(-log / 2) * np.asarray(noise, float), z)
    return z, kl / count, size / count


def mixture_of_products_backward(
    grad_z, grad_kl, mu, logvar, *, component, noise, subsets=None, mask=None, weights=None, prior=True
):
    """Gradients of mu, logvar, weights (M, B) and the prior, and the sums of magnitudes that each is made of."""
    given_prior = isinstance(prior, tuple)
    mu, logvar, mask, weights, prior, target = _given(mu, logvar, mask, weights, prior)
    subsets = all_subsets(len(mu)) if subsets is None else subsets
    grad_z, noise = np.asarray(grad_z, float), np.asarray(noise, float)
    count = sum(mask[list(subset)].all(axis=0) for subset in subsets)
    scale = np.exp(-target[1])
    out = [[np.zeros_like(mu), np.zeros_like(mu), np.zeros((2, mu.shape[2]))] for _ in range(2)]
    for k, subset in enumerate(subsets):
        has = mask[list(subset)].all(axis=0)
        mean, log, parts = product(mu, logvar, weights, prior, subset)
        g = np.where(has, np.asarray(grad_kl, float) / count, 0)[:, None]
        gz = np.where(((np.asarray(component) == k) & has)[:, None], grad_z, 0)
        far, var, sigma = (mean - target[0]) * scale, np.exp(-log) * scale, np.exp(-log / 2)
        experts = [(m, mu[m]) for m in subset] + ([] if prior is None else [("prior", target[0] + 0 * log)])
        spread = sum(p * np.abs(m) for p, (_, m) in zip(parts, experts, strict=True))
        of_mean = g * far + gz
        of_log = g / 2 * (1 - var) - gz * noise * sigma / 2
        most_mean = np.abs(g) * (spread + np.abs(target[0])) * scale + np.abs(gz)
        most_log = np.abs(g) / 2 * (1 + var) + np.abs(gz * noise) * sigma / 2
        for share, (m, place) in zip(parts, experts, strict=True):
            by_mean, by_log = share * of_mean, share * (of_log + of_mean * (place - mean))
            reach = spread + np.abs(place)
            sizes = share * most_mean, share * (most_log + most_mean * reach)
            for sums, (a, b) in zip(out, ((by_mean, -by_log), sizes), strict=True):
                if m == "prior":
                    sums[2] += np.array([a.sum(axis=0), b.sum(axis=0)])
                else:
                    sums[0][m] += a
                    sums[1][m] += b
        # The target of the divergence is the prior too.
        away = (mean - target[0]) ** 2 * scale
        out[0][2] += np.array([-(g * far).sum(axis=0), (g / 2 * (1 - var - away)).sum(axis=0)])
        sizes = np.abs(g) / 2 * (1 + var + (spread + np.abs(target[0])) ** 2 * scale)
        out[1][2] += np.array([most_mean.sum(axis=0), sizes.sum(axis=0)])
    results = []
    for i, (dmu, dlogvar, dprior) in enumerate(out):
        dweights = (dlogvar if i else -dlogvar).sum(axis=2) / weights
        results.append((dmu, dlogvar, np.where(mask, dweights, 0), dprior if given_prior else None))
    return tuple(results)


def log_prob(z, mu, logvar, weights):
    """Logarithm of the density of a mixture, by its components in turn; ``weights (M, B)`` sum to anything."""
    z, mu, logvar, weights = (np.asarray(a, float) for a in (z, mu, logvar, weights))
    terms = []
    for m in range(len(mu)):
        squares = (z - mu[m]) ** 2 * np.exp(-logvar[m]) + logvar[m] + np.log(2 * np.pi)
        with np.errstate(divide="ignore"):
            terms.append(np.log(weights[m]) - np.log(weights.sum(axis=0)) - squares.sum(axis=-1) / 2)
    return np.logaddexp.reduce(terms, axis=0)
