"""The selective scan in NumPy and float64, token by token; and how far rounding may take a kernel from it.

Every quantity is carried with the largest error that a kernel's may have (see `docs/scans.md`): of a sum or product,
what its terms bring along and what its own rounding adds, in terms of magnitudes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .packed import sequences


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def sigmoid(x):
    z = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, z) / (1 + z)


@dataclass
class Call:
    """Arguments in one form: (B, L, D), coefficients (B, L, D, S)."""

    u: np.ndarray
    raw: np.ndarray
    A: np.ndarray
    B: np.ndarray
    C: np.ndarray
    D: np.ndarray
    z: np.ndarray | None
    soft: bool
    initial: np.ndarray
    pieces: list
    last: bool

    def __post_init__(self):
        self.delta = softplus(self.raw) if self.soft else self.raw
        self.gate = 1.0 if self.z is None else self.z * sigmoid(self.z)

    def back(self, x):
        """An array (B, L, D) in the caller's layout."""
        return x if self.last else x.swapaxes(1, 2)


def _coefficient(x, channels_last, B, L, D, S):
    if x.ndim == 2:
        return np.broadcast_to(x, (B, L, D, S))
    if not channels_last:
        x = np.moveaxis(x, -1, 1)
    if x.ndim == 3:
        x = x[:, :, None]
    return np.repeat(x, D // x.shape[2], axis=2)


def _uncoefficient(grad, like, channels_last):
    """The gradient of a coefficient from that of (B, L, D, S): summed over what shares it."""
    if like.ndim == 2:
        return grad.sum(axis=(0, 1))
    groups = 1 if like.ndim == 3 else like.shape[2 if channels_last else 1]
    B, L, D, S = grad.shape
    grad = grad.reshape(B, L, groups, D // groups, S).sum(axis=3)
    grad = grad if channels_last else np.moveaxis(grad, 1, -1)
    return grad.reshape(like.shape)


def _call(
    u,
    delta,
    A,
    B,
    C,
    D=None,
    z=None,
    delta_bias=None,
    delta_softplus=False,
    initial_state=None,
    *,
    seq_idx=None,
    cu_seqlens=None,
    channels_last=False,
):
    def wide(x):
        x = np.asarray(x, dtype=np.float64)
        return x if channels_last else x.swapaxes(1, 2)

    u, delta, z = wide(u), wide(delta), None if z is None else wide(z)
    A, B, C = (np.asarray(x, dtype=np.float64) for x in (A, B, C))
    sizes = (*u.shape, A.shape[1])
    pieces, states = sequences(*u.shape[:2], seq_idx, cu_seqlens)
    zeros = np.zeros((states, *A.shape))
    return Call(
        u,
        delta if delta_bias is None else delta + np.asarray(delta_bias, dtype=np.float64),
        A,
        _coefficient(B, channels_last, *sizes),
        _coefficient(C, channels_last, *sizes),
        np.zeros(len(A)) if D is None else np.asarray(D, dtype=np.float64),
        z,
        delta_softplus,
        zeros if initial_state is None else np.asarray(initial_state, dtype=np.float64),
        pieces,
        channels_last,
    )


def _states(call):
    """States before and after every token (B, L, D, S), and the last ones."""
    before, after = np.zeros(call.B.shape), np.zeros(call.B.shape)
    last = np.zeros(call.initial.shape)
    for row, start, end, begin, keep in call.pieces:
        h = np.zeros(call.A.shape) if begin is None else call.initial[begin]
        for t in range(start, end):
            before[row, t] = h
            new = (call.delta[row, t] * call.u[row, t])[:, None] * call.B[row, t]
            h = np.exp(call.delta[row, t][:, None] * call.A) * h + new
            after[row, t] = h
        if keep is not None:
            last[keep] = h
    return before, after, last


def selective_scan(*arguments, return_last_state=False, **options):
    call = _call(*arguments, **options)
    _, after, last = _states(call)
    y = ((after * call.C).sum(axis=-1) + call.D * call.u) * call.gate
    return (call.back(y), last) if return_last_state else call.back(y)


def selective_state_update(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
    """The same for one token; ``state`` is updated in place."""
    one = [None if v is None else np.asarray(v)[:, None] for v in (x, dt, B, C, z)]
    x, dt, B, C, z = one
    y, last = selective_scan(
        *(x, dt, A, B, C, D, z, dt_bias, dt_softplus, state), return_last_state=True, channels_last=True
    )
    state[...] = last
    return y[:, 0]


def _adjoint(call, grad, grad_last):
    """``dL/dh`` of every token, ``a dL/dh`` of the token, and the gradient of the initial states."""
    g, carried = np.zeros(call.B.shape), np.zeros(call.B.shape)
    initial = np.zeros(call.initial.shape)
    for row, start, end, begin, keep in call.pieces:
        carry = np.zeros(call.A.shape)
        if grad_last is not None and keep is not None:
            carry = np.asarray(grad_last[keep], dtype=np.float64)
        for t in reversed(range(start, end)):
            g[row, t] = grad[row, t][:, None] * call.C[row, t] + carry
            carry = g[row, t] * np.exp(call.delta[row, t][:, None] * call.A)
            carried[row, t] = carry
        if begin is not None:
            initial[begin] = carry
    return g, carried, initial


NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def selective_scan_backward(grad_out, *arguments, grad_last_state=None, checkpoints=None, **options):
    """Gradients by name; None where the input was None."""
    given = dict(zip((*NAMES[:8], "delta_softplus", "initial_state"), arguments, strict=False)) | options
    call = _call(**given)
    dy = np.asarray(grad_out, dtype=np.float64)
    dy = dy if call.last else dy.swapaxes(1, 2)
    before, after, _ = _states(call)
    y = (after * call.C).sum(axis=-1) + call.D * call.u
    dz = None
    if call.z is not None:
        s = sigmoid(call.z)
        dz = dy * y * s * (1 + call.z * (1 - s))
        dy = dy * call.gate
    g, carried, initial = _adjoint(call, dy, grad_last_state)
    w = carried * before
    through = (g * call.B).sum(axis=-1)
    ddelta = call.u * through + (w * call.A).sum(axis=-1)
    if call.soft:
        ddelta = ddelta * sigmoid(call.raw)
    dB = g * (call.delta * call.u)[..., None]
    grads = {
        "u": call.back(call.delta * through + call.D * dy),
        "delta": call.back(ddelta),
        "A": (w * call.delta[..., None]).sum(axis=(0, 1)),
        "B": _uncoefficient(dB, given["B"], call.last),
        "C": _uncoefficient(after * dy[..., None], given["C"], call.last),
        "D": (dy * call.u).sum(axis=(0, 1)),
        "z": None if dz is None else call.back(dz),
        "delta_bias": ddelta.sum(axis=(0, 1)),
        "initial_state": initial,
    }
    return {name: grads[name] if given.get(name) is not None else None for name in NAMES}


def _rounding(call, eps):
    """Relative errors: of a step size and of a decay; and what is lost where numbers are too small to be normal."""
    # The bias is one rounding, which is as much of the argument; a softplus has five more and is no steeper.
    step = eps * ((6 + np.abs(call.raw)) if call.soft else np.ones_like(call.raw))
    exponent = np.abs(call.delta[..., None] * call.A)
    decay = 3 * eps + exponent * (3 * eps + step[..., None])
    tiny = 4 * np.finfo(np.float32 if eps > 1e-10 else np.float64).tiny
    return step, decay, tiny


def _magnitudes(call, eps):
    """Magnitudes of states before and after every token, and their errors; and of the last states."""
    step, off, tiny = _rounding(call, eps)
    zeros = np.zeros(call.B.shape)
    before, after, error_before, error_after = zeros.copy(), zeros.copy(), zeros.copy(), zeros.copy()
    last = np.zeros(call.initial.shape)
    for row, start, end, begin, keep in call.pieces:
        h = np.zeros(call.A.shape) if begin is None else np.abs(call.initial[begin])
        error = np.zeros(call.A.shape)
        for t in range(start, end):
            before[row, t], error_before[row, t] = h, error
            new = np.abs((call.delta[row, t] * call.u[row, t])[:, None] * call.B[row, t])
            a = np.exp(call.delta[row, t][:, None] * call.A)
            error = a * error + ((off[row, t] + eps) * a + tiny) * h + (step[row, t][:, None] + 3 * eps) * new
            h = a * h + new
            error = error + eps * h + tiny
            after[row, t], error_after[row, t] = h, error
        if keep is not None:
            last[keep] = error
    return before, after, error_before, error_after, last


def bounds(eps, *arguments, **options):
    """Largest errors of ``y`` and of the last states in arithmetic of precision ``eps``.

    ``eps`` is twice what one rounding changes: that covers terms of second order.
    """
    call = _call(*arguments, **options)
    _, after, _, error, last = _magnitudes(call, eps)
    C = np.abs(call.C)
    y = (after * C).sum(axis=-1) + np.abs(call.D * call.u)
    error = (error * C).sum(axis=-1) + (call.A.shape[1] + 4) * eps * y
    gate = np.abs(call.gate)
    return call.back(error * gate + 9 * eps * y * gate + 1e-300), last


def gradient_bounds(eps, grad_out, *arguments, grad_last_state=None, **options):
    """Largest errors of the gradients, by name."""
    given = dict(zip((*NAMES[:8], "delta_softplus", "initial_state"), arguments, strict=False)) | options
    call = _call(**given)
    step, off, tiny = _rounding(call, eps)
    before, after, error_before, error_after, _ = _magnitudes(call, eps)
    dy = np.abs(np.asarray(grad_out, dtype=np.float64))
    dy = dy if call.last else dy.swapaxes(1, 2)
    L, D, S = call.u.shape[1], call.u.shape[2], call.A.shape[1]
    tokens = call.u.shape[0] * L
    A, B, C, u, delta = (np.abs(v) for v in (call.A, call.B, call.C, call.u, call.delta))
    floor = 64 * tiny * (1 + after.max(initial=0)) * (1 + dy.max(initial=0)) * (1 + A.max(initial=0))
    of_z = None
    if call.z is not None:
        y = (after * C).sum(axis=-1) + np.abs(call.D) * u
        error = (error_after * C).sum(axis=-1) + (S + 4) * eps * y
        slope = sigmoid(call.z) * (1 + np.abs(call.z))
        of_z = dy * slope * (error + 20 * eps * y) + floor
        dy = dy * np.abs(call.gate)
    off_dy = 0 if call.z is None else 9 * eps
    g, error_g = np.zeros(B.shape), np.zeros(B.shape)
    carried, error_carried = np.zeros(B.shape), np.zeros(B.shape)
    initial = np.zeros(call.initial.shape)
    for row, start, end, begin, keep in call.pieces:
        carry = np.zeros(A.shape)
        if grad_last_state is not None and keep is not None:
            carry = np.abs(np.asarray(grad_last_state[keep], dtype=np.float64))
        error = np.zeros(A.shape)
        for t in reversed(range(start, end)):
            own = dy[row, t][:, None] * C[row, t]
            g[row, t] = own + carry
            error_g[row, t] = error + (off_dy + eps) * own + eps * g[row, t]
            a = np.exp(call.delta[row, t][:, None] * call.A)
            carry = a * g[row, t]
            error = a * error_g[row, t] + ((off[row, t] + eps) * a + tiny) * g[row, t] + tiny
            carried[row, t], error_carried[row, t] = carry, error
        if begin is not None:
            initial[begin] = error
    w = carried * before
    error_w = error_carried * before + carried * error_before + eps * w + tiny
    through = (g * B).sum(axis=-1)
    error_through = (error_g * B).sum(axis=-1) + (S + 2) * eps * through
    of_delta = u * through + (w * A).sum(axis=-1)
    error_delta = u * error_through + (error_w * A).sum(axis=-1) + (S + 6) * eps * of_delta
    if call.soft:
        slope = sigmoid(call.raw)
        error_delta = slope * (error_delta + (6 + np.abs(call.raw)) * eps * of_delta)
        of_delta = slope * of_delta
    of_u = (
        delta * error_through + (step + 3 * eps) * delta * through + (off_dy + 3 * eps) * np.abs(call.D) * dy
    )
    x = (delta * u)[..., None]
    of_b = error_g * x + (step[..., None] + (D + tokens + 9) * eps) * g * x
    of_c = error_after * dy[..., None] + (off_dy + (D + tokens + 9) * eps) * after * dy[..., None]
    of_a = error_w * delta[..., None] + (step[..., None] + (tokens + 9) * eps) * w * delta[..., None]
    every = {
        "u": call.back(of_u + floor),
        "delta": call.back(error_delta + floor),
        "A": of_a.sum(axis=(0, 1)) + floor,
        "B": _uncoefficient(of_b + floor, given["B"], call.last),
        "C": _uncoefficient(of_c + floor, given["C"], call.last),
        "D": ((off_dy + (tokens + 9) * eps) * dy * u).sum(axis=(0, 1)) + floor,
        "z": None if of_z is None else call.back(of_z),
        "delta_bias": (error_delta + (tokens + 9) * eps * of_delta).sum(axis=(0, 1)) + floor,
        "initial_state": initial + floor,
    }
    return {name: every[name] if given.get(name) is not None else None for name in NAMES}
