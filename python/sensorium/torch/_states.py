"""What a Mamba layer keeps between calls, in the cache objects of transformers.

Two kinds are known. Newer versions have a cache of layers, each with states that come into being with the
first tokens; older ones have all states of a model from the start, and say by ``cache_position`` what is
first. Either holds the last K inputs of the convolution, one more than it needs, and the state of the scan.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..errors import ArgumentError
from ._register import Tensor

__all__ = ["LayerStates", "open_states"]


class LayerStates:
    """States of one layer: `conv` (B, D, K) and `scan`, or None before the first tokens.

    The tensors are those of the cache: what is written into them is kept.
    """

    def __init__(self, cache: Any, layer: int, conv: Tensor | None, scan: Tensor | None, *, layered: bool):
        self.conv, self.scan = conv, scan
        self._cache, self._layer, self._layered = cache, layer, layered

    @property
    def records(self) -> bool:
        """Whether the cache keeps the inputs of all tokens for now, so as to go back to one of them."""
        return self._layered and bool(getattr(self._cache.layers[self._layer], "record_past", False))

    def keep_conv(self, x: Tensor, kernel: int) -> Tensor | None:
        """Keep inputs (B, D, L) of the convolution; return the (B, D, K - 1) before them, or None."""
        length = x.shape[-1]
        before = None if self.conv is None else self.conv[..., self.conv.shape[-1] - kernel + 1 :]
        if self.records:
            self._cache.update_conv_state(x, self._layer, conv_kernel_size=kernel)
            return before
        last = x[..., max(length - kernel, 0) :]
        if length < kernel:
            last = (
                torch.nn.functional.pad(last, (kernel - length, 0))
                if self.conv is None
                else torch.cat([self.conv[..., length - kernel :], last.to(self.conv.dtype)], -1)
            )
        if self._layered and self.conv is None:
            self._cache.update_conv_state(last, self._layer)
        else:
            place = self._cache.conv_states[self._layer] if self.conv is None else self.conv
            before = None if before is None else before.clone()
            place.copy_(last)
        return before

    def step_conv(self, step: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
        """Take a step of the convolution (B, D) on the K - 1 last inputs, in place."""
        assert self.conv is not None
        self.conv[..., 0] = self.conv[..., 1]  # the input that only caches keep
        used = self.conv[..., 1:]
        if used.dtype is x.dtype:
            return step(x, used, *rest)
        state = used.to(x.dtype)
        y = step(x, state, *rest)
        used.copy_(state)
        return y

    def step(self, step: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
        """Take a step of the scan, in place."""
        assert self.scan is not None
        if self.scan.dtype is x.dtype and self.scan.is_contiguous():
            return step(self.scan, x, *rest)
        state = self.scan.to(x.dtype).contiguous()
        y = step(state, x, *rest)
        self.scan.copy_(state)
        return y

    def keep_scan(self, state: Tensor) -> None:
        """Keep the state after the last token."""
        if self._layered:
            self._cache.update_recurrent_state(state, self._layer)
        else:
            self._cache.ssm_states[self._layer].copy_(state)


def open_states(cache: Any, layer: int, cache_position: Tensor | None) -> LayerStates | None:
    """Return the states of a layer in a cache, or None without a cache.

    Raises
    ------
    ArgumentError
        Where the cache is of no kind that is known.
    """
    if cache is None:
        return None
    if hasattr(cache, "ssm_states") and hasattr(cache, "conv_states"):
        if cache_position is None or int(cache_position[0]) == 0:
            return LayerStates(cache, layer, None, None, layered=False)
        return LayerStates(cache, layer, cache.conv_states[layer], cache.ssm_states[layer], layered=False)
    if hasattr(cache, "layers") and hasattr(cache, "update_recurrent_state"):
        held = cache.layers[layer]
        if not _only(held.has_previous_state):
            return LayerStates(cache, layer, None, None, layered=True)
        return LayerStates(cache, layer, _only(held.conv_states), _only(held.recurrent_states), layered=True)
    raise ArgumentError(f"cache is a {type(cache).__name__}, whose states of Mamba layers are not known here")


def _only(states: Any) -> Any:
    """Return the first of the states of a layer, which newer versions number."""
    return states[0] if isinstance(states, dict | list) else states
