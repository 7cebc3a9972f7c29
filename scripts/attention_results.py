"""Write the tables and plots of attention's speed from what its benches kept.

``python scripts/attention_results.py`` puts them where README.md and docs/attention.md have their markers,
and draws docs/images/attention_speed.svg and attention_pairs.svg.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches" / "results"
IMAGES = ROOT / "docs" / "images"

LAYOUTS = {
    "showo2": "text N/4 causal, image 3N/4",
    "bagel": "repeated text 64, image 192",
    "decoupled": "the same, text sees text only",
    "causal": "causal",
}
ROWS = {
    "sensorium": "here",
    "sdpa_parts": "SDPA by segments",
    "sdpa_mask": "SDPA dense mask",
    "flex": "flex_attention",
    "onnxruntime": "onnxruntime",
    "jax": "JAX",
    "numpy": "NumPy",
}
PASSES = {"forward": "forward", "both": "forward and backward"}
Cases = list[dict[str, Any]]


def load(name: str) -> dict[str, Any]:
    """Read what a bench kept."""
    kept: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return kept


def where(about: dict[str, Any]) -> str:
    """Say what the figures were measured on."""
    libraries = ", ".join(
        f"{name} {about[name]}" for name in ("torch", "onnxruntime", "jax") if name in about
    )
    return (
        f"{about['processor']}, {about['threads']} threads, {about['isa']}; NumPy {about['numpy']} "
        f"({about['blas']}), {libraries}; version {about['sensorium']}, {about['date']}."
    )


def select(cases: Cases, **wanted: Any) -> Cases:
    """Cases with those properties."""
    return [case for case in cases if all(case[key] == value for key, value in wanted.items())]


def rate(case: dict[str, Any], row: str) -> str:
    """GFLOP/s of a row, or nothing."""
    return f"{case['rows'][row]['gflops']['median']:.0f}" if row in case["rows"] else ""


def best_peer(case: dict[str, Any]) -> tuple[str, float]:
    """Return the peer that takes least, and how many times as long as this package it takes."""
    peers = {name: row["times"]["median"] for name, row in case["rows"].items() if "times" in row}
    name = min(peers, key=lambda name: peers[name])
    return name, peers[name]


def table(cases: Cases, rows: list[str]) -> str:
    """Rates of rows, a line a case."""
    head = ["layout", "N", *(ROWS[row] for row in rows), "of SGEMM", "best peer takes"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for case in cases:
        share = case["rows"]["sensorium"]["share"]["median"]
        _, times = best_peer(case)
        rates = [f"**{rate(case, 'sensorium')}**", *(rate(case, row) for row in rows[1:])]
        cells = [case["layout"], f"{case['tokens']:,}", *rates, f"{share:.2f}", f"{times:.2f} times"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def page(kept: dict[str, Any]) -> str:
    """All cases, for docs/attention.md."""
    cases = list(kept["cases"].values())
    parts = []
    for width in (64, 128):
        for name, words in PASSES.items():
            chosen = [c for c in select(cases, width=width, **{"pass": name}) if c["layout"] in LAYOUTS]
            rows = [row for row in ROWS if any(row in case["rows"] for case in chosen)]
            parts += [f"D {width}, {chosen[0]['heads']} heads, {words}, GFLOP/s:", table(chosen, rows)]
    lines = ["| layout | D | forward | of SGEMM | with backward | of SGEMM |", "|---|---|---|---|---|---|"]
    for case in select(cases, **{"pass": "forward"}):
        if case["width"] in (64, 128):
            continue
        both = select(cases, **{"pass": "both"}, layout=case["layout"], width=case["width"])[0]
        here, with_backward = case["rows"]["sensorium"], both["rows"]["sensorium"]
        lines.append(
            f"| {case['layout']}, N {case['tokens']:,} | {case['width']} | {here['gflops']['median']:.0f} | "
            f"{here['share']['median']:.2f} | {with_backward['gflops']['median']:.0f} | "
            f"{with_backward['share']['median']:.2f} |"
        )
    parts += ["Other widths, GFLOP/s:", "\n".join(lines), where(kept["about"])]
    return "\n\n".join(parts)


def short(kept: dict[str, Any]) -> str:
    """A few cases, for README.md."""
    cases = list(kept["cases"].values())
    head = "| 8 heads of 64, N = 2,048 | GFLOP/s | of SGEMM | best peer takes | SDPA, dense mask | NumPy |"
    lines = [head, "|---|---|---|---|---|---|"]
    for name, words in PASSES.items():
        for case in select(cases, width=64, tokens=2048, **{"pass": name}):
            here = case["rows"]["sensorium"]
            times = {row: case["rows"][row]["times"]["median"] for row in ("sdpa_mask", "numpy")}
            lines.append(
                f"| {LAYOUTS[case['layout']]}: {words} | {here['gflops']['median']:.0f} | "
                f"{here['share']['median']:.2f} | {best_peer(case)[1]:.1f} times as long | "
                f"{times['sdpa_mask']:.1f} | {times['numpy']:.1f} |"
            )
    return "\n".join([*lines, "", where(kept["about"])])


def pairs_words(kept: dict[str, Any]) -> str:
    """What was measured of cost and memory, for docs/attention.md."""
    lines = ["| | forward | forward and backward |", "|---|---|---|"]
    cells = {
        "GFLOP/s along the line": lambda fit: f"{fit['gflops']:.0f}",
        "R^2": lambda fit: f"{fit['r2']:.4f}",
        "largest residual, of the longest time": lambda fit: f"{100 * fit['largest_residual']:.1f} %",
    }
    for words, cell in cells.items():
        lines.append(f"| {words} | {cell(kept['forward'])} | {cell(kept['both'])} |")
    memory = ["| H 8, D 64, N 65,536 | arrays returned | the peak rose by |", "|---|---|---|"]
    for row in kept["memory"]:
        memory.append(
            f"| {PASSES[row['pass']]}, H_kv {row['kv_heads']} | {row['returned_bytes'] / 2**20:.0f} MB | "
            f"{row['peak_bytes'] / 2**20:.0f} MB |"
        )
    return "\n".join([*lines, "", *memory])


def replace(path: Path, marker: str, text: str) -> None:
    """Put `text` between the markers of that name."""
    begin, end = f"<!-- {marker} -->\n", "<!-- end -->"
    head, rest = path.read_text(encoding="utf-8").split(begin)
    path.write_text(head + begin + text + "\n" + end + rest.split(end, 1)[1], encoding="utf-8")


def plot_speed(kept: dict[str, Any]) -> None:
    """GFLOP/s over N, an axis for every layout and pass, D 64."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "sensorium", "svg.fonttype": "none", "font.size": 9})
    cases = select(list(kept["cases"].values()), width=64)
    figure, axes = plt.subplots(2, 4, figsize=(11, 5), sharex=True, sharey=True, layout="constrained")
    for line, name in zip(axes, PASSES, strict=True):
        for axis, layout in zip(line, LAYOUTS, strict=True):
            chosen = select(cases, layout=layout, **{"pass": name})
            for row, words in ROWS.items():
                points = [
                    (c["tokens"], c["rows"][row]["gflops"]["median"]) for c in chosen if row in c["rows"]
                ]
                if points:
                    heavy = row == "sensorium"
                    axis.plot(
                        *zip(*points, strict=True),
                        marker="o",
                        markersize=3,
                        linewidth=2.5 if heavy else 1,
                        color="black" if heavy else f"C{list(ROWS).index(row)}",
                        label=words if row != "sensorium" else "sensorium",
                    )
            sgemm = [(c["tokens"], c["rows"]["sgemm"]["gflops"]["median"]) for c in chosen]
            axis.plot(*zip(*sgemm, strict=True), color="grey", linestyle=":", label="SGEMM")
            axis.set_xscale("log", base=2)
            sizes = sorted({c["tokens"] for c in cases})
            axis.set_xticks(sizes, [f"{n:,}" for n in sizes])
            axis.minorticks_off()
            axis.set_ylim(0)
            axis.set_title(f"{layout}, {PASSES[name]}", fontsize=9)
    axes[0, 0].set_ylabel("GFLOP/s of visible pairs")
    axes[1, 0].set_ylabel("GFLOP/s of visible pairs")
    for axis in axes[1]:
        axis.set_xlabel("tokens")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    save(figure, "attention_speed.svg")


def plot_pairs(kept: dict[str, Any]) -> None:
    """Time over pairs, with the fitted line."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "sensorium", "svg.fonttype": "none", "font.size": 9})
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for axis, (name, words) in zip(axes, PASSES.items(), strict=True):
        fit = kept[name]
        flops = (4 if name == "forward" else 14) * kept["width"] * kept["heads"]
        most = max(fit["pairs"])
        start, slope = fit["start_milliseconds"], 1e3 * flops / (1e9 * fit["gflops"])
        axis.plot([0, most / 1e6], [start, start + slope * most], color="grey", linewidth=1)
        axis.scatter([n / 1e6 for n in fit["pairs"]], fit["milliseconds"], s=8, color="black")
        axis.set_xlim(0)
        axis.set_ylim(0)
        axis.set_title(f"{words}: R² {fit['r2']:.4f}", fontsize=9)
        axis.set_xlabel(f"million visible pairs of {kept['tokens']:,} tokens")
        axis.set_ylabel("milliseconds")
    save(figure, "attention_pairs.svg")


def save(figure: Any, name: str) -> None:
    """Write a figure, the same bytes from the same figures."""
    figure.savefig(IMAGES / name, metadata={"Date": None})


def main() -> None:
    """Write all of it."""
    attention, pairs = load("attention.json"), load("attention_pairs.json")
    replace(ROOT / "README.md", "attention results", short(attention))
    replace(ROOT / "docs" / "attention.md", "attention results", page(attention))
    replace(ROOT / "docs" / "attention.md", "pairs results", pairs_words(pairs))
    plot_speed(attention)
    plot_pairs(pairs)


if __name__ == "__main__":
    main()
