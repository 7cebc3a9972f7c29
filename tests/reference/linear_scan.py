"""The gated linear recurrence in plain NumPy and float64, a token at a time, with the kernel's signatures."""

import numpy as np
from reference.packed import sequences


def _wide(*arrays):
    return [None if a is None else np.asarray(a, dtype=np.float64) for a in arrays]


def _channels_first(x, channels_last):
    return x.swapaxes(1, 2) if channels_last else x


def _ways(B, L, seq_idx, cu_seqlens, reverse):
    """Row, tokens in the order that they are read in, and the states before and after, of each sequence."""
    found, states = sequences(B, L, seq_idx, cu_seqlens)
    ways = []
    for row, start, end, first, last in found:
        tokens = range(end - 1, start - 1, -1) if reverse else range(start, end)
        ways.append((row, tokens, last, first) if reverse else (row, tokens, first, last))
    return ways, states


def gated_linear_scan(
    a,
    x,
    initial_state=None,
    return_last_state=False,
    *,
    reverse=False,
    seq_idx=None,
    cu_seqlens=None,
    channels_last=False,
):
    a, x, initial_state = _wide(a, x, initial_state)
    a, x = _channels_first(a, channels_last), _channels_first(x, channels_last)
    B, D, L = x.shape
    ways, states = _ways(B, L, seq_idx, cu_seqlens, reverse)
    out, last_state = np.zeros_like(x), np.zeros((states, D))
    for row, tokens, first, last in ways:
        h = np.zeros(D) if initial_state is None or first is None else initial_state[first]
        for t in tokens:
            h = a[row, :, t] * h + x[row, :, t]
            out[row, :, t] = h
        if last is not None:
            last_state[last] = h
    out = _channels_first(out, channels_last)
    return (out, last_state) if return_last_state else out


def gated_linear_scan_backward(
    grad_out,
    a,
    x,
    initial_state=None,
    *,
    grad_last_state=None,
    reverse=False,
    seq_idx=None,
    cu_seqlens=None,
    channels_last=False,
):
    """Gradients of ``a``, ``x`` and ``initial_state``."""
    grad_out, a, x, initial_state = _wide(grad_out, a, x, initial_state)
    how = {"reverse": reverse, "seq_idx": seq_idx, "cu_seqlens": cu_seqlens}
    grad_out, a, x = (_channels_first(v, channels_last) for v in (grad_out, a, x))
    h = gated_linear_scan(a, x, initial_state, **how)
    B, D, L = x.shape
    ways, states = _ways(B, L, seq_idx, cu_seqlens, reverse)
    da, dx, dinitial = np.zeros_like(a), np.zeros_like(x), np.zeros((states, D))
    for row, tokens, first, last in ways:
        g = (
            np.zeros(D)
            if grad_last_state is None or last is None
            else np.asarray(grad_last_state[last], float)
        )
        before = np.zeros(D) if initial_state is None or first is None else initial_state[first]
        tokens = list(tokens)
        for i in reversed(range(len(tokens))):
            t = tokens[i]
            g = g + grad_out[row, :, t]
            dx[row, :, t] = g
            da[row, :, t] = g * (h[row, :, tokens[i - 1]] if i else before)
            g = a[row, :, t] * g
        if first is not None:
            dinitial[first] = g
    return (
        _channels_first(da, channels_last),
        _channels_first(dx, channels_last),
        None if initial_state is None else dinitial,
    )
