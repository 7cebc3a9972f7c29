"""The commands of multimodal VAEs, as they are typed: what they print, write and refuse."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from PIL import Image
from sensorium import checkpoint, cli, vae_jobs
from sensorium.data.multimodal import Encoding
from sensorium.errors import ArgumentError, CheckpointError
from sensorium.models.vae import Model
from sensorium.vae_jobs import KINDS, Source, Trained, config_for, write
from typer.testing import CliRunner

SENSES = ("image", "audio", "text")
SIZE = ["--image-size", 6, 8, "--sample-rate", 4000]


def run(*arguments):
    return CliRunner().invoke(cli.app, ["vae", *(str(argument) for argument in arguments)])


def refused(*arguments):
    """Return the error that a command ends with: one line, and exit code 2."""
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    *_, error = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert done.stdout == ""
    return error


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twenty rows of two kinds, of which some lack something, eight are held out, and one cannot be used."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(20):
        kind = i % 2
        pixels = rng.integers(0, 60, (6, 8), dtype=np.uint8)
        pixels[:, 4 * kind : 4 * kind + 4] += 180
        Image.fromarray(pixels).save(folder / f"{i}.png")
        tone = 0.5 * np.sin(2 * np.pi * (300, 900)[kind] * np.arange(1000) / 4000)
        soundfile.write(folder / f"{i}.wav", tone, 4000)
        row = {"image": f"{i}.png", "audio": f"{i}.wav", "text": ("left", "right")[kind]}
        if i < 6:
            del row[SENSES[i % 3]]
        rows.append(row | ({"split": "test"} if i >= 12 else {}))
    rows.insert(3, {"image": "lost.png"})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("vae")
    done = run("train", "--data", data, "--steps", 20, "--latent-dim", 3, "--out", out, *SIZE)
    assert done.exit_code == 0, done.output
    assert "line 4: image 'lost.png': no such file" in done.stderr
    assert done.stdout.splitlines()[-1] == f"model   {out / 'model.safetensors'}"
    return out


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", ["train", "generate", "report"])
def test_help(command):
    assert command in run("--help").stdout
    done = run(command, "--help")
    assert done.exit_code == 0
    assert len(done.stdout) > 100


# --- train ------------------------------------------------------------------------------------------------


def test_a_file_says_how_its_model_reads_and_writes(trained, data):
    loaded = Trained.load(trained)
    assert loaded.encoding.shapes == {"image": (6, 8), "audio": (24, 32), "text": (6, 11)}
    assert loaded.source == Source(str(data), 0, (6, 8), 1, 4000)
    assert loaded.facts["steps"] == 20
    assert loaded.facts["interrupted"] is False
    assert loaded.history[-1]["step"] == 20
    assert Model.load(trained / "model.safetensors").config == loaded.model.config


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_posterior(data, folder, kind):
    done = run(
        "train", "--data", data, "--posterior", kind, "--steps", 2, "--latent-dim", 2, "--out", kind, *SIZE
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{kind} of image, audio, text: ")
    config = Trained.load(kind).model.config
    assert config.posterior == kind.replace("mmvae_plus", "mixture")
    assert config.private_dim == (0 if kind.startswith("mixture") else 16)
    assert config.latent_dim == 2


def test_what_is_resumed_is_the_same_run(trained, data):
    before = checkpoint.load(trained / "model.safetensors")[0]
    again = run(
        "train", "--data", data, "--steps", 20, "--latent-dim", 3, "--out", trained, "--resume", *SIZE
    )
    assert again.exit_code == 0, again.output
    after = checkpoint.load(trained / "model.safetensors")[0]
    assert all(np.array_equal(after[name], before[name]) for name in before)
    other = ["train", "--data", data, "--steps", 20, "--latent-dim", 4, "--out", trained, "--resume", *SIZE]
    assert "another config" in refused(*other)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_ctrl_c_ends_training_and_writes_the_model(data, folder):
    code = "from sensorium.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "vae", "train", "--data", str(data), "--seconds", "600", "--out", "m"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("step 1 "):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "training was ended early; --resume goes on" in output
    assert Trained.load("m").facts["interrupted"] is True


def test_digits_without_data(folder):
    done = run("train", "--steps", 1, "--out", "d")
    assert done.exit_code == 0, done.output
    loaded = Trained.load("d")
    assert loaded.encoding.shapes == {"image": (8, 8), "audio": (24, 32), "text": (6, 18)}
    image = loaded.model.config.modalities["image"]
    assert (image.likelihood, image.trials) == ("bernoulli", 16)


def test_what_cannot_be_trained_on(data, folder):
    assert "no.jsonl: No such file" in refused("train", "--data", "no.jsonl")
    assert "give --seconds or --steps, not both" in refused("train", "--seconds", 1, "--steps", 1)
    assert "line 4: image 'lost.png'" in refused("train", "--data", data, "--strict", *SIZE)
    (folder / "held.jsonl").write_text('{"text": "a", "split": "test"}\n', encoding="utf-8")
    assert "no training items" in refused("train", "--data", "held.jsonl")


# --- generate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("", {"image.png", "audio.wav", "text.txt"}),
        ("i", {"audio.wav", "text.txt"}),
        ("a", {"image.png", "text.txt"}),
        ("t", {"image.png", "audio.wav"}),
        ("ia", {"text.txt"}),
        ("it", {"audio.wav"}),
        ("at", {"image.png"}),
        ("iat", {"image.png", "audio.wav", "text.txt"}),
    ],
)
def test_every_subset_writes_the_others(trained, data, folder, given, written):
    options = {
        "i": ["--given", f"image={data.parent / '7.png'}"],
        "a": ["--given", f"audio={data.parent / '7.wav'}"],
        "t": ["--word", "right"],
    }
    done = run("generate", trained, *(part for letter in given for part in options[letter]), "--out", "o")
    assert done.exit_code == 0, done.output
    assert {path.name for path in (folder / "o").iterdir()} == written
    for name in written:
        assert f"o/{name}" in done.stdout
    if "image.png" in written:
        with Image.open("o/image.png") as picture:
            assert picture.size == (8 * 22, 6 * 22)  # until the shorter side has 128 pixels
    if "audio.wav" in written:
        samples, rate = soundfile.read("o/audio.wav")
        assert rate == 4000
        assert len(samples) > 0
    if "text.txt" in written:
        assert done.stdout.startswith((folder / "o" / "text.txt").read_text(encoding="utf-8"))


def test_samples_are_numbered_and_seeded(trained, folder):
    def make(*more):
        done = run(
            "generate", trained, "--word", "left", "--to", "image", "--samples", 3, "--out", "s", *more
        )
        assert done.stdout.split() == [f"s/image-{i}.png" for i in (1, 2, 3)]
        return [(folder / name).read_bytes() for name in done.stdout.split()]

    first = make()
    assert len(set(first)) > 1
    assert make() == first
    assert make("--seed", 1) != first
    assert len(set(make("--mean"))) == 1


def test_what_is_given_may_be_written_too(trained, data, folder):
    picture = data.parent / "7.png"
    done = run(
        "generate", trained, "--given", f"image={picture}", "--to", "image", "--scale", 1, "--out", "r"
    )
    assert done.exit_code == 0, done.output
    with Image.open("r/image.png") as image:
        assert image.size == (8, 6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--given", "image=no.png"], "no.png: no such file"),
        (["--given", "image"], "--given image: expected image=FILE, audio=FILE or text=WORDS"),
        (["--given", "smell=rose"], "--given smell: the model knows image, audio, text"),
        (["--word", "left", "--given", "text=left"], "text is given twice"),
        (["--word", "Ω"], "'Ω'"),
        (["--word", "x" * 70], "70 characters"),
        (["--out", "taken"], "taken: File exists"),
    ],
)
def test_what_cannot_be_written_is_said_in_a_line(trained, folder, arguments, words):
    (folder / "taken").write_text("", encoding="utf-8")
    assert words in refused("generate", trained, *arguments)


def test_damaged_files_are_refused(trained, folder):
    data = (trained / "model.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(data[:-9])
    assert "cut.safetensors" in refused("generate", "cut.safetensors")
    assert "No such file" in refused("generate", "nothing")
    loaded = Trained.load(trained)
    loaded.model.save(folder / "bare.safetensors")
    with pytest.raises(CheckpointError, match="does not say how its model reads and writes: 'encoding'"):
        Trained.load(folder / "bare.safetensors")
    arrays, notes = checkpoint.load(trained / "model.safetensors")
    notes["encoding"]["image"] = [5, 8]
    checkpoint.save(folder / "other.safetensors", arrays, notes)
    with pytest.raises(CheckpointError, match="but an encoding of"):
        Trained.load(folder / "other.safetensors")


def test_a_model_of_one_sense_writes_it_from_nothing():
    encoding = Encoding(image=(2, 3))
    config = config_for(encoding, latent_dim=2)
    loaded = Trained(Model.init(config, np.random.default_rng(0)), encoding, Source(), [], {})
    made = write(loaded, {}, samples=2)
    assert [image.shape for image in made["image"]] == [(2, 3), (2, 3)]
    with pytest.raises(ArgumentError, match="kind must be one of product, mixture"):
        config_for(encoding, "sum")


# --- report -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reported(trained):
    done = run("report", trained)
    assert done.exit_code == 0, done.output
    return done, json.loads((trained / "metrics.json").read_text(encoding="utf-8"))


def test_figures(reported, trained):
    done, metrics = reported
    assert metrics["rows"] == 8
    for given in ("image", "audio", "text", "image+audio", "image+text", "audio+text", "image+audio+text"):
        for of in metrics["coherence"][given].values():
            assert 0 <= of["low"] <= of["share"] <= of["high"] <= 1
        assert given in metrics["posterior"]
        assert given in metrics["reconstruction"]
    assert "image + audio → text" in done.stdout
    assert f"{metrics['log_likelihood']['gain']['mean']:+.2f} nats" in done.stdout
    assert metrics["judge"]["image"] == 1
    assert {f"alone-{name}.safetensors" for name in SENSES} <= {path.name for path in trained.iterdir()}


def test_the_page_holds_everything_and_loads_nothing(reported, trained):
    page = (trained / "report.html").read_text(encoding="utf-8")
    for heading in (
        "Coherence",
        "Written from every subset",
        "The posterior sharpens",
        "Ways through",
        "Log-likelihood",
    ):
        assert heading in page
    assert "<script" not in page
    for source in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert source.startswith(("data:", "#"))
    assert page.count('class="latent"') == 4
    assert page.count("<audio") == 2 * (3 + 1)  # two groups; three subsets without a sound, and the real one
    assert page.count("<ellipse") == 4 + 3 + 2 + 1 + 4  # priors, experts, and what is gone by
    assert f"sensorium vae report {trained}" in page


def test_models_alone_are_kept(reported, trained):
    before = {path: path.stat().st_mtime_ns for path in trained.glob("alone-*")}
    loaded = Trained.load(trained)
    corpus = loaded.source.read()
    rows, _ = loaded.source.rows(corpus, loaded.encoding)
    models = vae_jobs._alone(trained, loaded, rows, None)
    assert {path: path.stat().st_mtime_ns for path in trained.glob("alone-*")} == before
    assert set(models) == set(SENSES)
    loaded.facts["seed"] += 1  # of another run
    vae_jobs._alone(trained, loaded, rows, None)
    after = {path: path.stat().st_mtime_ns for path in trained.glob("alone-*")}
    assert all(after[path] != then for path, then in before.items())


def test_hostile_words_are_shown_as_words(folder):
    rows = [{"text": f"<b>{'xy'[i % 2]}", "split": ("train", "test")[i // 4]} for i in range(8)]
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert run("train", "--data", "r.jsonl", "--steps", 1, "--out", "t", "--latent-dim", 2).exit_code == 0
    done = run("report", "t", "--no-baseline")
    assert done.exit_code == 0, done.output
    page = (folder / "t" / "report.html").read_text(encoding="utf-8")
    assert "<b>x" not in page
    assert "&lt;b&gt;x" in page
    assert "over models of each sense alone" not in done.stdout


def test_without_held_out_rows_the_page_says_so(folder):
    rows = [{"text": "xy"[i % 2]} for i in range(6)]
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert run("train", "--data", "r.jsonl", "--steps", 1, "--out", "t", "--latent-dim", 1).exit_code == 0
    assert run("report", "t", "--no-baseline").exit_code == 0
    assert "No row is held out" in (folder / "t" / "report.html").read_text(encoding="utf-8")


def test_only_folders_can_be_reported_on(trained, folder):
    assert "expected a folder" in refused("report", "nothing")
    os.mkdir("empty")  # noqa: PTH102
    assert "No such file" in refused("report", "empty")
