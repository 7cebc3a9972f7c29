"""The next token of a row: the likeliest, or a draw from what is left of the distribution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._validate import check_finite_number, check_integer, check_positive
from ..errors import ArgumentError

__all__ = ["Choice"]

_FEW = 1024  # Of the likeliest tokens, looked at before all are sorted.


@dataclass(frozen=True)
class Choice:
    """How the next token is chosen: penalty, temperature, ``top_k``, ``top_p``, and a draw, in this order."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if check_finite_number("temperature", self.temperature) < 0:
            raise ArgumentError(f"temperature must not be negative, not {self.temperature:g}")
        if self.top_k is not None:
            check_integer("top_k", self.top_k, 1)
        if self.top_p is not None and not 0 < check_finite_number("top_p", self.top_p) <= 1:
            raise ArgumentError(f"top_p must be above 0 and at most 1, not {self.top_p:g}")
        check_positive("repetition_penalty", self.repetition_penalty)

    def pick(
        self, logits: NDArray[np.floating[Any]], seen: NDArray[np.bool_], rng: np.random.Generator
    ) -> int:
        """Return a token.

        Parameters
        ----------
        logits : array (V,)
            Scores of the tokens.
        seen : array (V,) of bool
            Tokens that the row holds already.
        rng : Generator
            Asked for one number where the temperature is not 0.

        Raises
        ------
        ArgumentError
            Where logits are NaN, or none is finite.
        """
        if self.repetition_penalty != 1.0:
            held = logits[seen]
            penalty = self.repetition_penalty
            logits = logits.copy()
            logits[seen] = np.where(held > 0, held / penalty, held * penalty)
        best = int(logits.argmax())
        if not np.isfinite(logits[best]):  # the maximum of an array with NaN is NaN
            raise ArgumentError("the model's scores of the next token are not finite")
        if self.temperature == 0.0 or self.top_k == 1:
            return best
        kept, share = self.distribution(logits)
        total = np.cumsum(share)
        index = int(np.searchsorted(total, rng.random() * total[-1], side="right"))
        index = min(index, len(kept) - 1)
        return int(kept[index])

    def distribution(
        self, logits: NDArray[np.floating[Any]]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the tokens that are left and their probabilities, which add up to 1.

        The likeliest first where ``top_k`` or ``top_p`` is given; tokens of equal scores in their own order.
        """
        scores = logits.astype(np.float64)
        with np.errstate(over="ignore"):  # a temperature next to 0
            scores = np.exp((scores - scores.max()) / self.temperature)
        size = len(scores)
        if self.top_k is None and self.top_p is None:
            return np.arange(size), scores / scores.sum()
        total = scores.sum()
        count = size if self.top_k is None else min(self.top_k, size)
        few = _largest(scores, min(count, _FEW))
        if self.top_k is not None:
            few = few if len(few) == count else _largest(scores, count)
            total = scores[few].sum()
        share = np.cumsum(scores[few]) / total
        if self.top_p is not None:
            if share[-1] < self.top_p and len(few) < count:
                few = _largest(scores, count)
                share = np.cumsum(scores[few]) / total
            few = few[: int(np.searchsorted(share, self.top_p, side="left")) + 1]
        left = scores[few]
        return few, left / left.sum()


def _largest(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return the indices of the largest scores, largest first, equal ones in order."""
    size = len(scores)
    if count >= size:
        return np.argsort(-scores, kind="stable")
    least = np.partition(scores, size - count)[size - count]
    above = np.flatnonzero(scores > least)
    ties = np.flatnonzero(scores == least)[: count - len(above)]
    found = np.sort(np.concatenate([above, ties]))
    return found[np.argsort(-scores[found], kind="stable")]
