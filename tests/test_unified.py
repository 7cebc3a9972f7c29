"""The unified model: its loss, its gradients, what it generates, what it saves."""

import itertools

import numpy as np
import pytest
from sensorium import checkpoint
from sensorium._tree import tree_map
from sensorium.autodiff import value_and_grad
from sensorium.errors import ArgumentError, CheckpointError, DTypeError, ShapeError
from sensorium.models.unified import (
    Config,
    Decoding,
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
from sensorium.models.unified.decode import sample
from sensorium.models.unified.network import hidden, shapes
from sensorium.models.unified.reader import Reader
from sensorium.tokenizers import AudioTokenizer, ImageTokenizer, TextTokenizer

TEXT = Modality("text", "autoregressive", codes=3, length=2, pad=2)
IMAGE = Modality("image", "diffusion", codes=5, length=4)
VOCABULARY = Vocabulary((TEXT, IMAGE))
CONFIG = Config(VOCABULARY, width=8, depth=2, heads=2, hidden=16)


def random_params(config=CONFIG, seed=0, dtype=np.float32, scale=0.5):
    """Parameters without the zeros of the beginning, so that every part of the model matters."""
    rng = np.random.default_rng(seed)
    draw = lambda a: (a + scale * rng.standard_normal(a.shape)).astype(dtype)  # noqa: E731
    return tree_map(draw, init(config, rng))


def random_batch(tasks=(("image", "text"), ("text", "image")), rows=3, seed=0, config=CONFIG):
    rng = np.random.default_rng(seed)
    row = Row(config.vocabulary, tasks)
    by_name = config.vocabulary.by_name
    codes = [
        rng.integers(0, by_name[s.modality].codes, (rows, by_name[s.modality].length)) for s in row.slots
    ]
    return fill_row(row, codes, rng)


def test_shapes_are_those_of_init():
    params = init(CONFIG, np.random.default_rng(0), {"image": np.eye(5)})
    assert {name: a.shape for name, a in checkpoint.flatten(params).items()} == shapes(CONFIG)
    assert {a.dtype for a in checkpoint.flatten(params).values()} == {np.dtype(np.float32)}


def test_loss_of_a_model_that_knows_nothing_is_the_log_of_the_alphabet():
    total, parts = loss(init(CONFIG, np.random.default_rng(0)), CONFIG, random_batch())
    assert float(parts["text"]) == pytest.approx(np.log(3), rel=1e-6)
    assert float(parts["image"]) == pytest.approx(np.log(5), rel=1e-6)
    assert float(total) == pytest.approx(np.log(3) + np.log(5), rel=1e-6)


def test_loss_weights():
    params, batch = random_params(), random_batch()
    total, parts = loss(params, CONFIG, batch, {"text": 3.0})
    assert float(total) == pytest.approx(3 * float(parts["text"]) + float(parts["image"]), rel=1e-6)


def test_gradient_along_a_random_direction():
    params, batch = random_params(dtype=np.float64), random_batch()
    f = lambda p: loss(p, CONFIG, batch)[0]  # noqa: E731
    _, grads = value_and_grad(f)(params)
    rng = np.random.default_rng(1)
    direction = tree_map(lambda a: rng.standard_normal(a.shape), params)
    h = 1e-6
    there, back = (tree_map(lambda a, d, s=s: a + s * h * d, params, direction) for s in (1, -1))
    slope = (float(f(there)) - float(f(back))) / (2 * h)
    flat = zip(*(checkpoint.flatten(t).values() for t in (grads, direction)), strict=True)
    assert sum(float((g * d).sum()) for g, d in flat) == pytest.approx(slope, rel=1e-6)


def test_samples_of_a_row_do_not_see_each_other():
    params, batch = random_params(), random_batch()
    packed = logits(params, CONFIG, batch.row, batch.tokens, {"image": np.arange(10, 14)})["image"]
    alone = Row(VOCABULARY, (("text", "image"),))
    own = logits(params, CONFIG, alone, batch.tokens[:, 7:], {"image": np.arange(3, 7)})["image"]
    np.testing.assert_allclose(packed, own, rtol=2e-5, atol=2e-5)


def test_text_does_not_see_what_follows():
    params, batch = random_params(), random_batch((("image", "text"),))
    at = {"text": np.arange(4, 6)}
    before = logits(params, CONFIG, batch.row, batch.tokens, at)["text"]
    changed = batch.tokens.copy()
    changed[:, 6] = (changed[:, 6] + 1) % 3
    np.testing.assert_array_equal(logits(params, CONFIG, batch.row, changed, at)["text"], before)


def test_likelihoods_of_all_texts_sum_to_one():
    params = random_params()
    texts = np.array([t for t in itertools.product(range(3), repeat=2) if t[0] != 2 or t[1] == 2])
    image = np.repeat(np.random.default_rng(0).integers(0, 5, (1, 4)), len(texts), axis=0)
    total = np.exp(log_likelihood(params, CONFIG, {"image": image}, "text", texts)).sum()
    assert total == pytest.approx(1.0, rel=1e-5)


def test_sampled_texts_are_as_frequent_as_they_are_likely():
    params, n = random_params(), 4000
    image = np.repeat(np.array([[0, 1, 2, 3]]), n, axis=0)
    drawn = generate(params, CONFIG, {"image": image}, "text", rng=np.random.default_rng(0))
    texts, count = np.unique(drawn, axis=0, return_counts=True)
    p = np.exp(log_likelihood(params, CONFIG, {"image": image[: len(texts)]}, "text", texts))
    # Each count is binomial: five standard deviations, for at most seven texts.
    assert (np.abs(count - n * p) <= 5 * np.sqrt(n * p * (1 - p)) + 1).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reading_piece_by_piece_gives_what_reading_at_once_does(dtype):
    params, row = random_params(dtype=dtype), Row(VOCABULARY, (("image", "text"),))
    tokens = fill_row(row, [np.array([[0, 1, 2, 3], [4, 3, 2, 1]]), np.array([[0, 1], [1, 2]])]).tokens
    whole = hidden(params, CONFIG, row, tokens)
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    # A segment that is read whole has its final states; the text is causal, and may be cut anywhere.
    for cuts in ([4, 5, 6, 7], [7], [4, 7], [5, 7]):
        reader = Reader(params, CONFIG, row, tokens.copy())
        parts = [reader.read(a, b) for a, b in itertools.pairwise([0, *cuts])]
        np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=tolerance)
    reader = Reader(params, CONFIG, row, tokens.copy())
    np.testing.assert_allclose(reader.read(4, 7), whole[:, 4:], rtol=0, atol=tolerance)
    # A segment that changed is read anew, what stands before it is not.
    reader.tokens[:, 5:] = tokens[::-1, 5:]
    reader.forget(5)
    changed = hidden(params, CONFIG, row, reader.tokens)
    np.testing.assert_allclose(reader.read(5, 7), changed[:, 5:], rtol=0, atol=tolerance)
    assert np.abs(changed[:, 5:] - whole[:, 5:]).max() > 0.01


class Forgetful(Reader):
    """Reads whole rows at every step."""

    def read(self, start, stop):
        self.forget(0)
        return super().read(start, stop)


@pytest.mark.parametrize("task", [("image", "text"), ("text", "image")])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_kept_changes_no_code(monkeypatch, task, guidance, seed):
    (source, target), params = task, random_params(seed=seed)
    modality = VOCABULARY.by_name[source]
    codes = np.random.default_rng(seed).integers(0, modality.codes, (40, modality.length))
    drawn = []
    for reader in (Reader, Forgetful):
        monkeypatch.setattr("sensorium.models.unified.decode.Reader", reader)
        rng = np.random.default_rng(seed)
        drawn.append(generate(params, CONFIG, {source: codes}, target, rng=rng, guidance=guidance))
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_generated_images(steps, guidance):
    params = random_params()
    text = np.array([[0, 2], [1, 0], [1, 1]])
    make = lambda seed: generate(  # noqa: E731
        params,
        CONFIG,
        {"text": text},
        "image",
        rng=np.random.default_rng(seed),
        steps=steps,
        guidance=guidance,
    )
    out = make(0)
    assert out.shape == (3, 4)
    assert out.min() >= 0
    assert out.max() < 5
    np.testing.assert_array_equal(out, make(0))
    assert (np.concatenate([make(seed) for seed in range(1, 5)]) != np.tile(out, (4, 1))).any()


def test_one_step_at_temperature_zero_takes_the_most_likely_codes():
    params, text = random_params(), np.array([[0, 2], [1, 1]])
    out = generate(
        params, CONFIG, {"text": text}, "image", rng=np.random.default_rng(0), temperature=0.0, steps=1
    )
    row = Row(VOCABULARY, (("text", "image"),))
    masked = fill_row(row, [text, np.zeros((2, 4), int)]).tokens
    want = logits(params, CONFIG, row, masked, {"image": np.arange(3, 7)})["image"].argmax(-1)
    np.testing.assert_array_equal(out, want)


def test_generation_without_a_source():
    out = generate(random_params(), CONFIG, {}, "image", rng=np.random.default_rng(0), rows=6)
    assert out.shape == (6, 4)


def test_sampling_follows_the_softmax():
    x = np.tile(np.log([0.7, 0.2, 0.1]), (20_000, 1))
    share = np.bincount(sample(x, 1.0, np.random.default_rng(0)), minlength=3) / 20_000
    np.testing.assert_allclose(share, [0.7, 0.2, 0.1], atol=5 * 0.5 / np.sqrt(20_000))
    assert (sample(x, 0.0, np.random.default_rng(0)) == 0).all()


@pytest.mark.parametrize("kinds", list(itertools.product(["autoregressive", "diffusion"], repeat=2)))
def test_every_modality_in_either_kind(kinds):
    vocabulary = Vocabulary((Modality("image", kinds[0], 5, 4), Modality("audio", kinds[1], 4, 3)))
    config = Config(vocabulary, width=8, depth=1, heads=2, hidden=8)
    params = random_params(config)
    total, _ = loss(params, config, random_batch((("image", "audio"), ("audio", "image")), config=config))
    assert np.isfinite(float(total))
    image = np.array([[0, 1, 2, 3]])
    out = generate(params, config, {"image": image}, "audio", rng=np.random.default_rng(0), guidance=2.0)
    assert out.shape == (1, 3)
    assert out.max() < 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target": "sound"}, "the model knows text, image, not 'sound'"),
        ({"target": "text"}, "target 'text' is among the sources"),
        ({"steps": 0}, "steps must be above 0, not 0"),
        ({"temperature": -1.0}, "temperature must be 0 or above, not -1"),
        ({"temperature": float("nan")}, "temperature must be 0 or above, not nan"),
        ({"guidance": float("inf")}, "guidance must be finite, not inf"),
    ],
)
def test_wrong_arguments_of_generate(arguments, words):
    arguments = {"target": "image", **arguments}
    with pytest.raises(ArgumentError, match=words):
        generate(init(CONFIG, np.random.default_rng(0)), CONFIG, {"text": np.zeros((1, 2), int)},
                 rng=np.random.default_rng(0), **arguments)  # fmt: skip


def test_diffusion_has_no_likelihood():
    with pytest.raises(ArgumentError, match="image is not autoregressive"):
        log_likelihood(
            random_params(), CONFIG, {"text": np.zeros((1, 2), int)}, "image", np.zeros((1, 4), int)
        )


@pytest.mark.parametrize(
    ("sizes", "error", "words"),
    [
        ({"width": 0}, ArgumentError, "width must be above 0, not 0"),
        ({"width": 9}, ArgumentError, "width=9 must be a multiple of heads=4"),
        ({"depth": 1.5}, DTypeError, "depth must be an integer, not 1.5"),
    ],
)
def test_wrong_sizes(sizes, error, words):
    with pytest.raises(error, match=words):
        Config(VOCABULARY, **sizes)


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    text = TextTokenizer.from_corpus(["one", "two"])
    image = ImageTokenizer.fit(rng.random((20, 4, 4), np.float32), patch=(2, 4), codes=6, rng=rng)
    sounds = [rng.uniform(-0.5, 0.5, 1000).astype(np.float32) for _ in range(4)]
    audio = AudioTokenizer.fit(sounds, sample_rate=8000, seconds=0.125, codes=5, rng=rng)
    vocabulary = Vocabulary(
        (
            Modality("text", "autoregressive", text.size, text.tokens - 1, text.end),
            Modality("image", "diffusion", image.size, image.tokens),
            Modality("audio", "diffusion", audio.size, audio.tokens),
        )
    )
    config = Config(vocabulary, width=8, depth=1, heads=2, hidden=8)
    decoding = {"text": Decoding(temperature=0.0), "image": Decoding(guidance=2.0, candidates=3)}
    return Model(config, random_params(config), {"text": text, "image": image, "audio": audio}, decoding)


SOURCES = {
    "text": "two",
    "image": np.full((4, 4), 0.5, np.float32),
    "audio": np.sin(np.arange(900) / 9).astype(np.float32) / 2,
}


@pytest.mark.parametrize(("source", "to"), list(itertools.permutations(SOURCES, 2)))
def test_any_to_any(model, source, to):
    out = model.generate(SOURCES[source], to=to, samples=3, seed=5)
    assert len(out) == 3
    if to == "text":
        assert all(isinstance(text, str) for text in out)
    elif to == "image":
        assert all(image.shape == (4, 4) for image in out)
    else:
        assert all(sound.ndim == 1 and np.isfinite(sound).all() for sound in out)
    again = model.generate(SOURCES[source], to=to, samples=3, seed=5)
    for a, b in zip(out, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_candidates_are_read_back_and_the_likeliest_is_kept(model):
    word = model.encode("text", ["two"])
    rng = lambda: np.random.default_rng(3)  # noqa: E731
    kept = model.generate_codes("text", word, "image", rng=rng(), candidates=8)
    drawn = model.generate_codes("text", np.repeat(word, 8, axis=0), "image", rng=rng(), candidates=1)
    read = log_likelihood(model.params, model.config, {"image": drawn}, "text", np.repeat(word, 8, axis=0))
    np.testing.assert_array_equal(kept[0], drawn[read.argmax()])


def test_a_saved_model_is_the_same_model(model, tmp_path):
    model.save(tmp_path / "model.safetensors")
    loaded = Model.load(tmp_path / "model.safetensors")
    assert loaded.config == model.config
    assert loaded.decoding == model.decoding
    assert loaded.describe() == model.describe()
    params, read = (checkpoint.flatten(m.params) for m in (model, loaded))
    assert params.keys() == read.keys()
    for name, a in params.items():
        np.testing.assert_array_equal(a, read[name])
    for source, to in itertools.permutations(SOURCES, 2):
        for a, b in zip(*(m.generate(SOURCES[source], to=to, seed=1) for m in (model, loaded)), strict=True):
            np.testing.assert_array_equal(a, b)


def _damaged(metadata, arrays, how):
    if how == "format":
        metadata["format"] = "something else"
    elif how == "huge width":
        metadata["config"]["width"] = 10**9
    elif how == "huge depth":
        metadata["config"]["depth"] = 10**12
    elif how == "float width":
        metadata["config"]["width"] = 8.5
    elif how == "unknown size":
        metadata["config"]["girth"] = 3
    elif how == "huge alphabet":
        metadata["modalities"][0]["codes"] = 10**15
    elif how == "no modalities":
        del metadata["modalities"]
    elif how == "unknown tokenizer":
        metadata["tokenizers"]["smell"] = {}
    elif how == "missing parameter":
        del arrays["params/token"]
    elif how == "extra parameter":
        arrays["params/more"] = np.zeros(3, np.float32)
    elif how == "wrong shape":
        arrays["params/token"] = arrays["params/token"][:-1]
    elif how == "wrong dtype":
        arrays["params/token"] = arrays["params/token"].astype(np.float64)
    elif how == "tokenizer of another size":
        metadata["tokenizers"]["text"]["characters"] += "xyz"
    elif how == "no codebook":
        arrays = {k: a for k, a in arrays.items() if not k.startswith("tokenizers/image")}
    return metadata, arrays


@pytest.mark.parametrize(
    "how",
    [
        "format", "huge width", "huge depth", "float width", "unknown size", "huge alphabet", "no modalities",
        "unknown tokenizer", "missing parameter", "extra parameter", "wrong shape", "wrong dtype",
        "tokenizer of another size", "no codebook",
    ],
)  # fmt: skip
def test_files_that_are_not_such_a_model(model, tmp_path, how):
    arrays, metadata = model.to_arrays()
    metadata, arrays = _damaged(metadata, dict(arrays), how)
    checkpoint.save(tmp_path / "model.safetensors", arrays, metadata)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        Model.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"source": "one", "to": "smell"}, ArgumentError, "the model knows text, image, audio, not 'smell'"),
        ({"source": "one", "to": "text"}, ArgumentError, "source and target are both text"),
        ({"source": "six", "to": "image"}, ArgumentError, "'s'"),
        ({"source": "one", "to": "image", "samples": 0}, ArgumentError, "samples must be above 0, not 0"),
        (
            {"source": "one", "to": "image", "candidates": 0},
            ArgumentError,
            "candidates must be above 0, not 0",
        ),
        (
            {"source": np.zeros((5, 4)), "to": "text"},
            ShapeError,
            r"source has shape \(5, 4\), expected \(4, 4\)",
        ),
        ({"source": np.full((4, 4), np.nan), "to": "text"}, ArgumentError, "source holds NaN"),
        (
            {"source": np.zeros(0), "to": "text"},
            ShapeError,
            r"source has shape \(0,\), expected \(samples,\)",
        ),
        ({"source": np.zeros(3), "source_kind": "text", "to": "image"}, DTypeError, "source must be a str"),
    ],
)
def test_wrong_arguments_of_the_model(model, arguments, error, words):
    with pytest.raises(error, match=words):
        model.generate(arguments.pop("source"), **arguments)
