"""Encoders and decoders: perceptrons by default, one pair for each modality."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from autograd import numpy as anp
from numpy.typing import NDArray

from ... import autodiff as ad
from ... import nn
from .config import Config, ModalityConfig
from .rows import Batch, Mask, Rows, read_rows

__all__ = [
    "Expert",
    "decode",
    "dtype_of",
    "encode",
    "encode_rows",
    "init",
    "log_scale",
    "private_expert",
    "shapes",
]

Params = dict[str, Any]


class Expert(NamedTuple):
    """What a modality tells of the latents of each row, ``N(mu, diag(exp(logvar)))``.

    Attributes
    ----------
    mu, logvar : array (B, D)
        Of the shared latent.
    private_mu, private_logvar : array (B, D_private) or None
        Of the modality's own.
    """

    mu: Any
    logvar: Any
    private_mu: Any = None
    private_logvar: Any = None


def init(config: Config, rng: np.random.Generator) -> Params:
    """Return new parameters, ``float32``: by modality, then ``encoder``, ``mean``, ``logvar``, ``decoder``.

    Deviations begin at 1 and the scales of likelihoods too; every latent begins near the prior.

    Parameters
    ----------
    config : Config
        Sizes.
    rng : numpy.random.Generator
        Source of the draws.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.models.vae import Config, ModalityConfig, init
    >>> config = Config(modalities={"sound": ModalityConfig(shape=6)}, latent_dim=2)
    >>> sorted(init(config, np.random.default_rng(0))["sound"])
    ['decoder', 'encoder', 'log_scale', 'logvar', 'mean']
    """
    return {name: _init_modality(config, m, rng) for name, m in config.modalities.items()}


def _init_modality(config: Config, m: ModalityConfig, rng: np.random.Generator) -> Params:
    D, P = config.latent_dim, config.private_dim
    encoder = (m.size, *m.hidden)
    decoder = (D + P, *m.hidden[::-1], m.size)
    top = encoder[-1]
    p: Params = {
        "mean": nn.init_linear(rng, top, D, bias=True),
        "logvar": nn.init_linear(rng, top, D, bias=True, scale=0.0),
        "decoder": _init_layers(rng, decoder),
    }
    if m.hidden:
        p["encoder"] = _init_layers(rng, encoder)
    if P:
        p["private_mean"] = nn.init_linear(rng, top, P, bias=True)
        p["private_logvar"] = nn.init_linear(rng, top, P, bias=True, scale=0.0)
        p["guess"] = {"mean": np.zeros(P, np.float32), "logvar": np.zeros(P, np.float32)}
    if m.learns_scale:
        p["log_scale"] = np.zeros(1, np.float32)
    return p


def _init_layers(rng: np.random.Generator, widths: tuple[int, ...]) -> Params:
    return {str(i): nn.init_linear(rng, a, b, bias=True) for i, (a, b) in enumerate(pairwise(widths))}


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter by its path, without making one."""
    D, P = config.latent_dim, config.private_dim
    out: dict[str, tuple[int, ...]] = {}
    for name, m in config.modalities.items():
        top = (m.size, *m.hidden)[-1]
        layers = {"mean": (top, D), "logvar": (top, D)}
        if P:
            layers |= {"private_mean": (top, P), "private_logvar": (top, P)}
            out |= {f"{name}/guess/mean": (P,), f"{name}/guess/logvar": (P,)}
        for part, widths in (
            ("encoder", (m.size, *m.hidden)),
            ("decoder", (D + P, *m.hidden[::-1], m.size)),
        ):
            layers |= {f"{part}/{i}": pair for i, pair in enumerate(pairwise(widths))}
        for layer, (a, b) in layers.items():
            out |= {f"{name}/{layer}/weight": (a, b), f"{name}/{layer}/bias": (b,)}
        if m.learns_scale:
            out[f"{name}/log_scale"] = (1,)
    return out


def dtype_of(params: Params) -> np.dtype[Any]:
    """Return the dtype that a model computes in."""
    first: Any = next(iter(params.values()))["mean"]["weight"]
    dtype: np.dtype[Any] = np.dtype(getattr(first, "_value", first).dtype)
    return dtype


def encode(params: Params, config: Config, batch: Batch, mask: Mask = None) -> dict[str, Expert]:
    """Return what each modality tells by itself.

    Parameters
    ----------
    params, config
        The model.
    batch : mapping of str to array (B, ...)
        Items by modality. Modalities that are not in it are missing from every row.
    mask : mapping of str to array (B,) of bool, or array (M, B) of bool, optional
        Which items are there.

    Returns
    -------
    dict of str to Expert
        Of every modality of the model; where an item is missing, what its expert says means nothing.

    Raises
    ------
    ArgumentError, ShapeError, DTypeError
        Where the batch does not fit the model.
    """
    return encode_rows(params, config, read_rows(config, batch, mask, dtype_of(params)))


def encode_rows(params: Params, config: Config, rows: Rows) -> dict[str, Expert]:
    """Return the experts of a checked batch."""
    out = {}
    for name in config.names:
        p, h = params[name], rows.values[name]
        for i in range(len(p.get("encoder", ()))):
            h = _linear(p["encoder"][str(i)], h, "gelu")
        heads = ("mean", "logvar", "private_mean", "private_logvar")
        out[name] = Expert(*(_linear(p[head], h) for head in heads if head in p))
    return out


def private_expert(
    params: Params, name: str, expert: Expert, there: NDArray[np.bool_], m: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return what the private latent of modality ``m`` is inferred to be from ``there (M, B)``, ``(B, P)``.

    It is the modality's own expert where that is there, the learnt Gaussian where something else is, and the
    prior where nothing is.
    """
    guess = params[name]["guess"]
    own, some = there[m, :, None], np.any(there, axis=0)[:, None]
    mu = np.where(own, expert.private_mu, np.where(some, guess["mean"], 0))
    return mu, np.where(own, expert.private_logvar, np.where(some, guess["logvar"], 0))


def decode(params: Params, config: Config, name: str, z: Any, private: Any = None) -> Any:
    """Return what the decoder of a modality says of latents: logits, or means, ``(..., size)``.

    Parameters
    ----------
    params, config
        The model.
    name : str
        The modality.
    z : array (..., D)
        Shared latent.
    private : array (..., D_private), optional
        The modality's own; the prior's mean where it has one that is not given.
    """
    p = params[name]["decoder"]
    if config.private_dim:
        if private is None:
            private = np.zeros((*z.shape[:-1], config.private_dim), dtype_of(params))
        z = anp.concatenate([z, private], axis=-1)
    for i in range(len(p) - 1):
        z = _linear(p[str(i)], z, "gelu")
    return _linear(p[str(len(p) - 1)], z)


def log_scale(params: Mapping[str, Any], config: Config, name: str) -> Any:
    """Return the logarithm of the scale of a modality's likelihood, ``(1,)``."""
    p: Any = params[name]
    if "log_scale" in p:
        return p["log_scale"]
    scale = config.modalities[name].scale
    return np.array([0.0 if scale is None else np.log(scale)], dtype_of(dict(params)))


def _linear(p: Params, x: Any, activation: str | None = None) -> Any:
    return ad.linear(x, p["weight"], p["bias"], activation=activation)
