"""A manifest gives what its rows name, and every way a row can be wrong is named with its line."""

import json
import os
import re
import struct
import zlib

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sensorium.data import load_manifest, manifest, read_audio, read_image
from sensorium.errors import ArgumentError, DTypeError, ManifestError

RATE = 8000


def tone(seconds=0.5, rate=RATE, hertz=440.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def ramp(height=6, width=8):
    return np.arange(height * width, dtype=np.uint8).reshape(height, width) * 5


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(ramp()).save(tmp_path / "grey.png")
    soundfile.write(tmp_path / "tone.wav", tone(), RATE)
    return tmp_path


def write(folder, *rows):
    """A manifest of the rows: objects become JSON, bytes stay as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_rows_become_groups(folder):
    path = write(
        folder,
        {"text": "one", "image": "grey.png", "audio": "tone.wav"},
        {"audio": "tone.wav", "split": "test"},
        {"text": "three", "split": "test"},
        {"image": "grey.png", "text": None},
    )
    corpus, problems = load_manifest(path, image_size=(6, 8), sample_rate=RATE)
    assert problems == []
    assert corpus.texts == ["one", "three"]
    assert corpus.text_group.tolist() == [0, 2]
    assert corpus.image_group.tolist() == [0, 3]
    assert corpus.audio_group.tolist() == [0, 1]
    assert corpus.text_split.tolist() == ["train", "test"]
    assert corpus.image_split.tolist() == ["train", "train"]
    assert corpus.audio_split.tolist() == ["train", "test"]
    assert corpus.names == ("one", "line 2", "three", "line 4")
    assert np.array_equal(corpus.images[0], ramp() / np.float32(255))
    assert np.allclose(corpus.audios[0], tone(), atol=1e-4)


def test_paths_are_relative_to_the_manifest(folder, monkeypatch):
    (folder / "deep").mkdir()
    monkeypatch.chdir(folder / "deep")
    corpus, _ = load_manifest(write(folder, {"image": "grey.png"}, {"image": str(folder / "grey.png")}))
    assert corpus.images.shape == (2, 28, 28)


def test_a_modality_without_rows_is_empty(folder):
    corpus, _ = load_manifest(write(folder, {"text": "one"}), image_size=(4, 5), channels=3)
    assert corpus.images.shape == (0, 4, 5, 3)
    assert corpus.audios == []
    assert corpus.text_split.tolist() == ["train"]


def test_blank_lines_a_byte_order_mark_and_windows_ends_are_passed_over(folder):
    path = write(
        folder,
        b'\xef\xbb\xbf{"text": "one"}\r',
        b"",
        b"  \t\r",
        b'{"text": 3}',
        '{"text": "gr\u00fcn"}'.encode(),
    )
    corpus, problems = load_manifest(path)
    assert corpus.texts == ["one", "gr\u00fcn"]
    assert [problem.line for problem in problems] == [4]


def test_the_last_line_needs_no_end(folder):
    path = folder / "rows.jsonl"
    path.write_text('{"text": "one"}')
    assert load_manifest(path)[0].texts == ["one"]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, rows=b"\0" * 10):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def flac_that_claims(frames, folder):
    soundfile.write(folder / "claim.flac", tone(), RATE)
    data = bytearray((folder / "claim.flac").read_bytes())
    data[21] = (data[21] & 0xF0) | (frames >> 32)  # the upper four of 36 bits
    data[22:26] = (frames & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(data)


def wav(samples, rate=RATE, **options):
    def make(folder):
        soundfile.write(folder / "made.wav", samples, rate, **options)
        return (folder / "made.wav").read_bytes()

    return make


def first_half(make):
    return lambda folder: (lambda data: data[: len(data) // 2])(make(folder))


def saved(image, **options):
    def make(folder):
        image.save(folder / "made", **options)
        return (folder / "made").read_bytes()

    return make


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))

HOSTILE_ROWS = [
    (b"{", r"is not JSON: Expecting property name enclosed in double quotes at column 2"),
    (b"\x00", r"is not JSON: Expecting value at column 1"),
    (b'{"text": "a"} {"text": "b"}', r"is not JSON: Extra data at column 15"),
    (b"\xff\xfe{}", r"is not UTF-8: invalid start byte at byte 0"),
    (b'{"text": "\xc3"}', r"is not UTF-8: invalid continuation byte"),
    (b"[1]", r"is an array, expected an object"),
    (b'"seven"', r"is a string, expected an object"),
    (b"7", r"is a number, expected an object"),
    (b"null", r"is null, expected an object"),
    (b"true", r"is a boolean, expected an object"),
    (b"9" * 5000, r"is not JSON that can be read"),
    (b"[" * 100_000, r"is not JSON that can be read"),
    (b'{"text": "' + b"a" * (1 << 20) + b'"}', r"is longer than 1048576 bytes"),
    (b"a" * (3 << 20), r"is longer than 1048576 bytes"),
    ({}, r"has none of 'text', 'image' and 'audio'"),
    ({"split": "test"}, r"has none of 'text', 'image' and 'audio'"),
    ({"text": None, "image": None}, r"has none of 'text', 'image' and 'audio'"),
    (
        {"text": "a", "label": "b"},
        r"has an unknown key 'label', expected 'text', 'image', 'audio' or 'split'",
    ),
    (b'{"text": "a", "text": "b"}', r"has the key 'text' twice"),
    ({"text": 7}, r"'text' is a number, expected a string"),
    ({"text": True}, r"'text' is a boolean, expected a string"),
    (b'{"text": NaN}', r"'text' is a number, expected a string"),
    ({"text": ["a"]}, r"'text' is an array, expected a string"),
    ({"image": {"path": "grey.png"}}, r"'image' is an object, expected a string"),
    ({"audio": 1.5}, r"'audio' is a number, expected a string"),
    ({"text": "a", "split": 1}, r"'split' is a number, expected a string"),
    ({"text": "a", "split": "dev"}, r"'split' is 'dev', expected 'train' or 'test'"),
    ({"text": "  \n"}, r"'text' is blank"),
    ({"text": ""}, r"'text' is blank"),
    (b'{"text": "\\ud800"}', r"'text' holds half of a surrogate pair"),
    ({"image": "none.png"}, r"image 'none.png': no such file"),
    ({"image": "grey.png/none.png"}, r"image 'grey.png/none.png': Not a directory"),
    ({"audio": "none.wav"}, r"audio 'none.wav': no such file"),
    ({"image": ""}, r"image '': is not a file"),
    ({"image": "."}, r"image '.': is not a file"),
    ({"image": "a\0b"}, r"image 'a\\x00b': .*null"),
    ({"image": "a" * 5000}, r"File name too long"),
    ({"image": "pipe"}, r"image 'pipe': is not a file"),
    ({"audio": "pipe"}, r"audio 'pipe': is not a file"),
    ({"image": "tone.wav"}, r"image 'tone.wav': is not a PNG or JPEG image"),
    (
        {"audio": "grey.png"},
        r"audio 'grey.png': is not a WAV or FLAC sound that can be read: Format not recognised",
    ),
    ({"text": "good", "image": "none.png"}, r"image 'none.png': no such file"),
]

HOSTILE_FILES = [
    ("image", lambda _: b"", r"is not a PNG or JPEG image"),
    ("image", lambda _: b"\x89PNG\r\n\x1a\n", r"image 'file': "),
    ("image", first_half(saved(NOISE, format="PNG")), r"cannot be decoded: image file is truncated"),
    ("image", first_half(saved(NOISE, format="JPEG")), r"cannot be decoded: image file is truncated"),
    ("image", lambda _: png(8, 8, b"\0" * 20), r"cannot be decoded: "),
    ("image", lambda _: png(9000, 9000), r"has 9000x9000 pixels, more than 67108864"),
    ("image", lambda _: png(12_000, 12_000), r"has more than 67108864 pixels"),
    ("image", lambda _: png(60_000, 60_000), r"has more than 67108864 pixels"),
    ("image", lambda _: png(2**31 - 1, 2**31 - 1), r"has more than 67108864 pixels"),
    ("image", lambda _: png(0, 8), r"image 'file': "),
    ("image", saved(NOISE, format="GIF"), r"is not a PNG or JPEG image"),
    ("image", saved(NOISE, format="BMP"), r"is not a PNG or JPEG image"),
    ("audio", lambda _: b"", r"cannot be read|can be read: Format not recognised"),
    ("audio", lambda _: b"RIFF", r"is cut short: 4 of 8 bytes"),
    ("audio", wav(tone()[:0]), r"has no samples"),
    ("audio", wav(np.array([0.1, np.nan, 0.2]), subtype="FLOAT"), r"has samples that are not finite numbers"),
    ("audio", wav(np.array([0.1, np.inf, 0.2]), subtype="FLOAT"), r"has samples that are not finite numbers"),
    ("audio", wav(np.array([0.1, 1e300]), subtype="DOUBLE"), r"has samples that are not finite numbers"),
    ("audio", first_half(wav(tone())), r"is cut short: 4022 of 8044 bytes"),
    ("audio", first_half(wav(tone(), format="FLAC")), r"that can be read: flac decoder lost sync"),
    ("audio", wav(tone(), format="OGG"), r"is OGG, expected WAV or FLAC"),
    ("audio", wav(tone(), format="AIFF"), r"is AIFF, expected WAV or FLAC"),
    ("audio", wav(tone(), rate=999), r"has a sample rate of 999 Hz, expected 1000 to 768000"),
    ("audio", wav(tone(), rate=2**31 - 1), r"has a sample rate of 2147483647 Hz"),
    ("audio", lambda folder: flac_that_claims(2**36 - 1, folder), r"has more than 33554432 samples"),
    ("audio", lambda folder: flac_that_claims(0, folder), r"has more than 33554432 samples"),
    ("audio", lambda folder: flac_that_claims(8000, folder), r"audio 'file': "),
]


def check_one_problem(folder, row, words):
    path = write(folder, {"text": "before"}, row, {"text": "after"})
    corpus, problems = load_manifest(path)
    assert corpus.texts == ["before", "after"]
    assert len(corpus.images) == len(corpus.audios) == 0
    (problem,) = problems
    assert problem.line == 2
    assert re.search(words, problem.reason)
    with pytest.raises(ManifestError, match=r"rows\.jsonl, line 2: ") as caught:
        load_manifest(path, strict=True)
    assert str(caught.value).endswith(problem.reason)
    with pytest.raises(ValueError, match=r"no usable row among 1; line 1: "):
        load_manifest(write(folder, row))


@pytest.mark.parametrize(("row", "words"), HOSTILE_ROWS)
def test_a_hostile_row_is_one_problem(folder, row, words):
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe")
    else:
        (folder / "pipe").mkdir()
    check_one_problem(folder, row, words)


@pytest.mark.parametrize(("key", "make", "words"), HOSTILE_FILES)
def test_a_hostile_file_is_one_problem(folder, key, make, words):
    (folder / "file").write_bytes(make(folder))
    check_one_problem(folder, {key: "file"}, words)


def test_problems_are_listed_in_order_and_the_run_goes_on(folder):
    path = write(folder, b"{", {"text": "one"}, {}, {"image": "none.png", "text": "x"}, {"text": "two"})
    corpus, problems = load_manifest(path)
    assert corpus.texts == ["one", "two"]
    assert [problem.line for problem in problems] == [1, 3, 4]
    assert str(problems[2]) == "line 4: image 'none.png': no such file"


def test_progress_ends_at_the_size_of_the_file(folder):
    path = write(folder, {"text": "one"}, b"{" * (5 << 20), {"text": "two"})
    seen = []
    load_manifest(path, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == 3
    assert seen == sorted(seen)
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)


@pytest.mark.parametrize("name", ["none.jsonl", "."])
def test_a_manifest_that_cannot_be_read(folder, name):
    with pytest.raises(ManifestError, match=r"No such file or directory|Is a directory"):
        load_manifest(folder / name)


def test_an_empty_manifest(folder):
    with pytest.raises(ManifestError, match=r"no usable row among 0$"):
        load_manifest(write(folder, b""))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"image_size": (8,)}, ArgumentError, "image_size must be height and width"),
        ({"image_size": (8, 0)}, ArgumentError, r"image_size must hold sides from 1 to 4096, not \(8, 0\)"),
        ({"image_size": (8, 8.0)}, DTypeError, "image_size holds a float, expected int"),
        ({"channels": 4}, ArgumentError, "channels must be 1 or 3, not 4"),
        ({"sample_rate": 10}, ArgumentError, "sample_rate must be from 1000 to 768000, not 10"),
        ({"sample_rate": "8k"}, DTypeError, "sample_rate holds a str, expected int"),
    ],
)
def test_errors_name_the_argument(folder, arguments, error, words):
    with pytest.raises(error, match=words):
        load_manifest(write(folder, {"text": "one"}), **arguments)


def test_reading_one_file_names_it_in_errors(folder):
    with pytest.raises(ArgumentError, match=r"tone\.wav: is not a PNG or JPEG image"):
        read_image(folder / "tone.wav", image_size=(8, 8))
    with pytest.raises(ArgumentError, match=r"none\.wav: no such file"):
        read_audio(folder / "none.wav", sample_rate=RATE)


@pytest.mark.parametrize(
    ("mode", "channels"),
    [(mode, channels) for mode in ("1", "L", "LA", "P", "RGB", "RGBA") for channels in (1, 3)],
)
def test_images_of_every_mode(folder, mode, channels):
    Image.fromarray(ramp()).convert(mode).save(folder / "image.png")
    image = read_image(folder / "image.png", image_size=(6, 8), channels=channels)
    assert image.shape == ((6, 8) if channels == 1 else (6, 8, 3))
    assert image.dtype == np.float32
    expected = np.asarray(Image.fromarray(ramp()).convert(mode).convert("L")) / 255
    assert np.allclose(image if channels == 1 else image.mean(axis=2), expected, atol=1 / 255)


def test_sixteen_bits_a_pixel_are_scaled_not_clipped(folder):
    Image.fromarray(np.linspace(0, 65535, 48).reshape(6, 8).astype(np.uint16)).save(folder / "deep.png")
    image = read_image(folder / "deep.png", image_size=(6, 8))
    assert np.allclose(image.ravel(), np.linspace(0, 1, 48), atol=1 / 255)


def test_what_is_transparent_is_black(folder):
    pixels = np.full((6, 8, 4), 255, np.uint8)
    pixels[:, :4, 3] = 0
    Image.fromarray(pixels).save(folder / "half.png")
    palette = Image.fromarray(np.full((6, 8), 3, np.uint8)).convert("P")
    palette.putpalette([200] * 768)
    palette.save(folder / "opaque.png")
    palette.save(folder / "palette.png", transparency=3)
    image = read_image(folder / "half.png", image_size=(6, 8))
    assert np.array_equal(image, np.repeat([[0, 1]], 4, axis=1).astype(np.float32).repeat(6, axis=0))
    assert read_image(folder / "opaque.png", image_size=(6, 8)).min() > 0.7
    assert read_image(folder / "palette.png", image_size=(6, 8)).max() == 0


def test_jpeg_is_turned_and_resized(folder):
    stripes = np.zeros((400, 200, 3), np.uint8)
    stripes[:200, :, 0] = 255  # red above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter: red comes to lie on the right
    Image.fromarray(stripes).save(folder / "turned.jpg", exif=exif, quality=95)
    image = read_image(folder / "turned.jpg", image_size=(10, 20), channels=3)
    assert image.shape == (10, 20, 3)
    assert image[:, :9].max() < 0.1
    assert image[:, 11:, 0].min() > 0.9
    assert image[:, 11:, 1:].max() < 0.1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40), st.integers(1, 40), st.integers(0, 255))
def test_resizing_keeps_a_plain_image_plain(tmp_path, height, width, new_height, new_width, grey):
    Image.fromarray(np.full((height, width), grey, np.uint8)).save(tmp_path / "plain.png")
    image = read_image(tmp_path / "plain.png", image_size=(new_height, new_width))
    assert image.shape == (new_height, new_width)
    assert np.array_equal(image, np.full_like(image, grey / np.float32(255)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.sampled_from([1000, 7919, 8000, 11_025, 22_050, 44_100, 48_000, 192_000, 768_000]),
    st.sampled_from(["WAV", "FLAC"]),
    st.integers(1, 3),
)
def test_a_tone_stays_a_tone_at_any_rate(tmp_path, rate, form, channels):
    if form == "FLAC" and rate > 655_350:  # the format's own limit
        rate = 655_350
    sound = tone(0.5, rate, hertz=200.0)
    soundfile.write(tmp_path / "tone", np.stack([sound] * channels, axis=1), rate, format=form)
    heard = read_audio(tmp_path / "tone", sample_rate=RATE)
    assert abs(len(heard) - 4000) <= 8
    inner = slice(400, -400)  # the filter rings at the ends
    assert np.abs(heard[inner] - tone(len(heard) / RATE, hertz=200.0)[inner]).max() < 0.02


def test_a_smaller_image_is_an_average(folder):
    fine = np.indices((96, 96)).sum(axis=0) % 2 * np.uint8(255)
    Image.fromarray(fine.astype(np.uint8)).save(folder / "fine.png")
    assert np.allclose(read_image(folder / "fine.png", image_size=(12, 12)), 0.5, atol=0.02)


def test_decoding_a_jpeg_at_less_than_its_size_keeps_what_can_be_seen(folder):
    y, x = np.indices((512, 512))
    waves = Image.fromarray(np.rint(127.5 + 120 * np.sin(x / 4) * np.cos(y / 5)).astype(np.uint8))
    waves.save(folder / "waves.jpg", quality=95)
    waves.save(folder / "waves.png")
    small, whole = (read_image(folder / f"waves.{form}", image_size=(128, 96)) for form in ("jpg", "png"))
    assert np.abs(small - whole).max() < 0.1


def test_a_sound_that_ends_early_is_refused(folder, monkeypatch):
    read = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, **options: read(self, **options)[:-1])
    with pytest.raises(ArgumentError, match=r"tone\.wav: is cut short: 3999 of 4000 samples"):
        read_audio(folder / "tone.wav", sample_rate=RATE)


def test_channels_are_averaged(folder):
    left = tone()
    soundfile.write(folder / "stereo.wav", np.stack([left, -left], axis=1), RATE)
    assert np.abs(read_audio(folder / "stereo.wav", sample_rate=RATE)).max() < 1e-4


@pytest.mark.parametrize("peak", [1.5, 32768.0, 1e30])
def test_what_passes_one_is_scaled_down(folder, peak):
    soundfile.write(folder / "loud.wav", 2 * peak * tone(), RATE, subtype="FLOAT")
    heard = read_audio(folder / "loud.wav", sample_rate=RATE)
    assert np.allclose(heard, 2 * tone(), atol=1e-2)


def test_a_wav_of_unknown_length_is_read(folder):
    data = bytearray((folder / "tone.wav").read_bytes())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"  # as written to a pipe
    (folder / "piped.wav").write_bytes(data)
    assert np.allclose(read_audio(folder / "piped.wav", sample_rate=RATE), tone(), atol=1e-4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_damaged_files_are_read_or_named_and_nothing_else(tmp_path, data):
    """Bytes of good files overwritten at random, or cut: a corpus or a problem, never another exception."""
    name, read = data.draw(
        st.sampled_from([("a.png", "image"), ("a.jpg", "image"), ("a.wav", "audio"), ("a.flac", "audio")])
    )
    if read == "image":
        NOISE.save(tmp_path / name)
    else:
        soundfile.write(tmp_path / name, tone(0.05), RATE)
    damaged = bytearray((tmp_path / name).read_bytes())
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4)):
        damaged[min(at, len(damaged) - 1)] = value
    (tmp_path / name).write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    corpus, problems = load_manifest(write(tmp_path, {"text": "good"}, {read: name}))
    assert len(corpus.images) + len(corpus.audios) + len(problems) == 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line), max_size=8))
def test_any_bytes_are_lines_or_problems(tmp_path, lines):
    corpus, problems = load_manifest(write(tmp_path, {"text": "good"}, *lines))
    assert corpus.texts == ["good"]
    assert {problem.line for problem in problems} <= set(range(2, len(lines) + 2))
    blank = sum(1 for line in lines if not line.strip(b" \t\r"))
    assert len(problems) == len(lines) - blank


def test_limits_are_checked_before_decoding(folder, monkeypatch):
    monkeypatch.setattr(manifest, "MAX_SAMPLES", 3999)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(ArgumentError, match="has more than 3999 samples"):
        read_audio(folder / "tone.wav", sample_rate=RATE)
