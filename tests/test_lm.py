"""Training language models: gradients, the same model twice, going on where it was ended, and the commands."""

import dataclasses
import json
import os
import signal

import numpy as np
import pytest
from sensorium import ArgumentError, CheckpointError, autodiff, lm
from sensorium.cli import app
from sensorium.models import language, mamba, mamba2
from test_language_models import CONFIGS, random_model
from typer.testing import CliRunner

SMALL = {"vocab_size": 256, "hidden_size": 16, "num_hidden_layers": 2, "tokenizer": "bytes"}
TINY = mamba.Config(**SMALL, state_size=4)
TINY2 = mamba2.Config(**SMALL, state_size=4, head_dim=8)
RECIPE = lm.LanguageRecipe(rows=4, length=24)
TEXT = np.frombuffer(b"the quick brown fox jumps over the lazy dog. " * 30, np.uint8)


def leaves(tree):
    return [x for v in tree.values() for x in (leaves(v) if isinstance(v, dict) else [v])]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_along_a_direction(name):
    model = random_model(CONFIGS[name], dtype=np.float64)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 29, (2, 14))
    weights = rng.random((2, 13))

    def direction(tree):
        return {
            k: direction(v) if isinstance(v, dict) else rng.standard_normal(v.shape) for k, v in tree.items()
        }

    def moved(tree, along, t):
        return {
            k: moved(v, along[k], t) if isinstance(v, dict) else v + t * along[k] for k, v in tree.items()
        }

    along = direction(model.params)
    value, grads = autodiff.value_and_grad(language.loss)(model.params, model.config, tokens, weights)
    assert value == language.loss(model.params, model.config, tokens, weights)
    slope = sum(np.sum(g * d) for g, d in zip(leaves(grads), leaves(along), strict=True))

    def at(t):
        return language.loss(moved(model.params, along, t), model.config, tokens, weights)

    t = 1e-5
    numeric = (8 * (at(t) - at(-t)) - (at(2 * t) - at(-2 * t))) / (12 * t)
    assert slope == pytest.approx(numeric, rel=1e-6)
    assert all(np.any(g) for g in leaves(grads))


def test_a_loss_is_the_mean_of_the_bits():
    model = random_model(TINY)
    text = TEXT[:100]
    bits = lm.bits_per_token(model, text)
    want = language.loss(model.params, model.config, text[None].astype(int)) / np.log(2)
    assert bits.shape == (99,)
    assert bits.mean() == pytest.approx(float(want), rel=1e-5)
    np.testing.assert_allclose(lm.bits_per_token(model, text, chunk=7), bits, atol=1e-4)
    np.testing.assert_array_equal(lm.bits_per_token(model, text[1:], begin=int(text[0])), bits)
    assert lm.bits_per_token(model, text[:1]).shape == (0,)


@pytest.mark.parametrize("config", [TINY, TINY2], ids=["mamba", "mamba2"])
def test_a_model_learns_what_pairs_of_bytes_do_not_tell(config):
    recipe = lm.LanguageRecipe(rows=8, length=64, learning_rate=2e-2)
    result = lm.fit(TEXT, dataclasses.replace(config, hidden_size=32), recipe, steps=90, seed=0)
    pairs = np.zeros((256, 256))
    np.add.at(pairs, (TEXT[:-1], TEXT[1:]), 1)
    share = pairs / np.maximum(pairs.sum(axis=1, keepdims=True), 1)
    bigram = -np.log2(share[TEXT[:-1], TEXT[1:]]).mean()  # with the counts of this very text
    bits = lm.bits_per_token(result.model, TEXT)[45:].mean()
    assert bits < 0.7 * bigram
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert result.history[-1]["step"] == result.steps == 90
    assert result.model.generate("the quick brown ", max_new_tokens=9, temperature=0).texts == ["fox jumps"]


@pytest.mark.parametrize("config", [TINY, TINY2], ids=["mamba", "mamba2"])
def test_training_is_repeated_and_resumed_bit_for_bit(config, tmp_path):
    whole = lm.fit(TEXT, config, RECIPE, steps=8, seed=3)
    again = lm.fit(TEXT, config, RECIPE, steps=8, seed=3)
    assert same(whole.model.params, again.model.params)
    other = lm.fit(TEXT, config, RECIPE, steps=8, seed=4)
    assert not same(whole.model.params, other.model.params)

    path = tmp_path / "checkpoint.safetensors"

    def stop(record):
        raise KeyError("by hand")

    how = {"steps": 8, "seed": 3, "checkpoint_path": path}
    with pytest.raises(KeyError, match="by hand"):
        lm.fit(TEXT, config, RECIPE, progress=stop, **how)
    resumed = lm.fit(TEXT, config, RECIPE, resume=True, **how)
    assert resumed.steps == 8
    assert not resumed.interrupted
    assert same(whole.model.params, resumed.model.params)
    assert same(lm.fit(TEXT, config, RECIPE, resume=True, **how).model.params, whole.model.params)


@pytest.mark.skipif(os.name == "nt", reason="signals to itself")
def test_ctrl_c_ends_training_and_keeps_it(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    how = {"steps": 6, "checkpoint_path": path}

    def press(record):
        os.kill(os.getpid(), signal.SIGINT)

    ended = lm.fit(TEXT, TINY, RECIPE, progress=press, **how)
    assert ended.interrupted
    assert ended.steps == 1
    resumed = lm.fit(TEXT, TINY, RECIPE, resume=True, **how)
    assert same(resumed.model.params, lm.fit(TEXT, TINY, RECIPE, steps=6).model.params)


def test_another_run_is_not_gone_on_with(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    how = {"steps": 2, "checkpoint_path": path}
    lm.fit(TEXT, TINY, RECIPE, **how)
    for changed, word in [
        ((TEXT[1:], TINY, RECIPE), "text"),
        ((TEXT, mamba.Config(**SMALL, state_size=5), RECIPE), "config"),
        ((TEXT, TINY2, RECIPE), "family"),
        ((TEXT, TINY, lm.LanguageRecipe(rows=5)), "recipe"),
    ]:
        with pytest.raises(CheckpointError, match=f"was trained with another {word}"):
            lm.fit(*changed, resume=True, **how)
    with pytest.raises(CheckpointError, match="another seed"):
        lm.fit(TEXT, TINY, RECIPE, seed=1, resume=True, **how)
    with pytest.raises(CheckpointError, match="another goal"):
        lm.fit(TEXT, TINY, RECIPE, steps=3, checkpoint_path=path, resume=True)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError):
        lm.fit(TEXT, TINY, RECIPE, resume=True, **how)


def test_arguments_that_cannot_be_used_are_named():
    with pytest.raises(ArgumentError, match="either seconds or steps"):
        lm.fit(TEXT, TINY)
    with pytest.raises(ArgumentError, match="seconds must be above 0"):
        lm.fit(TEXT, TINY, seconds=0)
    with pytest.raises(ArgumentError, match="steps must be at least 1"):
        lm.fit(TEXT, TINY, steps=0)
    with pytest.raises(ArgumentError, match="tokens has 24 tokens, expected more than the 24"):
        lm.fit(TEXT[:24], TINY, RECIPE, steps=1)
    with pytest.raises(ArgumentError, match="tokens holds 322"):
        lm.fit(TEXT.astype(int) + 200, TINY, RECIPE, steps=1)
    with pytest.raises(ArgumentError, match=r"tokens has shape \(1, "):
        lm.fit(TEXT[None], TINY, RECIPE, steps=1)
    with pytest.raises(ArgumentError, match="rows must be at least 1"):
        lm.LanguageRecipe(rows=0)


# --- commands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["mamba", "mamba2"])
def test_the_commands(family, tmp_path):
    run = CliRunner().invoke
    text, out = tmp_path / "text.txt", tmp_path / "model"
    text.write_bytes(TEXT.tobytes() * 5)
    train = ["lm", "train", str(text), "--out", str(out), "--steps", "3", "--width", "16", "--layers", "1"]
    result = run(app, [*train, "--family", family])
    assert result.exit_code == 0, result.output
    assert "bits a byte" in result.output
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["steps"] == 3
    assert 0 < metrics["bits_per_byte"] < 9

    model = language.load(out)
    assert model.config.family == family
    result = run(app, ["lm", "info", str(out)])
    assert f"{family}, {model.parameters:,} parameters" in result.output

    want = model.generate("the ", max_new_tokens=12, temperature=0.8, seed=2).texts[0]
    options = ["-n", "12", "--seed", "2"]
    result = run(app, ["lm", "generate", str(out), "--prompt", "the ", *options])
    assert result.output == want + "\n"
    assert run(app, ["lm", "generate", str(out), *options], input="the ").output == want + "\n"
    ids = ",".join(map(str, b"the "))
    assert run(app, ["lm", "generate", str(out), "--tokens", ids, *options]).output == want + "\n"


def test_commands_that_cannot_be_done(tmp_path):
    run = CliRunner().invoke
    for args, words in [
        (["info", str(tmp_path)], "has no config.json"),
        (["generate", str(tmp_path / "gone"), "--prompt", "a"], "is not a folder"),
        (["train", str(tmp_path / "gone.txt")], "No such file"),
        (["train", "x", "--seconds", "1", "--steps", "1"], "give --seconds or --steps"),
    ]:
        result = run(app, ["lm", *args])
        assert result.exit_code == 2
        assert words in " ".join(result.output.split())
    random_model(CONFIGS["mamba"]).save(tmp_path)
    result = run(app, ["lm", "generate", str(tmp_path), "--tokens", "1,x"])
    assert "holds -1" in result.output
    result = run(app, ["lm", "generate", str(tmp_path), "--prompt", "a"])
    assert "has no tokeniser" in result.output
    result = run(app, ["lm", "generate", str(tmp_path), "--tokens", "1,2", "-n", "3"])
    assert len(result.output.split()) == 3
