"""What training chooses: sizes, tokens, tasks, the optimiser and its schedule, decoding."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ._training import rate
from .models.unified import Decoding, Row, Vocabulary
from .models.unified.sequence import Task, cached_row

__all__ = ["Recipe", "default_patch", "learning_rate", "tasks_of", "training_row"]

PATCH_VALUES = 64


@dataclass(frozen=True)
class Recipe:
    """Everything that training chooses.

    Parameters
    ----------
    width, depth, heads, hidden
        Sizes of the transformer (:class:`sensorium.models.unified.Config`).
    mixer : str or sequence of str
        What mixes the tokens, as for :class:`~sensorium.models.unified.Config`.
    image, audio : {"diffusion", "autoregressive"}
        How the modality is written.
    image_codes, audio_codes : int
        Sizes of the codebooks.
    patch : tuple of int, optional
        Height and width of an image token; :func:`default_patch` where not given.
    rows : int
        Packed rows in a step; a row holds a sample of each task.
    tasks : tuple of Task, optional
        What every row practises (:mod:`sensorium.models.unified.sequence` says how tasks are written). Where
        not given: from each modality to all others, and images to text once more, the hardest to read.
    unconditional_every : int
        Every so many steps the rows hold images and sounds without a source, for guidance; 0 for never.
    learning_rate, warmup, betas, weight_decay, max_norm
        AdamW with a linear warm-up over the first ``warmup`` share of training and a linear decay to zero;
        gradients are clipped to ``max_norm``.
    loss_weights : mapping
        ``lambda`` of each modality.
    least_mask : float
        Smallest masked share of a diffusion target.
    jitter : int
        Slightly moved, turned, stretched and warped copies made of each training image; 0 for none. Copies of
        sounds made in the same way did not help.
    """

    width: int = 96
    depth: int = 3
    heads: int = 3
    hidden: int = 384
    mixer: str | Sequence[str] = "attention"
    image: str = "diffusion"
    audio: str = "diffusion"
    image_codes: int = 128
    audio_codes: int = 256
    patch: tuple[int, int] | None = None
    rows: int = 12
    tasks: tuple[Task, ...] | None = None
    unconditional_every: int = 8
    learning_rate: float = 4e-3
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
            "audio": Decoding(0.7, guidance=1.5, steps=12, choice_temperature=0.5, candidates=2),
        }
    )

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as plain data."""
        out: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        if out["mixer"] == "attention":
            del out["mixer"]  # as in checkpoints from before there was a choice
        return out


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


def tasks_of(recipe: Recipe, names: Sequence[str]) -> tuple[Task, ...]:
    """Return the tasks of a usual row for these modalities."""
    if recipe.tasks is not None:
        return recipe.tasks
    every: tuple[Task, ...] = tuple((a, tuple(b for b in names if b != a)) for a in names)
    return (*every, ("image", "text")) if {"image", "text"} <= set(names) and len(names) > 2 else every


def training_row(vocabulary: Vocabulary, recipe: Recipe) -> Row:
    """Return the form of the usual training row."""
    return cached_row(vocabulary, tasks_of(recipe, list(vocabulary.by_name)))


def learning_rate(recipe: Recipe, fraction: float) -> float:
    """Return the rate after ``fraction`` of training: up to the peak in ``warmup``, then down to zero."""
    return rate(recipe.learning_rate, recipe.warmup, fraction)
