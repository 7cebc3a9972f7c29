"""Searches over steps against a few plain lines that say what they are, and under failures."""

import asyncio
import itertools
import math
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import torn_traces
from sensorium.errors import ArgumentError, DTypeError, SearchError, TraceError
from sensorium.search import Budget, CallPolicy, Trace, beam_search, diverse_beam, tree_of_thought

QUICK = CallPolicy(backoff=0.0)
DEPTH = 4


def generator(word, n):
    return [word + letter for letter in "abcd"[:n]]


def is_whole(word):
    return len(word) == DEPTH


def tables(seed):
    """A score for each word, the same in any order of asking, with ties."""

    def score(word):
        return float(np.random.default_rng([seed, *map(ord, word)]).integers(0, 6))

    return lambda words: [score(word) for word in words]


def beam(score, width, branch, threshold=-math.inf):
    kept, seen = [""], []
    for _ in range(DEPTH):
        level = [word for parent in kept for word in generator(parent, branch)]
        seen += level
        ranked = sorted(level, key=lambda word: -score([word])[0])
        kept = [word for word in ranked if score([word])[0] >= threshold][:width]
    return seen


@given(
    seed=st.integers(0, 99), width=st.integers(1, 5), branch=st.integers(1, 4), concurrency=st.integers(1, 4)
)
def test_a_beam_is_what_the_plain_one_is(seed, width, branch, concurrency):
    score = tables(seed)
    outcome = beam_search(
        generator, score, "", width=width, branch=branch, depth=DEPTH, finished=is_whole,
        policy=CallPolicy(concurrency=concurrency),
    )  # fmt: skip
    seen = beam(score, width, branch)
    assert sorted(c.value for c in outcome.candidates) == sorted(seen)
    assert outcome.score == max(score([word])[0] for word in seen if is_whole(word))
    assert outcome.candidates[0].depth == 1
    levels = sum(entry.role == "verifier" for entry in outcome.budget.ledger)
    assert levels == DEPTH, "the verifier is called once a level"


@given(seed=st.integers(0, 99), branch=st.integers(1, 3), threshold=st.integers(0, 4), deep=st.booleans())
def test_a_tree_of_thought_finds_the_best_that_is_not_pruned(seed, branch, threshold, deep):
    score = tables(seed)
    open_ = [""]
    for _ in range(DEPTH - 1):
        open_ = [w for p in open_ for w in generator(p, branch) if score([w])[0] >= threshold]
    leaves = [w for p in open_ for w in generator(p, branch)]
    outcome = tree_of_thought(
        generator, score, "", branch=branch, depth=DEPTH, finished=is_whole, threshold=threshold,
        order="dfs" if deep else "bfs", answers=10**6,
    )  # fmt: skip
    assert sorted(c.value for c in outcome.candidates if c.finished) == sorted(leaves)
    if leaves:
        assert outcome.score == max(score([w])[0] for w in leaves)
    else:
        assert outcome.answer is None or not is_whole(outcome.answer)


def test_depth_first_goes_back_to_the_next_best():
    asked = []

    def watched(word, n):
        asked.append(word)
        return generator(word, n)

    def score(words):
        return [-1.0 if word.startswith("ba") else word.count("b") for word in words]

    outcome = tree_of_thought(
        watched, score, "", branch=2, depth=3, finished=lambda w: w == "abb", order="dfs", threshold=0,
    )  # fmt: skip
    assert asked == ["", "b", "bb", "a", "ab"]
    assert outcome.answer == "abb"
    assert outcome.stopped == "answers"
    assert outcome.trace.nodes["0.1.0"].note == "below the threshold"


def test_trees_of_a_diverse_beam_do_not_push_each_other_out():
    def generator(row, n, *, rng):
        return [(*row, int(x)) for x in rng.integers(0, 50, n)]

    def score(rows):
        return [row[0] + row[-1] for row in rows]

    outcome = diverse_beam(
        generator, score, (), trees=4, branch=3, depth=3, finished=lambda row: len(row) == 3, seed=2
    )
    firsts = [c for c in outcome.candidates if c.depth == 1]
    assert len(firsts) == 12
    leaders = [max(firsts[t * 3 : t * 3 + 3], key=lambda c: c.score).value for t in range(4)]
    for depth in (2, 3):
        assert {c.value[:1] for c in outcome.candidates if c.depth == depth} == set(leaders)
        assert sum(c.depth == depth for c in outcome.candidates) == 12
    assert outcome.score == max(c.score for c in outcome.candidates if c.finished)


def test_finished_answers_leave_the_beam():
    def generator(word, n):
        return [word + "x", word + "."]

    outcome = beam_search(
        generator, lambda ws: [len(w) for w in ws], "", width=1, branch=2, depth=9,
        finished=lambda w: w.endswith("."), answers=3,
    )  # fmt: skip
    assert outcome.answer == "xx."
    assert outcome.stopped == "answers"
    assert max(c.depth for c in outcome.candidates) == 3


def test_a_target_ends_it_and_an_unfinished_answer_says_so():
    outcome = beam_search(
        generator, lambda ws: [w.count("a") for w in ws], "", width=2, branch=4, depth=9, finished=is_whole,
        answers=50, target=4.0,
    )  # fmt: skip
    assert (outcome.answer, outcome.stopped) == ("aaaa", "target")
    short = beam_search(
        generator, lambda ws: [w.count("a") for w in ws], "", width=2, branch=4, depth=2, finished=is_whole
    )
    assert (short.answer, short.stopped) == ("aa", "depth")
    assert not next(c for c in short.candidates if c.value == "aa").finished


@pytest.mark.parametrize("order", ["bfs", "dfs"])
def test_solutions_that_are_alike_are_continued_once(order):
    def generator(numbers, n):
        return [(*numbers, x) for x in range(n)]

    outcome = tree_of_thought(
        generator, lambda rows: [0.0] * len(rows), (), branch=3, depth=2, finished=lambda row: False,
        order=order, identity=lambda row: tuple(sorted(row)),
    )  # fmt: skip
    twice = [node for node in outcome.trace.nodes.values() if node.note == "like an earlier one"]
    assert sorted(outcome.trace.value(node.id) for node in twice) == [(1, 0), (2, 0), (2, 1)]
    odd = beam_search(
        generator, lambda rows: [0.0] * len(rows), (), width=2, branch=3, depth=2, finished=lambda row: False,
        identity=lambda row: row[5],
    )  # fmt: skip
    assert odd.failures[0].error == "identity raised IndexError: tuple index out of range"


# --- failures -----------------------------------------------------------------------------------------------


def test_a_branch_that_fails_is_marked_and_the_others_go_on():
    def flaky(word, n):
        if word == "a":
            raise ConnectionError("no")
        return generator(word, n)

    outcome = beam_search(
        flaky, lambda ws: [-len(w) - w.count("c") for w in ws], "", width=2, branch=3, depth=DEPTH,
        finished=is_whole, policy=QUICK,
    )  # fmt: skip
    assert outcome.answer == "baaa"
    assert [(f.node, f.role, f.attempts) for f in outcome.failures] == [("0.0", "generator", 3)]
    assert outcome.trace.nodes["0.0.2"].status == "failed"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_score_is_not_continued(bad):
    outcome = beam_search(
        generator, lambda ws: [bad if w.startswith("a") else 1.0 for w in ws], "", width=4, branch=2,
        depth=DEPTH, finished=is_whole,
    )  # fmt: skip
    assert outcome.answer == "baaa"
    assert [c.value for c in outcome.candidates if c.value.startswith("a")] == ["a"]


def test_all_that_can_go_wrong_at_once():
    lock, number = threading.Lock(), itertools.count()

    def wild(word, n, *, seed):
        with lock:
            kind = next(number) % 7
        if kind == 0:
            raise ValueError("no")
        if kind == 1:
            return "text"
        if kind == 2:
            return [None] * n
        if kind == 3:
            return [word + "z", math.nan]
        return generator(word, n)

    def score(words):
        with lock:
            kind = next(number) % 5
        if kind == 0:
            return [0.0]
        return [math.nan if word.endswith("b") else 1.0 for word in words]

    for strategy, extra in (
        (beam_search, {"width": 3}), (diverse_beam, {"trees": 3}),
        (tree_of_thought, {"order": "dfs", "answers": 4}), (tree_of_thought, {"width": 3}),
    ):  # fmt: skip
        outcome = strategy(
            wild, score, "", branch=3, depth=DEPTH, finished=is_whole, policy=CallPolicy(backoff=0.0, concurrency=3, retries=5),
            **extra,
        )  # fmt: skip
        assert is_whole(outcome.answer)
        assert outcome.failures
        assert outcome.used.calls == sum(entry.cost.calls for entry in outcome.budget.ledger)


def test_a_search_that_gets_nothing_says_so():
    for strategy, extra in ((beam_search, {"width": 2}), (tree_of_thought, {"order": "dfs"})):
        with pytest.raises(SearchError, match="ZeroDivisionError"):
            strategy(
                lambda w, n: 1 / 0,
                lambda ws: [0],
                "",
                branch=2,
                depth=2,
                finished=is_whole,
                policy=QUICK,
                **extra,
            )


def test_a_predicate_that_raises_costs_its_candidate():
    def finished(word):
        if word == "aa":
            raise RuntimeError("odd")
        return is_whole(word)

    outcome = beam_search(
        generator,
        lambda ws: [-w.count("b") for w in ws],
        "",
        width=2,
        branch=2,
        depth=DEPTH,
        finished=finished,
    )
    assert outcome.answer == "abaa"
    assert outcome.failures[0].error == "finished raised RuntimeError: odd"


@given(
    calls=st.integers(0, 40), concurrency=st.integers(1, 5), fails=st.booleans(),
    kind=st.sampled_from(["beam", "diverse", "bfs", "dfs"]),
)  # fmt: skip
def test_calls_are_never_more_than_the_budget(calls, concurrency, fails, kind):
    made = [0]

    async def count(value, seed):
        made[0] += 1
        await asyncio.sleep(0)
        if fails and seed % 3 == 0:
            raise ConnectionError("no")
        return value

    async def ask(word, n, *, seed):
        return await count(generator(word, n), seed)

    async def score(words, *, seed):
        return await count([w.count("b") for w in words], seed)

    strategy, extra = {
        "beam": (beam_search, {"width": 3}),
        "diverse": (diverse_beam, {"trees": 3}),
        "bfs": (tree_of_thought, {}),
        "dfs": (tree_of_thought, {"order": "dfs", "answers": 50}),
    }[kind]
    budget = Budget(calls=calls)
    try:
        outcome = strategy(
            ask, score, "", branch=3, depth=DEPTH, finished=is_whole, budget=budget,
            policy=CallPolicy(backoff=0.0, retries=1, concurrency=concurrency), **extra,
        )  # fmt: skip
    except SearchError as error:
        outcome = error.outcome
    assert made[0] == budget.used.calls <= calls
    assert all(c.score is not None for c in outcome.candidates) or fails


STRATEGIES = [
    (beam_search, {"width": 3}), (diverse_beam, {"trees": 2}), (tree_of_thought, {"width": 4, "threshold": 1}),
    (tree_of_thought, {"order": "dfs", "threshold": 1, "answers": 6}),
]  # fmt: skip


@pytest.mark.parametrize(("strategy", "extra"), STRATEGIES)
def test_going_on_repeats_nothing_and_ends_alike(tmp_path, strategy, extra):
    settings = {"branch": 3, "depth": DEPTH, "finished": is_whole, **extra}
    score = tables(7)
    path, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    whole = strategy(generator, score, "", trace=path, **settings)
    for recorded in torn_traces(path, part, lambda n: range(0, n + 1, max(1, n // 9))):
        calls = [0]

        def count(value, calls=calls):
            calls[0] += 1
            return value

        outcome = strategy(
            lambda w, n: count(generator(w, n)), lambda ws: count(score(ws)), "",
            trace=Trace(part, durable=False), policy=CallPolicy(concurrency=3), **settings,
        )  # fmt: skip
        assert calls[0] + recorded == whole.used.calls == outcome.used.calls
        assert [(c.node, c.value, c.score) for c in outcome.candidates] == [
            (c.node, c.value, c.score) for c in whole.candidates
        ]
        assert outcome.trace.nodes == whole.trace.nodes


@pytest.mark.parametrize(("strategy", "extra"), STRATEGIES)
@settings(max_examples=5)
@given(concurrency=st.integers(2, 6), order=st.randoms(use_true_random=False))
def test_interleaving_changes_nothing(strategy, extra, concurrency, order):
    settings = {"branch": 3, "depth": DEPTH, "finished": is_whole, "seed": 1, **extra}

    def ask(word, n, *, rng):
        return [word + "abcdef"[i] for i in rng.integers(0, 6, n)]

    async def late(word, n, *, rng):
        for _ in range(order.randrange(6)):
            await asyncio.sleep(0)
        return ask(word, n, rng=rng)

    expected = strategy(ask, tables(3), "", **settings)
    outcome = strategy(late, tables(3), "", policy=CallPolicy(concurrency=concurrency), **settings)
    assert outcome.trace.nodes == expected.trace.nodes
    assert [(c.value, c.score) for c in outcome.candidates] == [
        (c.value, c.score) for c in expected.candidates
    ]


def test_other_arguments_are_not_taken_for_those_of_the_trace(tmp_path):
    path = tmp_path / "run.jsonl"
    beam_search(generator, tables(1), "", width=2, branch=3, depth=2, finished=is_whole, trace=path)
    with pytest.raises(TraceError, match="has call g0@0 with other arguments"):
        beam_search(generator, tables(1), "", width=2, branch=2, depth=2, finished=is_whole, trace=path)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"branch": 0}, ArgumentError, "branch must be at least 1"),
        ({"depth": 0}, ArgumentError, "depth must be at least 1"),
        ({"width": 0}, ArgumentError, "width must be at least 1"),
        ({"answers": 0}, ArgumentError, "answers must be at least 1"),
        ({"target": math.nan}, ArgumentError, "target must be finite"),
        ({"threshold": math.nan}, ArgumentError, "threshold must be finite"),
        ({"finished": None}, DTypeError, "finished must be callable"),
        ({"identity": 3}, DTypeError, "identity must be callable"),
        ({"order": "best"}, ArgumentError, "order must be 'bfs' or 'dfs', not 'best'"),
        ({"order": "dfs", "width": 2}, ArgumentError, "width is of whole levels"),
    ],
)
def test_arguments_are_checked(changes, error, words):
    with pytest.raises(error, match=words):
        tree_of_thought(
            generator, tables(0), "", **({"branch": 2, "depth": 2, "finished": is_whole} | changes)
        )
    with pytest.raises(ArgumentError, match="trees must be at least 1"):
        diverse_beam(generator, tables(0), "", trees=0, branch=2, depth=2, finished=is_whole)
