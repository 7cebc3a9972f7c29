"""The task of long memory: what an album holds, that nothing gives the answer away, and a run in small."""

import json

import numpy as np
import pytest
from sensorium import cli, recall
from sensorium.errors import ArgumentError, DTypeError
from sensorium.models.unified.network import shapes
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def albums():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recall, "COPIES", 1)
        return recall.Albums(seed=0)


def test_what_an_album_holds(albums):
    album = albums.draw(3, 6, "train", np.random.default_rng(0))
    row, tokens = album.batch.row, album.batch.tokens
    assert tokens.shape == (3, 6 * 23)
    label, ask = (albums.vocabulary.special(name) for name in ("label", "ask"))
    labels = np.stack([tokens[:, s.start] - label for s in row.slots if s.modality == "label"], axis=1)
    names = np.stack([tokens[:, s.start] - ask for s in row.slots if s.modality == "ask"], axis=1)
    starts = [np.array([s.start for s in row.slots if s.modality == m]) for m in ("label", "ask")]
    for r in range(3):
        assert sorted(labels[r][labels[r] > 0]) == [1, 2, 3, 4]
        assert labels[r][0] > 0
        for q, name in enumerate(names[r]):
            item = np.flatnonzero(labels[r] == name + 1).item()
            assert item < 2 * (q + 1)  # given before it is asked for
            assert album.answers[r, q] == album.digits[r, item]
            assert album.distance[r, q] == starts[1][q] - starts[0][item]
    np.testing.assert_array_equal(album.batch.targets["label"], album.digits)
    np.testing.assert_array_equal(album.batch.targets["ask"], album.answers)


def test_no_answer_is_shown(albums):
    """Two albums that differ in a digit differ in the tokens of that item alone."""
    tokens = albums.draw(64, 8, "train", np.random.default_rng(0)).batch.tokens
    offset = albums.vocabulary.offset
    first, last = offset["label"], albums.vocabulary.size
    shown = tokens[tokens >= first]
    special = [albums.vocabulary.special(name) + np.arange(n) for name, n in (("label", 5), ("ask", 4))]
    assert set(np.unique(shown)) == set(np.concatenate(special))
    assert last == special[-1][-1] + 1


def test_items_are_of_the_digits_that_they_should_be(albums):
    """A picture of the bank of a digit is coded like a training picture of that digit more often than not."""
    image = albums.banks["train"]["image"]
    rng = np.random.default_rng(0)
    digit = rng.integers(10, size=200)
    codes = image.draw(digit, rng)
    for code, d in zip(codes, digit, strict=True):
        own = image.codes[:, image.start[d] : image.start[d] + image.count[d]]
        assert (own == code).all(axis=-1).any()


def test_test_items_are_others(albums):
    for kind, known in (("image", 1438), ("audio", 1350)):
        train, test = albums.banks["train"][kind], albums.banks["test"][kind]
        assert train.codes.shape[1] == known
        assert test.count.sum() == test.codes.shape[1] < known
    # Of the held-out pictures, few are coded like a training picture: they are others, not copies.
    seen = {tuple(c) for c in albums.banks["train"]["image"].codes[0]}
    held = [tuple(c) in seen for c in albums.banks["test"]["image"].codes[0]]
    assert np.mean(held) < 0.2


@pytest.mark.parametrize("mixer", ["mamba", "mamba2", "ttt_linear", "ttt_mlp", ("mamba", "attention")])
def test_every_mixer_has_as_many_parameters(albums, mixer):
    count = lambda m: sum(np.prod(s) for s in shapes(recall.config_of(albums.vocabulary, m)).values())  # noqa: E731
    assert count(mixer) == pytest.approx(count("attention"), rel=2e-3)


def test_far_questions_are_out_of_reach_of_the_baseline(albums):
    row = albums.row(recall.GROUPS)
    assert row.length == 1035
    dense = row.windowed(recall.WINDOW).dense()
    twice = (dense.astype(np.float32) @ dense) > 0  # through two layers
    for column, seen in enumerate(twice):
        assert column - np.flatnonzero(seen).min() < recall.FAR
    assert row.windowed(None).dense()[-1].all()


@pytest.fixture
def small(monkeypatch, albums):
    monkeypatch.setattr(recall, "Albums", lambda seed: albums)
    for name, value in {
        "WIDTH": 16,
        "HEADS": 2,
        "HIDDEN": 32,
        "GROUPS": 5,
        "TEST_ROWS": 8,
        "FAR": 32,
    }.items():
        monkeypatch.setattr(recall, name, value)
    monkeypatch.setattr(recall, "ROWS", {4: 4, 5: 2})
    monkeypatch.setattr(recall, "STAGES", ((0.5, (4,)), (1.0, (4, 5))))


def test_a_run_in_small(small):
    records = []
    first = recall.run("ttt_linear", steps=4, seed=3, longer=2, progress=records.append)
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    assert first["losses"] == [round(r["loss"], 4) for r in records]
    assert 0 < first["test"]["far"]["questions"] < 8 * 5
    assert first["longer"]["read"]["questions"] == 2 * 20
    for share in (*first["test"].values(), *first["longer"].values()):
        assert 0 <= share["low"] <= share["accuracy"] <= share["high"] <= 1
    by_distance = sum(s["questions"] for k, s in first["test"].items() if k.isdigit())
    assert by_distance == 8 * 5
    again = recall.run("ttt_linear", steps=4, seed=3, longer=2)
    assert {k: v for k, v in again.items() if k != "processor_seconds"} == {
        k: v for k, v in first.items() if k != "processor_seconds"
    }
    other = recall.run("ttt_linear", steps=4, seed=4)
    assert "longer" not in other
    assert other["losses"] != first["losses"]


def test_the_command(small, tmp_path):
    path = tmp_path / "figures.json"
    arguments = ["recall", "--mixer", "ttt_linear,attention", "--window", "3", "--steps", "2"]
    done = CliRunner().invoke(cli.app, [*arguments, "--longer", "2", "--out", str(path)])
    assert done.exit_code == 0, done.output
    figures = json.loads(path.read_text())
    assert (figures["mixer"], figures["window"], figures["steps"]) == (["ttt_linear", "attention"], 3, 2)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("albums of 115 tokens")
    assert any(line.startswith("albums of 230 tokens") for line in lines)
    far = figures["test"]["far"]
    assert any(line.split()[:2] == ["far", f"{100 * far['accuracy']:.1f}"] for line in lines)
    assert sum("0 to 63 tokens" in line for line in lines) == 2
    refused = CliRunner().invoke(cli.app, ["recall", "--mixer", "lstm", "--steps", "1"])
    assert refused.exit_code == 2
    assert "error: mixer must be one of attention, mamba" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"steps": 0}, ArgumentError, "steps must be at least 1, not 0"),
        ({"longer": 0}, ArgumentError, "longer must be at least 1, not 0"),
        ({"seed": -1}, ArgumentError, "seed must be at least 0, not -1"),
        ({"learning_rate": 0.0}, ArgumentError, "learning_rate must be above 0, not 0"),
        ({"mixer": "gru"}, ArgumentError, "mixer must be one of .*, not 'gru'"),
        ({"mixer": 3}, DTypeError, "mixer must be a str or a sequence of str"),
    ],
)
def test_wrong_arguments(small, arguments, error, words):
    with pytest.raises(error, match=words):
        recall.run(**{"mixer": "attention", "steps": 1, **arguments})
