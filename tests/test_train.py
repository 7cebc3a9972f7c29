"""Training: it learns, it repeats itself bit for bit, and it loses nothing."""

import os
import signal

import numpy as np
import pytest
import sensorium
from sensorium import checkpoint
from sensorium._sampling import fit_tokenizers, make_banks, plans_of
from sensorium.data.corpus import Corpus
from sensorium.errors import ArgumentError, CheckpointError
from sensorium.models.unified import Model
from sensorium.recipe import Recipe, default_patch, learning_rate
from sensorium.train import FitResult, fit

RECIPE = Recipe(
    width=16,
    depth=1,
    heads=2,
    hidden=32,
    image_codes=8,
    audio_codes=8,
    rows=4,
    jitter=1,
    unconditional_every=3,
)


def small_corpus(texts=True, sounds=True, seed=0):
    """Two things: bright or dark pictures, high or low tones, and their names."""
    rng = np.random.default_rng(seed)
    group = np.arange(12) % 2
    images = np.clip(group[:, None, None] * 0.8 + rng.uniform(0, 0.2, (12, 8, 4)), 0, 1).astype(np.float32)
    time = np.arange(1200) / 8000
    tones = [(0.5 * np.sin(2 * np.pi * (400 + 800 * g) * time + p)).astype(np.float32)
             for g, p in zip(group, rng.uniform(0, 6, 12), strict=True)]  # fmt: skip
    split = np.where(np.arange(12) < 8, "train", "test")
    some = {"images": images, "image_group": group, "image_split": split}
    if texts:
        some |= {"texts": ["dark", "light"] * 2, "text_group": np.array([0, 1] * 2),
                 "text_split": np.array(["train"] * 2 + ["test"] * 2)}  # fmt: skip
    if sounds:
        some |= {"audios": tones, "audio_group": group, "audio_split": split}
    return Corpus(**some)


def same(a: FitResult, b: FitResult) -> bool:
    pair = [checkpoint.flatten(r.model.params) for r in (a, b)]
    return pair[0].keys() == pair[1].keys() and all(np.array_equal(pair[0][k], pair[1][k]) for k in pair[0])


def test_it_learns_what_the_corpus_ties_together():
    corpus = small_corpus()
    result = fit(corpus, RECIPE, steps=150, seed=0)
    assert result.steps == 150
    assert not result.interrupted
    test = corpus.select("test")
    words = [result.model.generate(image, to="text")[0] for image in test.images]
    assert words == [["dark", "light"][g] for g in test.image_group]
    words = [result.model.generate(sound, to="text")[0] for sound in test.audios]
    assert words == [["dark", "light"][g] for g in test.audio_group]
    made = result.model.generate("light", to="image", samples=8)
    assert min(image.mean() for image in made) > 0.5
    made = result.model.generate("dark", to="image", samples=8)
    assert max(image.mean() for image in made) < 0.5


def test_the_same_seed_gives_the_same_model_bit_for_bit_with_any_number_of_threads():
    corpus = small_corpus()
    first = fit(corpus, RECIPE, steps=12, seed=3)
    assert same(first, fit(corpus, RECIPE, steps=12, seed=3))
    with sensorium.num_threads(1):
        assert same(first, fit(corpus, RECIPE, steps=12, seed=3))
    assert not same(first, fit(corpus, RECIPE, steps=12, seed=4))


class CallbackError(Exception):
    pass


def test_what_a_failing_callback_interrupts_goes_on_as_if_nothing_had_been(tmp_path):
    corpus, path = small_corpus(), tmp_path / "checkpoint.safetensors"

    def fail(record):
        if "step" in record:
            raise CallbackError

    with pytest.raises(CallbackError):
        fit(corpus, RECIPE, steps=12, seed=3, checkpoint_path=path, progress=fail)
    resumed = fit(corpus, RECIPE, steps=12, seed=3, checkpoint_path=path, resume=True)
    assert resumed.steps == 12
    assert resumed.history[0]["step"] == 1
    assert same(resumed, fit(corpus, RECIPE, steps=12, seed=3))


def test_resuming_what_is_done_changes_nothing(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    done = fit(small_corpus(), RECIPE, steps=5, checkpoint_path=path)
    again = fit(small_corpus(), RECIPE, steps=5, checkpoint_path=path, resume=True)
    assert again.steps == 5
    assert same(done, again)


def test_ctrl_c_ends_training_between_steps(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    before = signal.getsignal(signal.SIGINT)
    result = fit(
        small_corpus(),
        RECIPE,
        steps=10_000,
        checkpoint_path=path,
        progress=lambda record: "step" in record and os.kill(os.getpid(), signal.SIGINT),
    )
    assert result.interrupted
    assert 1 <= result.steps < 10_000
    assert signal.getsignal(signal.SIGINT) is before
    model = Model.load(path)
    assert isinstance(model.generate("dark", to="image")[0], np.ndarray)


def test_time_is_kept():
    result = fit(small_corpus(), RECIPE, seconds=0.6)
    assert result.steps > 0
    assert result.history[-1]["fraction"] <= 1.0
    assert {"step", "seconds", "loss", "loss_text", "loss_image", "loss_audio", "examples_per_second"} <= set(
        result.history[-1]
    )


@pytest.mark.parametrize(("texts", "sounds"), [(False, True), (True, False)])
def test_missing_modalities(texts, sounds):
    result = fit(small_corpus(texts, sounds), RECIPE, steps=3)
    other = "audio" if sounds else "text"
    assert set(result.model.modalities) == {"image", other}
    out = result.model.generate(np.zeros((8, 4), np.float32), to=other)[0]
    assert isinstance(out, str if other == "text" else np.ndarray)


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_autoregressive_instead_of_diffusion(kind):
    import dataclasses

    result = fit(small_corpus(), dataclasses.replace(RECIPE, **{kind: "autoregressive"}), steps=3)
    assert result.model.config.vocabulary.by_name[kind].causal
    assert len(result.model.generate("dark", to=kind, samples=2)) == 2


@pytest.mark.parametrize("change", ["seed", "recipe", "data", "steps"])
def test_resuming_another_run(tmp_path, change):
    import dataclasses

    path = tmp_path / "checkpoint.safetensors"
    fit(small_corpus(), RECIPE, steps=2, checkpoint_path=path)
    corpus = small_corpus(seed=1) if change == "data" else small_corpus()
    recipe = dataclasses.replace(RECIPE, rows=5) if change == "recipe" else RECIPE
    with pytest.raises(CheckpointError, match=f"was trained with another {change}"):
        fit(corpus, recipe, steps=4 if change == "steps" else 2, seed=int(change == "seed"),
            checkpoint_path=path, resume=True)  # fmt: skip


def test_resuming_a_model_without_training_state(tmp_path):
    path = tmp_path / "model.safetensors"
    fit(small_corpus(), RECIPE, steps=2).model.save(path)
    with pytest.raises(CheckpointError, match="without training state"):
        fit(small_corpus(), RECIPE, steps=2, checkpoint_path=path, resume=True)


def test_learning_rate_goes_up_and_down():
    recipe = Recipe(learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(recipe, f) for f in np.linspace(0, 1, 101)]
    assert rates[0] <= 0.01
    assert max(rates) == pytest.approx(1.0)
    assert np.argmax(rates) == 10
    assert rates[-1] == 0.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give either seconds or steps"),
        ({"seconds": 1.0, "steps": 1}, "give either seconds or steps"),
        ({"seconds": 0.0}, "seconds must be above 0, not 0"),
        ({"seconds": float("nan")}, "seconds must be finite, not nan"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
    ],
)
def test_wrong_goals(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        fit(small_corpus(), RECIPE, **arguments)


def test_groups_that_lack_a_modality_serve_the_tasks_that_they_can():
    corpus = small_corpus()
    banks = make_banks(corpus, fit_tokenizers(corpus, RECIPE, np.random.default_rng(0)), RECIPE,
                       np.random.default_rng(0))  # fmt: skip
    whole = plans_of(RECIPE, banks)
    assert whole[0] == (
        ("text", ("image", "audio")),
        ("image", ("text", "audio")),
        ("audio", ("text", "image")),
        ("image", "text"),
    )
    assert whole == [whole[0], whole[0], (("image",), ("audio",))]
    lacking = banks["audio"]
    lacking = type(lacking)(lacking.codes, lacking.start, lacking.count * np.array([1, 0]))
    some = plans_of(RECIPE, banks | {"audio": lacking})
    assert some[0] == (
        ("text", "image"),
        ("text", "audio"),
        ("image", "text"),
        ("image", "audio"),
        ("audio", ("text", "image")),
        ("image", "text"),
    )


def test_corpora_that_nothing_can_be_learnt_from():
    with pytest.raises(ArgumentError, match=r"training items of \['image'\], expected two modalities"):
        fit(small_corpus(texts=False, sounds=False), RECIPE, steps=1)
    apart = small_corpus(texts=False)
    apart = Corpus(**{**vars(apart), "audio_group": apart.audio_group + 2})
    with pytest.raises(ArgumentError, match="no group with items of two modalities"):
        fit(apart, RECIPE, steps=1)


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((8, 8), (1, 8)), ((28, 28), (2, 28)), ((32, 32, 3), (4, 4)), ((7, 5), (7, 5)), ((37, 37, 3), (1, 1))],
)
def test_patches_divide_the_image_and_stay_small(shape, patch):
    assert default_patch(*shape) == patch


def test_previews_are_in_the_records(monkeypatch):
    monkeypatch.setattr("sensorium.train.PREVIEW_EVERY", 0.0)
    records = []
    result = fit(
        small_corpus(),
        RECIPE,
        steps=2,
        progress=records.append,
        preview=lambda model: [("a", model.parameters)],
    )
    assert records[0] == {"phase": "learning the tokens"}
    assert records[-1]["samples"] == [("a", result.model.parameters)]
    assert "samples" not in result.history[-1]
