"""Texts: every byte is in one of two parts, no paragraph twice, and ink is where it was."""

import numpy as np
import pytest
from sensorium import ArgumentError
from sensorium.data.texts import INK, load_help_topics, load_written_digits


def paragraphs(data):
    return [p for p in data.tobytes().decode().split("\n\n") if p.strip()]


def test_parts_do_not_share_a_paragraph():
    train, test = load_help_topics(seed=1)
    whole = load_help_topics(held_out=0)
    assert len(whole.test) == 0
    assert len(train) + len(test) == len(whole.train)
    assert 0.1 <= len(test) / len(whole.train) < 0.16
    assert train.dtype == test.dtype == np.uint8
    a, b = paragraphs(train), paragraphs(test)
    assert len(set(a)) == len(a)
    assert not set(a) & set(b)
    assert sorted(a + b) == sorted(paragraphs(whole.train))


def test_a_seed_is_a_choice_of_pages():
    first, again, other = (load_help_topics(seed=seed).test.tobytes() for seed in (1, 1, 2))
    assert first == again != other
    with pytest.raises(ArgumentError, match="held_out must be from 0 to"):
        load_help_topics(held_out=0.9)
    with pytest.raises(ArgumentError, match="seed must be at least 0"):
        load_help_topics(seed=-1)


def test_written_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    want = sorted((int(label), tuple(image.astype(int))) for image, label in zip(pixels, labels, strict=True))
    read = []
    for data in load_written_digits(seed=3):
        for page in data.tobytes().decode().split("\n\n")[:-1]:
            name, *lines = page.split("\n")
            assert [len(line) for line in lines] == [8] * 8
            read.append((int(name), tuple(INK.index(c) for line in lines for c in line)))
    assert sorted(read) == want
    assert load_written_digits(seed=3).test.tobytes() != load_written_digits(seed=4).test.tobytes()
