"""Linear maps, norms and the transformer block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .. import autodiff as ad

__all__ = ["attention", "init_block", "init_linear", "init_norm", "transformer", "transformer_block"]

Params = dict[str, Any]


def init_linear(
    rng: np.random.Generator, d_in: int, d_out: int, *, bias: bool = False, scale: float = 1.0
) -> Params:
    """Return a weight ``(d_in, d_out)`` of variance ``scale**2 / d_in``, and a zero bias where asked."""
    weight = rng.standard_normal((d_in, d_out), np.float32) * np.float32(scale / np.sqrt(d_in))
    return {"weight": weight, "bias": np.zeros(d_out, np.float32)} if bias else {"weight": weight}


def init_norm(width: int) -> Params:
    """Return the unit weight of an RMS norm."""
    return {"weight": np.ones(width, np.float32)}


def init_block(rng: np.random.Generator, width: int, hidden: int, mixer: Params | None = None) -> Params:
    """Return the parameters of a pre-norm transformer block: of attention, or of the ``mixer`` that is given.

    The projections that add to the residual stream begin at zero, so that every block begins as the
    identity and the first steps train the embeddings and heads (Zhang et al. 2019; Bachlechner et al. 2021).
    """
    if mixer is None:
        mixing = {
            "qkv": init_linear(rng, width, 3 * width),
            "out": init_linear(rng, width, width, scale=0.0),
        }
    else:
        mixing = {"mixer": mixer}
    return {
        "norm1": init_norm(width),
        **mixing,
        "norm2": init_norm(width),
        "up": init_linear(rng, width, hidden, bias=True),
        "down": init_linear(rng, hidden, width, scale=0.0),
    }


def attention(p: Params, h: Any, attend: Callable[[Any], Any], heads: int, *, residual: Any = None) -> Any:
    """Return ``residual + out(attend(qkv(h)))`` of ``h (B, N, D)``.

    ``attend`` takes ``qkv (B, N, 3, heads, D / heads)`` to ``(B, N, D)``.
    """
    B, N, D = h.shape
    qkv = ad.linear(h, p["qkv"]["weight"])  # (B, N, 3 D)
    a = attend(qkv.reshape(B, N, 3, heads, D // heads))  # (B, N, D)
    return ad.linear(a, p["out"]["weight"], residual=residual)


def transformer_block(p: Params, x: Any, mix: Callable[[Params, Any, Any], Any]) -> Any:
    """Return ``x + mixer(norm(x))``, then that plus ``mlp(norm(.))``; ``x`` is ``(B, N, D)``.

    ``mix(p, h, x)`` returns ``x`` plus what the tokens ``h (B, N, D)`` tell each other: :func:`attention`, or
    a scan.
    """
    x = mix(p, ad.rms_norm(x, p["norm1"]["weight"]), x)
    h = ad.rms_norm(x, p["norm2"]["weight"])
    h = ad.linear(h, p["up"]["weight"], p["up"]["bias"], activation="gelu")  # (B, N, hidden)
    return ad.linear(h, p["down"]["weight"], residual=x)


def transformer(p: Params, x: Any, mix: Callable[[int, Params, Any, Any], Any]) -> Any:
    """Return ``x (B, N, D)`` after every block in order and the last norm.

    ``mix(i, p, h, x)`` is what mixes the tokens of block ``i``: over whole rows, or over what was kept.
    """
    for i in range(len(p["blocks"])):
        x = transformer_block(p["blocks"][str(i)], x, partial(mix, i))
    return ad.rms_norm(x, p["norm"]["weight"])
