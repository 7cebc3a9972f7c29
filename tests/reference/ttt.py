"""Test-time-training layers token by token, in float64 and as they are defined; differentiable by autograd.

The inner gradients are autograd's of the inner loss, so that no formula of the kernel is in here. Weights are moved
for every token (the primal form), no pairs of tokens are formed.
"""

import autograd.numpy as np
from autograd import grad


def _gelu(x):
    # Beyond 30 the tangent is one to the last digit, and its slope as autograd writes it overflows.
    return 0.5 * x * (1 + np.tanh(np.clip(np.sqrt(2 / np.pi) * (x + 0.044715 * x * x * x), -30, 30)))


def network(weights, x):
    """``f(x)`` of every head of every row, ``(B, H, D)``: one layer, or two with GELU between."""
    for i in range(0, len(weights), 2):
        if i > 0:
            x = _gelu(x)
        x = np.einsum("bhi,bhij->bhj", x, weights[i]) + weights[i + 1]
    return x


def layer_norm(x, weight, bias, eps):
    centred = x - np.mean(x, axis=-1, keepdims=True)
    return centred / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + eps) * weight + bias


def loss(weights, k, v, norm_weight, norm_bias, eps):
    """Inner loss of one token, summed over heads and rows, which share nothing."""
    error = layer_norm(network(weights, k), norm_weight, norm_bias, eps) - (v - k)
    return 0.5 * np.sum(error * error)


def initial(batch, weights):
    """Every row begins from the parameters, in an unread mini-batch."""
    rows = [np.zeros((batch,) + (1,) * w.ndim) + w for w in weights]
    return rows, [0 * w for w in rows], 0


def ttt(
    q,
    k,
    v,
    eta,
    weights,
    norm_weight,
    norm_bias,
    *,
    token_scale=None,
    mini_batch_size=16,
    eps=1e-6,
    state=None,
):
    """Return ``y`` and the last state ``(weights, sums, position)``."""
    if token_scale is None:
        token_scale = 1 / np.arange(1.0, mini_batch_size + 1)
    weights, sums, position = initial(q.shape[0], weights) if state is None else state
    y = []
    for t in range(q.shape[2]):
        gradients = grad(loss)(weights, k[:, :, t], v[:, :, t], norm_weight, norm_bias, eps)
        rate = eta[:, :, t]
        sums = [
            s + np.reshape(rate, rate.shape + (1,) * (g.ndim - 2)) * g
            for s, g in zip(sums, gradients, strict=True)
        ]
        moved = [w - token_scale[position] * s for w, s in zip(weights, sums, strict=True)]
        read = layer_norm(network(moved, q[:, :, t]), norm_weight, norm_bias, eps)
        y.append(q[:, :, t] + read)
        position += 1
        if position == mini_batch_size:
            weights, sums, position = moved, [0 * s for s in sums], 0
    return (np.stack(y, axis=2) if y else q), (weights, sums, position)


def ttt_linear(q, k, v, eta, W, b, norm_weight, norm_bias, **options):
    return ttt(q, k, v, eta, [W, b], norm_weight, norm_bias, **options)


def ttt_mlp(q, k, v, eta, W1, b1, W2, b2, norm_weight, norm_bias, **options):
    return ttt(q, k, v, eta, [W1, b1, W2, b2], norm_weight, norm_bias, **options)
