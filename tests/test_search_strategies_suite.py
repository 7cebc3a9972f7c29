"""A common budget for many problems, and the choice between depth and width."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betaln
from search_cases import torn_traces
from sensorium.errors import ArgumentError, DTypeError, SearchError, ShapeError
from sensorium.search import (
    Budget,
    CallPolicy,
    DepthLaw,
    Revision,
    Trace,
    adaptive,
    allocate_samples,
    fit_depth_law,
    solve_suite,
)
from sensorium.search.strategies_suite import _MEANS, _WORTHS

QUICK = CallPolicy(backoff=0.0, retries=0)


def solved(given_, prior):
    """Expected number of solved problems: one less the chance that all of ``n`` tries fail under a Beta."""
    total = 0.0
    for n, (a, b) in zip(given_, prior, strict=True):
        total += 1 - math.prod((b + j) / (a + b + j) for j in range(n))
    return total


@given(
    st.lists(st.tuples(st.floats(0.1, 5), st.floats(0.1, 20)), min_size=1, max_size=3), st.integers(0, 7)
)  # fmt: skip
def test_no_other_split_solves_more(prior, total):
    shares = allocate_samples([0] * len(prior), [0] * len(prior), total, prior=prior)
    assert shares.sum() == total
    every = (s for s in itertools.product(range(total + 1), repeat=len(prior)) if sum(s) == total)
    assert solved(shares.tolist(), prior) == pytest.approx(max(solved(s, prior) for s in every), abs=1e-12)


def test_what_was_seen_is_part_of_the_prior():
    seen = allocate_samples([0, 0], [3, 0], 9, prior=[[1, 1], [2, 5]])
    np.testing.assert_array_equal(seen, allocate_samples([0, 0], [0, 0], 9, prior=[[1, 4], [2, 5]]))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6), st.data())
def test_without_a_prior_it_is_that_of_the_suite(tries, data):
    """Against the mixture of all Beta distributions, weighed by how likely each makes what was seen."""
    won = [data.draw(st.integers(0, t)) for t in tries]
    seen, total = [], 0.0
    for mean, worth in itertools.product(_MEANS, _WORTHS):
        a, b = mean * worth, (1 - mean) * worth
        chance = math.exp(
            sum(betaln(a + c, b + t - c) - betaln(a, b) for c, t in zip(won, tries, strict=True))
        )
        seen.append((chance, a, b))
        total += chance
    left = [i for i, c in enumerate(won) if c == 0]
    next_ = {i: sum(w * a / (a + b + tries[i]) for w, a, b in seen) / total for i in left}
    shares = allocate_samples(won, tries, 1)
    assert shares.sum() == bool(left)
    if left:
        assert next_[int(np.argmax(shares))] == pytest.approx(max(next_.values()), rel=1e-9)
        fewest = min(tries[i] for i in left)
        assert tries[int(np.argmax(shares))] == fewest


def test_costs_and_limits_are_kept():
    shares = allocate_samples([0, 0, 1], [0, 0, 1], 10, prior=[[1, 1]] * 3, cost=[1.0, 4.0, 1.0])
    assert shares[0] + 4 * shares[1] <= 10
    assert shares[1] >= 1
    np.testing.assert_array_equal(allocate_samples([0, 0], [0, 0], 50, most=3), [3, 3])
    np.testing.assert_array_equal(allocate_samples([2, 1], [3, 1], 5), [0, 0])
    assert allocate_samples([], [], 5).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([[1]], [[1]], 2), ShapeError, r"successes has shape \(1, 1\)"),
        (([1], [1, 2], 2), ShapeError, r"tries has shape \(2,\) but successes has \(1,\)"),
        (([2], [1], 2), ArgumentError, "successes must be from 0 to tries"),
        (([-1], [1], 2), ArgumentError, "successes must be"),
        (([0.5], [1], 2), DTypeError, "successes has dtype float64"),
        (([0], [1], -1), ArgumentError, "total must be at least 0"),
    ],
)
def test_counts_are_checked(arguments, error, words):
    with pytest.raises(error, match=words):
        allocate_samples(*arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prior": [1, 1]}, r"prior has shape \(2,\), expected \(2, 2\)"),
        ({"prior": [[1, 0], [1, 1]]}, "prior must be finite and above 0"),
        ({"cost": [1.0]}, r"cost has shape \(1,\)"),
        ({"cost": [1.0, math.nan]}, "cost must be finite and above 0"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(ArgumentError, match=words):
        allocate_samples([0, 0], [0, 0], 2, **options)


# --- suites -----------------------------------------------------------------------------------------------------


def attempt(chance, n, *, rng):
    return [float(x) for x in rng.random(n) < chance]


def test_a_suite_solves_more_than_an_even_split_for_the_same_number():
    chances = np.random.default_rng(0).beta(0.3, 1.2, 120).tolist()
    total = 4 * len(chances)
    spent = solve_suite(
        attempt, lambda xs: xs, chances, total=total, seed=2, policy=CallPolicy(concurrency=4)
    )
    # An even split solves what 1 - (1 - p)^4 says; more than the mean by three standard deviations is no luck.
    share = 1 - (1 - np.array(chances)) ** 4
    spread = math.sqrt(float((share * (1 - share)).sum())) / len(chances)
    assert spent.score > share.mean() + 3 * spread
    assert spent.details["samples"].sum() == total == len(spent.candidates)
    np.testing.assert_array_equal(spent.details["solved"], spent.details["scores"] == 1)
    assert spent.details["samples"][spent.details["solved"]].mean() < 4 < spent.details["samples"].max()


def test_a_suite_that_is_solved_stops():
    outcome = solve_suite(attempt, lambda xs: xs, [1.0, 1.0, 1.0], total=50)
    assert (outcome.score, outcome.stopped, outcome.details["samples"].tolist()) == (1.0, "solved", [1, 1, 1])
    assert outcome.answer == [1.0, 1.0, 1.0]
    assert {node.status for node in outcome.trace.nodes.values() if node.id.count(".") == 2} == {"answer"}
    empty = solve_suite(attempt, lambda xs: xs, [], total=5)
    assert (empty.answer, empty.score) == ([], None)


@pytest.mark.parametrize("pilot", [0, 1, 3])
@pytest.mark.parametrize("total", [0, 2, 5, 11])
def test_the_number_is_kept_to(total, pilot):
    asked = []
    outcome = solve_suite(
        lambda p, n: asked.append((p, n)) or [0.0] * n,
        lambda xs: xs,
        ["a", "b", "c"],
        total=total,
        pilot=pilot,
    )
    assert sum(n for _, n in asked) == total == outcome.details["samples"].sum()
    assert outcome.score == 0.0
    assert outcome.stopped == "done"


def test_the_verifier_knows_the_problem():
    outcome = solve_suite(
        lambda p, n: [1.0] * n, lambda xs, *, state: [state] * len(xs), [0.25, 1.0], total=4, solved=0.5
    )
    assert [(c.node, c.score) for c in outcome.candidates] == [
        ("0.0.0", 0.25), ("0.0.1", 0.25), ("0.0.2", 0.25), ("0.1.0", 1.0),
    ]  # fmt: skip


def test_a_problem_that_fails_costs_no_other():
    def generator(problem, n):
        if problem == "bad":
            raise ConnectionError("no")
        return [1.0] * n

    outcome = solve_suite(generator, lambda xs: xs, ["good", "bad", "fine"], total=9, policy=QUICK)
    assert outcome.answer == [1.0, None, 1.0]
    assert outcome.details["solved"].tolist() == [True, False, True]
    with pytest.raises(SearchError, match="solve_suite found nothing"):
        solve_suite(generator, lambda xs: xs, ["bad"], total=2, policy=QUICK)


@given(calls=st.integers(0, 25), concurrency=st.integers(1, 4))
def test_calls_of_a_suite_are_never_more_than_the_budget(calls, concurrency):
    made = [0]

    async def generator(problem, n):
        made[0] += 1
        return [0.0] * n

    async def verifier(xs):
        made[0] += 1
        return xs

    outcome = solve_suite(
        generator,
        verifier,
        [1, 2, 3],
        total=15,
        budget=Budget(calls=calls),
        policy=CallPolicy(concurrency=concurrency),
    )
    assert made[0] == outcome.used.calls <= calls
    assert (outcome.stopped == "budget") == (calls < 30)
    assert all(c.score == 0 for c in outcome.candidates)


def test_going_on_with_a_suite_repeats_nothing(tmp_path):
    path, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    chances = [0.9, 0.1, 0.5, 0.02]
    whole = solve_suite(attempt, lambda xs: xs, chances, total=24, trace=path)
    for recorded in torn_traces(path, part, lambda n: range(0, n, n // 6)):
        calls = []
        outcome = solve_suite(
            lambda p, n, *, rng, calls=calls: calls.append(1) or attempt(p, n, rng=rng),
            lambda xs, calls=calls: calls.append(1) or xs,
            chances, total=24, trace=Trace(part, durable=False), policy=CallPolicy(concurrency=3),
        )  # fmt: skip
        assert len(calls) + recorded == whole.used.calls
        assert [(c.node, c.value, c.score) for c in outcome.candidates] == [
            (c.node, c.value, c.score) for c in whole.candidates
        ]


# --- depth and width --------------------------------------------------------------------------------------------


@given(st.integers(1, 10**6), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_a_split_is_within_the_total(total, easy, hard, difficulty):
    depth, width = DepthLaw(easy, hard).split(total, difficulty)
    assert depth >= 1
    assert width >= 1
    assert depth * width <= total < depth * (width + 1)


@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.booleans())
def test_the_law_that_made_the_runs_is_found(easy, hard, graded):
    law = DepthLaw(easy, hard if graded else easy)
    runs = [
        (total, depth, -((math.log(depth) - law.exponent(d) * math.log(total)) ** 2), d)
        for total in (16, 64, 256)
        for depth in 2.0 ** np.arange(math.log2(total) + 1)
        for d in (0.0, 0.5, 1.0)
    ]
    total, depth, score, difficulty = np.array(runs).T
    found = fit_depth_law(total, depth, score, difficulty=difficulty if graded else None)
    # The parabola through three points is exact, but where the best depth is next to the end of the range.
    step = math.log(2) / math.log(16)
    assert abs(found.easy - law.easy) < step
    assert abs(found.hard - law.hard) < step
    if all(0.25 < a < 0.75 for a in (law.easy, law.hard)):
        assert found.easy == pytest.approx(law.easy, abs=1e-6)
        assert found.hard == pytest.approx(law.hard, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([4], [[1]], [1]), "depth has shape"),
        (([4], [0], [1]), "depth must be finite and at least 1"),
        (([4], [8], [1]), "depth must be at most total"),
        (([4, 4], [1, 2], [1, math.nan]), "score must be finite"),
        (([4, 4], [2, 2], [1, 1]), "no total above 1 was tried at two depths"),
        (([], [], []), "no total above 1"),
    ],
)
def test_runs_are_checked(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        fit_depth_law(*arguments)
    with pytest.raises(ArgumentError, match="difficulty must be at most 1"):
        fit_depth_law([4, 4], [1, 2], [1, 1], difficulty=[2, 2])
    with pytest.raises(ArgumentError, match="easy must be from 0 to 1"):
        DepthLaw(1.5, 0.0)


def improve(state, n):
    return [state.answer * 0.5 + 0.5 if isinstance(state, Revision) else 0.2]


@pytest.mark.parametrize("total", [4, 9, 16, 33])
@pytest.mark.parametrize("law", [DepthLaw(1.0, 1.0), DepthLaw(0.0, 0.0), DepthLaw(0.5, 0.5)])
def test_adaptive_makes_as_many_answers_as_it_may(total, law):
    outcome = adaptive(improve, lambda xs: xs, 0, total=total, law=law, pilot=3)
    assert len(outcome.candidates) == total
    assert outcome.used.calls == 2 * total
    depth, chains = outcome.details["depth"], outcome.details["chains"]
    assert (depth, chains) == law.split(total, 1 - 1.1 / 4)
    if law.easy == 0:
        assert outcome.score == 0.2
    if law.easy == 1:
        assert outcome.score == pytest.approx(1 - 0.8 * 0.5 ** (total - 3))


def test_adaptive_goes_deep_where_it_is_easy_and_wide_where_it_is_hard():
    law = DepthLaw(easy=1.0, hard=0.0)
    depths = {}
    for score in (0.0, 0.5, 1.0):
        outcome = adaptive(lambda s, n, score=score: [score], lambda xs: xs, 0, total=32, law=law, pilot=8)
        depths[score] = outcome.details["depth"]
    assert depths[0.0] < depths[0.5] < depths[1.0]


def test_adaptive_ends_at_its_target_and_reports_odd_scores():
    number = itertools.count()

    def verifier(xs):
        k = next(number)
        return [1.5 if k == 1 else math.nan if k == 2 else x for x in xs]

    outcome = adaptive(improve, verifier, 0, total=20, law=DepthLaw(0.6, 0.6), target=0.85)
    assert outcome.stopped == "target"
    assert 0.85 <= outcome.score < 1
    assert [f.error for f in outcome.failures] == [
        "the verifier returned 1.5, not within (0.0, 1.0)", "the verifier returned nan",
    ]  # fmt: skip
    early = adaptive(lambda s, n: [1.0], lambda xs: xs, 0, total=20, law=DepthLaw(0.6, 0.6), target=1.0)
    assert len(early.candidates) == 4
    for words, changes in (
        ("pilot must be at most total", {"pilot": 30}),
        ("law must be a DepthLaw", {"law": 0.6}),
    ):
        with pytest.raises((ArgumentError, DTypeError), match=words):
            adaptive(improve, verifier, 0, **({"total": 20, "law": DepthLaw(0.6, 0.6)} | changes))


@given(calls=st.integers(0, 45), concurrency=st.integers(1, 4))
def test_calls_of_adaptive_are_never_more_than_the_budget(calls, concurrency):
    outcome = adaptive(
        improve, lambda xs: xs, 0, total=16, law=DepthLaw(0.5, 0.5), budget=Budget(calls=calls),
        policy=CallPolicy(concurrency=concurrency),
    )  # fmt: skip
    assert outcome.used.calls <= calls
    assert len(outcome.candidates) == min(16, calls // 2)
    assert all(c.score is not None for c in outcome.candidates)
