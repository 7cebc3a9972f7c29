"""Write the tables of Gaussian experts from what ``benches/bench_fusion.py`` measured.

``python scripts/fusion_results.py`` puts them where docs/experts_speed.md has its marker, from
``benches/results/fusion.json``, and from ``fusion_1.json``, the same with one thread, where there is one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attention_results import replace

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches" / "results"
FILES = ("fusion_1.json", "fusion.json")
ROWS = {
    "sensorium": "sensorium",
    "triad": "triad over as much",
    "numpy": "NumPy",
    "numpy, buffers": "NumPy, buffers",
    "torch": "torch",
    "torch.compile": "torch.compile",
    "jax": "JAX",
    "multivae": "multivae",
}
KINDS = {
    "product ": "Product",
    "posterior ": "Posterior, noise given",
    "posterior drawn ": "Posterior, noise drawn",
}
PASSES = {"forward ": "forward", "both ": "forward and backward"}


def three(value: float) -> str:
    """A figure in about three digits."""
    return f"{value:,.{3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f}"


def cell(name: str, row: dict[str, Any] | None) -> str:
    """A time, and what share of the triad's bandwidth it reaches or how many times ours it is."""
    if row is None:
        return ""
    time = three(row["ms"]["median"])
    if name == "triad":
        return time
    if name == "sensorium":
        return f"**{time}**, {row['of_triad']['median']:.2f} of triad"
    return f"{time} ({row['times_ours']['median']:.1f})"


def tables(kept: dict[str, Any]) -> str:
    """A table for every kind and pass."""
    parts = []
    for kind, title in KINDS.items():
        for word, words in PASSES.items():
            start = kind + word
            cases = {n.removeprefix(start): c for n, c in kept["cases"].items() if n.startswith(start)}
            if not cases:
                continue
            lines = [f"{title}, {words}, milliseconds:", ""]
            lines += ["| | " + " | ".join(cases) + " |", "|---" * (len(cases) + 1) + "|"]
            for name, label in ROWS.items():
                if any(name in case for case in cases.values()):
                    cells = " | ".join(cell(name, case.get(name)) for case in cases.values())
                    lines.append(f"| {label} | {cells} |")
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    """Write them."""
    parts = []
    for name in FILES:
        if not (RESULTS / name).exists():
            continue
        kept = json.loads((RESULTS / name).read_text())
        about = kept["about"]
        threads = f"{about['threads']} thread{'s' if about['threads'] > 1 else ''}"
        others = ", ".join(f"{n} {about[n]}" for n in ("torch", "jax") if n in about)
        parts.append(
            f"### {threads.capitalize()}\n\n{tables(kept)}\n\n"
            f"{about['processor']}, {threads}, {about['isa']}; "
            f"NumPy {about['numpy']}, {others}; version {about['sensorium']}, {about['date']}."
        )
    replace(ROOT / "docs" / "experts_speed.md", "fusion results", "\n\n".join(parts))


if __name__ == "__main__":
    main()
