"""Matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from .._validate import as_floats
from ..errors import DTypeError, ShapeError

__all__ = ["matmul"]

Array = NDArray[Any]


def _stored(name: str, value: ArrayLike) -> tuple[Array, bool]:
    """Return the matrix as it lies in memory, and whether that is its transpose."""
    array = np.asarray(value)
    if array.ndim != 2:
        raise ShapeError(f"{name} has shape {array.shape}, expected 2 dimensions")
    transposed = array.flags.f_contiguous and not array.flags.c_contiguous
    (array,) = as_floats(**{name: array.T if transposed else array})
    return array, transposed


def matmul(a: ArrayLike, b: ArrayLike) -> Array:
    """Return the matrix product ``a @ b``.

    Each element is summed over ``K`` in order, in steps of at most 512 that are then added up: results are
    the same for any number of threads, and for operands that are transposed views, which are read where they
    lie.

    Parameters
    ----------
    a : ndarray, shape (M, K)
        ``float32`` or ``float64``.
    b : ndarray, shape (K, N)
        Of the dtype of ``a``.

    Returns
    -------
    ndarray, shape (M, N)
        Zeros where ``K`` is 0.

    Raises
    ------
    ShapeError
        Where an operand is not a matrix, or their ``K`` differ.
    DTypeError
        Where the dtypes differ, or are not ``float32`` or ``float64``.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium import ops
    >>> ops.matmul(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]))
    array([[11.]])
    """
    a, transposed_a = _stored("a", a)
    b, transposed_b = _stored("b", b)
    if a.dtype != b.dtype:
        raise DTypeError(f"b has dtype {b.dtype} but a has {a.dtype}")
    return _core.matmul(a, b, transposed_a, transposed_b)
