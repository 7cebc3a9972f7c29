"""A corpus holds what it says, selects by split, and names what is wrong with what it is given."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensorium.data import Corpus
from sensorium.errors import ArgumentError, DTypeError, ShapeError


def small(**changes):
    fields = {
        "texts": ["a", "b"],
        "images": np.full((3, 2, 4), 0.5, np.float32),
        "audios": [np.zeros(5, np.float32)],
        "sample_rate": 8000,
        "text_group": np.array([0, 1]),
        "image_group": np.array([0, 1, 1]),
        "audio_group": np.array([2]),
        "text_split": np.array(["train", "test"]),
        "image_split": np.array(["train", "train", "test"]),
        "audio_split": np.array(["test"]),
        "names": ("a", "b", "c"),
    }
    return Corpus(**(fields | changes))


def test_selecting_keeps_items_with_their_groups_and_names():
    train, test = small().select("train"), small().select("test")
    assert train.texts == ["a"]
    assert test.texts == ["b"]
    assert train.images.shape == (2, 2, 4)
    assert test.images.shape == (1, 2, 4)
    assert (len(train.audios), len(test.audios)) == (0, 1)
    assert train.image_group.tolist() == [0, 1]
    assert test.groups.tolist() == [1, 2]
    assert test.names == ("a", "b", "c")


def test_repr_says_what_is_there():
    assert repr(small()) == (
        "Corpus(3 groups; train: 1 text, 2 images 2x4; test: 1 text, 1 image 2x4, 1 sound at 8000 Hz)"
    )
    colour = Corpus(
        images=np.zeros((1, 2, 2, 3), np.float32),
        image_group=np.zeros(1, int),
        image_split=np.array(["train"]),
    )
    assert repr(colour) == "Corpus(1 group; train: 1 image 2x2 in colour)"
    assert repr(Corpus()) == "Corpus(0 groups)"


def test_a_corpus_cannot_be_changed():
    with pytest.raises(AttributeError):
        small().texts = []


def test_arrays_come_out_in_the_stated_types():
    corpus = small(
        images=np.full((3, 2, 4), 0.5), audios=[np.zeros(5)], text_group=[0, 1], text_split=["train", "test"]
    )
    assert corpus.images.dtype == np.float32
    assert corpus.audios[0].dtype == np.float32
    assert corpus.text_group.dtype == np.int64
    assert corpus.text_split.dtype == np.dtype("<U5")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"texts": "ab"}, DTypeError, "texts is one str, expected a list of them"),
        ({"texts": ["a", 3]}, DTypeError, r"texts\[1\] is of type int, expected str"),
        ({"texts": ["a"]}, ShapeError, r"text_group has shape \(2,\), expected \(1,\) as there are 1 texts"),
        (
            {"images": np.zeros((3, 4), np.float32)},
            ShapeError,
            r"images has shape \(3, 4\), expected \(n, H, W\)",
        ),
        (
            {"images": np.zeros((3, 4, 4, 4), np.float32)},
            ShapeError,
            r"expected \(n, H, W\) or \(n, H, W, 3\)",
        ),
        ({"images": np.zeros((3, 0, 4), np.float32)}, ShapeError, "expected H and W of at least 1"),
        ({"images": np.zeros((3, 2, 4), np.uint8)}, DTypeError, "images has dtype uint8"),
        ({"images": np.full((3, 2, 4), 1.5)}, ArgumentError, "images holds 1.5, expected values from 0 to 1"),
        ({"images": np.full((3, 2, 4), np.nan)}, ArgumentError, "images holds nan"),
        (
            {"audios": [np.zeros(0)]},
            ShapeError,
            r"audios\[0\] has shape \(0,\), expected \(samples,\) with at",
        ),
        ({"audios": [np.zeros((1, 5))]}, ShapeError, r"audios\[0\] has shape \(1, 5\)"),
        (
            {"audios": [np.array([0.0, -2])]},
            ArgumentError,
            r"audios\[0\] holds -2, expected values from -1 to 1",
        ),
        ({"audios": [np.array([0.0, np.inf])]}, ArgumentError, r"audios\[0\] holds inf"),
        ({"audios": [np.zeros(5, np.int16)]}, DTypeError, r"audios\[0\] has dtype int16"),
        ({"sample_rate": 0}, ArgumentError, "sample_rate must be above 0, not 0"),
        ({"sample_rate": 8e3}, DTypeError, "sample_rate is of type float, expected int"),
        ({"image_group": np.array([0, 1])}, ShapeError, r"image_group has shape \(2,\), expected \(3,\)"),
        (
            {"image_group": np.zeros((3, 1), int)},
            ShapeError,
            r"image_group has shape \(3, 1\), expected \(3,\)",
        ),
        ({"image_group": np.array([0, 1, -1])}, ArgumentError, "image_group holds -1, expected 0 or above"),
        ({"audio_group": np.array([0.5])}, DTypeError, "audio_group has dtype float64, expected integers"),
        ({"audio_group": np.array([3])}, ArgumentError, "names has 3 entries but audio_group holds 3"),
        (
            {"text_split": np.array(["train", "dev"])},
            ArgumentError,
            "text_split holds 'dev', expected 'train'",
        ),
        ({"text_split": np.array(["train", "testing"])}, ArgumentError, "text_split holds 'testing'"),
        ({"text_split": np.array([0, 1])}, DTypeError, "text_split has dtype int64, expected str"),
        (
            {"audio_split": np.array(["test"] * 2)},
            ShapeError,
            r"audio_split has shape \(2,\), expected \(1,\)",
        ),
    ],
)
def test_errors_name_the_argument(changes, error, words):
    with pytest.raises(error, match=words):
        small(**changes)


def test_selecting_by_another_word_is_an_error():
    with pytest.raises(ArgumentError, match="split must be 'train' or 'test', not 'dev'"):
        small().select("dev")


def test_groups_of_one_name_become_one():
    merged = small(names=("b", "a", "b")).merge_names()
    assert merged.names == ("b", "a")
    assert merged.text_group.tolist() == [0, 1]
    assert merged.image_group.tolist() == [0, 1, 1]
    assert merged.audio_group.tolist() == [0]
    assert merged.texts == small().texts
    assert merged.sample_rate == 8000
    with pytest.raises(ArgumentError, match="names is None"):
        small(names=None).merge_names()


SPLITS = st.lists(st.sampled_from(["train", "test"]), max_size=12).map(lambda drawn: np.array(drawn, "<U5"))


@given(SPLITS, SPLITS, SPLITS, st.integers(0, 2**32 - 1))
def test_the_two_splits_are_the_corpus(text_split, image_split, audio_split, seed):
    rng = np.random.default_rng(seed)
    texts = [f"text {index}" for index in range(len(text_split))]
    images = rng.random((len(image_split), 3, 2), dtype=np.float32)
    audios = [rng.random(rng.integers(1, 9), dtype=np.float32) for _ in audio_split]
    groups = [rng.integers(0, 1000, len(split)) for split in (text_split, image_split, audio_split)]
    corpus = Corpus(
        texts=texts,
        images=images,
        audios=audios,
        text_group=groups[0],
        image_group=groups[1],
        audio_group=groups[2],
        text_split=text_split,
        image_split=image_split,
        audio_split=audio_split,
    )
    for split in ("train", "test"):
        part = corpus.select(split)
        for modality, which, group in zip(
            ("text", "image", "audio"), (text_split, image_split, audio_split), groups, strict=True
        ):
            assert np.array_equal(getattr(part, f"{modality}_group"), group[which == split])
            assert np.array_equal(getattr(part, f"{modality}_split"), which[which == split])
        assert part.texts == [text for text, which in zip(texts, text_split, strict=True) if which == split]
        assert np.array_equal(part.images, images[image_split == split])
        kept = [audio for audio, which in zip(audios, audio_split, strict=True) if which == split]
        assert all(np.array_equal(a, b) for a, b in zip(part.audios, kept, strict=True))
