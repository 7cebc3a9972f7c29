"""Write the tables and plots of scans from what ``make bench-scans`` measured.

``python scripts/scan_results.py`` puts tables where docs/scan_speed.md has its markers, and README.md where
it has one, and draws ``docs/images/scan_peers.svg`` and ``scan_length.svg``, from
``benches/results/scans.json`` and ``scan_length.json``. Whole models stand in docs/mamba.md and
docs/accelerate.md, from ``mamba.json`` and ``accelerate.json`` that their benches wrote.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from attention_results import replace, save

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches" / "results"
PASSES = {"forward": "forward", "both": "forward and backward", "step": "one step"}
#: Titles of columns of cases.
WORDS = {"selective scan ": "", " S16": "", "ssd ": "", "ttt ": "", "forward ": "", "both ": "", "step ": ""}

Cases = dict[str, dict[str, Any]]


def load(name: str) -> dict[str, Any]:
    """What a bench kept."""
    kept: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return kept


def where(about: dict[str, Any]) -> str:
    """What figures depend on."""
    names = {
        "torch": "PyTorch",
        "transformers": "transformers",
        "mambapy": "mamba.py",
        "jax": "JAX",
        "numba": "numba",
        "ggml": "ggml",
    }
    others = ", ".join(f"{words} {about[name]}" for name, words in names.items() if name in about)
    return (
        f"{about['processor']}, {about['threads']} threads, {about['isa']}; NumPy {about['numpy']} "
        f"({about['blas']}), {others}; version {about['sensorium']}, {about['date']}."
    )


def select(kept: dict[str, Any], start: str, passes: str) -> Cases:
    """Cases of a family and a pass, by what tells them apart."""
    found = {}
    for name, case in kept["cases"].items():
        if name.startswith(start) and case["pass"] == passes:
            title = name
            for words, other in WORDS.items():
                title = title.replace(words, other)
            found[title] = case
    return found


def milliseconds(row: dict[str, Any]) -> str:
    """A time in three digits."""
    value = row["milliseconds"]["median"]
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"


def cell(row: dict[str, Any] | None) -> str:
    """A time, and how many times that of this package it is."""
    if row is None:
        return ""
    if "times" not in row:
        return f"**{milliseconds(row)}**"
    text = f"{milliseconds(row)} ({row['times']['median']:.1f})"
    return text + " once" if row["rounds"] == 1 else text


def table(cases: Cases) -> str:
    """Rows of others, a column a case."""
    titles: dict[str, str] = {}
    for case in cases.values():
        titles |= {name: row["title"] for name, row in case["rows"].items() if name != "sgemm"}
    lines = [f"| | {' | '.join(cases)} |", "|---" * (len(cases) + 1) + "|"]
    for name, title in titles.items():
        cells = [cell(case["rows"].get(name)) for case in cases.values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def median(case: dict[str, Any], row: str = "sensorium", key: str = "milliseconds") -> float:
    """A figure of a row."""
    return float(case["rows"][row][key]["median"])


def best(case: dict[str, Any], without: tuple[str, ...] = ()) -> tuple[str, float]:
    """Title of the fastest of the others, and how many times as long it takes."""
    times = {
        row["title"]: row["times"]["median"]
        for name, row in case["rows"].items()
        if "times" in row and name not in without
    }
    title = min(times, key=lambda title: times[title])
    return title, times[title]


def backward(both: Cases) -> str:
    """How many times forward the two passes take, case by case."""
    ratios = [f"{title} {median(case, key='of_forward'):.2f}" for title, case in both.items()]
    return f"Forward and backward takes, in units of forward in the same rounds: {', '.join(ratios)}."


def family(kept: dict[str, Any], start: str) -> list[str]:
    """Tables of the passes of a family."""
    parts = []
    for passes, words in PASSES.items():
        cases = select(kept, start, passes)
        if cases:
            parts += [f"{words.capitalize()}, milliseconds, in brackets how many times ours:", table(cases)]
    parts.append(backward(select(kept, start, "both")))
    return parts


def selective_words(kept: dict[str, Any]) -> str:
    """What was measured of the selective scan."""
    parts = family(kept, "selective")
    threads = kept["about"]["threads"]
    rates = [
        f"{title} {median(case, key='exp_per_second') / threads / 1e9:.2f} G"
        for title, case in select(kept, "selective", "forward").items()
    ]
    parts.append(f"Exponentials a second and core, forward: {', '.join(rates)}.")
    rates = [
        f"{title} {median(case, key='bytes_per_second') / 1e9:.0f} GB/s"
        for title, case in select(kept, "selective", "step").items()
    ]
    parts.append(f"One step reads A and the state, and writes the state, at: {', '.join(rates)}.")
    return "\n\n".join([*parts, where(kept["about"])])


def ssd_words(kept: dict[str, Any]) -> str:
    """What was measured of the scan of Mamba-2."""
    parts = family(kept, "ssd")
    shares = [
        f"{median(case, key='of_sgemm'):.2f} {PASSES[passes]}"
        for passes in ("forward", "both")
        for case in select(kept, "ssd", passes).values()
    ]
    parts.append(
        "The multiply-adds of the chunked algorithm, the triangle of a chunk counted once, run at these "
        f"shares of SGEMM in the same rounds: {', '.join(shares)}."
    )
    return "\n\n".join([*parts, where(kept["about"])])


def ttt_words(kept: dict[str, Any]) -> str:
    """What was measured of test-time-training layers."""
    return "\n\n".join([*family(kept, "ttt"), where(kept["about"])])


def length_words(kept: dict[str, Any]) -> str:
    """Time and memory against length."""
    about = kept["about"]
    shortest, longest = f"{min(about['lengths']):,}", f"{max(about['lengths']):,}"
    head = ["", "ns a step", f"largest residual, {shortest} to {longest} steps", "arrays returned"]
    head += ["the peak rose by", "all states would be"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, operation in kept["operations"].items():
        for passes in ("forward", "both"):
            fit, memory = operation[passes], operation["memory"][passes]
            states = f"{memory['states_bytes'] / 2**20:,.0f} MB" if memory["states_bytes"] else ""
            cells = [
                f"{name}, {PASSES[passes]}",
                f"{fit['nanoseconds_a_step']:.0f}",
                f"{100 * fit['largest_residual']:.1f} %",
                f"{memory['returned_bytes'] / 2**20:.0f} MB",
                f"{memory['peak_bytes'] / 2**20:.0f} MB",
                states,
            ]
            lines.append(f"| {' | '.join(cells)} |")
    words = f"Memory of {about['long']:,} steps. {where(about)}"
    return "\n".join([*lines, "", words])


def short(kept: dict[str, Any]) -> str:
    """A few cases, for README.md."""
    lines = ["| | milliseconds | best of the others takes | NumPy |", "|---|---|---|---|"]
    wanted = [
        ("selective scan forward B1 D1536 L1024 S16", "selective scan, D 1,536, L 1,024"),
        ("selective scan both B1 D1536 L1024 S16", "selective scan, with backward"),
        ("ssd forward B1 L2048 H24 P64 S128", "Mamba-2's scan, 24 heads, L 2,048"),
        ("ssd both B1 L2048 H24 P64 S128", "Mamba-2's scan, with backward"),
        ("ttt linear both B1 H12 L2048 D64", "TTT-Linear, 12 heads, L 2,048, with backward"),
        ("ttt mlp both B1 H12 L2048 D64", "TTT-MLP, with backward"),
    ]
    for name, words in wanted:
        case = kept["cases"][name]
        title, times = best(case, ("numpy", "numpy_plain"))
        numpy = case["rows"]["numpy"]["times"]["median"]
        lines.append(
            f"| {words} | {milliseconds(case['rows']['sensorium'])} | {times:.1f} times as long ({title}) | "
            f"{numpy:.1f} times as long |"
        )
    return "\n".join([*lines, "", where(kept["about"])])


def style() -> Any:
    """Return pyplot, the same bytes from the same figures."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "sensorium", "svg.fonttype": "none", "font.size": 9})
    return plt


def plot_peers(kept: dict[str, Any]) -> None:
    """How many times as long others take, an axis for every family and pass."""
    plt = style()
    wanted = [
        ("selective scan forward B1 D1536 L1024 S16", "selective scan, forward"),
        ("selective scan both B1 D1536 L1024 S16", "selective scan, with backward"),
        ("ssd forward B1 L2048 H24 P64 S128", "Mamba-2's scan, forward"),
        ("ssd both B1 L2048 H24 P64 S128", "Mamba-2's scan, with backward"),
        ("ttt linear both B1 H12 L2048 D64", "TTT-Linear, with backward"),
        ("ttt mlp both B1 H12 L2048 D64", "TTT-MLP, with backward"),
    ]
    figure, axes = plt.subplots(3, 2, figsize=(11, 8), sharex=True, layout="constrained")
    for axis, (name, title) in zip(axes.flat, wanted, strict=True):
        rows = [row for row in kept["cases"][name]["rows"].values() if "times" in row]
        rows.sort(key=lambda row: row["times"]["median"])
        places = range(len(rows))
        times = [row["times"]["median"] for row in rows]
        axis.barh(places, times, color="grey")
        for place, value in zip(places, times, strict=True):
            axis.text(value, place, f" {value:.1f}", va="center", fontsize=8)
        axis.set_yticks(places, [row["title"] for row in rows], fontsize=8)
        axis.axvline(1, color="black", linewidth=1)
        axis.set_xscale("log")
        ours = milliseconds(kept["cases"][name]["rows"]["sensorium"])
        axis.set_title(f"{title}: {ours} ms", fontsize=9)
        axis.margins(x=0.2)
    for axis in axes[-1]:
        axis.set_xlabel("times as long as sensorium")
    save(figure, "scan_peers.svg")
    plt.close(figure)


def mamba_words(kept: dict[str, Any]) -> str:
    """Tokens a second of models of 130 M parameters."""
    work = {"write": "writing", "read": "reading 512 tokens"}
    lines = ["| | here | transformers | ratio | products alone, in NumPy |", "|---|---|---|---|---|"]
    for row in kept["results"]:
        family = {"mamba": "Mamba", "mamba2": "Mamba-2"}[row["model"]]
        alone = f"{row['products alone']:.1f}" if "products alone" in row else ""
        lines.append(
            f"| {family}, {row['dtype']}, {work[row['what']]} "
            f"| {row['sensorium']:.1f} | {row['transformers']:.1f} "
            f"| {row['ratio']:.1f} ({row['ratio_low']:.1f} to {row['ratio_high']:.1f}) | {alone} |"
        )
    return "\n".join(lines) + "\n\n" + where(kept["machine"])


def accelerate_words(kept: dict[str, Any]) -> str:
    """Tokens a second of transformers' models before and after."""
    lines = ["| | before | after | ratio |", "|---|---|---|---|"]
    for row in kept["rows"]:
        family = {"mamba": "Mamba", "mamba2": "Mamba-2"}[row["family"]]
        what = {
            "generate": f"generating after {row['length']} tokens",
            "prefill": f"reading {row['length']} tokens",
            "train": f"a training step of {row['length']} tokens, {row['layers']} layers",
        }[row["case"]]
        before, after = (row[way]["tokens_per_second"] for way in ("before", "after"))
        times = row["times"]
        ratio = f"{times['median']:.1f} ({times['low']:.1f} to {times['high']:.1f})"
        lines.append(f"| {family}, {what} | {before:.1f} | {after:,.1f} | {ratio} |")
    return "\n".join(lines) + "\n\n" + where(kept["machine"])


def plot_length(kept: dict[str, Any]) -> None:
    """Time a step over length, for every operation."""
    plt = style()
    lengths = kept["about"]["lengths"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
    for axis, passes in zip(axes, ("forward", "both"), strict=True):
        for name, operation in kept["operations"].items():
            steps = [1e6 * t / n for t, n in zip(operation[passes]["milliseconds"], lengths, strict=True)]
            axis.plot(lengths, steps, marker="o", markersize=3, linewidth=1, label=name)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(PASSES[passes], fontsize=9)
        axis.set_xlabel("length")
    axes[0].set_ylabel("nanoseconds a step")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    save(figure, "scan_length.svg")
    plt.close(figure)


def main() -> None:
    """Write all of it."""
    scans, length = load("scans.json"), load("scan_length.json")
    page = ROOT / "docs" / "scan_speed.md"
    replace(page, "selective results", selective_words(scans))
    replace(page, "ssd results", ssd_words(scans))
    replace(page, "ttt results", ttt_words(scans))
    replace(page, "length results", length_words(length))
    replace(ROOT / "docs" / "mamba.md", "mamba results", mamba_words(load("mamba.json")))
    replace(ROOT / "docs" / "accelerate.md", "accelerate results", accelerate_words(load("accelerate.json")))
    readme = ROOT / "README.md"
    if "<!-- scan results -->" in readme.read_text(encoding="utf-8"):
        replace(readme, "scan results", short(scans))
    plot_peers(scans)
    plot_length(length)


if __name__ == "__main__":
    main()
