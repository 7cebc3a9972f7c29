"""Training of multimodal VAEs: it learns, it repeats itself bit for bit, and it loses nothing."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from sensorium import checkpoint
from sensorium.errors import ArgumentError, CheckpointError, ShapeError
from sensorium.models.vae import ModalityConfig, Model, generate, mmvae_plus, mopoe, mvae
from sensorium.vae import VAEFit, VAERecipe, fit

MODALITIES = {
    "image": ModalityConfig(shape=(2, 4), likelihood="bernoulli", hidden=(16,)),
    "word": ModalityConfig(shape=2, likelihood="categorical", hidden=(8,)),
    "sound": ModalityConfig(shape=6, hidden=(16,)),
}
CONFIG = mopoe(MODALITIES, 3, private_dim=2)
RECIPE = VAERecipe(rows=32, learning_rate=3e-2)


def small_data(rows=64, seed=0):
    """Two things: bright or dark pictures, two words, high or low sounds."""
    rng = np.random.default_rng(seed)
    group = np.arange(rows) % 2
    image = np.clip(group[:, None, None] * 0.8 + rng.uniform(0, 0.2, (rows, 2, 4)), 0, 1)
    sound = np.where(group, 2.0, -2.0)[:, None] + 0.3 * rng.standard_normal((rows, 6))
    return {"image": image, "word": np.eye(2)[group], "sound": sound}


def same(a: VAEFit, b: VAEFit) -> bool:
    pair = [checkpoint.flatten(r.model.params) for r in (a, b)]
    return pair[0].keys() == pair[1].keys() and all(np.array_equal(pair[0][k], pair[1][k]) for k in pair[0])


@pytest.mark.parametrize(
    "config", [mvae(MODALITIES, 3, reconstruct="present"), CONFIG, mmvae_plus(MODALITIES, 3, 2)]
)
def test_it_learns_what_the_rows_tie_together_from_rows_that_lack_some(config):
    data, rng = small_data(), np.random.default_rng(1)
    mask = {name: rng.random(64) < 0.8 for name in MODALITIES}
    for name, there in mask.items():
        data[name][~there] = np.nan
    result = fit(config, data, RECIPE, mask=mask, steps=140)
    assert result.steps == 140
    assert not result.interrupted
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    held_out = small_data(seed=2)
    for given in (["image"], ["sound"], ["image", "sound"]):
        out = generate(
            result.model.params, config, held_out, given=given, targets=["word"], rng=np.random.default_rng(0)
        )
        assert np.array_equal(out["word"][0].argmax(axis=1), np.arange(64) % 2)
    out = generate(result.model.params, config, held_out, given=["word"], rng=np.random.default_rng(0))
    assert np.array_equal(out["image"][0].mean(axis=(1, 2)) > 0.5, np.arange(64) % 2)
    assert np.array_equal(out["sound"][0].mean(axis=1) > 0, np.arange(64) % 2)


def test_the_same_seed_gives_the_same_model_bit_for_bit():
    first = fit(CONFIG, small_data(), RECIPE, steps=6, seed=3)
    assert same(first, fit(CONFIG, small_data(), RECIPE, steps=6, seed=3))
    assert not same(first, fit(CONFIG, small_data(), RECIPE, steps=6, seed=4))


class CallbackError(Exception):
    pass


def test_what_is_resumed_is_as_if_it_had_never_been_interrupted(tmp_path):
    path = tmp_path / "checkpoint.safetensors"

    def fail(record):
        raise CallbackError

    with pytest.raises(CallbackError):
        fit(CONFIG, small_data(), RECIPE, steps=12, seed=3, checkpoint_path=path, progress=fail)
    assert Model.load(path).config == CONFIG
    resumed = fit(CONFIG, small_data(), RECIPE, steps=12, seed=3, checkpoint_path=path, resume=True)
    assert resumed.steps == 12
    assert resumed.history[0]["step"] == 1
    assert same(resumed, fit(CONFIG, small_data(), RECIPE, steps=12, seed=3))
    again = fit(CONFIG, small_data(), RECIPE, steps=12, seed=3, checkpoint_path=path, resume=True)
    assert same(resumed, again)


def test_ctrl_c_ends_training_between_steps(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    result = fit(
        CONFIG,
        small_data(),
        RECIPE,
        steps=100_000,
        checkpoint_path=path,
        progress=lambda record: os.kill(os.getpid(), signal.SIGINT),
    )
    assert result.interrupted
    assert 1 <= result.steps < 100_000
    assert np.array_equal(
        Model.load(path).params["word"]["mean"]["bias"], result.model.params["word"]["mean"]["bias"]
    )


def test_time_is_kept():
    result = fit(CONFIG, small_data(), RECIPE, seconds=0.4)
    assert result.steps > 0
    last = result.history[-1]
    assert last["fraction"] <= 1.0
    assert {"step", "seconds", "loss", "loss_image", "loss_word", "loss_sound", "loss_kl"} <= set(last)


def test_rows_without_anything_change_nothing():
    data = small_data()
    more = {
        name: np.concatenate([array, np.full((3, *array.shape[1:]), np.nan)]) for name, array in data.items()
    }
    mask = np.ones((3, 67), bool)
    mask[:, 64:] = False
    assert same(fit(CONFIG, more, RECIPE, mask=mask, steps=3), fit(CONFIG, data, RECIPE, steps=3))


@pytest.mark.parametrize("change", ["seed", "recipe", "data", "goal", "config"])
def test_resuming_another_run(tmp_path, change):
    path = tmp_path / "checkpoint.safetensors"
    fit(CONFIG, small_data(), RECIPE, steps=2, checkpoint_path=path)
    config = replace(CONFIG, beta=2.0) if change == "config" else CONFIG
    recipe = replace(RECIPE, rows=5) if change == "recipe" else RECIPE
    with pytest.raises(CheckpointError, match=f"was trained with another {change}"):
        fit(config, small_data(seed=int(change == "data")), recipe, steps=2 + (change == "goal"),
            seed=int(change == "seed"), checkpoint_path=path, resume=True)  # fmt: skip


def test_resuming_a_model_without_training_state(tmp_path):
    path = tmp_path / "model.safetensors"
    fit(CONFIG, small_data(), RECIPE, steps=2).model.save(path)
    with pytest.raises(
        CheckpointError, match="holds no training of a multimodal VAE; there is nothing to resume"
    ):
        fit(CONFIG, small_data(), RECIPE, steps=2, checkpoint_path=path, resume=True)


def test_rates_and_weights_follow_the_recipe():
    recipe = VAERecipe(learning_rate=1.0, warmup=0.1, beta_warmup=0.5)
    rates = [recipe.rate(done) for done in np.linspace(0, 1, 101)]
    assert np.argmax(rates) == 10
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == 0.0
    config = replace(CONFIG, beta=4.0)
    assert [recipe.beta(config, done) for done in (0, 0.25, 0.5, 1)] == [0, 2, 4, 4]
    assert VAERecipe().beta(config, 0.0) == 4


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, ArgumentError, "give either seconds or steps"),
        ({"steps": 0}, ArgumentError, "steps must be at least 1, not 0"),
        ({"seconds": -1.0}, ArgumentError, "seconds must be above 0, not -1"),
        ({"steps": 1, "mask": np.zeros((3, 64), bool)}, ArgumentError, "data has no row with an item"),
        ({"steps": 1, "mask": {"word": np.zeros(64, bool)}}, ArgumentError, "data has no word"),
        ({"steps": 1, "mask": np.ones((3, 4), bool)}, ShapeError, r"mask has shape \(3, 4\), expected \(3, 64\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained(options, error, words):
    with pytest.raises(error, match=words):
        fit(CONFIG, small_data(), RECIPE, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": 0}, "rows must be at least 1, not 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, not 0"),
        ({"max_norm": -1.0}, "max_norm must be above 0, not -1"),
        ({"beta_warmup": 2.0}, "beta_warmup must be from 0 to 1, not 2"),
        ({"warmup": np.nan}, "warmup must be finite, not nan"),
    ],
)
def test_recipes_that_cannot_be(options, words):
    with pytest.raises(ArgumentError, match=words):
        VAERecipe(**options)
