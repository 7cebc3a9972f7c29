"""What is said of a multimodal VAE is so: shares, likelihoods, entropies, errors."""

import math
from dataclasses import replace

import numpy as np
import pytest
from sensorium import vae
from sensorium.data.corpus import Corpus
from sensorium.data.multimodal import Encoding, Rows, corrupt, pair
from sensorium.errors import ArgumentError
from sensorium.models.vae import Model, bound, posterior
from sensorium.vae_evaluate import (
    Judges,
    coherence,
    entropy,
    evaluate,
    fit_alone,
    joint_coherence,
    log_likelihood,
    reconstruction,
    sharpness,
    subsets,
)
from sensorium.vae_jobs import config_for

RECIPE = vae.VAERecipe(rows=32, learning_rate=1e-2)
SIZES = {"latent_dim": 3, "private_dim": 0, "hidden": (24,), "part_weight": 1.0, "text_weight": 1.0}


def tones(pitches, rng):
    time = np.arange(800) / 4000
    return [(0.5 * np.sin(2 * np.pi * p * time + rng.uniform(0, 6))).astype(np.float32) for p in pitches]


@pytest.fixture(scope="module")
def corpus():
    """Three groups: a picture bright on the left, on the right or in the middle; a tone; a word."""
    rng = np.random.default_rng(0)
    group = np.arange(60) % 3
    images = rng.uniform(0, 0.2, (60, 4, 6)).astype(np.float32)
    for i, g in enumerate(group):
        images[i, :, (0, 4, 2)[g] :][:, :2] += 0.7
    split = np.where(np.arange(60) < 42, "train", "test")
    return Corpus(
        texts=["left", "right", "mid"] * 2, text_group=np.tile(np.arange(3), 2),
        text_split=np.repeat(["train", "test"], 3),
        images=images, image_group=group, image_split=split,
        audios=tones(np.array([300, 700, 1300])[group] * rng.uniform(0.95, 1.05, 60), rng),
        audio_group=group, audio_split=split, sample_rate=4000, names=("left", "right", "mid"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def encoding(corpus):
    return Encoding.fit(corpus, bands=6, frames=4)


@pytest.fixture(scope="module")
def judges(corpus, encoding):
    return Judges.fit(corpus, encoding)


@pytest.fixture(scope="module")
def train(corpus, encoding):
    return pair(corpus.select("train"), encoding, copies=3)


@pytest.fixture(scope="module")
def test(corpus, encoding):
    return pair(corpus.select("test"), encoding)


@pytest.fixture(scope="module")
def model(encoding, train):
    config = config_for(encoding, "product", **SIZES)
    return vae.fit(config, train.values, RECIPE, steps=250).model


@pytest.fixture(scope="module")
def metrics(model, train, test, judges):
    alone = fit_alone(model.config, train, steps=60, recipe=RECIPE)
    return evaluate(model, test, judges=judges, alone=alone, num_samples=64), alone


def test_judges_know_real_items_and_words(judges, test):
    for name in ("image", "audio", "text"):
        assert (judges.read(name, test.values[name]) == test.group).mean() > 0.9
    blank = np.zeros((1, *test.values["text"].shape[1:]), np.float32)
    assert judges.read("text", blank).tolist() == [-1]
    with pytest.raises(ArgumentError, match="modality must be one of"):
        judges.read("smell", blank)


def test_a_model_that_learnt_is_coherent_and_one_that_did_not_is_not(model, judges, test, metrics):
    found = metrics[0]["coherence"]
    assert set(found) == {"+".join(given) for given in subsets(model.config.names)}
    for shares in found.values():
        for of in shares.values():
            assert of["low"] <= of["share"] <= of["high"]
            assert of["rows"] == len(test)
            assert of["share"] > 0.8
    assert metrics[0]["joint_coherence"]["share"] > 0.5
    fresh = Model.init(model.config, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    assert coherence(fresh, judges, test, ["image"], rng=rng)["text"]["share"] < 0.5
    assert joint_coherence(fresh, judges, num_samples=50, rng=rng)["share"] < 0.5


def test_what_lies_is_followed(model, judges, test):
    """From a picture of another group alone, the word is that group's."""
    lies = corrupt(test, "image", "other", seed=1)
    said = coherence(model, judges, lies, ["image"], rng=np.random.default_rng(0))["text"]
    assert said["share"] < 0.2


def test_only_rows_that_have_what_is_given_are_asked(model, judges, test):
    some = np.arange(len(test)) < 5
    rows = replace(test, present={**test.present, "audio": some})
    found = coherence(model, judges, rows, ["audio", "image"], rng=np.random.default_rng(0))
    assert {of["rows"] for of in found.values()} == {5}
    assert entropy(model, rows, ["audio"], rng=np.random.default_rng(0))["rows"] == 5
    none = replace(test, present={**test.present, "audio": np.zeros(len(test), bool)})
    assert coherence(model, judges, none, ["audio"], rng=np.random.default_rng(0)) == {}
    assert entropy(model, none, ["audio"], rng=np.random.default_rng(0)) == {}


def test_likelihoods_are_bounds_and_their_difference_is_the_gain(model, test, metrics):
    found, alone = metrics[0]["log_likelihood"], metrics[1]
    mine = log_likelihood(model, test, num_samples=256, rng=np.random.default_rng(5))
    again = bound(model.params, model.config, test.values, num_samples=256, rng=np.random.default_rng(5))
    np.testing.assert_array_equal(mine, again)
    assert abs(found["joint"] - mine.mean()) < 2
    total = sum(found["alone"][name] for name in alone)
    assert math.isclose(found["alone_sum"], total, rel_tol=1e-9)
    gain = found["gain"]
    assert math.isclose(gain["mean"], found["joint"] - total, rel_tol=1e-6, abs_tol=1e-6)
    assert gain["low"] < gain["mean"] < gain["high"]
    assert found["conditional"]["text"] > found["text"]


def test_models_alone_have_the_same_sizes(model, metrics):
    for name, one in metrics[1].items():
        for layer in ("encoder", "decoder"):
            for i, p in model.params[name][layer].items():
                assert one.params[name][layer][i]["weight"].shape == p["weight"].shape


def test_a_product_sharpens_with_every_sense(model, metrics):
    found = metrics[0]["posterior"]
    prior = 0.5 * model.config.latent_dim * math.log(2 * math.pi * math.e)
    assert math.isclose(found[""]["entropy"], prior, rel_tol=1e-6)
    assert math.isclose(found[""]["variance"], 1, rel_tol=1e-6)
    for given, of in found.items():
        if given:
            for fewer in subsets(given.split("+"))[:-1]:
                assert of["entropy"] < found["+".join(fewer)]["entropy"]
                assert of["variance"] < found["+".join(fewer)]["variance"]
            assert of["entropy"] < prior


def test_the_entropy_of_a_mixture_is_that_of_its_density(encoding, test):
    config = config_for(encoding, "mixture", latent_dim=1, hidden=(8,))
    model = Model.init(config, np.random.default_rng(3))
    for name in config.names:
        model.params[name]["mean"]["weight"] *= 4
        model.params[name]["logvar"]["bias"] -= 1
    found = entropy(model, test, config.names, rng=np.random.default_rng(0))["entropy"]
    q = posterior(model.params, config, test.values)
    grid = np.linspace(-30, 30, 6001, dtype=np.float32)
    log_q = q.log_prob(np.repeat(grid[:, None, None], len(test), axis=1)).astype(np.float64)
    exact = -(np.exp(log_q) * log_q).sum(axis=0).mean() * (grid[1] - grid[0])
    assert q.log_weights.shape[0] == 3
    assert abs(found - exact) < 4 * 1.5 / math.sqrt(64 * len(test))  # a log-density deviates by about 1


def test_errors_are_those_of_what_is_written(model, test):
    found = reconstruction(model, test)
    assert found["image"] < 0.2
    assert found["text"] < 0.1
    blind = reconstruction(model, test, [])
    assert all(found[name] < blind[name] for name in found)
    lies = corrupt(test, "image", "other")
    assert reconstruction(model, lies, ["image"], truth=test)["image"] > 1.5 * found["image"]


def test_blur_is_less_of_an_edge():
    edge = np.zeros((1, 2, 4))
    edge[:, :, 2:] = 1
    assert math.isclose(sharpness(edge), 2 / 10)
    assert sharpness(np.full((2, 3, 3, 3), 0.5)) == 0
    assert sharpness(np.zeros((1, 1, 1))) == 0


def test_a_manifest_of_rows_without_a_label_for_everything():
    """Rows of their own, some without text: who cannot be judged is left out, and the rest is measured."""
    rng = np.random.default_rng(0)
    texts = ["a", "b"] * 6
    corpus = Corpus(
        texts=texts, text_group=np.arange(12), text_split=np.array(["train"] * 8 + ["test"] * 4),
        images=np.clip(np.arange(16)[:, None, None] % 2 * 0.8 + rng.uniform(0, 0.2, (16, 3, 3)), 0, 1).astype(np.float32),
        image_group=np.arange(16), image_split=np.array(["train"] * 8 + ["test"] * 8),
        names=(*texts, *(f"line {i}" for i in range(4))),
    )  # fmt: skip
    encoding = Encoding.fit(corpus)
    judges = Judges.fit(corpus, encoding)
    assert judges.groups["image"].tolist() == [0, 1]
    rows = pair(corpus.select("test"), encoding)
    model = Model.init(config_for(encoding, **SIZES), np.random.default_rng(0))
    found = evaluate(model, rows, judges=judges, num_samples=8)
    assert found["rows"] == 8
    assert found["coherence"]["image"]["text"]["rows"] == 4
    assert "gain" not in found["log_likelihood"]
    assert math.isfinite(found["log_likelihood"]["joint"])


def test_without_anything_to_tell_apart_words_alone_are_judged():
    corpus = Corpus(
        texts=["x"], text_group=np.zeros(1, int), text_split=np.array(["train"]),
        images=np.zeros((2, 3, 3), np.float32), image_group=np.zeros(2, int), image_split=np.full(2, "train"),
        names=("x",),
    )  # fmt: skip
    judges = Judges.fit(corpus, Encoding.fit(corpus))
    assert judges.judge is None
    assert list(judges.groups) == ["text"]
    rows = pair(corpus, judges.encoding)
    model = Model.init(config_for(judges.encoding, **SIZES), np.random.default_rng(0))
    assert joint_coherence(model, judges, rng=np.random.default_rng(0)) == {}
    assert isinstance(rows, Rows)
