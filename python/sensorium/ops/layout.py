"""Which token sees which, said by segments instead of an ``N x N`` mask.

A row of tokens is cut into segments. A query sees its own segment by the segment's ``inner`` rule, and every
other segment of its sample whole or not at all. The same layout drives the kernel, the dense mask of the
reference and the picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from .._validate import check_integer
from ..errors import ArgumentError, DTypeError, ShapeError
from ._dense import MAX_DENSE
from ._multimodal_layouts import MultimodalLayouts
from ._segment import INNER, MAX_LENGTH, Inner, Segment, one_of
from ._token_layouts import TokenLayouts

__all__ = ["Layout", "Segment"]

_MAX_DRAWN = 20_000
_SAMPLE_TEXT = re.compile(r"\((?:w([0-9]+):)?(?:v([0-9a-f]*):)?([^()]*)\)")
_SEGMENT_TEXT = re.compile(r"([a-z]+)([0-9]{1,10})(h?)(a?)")


@dataclass(frozen=True, slots=True)
class _Sample:
    """Segments that may see one another; ``visible`` is the given relation in row-major order."""

    segments: tuple[Segment, ...]
    window: int | None
    visible: bytes | None

    def _row(self) -> tuple[list[tuple[int, int, bool, bool]], int | None, list[bool] | None]:
        rows = [(INNER.index(s.inner), s.length, s.hidden, s.anchor) for s in self.segments]
        window = None if self.window is None else min(self.window, len(rows))
        return rows, window, None if self.visible is None else [byte != 0 for byte in self.visible]

    def _relation(self) -> NDArray[np.bool_] | None:
        if self.visible is None:
            return None
        size = len(self.segments)
        return np.frombuffer(self.visible, dtype=np.bool_).reshape(size, size)

    def _describe(self) -> str:
        text = f"[{', '.join(s._describe() for s in self.segments)}]"
        if self.window is not None:
            text += f", window={self.window}"
        if self.visible is not None:
            text += ", visible=given"
        return text

    def _text(self) -> str:
        window = "" if self.window is None else f"w{self.window}:"
        visible = ""
        if self.visible is not None:
            visible = f"v{np.packbits(np.frombuffer(self.visible, dtype=np.bool_)).tobytes().hex()}:"
        segments = (f"{s.inner}{s.length}{'h' * s.hidden}{'a' * s.anchor}" for s in self.segments)
        return f"({window}{visible}{' '.join(segments)})"

    @classmethod
    def _from_text(cls, window: str | None, visible: str | None, segments: str) -> _Sample:
        parts = tuple(
            Segment(cast(Inner, inner), int(length), bool(hidden), bool(anchor))
            for inner, length, hidden, anchor in _SEGMENT_TEXT.findall(segments)
        )
        relation = None
        if visible is not None:
            bits = np.frombuffer(bytes.fromhex(visible), dtype=np.uint8)
            relation = np.unpackbits(bits, count=len(parts) ** 2).tobytes()
        return cls(parts, int(window) if window else None, relation)


def _segments(name: str, segments: Iterable[Segment]) -> tuple[Segment, ...]:
    try:
        out = tuple(segments)
    except TypeError:
        raise DTypeError(f"{name} must be a sequence of Segment, not {type(segments).__name__}") from None
    for i, segment in enumerate(out):
        if not isinstance(segment, Segment):
            raise DTypeError(f"{name}[{i}] must be a Segment, not {type(segment).__name__}")
    return out


def _relation(visible: ArrayLike, size: int) -> bytes:
    array = np.asarray(visible)
    if array.dtype != np.bool_ and array.size:
        raise DTypeError(f"visible has dtype {array.dtype}, expected bool")
    if array.shape != (size, size) and not array.size == size == 0:
        raise ShapeError(f"visible has shape {array.shape}, expected {(size, size)}: one row a segment")
    return array.astype(np.bool_).tobytes()


class Layout(MultimodalLayouts, TokenLayouts):
    """Who sees whom in a row of tokens.

    By the rules, segment ``s`` sees an earlier segment ``r`` of the same sample when ``r`` is not
    ``hidden`` and ``window is None`` or ``s - r <= window`` or ``r`` is an ``anchor``. It sees no later
    segment and no other sample. A query that sees nothing is allowed: attention gives it 0. Layouts are
    immutable, compare by what they were made of, can be keys of a dictionary, and keep what the kernels
    derive from them: make one and use it often.

    The layouts of the field are class methods: :meth:`causal`, :meth:`full`, :meth:`prefix_lm`,
    :meth:`text_to_image`, :meth:`image_to_text`, :meth:`interleaved`, :meth:`decoupled`, :meth:`frames`,
    :meth:`block_causal`, :meth:`block_diffusion`, :meth:`sliding_window`, :meth:`cross`; rows of several
    samples are :meth:`packed`, :meth:`from_lengths`, :meth:`from_cu_seqlens`; a mask becomes one by
    :meth:`from_dense`. Padding is a segment with ``inner="none"`` in a sample of its own, which
    :meth:`padded` adds.

    Parameters
    ----------
    segments : sequence of Segment
        One sample, in order. May be empty.
    window : int, optional
        Distance in segments up to which an earlier segment is seen; 0 means the own segment alone.
    visible : bool array (S, S), optional
        Whether segment ``s`` sees segment ``r``, any relation at all; replaces the rules, ``hidden`` and
        ``anchor`` included. The diagonal says nothing: a segment sees itself by its ``inner`` rule.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where an argument is of another shape, type or value; the message names it.

    References
    ----------
    Xie et al. 2024 (Show-o): text causal, then image full. Zhou et al. 2024 (Transfusion), Deng et al. 2025
    (BAGEL): interleaved text and images, noised images hidden.

    Examples
    --------
    >>> from sensorium.ops import Layout, Segment
    >>> layout = Layout([Segment("causal", 2), Segment("full", 2)])
    >>> layout.dense().astype(int)
    array([[1, 0, 0, 0],
           [1, 1, 0, 0],
           [1, 1, 1, 1],
           [1, 1, 1, 1]])
    >>> layout.pairs
    11
    """

    __slots__ = ("_core", "_hash", "_length", "_samples", "_text")
    _core: _core.AttentionLayout
    _samples: tuple[_Sample, ...]
    _length: int
    _hash: int
    _text: str  # the same for equal layouts and for no others: what a compiled graph holds of a layout

    def __init__(
        self, segments: Iterable[Segment], window: int | None = None, visible: ArrayLike | None = None
    ) -> None:
        parts = _segments("segments", segments)
        if window is not None:
            if visible is not None:
                raise ArgumentError("window and visible exclude each other: visible replaces the rules")
            window = check_integer("window", window, 0)
        relation = None if visible is None else _relation(visible, len(parts))
        self._build((_Sample(parts, window, relation),))

    def _build(self, samples: tuple[_Sample, ...]) -> None:
        self._samples = samples
        self._length = sum(s.length for sample in samples for s in sample.segments)
        self._hash = hash(samples)
        self._text = "".join(sample._text() for sample in samples)
        self._core = _core.AttentionLayout([sample._row() for sample in samples])

    @classmethod
    def _of(cls, samples: tuple[_Sample, ...]) -> Self:
        layout = cls.__new__(cls)
        layout._build(samples)
        return layout

    @classmethod
    def packed(cls, samples: Iterable[Layout | Sequence[Segment]], window: int | None = None) -> Self:
        """Return several samples in one row; none sees another.

        Parameters
        ----------
        samples : sequence of sequences of Segment, or of Layout
            A layout brings its own ``window`` or ``visible``.
        window : int, optional
            For the samples that are given as segments.

        Examples
        --------
        >>> from sensorium.ops import Layout, Segment
        >>> Layout.packed([[Segment("full", 1)], [Segment("causal", 2)]]).dense().astype(int)
        array([[1, 0, 0],
               [0, 1, 0],
               [0, 1, 1]])
        """
        if window is not None:
            window = check_integer("window", window, 0)
        out: list[_Sample] = []
        try:
            items = list(samples)
        except TypeError:
            raise DTypeError(f"samples must be a sequence, not {type(samples).__name__}") from None
        for i, sample in enumerate(items):
            if isinstance(sample, Layout):
                out.extend(sample._samples)
            else:
                out.append(_Sample(_segments(f"samples[{i}]", sample), window, None))
        return cls._of(tuple(out))

    def padded(self, length: int, *, side: Literal["right", "left"] = "right") -> Layout:
        """Return the layout with padding up to ``length`` tokens: it sees nothing and nobody sees it.

        Parameters
        ----------
        length : int
            Tokens with the padding.
        side : {"right", "left"}
            Where the padding goes: after the row, or before it as decoders pad their prompts.

        Raises
        ------
        ArgumentError
            Where the layout is longer than ``length``, or ``side`` is neither.

        Examples
        --------
        >>> from sensorium.ops import Layout
        >>> Layout.causal(2).padded(3, side="left").dense().astype(int)
        array([[0, 0, 0],
               [0, 1, 0],
               [0, 1, 1]])
        """
        length = check_integer("length", length, self._length, MAX_LENGTH)
        one_of("side", side, ("right", "left"))
        if length == self._length:
            return self
        padding = _Sample((Segment("none", length - self._length),), None, None)
        return self._of((*self._samples, padding) if side == "right" else (padding, *self._samples))

    @classmethod
    def _from_text(cls, text: str) -> Layout:
        """Return the layout whose ``_text`` is the text."""
        try:
            samples = [_Sample._from_text(*found.groups()) for found in _SAMPLE_TEXT.finditer(text)]
            layout = cls._of(tuple(samples))
        except ValueError as error:
            raise ArgumentError(f"{text[:80]!r} does not describe a layout: {error}") from error
        if layout._text != text:
            raise ArgumentError(f"{text[:80]!r} does not describe a layout")
        return layout

    @property
    def length(self) -> int:
        """Tokens in the row, ``N``."""
        return self._length

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Segments of all samples, in order."""
        return tuple(s for sample in self._samples for s in sample.segments)

    @property
    def samples(self) -> tuple[Layout, ...]:
        """Each sample as a layout of its own."""
        return tuple(self._of((sample,)) for sample in self._samples)

    @property
    def spans(self) -> tuple[slice, ...]:
        """Tokens of each segment, as slices of the row."""
        return tuple(slice(start, end) for _, start, end, _ in self._core.ranges())

    @property
    def window(self) -> int | None:
        """Window of the samples, where they all have the same; otherwise None."""
        windows = {sample.window for sample in self._samples}
        return windows.pop() if len(windows) == 1 else None

    @property
    def visible(self) -> NDArray[np.bool_]:
        """Which segment sees which, bool (S, S); on the diagonal, whether it sees any of itself."""
        rows = self._core.ranges()
        starts = np.array([start for _, start, _, _ in rows], dtype=np.int64)
        visible = np.zeros((len(rows), len(rows)), dtype=np.bool_)
        for s, (inner, _, _, ranges) in enumerate(rows):
            visible[s, s] = inner != 0
            for start, end in ranges:
                visible[s, np.searchsorted(starts, start) : np.searchsorted(starts, end)] = True
        return visible

    @property
    def pairs(self) -> int:
        """Visible pairs of a query and a key: what the cost of attention grows with."""
        return self._core.pairs

    def dense(self) -> NDArray[np.bool_]:
        """Return the mask, bool (N, N): row ``i`` is true where query ``i`` sees the key.

        For looking at and for tests: the kernels never make it.

        Raises
        ------
        ArgumentError
            Where ``N`` is above 16,384 (256 MB).
        """
        n = self._length
        if n > MAX_DENSE:
            raise ArgumentError(f"length is {n}: a dense mask is made up to {MAX_DENSE} tokens")
        return self._core.dense().reshape(n, n)

    def draw(self, path: str | Path, *, labels: Sequence[str] | None = None) -> Path:
        """Draw the mask, queries downwards and keys to the right, from segments: any length is quick.

        Parameters
        ----------
        path : path
            Ends in ``.png`` or ``.svg``.
        labels : sequence of str, optional
            Name of each segment.

        Returns
        -------
        Path
            Where the picture is.
        """
        from ._draw import draw_layout

        path = Path(path)
        if path.suffix.lower() not in (".png", ".svg"):
            raise ArgumentError(f"path must end in .png or .svg, not {path.name!r}")
        rows = self._core.ranges()
        if labels is not None and len(labels) != len(rows):
            raise ShapeError(f"labels has {len(labels)} names, expected {len(rows)}: one a segment")
        if sum(1 + len(ranges) for *_, ranges in rows) > _MAX_DRAWN:
            raise ArgumentError(f"segments see too many separate ranges to draw: the most is {_MAX_DRAWN}")
        draw_layout(path, self._length, rows, labels)
        return path

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as a JSON-able dictionary, which :meth:`from_dict` takes."""
        samples: list[dict[str, Any]] = []
        for sample in self._samples:
            item: dict[str, Any] = {
                "segments": [
                    {"inner": s.inner, "length": s.length, "hidden": s.hidden, "anchor": s.anchor}
                    for s in sample.segments
                ]
            }
            if sample.window is not None:
                item["window"] = sample.window
            relation = sample._relation()
            if relation is not None:
                item["visible"] = relation.tolist()
            samples.append(item)
        return {"samples": samples}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Layout:
        """Return the layout that :meth:`to_dict` described.

        Raises
        ------
        ArgumentError, DTypeError, ShapeError
            Where ``data`` does not describe one.
        """
        try:
            samples = [
                (list(item["segments"]), item.get("window"), item.get("visible")) for item in data["samples"]
            ]
            parts = [([Segment(**segment) for segment in segments], w, v) for segments, w, v in samples]
        except (KeyError, TypeError, AttributeError) as error:
            if isinstance(error, DTypeError):
                raise
            raise ArgumentError(f"data does not describe a layout: {error}") from error
        return cls.packed([cls(segments, w, v) for segments, w, v in parts])

    def __eq__(self, other: object) -> bool:
        return self._samples == other._samples if isinstance(other, Layout) else NotImplemented

    def __hash__(self) -> int:
        return self._hash

    def __len__(self) -> int:
        return self._length

    def __reduce__(self) -> tuple[Any, ...]:
        return Layout.from_dict, (self.to_dict(),)

    def __repr__(self) -> str:
        if len(self._samples) == 1:
            return f"Layout({self._samples[0]._describe()})"
        return f"Layout.packed([{', '.join(sample._describe() for sample in self._samples)}])"
