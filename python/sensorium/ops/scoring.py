"""What attention makes of scores: soft-capping, linear biases, dropout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from .._validate import check_finite_number, check_integer, check_positive
from ..errors import ArgumentError, DTypeError, ShapeError

__all__ = ["alibi_slopes", "attention_dropout_mask"]

Scoring = tuple[float, float | None, list[float] | None, tuple[float, int] | None]
"""As the kernels take it: scale, cap, slopes, and probability and seed of dropout."""


def scoring(
    scale: float | None,
    softcap: float | None,
    alibi: ArrayLike | None,
    dropout: float,
    seed: int | None,
    heads: int,
    width: int,
) -> Scoring:
    """Return the options of :func:`~sensorium.ops.attention`, checked."""
    if scale is None:
        scale = float(width**-0.5) if width else 1.0
    else:
        scale = check_finite_number("scale", scale)
    if softcap is not None:
        softcap = check_positive("softcap", softcap)
    slopes = None if alibi is None else _slopes(alibi, heads)
    drawn = None if type(dropout) is float and dropout == 0.0 else _dropout(dropout, seed)
    return scale, softcap, slopes, drawn


def _slopes(alibi: ArrayLike, heads: int) -> list[float]:
    array = np.asarray(alibi)
    if array.dtype.kind not in "fiu":
        raise DTypeError(f"alibi has dtype {array.dtype}, expected numbers")
    if array.ndim != 1:
        raise ShapeError(f"alibi has shape {array.shape}, expected 1 dimensions (H)")
    if len(array) != heads:
        raise ShapeError(f"alibi has H={len(array)} but q has H={heads}")
    slopes: list[float] = array.astype(np.float64).tolist()
    for slope in slopes:
        check_finite_number("alibi", slope)
    return slopes


def _dropout(dropout: float, seed: int | None) -> tuple[float, int] | None:
    dropout = check_finite_number("dropout", dropout)
    if not 0.0 <= dropout < 1.0:
        raise ArgumentError(f"dropout must be in [0, 1), not {dropout:g}")
    if dropout == 0.0:
        return None
    if seed is None:
        raise ArgumentError("seed must be given where dropout is above 0")
    return dropout, check_integer("seed", seed, 0, 2**64 - 1)


def alibi_slopes(heads: int) -> NDArray[np.float64]:
    """Return the slopes of attention with linear biases, one for each head.

    For a power of two they are ``2^(-8 / heads)`` and its powers; for another number those of the next lower
    power of two, followed by every other one of the next higher.

    Parameters
    ----------
    heads : int
        Number of query heads, ``H``.

    Returns
    -------
    slopes : array (H,)
        ``float64``.

    Raises
    ------
    DTypeError, ArgumentError
        Where ``heads`` is not an integer, or negative.

    References
    ----------
    Press, Smith and Lewis 2022, arXiv:2108.12409.

    Examples
    --------
    >>> from sensorium.ops import alibi_slopes
    >>> [float(slope) for slope in alibi_slopes(4)]
    [0.25, 0.0625, 0.015625, 0.00390625]
    """
    heads = check_integer("heads", heads, 0)
    if heads == 0:
        return np.empty(0)
    whole = 2 ** (heads.bit_length() - 1)
    slopes = 2.0 ** (-8.0 / whole * np.arange(1, whole + 1))
    more = 2.0 ** (-4.0 / whole * np.arange(1, 2 * (heads - whole), 2))
    return np.concatenate([slopes, more])


def attention_dropout_mask(
    shape: Sequence[int], dropout: float, seed: int, *, query_offset: int = 0, key_offset: int = 0
) -> NDArray[np.bool_]:
    """Return which probabilities :func:`attention` keeps: to look at, for tests and small sizes.

    A pair's fate depends on the seed, its sample, head, and the positions of query and key in the row, and on
    nothing else. ``dropout`` is rounded to a multiple of 2^-16, ``p``, and to 2^-16 at least where it is not
    0; a pair is kept with probability ``1 - p``, and what is kept is divided by that.

    Parameters
    ----------
    shape : sequence of int
        ``B``, ``H``, and the numbers of queries and keys, ``N`` and ``N_k``.
    dropout : float
        Probability to drop, in ``[0, 1)``.
    seed : int
        From 0 to 2^64 - 1.
    query_offset, key_offset : int
        Position in the row of the first query and of the first key.

    Returns
    -------
    kept : array (B, H, N, N_k)
        Booleans, whether the layout lets the query see the key or not.

    Raises
    ------
    DTypeError, ArgumentError
        Where an argument does not fit; the message names it.

    Examples
    --------
    >>> from sensorium.ops import attention_dropout_mask
    >>> kept = attention_dropout_mask((1, 2, 100, 100), 0.25, seed=1)
    >>> kept.shape, round(float(kept.mean()), 2)
    ((1, 2, 100, 100), 0.75)
    """
    sizes = [check_integer("shape", size, 0) for size in shape]
    if len(sizes) != 4:
        raise ShapeError(f"shape has {len(sizes)} sizes, expected 4 (B, H, N, N_k)")
    offsets = check_integer("query_offset", query_offset), check_integer("key_offset", key_offset)
    drawn = _dropout(dropout, seed)
    if drawn is None:
        return np.ones(sizes, dtype=bool)
    kept = np.empty(sizes, dtype=bool)
    _core.attention_dropout_mask(drawn, sizes, offsets, kept)
    return kept
