"""One set of checks for every public function, in the language of the docstrings."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ArgumentError, DTypeError, ShapeError

__all__ = [
    "as_array",
    "as_floats",
    "as_indices",
    "check_dims",
    "check_finite_number",
    "check_integer",
    "check_positive",
]

Floats = NDArray[np.float32] | NDArray[np.float64]


def as_array(name: str, value: Any) -> NDArray[Any]:
    """Return ``value`` as an array, without a copy where it has one: ``__array__``, else ``__dlpack__``.

    The former also tells dtypes that DLPack and NumPy have no common name for, such as ``bfloat16``.

    Raises
    ------
    DTypeError
        Where the value's own protocol refuses, because it lies in another device's memory for instance.
    """
    if type(value) is np.ndarray:
        return value
    try:
        if not hasattr(value, "__array__") and hasattr(value, "__dlpack__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except (TypeError, RuntimeError, BufferError) as error:
        raise DTypeError(f"{name} cannot be read as an array: {error}") from error


def as_floats(**arrays: ArrayLike) -> list[NDArray[np.floating]]:
    """Return the arrays contiguous, native-endian and of one dtype, ``float32`` or ``float64``.

    Arrays that already are come back as they are, without a copy.

    Raises
    ------
    DTypeError
        Where an array is of another dtype, or two differ; the message names the argument.
    """
    values = list(arrays.values())
    if _are_kernel_ready(values):
        return cast("list[NDArray[np.floating]]", values)
    out: list[NDArray[np.floating]] = []
    first: tuple[str, np.dtype[Any]] | None = None
    for name, value in arrays.items():
        array = as_array(name, value)
        if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
            raise DTypeError(f"{name} has dtype {array.dtype}, expected float32 or float64")
        native: np.dtype[Any] = np.dtype(np.float32 if array.dtype.itemsize == 4 else np.float64)
        if first is None:
            first = (name, native)
        elif first[1] != native:
            raise DTypeError(f"{name} has dtype {native} but {first[0]} has {first[1]}")
        out.append(np.require(array, dtype=native, requirements=["C", "A"]))
    return out


_INT64 = np.dtype(np.int64)
_NATIVE = (np.dtype(np.float32), np.dtype(np.float64))


def _are_kernel_ready(values: Sequence[Any]) -> bool:
    """Whether all are native arrays of one dtype, contiguous and aligned: 0.2 microseconds each."""
    dtype = getattr(values[0], "dtype", None) if values else None
    if dtype not in _NATIVE:
        return False
    for value in values:
        if type(value) is not np.ndarray or value.dtype is not dtype:
            return False
        flags = value.flags
        if not (flags.c_contiguous and flags.aligned):
            return False
    return True


def as_indices(name: str, value: ArrayLike, limit: int | None = None) -> NDArray[np.int64]:
    """Return ``value`` as contiguous ``int64`` indices, all within ``0 <= index < limit``.

    Raises
    ------
    DTypeError
        Where ``value`` is not of an integer dtype.
    ArgumentError
        Where an index is out of range.
    """
    array = np.asarray(value)
    if array.dtype is _INT64 and limit is None and array.flags.c_contiguous and array.flags.aligned:
        return array
    if array.dtype.kind not in "iu":
        if array.size:
            raise DTypeError(f"{name} has dtype {array.dtype}, expected integers")
        array = array.astype(np.int64)
    if limit is not None and array.size and (array.min() < 0 or array.max() >= limit):
        bad = array.min() if array.min() < 0 else array.max()
        raise ArgumentError(f"{name} holds {bad}, expected indices from 0 to {limit - 1}")
    return np.require(array, dtype=np.int64, requirements=["C", "A"])


def check_dims(spec: str, /, **arrays: NDArray[np.generic]) -> dict[str, int]:
    """Bind dimension letters to sizes and hold every array to them.

    Parameters
    ----------
    spec : str
        Dimensions of each array in the order of the keywords, ``"B H N D, B H M D"``.
        A number stands for itself.
    **arrays : ndarray
        Arrays by argument name.

    Returns
    -------
    dict
        Size of each letter.

    Raises
    ------
    ShapeError
        Where an array has another number of dimensions, or a letter another size than an earlier array.

    Examples
    --------
    >>> import numpy as np
    >>> check_dims("L D, D S", u=np.zeros((5, 3)), A=np.zeros((3, 2)))
    {'L': 5, 'D': 3, 'S': 2}
    >>> check_dims("L D, D S", u=np.zeros((5, 3)), A=np.zeros((2, 2)))
    Traceback (most recent call last):
    sensorium.errors.ShapeError: A has D=2 but u has D=3
    """
    sizes: dict[str, int] = {}
    owner: dict[str, str] = {}
    for letters, (name, array) in zip(spec.split(","), arrays.items(), strict=True):
        dims = letters.split()
        if array.ndim != len(dims):
            raise ShapeError(
                f"{name} has shape {array.shape}, expected {len(dims)} dimensions ({', '.join(dims)})"
            )
        for dim, got in zip(dims, array.shape, strict=True):
            if dim.isdigit():
                if got != int(dim):
                    raise ShapeError(
                        f"{name} has shape {array.shape}, expected size {dim} where it has {got}"
                    )
            elif sizes.setdefault(dim, got) != got:
                raise ShapeError(f"{name} has {dim}={got} but {owner[dim]} has {dim}={sizes[dim]}")
            else:
                owner.setdefault(dim, name)
    return sizes


def check_integer(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """Return ``value`` as an ``int`` from ``least`` to ``most``.

    Raises
    ------
    DTypeError
        Where it is not an integer.
    ArgumentError
        Where it is out of range.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise DTypeError(f"{name} must be an integer, not {type(value).__name__}") from None
    if number < least:
        raise ArgumentError(f"{name} must be at least {least}, not {number}")
    if most is not None and number > most:
        raise ArgumentError(f"{name} must be at most {most}, not {number}")
    return number


def check_finite_number(name: str, value: float) -> float:
    """Return ``value`` as a finite Python float.

    Raises
    ------
    DTypeError
        Where it is not a number.
    ArgumentError
        Where it is NaN or infinite.
    """
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise DTypeError(f"{name} must be a number, not {type(value).__name__}") from error
    if not math.isfinite(number):
        raise ArgumentError(f"{name} must be finite, not {number}")
    return number


def check_positive(name: str, value: float) -> float:
    """Return ``value`` as a finite Python float above zero.

    Raises
    ------
    DTypeError
        Where it is not a number.
    ArgumentError
        Where it is zero, negative, NaN or infinite.
    """
    number = check_finite_number(name, value)
    if number <= 0:
        raise ArgumentError(f"{name} must be above 0, not {number:g}")
    return number
