"""The operations of `sensorium.ops.nn` and `sensorium.optim` in plain NumPy and float64, same signatures."""

import numpy as np


def _wide(*arrays):
    return [None if a is None else np.asarray(a, dtype=np.float64) for a in arrays]


def layer_norm(x, weight, bias=None, *, eps=1e-5, return_stats=False):
    x, weight, bias = _wide(x, weight, bias)
    mean = x.mean(-1)
    rstd = 1 / np.sqrt(((x - mean[..., None]) ** 2).mean(-1) + eps)
    y = (x - mean[..., None]) * rstd[..., None] * weight + (0 if bias is None else bias)
    return (y, mean, rstd) if return_stats else y


def layer_norm_backward(grad, x, weight, mean, rstd, *, has_bias=True, residual=None):
    grad, x, weight, mean, rstd, residual = _wide(grad, x, weight, mean, rstd, residual)
    h = (x - mean[..., None]) * rstd[..., None]
    g = grad * weight
    dx = rstd[..., None] * (g - g.mean(-1, keepdims=True) - h * (g * h).mean(-1, keepdims=True))
    rows = tuple(range(x.ndim - 1))
    dx = dx if residual is None else dx + residual
    return dx, (grad * h).sum(rows), grad.sum(rows) if has_bias else None


def rms_norm(x, weight, *, eps=1e-6, return_stats=False):
    x, weight = _wide(x, weight)
    rstd = 1 / np.sqrt((x**2).mean(-1) + eps)
    y = x * rstd[..., None] * weight
    return (y, rstd) if return_stats else y


def rms_norm_backward(grad, x, weight, rstd, *, residual=None):
    grad, x, weight, rstd, residual = _wide(grad, x, weight, rstd, residual)
    h = x * rstd[..., None]
    g = grad * weight
    dx = rstd[..., None] * (g - h * (g * h).mean(-1, keepdims=True))
    return dx if residual is None else dx + residual, (grad * h).sum(tuple(range(x.ndim - 1)))


def _gelu_argument(x):
    return np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)


def gelu(x):
    (x,) = _wide(x)
    return x * _sigmoid(2 * _gelu_argument(x))


def gelu_backward(grad, x):
    grad, x = _wide(grad, x)
    t = 2 * _gelu_argument(x)
    dt = 2 * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)
    return grad * (_sigmoid(t) + x * _sigmoid(t) * _sigmoid(-t) * dt)


def _sigmoid(t):
    e = np.exp(-np.abs(t))
    return np.where(t < 0, e, 1) / (1 + e)


def silu(x):
    (x,) = _wide(x)
    return x * _sigmoid(x)


def silu_backward(grad, x):
    grad, x = _wide(grad, x)
    return grad * (_sigmoid(x) + x * _sigmoid(x) * _sigmoid(-x))


ACTIVATIONS = {None: lambda x: x, "gelu": gelu, "silu": silu}
SLOPES = {None: lambda grad, x: grad, "gelu": gelu_backward, "silu": silu_backward}


def linear(x, weight, bias=None, *, activation=None, residual=None, return_slope=False):
    x, weight, bias, residual = _wide(x, weight, bias, residual)
    pre = x @ weight + (0 if bias is None else bias)
    out = ACTIVATIONS[activation](pre) + (0 if residual is None else residual)
    return (out, SLOPES[activation](1.0, pre)) if return_slope else out


def linear_backward(grad, x, weight, *, has_bias=True, slope=None):
    grad, x, weight, slope = _wide(grad, x, weight, slope)
    grad = grad if slope is None else grad * slope
    k, n = weight.shape
    rows = int(np.prod(x.shape[:-1]))
    flat_x, flat_grad = x.reshape(rows, k), grad.reshape(rows, n)
    dbias = flat_grad.sum(0) if has_bias else None
    return grad @ weight.T, flat_x.T @ flat_grad, dbias


def cross_entropy(logits, targets, weights=None):
    (logits,) = _wide(logits)
    weights = np.ones(targets.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    used = weights > 0
    if not used.any():
        return 0.0
    rows, targets, weights = logits[used], targets[used], weights[used]
    nll = _log_sum_exp(rows) - np.take_along_axis(rows, targets[:, None], -1)[:, 0]
    return float((weights * nll).sum() / weights.sum())


def cross_entropy_backward(grad, logits, targets, weights=None):
    (logits,) = _wide(logits)
    weights = np.ones(targets.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    used = weights > 0
    out = np.zeros(logits.shape)
    if used.any():
        rows = logits[used]
        p = np.exp(rows - _log_sum_exp(rows)[:, None])
        p[np.arange(len(p)), targets[used]] -= 1
        out[used] = grad * weights[used][:, None] / weights[used].sum() * p
    return out


def _log_sum_exp(x):
    top = x.max(-1)
    return top + np.log(np.exp(x - top[:, None]).sum(-1))


def embedding(table, indices):
    return np.asarray(table)[indices]


def embedding_backward(grad, indices, num_embeddings):
    (grad,) = _wide(grad)
    out = np.zeros((num_embeddings, grad.shape[-1]))
    np.add.at(out, indices.ravel(), grad.reshape(indices.size, grad.shape[-1]))
    return out


def adamw_step(p, g, m, v, step, *, lr, betas, eps, weight_decay):
    """New ``p``, ``m`` and ``v``; ``step`` counts this one."""
    p, g, m, v = _wide(p, g, m, v)
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g**2
    change = (m / (1 - betas[0] ** step)) / (np.sqrt(v / (1 - betas[1] ** step)) + eps)
    return p - lr * weight_decay * p - lr * change, m, v


def gated_rms_norm(x, z, weight, *, groups=1, eps=1e-5, return_stats=False):
    x, z, weight = _wide(x, z, weight)
    u = (x * silu(z)).reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    rstd = 1 / np.sqrt((u**2).mean(-1) + eps)
    y = (u * rstd[..., None]).reshape(x.shape) * weight
    return (y, rstd) if return_stats else y


def gated_rms_norm_backward(grad, x, z, weight, rstd, *, groups=1):
    grad, x, z, weight, rstd = _wide(grad, x, z, weight, rstd)
    parts = (*x.shape[:-1], groups, x.shape[-1] // groups)
    h = (x * silu(z)).reshape(parts) * rstd[..., None]
    g = (grad * weight).reshape(parts)
    du = (rstd[..., None] * (g - h * (g * h).mean(-1, keepdims=True))).reshape(x.shape)
    dweight = (grad * h.reshape(x.shape)).sum(tuple(range(x.ndim - 1)))
    return du * silu(z), du * silu_backward(x, z), dweight
