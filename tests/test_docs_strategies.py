"""The page on strategies: its examples run and do what it says."""

import re
from pathlib import Path

import numpy as np
from sensorium.search import overturn_probability

PAGE = (Path(__file__).parent.parent / "docs" / "strategies.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_does_what_it_says():
    names = {}
    for block in BLOCKS:
        exec(block, names)
    outcome = names["outcome"]
    assert (len(outcome.candidates), outcome.used.calls, outcome.stopped) == (20, 40, "budget")
    assert [entry.replayed for entry in names["more"].budget.ledger].count(True) == 8
    assert len(names["more"].candidates) == 8
    assert "best_of_n" in names["page"]
    assert names["word"] == "seal"
    assert names["rounds"] == 5
    assert f"solve {names['even']:.2f} of them" in PAGE
    assert f"here {names['spent'].score:.2f}" in PAGE


def test_early_stopping_takes_what_the_page_says():
    rng, used, searches = np.random.default_rng(0), 0, 400
    for _ in range(searches):
        votes, counts = rng.random(21) < rng.random(), [0, 0]
        for k, vote in enumerate(votes, 1):
            counts[int(vote)] += 1
            if overturn_probability([c for c in counts if c], 21 - k) <= 0.1:
                break
        used += k
    assert round(used / searches) == int(re.search(r"takes (\d+) of 21 votes", PAGE).group(1))
