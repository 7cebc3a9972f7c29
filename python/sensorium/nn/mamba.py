"""The Mamba layer: a gated selective scan behind a short causal convolution.

``x, z = in_proj(input)``; ``u = silu(conv(x))``; ``dt, B, C = x_proj(u)``; ``delta = softplus(dt_proj(dt))``;
``h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t``, ``y_t = (C_t h_t + D u_t) silu(z_t)``; ``out_proj(y)``.

Parameters have the names of the authors' checkpoints: ``in_proj (D, 2 E)``, ``conv1d (E, K)``,
``x_proj (E, R + 2 S)``, ``dt_proj (R, E)``, ``A_log (E, S)``, ``D (E,)``, ``out_proj (E, D)``, with ``D`` the
width of the model, ``E`` that of the scan, ``S`` its state, ``R`` the rank of the time step and ``K`` the
length of the convolution. Columns of a weight are outputs.

References
----------
Gu and Dao (2023), Mamba: Linear-Time Sequence Modeling with Selective State Spaces (arXiv:2312.00752).
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import autograd.numpy as anp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import autodiff as ad
from .. import ops
from ._recurrent import Params, State, decay, time_step_bias, uniform

__all__ = ["forward", "init", "prepare", "state", "step"]


def init(
    rng: np.random.Generator,
    width: int,
    *,
    expand: float = 2,
    state_size: int = 16,
    conv_kernel: int = 4,
    time_step_rank: int | None = None,
    use_bias: bool = False,
    use_conv_bias: bool = True,
    time_step: tuple[float, float] = (0.001, 0.1),
    time_step_floor: float = 1e-4,
    out_scale: float = 1.0,
) -> Params:
    """Return the parameters of a layer as the paper begins with them, ``float32``.

    Parameters
    ----------
    rng : Generator
        Source of every draw.
    width : int
        ``D`` of the residual stream.
    expand : float
        ``E = expand * D``.
    state_size, conv_kernel : int
        ``S`` and ``K``.
    time_step_rank : int, optional
        ``R``; ``D / 16``, rounded up, where not given.
    use_bias, use_conv_bias : bool
        Whether the projections in and out, and the convolution, have a bias.
    time_step : tuple of float
        Time steps begin between these two, uniformly in their logarithm.
    time_step_floor : float
        And not below this.
    out_scale : float
        Factor of ``out_proj``: one over the root of the number of layers, in a deep model.

    Returns
    -------
    dict
        ``A = -exp(A_log)`` begins as ``-1, -2, ..., -S`` in every channel.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.nn import mamba
    >>> params = mamba.init(np.random.default_rng(0), 8)
    >>> params["in_proj"]["weight"].shape, params["A_log"].shape
    ((8, 32), (16, 16))
    """
    inner = int(expand * width)
    rank = math.ceil(width / 16) if time_step_rank is None else time_step_rank
    params: Params = {
        "in_proj": {"weight": uniform(rng, (width, 2 * inner), width**-0.5)},
        "conv1d": {"weight": uniform(rng, (inner, conv_kernel), conv_kernel**-0.5)},
        "x_proj": {"weight": uniform(rng, (inner, rank + 2 * state_size), inner**-0.5)},
        "dt_proj": {
            "weight": uniform(rng, (rank, inner), rank**-0.5),
            "bias": time_step_bias(rng, inner, time_step, time_step_floor),
        },
        "A_log": np.tile(np.log(np.arange(1, state_size + 1, dtype=np.float32)), (inner, 1)),
        "D": np.ones(inner, np.float32),
        "out_proj": {"weight": uniform(rng, (inner, width), out_scale * inner**-0.5)},
    }
    if use_bias:
        params["in_proj"]["bias"] = np.zeros(2 * inner, np.float32)
        params["out_proj"]["bias"] = np.zeros(width, np.float32)
    if use_conv_bias:
        params["conv1d"]["bias"] = np.zeros(inner, np.float32)
    return params


def forward(
    params: Params,
    x: Any,
    *,
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
    residual : array (B, L, D), optional
        Added to the output.
    seq_idx, cu_seqlens : array of integers, optional
        Several sequences in a row (:func:`sensorium.ops.selective_scan`): none sees another.

    Returns
    -------
    array (B, L, D)

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.nn import mamba
    >>> rng = np.random.default_rng(0)
    >>> mamba.forward(mamba.init(rng, 8), rng.standard_normal((2, 5, 8), np.float32)).shape
    (2, 5, 8)
    """
    return _layer(ad, params, x, None, residual, seq_idx=seq_idx, cu_seqlens=cu_seqlens)


def state(params: Params, batch: int) -> State:
    """Return the state before the first token: zeros, ``conv (B, E, K - 1)`` and ``ssm (B, E, S)``."""
    A_log = params["A_log"]
    kernel = params["conv1d"]["weight"].shape[1]
    inner, size = A_log.shape
    return {
        "conv": np.zeros((batch, inner, kernel - 1), A_log.dtype),
        "ssm": np.zeros((batch, inner, size), A_log.dtype),
    }


def prepare(params: Params) -> Params:
    """Return the parameters with ``A = -exp(A_log)`` beside them, so that no step computes it again."""
    return {**params, "A": -np.exp(params["A_log"])}


def step(params: Params, x: NDArray[Any], state: State, *, residual: NDArray[Any] | None = None) -> Any:
    """Return the layer's output for the next tokens, and move ``state`` past them in place.

    Parameters
    ----------
    params : dict
        As :func:`init` makes them, or :func:`prepare`.
    x : array (B, n, D)
        Normalised input of ``n`` more tokens of each row.
    state : dict
        From :func:`state`, changed.
    residual : array (B, n, D), optional
        Added to the output.

    Returns
    -------
    array (B, n, D)
        What :func:`forward` gives at these tokens, to rounding.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.nn import mamba
    >>> rng = np.random.default_rng(0)
    >>> params, x = mamba.init(rng, 8), rng.standard_normal((1, 5, 8), np.float32)
    >>> state = mamba.state(params, 1)
    >>> pieces = [mamba.step(params, x[:, :2], state), mamba.step(params, x[:, 2:], state)]
    >>> bool(np.allclose(np.concatenate(pieces, axis=1), mamba.forward(params, x), atol=1e-5))
    True
    """
    if x.shape[1] != 1:
        return _layer(ops, params, x, state, residual)
    in_proj, conv, dt_proj, out_proj = (params[k] for k in ("in_proj", "conv1d", "dt_proj", "out_proj"))
    inner, size = params["A_log"].shape
    rank = dt_proj["weight"].shape[0]
    uz = ops.linear(x[:, 0], in_proj["weight"], in_proj.get("bias"))  # (B, 2 E)
    u = ops.causal_conv1d_update(
        uz[:, :inner], state["conv"], conv["weight"], conv.get("bias"), activation="silu"
    )
    dt_b_c = ops.linear(u, params["x_proj"]["weight"])  # (B, R + 2 S)
    y = ops.selective_state_update(
        state["ssm"],
        u,
        ops.linear(dt_b_c[:, :rank], dt_proj["weight"]),
        decay(np, params),
        dt_b_c[:, rank : rank + size],
        dt_b_c[:, rank + size :],
        params["D"],
        z=uz[:, inner:],
        dt_bias=dt_proj["bias"],
        dt_softplus=True,
    )
    before = None if residual is None else residual[:, 0]
    return ops.linear(y, out_proj["weight"], out_proj.get("bias"), residual=before)[:, None]


def _layer(
    fn: ModuleType,
    params: Params,
    x: Any,
    state: State | None,
    residual: Any,
    *,
    seq_idx: ArrayLike | None = None,
    cu_seqlens: ArrayLike | None = None,
) -> Any:
    """Return the output for ``x (B, L, D)``, from and to ``state``, by ``ops`` or by ``autodiff``."""
    inner, size = params["A_log"].shape
    rank = params["dt_proj"]["weight"].shape[0]
    packing = {"seq_idx": seq_idx, "cu_seqlens": cu_seqlens}
    conv_state, ssm_state = (None, None) if state is None else (state["conv"], state["ssm"])

    # Weights are cut rather than results: a cut of a result is a copy as long as the sequence.
    weight, bias = params["in_proj"]["weight"], params["in_proj"].get("bias")
    u = fn.linear(x, weight[:, :inner], None if bias is None else bias[:inner])  # (B, L, E)
    z = fn.linear(x, weight[:, inner:], None if bias is None else bias[inner:])  # (B, L, E)
    u = fn.causal_conv1d(
        u,
        params["conv1d"]["weight"],
        params["conv1d"].get("bias"),
        activation="silu",
        initial_state=conv_state,
        return_last_state=state is not None,
        channels_last=True,
        **packing,
    )
    if state is not None:
        u, state["conv"][...] = u
    dt_b_c = fn.linear(u, params["x_proj"]["weight"])  # (B, L, R + 2 S)
    delta = fn.linear(dt_b_c[..., :rank], params["dt_proj"]["weight"])  # (B, L, E)
    y = fn.selective_scan(
        u,
        delta,
        decay(anp, params),
        dt_b_c[..., rank : rank + size],
        dt_b_c[..., rank + size :],
        params["D"],
        z,
        params["dt_proj"]["bias"],
        delta_softplus=True,
        initial_state=ssm_state,
        return_last_state=state is not None,
        channels_last=True,
        **packing,
    )
    if state is not None:
        y, state["ssm"][...] = y
    return fn.linear(y, params["out_proj"]["weight"], params["out_proj"].get("bias"), residual=residual)
