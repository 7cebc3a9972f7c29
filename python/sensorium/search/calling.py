"""How callables are called: how many at once, where, how long, how often, and what is tried again."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import heapq
import itertools
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._validate import check_finite_number, check_integer, check_positive
from ..errors import ArgumentError, DTypeError
from .protocol import is_async

__all__ = ["CallPolicy"]

# Errors of a program rather than of a service: the next attempt would fail in the same way, and be paid for.
_HOPELESS = (
    AssertionError,
    AttributeError,
    ImportError,
    NameError,
    NotImplementedError,
    SyntaxError,
    TypeError,
)


@dataclass(frozen=True)
class CallPolicy:
    """How callables are called.

    Parameters
    ----------
    concurrency : int
        Calls under way at once. The outcome does not depend on it: what is done with results depends on
        where they belong and not on when they come.
    executor : concurrent.futures.Executor, optional
        Where plain callables run: a pool of threads or processes, or a cluster's. Each has a thread of its
        own where none is given, so that one that never returns keeps nobody waiting, not even at exit. Async
        callables run in the search's own event loop.
    timeout : float, optional
        Seconds that an attempt may take. An async call is cancelled then. A plain one cannot be: it is left
        behind, and its result thrown away.
    retries : int
        Further attempts at a call that raised, ran out of time or returned what cannot be used.
    backoff, backoff_limit : float
        Seconds before the second attempt at most, twice as many before each further one, up to the limit.
    jitter : float
        The share of that time that is drawn at random, 0 to 1, so that calls that failed together do not
        come back together.
    rate : float, optional
        Attempts that may begin in a second.
    hopeless : tuple of exception types
        Not tried again: by default those that say that a program is wrong.

    Raises
    ------
    DTypeError, ArgumentError
        Where a number is out of range.

    Notes
    -----
    A call that is tried again after an error or a time-out has the same idempotency key and seed: a service
    that had done the work may return it without charging twice. After a value that cannot be used both are
    new, since the old ones would give the same value.
    """

    concurrency: int = 1
    executor: concurrent.futures.Executor | None = None
    timeout: float | None = None
    retries: int = 2
    backoff: float = 1.0
    backoff_limit: float = 60.0
    jitter: float = 0.5
    rate: float | None = None
    hopeless: tuple[type[Exception], ...] = _HOPELESS

    def __post_init__(self) -> None:
        check_integer("concurrency", self.concurrency, 1)
        check_integer("retries", self.retries)
        for name in ("timeout", "rate"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        for name in ("backoff", "backoff_limit", "jitter"):
            if check_finite_number(name, getattr(self, name)) < 0:
                raise ArgumentError(f"{name} must be at least 0, not {getattr(self, name):g}")
        if self.jitter > 1:
            raise ArgumentError(f"jitter must be at most 1, not {self.jitter:g}")
        if self.executor is not None and not hasattr(self.executor, "submit"):
            raise DTypeError(f"executor has no submit: it is a {type(self.executor).__name__}")

    def delay(self, failed: int, error: BaseException, rng: random.Random) -> float:
        """Return the seconds to wait after so many attempts have failed, the last with ``error``."""
        most = min(self.backoff_limit, self.backoff * 2.0 ** min(failed - 1, 60))
        wait = most * (1.0 - self.jitter * rng.random())
        asked = getattr(error, "retry_after", None)
        if isinstance(asked, int | float) and math.isfinite(asked):
            wait = max(wait, float(asked))
        return wait


class Pace:
    """Turns at a fixed rate: the n-th begins no sooner than ``(n - 1) / rate`` seconds after the first."""

    def __init__(self, rate: float | None) -> None:
        self._gap = 0.0 if rate is None else 1.0 / rate
        self._next = -math.inf

    def wait(self) -> float:
        """Take the next turn; return the seconds until it."""
        now = time.monotonic()
        turn = max(now, self._next)
        self._next = turn + self._gap
        return turn - now


class Slots:
    """Room for so many calls at once. Those that finish a candidate go before those that begin one."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: list[tuple[tuple[bool, int], asyncio.Future[None]]] = []
        self._tickets = itertools.count()

    async def take(self, *, first: bool) -> None:
        """Wait for room, and take it."""
        ticket = (not first, next(self._tickets))
        while not self._free:
            turn = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (ticket, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():
                    self._call_next()
                raise
        self._free -= 1

    def give_back(self) -> None:
        """Make room for the next one."""
        self._free += 1
        self._call_next()

    def _call_next(self) -> None:
        while self._waiting:
            _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return


def run_guarded(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[bool, Any]:
    """Return whether a call returned, and what it returned or raised. Can be sent to another process."""
    try:
        return True, function(*args, **kwargs)
    except BaseException as error:
        return False, _plain(error)


def _plain(error: BaseException) -> BaseException:
    """Return an error that means nothing to event loops and generators."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return error
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def _in_thread(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> concurrent.futures.Future[tuple[bool, Any]]:
    future: concurrent.futures.Future[tuple[bool, Any]] = concurrent.futures.Future()

    def run() -> None:
        result = run_guarded(function, args, kwargs)
        if future.set_running_or_notify_cancel():
            future.set_result(result)

    threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
    return future


async def attempt(
    policy: CallPolicy,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    timeout: float | None,
) -> Any:
    """Make one attempt at a call; return what it returned, or raise what it raised or a ``TimeoutError``."""

    async def guarded() -> tuple[bool, Any]:
        if is_async(function):
            try:
                return True, await function(*args, **kwargs)
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                return False, _plain(error)
        if policy.executor is None:
            future = _in_thread(function, args, kwargs)
        else:
            future = policy.executor.submit(run_guarded, function, args, kwargs)
        returned, value = await asyncio.wrap_future(future)
        if returned and hasattr(value, "__await__"):
            try:
                value = await value
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                return False, _plain(error)
        return returned, value

    task = asyncio.ensure_future(guarded())
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if not done:
        task.cancel()
        raise TimeoutError(f"no result after {timeout:g} s")
    if task.cancelled():
        raise RuntimeError("the call was cancelled from within")
    returned, value = task.result()
    if not returned:
        raise value
    return value
