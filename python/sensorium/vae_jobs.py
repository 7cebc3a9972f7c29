"""What ``sensorium vae`` does: train on digits or on a manifest, write from any subset, measure and show."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from . import checkpoint, vae
from ._config import config as environment
from ._threads import get_num_threads
from .data.corpus import Corpus
from .data.digits import digits
from .data.manifest import load_manifest
from .data.multimodal import Encoding, Rows, pair
from .errors import ArgumentError, CheckpointError, SensoriumError
from .models.vae import Config, ModalityConfig, Model, generate, mmvae, mmvae_plus, mopoe, mvae

__all__ = ["KINDS", "Source", "Trained", "config_for", "train", "write", "write_report"]

# What each kind takes where nothing else is said, found on seed 100 of the digits. Posteriors that are to
# explain the whole row make what is written coherent; private latents beside a narrow shared one keep its
# likelihood; a word is worth 3 nats where a sound is worth hundreds, and its weight keeps it heard.
CHOSEN: Mapping[str, Mapping[str, Any]] = {
    "product": {
        "reconstruct": "present",
        "latent_dim": 6,
        "private_dim": 16,
        "singles": False,
        "subsets": 2,
        "part_weight": 0.5,
        "text_weight": 20.0,
    },
    "mixture": {"samples": 1},
    "mixture_of_products": {},
    "mmvae_plus": {"private_dim": 16},
}
RECIPE = vae.VAERecipe(learning_rate=3e-3, weight_decay=0.1)
KINDS = tuple(CHOSEN)
COPIES = 4  # training rows for each item of a group's most frequent modality
LISTED = 10  # rows left out that are named one by one

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    Parameters
    ----------
    manifest : str, optional
        Path of a manifest (:func:`sensorium.data.load_manifest`); the quickstart's digits where not given.
    seed : int
        Which images of the digits are held out, and which items stand beside each other.
    image_size : tuple of int
        Height and width that a manifest's pictures are resized to.
    channels : {1, 3}
        Grey or colour.
    sample_rate : int
        Samples a second that its sounds are resampled to.
    """

    manifest: str | None = None
    seed: int = 0
    image_size: tuple[int, int] = (16, 16)
    channels: Literal[1, 3] = 1
    sample_rate: int = 8000

    def read(self, *, strict: bool = False, warn: Callable[[str], None] | None = None) -> Corpus:
        """Return all items; rows of a manifest that cannot be used are told to ``warn``."""
        if self.manifest is None:
            return digits(seed=self.seed)
        corpus, problems = load_manifest(
            self.manifest,
            image_size=self.image_size,
            channels=self.channels,
            sample_rate=self.sample_rate,
            strict=strict,
        )
        if warn is not None:
            for problem in problems[:LISTED]:
                warn(f"{self.manifest}, {problem}")
            if len(problems) > LISTED:
                warn(f"and {len(problems) - LISTED} more rows that cannot be used")
        return corpus

    def rows(self, corpus: Corpus, encoding: Encoding) -> tuple[Rows, Rows | None]:
        """Return training rows, and held-out rows where there are any."""
        train = pair(corpus.select("train"), encoding, seed=self.seed, copies=COPIES)
        test = corpus.select("test")
        held_out = {"image": len(test.images), "audio": len(test.audios), "text": len(test.texts)}
        if not any(held_out[name] for name in encoding.shapes):
            return train, None
        return train, pair(test, encoding, seed=self.seed)

    def to_json(self) -> dict[str, Any]:
        """Return the source as plain data."""
        return {**vars(self), "image_size": list(self.image_size)}


@dataclass(frozen=True, eq=False)
class Trained:
    """A model with what it needs to read and write.

    Parameters
    ----------
    model : Model
        The model.
    encoding : Encoding
        What makes arrays of items, and items of arrays.
    source : Source
        Of its training rows.
    history : list of dict
        Records of training.
    facts : dict
        Seconds, steps, seed and the like.
    """

    model: Model
    encoding: Encoding
    source: Source
    history: list[dict[str, Any]]
    facts: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Write all of it as one file, in one step."""
        self.model.save(
            path,
            encoding=self.encoding.to_json(),
            source=self.source.to_json(),
            history=self.history,
            facts=self.facts,
        )

    @classmethod
    def load(cls, path: str | Path) -> Trained:
        """Read what :meth:`save` wrote; of a folder, its ``model.safetensors``.

        Raises
        ------
        CheckpointError
            Where the file is damaged, or holds no such model.
        """
        path = Path(path)
        path = path / "model.safetensors" if path.is_dir() else path
        arrays, notes = checkpoint.load(path)
        model = Model.from_arrays(arrays, notes, path=path)
        try:
            encoding = Encoding.from_json(_mapping(notes, "encoding"))
            fields = _mapping(notes, "source")
            source = Source(**{**fields, "image_size": tuple(fields["image_size"])})
            records: Any = notes["history"]
            history, facts = [dict(record) for record in records], _mapping(notes, "facts")
        except (KeyError, TypeError, ValueError, SensoriumError) as error:
            raise CheckpointError(f"{path} does not say how its model reads and writes: {error}") from error
        found = {name: m.dims for name, m in model.config.modalities.items()}
        if found != encoding.shapes:
            raise CheckpointError(f"{path} has a model of {found} but an encoding of {encoding.shapes}")
        return cls(model, encoding, source, history, facts)


def _mapping(notes: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = notes[key]
    if not isinstance(value, Mapping):
        raise ArgumentError(f"{key} must be a mapping, not {type(value).__name__}")
    return dict(value)


def config_for(
    encoding: Encoding,
    kind: str = "product",
    *,
    hidden: tuple[int, ...] = (256,),
    levels: int | None = None,
    **options: Any,
) -> Config:
    """Return a model for the arrays of an encoding.

    Parameters
    ----------
    encoding : Encoding
        Of the rows.
    kind : {"product", "mixture", "mixture_of_products", "mmvae_plus"}
        How experts become a posterior (:mod:`sensorium.models.vae`).
    hidden : tuple of int
        Widths of hidden layers.
    levels : int, optional
        Grey levels of images above black: their likelihood is binomial. Gaussian where not given.
    **options
        In place of the kind's own: ``latent_dim``, 16 where a kind says nothing, ``text_weight``, the weight
        of words in the loss, and those of :class:`sensorium.models.vae.Config`.

    Examples
    --------
    >>> from sensorium.data.multimodal import Encoding
    >>> config = config_for(Encoding(image=(8, 8)), "product", levels=16)
    >>> config.modalities["image"].likelihood, config.latent_dim, config.private_dim
    ('bernoulli', 6, 16)
    """
    if kind not in CHOSEN:
        raise ArgumentError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    options = {"latent_dim": 16, "text_weight": 1.0, **CHOSEN[kind], **options}
    latent_dim, text_weight = options.pop("latent_dim"), options.pop("text_weight")
    modalities = {}
    for name, shape in encoding.shapes.items():
        if name == "text":
            modalities[name] = ModalityConfig(
                shape=shape, likelihood="categorical", hidden=hidden, weight=text_weight
            )
        elif name == "image" and levels is not None:
            modalities[name] = ModalityConfig(
                shape=shape, likelihood="bernoulli", trials=levels, hidden=hidden
            )
        else:
            modalities[name] = ModalityConfig(shape=shape, hidden=hidden)
    if kind == "mmvae_plus":
        return mmvae_plus(modalities, latent_dim, **options)
    makers = {"product": mvae, "mixture": mmvae, "mixture_of_products": mopoe}
    return makers[kind](modalities, latent_dim, **options)


def train(
    source: Source,
    kind: str = "product",
    *,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    out: str | Path = "vae",
    resume: bool = False,
    strict: bool = False,
    recipe: vae.VAERecipe | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
    **options: Any,
) -> Trained:
    """Train a model and write ``model.safetensors``.

    Parameters
    ----------
    source : Source
        Where rows come from.
    kind : str
        Of :func:`config_for`, which takes ``options``.
    seconds, steps, seed, resume, progress
        As for :func:`sensorium.vae.fit`; the checkpoint is ``checkpoint.safetensors``.
    out : path
        Folder to write to; made where it is not there.
    strict : bool
        Stop at the first row of a manifest that cannot be used.
    recipe : VAERecipe, optional
        Choices of training.
    warn : callable, optional
        Called with a line about each row that is left out.

    Returns
    -------
    Trained
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if progress is not None:
        progress({"phase": "reading the data"})
    corpus = source.read(strict=strict, warn=warn)
    encoding = Encoding.fit(corpus)
    rows, _ = source.rows(corpus, encoding)
    if source.manifest is None:
        options = {"levels": 16} | options
    config = config_for(encoding, kind, **options)
    result = vae.fit(
        config,
        rows.values,
        recipe or RECIPE,
        mask=rows.present,
        seconds=seconds,
        steps=steps,
        seed=seed,
        checkpoint_path=folder / "checkpoint.safetensors",
        resume=resume,
        progress=progress,
    )
    facts = {
        "kind": kind,
        "goal": {"seconds": seconds, "steps": steps},
        "train_seconds": result.seconds,
        "steps": result.steps,
        "training_rows": len(rows),
        "threads": get_num_threads(),
        "seed": seed,
        "interrupted": result.interrupted,
    }
    trained = Trained(result.model, encoding, source, result.history, facts)
    trained.save(folder / "model.safetensors")
    return trained


def write(
    trained: Trained,
    given: Mapping[str, Any],
    *,
    to: tuple[str, ...] | None = None,
    samples: int = 1,
    seed: int = 0,
    latent: str = "sample",
) -> dict[str, list[Any]]:
    """Write modalities from items of any others.

    Parameters
    ----------
    trained : Trained
        Who writes.
    given : mapping of str to item
        An image ``(H, W)`` in [0, 1], samples of a sound, or a string, by modality; none at all draws from
        the prior.
    to : tuple of str, optional
        Modalities to write; all that are not given where not given, all where all are.
    samples : int
        How many of each.
    seed : int
        Seed of the draws.
    latent : {"sample", "mean"}
        Whether latents are drawn from the posterior, or its mean is taken.

    Returns
    -------
    dict of str to list
        Items by modality.

    Raises
    ------
    ArgumentError, ShapeError, DTypeError
        Where an argument does not fit the model.
    """
    model, encoding = trained.model, trained.encoding
    batch = {name: encoding.encode(name, [item]) for name, item in given.items()}
    if to is None:
        to = tuple(name for name in model.config.names if name not in given) or model.config.names
    made = generate(
        model.params,
        model.config,
        batch or None,
        targets=to,
        num_samples=samples,
        latent=latent,
        rng=np.random.default_rng(seed),
    )
    return {name: encoding.decode(name, arrays[:, 0]) for name, arrays in made.items()}


def write_report(
    folder: str | Path,
    *,
    baseline: bool = True,
    seed: int = 0,
    num_samples: int | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure the model of a folder on held-out rows; write ``metrics.json`` and ``report.html`` there.

    Parameters
    ----------
    folder : path
        That :func:`train` wrote.
    baseline : bool
        Whether models of each modality alone are trained to compare likelihoods with, for as many steps. They
        are kept in the folder.
    seed : int
        Seed of what is written and measured.
    num_samples : int, optional
        Latents of an importance-weighted bound.
    progress, warn
        As for :func:`train`.

    Returns
    -------
    dict
        What ``metrics.json`` holds (:func:`sensorium.vae_evaluate.evaluate`).
    """
    from ._vae_report import render
    from .vae_evaluate import SAMPLES, Judges, evaluate

    folder = Path(folder)
    trained = Trained.load(folder)
    tell = progress or (lambda record: None)
    tell({"phase": "reading the data"})
    corpus = trained.source.read(warn=warn)
    rows, test = trained.source.rows(corpus, trained.encoding)
    notes = [
        "Held-out rows have pictures and voices that no training row has."
        if trained.source.manifest is None
        else "Held-out rows are those of the split test."
    ]
    if test is None:
        test, notes = (
            rows,
            ["No row is held out: everything here is of training rows, and flatters the model."],
        )
    alone = _alone(folder, trained, rows, progress) if baseline else None
    tell({"phase": "measuring"})
    begin = time.perf_counter()
    judges = Judges.fit(corpus, trained.encoding)
    metrics = evaluate(
        trained.model, test, judges=judges, alone=alone, seed=seed, num_samples=num_samples or SAMPLES
    )
    if judges.judge is not None:
        labelled = corpus.merge_names() if corpus.names is not None else corpus
        metrics["judge"] = judges.judge.score(labelled)
    metrics |= trained.facts | {
        "parameters": trained.model.parameters,
        "evaluation_seconds": time.perf_counter() - begin,
    }
    checkpoint.write_json(folder / "metrics.json", metrics)
    if trained.facts.get("interrupted"):
        notes.insert(0, "Training was ended early by the user.")
    page = render(
        trained.model,
        trained.encoding,
        test,
        metrics,
        judges=judges,
        history=trained.history,
        facts={
            "training": trained.facts,
            "model": trained.model.config.to_json(),
            "environment": environment(),
        },
        title=_title(trained.source),
        notes=notes,
        reproduce=_command(trained, folder),
        seed=seed,
    )
    checkpoint.write_atomically(folder / "report.html", page.encode())
    return metrics


def _alone(folder: Path, trained: Trained, rows: Rows, progress: Progress | None) -> dict[str, Model]:
    """Read the models of each modality alone that belong to a model, or train them."""
    from .vae_evaluate import fit_alone

    facts = {"steps": trained.facts["steps"], "seed": trained.facts["seed"]}
    about = {"config": trained.model.config.to_json(), "source": trained.source.to_json(), **facts}
    kept = {name: folder / f"alone-{name}.safetensors" for name in trained.model.config.names}
    found = {}
    for name, path in kept.items():
        if path.exists():
            arrays, notes = checkpoint.load(path)
            if notes.get("of") == about:
                found[name] = Model.from_arrays(arrays, notes, path=path)
    if found.keys() == kept.keys():
        return found
    models = fit_alone(trained.model.config, rows, **facts, recipe=RECIPE, progress=progress)
    for name, model in models.items():
        model.save(kept[name], of=about)
    return models


def _title(source: Source) -> str:
    return (
        "Digits written, spoken and spelt"
        if source.manifest is None
        else f"A VAE of {Path(source.manifest).name}"
    )


def _command(trained: Trained, folder: Path) -> str:
    facts, source = trained.facts, trained.source
    goal = facts.get("goal", {})
    parts = ["sensorium vae train"]
    if source.manifest is not None:
        parts.append(f"--data {os.fspath(source.manifest)}")
    parts.append(f"--posterior {facts.get('kind')}")
    parts += [f"--{name} {value:g}" for name, value in goal.items() if value is not None]
    parts.append(f"--seed {facts.get('seed')} --out {folder}")
    return f"{' '.join(parts)}\nsensorium vae report {folder}"
