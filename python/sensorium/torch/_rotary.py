"""Rotary position embeddings as an operator of torch."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import ops
from ..errors import DTypeError
from ._register import Tensor, check_float, define, differentiable, like

__all__ = ["check_rotary", "rotary"]

Array = np.ndarray[Any, Any]
_ROTARY = "float base, int? width, bool interleaved, float scale"


def check_rotary(rotary: Any) -> None:
    """Raise where ``rotary`` is no ``Rotary``."""
    if not isinstance(rotary, ops.Rotary):
        raise DTypeError(f"rotary must be a Rotary, not {type(rotary).__name__}")


def _run(x: Array, positions: Array | None, inverse: bool, *how: Any) -> Array:
    return ops.rotary(x, ops.Rotary(*how), positions, inverse=inverse)


def _fake(x: Tensor, positions: Tensor | None, inverse: bool, *rotary: Any) -> Tensor:
    check_float("x", x, half=True)
    return like(x) if x.ndim == 4 else x.new_empty(x.shape)


_DEFAULT = ops.Rotary()
_rotary = define(
    "rotary",
    f"(Tensor x, Tensor? positions, bool inverse, {_ROTARY}) -> Tensor",
    _run,
    _fake,
    autocast=False,
)
differentiable(
    _rotary,
    ["x"],
    save=lambda inputs, output: inputs[1:],
    backward=lambda grad, positions, inverse, *how: (_rotary(grad, positions, not inverse, *how),),
)


def rotary(
    x: Tensor, rotary: ops.Rotary = _DEFAULT, positions: Tensor | None = None, *, inverse: bool = False
) -> Tensor:
    """Differentiable :func:`sensorium.ops.rotary` of tensors, by ``x``, to any order.

    Examples
    --------
    >>> import torch
    >>> from sensorium.torch import rotary
    >>> x = torch.randn(1, 2, 5, 8)
    >>> torch.allclose(rotary(rotary(x), inverse=True), x, atol=1e-6)
    True
    """
    check_rotary(rotary)
    how = (rotary.base, rotary.width, rotary.interleaved, rotary.scale)
    return _rotary(x, positions, inverse, *how)
