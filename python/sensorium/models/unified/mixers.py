"""What mixes the tokens of a layer in place of attention: scans, which remember in constant space."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ... import autodiff as ad
from ...nn import mamba, mamba2, ttt
from .sequence import Ints, Row

__all__ = ["MIXERS", "SCANS", "Mixer", "scan_row"]

Params = dict[str, Any]
State = Any
Shapes = dict[str, tuple[int, ...]]
EXPAND = 2  # Width of a Mamba layer's scan, in widths of the residual stream.
KERNEL = 4  # Tokens that its convolution sees.


@dataclass(frozen=True)
class Mixer:
    """A scan as the unified model uses it.

    Parameters
    ----------
    init : callable
        ``(rng, width, heads, state) -> params``, ``float32``.
    shapes : callable
        ``(width, heads, state) ->`` the shape of every parameter by its path.
    forward : callable
        ``(params, x, seq_idx, heads) -> y``, ``(B, L, D)`` both, differentiable.
    step : callable
        ``(params, x, state, heads) -> (y, state)``: goes on from a state, which it leaves as it is; from the
        beginning where that is None.
    """

    init: Callable[[np.random.Generator, int, int, int], Params]
    shapes: Callable[[int, int, int], Shapes]
    forward: Callable[[Params, Any, Ints | None, int], Any]
    step: Callable[[Params, Any, State, int], tuple[Any, State]]


def _ttt(kind: ttt.Kind) -> Mixer:
    return Mixer(
        init=lambda rng, width, heads, state: ttt.init(rng, width, heads=heads, kind=kind),
        shapes=lambda width, heads, state: ttt.shapes(width, heads=heads, kind=kind),
        forward=lambda p, x, seq_idx, heads: ttt.forward(p, x, heads=heads, seq_idx=seq_idx),
        step=lambda p, x, state, heads: ttt.step(p, x, state, heads=heads),
    )


def _mamba_shapes(width: int, heads: int, state: int) -> Shapes:
    inner, rank = EXPAND * width, math.ceil(width / 16)
    return {
        "in_proj/weight": (width, 2 * inner),
        "conv1d/weight": (inner, KERNEL),
        "conv1d/bias": (inner,),
        "x_proj/weight": (inner, rank + 2 * state),
        "dt_proj/weight": (rank, inner),
        "dt_proj/bias": (inner,),
        "A_log": (inner, state),
        "D": (inner,),
        "out_proj/weight": (inner, width),
    }


def _mamba2_shapes(width: int, heads: int, state: int) -> Shapes:
    inner, decays = EXPAND * width, EXPAND * heads
    channels = inner + 2 * state
    return {
        "in_proj/weight": (width, inner + channels + decays),
        "conv1d/weight": (channels, KERNEL),
        "conv1d/bias": (channels,),
        "dt_bias": (decays,),
        "A_log": (decays,),
        "D": (decays,),
        "norm/weight": (inner,),
        "out_proj/weight": (inner, width),
    }


def _step(module: ModuleType) -> Callable[[Params, Any, State, int], tuple[Any, State]]:
    def step(p: Params, x: Any, state: State, heads: int) -> tuple[Any, State]:
        if state is None:
            state = module.state(p, len(x))
        else:
            state = {name: array.copy() for name, array in state.items()}
        return module.step(p, x, state), state

    return step


# The projection that adds to the residual stream begins at zero, as in every block.
SCANS: dict[str, Mixer] = {
    "mamba": Mixer(
        init=lambda rng, width, heads, state: mamba.init(
            rng, width, expand=EXPAND, state_size=state, conv_kernel=KERNEL, out_scale=0.0
        ),
        shapes=_mamba_shapes,
        forward=lambda p, x, seq_idx, heads: mamba.forward(p, x, seq_idx=seq_idx),
        step=_step(mamba),
    ),
    "mamba2": Mixer(
        init=lambda rng, width, heads, state: mamba2.init(
            rng,
            width,
            expand=EXPAND,
            head_dim=width // heads,
            state_size=state,
            conv_kernel=KERNEL,
            out_scale=0.0,
        ),
        shapes=_mamba2_shapes,
        forward=lambda p, x, seq_idx, heads: mamba2.forward(p, x, seq_idx=seq_idx),
        step=_step(mamba2),
    ),
    "ttt_linear": _ttt("linear"),
    "ttt_mlp": _ttt("mlp"),
}
MIXERS = ("attention", *SCANS)


def scan_row(mixer: Mixer, p: Params, h: Any, row: Row, heads: int) -> Any:
    """Return the mixer's output ``(B, N, D)`` for whole rows ``h (B, N, D)``."""
    B = h.shape[0]
    order = row.order
    seq_idx = None
    if order.sequence[-1] > 0:
        seq_idx = np.broadcast_to(order.sequence, (B, len(order.sequence)))
    if order.plain:
        return mixer.forward(p, h, seq_idx, heads)
    read = _gather(h, order.columns)
    y = mixer.forward(p, read, seq_idx, heads)
    out = _gather(y, order.forward)
    if (order.backward >= 0).any():
        there = (order.backward >= 0).astype(y.dtype)[:, None]
        out = out + there * _gather(y, np.maximum(order.backward, 0))
    return out


def _gather(x: Any, columns: Ints) -> Any:
    """Return columns ``(B, n, D)`` of ``x (B, N, D)``."""
    B, N, D = x.shape
    return ad.embedding(x.reshape(B * N, D), np.arange(B)[:, None] * N + columns)
