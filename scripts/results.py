"""Measure the quickstart over several seeds, and write the README's tables from what was measured.

``python scripts/results.py measure --seeds 2 3 4 5 6`` trains a model for each seed and keeps the figures in
``benches/results/quickstart.json``; ``python scripts/results.py readme`` puts the tables where the README has
their markers. ``attention_results.py`` does the same for the speed of attention.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

from scipy.stats import t as student

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches" / "results"
DIRECTIONS = [
    ("image_to_text", 0.95),
    ("audio_to_text", 0.95),
    ("text_to_image", 0.95),
    ("text_to_audio", 0.95),
    ("image_to_audio", 0.85),
    ("audio_to_image", 0.85),
]
OTHERS = {
    "direct.image_to_audio": "image to audio, no word between",
    "direct.audio_to_image": "audio to image, no word between",
    "judge.image": "the judge on real held-out images",
    "judge.audio": "the judge on real held-out sounds",
    "diversity.image_distinct": "distinct images of text to image",
    "diversity.audio_distinct": "distinct sounds of text to audio",
}


def processor() -> str:
    """Name of the processor as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t over the runs; NaN for a single run."""
    if len(values) < 2:
        return values[0], math.nan
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), float(half)


def measure(seeds: list[int], seconds: float, images: str) -> None:
    """Run the quickstart once a seed and keep all of its figures."""
    from sensorium import quickstart

    runs: list[dict[str, Any]] = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as out:
            runs.append(quickstart.run(seconds=seconds, seed=seed, out=out, images=images))
        print(f"seed {seed}: " + " ".join(f"{n} {runs[-1][f'accuracy.{n}']:.3f}" for n, _ in DIRECTIONS))
    RESULTS.mkdir(parents=True, exist_ok=True)
    about = {"processor": processor(), "date": datetime.date.today().isoformat(), "seconds": seconds}
    path = RESULTS / ("quickstart.json" if images == "sklearn" else f"quickstart-{images}.json")
    path.write_text(json.dumps({"about": about, "runs": runs}, indent=1, sort_keys=True) + "\n")


def spread(runs: list[dict[str, Any]], key: str) -> str:
    """Median and range over the runs."""
    values = [run[key] for run in runs]
    return f"{statistics.median(values):.3f} | {min(values):.3f} to {max(values):.3f}"


def table() -> str:
    """The accuracy table as Markdown."""
    kept = json.loads((RESULTS / "quickstart.json").read_text())
    about, runs = kept["about"], kept["runs"]
    lines = ["| held-out items | median | range | aim |", "|---|---|---|---|"]
    for name, aim in DIRECTIONS:
        lines.append(f"| {name.replace('_', ' ')} | {spread(runs, f'accuracy.{name}')} | {aim} |")
    lines += [f"| {words} | {spread(runs, key)} | |" for key, words in OTHERS.items()]
    steps = [run["steps"] for run in runs]
    seeds = ", ".join(str(run["seed"]) for run in runs)
    first = runs[0]
    size, where = f"{first['parameters']:,} parameters", f"{first['threads']} threads, {first['isa']}"
    lines.append(
        f"\nSeeds {seeds}; {about['seconds']:g} s of training each, "
        f"{min(steps)} to {max(steps)} steps, {size}. "
        f"{about['processor']}, {where}; version {first['version']}, {about['date']}."
    )
    return "\n".join(lines)


def write_readme() -> None:
    """Replace what stands between the markers."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    begin, end = "<!-- quickstart results -->\n", "<!-- end -->"
    head, rest = text.split(begin)
    path.write_text(head + begin + table() + "\n" + end + rest.split(end, 1)[1], encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("measure")
    run.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 4, 5, 6])
    run.add_argument("--seconds", type=float, default=30.0)
    run.add_argument("--images", choices=["sklearn", "mnist"], default="sklearn")
    commands.add_parser("readme")
    args = parser.parse_args()
    if args.command == "measure":
        measure(args.seeds, args.seconds, args.images)
    else:
        write_readme()


if __name__ == "__main__":
    main()
