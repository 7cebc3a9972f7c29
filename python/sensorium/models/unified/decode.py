"""Decoding: codes of one modality from codes of others.

Causal segments are sampled from left to right. Full segments begin wholly masked and are uncovered in a few
steps, the most certain codes first (Chang et al., arXiv:2202.04200): after step ``t`` of ``T`` a share
``cos(pi t / 2 T)`` stays masked. Guidance moves the logits away from those without the sources,
``l = l_uncond + w (l_cond - l_uncond)`` (Ho & Salimans, arXiv:2207.12598).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._validate import as_indices
from ...errors import ArgumentError
from .network import Config, head, logits
from .reader import Reader
from .sequence import Ints, cached_row, fill_row

__all__ = ["generate", "log_likelihood", "sample"]

Params = dict[str, Any]
Logits = NDArray[np.floating]
Sources = Mapping[str, Ints] | Sequence[tuple[str, Ints]]


def _pairs(sources: Sources) -> list[tuple[str, Ints]]:
    return list(sources.items()) if isinstance(sources, Mapping) else list(sources)


def sample(x: Logits, temperature: float, rng: np.random.Generator) -> Ints:
    """Draw from ``softmax(x / temperature)`` over the last axis; temperature 0 takes the largest."""
    if temperature > 0.0:
        x = x / temperature + rng.gumbel(size=x.shape)
    drawn: Ints = x.argmax(axis=-1)
    return drawn


def _log_softmax(x: Logits) -> Logits:
    x = x - x.max(axis=-1, keepdims=True)
    out: Logits = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return out


class _Predictor:
    """Guided logits of the last segment of a task, for rows whose sources stay the same.

    What a source attends to never changes while the target is written: its keys and values are computed
    once, and every step computes the target alone.
    """

    def __init__(
        self,
        params: Params,
        config: Config,
        sources: Sequence[tuple[str, Ints]],
        target: str,
        guidance: float,
        rows: int,
        prompts: Ints | None,
    ) -> None:
        self.params, self.config, self.guidance = params, config, guidance
        self.modality = config.vocabulary.by_name[target]
        self.row = cached_row(config.vocabulary, ((*(name for name, _ in sources), target),))
        self.rows = sources[0][1].shape[0] if sources else rows
        blank = np.zeros((self.rows, self.modality.length), np.int64)
        self.special = config.vocabulary.special(target) + blank
        if prompts is not None:
            self.special = self.special + prompts
            blank = np.stack([np.broadcast_to(prompts, blank.shape), blank], axis=-1)
        tokens = fill_row(self.row, [*(codes for _, codes in sources), blank]).tokens
        self.target = tokens[:, self.row.slots[-1].columns]
        self.readers = [Reader(params, config, self.row, tokens)]
        if sources and guidance != 1.0:
            alone = cached_row(config.vocabulary, ((target,),))
            self.readers.append(Reader(params, config, alone, self.target))

    def write(self, codes: Ints, known: NDArray[np.bool_]) -> None:
        """Put known codes into the target; the others stay masked."""
        offset = self.config.vocabulary.offset[self.modality.name]
        self.target[:, self.modality.causal :] = np.where(known, codes + offset, self.special)

    def __call__(self, start: int, stop: int) -> Logits:
        """Return logits ``(B, stop - start, codes)`` at columns of the target, which are read anew."""
        out: list[Any] = []
        for reader in self.readers:
            first = reader.row.slots[-1].start
            reader.forget(first + start)
            out.append(head(self.params, self.modality.name, reader.read(first + start, first + stop)))
        if len(out) == 1:
            return np.asarray(out[0])
        conditional, free = out
        return np.asarray(free + np.float32(self.guidance) * (conditional - free))


def generate(
    params: Params,
    config: Config,
    sources: Sources,
    target: str,
    *,
    rng: np.random.Generator,
    rows: int | None = None,
    temperature: float = 1.0,
    guidance: float = 1.0,
    steps: int = 8,
    choice_temperature: float = 1.0,
    prompts: Ints | None = None,
) -> Ints:
    """Return codes ``(B, length)`` of modality ``target`` for sources of ``(B, length)`` codes each.

    Parameters
    ----------
    params, config
        The model.
    sources : mapping of str to ndarray of int, or sequence of pairs
        Codes by modality, in the order in which they are read. Empty: generate without a condition. As pairs
        ``(modality, codes)``, a modality may come several times. Of readouts the prompts alone are read.
    target : str
        Modality to write.
    rng : numpy.random.Generator
        Source of the draws.
    rows : int, optional
        Number of samples where there is no source to tell it.
    temperature : float
        Of the codes; 0 takes the most likely.
    guidance : float
        Weight ``w`` of the condition; 1 is the plain model.
    steps : int
        Steps in which a full segment is uncovered.
    choice_temperature : float
        Gumbel noise on the certainty that decides which codes are kept, fading to 0 over the steps.
    prompts : ndarray of int, shape (B, length), optional
        What a readout is asked; its first prompt where not given.

    Raises
    ------
    ArgumentError
        For an unknown modality, or numbers out of range.
    """
    vocabulary = config.vocabulary
    pairs = _pairs(sources)
    for name in (*(name for name, _ in pairs), target):
        if name not in vocabulary.by_name:
            raise ArgumentError(f"the model knows {', '.join(vocabulary.by_name)}, not {name!r}")
    if isinstance(sources, Mapping) and target in sources:
        raise ArgumentError(f"target {target!r} is among the sources")
    if steps < 1:
        raise ArgumentError(f"steps must be above 0, not {steps}")
    if not (np.isfinite(temperature) and temperature >= 0):
        raise ArgumentError(f"temperature must be 0 or above, not {temperature}")
    if not np.isfinite(guidance):
        raise ArgumentError(f"guidance must be finite, not {guidance}")
    modality = vocabulary.by_name[target]
    if prompts is not None and modality.kind != "readout":
        raise ArgumentError(f"prompts are for readouts, but {target} is {modality.kind}")
    if prompts is not None:
        prompts = as_indices("prompts", prompts, modality.prompts)
    predict = _Predictor(params, config, pairs, target, guidance, 1 if rows is None else rows, prompts)
    if modality.kind == "readout":
        return sample(predict(0, modality.length), temperature, rng)
    if predict.modality.causal:
        return _left_to_right(predict, temperature, rng)
    return _unmask(predict, temperature, steps, choice_temperature, rng)


def _left_to_right(predict: _Predictor, temperature: float, rng: np.random.Generator) -> Ints:
    length, pad = predict.modality.length, predict.modality.pad
    codes = np.full((predict.rows, length), 0 if pad is None else pad, np.int64)
    known = np.zeros((predict.rows, length), bool)
    ended = np.zeros(predict.rows, bool)
    for i in range(length):
        drawn = sample(predict(i, i + 1)[:, 0], temperature, rng)
        codes[:, i] = drawn if pad is None else np.where(ended, pad, drawn)
        known[:, i] = True
        if pad is not None:
            ended |= drawn == pad
            if ended.all():
                break
        predict.write(codes, known)
    return codes


def _unmask(
    predict: _Predictor, temperature: float, steps: int, choice_temperature: float, rng: np.random.Generator
) -> Ints:
    B, L = predict.rows, predict.modality.length
    codes, known = np.zeros((B, L), np.int64), np.zeros((B, L), bool)
    for t in range(1, steps + 1):
        predict.write(codes, known)
        x = predict(0, L)  # (B, L, codes)
        drawn = sample(x, temperature, rng)
        certainty = np.take_along_axis(_log_softmax(x), drawn[..., None], axis=-1)[..., 0]
        noise = rng.gumbel(size=(B, L)) * choice_temperature * (1.0 - t / steps)
        certainty = np.where(known, np.inf, certainty + noise)
        keep = L - int(np.floor(L * np.cos(0.5 * np.pi * t / steps))) if t < steps else L
        order = np.argsort(-certainty, axis=1, kind="stable")
        kept = np.zeros((B, L), bool)
        np.put_along_axis(kept, order[:, :keep], True, axis=1)
        codes = np.where(known, codes, drawn)
        known |= kept
    return codes


def log_likelihood(
    params: Params, config: Config, sources: Sources, target: str, codes: Ints
) -> NDArray[np.float64]:
    """Return ``log p(codes | sources)`` of a causal modality, in nats, one a row.

    Raises
    ------
    ArgumentError
        Where ``target`` is a diffusion modality, whose likelihood has no closed form.
    """
    modality = config.vocabulary.by_name[target]
    if not modality.causal:
        raise ArgumentError(f"{target} is not autoregressive: its likelihood has no closed form")
    pairs = _pairs(sources)
    row = cached_row(config.vocabulary, ((*(name for name, _ in pairs), target),))
    batch = fill_row(row, [*(given for _, given in pairs), codes])
    at = np.arange(row.slots[-1].start, row.slots[-1].stop - 1)
    x = _log_softmax(logits(params, config, row, batch.tokens, {target: at})[target].astype(np.float64))
    chosen = np.take_along_axis(x, codes[..., None], axis=-1)[..., 0]
    weight = np.ones(codes.shape)
    if modality.pad is not None:
        padding = codes == modality.pad
        weight[:, 1:][padding[:, 1:] & padding[:, :-1]] = 0.0
    total: NDArray[np.float64] = (chosen * weight).sum(axis=1)
    return total
