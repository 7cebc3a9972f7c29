"""Independent tries and votes, whatever their callables do: raise, stall, return nonsense, die halfway."""

import asyncio
import concurrent.futures
import functools
import itertools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensorium.errors import ArgumentError, DTypeError, SearchError, TraceError
from sensorium.judge import wilson
from sensorium.search import (
    Budget,
    CallPolicy,
    Cost,
    Reply,
    RetryLater,
    Trace,
    best_of_n,
    majority_vote,
    overturn_probability,
)
from sensorium.search.calling import Slots

QUICK = CallPolicy(backoff=0.0)
WIDE = CallPolicy(backoff=0.0, concurrency=8)


def draw(state, n, *, seed):
    return [state + (seed + i) % 1000 for i in range(n)]


def same(values):
    return [float(value) for value in values]


class Counted:
    """A callable that counts its calls and keeps what it was called with."""

    def __init__(self, function):
        self.function, self.calls, self.lock = function, [], threading.Lock()

    def __call__(self, *args, seed, key, node):
        with self.lock:
            number = len(self.calls)
            self.calls.append({"args": args, "seed": seed, "key": key, "node": node})
        return self.function(number, *args, seed=seed)


def test_the_best_of_n_is_the_best_and_all_are_there():
    outcome = best_of_n(draw, same, 5, n=9)
    assert len(outcome.candidates) == 9
    assert outcome.answer == outcome.score == max(c.value for c in outcome.candidates)
    assert [c.node for c in outcome.candidates] == [f"0.{i}" for i in range(9)]
    assert outcome.stopped == "done"
    assert not outcome.failures
    assert outcome.used.calls == 18 == sum(entry.cost.calls for entry in outcome.budget.ledger)
    assert outcome.budget.by_role()["verifier"].calls == 9
    assert "ended by done; spent calls 18" in str(outcome)


@pytest.mark.parametrize("n", [1, 3, 7, 8])
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_batches_cover_n(n, batch):
    asked = []
    outcome = best_of_n(
        lambda state, k: asked.append(k) or ["x"] * k, lambda xs: [1] * len(xs), 0, n=n, batch=batch
    )
    assert sum(asked) == n == len(outcome.candidates)
    assert max(asked) == min(n, batch)
    assert outcome.candidates[0].value == "x"


def test_together_verifies_once():
    sizes = []
    outcome = best_of_n(
        draw, lambda xs: sizes.append(len(xs)) or same(xs), 0, n=6, together=True, policy=WIDE
    )
    assert sizes == [6]
    assert outcome.used.calls == 7


@pytest.mark.parametrize("concurrency", [1, 3, 16])
@pytest.mark.parametrize("kind", ["plain", "async", "executor", "partial"])
def test_the_outcome_does_not_depend_on_how_calls_interleave(kind, concurrency):
    expected = best_of_n(draw, same, 0, n=12, batch=2, seed=3)

    def slow(state, n, *, seed):
        time.sleep(seed % 7 / 2000)
        return draw(state, n, seed=seed)

    async def slow_async(state, n, *, seed):
        await asyncio.sleep(seed % 7 / 2000)
        return draw(state, n, seed=seed)

    generator = {"async": slow_async, "partial": functools.partial(slow_async)}.get(kind, slow)
    executor = concurrent.futures.ThreadPoolExecutor(3) if kind == "executor" else None
    trace = Trace()
    policy = CallPolicy(concurrency=concurrency, executor=executor)
    outcome = best_of_n(generator, same, 0, n=12, batch=2, seed=3, trace=trace, policy=policy)
    if executor:
        executor.shutdown()
    assert [(c.node, c.value, c.score) for c in outcome.candidates] == [
        (c.node, c.value, c.score) for c in expected.candidates
    ]
    assert trace.nodes == expected.trace.nodes
    other = best_of_n(draw, same, 0, n=12, batch=2, seed=4)
    assert [c.value for c in other.candidates] != [c.value for c in expected.candidates]


def test_processes_can_be_the_executor():
    with concurrent.futures.ProcessPoolExecutor(1) as pool:
        outcome = best_of_n(draw, same, 0, n=3, policy=CallPolicy(executor=pool, concurrency=2))
    assert [c.value for c in outcome.candidates] == [
        c.value for c in best_of_n(draw, same, 0, n=3).candidates
    ]


def test_no_more_calls_are_under_way_than_allowed():
    now, most, lock = 0, 0, threading.Lock()

    def generator(state, n):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.002)
        with lock:
            now -= 1
        return [1.0]

    best_of_n(generator, same, 0, n=12, policy=CallPolicy(concurrency=3))
    assert most == 3


def test_what_finishes_a_candidate_goes_before_what_begins_one():
    order, failed = [], []

    def generator(state, n, *, node):
        order.append("g")
        return [len(order)]

    def verifier(xs):
        order.append("v")
        if not failed:
            failed.append(1)
            raise ConnectionError("no")
        return same(xs)

    best_of_n(generator, verifier, 0, n=6, policy=QUICK)
    assert "".join(order) == "gvgvvgvgvgvgv", "the second attempt waits for the call under way alone"


def test_a_turn_that_is_not_taken_is_passed_on():
    async def main():
        slots = Slots(1)
        await slots.take(first=False)
        waiting = [asyncio.ensure_future(slots.take(first=False)) for _ in range(2)]
        await asyncio.sleep(0)
        slots.give_back()
        waiting[0].cancel()
        await asyncio.wait_for(waiting[1], 5)
        assert waiting[0].cancelled()

    asyncio.run(main())


def test_a_search_runs_within_a_running_loop():
    async def main():
        return best_of_n(draw, same, 0, n=2)

    assert len(asyncio.run(main()).candidates) == 2


# --- failures ---------------------------------------------------------------------------------------------


def test_fifteen_answers_outlive_the_sixteenth():
    def generator(number, state, n, *, seed):
        if number >= 15:
            raise ConnectionError("the line is dead")
        return [number]

    flaky = Counted(generator)
    outcome = best_of_n(flaky, same, 0, n=16, policy=QUICK)
    assert outcome.answer == 14
    assert len(outcome.candidates) == 15
    (failure,) = outcome.failures
    assert (failure.node, failure.role, failure.attempts) == ("0", "generator", 3)
    assert failure.error == "ConnectionError: the line is dead"
    assert outcome.trace.nodes["0.15"].status == "failed"
    assert len({call["key"] for call in flaky.calls[15:]}) == 1, "a call that is sent once more keeps its key"
    assert len({call["seed"] for call in flaky.calls[15:]}) == 1


def test_what_is_tried_again_succeeds_and_is_paid_for():
    seen = set()

    def generator(number, state, n, *, seed):
        if seed not in seen:
            seen.add(seed)
            raise OSError("no")
        return [seed]

    flaky = Counted(generator)
    outcome = best_of_n(flaky, lambda xs: [1] * len(xs), 0, n=4, policy=QUICK)
    assert len(outcome.candidates) == 4
    assert not outcome.failures
    assert len(flaky.calls) == 8
    assert outcome.used.calls == 8 + 4


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("text", "the generator returned a str, expected a sequence of candidates"),
        (7, "the generator returned a int, expected a sequence of candidates"),
        ({"a": 1}, "the generator returned a dict, expected a sequence of candidates"),
        ([], "the generator returned no candidates"),
        ([math.nan, None], "the generator returned None or NaN alone"),
        (np.full((2, 3), np.nan), "the generator returned None or NaN alone"),
        (np.float64(1.0), "the generator returned a float64, expected a sequence of candidates"),
    ],
)
def test_a_generator_that_returns_nonsense_is_named(value, words):
    bad = Counted(lambda number, state, n, *, seed: value)
    with pytest.raises(
        SearchError, match="best_of_n found nothing: 1 failures, the first at node 0: generator"
    ) as e:
        best_of_n(bad, same, 0, n=2, batch=2, policy=QUICK)
    assert e.value.outcome.failures[0].error == words
    assert e.value.outcome.used.calls == 3
    assert len({call["key"] for call in bad.calls}) == len({call["seed"] for call in bad.calls}) == 3
    assert e.value.outcome.trace.nodes["0.1"].note == words


def test_too_few_too_many_and_missing_candidates_are_used_and_reported():
    answers = iter([[1.0, math.nan, 3.0], [4.0], [5.0, 6.0, 7.0, 99.0]])
    outcome = best_of_n(lambda state, n: next(answers), same, 0, n=9, batch=3)
    assert [(c.node, c.value) for c in outcome.candidates] == [
        ("0.0", 1.0), ("0.2", 3.0), ("0.3", 4.0), ("0.6", 5.0), ("0.7", 6.0), ("0.8", 7.0),
    ]  # fmt: skip
    assert outcome.answer == 7.0
    assert {(f.node, f.error) for f in outcome.failures} == {
        ("0.1", "the generator returned None or NaN"),
        ("0", "the generator returned 1 of 3 candidates"),
        ("0", "the generator returned 4 of 3 candidates"),
    }


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_score_costs_one_candidate(bad):
    outcome = best_of_n(
        lambda state, n: list(range(n)), lambda xs: [bad if x == 2 else -x for x in xs], 0, n=4, batch=4
    )
    assert outcome.answer == 0
    assert [c.score for c in outcome.candidates] == [0.0, -1.0, None, -3.0]
    assert [(f.node, f.role, f.error) for f in outcome.failures] == [
        ("0.2", "verifier", f"the verifier returned {bad}")
    ]
    assert outcome.trace.nodes["0.2"].status == "failed"
    assert np.isnan(outcome.scores[2])


def test_minus_infinity_is_a_score():
    outcome = best_of_n(lambda state, n: [1, 2], lambda xs: [-math.inf, -5.0], 0, n=2, batch=2)
    assert outcome.answer == 2
    assert not outcome.failures


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (1.0, r"shape \(\), expected \(4,\)"),
        ([1.0, 2.0], r"shape \(2,\), expected \(4,\)"),
        (np.zeros((4, 1)), r"shape \(4, 1\), expected \(4,\)"),
        (["a"] * 4, "are not numbers"),
        (None, r"shape \(\), expected"),
    ],
)
def test_scores_of_a_wrong_shape_are_named(scores, words):
    outcome = best_of_n(lambda s, n: list(range(n)), lambda xs: scores if len(xs) == 4 else same(xs), 0, n=4, batch=4,
                        policy=QUICK)  # fmt: skip
    assert outcome.answer == 3, "the halves are asked for instead"
    assert len(outcome.failures) == 1
    assert re.search(words, outcome.failures[0].error)


def test_one_candidate_that_breaks_the_verifier_costs_no_other():
    def verifier(xs):
        if 5 in xs:
            raise ValueError("five")
        return same(xs)

    outcome = best_of_n(lambda s, n: list(range(n)), verifier, 0, n=8, batch=8, policy=QUICK)
    assert [c.score for c in outcome.candidates] == [0, 1, 2, 3, 4, None, 6, 7]
    assert outcome.trace.nodes["0.5"].note == "verifier: ValueError: five"


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_a_call_that_stalls_is_left_behind(kind):
    release = threading.Event()

    def plain(state, n, *, node, seed):
        if seed % 3 == 0:
            release.wait(30)
        return [seed]

    async def coroutine(state, n, *, node, seed):
        if seed % 3 == 0:
            await asyncio.sleep(30)
        return [seed]

    policy = CallPolicy(timeout=0.15, retries=0, concurrency=12)
    outcome = best_of_n(
        plain if kind == "plain" else coroutine, lambda xs: [1] * len(xs), 0, n=12, policy=policy
    )
    release.set()
    stalled = 12 - len(outcome.candidates)
    assert 0 < stalled < 12
    assert [f.error for f in outcome.failures] == ["TimeoutError: no result after 0.15 s"] * stalled
    assert all(c.value % 3 for c in outcome.candidates)


def test_an_async_call_that_ignores_its_end_does_not_hold_up_the_search():
    async def stubborn(state, n, *, node):
        while True:
            try:
                await asyncio.sleep(0.6)
                return [0]
            except asyncio.CancelledError:
                pass

    with pytest.raises(SearchError, match="TimeoutError"):
        best_of_n(stubborn, same, 0, n=1, policy=CallPolicy(timeout=0.02, retries=0))


def test_errors_of_programs_are_not_tried_again():
    broken = Counted(lambda number, state, n, *, seed: undefined)  # noqa: F821
    with pytest.raises(SearchError, match="NameError"):
        best_of_n(broken, same, 0, n=1, policy=QUICK)
    assert len(broken.calls) == 1
    with pytest.raises(SearchError, match="missing 1 required positional argument"):
        best_of_n(lambda a, b, c: [1], same, 0, n=1)


@pytest.mark.parametrize("error", [StopIteration("odd"), asyncio.CancelledError("odd"), GeneratorExit("odd")])
@pytest.mark.parametrize("kind", ["plain", "async"])
def test_exceptions_with_a_meaning_elsewhere_are_failures_here(kind, error):
    def plain(state, n):
        raise error

    async def coroutine(state, n):
        raise error

    with pytest.raises(SearchError, match="found nothing"):
        best_of_n(plain if kind == "plain" else coroutine, same, 0, n=2, policy=QUICK)


def test_a_system_exit_is_none_of_a_searchs_business():
    def leave(state, n):
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        best_of_n(leave, same, 0, n=2)


def test_waiting_grows_is_bounded_and_obeys_the_service():
    policy = CallPolicy(backoff=1.0, backoff_limit=10.0, jitter=0.5)
    waits = [policy.delay(k, ValueError(), random.Random(k)) for k in range(1, 9)]
    for k, wait in enumerate(waits):
        assert min(10, 2**k) / 2 <= wait <= min(10, 2**k)
    assert len(set(waits)) == len(waits)
    assert policy.delay(1, RetryLater(99.0), random.Random(0)) == 99.0
    assert CallPolicy(jitter=0.0).delay(3, ValueError(), random.Random(0)) == 4.0


def test_the_rate_is_kept():
    times = []
    policy = CallPolicy(rate=100.0, concurrency=8)
    before = time.monotonic()
    best_of_n(lambda s, n: times.append(time.monotonic()) or [1], same, 0, n=6, together=True, policy=policy)
    for number, begun in enumerate(sorted(times)):
        assert begun - before >= number / 100  # late they may be, never early


# --- budgets ------------------------------------------------------------------------------------------------


@given(
    calls=st.integers(0, 30),
    n=st.integers(1, 12),
    concurrency=st.integers(1, 6),
    batch=st.integers(1, 3),
    fails=st.integers(0, 3),
)
def test_calls_are_never_more_than_the_budget(calls, n, concurrency, batch, fails):
    lock, made = threading.Lock(), [0]

    async def count(value, seed=1):
        with lock:
            made[0] += 1
        if fails and seed % 4 < fails:
            raise ConnectionError("no")
        return value

    async def generator(state, k, *, seed):
        return await count([seed] * k, seed)

    async def verifier(xs):
        return await count([1.0] * len(xs))

    budget = Budget(calls=calls)
    policy = CallPolicy(backoff=0.0, retries=1, concurrency=concurrency)
    try:
        outcome = best_of_n(generator, verifier, 0, n=n, batch=batch, budget=budget, policy=policy)
    except SearchError as error:
        outcome = error.outcome
    assert made[0] == budget.used.calls <= calls
    assert made[0] == sum(entry.cost.calls for entry in budget.ledger)
    assert all(c.score is not None for c in outcome.candidates) or fails
    groups = -(-n // batch)
    if not fails:
        assert len(outcome.candidates) == min(n, calls // 2 * batch)
        assert (outcome.stopped == "budget") == (groups > calls // 2)


def test_a_budget_counts_the_roles_that_it_is_told_to():
    budget = Budget(calls=5, counted=["generator"])
    outcome = best_of_n(draw, same, 0, n=9, budget=budget)
    assert len(outcome.candidates) == 5
    assert outcome.used.calls == 10


@given(limit=st.integers(0, 200), concurrency=st.integers(1, 6), most=st.integers(1, 30))
def test_tokens_are_never_more_than_the_budget_where_calls_are_bounded(limit, concurrency, most):
    async def generator(state, n, *, seed):
        return Reply([1], tokens=seed % (most + 1), money=0.1)

    budget = Budget(tokens=limit, most={"generator": Cost(tokens=most)})
    outcome = best_of_n(generator, same, 0, n=12, budget=budget, policy=CallPolicy(concurrency=concurrency))
    assert budget.used.tokens <= limit
    assert outcome.stopped == ("done" if len(outcome.candidates) == 12 else "budget")


def test_money_is_added_up_in_decimal():
    budget = Budget(money=1.0, most={"verifier": Cost()})
    outcome = best_of_n(lambda s, n: Reply([1], money=0.1), same, 0, n=30, budget=budget)
    assert len(outcome.candidates) == 10
    assert budget.used.money == 1.0
    assert budget.reason == "money (1)"


def test_the_clock_ends_what_is_under_way():
    release = threading.Event()

    def generator(number, state, n, *, seed):
        if number >= 2:
            release.wait(30)
        return [number]

    budget = Budget(seconds=0.6)
    outcome = best_of_n(Counted(generator), same, 0, n=5, budget=budget)
    release.set()
    assert outcome.stopped == "budget"
    assert [c.value for c in outcome.candidates] == [0, 1]
    assert budget.used.calls == 5  # two candidates and their scores, and the call that was given up
    assert budget.spent


def test_a_wait_beyond_the_clock_is_not_begun():
    def generator(state, n):
        raise RetryLater(60.0)

    outcome = best_of_n(generator, same, 0, n=1, budget=Budget(seconds=5.0))
    assert outcome.stopped == "budget"
    assert outcome.answer is None
    assert "asked to come back later (60 s); no budget to try again" in outcome.failures[0].error


def test_one_budget_serves_several_searches():
    budget = Budget(calls=10)
    first = best_of_n(draw, same, 0, n=3, budget=budget)
    second = best_of_n(draw, same, 0, n=3, budget=budget)
    assert (first.used.calls, second.used.calls, budget.used.calls) == (6, 4, 10)
    assert budget.spent
    assert second.stopped == "budget"
    assert budget.left == {"calls": 0}


@pytest.mark.parametrize(
    ("limits", "error", "words"),
    [
        ({"calls": -1}, ArgumentError, "calls must be at least 0, not -1"),
        ({"calls": 1.5}, DTypeError, "calls must be an integer, not float"),
        ({"money": math.nan}, ArgumentError, "money must be finite"),
        ({"seconds": -2.0}, ArgumentError, "seconds must be at least 0, not -2"),
        ({"counted": ["judge"]}, ArgumentError, "counted names 'judge'"),
        ({"most": {"judge": Cost()}}, ArgumentError, "most names 'judge'"),
    ],
)
def test_limits_are_checked(limits, error, words):
    with pytest.raises(error, match=words):
        Budget(**limits)


# --- traces -------------------------------------------------------------------------------------------------


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("dies", [0, 1, 4, 7])
def test_going_on_repeats_no_call_that_returned(tmp_path, dies, concurrency):
    path = tmp_path / "run.jsonl"
    whole = best_of_n(draw, same, 0, n=8, batch=2)
    policy = CallPolicy(concurrency=concurrency)

    def generator(number, state, n, *, seed):
        if number == dies:
            raise SystemExit
        return draw(state, n, seed=seed)

    first = Counted(generator)
    if dies < 4:
        with pytest.raises(SystemExit):
            best_of_n(first, same, 0, n=8, batch=2, trace=path, policy=policy)
    done = (
        {call.key for call in Trace.read(path).calls.values() if call.status == "done"}
        if path.exists()
        else set()
    )
    second = Counted(lambda number, state, n, *, seed: draw(state, n, seed=seed))
    scored = Counted(lambda number, xs, *, seed: same(xs))
    outcome = best_of_n(second, scored, 0, n=8, batch=2, trace=path, policy=policy)
    run = outcome.trace.run
    asked = {call["key"].removeprefix(f"{run}:") for call in (*second.calls, *scored.calls)}
    assert not asked & done
    assert asked | done == set(outcome.trace.calls)
    for before, after in itertools.product(first.calls, second.calls):
        if before["args"] == after["args"] and before["seed"] == after["seed"]:
            assert before["key"] == after["key"], "a call that was under way keeps its key"
    assert [(c.node, c.value, c.score) for c in outcome.candidates] == [
        (c.node, c.value, c.score) for c in whole.candidates
    ]
    assert outcome.used.calls == 8, "what an earlier run spent counts"
    assert Trace.read(path).nodes == whole.trace.nodes


def test_every_prefix_of_a_trace_can_be_gone_on_from(tmp_path):
    """A crash at any byte: nothing that was recorded is asked for again, and the end is the same."""
    path = tmp_path / "run.jsonl"
    whole = best_of_n(draw, same, 0, n=3, trace=path)
    data = path.read_bytes()
    ends = [0, *itertools.accumulate(len(line) for line in data.splitlines(keepends=True))]
    cuts = sorted({cut for end in ends for cut in (end, end + 7) if 0 <= cut <= len(data)})
    for cut in cuts:
        part = tmp_path / "part.jsonl"
        part.write_bytes(data[:cut])
        recorded = data[:cut].count(b'"type":"end"')
        recorded -= b'"type":"end"' in data[:cut].rpartition(b"\n")[2]
        calls = []
        outcome = best_of_n(
            lambda s, n, *, seed, calls=calls: calls.append(1) or draw(s, n, seed=seed),
            lambda xs, calls=calls: calls.append(1) or same(xs),
            0, n=3, trace=Trace(part, durable=False),
        )  # fmt: skip
        assert len(calls) == 6 - recorded
        assert [c.value for c in outcome.candidates] == [c.value for c in whole.candidates]
        assert len(Trace.read(part).calls) == 6


def test_a_result_is_on_record_before_it_is_used(tmp_path):
    path = tmp_path / "run.jsonl"

    def verifier(xs):
        ended = [record for record in read(path) if record["type"] == "end" and record["key"].startswith("g")]
        assert [value for record in ended for value in record["value"]][-len(xs) :] == xs
        return same(xs)

    outcome = best_of_n(draw, verifier, 0, n=3, trace=path)
    assert not outcome.failures


def test_a_killed_process_is_gone_on_from(tmp_path):
    path, log = tmp_path / "run.jsonl", tmp_path / "calls"
    program = f"""
import os, sys
from sensorium.search import best_of_n
def generator(state, n, *, key):
    with open({str(log)!r}, "a") as file:
        file.write(key + "\\n")
    if sys.argv[1] == "die" and len(open({str(log)!r}).readlines()) == 4:
        os.kill(os.getpid(), 9)
    return [len(key)] * n
print(best_of_n(generator, lambda xs: [1.0] * len(xs), "p", n=6, trace={str(path)!r}).used.calls)
"""
    died = subprocess.run([sys.executable, "-c", program, "die"], capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL
    again = subprocess.run(
        [sys.executable, "-c", program, "live"], capture_output=True, text=True, check=True
    )
    assert again.stdout == "12\n"
    keys = log.read_text().splitlines()
    assert len(keys) == 7
    assert keys[3] == keys[4], "the call under way was asked for again, under its key"
    assert len(set(keys)) == 6


def test_more_can_be_asked_of_a_trace(tmp_path):
    path = tmp_path / "run.jsonl"
    small = best_of_n(draw, same, 0, n=2, trace=path, budget=Budget(calls=4))
    counted = Counted(lambda number, state, n, *, seed: draw(state, n, seed=seed))
    large = best_of_n(counted, same, 0, n=5, trace=path, budget=Budget(calls=10))
    assert len(counted.calls) == 3
    assert large.budget.used.calls == 10
    assert large.budget.spent
    assert [c.value for c in large.candidates][:2] == [c.value for c in small.candidates]
    assert large.stopped == "done"


def test_failures_stay_unless_asked_for_again(tmp_path):
    path = tmp_path / "run.jsonl"

    def generator(number, state, n, *, seed):
        if number == 1:
            raise TypeError("not now")
        return [number]

    best_of_n(Counted(generator), same, 0, n=3, trace=path)
    counted = Counted(lambda number, state, n, *, seed: [40 + number])
    kept = best_of_n(counted, same, 0, n=3, trace=path)
    assert not counted.calls
    assert [c.value for c in kept.candidates] == [0, 2]
    assert kept.failures[0].error == "TypeError: not now"
    again = best_of_n(counted, same, 0, n=3, trace=Trace(path, retry_failed=True))
    assert len(counted.calls) == 1
    assert [c.value for c in again.candidates] == [0, 40, 2]


def test_attempts_before_a_crash_count_as_attempts(tmp_path):
    path = tmp_path / "run.jsonl"

    def dies(number, state, n, *, seed):
        if number == 1:
            raise SystemExit
        raise ConnectionError("no")

    with pytest.raises(SystemExit):
        best_of_n(Counted(dies), same, 0, n=1, trace=path, policy=QUICK)
    dead = Counted(lambda number, state, n, *, seed: exec("raise ConnectionError('no')"))
    with pytest.raises(SearchError) as e:
        best_of_n(dead, same, 0, n=1, trace=path, policy=QUICK)
    assert len(dead.calls) == 2
    assert e.value.outcome.failures[0].attempts == 3
    assert e.value.outcome.used.calls == 3


def test_a_trace_of_another_search_is_refused(tmp_path):
    path = tmp_path / "run.jsonl"
    best_of_n(draw, same, 0, n=2, trace=path)
    before = path.read_bytes()
    with pytest.raises(TraceError, match="seed 0, not 1"):
        best_of_n(draw, same, 0, n=2, trace=path, seed=1)
    with pytest.raises(TraceError, match="is of a search with another, not state"):
        best_of_n(draw, same, 1, n=2, trace=path)
    with pytest.raises(TraceError, match="strategy 'best_of_n', not 'majority_vote'"):
        majority_vote(draw, 0, n=2, trace=path)
    assert path.read_bytes() == before
    used = Trace()
    best_of_n(draw, same, 0, n=1, trace=used)
    with pytest.raises(TraceError, match="has served another search"):
        best_of_n(draw, same, 0, n=1, trace=used)


def test_a_trace_that_is_no_trace_is_refused_and_kept(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\nsecond line\n")
    with pytest.raises(TraceError, match="line 1 cannot be read"):
        best_of_n(draw, same, 0, n=1, trace=path)
    path.write_text('{"type": "node", "id": "0"}\n')
    with pytest.raises(TraceError, match="not a trace"):
        best_of_n(draw, same, 0, n=1, trace=path)
    best_of_n(draw, same, 0, n=1, trace=tmp_path / "good.jsonl")
    lines = (tmp_path / "good.jsonl").read_bytes().splitlines(keepends=True)
    lines[2] = b'{"type": "end"}\n'
    path.write_bytes(b"".join(lines))
    with pytest.raises(TraceError, match="line 3 cannot be used"):
        Trace.read(path)


def test_a_trace_is_written_by_one_search_at_a_time(tmp_path):
    pytest.importorskip("fcntl")
    path = tmp_path / "run.jsonl"

    def generator(state, n):
        with pytest.raises(TraceError, match="is being written to by another search"):
            best_of_n(draw, same, 0, n=1, trace=path)
        return [1]

    assert best_of_n(generator, same, 0, n=1, trace=path).answer == 1


def test_a_disk_that_is_full_ends_the_search(tmp_path, monkeypatch):
    path, real, written = tmp_path / "run.jsonl", os.write, []

    def write(file, data):
        if written and len(written) > 4:
            raise OSError(28, "No space left on device")
        written.append(1)
        return real(file, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left"):
        best_of_n(draw, same, 0, n=50, trace=path)
    monkeypatch.undo()
    assert len(best_of_n(draw, same, 0, n=50, trace=path).candidates) == 50


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(), inner, max_size=3)
        | st.dictionaries(st.integers() | st.tuples(st.text()), inner, max_size=3)
        | st.tuples(inner, inner)
        | st.frozensets(st.integers() | st.text(), max_size=3)
    ),
    max_leaves=5,
)


@given(plain_values)
def test_values_come_back_as_they_were(value):
    from sensorium.search._codec import from_json, to_json

    back = from_json(json.loads(json.dumps(to_json(value), allow_nan=False)))
    assert back == value
    assert repr(back) == repr(value) or isinstance(value, frozenset | dict | list | tuple)
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3)), np.arange(6, dtype=">i4").reshape(2, 3)[:, ::2], np.array(1.5, np.float32),
        np.array(["a", "bc"]), np.float32(2.5), np.int8(-3), np.array([1 + 2j]),
    ],
)  # fmt: skip
def test_arrays_come_back_as_they_were(array):
    from sensorium.search._codec import from_json, to_json

    back = from_json(json.loads(json.dumps(to_json(array))))
    assert type(back) is type(array)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    if isinstance(back, np.ndarray):
        assert back.flags.writeable


def test_what_cannot_be_written_is_named_unless_it_is_encoded(tmp_path):
    class Molecule:
        def __init__(self, atoms):
            self.atoms = atoms

    def generator(state, n):
        return [Molecule(["C", "O"])]

    with pytest.raises(TraceError, match=r"Molecule cannot be written to a trace: give the trace encode"):
        best_of_n(generator, lambda xs: [1.0], 0, n=1, trace=tmp_path / "a.jsonl")
    hooks = {"encode": lambda m: m.atoms, "decode": Molecule}
    for _ in range(2):
        trace = Trace(tmp_path / "b.jsonl", **hooks)
        assert best_of_n(generator, lambda xs: [1.0], 0, n=1, trace=trace).answer.atoms == ["C", "O"]
    with pytest.raises(TraceError, match="give it decode"):
        Trace.read(tmp_path / "b.jsonl")


def test_the_page_shows_the_tree_as_text(tmp_path):
    evil = '<script>alert("x")</script>'
    trace = Trace()
    outcome = best_of_n(
        lambda s, n: [evil, "fine"], lambda xs: [math.nan, 0.25], 0, n=2, batch=2, trace=trace
    )
    page = outcome.trace.to_html(tmp_path / "tree.html")
    assert (tmp_path / "tree.html").read_text() == page
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert 'class="answer"' in page
    assert 'class="failed"' in page
    assert "0.25" in page
    assert page.count("<details") == page.count("</details>") == 3
    assert "2 more nodes are not shown" in trace.to_html(limit=1)


def test_a_deep_tree_makes_a_page_without_recursion():
    trace = Trace()
    name = "0"
    for _ in range(3000):
        trace.node(f"{name}.0" if name else "0", parent=name)
        name += ".0"
        if len(name) > 400:
            name = "0"
    page = trace.to_html()
    assert page.count("<details") == page.count("</details>") == len(trace.nodes)
    assert "goes on below" in page


# --- interruption -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["async", "plain"])
def test_ctrl_c_returns_the_best_so_far_and_the_trace_goes_on(tmp_path, kind):
    path = tmp_path / "run.jsonl"
    release, ready = threading.Event(), threading.Event()

    def press(number):
        if number == 3 and not ready.is_set():
            ready.set()
            threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            return True
        return False

    class Generator:
        calls = 0

        def __call__(self, state, n):
            self.calls += 1
            if press(self.calls - 1):
                release.wait(30)
            return [self.calls]

    class AsyncGenerator(Generator):
        async def __call__(self, state, n):
            self.calls += 1
            if press(self.calls - 1):
                await asyncio.sleep(30)
            return [self.calls]

    generator = Generator() if kind == "plain" else AsyncGenerator()
    # A process that was started in the background ignores the signal; this test must not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        outcome = best_of_n(generator, same, 0, n=6, trace=path)
    finally:
        signal.signal(signal.SIGINT, before)
    release.set()
    assert outcome.stopped == "interrupted"
    assert outcome.answer == 3
    assert len(outcome.candidates) == 3
    assert outcome.used.calls == 7
    assert Trace.read(path).outcome["stopped"] == "interrupted"
    again = best_of_n(generator, same, 0, n=6, trace=path)
    assert again.stopped == "done"
    assert generator.calls == 4 + 3
    assert len(again.candidates) == 6


def test_a_callable_may_press_ctrl_c_too():
    def generator(number, state, n, *, seed):
        if number == 2:
            raise KeyboardInterrupt
        return [number]

    outcome = best_of_n(Counted(generator), same, 0, n=5)
    assert outcome.stopped == "interrupted"
    assert outcome.answer == 1


def test_progress_is_told_after_each_call():
    records = []
    best_of_n(draw, same, 0, n=3, budget=Budget(calls=12), progress=records.append)
    steps = [record["step"] for record in records]
    assert steps == sorted(steps)
    assert steps[-1] == 6
    assert records[-1]["fraction"] == 0.5
    assert records[-1]["phase"].startswith("best_of_n: 3 candidates, best ")


# --- arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"n": 0}, ArgumentError, "n must be at least 1, not 0"),
        ({"batch": 0}, ArgumentError, "batch must be at least 1"),
        ({"generator": 3}, DTypeError, "generator must be callable, not int"),
        ({"verifier": "x"}, DTypeError, "verifier must be callable, not str"),
        ({"budget": 3}, DTypeError, "budget must be a Budget, not int"),
        ({"policy": 3}, DTypeError, "policy must be a CallPolicy, not int"),
        ({"seed": -1}, ArgumentError, "seed must be at least 0"),
    ],
)
def test_arguments_are_checked(changes, error, words):
    arguments = {"generator": draw, "verifier": same, "state": 0, "n": 1} | changes
    with pytest.raises(error, match=words):
        best_of_n(**arguments)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"timeout": 0.0}, "timeout must be above 0"),
        ({"rate": -1.0}, "rate must be above 0"),
        ({"backoff": -1.0}, "backoff must be at least 0"),
        ({"jitter": 2.0}, "jitter must be at most 1"),
        ({"retries": -1}, "retries must be at least 0"),
    ],
)
def test_policies_are_checked(changes, words):
    with pytest.raises(ArgumentError, match=words):
        CallPolicy(**changes)
    with pytest.raises(DTypeError, match="executor has no submit: it is a int"):
        CallPolicy(executor=3)


# --- votes --------------------------------------------------------------------------------------------------


def test_the_majority_wins_and_ties_go_to_the_first():
    votes = iter(["b", "a", "a", "c", "b"])
    outcome = majority_vote(lambda s, n: [next(votes) for _ in range(n)], 0, n=5, batch=5)
    assert outcome.answer == "b"
    assert outcome.score == 0.4
    assert outcome.details["votes"] == [("b", 2.0), ("a", 2.0), ("c", 1.0)]


def test_votes_are_for_answers_and_may_be_weighed():
    texts = ["I say 1", "so 2", "hence 2", "none"]

    def answer(text):
        return {"x": int(text[-1])} if text[-1].isdigit() else None

    outcome = majority_vote(lambda s, n: texts, 0, n=4, batch=4, answer=answer)
    assert (outcome.answer, outcome.details["vote"], outcome.score) == ("so 2", {"x": 2}, 2 / 3)
    weighed = majority_vote(
        lambda s, n: texts, 0, n=4, batch=4, answer=answer, verifier=lambda xs: [0.9, 0.1, 0.3, 1.0]
    )
    assert (weighed.answer, weighed.details["votes"]) == ("I say 1", [({"x": 1}, 0.9), ({"x": 2}, 0.4)])
    odd = majority_vote(
        lambda s, n: texts, 0, n=4, batch=4, answer=answer, verifier=lambda xs: [2.0, 0.1, 0.3, -1.0]
    )
    assert odd.details["vote"] == {"x": 2}
    assert [f.error for f in odd.failures] == [
        "the verifier returned 2.0, not within (0.0, 1.0)",
        "the verifier returned -1.0, not within (0.0, 1.0)",
    ]


def test_an_answer_that_raises_costs_its_vote():
    outcome = majority_vote(lambda s, n: ["3", "x", "3"], 0, n=3, batch=3, answer=int)
    assert outcome.details["votes"] == [(3, 2.0)]
    assert outcome.failures[0].role == "answer"
    with pytest.raises(SearchError, match="majority_vote found nothing"):
        majority_vote(lambda s, n: ["x"], 0, n=1, answer=int)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(1, 4), st.booleans())
def test_a_certain_vote_stops_as_soon_as_it_may_and_not_before(votes, every, weighed):
    cast = iter(votes)
    outcome = majority_vote(
        lambda s, n: [next(cast) for _ in range(n)], 0, n=len(votes), confidence=1, every=every,
        verifier=(lambda xs: [1.0] * len(xs)) if weighed else None,
    )  # fmt: skip

    def leads(part):
        counts = sorted((part.count(v) for v in range(3)), reverse=True)
        return counts[0] - counts[1]

    looks = [k for k in range(every, len(votes), every) if leads(votes[:k]) > len(votes) - k]
    used = looks[0] if looks else len(votes)
    assert len(outcome.candidates) == used
    assert outcome.stopped == ("early" if looks else "done")
    full = max(dict.fromkeys(votes), key=votes.count)
    assert outcome.answer == full or leads(votes) == 0


@given(st.lists(st.integers(0, 8), min_size=1, max_size=4), st.integers(0, 6))
def test_the_probability_of_an_overturn_is_that_of_its_definition(counts, remaining):
    """Against the same sum with exact fractions, by counting orders of a Polya urn."""
    from fractions import Fraction

    def urn(a, b, n):  # distribution of draws of the first colour
        chances = {0: Fraction(1)}
        for drawn in range(n):
            step = {}
            for x, p in chances.items():
                share = Fraction(a + x, a + b + drawn)
                step[x + 1] = step.get(x + 1, 0) + p * share
                step[x] = step.get(x, 0) + p * (1 - share)
            chances = step
        return chances

    ordered = sorted(counts, reverse=True)
    total = sum(
        p
        for other in [*ordered[1:], 0]
        for x, p in urn(ordered[0] + 1, other + 1, remaining).items()
        if ordered[0] + x <= other + remaining - x
    )
    assert overturn_probability(counts, remaining) == pytest.approx(min(1.0, float(total)), abs=1e-12)


def test_confidence_holds_over_generators_of_all_kinds():
    """With the share of the first of two answers drawn evenly, stopping at 0.9 changes the outcome of 21
    votes in at most a tenth of the searches, and saves at least a third of them."""
    rng, changed, saved, searches = np.random.default_rng(5), 0, 0, 1500
    for _ in range(searches):
        votes = rng.random(21) < rng.random()
        counts = [0, 0]
        for k, vote in enumerate(votes, 1):
            counts[int(vote)] += 1
            if overturn_probability([c for c in counts if c], 21 - k) <= 0.1:
                break
        saved += 21 - k
        changed += (counts[1] > counts[0]) != (votes.sum() > 10)
    assert wilson(changed, searches)[0] <= 0.1
    assert saved / searches > 7


@pytest.mark.parametrize("confidence", [0.0, 1.5, math.nan])
def test_confidence_is_checked(confidence):
    with pytest.raises(ArgumentError, match="confidence"):
        majority_vote(draw, 0, n=3, confidence=confidence)
    with pytest.raises(ArgumentError, match="confidence must be 1 where a verifier weighs the votes"):
        majority_vote(draw, 0, n=3, confidence=0.9, verifier=same)
