"""From a mask to the fewest segments that say it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ArgumentError, DTypeError, ShapeError
from ._segment import Inner, Segment

MAX_DENSE = 2**14
_ROWS = 256

Mask = NDArray[np.bool_]
Sample = tuple[list[Segment], Mask | None]

# What the first pair of tokens of a segment says of it: the later sees the earlier, the earlier the later.
_PAIR: dict[tuple[bool, bool], Inner] = {
    (True, True): "full",
    (True, False): "causal",
    (False, False): "diagonal",
}


def read_mask(mask: ArrayLike) -> Mask:
    """Return ``mask`` as a square array of booleans."""
    array: NDArray[Any] = np.asarray(mask)
    if array.dtype != np.bool_:
        hint = ": pass mask == 0 where it is added to scores" if array.dtype.kind == "f" else ""
        raise DTypeError(f"mask has dtype {array.dtype}, expected bool{hint}")
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise ShapeError(f"mask has shape {array.shape}, expected (N, N)")
    if array.shape[0] > MAX_DENSE:
        raise ArgumentError(f"mask has N={array.shape[0]}: a dense mask is read up to {MAX_DENSE} tokens")
    return array


def _differences(mask: Mask) -> NDArray[np.int64]:
    """Elements, beside their own four, in which two neighbours see differently or are seen differently."""
    n = len(mask)
    rows = np.zeros(n - 1, dtype=np.int64)
    columns = np.zeros(n - 1, dtype=np.int64)
    for start in range(0, n, _ROWS):
        part = mask[start : start + _ROWS + 1]
        unlike = part[:-1] != part[1:]
        rows[start : start + len(unlike)] = unlike[:_ROWS].sum(axis=1)
        columns += (mask[start : start + _ROWS, :-1] != mask[start : start + _ROWS, 1:]).sum(axis=0)
    at = np.arange(n - 1)
    own, upper, lower, next_own = mask[at, at], mask[at, at + 1], mask[at + 1, at], mask[at + 1, at + 1]
    rows -= (own != lower).astype(np.int64) + (upper != next_own)
    columns -= (own != upper).astype(np.int64) + (lower != next_own)
    return rows + columns


def _cut(mask: Mask) -> tuple[NDArray[np.int64], list[Inner]]:
    """Return where each segment starts, with the end of the last, and how it sees itself.

    A part of a segment is a segment, so that taking the longest from the left makes the fewest. In a run of
    neighbours that look alike from outside, all pairs see one another as the first pair does.
    """
    n = len(mask)
    own = mask.diagonal()
    if n == 1:
        return np.array([0, 1]), ["full" if own[0] else "none"]
    later_sees, earlier_sees = mask.diagonal(-1), mask.diagonal(1)
    # Every rule but "none" lets a token see itself; none lets it see only what comes after.
    sayable = (own[:-1] == own[1:]) & np.where(
        own[:-1], later_sees | ~earlier_sees, ~later_sees & ~earlier_sees
    )
    linked = sayable & (_differences(mask) == 0)
    starts = np.concatenate(([0], np.flatnonzero(~linked) + 1, [n]))
    inner: list[Inner] = []
    for start, end in pairwise(starts):
        if not own[start]:
            inner.append("none")
        elif end - start == 1:
            inner.append("full")
        else:
            inner.append(_PAIR[bool(later_sees[start]), bool(earlier_sees[start])])
    return starts, inner


def _sample(inner: list[Inner], lengths: NDArray[np.int64], visible: Mask) -> Sample:
    """Return the segments of one sample, by the rules where they say the same as ``visible``."""
    size = len(inner)
    earlier = np.tri(size, k=-1, dtype=np.bool_)
    hidden: Mask = np.asarray(~(visible & earlier).any(axis=0))
    hidden[-1] = False
    off = ~np.eye(size, dtype=np.bool_)
    by_rules = bool(np.array_equal(visible & off, earlier & ~hidden))
    segments = [
        Segment(how, int(length), hidden=bool(flag and by_rules))
        for how, length, flag in zip(inner, lengths, hidden, strict=True)
    ]
    return segments, None if by_rules else visible


def samples_of(mask: Mask) -> list[Sample]:
    """Return the samples of a mask: runs of segments that see nothing of one another."""
    if not len(mask):
        return [([], None)]
    starts, inner = _cut(mask)
    first, lengths = starts[:-1], np.diff(starts)
    visible = mask[np.ix_(first, first)]
    related: Mask = np.asarray(visible | visible.T)
    np.fill_diagonal(related, val=True)
    size = len(first)
    furthest = np.maximum.accumulate(size - 1 - np.argmax(related[:, ::-1], axis=1))
    ends = np.flatnonzero(furthest == np.arange(size)) + 1
    out = []
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        out.append(_sample(inner[begin:end], lengths[begin:end], visible[begin:end, begin:end]))
    return out
