"""One transformer over one token sequence: text, images and sound, any to any.

Text is a causal segment trained from left to right, ``L_text = -sum_t log p(x_t | x_<t, context)``; images
and sound are full segments trained by masked discrete diffusion (Chang et al., arXiv:2202.04200; Xie et al.,
arXiv:2408.12528); ``L = sum_m lambda_m L_m``. Parameters are a nested dict, the rest are functions of it.

The file reads top to bottom: configuration, parameters, forward pass, loss. Decoding is in
:mod:`.decode`, packing in :mod:`.sequence`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import autodiff as ad
from ... import nn
from ...errors import ArgumentError, DTypeError
from .sequence import Batch, Row, Vocabulary

__all__ = ["Config", "init", "logits", "loss", "shapes"]

Params = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """Sizes of the transformer.

    Parameters
    ----------
    vocabulary : Vocabulary
        The modalities.
    width : int
        Width of the residual stream; a multiple of ``heads``.
    depth : int
        Number of blocks.
    heads : int
        Attention heads.
    hidden : int
        Width of the MLP.
    """

    vocabulary: Vocabulary
    width: int = 128
    depth: int = 4
    heads: int = 4
    hidden: int = 512

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "hidden"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int):
                raise DTypeError(f"{name} must be an integer, not {getattr(self, name)!r}")
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.width % self.heads:
            raise ArgumentError(f"width={self.width} must be a multiple of heads={self.heads}")


def init(
    config: Config, rng: np.random.Generator, features: Mapping[str, NDArray[np.floating]] | None = None
) -> Params:
    """Return new parameters, ``float32``.

    Parameters
    ----------
    config : Config
        Sizes.
    rng : numpy.random.Generator
        Source of the draws.
    features : mapping of str to ndarray, shape (codes, F), optional
        A vector for each code of a modality, its codebook entry. Their random projection is where the token
        embeddings begin, so that codes that look or sound alike begin alike.

    Returns
    -------
    dict
        ``token (V, D)``, ``position (P, D)``, ``modality (M, D)``, ``blocks``, ``norm``, ``heads``.
    """
    v, D = config.vocabulary, config.width
    token = rng.standard_normal((v.size, D), np.float32)
    for name, vectors in (features or {}).items():
        codes, start = v.by_name[name].codes, v.offset[name]
        x = np.asarray(vectors, np.float64) - np.mean(vectors, axis=0)
        x /= np.sqrt(np.mean((x * x).sum(axis=1))) + 1e-12
        token[start : start + codes] = x @ rng.standard_normal((x.shape[1], D))
    return {
        "token": token,
        "position": rng.standard_normal((v.positions, D), np.float32) * np.float32(0.5),
        "modality": np.zeros((len(v.modalities), D), np.float32),
        "blocks": {str(i): nn.init_block(rng, D, config.hidden) for i in range(config.depth)},
        "norm": nn.init_norm(D),
        "heads": {m.name: nn.init_linear(rng, D, m.codes, bias=True, scale=0.0) for m in v.modalities},
    }


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by its path, without making one."""
    v, D, F = config.vocabulary, config.width, config.hidden
    block = {
        "norm1/weight": (D,),
        "qkv/weight": (D, 3 * D),
        "out/weight": (D, D),
        "norm2/weight": (D,),
        "up/weight": (D, F),
        "up/bias": (F,),
        "down/weight": (F, D),
    }
    out: dict[str, tuple[int, ...]] = {
        "token": (v.size, D),
        "position": (v.positions, D),
        "modality": (len(v.modalities), D),
        "norm/weight": (D,),
    }
    out |= {f"blocks/{i}/{name}": shape for i in range(config.depth) for name, shape in block.items()}
    for m in v.modalities:
        out |= {f"heads/{m.name}/weight": (D, m.codes), f"heads/{m.name}/bias": (m.codes,)}
    return out


def embed(params: Params, row: Row, tokens: NDArray[np.int64], columns: slice = slice(None)) -> Any:
    """Return what the first block reads, ``(B, n, D)``, for joint tokens ``(B, n)`` at columns of a row."""
    place = ad.embedding(params["position"], row.position[columns]) + ad.embedding(
        params["modality"], row.modality[columns]
    )
    return ad.embedding(params["token"], tokens) + place


def hidden(params: Params, config: Config, row: Row, tokens: NDArray[np.int64]) -> Any:
    """Return the last hidden state ``(B, N, D)`` of rows of joint tokens ``(B, N)``."""

    def attend(_: int, qkv: Any) -> Any:
        return ad.self_attention(qkv, row.layout)

    return nn.transformer(params, embed(params, row, tokens), config.heads, attend)


def head(params: Params, name: str, h: Any) -> Any:
    """Return the logits ``(..., codes)`` of a modality for hidden states ``(..., D)``."""
    return ad.linear(h, params["heads"][name]["weight"], params["heads"][name]["bias"])


def logits(
    params: Params,
    config: Config,
    row: Row,
    tokens: NDArray[np.int64],
    columns: Mapping[str, NDArray[np.int64]],
) -> dict[str, Any]:
    """Return each modality's logits ``(B, n, codes)`` at the given columns of the row."""
    h = hidden(params, config, row, tokens)
    B, N, D = h.shape
    flat, first = h.reshape(B * N, D), np.arange(B)[:, None] * N
    return {name: head(params, name, ad.embedding(flat, first + at)) for name, at in columns.items()}


def loss(
    params: Params, config: Config, batch: Batch, weights: Mapping[str, float] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Return the weighted loss and each modality's own, in nats a predicted code.

    Parameters
    ----------
    params : dict
        From :func:`init`.
    config : Config
        Sizes.
    batch : Batch
        Rows, targets and weights.
    weights : mapping of str to float, optional
        ``lambda_m``; 1 where a modality is not named.
    """
    by_modality = {}
    total: Any = 0.0
    for name, y in logits(params, config, batch.row, batch.tokens, batch.row.predicted).items():
        by_modality[name] = ad.cross_entropy(y, batch.targets[name], batch.weights[name])
        total = total + by_modality[name] * np.float32((weights or {}).get(name, 1.0))
    return total, by_modality
