"""The page about a multimodal VAE: what it writes from what, and how its posterior sharpens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from ._figures import escape, picture_png, spectrogram_png, wav
from .data.multimodal import Encoding, Rows
from .models.vae import Model, encode, generate, interpolate, posterior
from .report import _bar, _percent, _settings, _training, page
from .vae_evaluate import Judges, subsets

__all__ = ["render"]

SHOWN = 10  # rows of the grid: the first of each group
STEPS = 9  # of a way between two rows
WAYS = 3
DOTS = 400  # held-out rows drawn in the latent plane
DEVIATIONS = 2.0  # that an outline is away from its mean
VIEW = 4.2  # half the side of the latent plane


def render(
    model: Model,
    encoding: Encoding,
    rows: Rows,
    metrics: Mapping[str, Any],
    *,
    judges: Judges | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    facts: Mapping[str, Any],
    title: str = "A multimodal VAE",
    notes: Sequence[str] = (),
    reproduce: str = "",
    seed: int = 0,
) -> str:
    """Return the page as one string of HTML.

    Parameters
    ----------
    model, encoding : Model, Encoding
        Who writes, and what makes items of arrays.
    rows : Rows
        Held-out rows to show.
    metrics : mapping
        What :func:`sensorium.vae_evaluate.evaluate` returned.
    judges : Judges, optional
        Say whether what is shown is right.
    history, facts, title, notes, reproduce
        Records of training; a table of settings; heading, paragraphs and a command.
    seed : int
        Seed of what is written.
    """
    rng = np.random.default_rng(seed)
    shown = _first_of_each(rows)
    sections = [
        ("coherence", "Coherence", _coherence(model, metrics)),
        ("written", "Written from every subset", _grid(model, encoding, rows.take(shown), judges, rng)),
        ("posterior", "The posterior sharpens", _sharpening(model, rows, metrics)),
        ("ways", "Ways through the latent space", _ways(model, encoding, rows, shown)),
        ("likelihood", "Log-likelihood", _likelihood(model, metrics.get("log_likelihood", {}))),
        ("quality", "Reconstruction and blur", _quality(metrics)),
        ("training", "Training", _training(history)),
        ("settings", "Configuration", _settings(facts)),
        (
            "again",
            "How to reproduce",
            (f"<pre>{escape(reproduce)}</pre>" if reproduce else "")
            + "".join(f'<p class="note">{escape(note)}</p>' for note in notes),
        ),
    ]
    lead = [
        f"{model.config.posterior.replace('_', ' ')} of {', '.join(model.config.names)}",
        f"{model.config.latent_dim} latent dimensions",
        f"{model.parameters:,} parameters",
        f"sensorium {_core.__version__}",
    ]
    return page(title, f'<p class="lead">{escape(" · ".join(lead))}</p>', sections)


def _first_of_each(rows: Rows) -> NDArray[np.int64]:
    """Find the first row of each group that lacks nothing; nobody picks the good ones."""
    whole = np.flatnonzero(np.logical_and.reduce(list(rows.present.values())))
    if not len(whole):
        return np.zeros(0, np.int64)
    _, first = np.unique(rows.group[whole], return_index=True)
    picked: NDArray[np.int64] = whole[np.sort(first)][:SHOWN]
    return picked


def _named(given: Sequence[str]) -> str:
    return " + ".join(given) if given else "nothing"


def _table(head: Sequence[str], body: Sequence[Sequence[str]], kind: str = "") -> str:
    """Lay out cells that are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in line)}</tr>" for line in body)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


# --- figures ----------------------------------------------------------------------------------------------


def _coherence(model: Model, metrics: Mapping[str, Any]) -> str:
    found: Mapping[str, Any] = metrics.get("coherence", {})
    targets = [name for name in model.config.names if any(name in shares for shares in found.values())]
    if not targets:
        return ""
    body = []
    for given in subsets(model.config.names):
        shares = found.get("+".join(given), {})
        line = [escape(_named(given))]
        for target in targets:
            if target not in shares:
                line.append("")
                continue
            of = shares[target]
            bar = _bar(of["share"], of["low"], of["high"], metrics.get("judge", {}).get(target))
            words = f"{_percent(of['share'])} <small>{100 * of['low']:.1f} to {100 * of['high']:.1f}</small>"
            kind = "share given" if target in given else "share"
            line.append(f'<div class="{kind}">{bar}{words}</div>')
        body.append(line)
    joint = metrics.get("joint_coherence") or {}
    words = (
        "The share of held-out rows where what is written is of the row's own group, by classifiers that "
        "learnt from real items alone; words must be spelt right. Pale cells are of modalities that were "
        "given. The thin line is the 95 % interval, the green mark the classifier's accuracy on real items "
        "held out."
    )
    if joint:
        words += (
            f" From nothing, all modalities agree in {_percent(joint['share'])} of {joint['rows']:,} draws "
            f"from the prior ({100 * joint['low']:.1f} to {100 * joint['high']:.1f})."
        )
    head = ["given", *(f"→ {escape(name)}" for name in targets)]
    return _table(head, body, "coherence") + f'<p class="note">{words}</p>'


def _likelihood(model: Model, found: Mapping[str, Any]) -> str:
    if "joint" not in found:
        return ""
    alone, given_others = found.get("alone", {}), found.get("conditional", {})

    def nats(value: object) -> str:
        return f'<span class="nats">{value:,.2f}</span>' if isinstance(value, float) else ""

    body = [
        [escape(name), nats(found.get(name)), nats(given_others.get(name)), nats(alone.get(name))]
        for name in model.config.names
    ]
    body.append(["<b>whole rows</b>", nats(found["joint"]), "", nats(found.get("alone_sum"))])
    words = (
        f"Importance-weighted lower bounds with {found['num_samples']:,} samples, in nats an item, of "
        "held-out rows; higher is better."
    )
    if "gain" in found:
        gain = found["gain"]
        words += (
            " Models alone have the same encoders, decoders, latent width and number of steps. On whole "
            f"rows the model of all gains {gain['mean']:.2f} nats on them, {gain['low']:.2f} to "
            f"{gain['high']:.2f}."
        )
    head = ["", "in the model of all", "given all others", "a model of it alone"]
    return _table(head, body, "likelihood") + f'<p class="note">{words}</p>'


def _quality(metrics: Mapping[str, Any]) -> str:
    found: Mapping[str, Any] = metrics.get("reconstruction", {})
    blur: Mapping[str, Any] = metrics.get("sharpness", {})
    names = list(dict.fromkeys(name for errors in found.values() for name in errors))
    if not names:
        return ""
    body = []
    for given, errors in found.items():
        line = [escape(given.replace("+", " + "))]
        line += [f"{errors[name]:.3f}" if name in errors else "" for name in names]
        line += [_percent(blur[given] / blur["real"])] if blur.get("real") and given in blur else [""]
        body.append(line)
    units = {"text": "text: wrong letters"}
    head = ["given", *(escape(units.get(name, f"{name}: RMSE")) for name in names), "edges of images"]
    words = (
        "Errors of means written from the posterior's mean. A modality that is not given is not known, so "
        "its error says how alike the items of a group are. Edges: the mean difference of neighbouring "
        "pixels, of that of real images; less is blurred."
    )
    return _table(head, body, "quality") + f'<p class="note">{words}</p>'


# --- what is written --------------------------------------------------------------------------------------


def _item(encoding: Encoding, name: str, array: NDArray[Any], *, kind: str = "", sound: bool = False) -> str:
    value = encoding.decode(name, array[None])[0]
    if name == "image":
        shown = f'<img src="{picture_png(value)}" alt="picture">'
    elif name == "audio":
        assert encoding.audio is not None
        rate = encoding.audio.sample_rate
        shown = f'<img class="sound" src="{spectrogram_png(value, rate)}" alt="spectrogram">'
        if sound:
            shown += f'<audio controls preload="none" src="{wav(value, rate)}"></audio>'
    else:
        shown = f'<span class="word">{escape(value) or "<i>nothing</i>"}</span>'
    return f'<div class="item {kind}">{shown}</div>'


def _grid(
    model: Model, encoding: Encoding, rows: Rows, judges: Judges | None, rng: np.random.Generator
) -> str:
    if not len(rows):
        return ""
    names = model.config.names
    ways = subsets(names)
    columns = [
        "".join(_item(encoding, name, rows.values[name][i], kind="real", sound=True) for name in names)
        for i in range(len(rows))
    ]
    body = [[cell] for cell in columns]
    for given in ways:
        made = generate(model.params, model.config, rows.values, given=given, rng=rng)
        right = {
            name: judges.read(name, made[name][0]) == rows.group
            for name in names
            if judges is not None and name in judges.groups
        }
        for i, line in enumerate(body):
            cell = ""
            for name in names:
                kind = "given" if name in given else ""
                if name in right and not right[name][i]:
                    kind += " wrong"
                sound = name not in given and len(given) < len(names)
                cell += _item(encoding, name, made[name][0, i], kind=kind, sound=sound)
            line.append(cell)
    words = (
        "Held-out rows, the first of each group, and what is written from a draw of the posterior. "
        "Blue frames: the modality was given, and this is its reconstruction. Red frames: a classifier sees "
        "another group in it."
    )
    head = ["held out", *(f"from {escape(_named(given))}" for given in ways)]
    return f'<p class="note">{words}</p>' + _table(head, body, "senses")


def _ways(model: Model, encoding: Encoding, rows: Rows, shown: NDArray[np.int64]) -> str:
    half = len(shown) // 2
    pairs = [(shown[i], shown[i + half]) for i in range(min(WAYS, half))]
    if not pairs:
        return ""
    ends = [
        {name: rows.values[name][[pair[end] for pair in pairs]] for name in model.config.names}
        for end in (0, 1)
    ]
    made = interpolate(model.params, model.config, *ends, steps=STEPS)
    body = [
        [
            "".join(_item(encoding, name, made[name][step, i]) for name in model.config.names)
            for step in range(STEPS)
        ]
        for i in range(len(pairs))
    ]
    head = [f"{step / (STEPS - 1):.3g}" for step in range(STEPS)]
    words = "Straight ways between the posterior means of two held-out rows, all modalities at each point."
    return f'<p class="note">{words}</p>' + _table(head, body, "senses strip")


# --- the posterior ----------------------------------------------------------------------------------------


def _sharpening(model: Model, rows: Rows, metrics: Mapping[str, Any]) -> str:
    """Draw the plane of the latent space in which rows differ most, with one sense more each time."""
    whole = rows.complete()
    if len(whole) < 3 or model.config.latent_dim < 2:
        return ""
    names = model.config.names
    whole = whole.take(np.linspace(0, len(whole) - 1, min(len(whole), DOTS)).astype(int))
    centres = posterior(model.params, model.config, whole.values).mean.astype(np.float64)
    middle = centres.mean(axis=0)
    plane = np.linalg.svd(centres - middle, full_matrices=False)[2][:2]  # (2, D)
    dots = (centres - middle) @ plane.T
    one = whole.take([_typical(dots, whole)])
    experts = encode(model.params, model.config, one.values)
    panels = []
    for count in range(len(names) + 1):
        given = names[:count]
        q = posterior(model.params, model.config, one.values, given=given)
        shapes = [_ellipse(np.zeros_like(middle), np.zeros_like(middle), plane, middle, "prior")]
        for i, name in enumerate(given):
            expert = experts[name]
            shapes.append(_ellipse(expert.mu[0], expert.logvar[0], plane, middle, f"c{1 + i % 3}"))
        for mean, logvar, weight in zip(q.means[:, 0], q.logvars[:, 0], q.log_weights[:, 0], strict=True):
            if np.isfinite(weight):
                shapes.append(_ellipse(mean, logvar, plane, middle, "fused"))
        panels.append(_panel(dots, whole, shapes, given, metrics))
    keys = "".join(
        f'<span class="key c{1 + i % 3}">expert of {escape(name)}</span>' for i, name in enumerate(names)
    )
    words = (
        f"One held-out row, in the middle of those of {escape(_name_of(one))}, in the plane of the latent "
        f"space in which held-out rows (dots) differ most. Outlines are {DEVIATIONS:g} deviations from "
        "their means: the prior dashed, each expert by itself, and filled what the model goes by. Entropies "
        "are means over all held-out rows."
    )
    all_found = metrics.get("posterior", {})
    body = []
    for given in ((), *subsets(names)):
        found = all_found.get("+".join(given))
        if found:
            body.append([escape(_named(given)), f"{found['entropy']:.2f}", f"{found['variance']:.3g}"])
    table = _table(["given", "entropy, nats", "variance of a dimension"], body, "sharp") if body else ""
    note = f'<p class="note">{words}</p><p>{keys}</p>'
    return f'<div class="panels">{"".join(panels)}</div>{note}{table}'


def _typical(dots: NDArray[np.float64], rows: Rows) -> int:
    """Find the row nearest to the middle of its group, of the group furthest from all others."""
    middles = {group: np.median(dots[rows.group == group], axis=0) for group in np.unique(rows.group)}
    furthest = max(middles, key=lambda group: float(np.abs(middles[group]).sum()))
    members = np.flatnonzero(rows.group == furthest)
    return int(members[np.square(dots[members] - middles[furthest]).sum(axis=1).argmin()])


def _name_of(rows: Rows) -> str:
    return rows.names[int(rows.group[0])] if rows.names else "one group"


def _panel(
    dots: NDArray[np.float64],
    rows: Rows,
    shapes: Sequence[str],
    given: Sequence[str],
    metrics: Mapping[str, Any],
) -> str:
    marks, labels = [], []
    groups = np.unique(rows.group)
    for i, group in enumerate(groups):
        hue = 360 * i / len(groups)
        for x, y in dots[rows.group == group]:
            marks.append(
                f'<circle cx="{_place(x):.1f}" cy="{_place(-y):.1f}" r="1.6" fill="hsl({hue:.0f} 55% 55%)"/>'
            )
        if len(groups) <= 20 and rows.names:
            x, y = np.median(dots[rows.group == group], axis=0)
            name = escape(rows.names[int(group)][:12])
            labels.append(
                f'<text x="{_place(x):.1f}" y="{_place(-y):.1f}" text-anchor="middle">{name}</text>'
            )
    found = metrics.get("posterior", {}).get("+".join(given)) or {}
    nats = f"<br>{found['entropy']:.1f} nats" if "entropy" in found else ""
    title = f"given {escape(_named(given))}"
    return (
        f'<figure class="panel"><svg class="latent" viewBox="0 0 200 200" role="img" aria-label="{title}">'
        f"{''.join(marks)}{''.join(shapes)}{''.join(labels)}</svg>"
        f"<figcaption>{title}{nats}</figcaption></figure>"
    )


def _place(value: float) -> float:
    return 100 * (1 + float(np.clip(value, -9 * VIEW, 9 * VIEW)) / VIEW)


def _ellipse(
    mean: NDArray[Any],
    logvar: NDArray[Any],
    plane: NDArray[np.float64],
    middle: NDArray[np.float64],
    kind: str,
) -> str:
    """Outline a Gaussian with a diagonal covariance in the plane."""
    x, y = plane @ (mean.astype(np.float64) - middle)
    variance = np.exp(np.clip(logvar.astype(np.float64), -40, 10))
    values, vectors = np.linalg.eigh((plane * variance) @ plane.T)
    rx, ry = (100 / VIEW * DEVIATIONS * math.sqrt(max(value, 0.0)) for value in values[::-1])
    angle = -math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
    cx, cy = _place(x), _place(-y)
    return (
        f'<ellipse class="{kind}" rx="{rx:.2f}" ry="{ry:.2f}" '
        f'transform="translate({cx:.2f} {cy:.2f}) rotate({angle:.1f})"/>'
    )
