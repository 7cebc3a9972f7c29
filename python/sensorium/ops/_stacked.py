"""Gaussian experts as NumPy reads them: stacked, in ``float64``, who is there, and how much each counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._validate import as_array
from ..errors import ArgumentError, DTypeError, ShapeError
from ._experts import Given, presence, same_keys, weights_of

__all__ = [
    "Experts",
    "floats",
    "read_experts",
    "read_mask",
    "read_prior",
    "read_stack",
    "read_weights",
]

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Experts:
    """Means ``(M, B, D)``, 0 where an expert is missing; who is there, and weights, both ``(M, B)``."""

    keys: tuple[str, ...] | None
    mu: Array
    present: NDArray[np.bool_]
    weights: Array
    dtype: np.dtype[Any]

    def word(self, expert: int) -> str:
        """Return what an error calls an expert."""
        return f"expert {expert}" if self.keys is None else f"expert {self.keys[expert]!r}"

    def place(self, index: tuple[int, ...]) -> str:
        """Return what an error says of the place of a matrix."""
        return f" of {self.word(index[0])}, row {index[1]},"

    def read(self, name: str, value: Given, dims: str, fill: Array | float) -> Array:
        """Return what belongs to experts, ``(M, B, ...)`` in ``float64``, ``fill`` where one is missing."""
        stacked, _, dtype = read_stack(name, value, dims, self.keys)
        if dtype != self.dtype:
            raise DTypeError(f"{name} has dtype {dtype} but mu has {self.dtype}")
        self.check_sizes(name, stacked, dims)
        there = self.present.reshape(self.present.shape + (1,) * (stacked.ndim - 2))
        return np.where(there, stacked, fill)

    def check_sizes(self, name: str, stacked: Array, dims: str) -> None:
        """Hold an array to the sizes of ``mu``."""
        have = dict(zip("MBD", self.mu.shape, strict=True))
        for letter, got in zip(dims.split(), stacked.shape, strict=True):
            if have.get(letter, got) != got:
                raise ShapeError(f"{name} has {letter}={got} but mu has {letter}={have[letter]}")

    def check_informed(self, prior: bool) -> None:
        """Hold every row to an expert or a prior."""
        if prior:
            return
        bare = ~(self.weights > 0).any(axis=0)
        if bare.any():
            row = int(np.argmax(bare))
            raise ArgumentError(f"row {row} has no expert that counts, and there is no prior")


def read_stack(
    name: str, value: Given, dims: str, keys: tuple[str, ...] | None
) -> tuple[Array, tuple[str, ...] | None, np.dtype[Any]]:
    """Return an array whose first axis is that of experts, names of these if any, and the dtype of results.

    Raises
    ------
    DTypeError, ShapeError, ArgumentError
        Where it is not of floats, or has another number of dimensions or other names than ``keys``.
    """
    letters = dims.split()
    if isinstance(value, Mapping):
        names = tuple(value)
        if keys is not None:
            value, names = same_keys(name, value, keys), keys
        if not names:
            raise ArgumentError(f"{name} has no expert")
        parts = [floats(f"{name}[{key!r}]", value[key]) for key in names]
        for key, part in zip(names, parts, strict=True):
            _check_ndim(f"{name}[{key!r}]", part, letters[1:])
            if part.dtype != parts[0].dtype:
                raise DTypeError(
                    f"{name}[{key!r}] has dtype {part.dtype} but {name}[{names[0]!r}] has {parts[0].dtype}"
                )
            if part.shape != parts[0].shape:
                raise ShapeError(
                    f"{name}[{key!r}] has shape {part.shape} but {name}[{names[0]!r}] has {parts[0].shape}"
                )
        return np.stack(parts).astype(np.float64), names, parts[0].dtype
    array = floats(name, value)
    _check_ndim(name, array, letters)
    return array.astype(np.float64, copy=False), keys, array.dtype


def _check_ndim(name: str, array: Array, letters: Sequence[str]) -> None:
    if array.ndim != len(letters):
        raise ShapeError(
            f"{name} has shape {array.shape}, expected {len(letters)} dimensions ({', '.join(letters)})"
        )


def floats(name: str, value: Any) -> Array:
    """Return an array of ``float32`` or ``float64`` in native order."""
    array = as_array(name, value)
    if array.dtype.kind != "f" or array.dtype.itemsize not in (4, 8):
        raise DTypeError(f"{name} has dtype {array.dtype}, expected float32 or float64")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def read_experts(mu: Given, mask: Any, weights: Any) -> Experts:
    """Return experts by their means; what is masked is never read.

    Raises
    ------
    DTypeError, ShapeError, ArgumentError
        Where an argument does not fit; the message names it.
    """
    stacked, keys, dtype = read_stack("mu", mu, "M B D", None)
    M, B, _ = stacked.shape
    present = read_mask(mask, keys, M, B)
    how_much = read_weights(weights, keys, present)
    return Experts(keys, np.where(present[..., None], stacked, 0.0), present, how_much, dtype)


def read_mask(mask: Any, keys: tuple[str, ...] | None, M: int, B: int) -> NDArray[np.bool_]:
    """Return who is there, ``(M, B)``: everybody where ``mask`` is None."""
    found = presence(mask, keys, M, B)
    return np.ones((M, B), dtype=bool) if found is None else found


def read_weights(
    weights: Any, keys: tuple[str, ...] | None, there: NDArray[np.bool_], name: str = "weights"
) -> Array:
    """Return how much each expert counts, ``(M, B)``: 0 where one is missing, 1 where ``weights`` is None.

    Raises
    ------
    DTypeError, ShapeError, ArgumentError
        Where they do not fit, or that of an expert that is there is not finite, or below 0.
    """
    M, B = there.shape
    array, _ = weights_of(weights, keys, M, B, np.dtype(np.float64), name)
    if array is None:
        return there.astype(np.float64)
    read = np.where(there, array, 0.0)
    bad = ~(np.isfinite(read) & (read >= 0))
    if bad.any():
        m, b = (int(i) for i in np.argwhere(bad)[0])
        word = f"expert {m}" if keys is None else f"expert {keys[m]!r}"
        raise ArgumentError(f"{name} of {word}, row {b}, must be finite and at least 0, not {read[m, b]:g}")
    return read


def read_prior(prior: Any, D: int, dtype: np.dtype[Any]) -> tuple[Array, Array] | None:
    """Return mean (D,) and the second of the pair, (D,) or (D, D), in ``float64``; None without a prior.

    Raises
    ------
    DTypeError, ShapeError, ArgumentError
        Where it is neither a boolean nor such a pair.
    """
    if prior is None or prior is False:
        return None
    if prior is True:
        return np.zeros(D), np.zeros(D)
    if not isinstance(prior, tuple | list) or len(prior) != 2:
        raise DTypeError("prior must be True, False, or a pair (mean, logvar)")
    mean, spread = (floats("prior", part) for part in prior)
    for part in (mean, spread):
        if part.dtype != dtype:
            raise DTypeError(f"prior has dtype {part.dtype} but mu has {dtype}")
    if mean.shape != (D,) or spread.shape not in ((D,), (D, D)):
        raise ShapeError(f"prior has shapes {mean.shape} and {spread.shape}, expected ({D},) and ({D},)")
    return mean.astype(np.float64), spread.astype(np.float64)
