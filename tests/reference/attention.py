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


def _scores(q, k, mask, scale):
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where(mask, _scale(q, scale) * (q @ _grouped(q, k).swapaxes(-1, -2)), -np.inf)


def attention(q, k, v, mask, *, scale=None, return_lse=True):
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (q, k, v))
    scores = _scores(q, k, mask, scale)
    top = scores.max(axis=-1, initial=-np.inf, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = weights.sum(axis=-1, keepdims=True)
    out = weights @ _grouped(q, v) / np.where(total > 0, total, 1.0)
    with np.errstate(divide="ignore"):
        lse = (np.where(np.isfinite(top), top, 0.0) + np.log(total))[..., 0]
    return (out, lse) if return_lse else out


def probabilities(q, k, mask, scale=None):
    q, k = (np.asarray(x, dtype=np.float64) for x in (q, k))
    _, lse = attention(q, k, k, mask, scale=scale)
    scores = _scores(q, k, mask, scale)
    return np.exp(scores - np.where(np.isfinite(lse), lse, 0.0)[..., None])


def attention_backward(grad_out, q, k, v, out, lse, mask, *, scale=None):
    grad_out, q, k, v, out = (np.asarray(x, dtype=np.float64) for x in (grad_out, q, k, v, out))
    p = probabilities(q, k, mask, scale)
    delta = (grad_out * out).sum(axis=-1, keepdims=True)
    ds = _scale(q, scale) * p * (grad_out @ _grouped(q, v).swapaxes(-1, -2) - delta)
    dv = p.swapaxes(-1, -2) @ grad_out
    return ds @ _grouped(q, k), _ungrouped(ds.swapaxes(-1, -2) @ q, k), _ungrouped(dv, v)


def forward_bounds(q, k, v, mask, eps, *, scale=None):
    """Largest errors of ``out`` and ``lse`` in arithmetic of precision ``eps``.

    A score of ``D`` products is off by at most ``(D + 2) eps sum |q k|``; the exponent adds a few roundings of its
    distance to the maximum, the exponential a few of its own. Sums of ``n`` terms add ``n eps``. What underflows is
    lost: less than ``n tiny`` of the largest value.
    """
    q, k, v = (np.asarray(x, dtype=np.float64) for x in (q, k, v))
    p = probabilities(q, k, mask, scale)
    relative = _score_errors(q, k, mask, eps, scale)
    seen = mask.sum(axis=-1)[:, None]
    values = np.abs(_grouped(q, v))
    absolute = p @ values
    average = (p * relative).sum(axis=-1, keepdims=True)
    tiny = np.finfo(np.float32 if eps > 1e-10 else np.float64).tiny
    largest = values.max(axis=-2, initial=0.0, keepdims=True)
    out = (p * relative) @ values + (average + (seen + 8) * eps) * absolute + 4 * seen * tiny * largest
    _, lse = attention(q, k, v, mask, scale=scale)
    size = np.where(np.isfinite(lse), np.abs(lse), 0.0)
    return out, average[..., 0] + (mask.sum(axis=-1) + 8) * eps + 4 * eps * size


def _score_errors(q, k, mask, eps, scale):
    """Relative error of each exponential."""
    scale = abs(_scale(q, scale))
    width = q.shape[-1]
    sizes = scale * (np.abs(q) @ np.abs(_grouped(q, k)).swapaxes(-1, -2))
    scores = _scores(q, k, mask, scale)
    _, lse = attention(q, k, k, mask, scale=scale)
    below = np.where(mask, np.abs(scores - np.where(np.isfinite(lse), lse, 0.0)[..., None]), 0.0)
    return np.expm1(np.minimum(np.where(mask, eps * ((width + 2) * sizes + 4 * below + 8), 0.0), 50.0))


def backward_bounds(grad_out, q, k, v, mask, eps, *, scale=None):
    """Largest errors of ``dq``, ``dk`` and ``dv``, first order in each part."""
    grad_out, q, k, v = (np.asarray(x, dtype=np.float64) for x in (grad_out, q, k, v))
    out, lse = attention(q, k, v, mask, scale=scale)
    out_error, lse_error = forward_bounds(q, k, v, mask, eps, scale=scale)
    p = probabilities(q, k, mask, scale)
    size = np.where(np.isfinite(lse), np.abs(lse), 0.0)
    relative = _score_errors(q, k, mask, eps, scale)
    relative = relative + np.expm1(np.minimum(lse_error + 4 * eps * size, 50.0))[..., None]
    width, (rows, columns) = q.shape[-1], mask.shape
    factor = abs(_scale(q, scale))
    g, values, keys = np.abs(grad_out), np.abs(_grouped(q, v)), np.abs(_grouped(q, k))
    dp = g @ values.swapaxes(-1, -2)
    delta = (g * np.abs(out)).sum(axis=-1, keepdims=True)
    delta_error = (g * out_error).sum(axis=-1, keepdims=True)
    ds = factor * p * (dp + delta)
    ds_error = ds * (relative + (width + 8) * eps) + factor * p * delta_error
    group = q.shape[1] // k.shape[1] if k.shape[1] else 1
    dq = (ds_error + (columns + 4) * eps * ds) @ keys
    terms = (rows * group + 4) * eps
    dk = (ds_error + terms * ds).swapaxes(-1, -2) @ np.abs(q)
    dv = (p * (relative + terms)).swapaxes(-1, -2) @ g
    tiny = np.finfo(np.float32 if eps > 1e-10 else np.float64).tiny
    tail = (
        4
        * tiny
        * (1 + factor)
        * (rows * group + columns)
        * (1 + g.max(initial=0.0))
        * (1 + values.max(initial=0.0))
    )
    tail *= 1 + max(keys.max(initial=0.0), np.abs(q).max(initial=0.0))
    return dq + tail, _ungrouped(dk, k) + tail, _ungrouped(dv, v) + tail
