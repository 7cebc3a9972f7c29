"""The commands, as they are typed: what they print, write and return."""

import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import sensorium
import soundfile
from PIL import Image
from sensorium import cli
from sensorium.data import digits
from sensorium.data.corpus import Corpus
from sensorium.models.unified import Model
from sensorium.train import Recipe, fit
from typer.testing import CliRunner


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def refused(*arguments):
    """Return the error that a command ends with: one line, and exit code 2."""
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    *before, error = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert not any("error" in line.lower() or "Traceback" in line for line in before)
    assert done.stdout == ""
    return error


def few(seed=0):
    """A small corpus: the first pictures and sounds of each digit."""
    corpus = digits(seed=seed)
    images = np.concatenate([np.flatnonzero(corpus.image_group == g)[:4] for g in range(10)])
    audios = np.concatenate([np.flatnonzero(corpus.audio_group == g)[:4] for g in range(10)])
    return Corpus(
        texts=corpus.texts, text_group=corpus.text_group, text_split=corpus.text_split,
        images=corpus.images[images], image_group=corpus.image_group[images],
        image_split=np.full(len(images), "train"),
        audios=[corpus.audios[i] for i in audios], audio_group=corpus.audio_group[audios],
        audio_split=np.full(len(audios), "train"), sample_rate=corpus.sample_rate, names=corpus.names,
    )  # fmt: skip


TINY = Recipe(width=16, depth=1, heads=2, hidden=16, rows=2, image_codes=8, audio_codes=8, jitter=0)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "model.safetensors"
    fit(few(), TINY, steps=2, seed=0).model.save(path)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- help, version, start-up ------------------------------------------------------------------------------


def test_info():
    done = run("info")
    assert done.exit_code == 0
    assert done.stdout.startswith(f"sensorium {sensorium.__version__}\n")
    assert "threads " in done.stdout


def test_version():
    assert run("--version").stdout == f"sensorium {sensorium.__version__}\n"


@pytest.mark.parametrize("command", ["info", "quickstart", "train", "generate", "recall", "show"])
def test_help(command):
    assert command in run("--help").stdout
    done = run(command, "--help")
    assert done.exit_code == 0
    assert len(done.stdout) > 100


def test_nothing_heavy_is_imported_before_it_is_needed():
    heavy = ["sklearn", "scipy", "matplotlib", "autograd", "soundfile", "PIL", "sensorium.train"]
    code = f"import sys, sensorium.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_installed_command():
    command = os.path.join(os.path.dirname(sys.executable), "sensorium")  # noqa: PTH118, PTH120
    done = subprocess.run(
        [command, "show", "nothing.safetensors"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: nothing.safetensors: No such file or directory\n"


def test_interrupted(monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "show_config", interrupt)
    done = run("info")
    assert (done.exit_code, done.stderr) == (130, "interrupted\n")


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(cli, "show_config", lambda: 1 / 0)
    assert isinstance(run("info").exception, ZeroDivisionError)


# --- show and generate ------------------------------------------------------------------------------------


def test_show(model_file):
    done = run("show", model_file)
    assert done.exit_code == 0
    assert f"{model_file.stat().st_size:,} bytes" in done.stdout
    assert "parameters" in done.stdout
    for kind in ("text", "image", "audio"):
        assert kind in done.stdout


def test_every_direction_from_files_to_files(model_file, folder):
    corpus = few()
    Image.fromarray(np.rint(corpus.images[7] * 255).astype(np.uint8)).save("digit.png")
    soundfile.write("digit.wav", corpus.audios[3], corpus.sample_rate)
    sources = {"text": "seven", "image": "digit.png", "audio": "digit.wav"}
    for kind, source in sources.items():
        for to, out in (("text", "said.txt"), ("image", "made.png"), ("audio", "made.wav")):
            if kind == to:
                continue
            done = run("generate", model_file, "--from", source, "--to", to, "--out", out)
            assert done.exit_code == 0, done.output
            if to == "text":
                assert done.stdout == ""
                said = run("generate", model_file, "--from", source, "--to", to).stdout
                assert (folder / out).read_text(encoding="utf-8") == said
            else:
                assert done.stdout == f"{out}\n"
    with Image.open("made.png") as picture:
        assert picture.size == (128, 128)
        blocks = np.asarray(picture).reshape(8, 16, 8, 16)
    assert (blocks == blocks[:, :1, :, :1]).all()  # each pixel of the model is a square
    samples, rate = soundfile.read("made.wav")
    assert rate == corpus.sample_rate
    assert len(samples) > 0
    assert np.abs(samples).max() <= 1


def test_a_picture_comes_back_as_it_was(model_file, folder):
    """What generate writes to be looked at is read as the picture that the model made."""
    assert run("generate", model_file, "--from", "six", "--to", "image", "--out", "six.png").exit_code == 0
    model = Model.load(model_file)
    made = model.generate("six", source_kind="text", to="image")[0]
    kind, value = cli._read_source("six.png", None, model, invert=False)
    assert kind == "image"
    np.testing.assert_allclose(value, np.clip(made, 0, 1), atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(cli._read_source("six.png", None, model, invert=True)[1], 1 - value, atol=1e-6)


def test_samples_are_numbered_and_seeded(model_file, folder):
    def make(seed):
        done = run(
            "generate",
            model_file,
            "--from",
            "two",
            "--to",
            "image",
            "--samples",
            3,
            "--seed",
            seed,
            "--out",
            "t.png",
            "--scale",
            1,
        )
        assert done.stdout.split() == ["t-1.png", "t-2.png", "t-3.png"]
        return [(folder / name).read_bytes() for name in done.stdout.split()]

    first = make(0)
    assert make(0) == first
    assert make(1) != first
    with Image.open(io.BytesIO(first[0])) as picture:
        assert picture.size == (8, 8)


def test_without_a_source_anything_comes(model_file, folder):
    done = run("generate", model_file, "--to", "audio")
    assert (done.exit_code, done.stdout) == (0, "audio.wav\n")
    assert soundfile.info("audio.wav").frames > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from", "no.png", "--to", "text"], "no.png: no such file"),
        (["--from", "no.wav", "--to", "text"], "no.wav: no such file"),
        (["--from", "seven", "--to", "text"], "text"),
        (["--from", "Ω", "--to", "image"], "'Ω'"),
        (
            ["--from", "seven", "--to", "image", "--out", "x.gif"],
            "--out x.gif: expected a name that ends in .png or",
        ),
        (
            ["--from", "seven", "--to", "audio", "--out", "x.png"],
            "--out x.png: expected a name that ends in .wav or",
        ),
        (["--from", "seven", "--to", "image", "--out", "no/x.png"], "no/x.png: No such file or directory"),
        (["--from", "seven", "--to", "image", "--temperature", "-1"], "temperature"),
        (["--from", "seven", "--to", "image", "--steps", "0"], "steps"),
        (["--from", "data.csv", "--to", "image"], "say what it is with --from-kind"),
        (["--from", "broken.png", "--to", "text"], "broken.png: is not a PNG or JPEG image"),
        (["--from", "seven", "--from-kind", "audio", "--to", "text"], "seven: no such file"),
    ],
)
def test_what_cannot_be_made_is_said_in_a_line(model_file, folder, arguments, words):
    (folder / "data.csv").write_text("1,2", encoding="utf-8")
    (folder / "broken.png").write_bytes(b"no picture")
    assert words in refused("generate", model_file, *arguments)


@pytest.mark.parametrize("command", [["show"], ["generate", "--to", "text"]])
def test_a_damaged_model_is_refused(model_file, folder, command):
    data = model_file.read_bytes()
    for name, damaged in {"cut": data[:-9], "flipped": data[:-9] + b"\xff" + data[-8:], "empty": b""}.items():
        (folder / name).write_bytes(damaged)
        assert refused(command[0], name, *command[1:]).startswith(f"error: {name}: ")
    assert "is not a file" in refused(command[0], folder, *command[1:])


# --- quickstart -------------------------------------------------------------------------------------------


def test_one_goal():
    assert "give --seconds or --steps, not both" in refused("quickstart", "--seconds", 1, "--steps", 1)
    assert "steps must be" in refused("quickstart", "--steps", 0)
    assert "seconds must be" in refused("quickstart", "--seconds", "nan")


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_quickstart_interrupted_writes_everything(folder):
    """Ctrl-C ends training, and what follows is as it would have been: model, figures and page."""
    code = "from sensorium.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "quickstart", "--seconds", "600", "--seed", "3", "--out", "q"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("step 1 "):  # until training has begun
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "ended early" in output
    assert {"model.safetensors", "metrics.json", "report.html"} <= {
        path.name for path in (folder / "q").iterdir()
    }
    metrics = json.loads((folder / "q" / "metrics.json").read_text(encoding="utf-8"))
    for direction in (
        "image_to_text",
        "audio_to_text",
        "text_to_image",
        "text_to_audio",
        "image_to_audio",
        "audio_to_image",
    ):
        share, low, high = (metrics[f"accuracy.{direction}{end}"] for end in ("", "_low", "_high"))
        assert 0 <= low <= share <= high <= 1
        assert f"{direction.replace('_to_', ' → ')} " in output
    assert metrics["judge.image"] > 0.95
    assert metrics["judge.audio"] > 0.95
    assert metrics["seed"] == 3
    assert metrics["interrupted"] is True
    assert metrics["steps"] >= 1
    assert metrics["train_seconds"] > 0
    assert metrics["threads"] >= 1
    assert Model.load(folder / "q" / "model.safetensors").parameters == metrics["parameters"]
    page = (folder / "q" / "report.html").read_text(encoding="utf-8")
    assert page.count('<div class="card') >= 60
    assert "audio → image" in page


# --- train ------------------------------------------------------------------------------------------------


@pytest.fixture
def manifest(folder):
    """Rows of which some lack something, two are held out, and two cannot be used."""
    corpus = few()
    rows = []
    for i in range(12):
        Image.fromarray(np.rint(corpus.images[i] * 255).astype(np.uint8)).save(f"{i}.png")
        soundfile.write(f"{i}.wav", corpus.audios[i], corpus.sample_rate)
        row = {"text": corpus.texts[corpus.image_group[i]], "image": f"{i}.png", "audio": f"{i}.wav"}
        row |= {"split": "test"} if i >= 10 else {}
        rows.append({k: v for j, (k, v) in enumerate(row.items()) if i < 4 or i >= 10 or j != i % 3})
    rows[3:3] = [{"text": "lost", "image": "lost.png"}, {"image": 5}]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_train_on_own_data(manifest, folder):
    done = run("train", "--data", manifest, "--steps", 2, "--out", "m", "--image-size", 8, 8)
    assert done.exit_code == 0, done.output
    assert "line 4: image 'lost.png': no such file" in done.stderr
    assert "line 5: 'image' is a number" in done.stderr
    metrics = json.loads((folder / "m" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["rows_left_out"] == 2
    assert 0 <= metrics["accuracy.image_to_text"] <= 1
    model = Model.load(folder / "m" / "model.safetensors")
    assert model.image_shape == (8, 8)
    page = (folder / "m" / "report.html").read_text(encoding="utf-8")
    for direction in ("image → text", "text → image", "audio → image"):
        assert direction in page
    assert "Left out: line 4" in page
    again = run("train", "--data", manifest, "--steps", 2, "--out", "m", "--image-size", 8, 8, "--resume")
    assert again.exit_code == 0, again.output


def test_train_strictly(manifest):
    assert "rows.jsonl, line 4: image 'lost.png': no such file" in refused(
        "train", "--data", manifest, "--strict"
    )


def test_train_without_held_out_rows(folder):
    corpus = few()
    for i in range(6):
        Image.fromarray(np.rint(corpus.images[i] * 255).astype(np.uint8)).save(f"{i}.png")
    rows = [{"text": f"<b>{i}", "image": f"{i}.png"} for i in range(6)]
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = run("train", "--data", "r.jsonl", "--steps", 1, "--out", "m", "--colour", "--image-size", 8, 8)
    assert done.exit_code == 0, done.output
    metrics = json.loads((folder / "m" / "metrics.json").read_text(encoding="utf-8"))
    assert not any(key.startswith("accuracy") for key in metrics)
    page = (folder / "m" / "report.html").read_text(encoding="utf-8")
    assert "nothing was measured" in page
    assert "<b>0" not in page
    assert "&lt;b&gt;0" in page


def test_train_refuses_what_it_cannot_learn_from(folder):
    assert "no.jsonl: No such file" in refused("train", "--data", "no.jsonl")
    (folder / "r.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    assert "modalities" in refused("train", "--data", "r.jsonl", "--steps", 1)
