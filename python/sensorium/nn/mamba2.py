"""The Mamba-2 layer: state-space duality, one decay a head, with a gated norm before the projection out.

``z, x, B, C, dt = in_proj(input)``; ``x, B, C = silu(conv(x, B, C))``; ``dt = softplus(dt + dt_bias)``;
``H_t = exp(dt_t A) H_{t-1} + dt_t B_t x_t^T``, ``y_t = C_t^T H_t + D x_t``; ``out_proj(norm(y silu(z)))``.

Parameters have the names of the authors' checkpoints: ``in_proj (D, 2 E + 2 G S + H)``,
``conv1d (E + 2 G S, K)``, ``dt_bias``, ``A_log`` and ``D`` ``(H,)``, ``norm (E,)``, ``out_proj (E, D)``, with
``D`` the width of the model, ``E = H P`` that of the scan in ``H`` heads of ``P``, ``G`` groups of heads that
share ``B`` and ``C``, and ``S`` the state. Columns of a weight are outputs.

References
----------
Dao and Gu (2024), Transformers are SSMs (arXiv:2405.21060).
"""

from __future__ import annotations

import math
from itertools import pairwise
from types import ModuleType
from typing import Any

import autograd.numpy as anp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import autodiff as ad
from .. import ops
from ..errors import ArgumentError
from ._recurrent import Params, State, decay, time_step_bias, uniform

__all__ = ["forward", "init", "prepare", "state", "step"]

Limit = tuple[float, float]
NO_LIMIT: Limit = (0.0, math.inf)


def init(
    rng: np.random.Generator,
    width: int,
    *,
    expand: float = 2,
    head_dim: int = 64,
    state_size: int = 128,
    n_groups: int = 1,
    conv_kernel: int = 4,
    use_bias: bool = False,
    use_conv_bias: bool = True,
    use_norm: bool = True,
    time_step: tuple[float, float] = (0.001, 0.1),
    time_step_floor: float = 1e-4,
    A_range: tuple[float, float] = (1.0, 16.0),
    out_scale: float = 1.0,
) -> Params:
    """Return the parameters of a layer as the authors begin with them, ``float32``.

    Parameters
    ----------
    rng : Generator
        Source of every draw.
    width : int
        ``D`` of the residual stream.
    expand : float
        ``E = expand * D``.
    head_dim, state_size, n_groups, conv_kernel : int
        ``P``, which divides ``E``; ``S``; ``G``, which divides ``H = E / P``; ``K``.
    use_bias, use_conv_bias : bool
        Whether the projections in and out, and the convolution, have a bias.
    use_norm : bool
        Whether there is a gated norm; the gate is part of the scan otherwise.
    time_step : tuple of float
        Time steps begin between these two, uniformly in their logarithm.
    time_step_floor : float
        And not below this.
    A_range : tuple of float
        ``-A`` begins uniformly between these two.
    out_scale : float
        Factor of ``out_proj``: one over the root of the number of layers, in a deep model.

    Raises
    ------
    ArgumentError
        Where heads or groups do not divide.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.nn import mamba2
    >>> params = mamba2.init(np.random.default_rng(0), 8, head_dim=4, state_size=6)
    >>> params["in_proj"]["weight"].shape, params["A_log"].shape
    ((8, 48), (4,))
    """
    inner = int(expand * width)
    if head_dim < 1 or inner % head_dim:
        raise ArgumentError(f"head_dim={head_dim} does not divide expand * width = {inner}")
    heads = inner // head_dim
    if n_groups < 1 or heads % n_groups:
        raise ArgumentError(f"n_groups={n_groups} does not divide the {heads} heads")
    channels = inner + 2 * n_groups * state_size
    A = A_range[0] + (A_range[1] - A_range[0]) * rng.random(heads)
    params: Params = {
        "in_proj": {"weight": uniform(rng, (width, inner + channels + heads), width**-0.5)},
        "conv1d": {"weight": uniform(rng, (channels, conv_kernel), conv_kernel**-0.5)},
        "dt_bias": time_step_bias(rng, heads, time_step, time_step_floor),
        "A_log": np.log(A).astype(np.float32),
        "D": np.ones(heads, np.float32),
        "out_proj": {"weight": uniform(rng, (inner, width), out_scale * inner**-0.5)},
    }
    if use_norm:
        params["norm"] = {"weight": np.ones(inner, np.float32)}
    if use_bias:
        params["in_proj"]["bias"] = np.zeros(inner + channels + heads, np.float32)
        params["out_proj"]["bias"] = np.zeros(width, np.float32)
    if use_conv_bias:
        params["conv1d"]["bias"] = np.zeros(channels, np.float32)
    return params


def forward(
    params: Params,
    x: Any,
    *,
    n_groups: int = 1,
    eps: float = 1e-5,
    norm_before_gate: bool = False,
    dt_limit: Limit = NO_LIMIT,
    residual: Any = None,
    seq_idx: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
) -> Any:
    """Return the layer's output for whole sequences, differentiable by ``params`` and ``x``.

    Parameters
    ----------
    params : dict
        As :func:`init` makes them.
    x : array (B, L, D)
        Normalised input.
    n_groups : int
        ``G`` that the parameters were made with.
    eps : float
        Of the gated norm.
    norm_before_gate : bool
        ``norm(y) silu(z)`` rather than ``norm(y silu(z))``.
    dt_limit : tuple of float
        Time steps are kept between these two.
    residual : array (B, L, D), optional
        Added to the output.
    seq_idx, cu_seqlens : array of integers, optional
        Several sequences in a row (:func:`sensorium.ops.ssd`): none sees another.

    Returns
    -------
    array (B, L, D)

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.nn import mamba2
    >>> rng = np.random.default_rng(0)
    >>> params = mamba2.init(rng, 8, head_dim=4, state_size=6)
    >>> mamba2.forward(params, rng.standard_normal((2, 5, 8), np.float32)).shape
    (2, 5, 8)
    """
    return _layer(
        ad,
        params,
        x,
        None,
        residual,
        (n_groups, eps, norm_before_gate, dt_limit),
        seq_idx=seq_idx,
        cu_seqlens=cu_seqlens,
    )


def state(params: Params, batch: int, *, n_groups: int = 1) -> State:
    """Return the state before the first token: zeros, ``conv (B, E + 2 G S, K - 1)`` and ``ssm``.

    ``ssm`` is ``(B, H, P, S)``. ``n_groups`` is the ``G`` that the parameters were made with.
    """
    inner, heads, channels, size = _sizes(params, n_groups)
    kernel, dtype = params["conv1d"]["weight"].shape[1], params["A_log"].dtype
    return {
        "conv": np.zeros((batch, channels, kernel - 1), dtype),
        "ssm": np.zeros((batch, heads, inner // heads, size), dtype),
    }


def prepare(params: Params) -> Params:
    """Return the parameters with ``A = -exp(A_log)`` beside them, so that no step computes it again."""
    return {**params, "A": -np.exp(params["A_log"])}


def step(
    params: Params,
    x: NDArray[Any],
    state: State,
    *,
    n_groups: int = 1,
    eps: float = 1e-5,
    norm_before_gate: bool = False,
    dt_limit: Limit = NO_LIMIT,
    residual: NDArray[Any] | None = None,
) -> Any:
    """Return the layer's output for the next tokens, and move ``state`` past them in place.

    Parameters
    ----------
    params : dict
        As :func:`init` makes them, or :func:`prepare`.
    x : array (B, n, D)
        Normalised input of ``n`` more tokens of each row.
    state : dict
        From :func:`state`, changed.
    n_groups, eps, norm_before_gate, dt_limit
        As in :func:`forward`.
    residual : array (B, n, D), optional
        Added to the output.

    Returns
    -------
    array (B, n, D)
        What :func:`forward` gives at these tokens, to rounding.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.nn import mamba2
    >>> rng = np.random.default_rng(0)
    >>> params = mamba2.init(rng, 8, head_dim=4, state_size=6)
    >>> x, state = rng.standard_normal((1, 5, 8), np.float32), mamba2.state(params, 1)
    >>> pieces = [mamba2.step(params, x[:, :2], state), mamba2.step(params, x[:, 2:], state)]
    >>> bool(np.allclose(np.concatenate(pieces, axis=1), mamba2.forward(params, x), atol=1e-5))
    True
    """
    how = (n_groups, eps, norm_before_gate, dt_limit)
    if x.shape[1] != 1:
        return _layer(ops, params, x, state, residual, how)
    B = x.shape[0]
    in_proj, conv, out_proj = params["in_proj"], params["conv1d"], params["out_proj"]
    inner, heads, channels, size = _sizes(params, n_groups)
    zxbcdt = ops.linear(x[:, 0], in_proj["weight"], in_proj.get("bias"))  # (B, 2 E + 2 G S + H)
    z = zxbcdt[:, :inner]
    xbc = ops.causal_conv1d_update(
        zxbcdt[:, inner : inner + channels],
        state["conv"],
        conv["weight"],
        conv.get("bias"),
        activation="silu",
    )
    normed = "norm" in params
    y = ops.ssd_state_update(
        state["ssm"],
        xbc[:, :inner].reshape(B, heads, inner // heads),
        zxbcdt[:, inner + channels :],
        decay(np, params),
        xbc[:, inner : inner + n_groups * size].reshape(B, n_groups, size),
        xbc[:, inner + n_groups * size :].reshape(B, n_groups, size),
        _skip(params),
        None if normed else z.reshape(B, heads, inner // heads),
        params["dt_bias"],
        dt_softplus=True,
        dt_limit=dt_limit,
    ).reshape(B, inner)
    if normed:
        y = _gated_norm(ops, params["norm"]["weight"], y, z, n_groups, eps, norm_before_gate)
    before = None if residual is None else residual[:, 0]
    return ops.linear(y, out_proj["weight"], out_proj.get("bias"), residual=before)[:, None]


def _sizes(params: Params, n_groups: int) -> tuple[int, int, int, int]:
    """Return ``E``, ``H``, ``E + 2 G S`` and ``S``."""
    inner, heads = params["out_proj"]["weight"].shape[0], params["A_log"].shape[0]
    channels = params["conv1d"]["weight"].shape[0]
    return inner, heads, channels, (channels - inner) // (2 * n_groups)


def _skip(params: Params) -> Any:
    """Return ``D (H,)``, or ``(H, P)`` where the checkpoint has one for every channel."""
    D, heads = params["D"], params["A_log"].shape[0]
    return D if D.shape[0] == heads else D.reshape(heads, -1)


def _gated_norm(
    fn: ModuleType, weight: Any, y: Any, z: Any, n_groups: int, eps: float, norm_before_gate: bool
) -> Any:
    """Return ``norm(y silu(z))``, or ``norm(y) silu(z)``, each group of channels normalised by itself."""
    if not norm_before_gate:
        return fn.gated_rms_norm(y, z, weight, groups=n_groups, eps=eps)
    grouped = y.reshape(*y.shape[:-1], n_groups, y.shape[-1] // n_groups)
    y = fn.rms_norm(grouped, np.ones(grouped.shape[-1], y.dtype), eps=eps).reshape(y.shape)
    return y * weight * fn.silu(z)


def _layer(
    fn: ModuleType,
    params: Params,
    x: Any,
    state: State | None,
    residual: Any,
    how: tuple[int, float, bool, Limit],
    *,
    seq_idx: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
) -> Any:
    """Return the output for ``x (B, L, D)``, from and to ``state``, by ``ops`` or by ``autodiff``."""
    n_groups, eps, norm_before_gate, dt_limit = how
    B, L, _ = x.shape
    inner, heads, channels, size = _sizes(params, n_groups)
    packing = {"seq_idx": seq_idx, "cu_seqlens": cu_seqlens}

    # Weights are cut rather than results: a cut of a result is a copy as long as the sequence.
    cuts = (0, inner, 2 * inner, inner + channels, inner + channels + heads)
    weight, bias = params["in_proj"]["weight"], params["in_proj"].get("bias")
    z, u, b_c, dt = (
        fn.linear(x, weight[:, low:high], None if bias is None else bias[low:high])
        for low, high in pairwise(cuts)
    )
    weight, bias = params["conv1d"]["weight"], params["conv1d"].get("bias")
    convolved = []
    for part, channel in ((u, slice(0, inner)), (b_c, slice(inner, channels))):
        out = fn.causal_conv1d(
            part,
            weight[channel],
            None if bias is None else bias[channel],
            activation="silu",
            initial_state=None if state is None else state["conv"][:, channel],
            return_last_state=state is not None,
            channels_last=True,
            **packing,
        )
        if state is not None:
            out, state["conv"][:, channel] = out
        convolved.append(out)
    u, b_c = convolved
    normed = "norm" in params
    y = fn.ssd(
        u.reshape(B, L, heads, inner // heads),
        dt,
        decay(anp, params),
        b_c[..., : n_groups * size].reshape(B, L, n_groups, size),
        b_c[..., n_groups * size :].reshape(B, L, n_groups, size),
        D=_skip(params),
        z=None if normed else z.reshape(B, L, heads, inner // heads),
        dt_bias=params["dt_bias"],
        dt_softplus=True,
        initial_states=None if state is None else state["ssm"],
        return_final_states=state is not None,
        dt_limit=dt_limit,
        **packing,
    )
    if state is not None:
        y, state["ssm"][...] = y
    y = y.reshape(B, L, inner)
    if normed:
        y = _gated_norm(fn, params["norm"]["weight"], y, z, n_groups, eps, norm_before_gate)
    return fn.linear(y, params["out_proj"]["weight"], params["out_proj"].get("bias"), residual=residual)
