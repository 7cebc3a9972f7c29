"""Structured state-space duality in NumPy, float64, token by token; and how far rounding may take a kernel."""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def sigmoid(x):
    z = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, z) / (1 + z)


def step_sizes(dt, dt_bias, dt_softplus, dt_limit):
    """Step sizes, and their derivative by ``dt``: 0 where a limit holds one."""
    dt = dt if dt_bias is None else dt + dt_bias
    value, slope = (softplus(dt), sigmoid(dt)) if dt_softplus else (dt, np.ones_like(dt))
    least, most = dt_limit
    return np.clip(value, least, most), np.where((value < least) | (value > most), 0.0, slope)


def sequences(B, L, seq_idx, cu_seqlens):
    """``(row, start, end, initial state or None, last state or None)`` of each sequence."""
    if cu_seqlens is not None:
        return [(0, a, b, i, i) for i, (a, b) in enumerate(pairwise(cu_seqlens))]
    found = []
    for row in range(B):
        ids = np.zeros(L) if seq_idx is None else seq_idx[row]
        cuts = [0, *(1 + np.flatnonzero(np.diff(ids))), L]
        for start, end in pairwise(cuts):
            found.append((row, start, end, row if start == 0 else None, row if end == L else None))
    return found


def _arguments(x, dt, A, B, C, D, z, dt_bias, initial_states, cu_seqlens):
    arrays = [None if v is None else np.asarray(v, dtype=np.float64) for v in (x, dt, A, B, C, D, z, dt_bias)]
    x, dt, A, B, C, D, z, dt_bias = arrays
    heads = x.shape[2]
    group = heads // B.shape[2] if B.shape[2] else 1
    B, C = (np.repeat(v, group, axis=2) for v in (B, C))
    if D is not None and D.ndim == 1:
        D = D[:, None]
    states = x.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    shape = (states, heads, x.shape[3], B.shape[3])
    first = np.zeros(shape) if initial_states is None else np.asarray(initial_states, dtype=np.float64)
    return x, dt, A, B, C, D, z, dt_bias, first


def scan(x, a, weight, B, C, first, pieces):
    """``h_t = exp(a_t) h_{t-1} + weight_t x_t B_t``, ``y_t = C_t h_t``: y, the last states, and all states."""
    length = x.shape[1]
    y = np.zeros(x.shape)
    last = np.zeros(first.shape)
    states = np.zeros((x.shape[0], length, *first.shape[1:]))
    for row, start, end, begin, keep in pieces:
        h = np.zeros(first.shape[1:]) if begin is None else first[begin].copy()
        for t in range(start, end):
            entering = (weight[row, t][:, None] * x[row, t])[:, :, None] * B[row, t][:, None, :]
            h = np.exp(a[row, t])[:, None, None] * h + entering
            states[row, t] = h
            y[row, t] = (h * C[row, t][:, None, :]).sum(axis=-1)
        if keep is not None:
            last[keep] = h
    return y, last, states


def ssd(
    x,
    dt,
    A,
    B,
    C,
    chunk_size=None,
    D=None,
    z=None,
    dt_bias=None,
    dt_softplus=False,
    initial_states=None,
    seq_idx=None,
    return_final_states=False,
    *,
    cu_seqlens=None,
    dt_limit=(0.0, np.inf),
):
    x, dt, A, B, C, D, z, dt_bias, first = _arguments(
        x, dt, A, B, C, D, z, dt_bias, initial_states, cu_seqlens
    )
    dt, _ = step_sizes(dt, dt_bias, dt_softplus, dt_limit)
    y, last, _ = scan(x, dt * A, dt, B, C, first, sequences(*x.shape[:2], seq_idx, cu_seqlens))
    if D is not None:
        y = y + D * x
    if z is not None:
        y = y * (np.asarray(z) * sigmoid(z))
    return (y, last) if return_final_states else y


def ssd_state_update(
    state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False, *, dt_limit=(0.0, np.inf)
):
    """The same for one token; ``state`` is updated in place."""
    args = [v[:, None] for v in (x, dt)] + [A] + [v[:, None] for v in (B, C)]
    y, last = ssd(
        *args,
        D=D,
        z=None if z is None else z[:, None],
        dt_bias=dt_bias,
        dt_softplus=dt_softplus,
        initial_states=state,
        return_final_states=True,
        dt_limit=dt_limit,
    )
    state[...] = last
    return y[:, 0]


def ssd_backward(
    grad_out,
    x,
    dt,
    A,
    B,
    C,
    chunk_size=None,
    D=None,
    z=None,
    dt_bias=None,
    dt_softplus=False,
    initial_states=None,
    seq_idx=None,
    *,
    grad_final_states=None,
    cu_seqlens=None,
    dt_limit=(0.0, np.inf),
):
    """Gradients by x, dt, A, B, C, D, z, dt_bias and the initial states; None where the input was None."""
    groups, skip_shape = B.shape[2], None if D is None else np.shape(D)
    x, dt, A, B, C, D, z, dt_bias, first = _arguments(
        x, dt, A, B, C, D, z, dt_bias, initial_states, cu_seqlens
    )
    g = np.asarray(grad_out, dtype=np.float64)
    step, slope = step_sizes(dt, dt_bias, dt_softplus, dt_limit)
    pieces = sequences(*x.shape[:2], seq_idx, cu_seqlens)
    y, _, states = scan(x, step * A, step, B, C, first, pieces)
    dz = None
    if z is not None:
        gate = sigmoid(z)
        dz = g * (y if D is None else y + D * x) * gate * (1 + z * (1 - gate))
        g = g * z * gate
    dx, dstep, dA, dB, dC, dfirst = adjoint(x, step, A, A, B, C, first, states, pieces, g, grad_final_states)
    dD = None
    if D is not None:
        dx, dD = dx + D * g, _skip_sum(g * x, skip_shape)
    ddt = dstep * slope
    dB, dC = (_over_heads(v, groups) for v in (dB, dC))
    dbias = None if dt_bias is None else ddt.sum(axis=(0, 1))
    return dx, ddt, dA, dB, dC, dD, dz, dbias, None if initial_states is None else dfirst


def _skip_sum(each, shape):
    total = each.sum(axis=(0, 1))
    return total.sum(axis=1) if len(shape) == 1 else total


def _over_heads(grad, groups):
    batch, length, heads, state = grad.shape
    shape = (batch, length, groups, heads // groups if groups else 0, state)
    return grad.reshape(shape).sum(axis=3)


def adjoint(x, step, A, rate, B, C, first, states, pieces, g, grad_last):
    """Gradients by x, the step sizes, A, B, C of each head, and the states before; decays are of ``rate``."""
    dx, dstep, dA = np.zeros(x.shape), np.zeros(step.shape), np.zeros(A.shape)
    dB, dC, dfirst = np.zeros(B.shape), np.zeros(C.shape), np.zeros(first.shape)
    for row, start, end, begin, keep in pieces:
        dh = np.zeros(first.shape[1:])
        if grad_last is not None and keep is not None:
            dh = np.asarray(grad_last[keep], dtype=np.float64).copy()
        for t in reversed(range(start, end)):
            before = states[row, t - 1] if t > start else np.zeros(dh.shape)
            if t == start and begin is not None:
                before = first[begin]
            dh = dh + g[row, t][:, :, None] * C[row, t][:, None, :]
            dC[row, t] = (g[row, t][:, :, None] * states[row, t]).sum(axis=1)
            through = (dh * B[row, t][:, None, :]).sum(axis=-1)
            dx[row, t] = step[row, t][:, None] * through
            dB[row, t] = (step[row, t][:, None, None] * x[row, t][:, :, None] * dh).sum(axis=1)
            decay = np.exp(step[row, t] * rate)[:, None, None]
            da = (dh * decay * before).sum(axis=(1, 2))
            dA += da * step[row, t]
            dstep[row, t] = (through * x[row, t]).sum(axis=-1) + A * da
            dh = decay * dh
        if begin is not None:
            dfirst[begin] = dh
    return dx, dstep, dA, dB, dC, dfirst


def forward_bounds(
    eps,
    x,
    dt,
    A,
    B,
    C,
    chunk_size=None,
    D=None,
    z=None,
    dt_bias=None,
    dt_softplus=False,
    initial_states=None,
    seq_idx=None,
    *,
    cu_seqlens=None,
    dt_limit=(0.0, np.inf),
):
    """Largest errors of ``y`` and of the last states in arithmetic of precision ``eps``.

    A term ``C_i B_j dt_j x_j E_ij`` is a product of sums over S, over a chunk and, chunk by chunk, over the rest:
    ``S + 2 Q + 4 L / Q`` roundings and a few. A step size is off by 3 roundings of its own and, after softplus, by the
    rounding of its argument, which that of a small one multiplies by the argument. The exponent of a decay is off by
    so much of each ``dt A`` that it sums, and by 4 roundings of its own. Decays below the smallest normal number are
    lost. Each is a recurrence of its own over magnitudes: ``h1`` sums the terms times what their decays are off by.
    """
    x, dt, A, B, C, D, z, dt_bias, first = _arguments(
        x, dt, A, B, C, D, z, dt_bias, initial_states, cu_seqlens
    )
    raw = dt if dt_bias is None else dt + dt_bias
    step, _ = step_sizes(dt, dt_bias, dt_softplus, dt_limit)
    off = 3 + (np.abs(raw) if dt_softplus else 0) * np.ones_like(raw)
    chunk = min(64 if chunk_size is None else chunk_size, 256)
    count = B.shape[3] + 2 * chunk + 4 * (x.shape[1] // chunk) + 30
    tiny = 4 * np.finfo(np.float32 if eps > 1e-10 else np.float64).tiny
    x, step, B, C, first = (np.abs(v) for v in (x, step, B, C, first))
    bound, last = np.zeros(x.shape), np.zeros(first.shape)
    for row, start, end, begin, keep in sequences(*x.shape[:2], seq_idx, cu_seqlens):
        h = np.zeros(first.shape[1:]) if begin is None else first[begin].copy()
        h1, lost = np.zeros(h.shape), h.copy()
        for t in range(start, end):
            entering = (step[row, t][:, None] * x[row, t])[:, :, None] * B[row, t][:, None, :]
            a = (step[row, t] * A)[:, None, None]
            worse = (off[row, t] + 4)[:, None, None] * np.abs(a)
            with np.errstate(over="ignore"):
                decay = np.exp(a)
            h1 = decay * (h1 + worse * h) + off[row, t][:, None, None] * entering
            h, lost = decay * h + entering, np.maximum(decay, 1) * lost + entering
            error = eps * (count * h + h1) + tiny * lost
            bound[row, t] = (error * C[row, t][:, None, :]).sum(axis=-1)
        if keep is not None:
            last[keep] = eps * (count * h + h1) + tiny * lost
    y = np.abs(ssd(x, step, A, B, C, initial_states=first, seq_idx=seq_idx, cu_seqlens=cu_seqlens))
    if D is not None:
        bound, y = bound + 2 * eps * np.abs(D * x), y + np.abs(D * x)
    if z is not None:
        gate = np.abs(z * sigmoid(z))
        bound = (bound + 6 * eps * y) * gate + tiny * y
    return bound, last


def backward_bounds(
    eps,
    grad_out,
    x,
    dt,
    A,
    B,
    C,
    chunk_size=None,
    D=None,
    z=None,
    dt_bias=None,
    dt_softplus=False,
    initial_states=None,
    seq_idx=None,
    *,
    grad_final_states=None,
    cu_seqlens=None,
    dt_limit=(0.0, np.inf),
):
    """Largest errors of the gradients, for rates that are not positive.

    Every gradient is a sum of products, so it is off by so many roundings of the same sum over magnitudes, and by what
    its decays are off: ``(off + 4) s`` roundings of ``exp(-s)``, at most ``2 / e`` of ``exp(-s / 2)``. So the sum over
    magnitudes is taken with half of the rates. That of ``D`` has a term for each token.
    """
    groups, skip_shape = B.shape[2], None if D is None else np.shape(D)
    x, dt, A, B, C, D, z, dt_bias, first = _arguments(
        x, dt, A, B, C, D, z, dt_bias, initial_states, cu_seqlens
    )
    raw = dt if dt_bias is None else dt + dt_bias
    step, slope = step_sizes(dt, dt_bias, dt_softplus, dt_limit)
    off = 3 + (np.abs(raw).max(initial=0) if dt_softplus else 0)
    chunk = min(64 if chunk_size is None else chunk_size, 256)
    count = 2 * (B.shape[3] + x.shape[3] + 3 * chunk + x.shape[2]) + 12 * (x.shape[1] // chunk) + 60
    roundings = eps * (count + 2 * off + 0.75 * (off + 4))
    tiny = 4 * np.finfo(np.float32 if eps > 1e-10 else np.float64).tiny
    pieces = sequences(*x.shape[:2], seq_idx, cu_seqlens)
    x, B, C, first, g = (np.abs(v) for v in (x, B, C, first, np.asarray(grad_out, dtype=np.float64)))
    last = None if grad_final_states is None else np.abs(grad_final_states)
    total = None
    for rate, factor in ((A / 2, roundings), (np.zeros(A.shape), tiny)):
        y, _, states = scan(x, step * rate, step, B, C, first, pieces)
        dz, before = None, g
        skip = 0 if D is None else np.abs(D)
        if z is not None:
            gate = sigmoid(z)
            dz = g * (y + skip * x) * gate * (1 + np.abs(z) * (1 - gate))
            before = g * np.abs(z) * gate
        grads = adjoint(x, step, np.abs(A), rate, B, C, first, states, pieces, before, last)
        dx, dstep, dA, dB, dC, dfirst = grads
        ddt = dstep * slope
        dD = None if D is None else _skip_sum(before * x, skip_shape) * (1 + x.shape[0] * x.shape[1] / count)
        dB, dC = (_over_heads(v, groups) for v in (dB, dC))
        dbias = None if dt_bias is None else ddt.sum(axis=(0, 1))
        found = [dx + skip * before, ddt, dA, dB, dC, dD, dz, dbias, dfirst]
        found = [None if v is None else factor * v for v in found]
        total = (
            found
            if total is None
            else [None if v is None else v + w for v, w in zip(total, found, strict=True)]
        )
    if initial_states is None:
        total[-1] = None
    return total
