"""Causal convolution in plain NumPy and float64, a sequence and a token at a time, with the kernel's signatures."""

import numpy as np
from reference.packed import sequences


def _wide(*arrays):
    return [None if a is None else np.asarray(a, dtype=np.float64) for a in arrays]


def sigmoid(t):
    e = np.exp(-np.abs(t))
    return np.where(t < 0, e, 1) / (1 + e)


def _channels_first(x, channels_last):
    return x.swapaxes(1, 2) if channels_last else x


def _padded(x, initial_state, K, row, start, end, state):
    """Inputs of a sequence after the K - 1 that precede it."""
    before = np.zeros((x.shape[1], K - 1))
    if initial_state is not None and state is not None:
        before = initial_state[state]
    return np.concatenate([before, x[row, :, start:end]], axis=1)


def causal_conv1d(
    x,
    weight,
    bias=None,
    *,
    activation=None,
    initial_state=None,
    return_last_state=False,
    seq_idx=None,
    cu_seqlens=None,
    channels_last=False,
):
    x, weight, bias, initial_state = _wide(x, weight, bias, initial_state)
    x = _channels_first(x, channels_last)
    (B, D, L), K = x.shape, weight.shape[1]
    found, states = sequences(B, L, seq_idx, cu_seqlens)
    y, last_state = np.zeros_like(x), np.zeros((states, D, K - 1))
    for row, start, end, first, last in found:
        padded = _padded(x, initial_state, K, row, start, end, first)
        for t in range(end - start):
            y[row, :, start + t] = (weight * padded[:, t : t + K]).sum(1)
        if last is not None:
            last_state[last] = padded[:, end - start :]
    y += 0 if bias is None else bias[:, None]
    y = y * sigmoid(y) if activation == "silu" else y
    y = _channels_first(y, channels_last)
    return (y, last_state) if return_last_state else y


def causal_conv1d_backward(
    grad_out,
    x,
    weight,
    bias=None,
    *,
    activation=None,
    initial_state=None,
    grad_last_state=None,
    seq_idx=None,
    cu_seqlens=None,
    channels_last=False,
):
    """Gradients of ``x``, ``weight``, ``bias`` and ``initial_state``."""
    grad_out, x, weight, bias = _wide(grad_out, x, weight, bias)
    initial_state, grad_last_state = _wide(initial_state, grad_last_state)
    how = {"initial_state": initial_state, "seq_idx": seq_idx, "cu_seqlens": cu_seqlens}
    if activation == "silu":
        p = causal_conv1d(x, weight, bias, channels_last=channels_last, **how)
        grad_out = grad_out * (sigmoid(p) + p * sigmoid(p) * sigmoid(-p))
    x, grad = _channels_first(x, channels_last), _channels_first(grad_out, channels_last)
    (B, D, L), K = x.shape, weight.shape[1]
    found, states = sequences(B, L, seq_idx, cu_seqlens)
    dx, dweight, dinitial = np.zeros_like(x), np.zeros_like(weight), np.zeros((states, D, K - 1))
    for row, start, end, first, last in found:
        padded = _padded(x, initial_state, K, row, start, end, first)
        dpadded = np.zeros_like(padded)
        for t in range(end - start):
            g = grad[row, :, start + t, None]
            dpadded[:, t : t + K] += weight * g
            dweight += padded[:, t : t + K] * g
        if last is not None and grad_last_state is not None:
            dpadded[:, end - start :] += grad_last_state[last]
        dx[row, :, start:end] = dpadded[:, K - 1 :]
        if first is not None:
            dinitial[first] = dpadded[:, : K - 1]
    dbias = None if bias is None else grad.sum((0, 2))
    return (
        _channels_first(dx, channels_last),
        dweight,
        dbias,
        None if initial_state is None else dinitial,
    )


def causal_conv1d_update(x, state, weight, bias=None, *, activation=None):
    """``y`` and the new state."""
    y, last = causal_conv1d(
        np.asarray(x)[:, :, None],
        weight,
        bias,
        activation=activation,
        initial_state=state,
        return_last_state=True,
    )
    return y[:, :, 0], last
