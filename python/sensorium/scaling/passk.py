"""What many tries reach: pass@k, majority@k, best of k, without bias and with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from .._validate import check_integer
from ..errors import ArgumentError, ShapeError

__all__ = ["PassAtK", "best_of_k", "majority_at_k", "pass_at_k"]

Floats = NDArray[np.float64]


class PassAtK(NamedTuple):
    """The mean over problems, its interval, and each problem's own estimate."""

    mean: float
    interval: tuple[float, float]
    each: Floats


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int, *, level: float = 0.95) -> PassAtK:
    """Estimate the chance that one of ``k`` tries solves a problem, from ``c`` successes in ``n`` of each.

    ``1 - C(n - c, k) / C(n, k)`` is unbiased (Chen et al. 2021, arXiv:2107.03374); ``1 - (1 - c / n)^k`` is
    not. It is computed as a sum of ``log1p``, so that nothing overflows up to ``n = 1e9`` and beyond, and
    small chances keep their digits.

    Parameters
    ----------
    n, c : int or (problems,) array of int
        Tries, and successes among them.
    k : int
        Tries asked about, at most the least of ``n``.
    level : float
        Coverage of the interval of the mean: Student's over problems; Wilson's, taken through
        ``1 - (1 - p)^k``, where there is one problem.

    Raises
    ------
    ArgumentError
        Where ``c`` is not from 0 to ``n``, or ``k`` not from 1 to ``n``.

    Examples
    --------
    >>> from sensorium.scaling import pass_at_k
    >>> round(pass_at_k(10, 3, 2).mean, 6)
    0.533333
    """
    check_integer("k", k, 1)
    if not 0 < level < 1:
        raise ArgumentError(f"level must be between 0 and 1, not {level}")
    tries, wins = _counts("n", n), _counts("c", c)
    try:
        tries, wins = np.broadcast_arrays(np.atleast_1d(tries), np.atleast_1d(wins))
    except ValueError:
        raise ShapeError(f"n has shape {tries.shape} but c has {wins.shape}") from None
    if tries.ndim != 1 or tries.size == 0:
        raise ShapeError(f"n has shape {tries.shape}, expected (problems,)")
    if (wins > tries).any() or (wins < 0).any():
        raise ArgumentError("c must be from 0 to n")
    if k > tries.min():
        raise ArgumentError(f"k={k} is above the least n={int(tries.min())}")
    each = np.array([_one(int(a), int(b), k) for a, b in zip(tries, wins, strict=True)])
    mean = float(each.mean())
    if len(each) > 1:
        half = float(stats.t.ppf(0.5 + level / 2, len(each) - 1) * each.std(ddof=1) / np.sqrt(len(each)))
        interval = (max(mean - half, 0.0), min(mean + half, 1.0))
    else:
        z2 = float(stats.norm.ppf(0.5 + level / 2)) ** 2
        p, m = float(wins[0] / tries[0]), float(tries[0])
        middle = (p + z2 / (2 * m)) / (1 + z2 / m)
        half = np.sqrt(z2) / (1 + z2 / m) * np.sqrt(p * (1 - p) / m + z2 / (4 * m * m))
        low, high = (
            float(-np.expm1(k * np.log1p(-min(x, 1 - 1e-16)))) for x in (max(middle - half, 0), middle + half)
        )
        interval = (low, min(high, 1.0))
    return PassAtK(mean, interval, each)


def _one(n: int, c: int, k: int) -> float:
    """``1 - prod_{i < c} (1 - k / (n - i))``, where ``c`` and ``k`` may change places."""
    if c == 0:
        return 0.0
    if k > n - c:
        return 1.0
    few, many = min(c, k), max(c, k)
    # The product is at most e^(-few many / n): beyond this it is nothing beside 1.
    if few * many > 750 * n:
        return 1.0
    return float(-np.expm1(np.log1p(-many / (n - np.arange(few, dtype=np.float64))).sum()))


def majority_at_k(
    correct: Sequence[tuple[ArrayLike, int]],
    k: int,
    *,
    rng: np.random.Generator | None = None,
    draws: int = 2000,
) -> float:
    """Estimate how often the commonest of ``k`` answers is right, from more answers than ``k``.

    Parameters
    ----------
    correct : list of pairs
        For each problem its answers' labels (integers), and the label of the right answer.
    k : int
        Answers that vote. Ties are shared evenly among the commonest.
    rng : numpy.random.Generator, optional
        Draws the subsets of ``k``; a generator of seed 0 where none is given.
    draws : int
        Subsets of each problem.

    Raises
    ------
    ArgumentError
        Where a problem has fewer than ``k`` answers.

    Examples
    --------
    >>> from sensorium.scaling import majority_at_k
    >>> majority_at_k([([1, 1, 1, 2, 3], 1)], 5)
    1.0
    """
    check_integer("k", k, 1)
    check_integer("draws", draws, 1)
    rng = np.random.default_rng(0) if rng is None else rng
    problems = list(correct)
    if not problems:
        raise ArgumentError("correct must have a problem at least")
    total = 0.0
    for i, problem in enumerate(problems):
        answers, right = problem
        labels, inverse = np.unique(np.asarray(answers), return_inverse=True)
        if len(inverse) < k:
            raise ArgumentError(f"problem {i} has {len(inverse)} answers, fewer than k={k}")
        drawn = rng.permuted(np.tile(inverse, (draws, 1)), axis=1)[:, :k]
        votes = np.zeros((draws, len(labels)))
        np.add.at(votes, (np.arange(draws)[:, None], drawn), 1.0)
        winners = votes == votes.max(axis=1, keepdims=True)
        total += float(
            (winners * (labels == right)).sum(axis=1)[..., None].ravel() @ (1 / winners.sum(axis=1)) / draws
        )
    return total / len(problems)


def best_of_k(scores: ArrayLike, quality: ArrayLike, k: int) -> float:
    """Return the expected quality of the best-scored of ``k`` candidates drawn from those at hand, exactly.

    Parameters
    ----------
    scores : (n,) or (problems, n) array
        What a verifier says of each candidate. Candidates with equal scores are chosen evenly.
    quality : array of the same shape
        What each is worth.
    k : int
        Candidates drawn without replacement, from 1 to ``n``.

    Examples
    --------
    >>> from sensorium.scaling import best_of_k
    >>> round(best_of_k([1.0, 2.0, 3.0], [0.0, 0.0, 1.0], 2), 6)
    0.666667
    """
    check_integer("k", k, 1)
    s, q = (np.atleast_2d(np.asarray(a, dtype=np.float64)) for a in (scores, quality))
    if s.shape != q.shape or s.ndim != 2 or s.size == 0:
        raise ShapeError(f"scores have shape {s.shape} but quality has {q.shape}")
    if not np.isfinite(s).all() or not np.isfinite(q).all():
        raise ArgumentError("scores and quality must be finite")
    n = s.shape[1]
    if k > n:
        raise ArgumentError(f"k={k} is above the {n} candidates")
    # The best of k is among the r lowest-scored with probability C(r, k) / C(n, k).
    rank = np.arange(n + 1, dtype=np.float64)
    with np.errstate(divide="ignore"):
        within = np.where(
            rank >= k,
            np.exp(
                special.gammaln(rank + 1)
                - special.gammaln(np.maximum(rank - k, 0) + 1)
                - special.gammaln(n + 1.0)
                + special.gammaln(n - k + 1.0)
            ),
            0.0,
        )
    total = 0.0
    for row_scores, row_quality in zip(s, q, strict=True):
        _, first, inverse, counts = np.unique(
            np.sort(row_scores), return_index=True, return_inverse=True, return_counts=True
        )
        order = np.argsort(row_scores, kind="stable")
        chance = (within[first + counts] - within[first]) / counts
        total += float(row_quality[order] @ chance[inverse])
    return total / len(s)


def _counts(name: str, value: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        raise ArgumentError(f"{name} must be integers, not {array.dtype}")
    return array.astype(np.int64)
