"""Packed rows: which tokens stand where, what they see, and what is predicted from them.

A **task** is a tuple of modality names, ``("image", "text")``: sources first, the target last. Several
targets of the same sources stand in a tuple of their own, ``("image", ("text", "audio"))``: each sees the
sources, none sees another, and the sources are read once for all. A **row** packs one sample of each task
side by side; samples do not see each other. Within a sample every segment sees itself and the segments
before it. Text (and any modality set to ``autoregressive``) is a causal segment that begins with a start
token; a ``diffusion`` modality is a full segment, clean as a source and partly masked as a target. A
modality that a task does not name is simply absent, and one may stand in it several times: an album of many
images. A ``readout`` modality is predicted and never shown: a question about what came before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import ArgumentError, DTypeError
from ...ops.layout import Layout, Segment

__all__ = ["Batch", "Modality", "Row", "Slot", "Task", "Vocabulary", "fill_row", "mask_counts"]

Task = tuple[str | tuple[str, ...], ...]
Ints = NDArray[np.int64]
KINDS = ("autoregressive", "diffusion", "readout")


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
    kind : {"autoregressive", "diffusion", "readout"}
        Causal segment predicted from left to right; full segment predicted where masked; full segment of
        which prompts are shown and codes are predicted, wherever it stands: each token is a question.
    codes : int
        Size of the codebook or alphabet.
    length : int
        Codes in a segment.
    pad : int, optional
        Code that fills up a short segment; it is never a target, but for the first one, which ends the text.
    prompts : int
        How many different questions a readout asks; 1 for the other kinds.
    """

    name: str
    kind: str
    codes: int
    length: int
    pad: int | None = None
    prompts: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ArgumentError(f"kind of {self.name} must be one of {', '.join(KINDS)}, not {self.kind!r}")
        for name in ("codes", "length", "prompts"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int):
                raise DTypeError(f"{name} of {self.name} must be an integer, not {getattr(self, name)!r}")
        if self.codes < 1 or self.length < 1:
            raise ArgumentError(
                f"{self.name} has codes={self.codes}, length={self.length}; both must be above 0"
            )
        if self.prompts < 1 or (self.prompts > 1 and self.kind != "readout"):
            raise ArgumentError(f"{self.name} has prompts={self.prompts}, expected 1, or more of a readout")

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
    """The joint token numbering: each modality's codes, then its special token (start or mask) or prompts."""

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
        starts = np.cumsum([0] + [m.codes + m.prompts for m in self.modalities])
        return {m.name: int(start) for m, start in zip(self.modalities, starts, strict=False)}

    @cached_property
    def position_offset(self) -> dict[str, int]:
        """Row of each modality's position 0 in the position table."""
        starts = np.cumsum([0] + [m.segment_length for m in self.modalities])
        return {m.name: int(start) for m, start in zip(self.modalities, starts, strict=False)}

    def special(self, name: str) -> int:
        """Joint number of the modality's start or mask token, or its first prompt."""
        return self.offset[name] + self.by_name[name].codes

    @property
    def size(self) -> int:
        """Number of tokens of all modalities, special ones included."""
        return sum(m.codes + m.prompts for m in self.modalities)

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

    def two_way(self, vocabulary: Vocabulary) -> bool:
        """Whether scans read it backwards too: a full segment of several tokens that is predicted."""
        return self.target and not vocabulary.by_name[self.modality].causal and self.stop - self.start > 1


@dataclass(frozen=True)
class Row:
    """The form of a packed row: one sample of each task.

    Parameters
    ----------
    vocabulary : Vocabulary
        The modalities and their token numbers.
    tasks : tuple of tuple of str
        One sample each. The last segment is the target, or all those in the last tuple are; causal segments
        before it, but for the first, are targets too (a word in between is learnt on the way), and so are
        readouts.
    """

    vocabulary: Vocabulary
    tasks: tuple[Task, ...]
    slots: tuple[Slot, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        slots: list[Slot] = []
        start = 0
        for t, task in enumerate(self.tasks):
            names = names_of(task)
            last = () if not task else (task[-1],) if isinstance(task[-1], str) else task[-1]
            if not last or len(set(last)) != len(last):
                raise ArgumentError(f"tasks[{t}] must end in one or more different targets, not {task}")
            first_target = len(names) - len(last)
            for i, name in enumerate(names):
                if name not in self.vocabulary.by_name:
                    raise ArgumentError(
                        f"tasks[{t}] names {name!r}, expected one of {list(self.vocabulary.by_name)}"
                    )
                modality = self.vocabulary.by_name[name]
                stop = start + modality.segment_length
                target = i >= first_target or (modality.causal and i > 0) or modality.kind == "readout"
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
        return self.windowed(None)

    def windowed(self, window: int | None) -> Layout:
        """Return what each token sees where it sees at most ``window`` segments before its own."""
        if window not in self._layouts:
            samples: list[list[Segment]] = [[] for _ in self.tasks]
            for s in self.slots:
                inner: Literal["causal", "full"] = "full"
                if self.vocabulary.by_name[s.modality].causal:
                    inner = "causal"
                samples[s.task].append(Segment(inner, s.stop - s.start, hidden=s.hidden))
            self._layouts[window] = Layout.packed(samples, window)
        return self._layouts[window]

    @cached_property
    def _layouts(self) -> dict[int | None, Layout]:
        return {}

    @cached_property
    def order(self) -> ScanOrder:
        """In which order a scan reads the row."""
        return ScanOrder.of(self)

    @cached_property
    def position(self) -> Ints:
        """Row of the position table for each column ``(N,)``."""
        start = self.vocabulary.position_offset
        return np.concatenate([start[s.modality] + np.arange(s.stop - s.start) for s in self.slots])

    @cached_property
    def place(self) -> Ints:
        """Tokens before each column within its sample ``(N,)``; side by side, all follow the sources."""
        out, begin = np.empty(self.length, np.int64), 0
        for previous, s in zip((None, *self.slots), self.slots, strict=False):
            if previous is None or previous.task != s.task:
                begin = 0
            elif not previous.hidden:
                begin += previous.stop - previous.start
            out[s.columns] = begin + np.arange(s.stop - s.start)
        return out

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


@dataclass(frozen=True, eq=False)
class ScanOrder:
    """How a scan, which reads from left to right, reads a row.

    A scan's state holds everything that was read. So a target that its neighbours must not see has a path of
    its own: the sources, then that target. And a full segment that is predicted is read a second time, from
    right to left and alone, as what is masked in it hangs on what stands on both sides.

    Parameters
    ----------
    columns : ndarray of int, shape (P,)
        Columns of the row in the order in which they are read: the paths, then the segments backwards.
    sequence : ndarray of int, shape (P,)
        Number of the path or segment that each belongs to; the state begins anew where it changes.
    forward : ndarray of int, shape (N,)
        Where each column of the row stands among ``columns``; a source is taken from its first path.
    backward : ndarray of int, shape (N,)
        The same for the reading from right to left; -1 where there is none.
    """

    columns: Ints
    sequence: Ints
    forward: Ints
    backward: Ints

    @property
    def plain(self) -> bool:
        """Whether the row is read once, as it stands."""
        return len(self.columns) == len(self.forward)

    @classmethod
    def of(cls, row: Row) -> ScanOrder:
        """Return the order of a row."""
        runs: list[Ints] = []
        forward, backward = np.full(row.length, -1, np.int64), np.full(row.length, -1, np.int64)
        read = 0

        def add(run: Ints, places: Ints) -> None:
            nonlocal read
            new = places[run] < 0
            places[run[new]] = read + np.flatnonzero(new)
            runs.append(run)
            read += len(run)

        for t in range(len(row.tasks)):
            slots = [s for s in row.slots if s.task == t]
            sources = [np.arange(s.start, s.stop) for s in slots if not s.hidden]
            for s in slots:
                if s.hidden:
                    add(np.concatenate([*sources, np.arange(s.start, s.stop)]), forward)
        for s in row.slots:
            if s.two_way(row.vocabulary):
                add(np.arange(s.start, s.stop)[::-1], backward)
        sequence = np.repeat(np.arange(len(runs)), [len(run) for run in runs])
        return cls(np.concatenate(runs), sequence, forward, backward)


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
        Codes of each slot of the row, numbered within their modality. A readout's may be ``(B, length, 2)``:
        of each token the prompt that is shown, then the code that is asked for.
    rng : numpy.random.Generator, optional
        Draws the masks. Without it every diffusion target is masked whole, as decoding starts; a readout
        always is.
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
        prompt: Ints | int = 0
        if modality.kind == "readout" and code.ndim == 3:
            prompt, code = code[..., 0], code[..., 1]
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
            if rng is None or modality.kind == "readout":
                masked = np.ones(code.shape, bool)
            else:
                count = mask_counts(rng, B, modality.length, least_mask)
                masked = rng.random(code.shape).argsort(axis=1).argsort(axis=1) < count[:, None]
            tokens[:, slot.columns] = np.where(masked, special + prompt, joint)
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
