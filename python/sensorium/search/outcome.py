"""What every strategy returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .budget import Budget, Cost
from .trace import Trace

__all__ = ["Candidate", "Failure", "Outcome"]


@dataclass
class Candidate:
    """Something that a generator made.

    Parameters
    ----------
    value : object
        The candidate.
    node : str
        Where it is in the trace.
    score : float or None
        What the verifier said; None where it did not.
    finished : bool
        Whether it is an answer, rather than a step towards one.
    depth : int
        How many steps it is from the state that the search began from.
    """

    value: Any
    node: str
    score: float | None = None
    finished: bool = True
    depth: int = 1


@dataclass(frozen=True)
class Failure:
    """A call that came to nothing, or brought less than it should.

    Parameters
    ----------
    node, role : str
        Where, and who.
    error : str
        What happened.
    attempts : int
        How often it was tried.
    """

    node: str
    role: str
    error: str
    attempts: int = 1


@dataclass
class Outcome:
    """What a search found, and how.

    Parameters
    ----------
    answer : object
        The best candidate's value; None where there is no candidate.
    score : float or None
        Its score: that of the verifier or, after a vote, its share of the votes.
    candidates : list of Candidate
        All of them, in the order of their nodes, whatever order they came in.
    failures : list of Failure
        What went wrong, in the order of the nodes.
    stopped : str
        Why it ended: ``done``, ``budget``, ``interrupted``, or a reason of the strategy's own.
    budget : Budget
        With the ledger.
    trace : Trace
        The record.
    details : dict
        What a strategy has to say beyond that.
    """

    answer: Any
    score: float | None
    candidates: list[Candidate]
    failures: list[Failure]
    stopped: str
    budget: Budget
    trace: Trace
    used: Cost = field(default_factory=Cost)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def scores(self) -> NDArray[np.float64]:
        """Scores of the candidates (K,), NaN where there is none."""
        return np.array([math.nan if c.score is None else c.score for c in self.candidates], np.float64)

    def __str__(self) -> str:
        answer = repr(self.answer)
        answer = answer if len(answer) <= 200 else answer[:200] + "…"
        score = "" if self.score is None else f", score {self.score:.4g}"
        spent = ", ".join(f"{name} {value:g}" for name, value in self.used.as_dict().items())
        return (
            f"{answer}{score}; {len(self.candidates)} candidates, {len(self.failures)} failures; "
            f"ended by {self.stopped}; spent {spent or 'nothing'}"
        )
