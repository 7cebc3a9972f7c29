"""From a corpus to the codes of training rows: tokenisers, banks of codes by group, and draws from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .data.corpus import Corpus
from .errors import ArgumentError
from .models.unified import Modality, Vocabulary
from .models.unified.model import text_codes
from .models.unified.sequence import Ints, Row, Task, names_of
from .recipe import Recipe, default_patch, tasks_of
from .tokenizers import AudioTokenizer, ImageTokenizer, TextTokenizer, jitter_images

__all__ = ["Bank", "Sampler", "fit_tokenizers", "make_banks", "plans_of", "vocabulary_of"]


def fit_tokenizers(corpus: Corpus, recipe: Recipe, rng: np.random.Generator) -> dict[str, Any]:
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


def vocabulary_of(tokenizers: Mapping[str, Any], recipe: Recipe) -> Vocabulary:
    out = []
    for name, t in tokenizers.items():
        if name == "text":
            out.append(Modality("text", "autoregressive", t.size, t.tokens - 1, t.end))
        else:
            out.append(Modality(name, getattr(recipe, name), t.size, t.tokens))
    return Vocabulary(tuple(out))


@dataclass(frozen=True)
class Bank:
    """Codes of one modality by group: ``codes (copies, items, length)``, items sorted by group."""

    codes: Ints
    start: Ints
    count: Ints

    @classmethod
    def build(cls, codes: Ints, group: NDArray[np.int64], groups: NDArray[np.int64]) -> Bank:
        order = np.argsort(group, kind="stable")
        start = np.searchsorted(group[order], groups, side="left")
        stop = np.searchsorted(group[order], groups, side="right")
        return cls(np.ascontiguousarray(codes[:, order]), start, stop - start)

    def draw(self, groups: Ints, rng: np.random.Generator) -> Ints:
        """Return the codes of a random copy of a random item of each group."""
        item = self.start[groups] + (rng.random(len(groups)) * self.count[groups]).astype(np.int64)
        return self.codes[rng.integers(len(self.codes), size=len(groups)), item]


def make_banks(
    corpus: Corpus, tokenizers: Mapping[str, Any], recipe: Recipe, rng: np.random.Generator
) -> dict[str, Bank]:
    """Return the codes of every training item, and of jittered copies of the images."""
    groups = corpus.groups
    out: dict[str, Bank] = {}
    if "text" in tokenizers:
        out["text"] = Bank.build(
            text_codes(tokenizers["text"], corpus.texts)[None], corpus.text_group, groups
        )
    if "image" in tokenizers:
        copies = [corpus.images] + [jitter_images(corpus.images, rng=rng) for _ in range(recipe.jitter)]
        codes = np.stack([np.asarray(tokenizers["image"].encode(c), np.int64) for c in copies])
        out["image"] = Bank.build(codes, corpus.image_group, groups)
    if "audio" in tokenizers:
        codes = np.asarray(tokenizers["audio"].encode(corpus.audios), np.int64)
        out["audio"] = Bank.build(codes[None], corpus.audio_group, groups)
    return out


def plans_of(recipe: Recipe, banks: Mapping[str, Bank]) -> list[tuple[Task, ...]]:
    """Return the tasks of the rows in the order of their steps, from the first to where they repeat."""
    main = tuple(t for task in tasks_of(recipe, list(banks)) for t in _served(task, banks))
    if not main:
        raise ArgumentError("corpus has no group with items of two modalities")
    alone: tuple[Task, ...] = tuple((name,) for name in banks if name != "text")
    if not recipe.unconditional_every:
        return [main]
    return [main] * (recipe.unconditional_every - 1) + [alone]


def _served(task: Task, banks: Mapping[str, Bank]) -> tuple[Task, ...]:
    """Return the task, or where only some groups have items for all of its targets, a task for each target.

    What no group has the items for is left out.
    """
    *sources, targets = task
    if isinstance(targets, str):
        return (task,) if len(_eligible(task, banks)) else ()
    single = [(*sources, target) for target in targets]
    able = [_eligible(one, banks) for one in single]
    whole = _eligible(task, banks)
    if len(whole) and all(len(groups) == len(whole) for groups in able):
        return (task,)
    return tuple(one for one, groups in zip(single, able, strict=True) if len(groups))


def _eligible(task: Task, banks: Mapping[str, Bank]) -> Ints:
    """Return the groups that have an item of every modality of the task."""
    names = names_of(task)
    if any(name not in banks for name in names):
        return np.zeros(0, np.int64)
    has = np.logical_and.reduce([banks[name].count > 0 for name in names])
    return np.flatnonzero(has)


class Sampler:
    """Draws the codes of a row: for each task a group that can serve it, for each slot an item of it."""

    def __init__(self, row: Row, banks: Mapping[str, Bank]) -> None:
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
