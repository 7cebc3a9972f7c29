"""One search while it runs: its calls, candidates and failures. Strategies are coroutines over it.

A call has a key that its place in the search gives it, and everything random about it comes from that key. So
neither the seeds nor the order of nodes depend on which call returns first, and a search that is run again
with the trace of an earlier one asks for the same calls, finds most of them in the trace, and makes the rest.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import math
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .._validate import check_integer
from ..errors import DTypeError, SearchError, TraceError
from ._codec import digest
from ._page import sort_key
from .budget import Budget, Cost, Reservation
from .calling import CallPolicy, Pace, Slots, attempt
from .outcome import Candidate, Failure, Outcome
from .protocol import Feedback, Reply, Revision, accepted_options, is_missing
from .trace import Call, Trace

__all__ = ["BudgetSpent", "CallFailed", "Session", "conduct", "open_session"]

ROOT = "0"
Progress = Callable[[Mapping[str, Any]], object]


class BudgetSpent(Exception):  # noqa: N818 - not an error
    """There is no room for a call."""


class CallFailed(Exception):  # noqa: N818 - it has happened
    """A call failed for good."""


class BadValue(Exception):  # noqa: N818 - as above
    """A call returned what cannot be used."""


class Session:
    """See the module."""

    def __init__(
        self, strategy: str, state: Any, seed: int, budget: Budget, trace: Trace, policy: CallPolicy,
        progress: Progress | None,
    ) -> None:  # fmt: skip
        self.strategy, self.state, self.seed = strategy, state, seed
        self.budget, self.trace, self.policy, self.progress = budget, trace, policy, progress
        self.candidates: list[Candidate] = []
        self.failures: list[Failure] = []
        self.details: dict[str, Any] = {}
        self.stopped = "done"
        self.used = Cost()
        self._options: dict[int, frozenset[str]] = {}
        self._slots = Slots(policy.concurrency)
        self._pace = Pace(policy.rate)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._fatal: BaseException | None = None
        self._interrupted = False

    # --- randomness -----------------------------------------------------------------------------------

    def seed_of(self, *parts: object) -> int:
        """Return a seed that depends on the search's seed and on ``parts`` alone."""
        text = "/".join(str(part) for part in (self.seed, *parts))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 11

    # --- budget ---------------------------------------------------------------------------------------

    def claim(self, *calls: tuple[str, str]) -> dict[str, Reservation]:
        """Reserve room for calls ``(role, key)`` that belong together: for all of them, or for none.

        Calls that the trace has need no room: they were paid for.
        """
        claims: dict[str, Reservation] = {}
        for role, key in calls:
            if self._is_settled(key):
                continue
            reservation = self.budget.reserve(role)
            if reservation is None:
                self.drop(claims)
                raise BudgetSpent
            claims[key] = reservation
        return claims

    def drop(self, claims: Mapping[str, Reservation]) -> None:
        """Give back what was claimed and not used."""
        for reservation in claims.values():
            self.budget.release(reservation)

    def charge(self, cost: Cost, *, role: str, node: str = "") -> None:
        """Write down a cost that is not that of a call."""
        self.budget.settle(None, cost, role=role, node=node)
        self.used = self.used + cost

    def _is_settled(self, key: str) -> bool:
        call = self.trace.calls.get(key)
        if call is None:
            return False
        return call.status == "done" or (call.status == "failed" and not self.trace.retry_failed)

    # --- calls ----------------------------------------------------------------------------------------

    async def call(
        self,
        role: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        check: Callable[[Any], Any],
        *,
        node: str,
        key: str,
        claims: Mapping[str, Reservation] | None = None,
        retries: int | None = None,
        state: Any = None,
    ) -> Any:
        """Return a call's checked result, from the trace where it has one.

        ``state`` is what the callable is told that it belongs to, where that is not the search's own.
        """
        call = self._known(role, args, node, key)
        reservation = (claims or {}).get(key)
        if self._is_settled(key):
            if call.status == "failed":
                self._fail(node, role, call.error, len(call.costs))
            return call.value
        if call.status == "failed":  # and to be made anew
            call.status, failed = "begun", 0
        else:
            failed = len(call.costs)
        rng = random.Random(self.seed_of("delay", key))
        limit = self.policy.retries if retries is None else retries
        words = ""
        while True:
            try:
                return await self._attempt(call, function, args, check, reservation, state)
            except BudgetSpent:
                if words:
                    self.failures.append(Failure(node, role, f"{words}; no budget to try again", failed))
                raise
            except (TraceError, _Disk):
                raise
            except Exception as error:
                failed += 1
                words = str(error) if isinstance(error, BadValue) else f"{type(error).__name__}: {error}"
                if failed > limit or isinstance(error, self.policy.hopeless):
                    self._write(self.trace.give_up, call, words, self.budget.elapsed)
                    self._fail(node, role, words, failed)
                reservation = None
                delay = self.policy.delay(failed, error, rng)
            if delay >= self.budget.seconds_left:
                self.failures.append(Failure(node, role, f"{words}; no budget to try again", failed))
                raise BudgetSpent
            await asyncio.sleep(delay)

    def _known(self, role: str, args: tuple[Any, ...], node: str, key: str) -> Call:
        arguments = ""
        if self.trace.path is not None:
            plain = [tuple(vars(arg).values()) if isinstance(arg, Revision) else arg for arg in args]
            arguments = digest(self.trace.encode(plain))
        call = self.trace.calls.get(key)
        if call is None:
            return Call(key, role, node, arguments)
        if call.arguments != arguments or call.role != role:
            raise TraceError(
                f"trace {self.trace.path} has call {key} with other arguments: "
                "the search differs from the one that it is of"
            )
        for cost in call.costs:
            self.budget.settle(None, cost, role=role, node=node, key=key, replayed=True)
            self.used = self.used + cost
        return call

    async def _attempt(
        self,
        call: Call,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        check: Callable[[Any], Any],
        reservation: Reservation | None,
        state: Any,
    ) -> Any:
        budget = self.budget
        reservation = reservation or budget.reserve(call.role)
        if reservation is None:
            raise BudgetSpent
        began = None
        cost = Cost(calls=1)
        try:
            await self._slots.take(first=call.role != "generator")
            try:
                wait = self._pace.wait()
                if wait >= budget.seconds_left or not budget.allows(reservation):
                    raise BudgetSpent
                if wait > 0:
                    await asyncio.sleep(wait)
                self._write(self.trace.begin, call, len(call.costs), budget.elapsed)
                began = time.monotonic()
                error: Exception | None = None
                value = None
                try:
                    timeout = min(self.policy.timeout or math.inf, budget.seconds_left)
                    value = await attempt(
                        self.policy, function, args, self._kwargs(function, call, state),
                        None if timeout == math.inf else timeout,
                    )  # fmt: skip
                except Exception as raised:
                    error = raised
                cost += Cost(seconds=time.monotonic() - began)
                if isinstance(error, TimeoutError) and budget.seconds_left <= 0:
                    raise BudgetSpent
                if isinstance(value, Reply):
                    cost, value = cost + value.cost, value.value
                elif error is not None and isinstance(getattr(error, "cost", None), Cost):
                    cost += error.cost  # type: ignore[attr-defined]
            finally:
                self._slots.give_back()
        except BaseException as raised:
            if began is None:
                budget.release(reservation)
            else:
                self._settle(call, reservation, cost)
            if isinstance(raised, KeyboardInterrupt | SystemExit):
                self._end_with(raised)
                raise asyncio.CancelledError from None
            raise
        self._settle(call, reservation, cost)
        if error is None:
            try:
                value = check(value)
            except BadValue as raised:
                error = raised
        if error is not None:
            bad = isinstance(error, BadValue)
            self._write(self.trace.attempt_failed, call, cost, str(error), bad, budget.elapsed)
            raise error
        return self._write(self.trace.end, call, value, cost, budget.elapsed)

    def _kwargs(self, function: Callable[..., Any], call: Call, state: Any) -> dict[str, Any]:
        options = self._options.get(id(function))
        if options is None:
            options = self._options[id(function)] = accepted_options(call.role, function)
        seed = self.seed_of("call", call.key, call.bad)
        again = f"#{call.bad}" if call.bad else ""
        offers: dict[str, Callable[[], Any]] = {
            "seed": lambda: seed,
            "rng": lambda: np.random.default_rng(seed),
            "key": lambda: f"{self.trace.run}:{call.key}{again}",
            "node": lambda: call.node,
        }
        if call.role != "generator":
            offers["state"] = lambda: self.state if state is None else state
        return {name: offer() for name, offer in offers.items() if name in options}

    def _settle(self, call: Call, reservation: Reservation, cost: Cost) -> None:
        self.budget.settle(reservation, cost, node=call.node, key=call.key)
        self.used = self.used + cost
        self._report()

    def _write(self, method: Callable[..., Any], *args: Any) -> Any:
        try:
            return method(*args)
        except OSError as error:
            raise _Disk(error) from error

    def _fail(self, node: str, role: str, error: str, attempts: int) -> None:
        self.failures.append(Failure(node, role, error, attempts))
        raise CallFailed(error)

    def _report(self) -> None:
        if self.progress is None:
            return
        record: dict[str, Any] = {"step": self.used.calls, "seconds": self.budget.elapsed}
        limits = self.budget.limits
        shares = [1 - left / limits[name] for name, left in self.budget.left.items() if limits[name] > 0]
        if shares:
            record["fraction"] = max(shares)
        scores = [c.score for c in self.candidates if c.score is not None]
        best = f", best {max(scores):.4g}" if scores else ""
        failed = f", {len(self.failures)} failed" if self.failures else ""
        record["phase"] = f"{self.strategy}: {len(self.candidates)} candidates{best}{failed}"
        self.progress(record)

    # --- the three roles --------------------------------------------------------------------------------

    async def expand(
        self,
        generator: Callable[..., Any],
        state: Any,
        n: int,
        *,
        node: str,
        key: str,
        start: int = 0,
        depth: int = 1,
        finished: Callable[[Any], bool] | None = None,
        claims: Mapping[str, Reservation] | None = None,
        under: str | None = None,
    ) -> list[Candidate]:
        """Ask for ``n`` candidates, named ``node.start`` and on, children of ``node`` or of ``under``."""
        parent = node if under is None else under
        try:
            values = await self.call(
                "generator", generator, (state, n), _check_candidates, node=parent, key=key, claims=claims
            )
        except CallFailed as error:
            for i in range(start, start + n):
                self.mark(f"{node}.{i}", parent=parent, status="failed", note=str(error))
            raise
        if len(values) != n:
            words = f"the generator returned {len(values)} of {n} candidates"
            self.failures.append(Failure(parent, "generator", words))
        made = []
        for i, value in enumerate(values[:n]):
            name = f"{node}.{start + i}"
            candidate = Candidate(value, name, depth=depth)
            try:
                note = "the generator returned None or NaN" if is_missing(value) else ""
                candidate.finished = True if finished is None or note else bool(finished(value))
            except Exception as error:
                note = f"finished raised {type(error).__name__}: {error}"
            self.mark(name, parent=parent, call=key, index=i, status="failed" if note else "open", note=note)
            if note:
                self.failures.append(Failure(name, "generator", note))
            else:
                made.append(candidate)
        self.candidates += made
        return made

    async def verify(
        self,
        verifier: Callable[..., Any],
        candidates: Sequence[Candidate],
        *,
        node: str,
        key: str,
        claims: Mapping[str, Reservation] | None = None,
        bounds: tuple[float, float] = (-math.inf, math.inf),
        retries: int | None = None,
        state: Any = None,
    ) -> list[Candidate]:
        """Score candidates; return those that have a score now.

        Where a call fails for several at once, it is made for each half of them, so that one bad candidate
        costs nobody else the score.
        """
        if not candidates:
            return []
        values = [candidate.value for candidate in candidates]
        count = len(values)
        try:
            scores = await self.call(
                "verifier", verifier, (values,), lambda v: _check_scores(v, count),
                node=node, key=key, claims=claims, retries=retries, state=state,
            )  # fmt: skip
        except CallFailed as error:
            if count > 1 and not str(error).startswith("TimeoutError"):
                half = (count + 1) // 2
                kept = []
                for name, part in (("a", candidates[:half]), ("b", candidates[half:])):
                    kept += await self.verify(
                        verifier, part, node=node, key=f"{key}{name}", bounds=bounds, retries=0, state=state
                    )
                return kept
            for candidate in candidates:
                self.mark(candidate.node, status="failed", note=f"verifier: {error}")
            return []
        kept = []
        for candidate, score in zip(candidates, scores, strict=True):
            if math.isnan(score) or score == math.inf or not bounds[0] <= score <= bounds[1]:
                words = f"the verifier returned {score}" + (
                    "" if math.isnan(score) or score == math.inf else f", not within {bounds}"
                )
                self.failures.append(Failure(candidate.node, "verifier", words))
                self.mark(candidate.node, status="failed", note=words)
                continue
            candidate.score = score
            self.mark(candidate.node, status="scored", score=score)
            kept.append(candidate)
        self._report()
        return kept

    async def criticise(
        self,
        critic: Callable[..., Any],
        candidate: Candidate,
        *,
        key: str,
        claims: Mapping[str, Reservation] | None = None,
    ) -> tuple[Any, float | None]:
        """Return the critic's text and score."""
        text, score = await self.call(
            "critic", critic, (candidate.value,), _check_feedback,
            node=candidate.node, key=key, claims=claims,
        )  # fmt: skip
        return text, score

    def candidates_in_order(self) -> list[Candidate]:
        """Return the candidates so far in the order of their places."""
        return sorted(self.candidates, key=lambda c: sort_key(c.node))

    def mark(self, node: str, **changes: Any) -> None:
        """Make or change a node of the trace."""
        self._write(lambda: self.trace.node(node, self.budget.elapsed, **changes))

    async def gather(self, coroutines: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
        """Run coroutines side by side; return their results, or what kept them from one, in order."""
        tasks = [asyncio.ensure_future(_kept(coroutine)) for coroutine in coroutines]
        if not tasks:
            return []
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task in done and (error := task.exception()) is not None:
                    raise error
            return [task.result() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- the end ----------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """End the search with what it has. Can be called from any thread."""
        self._interrupted = True
        if self._loop is not None and self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)

    def _end_with(self, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._interrupted = True
        else:
            self._fatal = error
        if self._task is not None:
            self._task.cancel()

    async def run(self, body: Callable[[Session], Awaitable[None]]) -> None:
        """Run a strategy to its end, or to the end of the budget, or until it is interrupted."""
        self._loop = asyncio.get_running_loop()

        async def main() -> None:
            try:
                await body(self)
            except BudgetSpent:
                self.stopped = "budget"

        self._task = asyncio.ensure_future(main())
        if self._interrupted:
            self._task.cancel()
        await asyncio.wait({self._task})
        if self._fatal is not None:
            raise self._fatal
        if self._interrupted:
            self.stopped = "interrupted"
        if not self._task.cancelled():
            self._task.result()
        elif not self._interrupted:
            raise RuntimeError("the search was cancelled from within")

    def finish(self, choose: Callable[[Session], tuple[Candidate | None, float | None]]) -> Outcome:
        """Sort everything by its place, choose the answer and write the end of the trace."""
        self.candidates.sort(key=lambda c: sort_key(c.node))
        self.failures.sort(key=lambda f: (sort_key(f.node), f.role, f.error))
        best, score = choose(self)
        outcome = Outcome(
            None if best is None else best.value, score, self.candidates, self.failures,
            self.stopped, self.budget, self.trace, self.used, self.details,
        )  # fmt: skip
        if best is not None:
            self.mark(best.node, status="answer")
        record = {"stopped": self.stopped, "node": "" if best is None else best.node, "score": score}
        self._write(self.trace.finish, record, self.budget.elapsed)
        if best is None and self.failures and self.stopped not in ("budget", "interrupted"):
            first = self.failures[0]
            raised = SearchError(
                f"{self.strategy} found nothing: {len(self.failures)} failures, "
                f"the first at node {first.node}: {first.role}: {first.error}"
            )
            raised.outcome = outcome
            raise raised
        return outcome


class _Disk(Exception):  # noqa: N818 - carries an error
    """The trace could not be written: the search must end, since what it pays for would be lost."""


async def _kept(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await coroutine
    except (CallFailed, BudgetSpent) as error:
        return error


def _check_candidates(value: Any) -> list[Any]:
    if isinstance(value, np.ndarray) and value.ndim > 0:
        value = list(value)
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        raise BadValue(f"the generator returned a {type(value).__name__}, expected a sequence of candidates")
    if all(is_missing(item) for item in value):
        what = "None or NaN alone" if len(value) else "no candidates"
        raise BadValue(f"the generator returned {what}")
    return list(value)


def _check_scores(value: Any, count: int) -> list[float]:
    try:
        scores = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise BadValue(f"the verifier returned what are not numbers: {error}") from error
    if scores.shape != (count,):
        raise BadValue(f"the verifier returned shape {scores.shape}, expected ({count},)")
    return [float(score) for score in scores]


def _check_feedback(value: Any) -> tuple[Any, float | None]:
    if value is None:
        raise BadValue("the critic returned None")
    if not isinstance(value, Feedback):
        return value, None
    if value.score is None:
        return value.text, None
    try:
        score = float(value.score)
    except (TypeError, ValueError) as error:
        raise BadValue(f"the critic's score is not a number: {error}") from error
    if math.isnan(score) or score == math.inf:
        raise BadValue(f"the critic's score is {score}")
    return value.text, score


def open_session(
    strategy: str,
    state: Any,
    *,
    seed: int,
    budget: Budget | None,
    trace: Trace | str | os.PathLike[str] | None,
    policy: CallPolicy | None,
    progress: Progress | None,
    optional: Collection[str] = (),
    **functions: Any,
) -> Session:
    """Check what every strategy is given, and begin; ``functions`` are its callables by name."""
    for name, function in functions.items():
        if function is not None or name not in optional:
            accepted_options(name, function)
    seed = check_integer("seed", seed)
    if budget is None:
        budget = Budget()
    elif not isinstance(budget, Budget):
        raise DTypeError(f"budget must be a Budget, not {type(budget).__name__}")
    if policy is not None and not isinstance(policy, CallPolicy):
        raise DTypeError(f"policy must be a CallPolicy, not {type(policy).__name__}")
    if not isinstance(trace, Trace):
        trace = Trace(trace)
    trace.attach(strategy, seed, state)
    budget.start(trace.elapsed)
    session = Session(strategy, state, seed, budget, trace, policy or CallPolicy(), progress)
    session.mark(ROOT)
    return session


def conduct(
    session: Session,
    body: Callable[[Session], Awaitable[None]],
    choose: Callable[[Session], tuple[Candidate | None, float | None]],
) -> Outcome:
    """Run a strategy in a thread with an event loop of its own; Ctrl-C ends it with what it has.

    A loop of its own lets it run within another one, in a notebook for instance. The first Ctrl-C asks it to
    end; the second one does not wait for that.
    """
    ended = threading.Event()
    errors: list[BaseException] = []

    async def main() -> None:
        try:
            await session.run(body)
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    def work() -> None:
        try:
            asyncio.run(main())
        finally:
            ended.set()

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
    try:
        asked = False
        thread.start()
        while True:
            try:
                while not ended.wait(0.5):
                    pass
                thread.join(0.25)  # callables that do not let themselves be cancelled are left behind
                break
            except KeyboardInterrupt:
                if asked:
                    raise
                asked = True
                session.interrupt()
        if errors:
            raise errors[0].args[0] if isinstance(errors[0], _Disk) else errors[0]
        return session.finish(choose)
    finally:
        session.trace.close()


def best_of(candidates: Iterable[Candidate]) -> tuple[Candidate | None, float | None]:
    """Return the best candidate and its score: finished before unfinished, scored before not, then order."""
    best: Candidate | None = None
    rank: tuple[bool, bool, float] = (False, False, -math.inf)
    for candidate in candidates:
        score = -math.inf if candidate.score is None else candidate.score
        mine = (candidate.finished, candidate.score is not None, score)
        if best is None or mine > rank:
            best, rank = candidate, mine
    return best, None if best is None else best.score
