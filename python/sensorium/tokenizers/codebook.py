"""Codebooks: vectors to a finite set of codes and back.

``KMeans`` learns its codes (Lloyd 1982; seeding by Arthur and Vassilvitskii 2007). ``FSQ`` rounds each of a
few coordinates to a few levels, so that its codes are a grid that needs no learning and has no dead code
(Mentzer et al. 2023, arXiv:2309.15505).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validate import as_floats, as_indices
from ..errors import ArgumentError, DTypeError, ShapeError

__all__ = ["FSQ", "Codebook", "KMeans", "codebook_from_arrays"]

_ROWS = 4096  # rows of one distance product: 4 MB of distances to 256 codes, which stays in the cache
_SEEDING = 16  # rows per code that the seeding looks at; more rows do not lower the final error


def _vectors(name: str, value: ArrayLike) -> NDArray[np.float32]:
    array = np.asarray(value)
    (floats,) = as_floats(**{name: array.astype(np.float32) if array.dtype == np.float64 else array})
    if floats.ndim < 1 or floats.shape[-1] < 1:
        raise ShapeError(f"{name} has shape {floats.shape}, expected vectors along the last dimension")
    if not np.isfinite(floats).all():
        raise ArgumentError(f"{name} holds NaN or infinity")
    return floats.astype(np.float32, copy=False)


def _positive_int(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise DTypeError(f"{name} must be an integer, not {type(value).__name__}")
    if value < 1:
        raise ArgumentError(f"{name} must be at least 1, not {value}")
    return int(value)


def nearest(vectors: NDArray[np.float32], table: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return the row of ``table (K, D)`` nearest to each of ``vectors (n, D)``, ``int32 (n,)``.

    ``|x - c|^2`` is least where ``x.c - |c|^2 / 2`` is greatest: one matrix product a block of rows.
    Of equally near rows the first is returned.
    """
    half = 0.5 * np.einsum("kd,kd->k", table, table)
    out = np.empty(len(vectors), dtype=np.int32)
    score = np.empty((min(_ROWS, len(vectors)), len(table)), dtype=np.float32)
    for start in range(0, len(vectors), _ROWS):
        block = vectors[start : start + _ROWS]
        closeness = np.dot(block, table.T, out=score[: len(block)])
        closeness -= half
        out[start : start + len(block)] = closeness.argmax(axis=1)
    return out


class Codebook:
    """What the two codebooks share: a table of code vectors."""

    table: NDArray[np.float32]

    @property
    def size(self) -> int:
        """Number of codes ``K``."""
        return len(self.table)

    @property
    def dim(self) -> int:
        """Width ``D`` of the vectors."""
        return int(self.table.shape[1])

    def decode(self, codes: ArrayLike) -> NDArray[np.float32]:
        """Return the vector of each code, ``float32 (..., D)`` for ``codes (...)``.

        Raises
        ------
        ArgumentError
            Where a code is not within ``0 <= code < size``.
        """
        return self.table[as_indices("codes", codes, self.size)]

    def _checked(self, vectors: ArrayLike) -> NDArray[np.float32]:
        array = _vectors("vectors", vectors)
        if array.shape[-1] != self.dim:
            raise ShapeError(f"vectors has D={array.shape[-1]} but the codebook has D={self.dim}")
        return array


@dataclass(frozen=True, eq=False)
class KMeans(Codebook):
    """A learned codebook; a vector's code is the nearest centroid.

    Parameters
    ----------
    table : ndarray
        Centroids, ``float32 (K, D)``.

    Examples
    --------
    >>> import numpy as np
    >>> points = np.array([[0.0, 0.0], [0.0, 0.1], [5.0, 5.0], [5.0, 5.1]])
    >>> codebook = KMeans.fit(points, 2, rng=np.random.default_rng(0))
    >>> codes = codebook.encode(points)
    >>> bool(codes[0] == codes[1] != codes[2] == codes[3])
    True
    >>> round(float(np.abs(codebook.decode(codes) - points).max()), 3)
    0.05
    """

    table: NDArray[np.float32]

    def __post_init__(self) -> None:
        table = _vectors("table", self.table)
        if table.ndim != 2 or len(table) == 0:
            raise ShapeError(f"table has shape {table.shape}, expected (K, D) with K at least 1")
        object.__setattr__(self, "table", table)

    @classmethod
    def fit(
        cls,
        vectors: ArrayLike,
        codes: int,
        *,
        rng: np.random.Generator,
        iterations: int = 12,
        sample: int = 16384,
    ) -> KMeans:
        """Learn at most ``codes`` centroids.

        Parameters
        ----------
        vectors : array_like
            ``(..., D)``, float32 or float64, finite.
        codes : int
            Number of centroids. There are fewer where there are fewer different vectors; two that are nearer
            than a thousandth of the largest deviation from the mean may count as one.
        rng : numpy.random.Generator
            Draws the sample and the seeds.
        iterations : int
            Lloyd iterations. It stops earlier when no vector changes its centroid.
        sample : int
            At most this many vectors, drawn without replacement, are looked at.

        Returns
        -------
        KMeans
            The codebook.

        Raises
        ------
        ArgumentError
            Where there is no vector, or one is not finite.

        References
        ----------
        Arthur and Vassilvitskii 2007, k-means++. Lloyd 1982.
        """
        array = _vectors("vectors", vectors)
        rows = array.reshape(-1, array.shape[-1])
        codes, sample = _positive_int("codes", codes), _positive_int("sample", sample)
        iterations = _positive_int("iterations", iterations)
        if len(rows) == 0:
            raise ArgumentError("vectors is empty")
        if len(rows) > sample:
            rows = rows[rng.choice(len(rows), sample, replace=False)]
        mean = rows.mean(axis=0)
        rows = rows - mean  # distances lose less to cancellation around zero
        table = _seed(rows, codes, rng)
        last: NDArray[np.int32] | None = None
        for _ in range(iterations):
            code = nearest(rows, table)
            if last is not None and np.array_equal(code, last):
                break
            last = code
            table = _means(rows, code, table)
        return cls(table + mean)

    @property
    def config(self) -> dict[str, Any]:
        """What ``codebook_from_arrays`` needs besides the arrays, ready for JSON."""
        return {"kind": "kmeans"}

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays to save."""
        return {"table": self.table}

    def encode(self, vectors: ArrayLike) -> NDArray[np.int32]:
        """Return the nearest centroid of each vector, ``int32 (...)`` for ``vectors (..., D)``."""
        array = self._checked(vectors)
        return nearest(array.reshape(-1, self.dim), self.table).reshape(array.shape[:-1])


def _seed(rows: NDArray[np.float32], codes: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """k-means++: each next seed is drawn with a probability that grows as its squared distance."""
    if len(rows) > codes * _SEEDING:
        rows = rows[rng.choice(len(rows), codes * _SEEDING, replace=False)]
    square = np.einsum("nd,nd->n", rows, rows)
    chosen = [int(rng.integers(len(rows)))]
    distance = np.full(len(rows), np.inf, dtype=np.float32)
    tiny = 1e-6 * float(square.max(initial=0.0))  # a few units of float32 rounding of the product form
    while True:
        seed = rows[chosen[-1]]
        np.minimum(distance, square - 2 * (rows @ seed) + square[chosen[-1]], out=distance)
        distance[distance <= tiny] = 0  # the same vector, up to rounding
        total = np.cumsum(distance, dtype=np.float64)
        if len(chosen) == codes or total[-1] <= 0:
            return rows[chosen]
        at = int(np.searchsorted(total, rng.random() * total[-1], side="right"))
        chosen.append(min(at, int(np.flatnonzero(distance)[-1])))


def _means(
    rows: NDArray[np.float32], code: NDArray[np.int32], table: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Mean of each centroid's vectors; a centroid without any takes the vector farthest from its own."""
    count = np.bincount(code, minlength=len(table))
    order = np.argsort(code, kind="stable")
    full = np.flatnonzero(count)
    starts = np.r_[0, np.cumsum(count[full])[:-1]]
    out = table.copy()
    out[full] = np.add.reduceat(rows[order], starts, axis=0) / count[full, None].astype(np.float32)
    empty = np.flatnonzero(count == 0)
    if len(empty):
        offset = rows - table[code]
        out[empty] = rows[np.argsort(-np.einsum("nd,nd->n", offset, offset), kind="stable")[: len(empty)]]
    return out


@dataclass(frozen=True, eq=False)
class FSQ(Codebook):
    """Finite scalar quantisation: a grid of ``prod(levels)`` codes.

    A vector is projected to ``len(levels)`` coordinates ``z`` (here its principal components, scaled to
    variance 1), and each is bounded and rounded to its number of levels ``L``:
    ``digit = floor(L (1 + tanh z) / 2)``. A code decodes by the linear map from digits that had the least
    squared error in fitting.

    Parameters
    ----------
    levels : tuple of int
        Levels ``L`` of each coordinate, each at least 2.
    mean : ndarray
        ``float32 (D,)``, subtracted before projecting.
    down : ndarray
        ``float32 (D, len(levels))``, the projection.
    up : ndarray
        ``float32 (len(levels) + 1, D)``, from the digits, scaled to [-1, 1], and a constant, to a vector.

    References
    ----------
    Mentzer et al. 2023, arXiv:2309.15505.

    Examples
    --------
    >>> import numpy as np
    >>> patches = np.random.default_rng(0).random((500, 4))
    >>> codebook = FSQ.fit(patches, (5, 5, 5, 5))
    >>> codebook.size
    625
    >>> bool(np.abs(codebook.decode(codebook.encode(patches)) - patches).mean() < 0.1)
    True
    """

    levels: tuple[int, ...]
    mean: NDArray[np.float32]
    down: NDArray[np.float32]
    up: NDArray[np.float32]

    def __post_init__(self) -> None:
        levels = tuple(_positive_int("levels", level) for level in self.levels)
        if not levels or min(levels) < 2:
            raise ArgumentError(f"levels must be at least 2 each, not {levels}")
        if int(np.prod([float(level) for level in levels])) > 1 << 20:
            raise ArgumentError(f"levels {levels} make more than {1 << 20} codes")
        mean, down, up = (_vectors(n, getattr(self, n)) for n in ("mean", "down", "up"))
        shapes = {"mean": (len(mean),), "down": (len(mean), len(levels)), "up": (len(levels) + 1, len(mean))}
        for name, array in (("mean", mean), ("down", down), ("up", up)):
            if array.shape != shapes[name]:
                raise ShapeError(f"{name} has shape {array.shape}, expected {shapes[name]}")
            object.__setattr__(self, name, array)
        object.__setattr__(self, "levels", levels)

    @classmethod
    def fit(cls, vectors: ArrayLike, levels: Sequence[int]) -> FSQ:
        """Choose the projection and the way back for ``vectors (..., D)``; needs no random draw.

        Raises
        ------
        ArgumentError
            Where there is no vector, or there are more ``levels`` than ``D``.
        """
        array = _vectors("vectors", vectors)
        rows = array.reshape(-1, array.shape[-1]).astype(np.float64)
        if len(rows) == 0:
            raise ArgumentError("vectors is empty")
        if len(levels) > rows.shape[1]:
            raise ArgumentError(f"levels has {len(levels)} entries, at most D={rows.shape[1]} fit")
        mean = rows.mean(axis=0)
        variance, axes = np.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
        order = np.argsort(-variance)[: len(levels)]
        scale = np.sqrt(np.maximum(variance[order], 1e-12))
        down = axes[:, order] / scale
        blank = np.zeros((len(levels) + 1, rows.shape[1]))
        draft = cls(tuple(levels), mean.astype(np.float32), down.astype(np.float32), blank.astype(np.float32))
        grid = draft._grid(draft._digits(rows.astype(np.float32)))
        up = np.linalg.lstsq(grid.astype(np.float64), rows, rcond=None)[0]
        return cls(draft.levels, draft.mean, draft.down, up.astype(np.float32))

    @property
    def size(self) -> int:
        """Number of codes, the product of the levels."""
        return int(np.prod(self.levels))

    @property
    def dim(self) -> int:
        """Width ``D`` of the vectors."""
        return len(self.mean)

    @property
    def table(self) -> NDArray[np.float32]:  # type: ignore[override]
        """The vector of every code, ``float32 (K, D)``."""
        digits = np.stack(np.unravel_index(np.arange(self.size), self.levels), axis=-1)
        return self._grid(digits) @ self.up

    @property
    def config(self) -> dict[str, Any]:
        """What ``codebook_from_arrays`` needs besides the arrays, ready for JSON."""
        return {"kind": "fsq", "levels": list(self.levels)}

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays to save."""
        return {"mean": self.mean, "down": self.down, "up": self.up}

    def encode(self, vectors: ArrayLike) -> NDArray[np.int32]:
        """Return the code of each vector, ``int32 (...)`` for ``vectors (..., D)``."""
        digits = self._digits(self._checked(vectors))
        codes = np.ravel_multi_index(tuple(np.moveaxis(digits, -1, 0)), self.levels)
        return np.asarray(codes, dtype=np.int32)

    def _digits(self, vectors: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the level of each coordinate, ``0 <= digit < L``."""
        levels = np.asarray(self.levels)
        bounded = (1 + np.tanh((vectors - self.mean) @ self.down)) / 2
        return np.asarray(np.minimum(bounded * levels, levels - 1), dtype=np.int64)

    def _grid(self, digits: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the digits scaled to [-1, 1], and a constant 1."""
        half = (np.asarray(self.levels) - 1) / 2
        grid = digits / half - 1
        return np.concatenate([grid, np.ones((*grid.shape[:-1], 1))], axis=-1).astype(np.float32)


def codebook_from_arrays(arrays: dict[str, NDArray[Any]], config: dict[str, Any]) -> KMeans | FSQ:
    """Build the codebook that was saved.

    Raises
    ------
    ArgumentError
        Where the kind is unknown or an array is missing or unfit.
    """
    try:
        if config["kind"] == "kmeans":
            return KMeans(arrays["table"])
        if config["kind"] == "fsq":
            return FSQ(tuple(config["levels"]), arrays["mean"], arrays["down"], arrays["up"])
    except KeyError as error:
        raise ArgumentError(f"the codebook lacks {error}") from error
    raise ArgumentError(f"kind must be 'kmeans' or 'fsq', not {config['kind']!r}")
