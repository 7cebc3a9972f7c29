"""Writing modalities from any subset of the others, and ways between two rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._validate import check_integer
from ...errors import ArgumentError, ShapeError
from .config import Config
from .likelihood import draw as draw_values
from .likelihood import mean
from .network import Params, decode, dtype_of, encode_rows, log_scale, private_expert
from .posterior import components
from .rows import Batch, Mask, Rows, chosen, read_rows

__all__ = ["generate", "interpolate"]

LATENTS = ("sample", "mean")


def generate(
    params: Params,
    config: Config,
    batch: Batch | None = None,
    mask: Mask = None,
    *,
    given: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    num_samples: int = 1,
    rows: int = 1,
    latent: str = "sample",
    draw: bool = False,
    rng: np.random.Generator,
) -> dict[str, NDArray[Any]]:
    """Return what the model writes for each row, of every modality: ``p(x_T | x_G)``.

    Parameters
    ----------
    params, config
        The model.
    batch : mapping of str to array (B, ...), optional
        Items by modality; without any, samples of the prior.
    mask : mapping of str to array (B,) of bool, or array (M, B) of bool, optional
        Which items are there.
    given : sequence of str, optional
        Modalities to go by; all that are there where not given. Of a row that has none of them latents come
        from the prior.
    targets : sequence of str, optional
        Modalities to write; all where not given. One that is also given is a reconstruction.
    num_samples : int
        Samples for each row.
    rows : int
        Rows where there is no batch to tell it.
    latent : {"sample", "mean"}
        Whether latents are drawn or their means.
    draw : bool
        Whether values are drawn from ``p(x | z)``, or its mean; of categories their probabilities.
    rng : numpy.random.Generator
        Source of the draws.

    Returns
    -------
    dict of str to array (num_samples, B, ...)
        The private latent of a modality comes from its own item where that is given. Else it comes from the
        Gaussian that was learnt for that, or from the prior where nothing is given.

    Raises
    ------
    ArgumentError, ShapeError, DTypeError
        Where arguments do not fit the model.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.models.vae import ModalityConfig, generate, init, mvae
    >>> config = mvae({"a": ModalityConfig(shape=(2, 3)), "b": ModalityConfig(shape=2)}, 2)
    >>> params = init(config, np.random.default_rng(0))
    >>> out = generate(params, config, {"b": np.ones((4, 2))}, targets=["a"], rng=np.random.default_rng(1))
    >>> out["a"].shape
    (1, 4, 2, 3)
    """
    S = check_integer("num_samples", num_samples, 1)
    if latent not in LATENTS:
        raise ArgumentError(f"latent must be 'sample' or 'mean', not {latent!r}")
    checked = _read(params, config, batch, mask, check_integer("rows", rows))
    wanted = chosen(config, "targets", targets)
    there = checked.present & chosen(config, "given", given)[:, None]
    experts = encode_rows(params, config, checked)
    shared = components(config, experts, there)
    B, P = len(checked), config.private_dim
    z = shared.draw(S, rng) if latent == "sample" else np.broadcast_to(shared.mean, (S, *shared.mean.shape))
    z = z.astype(dtype_of(params))
    out = {}
    for m in np.flatnonzero(wanted):
        name = config.names[m]
        private = None
        if P:
            mu, logvar = private_expert(params, name, experts[name], there, int(m))
            noise = rng.standard_normal((S, B, P)) if latent == "sample" else np.zeros((S, B, P))
            private = (mu + np.exp(0.5 * logvar) * noise).astype(z.dtype)
        out[name] = _written(params, config, name, z, private, draw, rng)
    return out


def interpolate(
    params: Params,
    config: Config,
    start: Batch,
    stop: Batch,
    *,
    steps: int = 8,
    given: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
) -> dict[str, NDArray[Any]]:
    """Return what lies on the straight way between the latents of two batches, row by row.

    Parameters
    ----------
    params, config
        The model.
    start, stop : mapping of str to array (B, ...)
        Items by modality, of as many rows.
    steps : int
        Points of the way, both ends included, at least 2.
    given, targets : sequence of str, optional
        Modalities to go by, and to write; all where not given.

    Returns
    -------
    dict of str to array (steps, B, ...)
        Means of ``p(x | z)``, between the means of the latents' posteriors, private ones too.

    Raises
    ------
    ArgumentError, ShapeError, DTypeError
        Where arguments do not fit the model or each other.
    """
    count = check_integer("steps", steps, 2)
    wanted = chosen(config, "targets", targets)
    ends = []
    for name, batch in (("start", start), ("stop", stop)):
        rows = read_rows(config, batch, None, dtype_of(params))
        there = rows.present & chosen(config, "given", given)[:, None]
        experts = encode_rows(params, config, rows)
        private = {}
        if config.private_dim:
            private = {
                n: private_expert(params, n, e, there, m)[0] for m, (n, e) in enumerate(experts.items())
            }
        ends.append((components(config, experts, there).mean, private))
        if len(rows) != len(ends[0][0]):
            raise ShapeError(f"{name} has {len(rows)} rows but start has {len(ends[0][0])}")
    at = np.linspace(0, 1, count, dtype=dtype_of(params))[:, None, None]
    way = [(1 - at) * ends[0][0] + at * ends[1][0]]
    z = way[0].astype(at.dtype)
    out = {}
    for m in np.flatnonzero(wanted):
        name = config.names[m]
        private_way = (1 - at) * ends[0][1][name] + at * ends[1][1][name] if config.private_dim else None
        out[name] = _written(params, config, name, z, private_way, False, None)
    return out


def _read(params: Params, config: Config, batch: Batch | None, mask: Mask, count: int) -> Rows:
    if batch is not None and (not isinstance(batch, Mapping) or len(batch)):
        return read_rows(config, batch, mask, dtype_of(params))
    values = {name: np.zeros((count, m.size), dtype_of(params)) for name, m in config.modalities.items()}
    return Rows(values, np.zeros((len(values), count), bool))


def _written(
    params: Params, config: Config, name: str, z: Any, private: Any, draw: bool, rng: Any
) -> NDArray[Any]:
    m = config.modalities[name]
    out = decode(params, config, name, z, private)
    values = draw_values(m, log_scale(params, config, name), out, rng) if draw else mean(m, out)
    return values.reshape(*out.shape[:-1], *m.dims)
