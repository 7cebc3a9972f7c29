"""Independent tries: the best of several, and the answer that most of them agree on."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from .._validate import check_finite_number, check_integer
from ..errors import ArgumentError
from ._codec import digest, to_json
from ._session import ROOT, BudgetSpent, Progress, Session, best_of, conduct, open_session
from .budget import Budget
from .calling import CallPolicy
from .outcome import Candidate, Failure, Outcome
from .protocol import Generator, Verifier
from .trace import Trace

__all__ = ["best_of_n", "majority_vote", "overturn_probability"]


def best_of_n(
    generator: Generator,
    verifier: Verifier,
    state: Any,
    *,
    n: int,
    batch: int = 1,
    together: bool = False,
    budget: Budget | None = None,
    trace: Trace | str | os.PathLike[str] | None = None,
    policy: CallPolicy | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Return the candidate that the verifier likes best, of ``n`` independent ones.

    Parameters
    ----------
    generator : Generator
        Called as ``generator(state, batch)``.
    verifier : Verifier
        Called with the candidates of one call of the generator as soon as they are there.
    state : object
        What to generate from.
    n : int
        How many candidates.
    batch : int
        How many of them to ask for in one call.
    together : bool
        Whether the verifier is called once, with all candidates at the end, instead.
    budget : Budget, optional
        A candidate is begun only where there is room for its verification too.
    trace : Trace or path, optional
        The record to write, or to go on from.
    policy : CallPolicy, optional
        How calls are made.
    seed : int
        Of all that is random.
    progress : callable, optional
        Called after each call with a mapping, see :class:`sensorium.progress.Progress`.

    Returns
    -------
    Outcome
        The first of those with the highest score. Candidates that could not be scored come after all others.

    Raises
    ------
    SearchError
        Where nothing but failures came of it.
    ArgumentError, DTypeError, TraceError
        Where an argument is out of range, or the trace is of another search.

    References
    ----------
    Cobbe et al. (2021), Training Verifiers to Solve Math Word Problems, arXiv:2110.14168.

    Examples
    --------
    >>> def generator(state, n, *, rng):
    ...     return [round(x, 2) for x in rng.normal(state, 1.0, n)]
    >>> outcome = best_of_n(generator, lambda xs: [-abs(x - 3) for x in xs], 2.0, n=16)
    >>> float(outcome.answer), outcome.score == outcome.scores.max().item(), len(outcome.candidates)
    (3.02, True, 16)
    """
    n, batch = check_integer("n", n, 1), check_integer("batch", batch, 1)
    session = open_session(
        "best_of_n", state, seed=seed, budget=budget, trace=trace, policy=policy, progress=progress,
        generator=generator, verifier=verifier,
    )  # fmt: skip

    async def body(s: Session) -> None:
        claims = s.claim(("verifier", f"v{n}")) if together else {}
        try:
            await sample(s, generator, None if together else verifier, 0, n, batch)
            if together:
                await s.verify(verifier, s.candidates_in_order(), node=ROOT, key=f"v{n}", claims=claims)
        finally:
            s.drop(claims)

    return conduct(session, body, lambda s: best_of(s.candidates))


async def sample(
    s: Session,
    generator: Generator,
    verifier: Verifier | None,
    first: int,
    stop: int,
    batch: int,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> None:
    """Make the candidates from ``first`` to ``stop``, side by side, and score them."""

    async def one(start: int, count: int) -> None:
        ask, score = f"g{start}x{count}", f"v{start}x{count}"
        claims = s.claim(("generator", ask), *([] if verifier is None else [("verifier", score)]))
        try:
            made = await s.expand(generator, s.state, count, node=ROOT, key=ask, start=start, claims=claims)
            if verifier is not None:
                await s.verify(verifier, made, node=ROOT, key=score, claims=claims, bounds=bounds)
        finally:
            s.drop(claims)

    ends = await s.gather(one(i, min(batch, stop - i)) for i in range(first, stop, batch))
    if any(isinstance(end, BudgetSpent) for end in ends):
        s.stopped = "budget"


def majority_vote(
    generator: Generator,
    state: Any,
    *,
    n: int,
    batch: int = 1,
    answer: Callable[[Any], Any] | None = None,
    verifier: Verifier | None = None,
    confidence: float | None = None,
    every: int | None = None,
    budget: Budget | None = None,
    trace: Trace | str | os.PathLike[str] | None = None,
    policy: CallPolicy | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Return the answer that most of up to ``n`` candidates agree on (self-consistency).

    Parameters
    ----------
    generator : Generator
        Called as ``generator(state, batch)``.
    state : object
        What to generate from.
    n : int
        How many candidates vote at most.
    batch : int
        How many of them to ask for in one call.
    answer : callable, optional
        Returns what a candidate votes for: the final number of a solution, say. None abstains. The candidate
        itself where not given.
    verifier : Verifier, optional
        Weighs the votes, each from 0 to 1. All weigh 1 where not given.
    confidence : float, optional
        In (0, 1]. Candidates are then made ``every`` at a time, and no more are made once the outcome of all
        ``n`` would be the same with this probability; at 1, once it must be. Where not given, all vote. With
        a verifier only 1 can be asked for.
    every : int, optional
        How many candidates to make between two looks, side by side; ``batch`` where not given.
    budget, trace, policy, seed, progress
        As in :func:`best_of_n`.

    Returns
    -------
    Outcome
        ``answer`` is a candidate that voted for the winner, the one of the largest weight or the first;
        ``score`` the winner's share of the votes cast. ``details["vote"]`` is what it voted for,
        ``details["votes"]`` the pairs (answer, weight) in falling order, and ``stopped`` is ``early`` where
        not all were needed. Of equal votes the one that came first by place wins.

    Raises
    ------
    SearchError
        Where nothing but failures came of it.
    ArgumentError, DTypeError, TraceError
        Where an argument is out of range, or the trace is of another search.

    References
    ----------
    Wang et al. (2022), Self-Consistency Improves Chain of Thought Reasoning, arXiv:2203.11171. Aggarwal et
    al. (2023), Adaptive-Consistency, arXiv:2305.11860, stop by a Beta posterior too: theirs asks for the mode
    of the generator, the one here for the outcome of ``n`` votes.

    Examples
    --------
    >>> def generator(state, n, *, rng):
    ...     return [f"so it is {rng.choice([7, 8], p=[0.8, 0.2])}" for _ in range(n)]
    >>> outcome = majority_vote(
    ...     generator, "?", n=40, confidence=0.95, answer=lambda text: text.split()[-1]
    ... )
    >>> outcome.details["vote"], outcome.stopped, len(outcome.candidates) < 40
    ('7', 'early', True)
    """
    n, batch = check_integer("n", n, 1), check_integer("batch", batch, 1)
    every = batch if every is None else check_integer("every", every, 1)
    if confidence is None:
        every = n
    else:
        confidence = check_finite_number("confidence", confidence)
        if not 0 < confidence <= 1:
            raise ArgumentError(f"confidence must be above 0 and at most 1, not {confidence:g}")
        if verifier is not None and confidence < 1:
            raise ArgumentError("confidence must be 1 where a verifier weighs the votes")
    session = open_session(
        "majority_vote", state, seed=seed, budget=budget, trace=trace, policy=policy, progress=progress,
        generator=generator, verifier=verifier, answer=answer, optional=("verifier", "answer"),
    )  # fmt: skip
    ballots = _Ballots(answer)

    async def body(s: Session) -> None:
        for first in range(0, n, every):
            stop = min(first + every, n)
            await sample(s, generator, verifier, first, stop, batch, (0.0, 1.0))
            if s.stopped == "budget" or stop == n or confidence is None:
                continue
            weights = sorted(ballots.count(s, verifier is not None).values(), reverse=True)
            if verifier is not None:
                lead = weights[0] - (weights[1] if len(weights) > 1 else 0.0) if weights else 0.0
                decided = lead > n - stop
            else:
                decided = overturn_probability([int(w) for w in weights], n - stop) <= 1 - confidence
            if decided:
                s.stopped = "early"
                return

    def choose(s: Session) -> tuple[Candidate | None, float | None]:
        votes = ballots.count(s, verifier is not None)
        if not votes:
            return None, None
        order = sorted(votes, key=lambda vote: -votes[vote])  # stable: the first seen wins
        s.details["votes"] = [(ballots.shown[vote], votes[vote]) for vote in order]
        s.details["vote"] = ballots.shown[order[0]]
        voters = [c for c in s.candidates if ballots.of(s, c) == order[0]]
        best = max(voters, key=lambda c: c.score or 0.0) if verifier is not None else voters[0]
        total = sum(votes.values())
        return best, votes[order[0]] / total if total else None

    return conduct(session, body, choose)


class _Ballots:
    """What each candidate votes for, asked once."""

    def __init__(self, answer: Callable[[Any], Any] | None) -> None:
        self._answer = answer
        self._of: dict[str, Hashable] = {}
        self.shown: dict[Hashable, Any] = {}

    def of(self, s: Session, candidate: Candidate) -> Hashable:
        """Return the vote of a candidate, None where it has none."""
        if candidate.node not in self._of:
            vote, key = None, None
            try:
                vote = candidate.value if self._answer is None else self._answer(candidate.value)
                key = _hashable(vote)
            except Exception as error:
                words = f"answer raised {type(error).__name__}: {error}"
                s.failures.append(Failure(candidate.node, "answer", words))
                s.mark(candidate.node, status="failed", note=words)
            self._of[candidate.node] = key
            if key is not None:
                self.shown.setdefault(key, vote)
        return self._of[candidate.node]

    def count(self, s: Session, weighted: bool) -> dict[Hashable, float]:
        """Return the weight of each vote, in the order in which they were first cast by place."""
        votes: dict[Hashable, float] = {}
        for candidate in s.candidates_in_order():
            vote = self.of(s, candidate)
            if vote is not None and not (weighted and candidate.score is None):
                votes[vote] = votes.get(vote, 0.0) + ((candidate.score or 0.0) if weighted else 1.0)
        return votes


def _hashable(value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError:
        return digest(to_json(value))
    return value  # type: ignore[no-any-return]


def overturn_probability(counts: Sequence[int], remaining: int) -> float:
    """Return how likely it is that further votes change which answer leads.

    Under a uniform prior on how two answers share their votes, the leader's share of the remaining votes is
    Beta-binomial. The probabilities that each other answer, and one that nobody has given yet, draws level or
    ahead if all remaining votes are for it or the leader are added up. For two answers that is exact but for
    the third one; for more it leaves out that votes for others decide nothing.

    Parameters
    ----------
    counts : sequence of int
        Votes for each answer, in any order.
    remaining : int
        Votes that are still to come.

    Returns
    -------
    float
        From 0 to 1: 0 where the leader cannot be reached.

    Raises
    ------
    ArgumentError, DTypeError
        Where a number is not an integer from 0 on.

    Examples
    --------
    >>> overturn_probability([5, 1], 3), round(overturn_probability([5, 1], 8), 3)
    (0.0, 0.034)
    """
    votes = sorted((check_integer("counts", count) for count in counts), reverse=True)
    remaining = check_integer("remaining", remaining)
    if not votes:
        return 1.0 if remaining else 0.0
    lead, total = votes[0], 0.0
    for other in [*votes[1:], 0]:
        # The leader gets x of the remaining votes, and is reached where lead + x <= other + remaining - x.
        most = (other + remaining - lead) // 2 if other + remaining >= lead else -1
        total += sum(_beta_binomial(x, remaining, lead + 1, other + 1) for x in range(most + 1))
    return min(1.0, total)


def _beta_binomial(x: int, n: int, a: float, b: float) -> float:
    """Probability of ``x`` of ``n`` where the chance of each is drawn from Beta(a, b)."""
    choose = math.lgamma(n + 1) - math.lgamma(x + 1) - math.lgamma(n - x + 1)
    return math.exp(choose + _log_beta(x + a, n - x + b) - _log_beta(a, b))


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
