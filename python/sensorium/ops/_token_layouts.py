"""Layouts of one modality by name: causal, windows, blocks, packed rows, masks. See docs/layouts.md."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Self, get_args

import numpy as np
from numpy.typing import ArrayLike

from .._validate import check_integer
from ..errors import ArgumentError
from ._dense import read_mask, samples_of
from ._segment import (
    MAX_LENGTH,
    MAX_RELATION,
    MAX_SEGMENTS,
    Constructed,
    Inner,
    Segment,
    items,
    one_of,
    some,
    token_count,
    window_of,
)


def _blocks(length: int, block: int) -> list[int]:
    """Lengths of the blocks of a row; the last may be shorter."""
    whole, rest = divmod(length, block)
    if whole >= MAX_SEGMENTS:
        raise ArgumentError(f"block is {block}: {length} tokens would make more than {MAX_SEGMENTS} blocks")
    return [block] * whole + ([rest] if rest else [])


class TokenLayouts(Constructed):
    """Constructors that :class:`sensorium.ops.Layout` inherits."""

    __slots__ = ()

    @classmethod
    def causal(cls, length: int) -> Self:
        """Return the layout of a language model: a token sees itself and what comes before it.

        Examples
        --------
        >>> from sensorium.ops import Layout
        >>> Layout.causal(3).dense().astype(int)
        array([[1, 0, 0],
               [1, 1, 0],
               [1, 1, 1]])
        """
        return cls(some("causal", token_count("length", length)))

    @classmethod
    def full(cls, length: int) -> Self:
        """Return the layout of an encoder: every token sees every token.

        Examples
        --------
        >>> from sensorium.ops import Layout
        >>> Layout.full(2).dense().all()
        np.True_
        """
        return cls(some("full", token_count("length", length)))

    @classmethod
    def prefix_lm(cls, prefix: int, suffix: int) -> Self:
        """Return a prefix that sees all of itself, then causal text that sees the prefix.

        Parameters
        ----------
        prefix, suffix : int
            Tokens of each; 0 leaves it out.

        References
        ----------
        Raffel et al. 2019 (T5), arXiv:1910.10683. Beyer et al. 2024 (PaliGemma), arXiv:2407.07726: the prefix
        is image and question.

        Examples
        --------
        >>> from sensorium.ops import Layout
        >>> Layout.prefix_lm(2, 2).dense().astype(int)
        array([[1, 1, 0, 0],
               [1, 1, 0, 0],
               [1, 1, 1, 0],
               [1, 1, 1, 1]])
        """
        return cls(
            some("full", token_count("prefix", prefix)) + some("causal", token_count("suffix", suffix))
        )

    @classmethod
    def sliding_window(cls, length: int, window: int, *, sinks: int = 0) -> Self:
        """Return causal text in which a token sees itself and the ``window`` tokens before it.

        A segment a token: exact for any window, at up to 1,048,576 tokens.

        Parameters
        ----------
        length : int
            Tokens.
        window : int
            Tokens before its own that a token sees: ``window_size=(window, 0)`` of FlashAttention, a
            sliding window of ``window + 1`` in Mistral's counting.
        sinks : int
            First tokens that all later ones see.

        Raises
        ------
        ArgumentError, DTypeError
            Where a number is out of range; the message names it.

        References
        ----------
        Beltagy et al. 2020 (Longformer), arXiv:2004.05150. Jiang et al. 2023 (Mistral), arXiv:2310.06825.
        Xiao et al. 2023 (StreamingLLM, the sinks), arXiv:2309.17453.

        Examples
        --------
        >>> from sensorium.ops import Layout
        >>> Layout.sliding_window(4, 1, sinks=1).dense().astype(int)
        array([[1, 0, 0, 0],
               [1, 1, 0, 0],
               [1, 1, 1, 0],
               [1, 0, 1, 1]])
        """
        count = check_integer("length", length, 0, MAX_SEGMENTS)
        first = check_integer("sinks", sinks, 0, count)
        row = [Segment("causal", 1, anchor=True)] * first + [Segment("causal", 1)] * (count - first)
        return cls(row, check_integer("window", window, 0))

    @classmethod
    def block_causal(cls, length: int, block: int, *, window: int | None = None) -> Self:
        """Return blocks of tokens: each sees all of itself and all blocks before it.

        Parameters
        ----------
        length : int
            Tokens in all.
        block : int
            Tokens of a block, at least 1; the last may have fewer.
        window : int, optional
            Blocks before its own that a block sees; all of them where None.

        Examples
        --------
        >>> from sensorium.ops import Layout
        >>> Layout.block_causal(3, 2).dense().astype(int)
        array([[1, 1, 0],
               [1, 1, 0],
               [1, 1, 1]])
        """
        total = token_count("length", length)
        blocks = _blocks(total, check_integer("block", block, 1, MAX_LENGTH))
        return cls([Segment("full", n) for n in blocks], window_of(window))

    @classmethod
    def block_diffusion(cls, length: int, block: int) -> Self:
        """Return the training row of block diffusion: all noised blocks, then all clean ones.

        A noised block sees itself and the clean blocks before it; a clean block sees itself and the clean
        blocks before it. The row has ``2 * length`` tokens. Generation is :meth:`block_causal`.

        Parameters
        ----------
        length : int
            Tokens of the clean text.
        block : int
            Tokens of a block, at least 1; the last may have fewer.

        Raises
        ------
        ArgumentError
            Where there are more than 2,048 blocks.

        References
        ----------
        Arriola et al. 2025 (BD3-LM), arXiv:2503.09573.

        Examples
        --------
        >>> from sensorium.ops import Layout
        >>> Layout.block_diffusion(2, 1).dense().astype(int)
        array([[1, 0, 0, 0],
               [0, 1, 1, 0],
               [0, 0, 1, 0],
               [0, 0, 1, 1]])
        """
        total = check_integer("length", length, 0, MAX_LENGTH // 2)
        blocks = _blocks(total, check_integer("block", block, 1, MAX_LENGTH))
        count = len(blocks)
        most = MAX_RELATION // 2
        if count > most:
            raise ArgumentError(
                f"block is {block}: {total} tokens make {count} blocks, expected at most {most}"
            )
        visible = np.zeros((2 * count, 2 * count), dtype=np.bool_)
        visible[:count, count:] = visible[count:, count:] = np.tri(count, k=-1, dtype=np.bool_)
        return cls([Segment("full", n) for n in blocks * 2], None, visible)

    @classmethod
    def cross(cls, memory: int, queries: int, *, inner: Inner = "none") -> Self:
        """Return the row ``[memory | queries]`` of a rectangular call: queries see all of the memory.

        With ``inner="none"`` this is cross attention: pass the memory's keys and values and
        ``query_offset=memory``. With ``inner="causal"`` or ``"full"`` queries see one another too: keys and
        values are those of the memory, then those of the queries. The memory itself asks nothing.

        Parameters
        ----------
        memory, queries : int
            Tokens of each; 0 leaves it out.
        inner : {"none", "causal", "full", "diagonal"}
            How the queries see one another.

        Examples
        --------
        >>> from sensorium.ops import Layout
        >>> Layout.cross(3, 2).dense()[3:, :3].all()
        np.True_
        """
        how = one_of("inner", inner, get_args(Inner))
        return cls(some("none", token_count("memory", memory)) + some(how, token_count("queries", queries)))

    @classmethod
    def from_lengths(cls, lengths: Iterable[int], *, inner: Inner = "causal") -> Self:
        """Return samples of these lengths packed in one row; none sees another.

        Parameters
        ----------
        lengths : sequence of int
            Tokens of each sample; a sample of 0 tokens takes no place.
        inner : {"causal", "full", "diagonal", "none"}
            How each sample sees itself.

        Raises
        ------
        ArgumentError, DTypeError
            Where a length is not one; the message names it.

        Examples
        --------
        >>> from sensorium.ops import Layout
        >>> Layout.from_lengths([1, 2]).dense().astype(int)
        array([[1, 0, 0],
               [0, 1, 0],
               [0, 1, 1]])
        """
        how = one_of("inner", inner, get_args(Inner))
        sizes = [token_count(f"lengths[{i}]", n) for i, n in enumerate(items("lengths", lengths, "int"))]
        return cls.packed([[Segment(how, n)] for n in sizes if n])

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: Iterable[int], *, inner: Inner = "causal") -> Self:
        """Return the packed row that FlashAttention describes by the ends of its samples.

        What FlashAttention holds as ``(total, H, D)`` is ``x.transpose(1, 0, 2)[None]`` here, a view that
        is read where it is.

        Parameters
        ----------
        cu_seqlens : sequence of int (B + 1)
            0, then the end of each sample.
        inner : {"causal", "full", "diagonal", "none"}
            How each sample sees itself: ``"causal"`` for ``causal=True``, ``"full"`` for ``causal=False``.

        Raises
        ------
        ArgumentError, DTypeError
            Where they do not start with 0 or do not ascend.

        References
        ----------
        Dao 2023 (FlashAttention-2), arXiv:2307.08691.

        Examples
        --------
        >>> from sensorium.ops import Layout
        >>> Layout.from_cu_seqlens([0, 1, 3]) == Layout.from_lengths([1, 2])
        True
        """
        ends = [
            check_integer(f"cu_seqlens[{i}]", end, 0, MAX_LENGTH)
            for i, end in enumerate(items("cu_seqlens", cu_seqlens, "int"))
        ]
        if not ends or ends[0]:
            found = f", not {ends[0]}" if ends else ": it is empty"
            raise ArgumentError(f"cu_seqlens must start with 0{found}")
        for i, (start, end) in enumerate(pairwise(ends)):
            if end < start:
                raise ArgumentError(f"cu_seqlens[{i + 1}] is {end}, less than cu_seqlens[{i}], {start}")
        return cls.from_lengths([end - start for start, end in pairwise(ends)], inner=inner)

    @classmethod
    def from_dense(cls, mask: ArrayLike) -> Self:
        """Return the fewest segments that say a mask: any mask can be said, if need be by a segment a token.

        ``len(layout.segments)`` tells how much structure there is. A mask without any has a segment a token,
        and attention over it takes about twice the time of :meth:`full`.

        Parameters
        ----------
        mask : bool array (N, N)
            True where query ``i``, the row, sees key ``j``.

        Raises
        ------
        ShapeError, DTypeError, ArgumentError
            Where it is not such an array, or ``N`` is above 16,384.

        Examples
        --------
        >>> import numpy as np
        >>> from sensorium.ops import Layout
        >>> Layout.from_dense(np.tri(6, dtype=bool))
        Layout([causal 6])
        """
        out = [cls(segments, None, visible) for segments, visible in samples_of(read_mask(mask))]
        return out[0] if len(out) == 1 else cls.packed(out)
