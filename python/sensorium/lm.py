"""Training of language models from scratch: tokens and a recipe in, a model and its history out.

What a text is worth to a model is measured in bits a token (:func:`bits_per_token`): for bytes, the size that
an ideal coder would shrink each to.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import checkpoint, optim
from ._blas import one_blas_thread
from ._memory import keep_pages
from ._training import Progress, TrainingState, check_goal, rate, restore, run_steps
from ._validate import as_indices, check_integer, check_positive
from .autodiff import value_and_grad
from .errors import ArgumentError
from .models import mamba, mamba2
from .models._config import BaseConfig
from .models.language import LanguageModel, init, loss

__all__ = ["LanguageFit", "LanguageRecipe", "bits_per_token", "fit"]

Ints = NDArray[np.int64]
_FAMILIES: dict[str, type[LanguageModel]] = {"mamba": mamba.Model, "mamba2": mamba2.Model}


@dataclass(frozen=True)
class LanguageRecipe:
    """What training chooses.

    Parameters
    ----------
    rows, length : int
        Windows of the text in a step, and tokens that are predicted in each. A window begins anywhere.
    learning_rate, warmup, betas, weight_decay, max_norm
        AdamW with a linear warm-up over the first ``warmup`` share of training and a linear decay to zero;
        gradients are clipped to ``max_norm``. Only matrices decay, embeddings left out.
    """

    rows: int = 16
    length: int = 256
    learning_rate: float = 4e-3
    warmup: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    max_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("rows", "length"):
            check_integer(name, getattr(self, name), 1)
        check_positive("learning_rate", self.learning_rate)

    def rate(self, done: float) -> float:
        """Return the learning rate after a share ``done`` of training."""
        return rate(self.learning_rate, self.warmup, done)


@dataclass(frozen=True)
class LanguageFit:
    """What training returns.

    Parameters
    ----------
    model : LanguageModel
        The trained model.
    history : list of dict
        A record every few steps: ``step``, ``seconds``, ``fraction``, ``loss`` in nats a token, and
        ``examples_per_second``, which are tokens.
    steps : int
        Steps done, those before a resumption included.
    seconds : float
        Wall-clock time of training.
    interrupted : bool
        Whether Ctrl-C ended it early.
    """

    model: LanguageModel
    history: list[dict[str, Any]]
    steps: int
    seconds: float
    interrupted: bool


def _save(state: TrainingState, path: Path, key: Mapping[str, Any]) -> None:
    checkpoint.save(path, _arrays(state), {"language_training": state.to_json(key)})


def _arrays(state: TrainingState) -> dict[str, NDArray[Any]]:
    return checkpoint.flatten({"params": state.params, "m": state.optimizer["m"], "v": state.optimizer["v"]})


@one_blas_thread()
def fit(
    tokens: ArrayLike,
    config: BaseConfig,
    recipe: LanguageRecipe | None = None,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    checkpoint_path: str | Path | None = None,
    checkpoint_every: float = 10.0,
    resume: bool = False,
    progress: Progress | None = None,
) -> LanguageFit:
    """Train a model on a text.

    Parameters
    ----------
    tokens : array (N,) of integers
        The text, from 0 to V - 1; for bytes ``np.frombuffer(data, np.uint8)``.
    config : Config
        Of :mod:`sensorium.models.mamba` or :mod:`sensorium.models.mamba2`.
    recipe : LanguageRecipe, optional
        Choices.
    seconds : float, optional
        Wall-clock time to train for.
    steps : int, optional
        Steps to train for instead: the same seed then gives the same model, bit for bit, on the same machine.
    seed : int
        Seed of every draw.
    checkpoint_path : path, optional
        File that holds the state of training, replaced every ``checkpoint_every`` seconds and at the end.
    checkpoint_every : float
        Seconds between checkpoints.
    resume : bool
        Go on from ``checkpoint_path``, which must have been made with the same seed, recipe, text and goal.
        Where the file does not exist, begin.
    progress : callable, optional
        Called with a dict after a step, a few times a second. What it raises ends the training, and what was
        learnt is in the checkpoint.

    Returns
    -------
    LanguageFit
        Ctrl-C ends training early; the result then says ``interrupted``.

    Raises
    ------
    ArgumentError
        Where not exactly one of ``seconds`` and ``steps`` is given, or the text is too short.
    CheckpointError
        Where the checkpoint is damaged or of another run.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.models import mamba
    >>> text = np.frombuffer(b"to be or not to be, " * 20, np.uint8)
    >>> config = mamba.Config(vocab_size=256, hidden_size=16, num_hidden_layers=1, tokenizer="bytes")
    >>> result = fit(text, config, LanguageRecipe(rows=4, length=32), steps=3)
    >>> result.steps, result.model.config.hidden_size
    (3, 16)
    """
    goal = check_goal(seconds, steps)
    recipe = recipe or LanguageRecipe()
    text = _text(tokens, config)
    if len(text) <= recipe.length:
        raise ArgumentError(
            f"tokens has {len(text)} tokens, expected more than the {recipe.length} of a window"
        )
    keep_pages()
    begin = time.perf_counter()
    key = {
        "family": config.family,
        "config": repr(config),
        "seed": seed,
        "recipe": asdict(recipe),
        "text": hashlib.sha256(text.tobytes()).hexdigest(),
        "goal": goal,
    }
    rng = np.random.default_rng(seed)
    params = init(config, rng)
    state = TrainingState(params, optim.adamw_init(params), rng)
    path = None if checkpoint_path is None else Path(checkpoint_path)
    if resume and path is not None and path.exists():
        restore(path, "language_training", "a language model", key, state, _arrays(state))
    gradient = value_and_grad(loss)
    value, tokens_done = np.float32(0), 0

    def step(done: float) -> None:
        nonlocal value, tokens_done
        value, grads = gradient(state.params, config, draw(text, recipe, state.rng))
        optim.adamw_step(  # Leaves out a step whose gradient overflowed rather than spoiling the model.
            state.params,
            grads,
            state.optimizer,
            lr=recipe.rate(done),
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
            decay=_decays,
            max_norm=recipe.max_norm,
        )
        tokens_done += recipe.rows * recipe.length

    def describe(interval: float) -> dict[str, Any]:
        nonlocal tokens_done
        rate, tokens_done = tokens_done / interval, 0
        return {"loss": float(value), "examples_per_second": rate}

    def save() -> None:
        if path is not None:
            _save(state, path, key)

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
    model = _FAMILIES[config.family](config, state.params)
    return LanguageFit(model, state.history, state.step, state.seconds, interrupted=not reached)


def draw(text: Ints, recipe: LanguageRecipe, rng: np.random.Generator) -> Ints:
    """Return windows of a text, ``(rows, length + 1)``, each from any place."""
    starts = rng.integers(0, len(text) - recipe.length, recipe.rows)
    windows: Ints = text[starts[:, None] + np.arange(recipe.length + 1)]
    return windows


def bits_per_token(
    model: LanguageModel, tokens: ArrayLike, *, begin: int | None = None, chunk: int = 1024
) -> NDArray[np.float64]:
    """Return ``-log2 p(token | all those before)`` of each token of a text.

    The text is read once, piece by piece, with the state carried: every token is predicted from all of the
    text before it, in memory that does not grow with it.

    Parameters
    ----------
    model : LanguageModel
        Any.
    tokens : array (N,) of integers
        The text.
    begin : int, optional
        Token that stands before the text, which the first is predicted from; the first token is not predicted
        where not given.
    chunk : int
        Tokens read at a time.

    Returns
    -------
    array (N,), or (N - 1,) without ``begin``

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.models import mamba
    >>> config = mamba.Config(vocab_size=256, hidden_size=16, num_hidden_layers=1)
    >>> model = mamba.Model.init(config, np.random.default_rng(0))
    >>> bool(abs(bits_per_token(model, [1, 2, 3]).mean() - 8) < 0.1)
    True
    """
    text = _text(tokens, model.config)
    if begin is not None:
        text = np.concatenate([[check_integer("begin", begin, 0, model.config.vocab_size - 1)], text])
    state = model.new_state(1)
    bits = np.empty(max(len(text) - 1, 0))
    for start in range(0, len(bits), check_integer("chunk", chunk, 1)):
        piece = text[start : start + chunk + 1]
        scores = model.scores(piece[None, :-1], state)[0].astype(np.float64)
        top = scores.max(axis=1)
        lse = top + np.log(np.exp(scores - top[:, None]).sum(axis=1))
        chosen = scores[np.arange(len(scores)), piece[1:]]
        bits[start : start + len(scores)] = (lse - chosen) / math.log(2)
    return bits


def _text(tokens: ArrayLike, config: BaseConfig) -> Ints:
    text = as_indices("tokens", tokens, config.vocab_size)
    if text.ndim != 1:
        raise ArgumentError(f"tokens has shape {text.shape}, expected (N,)")
    return text


def _decays(name: str, array: NDArray[np.floating[Any]]) -> bool:
    """Whether weight decay holds for a parameter: for the matrices of layers and of a head of its own."""
    return array.ndim == 2 and name.endswith(("_proj.weight", "lm_head.weight"))
