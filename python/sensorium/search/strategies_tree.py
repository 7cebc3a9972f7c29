"""Searches over steps: a candidate is a whole partial solution, and a generator continues it."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from typing import Any, Literal

from .._validate import check_finite_number, check_integer
from ..errors import ArgumentError
from ._session import ROOT, BudgetSpent, CallFailed, Progress, Session, best_of, conduct, open_session
from .budget import Budget
from .calling import CallPolicy
from .outcome import Candidate, Failure, Outcome
from .protocol import Generator, Verifier
from .trace import Trace

__all__ = ["beam_search", "diverse_beam", "tree_of_thought"]

Finished = Callable[[Any], bool]
Identity = Callable[[Any], Hashable]


def beam_search(
    generator: Generator,
    verifier: Verifier,
    state: Any,
    *,
    width: int,
    branch: int,
    depth: int,
    finished: Finished,
    answers: int | None = None,
    target: float | None = None,
    identity: Identity | None = None,
    budget: Budget | None = None,
    trace: Trace | str | os.PathLike[str] | None = None,
    policy: CallPolicy | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Continue the ``width`` partial solutions that a step verifier likes best, step by step.

    Parameters
    ----------
    generator : Generator
        Called as ``generator(partial, branch)`` for each partial solution that is kept, side by side; returns
        ``branch`` continuations of it by a step, each a whole partial solution.
    verifier : Verifier
        Called once a level with all continuations.
    state : object
        The partial solution to begin with.
    width, branch, depth : int
        Partial solutions that are kept at each level, continuations of each, and levels.
    finished : callable
        Whether a partial solution is an answer. It then leaves the beam and frees its place.
    answers : int, optional
        Ends after the level in which there are that many; ``width`` where not given.
    target : float, optional
        Ends after the level in which an answer has this score.
    identity : callable, optional
        Returns what two solutions that are alike have in common. Of those of a level only the first is kept.
    budget, trace, policy, seed, progress
        As in :func:`best_of_n`. A level begins only where there is room to verify it.

    Returns
    -------
    Outcome
        The best answer or, where there is none, the best partial solution, whose candidate then says that it
        is not ``finished``. ``stopped`` may be ``target`` or ``depth``.

    Raises
    ------
    SearchError
        Where nothing but failures came of it.
    ArgumentError, DTypeError, TraceError
        Where an argument is out of range, or the trace is of another search.

    Examples
    --------
    >>> def generator(word, n):
    ...     return [word + letter for letter in "abcd"[:n]]
    >>> def verifier(words):
    ...     return [sum(a == b for a, b in zip(word, "cab")) for word in words]
    >>> outcome = beam_search(
    ...     generator, verifier, "", width=2, branch=4, depth=3, finished=lambda word: len(word) == 3
    ... )
    >>> outcome.answer, outcome.score
    ('cab', 3.0)
    """
    levels = _Levels(1, width, branch, depth, finished, answers, target, identity, None)
    return levels.search(
        "beam_search", generator, verifier, state, budget=budget, trace=trace, policy=policy, seed=seed,
        progress=progress,
    )  # fmt: skip


def diverse_beam(
    generator: Generator,
    verifier: Verifier,
    state: Any,
    *,
    trees: int,
    branch: int,
    depth: int,
    finished: Finished,
    answers: int | None = None,
    target: float | None = None,
    identity: Identity | None = None,
    budget: Budget | None = None,
    trace: Trace | str | os.PathLike[str] | None = None,
    policy: CallPolicy | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Run ``trees`` greedy searches side by side that do not push each other out (DVTS).

    Each begins with its own ``branch`` continuations of the state and keeps the best one of each level. A
    beam of the same width may soon hold ``width`` continuations of one step; these cannot.

    Parameters
    ----------
    generator, verifier, state, branch, depth, finished, target
        As in :func:`beam_search`.
    trees : int
        How many searches.
    answers : int, optional
        Ends after the level in which there are that many; ``trees`` where not given.
    identity : callable, optional
        As in :func:`beam_search`, within a tree.
    budget, trace, policy, seed, progress
        As in :func:`best_of_n`.

    Returns
    -------
    Outcome
        As of :func:`beam_search`.

    Raises
    ------
    SearchError
        Where nothing but failures came of it.
    ArgumentError, DTypeError, TraceError
        Where an argument is out of range, or the trace is of another search.

    References
    ----------
    Beeching, Tunstall and Rush (2024), Scaling Test-Time Compute with Open Models, introduce it as diverse
    verifier tree search.

    Examples
    --------
    >>> def generator(numbers, n, *, rng):
    ...     return [(*numbers, int(x)) for x in rng.integers(0, 10, n)]
    >>> outcome = diverse_beam(
    ...     generator, lambda rows: [sum(row) for row in rows], (), trees=3, branch=4, depth=3,
    ...     finished=lambda row: len(row) == 3,
    ... )
    >>> len(outcome.answer), outcome.score == sum(outcome.answer), len(outcome.candidates)
    (3, True, 36)
    """
    trees = check_integer("trees", trees, 1)
    levels = _Levels(trees, 1, branch, depth, finished, answers, target, identity, None)
    return levels.search(
        "diverse_beam", generator, verifier, state, budget=budget, trace=trace, policy=policy, seed=seed,
        progress=progress,
    )  # fmt: skip


def tree_of_thought(
    generator: Generator,
    verifier: Verifier,
    state: Any,
    *,
    branch: int,
    depth: int,
    finished: Finished,
    order: Literal["bfs", "dfs"] = "bfs",
    width: int | None = None,
    threshold: float | None = None,
    answers: int | None = None,
    target: float | None = None,
    identity: Identity | None = None,
    budget: Budget | None = None,
    trace: Trace | str | os.PathLike[str] | None = None,
    policy: CallPolicy | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Outcome:
    """Search a tree of partial solutions, whole levels at a time or the most promising branch first.

    Parameters
    ----------
    generator, verifier, state, branch, depth, finished
        As in :func:`beam_search`. In depth-first order the verifier is called with the continuations of one
        partial solution.
    order : {"bfs", "dfs"}
        By level, keeping ``width`` of each; or by depth: the best continuation first, back to the next best
        where a branch ends. Depth-first makes one call after the other.
    width : int, optional
        Partial solutions kept at each level; all where not given. Not for depth-first.
    threshold : float, optional
        Partial solutions with a lower score are pruned, and so are not continued.
    answers : int, optional
        Ends when there are that many; 1 where not given in depth-first order without a ``target``, and
        otherwise the whole tree is searched.
    target : float, optional
        Ends when an answer has this score.
    identity : callable, optional
        Returns what two solutions that are alike have in common: only the first is continued, in the whole
        tree in depth-first order, of a level in the other.
    budget, trace, policy, seed, progress
        As in :func:`best_of_n`.

    Returns
    -------
    Outcome
        As of :func:`beam_search`. ``stopped`` may be ``target``, ``answers`` or ``depth``.

    Raises
    ------
    SearchError
        Where nothing but failures came of it.
    ArgumentError, DTypeError, TraceError
        Where an argument is out of range, or the trace is of another search.

    References
    ----------
    Yao et al. (2023), Tree of Thoughts, arXiv:2305.10601.

    Examples
    --------
    >>> def generator(bits, n):
    ...     return [bits + "0", bits + "1"]
    >>> def verifier(rows):
    ...     return [-float("inf") if "11" in row else row.count("1") for row in rows]
    >>> outcome = tree_of_thought(
    ...     generator, verifier, "", branch=2, depth=5, finished=lambda bits: len(bits) == 5, order="dfs",
    ...     threshold=0, target=3,
    ... )
    >>> outcome.answer, outcome.stopped
    ('10101', 'target')
    """
    if order not in ("bfs", "dfs"):
        raise ArgumentError(f"order must be 'bfs' or 'dfs', not {order!r}")
    if order == "dfs" and width is not None:
        raise ArgumentError("width is of whole levels: it cannot be given with order='dfs'")
    levels = _Levels(1, width, branch, depth, finished, answers, target, identity, threshold)
    if order == "bfs":
        levels.answers = answers
    elif answers is None and target is None:
        levels.answers = 1
    return levels.search(
        "tree_of_thought", generator, verifier, state, budget=budget, trace=trace, policy=policy, seed=seed,
        progress=progress, deep=order == "dfs",
    )  # fmt: skip


class _Levels:
    """Beams of partial solutions: ``groups`` of ``width`` each, which compete within their group."""

    def __init__(
        self, groups: int, width: int | None, branch: int, depth: int, finished: Finished,
        answers: int | None, target: float | None, identity: Identity | None, threshold: float | None,
    ) -> None:  # fmt: skip
        self.groups = groups
        self.width = None if width is None else check_integer("width", width, 1)
        self.branch = check_integer("branch", branch, 1)
        self.depth = check_integer("depth", depth, 1)
        self.finished = finished
        self.answers = answers if answers is None else check_integer("answers", answers, 1)
        if answers is None and self.width is not None:
            self.answers = groups * self.width
        self.target = None if target is None else check_finite_number("target", target)
        self.threshold = None if threshold is None else check_finite_number("threshold", threshold)
        self.identity = identity

    def search(
        self, strategy: str, generator: Generator, verifier: Verifier, state: Any, *, deep: bool = False,
        **settings: Any,
    ) -> Outcome:  # fmt: skip
        """Run it."""
        session = open_session(
            strategy, state, generator=generator, verifier=verifier, finished=self.finished,
            identity=self.identity, optional=("identity",), **settings,
        )  # fmt: skip

        async def body(s: Session) -> None:
            await (self._by_depth if deep else self._by_level)(s, generator, verifier)

        return conduct(session, body, lambda s: best_of(s.candidates))

    async def _by_level(self, s: Session, generator: Generator, verifier: Verifier) -> None:
        root = Candidate(s.state, ROOT, finished=False, depth=0)
        beams = [[root] for _ in range(self.groups)]
        for level in range(1, self.depth + 1):
            claims = s.claim(("verifier", f"v{level}"))
            try:
                asked = [(g, parent) for g, group in enumerate(beams) for parent in group]
                ends = await s.gather(self._continue(s, generator, parent, g) for g, parent in asked)
                made = [end if isinstance(end, list) else [] for end in ends]
                new = [child for children in made for child in children]
                await s.verify(verifier, new, node=ROOT, key=f"v{level}", claims=claims)
            finally:
                s.drop(claims)
            for g in range(self.groups):
                children = [c for (h, _), part in zip(asked, made, strict=True) if h == g for c in part]
                beams[g] = self._select(s, children)
            if any(isinstance(end, BudgetSpent) for end in ends):
                raise BudgetSpent
            if self._is_enough(s) or not any(beams):
                return
        s.stopped = "depth"

    async def _by_depth(self, s: Session, generator: Generator, verifier: Verifier) -> None:
        stack, seen = [Candidate(s.state, ROOT, finished=False, depth=0)], set[Hashable]()
        while stack:
            parent = stack.pop()
            key = f"v{parent.node}"
            claims = s.claim(("generator", f"g{parent.node}@0"), ("verifier", key))
            try:
                made = await self._continue(s, generator, parent, 0, claims)
                await s.verify(verifier, made, node=parent.node, key=key, claims=claims)
            except CallFailed:
                continue
            finally:
                s.drop(claims)
            kept = self._select(s, made, seen)
            if self._is_enough(s):
                return
            stack += [child for child in reversed(kept) if child.depth < self.depth]

    async def _continue(
        self, s: Session, generator: Generator, parent: Candidate, group: int, claims: Any = None
    ) -> list[Candidate]:
        return await s.expand(
            generator, parent.value, self.branch, node=parent.node, key=f"g{parent.node}@{group}",
            start=group * self.branch if parent.node == ROOT else 0, depth=parent.depth + 1,
            finished=self.finished, claims=claims,
        )  # fmt: skip

    def _select(
        self, s: Session, children: list[Candidate], seen: set[Hashable] | None = None
    ) -> list[Candidate]:
        """Return those to continue, best first; say of each of the others why not."""
        seen = set() if seen is None else seen
        kept: list[Candidate] = []
        ranked = [c for c in children if c.score is not None]
        ranked.sort(key=lambda c: -(c.score or 0.0))  # stable: of equals the first by place
        for child in ranked:
            if child.finished:
                s.mark(child.node, status="finished")
                continue
            why = self._refuse(s, child, seen, len(kept))
            s.mark(child.node, status="pruned" if why else "kept", note=why)
            if not why:
                kept.append(child)
        return kept

    def _refuse(self, s: Session, child: Candidate, seen: set[Hashable], kept: int) -> str:
        assert child.score is not None
        if child.score == -float("inf") or (self.threshold is not None and child.score < self.threshold):
            return "below the threshold"
        if self.width is not None and kept >= self.width:
            return "others are better"
        if self.identity is not None:
            try:
                name = self.identity(child.value)
                known = name in seen
            except Exception as error:
                words = f"identity raised {type(error).__name__}: {error}"
                s.failures.append(Failure(child.node, "identity", words))
                return words
            seen.add(name)
            if known:
                return "like an earlier one"
        return ""

    def _is_enough(self, s: Session) -> bool:
        done = [c for c in s.candidates if c.finished and c.score is not None]
        if self.target is not None and any((c.score or 0.0) >= self.target for c in done):
            s.stopped = "target"
        elif self.answers is not None and len(done) >= self.answers:
            s.stopped = "answers"
        else:
            return False
        return True
