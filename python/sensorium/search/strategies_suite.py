"""One budget for many problems: more tries where a try is likely to solve one."""

from __future__ import annotations

import heapq
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validate import as_indices, check_finite_number, check_integer
from ..errors import ArgumentError, ShapeError
from ._page import sort_key
from ._session import ROOT, BudgetSpent, CallFailed, Progress, Session, best_of, conduct, open_session
from .budget import Budget
from .calling import CallPolicy
from .outcome import Candidate, Outcome
from .protocol import Generator, Verifier
from .trace import Trace

__all__ = ["allocate_samples", "solve_suite"]

# A grid of Beta priors: their means, and how many tries they are worth, from little to sure.
_MEANS = np.linspace(0.02, 0.98, 25)
_WORTHS = 2.0 ** np.arange(-2, 8)


def allocate_samples(
    successes: ArrayLike,
    tries: ArrayLike,
    total: int,
    *,
    prior: ArrayLike | None = None,
    cost: ArrayLike | None = None,
    most: int | None = None,
) -> NDArray[np.int64]:
    """Return how many further tries to give to each problem, so that most are likely to be solved.

    A problem is solved by one success, and those that have one get nothing. For the others the chance that
    the next try is the first success, ``E[p (1 - p)^n]`` after ``n`` further ones, falls with ``n``, so that
    giving try after try to the problem with the largest chance solves the most problems for the number.

    Parameters
    ----------
    successes, tries : array (N,) of integers
        What was seen so far of each problem.
    total : int
        Tries to give out; with ``cost``, what may be spent.
    prior : array (N, 2), optional
        Beta distributions of the chance of a success of each problem, before what was seen: where something
        is known about how hard each is. Where not given, the chances of all problems come from one Beta
        distribution, about which the tries of all of them tell.
    cost : array (N,), optional
        What a try costs, above 0; then it is chance over cost that decides, among the tries that can still be
        paid.
    most : int, optional
        Tries that a problem can get.

    Returns
    -------
    array (N,) of int64
        Their sum is ``total`` unless all are solved or have ``most``. Of equals the first is served first.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other or are out of range; the message names the argument.

    References
    ----------
    Damani et al. (2024), Learning How Hard to Think, arXiv:2410.04707, give each problem its share by the
    gain of one more sample.

    Examples
    --------
    >>> allocate_samples([1, 0, 0], [1, 1, 30], 6)
    array([0, 6, 0])
    >>> allocate_samples([0, 0, 0], [0, 0, 0], 9, prior=[[1, 1], [1, 9], [1, 99]])
    array([4, 5, 0])
    """
    won, tried = as_indices("successes", successes), as_indices("tries", tries)
    if won.ndim != 1:
        raise ShapeError(f"successes has shape {won.shape}, expected (N,)")
    if tried.shape != won.shape:
        raise ShapeError(f"tries has shape {tried.shape} but successes has {won.shape}")
    if (won < 0).any() or (tried < won).any():
        raise ArgumentError("successes must be from 0 to tries")
    total = check_integer("total", total)
    most = total if most is None else check_integer("most", most)
    price = np.ones(len(won)) if cost is None else np.asarray(cost, np.float64)
    if price.shape != won.shape:
        raise ShapeError(f"cost has shape {price.shape} but successes has {won.shape}")
    if not (np.isfinite(price) & (price > 0)).all():
        raise ArgumentError("cost must be finite and above 0")
    given = np.zeros(len(won), np.int64)
    if not len(won):
        return given
    weight, a, b = _posterior(won, tried, prior)
    misses = weight.copy()  # the chance under each distribution that all further tries so far fail
    queue: list[tuple[float, int]] = []
    for i in np.flatnonzero(won == 0).tolist():
        queue.append((-float(misses[i] @ (a[i] / (a[i] + b[i]))) / price[i], i))
    heapq.heapify(queue)
    left = float(total)
    while queue:
        _, i = heapq.heappop(queue)
        if given[i] >= most or price[i] > left:
            continue
        left -= price[i]
        given[i] += 1
        misses[i] *= b[i] / (a[i] + b[i])
        b[i] += 1.0
        heapq.heappush(queue, (-float(misses[i] @ (a[i] / (a[i] + b[i]))) / price[i], i))
    return given


def _posterior(
    won: NDArray[np.int64], tried: NDArray[np.int64], prior: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return weights and Beta parameters (N, G) of each problem's chance of a success."""
    from scipy.special import betaln

    count = len(won)
    if prior is not None:
        given = np.asarray(prior, np.float64)
        if given.shape != (count, 2):
            raise ShapeError(f"prior has shape {given.shape}, expected ({count}, 2)")
        if not (np.isfinite(given) & (given > 0)).all():
            raise ArgumentError("prior must be finite and above 0")
        a, b = given[:, :1], given[:, 1:]
        weights = np.ones((count, 1))
    else:
        means, worths = (grid.ravel() for grid in np.meshgrid(_MEANS, _WORTHS))
        a, b = np.tile(means * worths, (count, 1)), np.tile((1 - means) * worths, (count, 1))
        seen = betaln(a + won[:, None], b + (tried - won)[:, None]) - betaln(a, b)
        log_weights = seen.sum(axis=0)
        weights = np.exp(log_weights - log_weights.max())
        weights = np.tile(weights / weights.sum(), (count, 1))
    return weights, a + won[:, None], b + (tried - won)[:, None]


def solve_suite(
    generator: Generator,
    verifier: Verifier,
    problems: Sequence[Any],
    *,
    total: int,
    pilot: int = 1,
    solved: float = 1.0,
    step: int | None = None,
    prior: ArrayLike | None = None,
    budget: Budget | None = None,
    trace: Trace | str | os.PathLike[str] | None = None,
    policy: CallPolicy | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Solve as many problems as ``total`` tries allow: a first look at each, then more where it may help.

    Parameters
    ----------
    generator : Generator
        Called as ``generator(problem, n)``, with as many tries as the problem gets in a step.
    verifier : Verifier
        Called with the candidates of one problem, and with the problem as ``state`` where it asks for it.
    problems : sequence
        The states to generate from.
    total : int
        Candidates for all problems together.
    pilot : int
        Candidates that each problem gets at first, as far as ``total`` goes.
    solved : float
        The score from which on a problem is solved, and gets no more.
    step : int, optional
        Candidates that are given out between two looks, by :func:`allocate_samples`; as many as there are
        unsolved problems where not given. Problems are worked on side by side.
    prior : array (N, 2), optional
        As of :func:`allocate_samples`.
    budget, trace, policy, seed, progress
        As in :func:`best_of_n`. Candidates are begun only where there is room to verify them.

    Returns
    -------
    Outcome
        ``answer`` is a list with the best candidate of each problem, None where it has none, and ``score``
        the share of problems that are solved. ``details`` has ``solved`` (N,) bool, ``samples`` (N,), the
        candidates that each problem was given, and ``scores`` (N,), NaN where there is none. Candidates of
        problem ``i`` have nodes ``0.i.*``. ``stopped`` may be ``solved``.

    Raises
    ------
    SearchError
        Where nothing but failures came of it.
    ArgumentError, DTypeError, TraceError
        Where an argument is out of range, or the trace is of another search.

    Examples
    --------
    >>> def generator(problem, n, *, rng):
    ...     return [int(x) for x in rng.integers(0, problem, n)]
    >>> outcome = solve_suite(
    ...     generator, lambda xs: [float(x == 0) for x in xs], [1, 2, 4, 8, 16], total=30, seed=1
    ... )
    >>> outcome.score, outcome.stopped
    (1.0, 'solved')
    """
    problems = list(problems)
    total, pilot = check_integer("total", total), check_integer("pilot", pilot)
    solved = check_finite_number("solved", solved)
    step = None if step is None else check_integer("step", step, 1)
    allocate_samples([0] * len(problems), [0] * len(problems), 0, prior=prior)
    session = open_session(
        "solve_suite", problems, seed=seed, budget=budget, trace=trace, policy=policy, progress=progress,
        generator=generator, verifier=verifier,
    )  # fmt: skip
    count = len(problems)
    samples, wins = np.zeros(count, np.int64), np.zeros(count, np.int64)
    tries: list[list[Candidate]] = [[] for _ in problems]

    async def one(s: Session, i: int, n: int) -> None:
        start = int(samples[i])
        ask, score = f"g{i}.{start}x{n}", f"v{i}.{start}x{n}"
        claims = s.claim(("generator", ask), ("verifier", score))
        samples[i] += n
        node = f"{ROOT}.{i}"
        try:
            made = await s.expand(generator, problems[i], n, node=node, key=ask, start=start, claims=claims)
            tries[i] += made
            await s.verify(verifier, made, node=node, key=score, claims=claims, state=problems[i])
        except CallFailed:
            return
        finally:
            s.drop(claims)
        wins[i] += sum(c.score is not None and c.score >= solved for c in made)

    async def body(s: Session) -> None:
        for i in range(count):
            s.mark(f"{ROOT}.{i}", parent=ROOT)
        left, done = total, wins > 0
        shares = np.clip(total - pilot * np.arange(count), 0, pilot)
        while not done.all():
            if not shares.any():
                shares = allocate_samples(wins, samples, min(left, step or int((~done).sum())), prior=prior)
            if not shares.any():
                return
            left -= int(shares.sum())
            ends = await s.gather(one(s, i, int(shares[i])) for i in np.flatnonzero(shares).tolist())
            if any(isinstance(end, BudgetSpent) for end in ends):
                raise BudgetSpent
            done, shares = wins > 0, np.zeros(count, np.int64)
        if count:
            s.stopped = "solved"

    def choose(s: Session) -> tuple[Candidate | None, float | None]:
        best = [best_of(sorted(made, key=lambda c: sort_key(c.node)))[0] for made in tries]
        s.details.update(
            solved=wins > 0,
            samples=samples.copy(),
            scores=np.array([np.nan if c is None or c.score is None else c.score for c in best], np.float64),
        )
        for candidate in best:
            if candidate is not None:
                s.mark(candidate.node, status="answer")
        share = float(s.details["solved"].mean()) if count else None
        found = [None if c is None else c.value for c in best]
        return (Candidate(found, ROOT) if s.candidates or not s.failures else None), share

    return conduct(session, body, choose)
