"""The main job, in small: what is measured, what is written, and that the judge decides."""

import json
from functools import partial

import numpy as np
import pytest
from sensorium import quickstart
from sensorium.data import digits
from sensorium.data.corpus import Corpus
from sensorium.evaluate import DIRECTIONS, Answers, answer, evaluate
from sensorium.judge import Judge
from sensorium.models.unified import Model
from sensorium.recipe import Recipe
from sensorium.train import fit

RECIPE = Recipe(width=16, depth=1, heads=2, hidden=32, image_codes=32, audio_codes=32, rows=4, jitter=1)


def thinned(corpus: Corpus, test: int, train: int) -> Corpus:
    """The first items of each group and split."""
    fields = {"texts": corpus.texts, "names": corpus.names, "sample_rate": corpus.sample_rate}
    fields |= {"text_group": corpus.text_group, "text_split": corpus.text_split}
    for name in ("image", "audio"):
        group, split = getattr(corpus, f"{name}_group"), getattr(corpus, f"{name}_split")
        keep = np.concatenate(
            [np.flatnonzero((group == g) & (split == s))[:n]
             for g in range(10) for s, n in (("test", test), ("train", train))]
        )  # fmt: skip
        items = getattr(corpus, f"{name}s")
        fields[f"{name}s"] = items[keep] if name == "image" else [items[i] for i in keep]
        fields |= {f"{name}_group": group[keep], f"{name}_split": split[keep]}
    return Corpus(**fields)


@pytest.fixture(scope="module")
def corpus():
    return thinned(digits(), test=2, train=12)


@pytest.fixture(scope="module")
def judge(corpus):
    return Judge().fit(corpus)


@pytest.fixture(scope="module")
def model(corpus):
    return fit(corpus, RECIPE, steps=3).model


def in_small(monkeypatch, corpus):
    monkeypatch.setattr(quickstart, "digits", lambda images, seed: corpus)
    monkeypatch.setattr(quickstart, "evaluate", partial(evaluate, repeats=2))


def test_what_quickstart_writes(corpus, tmp_path, monkeypatch):
    in_small(monkeypatch, corpus)
    monkeypatch.setattr("sensorium.train.PREVIEW_EVERY", 0.0)
    records = []
    metrics = quickstart.run(steps=4, seed=1, out=tmp_path / "out", recipe=RECIPE, progress=records.append)
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written == json.loads(json.dumps(metrics))
    for source, target in DIRECTIONS:
        low, share, high = (written[f"accuracy.{source}_to_{target}{s}"] for s in ("_low", "", "_high"))
        assert 0 <= low <= share <= high <= 1
    for name in ("judge.image", "judge.audio", "train_seconds", "steps", "parameters", "threads", "seed"):
        assert isinstance(written[name], int | float)
    assert (written["steps"], written["seed"]) == (4, 1)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("<audio") == 40  # ten digits in four directions that have sound on one side
    assert "sensorium quickstart --steps 4 --seed 1 --images sklearn" in page
    model = Model.load(tmp_path / "out" / "model.safetensors")
    assert written["parameters"] == model.parameters
    assert any("samples" in record for record in records)
    assert [r["phase"] for r in records if "phase" in r] == [
        "learning the tokens",
        "measuring all six directions on held-out items",
    ]


def test_resuming_quickstart_ends_with_the_same_figures(corpus, tmp_path, monkeypatch):
    in_small(monkeypatch, corpus)
    first = quickstart.run(steps=4, out=tmp_path, recipe=RECIPE)
    again = quickstart.run(steps=4, out=tmp_path, recipe=RECIPE, resume=True)
    clock = {"train_seconds", "evaluation_seconds"}
    assert {k: v for k, v in first.items() if k not in clock} == {
        k: v for k, v in again.items() if k not in clock
    }


def test_every_held_out_item_is_asked_and_no_other(model, judge, corpus):
    test = corpus.select("test")
    asked = answer(model, judge, test, "image", "text", rng=np.random.default_rng(0))
    np.testing.assert_array_equal(asked.expected, test.image_group)
    assert len(asked.outputs) == len(test.images)
    asked = answer(model, judge, test, "text", "image", rng=np.random.default_rng(0), repeats=3)
    np.testing.assert_array_equal(np.bincount(asked.expected), [3] * 10)
    np.testing.assert_array_equal(asked.judged, judge.image(np.stack(asked.outputs)))


def test_a_word_that_is_none_is_wrong(model, judge, corpus, monkeypatch):
    monkeypatch.setattr(Model, "decode", lambda self, kind, codes: ["zero"] * (len(codes) - 1) + ["sevenn"])
    asked = answer(model, judge, corpus.select("test"), "image", "text", rng=np.random.default_rng(0))
    assert asked.judged[-1] == -1
    assert (asked.judged[:-1] == 0).all()
    assert asked.accuracy == pytest.approx(np.mean(asked.expected[:-1] == 0) * (1 - 1 / len(asked.outputs)))


def test_accuracy_and_interval():
    four = np.array([0, 1, 2, 3])
    answers = Answers([], [], four, np.array([0, 1, 2, 0]), four)
    assert answers.accuracy == 0.75
    low, high = answers.interval
    # Wilson 1927 for 3 of 4 at 95 %.
    assert (round(low, 3), round(high, 3)) == (0.301, 0.954)


def test_a_model_that_repeats_itself_shows(model, judge, corpus, monkeypatch):
    real = Model.generate_codes

    def same(self, source_kind, codes, to, **kwargs):
        out = real(self, source_kind, codes, to, **kwargs)
        return np.repeat(out[:1], len(out), axis=0)

    metrics, _ = evaluate(model, judge, corpus, repeats=2)
    assert metrics["diversity.image_distinct"] > 0.5
    monkeypatch.setattr(Model, "generate_codes", same)
    metrics, _ = evaluate(model, judge, corpus, repeats=2)
    assert metrics["diversity.image_distinct"] == pytest.approx(1 / 20)
    assert metrics["diversity.audio_distinct"] == pytest.approx(1 / 20)
