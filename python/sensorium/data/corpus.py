"""What every model here is trained on: items of three modalities, tied together by what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._validate import as_floats, as_indices
from ..errors import ArgumentError, DTypeError, ShapeError

__all__ = ["SPLITS", "Corpus", "Split"]

Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")


def _no_images() -> NDArray[np.float32]:
    return np.zeros((0, 1, 1), np.float32)


def _no_groups() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


def _no_splits() -> NDArray[np.str_]:
    return np.zeros(0, "<U5")


@dataclass(frozen=True, eq=False, repr=False)
class Corpus:
    """Texts, images and sounds, each with the group it belongs to and the split it is in.

    Items of one group say the same thing: the picture of a seven, the word "seven" and a voice saying it. A
    group may have any number of items of a modality, none included. Everything is checked on construction.

    Parameters
    ----------
    texts : list of str
        The texts.
    images : ndarray, (n, H, W) or (n, H, W, 3), float32
        The images, grey or in colour, all of one size, in [0, 1].
    audios : list of ndarray, (samples,), float32
        The sounds, of any length above zero, in [-1, 1].
    sample_rate : int
        Samples a second of every sound.
    text_group, image_group, audio_group : ndarray, (n,), int64
        Group of each item, 0 or above.
    text_split, image_split, audio_split : ndarray, (n,), str
        ``"train"`` or ``"test"`` for each item.
    names : sequence of str, optional
        Name of each group, indexed by group.

    Raises
    ------
    ShapeError
        Where an array has a wrong shape, or a modality's items, groups and splits are not equally many.
    DTypeError
        Where an array has a wrong element type.
    ArgumentError
        Where a value is out of range: a pixel outside [0, 1], a sample outside [-1, 1] or not finite, a split
        that is neither, a group without a name.

    Examples
    --------
    >>> import numpy as np
    >>> corpus = Corpus(
    ...     texts=["nought", "one"], text_group=np.array([0, 1]), text_split=np.array(["train", "test"]),
    ...     images=np.zeros((3, 8, 8), np.float32), image_group=np.array([0, 1, 1]),
    ...     image_split=np.array(["train", "train", "test"]),
    ... )
    >>> corpus
    Corpus(2 groups; train: 1 text, 2 images 8x8; test: 1 text, 1 image 8x8)
    >>> corpus.select("test").texts
    ['one']
    """

    texts: list[str] = field(default_factory=list)
    images: NDArray[np.float32] = field(default_factory=_no_images)
    audios: list[NDArray[np.float32]] = field(default_factory=list)
    sample_rate: int = 8000
    text_group: NDArray[np.int64] = field(default_factory=_no_groups)
    image_group: NDArray[np.int64] = field(default_factory=_no_groups)
    audio_group: NDArray[np.int64] = field(default_factory=_no_groups)
    text_split: NDArray[np.str_] = field(default_factory=_no_splits)
    image_split: NDArray[np.str_] = field(default_factory=_no_splits)
    audio_split: NDArray[np.str_] = field(default_factory=_no_splits)
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "texts": _check_texts(self.texts),
            "images": _check_images(self.images),
            "audios": _check_audios(self.audios),
            "sample_rate": _check_rate(self.sample_rate),
        }
        for modality, items in (("text", "texts"), ("image", "images"), ("audio", "audios")):
            count = len(checked[items])
            group, split = f"{modality}_group", f"{modality}_split"
            checked[group] = _check_length(group, as_indices(group, getattr(self, group)), count, items)
            checked[split] = _check_length(split, _check_splits(split, getattr(self, split)), count, items)
            if count and checked[group].min() < 0:
                raise ArgumentError(f"{group} holds {checked[group].min()}, expected 0 or above")
        if self.names is not None:
            checked["names"] = tuple(self.names)
            for modality in ("text", "image", "audio"):
                group = checked[f"{modality}_group"]
                if group.size and group.max() >= len(checked["names"]):
                    raise ArgumentError(
                        f"names has {len(checked['names'])} entries but {modality}_group holds {group.max()}"
                    )
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def groups(self) -> NDArray[np.int64]:
        """The groups that have an item, in ascending order."""
        return np.unique(np.concatenate([self.text_group, self.image_group, self.audio_group]))

    def select(self, split: Split) -> Corpus:
        """Return the items of one split; groups keep their numbers and names.

        Parameters
        ----------
        split : {"train", "test"}
            Which items to keep.

        Raises
        ------
        ArgumentError
            Where ``split`` is neither.
        """
        if split not in SPLITS:
            raise ArgumentError(f"split must be 'train' or 'test', not {split!r}")
        text, image, audio = (
            which == split for which in (self.text_split, self.image_split, self.audio_split)
        )
        return Corpus(
            texts=[item for item, keep in zip(self.texts, text, strict=True) if keep],
            images=self.images[image],
            audios=[item for item, keep in zip(self.audios, audio, strict=True) if keep],
            sample_rate=self.sample_rate,
            text_group=self.text_group[text],
            image_group=self.image_group[image],
            audio_group=self.audio_group[audio],
            text_split=self.text_split[text],
            image_split=self.image_split[image],
            audio_split=self.audio_split[audio],
            names=self.names,
        )

    def merge_names(self) -> Corpus:
        """Return the corpus with groups of one name made one group.

        The rows of a manifest are groups of their own, named by their texts. Where the texts are labels, as
        in ``{"text": "seven", "image": "0412.png"}``, the rows of one label say the same thing; merged, they
        can be told apart by a `sensorium.judge.Judge`.

        Returns
        -------
        Corpus
            The same items; groups are numbered from 0 in the order in which their names first come up.

        Raises
        ------
        ArgumentError
            Where the groups have no names.

        Examples
        --------
        >>> rows = Corpus(
        ...     texts=["a", "b", "a"], names=["a", "b", "a"],
        ...     text_group=np.arange(3), text_split=np.full(3, "train"),
        ... )
        >>> rows.merge_names().text_group.tolist(), rows.merge_names().names
        ([0, 1, 0], ('a', 'b'))
        """
        if self.names is None:
            raise ArgumentError("names is None, so that groups cannot be merged by name")
        names = tuple(dict.fromkeys(self.names))
        number = {name: group for group, name in enumerate(names)}
        merged = np.array([number[name] for name in self.names], np.int64)
        return replace(
            self,
            text_group=merged[self.text_group],
            image_group=merged[self.image_group],
            audio_group=merged[self.audio_group],
            names=names,
        )

    def __repr__(self) -> str:
        parts = [_count(len(self.groups), "group")]
        height, width = self.images.shape[1:3]
        colour = " in colour" if self.images.ndim == 4 else ""
        for split in SPLITS:
            text, image, audio = (
                int(np.sum(which == split)) for which in (self.text_split, self.image_split, self.audio_split)
            )
            items = [_count(text, "text")] if text else []
            items += [f"{_count(image, 'image')} {height}x{width}{colour}"] if image else []
            items += [f"{_count(audio, 'sound')} at {self.sample_rate} Hz"] if audio else []
            parts += [f"{split}: {', '.join(items)}"] if items else []
        return f"Corpus({'; '.join(parts)})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _check_texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise DTypeError("texts is one str, expected a list of them")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise DTypeError(f"texts[{index}] is of type {type(text).__name__}, expected str")
    return [str(text) for text in texts]


def _check_images(images: NDArray[np.float32]) -> NDArray[np.float32]:
    (array,) = as_floats(images=images)
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] != 3):
        raise ShapeError(f"images has shape {array.shape}, expected (n, H, W) or (n, H, W, 3)")
    if 0 in array.shape[1:]:
        raise ShapeError(f"images has shape {array.shape}, expected H and W of at least 1")
    _check_range("images", array, 0.0, 1.0)
    return array.astype(np.float32, copy=False)


def _check_audios(audios: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    checked = []
    for index, audio in enumerate(audios):
        name = f"audios[{index}]"
        (array,) = as_floats(**{name: audio})
        if array.ndim != 1 or array.size == 0:
            raise ShapeError(f"{name} has shape {array.shape}, expected (samples,) with at least one sample")
        _check_range(name, array, -1.0, 1.0)
        checked.append(array.astype(np.float32, copy=False))
    return checked


def _check_range(name: str, array: NDArray[np.floating], low: float, high: float) -> None:
    if array.size and not (array.min() >= low and array.max() <= high):  # a NaN fails either comparison
        bad = array[~((array >= low) & (array <= high))][0]
        raise ArgumentError(f"{name} holds {bad:g}, expected values from {low:g} to {high:g}")


def _check_rate(sample_rate: int) -> int:
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, int | np.integer):
        raise DTypeError(f"sample_rate is of type {type(sample_rate).__name__}, expected int")
    if sample_rate <= 0:
        raise ArgumentError(f"sample_rate must be above 0, not {sample_rate}")
    return int(sample_rate)


def _check_splits(name: str, split: NDArray[np.str_]) -> NDArray[np.str_]:
    array = np.asarray(split)
    if array.size == 0:
        return np.zeros(array.shape, "<U5")
    if array.dtype.kind not in "UO":
        raise DTypeError(f"{name} has dtype {array.dtype}, expected str")
    for value in array.ravel():
        if value not in SPLITS:
            raise ArgumentError(f"{name} holds {str(value)!r}, expected 'train' or 'test'")
    return array.astype("<U5")


def _check_length(name: str, array: NDArray[Any], count: int, items: str) -> NDArray[Any]:
    if array.ndim != 1 or len(array) != count:
        raise ShapeError(f"{name} has shape {array.shape}, expected ({count},) as there are {count} {items}")
    return array
