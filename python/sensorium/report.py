"""One self-contained page about a run: what went in, what came out, how often it was right.

The page holds its own pictures, sounds and curves, has no script in it, and forbids itself to load anything:
it works from a disk, on a telephone, years later. It is made from plain data, so that anybody's model can
have one. Whatever text is shown is shown as text, never as markup.
"""

from __future__ import annotations

import datetime
import importlib.resources
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from . import _core
from ._figures import Curve, chart, escape, mask_png, picture_png, spectrogram_png, wav, waveform
from .checkpoint import write_atomically
from .errors import ArgumentError, DTypeError, SensoriumError, ShapeError

__all__ = ["Media", "Report", "Sample", "write_report"]

Kind = Literal["text", "image", "audio"]
_COLOURS = {"loss": 0, "loss_text": 1, "loss_image": 2, "loss_audio": 3}
_LONG_WORD = 24
_MASK_COLOUR = (53, 88, 201)
_MASK_PIXELS = 1024  # a longer sequence is drawn with several tokens to a pixel


class Maskable(Protocol):
    """A layout: what can say which query sees which key."""

    def dense(self) -> NDArray[np.bool_]:
        """Return the mask, bool ``(N, N)``."""


@dataclass(frozen=True, eq=False)
class Media:
    """Something to show.

    Parameters
    ----------
    kind : {"text", "image", "audio"}
    value : str, ndarray, or (ndarray, int)
        A text; an image ``(H, W)`` or ``(H, W, 3)`` in [0, 1]; samples ``(n,)`` in [-1, 1] and how many of
        them a second has.
    """

    kind: Kind
    value: Any

    def __post_init__(self) -> None:
        if self.kind == "text":
            if not isinstance(self.value, str):
                raise DTypeError(f"value of a text is {type(self.value).__name__}, expected str")
        elif self.kind == "image":
            shape = np.shape(self.value)
            if not (len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)) or 0 in shape:
                raise ShapeError(f"value of an image has shape {shape}, expected (H, W) or (H, W, 3)")
        elif self.kind == "audio":
            if not isinstance(self.value, tuple) or len(self.value) != 2:
                raise DTypeError("value of a sound must be a pair: samples, and their number a second")
            if np.ndim(self.value[0]) != 1:
                raise ShapeError(f"value of a sound has shape {np.shape(self.value[0])}, expected (samples,)")
            if not 0 < int(self.value[1]) < 1 << 31:
                raise ArgumentError(f"value of a sound has {self.value[1]} samples a second")
        else:
            raise ArgumentError(f"kind must be text, image or audio, not {self.kind!r}")


@dataclass(frozen=True, eq=False)
class Sample:
    """A real input, what the model made of it, and what a judge says.

    Parameters
    ----------
    source, output : Media
        Input and generated output.
    expected : str
        Name of what the output should be; empty where nobody knows.
    judged : str, optional
        Name of what the judge saw in it.
    """

    source: Media
    output: Media
    expected: str = ""
    judged: str | None = None

    @property
    def right(self) -> bool | None:
        """Whether the judge agrees; None where there is nothing to agree with."""
        return None if self.judged is None or not self.expected else self.judged == self.expected


@dataclass(frozen=True, eq=False)
class Report:
    """All that the page shows; what is empty is left out.

    Parameters
    ----------
    title : str
        Heading.
    metrics : mapping of str to number
        ``accuracy.image_to_text`` and so on, each with ``_low`` and ``_high``; ``judge.image`` and
        ``judge.audio``; ``train_seconds``, ``steps``, ``parameters``, ``threads``, ``seed``.
    directions : mapping of str to sequence of Sample
        Samples by direction, ``"image_to_text"`` and so on, shown in this order.
    history : sequence of mapping
        Records of training: ``step``, ``seconds``, ``loss``, ``loss_text``, ``loss_image``, ``loss_audio``,
        ``examples_per_second``; a record may lack some.
    layout : Layout, optional
        Of the sequence that the model was trained on; its mask is drawn.
    parts : sequence of (str, int), optional
        Names and lengths of the parts of that sequence, drawn along the mask.
    diversity, timings, config : mapping
        Tables of names and values; mappings within are written with dots.
    notes : sequence of str
        Paragraphs at the end.
    reproduce : str
        The command that makes this page again.
    """

    title: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    directions: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    layout: Maskable | None = None
    parts: Sequence[tuple[str, int]] = ()
    diversity: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    reproduce: str = ""


def write_report(path: str | os.PathLike[str], report: Report) -> None:
    """Write the page; a page that was there stays whole until the new one is.

    Parameters
    ----------
    path : path-like
        Where to, ``report.html`` by custom.
    report : Report
        What to show.

    Raises
    ------
    OSError
        Where it cannot be written.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> sample = Sample(Media("image", np.eye(8)), Media("text", "seven"), expected="seven", judged="one")
    >>> report = Report("A run", directions={"image_to_text": [sample]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = pathlib.Path(folder) / "report.html"
    ...     write_report(page, report)
    ...     "seven" in page.read_text(encoding="utf-8")
    True
    """
    write_atomically(path, render(report).encode())


def render(report: Report) -> str:
    """Return the page as one string of HTML."""
    sections = [
        ("accuracy", "Accuracy", _accuracy(report.metrics)),
        ("samples", "Samples", _directions(report)),
        ("training", "Training", _training(report.history)),
        ("attention", "Attention mask", _mask(report)),
        ("variety", "Variety", _settings(report.diversity)),
        ("time", "Timings", _settings(report.timings)),
        ("settings", "Configuration", _settings(report.config)),
        ("again", "How to reproduce", _again(report)),
    ]
    return page(report.title, _summary(report.metrics), sections)


def page(title: str, lead: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """Return a page that holds all that it needs, as one string of HTML.

    Parameters
    ----------
    title : str
        Heading, as plain text.
    lead : str
        HTML under it.
    sections : sequence of (str, str, str)
        Anchor, heading and HTML of each; what is empty is left out.
    """
    shown = [(anchor, heading, body) for anchor, heading, body in sections if body]
    links = "".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading, _ in shown)
    body = "".join(
        f'<section id="{anchor}"><h2>{heading}</h2>{body}</section>' for anchor, heading, body in shown
    )
    css = importlib.resources.files(__package__).joinpath("_report.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        # Nothing is loaded and nothing runs, whatever the data says.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "media-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{css}</style></head>\n'
        f"<body><main><header><h1>{escape(title)}</h1>{lead}<nav>{links}</nav></header>"
        f"{body}</main></body></html>\n"
    )


# --- sections: each returns HTML, or nothing where there is nothing to show -----------------------------


def _summary(metrics: Mapping[str, Any]) -> str:
    facts = []
    if _is_number(metrics.get("train_seconds")):
        facts.append(f"{metrics['train_seconds']:.1f} s of training")
    for key, words in (("steps", "steps"), ("parameters", "parameters"), ("threads", "threads")):
        if _is_number(metrics.get(key)):
            facts.append(f"{metrics[key]:,} {words}")
    if "seed" in metrics:
        facts.append(f"seed {metrics['seed']}")
    if metrics.get("interrupted"):
        facts.append("ended early by hand")
    facts.append(f"sensorium {_core.__version__}")
    facts.append(datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"))
    return f'<p class="lead">{escape(" · ".join(facts))}</p>'


def _accuracy(metrics: Mapping[str, Any]) -> str:
    names = [
        key.removeprefix("accuracy.")
        for key in metrics
        if key.startswith("accuracy.") and not key.endswith(("_low", "_high"))
    ]
    if not names:
        return ""
    ceilings = False
    rows = []
    for name in names:
        share, low, high = (metrics.get(f"accuracy.{name}{end}") for end in ("", "_low", "_high"))
        ceiling = metrics.get(f"judge.{name.rpartition('_to_')[2]}")
        ceilings |= _is_number(ceiling)
        interval = f"{_percent(low)} to {_percent(high)}" if _is_number(low) and _is_number(high) else ""
        rows.append(
            f"<tr><td>{_direction(name)}</td><td>{_bar(share, low, high, ceiling)}</td>"
            f'<td class="number">{_percent(share)}</td><td class="number">{interval}</td>'
            f'<td class="number">{_percent(ceiling) if _is_number(ceiling) else ""}</td></tr>'
        )
    note = "Held-out items, none of which was trained on. The thin line is the 95 % interval."
    if ceilings:
        note += (
            " A judge is a classifier that learnt from real training items alone. The green mark and the "
            "last column are its accuracy on real held-out items: what a perfect model could be expected to "
            "reach. Words need no judge."
        )
    head = (
        '<th>direction</th><th></th><th class="number">right</th><th class="number">interval</th>'
        f'<th class="number">{"judge on real items" if ceilings else ""}</th>'
    )
    return (
        f'<div class="scroll"><table class="accuracy"><thead><tr>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><p class="note">{note}</p>'
    )


def _bar(share: object, low: object, high: object, ceiling: object) -> str:
    marks = []
    if _is_number(share):
        marks.append(f'<i style="width:{_place(share):.1f}%"></i>')
    if _is_number(low) and _is_number(high):
        left, right = _place(low), _place(high)
        marks.append(f'<b style="left:{left:.1f}%;width:{max(right - left, 0.4):.1f}%"></b>')
    if _is_number(ceiling):
        marks.append(f'<s style="left:{_place(ceiling):.1f}%"></s>')
    return f'<div class="bar">{"".join(marks)}</div>'


def _directions(report: Report) -> str:
    parts = []
    for name, samples in report.directions.items():
        share = report.metrics.get(f"accuracy.{name}")
        small = f"<small>{_percent(share)} right</small>" if _is_number(share) else ""
        cards = "".join(_card(sample) for sample in samples)
        parts.append(f'<h3>{_direction(name)}{small}</h3><div class="cards">{cards}</div>')
    return "".join(parts)


def _card(sample: Sample) -> str:
    players = "".join(
        f'<audio controls preload="metadata" src="{wav(*media.value)}"></audio>'
        for media in (sample.source, sample.output)
        if media.kind == "audio"
    )
    state = {None: "", True: " right", False: " wrong"}[sample.right]
    verdict = escape(sample.expected)
    if sample.right is True:
        verdict = f"<b>✓ right</b>: {verdict}"
    elif sample.right is False:
        verdict = f"<b>✗ wrong</b>: {escape(sample.judged) or 'no word'} for {verdict}"
    pair = f'<div class="pair">{_media(sample.source)}<span>→</span>{_media(sample.output)}</div>'
    return f'<div class="card{state}">{pair}{players}<div class="verdict">{verdict}</div></div>'


def _media(media: Media) -> str:
    if media.kind == "text":
        long = " long" if len(media.value) > _LONG_WORD else ""
        shown = f'<span class="word{long}">{escape(media.value) or "<i>nothing</i>"}</span>'
    elif media.kind == "image":
        shown = f'<img src="{picture_png(np.asarray(media.value))}" alt="picture">'
    else:
        samples, rate = np.asarray(media.value[0]), int(media.value[1])
        shown = (
            f'<img class="sound" src="{spectrogram_png(samples, rate)}" alt="spectrogram">{waveform(samples)}'
        )
    return f'<div class="media">{shown}</div>'


def _training(history: Sequence[Mapping[str, Any]]) -> str:
    if not history:
        return ""
    across = "seconds" if all("seconds" in record for record in history) else "step"

    def curve(key: str, name: str, colour: int) -> Curve:
        kept = [r for r in history if _is_number(r.get(key)) and _is_number(r.get(across))]
        return Curve(name, [float(r[across]) for r in kept], [float(r[key]) for r in kept], colour)

    keys = sorted({key for record in history for key in record if key == "loss" or key.startswith("loss_")})
    losses = [
        curve(key, "all" if key == "loss" else key.removeprefix("loss_"), _COLOURS.get(key, i % 4))
        for i, key in enumerate(keys)
    ]
    plots = [chart(losses, x_label=across, y_label="loss")]
    if any("examples_per_second" in record for record in history):
        speed = curve("examples_per_second", "examples a second", 1)
        plots.append(chart([speed], x_label=across, y_label="examples a second"))
    return f'<div class="plots">{"".join(plots)}</div>'


def _mask(report: Report) -> str:
    if report.layout is None:
        return ""
    try:
        mask = np.asarray(report.layout.dense(), np.bool_)
    except (SensoriumError, MemoryError):  # a sequence that is too long to be drawn must not cost the report
        return ""
    n = len(mask)
    if not n:
        return ""
    scale, margin = 100 / n, 12.0
    lines, names, at = [], [], 0
    for name, length in report.parts:
        start, middle, at = at * scale, (at + length / 2) * scale, at + length
        if start:
            lines.append(f'<path class="cut" d="M{start:.2f} 0V100M0 {start:.2f}H100"/>')
        names.append(
            f'<text x="-1.2" y="{middle + 0.9:.2f}" text-anchor="end">{escape(name)}</text>'
            f'<text transform="translate({middle + 0.9:.2f} -1.2) rotate(-60)">{escape(name)}</text>'
        )
    box = f"{-margin} {-margin} {100 + 2 * margin:.0f} {100 + margin:.0f}"
    step = -(-n // _MASK_PIXELS)
    starts = range(0, n, step)
    pixels = np.logical_or.reduceat(np.logical_or.reduceat(mask, starts, axis=0), starts, axis=1)
    png = mask_png(pixels, _MASK_COLOUR)
    seen = f"{int(mask.sum()):,} of {mask.size:,} pairs, {_percent(mask.mean())}"
    return (
        f'<figure><svg class="mask" viewBox="{box}" role="img" aria-label="attention mask">'
        f'<image href="{png}" width="100" height="100" preserveAspectRatio="none"/>'
        f'{"".join(lines)}<rect class="frame" width="100" height="100"/>{"".join(names)}</svg>'
        f"<figcaption>A row is a query, a column is a key, and a coloured point is a query that sees a key: "
        f"{seen}. The kernel visits these alone.</figcaption></figure>"
    )


def _settings(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(_plain(value))}</td></tr>" for name, value in _dotted(values)
    )
    return f'<div class="scroll"><table class="settings"><tbody>{rows}</tbody></table></div>' if rows else ""


def _again(report: Report) -> str:
    command = f"<pre>{escape(report.reproduce)}</pre>" if report.reproduce else ""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in report.notes)
    return command + notes


# --- words and numbers ----------------------------------------------------------------------------------


def _direction(name: str) -> str:
    """Return ``image_to_text`` as it is read: image → text."""
    return escape(name.replace("_to_", " → "))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)


def _place(share: Any) -> float:
    return 100 * min(max(float(share), 0.0), 1.0)


def _percent(share: Any) -> str:
    return f"{100 * float(share):.1f} %" if _is_number(share) else "-"


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return str(value)


def _dotted(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        rows += (
            _dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
        )
    return rows
