"""The page about a run: it holds everything itself, loads nothing, and shows text as text."""

import base64
import io
import os
import re
import wave
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from sensorium import ArgumentError, DTypeError, ShapeError
from sensorium._figures import Curve, chart, escape, spectrogram_png
from sensorium.report import Media, Report, Sample, render, write_report

VOID = {"meta", "link", "img", "br"}
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\x00\x1b\ud800"


class Page(HTMLParser):
    """Parses strictly: every tag is closed in its turn. Keeps the tags, their attributes and the text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> out of turn"

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data

    def named(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


class Masked:
    def __init__(self, mask):
        self.mask = mask

    def dense(self):
        return self.mask


def full(text: str = "seven") -> Report:
    rng = np.random.default_rng(0)
    image = Media("image", rng.random((8, 8), np.float32))
    colour = Media("image", rng.random((5, 4, 3)))
    sound = Media("audio", (np.sin(np.arange(4000) / 5).astype(np.float32) * 0.5, 8000))
    word = Media("text", text)
    directions = {
        "image_to_text": [Sample(image, word, text, text), Sample(colour, word, "one", text)],
        "audio_to_text": [Sample(sound, word, text)],
        "text_to_audio": [Sample(word, sound, text, "")],
        "image_to_audio": [Sample(image, sound, text, text)],
        text: [Sample(word, image)],
    }
    metrics = {
        "accuracy.image_to_text": 0.953,
        "accuracy.image_to_text_low": 0.93,
        "accuracy.image_to_text_high": 0.97,
        "accuracy.text_to_audio": 0.5,
        f"accuracy.{text}": 0.25,
        "judge.audio": 0.981,
        "train_seconds": 30.04,
        "steps": 1200,
        "seed": text,
    }
    history = [
        {"step": i, "seconds": i / 4, "loss": 5 / i, "loss_text": 1 / i, f"loss_{text}": 1.0}
        for i in range(1, 50)
    ]
    return Report(
        text, metrics, directions, history, Masked(np.tri(12, dtype=bool)), [(text, 4), ("image", 8)],
        {text: 0.9}, {"a": {text: 1.5}}, {text: [1, text]}, [text], text,
    )  # fmt: skip


def test_everything_is_on_the_page():
    page = Page(render(full()))
    for words in (
        *("30.0 s of training", "1,200 steps", "95.3 %", "93.0 % to 97.0 %", "98.1 %", "image → text"),
        *("right: seven", "wrong: seven for one", "wrong: no word for seven", "a.seven", "1, seven"),
        "78 of 144 pairs, 54.2 %",
    ):
        assert words in page.text, words
    assert len(page.named("audio")) == 3
    assert len(page.named("polyline")) == 3
    assert [h for tag, h in page.tags if tag == "section"] == [
        {"id": name}
        for name in ("accuracy", "samples", "training", "attention", "variety", "time", "settings", "again")
    ]
    assert {a["href"] for a in page.named("a")} == {f"#{section['id']}" for section in page.named("section")}


@pytest.mark.parametrize("text", ["seven", HOSTILE])
def test_nothing_is_loaded_and_nothing_runs(text):
    source = render(full(text))
    page = Page(source)
    assert "http:" not in source
    assert "https:" not in source
    assert "url(" not in source
    for tag, attrs in page.tags:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form", "foreignobject"}
        for name, value in attrs.items():
            assert not name.startswith("on"), name
            if name in {"src", "href", "srcset", "poster", "action", "data"}:
                assert (
                    value.startswith(("data:image/png;base64,", "data:audio/wav;base64,", "#"))
                    or value == "data:,"
                )
    policy = next(meta["content"] for meta in page.named("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'")
    assert "script" not in policy


def test_hostile_text_is_shown_as_text():
    page = Page(render(full(HOSTILE)))
    shown = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\ufffd\ufffd?"
    assert page.text.count(shown) >= 12
    assert render(full(HOSTILE)).isprintable() is False  # line breaks alone
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", render(full(HOSTILE)))
    render(full(HOSTILE)).encode()


def test_the_same_tags_whatever_the_text_says():
    tags = [[tag for tag, _ in Page(render(full(text))).tags] for text in ("seven", HOSTILE[:20])]
    assert tags[0] == tags[1]


def test_pictures_and_sounds_are_the_data():
    image = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    samples = np.linspace(-1, 1, 100)
    sample = Sample(Media("image", image), Media("audio", (samples, 16000)))
    page = Page(render(Report("r", directions={"image_to_audio": [sample]})))
    uri = page.named("img")[0]["src"]
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as png:
        np.testing.assert_array_equal(np.asarray(png), np.rint(image * 255).astype(np.uint8))
    uri = page.named("audio")[0]["src"]
    with wave.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as sound:
        assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (16000, 1, 2)
        got = np.frombuffer(sound.readframes(1000), "<i2") / 32767
    np.testing.assert_allclose(got, samples, atol=0.5 / 32767 + 1e-9)


def test_a_pure_tone_is_a_line_at_its_height():
    rate, tone = 8000, 1000.0
    uri = spectrogram_png(np.sin(2 * np.pi * tone * np.arange(rate) / rate), rate)
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as png:
        brightness = np.asarray(png).astype(int).sum(axis=2)[:, 20:-20].mean(axis=1)
    share = 1 - (brightness.argmax() + 0.5) / len(brightness)  # of half the sample rate
    assert share == pytest.approx(tone / (rate / 2), abs=1.5 / len(brightness))
    assert brightness.max() > 4 * np.median(brightness)


@pytest.mark.parametrize(
    "media",
    [
        Media("text", ""),
        Media("text", "word " * 1000),
        Media("image", np.full((1, 1), np.nan)),
        Media("image", np.array([[-5.0, np.inf]])),
        Media("image", np.zeros((2, 2, 3), np.uint8)),
        Media("audio", (np.zeros(0, np.float32), 8000)),
        Media("audio", (np.zeros(1, np.float32), 8000)),
        Media("audio", (np.zeros(9000, np.float32), 8000)),
        Media("audio", (np.full(3000, np.nan), 44100)),
        Media("audio", (np.full(3000, 9e9), 1)),
        Media("audio", (np.ones(1_000_000, np.float32), 192000)),
    ],
)
def test_odd_media_are_shown(media):
    page = Page(render(Report("r", directions={"a_to_b": [Sample(media, media, "x", "y")]})))
    assert "wrong: y for x" in page.text


@pytest.mark.parametrize(
    ("kind", "value", "error", "words"),
    [
        ("text", 5, DTypeError, "value of a text is int, expected str"),
        ("image", np.zeros(3), ShapeError, r"value of an image has shape \(3,\), expected"),
        ("image", np.zeros((3, 3, 4)), ShapeError, "expected"),
        ("image", np.zeros((0, 3)), ShapeError, "expected"),
        ("audio", np.zeros(3), DTypeError, "must be a pair"),
        ("audio", (np.zeros((3, 2)), 8000), ShapeError, r"expected \(samples,\)"),
        ("audio", (np.zeros(3), 0), ArgumentError, "has 0 samples a second"),
        ("smell", "rose", ArgumentError, "kind must be text, image or audio, not 'smell'"),
    ],
)
def test_what_cannot_be_shown_is_refused(kind, value, error, words):
    with pytest.raises(error, match=words):
        Media(kind, value)


def test_an_empty_report_is_a_page():
    page = Page(render(Report("nothing yet")))
    assert "nothing yet" in page.text
    assert not page.named("section")


def test_a_long_sequence_is_drawn_small():
    page = Page(render(Report("r", layout=Masked(np.tri(2500, dtype=bool)))))
    uri = page.named("image")[0]["href"]
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as png:
        alpha = np.asarray(png)[..., 3]
    np.testing.assert_array_equal(alpha > 0, np.tri(834, dtype=bool))
    assert "3,126,250 of 6,250,000 pairs" in page.text


def test_a_sequence_too_long_to_draw_does_not_cost_the_report():
    class Long:
        def dense(self):
            raise ArgumentError("too long")

    assert not Page(render(Report("r", layout=Long()))).named("image")


def test_what_is_not_finite_is_left_out():
    nan = float("nan")
    history = [{"step": 1, "loss": nan}, {"step": 2, "loss": 1.0}, {"step": 3}, {"step": nan, "loss": 2.0}]
    page = Page(render(Report("r", {"accuracy.a_to_b": nan, "accuracy.a_to_b_low": nan}, history=history)))
    assert len(page.named("circle")) == 1
    assert "nan" not in page.text
    assert (
        Page(chart([Curve("loss", [1, 2], [nan, nan])], x_label="x", y_label="y")).text
        == "Nothing was recorded."
    )


@pytest.mark.parametrize("y", [[0.0, 0.0], [5.0, 5.0], [-1.0, 1.0], [1e-9, 2e-9], [1e12, 3e12]])
def test_curves_stay_within_the_chart(y):
    page = Page(chart([Curve("c", [1.0, 2.0], y)], x_label="x", y_label="y"))
    _, _, width, height = map(float, page.named("svg")[0]["viewbox"].split())
    for point in page.named("polyline")[0]["points"].split():
        px, py = map(float, point.split(","))
        assert 0 <= px <= width
        assert 0 <= py <= height


def test_a_long_history_is_thinned():
    history = [{"step": i, "loss": float(i % 7)} for i in range(50_000)]
    assert len(render(Report("r", history=history))) < 60_000


@pytest.mark.parametrize(
    ("text", "shown"), [("<b>", "&lt;b&gt;"), ("a\nb\tc", "a\nb\tc"), ("\x00\x85", "\ufffd\ufffd")]
)
def test_escape(text, shown):
    assert escape(text) == shown


def test_a_page_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    write_report(path, Report("old"))
    before = path.read_bytes()

    def full_disk(fd):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            write_report(path, full())
    assert path.read_bytes() == before
    write_report(path, full())
    assert Page(path.read_text(encoding="utf-8")).named("section")
