"""Measure long memory for every mixer over several seeds, and write its table and figure.

``python scripts/recall_results.py measure`` trains each model once a seed and keeps the figures in
``benches/results/recall.json``, each as soon as it is there: a run that was interrupted goes on, and several
may run at once, one a ``--seeds``. ``python scripts/recall_results.py page`` writes the table of
docs/mixers.md and draws docs/images/recall.svg.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import json
import math
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attention_results import replace, save
from results import interval, processor

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches" / "results"
KEPT = RESULTS / "recall.json"
MODELS: dict[str, tuple[str | tuple[str, ...], bool]] = {
    "attention, short window": ("attention", True),
    "attention": ("attention", False),
    "mamba": ("mamba", False),
    "mamba2": ("mamba2", False),
    "ttt_linear": ("ttt_linear", False),
    "ttt_mlp": ("ttt_mlp", False),
    "mamba2, then attention with a short window": (("mamba2", "attention"), True),
}
LONGER = 4


@contextmanager
def kept() -> Iterator[dict[str, Any]]:
    """Yield what was measured so far, and write it back; one process at a time."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (Path(tempfile.gettempdir()) / "sensorium-recall.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        data = json.loads(KEPT.read_text()) if KEPT.exists() else {"about": {}, "runs": []}
        yield data
        KEPT.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")


def done(data: dict[str, Any], name: str, seed: int) -> bool:
    """Whether a model was measured with a seed."""
    return any(run["model"] == name and run["seed"] == seed for run in data["runs"])


def measure(seeds: list[int], models: list[str]) -> None:
    """Train and ask every model, once a seed."""
    from sensorium import _core, recall

    for seed in seeds:
        for name in models:
            with kept() as data:
                if done(data, name, seed):
                    continue
            mixer, short = MODELS[name]
            window = recall.WINDOW if short else None
            result = recall.run(mixer, window=window, seed=seed, longer=LONGER) | {"model": name}
            with kept() as data:
                if not done(data, name, seed):
                    data["runs"].append(result)
                    data["runs"].sort(key=lambda run: (list(MODELS).index(run["model"]), run["seed"]))
                data["about"] = {
                    "processor": processor(),
                    "date": datetime.date.today().isoformat(),
                    "version": _core.__version__,
                    "isa": _core.isa_level(),
                }
            far = result["test"]["far"]
            print(
                f"{name}, seed {seed}: {far['accuracy']:.3f} of {far['questions']} far questions", flush=True
            )


def share(values: list[float]) -> str:
    """Mean and interval as a cell, kept within what a share can be."""
    mean, half = interval(values)
    if math.isnan(half):
        return f"{mean:.3f}"
    return f"{mean:.3f} ({max(mean - half, 0):.3f} to {min(mean + half, 1):.3f})"


def table(data: dict[str, Any]) -> str:
    """All models as Markdown."""
    lines = [
        "| | far questions | each run | items read | albums four times as long | parameters | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in MODELS:
        runs = [run for run in data["runs"] if run["model"] == name]
        if not runs:
            continue
        far = [run["test"]["far"]["accuracy"] for run in runs]
        longer = [run["longer"]["far"]["accuracy"] for run in runs]
        read = statistics.mean(run["test"]["read"]["accuracy"] for run in runs)
        seconds = statistics.median(run["processor_seconds"] for run in runs)
        each = " ".join(f"{value:.2f}" for value in far)
        cells = [
            name,
            share(far),
            each,
            f"{read:.3f}",
            share(longer),
            f"{runs[0]['parameters']:,}",
            f"{seconds:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    about, first = data["about"], data["runs"][0]
    asked = [run["test"]["far"]["questions"] for run in data["runs"]]
    seeds = ", ".join(str(seed) for seed in sorted({run["seed"] for run in data["runs"]}))
    lines.append(
        f"\nSeeds {seeds}; {first['steps']:,} steps, {first['threads']} thread; "
        f"{min(asked):,} to {max(asked):,} far questions a run. "
        f"{about['processor']}, {about['isa']}; version {about['version']}, {about['date']}."
    )
    return "\n".join(lines)


def draw(data: dict[str, Any]) -> None:
    """Accuracy over the distance of the item, in albums of training's length and longer ones."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "sensorium", "svg.fonttype": "none", "font.size": 9})
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, part in zip(axes, ("test", "longer"), strict=True):
        for i, name in enumerate(MODELS):
            runs = [run for run in data["runs"] if run["model"] == name]
            if not runs:
                continue
            keys = sorted({int(k) for run in runs for k in run[part] if k.isdigit()})
            points = [
                (k, *interval([r[part][str(k)]["accuracy"] for r in runs if str(k) in r[part]])) for k in keys
            ]
            places = range(len(points))
            axis.errorbar(
                places,
                [p[1] for p in points],
                yerr=[0 if math.isnan(p[2]) else p[2] for p in points],
                label=name,
                color=f"C{i}",
                linestyle=":" if "window" in name else "-",
                marker="o",
                markersize=3,
                capsize=2,
                linewidth=1.2,
            )
            axis.set_xticks(places, [f"{k:,}" for k in keys])
        axis.axhline(0.1, color="grey", linewidth=0.8, linestyle="--")
        tokens = data["runs"][0]["tokens"] * (1 if part == "test" else LONGER)
        axis.set_title(f"albums of {tokens:,} tokens", fontsize=9)
        axis.set_xlabel("tokens since the item, from")
        axis.set_ylim(0, 1)
    axes[0].set_ylabel("share of questions answered right")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save(figure, "recall.svg")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("measure")
    run.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    run.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    commands.add_parser("page")
    args = parser.parse_args()
    if args.command == "measure":
        measure(args.seeds, args.models)
        return
    data = json.loads(KEPT.read_text())
    replace(ROOT / "docs" / "mixers.md", "recall results", table(data))
    draw(data)


if __name__ == "__main__":
    main()
