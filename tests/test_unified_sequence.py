"""Packed rows: what stands where, what sees what, what is predicted."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensorium.errors import ArgumentError
from sensorium.models.unified import Modality, Row, Vocabulary, fill_row
from sensorium.models.unified.sequence import mask_counts

TEXT = Modality("text", "autoregressive", codes=5, length=3, pad=4)
IMAGE = Modality("image", "diffusion", codes=7, length=2)
VOCABULARY = Vocabulary((TEXT, IMAGE))


def test_token_numbers_do_not_overlap():
    assert VOCABULARY.offset == {"text": 0, "image": 6}
    assert VOCABULARY.special("text") == 5
    assert VOCABULARY.special("image") == 13
    assert VOCABULARY.size == 14
    assert VOCABULARY.positions == 4 + 2


def test_layout_against_a_mask_written_by_hand():
    row = Row(VOCABULARY, (("image", "text"), ("image",)))
    seen = [
        "11......",
        "11......",
        "111.....",
        "1111....",
        "11111...",
        "111111..",
        "......11",
        "......11",
    ]
    want = np.array([[c == "1" for c in line] for line in seen])
    np.testing.assert_array_equal(row.layout.dense(), want)


def test_targets_in_a_tuple_see_the_sources_alone():
    audio = Modality("audio", "diffusion", 3, 1)
    row = Row(Vocabulary((TEXT, IMAGE, audio)), (("image", ("text", "audio")), ("audio", "text")))
    seen = [
        "11..........",
        "11..........",
        "111.........",
        "1111........",
        "11111.......",
        "111111......",
        "11....1.....",
        ".......1....",
        ".......11...",
        ".......111..",
        ".......1111.",
        ".......11111",
    ]
    np.testing.assert_array_equal(row.layout.dense(), [[c == "1" for c in line] for line in seen])
    np.testing.assert_array_equal(row.predicted["text"], [2, 3, 4, 8, 9, 10])
    np.testing.assert_array_equal(row.predicted["audio"], [6])


def test_what_is_predicted():
    row = Row(VOCABULARY, (("image", "text"), ("text", "image")))
    # A causal column predicts the code after it; the last has none. A text that leads is a source.
    np.testing.assert_array_equal(row.predicted["text"], [2, 3, 4])
    np.testing.assert_array_equal(row.predicted["image"], [10, 11])
    np.testing.assert_array_equal(row.position, [4, 5, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(row.modality, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1])


def test_words_between_are_learnt_too():
    row = Row(Vocabulary((TEXT, IMAGE, Modality("audio", "diffusion", 3, 1))), (("image", "text", "audio"),))
    np.testing.assert_array_equal(row.predicted["text"], [2, 3, 4])
    np.testing.assert_array_equal(row.predicted["audio"], [6])


def test_filling_a_causal_target():
    row = Row(VOCABULARY, (("image", "text"),))
    batch = fill_row(row, [np.array([[0, 6]]), np.array([[2, 4, 4]])])
    np.testing.assert_array_equal(batch.tokens, [[6, 12, 5, 2, 4, 4]])
    np.testing.assert_array_equal(batch.targets["text"], [[2, 4, 4]])
    np.testing.assert_array_equal(batch.weights["text"], [[1, 1, 0]])  # the pad that ends it counts, once


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_filling_a_diffusion_target(rows, seed):
    rng = np.random.default_rng(seed)
    row = Row(VOCABULARY, (("text", "image"),))
    text, image = rng.integers(0, 5, (rows, 3)), rng.integers(0, 7, (rows, 2))
    batch = fill_row(row, [text, image], rng)
    masked = batch.tokens[:, 4:] == VOCABULARY.special("image")
    assert (masked.sum(axis=1) >= 1).all()
    np.testing.assert_array_equal(batch.weights["image"], masked)
    np.testing.assert_array_equal(batch.tokens[:, 4:][~masked], (image + 6)[~masked])
    np.testing.assert_array_equal(batch.targets["image"], image)
    np.testing.assert_array_equal(batch.tokens[:, 1:4], text)


def test_mask_counts_follow_the_cosine():
    counts = mask_counts(np.random.default_rng(0), 20_000, 1000)
    assert counts.min() >= 1
    assert counts.max() <= 1000
    # The mean of cos(pi u / 2) is 2 / pi, its standard deviation 0.31; stratified draws come closer still.
    assert abs(counts.mean() / 1000 - 2 / np.pi) < 4 * 0.31 / np.sqrt(20_000)


def test_mask_counts_keep_to_the_least():
    assert mask_counts(np.random.default_rng(0), 1000, 10, 0.5).min() == 5


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ((("image", "sound"),), r"tasks\[0\] names 'sound', expected one of \['text', 'image'\]"),
        ((("image",), ()), r"tasks\[1\] must end in one or more different targets"),
        ((("text", ("image", "image")),), r"tasks\[0\] must end in one or more different targets"),
    ],
)
def test_wrong_tasks(tasks, words):
    with pytest.raises(ArgumentError, match=words):
        Row(VOCABULARY, tasks)


def test_wrong_modalities():
    with pytest.raises(
        ArgumentError, match="kind of text must be one of autoregressive, diffusion, readout, not 'flow'"
    ):
        Modality("text", "flow", 3, 3)
    with pytest.raises(ArgumentError, match="image has codes=0, length=2; both must be above 0"):
        Modality("image", "diffusion", 0, 2)
    with pytest.raises(ArgumentError, match="different names"):
        Vocabulary((TEXT, TEXT))
