"""A tree that grows wider or deeper: where it does which, what it counts, and what failures leave of it."""

import asyncio
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_cases import torn_traces
from sensorium.errors import ArgumentError, DTypeError, SearchError
from sensorium.search import (
    Budget,
    CallPolicy,
    Candidate,
    Revision,
    ThompsonBeta,
    ThompsonGaussian,
    Trace,
    ab_mcts,
)
from sensorium.search.strategies_branching import _Place, _Scores, _tell

QUICK = CallPolicy(backoff=0.0, retries=0)
BETA = ThompsonBeta()


def answer(state, n, *, rng):
    if isinstance(state, Revision):
        return [min(1.0, state.answer + 0.2 * float(rng.random()))]
    return [float(rng.random()) / 2]


def search(generator=answer, verifier=lambda xs: xs, **changes):
    return ab_mcts(generator, verifier, "p", **({"simulations": 30, "prior": BETA} | changes))


def test_it_goes_deeper_where_revision_helps_and_wider_where_it_hurts():
    def helps(state, n, *, rng):
        return [state.answer * 0.7 + 0.3 if isinstance(state, Revision) else 0.1 * float(rng.random())]

    def hurts(state, n, *, rng):
        return [(0.1 if isinstance(state, Revision) else 1.0) * float(rng.random())]

    for prior in (BETA, ThompsonGaussian(mean=0.5, scale=0.05)):
        deep, wide = (search(g, simulations=100, prior=prior).details for g in (helps, hurts))
        assert deep["deeper"] > 70
        assert wide["wider"] > 70


@given(simulations=st.integers(0, 40), batch=st.integers(1, 5), depth=st.integers(1, 3))
def test_each_simulation_makes_one_candidate(simulations, batch, depth):
    outcome = search(simulations=simulations, batch=batch, depth=depth)
    assert (
        len(outcome.candidates) == simulations == outcome.details["simulations"] == outcome.used.simulations
    )
    assert outcome.details["wider"] + outcome.details["deeper"] == simulations
    assert outcome.details["wider"] == sum(c.depth == 1 for c in outcome.candidates)
    assert outcome.used.calls == 2 * simulations
    assert max([c.depth for c in outcome.candidates], default=0) <= depth
    for node in outcome.trace.nodes.values():
        if node.parent is not None:
            assert node.id.rpartition(".")[0] == node.parent


def test_a_revision_sees_its_own_branch():
    seen = []

    def generator(state, n, *, node):
        seen.append((node, state))
        return [(*state.answer, node) if isinstance(state, Revision) else (node,)]

    outcome = search(generator, lambda xs: [min(1.0, len(x) / 5) for x in xs], context=2, simulations=60)
    values = {c.node: (c.value, c.score) for c in outcome.candidates}
    deepest = 0
    for node, state in seen:
        if node == "0":
            assert state == "p"
            continue
        branch = [node] if node.count(".") == 1 else [node.rpartition(".")[0], node]
        assert state == Revision("p", values[node][0], None, tuple(values[name] for name in branch))
        deepest = max(deepest, len(branch))
    assert deepest == 2


def test_steps_end_where_they_are_finished():
    def generator(word, n, *, rng):
        return [word[-2:].replace("p", "") + "ab"[rng.integers(2)]]

    outcome = search(
        generator, lambda ws: [w.count("b") / 3 for w in ws], finished=lambda w: len(w) == 2, simulations=40
    )
    assert {c.depth for c in outcome.candidates} == {1, 2}
    assert all(c.finished == (len(c.value) == 2) for c in outcome.candidates)
    assert (outcome.answer, outcome.score) == ("bb", 2 / 3)


@given(st.lists(st.floats(0, 1), max_size=12), st.booleans())
def test_draws_are_of_the_posterior_mean(scores, beta):
    """Against moments: the mean of the posterior and, of the Gaussian's, the same reached by weighing points."""
    prior = ThompsonBeta(2.0, 1.0) if beta else ThompsonGaussian(mean=3.0, strength=2.0, shape=3.0, scale=0.5)
    seen = _Scores()
    for score in scores:
        seen.add(score)
    rng = np.random.default_rng(0)
    draws = np.array([seen.draw(prior, rng) for _ in range(3000)])
    n, total = len(scores), sum(scores)
    if beta:
        mean = (2 + total) / (3 + n)
        variance = mean * (1 - mean) / (4 + n)
    else:
        mean = (2 * 3.0 + total) / (2 + n)
        squares = sum((s - mean) ** 2 for s in scores) + 2 * (3.0 - mean) ** 2  # about the posterior mean
        variance = (0.5 + squares / 2) / (3 + n / 2 - 1) / (2 + n)
    assert abs(draws.mean() - mean) < 5 * math.sqrt(variance / len(draws)) + 1e-9
    assert draws.var() == pytest.approx(variance, rel=0.4)


def test_a_score_is_evidence_where_it_belongs():
    def place(name, score=None):
        return Candidate(name, name, score)

    root = _Place(place("0"), None)
    _tell(root, place("0.0", 0.5), ended=False)
    child = root.children[0]
    _tell(child, place("0.0.0", 0.25), ended=True)
    counts = {
        p.candidate.node: (p.new.count, p.below.count, p.whole.count) for p in (root, child, *child.children)
    }
    assert counts == {"0": (1, 1, 2), "0.0": (1, 0, 2), "0.0.0": (0, 0, 1)}
    assert (root.new.total, root.below.total, child.whole.total, child.whole.squares) == (
        0.5,
        0.25,
        0.75,
        0.3125,
    )
    assert [p.ended for p in (child, *child.children)] == [False, True]


# --- failures -------------------------------------------------------------------------------------------------


def test_what_fails_is_reported_and_the_search_goes_on():
    def flaky(state, n, *, seed, rng):
        if seed % 3 == 0:
            raise ConnectionError("no")
        return [math.nan] if seed % 3 == 1 and seed % 2 else answer(state, n, rng=rng)

    outcome = search(flaky, simulations=60, policy=QUICK)
    assert len(outcome.candidates) + len(outcome.failures) == 60
    assert {f.error for f in outcome.failures} == {
        "ConnectionError: no", "the generator returned None or NaN alone",
    }  # fmt: skip
    with pytest.raises(SearchError, match="ab_mcts found nothing: 30 failures"):
        search(lambda s, n: [], policy=QUICK)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1.5, -0.1])
def test_bad_scores_never_reach_the_posteriors(bad):
    number = iter(range(1000))
    outcome = search(verifier=lambda xs: [bad if next(number) % 3 == 0 else x for x in xs], simulations=60)
    assert len(outcome.candidates) == 60
    assert sum(c.score is None for c in outcome.candidates) == 20
    assert len(outcome.failures) == 20
    assert outcome.score == max(c.score for c in outcome.candidates if c.score is not None)


@given(calls=st.integers(0, 30), simulations=st.integers(0, 20), batch=st.integers(1, 4), fails=st.booleans())
def test_budgets_are_never_exceeded(calls, simulations, batch, fails):
    made = [0]

    async def count(value, seed):
        made[0] += 1
        if fails and seed % 4 == 0:
            raise ConnectionError("no")
        return value

    async def ask(state, n, *, seed, rng):
        return await count(answer(state, n, rng=rng), seed)

    async def judge(xs, *, seed):
        return await count(xs, seed)

    budget = Budget(calls=calls, simulations=simulations)
    policy = CallPolicy(backoff=0.0, retries=1, concurrency=3)
    try:
        outcome = search(ask, judge, simulations=50, batch=batch, budget=budget, policy=policy)
    except SearchError as error:
        outcome = error.outcome
    assert made[0] == budget.used.calls <= calls
    assert budget.used.simulations <= simulations
    if not fails:
        assert len(outcome.candidates) == min(calls // 2, simulations)
        assert outcome.stopped == "budget"


@pytest.mark.parametrize("batch", [1, 4])
def test_interleaving_changes_nothing(batch):
    expected = search(batch=batch, seed=4)

    async def late(state, n, *, seed, rng):
        for _ in range(seed % 5):
            await asyncio.sleep(0)
        return answer(state, n, rng=rng)

    for concurrency in (2, 5):
        outcome = search(late, batch=batch, seed=4, policy=CallPolicy(concurrency=concurrency))
        assert outcome.trace.nodes == expected.trace.nodes
        assert outcome.details == expected.details


def test_going_on_repeats_nothing_and_grows_the_same_tree(tmp_path):
    path, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    whole = search(batch=2, trace=path)
    for recorded in torn_traces(path, part, lambda n: range(0, n, n // 5)):
        calls = []
        outcome = search(
            lambda s, n, *, rng, calls=calls: calls.append(1) or answer(s, n, rng=rng),
            lambda xs, calls=calls: calls.append(1) or xs,
            batch=2, trace=Trace(part, durable=False), policy=CallPolicy(concurrency=2),
        )  # fmt: skip
        assert len(calls) + recorded == whole.used.calls
        assert outcome.trace.nodes == whole.trace.nodes


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"simulations": -1}, ArgumentError, "simulations must be at least 0"),
        ({"depth": 0}, ArgumentError, "depth must be at least 1"),
        ({"batch": 0}, ArgumentError, "batch must be at least 1"),
        ({"context": -1}, ArgumentError, "context must be at least 0"),
        ({"target": math.nan}, ArgumentError, "target must be finite"),
        ({"prior": "flat"}, DTypeError, "prior must be ThompsonGaussian or ThompsonBeta, not str"),
        ({"prior": ThompsonBeta(alpha=0.0)}, ArgumentError, "prior's alpha must be above 0"),
        ({"prior": ThompsonGaussian(scale=math.nan)}, ArgumentError, "prior's scale must be finite"),
        ({"finished": 3}, DTypeError, "finished must be callable"),
    ],
)
def test_arguments_are_checked(changes, error, words):
    with pytest.raises(error, match=words):
        search(**changes)
