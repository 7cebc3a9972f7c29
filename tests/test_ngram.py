"""The baseline: probabilities that add up, the counts written out by hand, and text that it cannot guess."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from sensorium import ArgumentError, DTypeError
from sensorium.ngram import NGram

TEXT = np.frombuffer(b"abracadabra, abracadabra! the cat sat on the mat that the rat had." * 2, np.uint8)


def written_out(text, order):
    """The same model as dictionaries: a function of context and byte."""
    grams = Counter(tuple(text[i : i + order]) for i in range(len(text) - order + 1))
    levels = []
    for _ in range(order):
        n = [sum(1 for c in grams.values() if c == k) for k in range(5)]
        rest = n[1] / max(n[1] + 2 * n[2], 1)
        off = {k: min(max(k - (k + 1) * rest * n[k + 1] / max(n[k], 1), 0.05), k - 0.05) for k in (1, 2, 3)}
        follow = defaultdict(dict)
        for gram, count in grams.items():
            follow[gram[:-1]][gram[-1]] = count
        levels.append((follow, off))
        grams = Counter(gram[1:] for gram in grams)

    def p(context, byte):
        value = 1 / 256
        for follow, off in reversed(levels):
            length = len(next(iter(follow)))
            if length > len(context):
                break
            counts = follow.get(tuple(context[len(context) - length :]))
            if counts is None:
                continue
            total = sum(counts.values())
            given = sum(off[min(c, 3)] for c in counts.values()) / total
            mine = counts[byte] - off[min(counts[byte], 3)] if byte in counts else 0
            value = mine / total + given * value
        return value

    return p


@pytest.mark.parametrize("order", [1, 2, 3, 5, 8])
def test_as_written_out_by_hand(order):
    model = NGram(order).fit(TEXT)
    p = written_out(TEXT.tolist(), order)
    test = list(b"the abra mat zzz that cat")
    want = [-np.log2(p(test[max(0, i - order + 1) : i], byte)) for i, byte in enumerate(test)]
    np.testing.assert_allclose(model.bits(test), want, rtol=1e-12)


@pytest.mark.parametrize("context", [b"", b"a", b"the ", b"xyz"])
def test_probabilities_add_up(context):
    model = NGram(4).fit(TEXT)
    p = [2 ** -model.bits(np.array([*context, byte]))[-1] for byte in range(256)]
    assert sum(p) == pytest.approx(1)
    assert min(p) > 0


def test_longer_contexts_tell_more_where_there_is_more_to_tell():
    bits = [NGram(order).fit(TEXT[:66]).bits(TEXT[66:]).mean() for order in (1, 2, 4)]
    assert bits[0] > bits[1] + 0.5 > bits[2] + 0.6
    noise = np.random.default_rng(0).integers(0, 256, 20_000)
    assert NGram(3).fit(noise[:19_000]).bits(noise[19_000:]).mean() > 7.99
    assert NGram(3).fit(TEXT).parameters_ < NGram(5).fit(TEXT).parameters_


def test_arguments_that_cannot_be_used_are_named():
    with pytest.raises(ArgumentError, match="order must be at most 8"):
        NGram(9).fit(TEXT)
    with pytest.raises(ArgumentError, match="tokens has 2 bytes, expected at least 3"):
        NGram(3).fit(TEXT[:2])
    with pytest.raises(ArgumentError, match="tokens holds 256"):
        NGram(3).fit([256, 1, 2])
    with pytest.raises(ArgumentError, match="tokens has shape"):
        NGram(3).fit([[1, 2, 3]])
    with pytest.raises(DTypeError, match="tokens has dtype float64"):
        NGram(1).fit([0.5])
    assert NGram(3).fit(TEXT).bits([]).shape == (0,)
