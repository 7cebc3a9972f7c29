"""pass@k, majority@k and best of k against counting all subsets."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensorium.errors import ArgumentError, ShapeError
from sensorium.scaling import best_of_k, majority_at_k, pass_at_k


@given(st.integers(1, 60), st.data())
def test_pass_at_k_is_the_formula(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    want = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert pass_at_k(n, c, k).mean == pytest.approx(float(want), rel=1e-13)


def test_pass_at_k_of_very_many_tries():
    # Of a billion tries, three right, a thousand drawn: 3e-6 less what is counted twice.
    n, k = 10**9, 1000
    want = 1 - Fraction(n - k, n) * Fraction(n - k - 1, n - 1) * Fraction(n - k - 2, n - 2)
    assert pass_at_k(n, 3, k).mean == pytest.approx(float(want), rel=1e-13)
    assert pass_at_k(n, n // 2, n // 3).mean == 1.0
    assert pass_at_k(n, 20_000, 30_000).mean == pytest.approx(-math.expm1(-0.6), rel=1e-4)


def test_pass_at_k_has_no_bias_and_its_interval_covers():
    rng = np.random.default_rng(0)
    p = 0.1
    wins = rng.binomial(20, p, size=4000)
    assert abs(pass_at_k(np.full(4000, 20), wins, 5).mean - (1 - (1 - p) ** 5)) < 0.015
    naive = (1 - (1 - wins / 20) ** 5).mean()
    assert naive < 1 - (1 - p) ** 5 - 0.01
    covered = sum(
        low <= 1 - (1 - p) ** 5 <= high
        for low, high in (pass_at_k(20, int(c), 5).interval for c in wins[:300])
    )
    assert covered >= 270


def test_majority_counts_subsets():
    answers = [1, 1, 2, 2, 3, 1]
    total, count = 0.0, 0
    for chosen in itertools.combinations(answers, 3):
        votes = {a: chosen.count(a) for a in chosen}
        winners = [a for a in votes if votes[a] == max(votes.values())]
        total += (1 in winners) / len(winners)
        count += 1
    got = majority_at_k([(answers, 1)], 3, rng=np.random.default_rng(0), draws=20_000)
    assert abs(got - total / count) < 4 * 0.5 / np.sqrt(20_000)
    assert majority_at_k([([5, 5, 6], 7)], 2) == 0.0


@given(st.integers(1, 7), st.data())
def test_best_of_k_counts_subsets(n, data):
    k = data.draw(st.integers(1, n))
    scores = data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    quality = data.draw(st.lists(st.integers(-5, 5), min_size=n, max_size=n))
    total = []
    for chosen in itertools.combinations(range(n), k):
        most = max(scores[i] for i in chosen)
        best = [quality[i] for i in chosen if scores[i] == most]
        total.append(sum(best) / len(best))
    assert best_of_k(scores, quality, k) == pytest.approx(float(np.mean(total)), abs=1e-12)


def test_bad_input_is_named():
    with pytest.raises(ArgumentError, match="c must be from 0 to n"):
        pass_at_k(3, 4, 1)
    with pytest.raises(ArgumentError, match="k=5 is above the least n=3"):
        pass_at_k([4, 3], [1, 1], 5)
    with pytest.raises(ArgumentError, match="n must be integers"):
        pass_at_k(3.5, 1, 1)
    with pytest.raises(ArgumentError, match="problem 0 has 2 answers, fewer than k=3"):
        majority_at_k([([1, 2], 1)], 3)
    with pytest.raises(ShapeError, match="scores have shape"):
        best_of_k([1.0, 2.0], [1.0], 1)
    with pytest.raises(ArgumentError, match="scores and quality must be finite"):
        best_of_k([1.0, np.nan], [1.0, 1.0], 1)
