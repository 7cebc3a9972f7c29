"""Rows of several senses: what is tied to what, what is held out, and the way back to items."""

import json

import numpy as np
import pytest
import soundfile
from PIL import Image
from sensorium.data import digits, load_manifest
from sensorium.data.corpus import Corpus
from sensorium.data.multimodal import Encoding, Rows, corrupt, digit_rows, pair
from sensorium.errors import ArgumentError, DTypeError, ShapeError
from sensorium.judge import Judge
from sensorium.tokenizers._logmel import LogMel


@pytest.fixture(scope="module")
def corpus():
    return digits(seed=3)


@pytest.fixture(scope="module")
def trio():
    return digit_rows(seed=3, copies=2)


def keys(arrays):
    return {array.tobytes() for array in arrays}


# --- the digits -------------------------------------------------------------------------------------------


def test_rows_say_one_digit(trio, corpus):
    train, test, encoding = trio
    for rows in (train, test):
        assert all(mask.all() for mask in rows.present.values())
        assert encoding.decode("text", rows.values["text"]) == [rows.names[g] for g in rows.group]
        of = {image.tobytes(): g for image, g in zip(corpus.images, corpus.image_group, strict=True)}
        assert [of[image.tobytes()] for image in rows.values["image"]] == rows.group.tolist()
        heard = encoding.encode("audio", corpus.audios)
        of = {sound.tobytes(): g for sound, g in zip(heard, corpus.audio_group, strict=True)}
        assert [of[sound.tobytes()] for sound in rows.values["audio"]] == rows.group.tolist()


def test_pictures_and_voices_are_held_out(trio, corpus):
    train, test, encoding = trio
    for name, items, split in (
        ("image", corpus.images, corpus.image_split),
        ("audio", encoding.encode("audio", corpus.audios), corpus.audio_split),
    ):
        assert keys(train.values[name]) == keys(items[split == "train"])
        assert keys(test.values[name]) == keys(items[split == "test"])
        assert not keys(train.values[name]) & keys(test.values[name])


def test_items_come_about_equally_often_beside_different_partners(trio):
    train, _, _ = trio
    images = [image.tobytes() for image in train.values["image"]]
    sounds = [sound.tobytes() for sound in train.values["audio"]]
    for items in (images, sounds):
        for group in range(10):
            of = [items[i] for i in np.flatnonzero(train.group == group)]
            counts = np.unique(np.array([hash(item) for item in of]), return_counts=True)[1]
            assert counts.max() - counts.min() <= 1
    assert len(set(zip(images, sounds, strict=True))) > 0.95 * len(train)


def test_a_seed_gives_the_same_rows(trio, corpus):
    _, _, encoding = trio
    test = corpus.select("test")
    first, again, other = (pair(test, encoding, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(first.values[name], again.values[name]) for name in first.values)
    assert not np.array_equal(first.values["audio"], other.values["audio"])


def test_sounds_are_standardised(trio):
    heard = trio[2].encode("audio", digits(seed=3).select("train").audios).astype(np.float64)
    assert np.abs(heard.mean(axis=(0, 1))).max() < 1e-4
    assert abs(np.sqrt(np.mean(heard**2)) - 1) < 1e-4


def test_what_was_encoded_is_still_understood(trio, corpus):
    """The way through arrays and back costs a judge of real sounds next to nothing."""
    encoding = trio[2]
    test = corpus.select("test")
    train = corpus.select("train")
    judge = Judge().fit(Corpus(
        audios=train.audios[::2], audio_group=train.audio_group[::2], audio_split=train.audio_split[::2],
        names=corpus.names,
    ))  # fmt: skip
    audios, groups = test.audios[::4], test.audio_group[::4]
    back = encoding.decode("audio", encoding.encode("audio", audios), iterations=8)
    real = np.mean(judge.audio(audios, test.sample_rate) == groups)
    assert np.mean(judge.audio(back, test.sample_rate) == groups) > real - 0.05


# --- a manifest -------------------------------------------------------------------------------------------


def test_a_manifest_with_rows_that_lack_something(tmp_path):
    rng = np.random.default_rng(0)
    lines = []
    for i, has in enumerate(["ita", "ta", "it", "ia", "t", "ita"]):
        Image.fromarray(rng.integers(0, 256, (4, 6), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        soundfile.write(tmp_path / f"{i}.wav", rng.uniform(-0.5, 0.5, 1600), 8000)
        row = {"i": ("image", f"{i}.png"), "t": ("text", "ab"[i % 2]), "a": ("audio", f"{i}.wav")}
        lines.append(json.dumps(dict(row[letter] for letter in has)))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    corpus, problems = load_manifest(tmp_path / "rows.jsonl", image_size=(4, 6))
    assert not problems
    encoding = Encoding.fit(corpus, bands=8, frames=5)
    rows = pair(corpus, encoding, copies=9)
    assert rows.present["image"].tolist() == [True, False, True, True, False, True]
    assert rows.present["audio"].tolist() == [True, True, False, True, False, True]
    assert rows.present["text"].tolist() == [True, True, True, False, True, True]
    np.testing.assert_array_equal(rows.values["image"][2], corpus.images[1])
    assert [rows.names[g] for g in rows.group] == ["a", "b", "a", "line 4", "a", "b"]
    assert len(rows.complete()) == 2
    seen = rows.given(["image"])
    assert not seen.present["text"].any()
    assert seen.present["image"].tolist() == rows.present["image"].tolist()


def test_colour_and_texts_alone():
    images = np.random.default_rng(0).uniform(size=(3, 4, 5, 3)).astype(np.float32)
    corpus = Corpus(images=images, image_group=np.arange(3), image_split=np.full(3, "train"))
    encoding = Encoding.fit(corpus)
    assert encoding.shapes == {"image": (4, 5, 3)}
    np.testing.assert_array_equal(
        np.stack(encoding.decode("image", encoding.encode("image", images))), images
    )
    texts = Corpus(texts=["x", "yy"], text_group=np.arange(2), text_split=np.full(2, "train"))
    assert len(pair(texts, Encoding.fit(texts))) == 2
    with pytest.raises(ArgumentError, match="corpus has no image"):
        pair(texts, encoding)


# --- encodings --------------------------------------------------------------------------------------------


def test_an_encoding_survives_json(trio):
    encoding = trio[2]
    again = Encoding.from_json(json.loads(json.dumps(encoding.to_json())))
    assert again.shapes == encoding.shapes
    sound = [0.3 * np.sin(np.arange(3000, dtype=np.float32))]
    np.testing.assert_array_equal(again.encode("audio", sound), encoding.encode("audio", sound))
    assert again.decode("text", again.encode("text", ["zero", "six"])) == ["zero", "six"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"image": [8]}, "image has shape"),
        ({"image": [8, -1]}, "image must be at least 1"),
        ({"audio": {"sample_rate": 8000}}, "encoding cannot be used: 'mean'"),
        (
            {"audio": {"mean": [0.0], "scale": 0.0, "sample_rate": 8000, "frames": 3, "bands": 1, "hop": 64}},
            "scale",
        ),
        ({"text": {"characters": "ab"}}, "config lacks 'length'"),
        ({}, "at least one of"),
    ],
)
def test_a_damaged_encoding_is_refused(damage, words):
    with pytest.raises(ArgumentError, match=words):
        Encoding.from_json(damage)


def test_what_an_encoding_refuses(trio):
    encoding = trio[2]
    with pytest.raises(ArgumentError, match="modality must be one of image, audio, text, not 'video'"):
        encoding.encode("video", [])
    with pytest.raises(ShapeError, match=r"image has shape \(8, 9\), expected \(8, 8\)"):
        encoding.encode("image", np.zeros((1, 8, 9)))
    with pytest.raises(ArgumentError, match="not finite"):
        encoding.encode("image", np.full((1, 8, 8), np.nan))
    with pytest.raises(ShapeError, match="arrays has shape"):
        encoding.decode("text", np.zeros((1, 2, 3)))
    with pytest.raises(ArgumentError, match="not finite"):
        encoding.decode("audio", np.full((1, 24, 32), np.inf))
    long = Corpus(texts=["x" * 65], text_group=np.zeros(1, int), text_split=np.array(["train"]))
    with pytest.raises(ArgumentError, match="text of 65 characters"):
        Encoding.fit(long)
    with pytest.raises(ArgumentError, match="no training items"):
        Encoding.fit(Corpus())


def test_extreme_values_of_a_model_become_sounds(trio):
    loud = trio[2].decode("audio", np.full((1, 24, 32), 1e30, np.float32))[0]
    assert np.isfinite(loud).all()
    assert np.abs(loud).max() <= 1
    assert len(trio[2].encode("image", [])) == 0


def test_frames_hold_the_longest_sound():
    mel = LogMel(8000, frames=6, bands=8, hop=32)
    assert mel.samples == 384
    with pytest.raises(ShapeError, match="logmel has shape"):
        mel.decode(np.zeros((1, 5, 8), np.float32))
    with pytest.raises(ArgumentError, match="hop must be even"):
        LogMel(8000, frames=6, hop=33)


# --- rows -------------------------------------------------------------------------------------------------


def test_rows_check_themselves():
    image, there = np.zeros((2, 4, 4), np.float32), np.ones(2, bool)
    with pytest.raises(ArgumentError, match="present has no modality, expected those of values: image"):
        Rows({"image": image}, {})
    with pytest.raises(ShapeError, match="text has 3 rows but image has 2"):
        Rows(
            {"image": image, "text": np.zeros((3, 1), np.float32)}, {"image": there, "text": np.ones(3, bool)}
        )
    with pytest.raises(DTypeError, match="present of image"):
        Rows({"image": image}, {"image": np.ones(2)})
    with pytest.raises(ShapeError, match="group has shape"):
        Rows({"image": image}, {"image": there}, np.zeros(3, np.int64))
    with pytest.raises(ArgumentError, match="'smell', expected some of image"):
        Rows({"image": image}, {"image": there}).given(["smell"])


# --- lies -------------------------------------------------------------------------------------------------


def test_the_item_of_another_group(trio):
    test = trio[1]
    for name in test.modalities:
        lie = corrupt(test, name, "other", seed=5)
        known = {item.tobytes(): g for item, g in zip(test.values[name], test.group, strict=True)}
        said = np.array([known[item.tobytes()] for item in lie.values[name]])
        assert (said != test.group).all()
        for other in test.modalities:
            if other != name:
                assert lie.values[other] is test.values[other]


def test_noise_has_the_values_of_real_items_and_no_more(trio):
    test = trio[1]
    noise = corrupt(test, "image", "noise", seed=5).values["image"]
    assert noise.shape == test.values["image"].shape
    for at in ((0, 0), (3, 4), (7, 2)):
        assert set(noise[:, *at]) <= set(test.values["image"][:, *at])
    varied = test.values["image"].reshape(len(noise), -1).std(axis=0) > 0.1
    together, apart = (
        np.corrcoef(images.reshape(len(noise), -1)[:, varied].T) for images in (test.values["image"], noise)
    )
    off = ~np.eye(len(together), dtype=bool)
    assert np.abs(apart[off]).mean() < 0.4 * np.abs(together[off]).mean()
    letters = corrupt(test, "text", "noise", seed=5).values["text"]
    assert (letters.sum(axis=2) == 1).all()


def test_what_cannot_lie(trio):
    test = trio[1]
    with pytest.raises(ArgumentError, match="modality must be one of"):
        corrupt(test, "smell", "noise")
    with pytest.raises(ArgumentError, match="how must be 'noise' or 'other', not 'loud'"):
        corrupt(test, "image", "loud")
    with pytest.raises(ArgumentError, match="one group alone"):
        corrupt(test.take(np.flatnonzero(test.group == 1)), "audio", "other")
