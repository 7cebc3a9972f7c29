"""What densities and distances of Gaussians are computed with: nothing overflows early, nothing cancels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validate import as_array
from ..errors import DTypeError, ShapeError

__all__ = [
    "exp_less",
    "gaussian_arguments",
    "quarter",
    "quiet",
    "sigma_difference",
    "standardised",
    "total",
]

Array = NDArray[Any]

_EXTREME = 2800.0  # exp(-x / 4) is finite; a finite difference times its square is 0, infinite, or 0 * inf
_SERIES = 0.5  # below it, exp(d) - 1 - d by subtraction would lose three bits and more


def quiet() -> np.errstate:
    """Return a context without warnings: what no float holds is infinite, and NaN stays NaN."""
    return np.errstate(over="ignore", under="ignore", invalid="ignore")


def gaussian_arguments(**values: ArrayLike) -> tuple[list[Array], np.dtype[Any], tuple[int, ...]]:
    """Return the arrays as ``float64``, the dtype of results, and the shape that all broadcast to.

    Numbers of Python take the dtype of the arrays beside them.

    Raises
    ------
    DTypeError, ShapeError
        Where an array is not of floats, two differ in dtype, or shapes do not broadcast.
    """
    arrays: list[Array] = []
    first: tuple[str, np.dtype[Any]] | None = None
    for name, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool | np.generic):
            arrays.append(np.asarray(value, np.float64))
            continue
        array = as_array(name, value)
        if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
            raise DTypeError(f"{name} has dtype {array.dtype}, expected float32 or float64")
        dtype = array.dtype.newbyteorder("=")
        if first is not None and first[1] != dtype:
            raise DTypeError(f"{name} has dtype {dtype} but {first[0]} has {first[1]}")
        first = first or (name, dtype)
        arrays.append(array.astype(np.float64, copy=False))
    shape = _broadcast(values, arrays)
    return arrays, np.dtype(np.float64) if first is None else first[1], shape


def _broadcast(names: Any, arrays: list[Array]) -> tuple[int, ...]:
    shape: tuple[int, ...] = ()
    for name, array in zip(names, arrays, strict=True):
        try:
            shape = np.broadcast_shapes(shape, array.shape)
        except ValueError:
            raise ShapeError(f"{name} has shape {array.shape}, which does not broadcast to {shape}") from None
    if not shape:
        raise ShapeError(f"{next(iter(names))} is a number, expected an array (..., D)")
    return shape


def total(terms: Array, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return the sum over the last axis of terms that are broadcast to a shape."""
    summed = np.broadcast_to(terms, shape).sum(axis=-1)
    return np.asarray(summed).astype(dtype, copy=False)


def quarter(logvar: Array) -> Array:
    """Return ``exp(-logvar / 4)``: four factors that are finite where the whole would overflow."""
    return np.asarray(np.exp(np.clip(logvar, -_EXTREME, _EXTREME) / -4))


def standardised(difference: Array, root: Array) -> Array:
    """Return ``difference / sigma``, given :func:`quarter` of the variance."""
    return difference * root * root


def exp_less(d: Array) -> Array:
    """Return ``exp(d) - 1 - d`` without cancellation: at least 0, and 0 for 0 alone."""
    near = np.abs(d) < _SERIES
    x = np.where(near, d, 0.0)
    series = np.ones_like(x)  # 1 + x/3 (1 + x/4 (...)): what is left out is below 2e-16 of the sum.
    for n in range(14, 2, -1):
        series = 1 + x * series / n
    return np.where(near, x * x / 2 * series, np.where(d == np.inf, d, np.expm1(d) - d))


def sigma_difference(logvar: Array, other: Array) -> Array:
    """Return the difference of two standard deviations, to the last bits where they are close."""
    most = np.maximum(logvar, other)
    size = np.exp(most / 2) * np.expm1(-np.abs(logvar - other) / 2)
    return np.where(logvar == other, 0.0, np.where(logvar < other, size, -size))
