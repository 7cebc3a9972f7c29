"""The baseline of language models of bytes: counts of short strings, smoothed.

Interpolated Kneser-Ney with three discounts: the longest contexts vote by how often a byte followed them,
each shorter context by after how many different bytes it did, and what is discounted from the one goes to the
next shorter. It is fitted in a second and is hard to beat on little text.

References
----------
Chen and Goodman (1999), An empirical study of smoothing techniques for language modeling.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._validate import as_indices, check_integer
from .errors import ArgumentError

__all__ = ["NGram"]

LONGEST = 8  # Bytes that fit into the integer that a string is kept as.

Keys = NDArray[np.uint64]
Floats = NDArray[np.float64]


class _Table(NamedTuple):
    """Strings of one length, and the contexts that are all of them but the last byte; both rising."""

    strings: Keys
    counts: Floats  # With the discount taken off.
    contexts: Keys
    totals: Floats
    given: Floats  # Share that goes to shorter contexts.


class NGram:
    """Kneser-Ney smoothed counts of byte strings.

    Parameters
    ----------
    order : int
        Bytes of the longest strings, from 1 to 8: each byte is told from ``order - 1`` before it.

    Attributes
    ----------
    parameters_ : int
        Numbers that are kept: a count for each string and a total and a share for each context.

    Examples
    --------
    >>> import numpy as np
    >>> text = np.frombuffer(b"to be or not to be, " * 9, np.uint8)
    >>> bool(NGram(5).fit(text).bits(text)[5:].mean() < 1)
    True
    """

    def __init__(self, order: int = 6) -> None:
        self.order = order

    def fit(self, tokens: ArrayLike) -> Self:
        """Count.

        Parameters
        ----------
        tokens : array (N,) of integers
            Bytes, at least ``order`` of them.

        Raises
        ------
        ArgumentError, DTypeError
            Where these are no bytes, or too few.
        """
        order = check_integer("order", self.order, 1, LONGEST)
        text = _bytes(tokens)
        if len(text) < order:
            raise ArgumentError(f"tokens has {len(text)} bytes, expected at least {order}")
        tables: list[_Table] = []
        strings, counts = np.unique(_strings(text, order), return_counts=True)
        for length in range(order, 0, -1):
            tables.append(_smooth(strings, counts))
            # A shorter string counts once for each different byte before it.
            strings, counts = np.unique(strings & np.uint64(256 ** (length - 1) - 1), return_counts=True)
        self.tables_ = tables[::-1]
        self.parameters_ = sum(len(t.strings) + 2 * len(t.contexts) for t in tables)
        return self

    def bits(self, tokens: ArrayLike) -> Floats:
        """Return ``-log2 p(byte | those before)`` of each byte of a text.

        Parameters
        ----------
        tokens : array (N,) of integers
            Bytes; the first ones are told from what there is before them.

        Returns
        -------
        array (N,)
        """
        text = _bytes(tokens)
        p: Floats = np.full(len(text), 1 / 256)
        for length, table in enumerate(self.tables_, 1):
            if length > len(text):
                break
            strings = _strings(text, length)
            context, known = _find(table.contexts, strings >> np.uint64(8))
            string, seen = _find(table.strings, strings)
            shorter = p[length - 1 :]
            told = np.where(seen, table.counts[string], 0) / table.totals[context]
            p[length - 1 :] = np.where(known, told + table.given[context] * shorter, shorter)
        return -np.log2(p)


def _bytes(tokens: ArrayLike) -> Keys:
    text = as_indices("tokens", tokens, 256)
    if text.ndim != 1:
        raise ArgumentError(f"tokens has shape {text.shape}, expected (N,)")
    return text.astype(np.uint64)


def _strings(text: Keys, length: int) -> Keys:
    """Return every string of a length as an integer, its first byte the highest."""
    count = len(text) - length + 1
    strings: Keys = np.zeros(count, np.uint64)
    for k in range(length):
        strings = (strings << np.uint64(8)) | text[k : k + count]
    return strings


def _find(keys: Keys, wanted: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return where each wanted key is, and whether it is there."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return places, keys[places] == wanted


def _smooth(strings: Keys, counts: NDArray[Any]) -> _Table:
    """Return counts with what is taken off those of 1, of 2 and of more, by how many there are of each."""
    n1, n2, n3, n4 = np.bincount(np.minimum(counts, 5), minlength=5)[1:5]
    rest = n1 / max(n1 + 2 * n2, 1)
    discounts = np.array(
        [
            0,
            1 - 2 * rest * n2 / max(n1, 1),
            2 - 3 * rest * n3 / max(n2, 1),
            3 - 4 * rest * n4 / max(n3, 1),
        ]
    )
    taken = np.clip(discounts, 0.05, [0.05, 0.95, 1.95, 2.95])[np.minimum(counts, 3)]
    contexts, starts = np.unique(strings >> np.uint64(8), return_index=True)
    totals = np.add.reduceat(counts, starts).astype(np.float64)
    return _Table(strings, counts - taken, contexts, totals, np.add.reduceat(taken, starts) / totals)
