"""The mixers of Mamba and Mamba-2 in transformers, over the kernels.

Each function takes the place of a mixer's ``forward``. It uses what all versions of the mixer have, its
projections and parameters, and takes sizes from the shapes of those. Convolution and scan are computed in
``float32``, or ``float64`` in a model of that dtype; what goes on to a projection has the model's dtype.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn.functional import linear

from .. import ops
from ..errors import ArgumentError
from ._conv import causal_conv1d, conv_step
from ._nn import rms_norm
from ._register import Tensor
from ._scan import scan_step, selective_scan
from ._ssd import ssd, ssd_step
from ._states import LayerStates, open_states

__all__ = ["head_forward", "mamba2_forward", "mamba_forward"]

#: Rows up to which a projection is bound by reading its weight, which torch does at half the
#: rate of the kernel.
_FEW = 8


def mamba_forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run a Mamba mixer, (B, L, width) to (B, L, width)."""
    states, mask, packed = _arguments(self, hidden_states, args, kwargs)
    rank, size = self.dt_proj.weight.shape[1], self.A_log.shape[1]
    x, z = _project(self.in_proj, _masked(hidden_states, mask)).chunk(2, dim=-1)  # (B, L, D) each
    if hasattr(self, "slow_forward"):  # versions that mask after the projection, which differs by its bias
        x = _masked(x, mask)
    x = _masked(_convolve(self, x, states, packed), mask)
    dt, B, C = _project(self.x_proj, x).split([rank, size, size], dim=-1)
    if hasattr(self, "dt_layernorm"):  # Falcon Mamba norms what selects
        dt, B, C = self.dt_layernorm(dt), self.b_layernorm(B), self.c_layernorm(C)
    dt = linear(dt, self.dt_proj.weight)  # the kernel adds the bias

    wide = _arithmetic(x)
    A = -torch.exp(self.A_log.to(wide))
    D, bias = _to(wide, self.D), _to(wide, self.dt_proj.bias)
    if step := _stepping(states, x):
        row = [_to(wide, tensor[:, 0]) for tensor in (x, dt, B, C, z)]
        y = step.step(scan_step, *row[:2], A, *row[2:4], D, row[4], bias)[:, None]
    else:
        x, dt, B, C, z = (_to(wide, tensor) for tensor in (x, dt, B, C, z))
        state = _start(states, wide)
        options = {"channels_last": True, **packed}
        y, last = selective_scan(x, dt, A, B, C, D, z, bias, True, state, True, **options)
        if states is not None:
            states.keep_scan(last)
    return _project(self.out_proj, y.to(hidden_states.dtype))


def mamba2_forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run a Mamba-2 mixer, (B, L, width) to (B, L, width)."""
    states, mask, packed = _arguments(self, hidden_states, args, kwargs)
    heads, channels, groups = self.A_log.shape[0], self.conv1d.weight.shape[0], self.n_groups
    inner = self.out_proj.weight.shape[1]  # H P
    side = (channels - inner) // 2  # G S
    z, x, dt = _project(self.in_proj, _masked(hidden_states, mask)).split([inner, channels, heads], dim=-1)
    x = _masked(_convolve(self, x, states, packed), mask)
    x, B, C = x.split([inner, side, side], dim=-1)

    wide = _arithmetic(x)
    x, z = (_to(wide, tensor).unflatten(-1, (heads, inner // heads)) for tensor in (x, z))  # (B, L, H, P)
    B, C = (_to(wide, tensor).unflatten(-1, (groups, side // groups)) for tensor in (B, C))  # (B, L, G, S)
    dt = _to(wide, dt)
    A = -torch.exp(self.A_log.to(wide))
    D, bias = _to(wide, self.D), _to(wide, self.dt_bias)
    limit = tuple(self.time_step_limit)
    if step := _stepping(states, x):
        row = [tensor[:, 0] for tensor in (x, dt, B, C, z)]
        y = step.step(ssd_step, *row[:2], A, *row[2:4], D, row[4], bias, limit)[:, None]
    else:
        state = _start(states, wide)
        options = {"return_final_states": True, "dt_limit": limit, **packed}
        y, last = ssd(x, dt, A, B, C, None, D, z, bias, True, state, **options)
        if states is not None:
            states.keep_scan(last)
    y = _group_norm(self.norm, y.flatten(-2))
    return _project(self.out_proj, y.to(hidden_states.dtype))


def _project(layer: Any, x: Tensor) -> Tensor:
    """Return a projection of rows; of few of them by the kernel that reads a weight once, where it lies."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__
    if type(layer) is torch.nn.Linear and not hooked:
        return head_forward(layer, x)
    result: Tensor = layer(x)
    return result


def head_forward(self: Any, x: Tensor) -> Tensor:
    """Run a linear layer, such as the output head of a language model."""
    if (
        self.weight.dtype is not torch.float32
        or x.dtype is not torch.float32
        or x.numel() > _FEW * x.shape[-1]
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    ):
        return linear(x, self.weight, self.bias)
    bias = None if self.bias is None else self.bias.numpy()
    return torch.from_numpy(ops.linear(x.numpy(), self.weight.numpy().T, bias))


def _arguments(
    mixer: Any, hidden_states: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[LayerStates | None, Tensor | None, dict[str, Tensor]]:
    """Return the states of the layer, the mask of its tokens, and where packed sequences begin."""
    if args:
        names = list(inspect.signature(type(mixer).forward).parameters)[2:]
        if len(args) > len(names) or "kwargs" in names[: len(args)]:
            raise ArgumentError("a mixer takes hidden_states and then arguments by name")
        kwargs = {**dict(zip(names, args, strict=False)), **kwargs}
    cache = kwargs.get("cache")
    cache = kwargs.get("cache_params") if cache is None else cache
    packed = {name: kwargs[name] for name in ("seq_idx", "cu_seqlens") if kwargs.get(name) is not None}
    if packed and cache is not None:
        raise ArgumentError(f"{next(iter(packed))} cannot come with a cache: pass use_cache=False")
    mask = kwargs.get("attention_mask")
    if mask is not None:
        mask = mask[:, -hidden_states.shape[1] :] if mask.ndim == 2 else None
    if mask is not None and not torch.compiler.is_compiling() and bool(mask.all()):
        mask = None
    return open_states(cache, mixer.layer_idx, kwargs.get("cache_position")), mask, packed


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return rows (B, L, D) with zeros where a token is padding."""
    return x if mask is None else (x * mask[:, :, None]).to(x.dtype)


def _arithmetic(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _to(dtype: torch.dtype, tensor: Any) -> Any:
    return None if tensor is None else tensor.to(dtype)


def _start(states: LayerStates | None, dtype: torch.dtype) -> Tensor | None:
    """Return the state that a scan starts from: a copy, since the cache's own is written after it."""
    return None if states is None or states.scan is None else states.scan.to(dtype, copy=True)


def _stepping(states: LayerStates | None, x: Tensor) -> LayerStates | None:
    """Return the states where one token follows others, to be written in place: nobody asks for gradients."""
    if states is None or states.scan is None or x.shape[1] != 1 or states.records or x.requires_grad:
        return None
    return states


def _convolve(mixer: Any, x: Tensor, states: LayerStates | None, packed: dict[str, Tensor]) -> Tensor:
    """Return the convolution of rows (B, L, D) and its activation, in their dtype; and keep its states."""
    wide = _arithmetic(x)
    weight, bias = _to(wide, mixer.conv1d.weight.squeeze(1)), _to(wide, mixer.conv1d.bias)
    fused = mixer.activation in ("silu", "swish")
    activation = "silu" if fused else None
    if step := _stepping(states, x):
        y = step.step_conv(conv_step, _to(wide, x[:, 0]), weight, bias, activation)[:, None]
    else:
        before = None if states is None else states.keep_conv(x.transpose(1, 2), weight.shape[1])
        state = _to(wide, before)
        options = {"activation": activation, "channels_last": True, **packed}
        y = causal_conv1d(_to(wide, x), weight, bias, initial_state=state, **options)
    return (y if fused else mixer.act(y)).to(x.dtype)


def _group_norm(norm: Any, y: Tensor) -> Tensor:
    """Return rows (B, L, D), already gated, in the norm of the mixer: one mean square for each group."""
    weight, width = _to(y.dtype, norm.weight), y.shape[-1]
    size = getattr(norm, "group_size", width)
    if size == width:
        return rms_norm(y, weight, eps=norm.variance_epsilon)
    unit = torch.ones(size, dtype=y.dtype)
    return rms_norm(y.unflatten(-1, (-1, size)), unit, eps=norm.variance_epsilon).flatten(-2) * weight


# A bound method is pickled by its name: a model that is saved whole comes back with its own forward.
mamba_forward.__name__ = mamba2_forward.__name__ = head_forward.__name__ = "forward"
