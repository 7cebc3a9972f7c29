"""A user's own data: a JSONL file that names texts, pictures and sounds.

    {"text": "seven", "image": "scans/0412.png", "audio": "takes/0412.wav", "split": "train"}
    {"text": "a row may lack any of them", "image": "scans/0413.jpg"}

One object a line. Whatever cannot be used is listed with its line number and the reason, and reading goes on.
Files come from anywhere, so nothing is decoded before its header says that it is of a sane size.
"""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, DTypeError, ManifestError
from ._resample import resample
from .corpus import SPLITS, Corpus

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Problem", "load_manifest", "read_audio", "read_image"]

MAX_LINE = 1 << 20  # bytes of a row
MAX_PIXELS = 1 << 26  # of an image: 67 million, 200 MB decoded
MAX_SAMPLES = 1 << 25  # of a sound, over its channels: 33 million, 134 MB decoded
MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz
STREAMED = 0x7FFF_0000  # bytes that a WAV written to a pipe claims, or more: its length was not known
IMAGE_FORMATS = ("PNG", "JPEG")
AUDIO_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC")
KEYS = ("text", "image", "audio", "split")


@dataclass(frozen=True)
class Problem:
    """A row that was left out.

    Parameters
    ----------
    line : int
        Its line number, from 1.
    reason : str
        Why.

    Examples
    --------
    >>> str(Problem(3, "image 'a.png': no such file"))
    "line 3: image 'a.png': no such file"
    """

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}"


@dataclass(frozen=True)
class _Row:
    """What one line gave."""

    line: int
    split: str
    text: str | None
    image: NDArray[np.float32] | None
    audio: NDArray[np.float32] | None


class _UnusableError(Exception):
    """Why a row or a file cannot be used."""


def load_manifest(
    path: str | os.PathLike[str],
    *,
    image_size: tuple[int, int] = (28, 28),
    channels: Literal[1, 3] = 1,
    sample_rate: int = 8000,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Corpus, list[Problem]]:
    r"""Read the texts, pictures and sounds that a manifest names.

    The manifest is JSON lines in UTF-8, one object a line with any of

    - ``"text"``: a string that is not blank,
    - ``"image"``: path of a PNG or JPEG file, relative to the manifest,
    - ``"audio"``: path of a WAV or FLAC file, relative to the manifest,
    - ``"split"``: ``"train"`` (as is every row without it) or ``"test"``.

    A value of ``null`` counts as lacking, and blank lines are passed over. Images are stretched to
    ``image_size``, turned as their EXIF data says, and what is transparent shows black. Sounds are mixed to
    mono, resampled, and scaled down where they pass [-1, 1].

    Parameters
    ----------
    path : str or path-like
        The manifest.
    image_size : tuple of int
        Height and width that images are resized to.
    channels : {1, 3}
        Grey or colour.
    sample_rate : int
        Samples a second that sounds are resampled to.
    strict : bool
        Stop at the first row that cannot be used.
    progress : callable, optional
        Called after each row with the bytes of the manifest read so far and in all.

    Returns
    -------
    corpus : Corpus
        Each usable row is a group of its own, numbered from 0 in the order of the file and named by its text,
        or ``"line 7"`` where it has none.
    problems : list of Problem
        The rows left out, in the order of the file. A row with one bad item is left out as a whole.

    Raises
    ------
    ManifestError
        Where the manifest cannot be read or has no usable row; with ``strict`` also at the first row that
        cannot be used. The message names line and reason.
    ArgumentError
        Where another argument is out of range.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "rows.jsonl").write_text('{"text": "seven"}\n{"text": 8}\n')
    >>> corpus, problems = load_manifest(folder / "rows.jsonl")
    >>> corpus.texts, [str(problem) for problem in problems]
    (['seven'], ["line 2: 'text' is a number, expected a string"])
    """
    _check_arguments(image_size, channels, sample_rate)
    path = Path(path)
    rows: list[_Row] = []
    problems: list[Problem] = []
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for line, raw, done in _lines(file):
                try:
                    row = _read_row(line, raw, path.parent, image_size, channels, sample_rate)
                except _UnusableError as error:
                    problem = Problem(line, str(error))
                    if strict:
                        raise ManifestError(f"{path}, {problem}") from error
                    problems.append(problem)
                else:
                    rows += [row] if row is not None else []
                if progress is not None:
                    progress(done, size)
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror or error}") from error
    if not rows:
        why = f"; {problems[0]}" if problems else ""
        raise ManifestError(f"{path}: no usable row among {len(problems)}{why}")
    return _corpus(rows, image_size, channels, sample_rate), problems


def read_image(
    path: str | os.PathLike[str], *, image_size: tuple[int, int], channels: Literal[1, 3] = 1
) -> NDArray[np.float32]:
    """Read one PNG or JPEG file as a manifest's would be.

    Parameters
    ----------
    path : str or path-like
        The file.
    image_size : tuple of int
        Height and width to resize to.
    channels : {1, 3}
        Grey or colour.

    Returns
    -------
    ndarray, (H, W) or (H, W, 3), float32
        In [0, 1].

    Raises
    ------
    ArgumentError
        Where the file cannot be read or an argument is out of range; the message names path and reason.
    """
    _check_arguments(image_size, channels, MIN_RATE)
    try:
        return _read_image(Path(path), image_size, channels)
    except _UnusableError as error:
        raise ArgumentError(f"{os.fspath(path)}: {error}") from error


def read_audio(path: str | os.PathLike[str], *, sample_rate: int) -> NDArray[np.float32]:
    """Read one WAV or FLAC file as a manifest's would be.

    Parameters
    ----------
    path : str or path-like
        The file.
    sample_rate : int
        Samples a second to resample to.

    Returns
    -------
    ndarray, (samples,), float32
        In [-1, 1].

    Raises
    ------
    ArgumentError
        Where the file cannot be read or an argument is out of range; the message names path and reason.
    """
    _check_arguments((1, 1), 1, sample_rate)
    try:
        return _read_audio(Path(path), sample_rate)
    except _UnusableError as error:
        raise ArgumentError(f"{os.fspath(path)}: {error}") from error


def _check_arguments(image_size: tuple[int, int], channels: int, sample_rate: int) -> None:
    if len(image_size) != 2:
        raise ArgumentError(f"image_size must be height and width, not {image_size!r}")
    for name, value in (
        ("image_size", image_size[0]),
        ("image_size", image_size[1]),
        ("sample_rate", sample_rate),
    ):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise DTypeError(f"{name} holds a {type(value).__name__}, expected int")
    if not all(1 <= side <= 4096 for side in image_size):
        raise ArgumentError(f"image_size must hold sides from 1 to 4096, not {image_size!r}")
    if channels not in (1, 3):
        raise ArgumentError(f"channels must be 1 or 3, not {channels!r}")
    if not MIN_RATE <= sample_rate <= MAX_RATE:
        raise ArgumentError(f"sample_rate must be from {MIN_RATE} to {MAX_RATE}, not {sample_rate}")


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes, int]]:
    """Line number, line and bytes read; of a line beyond MAX_LINE its beginning, enough to refuse it."""
    line = done = 0
    while raw := file.readline(MAX_LINE + 1):
        line += 1
        done += len(raw)
        rest = raw
        while len(rest) > MAX_LINE and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE + 1)
            done += len(rest)
        yield line, raw, done


def _read_row(
    line: int,
    raw: bytes,
    folder: Path,
    image_size: tuple[int, int],
    channels: int,
    sample_rate: int,
) -> _Row | None:
    """Return the row on a line, or None for a blank line."""
    fields = _parse(line, raw)
    if fields is None:
        return None
    split = fields.pop("split", "train")
    if split not in SPLITS:
        raise _UnusableError(f"'split' is {split!r}, expected 'train' or 'test'")
    if not fields:
        raise _UnusableError("has none of 'text', 'image' and 'audio'")
    text = fields.get("text")
    if text is not None and not text.strip():
        raise _UnusableError("'text' is blank")
    return _Row(
        line=line,
        split=split,
        text=text,
        image=_from_file(fields, "image", folder, lambda path: _read_image(path, image_size, channels)),
        audio=_from_file(fields, "audio", folder, lambda path: _read_audio(path, sample_rate)),
    )


def _parse(line: int, raw: bytes) -> dict[str, str] | None:
    """Return the keys of a row that are not null, each a string, or None for a blank line."""
    if len(raw) > MAX_LINE:
        raise _UnusableError(f"is longer than {MAX_LINE} bytes")
    try:
        written = raw.decode("utf-8-sig" if line == 1 else "utf-8").strip(" \t\r\n")
    except UnicodeDecodeError as error:
        raise _UnusableError(f"is not UTF-8: {error.reason} at byte {error.start}") from error
    if not written:
        return None
    try:
        value = json.loads(written, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        raise _UnusableError(f"is not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in thousands
        raise _UnusableError(f"is not JSON that can be read: {error}") from error
    if not isinstance(value, dict):
        raise _UnusableError(f"is {_kind(value)}, expected an object")
    for key, field in value.items():
        if key not in KEYS:
            raise _UnusableError(f"has an unknown key {key!r}, expected 'text', 'image', 'audio' or 'split'")
        if field is not None and not isinstance(field, str):
            raise _UnusableError(f"{key!r} is {_kind(field)}, expected a string")
        if field is not None and any("\ud800" <= character <= "\udfff" for character in field):
            raise _UnusableError(f"{key!r} holds half of a surrogate pair")
    return {key: field for key, field in value.items() if field is not None}


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _UnusableError(f"has the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return fields


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a boolean"
    kinds = {int: "a number", float: "a number", str: "a string", list: "an array", dict: "an object"}
    return kinds.get(type(value), "null")


def _from_file(
    fields: dict[str, str], key: str, folder: Path, read: Callable[[Path], NDArray[np.float32]]
) -> NDArray[np.float32] | None:
    if key not in fields:
        return None
    try:
        return read(folder / fields[key])
    except _UnusableError as error:
        raise _UnusableError(f"{key} {fields[key]!r}: {error}") from error


def _open(path: Path) -> BinaryIO:
    """Open a regular file; anything else, a pipe for one, might never end."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _UnusableError("is not a file")
        return path.open("rb")
    except FileNotFoundError as error:
        raise _UnusableError("no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _UnusableError(getattr(error, "strerror", None) or str(error)) from error


def _read_image(path: Path, image_size: tuple[int, int], channels: int) -> NDArray[np.float32]:
    from PIL import Image, ImageOps, UnidentifiedImageError

    height, width = image_size
    with _open(path) as file, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=IMAGE_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise _UnusableError(f"has {image.width}x{image.height} pixels, more than {MAX_PIXELS}")
                mode = "RGB" if channels == 3 else "L"
                image.draft(mode, (2 * max(image_size),) * 2)  # a JPEG is decoded no larger than it need be
                pixels = _opaque(ImageOps.exif_transpose(image), mode)
                # Areas are averaged on the way down: what was enlarged by a whole number comes back exactly.
                down = pixels.height >= height and pixels.width >= width
                how = Image.Resampling.BOX if down else Image.Resampling.BILINEAR
                pixels = pixels.resize((width, height), how)
        except _UnusableError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _UnusableError(f"has more than {MAX_PIXELS} pixels") from error
        except UnidentifiedImageError as error:
            raise _UnusableError("is not a PNG or JPEG image") from error
        except Exception as error:  # a damaged file makes decoders raise nearly anything
            raise _UnusableError(f"cannot be decoded: {error}") from error
    return np.asarray(pixels, np.float32) / np.float32(255)


def _opaque(image: Image.Image, mode: str) -> Image.Image:
    """Return the image in ``mode``, with what is transparent in it over black."""
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":  # 16 bits a pixel, which convert() would clip
        wide = np.asarray(image, np.float64) / 257
        return Image.fromarray(np.clip(np.rint(wide), 0, 255).astype(np.uint8)).convert(mode)
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert(mode)


def _read_audio(path: Path, sample_rate: int) -> NDArray[np.float32]:
    import soundfile

    with _open(path) as file:
        try:
            _check_whole(file)
            with soundfile.SoundFile(file) as sound:
                if sound.format not in AUDIO_FORMATS:
                    raise _UnusableError(f"is {sound.format}, expected WAV or FLAC")
                if not MIN_RATE <= sound.samplerate <= MAX_RATE:
                    raise _UnusableError(
                        f"has a sample rate of {sound.samplerate} Hz, expected {MIN_RATE} to {MAX_RATE}"
                    )
                if sound.frames * sound.channels > MAX_SAMPLES:
                    raise _UnusableError(f"has more than {MAX_SAMPLES} samples")
                rate, frames = sound.samplerate, sound.frames
                samples = sound.read(dtype="float32", always_2d=True)
        except _UnusableError:
            raise
        except Exception as error:  # a damaged file makes decoders raise nearly anything
            raise _UnusableError(f"is not a WAV or FLAC sound that can be read: {_reason(error)}") from error
    if len(samples) == 0:
        raise _UnusableError("has no samples")
    if len(samples) < frames:
        raise _UnusableError(f"is cut short: {len(samples)} of {frames} samples")
    if not np.isfinite(samples).all():
        raise _UnusableError("has samples that are not finite numbers")
    mono = samples.mean(axis=1, dtype=np.float64)
    mono = resample(mono / max(1.0, np.abs(mono).max()), rate, sample_rate)
    return np.clip(mono, -1, 1).astype(np.float32)


def _reason(error: Exception) -> str:
    """Return what a decoder said, without the address of the file object that soundfile puts before it."""
    return str(getattr(error, "error_string", error)).removeprefix("Error : ").rstrip(".")


def _check_whole(file: BinaryIO) -> None:
    """Refuse a WAV file that ends before its header says; libsndfile would read what is there."""
    header = file.read(8)
    claimed = int.from_bytes(header[4:], "little") + 8
    present = file.seek(0, os.SEEK_END)
    file.seek(0)
    if header[:4] == b"RIFF" and present < claimed < STREAMED:
        raise _UnusableError(f"is cut short: {present} of {claimed} bytes")


def _corpus(rows: list[_Row], image_size: tuple[int, int], channels: int, sample_rate: int) -> Corpus:
    texts = [group for group, row in enumerate(rows) if row.text is not None]
    images = [group for group, row in enumerate(rows) if row.image is not None]
    audios = [group for group, row in enumerate(rows) if row.audio is not None]
    splits = np.array([row.split for row in rows], "<U5")
    shape = (*image_size, 3) if channels == 3 else image_size
    pictures = [row.image for row in rows if row.image is not None]
    return Corpus(
        texts=[row.text for row in rows if row.text is not None],
        images=np.stack(pictures) if pictures else np.zeros((0, *shape), np.float32),
        audios=[row.audio for row in rows if row.audio is not None],
        sample_rate=sample_rate,
        text_group=np.array(texts, np.int64),
        image_group=np.array(images, np.int64),
        audio_group=np.array(audios, np.int64),
        text_split=splits[texts],
        image_split=splits[images],
        audio_split=splits[audios],
        names=tuple(row.text if row.text is not None else f"line {row.line}" for row in rows),
    )
