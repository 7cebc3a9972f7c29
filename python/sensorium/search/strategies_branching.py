"""A tree that decides at each node whether to grow wider or deeper."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._validate import check_finite_number, check_integer
from ..errors import ArgumentError, DTypeError
from ._session import ROOT, BudgetSpent, Progress, Session, best_of, conduct, open_session
from .budget import Budget, Cost
from .calling import CallPolicy
from .outcome import Candidate, Outcome
from .policies import ThompsonBeta, ThompsonGaussian
from .protocol import Generator, Revision, Verifier
from .trace import Trace

__all__ = ["ab_mcts"]

Prior = ThompsonGaussian | ThompsonBeta


def ab_mcts(
    generator: Generator,
    verifier: Verifier,
    state: Any,
    *,
    simulations: int,
    finished: Callable[[Any], bool] | None = None,
    depth: int | None = None,
    batch: int = 1,
    prior: Prior | None = None,
    context: int = 4,
    target: float | None = None,
    budget: Budget | None = None,
    trace: Trace | str | os.PathLike[str] | None = None,
    policy: CallPolicy | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Grow a tree by one candidate a simulation, as a new child or below an old one (AB-MCTS-A).

    From the root on, a draw from what is believed of the mean score of new children is held against one for
    what is found further down. Where the first is larger the node gets a new child; otherwise the walk goes
    on in the child with the largest draw for its own subtree. The score of a new candidate is evidence for
    new children where it was made, for what is further down in all nodes above that, and for each subtree
    that it lies in.

    Parameters
    ----------
    generator : Generator
        Called with ``n = 1``. With ``finished`` as ``generator(partial, 1)``, for a whole partial solution
        that is a step longer. Without it as ``generator(state, 1)`` at the root, and below with a
        :class:`Revision` of the answer there, without feedback.
    verifier : Verifier
        Scores each candidate as it comes.
    state : object
        What to begin with.
    simulations : int
        How many. A budget may limit ``simulations`` too.
    finished : callable, optional
        Whether a partial solution is an answer, which gets no children. Where not given, all candidates are
        answers, and all may be revised.
    depth : int, optional
        Steps or revisions from the root at most.
    batch : int
        Candidates that are made side by side, each without knowing of the others. Unlike the ``concurrency``
        of calls this changes the tree.
    prior : ThompsonGaussian or ThompsonBeta, optional
        What is believed of a mean score before any; ``ThompsonGaussian()`` where not given. With
        ``ThompsonBeta`` scores must be from 0 to 1, and others are reported as failures.
    context : int
        How many answers of its own branch a revision is shown in its ``history``.
    target : float, optional
        Ends when an answer has this score.
    budget, trace, policy, seed, progress
        As in :func:`best_of_n`. A candidate is begun only where there is room for its verification too.

    Returns
    -------
    Outcome
        The best answer. ``stopped`` may be ``target``. ``details`` has ``simulations``, and ``wider`` and
        ``deeper``: how many of them gave the root a child, and how many went on below one.

    Raises
    ------
    SearchError
        Where nothing but failures came of it.
    ArgumentError, DTypeError, TraceError
        Where an argument is out of range, or the trace is of another search.

    References
    ----------
    Inoue et al. (2025), Wider or Deeper? Scaling LLM Inference-Time Compute with Adaptive Branching Tree
    Search, arXiv:2503.04412. There draws are of a score, here of a mean score.

    Examples
    --------
    >>> from sensorium.search import Revision, ThompsonBeta
    >>> def generator(state, n, *, rng):
    ...     if isinstance(state, Revision):
    ...         return [min(1.0, state.answer + 0.2 * float(rng.random()))]
    ...     return [float(rng.random()) / 2]
    >>> outcome = ab_mcts(generator, lambda xs: xs, None, simulations=99, prior=ThompsonBeta(), target=0.8)
    >>> outcome.stopped, outcome.score >= 0.8
    ('target', True)
    """
    simulations, batch = check_integer("simulations", simulations), check_integer("batch", batch, 1)
    depth = None if depth is None else check_integer("depth", depth, 1)
    context = check_integer("context", context)
    target = None if target is None else check_finite_number("target", target)
    prior = ThompsonGaussian() if prior is None else _checked(prior)
    bounds = (0.0, 1.0) if isinstance(prior, ThompsonBeta) else (-math.inf, math.inf)
    session = open_session(
        "ab_mcts", state, seed=seed, budget=budget, trace=trace, policy=policy, progress=progress,
        generator=generator, verifier=verifier, finished=finished, optional=("finished",),
    )  # fmt: skip
    root = _Place(Candidate(state, ROOT, finished=False, depth=0), None)
    counts = {"simulations": 0, "wider": 0, "deeper": 0}

    def ask_of(place: _Place) -> Any:
        if finished is not None or place.parent is None:
            return place.candidate.value
        branch: list[tuple[Any, float | None]] = []
        above: _Place | None = place
        while above is not None and above.parent is not None and len(branch) < context:
            branch.append((above.candidate.value, above.candidate.score))
            above = above.parent
        return Revision(state, place.candidate.value, None, tuple(reversed(branch)))

    async def grow(s: Session, place: _Place, number: int) -> Candidate | None:
        node = place.candidate.node
        ask, score = f"g{node}.{number}", f"v{node}.{number}"
        claims = s.claim(("generator", ask), ("verifier", score))
        try:
            made = await s.expand(
                generator, ask_of(place), 1, node=node, key=ask, start=number,
                depth=place.candidate.depth + 1, finished=finished, claims=claims,
            )  # fmt: skip
            scored = await s.verify(
                verifier, made, node=f"{node}.{number}", key=score, claims=claims, bounds=bounds
            )
        finally:
            s.drop(claims)
        return scored[0] if scored and scored[0].score != -math.inf else None

    async def body(s: Session) -> None:
        while counts["simulations"] < simulations:
            room = s.budget.left.get("simulations", math.inf)
            if room <= 0:
                raise BudgetSpent
            walks = int(min(batch, simulations - counts["simulations"], room))
            rng = np.random.default_rng(s.seed_of("walk", counts["simulations"]))
            asked = []
            for _ in range(walks):
                place = _walk(root, prior, depth, rng)
                asked.append((place, place.asked))
                place.asked += 1
                counts["wider" if place is root else "deeper"] += 1
            counts["simulations"] += walks
            s.charge(Cost(simulations=walks), role="tree")
            ends = await s.gather(grow(s, place, number) for place, number in asked)
            for (place, _), new in zip(asked, ends, strict=True):
                if isinstance(new, Candidate):
                    _tell(place, new, ended=finished is not None and new.finished)
            if any(isinstance(new, BudgetSpent) for new in ends):
                raise BudgetSpent
            done = [c.score for c in ends if isinstance(c, Candidate) and c.finished and c.score is not None]
            if target is not None and done and max(done) >= target:
                s.stopped = "target"
                return

    def choose(s: Session) -> tuple[Candidate | None, float | None]:
        s.details.update(counts)
        return best_of(s.candidates)

    return conduct(session, body, choose)


@dataclass
class _Scores:
    """What is known of a mean score: number, sum, and sum of squares."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, score: float) -> None:
        self.count += 1
        self.total += score
        self.squares += score * score

    def draw(self, prior: Prior, rng: np.random.Generator) -> float:
        """Return a draw of the mean from its posterior."""
        if isinstance(prior, ThompsonBeta):
            return float(rng.beta(prior.alpha + self.total, prior.beta + max(0.0, self.count - self.total)))
        strength = prior.strength + self.count
        mean = (prior.strength * prior.mean + self.total) / strength
        average = self.total / self.count if self.count else 0.0
        spread = max(0.0, self.squares - self.count * average * average)
        apart = self.count * prior.strength / strength * (average - prior.mean) ** 2
        scale = prior.scale + (spread + apart) / 2
        variance = scale / float(rng.gamma(prior.shape + self.count / 2))
        return mean + math.sqrt(variance / strength) * float(rng.standard_normal())


@dataclass(eq=False)
class _Place:
    """A node: the scores of its new children, of what came below those, and of its whole subtree."""

    candidate: Candidate
    parent: _Place | None
    children: list[_Place] = field(default_factory=list)
    ended: bool = False
    asked: int = 0
    new: _Scores = field(default_factory=_Scores)
    below: _Scores = field(default_factory=_Scores)
    whole: _Scores = field(default_factory=_Scores)


def _walk(root: _Place, prior: Prior, depth: int | None, rng: np.random.Generator) -> _Place:
    """Return the node that gets the next child."""
    place = root
    while True:
        deeper = [
            child
            for child in place.children
            if not child.ended and (depth is None or child.candidate.depth < depth)
        ]
        if not deeper or place.new.draw(prior, rng) >= place.below.draw(prior, rng):
            return place
        place = deeper[int(np.argmax([child.whole.draw(prior, rng) for child in deeper]))]


def _tell(place: _Place, new: Candidate, *, ended: bool) -> None:
    """Add a candidate below a node, and its score to everything that it is evidence for."""
    assert new.score is not None
    child = _Place(new, place, ended=ended)
    child.whole.add(new.score)
    place.children.append(child)
    place.new.add(new.score)
    place.whole.add(new.score)
    above = place.parent
    while above is not None:
        above.below.add(new.score)
        above.whole.add(new.score)
        above = above.parent


def _checked(prior: Any) -> Prior:
    if not isinstance(prior, ThompsonGaussian | ThompsonBeta):
        raise DTypeError(f"prior must be ThompsonGaussian or ThompsonBeta, not {type(prior).__name__}")
    for name, value in vars(prior).items():
        if check_finite_number(f"prior's {name}", value) <= 0 and name != "mean":
            raise ArgumentError(f"prior's {name} must be above 0, not {value:g}")
    return prior
