"""Rotary position embeddings: features turned by angles that grow with the position."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from .._validate import as_array, check_integer, check_positive
from ..errors import ArgumentError, DTypeError, ShapeError
from ._tensor import arithmetic, bits, half_name, like, tensor

__all__ = ["Rotary", "rotary"]

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Rotary:
    """How far the features of a position are turned.

    Pair ``i`` of ``width / 2`` is turned by ``scale * position * base ** (-2 i / width)`` radians.

    Parameters
    ----------
    base : float
        Above 0. The last pair turns once in ``2 pi base`` positions, about.
    width : int, optional
        Features that are turned, an even number; those behind them stay as they are. All where None.
    interleaved : bool
        Whether a pair is features ``2 i`` and ``2 i + 1``, as in GPT-J; otherwise it is ``i`` and
        ``width / 2 + i``, as in Llama.
    scale : float
        Above 0. Factor of every position: ``L / M`` reads rows of length ``M`` with a model trained on rows
        of length ``L`` (position interpolation).

    Raises
    ------
    DTypeError, ArgumentError
        Where a value is of the wrong kind or out of range.

    References
    ----------
    Su et al. 2021, arXiv:2104.09864; Chen et al. 2023, arXiv:2306.15595 (position interpolation).

    Examples
    --------
    >>> from sensorium.ops import Rotary
    >>> Rotary(base=500_000.0, width=64)
    Rotary(base=500000.0, width=64, interleaved=False, scale=1.0)
    """

    base: float = 10_000.0
    width: int | None = None
    interleaved: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "base", check_positive("base", self.base))
        set_field(self, "scale", check_positive("scale", self.scale))
        if self.width is not None:
            set_field(self, "width", check_integer("width", self.width))
            if self.width % 2:
                raise ArgumentError(f"width must be even, not {self.width}")
        if not isinstance(self.interleaved, bool | np.bool_):
            raise DTypeError(f"interleaved must be a bool, not {type(self.interleaved).__name__}")
        set_field(self, "interleaved", bool(self.interleaved))

    def width_in(self, name: str, features: int) -> int:
        """Return the number of features that are turned in an array ``name`` of so many.

        Raises
        ------
        ArgumentError
            Where there are fewer than ``width``, or an odd number and no ``width``.
        """
        if self.width is None:
            if features % 2:
                raise ArgumentError(f"{name} has D={features}: rotary needs a width, which is even")
            return features
        if self.width > features:
            raise ArgumentError(f"rotary has width {self.width}, more than D={features} of {name}")
        return self.width


def as_rotary(value: Any) -> Rotary:
    """Return a ``Rotary`` as it is.

    Raises
    ------
    DTypeError
        Where it is something else.
    """
    if not isinstance(value, Rotary):
        raise DTypeError(f"rotary must be a Rotary, not {type(value).__name__}")
    return value


class _Tables:
    """Tables last used: a training step asks for the same one many times, and a sine costs 10 ns."""

    MOST = 1 << 27  # bytes of all tables that are kept

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tables: OrderedDict[Any, Array] = OrderedDict()

    def find(self, key: Any) -> Array | None:
        with self._lock:
            table = self._tables.get(key)
            if table is not None:
                self._tables.move_to_end(key)
            return table

    def keep(self, key: Any, table: Array) -> None:
        table.flags.writeable = False
        with self._lock:
            self._tables[key] = table
            while sum(kept.nbytes for kept in self._tables.values()) > self.MOST:
                self._tables.popitem(last=False)


_tables = _Tables()


def _positions(positions: ArrayLike, tokens: int, batch: int, pairs: int) -> NDArray[np.float64]:
    """Return positions as float64 ``(1 or B, N or more, 1 or pairs)``."""
    array = as_array("positions", positions)
    if array.dtype.kind not in "iuf":
        raise DTypeError(f"positions has dtype {array.dtype}, expected integers or floats")
    shape = array.shape
    if array.ndim == 1:
        array = array[None, :, None]
    elif array.ndim == 2:
        array = array[:, :, None]
    expected = f"expected ({tokens},), ({batch}, {tokens}) or ({batch}, {tokens}, {pairs})"
    if array.ndim != 3 or array.shape[1] < tokens:
        raise ShapeError(f"positions has shape {shape}, {expected}")
    if array.shape[0] not in (1, batch) or array.shape[2] not in (1, pairs):
        raise ShapeError(f"positions has shape {shape}, {expected}")
    array = np.ascontiguousarray(array, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ArgumentError("positions must be finite")
    return array


def _cosines(rotary: Rotary, positions: NDArray[np.float64], width: int, dtype: np.dtype[Any]) -> Array:
    """Return ``(B, N, 2, pairs)``: angles, cosines and sines are computed in float64, and rounded once.

    Neighbours are turned by ``x cos + swapped(x) sin``: they have a cosine and a signed sine each.
    """
    frequencies = rotary.base ** (-np.arange(0, width, 2, dtype=np.float64) / max(width, 1))
    angles = (rotary.scale * positions) * frequencies
    cos, sin = np.cos(angles), np.sin(angles)
    if rotary.interleaved:
        cos, sin = np.repeat(cos, 2, axis=2), np.stack([-sin, sin], axis=-1).reshape(*sin.shape[:2], width)
    return np.stack([cos, sin], axis=2).astype(dtype)


def table(
    rotary: Rotary, positions: ArrayLike | None, width: int, tokens: int, batch: int, dtype: np.dtype[Any]
) -> Array:
    """Return the cosines and sines that the kernel reads, ``(1 or B, N or more, 2, width / 2 or width)``.

    Where ``positions`` is None they are 0, 1, 2, ...; the table is then as long as a power of two, so that
    rows that grow share one.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where positions do not fit.
    """
    key: Any
    if positions is None:
        length = 1 << max(tokens - 1, 63).bit_length()
        key = (rotary, width, dtype, length)
        found = _tables.find(key)
        if found is None:
            found = _cosines(rotary, np.arange(length, dtype=np.float64)[None, :, None], width, dtype)
            _tables.keep(key, found)
        return found[:, :tokens]
    array = _positions(positions, tokens, batch, width // 2)
    key = (rotary, width, dtype, array.shape, array.tobytes())
    found = _tables.find(key)
    if found is None:
        found = _cosines(rotary, array, width, dtype)
        _tables.keep(key, found)
    return found


Turn = tuple[Array, bool]
"""As the kernels take it: table, and whether pairs are neighbours."""


def turning(
    rotary: Rotary | None, positions: ArrayLike | None, offsets: tuple[int, int], q: Array, k: Array
) -> Turn | None:
    """Return how attention turns queries and keys, which are tokens of a row from ``offsets`` on.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where ``rotary`` or ``positions`` do not fit.
    """
    if rotary is None:
        if positions is not None:
            raise ArgumentError("positions are for rotary, which is not given")
        return None
    how = as_rotary(rotary)
    tokens = max(offset + array.shape[2] for offset, array in zip(offsets, (q, k), strict=True))
    width = how.width_in("q", q.shape[3])
    return table(how, positions, width, tokens, q.shape[0], arithmetic(q.dtype)), how.interleaved


_DEFAULT = Rotary()


def rotary(
    x: ArrayLike,
    rotary: Rotary = _DEFAULT,
    positions: ArrayLike | None = None,
    *,
    inverse: bool = False,
) -> Array:
    """Return ``x`` with each pair of features turned by the angle of its position.

    A rotation keeps lengths, and the product of a query at position ``i`` and a key at ``j`` depends on
    ``i - j`` alone. The gradient of a rotation is the inverse rotation of the gradient. Angles are computed
    in float64 and their tables are kept, so that a training step computes them once.

    Parameters
    ----------
    x : array (..., N, D)
        Such as queries or keys ``(B, H, N, D)``: ``float32``, ``float64``, ``float16`` or ``bfloat16``. Any
        view whose last axis is contiguous is read without a copy.
    rotary : Rotary
        Angles, and which features are turned.
    positions : array (N,), (B, N) or (B, N, width / 2), optional
        Of the tokens, integers or floats; the same in every head, and a position for each pair in the last
        form. 0 to N - 1 where None. One position for a whole image, or one of time, height or width for each
        pair, are the caller's to give.
    inverse : bool
        Turn back.

    Returns
    -------
    array (..., N, D)
        Of the same dtype, laid out in memory like ``x``.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where an argument does not fit; the message names it.

    References
    ----------
    Su et al. 2021, arXiv:2104.09864.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import rotary
    >>> q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 10, 8))
    >>> q[:], k[:] = q[:, :, :1], k[:, :, :1]  # the same vectors at every position
    >>> scores = (rotary(q) @ rotary(k).swapaxes(-1, -2))[0, 0]
    >>> bool(np.allclose(scores[3, 1], scores[9, 7]))  # depend on the distance alone
    True
    >>> bool(np.allclose(rotary(rotary(q), inverse=True), q))
    True
    """
    how = as_rotary(rotary)
    array = tensor("x", x)
    if array.ndim < 2:
        raise ShapeError(f"x has shape {array.shape}, expected 2 dimensions or more (..., N, D)")
    shape = array.shape
    if array.ndim == 4:
        view = array
    elif array.ndim == 2:
        view = array[None, None]
    else:
        view = array.reshape(shape[0], int(np.prod(shape[1:-2])), *shape[-2:])
    batch, _, tokens, features = view.shape
    width = how.width_in("x", features)
    angles = table(how, positions, width, tokens, batch if array.ndim > 2 else 1, arithmetic(array.dtype))
    if positions is not None and angles.shape[1] != tokens:
        raise ShapeError(f"positions has N={angles.shape[1]} but x has N={tokens}")
    out = like(view)
    _core.rotary(bits(view), angles, how.interleaved, bool(inverse), bits(out), half_name(array.dtype))
    return out.reshape(shape)
