"""Arrays as kernels read and write them, and what is checked of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validate import as_array, as_floats
from ..errors import ArgumentError, DTypeError, ShapeError

__all__ = [
    "arithmetic",
    "bits",
    "check_state",
    "expect",
    "finish",
    "half_name",
    "like",
    "optional",
    "place",
    "same_dtype",
    "tensor",
]

Array = NDArray[Any]


def half_name(dtype: np.dtype[Any]) -> str | None:
    """Return ``float16``, or ``bfloat16`` of ``ml_dtypes``, where the dtype is that, told by name."""
    if dtype.itemsize != 2:
        return None
    return "float16" if dtype.kind == "f" else "bfloat16" if dtype.name == "bfloat16" else None


def arithmetic(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype that arithmetic is done in: float32 for half precision."""
    return np.dtype(np.float32) if dtype.itemsize == 2 else dtype.newbyteorder("=")


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


def place(
    name: str, given: Any, dtype: np.dtype[Any], shape: tuple[int, ...], others: Mapping[str, ArrayLike]
) -> Array:
    """Return the array that a kernel is to write where the caller wants a result in ``given``.

    That is ``given`` itself where a kernel can write it, and otherwise a new array, for :func:`finish`.

    Raises
    ------
    DTypeError, ShapeError, ArgumentError
        Where ``given`` does not fit, is read-only, or shares memory with an array of ``others``.
    """
    if not isinstance(given, np.ndarray):
        raise DTypeError(f"{name} must be an ndarray, not {type(given).__name__}")
    if given.dtype != dtype:
        raise DTypeError(f"{name} has dtype {given.dtype}, expected {dtype}")
    if given.shape != shape:
        raise ShapeError(f"{name} has shape {given.shape}, expected {shape}")
    if not given.flags.writeable:
        raise ArgumentError(f"{name} is read-only")
    if any(stride == 0 and size > 1 for stride, size in zip(given.strides, shape, strict=True)):
        raise ArgumentError(f"{name} has elements that share memory")
    apart = True
    for other, value in others.items():
        array = as_array(other, value)
        if np.shares_memory(given, array):
            raise ArgumentError(f"{name} shares memory with {other}")
        apart = apart and not np.may_share_memory(given, array)
    if apart and given.flags.c_contiguous and given.flags.aligned:
        return given
    rows = given.ndim == 4 and tensor(name, given) is given
    return given if apart and rows else np.empty(shape, dtype=dtype)


def finish(given: Array | None, written: Array) -> Array:
    """Return a result where the caller wants it: ``written``, or ``given`` with the same numbers."""
    if given is None or given is written:
        return written
    given[...] = written
    return given


def optional(name: str, value: ArrayLike | None) -> Array | None:
    """Return ``value`` as a contiguous array of floats, None where there is none."""
    return None if value is None else as_floats(**{name: value})[0]


def same_dtype(other: str, dtype: np.dtype[Any], **arrays: Array | None) -> None:
    """Hold the arrays that are there to ``dtype``, which is that of the argument ``other``.

    Raises
    ------
    DTypeError
        Where one has another.
    """
    for name, array in arrays.items():
        if array is not None and array.dtype != dtype:
            raise DTypeError(f"{name} has dtype {array.dtype} but {other} has {dtype}")


def expect(name: str, array: Array | None, shape: tuple[int, ...]) -> None:
    """Hold an array that is there to a shape.

    Raises
    ------
    ShapeError
        Where it has another.
    """
    if array is not None and array.shape != shape:
        raise ShapeError(f"{name} has shape {array.shape}, expected {shape}")


def check_state(state: Any) -> None:
    """Hold ``state`` to what a kernel can update in place.

    Raises
    ------
    DTypeError, ArgumentError
        Where it is no array of native floats, or cannot be written as it lies.
    """
    if not isinstance(state, np.ndarray):
        raise DTypeError(f"state must be an ndarray, not {type(state).__name__}")
    if state.dtype.char not in "fd" or not state.dtype.isnative:
        raise DTypeError(f"state has dtype {state.dtype}, expected float32 or float64, in native order")
    if not (state.flags.writeable and state.flags.c_contiguous and state.flags.aligned):
        raise ArgumentError("state must be writeable and contiguous, to be updated in place")
