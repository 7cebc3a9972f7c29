"""Rows that hold several sequences: by an index at every token, or by cumulative lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validate import as_indices, check_dims
from ..errors import ArgumentError, ShapeError

__all__ = ["check_packing"]

Indices = NDArray[np.int64]


def check_packing(
    B: int, L: int, seq_idx: ArrayLike | None, cu_seqlens: ArrayLike | None
) -> tuple[Indices | None, Indices | None, int]:
    """Return ``seq_idx (B, L)``, ``cu_seqlens (n + 1,)`` as the kernels take them, and the number of states.

    Without ``cu_seqlens`` a state belongs to a row: its first sequence begins from the row's initial state,
    its last one leaves the row's last state, and a sequence between begins from zero. With ``cu_seqlens``
    each of the n sequences of the one row has states of its own.

    Raises
    ------
    ArgumentError
        Where both are given, or the cumulative lengths do not rise from 0 to L.
    ShapeError, DTypeError
        Where one has another shape or is not of integers, or ``cu_seqlens`` comes with more rows than one.
    """
    if seq_idx is not None:
        if cu_seqlens is not None:
            raise ArgumentError("seq_idx and cu_seqlens cannot both be given")
        ids = as_indices("seq_idx", seq_idx)
        if ids.shape != (B, L):
            raise ShapeError(f"seq_idx has shape {ids.shape}, expected {(B, L)}")
        return ids, None, B
    if cu_seqlens is None:
        return None, None, B
    offsets: NDArray[Any] = as_indices("cu_seqlens", cu_seqlens)
    check_dims("n", cu_seqlens=offsets)
    if B != 1:
        raise ShapeError(f"cu_seqlens needs a batch of 1, not {B}")
    if not offsets.size or offsets[0] != 0:
        raise ArgumentError("cu_seqlens must begin with 0")
    if offsets[-1] != L:
        raise ArgumentError(f"cu_seqlens must end with the length, {L}")
    if (np.diff(offsets) < 0).any():
        raise ArgumentError("cu_seqlens must not fall")
    return None, offsets, len(offsets) - 1
