"""Attention over segment layouts: exact, blockwise, with work that grows with the visible pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from .._validate import as_array, check_dims, check_integer
from ..errors import ArgumentError, DTypeError, ShapeError
from ._tensor import arithmetic, bits, finish, half_name, like, place, tensor
from .layout import Layout
from .rotary import Rotary, Turn, turning
from .scoring import Scoring, scoring

__all__ = ["attention", "attention_backward", "self_attention", "self_attention_backward"]

Array = NDArray[Any]
Layouts = Layout | Sequence[Layout]


@dataclass(frozen=True, slots=True)
class _Where:
    """Layouts, one for all samples or one each, and the rows of them that the first query and key are."""

    layouts: tuple[_core.AttentionLayout, ...]
    offsets: tuple[int, int]


def _where(
    layout: Layouts, query_offset: int | None, key_offset: int, q: Array, k: Array, v: Array
) -> _Where:
    """Check sizes, dtypes and windows against each other."""
    _check_sizes(q, k, v)
    queries, keys = q.shape[2], k.shape[2]
    if type(layout) is Layout and query_offset is None and key_offset == 0 and queries == keys == len(layout):
        return _Where((layout._core,), (0, 0))
    key_offset = check_integer("key_offset", key_offset)
    given = query_offset is not None
    if query_offset is None:
        query_offset = key_offset + keys - queries
        if query_offset < 0:
            raise ShapeError(
                f"q has N={queries}, more than the {keys} of k after key_offset={key_offset}: "
                "give query_offset, the row that the first query is"
            )
    query_offset = check_integer("query_offset", query_offset)
    end = max(query_offset + queries, key_offset + keys)
    if isinstance(layout, Layout):
        if end > len(layout) or (not given and key_offset + keys != len(layout)):
            raise ShapeError(_misfit("layout", layout, queries, keys, query_offset, key_offset))
        return _Where((layout._core,), (query_offset, key_offset))
    if not isinstance(layout, Sequence) or isinstance(layout, str):
        raise DTypeError(f"layout must be a Layout, or one for each sample, not {type(layout).__name__}")
    for i, one in enumerate(layout):
        if not isinstance(one, Layout):
            raise DTypeError(f"layout[{i}] must be a Layout, not {type(one).__name__}")
        if not given and len(one) > key_offset + keys:
            raise ShapeError(_misfit(f"layout[{i}]", one, queries, keys, query_offset, key_offset))
    if len(layout) != q.shape[0]:
        raise ShapeError(f"layout has {len(layout)} layouts, expected B={q.shape[0]}: one for each sample")
    return _Where(tuple(one._core for one in layout), (query_offset, key_offset))


def _misfit(name: str, layout: Layout, queries: int, keys: int, query_offset: int, key_offset: int) -> str:
    if queries == keys and query_offset == key_offset == 0:
        return f"q has N={queries} but {name} has length {len(layout)}"
    return (
        f"{name} has length {len(layout)}, but q is its rows {query_offset} to {query_offset + queries} "
        f"and k its rows {key_offset} to {key_offset + keys}"
    )


def _check_sizes(q: Array, k: Array, v: Array) -> None:
    if q.dtype == k.dtype == v.dtype and q.ndim == k.ndim == 4 and k.shape == v.shape:
        (batch, heads, _, width), (k_batch, kv_heads, _, k_width) = q.shape, k.shape
        divides = heads % kv_heads == 0 if kv_heads else heads == 0
        if divides and (batch, width) == (k_batch, k_width):
            return
    _explain(q, k, v)


def _explain(q: Array, k: Array, v: Array) -> NoReturn:
    """Raise the error that says what does not fit."""
    for name, array in (("k", k), ("v", v)):
        if array.dtype != q.dtype:
            raise DTypeError(f"{name} has dtype {array.dtype} but q has {q.dtype}")
    sizes = check_dims("B H N D, B H_kv N_k D, B H_kv N_k D", q=q, k=k, v=v)
    raise ArgumentError(f"k has H_kv={sizes['H_kv']}, which does not divide H={sizes['H']} of q")


def _check_like(name: str, array: Array, other: str, like: Array, shape: tuple[int, ...]) -> None:
    if array.dtype != like.dtype:
        raise DTypeError(f"{name} has dtype {array.dtype} but {other} has {like.dtype}")
    if array.shape != shape:
        raise ShapeError(f"{name} has shape {array.shape}, expected {shape} to fit {other}")


@overload
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    layout: Layouts,
    *,
    scale: float | None = None,
    query_offset: int | None = None,
    key_offset: int = 0,
    softcap: float | None = None,
    alibi: ArrayLike | None = None,
    rotary: Rotary | None = None,
    positions: ArrayLike | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    out: Array | None = None,
    return_lse: Literal[True] = True,
) -> tuple[Array, Array]: ...
@overload
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    layout: Layouts,
    *,
    scale: float | None = None,
    query_offset: int | None = None,
    key_offset: int = 0,
    softcap: float | None = None,
    alibi: ArrayLike | None = None,
    rotary: Rotary | None = None,
    positions: ArrayLike | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    out: Array | None = None,
    return_lse: Literal[False],
) -> Array: ...
def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    layout: Layouts,
    *,
    scale: float | None = None,
    query_offset: int | None = None,
    key_offset: int = 0,
    softcap: float | None = None,
    alibi: ArrayLike | None = None,
    rotary: Rotary | None = None,
    positions: ArrayLike | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    out: Array | None = None,
    return_lse: bool = True,
) -> tuple[Array, Array] | Array:
    """Return ``softmax(scale * q k^T over what the layout lets a query see) v``.

    The layout describes a row of tokens, the same in every head. Queries and keys are the whole row or parts
    of it: new tokens against all that came before, or one segment that is computed anew. Query head ``h``
    reads key head ``h // (H / H_kv)``. A query that sees nothing, or only scores of ``-inf``, gives 0 with
    ``lse = -inf``. NaN, and a score of ``+inf``, make NaN of the rows that see them and of no others. Scores
    must not overflow the dtype before ``scale`` is applied. Results do not depend on the number of threads,
    bit for bit.

    Parameters
    ----------
    q : array (B, H, N, D)
        Queries: ``N`` consecutive tokens of the row, ``float32``, ``float64``, ``float16`` or the
        ``bfloat16`` of ``ml_dtypes``. Any view whose last axis is contiguous, such as a part of a packed
        projection, is read without a copy; other arrays are copied. Half precision is widened as it is read:
        arithmetic is ``float32``, and results are rounded once.
    k, v : array (B, H_kv, N_k, D)
        Keys and values of the same dtype: ``N_k`` consecutive tokens; ``H_kv`` divides ``H``.
    layout : Layout, or sequence of B Layouts
        Who sees whom in the row; a sequence has one for each sample, and a shorter one counts as padded.
    scale : float, optional
        Factor of the scores; ``1 / sqrt(D)`` where None.
    query_offset : int, optional
        Token of the row that the first query is: a query sees key ``j`` where
        ``layout.dense()[query_offset + i, key_offset + j]``. Where None, the queries are the last tokens, up
        to the last key, which is then the last token of the layout.
    key_offset : int
        Token of the row that the first key is; tokens without a key are not seen.
    softcap : float, optional
        ``c``, above 0: a score ``s`` becomes ``c tanh(s / c)``, before ``alibi``; ``+-inf`` becomes ``+-c``.
    alibi : array (H,), optional
        Slopes: the score of query head ``h`` loses ``alibi[h] * |i - j|``, with ``i`` and ``j`` the tokens of
        the row that query and key are. See :func:`alibi_slopes`. They have no gradient.
    rotary : Rotary, optional
        Turn queries and keys by their positions as they are read, as :func:`rotary` would.
    positions : array (L,), (B, L) or (B, L, width / 2), optional
        Of the tokens of the row, for ``rotary``: that of query ``i`` is ``positions[query_offset + i]``. They
        are 0, 1, 2, ... where None, and have no gradient.
    dropout : float
        Probability, in ``[0, 1)``, that a pair's weight is dropped after the softmax; others are divided by
        one minus that. It is rounded to a multiple of 2^-16. ``lse`` is that without dropout.
    seed : int, optional
        Of dropout, from 0 to 2^64 - 1. What is dropped depends on it, on sample, head and tokens, and on
        nothing else; see :func:`attention_dropout_mask`. Each layer and step should have its own.
    out : array (B, H, N, D), optional
        Where to write ``out``: of the dtype of ``q``, and apart from the arguments. Without a copy where its
        last axis is contiguous.
    return_lse : bool
        Also return ``lse``, which :func:`attention_backward` needs.

    Returns
    -------
    out : array (B, H, N, D)
        Laid out in memory like ``q``: for a view of a packed ``(B, N, 3, H, D)`` array it is
        ``(B, N, H, D)`` in memory, and ``out.transpose(0, 2, 1, 3).reshape(B, N, H * D)`` costs nothing.
    lse : array (B, H, N)
        Logarithm of the sum of the exponentials of the visible scores; ``float32`` for half precision.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where an argument does not fit; the message names it.

    References
    ----------
    Milakov and Gimelshein 2018 (running softmax); Dao et al. 2022 and 2023 (blockwise attention); Bello et
    al. 2017 and Gemma Team 2024 (soft-capping); Press, Smith and Lewis 2022 (linear biases); Su et al. 2021
    (rotary embeddings); Srivastava et al. 2014 (dropout).

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import Layout, Segment, attention
    >>> layout = Layout([Segment("causal", 2), Segment("full", 3)])
    >>> x = np.random.default_rng(0).normal(size=(1, 2, 5, 4))
    >>> out, lse = attention(x, x, x, layout)
    >>> out.shape, lse.shape
    ((1, 2, 5, 4), (1, 2, 5))
    >>> bool(np.allclose(out[:, :, 0], x[:, :, 0]))  # the first token sees itself alone
    True
    >>> last, _ = attention(x[:, :, 3:], x, x, layout)  # the last two tokens against all
    >>> bool(np.allclose(last, out[:, :, 3:]))
    True
    """
    given = {"q": q, "k": k, "v": v}
    q, k, v = tensor("q", q), tensor("k", k), tensor("v", v)
    where = _where(layout, query_offset, key_offset, q, k, v)
    how = scoring(scale, softcap, alibi, dropout, seed, q.shape[1], q.shape[3])
    turn = turning(rotary, positions, where.offsets, q, k)
    to = like(q) if out is None else place("out", out, q.dtype, q.shape, given)
    lse = _forward(where, q, k, v, how, to, turn)
    out = finish(out, to)
    return (out, lse) if return_lse else out


def _forward(
    where: _Where, q: Array, k: Array, v: Array, how: Scoring, out: Array, turn: Turn | None
) -> Array:
    """Write ``out`` and return ``lse``."""
    half = half_name(q.dtype)
    lse = np.empty(q.shape[:3], dtype=arithmetic(q.dtype))
    if half:
        q, k, v, out = bits(q), bits(k), bits(v), bits(out)
    _core.attention_forward(where.layouts, where.offsets, q, k, v, how, out, lse, turn, half)
    return lse


def attention_backward(
    grad_out: ArrayLike,
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    out: ArrayLike,
    lse: ArrayLike,
    layout: Layouts,
    *,
    scale: float | None = None,
    query_offset: int | None = None,
    key_offset: int = 0,
    softcap: float | None = None,
    alibi: ArrayLike | None = None,
    rotary: Rotary | None = None,
    positions: ArrayLike | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    grads: Sequence[Array] | None = None,
) -> tuple[Array, Array, Array]:
    """Return the gradients of :func:`attention` by ``q``, ``k`` and ``v``.

    A query that saw nothing has a zero gradient and adds nothing to others'. Deterministic, and the same bits
    with any number of threads.

    Parameters
    ----------
    grad_out : array (B, H, N, D)
        Gradient by ``out``.
    q, k, v, layout, scale, query_offset, key_offset, softcap, alibi, rotary, positions, dropout, seed
        As given to :func:`attention`; ``alibi`` and ``positions`` have no gradient.
    out : array (B, H, N, D)
    lse : array (B, H, N)
        As returned by :func:`attention`.
    grads : sequence of 3 arrays, optional
        Where to write ``dq``, ``dk`` and ``dv``: of the dtype of ``q``, and apart from the arguments and each
        other. Without a copy where their last axes are contiguous.

    Returns
    -------
    dq : array (B, H, N, D)
    dk, dv : array (B, H_kv, N_k, D)
        Each laid out in memory like its argument. Of half precision, they are summed in ``float32`` and
        rounded once.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import Layout, Segment, attention, attention_backward
    >>> layout = Layout([Segment("full", 3)])
    >>> x = np.ones((1, 1, 3, 2))
    >>> out, lse = attention(x, x, x, layout)
    >>> dq, dk, dv = attention_backward(np.ones_like(out), x, x, x, out, lse, layout)
    >>> bool(np.allclose(dv, 1.0))
    True
    """
    given = {"grad_out": grad_out, "q": q, "k": k, "v": v, "out": out, "lse": lse}
    q, k, v = tensor("q", q), tensor("k", k), tensor("v", v)
    where = _where(layout, query_offset, key_offset, q, k, v)
    how = scoring(scale, softcap, alibi, dropout, seed, q.shape[1], q.shape[3])
    turn = turning(rotary, positions, where.offsets, q, k)
    if grads is None:
        fresh = (like(q), like(k), like(v))
        _backward(grad_out, q, k, v, out, lse, where, how, fresh, turn)
        return fresh
    if len(grads) != 3:
        raise ArgumentError(f"grads must be three arrays (dq, dk, dv), not {len(grads)}")
    to = []
    for name, grad, argument in zip(("dq", "dk", "dv"), grads, (q, k, v), strict=True):
        to.append(place(name, grad, q.dtype, argument.shape, given))
        given[name] = grad
    _backward(grad_out, q, k, v, out, lse, where, how, tuple(to), turn)
    dq, dk, dv = (finish(grad, written) for grad, written in zip(grads, to, strict=True))
    return dq, dk, dv


def _backward(
    grad_out: ArrayLike,
    q: Array,
    k: Array,
    v: Array,
    out: ArrayLike,
    lse: ArrayLike,
    where: _Where,
    how: Scoring,
    grads: tuple[Array, ...],
    turn: Turn | None,
) -> None:
    """Check what :func:`attention` did not, and write ``grads``: three arrays, or one packed."""
    grad_out, out = tensor("grad_out", grad_out), tensor("out", out)
    if type(lse) is not np.ndarray or not lse.dtype.isnative or not lse.flags.carray:
        lse = as_array("lse", lse)
        lse = np.require(lse, dtype=lse.dtype.newbyteorder("="), requirements=["C", "A"])
    wide, half = arithmetic(q.dtype), half_name(q.dtype)
    if not (grad_out.dtype == out.dtype == q.dtype and lse.dtype == wide) or not (
        grad_out.shape == out.shape == q.shape and lse.shape == q.shape[:3]
    ):
        _check_like("grad_out", grad_out, "q", q, q.shape)
        _check_like("out", out, "q", q, q.shape)
        if half and lse.dtype != wide:
            raise DTypeError(f"lse has dtype {lse.dtype} but q has {q.dtype}, whose lse is {wide}")
        _check_like("lse", lse, "q", lse if half else q, q.shape[:3])
    if half:
        grad_out, q, k, v, out = (bits(x) for x in (grad_out, q, k, v, out))
        grads = tuple(bits(grad) for grad in grads)
    _core.attention_backward(
        where.layouts, where.offsets, grad_out, q, k, v, out, lse, how, grads, turn, half
    )


def _parts(name: str, packed: Array) -> tuple[Array, Array, Array]:
    """Return the three views (B, H, N, D) of a packed (B, N, 3, H, D) array."""
    if packed.ndim != 5 or packed.shape[2] != 3:
        raise ShapeError(f"{name} has shape {packed.shape}, expected (B, N, 3, H, D)")
    parts = packed.transpose(2, 0, 3, 1, 4)
    return parts[0], parts[1], parts[2]


def self_attention(
    qkv: ArrayLike,
    layout: Layouts,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    alibi: ArrayLike | None = None,
    rotary: Rotary | None = None,
    positions: ArrayLike | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    out: Array | None = None,
) -> tuple[Array, Array]:
    """Return attention over one packed projection, heads side by side: nothing is copied or transposed.

    Parameters
    ----------
    qkv : array (B, N, 3, H, D)
        Queries, keys and values, of a dtype that :func:`attention` reads: a projection ``(B, N, 3 * H * D)``
        reshaped.
    layout : Layout, or sequence of B Layouts
        Of length ``N``; in a sequence, one for each sample, a shorter one counts as padded.
    scale : float, optional
        Factor of the scores; ``1 / sqrt(D)`` where None.
    softcap, alibi, rotary, positions, dropout, seed
        See :func:`attention`.
    out : array (B, N, H * D), optional
        Where to write ``out``: of the dtype of ``qkv``, and apart from it.

    Returns
    -------
    out : array (B, N, H * D)
    lse : array (B, H, N)
        See :func:`attention`.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import Layout, Segment, self_attention
    >>> qkv = np.zeros((2, 4, 3, 2, 8), dtype=np.float32)
    >>> out, lse = self_attention(qkv, Layout([Segment("causal", 4)]))
    >>> out.shape
    (2, 4, 16)
    """
    packed = as_array("qkv", qkv)
    q, k, v = _parts("qkv", packed)
    batch, heads, tokens, width = q.shape
    q, k, v = tensor("qkv", q), tensor("qkv", k), tensor("qkv", v)
    where = _where(layout, None, 0, q, k, v)
    how = scoring(scale, softcap, alibi, dropout, seed, heads, width)
    turn = turning(rotary, positions, where.offsets, q, k)
    shape = (batch, tokens, heads * width)
    to = np.empty(shape, q.dtype) if out is None else place("out", out, q.dtype, shape, {"qkv": packed})
    split = to.reshape(batch, tokens, heads, width).transpose(0, 2, 1, 3)
    lse = _forward(where, q, k, v, how, split, turn)
    return finish(out, to), lse


def self_attention_backward(
    grad_out: ArrayLike,
    qkv: ArrayLike,
    out: ArrayLike,
    lse: ArrayLike,
    layout: Layouts,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    alibi: ArrayLike | None = None,
    rotary: Rotary | None = None,
    positions: ArrayLike | None = None,
    dropout: float = 0.0,
    seed: int | None = None,
    grads: Array | None = None,
) -> Array:
    """Return the gradient of :func:`self_attention` by ``qkv``.

    Parameters
    ----------
    grad_out : array (B, N, H * D)
        Gradient by ``out``.
    qkv, layout, scale, softcap, alibi, rotary, positions, dropout, seed
        As given to :func:`self_attention`; ``alibi`` and ``positions`` have no gradient.
    out : array (B, N, H * D)
    lse : array (B, H, N)
        As returned by :func:`self_attention`.
    grads : array (B, N, 3, H, D), optional
        Where to write ``dqkv``: of the dtype of ``qkv``, and apart from the arguments. Without a copy where
        it is contiguous.

    Returns
    -------
    dqkv : array (B, N, 3, H, D)

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where an argument does not fit; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import Layout, Segment, self_attention, self_attention_backward
    >>> layout = Layout([Segment("causal", 4)])
    >>> qkv = np.ones((1, 4, 3, 2, 8))
    >>> out, lse = self_attention(qkv, layout)
    >>> self_attention_backward(np.ones_like(out), qkv, out, lse, layout).shape
    (1, 4, 3, 2, 8)
    """
    packed = as_array("qkv", qkv)
    q, k, v = _parts("qkv", packed)
    batch, heads, tokens, width = q.shape
    heads_last: list[Array] = []
    for name, value in (("grad_out", grad_out), ("out", out)):
        array = as_array(name, value)
        if array.shape != (batch, tokens, heads * width):
            want = (batch, tokens, heads * width)
            raise ShapeError(f"{name} has shape {array.shape}, expected {want} to fit qkv")
        heads_last.append(array.reshape(batch, tokens, heads, width).transpose(0, 2, 1, 3))
    q, k, v = tensor("qkv", q), tensor("qkv", k), tensor("qkv", v)
    where = _where(layout, None, 0, q, k, v)
    how = scoring(scale, softcap, alibi, dropout, seed, heads, width)
    turn = turning(rotary, positions, where.offsets, q, k)
    shape = (batch, tokens, 3, heads, width)
    if grads is None:
        to = np.empty(shape, q.dtype)
    else:
        given = {"grad_out": grad_out, "qkv": packed, "out": out, "lse": lse}
        to = place("grads", grads, q.dtype, shape, given)
    _backward(heads_last[0], q, k, v, heads_last[1], lse, where, how, (to,), turn)
    return finish(grads, to)
