"""The unified model with scans in place of attention: what it computes, keeps, writes, refuses and saves."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from sensorium import checkpoint
from sensorium._tree import tree_map
from sensorium.autodiff import value_and_grad
from sensorium.errors import ArgumentError, CheckpointError, DTypeError
from sensorium.models.unified import (
    Config,
    Modality,
    Model,
    Row,
    Vocabulary,
    fill_row,
    generate,
    init,
    log_likelihood,
    logits,
    loss,
)
from sensorium.models.unified.mixers import SCANS
from sensorium.models.unified.network import decays, hidden, shapes
from sensorium.models.unified.reader import Reader
from sensorium.tokenizers import ImageTokenizer, TextTokenizer

TEXT = Modality("text", "autoregressive", codes=3, length=5, pad=2)
IMAGE = Modality("image", "diffusion", codes=5, length=4)
ASK = Modality("ask", "readout", codes=4, length=1)
VOCABULARY = Vocabulary((TEXT, IMAGE, ASK))
HYBRID = ("mamba", "attention", "ttt_linear", "mamba2", "ttt_mlp")
MIXTURES = [*SCANS, HYBRID]
ids = lambda m: m if isinstance(m, str) else "hybrid"  # noqa: E731
each = pytest.mark.parametrize("mixer", MIXTURES, ids=ids)


def config_of(mixer, **more):
    depth = len(mixer) if isinstance(mixer, tuple) else 2
    return Config(VOCABULARY, width=8, depth=depth, heads=2, hidden=16, mixer=mixer, state=4, **more)


def random_params(config, seed=0, dtype=np.float64, scale=0.3):
    """Parameters without the zeros of the beginning, so that every part of the model matters."""
    rng = np.random.default_rng(seed)
    draw = lambda a: (a + scale * rng.standard_normal(a.shape)).astype(dtype)  # noqa: E731
    return tree_map(draw, init(config, rng))


def random_codes(row, rows=3, seed=0):
    rng, by_name = np.random.default_rng(seed), row.vocabulary.by_name
    of = [by_name[s.modality] for s in row.slots]
    return [rng.integers(0, m.codes, (rows, m.length)) for m in of]


def random_batch(tasks, rows=3, seed=0):
    row = Row(VOCABULARY, tasks)
    return fill_row(row, random_codes(row, rows, seed), np.random.default_rng(seed))


@each
def test_shapes_are_those_of_init(mixer):
    config = config_of(mixer)
    params = init(config, np.random.default_rng(0))
    assert {name: a.shape for name, a in checkpoint.flatten(params).items()} == shapes(config)
    assert {a.dtype for a in checkpoint.flatten(params).values()} == {np.dtype(np.float32)}


@each
def test_gradient_along_a_random_direction(mixer):
    config = config_of(mixer)
    params = random_params(config)
    batch = random_batch((("image", ("text", "ask")), ("text", "image", "image")))
    f = lambda p: loss(p, config, batch)[0]  # noqa: E731
    _, grads = value_and_grad(f)(params)
    flat = checkpoint.flatten(grads)
    assert all(np.abs(a).max() > 0 for name, a in flat.items() if "blocks" in name)
    rng = np.random.default_rng(1)
    direction = tree_map(lambda a: rng.standard_normal(a.shape), params)
    h = 1e-6
    there, back = (tree_map(lambda a, d, s=s: a + s * h * d, params, direction) for s in (1, -1))
    slope = (float(f(there)) - float(f(back))) / (2 * h)
    pairs = zip(flat.values(), checkpoint.flatten(direction).values(), strict=True)
    assert sum(float((g * d).sum()) for g, d in pairs) == pytest.approx(slope, rel=1e-5)


def changed(tokens, column, by=1):
    other = tokens.copy()
    other[:, column] = (other[:, column] + by) % VOCABULARY.size
    return other


@each
def test_who_hears_of_a_token(mixer):
    """A token tells those after it and its own segment, where that is predicted whole, and no one else."""
    config = config_of(mixer)
    params = random_params(config)
    batch = random_batch((("text", "image", ("image", "ask")), ("image",)))
    text, first, second, ask, alone = (np.arange(s.start, s.stop) for s in batch.row.slots)
    before = hidden(params, config, batch.row, batch.tokens)

    def moved(column):
        after = hidden(params, config, batch.row, changed(batch.tokens, column))
        return set(np.flatnonzero(np.abs(after - before).max(axis=(0, 2)) > 1e-9))

    of = lambda *parts: {int(c) for part in parts for c in part}  # noqa: E731
    assert moved(text[0]) == of(text, first, second, ask)
    assert moved(second[1]) == of(second)  # predicted: both ways, and hidden from the question beside it
    assert moved(ask[0]) == of(ask)
    assert moved(alone[2]) == of(alone)
    # A source is read from left to right by a scan, and at once by attention.
    whole = "attention" in mixer
    assert moved(first[2]) == of(first if whole else first[2:], second, ask)


@each
def test_samples_of_a_row_are_as_if_alone(mixer):
    config = config_of(mixer)
    params = random_params(config)
    batch = random_batch((("image", ("text", "ask")), ("text", "image")))
    packed = hidden(params, config, batch.row, batch.tokens)
    pieces = {("image", "text"): [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], ("image", "ask"): [0, 1, 2, 3, 10]}
    pieces[("text", "image")] = list(range(11, 21))
    for task, columns in pieces.items():
        row = Row(VOCABULARY, (task,))
        own = hidden(params, config, row, batch.tokens[:, columns])
        np.testing.assert_allclose(packed[:, columns], own, rtol=0, atol=1e-10)


@each
def test_reading_piece_by_piece_gives_what_reading_at_once_does(mixer):
    config = config_of(mixer, rotary=True, window=2)
    params, row = random_params(config), Row(VOCABULARY, (("image", "image", "text"),))
    tokens = fill_row(row, random_codes(row)).tokens
    whole = hidden(params, config, row, tokens)
    for cuts in ([4, 8, 9, 11, 14], [14], [8, 14], [9, 10, 14]):
        reader = Reader(params, config, row, tokens.copy())
        parts = [reader.read(a, b) for a, b in itertools.pairwise([0, *cuts])]
        np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=1e-10)
    # What changed is read anew, from wherever it changed, and as often as it does.
    for start in (9, 12, 4, 10):
        reader.tokens[:, start:] = changed(reader.tokens, slice(start, None))[:, start:]
        reader.tokens %= VOCABULARY.size
        reader.forget(start)
        want = hidden(params, config, row, reader.tokens)
        np.testing.assert_allclose(reader.read(start, 14), want[:, start:], rtol=0, atol=1e-10)
        assert np.abs(want - whole)[:, start:].max() > 1e-3


def test_what_was_read_is_not_read_again(monkeypatch):
    config = config_of("mamba2")
    params, row = random_params(config), Row(VOCABULARY, (("image", "text"),))
    read = []
    step = SCANS["mamba2"].step
    counted = lambda p, x, state, heads: (read.append(x.shape[1]), step(p, x, state, heads))[1]  # noqa: E731
    monkeypatch.setitem(SCANS, "mamba2", replace(SCANS["mamba2"], step=counted))
    reader = Reader(params, config, row, fill_row(row, random_codes(row)).tokens)
    for at in range(4, 10):
        reader.forget(at)
        reader.read(at, at + 1)
    assert read == [4, 4, *[1] * 12]  # two blocks: the source once, then each token once
    reader.forget(4)
    reader.read(4, 10)
    assert read[-2:] == [6, 6]  # from the end of the source


class Forgetful(Reader):
    """Reads whole rows at every step."""

    def read(self, start, stop):
        self.states = {0: self.states[0]}
        self.forget(0)
        return super().read(start, stop)


@each
@pytest.mark.parametrize("task", [("image", "text"), ("text", "image")])
def test_what_is_kept_changes_no_code(monkeypatch, mixer, task):
    source, target = task
    config = config_of(mixer)
    params = random_params(config, dtype=np.float32)
    modality = VOCABULARY.by_name[source]
    codes = np.random.default_rng(0).integers(0, modality.codes, (40, modality.length))
    drawn = []
    for reader in (Reader, Forgetful):
        monkeypatch.setattr("sensorium.models.unified.decode.Reader", reader)
        rng = np.random.default_rng(1)
        drawn.append(generate(params, config, {source: codes}, target, rng=rng, guidance=2.0, steps=4))
    np.testing.assert_array_equal(*drawn)
    assert len(np.unique(drawn[0], axis=0)) > 5


@each
def test_likelihoods_of_all_texts_sum_to_one(mixer):
    text = Modality("text", "autoregressive", codes=3, length=2, pad=2)
    config = replace(config_of(mixer), vocabulary=Vocabulary((text, IMAGE)))
    params = random_params(config)
    texts = np.array([t for t in itertools.product(range(3), repeat=2) if t[0] != 2 or t[1] == 2])
    image = np.repeat([[0, 3, 1, 4]], len(texts), axis=0)
    total = np.exp(log_likelihood(params, config, {"image": image}, "text", texts)).sum()
    assert total == pytest.approx(1.0, rel=1e-9)


def test_an_album_is_written_from_pairs():
    """A modality that comes several times: the logits of a readout are those of the whole row."""
    config = config_of("mamba2")
    params = random_params(config, dtype=np.float32)
    row = Row(VOCABULARY, (("image", "ask", "image", "ask"),))
    codes = random_codes(row)
    pairs = list(zip(("image", "ask", "image"), codes, strict=False))
    drawn = generate(params, config, pairs, "ask", rng=np.random.default_rng(0), temperature=0.0, steps=1)
    y = logits(params, config, row, fill_row(row, codes).tokens, {"ask": np.array([9])})["ask"]
    np.testing.assert_array_equal(drawn, y.argmax(-1))


def test_a_readout_is_never_shown():
    row = Row(VOCABULARY, (("ask", "image", "ask", "text"),))
    one, two = (fill_row(row, random_codes(row, seed=s)) for s in (0, 1))
    for column in (0, 5):
        assert (one.tokens[:, column] == VOCABULARY.special("ask")).all()
    np.testing.assert_array_equal(row.predicted["ask"], [0, 5])
    assert (one.targets["ask"] != two.targets["ask"]).any()
    assert (one.weights["ask"] == 1).all()


def test_prompts_are_shown_and_codes_are_asked_for():
    ask = Modality("ask", "readout", codes=4, length=2, prompts=3)
    vocabulary = Vocabulary((IMAGE, ask))
    assert vocabulary.size == 6 + 7
    row = Row(vocabulary, (("image", "ask"),))
    prompts, answers = np.array([[0, 2]]), np.array([[3, 1]])
    batch = fill_row(row, [np.zeros((1, 4), int), np.stack([prompts, answers], axis=-1)])
    np.testing.assert_array_equal(batch.tokens[:, 4:], prompts + vocabulary.special("ask"))
    np.testing.assert_array_equal(batch.targets["ask"], answers)
    config = replace(config_of("mamba2"), vocabulary=vocabulary)
    params = random_params(config, dtype=np.float32)
    made = [
        generate(params, config, {"image": np.zeros((1, 4), int)}, "ask", rng=np.random.default_rng(0),
                 prompts=p, temperature=0.0) for p in (prompts, np.array([[1, 1]]))
    ]  # fmt: skip
    y = logits(params, config, row, batch.tokens, {"ask": np.array([4, 5])})["ask"]
    np.testing.assert_array_equal(made[0], y.argmax(-1))
    assert made[1].shape == (1, 2)
    for wrong, words in (
        (prompts + 1, "prompts holds 3, expected indices from 0 to 2"),
        (prompts, "for readouts"),
    ):
        to = "ask" if wrong is not prompts else "image"
        source = {"image": np.zeros((1, 4), int)} if to == "ask" else {}
        with pytest.raises(ArgumentError, match=words):
            generate(params, config, source, to, rng=np.random.default_rng(0), prompts=wrong)
    with pytest.raises(ArgumentError, match="image has prompts=2, expected 1, or more of a readout"):
        Modality("image", "diffusion", codes=5, length=4, prompts=2)


def test_windows_of_attention_leave_scans_alone():
    row = Row(VOCABULARY, (("image", "image", "image", "ask"),))
    tokens = fill_row(row, random_codes(row)).tokens
    other = changed(tokens, 0)
    for mixer, reaches in (("attention", False), ("mamba2", True), (("attention", "mamba2"), True)):
        config = config_of(mixer, window=1)
        params = random_params(config)
        ask = [hidden(params, config, row, t)[:, -1] for t in (tokens, other)]
        # Two blocks that see one segment back reach two: the last image but one.
        assert (np.abs(ask[0] - ask[1]).max() > 1e-9) == reaches


def test_rotary_tells_the_order_of_two_images():
    row = Row(VOCABULARY, (("image", "image", "ask"),))
    first, second, ask = random_codes(row)
    there, back = (fill_row(row, [*pair, ask]).tokens for pair in ((first, second), (second, first)))
    for rotary in (False, True):
        config = replace(config_of("attention", rotary=rotary), depth=1)
        params = random_params(config)
        out = [hidden(params, config, row, t)[:, -1] for t in (there, back)]
        assert np.allclose(*out, atol=1e-12) != rotary


def test_positions_of_targets_that_hide_follow_the_sources():
    row = Row(VOCABULARY, (("image", ("text", "ask")), ("text", "image", "ask")))
    np.testing.assert_array_equal(row.place[:11], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 4])
    np.testing.assert_array_equal(row.place[11:], np.arange(11))


def test_decay_is_for_matrices_alone():
    config = config_of(("mamba", "mamba2", "ttt_linear", "ttt_mlp"))
    flat = checkpoint.flatten(init(config, np.random.default_rng(0)))
    chosen = {name for name, a in flat.items() if decays(name.replace("/", "."), a)}
    assert {
        "blocks/0/mixer/in_proj/weight",
        "blocks/0/mixer/x_proj/weight",
        "blocks/2/mixer/qk/weight",
        "heads/text/weight",
    } <= chosen
    kept = ("A_log", "/D", "conv", "norm", "bias", "token", "position", "modality", "fast", "dt_bias")
    assert not [name for name in chosen if any(part in name for part in kept)]


@pytest.mark.parametrize(
    ("sizes", "error", "words"),
    [
        ({"mixer": "lstm"}, ArgumentError, "mixer must be one of attention, mamba, mamba2, ttt_linear, ttt_mlp, not 'lstm'"),
        ({"mixer": ("mamba2", "rnn")}, ArgumentError, "mixer must be one of .*, not 'rnn'"),
        ({"mixer": ("mamba2",)}, ArgumentError, "mixer names 1 mixers, expected depth=2"),
        ({"mixer": 3}, DTypeError, "mixer must be a str or a sequence of str, not int"),
        ({"window": -1}, ArgumentError, "window must be at least 0, not -1"),
        ({"window": 1.5}, DTypeError, "window must be an integer, not float"),
        ({"state": 0}, ArgumentError, "state must be above 0, not 0"),
        ({"rotary": 1}, DTypeError, "rotary must be a bool, not 1"),
        ({"rotary": True, "width": 6}, ArgumentError, "rotary needs heads of an even width, not 3"),
    ],
)  # fmt: skip
def test_wrong_sizes(sizes, error, words):
    with pytest.raises(error, match=words):
        Config(VOCABULARY, **{"width": 8, "depth": 2, "heads": 2, **sizes})


def model_of(mixer, **more):
    rng = np.random.default_rng(0)
    text = TextTokenizer.from_corpus(["one", "two"])
    image = ImageTokenizer.fit(rng.random((20, 4, 4), np.float32), patch=(2, 4), codes=6, rng=rng)
    vocabulary = Vocabulary(
        (
            Modality("text", "autoregressive", text.size, text.tokens - 1, text.end),
            Modality("image", "diffusion", image.size, image.tokens),
        )
    )
    config = replace(config_of(mixer, **more), vocabulary=vocabulary)
    return Model(config, random_params(config, dtype=np.float32), {"text": text, "image": image})


@each
def test_a_saved_model_is_the_same_model(mixer, tmp_path):
    model = model_of(mixer, window=3, rotary=True)
    model.save(tmp_path / "model.safetensors")
    loaded = Model.load(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    assert loaded.describe() == model.describe()
    for source, to in (("two", "image"), (np.full((4, 4), 0.5, np.float32), "text")):
        for a, b in zip(*(m.generate(source, to=to, seed=1) for m in (model, loaded)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_models_of_attention_are_described_as_before(tmp_path):
    """Files of earlier versions name no mixer; what they can say is still said in their words."""
    model = model_of("attention")
    arrays, metadata = replace(model, config=replace(model.config, state=16)).to_arrays()
    assert set(metadata["config"]) == {"width", "depth", "heads", "hidden"}
    loaded = Model.from_arrays(arrays, metadata)
    assert loaded.config.mixers == ("attention", "attention")
    assert loaded.config.window is None


def test_a_file_of_another_mixer_is_refused():
    arrays, metadata = model_of("mamba2").to_arrays()
    for mixer, words in (
        ("attention", "lacks the parameter blocks/0/qkv/weight"),
        ("lstm", "does not describe a model: mixer must be one of"),
        (["mamba2"], "does not describe a model: mixer names 1 mixers"),
    ):
        other = metadata | {"config": metadata["config"] | {"mixer": mixer}}
        with pytest.raises(CheckpointError, match=words):
            Model.from_arrays(arrays, other)
    huge = metadata | {"config": metadata["config"] | {"depth": 10**12}}
    with pytest.raises(CheckpointError, match="describes 1000000000000 blocks"):
        Model.from_arrays(arrays, huge)


def test_describing_a_hybrid():
    words = model_of(HYBRID, window=3).describe()
    assert "mixers: mamba, attention, ttt_linear, mamba2, ttt_mlp" in words
    assert "attention sees 3 segments before its own" in words
