"""Rows of arrays for models of several senses: what a row lacks is masked, never imputed.

An :class:`Encoding` turns images, sounds and texts into arrays of fixed sizes and back; :func:`pair` ties the
items of a corpus into rows. Which picture stands beside which voice is drawn, as both only say the same
thing; the rows of a manifest stay the rows that they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validate import as_indices, check_integer
from ..errors import ArgumentError, DTypeError, ShapeError
from ..tokenizers._logmel import LogMel
from ..tokenizers.text import TextTokenizer
from .corpus import Corpus

__all__ = ["SENSES", "Encoding", "Rows", "corrupt", "digit_rows", "pair"]

SENSES = ("image", "audio", "text")
BANDS, FRAMES = 32, 24  # of a sound, at most: 768 numbers; digits say as much to a judge as with 1,920
LONGEST_TEXT = 64  # characters: a text here is a label, each character an array of its own
LOUDEST = 0.5  # nepers over a full-scale tone: what a model says beyond is cut, so that no sound overflows

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Encoding:
    """How the items of each modality become arrays, and what arrays become again.

    ``image`` is ``(H, W)`` or ``(H, W, 3)`` as it stands, in [0, 1]. ``audio`` is ``(frames, bands)`` log-mel
    magnitudes, less their mean in each band and over their deviation in all. ``text`` is
    ``(characters + 1, V)``, one row of a single 1 for each character and for the end.

    Parameters
    ----------
    image : tuple of int, optional
        Shape of an image; without it there are none.
    audio : LogMel, optional
        Frames of a sound.
    text : TextTokenizer, optional
        Characters of a text.
    mean : sequence of float
        Mean of each band.
    scale : float
        Deviation over all bands.

    Examples
    --------
    >>> import numpy as np
    >>> corpus = Corpus(texts=["one", "two"], text_group=np.arange(2), text_split=np.full(2, "train"))
    >>> encoding = Encoding.fit(corpus)
    >>> encoding.shapes
    {'text': (4, 8)}
    >>> encoding.decode("text", encoding.encode("text", ["two", "one"]))
    ['two', 'one']
    """

    image: tuple[int, ...] | None = None
    audio: LogMel | None = None
    text: TextTokenizer | None = None
    mean: Sequence[float] = ()
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.image is None and self.audio is None and self.text is None:
            raise ArgumentError("an encoding needs at least one of image, audio and text")
        if self.audio is not None and len(self.mean) != self.audio.bands:
            raise ShapeError(f"mean has {len(self.mean)} numbers, expected {self.audio.bands}, one a band")
        if not (np.isfinite(self.scale) and self.scale > 0 and np.isfinite(self.mean).all()):
            raise ArgumentError(f"mean and scale must be finite and scale above 0, not {self.scale}")

    @classmethod
    def fit(cls, corpus: Corpus, *, bands: int = BANDS, frames: int = FRAMES) -> Self:
        """Take shapes, characters and the statistics of sounds from the ``train`` items of a corpus.

        Parameters
        ----------
        corpus : Corpus
            With training items of at least one modality.
        bands, frames : int
            Of a sound. The longest training sound fits into so many frames.

        Raises
        ------
        ArgumentError
            Where the corpus has no training items, or a text of more than 64 characters.
        """
        train = corpus.select("train")
        parts: dict[str, Any] = {}
        if len(train.images):
            parts["image"] = tuple(train.images.shape[1:])
        if train.audios:
            longest = max(len(sound) for sound in train.audios)
            hop = 2 * max(1, -(-longest // (4 * check_integer("frames", frames, 1))))
            mel = LogMel(train.sample_rate, frames, min(check_integer("bands", bands, 1), 2 * hop), hop=hop)
            heard = mel.encode(train.audios).astype(np.float64)
            mean = heard.mean(axis=(0, 1))
            scale = float(np.sqrt(np.mean((heard - mean) ** 2)))
            parts |= {"audio": mel, "mean": tuple(mean.tolist()), "scale": scale or 1.0}
        if train.texts:
            longest = max(len(text) for text in train.texts)
            if longest > LONGEST_TEXT:
                raise ArgumentError(
                    f"corpus has a text of {longest} characters, expected labels of at most {LONGEST_TEXT}"
                )
            parts["text"] = TextTokenizer.from_corpus(train.texts)
        if not parts:
            raise ArgumentError("corpus has no training items")
        return cls(**parts)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of the array of an item, by modality."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.image is not None:
            shapes["image"] = tuple(self.image)
        if self.audio is not None:
            shapes["audio"] = (self.audio.frames, self.audio.bands)
        if self.text is not None:
            shapes["text"] = (self.text.length + 1, self.text.size)
        return shapes

    def encode(self, modality: str, items: Sequence[Any]) -> Floats:
        """Return the arrays of some items, ``float32 (n, ...)``.

        Parameters
        ----------
        modality : {"image", "audio", "text"}
        items : sequence
            Images as arrays, sounds as arrays of samples at the encoding's rate, or strings.

        Raises
        ------
        ArgumentError
            Where the encoding knows no such modality, or a text does not fit it.
        ShapeError
            Where images have another shape.
        """
        self._check(modality)
        if modality == "image":
            images: Floats = np.asarray(items, np.float32)
            want = self.shapes["image"]
            if len(items) == 0:
                return np.zeros((0, *want), np.float32)
            if images.shape[1:] != want:
                raise ShapeError(f"image has shape {images.shape[1:]}, expected {want}")
            if not np.isfinite(images).all():
                raise ArgumentError("image holds values that are not finite")
            return images
        if modality == "audio":
            assert self.audio is not None
            heard: Floats = (self.audio.encode(items) - np.asarray(self.mean, np.float32)) / np.float32(
                self.scale
            )
            return heard
        assert self.text is not None
        codes = self.text.encode(items)[:, 1:]
        letters: Floats = np.eye(self.text.size, dtype=np.float32)[codes]
        return letters

    def decode(self, modality: str, arrays: ArrayLike, *, iterations: int = 32) -> list[Any]:
        """Return the items that arrays stand for: images, sounds of the encoding's rate, or strings.

        Parameters
        ----------
        modality : {"image", "audio", "text"}
        arrays : array_like, (n, ...)
            As :meth:`encode` gives them, or means of a model: of a text the likeliest character counts.
        iterations : int
            Of Griffin-Lim, for sounds; a judge, who hears no phases, is content with 8.
        """
        self._check(modality)
        values = np.asarray(arrays, np.float32)
        want = self.shapes[modality]
        if values.ndim != len(want) + 1 or values.shape[1:] != want:
            raise ShapeError(f"arrays has shape {values.shape}, expected (n, {str(want)[1:]}")
        if not np.isfinite(values).all():
            raise ArgumentError("arrays holds values that are not finite")
        if modality == "image":
            return list(np.clip(values, 0, 1))
        if modality == "audio":
            assert self.audio is not None
            logmel = values * np.float32(self.scale) + np.asarray(self.mean, np.float32)
            return list(self.audio.decode(np.clip(logmel, self.audio.floor, LOUDEST), iterations=iterations))
        assert self.text is not None
        return list(self.text.decode(values.argmax(axis=2)))

    def to_json(self) -> dict[str, Any]:
        """Return the encoding as plain data."""
        out: dict[str, Any] = {}
        if self.image is not None:
            out["image"] = list(self.image)
        if self.audio is not None:
            mel = self.audio
            out["audio"] = {
                "sample_rate": mel.sample_rate,
                "frames": mel.frames,
                "bands": mel.bands,
                "hop": mel.hop,
                "mean": list(self.mean),
                "scale": self.scale,
            }
        if self.text is not None:
            out["text"] = self.text.config
        return out

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build the encoding that :meth:`to_json` described.

        Raises
        ------
        ArgumentError
            Where something is missing or cannot be used.
        """
        try:
            parts: dict[str, Any] = {}
            if "image" in data:
                shape = tuple(check_integer("image", side, 1, 4096) for side in data["image"])
                if len(shape) not in (2, 3):
                    raise ArgumentError(f"image has shape {shape}, expected (H, W) or (H, W, 3)")
                parts["image"] = shape
            if "audio" in data:
                audio = dict(data["audio"])
                parts |= {"mean": tuple(map(float, audio.pop("mean"))), "scale": float(audio.pop("scale"))}
                parts["audio"] = LogMel(**audio)
            if "text" in data:
                parts["text"] = TextTokenizer.from_arrays({}, dict(data["text"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArgumentError(f"encoding cannot be used: {error}") from error
        return cls(**parts)

    def _check(self, modality: str) -> None:
        if modality not in self.shapes:
            raise ArgumentError(f"modality must be one of {', '.join(self.shapes)}, not {modality!r}")


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of arrays of several modalities, each of which a row may lack.

    Parameters
    ----------
    values : mapping of str to ndarray, (N, ...), float32
        Arrays by modality; where a row lacks one, what stands there is never looked at.
    present : mapping of str to ndarray, (N,), bool
        Which rows have it.
    group : ndarray, (N,), int64
        What each row says, to be judged by.
    names : sequence of str
        Name of each group.

    Examples
    --------
    >>> import numpy as np
    >>> rows = Rows({"image": np.zeros((3, 8, 8), np.float32)}, {"image": np.array([True, False, True])})
    >>> len(rows), rows.count("image"), rows.take([0, 1]).present["image"].tolist()
    (3, 2, [True, False])
    """

    values: Mapping[str, Floats]
    present: Mapping[str, NDArray[np.bool_]]
    group: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.values or self.values.keys() != self.present.keys():
            raise ArgumentError(
                f"present has {', '.join(self.present) or 'no modality'}, "
                f"expected those of values: {', '.join(self.values) or 'none'}"
            )
        sizes = {name: len(array) for name, array in self.values.items()}
        first = next(iter(sizes.values()))
        for name, size in sizes.items():
            mask = self.present[name]
            if size != first:
                raise ShapeError(f"{name} has {size} rows but {next(iter(sizes))} has {first}")
            if mask.dtype != np.bool_ or mask.shape != (size,):
                raise DTypeError(f"present of {name} is {mask.dtype} {mask.shape}, expected bool ({size},)")
        if len(self.group) == 0:
            object.__setattr__(self, "group", np.zeros(first, np.int64))
        group = as_indices("group", self.group)
        if group.shape != (first,):
            raise ShapeError(f"group has shape {group.shape}, expected ({first},)")

    def __len__(self) -> int:
        return len(self.group)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities."""
        return tuple(self.values)

    def count(self, modality: str) -> int:
        """Return how many rows have a modality."""
        return int(self.present[modality].sum())

    def take(self, index: ArrayLike) -> Rows:
        """Return some of the rows."""
        which = np.asarray(index)
        return Rows(
            {name: array[which] for name, array in self.values.items()},
            {name: mask[which] for name, mask in self.present.items()},
            self.group[which],
            self.names,
        )

    def given(self, modalities: Sequence[str]) -> Rows:
        """Return the rows with only these modalities present; what a row lacks it still lacks."""
        unknown = [name for name in modalities if name not in self.values]
        if unknown:
            raise ArgumentError(f"modalities holds {unknown[0]!r}, expected some of {', '.join(self.values)}")
        kept = {
            name: mask if name in modalities else np.zeros_like(mask) for name, mask in self.present.items()
        }
        return replace(self, present=kept)

    def complete(self) -> Rows:
        """Return the rows that lack nothing."""
        return self.take(np.flatnonzero(np.logical_and.reduce(list(self.present.values()))))


def pair(corpus: Corpus, encoding: Encoding, *, seed: int = 0, copies: int = 1) -> Rows:
    """Tie the items of a corpus into rows.

    A group of a corpus with several items of a modality becomes ``copies`` times as many rows as it has items
    of its most frequent one; the others go round in a drawn order, so that all are there about equally often
    and beside different partners. A group with at most one item of each modality, as is every row of a
    manifest, becomes one row. Modalities that a group lacks are masked.

    Parameters
    ----------
    corpus : Corpus
        The items, of one split (``corpus.select("train")``).
    encoding : Encoding
        What makes arrays of them; items of a modality that it does not know are left out.
    seed : int
        Seed of the pairs.
    copies : int
        Rows for each item of a group's most frequent modality.

    Returns
    -------
    Rows
        In the order of the groups. Groups of one name are one group there, as the labels of a manifest are.

    Raises
    ------
    ArgumentError
        Where no item of the corpus is of a modality of the encoding.

    Examples
    --------
    >>> from sensorium.data import digits
    >>> corpus = digits()
    >>> rows = pair(corpus.select("test"), Encoding.fit(corpus), seed=0)
    >>> len(rows), rows.values["image"].shape, rows.values["audio"].shape[1:], rows.values["text"].shape[1:]
    (359, (359, 8, 8), (24, 32), (6, 18))
    """
    check_integer("copies", copies, 1)
    rng = np.random.default_rng(check_integer("seed", seed))
    items: dict[str, tuple[Floats, NDArray[np.int64]]] = {}
    for name, things, groups in (
        ("image", corpus.images, corpus.image_group),
        ("audio", corpus.audios, corpus.audio_group),
        ("text", corpus.texts, corpus.text_group),
    ):
        if name in encoding.shapes:
            items[name] = encoding.encode(name, list(things)), groups
    picks: dict[str, list[NDArray[np.int64]]] = {name: [] for name in items}
    group_of_row: list[NDArray[np.int64]] = []
    for group in np.unique(np.concatenate([groups for _, groups in items.values()])):
        members = {name: np.flatnonzero(groups == group) for name, (_, groups) in items.items()}
        most = max(len(of) for of in members.values())
        count = most if most == 1 else most * copies
        group_of_row.append(np.full(count, group))
        for name, of in members.items():
            rounds = [rng.permutation(of) for _ in range(-(-count // len(of)))] if len(of) else []
            picks[name].append(np.concatenate(rounds)[:count] if rounds else np.full(count, -1))
    if not group_of_row:
        raise ArgumentError(f"corpus has no {' and no '.join(items)}")
    index = {name: np.concatenate(parts) for name, parts in picks.items()}
    present = {name: rows >= 0 for name, rows in index.items()}
    values = {}
    for name, (arrays, _) in items.items():
        values[name] = np.zeros((len(index[name]), *encoding.shapes[name]), np.float32)
        values[name][present[name]] = arrays[index[name][present[name]]]
    group, names = _labels(corpus, np.concatenate(group_of_row))
    return Rows(values, present, group, names)


def _labels(corpus: Corpus, group: NDArray[np.int64]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Give groups of one name one number, so that rows of one label say the same thing."""
    if corpus.names is None:
        return group, tuple(str(number) for number in range(int(group.max()) + 1))
    names = tuple(dict.fromkeys(corpus.names))
    number = {name: at for at, name in enumerate(names)}
    return np.array([number[corpus.names[of]] for of in group], np.int64), names


def digit_rows(*, seed: int = 0, copies: int = 4) -> tuple[Rows, Rows, Encoding]:
    """Return the quickstart's digits as rows of an image, a sound and a word: to train on, and held out.

    The held-out rows have pictures and voices that no training row has (:func:`sensorium.data.digits`).

    Parameters
    ----------
    seed : int
        Which images are held out, and which picture stands beside which voice.
    copies : int
        Training rows for each item of a digit's most frequent modality.

    Returns
    -------
    train, test : Rows
    encoding : Encoding
        Fitted on the training items.

    Examples
    --------
    >>> train, test, encoding = digit_rows()
    >>> len(train), len(test), train.names[3]
    (5752, 359, 'three')
    """
    from .digits import digits

    corpus = digits(seed=seed)
    encoding = Encoding.fit(corpus)
    train = pair(corpus.select("train"), encoding, seed=seed, copies=copies)
    return train, pair(corpus.select("test"), encoding, seed=seed), encoding


def corrupt(rows: Rows, modality: str, how: str, *, seed: int = 0) -> Rows:
    """Return rows whose items of one modality lie: noise, or the item of another group.

    Parameters
    ----------
    rows : Rows
        Whole rows.
    modality : str
        Which one lies.
    how : {"noise", "other"}
        ``"noise"``: each value is that of another row drawn for it alone, so that every value is as usual and
        no two belong together (of a text each character is drawn so). ``"other"``: the item of a row of
        another group, as clean as any.
    seed : int
        Seed of the draws.

    Raises
    ------
    ArgumentError
        Where an argument is none of those, or all rows are of one group.

    Examples
    --------
    >>> import numpy as np
    >>> values = {"image": np.arange(3, dtype=np.float32).reshape(3, 1, 1)}
    >>> rows = Rows(values, {"image": np.ones(3, bool)}, np.array([0, 0, 1]))
    >>> corrupt(rows, "image", "other").values["image"].ravel()[:2].tolist()
    [2.0, 2.0]
    """
    if modality not in rows.values:
        raise ArgumentError(f"modality must be one of {', '.join(rows.values)}, not {modality!r}")
    rng = np.random.default_rng(check_integer("seed", seed))
    clean, have = rows.values[modality], np.flatnonzero(rows.present[modality])
    lies = clean.copy()
    if how == "noise":
        cells = clean.reshape(len(clean), -1) if modality != "text" else clean
        if len(have):
            source = have[rng.integers(0, len(have), cells.shape[:2])]
            lies = cells[source, np.arange(cells.shape[1])].reshape(clean.shape)
    elif how == "other":
        for group in np.unique(rows.group[have]):
            others = have[rows.group[have] != group]
            if len(others) == 0:
                raise ArgumentError(f"rows have {modality} of one group alone, so that none is of another")
            own = have[rows.group[have] == group]
            lies[own] = clean[rng.choice(others, len(own))]
    else:
        raise ArgumentError(f"how must be 'noise' or 'other', not {how!r}")
    return replace(rows, values={**rows.values, modality: lies})
