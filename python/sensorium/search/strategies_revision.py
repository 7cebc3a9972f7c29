"""Answers that are made better one after the other: with a critic, or from earlier answers alone."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from .._validate import check_finite_number, check_integer
from ..errors import ArgumentError
from ._session import (
    ROOT,
    BudgetSpent,
    CallFailed,
    Progress,
    Session,
    best_of,
    conduct,
    open_session,
)
from .budget import Budget
from .calling import CallPolicy
from .outcome import Candidate, Failure, Outcome
from .protocol import Critic, Generator, Revision, Verifier
from .trace import Trace

__all__ = ["Contraction", "contraction_rate", "reflect", "rounds_needed", "sequential_revision"]

_LEAST = 4  # errors from which growth is told from noise
_CONFIDENCE = 0.9  # of the interval of the rate


class Contraction(NamedTuple):
    """How much of the error each round takes away: ``error_k ~ (1 - rate)^k``; a range for it, of 90 %."""

    rate: float
    low: float
    high: float


def contraction_rate(errors: Sequence[float]) -> Contraction:
    """Return the share of an error that a round takes away, by least squares on its logarithm.

    Parameters
    ----------
    errors : sequence of float
        An error after each round: a score's distance from the best possible, or a squared distance. Zeros and
        values that are not finite are left out.

    Returns
    -------
    Contraction
        ``rate`` is below 0 where the errors grow. NaN from fewer than two errors; the interval is NaN from
        fewer than three.

    Raises
    ------
    ArgumentError
        Where an error is negative.

    Examples
    --------
    >>> [round(x, 6) for x in contraction_rate([8.0, 4.0, 2.0, 1.0])]
    [0.5, 0.5, 0.5]
    """
    values = np.asarray(errors, np.float64).ravel()
    if (values < 0).any():
        raise ArgumentError(f"errors holds {values.min():g}, expected distances from 0 on")
    rounds = np.flatnonzero((values > 0) & np.isfinite(values))
    if len(rounds) < 2:
        return Contraction(math.nan, math.nan, math.nan)
    logs = np.log(values[rounds])
    centred = rounds - rounds.mean()
    spread = float(centred @ centred)
    slope = float(centred @ logs) / spread
    if len(rounds) < 3:
        return Contraction(1 - math.exp(slope), math.nan, math.nan)
    from scipy.special import stdtrit

    rest = logs - logs.mean() - slope * centred
    free = len(rounds) - 2
    half = float(stdtrit(free, (1 + _CONFIDENCE) / 2)) * math.sqrt(float(rest @ rest) / free / spread)
    return Contraction(1 - math.exp(slope), 1 - math.exp(slope + half), 1 - math.exp(slope - half))


def rounds_needed(rate: float, share: float) -> int:
    """Return after how many rounds an error is down to a share of what it was: ``(1 - rate)^K <= share``.

    Raises
    ------
    ArgumentError
        Where ``rate`` is not in (0, 1], or ``share`` not in (0, 1]: at a rate of 0 or below it never is.

    Examples
    --------
    >>> rounds_needed(0.5, 0.01)
    7
    """
    for name, value in (("rate", rate), ("share", share)):
        if not 0 < check_finite_number(name, value) <= 1:
            raise ArgumentError(f"{name} must be above 0 and at most 1, not {value:g}")
    if rate == 1:
        return 0 if share == 1 else 1
    count = math.ceil(math.log(1 / share) / -math.log1p(-rate) - 1e-9)
    return max(0, count)


def reflect(
    generator: Generator,
    critic: Critic,
    state: Any,
    *,
    rounds: int,
    verifier: Verifier | None = None,
    patience: int | None = 2,
    revise: Literal["last", "best"] = "last",
    target: float | None = None,
    limit: float | None = None,
    distance: Callable[[Any, Any], float] | None = None,
    context: int = 1,
    budget: Budget | None = None,
    trace: Trace | str | os.PathLike[str] | None = None,
    policy: CallPolicy | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Criticise an answer, generate a better one with the criticism in hand, and keep the best of all.

    Parameters
    ----------
    generator : Generator
        Called as ``generator(state, 1)``, and from then on as ``generator(revision, 1)`` with a
        :class:`Revision`.
    critic : Critic
        Called with each answer that is to be revised and, where there is no verifier, with the last one.
    state : object
        What to generate from.
    rounds : int
        Revisions at most.
    verifier : Verifier, optional
        Scores the answers. Where not given, the scores are those of the critic's :class:`Feedback`.
    patience : int, optional
        Ends after so many revisions that have not improved on the best score. None does not.
    revise : {"last", "best"}
        Which answer to revise.
    target : float, optional
        Ends when an answer has this score.
    limit : float, optional
        The best score that there can be: then the errors whose rate of contraction is estimated are the
        distances from it.
    distance : callable, optional
        Distance of two answers, where they have one: then the errors are the squares of how far each revision
        moved. With neither, they are how much the score changed.
    context : int
        How many earlier answers a revision is shown in its ``history``.
    budget, trace, policy, seed, progress
        As in :func:`best_of_n`.

    Returns
    -------
    Outcome
        The best answer by score; the last one where nothing was scored. ``stopped`` may be ``target``,
        ``patience``, ``diverging`` or ``rounds``. ``details`` has ``errors``, ``rate`` and ``rate_interval``,
        see :func:`contraction_rate`. It diverges when, of at least four errors, the whole interval of the
        rate is below 0.

    Raises
    ------
    SearchError
        Where nothing but failures came of it.
    ArgumentError, DTypeError, TraceError
        Where an argument is out of range, or the trace is of another search.

    Notes
    -----
    A round whose generator fails is over, and the next one begins from the same answer under another seed.
    Where a critic fails the answer is revised without feedback.

    References
    ----------
    Madaan et al. (2023), Self-Refine, arXiv:2303.17651. Li et al. (2025), Reflect-DiT, arXiv:2503.12271.

    Examples
    --------
    >>> def generator(state, n):
    ...     return [state.answer + state.feedback / 2 if isinstance(state, Revision) else 0.0]
    >>> outcome = reflect(
    ...     generator, lambda x: 8.0 - x, 8.0, rounds=6, limit=0.0,
    ...     verifier=lambda xs: [-(x - 8) ** 2 for x in xs],
    ... )
    >>> outcome.answer, round(outcome.details["rate"], 6)
    (7.875, 0.75)
    """
    rounds = check_integer("rounds", rounds)
    context = check_integer("context", context)
    patience = None if patience is None else check_integer("patience", patience, 1)
    target = None if target is None else check_finite_number("target", target)
    limit = None if limit is None else check_finite_number("limit", limit)
    if revise not in ("last", "best"):
        raise ArgumentError(f"revise must be 'last' or 'best', not {revise!r}")
    session = open_session(
        "reflect", state, seed=seed, budget=budget, trace=trace, policy=policy, progress=progress,
        generator=generator, critic=critic, verifier=verifier, distance=distance,
        optional=("verifier", "distance"),
    )  # fmt: skip
    errors: list[float] = []

    async def body(s: Session) -> None:
        watch = _Watch(patience, target)
        last: Candidate | None = None
        best: Candidate | None = None
        heard: dict[str, Any] = {}
        history: list[tuple[Any, float | None]] = []
        for k in range(rounds + 1):
            base = best if revise == "best" and best is not None else last
            if base is None:
                ask: Any = s.state
            else:
                if base.node not in heard:
                    heard[base.node] = await _feedback(s, critic, base, verifier is None)
                kept = tuple(history[len(history) - context :]) if context else ()
                ask = Revision(s.state, base.value, heard[base.node], kept)
            made = await _one(
                s, generator, verifier, ask, ROOT, k, base, critic if verifier is None else None
            )
            if made is None:
                if watch.ends(s, None, errors):
                    return
                continue
            new, text = made
            if verifier is None:
                heard[new.node] = text
            _note_error(s, errors, last, new, limit, distance)
            history.append((new.value, new.score))
            last = new
            if best is None or best.score is None or (new.score is not None and new.score > best.score):
                best = new
            if watch.ends(s, new, errors):
                return
        s.stopped = "rounds"

    def choose(s: Session) -> tuple[Candidate | None, float | None]:
        rate = contraction_rate(errors)
        s.details.update(errors=list(errors), rate=rate.rate, rate_interval=(rate.low, rate.high))
        if s.candidates and all(c.score is None for c in s.candidates):
            return s.candidates[-1], None
        return best_of(s.candidates)

    return conduct(session, body, choose)


def sequential_revision(
    generator: Generator,
    verifier: Verifier,
    state: Any,
    *,
    rounds: int,
    chains: int = 1,
    context: int = 4,
    patience: int | None = None,
    target: float | None = None,
    budget: Budget | None = None,
    trace: Trace | str | os.PathLike[str] | None = None,
    policy: CallPolicy | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Revise an answer again and again with its predecessors in view, in one chain or several side by side.

    Parameters
    ----------
    generator : Generator
        Called as ``generator(state, 1)`` and then with a :class:`Revision` without feedback.
    verifier : Verifier
        Scores each answer as it comes.
    state : object
        What to generate from.
    rounds : int
        Revisions of the first answer of each chain.
    chains : int
        How many chains. With ``chains`` and no rounds it is :func:`best_of_n`.
    context : int
        How many earlier answers of its chain a revision is shown in its ``history``.
    patience : int, optional
        Ends a chain after so many revisions that have not improved on its best score.
    target : float, optional
        Ends a chain when an answer of its own has this score.
    budget, trace, policy, seed, progress
        As in :func:`best_of_n`. An answer is begun only where there is room for its verification too.

    Returns
    -------
    Outcome
        The best answer of all chains. ``stopped`` is ``target`` where one was reached.

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
    >>> def generator(state, n):
    ...     return [state.answer + "a" if isinstance(state, Revision) else "b"]
    >>> outcome = sequential_revision(generator, lambda xs: [len(x) for x in xs], "?", rounds=3, chains=2)
    >>> outcome.answer, len(outcome.candidates)
    ('baaa', 8)
    """
    rounds, chains = check_integer("rounds", rounds), check_integer("chains", chains, 1)
    context = check_integer("context", context)
    patience = None if patience is None else check_integer("patience", patience, 1)
    target = None if target is None else check_finite_number("target", target)
    session = open_session(
        "sequential_revision", state, seed=seed, budget=budget, trace=trace, policy=policy, progress=progress,
        generator=generator, verifier=verifier,
    )  # fmt: skip

    async def body(s: Session) -> None:
        ends = await s.gather(
            revise_chain(s, generator, verifier, f"{ROOT}.{c}", rounds, context, patience, target)
            for c in range(chains)
        )
        if any(isinstance(end, BudgetSpent) for end in ends):
            raise BudgetSpent
        if "target" in ends:
            s.stopped = "target"

    return conduct(session, body, lambda s: best_of(s.candidates))


async def revise_chain(
    s: Session,
    generator: Generator,
    verifier: Verifier,
    name: str,
    rounds: int,
    context: int,
    patience: int | None,
    target: float | None,
    first: Candidate | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> str:
    """Make a chain of answers, from a first one where there is one; return why it ended."""
    watch = _Watch(patience, target)
    last = first
    history: list[tuple[Any, float | None]] = []
    if first is None:
        s.mark(name, parent=ROOT)
    else:
        history.append((first.value, first.score))
        if watch.reason(first) == "target":
            return "target"
    for k in range(0 if first is None else 1, rounds + 1):
        kept = tuple(history[len(history) - context :]) if context and history else ()
        ask = s.state if last is None else Revision(s.state, last.value, None, kept)
        made = await _one(s, generator, verifier, ask, name, k, last, None, bounds)
        if made is not None:
            last = made[0]
            history.append((last.value, last.score))
        why = watch.reason(None if made is None else last)
        if why:
            return why
    return "rounds"


async def _one(
    s: Session,
    generator: Generator,
    verifier: Verifier | None,
    ask: Any,
    name: str,
    k: int,
    base: Candidate | None,
    critic: Critic | None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[Candidate, Any] | None:
    """Make one answer and score it, by the verifier or else by the critic; None where that failed."""
    ask_key, score_key = f"g{name}.{k}", f"v{name}.{k}"
    scorer = ("verifier", score_key) if verifier is not None else ("critic", f"c{name}.{k}")
    claims = s.claim(("generator", ask_key), scorer)
    under = None if base is None else base.node
    text = None
    try:
        made = await s.expand(generator, ask, 1, node=name, key=ask_key, start=k, under=under, depth=k + 1,
                              claims=claims)  # fmt: skip
        if not made:
            return None
        if verifier is not None:
            await s.verify(verifier, made, node=made[0].node, key=score_key, claims=claims, bounds=bounds)
        elif critic is not None:
            text = await _feedback(s, critic, made[0], True, claims)
    except CallFailed:
        return None
    finally:
        s.drop(claims)
    return made[0], text


async def _feedback(
    s: Session, critic: Critic, candidate: Candidate, scores: bool, claims: Any = None
) -> Any:
    """Return what the critic says, None where it failed; take its score where it is to give one."""
    try:
        text, score = await s.criticise(critic, candidate, key=f"c{candidate.node}", claims=claims)
    except CallFailed:
        return None
    if scores and score is not None:
        candidate.score = score
        s.mark(candidate.node, status="scored", score=score)
    return text


def _note_error(
    s: Session,
    errors: list[float],
    last: Candidate | None,
    new: Candidate,
    limit: float | None,
    distance: Callable[[Any, Any], float] | None,
) -> None:
    error = math.nan
    if limit is not None:
        error = math.nan if new.score is None else max(0.0, limit - new.score)
    elif last is None:
        return
    elif distance is not None:
        try:
            error = float(distance(new.value, last.value)) ** 2
        except Exception as raised:
            words = f"distance raised {type(raised).__name__}: {raised}"
            s.failures.append(Failure(new.node, "distance", words))
    elif new.score is not None and last.score is not None:
        error = abs(new.score - last.score)
    errors.append(error)


class _Watch:
    """When a chain of answers is to end."""

    def __init__(self, patience: int | None, target: float | None) -> None:
        self._patience, self._target = patience, target
        self._best = -math.inf
        self._scored = False
        self._vain = 0

    def reason(self, new: Candidate | None) -> str:
        """Take in an answer, or that there was none; return why to end, empty where not to."""
        score = None if new is None else new.score
        if score is not None and self._target is not None and score >= self._target:
            return "target"
        if score is not None and (score > self._best or not self._scored):
            self._best, self._scored, self._vain = score, True, 0
        elif self._scored or new is None:
            self._vain += 1
        return "patience" if self._patience is not None and self._vain >= self._patience else ""

    def ends(self, s: Session, new: Candidate | None, errors: Sequence[float]) -> bool:
        """Whether to end, which the session is told; growing errors are a reason too."""
        why = self.reason(new)
        if why != "target":
            usable = [e for e in errors if e > 0 and math.isfinite(e)]
            if len(usable) >= _LEAST and contraction_rate(errors).high < 0:
                why = "diverging"
        if why:
            s.stopped = why
        return bool(why)
