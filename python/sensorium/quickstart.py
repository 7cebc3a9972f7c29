"""The main job: train on digits for half a minute, measure all six directions, write one page."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import checkpoint
from ._config import config as environment
from .data.corpus import Corpus
from .data.digits import digits
from .evaluate import DIRECTIONS, Answers, evaluate
from .judge import Judge
from .models.unified import Model
from .recipe import Recipe, training_row
from .report import Media, Report, Sample, write_report
from .train import FitResult, fit

__all__ = ["run"]

SHOWN = 10  # Samples of each direction in the report: one a digit.


def run(
    *,
    seconds: float | None = 30.0,
    steps: int | None = None,
    seed: int = 0,
    out: str | Path = "quickstart",
    images: str = "sklearn",
    recipe: Recipe | None = None,
    resume: bool = False,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train an any-to-any model on digits and write ``model.safetensors``, ``metrics.json``, ``report.html``.

    Parameters
    ----------
    seconds : float, optional
        Wall-clock time to train for.
    steps : int, optional
        Steps to train for instead of ``seconds``.
    seed : int
        Seed of training, evaluation and the held-out images.
    out : path
        Folder to write to; made where it is not there.
    images : {"sklearn", "mnist"}
        See :func:`sensorium.data.digits`.
    recipe : Recipe, optional
        Choices of training.
    resume : bool
        Go on from ``out/checkpoint.safetensors`` where it is there.
    progress : callable, optional
        Called with a dict a few times a second (see :func:`sensorium.train.fit`).

    Returns
    -------
    dict
        What ``metrics.json`` holds.
    """
    if steps is not None:
        seconds = None
    recipe = recipe or Recipe()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = digits(images, seed=seed)  # type: ignore[arg-type]
    result = fit(
        corpus,
        recipe,
        seconds=seconds,
        steps=steps,
        seed=seed,
        checkpoint_path=folder / "checkpoint.safetensors",
        resume=resume,
        progress=progress,
        preview=_preview(corpus),
    )
    result.model.save(folder / "model.safetensors")
    if progress is not None:
        progress({"phase": "measuring all six directions on held-out items"})
    begin = time.perf_counter()
    metrics, answers = evaluate(result.model, Judge().fit(corpus), corpus, seed=seed)
    about = environment()
    metrics |= result.facts(seed) | {
        "isa": about["isa"],
        "version": about["sensorium"],
        "evaluation_seconds": time.perf_counter() - begin,
        "images": images,
    }
    checkpoint.write_json(folder / "metrics.json", metrics)
    goal = f"--steps {steps}" if steps is not None else f"--seconds {seconds:g}"
    command = f"sensorium quickstart {goal} --seed {seed} --images {images}"
    report = make_report(result, recipe, metrics, answers, corpus.names or (), command)
    write_report(folder / "report.html", report)
    return metrics


def _preview(corpus: Corpus) -> Callable[[Model], list[tuple[str, Any]]]:
    """Return what shows a word that is drawn and a held-out image that is read, another one each time."""
    test = corpus.select("test")
    turn = iter(range(10**9))

    def show(model: Model) -> list[tuple[str, Any]]:
        i = next(turn)
        word, image = test.texts[i % len(test.texts)], test.images[i % len(test.images)]
        drawn = model.generate(word, to="image", candidates=1, seed=i)[0]
        read = model.generate(image, to="text", seed=i)[0]
        return [(word, drawn), (read or "-", image)]

    return show


def _media(kind: str, value: Any, rate: int) -> Media:
    if kind == "text":
        return Media("text", str(value))
    return Media("audio", (value, rate)) if kind == "audio" else Media("image", value)


def _samples(a: Answers, source: str, target: str, names: Sequence[str], rate: int) -> list[Sample]:
    """One answer for each group in turn, the first of its group: nobody picks the good ones."""
    shown: list[Sample] = []
    for group in range(len(names)):
        for i in np.flatnonzero(a.expected == group)[: max(1, SHOWN // len(names))]:
            judged = names[a.judged[i]] if a.judged[i] >= 0 else "no word of the ten"
            shown.append(
                Sample(
                    _media(source, a.sources[i], rate),
                    _media(target, a.outputs[i], rate),
                    names[group],
                    judged,
                )
            )
    return shown


def make_report(
    result: FitResult,
    recipe: Recipe,
    metrics: Mapping[str, Any],
    answers: Mapping[str, Answers],
    names: Sequence[str],
    command: str,
) -> Report:
    """Gather what the page shows.

    Parameters
    ----------
    result, recipe : FitResult, Recipe
        The run.
    metrics, answers : mapping
        From :func:`sensorium.evaluate.evaluate`.
    names : sequence of str
        Names of the groups.
    command : str
        What makes this page again.
    """
    model = result.model
    row = training_row(model.config.vocabulary, recipe)
    diversity = {k.removeprefix("diversity."): v for k, v in metrics.items() if k.startswith("diversity.")}
    other = {k: v for k, v in metrics.items() if k.startswith(("direct.", "first_candidate."))}
    notes = [
        "Every input is an item held out from training. The outputs shown are the first of each digit.",
        "Image to audio and audio to image write a word first and go on from that word; the figures without "
        "it are those called direct.",
        "Judges are classifiers trained on real training items alone; their own accuracy on real held-out "
        "items is the ceiling. Intervals are Wilson's, at 95 %.",
    ]
    if result.interrupted:
        notes.insert(0, "Training was ended early by the user.")
    return Report(
        title="Any to any: digits written, spoken and spelt",
        metrics=metrics,
        directions={
            f"{s}_to_{t}": _samples(answers[f"{s}_to_{t}"], s, t, names, model.sample_rate)
            for s, t in DIRECTIONS
        },
        history=result.history,
        layout=row.layout,
        parts=[(slot.modality, slot.stop - slot.start) for slot in row.slots],
        diversity=diversity | other,
        timings={
            "training, seconds": result.seconds,
            "steps": result.steps,
            "milliseconds a step": 1e3 * result.seconds / max(1, result.steps),
            "evaluation, seconds": metrics["evaluation_seconds"],
        },
        config={"model": model.describe(), "recipe": recipe.to_json(), "environment": environment()},
        notes=notes,
        reproduce=command,
    )
