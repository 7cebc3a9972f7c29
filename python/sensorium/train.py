"""Training of the unified model: a corpus and a recipe in, a model and its history out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checkpoint, optim
from ._memory import keep_pages
from .autodiff import value_and_grad
from .data.corpus import Corpus
from .errors import ArgumentError, CheckpointError
from .models.unified import Config, Decoding, Modality, Model, Vocabulary, fill_row, init, loss
from .models.unified.model import text_codes
from .models.unified.sequence import Ints, Row, Task, cached_row
from .tokenizers import AudioTokenizer, ImageTokenizer, TextTokenizer, jitter_images, jitter_logmel

__all__ = ["FitResult", "Recipe", "fit", "training_row"]

PATCH_VALUES = 64

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Recipe:
    """Everything that training chooses.

    Parameters
    ----------
    width, depth, heads, hidden
        Sizes of the transformer (:class:`sensorium.models.unified.Config`).
    image, audio : {"diffusion", "autoregressive"}
        How the modality is written.
    image_codes, audio_codes : int
        Sizes of the codebooks.
    patch : tuple of int, optional
        Height and width of an image token; :func:`default_patch` where not given.
    rows : int
        Packed rows in a step; a row holds a sample of each task.
    tasks : tuple of tuple of str, optional
        What every row practises; where not given, every pair with text, or every pair where there is no text.
    other_tasks : tuple of tuple of tuple of str, optional
        Rows that take the place of ``tasks`` in every ``other_every``-th step, in turn: unconditional samples
        (for guidance) and the direct pairs.
    other_every : int
        See above; 0 for never.
    learning_rate, warmup, betas, weight_decay, max_norm
        AdamW with a linear warm-up over the first ``warmup`` share of training and a linear decay to zero;
        gradients are clipped to ``max_norm``.
    loss_weights : mapping
        ``lambda`` of each modality.
    least_mask : float
        Smallest masked share of a diffusion target.
    jitter : int
        Slightly moved, turned, stretched and warped copies made of each training image and sound; 0 for none.
    """

    width: int = 96
    depth: int = 3
    heads: int = 3
    hidden: int = 384
    image: str = "diffusion"
    audio: str = "diffusion"
    image_codes: int = 256
    audio_codes: int = 256
    patch: tuple[int, int] | None = None
    rows: int = 16
    tasks: tuple[Task, ...] | None = None
    other_tasks: tuple[tuple[Task, ...], ...] | None = None
    other_every: int = 8
    learning_rate: float = 3e-3
    warmup: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.02
    max_norm: float = 1.0
    loss_weights: Mapping[str, float] = field(default_factory=lambda: {"text": 2.0})
    least_mask: float = 0.0
    jitter: int = 8
    decoding: Mapping[str, Decoding] = field(
        default_factory=lambda: {
            "text": Decoding(temperature=0.0),
            "image": Decoding(temperature=0.8, guidance=2.0, candidates=2),
            "audio": Decoding(temperature=0.8, guidance=2.0, candidates=2),
        }
    )

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as plain data."""
        out: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return out


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


@dataclass(frozen=True)
class _Bank:
    """Codes of one modality by group: ``codes (copies, items, length)``, items sorted by group."""

    codes: Ints
    start: Ints
    count: Ints

    @classmethod
    def build(cls, codes: Ints, group: NDArray[np.int64], groups: NDArray[np.int64]) -> _Bank:
        order = np.argsort(group, kind="stable")
        start = np.searchsorted(group[order], groups, side="left")
        stop = np.searchsorted(group[order], groups, side="right")
        return cls(np.ascontiguousarray(codes[:, order]), start, stop - start)

    def draw(self, groups: Ints, rng: np.random.Generator) -> Ints:
        """Return the codes of a random copy of a random item of each group."""
        item = self.start[groups] + (rng.random(len(groups)) * self.count[groups]).astype(np.int64)
        return self.codes[rng.integers(len(self.codes), size=len(groups)), item]


def default_patch(height: int, width: int, channels: int = 1) -> tuple[int, int]:
    """Return the height and width of an image token.

    Strips of the whole width, at least eight, where a strip has at most 64 values: on digits they keep
    more of what matters than squares of as many values. Squares (or what comes nearest and divides the image)
    of at most 64 values where strips would have more.

    Examples
    --------
    >>> default_patch(8, 8), default_patch(28, 28), default_patch(32, 32, 3)
    ((1, 8), (2, 28), (4, 4))
    """
    strips = [h for h in _divisors(height) if height // h >= 8 and h * width * channels <= PATCH_VALUES]
    if strips:
        return strips[-1], width
    sides = [(h, w) for h in _divisors(height) for w in _divisors(width) if h * w * channels <= PATCH_VALUES]
    return min(sides or [(1, 1)], key=lambda p: (-min(p), -p[0] * p[1]))


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _fit_tokenizers(corpus: Corpus, recipe: Recipe, rng: np.random.Generator) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if corpus.texts:
        out["text"] = TextTokenizer.from_corpus(corpus.texts)
    if len(corpus.images):
        images = corpus.images
        patch = recipe.patch or default_patch(*images.shape[1:])
        if recipe.jitter:
            images = np.concatenate([images, jitter_images(images, rng=rng)])
        out["image"] = ImageTokenizer.fit(images, patch=patch, codes=recipe.image_codes, rng=rng)
    if corpus.audios:
        rate = corpus.sample_rate
        out["audio"] = AudioTokenizer.fit(
            corpus.audios,
            sample_rate=rate,
            seconds=max(map(len, corpus.audios)) / rate,
            codes=recipe.audio_codes,
            rng=rng,
        )
    if len(out) < 2:
        raise ArgumentError(
            f"corpus has training items of {list(out) or 'no modality'}, expected two modalities"
        )
    return out


def _modalities(tokenizers: Mapping[str, Any], recipe: Recipe) -> Vocabulary:
    out = []
    for name, t in tokenizers.items():
        if name == "text":
            out.append(Modality("text", "autoregressive", t.size, t.tokens - 1, t.end))
        else:
            out.append(Modality(name, getattr(recipe, name), t.size, t.tokens))
    return Vocabulary(tuple(out))


def _banks(
    corpus: Corpus, tokenizers: Mapping[str, Any], recipe: Recipe, rng: np.random.Generator
) -> dict[str, _Bank]:
    groups = corpus.groups
    out: dict[str, _Bank] = {}
    if "text" in tokenizers:
        out["text"] = _Bank.build(
            text_codes(tokenizers["text"], corpus.texts)[None], corpus.text_group, groups
        )
    if "image" in tokenizers:
        copies = [corpus.images] + [jitter_images(corpus.images, rng=rng) for _ in range(recipe.jitter)]
        codes = np.stack([np.asarray(tokenizers["image"].encode(c), np.int64) for c in copies])
        out["image"] = _Bank.build(codes, corpus.image_group, groups)
    if "audio" in tokenizers:
        audio = tokenizers["audio"]
        logmel = audio.logmel(corpus.audios)
        heard = [logmel] + [jitter_logmel(logmel, rng=rng, floor=audio.floor) for _ in range(recipe.jitter)]
        codes = np.stack([np.asarray(audio.encode_logmel(c), np.int64) for c in heard])
        out["audio"] = _Bank.build(codes, corpus.audio_group, groups)
    return out


def _tasks(recipe: Recipe, names: Sequence[str]) -> tuple[tuple[Task, ...], tuple[tuple[Task, ...], ...]]:
    """Return the tasks of the usual rows, and those of the rows that now and then take their place."""
    pairs = [(a, b) for a in names for b in names if a != b]
    with_text = tuple(p for p in pairs if "text" in p)
    direct = tuple(p for p in pairs if "text" not in p)
    main = recipe.tasks if recipe.tasks is not None else (with_text or direct)
    if recipe.other_tasks is not None:
        return main, recipe.other_tasks
    alone = tuple((n,) for n in names if n != "text")
    return main, tuple(tasks for tasks in (alone, direct if with_text else ()) if tasks)


def training_row(vocabulary: Vocabulary, recipe: Recipe) -> Row:
    """Return the form of the usual training row."""
    return cached_row(vocabulary, _tasks(recipe, list(vocabulary.by_name))[0])


def _plans(recipe: Recipe, banks: Mapping[str, _Bank]) -> list[tuple[Task, ...]]:
    """Tasks of the rows in the order of their steps; tasks that no group has the items for are left out."""

    def possible(tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        return tuple(t for t in tasks if len(_eligible(t, banks)))

    main, others = _tasks(recipe, list(banks))
    main, others = possible(main), tuple(o for o in map(possible, others) if o)
    if not main:
        raise ArgumentError("corpus has no group with items of two modalities")
    if not recipe.other_every or not others:
        return [main]
    return [t for other in others for t in [main] * (recipe.other_every - 1) + [other]]


def _eligible(task: Task, banks: Mapping[str, _Bank]) -> Ints:
    """Return the groups that have an item of every modality of the task."""
    if any(name not in banks for name in task):
        return np.zeros(0, np.int64)
    has = np.logical_and.reduce([banks[name].count > 0 for name in task])
    return np.flatnonzero(has)


class _Sampler:
    """Draws the codes of a row: for each task a group that can serve it, for each slot an item of it."""

    def __init__(self, row: Row, banks: Mapping[str, _Bank]) -> None:
        self.row, self.banks = row, banks
        self.eligible = [_eligible(task, banks) for task in row.tasks]

    def draw(self, rows: int, rng: np.random.Generator) -> list[Ints]:
        groups = [self._balanced(e, rows, rng) for e in self.eligible]
        return [self.banks[slot.modality].draw(groups[slot.task], rng) for slot in self.row.slots]

    @staticmethod
    def _balanced(eligible: Ints, rows: int, rng: np.random.Generator) -> Ints:
        """Every group equally often, up to one: less noise in the gradient than independent draws."""
        whole, rest = divmod(rows, len(eligible))
        drawn = [eligible] * whole + [rng.permutation(eligible)[:rest]]
        return rng.permutation(np.concatenate(drawn))


@contextmanager
def _graceful_interrupt() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag that is looked at between steps; the second one raises as usual."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    signal.signal(signal.SIGINT, handle)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def learning_rate(recipe: Recipe, fraction: float) -> float:
    """Return the rate after ``fraction`` of training: up to the peak in ``warmup``, then down to zero."""
    up = fraction / recipe.warmup if recipe.warmup > 0 else 1.0
    down = (1.0 - fraction) / (1.0 - recipe.warmup) if recipe.warmup < 1 else 1.0
    return recipe.learning_rate * max(0.0, min(1.0, up + 1e-3, down))


def _fingerprint(corpus: Corpus) -> str:
    """Return a hash of what the corpus holds: resuming on other data is a mistake."""
    h = hashlib.sha256("\0".join(corpus.texts).encode())
    for array in (corpus.images, *corpus.audios, corpus.text_group, corpus.image_group, corpus.audio_group):
        h.update(np.ascontiguousarray(array).tobytes())
    return h.hexdigest()


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
        Called with a dict after a step, a few times a second. What it raises ends the training.

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
    begin = time.perf_counter()
    train = corpus.select("train")
    path = None if checkpoint_path is None else Path(checkpoint_path)
    key = {
        "seed": seed,
        "recipe": recipe.to_json(),
        "data": _fingerprint(train),
        "seconds": seconds,
        "steps": steps,
    }
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)]
    tokenizer_rng, bank_rng, rng = streams
    if resume and path is not None and path.exists():
        state, model = _State.load(path, key)
    else:
        tokenizers = _fit_tokenizers(train, recipe, tokenizer_rng)
        config = Config(
            _modalities(tokenizers, recipe), recipe.width, recipe.depth, recipe.heads, recipe.hidden
        )
        features = {n: t.codebook.table for n, t in tokenizers.items() if n != "text"}
        params = init(config, rng, features)
        model = Model(config, params, tokenizers, dict(recipe.decoding))
        state = _State(params, optim.adamw_init(params), rng)
    begin -= state.seconds
    banks = _banks(train, model.tokenizers, recipe, bank_rng)
    interrupted = _run(
        state, model, recipe, banks, begin, seconds, steps, progress, path, checkpoint_every, key
    )
    state.seconds = time.perf_counter() - begin
    if path is not None:
        state.save(path, model, key)
    return FitResult(model, state.history, state.step, state.seconds, interrupted)


def _decays(name: str, array: NDArray[np.floating]) -> bool:
    """Whether weight decay holds for a parameter: for the matrices of blocks and heads."""
    return array.ndim == 2 and not name.startswith(("token", "position", "modality"))


def _run(
    state: _State,
    model: Model,
    recipe: Recipe,
    banks: Mapping[str, _Bank],
    begin: float,
    seconds: float | None,
    steps: int | None,
    progress: Progress | None,
    path: Path | None,
    checkpoint_every: float,
    key: Mapping[str, Any],
) -> bool:
    """Step until the goal; return whether Ctrl-C came first."""
    config, params = model.config, state.params
    plans = _plans(recipe, banks)
    samplers = {tasks: _Sampler(cached_row(config.vocabulary, tasks), banks) for tasks in set(plans)}
    parts: dict[str, float] = {}
    step_gradient = value_and_grad(loss, has_aux=True)
    last_save = last_record = time.perf_counter()
    longest, examples = 0.0, 0
    with _graceful_interrupt() as asked:
        while True:
            now = time.perf_counter()
            state.seconds = now - begin
            done = (
                state.step / steps if steps is not None else (state.seconds + longest) / float(seconds or 1)
            )
            if done >= 1.0 or asked():
                return done < 1.0
            sampler = samplers[plans[state.step % len(plans)]]
            batch = fill_row(
                sampler.row, sampler.draw(recipe.rows, state.rng), state.rng, least_mask=recipe.least_mask
            )
            (value, by_modality), grads = step_gradient(params, config, batch, recipe.loss_weights)
            parts |= {f"loss_{name}": float(x) for name, x in by_modality.items()}
            norm = optim.clip_grad_norm(grads, recipe.max_norm)
            if math.isfinite(norm):  # A step that overflowed is left out rather than spoiling the model.
                optim.adamw_step(
                    params,
                    grads,
                    state.optimizer,
                    lr=learning_rate(recipe, min(done, 1.0)),
                    betas=recipe.betas,
                    weight_decay=recipe.weight_decay,
                    decay=_decays,
                )
            state.step += 1
            examples += recipe.rows * len(sampler.row.tasks)
            after = time.perf_counter()
            longest = max(0.9 * longest, after - now)
            if after - last_record > 0.25 or state.step == 1 or state.step == steps:
                record = {
                    "step": state.step,
                    "seconds": after - begin,
                    "fraction": min(1.0, done),
                    "loss": float(value),
                    **parts,
                    "examples_per_second": examples / max(after - last_record, 1e-9),
                }
                state.history.append(record)
                last_record, examples = after, 0
                if progress is not None:
                    try:
                        progress(record)
                    except BaseException:
                        if path is not None:  # What the callback does wrong must not cost what was learnt.
                            state.seconds = after - begin
                            state.save(path, model, key)
                        raise
            if path is not None and after - last_save > checkpoint_every:
                state.seconds = after - begin
                state.save(path, model, key)
                last_save = time.perf_counter()
