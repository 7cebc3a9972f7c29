"""A long memory on real data: albums of written and spoken digits, and questions about what came long before.

An album is one row of about a thousand tokens: pictures (8 tokens) and sounds (12) in turn, each followed by
its label, which says how the item is called and asks what it was. Four of the 90 items are given a name, the
others are passed by. After every two items one of the names is asked for, and the answer is the digit of the
item that bears it, which may stand anywhere before. No answer is ever shown: what cannot reach back to the
item can only guess one of ten.

Items of training and of testing are other pictures and other voices. Training begins with short albums and
ends with whole ones. Each mixer has as many parameters, and sees the same albums in as many steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import optim
from ._blas import one_blas_thread
from ._memory import keep_pages
from ._sampling import Bank
from ._threads import get_num_threads
from ._validate import check_integer, check_positive
from .autodiff import value_and_grad
from .data import digits
from .judge import wilson
from .models.unified import Batch, Config, Modality, Row, Vocabulary, fill_row, init, logits, loss
from .models.unified.network import decays, shapes
from .models.unified.sequence import Ints, cached_row
from .tokenizers import AudioTokenizer, ImageTokenizer, jitter_images

__all__ = ["FAR", "Album", "Albums", "config_of", "run"]

NAMES = 4
GROUPS = 45  # Two items and a question each: 1,035 tokens.
FAR = 256  # Tokens between item and question from which a question counts as far.
WINDOW = 20  # Segments that attention sees in the baseline: four groups, 92 tokens; through two layers, 184.
DISTANCES = (0, 64, 128, 256, 512, 1024, 2048, 1 << 30)
WIDTH, DEPTH, HEADS, HIDDEN = 64, 2, 4, 256
ROWS = {4: 24, 8: 12, 16: 8, GROUPS: 4}  # Rows in a step of albums of so many groups.
STAGES = ((0.4, (4,)), (0.6, (4, 8)), (0.8, (8, 16)), (1.0, (16, GROUPS)))  # Groups in turn, until a share.
STEPS = 1000
RATES = {"attention": 3e-3}  # Learning rate by mixer: the better of this and RATE, on a seed of its own.
RATE, WARMUP = 8e-3, 0.05
COPIES = 8  # Jittered copies of each training picture.
TEST_ROWS = 64

Split = Literal["train", "test"]
Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Album:
    """Rows to train on or to ask.

    Parameters
    ----------
    batch : Batch
        Rows of one form.
    digits : ndarray of int, shape (B, items)
        What each item is.
    answers : ndarray of int, shape (B, Q)
        Digit that each question asks for.
    distance : ndarray of int, shape (B, Q)
        Tokens from the label of the item to the question.
    """

    batch: Batch
    digits: Ints
    answers: Ints
    distance: Ints


class Albums:
    """Draws albums from the digits of :func:`sensorium.data.digits`.

    Parameters
    ----------
    seed : int
        Of the codebooks, of the jittered copies and of which pictures are held out.

    Examples
    --------
    >>> from sensorium.recall import Albums
    >>> albums = Albums(seed=0)  # doctest: +SKIP
    >>> albums.draw(8, 45, "train", np.random.default_rng(0)).batch.tokens.shape  # doctest: +SKIP
    (8, 1035)
    """

    def __init__(self, *, seed: int = 0) -> None:
        corpus = digits(seed=seed)
        rng = np.random.default_rng(seed)
        train, test = corpus.select("train"), corpus.select("test")
        copies = [train.images] + [jitter_images(train.images, rng=rng) for _ in range(COPIES)]
        self.image = ImageTokenizer.fit(np.concatenate(copies[:2]), patch=(1, 8), codes=128, rng=rng)
        rate = corpus.sample_rate
        longest = max(map(len, train.audios)) / rate
        self.audio = AudioTokenizer.fit(train.audios, sample_rate=rate, seconds=longest, codes=256, rng=rng)
        groups = np.arange(10)

        def bank(tokenizer: Any, sets: list[Any], group: NDArray[np.int64]) -> Bank:
            codes = np.stack([np.asarray(tokenizer.encode(items), np.int64) for items in sets])
            return Bank.build(codes, group, groups)

        self.banks: dict[str, dict[str, Bank]] = {
            "train": {
                "image": bank(self.image, copies, train.image_group),
                "audio": bank(self.audio, [train.audios], train.audio_group),
            },
            "test": {
                "image": bank(self.image, [test.images], test.image_group),
                "audio": bank(self.audio, [test.audios], test.audio_group),
            },
        }
        self.vocabulary = Vocabulary(
            (
                Modality("image", "diffusion", self.image.size, self.image.tokens),
                Modality("audio", "diffusion", self.audio.size, self.audio.tokens),
                Modality("label", "readout", 10, 1, prompts=NAMES + 1),
                Modality("ask", "readout", 10, 1, prompts=NAMES),
            )
        )

    def row(self, groups: int) -> Row:
        """Return the form of an album of so many groups."""
        return cached_row(self.vocabulary, (("image", "label", "audio", "label", "ask") * groups,))

    def draw(self, rows: int, groups: int, split: Split, rng: np.random.Generator) -> Album:
        """Return ``rows`` albums of ``2 * groups`` items: digits, items and places of the names at random.

        The first item always bears a name.
        """
        row, items = self.row(groups), 2 * groups
        digit = rng.integers(10, size=(rows, items))
        place = np.zeros((rows, NAMES), np.int64)  # The item that bears each name.
        for r in range(rows):
            some = np.append(0, 1 + rng.permutation(items - 1)[: NAMES - 1])
            place[r] = rng.permutation(some)
        label = np.zeros((rows, items), np.int64)
        np.put_along_axis(label, place, np.arange(1, NAMES + 1)[None], axis=1)
        # A question is about one of the names that were given before it.
        given = place[:, None, :] < 2 * np.arange(1, groups + 1)[None, :, None]  # (rows, Q, names)
        name = (given * (1 - rng.random(given.shape))).argmax(axis=-1)
        asked = np.take_along_axis(place, name, axis=1)
        answers = np.take_along_axis(digit, asked, axis=1)
        codes: list[Ints] = []
        item = question = 0
        for slot in row.slots:
            if slot.modality in ("image", "audio"):
                codes.append(self.banks[split][slot.modality].draw(digit[:, item], rng))
            elif slot.modality == "label":
                codes.append(np.stack([label[:, item], digit[:, item]], axis=-1)[:, None])
                item += 1
            else:
                codes.append(np.stack([name[:, question], answers[:, question]], axis=-1)[:, None])
                question += 1
        labels, asks = (
            np.array([s.start for s in row.slots if s.modality == kind]) for kind in ("label", "ask")
        )
        return Album(fill_row(row, codes), digit, answers, asks - labels[asked])


def config_of(
    vocabulary: Vocabulary, mixer: str | tuple[str, ...], window: int | None = None, state: int = 16
) -> Config:
    """Return sizes for which a model with this mixer has as many parameters as one with attention.

    The width of the MLP makes up for what a mixer has more or less.
    """

    def sized(mixer: str | tuple[str, ...], hidden: int, window: int | None = None) -> Config:
        return Config(
            vocabulary, WIDTH, DEPTH, HEADS, hidden, mixer=mixer, window=window, rotary=True, state=state
        )

    def count(config: Config) -> int:
        return sum(int(np.prod(shape)) for shape in shapes(config).values())

    budget, one, two = (count(sized(*of)) for of in (("attention", HIDDEN), (mixer, 1), (mixer, 2)))
    return sized(mixer, 1 + round((budget - one) / (two - one)), window)


def answer(params: dict[str, Any], config: Config, album: Album) -> tuple[Ints, Ints]:
    """Return the likeliest digits for each question ``(B, Q)``, and for each item that is read."""
    row = album.batch.row
    y = logits(params, config, row, album.batch.tokens, row.predicted)
    asked, read = (np.asarray(y[name]).argmax(axis=-1) for name in ("ask", "label"))
    return asked, read


def _measure(params: dict[str, Any], config: Config, albums: list[Album]) -> dict[str, Any]:
    pairs = [answer(params, config, album) for album in albums]
    right = np.concatenate([(p[0] == a.answers).ravel() for p, a in zip(pairs, albums, strict=True)])
    read = np.concatenate([(p[1] == a.digits).ravel() for p, a in zip(pairs, albums, strict=True)])
    distance = np.concatenate([a.distance.ravel() for a in albums])

    def share(right: NDArray[np.bool_]) -> dict[str, Any]:
        number, of = int(right.sum()), right.size
        low, high = wilson(number, of)
        return {"accuracy": number / of, "low": low, "high": high, "questions": of}

    out = {"far": share(right[distance >= FAR]), "read": share(read)}
    for low, high in pairwise(DISTANCES):
        within = (distance >= low) & (distance < high)
        if within.any():
            out[str(low)] = share(right[within])
    return out


@one_blas_thread()
def run(
    mixer: str | tuple[str, ...] = "mamba",
    *,
    window: int | None = None,
    steps: int = STEPS,
    seed: int = 0,
    longer: int = 1,
    learning_rate: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a small unified model on albums, and ask it about albums of items that it has never met.

    Parameters
    ----------
    mixer : str or tuple of str
        As for :class:`sensorium.models.unified.Config`.
    window : int, optional
        Segments that attention sees before its own; :data:`WINDOW` in the baseline.
    steps : int
        Steps of training.
    seed : int
        Seed of everything that is drawn.
    longer : int
        Also ask about albums so many times as long as those of training; 1 for not.
    learning_rate : float, optional
        Of AdamW at its highest; that of the mixer in :data:`RATES`, or :data:`RATE`.
    progress : callable, optional
        Called after every step with ``step``, ``seconds``, ``fraction``, and the ``loss`` of questions.

    Returns
    -------
    dict
        ``test``: accuracy, 95 % Wilson interval and number of questions, ``far`` for those at least
        :data:`FAR` tokens after their item, ``read`` for the items themselves, and by distance; ``longer``
        the same; what was trained, and the processor seconds of training.

    Raises
    ------
    ArgumentError, DTypeError
        Where an argument is none of these.
    """
    steps, longer = check_integer("steps", steps, 1), check_integer("longer", longer, 1)
    peak = RATE
    if learning_rate is not None:
        peak = check_positive("learning_rate", learning_rate)
    elif isinstance(mixer, str):
        peak = RATES.get(mixer, RATE)
    keep_pages()
    albums = Albums(seed=check_integer("seed", seed))
    config = config_of(albums.vocabulary, mixer, window)
    rng, test_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    tables = {"image": albums.image.codebook.table, "audio": albums.audio.codebook.table}
    params = init(config, rng, tables)
    state = optim.adamw_init(params)
    gradient = value_and_grad(loss, has_aux=True)
    start, begin, losses = time.perf_counter(), time.process_time(), []
    for step in range(steps):
        done = step / steps
        lengths = next(some for until, some in STAGES if done < until)
        groups = lengths[step % len(lengths)]
        album = albums.draw(ROWS[groups], groups, "train", rng)
        (_, parts), grads = gradient(params, config, album.batch)
        rate = peak * min(1.0, (done + 1 / steps) / WARMUP, (1 - done) / (1 - WARMUP))
        optim.adamw_step(params, grads, state, lr=rate, weight_decay=0.02, decay=decays, max_norm=1.0)
        losses.append(float(parts["ask"]))
        if progress is not None:
            passed, fraction = time.perf_counter() - start, (step + 1) / steps
            progress({"step": step + 1, "seconds": passed, "fraction": fraction, "loss": losses[-1]})
    seconds = time.process_time() - begin
    out: dict[str, Any] = {
        "mixer": config.mixer if isinstance(config.mixer, str) else list(config.mixer),
        "window": window,
        "seed": seed,
        "steps": steps,
        "learning_rate": peak,
        "parameters": sum(int(np.prod(shape)) for shape in shapes(config).values()),
        "hidden": config.hidden,
        "tokens": albums.row(GROUPS).length,
        "processor_seconds": seconds,
        "threads": get_num_threads(),
        "losses": [round(float(np.mean(part)), 4) for part in np.array_split(losses, min(steps, 50))],
    }
    for name, times, rows in (("test", 1, TEST_ROWS), ("longer", longer, TEST_ROWS // 4)):
        if name == "test" or longer > 1:
            asked = [
                albums.draw(min(4, rows - done), times * GROUPS, "test", test_rng)
                for done in range(0, rows, 4)
            ]
            out[name] = _measure(params, config, asked)
    return out
