"""How a layout reaches an operator, whose arguments are tensors and plain values only.

A layout goes as its text, such as ``(causal16 full64)``, which is the same for equal layouts and for no
others. Nothing is registered under a key that somebody would have to free; a graph that holds a text runs in
another process; and since the text is an attribute of the layout, ``torch.compile`` guards on it, so that
another layout makes another graph. Where layouts differ from call to call, the same text goes as a tensor of
bytes, which no graph depends on. The layouts of the texts last seen are kept with what the kernels derived
from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ..errors import DTypeError
from ..ops import Layout
from ._register import Tensor

__all__ = ["layout_arguments", "layout_tensor", "read_layouts"]

_KEPT = 256  # layouts, of which each holds a few words a segment


def layout_arguments(layout: Any) -> tuple[Tensor | None, str]:
    """Return one layout, or a sequence of them, as the two arguments of an operator: one is empty."""
    if isinstance(layout, torch.Tensor):
        return layout, ""
    return None, _text(layout)


def _text(layout: Any) -> str:
    if isinstance(layout, Layout):
        return layout._text
    if not isinstance(layout, list | tuple):
        raise DTypeError(f"layout must be a Layout, or one for each sample, not {type(layout).__name__}")
    for i, one in enumerate(layout):
        if not isinstance(one, Layout):
            raise DTypeError(f"layout[{i}] must be a Layout, not {type(one).__name__}")
    return f"[{''.join([f'{one._text};' for one in layout])}]"


def read_layouts(table: np.ndarray[Any, Any] | None, text: str) -> Layout | tuple[Layout, ...]:
    """Return what :func:`layout_arguments` wrote."""
    if table is None:
        return _read(text)
    if table.dtype != np.uint8 or table.ndim != 1:
        raise DTypeError(f"layout has dtype {table.dtype} and shape {table.shape}, expected uint8 and (n,)")
    return _read_bytes(table.tobytes())


@lru_cache(_KEPT)
def _read(text: str) -> Layout | tuple[Layout, ...]:
    if text.startswith("["):
        return tuple(_read_one(one) for one in text[1:-1].split(";")[:-1])
    return _read_one(text)


@lru_cache(_KEPT)
def _read_one(text: str) -> Layout:
    return Layout._from_text(text)


@lru_cache(_KEPT)
def _read_bytes(data: bytes) -> Layout | tuple[Layout, ...]:
    return _read(data.decode("ascii", "replace"))


def layout_tensor(layout: Layout | Sequence[Layout]) -> Tensor:
    """Return a layout, or one for each sample, as a tensor of bytes.

    A graph of ``torch.compile`` takes it as data: layouts that differ from call to call, such as those of
    packed batches, then share one graph, where each :class:`~sensorium.ops.Layout` makes its own. It can be
    a buffer of a module, and is saved with it.

    Parameters
    ----------
    layout : Layout, or sequence of B Layouts

    Returns
    -------
    tensor (n,)
        ``uint8``; ``n`` grows with the segments.

    Raises
    ------
    DTypeError
        Where ``layout`` is something else.

    Examples
    --------
    >>> from sensorium.ops import Layout, Segment
    >>> from sensorium.torch import layout_tensor
    >>> bytes(layout_tensor(Layout([Segment("causal", 2), Segment("full", 3)])).numpy())
    b'(causal2 full3)'
    """
    return torch.from_numpy(np.frombuffer(bytearray(_text(layout), "ascii"), dtype=np.uint8))
