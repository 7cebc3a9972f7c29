"""Revision: contraction and its rate, when it ends, and what failures leave of it."""

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
    Feedback,
    Revision,
    Trace,
    best_of_n,
    contraction_rate,
    reflect,
    rounds_needed,
    sequential_revision,
)

QUICK = CallPolicy(backoff=0.0, retries=0)


def contracting(factor, start=1.0, at=4.0):
    """Generator and critic whose error is multiplied by ``factor`` each round."""

    def generator(state, n):
        if isinstance(state, Revision):
            return [state.answer + (1 - factor) * state.feedback]
        return [at + start]

    return generator, lambda x: at - x, lambda xs: [-((x - at) ** 2) for x in xs]


# --- the rate -------------------------------------------------------------------------------------------------


@given(rate=st.floats(-1.5, 0.95), rounds=st.integers(3, 12), scale=st.floats(1e-3, 1e3))
def test_the_rate_of_a_geometric_error_is_its_own(rate, rounds, scale):
    estimate = contraction_rate([scale * (1 - rate) ** k for k in range(rounds)])
    np.testing.assert_allclose(estimate, [rate] * 3, atol=1e-6)


def test_the_interval_holds_the_rate_as_often_as_it_says():
    rng, held = np.random.default_rng(3), 0
    for _ in range(400):
        errors = 0.8 ** np.arange(8) * np.exp(rng.normal(0, 0.3, 8))
        rate = contraction_rate(errors)
        held += rate.low <= 0.2 <= rate.high
    assert abs(held / 400 - 0.9) < 0.05  # more than three standard deviations of the share


def test_rates_of_little_are_unknown():
    assert np.isnan(contraction_rate([])).all()
    assert np.isnan(contraction_rate([1.0, 0.0, math.nan, math.inf])).all()
    two = contraction_rate([0.0, 4.0, math.nan, 1.0])
    assert two.rate == pytest.approx(0.5)
    assert math.isnan(two.low)
    with pytest.raises(ArgumentError, match="errors holds -1"):
        contraction_rate([2.0, -1.0])


@given(rate=st.floats(1e-3, 1.0), share=st.floats(1e-6, 1.0))
def test_the_rounds_needed_are_enough_and_no_more(rate, share):
    count = rounds_needed(rate, share)
    assert (1 - rate) ** count <= share * (1 + 1e-6)
    assert count == 0 or (1 - rate) ** (count - 1) >= share * (1 - 1e-6)


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.5, math.nan])
def test_no_number_of_rounds_is_enough_for_what_does_not_contract(rate):
    with pytest.raises(ArgumentError, match="rate"):
        rounds_needed(rate, 0.1)
    with pytest.raises(ArgumentError, match="share"):
        rounds_needed(0.5, rate)


# --- reflect --------------------------------------------------------------------------------------------------


@given(factor=st.floats(-0.9, 0.95).filter(lambda f: abs(f) > 0.05), rounds=st.integers(3, 8))
def test_reflection_contracts_at_the_rate_of_its_error(factor, rounds):
    """The squared error falls by ``1 - factor^2`` a round, whichever way it is measured."""
    generator, critic, verifier = contracting(factor)
    for extra in ({"limit": 0.0}, {"distance": lambda a, b: abs(a - b)}):
        outcome = reflect(generator, critic, 0, rounds=rounds, verifier=verifier, patience=None, **extra)
        assert outcome.details["rate"] == pytest.approx(1 - factor**2, abs=1e-4)
        assert outcome.stopped == "rounds"
        assert outcome.answer == outcome.candidates[-1].value
        assert len(outcome.candidates) == rounds + 1


def test_reflection_that_diverges_is_stopped_and_the_best_is_kept():
    generator, critic, verifier = contracting(-1.5)
    outcome = reflect(generator, critic, 0, rounds=50, verifier=verifier, patience=None, limit=0.0)
    assert outcome.stopped == "diverging"
    assert outcome.answer == 5.0
    assert outcome.details["rate"] == pytest.approx(1 - 2.25)
    assert outcome.details["rate_interval"][1] < 0
    assert len(outcome.candidates) == 4
    assert len(outcome.details["errors"]) == 4


def test_reflection_that_does_not_improve_is_stopped():
    outcome = reflect(
        lambda s, n: ["same"], lambda x: "better!", 0, rounds=9, verifier=lambda xs: [1.0], patience=3
    )
    assert outcome.stopped == "patience"
    assert len(outcome.candidates) == 4
    assert outcome.answer == "same"


def test_patience_begins_anew_with_each_improvement():
    scores = iter([1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 3.0, 9.0])
    outcome = reflect(
        lambda s, n: ["x"], lambda x: "f", 0, rounds=20, verifier=lambda xs: [next(scores)], patience=2
    )
    assert outcome.stopped == "patience"
    assert len(outcome.candidates) == 7
    assert outcome.score == 3.0


def test_scores_may_be_the_critics():
    def critic(x):
        return Feedback("higher", score=-abs(x - 3))

    seen = []

    def generator(state, n):
        seen.append(state)
        return [state.answer + 1 if isinstance(state, Revision) else 0]

    outcome = reflect(generator, critic, "p", rounds=9, target=0.0, context=2)
    assert (outcome.answer, outcome.score, outcome.stopped) == (3, 0.0, "target")
    assert seen[0] == "p"
    assert seen[3] == Revision("p", 2, "higher", ((1, -2.0), (2, -1.0)))
    assert outcome.budget.by_role()["critic"].calls == 4
    assert outcome.trace.nodes["0.2"].parent == "0.1"


def test_without_any_score_the_last_answer_counts():
    outcome = reflect(lambda s, n: [getattr(s, "answer", 0) + 1], lambda x: "more", 0, rounds=4)
    assert outcome.answer == 5
    assert outcome.score is None
    assert math.isnan(outcome.details["rate"])


def test_the_best_can_be_what_is_revised():
    seen = []

    def generator(state, n, *, seed):
        seen.append(getattr(state, "answer", None))
        return [len(seen) if len(seen) != 2 else 9]

    heard = []
    outcome = reflect(
        generator,
        lambda x: heard.append(x) or "again",
        0,
        rounds=4,
        verifier=lambda xs: xs,
        revise="best",
        patience=None,
    )
    assert seen == [None, 1, 9, 9, 9]
    assert heard == [1, 9], "the best is criticised once"
    assert outcome.answer == 9


def test_a_round_that_fails_is_over_and_the_next_one_begins():
    number = iter(range(100))

    def generator(state, n):
        k = next(number)
        if k in (0, 2):
            raise ConnectionError("no")
        return [(getattr(state, "answer", 0), k)]

    def critic(x):
        raise ConnectionError("dumb")

    outcome = reflect(
        generator, critic, 0, rounds=4, verifier=lambda xs: [x[1] for x in xs], policy=QUICK, patience=None
    )
    assert outcome.answer == (((0, 1), 3), 4)
    assert outcome.failures[0].node == "0"
    assert sorted(f.role for f in outcome.failures) == ["critic", "critic", "generator", "generator"]
    with pytest.raises(SearchError, match="reflect found nothing: 3 failures"):
        reflect(lambda s, n: [math.nan], critic, 0, rounds=2, policy=QUICK, patience=None)


@pytest.mark.parametrize("score", [math.nan, math.inf, "high"])
def test_a_bad_score_of_a_critic_is_named(score):
    outcome = reflect(lambda s, n: [1], lambda x: Feedback("text", score), 0, rounds=0, policy=QUICK)
    assert outcome.answer == 1
    assert outcome.failures[0].role == "critic"
    assert "the critic's score is" in outcome.failures[0].error
    silent = reflect(lambda s, n: [1], lambda x: None, 0, rounds=0, policy=QUICK)
    assert silent.failures[0].error == "the critic returned None"


def test_a_bad_distance_is_named():
    outcome = reflect(lambda s, n: ["x"], lambda x: "f", 0, rounds=1, distance=lambda a, b: a - b)
    assert outcome.failures[0].role == "distance"


@given(calls=st.integers(0, 20), fails=st.booleans(), critical=st.booleans())
def test_calls_are_never_more_than_the_budget(calls, fails, critical):
    made = [0]

    async def count(value, seed):
        made[0] += 1
        if fails and seed % 3 == 0:
            raise ConnectionError("no")
        return value

    async def generator(state, n, *, seed):
        return await count([1.0], seed)

    async def critic(x, *, seed):
        return await count(Feedback("f", 1.0), seed)

    async def verifier(xs, *, seed):
        return await count([1.0] * len(xs), seed)

    budget = Budget(calls=calls)
    policy = CallPolicy(backoff=0.0, retries=1)
    try:
        outcome = reflect(
            generator, critic, 0, rounds=6, patience=None, budget=budget, policy=policy,
            verifier=None if critical else verifier,
        )  # fmt: skip
    except SearchError as error:
        outcome = error.outcome
    assert made[0] == budget.used.calls <= calls
    if not fails:
        assert len(outcome.candidates) == min(7, calls // 2 if critical else (calls + 1) // 3)
        assert all(c.score == 1.0 for c in outcome.candidates)


def revised(state, n, *, seed):
    return [(state.answer + seed % 100) if isinstance(state, Revision) else seed % 100]


CASES = {
    "reflect": lambda count, **more: reflect(
        lambda s, n, *, seed: count(revised(s, n, seed=seed)), lambda x: count({"f": (x,)}), 0, rounds=4,
        verifier=lambda xs: count([x % 17 for x in xs]), patience=None, **more,
    ),
    "critic": lambda count, **more: reflect(
        lambda s, n, *, seed: count(revised(s, n, seed=seed)), lambda x: count(Feedback("f", x % 17)), 0,
        rounds=4, patience=None, revise="best", context=3, **more,
    ),
    "chains": lambda count, **more: sequential_revision(
        lambda s, n, *, seed: count(revised(s, n, seed=seed)), lambda xs: count([x % 17 for x in xs]), 0,
        rounds=3, chains=2, **more,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_going_on_repeats_nothing_and_ends_alike(tmp_path, case):
    path, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    whole = CASES[case](lambda value: value, trace=path)
    for recorded in torn_traces(path, part, lambda n: range(0, n, 3)):
        calls = []
        outcome = CASES[case](
            lambda value, calls=calls: calls.append(1) or value, trace=Trace(part, durable=False)
        )
        assert len(calls) + recorded == whole.used.calls == outcome.used.calls
        assert [(c.node, c.value, c.score) for c in outcome.candidates] == [
            (c.node, c.value, c.score) for c in whole.candidates
        ]
        assert outcome.details == whole.details or case == "chains"
        assert outcome.trace.nodes == whole.trace.nodes


# --- sequential revision ----------------------------------------------------------------------------------------


def test_chains_see_their_own_answers_alone():
    seen = []

    def generator(state, n, *, node, seed):
        if isinstance(state, Revision):
            seen.append(state)
            assert state.feedback is None
            assert state.history[-1] == (state.answer, float(len(state.answer)))
            return [[*state.answer, state.answer[0]]]
        return [[seed]]

    outcome = sequential_revision(
        generator, lambda xs: [len(x) for x in xs], "p", rounds=5, chains=3, context=2,
        policy=CallPolicy(concurrency=3),
    )  # fmt: skip
    assert len(outcome.candidates) == 18
    assert len({c.value[0] for c in outcome.candidates}) == 3
    assert all(len(set(c.value)) == 1 for c in outcome.candidates)
    assert max(len(state.history) for state in seen) == 2
    assert outcome.score == 6.0
    assert outcome.trace.nodes["0.1.3"].parent == "0.1.2"
    assert outcome.trace.nodes["0.1.0"].parent == "0.1"


def test_chains_end_by_themselves():
    def verifier(xs):
        return [min(x, 3) if x < 50 else 7 for x in xs]

    outcome = sequential_revision(
        lambda s, n: [getattr(s, "answer", -1) + 1], verifier, 0, rounds=20, patience=2
    )
    assert [c.value for c in outcome.candidates] == [0, 1, 2, 3, 4, 5]
    assert outcome.answer == 3
    outcome = sequential_revision(
        lambda s, n: [getattr(s, "answer", 47) + 1], verifier, 0, rounds=20, target=7.0
    )
    assert outcome.stopped == "target"
    assert outcome.answer == 50


def test_without_rounds_it_is_the_best_of_n():
    def generator(state, n, *, rng):
        return list(rng.random(n))

    chains = sequential_revision(generator, lambda xs: xs, 0, rounds=0, chains=6)
    single = best_of_n(generator, lambda xs: xs, 0, n=6)
    assert len(chains.candidates) == len(single.candidates) == 6
    assert chains.used.calls == single.used.calls == 12
    assert chains.score == max(c.value for c in chains.candidates)


def test_a_chain_that_fails_stops_no_other():
    def generator(state, n, *, node):
        if node == "0.1.0":
            raise ConnectionError("no")
        return [getattr(state, "answer", 0) + 1]

    outcome = sequential_revision(generator, lambda xs: xs, "p", rounds=3, chains=3, policy=QUICK)
    assert outcome.score == 4.0
    assert len(outcome.candidates) == 4 + 1 + 4
    assert len(outcome.failures) == 3


def test_interleaving_changes_nothing():
    expected = sequential_revision(revised, lambda xs: [x % 17 for x in xs], 0, rounds=3, chains=4)

    async def late(state, n, *, seed):
        for _ in range(seed % 5):
            await asyncio.sleep(0)
        return revised(state, n, seed=seed)

    for concurrency in (2, 8):
        outcome = sequential_revision(
            late,
            lambda xs: [x % 17 for x in xs],
            0,
            rounds=3,
            chains=4,
            policy=CallPolicy(concurrency=concurrency),
        )
        assert outcome.trace.nodes == expected.trace.nodes


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"rounds": -1}, ArgumentError, "rounds must be at least 0"),
        ({"context": -1}, ArgumentError, "context must be at least 0"),
        ({"patience": 0}, ArgumentError, "patience must be at least 1"),
        ({"target": math.nan}, ArgumentError, "target must be finite"),
        ({"limit": math.inf}, ArgumentError, "limit must be finite"),
        ({"revise": "first"}, ArgumentError, "revise must be 'last' or 'best', not 'first'"),
        ({"critic": None}, DTypeError, "critic must be callable, not NoneType"),
        ({"distance": 3}, DTypeError, "distance must be callable"),
    ],
)
def test_arguments_are_checked(changes, error, words):
    arguments = {"generator": revised, "critic": lambda x: "f", "state": 0, "rounds": 1} | changes
    with pytest.raises(error, match=words):
        reflect(**arguments)
    with pytest.raises(ArgumentError, match="chains must be at least 1"):
        sequential_revision(revised, lambda xs: xs, 0, rounds=1, chains=0)
