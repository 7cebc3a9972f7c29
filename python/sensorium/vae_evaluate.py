"""How well a multimodal VAE turns any of its senses into the others, and what each of them tells it.

Everything is measured on held-out rows. What is written is judged by classifiers that learnt from real items
alone (:mod:`sensorium.judge`); words are right where they are spelt right.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import vae
from ._blas import one_blas_thread
from ._validate import check_integer
from .data.corpus import Corpus
from .data.multimodal import Encoding, Rows
from .errors import ArgumentError
from .judge import Judge, wilson
from .models.vae import Config, Model, bound, generate, posterior, unimodal

__all__ = [
    "Judges",
    "coherence",
    "entropy",
    "evaluate",
    "fit_alone",
    "joint_coherence",
    "log_likelihood",
    "reconstruction",
    "sharpness",
    "subsets",
]

HEARD = 8  # iterations of Griffin-Lim for the judge, who hears no phases: more change no figure
AT_ONCE = 2000  # sounds that are heard at a time
SAMPLES = 512  # latents of an importance-weighted bound
DRAWN = 64  # latents that the entropy of a mixture is estimated from
JOINT = 500  # samples of the prior that are judged
LOG_2PI_E = math.log(2 * math.pi * math.e)


def subsets(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return every non-empty subset of some modalities, small ones first.

    Examples
    --------
    >>> subsets(["image", "text"])
    [('image',), ('text',), ('image', 'text')]
    """
    sizes = range(1, len(names) + 1)
    return [subset for size in sizes for subset in itertools.combinations(names, size)]


@dataclass(frozen=True, eq=False)
class Judges:
    """Who says which group an array of a modality is of: an eye, an ear, and a list of words.

    Parameters
    ----------
    encoding : Encoding
        What makes items of arrays.
    names : sequence of str
        Words of the groups.
    judge : Judge, optional
        Eye and ear; without it words alone are judged.
    groups : mapping of str to ndarray of int
        Groups that each modality's judge can tell apart.
    """

    encoding: Encoding
    names: tuple[str, ...]
    judge: Judge | None
    groups: Mapping[str, NDArray[np.int64]]

    @classmethod
    def fit(cls, corpus: Corpus, encoding: Encoding) -> Judges:
        """Learn from the training items of a corpus; items held out are not looked at.

        Groups of one name are one group. Items whose group has no text are left out where others have one:
        nobody knows what they show. Where there is nothing to tell apart, or there are too many groups for a
        classifier, words alone are judged.
        """
        if corpus.names is not None:
            corpus = corpus.merge_names()
        if len(corpus.texts):
            corpus = _of_groups(corpus, np.unique(corpus.text_group))
        names = corpus.names or tuple(str(group) for group in range(int(max(corpus.groups, default=-1)) + 1))
        train = corpus.select("train")
        groups = {"text": np.unique(train.text_group)} if "text" in encoding.shapes else {}
        try:
            judge: Judge | None = Judge().fit(corpus)
        except ArgumentError:
            judge = None
        if hasattr(judge, "image_size_") and "image" in encoding.shapes:
            groups["image"] = np.unique(train.image_group)
        if hasattr(judge, "sample_rate_") and "audio" in encoding.shapes:
            groups["audio"] = np.unique(train.audio_group)
        return cls(encoding, names, judge, groups)

    def read(self, modality: str, arrays: NDArray[Any]) -> NDArray[np.int64]:
        """Return the group that each array ``(n, ...)`` is of, -1 for a word that is none."""
        if modality not in self.groups:
            raise ArgumentError(
                f"modality must be one of {', '.join(self.groups) or 'none'}, not {modality!r}"
            )
        if modality == "text":
            number = {name: group for group, name in enumerate(self.names)}
            return np.array([number.get(text, -1) for text in self.encoding.decode("text", arrays)], np.int64)
        assert self.judge is not None
        if modality == "image":
            return self.judge.image(np.clip(arrays, 0, 1).astype(np.float32))
        assert self.encoding.audio is not None
        out = np.zeros(len(arrays), np.int64)
        for start in range(0, len(arrays), AT_ONCE):
            sounds = self.encoding.decode("audio", arrays[start : start + AT_ONCE], iterations=HEARD)
            out[start : start + AT_ONCE] = self.judge.audio(sounds, self.encoding.audio.sample_rate)
        return out


def _of_groups(corpus: Corpus, groups: NDArray[np.int64]) -> Corpus:
    image, audio = np.isin(corpus.image_group, groups), np.isin(corpus.audio_group, groups)
    return replace(
        corpus,
        images=corpus.images[image],
        image_group=corpus.image_group[image],
        image_split=corpus.image_split[image],
        audios=[sound for sound, keep in zip(corpus.audios, audio, strict=True) if keep],
        audio_group=corpus.audio_group[audio],
        audio_split=corpus.audio_split[audio],
    )


def _share(right: NDArray[np.bool_]) -> dict[str, float]:
    low, high = wilson(int(right.sum()), len(right))
    return {"share": float(right.mean()), "low": low, "high": high, "rows": len(right)}


def coherence(
    model: Model, judges: Judges, rows: Rows, given: Sequence[str], *, rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Return how often what is written from some modalities is of the group of the row.

    A latent is drawn from the posterior of the given modalities, and the mean of ``p(x | z)`` is judged.

    Parameters
    ----------
    model, judges : Model, Judges
        Who writes and who reads.
    rows : Rows
        Those that have all given modalities, and a group that judges know, are asked.
    given : sequence of str
        Modalities to write from.
    rng : numpy.random.Generator
        Source of the draws.

    Returns
    -------
    dict of str to dict
        ``share``, its Wilson interval ``low`` and ``high`` at 95 %, and how many ``rows``, for each modality
        written. Those given are reconstructions.
    """
    has = np.logical_and.reduce([rows.present[name] for name in given])
    out = {}
    for target, known in judges.groups.items():
        asked = rows.take(np.flatnonzero(has & np.isin(rows.group, known)))
        if len(asked) and target in model.config.names:
            made = generate(model.params, model.config, asked.values, given=given, targets=[target], rng=rng)
            out[target] = _share(judges.read(target, made[target][0]) == asked.group)
    return out


def joint_coherence(
    model: Model, judges: Judges, *, num_samples: int = JOINT, rng: np.random.Generator
) -> dict[str, float]:
    """Return how often all modalities written from one latent of the prior are of one group.

    Returns
    -------
    dict
        ``share``, ``low``, ``high``, ``rows``; empty where fewer than two modalities can be judged.
    """
    names = [name for name in judges.groups if name in model.config.names]
    if len(names) < 2:
        return {}
    made = generate(
        model.params, model.config, rows=check_integer("num_samples", num_samples, 1), targets=names, rng=rng
    )
    read = [judges.read(name, made[name][0]) for name in names]
    return _share(np.logical_and.reduce([(of == read[0]) & (of >= 0) for of in read]))


def log_likelihood(
    model: Model,
    rows: Rows,
    *,
    given: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    num_samples: int = SAMPLES,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return an importance-weighted lower bound of the log-likelihood of each row, in nats.

    See :func:`sensorium.models.vae.bound`; rows keep what they lack masked.
    """
    names = [name for name in rows.modalities if name in model.config.names]
    return bound(
        model.params,
        model.config,
        {name: rows.values[name] for name in names},
        {name: rows.present[name] for name in names},
        given=given,
        targets=targets,
        num_samples=num_samples,
        rng=rng,
    )


def reconstruction(
    model: Model, rows: Rows, given: Sequence[str] | None = None, *, truth: Rows | None = None
) -> dict[str, float]:
    """Return how far what is written, from the mean of the posterior, is from the row's own items.

    Parameters
    ----------
    model : Model
        Who writes.
    rows : Rows
        Rows to read.
    given : sequence of str, optional
        Modalities to write from; all that a row has where not given.
    truth : Rows, optional
        What to compare with, where that is not what is read.

    Returns
    -------
    dict of str to float
        Root mean square error a value of ``image`` and ``audio``, and the share of letters of ``text`` that
        are wrong; of the rows that have the modality.
    """
    truth = rows if truth is None else truth
    made = generate(
        model.params,
        model.config,
        rows.values,
        rows.present,
        given=given,
        latent="mean",
        rng=np.random.default_rng(0),
    )
    out = {}
    for name in model.config.names:
        there = truth.present[name]
        if not there.any():
            continue
        mine, real = made[name][0][there].astype(np.float64), truth.values[name][there]
        if model.config.modalities[name].likelihood == "categorical":
            out[name] = float(np.mean(mine.argmax(axis=-1) != real.argmax(axis=-1)))
        else:
            out[name] = float(np.sqrt(np.mean((mine - real) ** 2)))
    return out


def entropy(model: Model, rows: Rows, given: Sequence[str], *, rng: np.random.Generator) -> dict[str, float]:
    """Return how sharp the posterior of the shared latent is, from some modalities.

    Parameters
    ----------
    model : Model
        Who reads.
    rows : Rows
        Those that have all given modalities are read.
    given : sequence of str
        Modalities to infer from; without any it is the prior.
    rng : numpy.random.Generator
        Source of the draws from a mixture. The entropy of a Gaussian is exact.

    Returns
    -------
    dict
        ``entropy`` in nats, the mean over rows; ``variance``, the geometric mean over dimensions and rows of
        the variance, that between the components of a mixture included; ``rows``.
    """
    has = np.ones(len(rows), bool)
    for name in given:
        has &= rows.present[name]
    asked = rows.take(np.flatnonzero(has))
    if not len(asked):
        return {}
    q = posterior(model.params, model.config, asked.values, asked.present, given=given)
    D = model.config.latent_dim
    if (np.exp(q.log_weights) > 0.999).any(axis=0).all():
        which = q.log_weights.argmax(axis=0)
        logvar = q.logvars[which, np.arange(len(asked))].astype(np.float64)
        nats = float(np.mean(0.5 * (logvar.sum(axis=1) + D * LOG_2PI_E)))
    else:
        nats = -float(np.mean(q.log_prob(q.draw(DRAWN, rng))))
    variance = math.exp(float(np.mean(q.logvar.astype(np.float64))))
    return {"entropy": nats, "variance": variance, "rows": len(asked)}


def sharpness(images: NDArray[Any]) -> float:
    """Return the mean absolute difference of neighbouring pixels: less where images are blurred.

    Parameters
    ----------
    images : ndarray, (n, H, W) or (n, H, W, 3)

    Examples
    --------
    >>> sharpness(np.array([[[0.0, 1.0], [0.0, 1.0]]]))
    0.5
    """
    steps = [np.abs(np.diff(images.astype(np.float64), axis=axis)) for axis in (1, 2)]
    count = sum(step.size for step in steps)
    return float(sum(step.sum() for step in steps) / count) if count else 0.0


def fit_alone(
    config: Config,
    rows: Rows,
    *,
    steps: int,
    seed: int = 0,
    recipe: vae.VAERecipe | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Model]:
    """Train a VAE of each modality by itself, of the same size, for as many steps as the model of all.

    Parameters
    ----------
    config : Config
        Of the model of all.
    rows : Rows
        Training rows; those that have the modality are read.
    steps, seed, recipe, progress
        As for :func:`sensorium.vae.fit`.

    Returns
    -------
    dict of str to Model
        By modality.
    """
    alone = {}
    for name, one in unimodal(config).items():
        if progress is not None:
            progress({"phase": f"training a model of {name} alone, to compare with"})
        own = rows.take(np.flatnonzero(rows.present[name]))
        fitted = vae.fit(one, {name: own.values[name]}, recipe, steps=steps, seed=seed, progress=progress)
        alone[name] = fitted.model
    return alone


@one_blas_thread()
def evaluate(
    model: Model,
    rows: Rows,
    *,
    judges: Judges | None = None,
    alone: Mapping[str, Model] | None = None,
    seed: int = 0,
    num_samples: int = SAMPLES,
) -> dict[str, Any]:
    """Measure a model on held-out rows.

    Parameters
    ----------
    model : Model
        The model.
    rows : Rows
        Held-out rows, which may lack modalities.
    judges : Judges, optional
        Without them nothing is said of coherence.
    alone : mapping of str to Model, optional
        A model of each modality by itself (:func:`fit_alone`), to compare likelihoods with.
    seed : int
        Seed of all draws.
    num_samples : int
        Latents of an importance-weighted bound.

    Returns
    -------
    dict
        Plain data: ``coherence`` by given modalities, joined by ``"+"``, and target; ``joint_coherence``;
        ``log_likelihood`` in nats a row: ``joint``, of each modality by itself, ``conditional`` of each
        from all others, and ``alone`` and ``gain`` over the sum of the models alone with a 95 % interval;
        ``reconstruction`` by given; ``posterior`` by given; ``sharpness`` of images, real and written.
    """
    names = model.config.names
    rng = np.random.default_rng(check_integer("seed", seed))
    out: dict[str, Any] = {"rows": len(rows)}
    ways = subsets(names)
    if judges is not None:
        found = {"+".join(given): coherence(model, judges, rows, given, rng=rng) for given in ways}
        out["coherence"] = {key: shares for key, shares in found.items() if shares}
        out["joint_coherence"] = joint_coherence(model, judges, rng=rng)
    out["log_likelihood"] = _likelihoods(model, rows, alone, num_samples, rng)
    out["reconstruction"] = {"+".join(given): reconstruction(model, rows, given) for given in ways}
    out["posterior"] = {"+".join(given): entropy(model, rows, given, rng=rng) for given in ((), *ways)}
    if "image" in names and rows.count("image"):
        real = rows.take(np.flatnonzero(rows.present["image"]))
        out["sharpness"] = {"real": sharpness(real.values["image"])}
        for given in ways:
            made = generate(
                model.params, model.config, rows.values, rows.present, given=given, targets=["image"], rng=rng
            )
            out["sharpness"]["+".join(given)] = sharpness(made["image"][0])
    return out


def _likelihoods(
    model: Model, rows: Rows, alone: Mapping[str, Model] | None, num_samples: int, rng: np.random.Generator
) -> dict[str, Any]:
    names = model.config.names
    joint = log_likelihood(model, rows, num_samples=num_samples, rng=rng)
    out: dict[str, Any] = {"num_samples": num_samples, "joint": float(joint.mean())}
    for name in names:
        has = rows.take(np.flatnonzero(rows.present[name]))
        if len(has):
            by = log_likelihood(model, has, targets=[name], num_samples=num_samples, rng=rng)
            out[name] = float(by.mean())
    whole = rows.complete()
    if len(names) > 1 and len(whole):
        out["conditional"] = {}
        for name in names:
            others = [other for other in names if other != name]
            by = log_likelihood(model, whole, given=others, targets=[name], num_samples=num_samples, rng=rng)
            out["conditional"][name] = float(by.mean())
    if alone is not None:
        total = np.zeros(len(rows))
        out["alone"] = {}
        for name, one in alone.items():
            by = log_likelihood(one, rows, num_samples=num_samples, rng=rng)
            total += by
            there = rows.present[name]
            out["alone"][name] = float(by[there].mean()) if there.any() else 0.0
        gain = joint - total
        z = NormalDist().inv_cdf(0.975) if len(gain) > 1 else math.inf
        half = z * float(gain.std(ddof=1)) / math.sqrt(len(gain)) if len(gain) > 1 else math.nan
        mean = float(gain.mean())
        out["gain"] = {"mean": mean, "low": mean - half, "high": mean + half}
        out["alone_sum"] = float(total.mean())
    return out
