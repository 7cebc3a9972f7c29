"""Arrays as the kernels over four dimensions read and write them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validate import as_array
from ..errors import DTypeError

__all__ = ["bits", "half_name", "like", "tensor"]

Array = NDArray[Any]


def half_name(dtype: np.dtype[Any]) -> str | None:
    """Return ``float16``, or ``bfloat16`` of ``ml_dtypes``, where the dtype is that, told by name."""
    if dtype.itemsize != 2:
        return None
    return "float16" if dtype.kind == "f" else "bfloat16" if dtype.name == "bfloat16" else None


def tensor(name: str, value: ArrayLike) -> Array:
    """Return ``value`` as a kernel reads it: as it is where rows are contiguous, otherwise a copy.

    Raises
    ------
    DTypeError
        Where it is of no dtype that kernels store.
    """
    array = value if type(value) is np.ndarray else as_array(name, value)
    dtype = array.dtype
    if (dtype.kind != "f" or dtype.itemsize not in (4, 8)) and half_name(dtype) is None:
        raise DTypeError(f"{name} has dtype {dtype}, expected float32, float64, float16 or bfloat16")
    if array.ndim == 4:
        size = dtype.itemsize
        batch, head, row, column = array.strides
        if (
            column == size
            and dtype.isnative
            and array.flags.aligned
            and min(batch, head, row) >= 0
            and (batch | head | row) % size == 0
        ):
            return array
    return np.require(array, dtype=dtype.newbyteorder("="), requirements=["C", "A"])


def bits(array: Array) -> Array:
    """Return an array as the binding takes it: half precision as ``uint16``, in the same memory."""
    return array.view(np.uint16) if array.dtype.itemsize == 2 else array


def like(array: Array) -> Array:
    """Return a new array of the same shape with heads and tokens in the same order in memory."""
    batch, heads, tokens, width = array.shape
    _, head, row, _ = array.strides
    if head < row:
        return np.empty((batch, tokens, heads, width), dtype=array.dtype).transpose(0, 2, 1, 3)
    return np.empty(array.shape, dtype=array.dtype)
