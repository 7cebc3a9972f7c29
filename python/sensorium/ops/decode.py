"""Attention of a few new queries over keys and values that are kept from before."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .. import _core
from .._validate import as_indices, check_integer
from ..errors import ArgumentError, DTypeError, ShapeError
from ._tensor import bits, half_name, like, tensor
from .layout import Layout
from .scoring import scoring

__all__ = ["KVCache", "attention_decode"]

Array = NDArray[Any]
_FIRST_CAPACITY = 256
_MAX_LENGTH = 2**31 - 1


class KVCache:
    """Keys and values of the tokens so far, a row of tokens for each sample; every row has its own length.

    Memory is ``2 * B * H_kv * capacity * D`` numbers. Tokens are appended, taken back from the end, and
    replaced where they are; nothing moves, so a step costs what it writes. An operation that raises leaves
    the cache as it was.

    Parameters
    ----------
    batch, kv_heads, width : int
        ``B``, ``H_kv`` and ``D``.
    capacity : int, optional
        Most tokens of a row, for which room is made at once: memory then never moves. Where None, room for
        256 tokens is made, and doubled when it is full: in all, that copies a token about once.
    dtype : dtype
        ``float32``, ``float64``, or half precision, ``float16`` or ``ml_dtypes.bfloat16``, which takes half
        the memory and the time to read it; arithmetic is in ``float32``.

    Raises
    ------
    ArgumentError, DTypeError
        Where an argument is none of these.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import KVCache
    >>> cache = KVCache(2, 1, 4)
    >>> k = np.ones((2, 1, 3, 4), dtype=np.float32)
    >>> cache.append(k, k)
    >>> cache.append(k, k, counts=[3, 1])  # the second row has one new token, the rest is padding
    >>> cache.lengths
    array([6, 4])
    >>> cache.truncate([5, 4])  # a draft was rejected
    >>> cache.replace(0, 2 * k[:, :, :2], k[:, :, :2])  # the first two tokens of each row, computed anew
    >>> cache.keys(0)[0, :, 0]
    array([2., 2., 1., 1., 1.], dtype=float32)
    """

    __slots__ = ("_fixed", "_k", "_lengths", "_v")

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        width: int,
        *,
        capacity: int | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        batch = check_integer("batch", batch)
        kv_heads = check_integer("kv_heads", kv_heads)
        width = check_integer("width", width)
        self._fixed = capacity is not None
        room = _FIRST_CAPACITY if capacity is None else check_integer("capacity", capacity, most=_MAX_LENGTH)
        kind = np.dtype(dtype)
        if kind not in (np.float32, np.float64) and half_name(kind) is None:
            raise DTypeError(f"dtype is {kind}, expected float32, float64, float16 or bfloat16")
        try:
            self._k: Array = np.empty((batch, kv_heads, room, width), dtype=kind)
        except ValueError:
            sizes = f"batch={batch}, kv_heads={kv_heads}, width={width} and room for {room} tokens"
            raise ArgumentError(f"{sizes} are more than memory can be addressed") from None
        self._v: Array = np.empty_like(self._k)
        self._lengths = [0] * batch

    @property
    def batch(self) -> int:
        """Rows, ``B``."""
        return len(self._lengths)

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values, ``H_kv``."""
        return int(self._k.shape[1])

    @property
    def width(self) -> int:
        """Width of a head, ``D``."""
        return int(self._k.shape[3])

    @property
    def capacity(self) -> int:
        """Tokens of a row that there is room for."""
        return int(self._k.shape[2])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""
        return self._k.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the cache holds, its empty room included."""
        return self._k.nbytes + self._v.nbytes

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, int64 (B,): a copy."""
        return np.array(self._lengths, dtype=np.int64)

    def keys(self, row: int) -> Array:
        """Return the keys of a row, (H_kv, length, D): a view that cannot be written to."""
        return self._view("row", self._k, row)

    def values(self, row: int) -> Array:
        """Return the values of a row, (H_kv, length, D): a view that cannot be written to."""
        return self._view("row", self._v, row)

    def _view(self, name: str, array: Array, row: int) -> Array:
        row = check_integer(name, row, most=self.batch - 1)
        view = array[row, :, : self._lengths[row]]
        view.flags.writeable = False
        return view

    def append(self, k: ArrayLike, v: ArrayLike, counts: ArrayLike | None = None) -> None:
        """Add tokens at the end of each row.

        Parameters
        ----------
        k, v : array (B, H_kv, n, D)
            Keys and values of the cache's dtype; ``float32`` is rounded where that is half precision.
        counts : int array (B,), optional
            Tokens of each row to add, the first ones; all ``n`` where None.

        Raises
        ------
        ShapeError, DTypeError
            Where an array does not fit.
        ArgumentError
            Where a count is not from 0 to ``n``, or there is no room.
        """
        k, v = self._tokens("k", k), self._tokens("v", v)
        number = self._check_pair(k, v)
        news = _numbers("counts", counts, self.batch, number, number)
        ends = [length + new for length, new in zip(self._lengths, news, strict=True)]
        self._reserve(max(ends, default=0))
        self._write(self._lengths, news, k, v)
        self._lengths = ends

    def replace(
        self, start: int | ArrayLike, k: ArrayLike, v: ArrayLike, counts: ArrayLike | None = None
    ) -> None:
        """Overwrite tokens of each row: an image at another step of its denoising. The rest stays as it is.

        Parameters
        ----------
        start : int, or int array (B,)
            First token to overwrite.
        k, v : array (B, H_kv, n, D)
            Keys and values of the cache's dtype; ``float32`` is rounded where that is half precision.
        counts : int array (B,), optional
            Tokens of each row to overwrite; all ``n`` where None.

        Raises
        ------
        ShapeError, DTypeError
            Where an array does not fit.
        ArgumentError
            Where the tokens are not all there.
        """
        k, v = self._tokens("k", k), self._tokens("v", v)
        number = self._check_pair(k, v)
        news = _numbers("counts", counts, self.batch, number, number)
        starts = _numbers("start", start, self.batch, _MAX_LENGTH)
        for b, (first, new, length) in enumerate(zip(starts, news, self._lengths, strict=True)):
            if first + new > length:
                raise ArgumentError(
                    f"start is {first} for row {b}: {new} tokens from there end beyond its {length}"
                )
        self._write(starts, news, k, v)

    def truncate(self, lengths: int | ArrayLike) -> None:
        """Take tokens back from the end of each row, so that ``lengths`` are left: a rejected draft.

        Parameters
        ----------
        lengths : int, or int array (B,)
            Tokens to keep, at most those that are there.

        Raises
        ------
        ArgumentError
            Where a row has fewer.
        """
        kept = _numbers("lengths", lengths, self.batch, _MAX_LENGTH)
        for b, (new, length) in enumerate(zip(kept, self._lengths, strict=True)):
            if new > length:
                raise ArgumentError(f"lengths is {new} for row {b}, which has {length} tokens")
        self._lengths = kept

    def reset(self) -> None:
        """Forget all tokens; the memory stays."""
        self._lengths = [0] * self.batch

    def reorder(self, rows: ArrayLike) -> None:
        """Make row ``b`` a copy of what row ``rows[b]`` was: the survivors of a beam search.

        Parameters
        ----------
        rows : int array (B,)
            Rows that stay where they are cost nothing.

        Raises
        ------
        ShapeError, ArgumentError
            Where ``rows`` are not ``B`` rows of the cache.
        """
        chosen = self._rows(rows)
        if len(chosen) != self.batch:
            raise ShapeError(f"rows has {len(chosen)} rows, expected B={self.batch}")
        moved = [b for b, row in enumerate(chosen) if b != row]
        ends = [self._lengths[row] for row in chosen]
        longest = max((ends[b] for b in moved), default=0)
        for array in (self._k, self._v):
            # Indexing by a list copies: what is overwritten was read before.
            array[moved, :, :longest] = array[[chosen[b] for b in moved], :, :longest]
        self._lengths = ends

    def select(self, rows: ArrayLike) -> KVCache:
        """Return a new cache whose rows are copies of those: a prompt that many answers continue.

        Parameters
        ----------
        rows : int array (n,)
            A row may be chosen more than once.

        Raises
        ------
        ShapeError, ArgumentError
            Where ``rows`` are not rows of the cache.

        Examples
        --------
        >>> import numpy as np
        >>> from sensorium.ops import KVCache
        >>> cache = KVCache(1, 2, 8)
        >>> prompt = np.zeros((1, 2, 100, 8), dtype=np.float32)
        >>> cache.append(prompt, prompt)
        >>> cache.select([0] * 4).lengths
        array([100, 100, 100, 100])
        """
        chosen = self._rows(rows)
        capacity = self.capacity if self._fixed else None
        other = KVCache(len(chosen), self.kv_heads, self.width, capacity=capacity, dtype=self.dtype)
        ends = [self._lengths[row] for row in chosen]
        longest = max(ends, default=0)
        other._reserve(longest)
        for mine, theirs in ((self._k, other._k), (self._v, other._v)):
            for b, row in enumerate(chosen):
                theirs[b, :, : ends[b]] = mine[row, :, : ends[b]]
        other._lengths = ends
        return other

    def __repr__(self) -> str:
        return (
            f"KVCache(batch={self.batch}, kv_heads={self.kv_heads}, width={self.width}, "
            f"capacity={self.capacity}, dtype={self.dtype}, lengths={self._lengths})"
        )

    def _rows(self, rows: ArrayLike) -> list[int]:
        array = as_indices("rows", rows, self.batch)
        if array.ndim != 1:
            raise ShapeError(f"rows has shape {array.shape}, expected 1 dimension")
        chosen: list[int] = array.tolist()
        return chosen

    def _tokens(self, name: str, value: ArrayLike) -> Array:
        array = value if type(value) is np.ndarray else np.asarray(value)
        if array.dtype != self.dtype and (array.dtype != np.float32 or self.dtype.itemsize != 2):
            raise DTypeError(f"{name} has dtype {array.dtype}, but the cache has {self.dtype}")
        if array.ndim != 4:
            raise ShapeError(f"{name} has shape {array.shape}, expected 4 dimensions (B, H_kv, n, D)")
        batch, heads, _, width = array.shape
        for dim, got, want in (
            ("B", batch, self.batch),
            ("H_kv", heads, self.kv_heads),
            ("D", width, self.width),
        ):
            if got != want:
                raise ShapeError(f"{name} has {dim}={got} but the cache has {dim}={want}")
        return array

    def _check_pair(self, k: Array, v: Array) -> int:
        if v.shape != k.shape:
            raise ShapeError(f"v has n={v.shape[2]} but k has n={k.shape[2]}")
        return int(k.shape[2])

    def _reserve(self, length: int) -> None:
        """Make room for rows of ``length`` tokens, or leave everything as it is."""
        room = self.capacity
        if length <= room:
            return
        if self._fixed:
            raise ArgumentError(f"k ends at token {length}, but capacity is {room}")
        if length > _MAX_LENGTH:
            raise ArgumentError(f"k ends at token {length}: the most is {_MAX_LENGTH}")
        room = min(max(2 * room, length), _MAX_LENGTH)
        batch, heads, _, width = self._k.shape
        # Both are made before either is let go.
        grown = [np.empty((batch, heads, room, width), dtype=self.dtype) for _ in range(2)]
        for old, new in zip((self._k, self._v), grown, strict=True):
            for b, end in enumerate(self._lengths):
                new[b, :, :end] = old[b, :, :end]
        self._k, self._v = grown

    def _write(self, starts: list[int], news: list[int], k: Array, v: Array) -> None:
        # What is too large for half precision becomes infinite, and is not worth a warning half-way.
        with np.errstate(over="ignore", invalid="ignore"):
            if len(set(starts)) == 1 == len(set(news)):
                start, new = starts[0], news[0]
                self._k[:, :, start : start + new] = k[:, :, :new]
                self._v[:, :, start : start + new] = v[:, :, :new]
                return
            for b, (start, new) in enumerate(zip(starts, news, strict=True)):
                self._k[b, :, start : start + new] = k[b, :, :new]
                self._v[b, :, start : start + new] = v[b, :, :new]


def _numbers(name: str, value: Any, batch: int, most: int, default: int | None = None) -> list[int]:
    """Return a number for each row, all from 0 to ``most``: those given, or one for all."""
    if value is None and default is not None:
        return [default] * batch
    try:
        numbers = [operator.index(value)] * batch
    except TypeError:
        array = as_indices(name, value)
        if array.shape != (batch,):
            raise ShapeError(
                f"{name} has shape {array.shape}, expected ({batch},): one for each row"
            ) from None
        numbers = array.tolist()
    for b, number in enumerate(numbers):
        if not 0 <= number <= most:
            raise ArgumentError(f"{name} is {number} for row {b}, expected 0 to {most}")
    return numbers


def _layouts(layout: Layout | Sequence[Layout] | None, lengths: list[int]) -> list[_core.AttentionLayout]:
    if layout is None:
        return []
    if isinstance(layout, Layout):
        longest = max(lengths, default=0)
        if len(layout) < longest:
            row = lengths.index(longest)
            raise ShapeError(f"layout has length {len(layout)}, but row {row} has {longest} tokens")
        return [layout._core]
    if not isinstance(layout, Sequence) or isinstance(layout, str):
        raise DTypeError(f"layout must be a Layout, or one for each row, not {type(layout).__name__}")
    if len(layout) != len(lengths):
        raise ShapeError(f"layout has {len(layout)} layouts, expected B={len(lengths)}: one for each row")
    for b, (one, length) in enumerate(zip(layout, lengths, strict=True)):
        if not isinstance(one, Layout):
            raise DTypeError(f"layout[{b}] must be a Layout, not {type(one).__name__}")
        if len(one) < length:
            raise ShapeError(f"layout[{b}] has length {len(one)}, but row {b} has {length} tokens")
    return [one._core for one in layout]


@overload
def attention_decode(
    q: ArrayLike,
    cache: KVCache,
    layout: Layout | Sequence[Layout] | None = None,
    *,
    start: int | ArrayLike | None = None,
    counts: ArrayLike | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi: ArrayLike | None = None,
    out: Array | None = None,
    return_lse: Literal[False] = False,
) -> Array: ...
@overload
def attention_decode(
    q: ArrayLike,
    cache: KVCache,
    layout: Layout | Sequence[Layout] | None = None,
    *,
    start: int | ArrayLike | None = None,
    counts: ArrayLike | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi: ArrayLike | None = None,
    out: Array | None = None,
    return_lse: Literal[True],
) -> tuple[Array, Array]: ...
def attention_decode(
    q: ArrayLike,
    cache: KVCache,
    layout: Layout | Sequence[Layout] | None = None,
    *,
    start: int | ArrayLike | None = None,
    counts: ArrayLike | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    alibi: ArrayLike | None = None,
    out: Array | None = None,
    return_lse: bool = False,
) -> Array | tuple[Array, Array]:
    """Return the attention of some tokens, whose keys and values are in the cache already, over the cache.

    It is :func:`attention` of the whole rows, computed for those queries alone. All query heads that share a
    key head, and all queries, make one pass over its keys and values. Results depend neither on the number of
    threads nor on the other rows of the batch, bit for bit; between calls of different numbers of queries
    they differ by rounding.

    Parameters
    ----------
    q : array (B, H, n, D)
        Queries of the cache's dtype, or ``float32`` where that is half precision; ``H_kv`` divides ``H``.
    cache : KVCache
        Holds the keys and values of these tokens and of all others that they may see.
    layout : Layout, or sequence of B Layouts, optional
        Who sees whom, for all rows or for each. It may be longer than the row: what is not cached yet is not
        seen. Where None, a token sees itself and all before it.
    start : int, or int array (B,), optional
        Token of its row that the first query is. Where None, the queries are the last tokens of each row.
    counts : int array (B,), optional
        Queries of each row, the first ones; all ``n`` where None. What comes after them gives 0 and ``-inf``.
    scale : float, optional
        Factor of the scores; ``1 / sqrt(D)`` where None.
    softcap, alibi : optional
        See :func:`attention`. Positions are those in the row.
    out : array (B, H, n, D), optional
        Where to write the result; of the dtype of ``q``.
    return_lse : bool
        Also return ``lse``.

    Returns
    -------
    out : array (B, H, n, D)
        Of the dtype of ``q``, and laid out in memory like it.
    lse : array (B, H, n)
        Logarithm of the sum of the exponentials of the visible scores; ``float64`` or ``float32``.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where an argument does not fit; the message names it.

    References
    ----------
    Milakov and Gimelshein 2018 (running softmax); Dao et al. 2023, "Flash-Decoding" (splitting over keys).

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import KVCache, Layout, Segment, attention, attention_decode
    >>> q, k, v = np.random.default_rng(0).normal(size=(3, 1, 2, 6, 4))
    >>> layout = Layout([Segment("causal", 2), Segment("full", 3), Segment("causal", 1)])
    >>> cache = KVCache(1, 2, 4, dtype=np.float64)
    >>> cache.append(k[:, :, :5], v[:, :, :5])
    >>> image = attention_decode(q[:, :, 2:5], cache, layout)  # the last three tokens
    >>> cache.append(k[:, :, 5:], v[:, :, 5:])
    >>> text = attention_decode(q[:, :, 5:], cache, layout)
    >>> whole, _ = attention(q, k, v, layout)
    >>> bool(np.allclose(np.concatenate([image, text], axis=2), whole[:, :, 2:]))
    True
    """
    if not isinstance(cache, KVCache):
        raise DTypeError(f"cache must be a KVCache, not {type(cache).__name__}")
    q = tensor("q", q)
    half = half_name(cache.dtype)
    if q.dtype != cache.dtype and (q.dtype != np.float32 or half is None):
        raise DTypeError(f"q has dtype {q.dtype} but the cache has {cache.dtype}")
    if q.ndim != 4:
        raise ShapeError(f"q has shape {q.shape}, expected 4 dimensions (B, H, n, D)")
    batch, heads, queries, width = q.shape
    if (batch, width) != (cache.batch, cache.width):
        dim, got, want = ("B", batch, cache.batch) if batch != cache.batch else ("D", width, cache.width)
        raise ShapeError(f"q has {dim}={got} but the cache has {dim}={want}")
    kv_heads = cache.kv_heads
    if heads % kv_heads if kv_heads else heads:
        raise ArgumentError(f"cache has H_kv={kv_heads}, which does not divide H={heads} of q")
    lengths = cache._lengths
    news = _numbers("counts", counts, batch, queries, queries)
    if start is None:
        starts = [length - new for length, new in zip(lengths, news, strict=True)]
        for b, (first, new) in enumerate(zip(starts, news, strict=True)):
            if first < 0:
                raise ArgumentError(
                    f"q has {new} tokens for row {b} but the cache has {lengths[b]}: append their keys first"
                )
    else:
        starts = _numbers("start", start, batch, _MAX_LENGTH)
        for b, (first, new, length) in enumerate(zip(starts, news, lengths, strict=True)):
            if first + new > length:
                raise ArgumentError(
                    f"start is {first} for row {b}: {new} queries from there end beyond its {length} tokens"
                )
    layouts = _layouts(layout, lengths)
    how = scoring(scale, softcap, alibi, 0.0, None, heads, width)
    if out is None:
        out = like(q)
    elif type(out) is not np.ndarray or out.dtype != q.dtype or out.shape != q.shape:
        shape, dtype = getattr(out, "shape", None), getattr(out, "dtype", type(out).__name__)
        raise ShapeError(f"out has shape {shape} and dtype {dtype}, expected {q.shape} and {q.dtype}")
    lse = np.empty((batch, heads, queries), dtype=np.float32 if half else q.dtype)
    rows = (lengths, starts, news)
    k, v = bits(cache._k), bits(cache._v)
    _core.attention_decode(layouts, rows, bits(q), k, v, how, bits(out), lse, half)
    return (out, lse) if return_lse else out
