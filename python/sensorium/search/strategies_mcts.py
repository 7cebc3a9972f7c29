"""Monte Carlo tree search over steps: visits go where scores below are good, or little is known."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from .._validate import check_finite_number, check_integer, check_positive
from ..errors import ArgumentError
from ._session import ROOT, BudgetSpent, CallFailed, Progress, Session, best_of, conduct, open_session
from .budget import Budget, Cost
from .calling import CallPolicy
from .outcome import Candidate, Outcome
from .policies import PUCT, UCB1, Policy
from .protocol import Generator, Verifier
from .trace import Trace
from .tree import Tree

__all__ = ["mcts"]


def mcts(
    generator: Generator,
    verifier: Verifier,
    state: Any,
    *,
    simulations: int,
    branch: int,
    depth: int,
    finished: Callable[[Any], bool],
    batch: int = 1,
    selection: Policy | None = None,
    temperature: float | None = None,
    target: float | None = None,
    budget: Budget | None = None,
    trace: Trace | str | os.PathLike[str] | None = None,
    policy: CallPolicy | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Search a tree of partial solutions by simulations, each from the root to one not continued yet.

    A simulation continues its leaf: the generator makes ``branch`` continuations, the verifier scores them,
    and the leaf's own score is told to all partial solutions on the way, which decides where the next
    simulations go. A continuation that is an answer, or ``depth`` steps deep, ends a branch; simulations that
    arrive there again call nothing.

    Parameters
    ----------
    generator : Generator
        Called as ``generator(partial, branch)``; returns continuations by a step, each a whole partial
        solution.
    verifier : Verifier
        Called with the continuations of one partial solution.
    state : object
        The partial solution to begin with.
    simulations : int
        How many. A budget may limit ``simulations`` too, those of several searches together.
    branch, depth : int
        Continuations of a partial solution, and steps to an answer at most.
    finished : callable
        Whether a partial solution is an answer.
    batch : int
        Leaves that are continued side by side, kept apart by virtual losses. Unlike the ``concurrency`` of
        calls this changes the tree.
    selection : Policy, optional
        How simulations choose their way. ``UCB1()`` where not given, and ``PUCT()`` with a ``temperature``.
        Scores are put on a scale from 0 to 1, the lowest so far to the highest.
    temperature : float, optional
        Gives continuations the prior ``softmax(score / temperature)``, for a ``selection`` that takes priors.
        Equal where not given.
    target : float, optional
        Ends when an answer has this score.
    budget, trace, policy, seed, progress
        As in :func:`best_of_n`. A leaf is continued only where there is room to verify what comes of it.

    Returns
    -------
    Outcome
        The best answer or, where there is none, the best partial solution, whose candidate then says that it
        is not ``finished``. ``stopped`` may be ``target``, or ``exhausted`` where all branches failed.
        ``details["tree"]`` is the :class:`Tree`, ``details["simulations"]`` their number.

    Raises
    ------
    SearchError
        Where nothing but failures came of it.
    ArgumentError, DTypeError, TraceError
        Where an argument is out of range, or the trace is of another search.

    References
    ----------
    Kocsis and Szepesvári (2006), Bandit Based Monte-Carlo Planning. Hao et al. (2023), Reasoning with
    Language Model is Planning with World Model, arXiv:2305.14992.

    Examples
    --------
    >>> def generator(word, n):
    ...     return [word + letter for letter in "abcd"[:n]]
    >>> def verifier(words):
    ...     return [sum(a == b for a, b in zip(word, "dacb")) for word in words]
    >>> outcome = mcts(
    ...     generator, verifier, "", simulations=60, branch=4, depth=4, target=4,
    ...     finished=lambda word: len(word) == 4,
    ... )
    >>> outcome.answer, outcome.stopped
    ('dacb', 'target')
    """
    simulations = check_integer("simulations", simulations)
    branch, depth = check_integer("branch", branch, 1), check_integer("depth", depth, 1)
    batch = check_integer("batch", batch, 1)
    target = None if target is None else check_finite_number("target", target)
    temperature = None if temperature is None else check_positive("temperature", temperature)
    if selection is None:
        selection = UCB1() if temperature is None else PUCT()
    tree = Tree(policy=selection, seed=check_integer("seed", seed), normalise=True)
    session = open_session(
        "mcts", state, seed=seed, budget=budget, trace=trace, policy=policy, progress=progress,
        generator=generator, verifier=verifier, finished=finished,
    )  # fmt: skip
    session.details["tree"] = tree
    places: dict[int, Candidate] = {0: Candidate(state, ROOT, finished=False, depth=0)}

    async def grow(s: Session, leaf: int) -> list[Candidate]:
        parent = places[leaf]
        ask, score = f"g{parent.node}", f"v{parent.node}"
        claims = s.claim(("generator", ask), ("verifier", score))
        try:
            made = await s.expand(
                generator, parent.value, branch, node=parent.node, key=ask, depth=parent.depth + 1,
                finished=finished, claims=claims,
            )  # fmt: skip
            scored = await s.verify(verifier, made, node=parent.node, key=score, claims=claims)
        finally:
            s.drop(claims)
        return [c for c in scored if c.score is not None and c.score > -math.inf]

    def tell(s: Session, leaf: int, grown: Any) -> None:
        """Put what came of a leaf into the tree."""
        if isinstance(grown, BudgetSpent):
            tree.release([leaf])
            return
        if isinstance(grown, CallFailed) or not grown:
            tree.fail([leaf])
            return
        scores = np.array([c.score for c in grown], np.float64)
        ends = np.array([c.finished or c.depth >= depth for c in grown])
        weights = None
        if temperature is not None:
            weights = np.exp((scores - scores.max()) / temperature)
            weights = [weights / weights.sum()]
        tree.expand(
            [leaf], [len(grown)], priors=weights, rewards=[np.where(ends, scores, 0.0)], terminal=[ends]
        )
        own = places[leaf].score
        tree.backup([leaf], [float(scores.mean()) if own is None else own])
        for child, candidate in zip(tree.children(leaf).tolist(), grown, strict=True):
            places[child] = candidate
            if candidate.finished:
                s.mark(candidate.node, status="finished")

    async def body(s: Session) -> None:
        while tree.simulations < simulations:
            walks = min(batch, simulations - tree.simulations)
            room = s.budget.left.get("simulations", math.inf)
            if room <= 0:
                raise BudgetSpent
            before = tree.simulations
            try:
                leaves = tree.select(batch=int(min(walks, room))).tolist()
                stuck = not leaves and tree.simulations == before
            except ArgumentError:  # every branch failed
                stuck = True
            if stuck:
                s.stopped = "exhausted"
                return
            s.charge(Cost(simulations=tree.simulations - before), role="tree")
            ends = await s.gather(grow(s, leaf) for leaf in leaves)
            for leaf, grown in zip(leaves, ends, strict=True):
                tell(s, leaf, grown)
            if any(isinstance(grown, BudgetSpent) for grown in ends):
                raise BudgetSpent
            if target is not None and any(
                c.finished and (c.score or 0.0) >= target for g in ends if isinstance(g, list) for c in g
            ):
                s.stopped = "target"
                return

    def choose(s: Session) -> tuple[Candidate | None, float | None]:
        s.details["simulations"] = tree.simulations
        return best_of(s.candidates)

    return conduct(session, body, choose)
