"""Test-time-training layers: the state is a small model that learns while the sequence is read.

``W_t = W_{t-1} - eta_t grad l(W_{t-1}; k_t, v_t)``, ``z_t = f(q_t; W_t)``: ``f`` is a matrix a head
(TTT-Linear) or an MLP of two layers (TTT-MLP), ``l`` the squared error of ``k + norm(f(k))`` against ``v``.
Around it, as in the paper: queries and keys share a projection and are told apart by a short causal
convolution each, the inner rate of a token is learnt, what comes out is normalised and gated. There is no
rotary embedding.

References
----------
Sun et al. (2024), Learning to (Learn at Test Time): RNNs with Expressive Hidden States, arXiv:2407.04620.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import autograd.numpy as anp
import numpy as np
from numpy.typing import NDArray

from .. import autodiff as ad
from .._validate import as_indices, check_integer
from ..errors import ArgumentError, ShapeError
from ._layers import init_linear

__all__ = ["Kind", "State", "forward", "init", "shapes", "step"]

Params = dict[str, Any]
Kind = Literal["linear", "mlp"]
KERNEL = 4  # Tokens that the convolutions see.
HIDDEN = 4  # Width of the inner MLP, in widths of a head.
_RATE = {"linear": 1.0, "mlp": 0.1}  # Largest inner rate, times the width of a head.


class State(NamedTuple):
    """What a layer has read: the last inputs of the convolutions, and the fast weights."""

    conv_q: Any
    conv_k: Any
    fast: Any


def _sizes(width: int, heads: int, kind: str) -> tuple[int, int]:
    width, heads = check_integer("width", width, 1), check_integer("heads", heads, 1)
    if width % heads:
        raise ArgumentError(f"width={width} must be a multiple of heads={heads}")
    if kind not in _RATE:
        raise ArgumentError(f'kind must be "linear" or "mlp", not {kind!r}')
    return width // heads, HIDDEN * (width // heads)


def init(
    rng: np.random.Generator, width: int, *, heads: int, kind: Kind = "linear", mini_batch_size: int = 16
) -> Params:
    """Return new parameters, ``float32``.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the draws.
    width : int
        ``D``, a multiple of ``heads``.
    heads : int
        ``H``; each has an inner model of its own, over ``D / H`` numbers.
    kind : {"linear", "mlp"}
        Inner model.
    mini_batch_size : int
        Tokens that share the point at which the inner gradients are taken.

    Returns
    -------
    dict
        ``qk``, ``v``, ``gate``, ``out`` ``(D, D)``; ``conv_q``, ``conv_k`` ``(D, 4)``; ``rate (D, H)``;
        ``token (mini_batch_size,)``; ``norm (H, D / H)``; ``post_norm (D,)``; ``fast``, the inner model
        before the first token. The projection that adds to the residual stream begins at zero.
    """
    d, F = _sizes(width, heads, kind)
    check_integer("mini_batch_size", mini_batch_size, 1)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, np.float32) * np.float32(0.02)

    def conv() -> Params:
        bound = np.float32(KERNEL**-0.5)
        weight = rng.uniform(-bound, bound, (width, KERNEL)).astype(np.float32)
        return {"weight": weight, "bias": np.zeros(width, np.float32)}

    fast = {"W1": normal(heads, d, F), "b1": np.zeros((heads, F), np.float32), "W2": normal(heads, F, d),
            "b2": np.zeros((heads, d), np.float32)} if kind == "mlp" else {
            "W": normal(heads, d, d), "b": np.zeros((heads, d), np.float32)}  # fmt: skip
    return {
        "qk": init_linear(rng, width, width),
        "v": init_linear(rng, width, width),
        "gate": init_linear(rng, width, width),
        "conv_q": conv(),
        "conv_k": conv(),
        "rate": init_linear(rng, width, heads, bias=True),
        "token": np.zeros(mini_batch_size, np.float32),
        "norm": {"weight": np.ones((heads, d), np.float32), "bias": np.zeros((heads, d), np.float32)},
        "post_norm": {"weight": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)},
        "fast": fast,
        "out": init_linear(rng, width, width, scale=0.0),
    }


def shapes(
    width: int, *, heads: int, kind: Kind = "linear", mini_batch_size: int = 16
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by its path, without making one."""
    d, F = _sizes(width, heads, kind)
    D, H = width, heads
    out: dict[str, tuple[int, ...]] = {f"{name}/weight": (D, D) for name in ("qk", "v", "gate", "out")}
    for name in ("conv_q", "conv_k"):
        out |= {f"{name}/weight": (D, KERNEL), f"{name}/bias": (D,)}
    out |= {"rate/weight": (D, H), "rate/bias": (H,), "token": (mini_batch_size,)}
    out |= {"norm/weight": (H, d), "norm/bias": (H, d), "post_norm/weight": (D,), "post_norm/bias": (D,)}
    if kind == "mlp":
        return out | {"fast/W1": (H, d, F), "fast/b1": (H, F), "fast/W2": (H, F, d), "fast/b2": (H, d)}
    return out | {"fast/W": (H, d, d), "fast/b": (H, d)}


def forward(p: Params, x: Any, *, heads: int, seq_idx: Any = None) -> Any:
    """Return the layer's output ``(B, L, D)``; differentiable.

    Parameters
    ----------
    p : dict
        From :func:`init`.
    x : array (B, L, D)
        Normalised inputs.
    heads : int
        As for :func:`init`.
    seq_idx : int array (B, L), optional
        Rows that hold several sequences: the layer begins anew where it changes.

    Returns
    -------
    array (B, L, D)

    Raises
    ------
    ShapeError, DTypeError
        Where an array does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.nn import ttt
    >>> params = ttt.init(np.random.default_rng(0), 8, heads=2, kind="mlp")
    >>> ttt.forward(params, np.ones((1, 20, 8), np.float32), heads=2).shape
    (1, 20, 8)
    """
    if seq_idx is None:
        return _read(p, x, heads, None)[0]
    B, L, D = x.shape
    ids = as_indices("seq_idx", seq_idx)
    if ids.shape != (B, L):
        raise ShapeError(f"seq_idx has shape {ids.shape}, expected {(B, L)}")
    index, back = _runs(ids)
    cut = ad.embedding(x.reshape(B * L, D), index)  # (runs, longest, D)
    y = _read(p, cut, heads, None)[0]
    return ad.embedding(y.reshape(index.size, D), back)


def step(p: Params, x: Any, state: State | None = None, *, heads: int) -> tuple[Any, State]:
    """Return the output of the next ``n`` tokens and the state after them.

    Parameters
    ----------
    p, heads
        As for :func:`forward`.
    x : array (B, n, D)
        Inputs that come next. Cut anywhere: the outputs are those of the whole.
    state : State, optional
        What came before, from an earlier call; it stays as it is. None at the beginning.

    Returns
    -------
    y : array (B, n, D)
    state : State

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.nn import ttt
    >>> params = ttt.init(np.random.default_rng(0), 8, heads=2)
    >>> x = np.random.default_rng(1).standard_normal((1, 20, 8), np.float32)
    >>> first, state = ttt.step(params, x[:, :7], heads=2)
    >>> second, state = ttt.step(params, x[:, 7:], state, heads=2)
    >>> both = np.concatenate([first, second], axis=1)
    >>> bool(np.allclose(both, ttt.forward(params, x, heads=2), atol=1e-5))
    True
    """
    B, _, D = x.shape
    if state is None:
        zeros = np.zeros((B, D, KERNEL - 1), x.dtype)
        state = State(zeros, zeros, None)
    return _read(p, x, heads, state)


def _read(p: Params, x: Any, heads: int, state: State | None) -> tuple[Any, Any]:
    B, L, D = x.shape
    if p["qk"]["weight"].shape[0] != D:
        raise ShapeError(f"x has D={D} but the parameters have D={p['qk']['weight'].shape[0]}")
    d = D // heads
    qk = ad.linear(x, p["qk"]["weight"])  # (B, L, D)
    q, conv_q = _convolve(qk, p["conv_q"], None if state is None else state.conv_q)
    k, conv_k = _convolve(qk, p["conv_k"], None if state is None else state.conv_k)
    v = ad.linear(x, p["v"]["weight"])
    q, k, v = (a.reshape(B, L, heads, d).transpose((0, 2, 1, 3)) for a in (q, k, v))  # (B, H, L, d)
    mlp = "W1" in p["fast"]
    rate = ad.linear(x, p["rate"]["weight"], p["rate"]["bias"])  # (B, L, H)
    eta = _sigmoid(rate).transpose((0, 2, 1)) * (_RATE["mlp" if mlp else "linear"] / d)
    b = p["token"].shape[0]
    scale = anp.maximum(1.0 / np.arange(1, b + 1, dtype=x.dtype) + p["token"], 0.0)
    norm = p["norm"]["weight"], p["norm"]["bias"]
    how: dict[str, Any] = {"token_scale": scale, "mini_batch_size": b}
    if state is not None:
        how |= {"initial_state": state.fast, "return_last_state": True}
    inner: Any = ad.ttt_mlp if mlp else ad.ttt_linear
    fast = [p["fast"][n] for n in (("W1", "b1", "W2", "b2") if mlp else ("W", "b"))]
    z = inner(q, k, v, eta, *fast, *norm, **how)
    z, last = z if state is not None else (z, None)
    z = z.transpose((0, 2, 1, 3)).reshape(B, L, D)
    z = ad.layer_norm(z, p["post_norm"]["weight"], p["post_norm"]["bias"])
    z = ad.linear(x, p["gate"]["weight"], activation="gelu") * z
    y = ad.linear(z, p["out"]["weight"])
    return y, None if state is None else State(conv_q, conv_k, last)


def _convolve(x: Any, p: Params, state: Any) -> tuple[Any, Any]:
    if state is None:
        return ad.causal_conv1d(x, p["weight"], p["bias"], channels_last=True), None
    y, last = ad.causal_conv1d(
        x, p["weight"], p["bias"], initial_state=state, return_last_state=True, channels_last=True
    )
    return y, last


def _sigmoid(x: Any) -> Any:
    return 0.5 * anp.tanh(0.5 * x) + 0.5


def _runs(seq_idx: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the tokens of each sequence stand ``(runs, longest)``, and each among those ``(B, L)``.

    A short sequence is filled up with its last token: what comes after does not change what came before.
    """
    B, L = seq_idx.shape
    new = np.ones((B, L), bool)
    new[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    starts = np.flatnonzero(new)
    lengths: NDArray[np.int64] = np.diff(np.append(starts, B * L))
    longest = int(lengths.max(initial=0))
    place = np.arange(longest)
    index = starts[:, None] + np.minimum(place, lengths[:, None] - 1)
    run = np.repeat(np.arange(len(starts)), lengths)
    back = np.asarray(run * longest + (np.arange(B * L) - starts[run]), np.int64)
    return index, back.reshape(B, L)
