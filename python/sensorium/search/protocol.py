"""What a search calls: generators, verifiers and critics, as plain or async callables.

A callable takes its arguments by position, and of the options below those that its signature names. So
``lambda state, n: [...]`` is a generator, and so is a method of a client that wants to know more.

========  ==========================  ==============================================================
option    offered to                  what it is
========  ==========================  ==============================================================
``seed``  all                         an integer below 2**53 that depends on the call alone
``rng``   all                         ``numpy.random.default_rng(seed)``
``key``   all                         an idempotency key: the same for a call that is sent once more
``node``  all                         the node of the trace that the call belongs to
``state`` verifiers and critics       what the search began from: the prompt, the problem
========  ==========================  ==============================================================

What a callable returns may be wrapped in a :class:`Reply`, which says what it cost.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .._validate import check_finite_number, check_integer
from ..errors import ArgumentError, DTypeError
from .budget import Cost

__all__ = ["Critic", "Feedback", "Generator", "Reply", "RetryLater", "Revision", "Verifier"]

OPTIONS = frozenset({"seed", "rng", "key", "node", "state"})
POSITIONS = {"generator": 2, "verifier": 1, "critic": 1}  # arguments that are given by position


class Generator(Protocol):
    """``generator(state, n, **options) -> n candidates``: a sequence, or an array with ``n`` rows.

    ``state`` is what the search was given, a candidate of an earlier call in searches over steps (a candidate
    is then a whole partial solution, and the new ones continue it), or a :class:`Revision`. A candidate may
    be anything but ``None`` and NaN.

    Fewer candidates than asked for are used and reported; more are cut and reported.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return ``n`` candidates, or an awaitable of them."""


class Verifier(Protocol):
    """``verifier(candidates, **options) -> scores``: a number for each candidate, larger is better.

    ``-inf`` says that a candidate is out of the question. NaN and ``inf`` are reported as failures.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return as many scores as there are candidates, or an awaitable of them."""


class Critic(Protocol):
    """``critic(candidate, **options) -> feedback``: anything, or a :class:`Feedback` with a score."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return what is wrong with a candidate, or an awaitable of it."""


@dataclass(frozen=True)
class Reply:
    """A value, and what it cost beyond the call itself.

    Parameters
    ----------
    value : object
        What a callable would have returned.
    tokens, simulations : int
        How many were spent.
    money : float
        In any currency, the same throughout.

    Examples
    --------
    >>> Reply(["a", "b"], tokens=40).cost
    Cost(calls=0, tokens=40, seconds=0.0, money=0.0, simulations=0)
    """

    value: Any
    tokens: int = 0
    money: float = 0.0
    simulations: int = 0

    def __post_init__(self) -> None:
        check_integer("tokens", self.tokens)
        check_integer("simulations", self.simulations)
        if check_finite_number("money", self.money) < 0:
            raise ArgumentError(f"money must be at least 0, not {self.money:g}")

    @property
    def cost(self) -> Cost:
        """The cost without the call."""
        return Cost(tokens=int(self.tokens), money=float(self.money), simulations=int(self.simulations))


@dataclass(frozen=True)
class Feedback:
    """What a critic says, with a score of the candidate where it has one.

    Parameters
    ----------
    text : object
        The critique, in the form that the generator reads.
    score : float, optional
        Larger is better.
    """

    text: Any
    score: float | None = None


@dataclass(frozen=True)
class Revision:
    """A state that asks a generator for a better answer.

    Parameters
    ----------
    state : object
        What the search began from.
    answer : object
        The answer to improve on.
    feedback : object
        What the critic said of it; None in :func:`sequential_revision`.
    history : tuple of (answer, score)
        Earlier answers, oldest first.
    """

    state: Any
    answer: Any
    feedback: Any = None
    history: tuple[tuple[Any, float | None], ...] = ()


class RetryLater(Exception):  # noqa: N818 - it asks for something
    """To be raised by a callable that was told to come back: a rate limit, a server that is busy.

    Parameters
    ----------
    seconds : float
        How long to wait at least, as ``Retry-After`` says.
    """

    def __init__(self, seconds: float, message: str = "asked to come back later") -> None:
        super().__init__(f"{message} ({seconds:g} s)")
        self.retry_after = max(0.0, check_finite_number("seconds", seconds))


def accepted_options(name: str, function: Any) -> frozenset[str]:
    """Return the names of the options that a callable's signature has; none where nobody can tell."""
    if not callable(function):
        raise DTypeError(f"{name} must be callable, not {type(function).__name__}")
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return frozenset()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return OPTIONS
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    # The first arguments are given by position, whatever their names are.
    taken, rest = 0, []
    for parameter in parameters:
        if parameter.kind is not parameter.KEYWORD_ONLY and taken < POSITIONS.get(name, 0):
            taken += 1
        elif parameter.kind in named:
            rest.append(parameter.name)
    return OPTIONS.intersection(rest)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call gives a coroutine, and so needs no thread."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - the method, not whether there is one
    )


def is_missing(candidate: Any) -> bool:
    """Whether a candidate is none at all: None, NaN, or an array with a NaN in it."""
    if candidate is None:
        return True
    if isinstance(candidate, float | complex | np.inexact | np.ndarray):
        array = np.asarray(candidate)
        return array.dtype.kind in "fc" and bool(np.isnan(array).any())
    return False
