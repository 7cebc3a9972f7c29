"""Training of multimodal VAEs: arrays by modality and a recipe in, a model and its history out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checkpoint, optim
from ._blas import one_blas_thread
from ._memory import keep_pages
from ._training import Progress, TrainingState, check_goal, rate, restore, run_steps
from ._validate import check_finite_number, check_integer, check_positive
from .autodiff import value_and_grad
from .errors import ArgumentError
from .models.vae import Config, Model, init, loss
from .models.vae.rows import Batch, Mask, Rows, read_rows

__all__ = ["VAEFit", "VAERecipe", "fit"]


@dataclass(frozen=True)
class VAERecipe:
    """What training chooses.

    Parameters
    ----------
    rows : int
        Rows in a step, drawn anew for each.
    learning_rate, warmup, betas, weight_decay, max_norm
        AdamW with a linear warm-up over the first ``warmup`` share of training and a linear decay to zero;
        gradients are clipped to ``max_norm``. Only matrices decay.
    beta_warmup : float
        Share of training in which ``beta`` rises linearly from 0 to the configuration's.
    """

    rows: int = 128
    learning_rate: float = 2e-3
    warmup: float = 0.02
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    max_norm: float = 100.0
    beta_warmup: float = 0.0

    def __post_init__(self) -> None:
        check_integer("rows", self.rows, 1)
        check_positive("learning_rate", self.learning_rate)
        check_positive("max_norm", self.max_norm)
        for name in ("warmup", "beta_warmup"):
            if not 0 <= check_finite_number(name, getattr(self, name)) <= 1:
                raise ArgumentError(f"{name} must be from 0 to 1, not {getattr(self, name):g}")

    def rate(self, done: float) -> float:
        """Return the learning rate after a share ``done`` of training."""
        return rate(self.learning_rate, self.warmup, done)

    def beta(self, config: Config, done: float) -> float:
        """Return the weight of the divergence after a share ``done`` of training."""
        return config.beta * (min(1.0, done / self.beta_warmup) if self.beta_warmup > 0 else 1.0)


@dataclass(frozen=True)
class VAEFit:
    """What training returns.

    Parameters
    ----------
    model : Model
        The trained model.
    history : list of dict
        A record every few steps: ``step``, ``seconds``, ``fraction``, ``loss`` in nats a row, ``loss_kl``,
        ``loss_image`` and so on (:func:`sensorium.models.vae.loss`), and ``examples_per_second``, which are
        rows.
    steps : int
        Steps done, those before a resumption included.
    seconds : float
        Wall-clock time of training.
    interrupted : bool
        Whether Ctrl-C ended it early.
    """

    model: Model
    history: list[dict[str, Any]]
    steps: int
    seconds: float
    interrupted: bool


@one_blas_thread()
def fit(
    config: Config,
    data: Batch,
    recipe: VAERecipe | None = None,
    *,
    mask: Mask = None,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    checkpoint_path: str | Path | None = None,
    checkpoint_every: float = 10.0,
    resume: bool = False,
    progress: Progress | None = None,
) -> VAEFit:
    """Train a model.

    Parameters
    ----------
    config : Config
        Sizes and modalities.
    data : mapping of str to array (N, ...)
        Items by modality, row by row.
    recipe : VAERecipe, optional
        Choices.
    mask : mapping of str to array (N,) of bool, or array (M, N) of bool, optional
        Which items are there; all where not given. The others are never looked at, and may be NaN. Rows
        without any are left out.
    seconds : float, optional
        Wall-clock time to train for.
    steps : int, optional
        Steps to train for instead: the same seed then gives the same model, bit for bit, on the same machine.
    seed : int
        Seed of every draw.
    checkpoint_path : path, optional
        File that holds the state of training, replaced every ``checkpoint_every`` seconds and at the end.
        :meth:`sensorium.models.vae.Model.load` reads a model from it too.
    checkpoint_every : float
        Seconds between checkpoints.
    resume : bool
        Go on from ``checkpoint_path``, which must have been made with the same configuration, seed, recipe,
        data and goal. Where the file does not exist, begin.
    progress : callable, optional
        Called with a dict after a step, a few times a second. What it raises ends the training, and what was
        learnt is in the checkpoint.

    Returns
    -------
    VAEFit
        Ctrl-C ends training early; the result then says ``interrupted``.

    Raises
    ------
    ArgumentError, ShapeError, DTypeError
        Where not exactly one of ``seconds`` and ``steps`` is given, or the data do not fit the configuration.
    CheckpointError
        Where the checkpoint is damaged or of another run.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium import vae
    >>> from sensorium.models.vae import ModalityConfig, mvae
    >>> x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    >>> config = mvae({"a": ModalityConfig(shape=3), "b": ModalityConfig(shape=3)}, latent_dim=2)
    >>> result = vae.fit(config, {"a": x, "b": -x}, steps=3)
    >>> result.steps, result.model.parameters
    (3, 3600)
    """
    goal = check_goal(seconds, steps)
    recipe = recipe or VAERecipe()
    rows = _rows(config, data, mask)
    keep_pages()
    begin = time.perf_counter()
    key = {
        "config": config.to_json(),
        "seed": seed,
        "recipe": asdict(recipe),
        "data": _fingerprint(rows),
        "goal": goal,
    }
    rng = np.random.default_rng(seed)
    params = init(config, rng)
    state = TrainingState(params, optim.adamw_init(params), rng)
    path = None if checkpoint_path is None else Path(checkpoint_path)
    if resume and path is not None and path.exists():
        restore(path, "vae_training", "a multimodal VAE", key, state, _arrays(state))
    gradient = value_and_grad(loss, has_aux=True)
    losses: dict[str, float] = {}
    rows_done = 0

    def step(done: float) -> None:
        nonlocal rows_done
        at = state.rng.integers(0, len(rows), min(recipe.rows, len(rows)))
        batch = {name: values[at] for name, values in rows.values.items()}
        beta = recipe.beta(config, done)
        (value, parts), grads = gradient(
            state.params, config, batch, rows.present[:, at], rng=state.rng, beta=beta
        )
        optim.adamw_step(  # Leaves out a step whose gradient overflowed rather than spoiling the model.
            state.params,
            grads,
            state.optimizer,
            lr=recipe.rate(done),
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            max_norm=recipe.max_norm,
        )
        losses.update({"loss": float(value)} | {f"loss_{name}": float(x) for name, x in parts.items()})
        rows_done += len(at)

    def describe(interval: float) -> dict[str, Any]:
        nonlocal rows_done
        rate, rows_done = rows_done / interval, 0
        return {**losses, "examples_per_second": rate}

    def save() -> None:
        if path is not None:
            _save(state, path, Model(config, state.params), key)

    reached = run_steps(
        state,
        step,
        describe,
        begin=begin - state.seconds,
        seconds=seconds,
        steps=steps,
        save=save,
        save_every=checkpoint_every,
        tell=progress or (lambda record: None),
    )
    model = Model(config, state.params)
    return VAEFit(model, state.history, state.step, state.seconds, interrupted=not reached)


def _rows(config: Config, data: Batch, mask: Mask) -> Rows:
    """Return the rows that have an item."""
    rows = read_rows(config, data, mask, np.float32)
    there = np.logical_or.reduce(rows.present)
    if not there.any():
        raise ArgumentError("data has no row with an item that is there")
    for name, present in zip(config.names, rows.present, strict=True):
        if not present.any():
            raise ArgumentError(f"data has no {name}, so that nothing can be learnt of it")
    return rows.take(there)


def _fingerprint(rows: Rows) -> str:
    """Return a hash of the data: resuming on others is a mistake."""
    h = hashlib.sha256(rows.present.tobytes())
    for array in rows.values.values():
        h.update(array.tobytes())
    return h.hexdigest()


def _arrays(state: TrainingState) -> dict[str, NDArray[Any]]:
    optimizer = {part: state.optimizer[part] for part in ("m", "v")}
    return checkpoint.flatten({"params": state.params, "optimizer": optimizer})


def _save(state: TrainingState, path: Path, model: Model, key: Mapping[str, Any]) -> None:
    _, metadata = model.to_arrays()
    checkpoint.save(path, _arrays(state), metadata | {"vae_training": state.to_json(key)})
