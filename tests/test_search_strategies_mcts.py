"""Monte Carlo tree search over steps: what it counts, what it finds, and what failures leave of it."""

import asyncio
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_cases import torn_traces
from sensorium.errors import ArgumentError, DTypeError, SearchError
from sensorium.search import PUCT, Budget, CallPolicy, Trace, beam_search, mcts

QUICK = CallPolicy(backoff=0.0, retries=0)
DEPTH = 3


def generator(word, n):
    return [word + letter for letter in "abcd"[:n]]


def is_whole(word):
    return len(word) == DEPTH


def score(words):
    return [float(np.random.default_rng([5, *map(ord, word)]).random()) for word in words]


def search(generator=generator, verifier=score, **changes):
    settings = {"simulations": 40, "branch": 3, "depth": DEPTH, "finished": is_whole} | changes
    return mcts(generator, verifier, "", **settings)


@given(simulations=st.integers(0, 60), batch=st.integers(1, 5), warm=st.booleans())
def test_visits_are_simulations(simulations, batch, warm):
    outcome = search(simulations=simulations, batch=batch, temperature=0.5 if warm else None)
    tree = outcome.details["tree"]
    assert tree.simulations == simulations == outcome.details["simulations"] == outcome.used.simulations
    assert tree.pending().size == 0
    if simulations:
        assert tree.visits().sum() == simulations - 1  # the first one was of the root itself
    grown = sum(entry.role == "generator" for entry in outcome.budget.ledger)
    assert len(outcome.candidates) == 3 * grown
    assert grown <= simulations


def test_enough_simulations_see_everything_and_find_the_best():
    outcome = search(simulations=600)
    words = ["".join(letters) for letters in itertools.product("abc", repeat=DEPTH)]
    assert sorted(c.value for c in outcome.candidates if c.finished) == words
    assert outcome.answer == max(words, key=lambda word: score([word])[0])
    assert outcome.used.calls == 2 * (1 + 3 + 9), "what ended is never called for again"


def test_the_return_of_a_leaf_is_its_own_score():
    outcome = search(simulations=4)
    tree = outcome.details["tree"]
    np.testing.assert_allclose(tree.returns(), score(["a", "b", "c"]))
    ends = search(simulations=5, depth=1).details["tree"]
    assert ends.visits().sum() == 4
    np.testing.assert_allclose(ends.returns(), score(["a", "b", "c"]))


def test_it_leaves_a_way_that_looks_good_at_first():
    def verifier(words):
        return [
            0.6 if w in ("a", "aa", "ab", "ac") else 1.0 if w == "cbb" else 0.5 if w in ("c", "cb") else 0.1
            for w in words
        ]

    greedy = beam_search(generator, verifier, "", width=1, branch=3, depth=DEPTH, finished=is_whole)
    assert greedy.score == 0.1
    outcome = search(verifier=verifier, simulations=60, target=1.0)
    assert (outcome.answer, outcome.stopped) == ("cbb", "target")


def test_priors_lead_the_first_visits():
    outcome = search(
        verifier=lambda ws: [1.0 if w.startswith("b") else 0.0 for w in ws], simulations=3, temperature=0.1,
        selection=PUCT(),
    )  # fmt: skip
    assert outcome.details["tree"].visits().tolist() == [0, 2, 0]
    np.testing.assert_allclose(outcome.details["tree"].priors()[1], 1 / (1 + 2 * math.exp(-10)), rtol=1e-6)


def test_depth_ends_branches_and_an_unfinished_answer_says_so():
    outcome = search(depth=2, simulations=200)
    assert max(c.depth for c in outcome.candidates) == 2
    assert not any(c.finished for c in outcome.candidates)
    assert outcome.score == max(c.score for c in outcome.candidates)
    assert outcome.used.calls == 2 * (1 + 3)


def test_a_leaf_that_fails_is_not_visited_again_and_the_search_goes_on():
    calls = []

    def flaky(word, n):
        calls.append(word)
        if word.startswith("b"):
            raise ConnectionError("no")
        return generator(word, n)

    outcome = search(generator=flaky, simulations=300, policy=QUICK)
    assert calls.count("b") == 1
    assert outcome.answer[0] in "ac"
    assert [(f.node, f.error) for f in outcome.failures] == [("0.1", "ConnectionError: no")]
    assert sum(c.finished for c in outcome.candidates) == 18


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_scores_never_reach_the_tree(bad):
    outcome = search(verifier=lambda ws: [bad if w.endswith("a") else s for w, s in zip(ws, score(ws), strict=True)],
                     simulations=300)  # fmt: skip
    assert "a" not in outcome.answer
    assert np.isfinite(outcome.details["tree"].returns()).all()
    assert len(outcome.details["tree"].visits()) == 2


def test_a_tree_that_fails_everywhere_is_exhausted():
    def dead_ends(word, n):
        if word:
            raise ConnectionError("no")
        return generator(word, n)

    outcome = search(generator=dead_ends, policy=QUICK)
    assert outcome.stopped == "exhausted"
    assert outcome.answer in "abc"
    with pytest.raises(SearchError, match="mcts found nothing"):
        search(generator=lambda w, n: 1 / 0, policy=QUICK)


@given(
    calls=st.integers(0, 30), simulations=st.integers(0, 20), batch=st.integers(1, 4),
    concurrency=st.integers(1, 4), fails=st.booleans(),
)  # fmt: skip
def test_budgets_are_never_exceeded(calls, simulations, batch, concurrency, fails):
    made = [0]

    async def count(value, seed):
        made[0] += 1
        await asyncio.sleep(0)
        if fails and seed % 4 == 0:
            raise ConnectionError("no")
        return value

    async def ask(word, n, *, seed):
        return await count(generator(word, n), seed)

    async def judge(words, *, seed):
        return await count(score(words), seed)

    budget = Budget(calls=calls, simulations=simulations)
    policy = CallPolicy(backoff=0.0, retries=1, concurrency=concurrency)
    try:
        outcome = search(ask, judge, simulations=50, batch=batch, budget=budget, policy=policy)
    except SearchError as error:
        outcome = error.outcome
    assert made[0] == budget.used.calls <= calls
    assert budget.used.simulations <= simulations
    if not fails:
        assert outcome.stopped == "budget"
        assert calls - 1 <= made[0] or budget.used.simulations == simulations
        assert all(c.score is not None for c in outcome.candidates)


@pytest.mark.parametrize("batch", [1, 3])
def test_interleaving_changes_nothing(batch):
    expected = search(batch=batch, seed=4)
    for concurrency in (2, 5):

        async def late(word, n, *, seed):
            for _ in range(seed % 5):
                await asyncio.sleep(0)
            return generator(word, n)

        outcome = search(late, batch=batch, seed=4, policy=CallPolicy(concurrency=concurrency))
        assert outcome.trace.nodes == expected.trace.nodes
        ours, theirs = outcome.details["tree"].to_arrays(), expected.details["tree"].to_arrays()
        for name, column in theirs.items():
            np.testing.assert_array_equal(ours[name], column, strict=True)


def test_going_on_repeats_nothing_and_grows_the_same_tree(tmp_path):
    path, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    whole = search(batch=2, trace=path)
    for recorded in torn_traces(path, part, lambda n: range(0, n, n // 6)):
        calls = []
        outcome = search(
            lambda w, n, calls=calls: calls.append(1) or generator(w, n),
            lambda ws, calls=calls: calls.append(1) or score(ws),
            batch=2, trace=Trace(part, durable=False), policy=CallPolicy(concurrency=2),
        )  # fmt: skip
        assert len(calls) + recorded == whole.used.calls
        np.testing.assert_array_equal(outcome.details["tree"].visits(), whole.details["tree"].visits())
        assert outcome.trace.nodes == whole.trace.nodes


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"simulations": -1}, ArgumentError, "simulations must be at least 0"),
        ({"branch": 0}, ArgumentError, "branch must be at least 1"),
        ({"batch": 0}, ArgumentError, "batch must be at least 1"),
        ({"temperature": 0.0}, ArgumentError, "temperature must be above 0"),
        ({"target": math.nan}, ArgumentError, "target must be finite"),
        ({"selection": "best"}, DTypeError, "policy must be one of sensorium.search, not str"),
        ({"finished": None}, DTypeError, "finished must be callable"),
    ],
)
def test_arguments_are_checked(changes, error, words):
    with pytest.raises(error, match=words):
        search(**changes)
