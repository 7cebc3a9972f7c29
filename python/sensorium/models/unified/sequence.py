"""Packed rows: which tokens stand where, what they see, and what is predicted from them.

A **task** is a tuple of modality names, ``("image", "text")``: sources first, the target last. Several
targets of the same sources stand in a tuple of their own, ``("image", ("text", "audio"))``: each sees the
sources, none sees another, and the sources are read once for all. A **row** packs one sample of each task
side by side; samples do not see each other. Within a sample every segment sees itself and the segments
before it. Text (and any modality set to ``autoregressive``) is a causal segment that begins with a start
token; a ``diffusion`` modality is a full segment, clean as a source and partly masked as a target. A
modality that a task does not name is simply absent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from ...errors import ArgumentError, DTypeError
from ...ops.layout import Layout, Segment

__all__ = ["Batch", "Modality", "Row", "Slot", "Task", "Vocabulary", "fill_row", "mask_counts"]

Task = tuple[str | tuple[str, ...], ...]
Ints = NDArray[np.int64]
KINDS = ("autoregressive", "diffusion")


def names_of(task: Task) -> tuple[str, ...]:
    """Return the modalities of a task in the order of their segments."""
    return tuple(name for part in task for name in ((part,) if isinstance(part, str) else part))


@dataclass(frozen=True)
class Modality:
    """One sense as the transformer sees it.

    Parameters
    ----------
    name : str
        ``"text"``, ``"image"``, ``"audio"`` or any other name.
    kind : {"autoregressive", "diffusion"}
        Causal segment predicted from left to right, or full segment predicted where masked.
    codes : int
        Size of the codebook or alphabet.
    length : int
        Codes in a segment.
    pad : int, optional
        Code that fills up a short segment; it is never a target, but for the first one, which ends the text.
    """

    name: str
    kind: str
    codes: int
    length: int
    pad: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ArgumentError(f"kind of {self.name} must be one of {', '.join(KINDS)}, not {self.kind!r}")
        for name in ("codes", "length"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int):
                raise DTypeError(f"{name} of {self.name} must be an integer, not {getattr(self, name)!r}")
        if self.codes < 1 or self.length < 1:
            raise ArgumentError(
                f"{self.name} has codes={self.codes}, length={self.length}; both must be above 0"
            )

    @property
    def causal(self) -> bool:
        """Whether the segment is predicted from left to right."""
        return self.kind == "autoregressive"

    @property
    def segment_length(self) -> int:
        """Tokens in a segment: one more than ``length`` where a start token leads."""
        return self.length + self.causal


@dataclass(frozen=True)
class Vocabulary:
    """The joint token numbering: each modality's codes, then its special token (start or mask)."""

    modalities: tuple[Modality, ...]

    def __post_init__(self) -> None:
        names = [m.name for m in self.modalities]
        if len(set(names)) != len(names):
            raise ArgumentError(f"modalities must have different names, not {names}")

    @cached_property
    def by_name(self) -> dict[str, Modality]:
        """Modality of each name."""
        return {m.name: m for m in self.modalities}

    @cached_property
    def offset(self) -> dict[str, int]:
        """Joint number of each modality's code 0."""
        starts = np.cumsum([0] + [m.codes + 1 for m in self.modalities])
        return {m.name: int(start) for m, start in zip(self.modalities, starts, strict=False)}

    @cached_property
    def position_offset(self) -> dict[str, int]:
        """Row of each modality's position 0 in the position table."""
        starts = np.cumsum([0] + [m.segment_length for m in self.modalities])
        return {m.name: int(start) for m, start in zip(self.modalities, starts, strict=False)}

    def special(self, name: str) -> int:
        """Joint number of the modality's start or mask token."""
        return self.offset[name] + self.by_name[name].codes

    @property
    def size(self) -> int:
        """Number of tokens of all modalities, special ones included."""
        return sum(m.codes + 1 for m in self.modalities)

    @property
    def positions(self) -> int:
        """Number of positions of all modalities."""
        return sum(m.segment_length for m in self.modalities)


@dataclass(frozen=True)
class Slot:
    """One segment of a row: its columns, whether it is predicted, whether it is hidden from later ones."""

    task: int
    modality: str
    start: int
    stop: int
    target: bool
    hidden: bool = False

    @property
    def columns(self) -> slice:
        """Its columns."""
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Row:
    """The form of a packed row: one sample of each task.

    Parameters
    ----------
    vocabulary : Vocabulary
        The modalities and their token numbers.
    tasks : tuple of tuple of str
        One sample each. The last segment is the target, or all those in the last tuple are; causal segments
        before it, but for the first, are targets too (a word in between is learnt on the way).
    """

    vocabulary: Vocabulary
    tasks: tuple[Task, ...]
    slots: tuple[Slot, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        slots: list[Slot] = []
        start = 0
        for t, task in enumerate(self.tasks):
            names = names_of(task)
            if not names or len(set(names)) != len(names):
                raise ArgumentError(f"tasks[{t}] must name one or more different modalities, not {task}")
            first_target = len(names) - (len(task[-1]) if isinstance(task[-1], tuple) else 1)
            for i, name in enumerate(names):
                if name not in self.vocabulary.by_name:
                    raise ArgumentError(
                        f"tasks[{t}] names {name!r}, expected one of {list(self.vocabulary.by_name)}"
                    )
                modality = self.vocabulary.by_name[name]
                stop = start + modality.segment_length
                target = i >= first_target or (modality.causal and i > 0)
                slots.append(Slot(t, name, start, stop, target, hidden=i >= first_target))
                start = stop
        object.__setattr__(self, "slots", tuple(slots))

    @property
    def length(self) -> int:
        """Tokens in the row."""
        return self.slots[-1].stop if self.slots else 0

    @cached_property
    def layout(self) -> Layout:
        """What each token sees."""
        by_name = self.vocabulary.by_name
        return Layout.packed(
            [
                [
                    Segment(
                        "causal" if by_name[s.modality].causal else "full", s.stop - s.start, hidden=s.hidden
                    )
                    for s in self.slots
                    if s.task == t
                ]
                for t in range(len(self.tasks))
            ]
        )

    @cached_property
    def position(self) -> Ints:
        """Row of the position table for each column ``(N,)``."""
        start = self.vocabulary.position_offset
        return np.concatenate([start[s.modality] + np.arange(s.stop - s.start) for s in self.slots])

    @cached_property
    def modality(self) -> Ints:
        """Index of the modality of each column ``(N,)``."""
        index = {m.name: i for i, m in enumerate(self.vocabulary.modalities)}
        return np.concatenate([np.full(s.stop - s.start, index[s.modality]) for s in self.slots])

    @cached_property
    def predicted(self) -> dict[str, Ints]:
        """Columns whose output predicts a code, by modality: a causal column predicts the code after it."""
        columns: dict[str, list[Ints]] = {}
        for s in self.slots:
            if s.target:
                causal = self.vocabulary.by_name[s.modality].causal
                columns.setdefault(s.modality, []).append(np.arange(s.start, s.stop - causal))
        return {name: np.concatenate(parts) for name, parts in columns.items()}


@lru_cache(maxsize=64)
def cached_row(vocabulary: Vocabulary, tasks: tuple[Task, ...]) -> Row:
    """Return the row of these tasks, made once."""
    return Row(vocabulary, tasks)


@dataclass(frozen=True)
class Batch:
    """Rows to train on: joint tokens ``(B, N)``, and per modality targets and weights ``(B, n)``."""

    row: Row
    tokens: Ints
    targets: dict[str, Ints]
    weights: dict[str, NDArray[np.float32]]


def mask_counts(rng: np.random.Generator, rows: int, length: int, least: float = 0.0) -> Ints:
    """Draw how many of ``length`` codes are masked in each of ``rows`` samples.

    The share is ``cos(pi u / 2)`` with ``u`` uniform (Chang et al., arXiv:2202.04200), not below ``least``,
    and at least one code. The draws of ``u`` are stratified: one from each ``rows``-th of the unit interval.
    """
    u = (rng.permutation(rows) + rng.random(rows)) / max(rows, 1)
    share = np.maximum(np.cos(0.5 * np.pi * u), least)
    counts: Ints = np.clip(np.ceil(share * length).astype(np.int64), 1, length)
    return counts


def fill_row(
    row: Row, codes: list[Ints], rng: np.random.Generator | None = None, *, least_mask: float = 0.0
) -> Batch:
    """Put codes into rows and mask the diffusion targets.

    Parameters
    ----------
    row : Row
        The form.
    codes : list of ndarray of int, shape (B, length)
        Codes of each slot of the row, numbered within their modality.
    rng : numpy.random.Generator, optional
        Draws the masks. Without it every diffusion target is masked whole, as decoding starts.
    least_mask : float
        Smallest share of a target that is masked.

    Returns
    -------
    Batch
    """
    B = codes[0].shape[0]
    tokens = np.empty((B, row.length), np.int64)
    targets: dict[str, list[Ints]] = {name: [] for name in row.predicted}
    weights: dict[str, list[NDArray[np.float32]]] = {name: [] for name in row.predicted}
    for slot, code in zip(row.slots, codes, strict=True):
        modality = row.vocabulary.by_name[slot.modality]
        joint = code + row.vocabulary.offset[slot.modality]
        special = row.vocabulary.special(slot.modality)
        if modality.causal:
            tokens[:, slot.start] = special
            tokens[:, slot.start + 1 : slot.stop] = joint
            weight = np.ones(code.shape, np.float32)
            if (
                modality.pad is not None
            ):  # The first pad ends the text and is predicted; those after it are not.
                padding = code == modality.pad
                weight[:, 1:][padding[:, 1:] & padding[:, :-1]] = 0.0
        elif slot.target:
            if rng is None:
                masked = np.ones(code.shape, bool)
            else:
                count = mask_counts(rng, B, modality.length, least_mask)
                masked = rng.random(code.shape).argsort(axis=1).argsort(axis=1) < count[:, None]
            tokens[:, slot.columns] = np.where(masked, special, joint)
            weight = masked.astype(np.float32)
        else:
            tokens[:, slot.columns] = joint
        if slot.target:
            targets[slot.modality].append(code)
            weights[slot.modality].append(weight)
    return Batch(
        row,
        tokens,
        {name: np.concatenate(parts, axis=1) for name, parts in targets.items()},
        {name: np.concatenate(parts, axis=1) for name, parts in weights.items()},
    )
