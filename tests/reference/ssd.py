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
    dx, dstep, da = np.zeros(x.shape), np.zeros(dt.shape), np.zeros(dt.shape)
    dB, dC, dfirst = np.zeros(B.shape), np.zeros(C.shape), np.zeros(first.shape)
    for row, start, end, begin, keep in pieces:
        dh = np.zeros(first.shape[1:])
        if grad_final_states is not None and keep is not None:
            dh = np.asarray(grad_final_states[keep], dtype=np.float64).copy()
        for t in reversed(range(start, end)):
            before = states[row, t - 1] if t > start else np.zeros(dh.shape)
            if t == start and begin is not None:
                before = first[begin]
            dh = dh + g[row, t][:, :, None] * C[row, t][:, None, :]
            dC[row, t] = (g[row, t][:, :, None] * states[row, t]).sum(axis=1)
            through = (dh * B[row, t][:, None, :]).sum(axis=-1)
            dx[row, t] = step[row, t][:, None] * through
            dB[row, t] = (step[row, t][:, None, None] * x[row, t][:, :, None] * dh).sum(axis=1)
            decay = np.exp(step[row, t] * A)[:, None, None]
            da[row, t] = (dh * decay * before).sum(axis=(1, 2))
            dstep[row, t] = (through * x[row, t]).sum(axis=-1) + A * da[row, t]
            dh = decay * dh
        if begin is not None:
            dfirst[begin] = dh
    dD = None
    if D is not None:
        dx = dx + D * g
        dD = (g * x).sum(axis=(0, 1))
        dD = dD.sum(axis=1) if len(skip_shape) == 1 else dD
    ddt = dstep * slope
    shared = [v.reshape(*v.shape[:2], groups, -1, v.shape[3]).sum(axis=3) if v.size else v for v in (dB, dC)]
    if groups == 0 or not dB.size:
        shared = [np.zeros((*v.shape[:2], groups, v.shape[3])) for v in (dB, dC)]
    return (
        dx,
        ddt,
        (da * step).sum(axis=(0, 1)),
        *shared,
        dD,
        dz,
        None if dt_bias is None else ddt.sum(axis=(0, 1)),
        None if initial_states is None else dfirst,
    )


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
