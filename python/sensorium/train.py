"""Training of the unified model: a corpus and a recipe in, a model and its history out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import checkpoint, optim
from ._blas import one_blas_thread
from ._memory import keep_pages
from ._sampling import Sampler, fit_tokenizers, make_banks, plans_of, vocabulary_of
from ._threads import get_num_threads
from ._training import Progress, TrainingState, check_goal, check_key, run_steps
from .autodiff import value_and_grad
from .data.corpus import Corpus
from .errors import ArgumentError, CheckpointError
from .models.unified import Config, Model, fill_row, init, loss
from .models.unified.network import decays
from .models.unified.sequence import cached_row
from .recipe import Recipe, learning_rate

__all__ = ["FitResult", "Recipe", "fit"]

PREVIEW_EVERY = 3.0  # Seconds between two previews, each of some 20 milliseconds.

Preview = Callable[[Model], Any]


@dataclass(frozen=True)
class FitResult:
    """What training returns.

    Parameters
    ----------
    model : Model
        The trained model.
    history : list of dict
        A record every few steps: ``step``, ``seconds``, ``loss``, ``loss_text`` and so on,
        ``examples_per_second``.
    steps : int
        Steps done, those before a resumption included.
    seconds : float
        Wall-clock time of training, tokenisers included.
    interrupted : bool
        Whether Ctrl-C ended it early.
    """

    model: Model
    history: list[dict[str, Any]]
    steps: int
    seconds: float
    interrupted: bool

    def facts(self, seed: int) -> dict[str, Any]:
        """Return what every ``metrics.json`` says of the run that was begun with ``seed``."""
        return {
            "train_seconds": self.seconds,
            "steps": self.steps,
            "parameters": self.model.parameters,
            "threads": get_num_threads(),
            "seed": seed,
            "interrupted": self.interrupted,
        }


def _save(state: TrainingState, path: Path, model: Model, key: Mapping[str, Any]) -> None:
    arrays, metadata = model.to_arrays()
    arrays |= checkpoint.flatten({"optimizer": {k: state.optimizer[k] for k in ("m", "v")}})
    checkpoint.save(path, arrays, metadata | {"training": state.to_json(key)})


def _load(path: Path, key: Mapping[str, Any]) -> tuple[TrainingState, Model]:
    arrays, metadata = checkpoint.load(path)
    training: Any = metadata.get("training")
    if not isinstance(training, dict):
        raise CheckpointError(f"{path} is a model without training state; there is nothing to resume")
    check_key(path, training, key)
    model = Model.from_arrays(arrays, metadata, path=path)
    state = TrainingState(model.params, optim.adamw_init(model.params), np.random.default_rng(0))
    state.take(training, path)
    for part in ("m", "v"):
        want = checkpoint.flatten(state.optimizer[part])
        try:
            got = {name: arrays[f"optimizer/{part}/{name}"] for name in want}
        except KeyError as error:
            raise CheckpointError(f"{path} holds a training state that cannot be used: {error}") from error
        if any(a.shape != got[n].shape or a.dtype != got[n].dtype for n, a in want.items()):
            raise CheckpointError(f"{path} has optimiser state that does not fit its parameters")
        state.optimizer[part] = checkpoint.unflatten(got)
    return state, model


def _fingerprint(corpus: Corpus) -> str:
    """Return a hash of what the corpus holds: resuming on other data is a mistake."""
    h = hashlib.sha256("\0".join(corpus.texts).encode())
    for array in (corpus.images, *corpus.audios, corpus.text_group, corpus.image_group, corpus.audio_group):
        h.update(np.ascontiguousarray(array).tobytes())
    return h.hexdigest()


@one_blas_thread()
def fit(
    corpus: Corpus,
    recipe: Recipe | None = None,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    checkpoint_path: str | Path | None = None,
    checkpoint_every: float = 10.0,
    resume: bool = False,
    progress: Progress | None = None,
    preview: Preview | None = None,
) -> FitResult:
    """Train a model on the ``train`` split of a corpus.

    Parameters
    ----------
    corpus : Corpus
        Data; only its ``train`` items are looked at.
    recipe : Recipe, optional
        Choices.
    seconds : float, optional
        Wall-clock time to train for, tokenisers included.
    steps : int, optional
        Steps to train for instead: the same seed then gives the same model, bit for bit, on the same machine
        with the same number of threads.
    seed : int
        Seed of every draw.
    checkpoint_path : path, optional
        File that holds the state of training, replaced every ``checkpoint_every`` seconds and at the end.
    checkpoint_every : float
        Seconds between checkpoints.
    resume : bool
        Go on from ``checkpoint_path``, which must have been made with the same seed, recipe, data and goal.
        Where the file does not exist, begin.
    progress : callable, optional
        Called with a dict after a step, a few times a second, and with ``{"phase": ...}`` before the first.
        What it raises ends the training, and what was learnt is in the checkpoint.
    preview : callable, optional
        Called with the model every few seconds; what it returns goes into the record as ``samples``.

    Returns
    -------
    FitResult
        Ctrl-C ends training early; the result then says ``interrupted``.

    Raises
    ------
    ArgumentError
        Where not exactly one of ``seconds`` and ``steps`` is given, or the corpus cannot be learnt from.
    CheckpointError
        Where the checkpoint is damaged or of another run.
    """
    goal = check_goal(seconds, steps)
    recipe = recipe or Recipe()
    if recipe.rows < 1:
        raise ArgumentError(f"rows must be above 0, not {recipe.rows}")
    keep_pages()
    tell = progress or (lambda record: None)
    begin = time.perf_counter()
    tell({"phase": "learning the tokens"})
    train = corpus.select("train")
    path = None if checkpoint_path is None else Path(checkpoint_path)
    key = {"seed": seed, "recipe": recipe.to_json(), "data": _fingerprint(train), **goal}
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)]
    tokenizer_rng, bank_rng, rng = streams
    if resume and path is not None and path.exists():
        state, model = _load(path, key)
    else:
        tokenizers = fit_tokenizers(train, recipe, tokenizer_rng)
        sizes = (recipe.width, recipe.depth, recipe.heads, recipe.hidden)
        config = Config(vocabulary_of(tokenizers, recipe), *sizes, mixer=recipe.mixer)
        features = {n: t.codebook.table for n, t in tokenizers.items() if n != "text"}
        params = init(config, rng, features)
        model = Model(config, params, tokenizers, dict(recipe.decoding))
        state = TrainingState(params, optim.adamw_init(params), rng)
    banks = make_banks(train, model.tokenizers, recipe, bank_rng)
    steps_of = _Steps(state, model, recipe, banks)
    last_preview = time.perf_counter()

    def save() -> None:
        if path is not None:
            _save(state, path, model, key)

    def tell_and_show(record: dict[str, Any]) -> None:
        nonlocal last_preview
        samples = {}
        if preview is not None and time.perf_counter() - last_preview > PREVIEW_EVERY:
            samples = {"samples": preview(model)}
            last_preview = time.perf_counter()
        tell(record | samples)

    reached = run_steps(
        state,
        steps_of.step,
        steps_of.describe,
        begin=begin - state.seconds,
        seconds=seconds,
        steps=steps,
        save=save,
        save_every=checkpoint_every,
        tell=tell_and_show,
    )
    return FitResult(model, state.history, state.step, state.seconds, interrupted=not reached)


class _Steps:
    """The steps of a run."""

    def __init__(self, state: TrainingState, model: Model, recipe: Recipe, banks: Mapping[str, Any]) -> None:
        self.state, self.config, self.recipe = state, model.config, recipe
        self.plans = plans_of(recipe, banks)
        vocabulary = model.config.vocabulary
        self.samplers = {tasks: Sampler(cached_row(vocabulary, tasks), banks) for tasks in set(self.plans)}
        self.gradient = value_and_grad(loss, has_aux=True)
        self.losses: dict[str, float] = {}
        self.examples = 0

    def step(self, done: float) -> None:
        """Draw rows, compute the gradient, update the parameters."""
        state, recipe = self.state, self.recipe
        rate = learning_rate(recipe, done)
        sampler = self.samplers[self.plans[state.step % len(self.plans)]]
        codes = sampler.draw(recipe.rows, state.rng)
        batch = fill_row(sampler.row, codes, state.rng, least_mask=recipe.least_mask)
        (total, by_modality), grads = self.gradient(state.params, self.config, batch, recipe.loss_weights)
        optim.adamw_step(  # Leaves out a step whose gradient overflowed rather than spoiling the model.
            state.params,
            grads,
            state.optimizer,
            lr=rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            decay=decays,
            max_norm=recipe.max_norm,
        )
        self.losses |= {"loss": float(total)} | {f"loss_{name}": float(x) for name, x in by_modality.items()}
        self.examples += recipe.rows * len(sampler.row.tasks)

    def describe(self, interval: float) -> dict[str, Any]:
        """Return what there is to say after an interval of so many seconds."""
        rate, self.examples = self.examples / interval, 0
        return {**self.losses, "examples_per_second": rate}
