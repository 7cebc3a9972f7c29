"""One transformer over one token sequence: text, images and sound, any to any.

Text is a causal segment trained from left to right, ``L_text = -sum_t log p(x_t | x_<t, context)``; images
and sound are full segments trained by masked discrete diffusion (Chang et al., arXiv:2202.04200; Xie et al.,
arXiv:2408.12528); ``L = sum_m lambda_m L_m``. Parameters are a nested dict, the rest are functions of it.

The file reads top to bottom: configuration, parameters, forward pass, loss. Decoding is in
:mod:`.decode`, packing in :mod:`.sequence`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import autodiff as ad
from ... import nn
from ..._validate import check_integer
from ...errors import ArgumentError, DTypeError
from ...ops import Rotary
from .mixers import MIXERS, SCANS, scan_row
from .sequence import Batch, Row, Vocabulary

__all__ = ["Config", "decays", "init", "logits", "loss", "shapes"]

Params = dict[str, Any]
ROTARY = Rotary()


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
        Heads of attention and of TTT layers, ``width / heads`` wide; Mamba-2 has twice as many of that width.
    hidden : int
        Width of the MLP.
    mixer : str or sequence of str
        What mixes the tokens: ``"attention"``, ``"mamba"``, ``"mamba2"``, ``"ttt_linear"`` or ``"ttt_mlp"``,
        one for all blocks or one for each.
    window : int, optional
        Segments before its own that a token sees in attention; all where None. Scans have no window.
    rotary : bool
        Whether attention also knows how far apart tokens stand, by turning queries and keys (Su et al. 2021,
        arXiv:2104.09864). Without it, two images in one row differ by what they show alone.
    state : int
        Numbers that a Mamba layer keeps of each channel.
    """

    vocabulary: Vocabulary
    width: int = 128
    depth: int = 4
    heads: int = 4
    hidden: int = 512
    mixer: str | Sequence[str] = "attention"
    window: int | None = None
    rotary: bool = False
    state: int = 16

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "hidden", "state"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int):
                raise DTypeError(f"{name} must be an integer, not {getattr(self, name)!r}")
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.width % self.heads:
            raise ArgumentError(f"width={self.width} must be a multiple of heads={self.heads}")
        if not isinstance(self.rotary, bool):
            raise DTypeError(f"rotary must be a bool, not {self.rotary!r}")
        if self.rotary and self.width // self.heads % 2:
            raise ArgumentError(f"rotary needs heads of an even width, not {self.width // self.heads}")
        if self.window is not None:
            check_integer("window", self.window)
        if not isinstance(self.mixer, str):
            if not isinstance(self.mixer, Sequence):
                kind = type(self.mixer).__name__
                raise DTypeError(f"mixer must be a str or a sequence of str, not {kind}")
            object.__setattr__(self, "mixer", tuple(self.mixer))
            if len(self.mixer) != self.depth:
                raise ArgumentError(f"mixer names {len(self.mixer)} mixers, expected depth={self.depth}")
        for name in (self.mixer,) if isinstance(self.mixer, str) else self.mixer:
            if name not in MIXERS:
                raise ArgumentError(f"mixer must be one of {', '.join(MIXERS)}, not {name!r}")

    @property
    def mixers(self) -> tuple[str, ...]:
        """The mixer of each block."""
        return (self.mixer,) * self.depth if isinstance(self.mixer, str) else tuple(self.mixer)


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
        "blocks": {str(i): _init_block(config, name, rng) for i, name in enumerate(config.mixers)},
        "norm": nn.init_norm(D),
        "heads": {m.name: nn.init_linear(rng, D, m.codes, bias=True, scale=0.0) for m in v.modalities},
    }


def _init_block(config: Config, mixer: str, rng: np.random.Generator) -> Params:
    sizes = config.width, config.heads, config.state
    own = None if mixer == "attention" else SCANS[mixer].init(rng, *sizes)
    return nn.init_block(rng, config.width, config.hidden, own)


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by its path, without making one."""
    v, D, F = config.vocabulary, config.width, config.hidden
    mixing: dict[str, dict[str, tuple[int, ...]]] = {
        "attention": {"qkv/weight": (D, 3 * D), "out/weight": (D, D)}
    }
    for name in set(config.mixers) - {"attention"}:
        own = SCANS[name].shapes(D, config.heads, config.state)
        mixing[name] = {f"mixer/{path}": shape for path, shape in own.items()}
    block = {
        "norm1/weight": (D,),
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
    for i, name in enumerate(config.mixers):
        out |= {f"blocks/{i}/{path}": shape for path, shape in (block | mixing[name]).items()}
    for m in v.modalities:
        out |= {f"heads/{m.name}/weight": (D, m.codes), f"heads/{m.name}/bias": (m.codes,)}
    return out


def decays(name: str, array: NDArray[np.floating]) -> bool:
    """Whether weight decay holds for a parameter: for the matrices of blocks and heads.

    Not for what says how fast a scan forgets, nor for its convolutions.
    """
    if array.ndim != 2 or name.startswith(("token", "position", "modality")):
        return False
    return not (
        name.endswith((".A_log", ".dt_bias")) or ".conv" in name or ".norm" in name or ".fast" in name
    )


def embed(params: Params, row: Row, tokens: NDArray[np.int64], columns: slice = slice(None)) -> Any:
    """Return what the first block reads, ``(B, n, D)``, for joint tokens ``(B, n)`` at columns of a row."""
    place = ad.embedding(params["position"], row.position[columns]) + ad.embedding(
        params["modality"], row.modality[columns]
    )
    return ad.embedding(params["token"], tokens) + place


def hidden(params: Params, config: Config, row: Row, tokens: NDArray[np.int64]) -> Any:
    """Return the last hidden state ``(B, N, D)`` of rows of joint tokens ``(B, N)``."""
    layout = row.windowed(config.window)
    turn: dict[str, Any] = {"rotary": ROTARY, "positions": row.place} if config.rotary else {}

    def attend(qkv: Any) -> Any:
        return ad.self_attention(qkv, layout, **turn)

    def mix(i: int, p: Params, h: Any, x: Any) -> Any:
        name = config.mixers[i]
        if name == "attention":
            return nn.attention(p, h, attend, config.heads, residual=x)
        return x + scan_row(SCANS[name], p["mixer"], h, row, config.heads)

    return nn.transformer(params, embed(params, row, tokens), mix)


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
