"""Attention over layouts as operators of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .. import ops
from .._validate import check_dims
from ..errors import ArgumentError, DTypeError, ShapeError
from ._layouts import layout_arguments, read_layouts
from ._register import Tensor, check_float, define, differentiable, like
from ._rotary import check_rotary

__all__ = ["attention", "self_attention"]

Array = np.ndarray[Any, Any]
Layouts = ops.Layout | Sequence[ops.Layout] | Tensor

# What the operators here have after their tensors. Layouts and the names of options are one text, such as
# "(causal16 full64)|scale", and their values one list, since torch walks over all arguments several times in
# every call. Values are no part of the text: torch cannot always trace how a number is written.
_PACKED = "Tensor? layout, Tensor? alibi, Tensor? seed, Tensor? positions, str how, float[] values"
_OPTIONS = f"{_PACKED}, SymInt[] offsets"


def _how(
    layout: str, scale: float | None, softcap: float | None, dropout: float, rotary: ops.Rotary | None
) -> tuple[str, list[float]]:
    """Return the text of a layout, or none where it goes as a tensor, with names of options; and values."""
    if scale is None and softcap is None and dropout == 0 and rotary is None:
        return layout, []
    values = []
    for name, value in (("scale", scale), ("softcap", softcap), ("dropout", dropout)):
        if value is not None:
            layout += f"|{name}"
            values.append(_float(name, value))
    if rotary is not None:
        check_rotary(rotary)
        layout += "|neighbours" if rotary.interleaved else "|halves"
        values += [rotary.base, -1.0 if rotary.width is None else float(rotary.width), rotary.scale]
    return layout, values


def _float(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise DTypeError(f"{name} must be a number, not {type(value).__name__}") from error


def _packed(
    layout: Array | None,
    alibi: Array | None,
    seed: Array | None,
    positions: Array | None,
    how: str,
    values: Sequence[float],
) -> dict[str, Any]:
    """Return the options of a call over a packed projection, by name."""
    text, *names = how.split("|")
    options: dict[str, Any] = dict(zip(names, values, strict=False))
    if names and names[-1] in ("halves", "neighbours"):
        base, width, factor = values[-3:]
        turned = None if width < 0 else int(width)
        options["rotary"] = ops.Rotary(base, turned, names[-1] == "neighbours", factor)
        del options[names[-1]]
    return {
        "layout": read_layouts(layout, text),
        "alibi": alibi,
        "seed": None if seed is None else _number(seed),
        "positions": positions,
        **options,
    }


def _number(seed: Array) -> int:
    if seed.dtype != np.int64 or seed.size != 1:
        raise DTypeError(f"seed has dtype {seed.dtype} and shape {seed.shape}, expected one int64")
    return int(seed.item()) % 2**64


def _options(*how: Any) -> dict[str, Any]:
    """Return the options of a call, by name."""
    *packed, offsets = how
    key_offset, *query_offset = offsets or (0,)
    options = {**_packed(*packed), "key_offset": key_offset}
    return {**options, "query_offset": query_offset[0]} if query_offset else options


def _offsets(query_offset: int | None, key_offset: int) -> list[int]:
    """Return the offsets of keys and queries as far as they are given."""
    if query_offset is None:
        return [] if key_offset == 0 else [key_offset]
    return [key_offset, query_offset]


def _seed(dropout: float, seed: int | Tensor | None) -> Tensor | None:
    """Return the seed as 64 bits in a tensor, on which no graph depends; drawn by torch where not given."""
    if dropout == 0:
        return None
    if isinstance(seed, torch.Tensor):
        return seed
    if seed is None:
        return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device="cpu")
    if not 0 <= seed < 2**64:
        raise ArgumentError(f"seed must be from 0 to 2^64 - 1, not {seed}")
    bits = seed - 2**64 if seed >= 2**63 else seed
    return torch.full((), bits, dtype=torch.int64, device="cpu")


def _lowered(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return tensors in the dtype of autocast, where that is on: as torch's own attention has them."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    dtype = torch.get_autocast_dtype("cpu")
    casts = (torch.float32, torch.float16, torch.bfloat16)
    return [tensor.to(dtype) if tensor.dtype in casts else tensor for tensor in tensors]


def _lse_dtype(tensor: Tensor) -> Any:
    return torch.float64 if tensor.dtype is torch.float64 else torch.float32


def _check(q: Tensor, k: Tensor, v: Tensor, how: tuple[Any, ...]) -> None:
    check_float("q", q, half=True)
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype:
            raise DTypeError(f"{name} has dtype {tensor.dtype} but q has {q.dtype}")
    sizes = check_dims("B H N D, B H_kv N_k D, B H_kv N_k D", q=q, k=k, v=v)
    if sizes["H"] % sizes["H_kv"] if sizes["H_kv"] else sizes["H"]:
        raise ArgumentError(f"k has H_kv={sizes['H_kv']}, which does not divide H={sizes['H']} of q")
    if not how[-1]:
        _check_length("k", sizes["N_k"], how)


def _check_length(name: str, tokens: int, how: tuple[Any, ...]) -> None:
    """Compare a length that is known while torch is tracing; the kernels check the rest."""
    if how[0] is None:
        layout = read_layouts(None, how[4].split("|")[0])
        if isinstance(layout, ops.Layout) and tokens != len(layout):
            raise ShapeError(f"{name} has N={tokens} but layout has length {len(layout)}")


def _attention_run(q: Array, k: Array, v: Array, *how: Any) -> Any:
    return ops.attention(q, k, v, **_options(*how))


def _attention_fake(q: Tensor, k: Tensor, v: Tensor, *how: Any) -> tuple[Tensor, Tensor]:
    _check(q, k, v, how)
    return like(q), q.new_empty(q.shape[:3], dtype=_lse_dtype(q))


def _backward_run(
    grad_out: Array, q: Array, k: Array, v: Array, out: Array, lse: Array, *how: Any
) -> tuple[Array, Array, Array]:
    return ops.attention_backward(grad_out, q, k, v, out, lse, **_options(*how))


def _backward_fake(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *how: Any
) -> tuple[Tensor, Tensor, Tensor]:
    _check(q, k, v, how)
    return like(q), like(k), like(v)


_attention = define(
    "attention",
    f"(Tensor q, Tensor k, Tensor v, {_OPTIONS}) -> (Tensor out, Tensor lse)",
    _attention_run,
    _attention_fake,
    autocast=False,
)
_attention_backward = define(
    "attention_backward",
    f"(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_OPTIONS})"
    " -> (Tensor dq, Tensor dk, Tensor dv)",
    _backward_run,
    _backward_fake,
    autocast=False,
    backward_of="attention",
)
differentiable(
    _attention,
    ["q", "k", "v"],
    save=lambda inputs, output: (*inputs[:3], *output, *inputs[3:]),
    backward=_attention_backward,
    constant_results=[1],
)


def _self_attention_run(qkv: Array, *how: Any) -> tuple[Array, Array]:
    return ops.self_attention(qkv, **_packed(*how))


def _check_packed(qkv: Tensor, how: tuple[Any, ...]) -> tuple[Any, ...]:
    if qkv.ndim != 5 or qkv.shape[2] != 3:
        raise ShapeError(f"qkv has shape {tuple(qkv.shape)}, expected (B, N, 3, H, D)")
    check_float("qkv", qkv, half=True)
    batch, tokens, _, heads, width = qkv.shape
    _check_length("qkv", tokens, how)
    return batch, tokens, heads, width


def _self_attention_fake(qkv: Tensor, *how: Any) -> tuple[Tensor, Tensor]:
    batch, tokens, heads, width = _check_packed(qkv, how)
    return qkv.new_empty((batch, tokens, heads * width)), qkv.new_empty(
        (batch, heads, tokens), dtype=_lse_dtype(qkv)
    )


def _self_backward_run(grad_out: Array, qkv: Array, out: Array, lse: Array, *how: Any) -> Array:
    return ops.self_attention_backward(grad_out, qkv, out, lse, **_packed(*how))


def _self_backward_fake(grad_out: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, *how: Any) -> Tensor:
    _check_packed(qkv, how)
    return qkv.new_empty(qkv.shape)


_self_attention = define(
    "self_attention",
    f"(Tensor qkv, {_PACKED}) -> (Tensor out, Tensor lse)",
    _self_attention_run,
    _self_attention_fake,
    autocast=False,
)
_self_attention_backward = define(
    "self_attention_backward",
    f"(Tensor grad_out, Tensor qkv, Tensor out, Tensor lse, {_PACKED}) -> Tensor",
    _self_backward_run,
    _self_backward_fake,
    autocast=False,
    backward_of="self_attention",
)
differentiable(
    _self_attention,
    ["qkv"],
    save=lambda inputs, output: (inputs[0], *output, *inputs[1:]),
    backward=lambda *args: (_self_attention_backward(*args),),
    constant_results=[1],
)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Layouts,
    *,
    scale: float | None = None,
    query_offset: int | None = None,
    key_offset: int = 0,
    softcap: float | None = None,
    alibi: Tensor | None = None,
    rotary: ops.Rotary | None = None,
    positions: Tensor | None = None,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """Return attention over a layout, as :func:`sensorium.ops.attention` does.

    Parameters
    ----------
    q : tensor (B, H, N, D)
        Queries, ``float32``, ``float64``, ``float16`` or ``bfloat16``, on the CPU. Any view whose last axis
        is contiguous is read where it lies, such as ``projection.view(B, N, H, D).transpose(1, 2)``; others
        are copied.
    k, v : tensor (B, H_kv, N_k, D)
        Keys and values of the same dtype; ``H_kv`` divides ``H``.
    layout : Layout, sequence of B Layouts, or tensor
        Who sees whom in the row; a :func:`layout_tensor` where layouts change from call to call.
    scale, query_offset, key_offset, softcap, rotary
        As of :func:`sensorium.ops.attention`.
    alibi : tensor (H,), optional
        Slopes, as of :func:`sensorium.ops.attention`; they have no gradient.
    positions : tensor, optional
        Of the tokens of the row, for ``rotary``; they have no gradient.
    dropout : float
        As of :func:`sensorium.ops.attention`: a module gives 0 where it is not training.
    seed : int or tensor, optional
        Of dropout: an integer, or a tensor of one ``int64``, on which no graph depends. Where None, one is
        drawn with ``torch.randint``, in every call and so that ``torch.manual_seed`` fixes it.
    return_lse : bool
        Also return ``lse``.

    Returns
    -------
    out : tensor (B, H, N, D)
        Laid out in memory like ``q``: after such a transpose, ``out.transpose(1, 2).reshape(B, N, H * D)``
        costs nothing.
    lse : tensor (B, H, N)
        Only with ``return_lse``: logarithm of the sum of the exponentials of the visible scores. It has no
        gradient.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where an argument does not fit; the message names it. Where torch is tracing, its own error holds
        the message.
    NotImplementedError
        From a second derivative.

    Examples
    --------
    >>> import torch
    >>> from sensorium.ops import Layout, Segment
    >>> from sensorium.torch import attention
    >>> layout = Layout([Segment("causal", 2), Segment("full", 3)])
    >>> q, k, v = torch.randn(3, 1, 2, 5, 4)
    >>> mask = torch.from_numpy(layout.dense())
    >>> dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    >>> torch.allclose(attention(q, k, v, layout), dense, atol=1e-6)
    True
    """
    table, text = layout_arguments(layout)
    how = (*_how(text, scale, softcap, dropout, rotary), _offsets(query_offset, key_offset))
    out, lse = _attention(*_lowered([q, k, v]), table, alibi, _seed(dropout, seed), positions, *how)
    return (out, lse) if return_lse else out


def self_attention(
    qkv: Tensor,
    layout: Layouts,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    alibi: Tensor | None = None,
    rotary: ops.Rotary | None = None,
    positions: Tensor | None = None,
    dropout: float = 0.0,
    seed: int | Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """Return attention over one packed projection, as :func:`sensorium.ops.self_attention` does.

    Parameters
    ----------
    qkv : tensor (B, N, 3, H, D)
        Queries, keys and values, of a dtype as of :func:`attention`:
        ``projection(x).view(B, N, 3, H, D)``.
    layout, scale, softcap, alibi, rotary, positions, dropout, seed, return_lse
        As of :func:`attention`.

    Returns
    -------
    out : tensor (B, N, H * D)
    lse : tensor (B, H, N)
        Only with ``return_lse``.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError, NotImplementedError
        As :func:`attention`.

    Examples
    --------
    >>> import torch
    >>> from sensorium.ops import Layout, Segment
    >>> from sensorium.torch import self_attention
    >>> projection = torch.nn.Linear(8, 3 * 8)
    >>> qkv = projection(torch.randn(2, 4, 8)).view(2, 4, 3, 2, 4)
    >>> self_attention(qkv, Layout([Segment("causal", 4)])).shape
    torch.Size([2, 4, 8])
    """
    table, text = layout_arguments(layout)
    how = _how(text, scale, softcap, dropout, rotary)
    out, lse = _self_attention(*_lowered([qkv]), table, alibi, _seed(dropout, seed), positions, *how)
    return (out, lse) if return_lse else out
