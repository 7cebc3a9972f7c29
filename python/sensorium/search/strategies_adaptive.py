"""How many chains of how many revisions: from a first look at how hard it is, and a law fitted before."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._validate import check_finite_number, check_integer
from ..errors import ArgumentError, DTypeError, ShapeError
from ._session import BudgetSpent, Progress, Session, best_of, conduct, open_session
from .budget import Budget
from .calling import CallPolicy
from .outcome import Outcome
from .protocol import Generator, Verifier
from .strategies import sample
from .strategies_revision import revise_chain
from .trace import Trace

__all__ = ["DepthLaw", "adaptive", "fit_depth_law"]


@dataclass(frozen=True)
class DepthLaw:
    """The depth of chains that a number of answers is best spent on: ``depth = total^a``.

    The exponent goes from ``easy`` at difficulty 0 to ``hard`` at difficulty 1 in a straight line.

    Parameters
    ----------
    easy, hard : float
        From 0, where all answers are independent, to 1, where all are in one chain.

    Examples
    --------
    >>> DepthLaw(easy=1.0, hard=0.0).split(64, 0.5)
    (8, 8)
    """

    easy: float
    hard: float

    def __post_init__(self) -> None:
        for name in ("easy", "hard"):
            if not 0 <= check_finite_number(name, getattr(self, name)) <= 1:
                raise ArgumentError(f"{name} must be from 0 to 1, not {getattr(self, name):g}")

    def exponent(self, difficulty: float) -> float:
        """Return ``a`` at a difficulty from 0 to 1."""
        return self.easy + (self.hard - self.easy) * min(max(float(difficulty), 0.0), 1.0)

    def split(self, total: int, difficulty: float) -> tuple[int, int]:
        """Return depth and number of chains, whose product is at most ``total``."""
        total = check_integer("total", total, 1)
        depth = min(total, max(1, round(total ** self.exponent(difficulty))))
        return depth, total // depth


def fit_depth_law(
    total: ArrayLike, depth: ArrayLike, score: ArrayLike, *, difficulty: ArrayLike | None = None
) -> DepthLaw:
    """Fit the law to runs of one's own, of several depths for each total.

    Of the runs with equal total and difficulty, the depth with the best mean score is the one to reproduce;
    between its neighbours the best is read off a parabola in the logarithm of the depth. The exponents are
    the least-squares fit of ``log depth = a(difficulty) log total``.

    Parameters
    ----------
    total, depth : array (N,) of numbers from 1 on
        Answers of a run, and of each of its chains.
    score : array (N,)
        What it reached.
    difficulty : array (N,), optional
        From 0 to 1. Without it the exponent is the same for all.

    Returns
    -------
    DepthLaw
        Its exponents are within 0 and 1.

    Raises
    ------
    ShapeError, ArgumentError
        Where arrays do not fit each other or are out of range, or no total above 1 has two depths.

    Examples
    --------
    >>> totals, depths = [16, 16, 16, 256, 256, 256], [2, 4, 8, 4, 16, 64]
    >>> law = fit_depth_law(totals, depths, [0.3, 0.5, 0.3, 0.4, 0.6, 0.4])
    >>> round(law.easy, 6), round(law.hard, 6)
    (0.5, 0.5)
    """
    arrays = {"total": total, "depth": depth, "score": score}
    if difficulty is not None:
        arrays["difficulty"] = difficulty
    values = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    for name, array in values.items():
        if array.ndim != 1 or array.shape != values["total"].shape:
            raise ShapeError(f"{name} has shape {array.shape} but total has {values['total'].shape}")
        least = {"total": 1.0, "depth": 1.0, "difficulty": 0.0}.get(name, -np.inf)
        if not np.isfinite(array).all() or (array < least).any():
            raise ArgumentError(
                f"{name} must be finite" + ("" if least == -np.inf else f" and at least {least:g}")
            )
    if (values["depth"] > values["total"]).any():
        raise ArgumentError("depth must be at most total")
    hard = values.get("difficulty", np.zeros_like(values["total"]))
    if (hard > 1).any():
        raise ArgumentError("difficulty must be at most 1")
    rows, wanted = [], []
    for budget, level in np.unique(np.stack([values["total"], hard], axis=1), axis=0):
        runs = (values["total"] == budget) & (hard == level)
        depths = np.unique(values["depth"][runs])
        if budget <= 1 or len(depths) < 2:
            continue
        means = [values["score"][runs & (values["depth"] == d)].mean() for d in depths]
        rows.append(np.log(budget) * np.array([1 - level, level]))
        wanted.append(_peak(np.log(depths), np.array(means)))
    if not rows:
        raise ArgumentError("depth: no total above 1 was tried at two depths")
    matrix, target = np.array(rows), np.array(wanted)
    if difficulty is None or len(np.unique(matrix[:, 1] / matrix.sum(axis=1))) < 2:
        a = float(matrix.sum(axis=1) @ target / (matrix.sum(axis=1) @ matrix.sum(axis=1)))
        easy, tough = a, a
    else:
        easy, tough = np.linalg.lstsq(matrix, target, rcond=None)[0].tolist()
    return DepthLaw(min(max(easy, 0.0), 1.0), min(max(tough, 0.0), 1.0))


def _peak(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    """Where a curve is highest: at a point, or between its neighbours on the parabola through the three."""
    top = int(np.argmax(y))
    if 0 < top < len(x) - 1:
        curve, slope, _ = np.polyfit(x[top - 1 : top + 2] - x[top], y[top - 1 : top + 2], 2)
        if curve < 0:
            return float(np.clip(x[top] - slope / (2 * curve), x[top - 1], x[top + 1]))
    return float(x[top])


def adaptive(
    generator: Generator,
    verifier: Verifier,
    state: Any,
    *,
    total: int,
    law: DepthLaw,
    pilot: int = 4,
    context: int = 4,
    target: float | None = None,
    budget: Budget | None = None,
    trace: Trace | str | os.PathLike[str] | None = None,
    policy: CallPolicy | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Look at how hard it is with a few answers, then choose between more of them and better ones.

    Difficulty is one less the mean score of the first answers, half an answer of each kind added. The law
    then gives the number of chains and their depth. Chains begin with the best of the first answers, or with
    new ones where there are more chains than those, and go on by revision.

    Parameters
    ----------
    generator : Generator
        Called as ``generator(state, 1)`` and then with a :class:`Revision` without feedback.
    verifier : Verifier
        Scores from 0 to 1, such as the chance that an answer is right; others are reported as failures.
    state : object
        What to generate from.
    total : int
        Answers in all.
    law : DepthLaw
        From :func:`fit_depth_law`, on runs of one's own.
    pilot : int
        First answers.
    context : int
        How many earlier answers of its chain a revision is shown.
    target : float, optional
        No more answers are begun in a chain that has this score, nor any chains where a first answer has it.
    budget, trace, policy, seed, progress
        As in :func:`best_of_n`. An answer is begun only where there is room for its verification too.

    Returns
    -------
    Outcome
        The best answer. ``details`` has ``difficulty``, ``chains`` and ``depth``; ``stopped`` may be
        ``target``.

    Raises
    ------
    SearchError
        Where nothing but failures came of it.
    ArgumentError, DTypeError, TraceError
        Where an argument is out of range, or the trace is of another search.

    References
    ----------
    Snell et al. (2024), Scaling LLM Test-Time Compute Optimally, arXiv:2408.03314.

    Examples
    --------
    >>> from sensorium.search import Revision
    >>> def generator(state, n):
    ...     return [state.answer + 0.1 if isinstance(state, Revision) else 0.5]
    >>> outcome = adaptive(
    ...     generator, lambda xs: xs, None, total=16, law=DepthLaw(easy=1.0, hard=0.0), pilot=2
    ... )
    >>> outcome.details, round(outcome.answer, 2)
    ({'difficulty': 0.5, 'chains': 4, 'depth': 4}, 0.8)
    """
    total, pilot = check_integer("total", total, 1), check_integer("pilot", pilot, 1)
    context = check_integer("context", context)
    target = None if target is None else check_finite_number("target", target)
    if not isinstance(law, DepthLaw):
        raise DTypeError(f"law must be a DepthLaw, not {type(law).__name__}")
    if pilot > total:
        raise ArgumentError(f"pilot must be at most total, {total}, not {pilot}")
    session = open_session(
        "adaptive", state, seed=seed, budget=budget, trace=trace, policy=policy, progress=progress,
        generator=generator, verifier=verifier,
    )  # fmt: skip

    async def body(s: Session) -> None:
        bounds = (0.0, 1.0)
        await sample(s, generator, verifier, 0, pilot, 1, bounds)
        if s.stopped == "budget":
            raise BudgetSpent
        scores = [c.score for c in s.candidates if c.score is not None]
        difficulty = 1 - (sum(scores) + 0.5) / (len(scores) + 1)
        depth, chains = law.split(total, difficulty)
        s.details.update(difficulty=difficulty, chains=chains, depth=depth)
        if target is not None and scores and max(scores) >= target:
            s.stopped = "target"
            return
        begun = max(pilot, chains)
        await sample(s, generator, verifier, pilot, begun, 1, bounds)
        if s.stopped == "budget":
            raise BudgetSpent
        firsts = [c for c in s.candidates_in_order() if c.score is not None]
        firsts = sorted(firsts, key=lambda c: -(c.score or 0.0))[:chains]
        each, more = divmod(total - begun, len(firsts)) if firsts else (0, 0)
        ends = await s.gather(
            revise_chain(s, generator, verifier, c.node, each + (k < more), context, None, target, c, bounds)
            for k, c in enumerate(firsts)
        )
        if any(isinstance(end, BudgetSpent) for end in ends):
            raise BudgetSpent
        if "target" in ends:
            s.stopped = "target"

    return conduct(session, body, lambda s: best_of(s.candidates))
