"""How well a model turns held-out items into each other, judged by classifiers that never saw its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._blas import one_blas_thread
from .data.corpus import Corpus
from .judge import Judge, audio_features, distinct_share, nearest_neighbour_distance, wilson
from .models.unified import Model

__all__ = ["DIRECTIONS", "Answers", "evaluate"]

DIRECTIONS = (
    ("image", "text"),
    ("audio", "text"),
    ("text", "image"),
    ("text", "audio"),
    ("image", "audio"),
    ("audio", "image"),
)
BATCH = 512  # Sources decoded together: the hidden states of a batch stay within tens of MB.


@dataclass(frozen=True)
class Answers:
    """What a model made of the held-out items in one direction.

    Parameters
    ----------
    sources, outputs : list
        Texts, images or sounds, in the same order.
    expected, judged : ndarray of int
        Group of each source, and the group that the judge saw in the output; -1 for a word that is none.
    """

    sources: list[Any]
    outputs: list[Any]
    expected: NDArray[np.int64]
    judged: NDArray[np.int64]
    codes: NDArray[np.int64] = field(repr=False)

    @property
    def accuracy(self) -> float:
        """Share judged right."""
        return float(np.mean(self.expected == self.judged))

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson interval of the share, 95 %."""
        return wilson(int(np.sum(self.expected == self.judged)), len(self.expected))


def _sources(corpus: Corpus, kind: str, repeats: int) -> tuple[list[Any], NDArray[np.int64]]:
    """Held-out items of a modality with their groups; texts, of which there are few, several times each."""
    if kind == "text":
        return list(np.repeat(corpus.texts, repeats)), np.repeat(corpus.text_group, repeats)
    items = list(corpus.images) if kind == "image" else list(corpus.audios)
    return items, corpus.image_group if kind == "image" else corpus.audio_group


def answer(
    model: Model,
    judge: Judge,
    corpus: Corpus,
    source: str,
    target: str,
    *,
    rng: np.random.Generator,
    repeats: int = 36,
    **overrides: Any,
) -> Answers:
    """Turn every held-out item of ``source`` into ``target`` and have it judged.

    Parameters
    ----------
    model, judge : Model, Judge
        Who writes and who reads.
    corpus : Corpus
        The held-out items.
    source, target : str
        Modalities.
    rng : numpy.random.Generator
        Source of the draws.
    repeats : int
        Outputs for each text.
    **overrides
        Decoding settings other than the model's own (see :meth:`Model.generate_codes`).
    """
    items, expected = _sources(corpus, source, repeats)
    codes = model.encode(source, items)
    parts = [
        model.generate_codes(source, codes[i : i + BATCH], target, rng=rng, **overrides)
        for i in range(0, len(codes), BATCH)
    ]
    out = np.concatenate(parts)
    outputs = model.decode(target, out)
    if target == "text":
        group = dict(zip(corpus.texts, corpus.text_group.tolist(), strict=True))
        judged = np.array([group.get(text, -1) for text in outputs], np.int64)
    elif target == "image":
        judged = judge.image(np.stack(outputs))
    else:
        judged = judge.audio(outputs, model.sample_rate)
    return Answers(items, outputs, np.asarray(expected), np.asarray(judged), out)


@one_blas_thread()
def evaluate(
    model: Model, judge: Judge, corpus: Corpus, *, seed: int = 0, repeats: int = 36
) -> tuple[dict[str, Any], dict[str, Answers]]:
    """Measure all directions on the held-out split, and the diversity of what is written.

    Parameters
    ----------
    model : Model
        The model.
    judge : Judge
        Fitted on real training items.
    corpus : Corpus
        The whole corpus; sources are its ``test`` items, neighbours are looked up among its ``train`` items.
    seed : int
        Seed of the draws.
    repeats : int
        Outputs for each text.

    Returns
    -------
    metrics : dict
        ``accuracy.image_to_text`` and so on with ``_low`` and ``_high``, ``judge.image``, ``judge.audio``,
        and ``diversity.*``.
    answers : dict
        :class:`Answers` of each direction, ``"image_to_text"`` and so on.
    """
    test, train = corpus.select("test"), corpus.select("train")
    rng = np.random.default_rng(seed)
    metrics: dict[str, Any] = {}
    answers: dict[str, Answers] = {}
    for source, target in DIRECTIONS:
        name = f"{source}_to_{target}"
        a = answers[name] = answer(model, judge, test, source, target, rng=rng, repeats=repeats)
        low, high = a.interval
        metrics |= {
            f"accuracy.{name}": a.accuracy,
            f"accuracy.{name}_low": low,
            f"accuracy.{name}_high": high,
        }
    for source, target in (("image", "audio"), ("audio", "image")):
        direct = answer(model, judge, test, source, target, rng=rng, through_words=False)
        metrics[f"direct.{source}_to_{target}"] = direct.accuracy
    for target in ("image", "audio"):
        first = answer(model, judge, test, "text", target, rng=rng, repeats=repeats, candidates=1)
        metrics[f"first_candidate.text_to_{target}"] = first.accuracy
    metrics |= {f"judge.{name}": value for name, value in judge.score(test).items()}
    metrics |= _diversity(answers, train, test)
    return metrics, answers


def _diversity(answers: Mapping[str, Answers], train: Corpus, test: Corpus) -> dict[str, Any]:
    """Whether outputs are new and different: distances to the nearest training item, and the distinct share.

    Sounds are compared by the judge's features of them, which leave out loudness and phase.
    """

    def hear(sounds: list[NDArray[np.float32]]) -> NDArray[np.float64]:
        return audio_features(sounds, train.sample_rate)

    images, sounds = (list(answers[f"text_to_{target}"].outputs) for target in ("image", "audio"))
    near = {
        "image": nearest_neighbour_distance(np.stack(images), train.images, test.images),
        "audio": nearest_neighbour_distance(hear(sounds), hear(train.audios), hear(test.audios)),
    }
    out: dict[str, Any] = {}
    for target, figures in near.items():
        out[f"diversity.{target}_distinct"] = distinct_share(list(answers[f"text_to_{target}"].codes))
        out |= {f"diversity.{target}_nearest_{name}": value for name, value in figures.items()}
    return out
