"""Stacks of symmetric matrices: checks whose messages say which matrix it is, and factors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError

__all__ = ["Place", "at_index", "cholesky", "root", "symmetric"]

Array = NDArray[Any]
Place = Callable[[tuple[int, ...]], str]
"""Words for the place of a matrix in its stack, `` of expert 1, row 3``."""


def at_index(index: tuple[int, ...]) -> str:
    """Return the place of a matrix as an index."""
    return f"[{', '.join(str(i) for i in index)}]" if index else ""


def _first(bad: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(bad)[0])


def symmetric(name: str, matrices: Array, dtype: np.dtype[Any], place: Place = at_index) -> Array:
    """Return the matrices (..., D, D) exactly symmetric, in ``float64``.

    They must be symmetric but for the rounding of the dtype that they were given in: half of its digits.

    Raises
    ------
    ArgumentError
        Where one is not finite, or not symmetric.
    """
    matrices = matrices.astype(np.float64, copy=False)
    turned = np.swapaxes(matrices, -1, -2)
    most = np.abs(matrices).max(axis=(-2, -1), initial=0.0)
    if not np.isfinite(most).all():
        raise ArgumentError(f"{name}{place(_first(~np.isfinite(most)))} is not finite")
    off = np.abs(matrices - turned).max(axis=(-2, -1), initial=0.0)
    bad = off > tolerance(dtype) * most
    if bad.any():
        raise ArgumentError(f"{name}{place(_first(bad))} is not symmetric")
    return np.asarray((matrices + turned) / 2)


def tolerance(dtype: np.dtype[Any]) -> float:
    """Return the share of a matrix's size that counts as rounding: half of the digits of its dtype."""
    return float(np.sqrt(np.finfo(dtype).eps))


def cholesky(name: str, matrices: Array, place: Place = at_index) -> Array:
    """Return lower triangular ``F`` with ``F F^T`` the matrix, for each of a symmetric stack.

    Raises
    ------
    ArgumentError
        Where one is not positive definite.
    """
    try:
        return np.asarray(np.linalg.cholesky(matrices))
    except np.linalg.LinAlgError:
        pass
    for index in np.ndindex(matrices.shape[:-2]):
        try:
            np.linalg.cholesky(matrices[index])
        except np.linalg.LinAlgError:
            raise ArgumentError(f"{name}{place(index)} is not positive definite") from None
    raise ArgumentError(f"{name} is not positive definite")


def root(name: str, matrices: Array, dtype: np.dtype[Any], place: Place = at_index) -> Array:
    """Return ``F`` with ``F F^T`` the matrix, for each of a symmetric stack that may be singular.

    Raises
    ------
    ArgumentError
        Where one has a negative eigenvalue beyond the rounding of its dtype.
    """
    values, vectors = np.linalg.eigh(matrices)
    most = np.abs(values).max(axis=-1, initial=0.0)
    least = values.min(axis=-1, initial=0.0)
    bad = least < -tolerance(dtype) * most
    if bad.any():
        index = _first(bad)
        raise ArgumentError(
            f"{name}{place(index)} is not positive semidefinite: it has the eigenvalue {least[index]:.3g}"
        )
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :])
