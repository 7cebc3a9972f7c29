"""What layers with a state-space recurrence share: their first draws, and the decay of their states."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Params", "State", "decay", "time_step_bias", "uniform"]

Params = dict[str, Any]
State = dict[str, NDArray[Any]]
Floats = NDArray[np.float32]


def uniform(rng: np.random.Generator, shape: tuple[int, ...], bound: float) -> Floats:
    """Return ``float32`` draws between ``-bound`` and ``bound``."""
    return ((2 * rng.random(shape, np.float32) - 1) * np.float32(bound)).astype(np.float32)


def time_step_bias(
    rng: np.random.Generator, count: int, time_step: tuple[float, float], floor: float
) -> Floats:
    """Return what softplus takes to time steps uniform in their logarithm: ``dt + log(-expm1(-dt))``."""
    low, high = np.log(time_step[0]), np.log(time_step[1])
    dt = np.maximum(np.exp(low + (high - low) * rng.random(count)), floor)
    bias: Floats = (dt + np.log(-np.expm1(-dt))).astype(np.float32)
    return bias


def decay(xp: Any, params: Params) -> Any:
    """Return ``A = -exp(A_log)``, by NumPy or by its differentiable twin, unless it is there already."""
    A = params.get("A")
    return -xp.exp(params["A_log"]) if A is None else A
