"""Training on a user's own manifest: what ``sensorium train`` does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ._config import config as environment
from .checkpoint import write_json
from .data.corpus import Corpus
from .data.manifest import load_manifest
from .judge import wilson
from .models.unified import Model
from .report import Media, Report, Sample, write_report
from .train import fit

__all__ = ["run"]

SHOWN = 10  # samples of each direction in the report
ASKED = 200  # held-out rows that are read out as text to be compared
LISTED = 10  # rows left out that are named one by one

KINDS = ("text", "image", "audio")


def run(
    data: str | os.PathLike[str],
    *,
    seconds: float | None,
    steps: int | None,
    seed: int,
    out: Path,
    resume: bool,
    strict: bool,
    image_size: tuple[int, int],
    channels: Literal[1, 3],
    sample_rate: int,
    progress: Callable[[dict[str, Any]], None] | None,
    warn: Callable[[str], None],
) -> dict[str, Any]:
    """Train on a manifest; write ``model.safetensors``, ``metrics.json`` and ``report.html``.

    Nobody knows what a picture of somebody else's data shows, so there is no judge. The texts of held-out
    rows are compared with what the model reads off their pictures and sounds; everything else is shown, to be
    looked at and listened to.
    """
    out.mkdir(parents=True, exist_ok=True)
    corpus, problems = load_manifest(
        data, image_size=image_size, channels=channels, sample_rate=sample_rate, strict=strict
    )
    for problem in problems[:LISTED]:
        warn(f"{os.fspath(data)}, {problem}")
    if len(problems) > LISTED:
        warn(f"and {len(problems) - LISTED} more rows that cannot be used")
    result = fit(
        corpus,
        seconds=seconds,
        steps=steps,
        seed=seed,
        checkpoint_path=out / "checkpoint.safetensors",
        resume=resume,
        progress=progress,
    )
    result.model.save(out / "model.safetensors")
    if progress is not None:
        progress({"phase": "asking the model"})
    begin = time.perf_counter()
    test = corpus.select("test")
    held_out = any(len(items) for items in (test.texts, test.images, test.audios))
    metrics = (_accuracies(result.model, test, seed) if held_out else {}) | result.facts(seed)
    metrics["rows_left_out"] = len(problems)
    directions = _samples(result.model, test if held_out else corpus, seed)
    metrics["evaluation_seconds"] = time.perf_counter() - begin
    write_json(out / "metrics.json", metrics)
    goal = f"--steps {steps}" if steps is not None else f"--seconds {seconds:g}"
    report = Report(
        title=f"A model of {Path(data).name}",
        metrics=metrics,
        directions=directions,
        history=result.history,
        timings={key: metrics[key] for key in ("train_seconds", "evaluation_seconds")},
        config={"corpus": repr(corpus), "model": result.model.describe(), "environment": environment()},
        notes=[
            "Sources are held-out rows."
            if held_out
            else 'Sources are training rows: no row has "split": "test", so nothing was measured.',
            *(f"Left out: {problem}" for problem in problems[:LISTED]),
        ],
        reproduce=f"sensorium train --data {os.fspath(data)} {goal} --seed {seed}",
    )
    write_report(out / "report.html", report)
    return metrics


def _items(corpus: Corpus) -> Mapping[str, tuple[list[Any], list[int]]]:
    """Items of each modality with the rows that they are of."""
    return {
        "text": (list(corpus.texts), corpus.text_group.tolist()),
        "image": (list(corpus.images), corpus.image_group.tolist()),
        "audio": (list(corpus.audios), corpus.audio_group.tolist()),
    }


def _accuracies(model: Model, corpus: Corpus, seed: int) -> dict[str, Any]:
    """Return the share of pictures and sounds that are read as exactly the text of their row."""
    if "text" not in model.modalities:
        return {}
    written = dict(zip(corpus.text_group.tolist(), corpus.texts, strict=True))
    metrics: dict[str, Any] = {}
    for kind in ("image", "audio"):
        items, rows = _items(corpus)[kind]
        pairs = [(item, written[row]) for item, row in zip(items, rows, strict=True) if row in written][
            :ASKED
        ]
        if kind not in model.modalities or not pairs:
            continue
        codes = model.encode(kind, [item for item, _ in pairs])
        read = model.decode(
            "text", model.generate_codes(kind, codes, "text", rng=np.random.default_rng(seed))
        )
        right = sum(text == expected for text, (_, expected) in zip(read, pairs, strict=True))
        low, high = wilson(right, len(pairs))
        name = f"accuracy.{kind}_to_text"
        metrics |= {name: right / len(pairs), f"{name}_low": low, f"{name}_high": high}
    return metrics


def _samples(model: Model, corpus: Corpus, seed: int) -> dict[str, list[Sample]]:
    """Return a few items of each modality with what the model makes of them in each other one."""
    written = dict(zip(corpus.text_group.tolist(), corpus.texts, strict=True))
    directions: dict[str, list[Sample]] = {}
    for source in KINDS:
        items, rows = _items(corpus)[source]
        for target in KINDS:
            if source == target or not items or {source, target} - set(model.modalities):
                continue
            shown = list(zip(items, rows, strict=True))[:SHOWN]
            codes = model.encode(source, [item for item, _ in shown])
            rng = np.random.default_rng(seed)
            made = model.decode(target, model.generate_codes(source, codes, target, rng=rng))
            directions[f"{source}_to_{target}"] = [
                Sample(
                    _media(source, item, corpus.sample_rate),
                    _media(target, answer, corpus.sample_rate),
                    expected=written.get(row, ""),
                    judged=answer if target == "text" and row in written else None,
                )
                for (item, row), answer in zip(shown, made, strict=True)
            ]
    return directions


def _media(kind: str, item: Any, rate: int) -> Media:
    if kind == "audio":
        return Media("audio", (item, rate))
    return Media("text", item) if kind == "text" else Media("image", item)
