"""Judges know real items that they never saw, even through a vocoder; measures of variety measure it."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import resample_poly
from scipy.stats import binom
from sensorium.data import Corpus, digits
from sensorium.errors import ArgumentError, DTypeError, ShapeError
from sensorium.judge import (
    Judge,
    audio_features,
    distinct_share,
    image_features,
    nearest_neighbour_distance,
    wilson,
)

RATE = 8000


@pytest.fixture(scope="module")
def corpus():
    return digits()


@pytest.fixture(scope="module")
def test(corpus):
    return corpus.select("test")


@pytest.fixture(scope="module")
def judge(corpus):
    return Judge().fit(corpus)


def heard(judge, test, change, rate=RATE):
    """Share of held-out sounds that are still recognised after a change."""
    return np.mean(judge.audio([change(audio) for audio in test.audios], rate) == test.audio_group)


def test_real_items_held_out_are_recognised(judge, corpus, test):
    figures = judge.score(corpus)
    assert figures["image"] >= 0.98
    assert figures["audio"] >= 0.98
    assert figures["image"] == np.mean(judge.image(test.images) == test.image_group)
    for name in ("image", "audio"):
        assert figures[f"{name}_low"] < figures[name] < figures[f"{name}_high"]
    assert (figures["image_count"], figures["audio_count"]) == (359, 340)
    assert judge.image(test.images).dtype == judge.audio(test.audios, RATE).dtype == np.int64


def test_the_28x28_images_are_recognised():
    large = digits("mnist")
    images = Corpus(
        images=large.images, image_group=large.image_group, image_split=large.image_split, names=large.names
    )
    figures = Judge().fit(images).score(images)
    assert figures["image"] >= 0.98
    assert "audio" not in figures


def vocoder(rng, iterations, window=256, hop=64, bands=40):
    """A codec that keeps only 40 mel energies of each frame; Griffin and Lim (1984) find a phase for them."""
    shape = np.hanning(window)
    low, high = 2595 * np.log10(1 + np.array([40, 3950]) / 700)
    edges = 700 * (10 ** (np.linspace(low, high, bands + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(window, 1 / RATE)
    bank = np.stack([np.interp(bins, edges[band : band + 3], [0, 1, 0]) for band in range(bands)])
    inverse = np.linalg.pinv(bank)

    def analyse(sound):
        padded = np.pad(sound, window // 2)
        return np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * shape)

    def synthesise(spectrum):
        frames = np.fft.irfft(spectrum, window) * shape
        sound, weight = np.zeros((2, hop * (len(frames) - 1) + window))
        for index, frame in enumerate(frames):
            sound[index * hop : index * hop + window] += frame
            weight[index * hop : index * hop + window] += shape**2
        return (sound / np.maximum(weight, 1e-3))[window // 2 : -(window // 2)]

    def round_trip(sound):
        energies = np.abs(analyse(sound)) ** 2 @ bank.T
        magnitude = np.sqrt(np.maximum(energies @ inverse.T, 0))
        spectrum = magnitude * np.exp(2j * np.pi * rng.random(magnitude.shape))
        for _ in range(iterations):
            phase = analyse(synthesise(spectrum))
            spectrum = magnitude * phase / np.maximum(np.abs(phase), 1e-9)
        return synthesise(spectrum)

    return round_trip


@pytest.mark.parametrize("iterations", [0, 16])
def test_a_vocoder_leaves_words_recognisable(judge, test, iterations):
    assert heard(judge, test, vocoder(np.random.default_rng(0), iterations)) >= 0.98


def test_the_vocoder_is_not_the_identity(test):
    sound = test.audios[0]
    after = vocoder(np.random.default_rng(0), 16)(sound)
    assert np.corrcoef(sound[: len(after)], after[: len(sound)])[0, 1] < 0.5


def test_silence_around_and_noise_under_a_word_do_not_matter(judge, test):
    rng = np.random.default_rng(0)
    assert (
        heard(judge, test, lambda a: np.concatenate([np.zeros(700), a, 1e-3 * rng.normal(size=2500)])) >= 0.98
    )
    assert heard(judge, test, lambda a: a + 0.002 * rng.normal(size=a.shape)) >= 0.98


def test_another_sample_rate_does_not_matter(judge, test):
    assert heard(judge, test, lambda a: resample_poly(a, 2, 1), rate=2 * RATE) >= 0.98
    assert heard(judge, test, lambda a: resample_poly(a, 441, 160), rate=22050) >= 0.98


@given(st.floats(-200, 200).map(lambda exponent: 10.0**exponent))
def test_loudness_does_not_matter(factor):
    sound = np.sin(np.arange(3000) ** 1.3) * np.hanning(3000)
    assert np.allclose(audio_features([sound], RATE), audio_features([sound * factor], RATE), atol=1e-6)


def test_noise_is_not_mistaken_for_any_digit_in_particular_by_chance_alone(judge):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(10), 40)
    images = rng.random((400, 8, 8)).astype(np.float32)
    audios = [0.1 * rng.normal(size=3000) for _ in groups]
    assert np.mean(judge.image(images) == groups) < 0.2
    assert np.mean(judge.audio(audios, RATE) == groups) < 0.2


def test_held_out_items_are_not_looked_at(judge, corpus, test):
    changed = Corpus(
        images=np.where((corpus.image_split == "test")[:, None, None], 1 - corpus.images, corpus.images),
        image_group=np.where(corpus.image_split == "test", 0, corpus.image_group),
        image_split=corpus.image_split,
        audios=[
            audio[::-1] if split == "test" else audio
            for audio, split in zip(corpus.audios, corpus.audio_split, strict=True)
        ],
        audio_group=np.where(corpus.audio_split == "test", 0, corpus.audio_group),
        audio_split=corpus.audio_split,
    )
    other = Judge().fit(changed)
    assert np.array_equal(other.image(test.images), judge.image(test.images))
    assert np.array_equal(other.audio(test.audios, RATE), judge.audio(test.audios, RATE))


def striped(rng, count, groups):
    """Images whose stripes run down in even groups and across in odd ones, with noise."""
    stripes = np.tile(np.arange(12) % 4 < 2, (12, 1))
    images = np.stack([stripes if group % 2 else stripes.T for group in groups]).astype(np.float64)
    return np.clip(images + 0.3 * rng.normal(size=(count, 12, 12)), 0, 1).astype(np.float32)


def test_groups_need_not_be_consecutive_and_colour_is_seen():
    rng = np.random.default_rng(0)
    groups = rng.choice([7, 1_000_000], 60)
    images = np.repeat(striped(rng, 60, groups)[..., None], 3, axis=3)
    split = np.where(np.arange(60) < 40, "train", "test")
    corpus = Corpus(images=images, image_group=groups, image_split=split)
    assert Judge().fit(corpus).score(corpus)["image"] == 1.0


def test_rows_of_one_label_are_judged_once_merged():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 2, 260)
    corpus = Corpus(
        images=striped(rng, 260, groups),
        image_group=np.arange(260),
        image_split=np.where(np.arange(260) < 220, "train", "test"),
        names=[("down", "across")[group] for group in groups],
    )
    with pytest.raises(
        ArgumentError, match=r"training images of 220 groups, more than 200: merge .*merge_names"
    ):
        Judge().fit(corpus)
    merged = corpus.merge_names()
    assert Judge().fit(merged).score(merged)["image"] == 1.0


def test_many_items_are_drawn_from_by_the_seed():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 2, 10_500)
    images = striped(rng, 10_500, groups)[:, :4, :4]
    corpus = Corpus(images=images, image_group=groups, image_split=np.full(10_500, "train"))
    probe = rng.random((200, 4, 4)).astype(np.float32)
    first, same, other = (Judge(seed=seed).fit(corpus).image(probe) for seed in (0, 0, 1))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_silence_and_clicks_are_judged_without_complaint(judge):
    sounds = [
        np.zeros(4000),
        np.zeros(1),
        np.ones(1),
        np.full(5, 1e-30),
        np.r_[np.zeros(500), 1, np.zeros(500)],
    ]
    assert judge.audio(sounds, RATE).shape == (5,)
    assert np.array_equal(audio_features([np.zeros(400)], RATE), np.zeros((1, 480)))
    assert judge.audio([], RATE).shape == (0,)
    assert judge.image(np.zeros((0, 8, 8), np.float32)).shape == (0,)


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_images_of_any_size_have_finite_features(height, width, seed):
    images = np.random.default_rng(seed).random((2, height, width))
    features = image_features(images)
    assert np.isfinite(features).all()
    pixels = features[:, : min(height, 10) * min(width, 10)]
    assert np.allclose(pixels.mean(axis=1), images.mean(axis=(1, 2)))  # averaging down keeps the mean


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda judge: judge.image(np.zeros((1, 9, 8), np.float32)), ShapeError, r"expected \(n, 8, 8\)"),
        (
            lambda judge: judge.image(np.full((1, 8, 8), np.nan)),
            ArgumentError,
            "images holds values that are not",
        ),
        (lambda judge: judge.audio([np.zeros(0)], RATE), ShapeError, r"audios\[0\] has shape \(0,\)"),
        (
            lambda judge: judge.audio([np.zeros(9), np.full(9, np.inf)], RATE),
            ArgumentError,
            r"audios\[1\] holds",
        ),
        (
            lambda judge: judge.audio([np.zeros(9, np.int16)], RATE),
            DTypeError,
            r"audios\[0\] has dtype int16",
        ),
        (lambda judge: judge.audio([np.zeros(9)], 0), ArgumentError, "sample_rate must be above 0, not 0"),
        (
            lambda judge: Judge().image(np.zeros((1, 8, 8))),
            ArgumentError,
            "this judge was not fitted on images",
        ),
        (
            lambda judge: Judge().audio([np.zeros(9)], RATE),
            ArgumentError,
            "this judge was not fitted on sounds",
        ),
        (
            lambda judge: Judge().fit(Corpus()),
            ArgumentError,
            "neither training images nor training sounds of at",
        ),
        (
            lambda judge: image_features(np.zeros((1, 8))),
            ShapeError,
            r"images has shape \(1, 8\), expected \(n, H",
        ),
    ],
)
def test_errors_name_the_argument(judge, call, error, words):
    with pytest.raises(error, match=words):
        call(judge)


def test_a_judge_of_one_modality_scores_that_one(corpus, judge):
    sounds = Corpus(
        audios=corpus.audios[:40], audio_group=corpus.audio_group[:40], audio_split=np.full(40, "train")
    )
    assert Judge().fit(sounds).score(sounds) == {}  # nothing is held out
    assert Judge().score(corpus) == {}
    assert set(judge.score(sounds)) == set()


@given(st.integers(0, 400), st.integers(0, 400), st.floats(0.5, 0.999))
def test_wilson_bounds_are_where_the_score_test_turns(successes, more, confidence):
    trials = successes + more
    low, high = wilson(successes, trials, confidence=confidence)
    assert 0 <= low <= high <= 1
    if trials == 0:
        assert (low, high) == (0, 1)
        return
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / trials
    for bound in (low, high):
        if 0 < bound < 1:  # |share - bound| is z standard errors of a share that is truly at the bound
            assert abs(share - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / trials), abs=1e-9)
    assert (low == 0) == (successes == 0)
    assert (high == 1) == (more == 0)
    mirrored = wilson(more, trials, confidence=confidence)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_holds_the_true_share_as_often_as_it_says():
    trials, shares = 100, (np.arange(1000) + 0.5) / 1000
    low, high = np.array([wilson(count, trials) for count in range(trials + 1)]).T[:, :, None]
    chances = binom.pmf(np.arange(trials + 1)[:, None], trials, shares)  # of each count under each share
    coverage = np.sum(chances * ((low <= shares) & (shares <= high)), axis=0)
    assert coverage.mean() == pytest.approx(0.95, abs=0.01)
    assert coverage.min() > 0.8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"successes": 3, "trials": 2}, "successes must be from 0 to trials=2, not 3"),
        ({"successes": -1, "trials": 2}, "successes must be from 0 to trials=2, not -1"),
        ({"successes": 1, "trials": 2, "confidence": 1}, "confidence must be above 0 and below 1, not 1"),
    ],
)
def test_wilson_errors(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        wilson(**arguments)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_nearest_neighbour_distances(samples, train, width, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(samples, width, 2)), rng.normal(size=(train, width, 2))
    figures = nearest_neighbour_distance(a, b, held_out=b)
    brute = [min(math.sqrt(np.mean((x - y) ** 2)) for y in b) for x in a]
    assert figures["median"] == pytest.approx(np.median(brute))
    assert figures["q05"] == pytest.approx(np.quantile(brute, 0.05))
    assert figures["q05"] <= figures["q25"] <= figures["median"] <= figures["q75"] <= figures["q95"]
    assert figures["held_out_median"] == 0  # copies lie on their originals


def test_copies_are_nearer_than_real_held_out_images(corpus, test):
    train = corpus.select("train")
    figures = nearest_neighbour_distance(train.images[:100] * 0.99, train.images, held_out=test.images)
    assert figures["q95"] < figures["held_out_q05"]


@pytest.mark.parametrize(
    ("samples", "train", "words"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), r"samples has shape \(2, 3\) but train has \(2, 4\)"),
        (
            np.zeros((0, 3)),
            np.zeros((2, 3)),
            r"samples has shape \(0, 3\) and train \(2, 3\): neither may be empty",
        ),
        (np.zeros(3), np.zeros(3), r"samples has shape \(3,\)"),
    ],
)
def test_distance_errors(samples, train, words):
    with pytest.raises(ShapeError, match=words):
        nearest_neighbour_distance(samples, train)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=30))
def test_distinct_share_counts_what_differs(samples):
    arrays = [np.array(sample, np.float32) for sample in samples]
    assert distinct_share(arrays) == len({tuple(sample) for sample in samples}) / len(samples)


def test_distinct_share_rounds_and_needs_samples():
    samples = np.array([[0.0], [-0.0], [0.0004], [-0.0004], [0.01]])
    assert distinct_share(samples) == 2 / 5
    assert distinct_share(samples, decimals=4) == 4 / 5
    with pytest.raises(ArgumentError, match="samples is empty"):
        distinct_share([])
