"""Training of the unified model: a corpus and a recipe in, a model and its history out."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import checkpoint, optim
from ._blas import one_blas_thread
from ._interrupt import graceful_interrupt
from ._memory import keep_pages
from ._sampling import Sampler, fit_tokenizers, make_banks, plans_of, vocabulary_of
from ._threads import get_num_threads
from .autodiff import value_and_grad
from .data.corpus import Corpus
from .errors import ArgumentError, CheckpointError
from .models.unified import Config, Model, fill_row, init, loss
from .models.unified.network import decays
from .models.unified.sequence import cached_row
from .recipe import Recipe, learning_rate

__all__ = ["FitResult", "Recipe", "fit"]

RECORD_EVERY = 0.25  # Seconds between two records of the history.
PREVIEW_EVERY = 3.0  # Seconds between two previews, each of some 20 milliseconds.

Progress = Callable[[dict[str, Any]], None]
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


@dataclass
class _State:
    """What changes from step to step, and what a checkpoint holds beside the model."""

    params: dict[str, Any]
    optimizer: dict[str, Any]
    rng: np.random.Generator
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path, model: Model, key: Mapping[str, Any]) -> None:
        arrays, metadata = model.to_arrays()
        arrays |= checkpoint.flatten({"optimizer": {k: self.optimizer[k] for k in ("m", "v")}})
        training = {
            "key": dict(key),
            "step": self.step,
            "seconds": self.seconds,
            "optimizer_step": int(self.optimizer["step"]),
            "rng": self.rng.bit_generator.state,
            "history": self.history,
        }
        checkpoint.save(path, arrays, metadata | {"training": training})

    @classmethod
    def load(cls, path: Path, key: Mapping[str, Any]) -> tuple[_State, Model]:
        arrays, metadata = checkpoint.load(path)
        training: Any = metadata.get("training")
        if not isinstance(training, dict):
            raise CheckpointError(f"{path} is a model without training state; there is nothing to resume")
        was = training.get("key")
        for name, value in key.items():
            if not isinstance(was, dict) or was.get(name) != json.loads(json.dumps(value)):
                raise CheckpointError(f"{path} was trained with another {name}; resume with the same one")
        model = Model.from_arrays(arrays, metadata, path=path)
        try:
            optimizer = optim.adamw_init(model.params)
            optimizer["step"] = int(training["optimizer_step"])
            for part in ("m", "v"):
                want = checkpoint.flatten(optimizer[part])
                got = {name: arrays[f"optimizer/{part}/{name}"] for name in want}
                if any(a.shape != got[n].shape or a.dtype != got[n].dtype for n, a in want.items()):
                    raise CheckpointError(f"{path} has optimiser state that does not fit its parameters")
                optimizer[part] = checkpoint.unflatten(got)
            rng = np.random.default_rng(0)
            rng.bit_generator.state = training["rng"]
            step, seconds, history = training["step"], training["seconds"], training["history"]
            state = cls(model.params, optimizer, rng, int(step), float(seconds), list(history))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} holds a training state that cannot be used: {error}") from error
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
    if (seconds is None) == (steps is None):
        raise ArgumentError("give either seconds or steps")
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise ArgumentError(f"seconds must be above 0, not {seconds}")
    if steps is not None and steps < 1:
        raise ArgumentError(f"steps must be above 0, not {steps}")
    recipe = recipe or Recipe()
    if recipe.rows < 1:
        raise ArgumentError(f"rows must be above 0, not {recipe.rows}")
    keep_pages()
    tell = progress or (lambda record: None)
    begin = time.perf_counter()
    tell({"phase": "learning the tokens"})
    train = corpus.select("train")
    path = None if checkpoint_path is None else Path(checkpoint_path)
    goal = {"seconds": seconds, "steps": steps}
    key = {"seed": seed, "recipe": recipe.to_json(), "data": _fingerprint(train), **goal}
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)]
    tokenizer_rng, bank_rng, rng = streams
    if resume and path is not None and path.exists():
        state, model = _State.load(path, key)
    else:
        tokenizers = fit_tokenizers(train, recipe, tokenizer_rng)
        sizes = (recipe.width, recipe.depth, recipe.heads, recipe.hidden)
        config = Config(vocabulary_of(tokenizers, recipe), *sizes, mixer=recipe.mixer)
        features = {n: t.codebook.table for n, t in tokenizers.items() if n != "text"}
        params = init(config, rng, features)
        model = Model(config, params, tokenizers, dict(recipe.decoding))
        state = _State(params, optim.adamw_init(params), rng)
    banks = make_banks(train, model.tokenizers, recipe, bank_rng)
    loop = _Loop(state, model, recipe, banks, begin - state.seconds, seconds, steps)

    def save() -> None:
        state.seconds = time.perf_counter() - loop.begin
        if path is not None:
            state.save(path, model, key)

    last_save = last_record = last_preview = time.perf_counter()
    with graceful_interrupt() as asked:
        while not asked() and loop.done < 1.0:
            loop.step()
            now = time.perf_counter()
            if now - last_record > RECORD_EVERY or state.step in (1, steps):
                state.history.append(loop.record(now - last_record))
                last_record = now
                samples = {}
                try:
                    if preview is not None and now - last_preview > PREVIEW_EVERY:
                        samples = {"samples": preview(model)}
                        last_preview = time.perf_counter()
                    tell(state.history[-1] | samples)
                except BaseException:
                    save()  # What a callback does wrong must not cost what was learnt.
                    raise
            if path is not None and now - last_save > checkpoint_every:
                save()
                last_save = time.perf_counter()
    save()
    return FitResult(model, state.history, state.step, state.seconds, interrupted=loop.done < 1.0)


class _Loop:
    """The steps of a run, from where its state is to its goal."""

    def __init__(
        self,
        state: _State,
        model: Model,
        recipe: Recipe,
        banks: Mapping[str, Any],
        begin: float,
        seconds: float | None,
        steps: int | None,
    ) -> None:
        self.state, self.config, self.recipe, self.begin = state, model.config, recipe, begin
        self.seconds, self.steps = seconds, steps
        self.plans = plans_of(recipe, banks)
        vocabulary = model.config.vocabulary
        self.samplers = {tasks: Sampler(cached_row(vocabulary, tasks), banks) for tasks in set(self.plans)}
        self.gradient = value_and_grad(loss, has_aux=True)
        self.losses: dict[str, float] = {}
        self.examples = 0
        self.longest = 0.0  # Seconds of a slow step: the next one must end before the time does.

    @property
    def done(self) -> float:
        """Share of the goal that is reached."""
        if self.steps is not None:
            return self.state.step / self.steps
        elapsed = time.perf_counter() - self.begin
        return min(1.0, (elapsed + self.longest) / float(self.seconds or 1))

    def step(self) -> None:
        """Draw rows, compute the gradient, update the parameters."""
        start, state, recipe = time.perf_counter(), self.state, self.recipe
        rate = learning_rate(recipe, self.done)
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
        state.step += 1
        self.losses |= {"loss": float(total)} | {f"loss_{name}": float(x) for name, x in by_modality.items()}
        self.examples += recipe.rows * len(sampler.row.tasks)
        self.longest = max(0.9 * self.longest, time.perf_counter() - start)

    def record(self, interval: float) -> dict[str, Any]:
        """Return what there is to say after an interval of so many seconds."""
        rate, self.examples = self.examples / max(interval, 1e-9), 0
        return {
            "step": self.state.step,
            "seconds": time.perf_counter() - self.begin,
            "fraction": self.done,
            **self.losses,
            "examples_per_second": rate,
        }
