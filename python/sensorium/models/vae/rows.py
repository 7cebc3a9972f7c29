"""Batches held to a configuration: what is there is checked, what is masked is never looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ..._validate import as_array
from ...errors import ArgumentError, DTypeError, ShapeError
from .config import Config, ModalityConfig

__all__ = ["Batch", "Mask", "Rows", "chosen", "read_rows"]

Batch: TypeAlias = Mapping[str, ArrayLike]
Mask: TypeAlias = "Mapping[str, ArrayLike] | ArrayLike | None"


@dataclass(frozen=True, eq=False)
class Rows:
    """A checked batch.

    Parameters
    ----------
    values : dict of str to array (B, size)
        Items of every modality, zeros where they are missing.
    present : array (M, B) of bool
        Which are there.
    """

    values: dict[str, NDArray[Any]]
    present: NDArray[np.bool_]

    def __len__(self) -> int:
        return int(self.present.shape[1])

    def take(self, index: NDArray[Any]) -> Rows:
        """Return some of the rows, or these where all are kept."""
        if index.dtype == np.bool_ and index.all():
            return self
        return Rows({name: array[index] for name, array in self.values.items()}, self.present[:, index])


def chosen(config: Config, name: str, names: Sequence[str] | None) -> NDArray[np.bool_]:
    """Return which modalities of a model an argument names, ``(M,)``; all where it is None."""
    if names is None:
        return np.ones(len(config.names), bool)
    if isinstance(names, str):
        raise DTypeError(f"{name} is one str, expected a sequence of them")
    for one in names:
        if one not in config.modalities:
            raise ArgumentError(f"{name} holds {one!r}, expected some of {', '.join(config.names)}")
    return np.array([one in names for one in config.names])


def read_rows(config: Config, batch: Batch, mask: Mask, dtype: DTypeLike) -> Rows:
    """Return a batch as flat arrays of one dtype.

    Parameters
    ----------
    config : Config
        The model.
    batch : mapping of str to array (B, ...)
        Items by modality. Modalities that are not in it are missing from every row.
    mask : mapping of str to array (B,) of bool, or array (M, B) of bool, optional
        Which items are there; of a modality without a mask all are. An array has the order of the
        configuration.
    dtype : dtype
        Of the result.

    Raises
    ------
    ArgumentError, ShapeError, DTypeError
        Where an argument does not fit the configuration; the message names it.
    """
    if not isinstance(batch, Mapping):
        raise DTypeError(f"batch must be a mapping of modalities to arrays, not {type(batch).__name__}")
    for name in batch:
        if name not in config.modalities:
            raise ArgumentError(
                f"batch has the modality {name!r}, expected some of {', '.join(config.names)}"
            )
    if not batch:
        raise ArgumentError(f"batch is empty, expected some of {', '.join(config.names)}")
    arrays = {name: _items(f"batch[{name!r}]", config.modalities[name], a) for name, a in batch.items()}
    first = next(iter(arrays))
    count = len(arrays[first])
    for name, array in arrays.items():
        if len(array) != count:
            raise ShapeError(f"batch[{name!r}] has {len(array)} rows but batch[{first!r}] has {count}")
    present = _present(config, arrays, mask, count)
    values = {}
    for name, there in zip(config.names, present, strict=True):
        m = config.modalities[name]
        values[name] = np.zeros((count, m.size), dtype)
        if name in arrays:
            kept = arrays[name] if there.all() else arrays[name][there]
            flat = kept.reshape(len(kept), m.size).astype(dtype, copy=False)
            _check_values(f"batch[{name!r}]", m, flat)
            values[name][there] = flat
    return Rows(values, present)


def _items(name: str, modality: ModalityConfig, value: ArrayLike) -> NDArray[Any]:
    array = as_array(name, value)
    if array.dtype.kind not in "fiub":
        raise DTypeError(f"{name} has dtype {array.dtype}, expected numbers")
    flat = (modality.size,)
    if array.ndim < 2 or array.shape[1:] not in (modality.dims, flat):
        want = ", ".join(map(str, modality.dims))
        raise ShapeError(f"{name} has shape {array.shape}, expected (B, {want})")
    return array


def _present(config: Config, arrays: Mapping[str, NDArray[Any]], mask: Mask, count: int) -> NDArray[np.bool_]:
    present = np.array([np.full(count, name in arrays) for name in config.names])
    if mask is None:
        return present
    if isinstance(mask, Mapping):
        for name, value in mask.items():
            if name not in config.modalities:
                raise ArgumentError(
                    f"mask has the modality {name!r}, expected some of {', '.join(config.names)}"
                )
            there = _booleans(f"mask[{name!r}]", value)
            if there.shape != (count,):
                raise ShapeError(f"mask[{name!r}] has shape {there.shape}, expected ({count},)")
            present[config.names.index(name)] &= there
        return present
    there = _booleans("mask", mask)
    if there.shape != present.shape:
        raise ShapeError(f"mask has shape {there.shape}, expected {present.shape}")
    return present & there


def _booleans(name: str, value: ArrayLike) -> NDArray[np.bool_]:
    array = as_array(name, value)
    if array.dtype != np.bool_:
        raise DTypeError(f"{name} has dtype {array.dtype}, expected bool")
    return array


def _check_values(name: str, modality: ModalityConfig, flat: NDArray[Any]) -> None:
    if not np.isfinite(flat).all():
        raise ArgumentError(f"{name} holds values that are not finite where it is present")
    if modality.likelihood in ("bernoulli", "categorical") and flat.size:
        if flat.min() < 0 or flat.max() > 1:
            bad = flat.min() if flat.min() < 0 else flat.max()
            raise ArgumentError(f"{name} holds {bad:g}, expected values from 0 to 1")
        if modality.likelihood == "categorical":
            sums = flat.reshape(len(flat), -1, modality.dims[-1]).sum(axis=2)
            if np.abs(sums - 1).max() > 1e-3:
                bad = sums.ravel()[np.abs(sums - 1).argmax()]
                raise ArgumentError(f"{name} has probabilities that add up to {bad:g}, expected 1")
