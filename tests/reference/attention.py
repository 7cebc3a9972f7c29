"""Attention in NumPy, float64, with a dense mask: the formulas, nothing else; and how far rounding may take a kernel.

A sample is ``(segments, window, visible)``; a row of tokens is a list of samples.
"""

from __future__ import annotations

import numpy as np


def dense_mask(samples):
    """Who sees whom, token by token, straight from the rules."""
    tokens = [
        (sample, s, i)
        for sample, (segments, _, _) in enumerate(samples)
        for s, segment in enumerate(segments)
        for i in range(segment.length)
    ]
    n = len(tokens)
    mask = np.zeros((n, n), dtype=bool)
    for row, (sample, s, i) in enumerate(tokens):
        segments, window, visible = samples[sample]
        for column, (other, r, j) in enumerate(tokens):
            if other != sample:
                continue
            if r == s:
                inner = {"none": False, "diagonal": i == j, "causal": j <= i, "full": True}
                mask[row, column] = inner[segments[s].inner]
            elif visible is not None:
                mask[row, column] = visible[s][r]
            elif r < s and not segments[r].hidden:
                mask[row, column] = window is None or s - r <= window or segments[r].anchor
    return mask


def _scale(q, scale):
    return (q.shape[-1] ** -0.5 if q.shape[-1] else 1.0) if scale is None else scale


def _grouped(q, k):
    """Repeat key heads, so that there is one for each query head."""
    group = q.shape[1] // k.shape[1] if k.shape[1] else 1
    return np.repeat(k, group, axis=1)


def _ungrouped(dk, k):
    batch, kv_heads, tokens, width = k.shape
    return dk.reshape(batch, kv_heads, -1, tokens, width).sum(axis=2) if dk.size else np.zeros(k.shape)


def alibi(slopes, rows, columns, query_offset=0, key_offset=0):
    """What pairs of one head after the other lose: ``bias (H, N_q, N_k)``."""
    apart = (query_offset + np.arange(rows))[:, None] - (key_offset + np.arange(columns))
    return -np.asarray(slopes, dtype=np.float64)[:, None, None] * np.abs(apart)


def _products(q, k, scale):
    with np.errstate(invalid="ignore", over="ignore"):
        return _scale(q, scale) * (q @ _grouped(q, k).swapaxes(-1, -2))


def _capped(products, softcap):
    return products if softcap is None else softcap * np.tanh(products / softcap)


def _steepness(products, softcap):
    """Derivative of :func:`_capped`: ``1 - tanh^2``, without the difference."""
    if softcap is None:
        return np.ones_like(products)
    z = np.exp(-2 * np.abs(products / softcap))
    return 4 * z / (1 + z) ** 2


def _scores(q, k, mask, scale, softcap=None, bias=None):
    scores = _capped(_products(q, k, scale), softcap)
    return np.where(mask, scores if bias is None else scores + bias, -np.inf)


def attention(q, k, v, mask, *, scale=None, softcap=None, bias=None, kept=None, return_lse=True):
    """``bias`` is added to scores; ``kept`` multiplies probabilities: 0 or ``1 / (1 - dropout)``."""
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (q, k, v))
    scores = _scores(q, k, mask, scale, softcap, bias)
    top = scores.max(axis=-1, initial=-np.inf, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = weights.sum(axis=-1, keepdims=True)
    out = (weights if kept is None else weights * kept) @ _grouped(q, v) / np.where(total > 0, total, 1.0)
    with np.errstate(divide="ignore"):
        lse = (np.where(np.isfinite(top), top, 0.0) + np.log(total))[..., 0]
    return (out, lse) if return_lse else out


def probabilities(q, k, mask, scale=None, softcap=None, bias=None):
    q, k = (np.asarray(x, dtype=np.float64) for x in (q, k))
    _, lse = attention(q, k, k, mask, scale=scale, softcap=softcap, bias=bias)
    scores = _scores(q, k, mask, scale, softcap, bias)
    return np.exp(scores - np.where(np.isfinite(lse), lse, 0.0)[..., None])


def attention_backward(grad_out, q, k, v, out, lse, mask, *, scale=None, softcap=None, bias=None, kept=None):
    grad_out, q, k, v, out = (np.asarray(x, dtype=np.float64) for x in (grad_out, q, k, v, out))
    kept = 1.0 if kept is None else kept
    p = probabilities(q, k, mask, scale, softcap, bias)
    delta = (grad_out * out).sum(axis=-1, keepdims=True)
    dp = kept * (grad_out @ _grouped(q, v).swapaxes(-1, -2))
    steep = np.where(mask, _steepness(_products(q, k, scale), softcap), 0.0)
    ds = _scale(q, scale) * p * (dp - delta) * steep
    dv = (p * kept).swapaxes(-1, -2) @ grad_out
    return ds @ _grouped(q, k), _ungrouped(ds.swapaxes(-1, -2) @ q, k), _ungrouped(dv, v)


def forward_bounds(q, k, v, mask, eps, *, scale=None, softcap=None, bias=None, kept=None):
    """Largest errors of ``out`` and ``lse`` in arithmetic of precision ``eps``.

    A score of ``D`` products is off by at most ``(D + 2) eps sum |q k|``; the exponent adds a few roundings of its
    distance to the maximum, the exponential a few of its own. Sums of ``n`` terms add ``n eps``. What underflows is
    lost: less than ``n tiny`` of the largest value. Options add what :func:`_score_errors` says, and a rounding for
    each probability that dropout keeps.
    """
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (q, k, v))
    options = {"scale": scale, "softcap": softcap, "bias": bias}
    p = probabilities(q, k, mask, **options)
    relative = _score_errors(q, k, mask, eps, **options)
    seen = mask.sum(axis=-1)[..., None]
    values = np.abs(_grouped(q, v))
    used = p if kept is None else p * kept
    absolute = used @ values
    average = (p * relative).sum(axis=-1, keepdims=True)
    tiny = np.finfo(np.float32 if eps > 1e-10 else np.float64).tiny
    largest = values.max(axis=-2, initial=0.0, keepdims=True) * (
        1.0 if kept is None else np.max(kept, initial=1.0)
    )
    out = (used * relative) @ values + (average + (seen + 8) * eps) * absolute + 4 * seen * tiny * largest
    _, lse = attention(q, k, v, mask, **options)
    size = np.where(np.isfinite(lse), np.abs(lse), 0.0)
    return out, average[..., 0] + (mask.sum(axis=-1) + 8) * eps + 4 * eps * size


def _score_errors(q, k, mask, eps, scale, softcap=None, bias=None):
    """Relative error of each exponential: the absolute one of its score.

    A cap makes no error larger, and adds a few roundings of what it gives; a bias adds a few of itself and of the sum.
    """
    products = _product_errors(q, k, eps, scale)
    scores = _scores(q, k, mask, scale, softcap, bias)
    _, lse = attention(q, k, k, mask, scale=scale, softcap=softcap, bias=bias)
    below = np.where(mask, np.abs(scores - np.where(np.isfinite(lse), lse, 0.0)[..., None]), 0.0)
    error = products + eps * (4 * below + 8)
    if softcap is not None:
        error = error + 8 * eps * np.abs(_capped(_products(q, k, scale), softcap))
    if bias is not None:
        error = error + eps * (4 * np.abs(bias) + 4 * np.abs(_capped(_products(q, k, scale), softcap)))
    return np.expm1(np.minimum(np.where(mask, error, 0.0), 50.0))


def _product_errors(q, k, eps, scale):
    """Absolute error of each scaled product."""
    sizes = abs(_scale(q, scale)) * (np.abs(q) @ np.abs(_grouped(q, k)).swapaxes(-1, -2))
    return eps * (q.shape[-1] + 2) * sizes


def backward_bounds(grad_out, q, k, v, mask, eps, *, scale=None, softcap=None, bias=None, kept=None):
    """Largest errors of ``dq``, ``dk`` and ``dv``, first order in each part.

    The derivative of the cap is ``1 - tanh^2``, whose logarithm changes twice as fast as its argument at most, and
    which is 0 where it is no normal number.
    """
    grad_out, q, k, v = (np.asarray(x, dtype=np.float64) for x in (grad_out, q, k, v))
    options = {"scale": scale, "softcap": softcap, "bias": bias}
    out, lse = attention(q, k, v, mask, **options, kept=kept)
    out_error, lse_error = forward_bounds(q, k, v, mask, eps, **options, kept=kept)
    p = probabilities(q, k, mask, **options)
    size = np.where(np.isfinite(lse), np.abs(lse), 0.0)
    relative = _score_errors(q, k, mask, eps, **options)
    relative = relative + np.expm1(np.minimum(lse_error + 4 * eps * size, 50.0))[..., None]
    width, (rows, columns) = q.shape[-1], mask.shape[-2:]
    factor = abs(_scale(q, scale))
    most = 1.0 if kept is None else np.max(kept, initial=1.0)
    kept = 1.0 if kept is None else kept
    g, values, keys = np.abs(grad_out), np.abs(_grouped(q, v)), np.abs(_grouped(q, k))
    dp = kept * (g @ values.swapaxes(-1, -2))
    delta = (g * np.abs(out)).sum(axis=-1, keepdims=True)
    delta_error = (g * out_error).sum(axis=-1, keepdims=True)
    steep = _steepness(_products(q, k, scale), softcap)
    ds = factor * p * (dp + delta) * steep
    ds_error = ds * (relative + (width + 10) * eps) + factor * p * steep * delta_error
    tiny = np.finfo(np.float32 if eps > 1e-10 else np.float64).tiny
    if softcap is not None:
        change = np.expm1(np.minimum(2 * _product_errors(q, k, eps, scale) / softcap, 50.0))
        ds_error = ds_error + ds * (change + 12 * eps) + factor * p * (dp + delta) * 8 * tiny
    group = q.shape[1] // k.shape[1] if k.shape[1] else 1
    dq = (ds_error + (columns + 4) * eps * ds) @ keys
    terms = (rows * group + 4) * eps
    dk = (ds_error + terms * ds).swapaxes(-1, -2) @ np.abs(q)
    dv = (p * kept * (relative + terms)).swapaxes(-1, -2) @ g
    tail = (
        4
        * tiny
        * most
        * (1 + factor)
        * (rows * group + columns)
        * (1 + g.max(initial=0.0))
        * (1 + values.max(initial=0.0))
    )
    tail *= 1 + max(keys.max(initial=0.0), np.abs(q).max(initial=0.0))
    return dq + tail, _ungrouped(dk, k) + tail, _ungrouped(dv, v) + tail
