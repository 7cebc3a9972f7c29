"""Attention over segment layouts against NumPy and, where they are installed, PyTorch, onnxruntime and JAX.

    python benches/bench_attention.py [--full] [--threads 2] [--json FILE] [--resume]

Every row of a case first agrees with the result in float64. Rows are then timed in turn, a single-precision
matrix product of NumPy's BLAS among them (`sgemm`), round after round; rates count the visible pairs (4 D
operations a pair forward, 10 D backward). Printed are the rate, the share of SGEMM in the same rounds, and
for peers how many times longer they take, with the spread between a quarter and three quarters of the
rounds. Without `--full` the sizes are few; `--layouts`, `--sizes`, `--widths`, `--passes` and `--rows`
choose. FILE is written after every case, and keeps the cases that were not measured again: `--resume`
leaves out all that it has, and `--minutes` starts no case after so long.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from pathlib import Path
from typing import Any

import measure
from bounds import bound

SGEMM = 2048


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--full", action="store_true", help="every layout, size and width")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0, help="about how long to measure a case")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no case after so long")
    parser.add_argument("--layouts", nargs="+")
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--widths", type=int, nargs="+")
    parser.add_argument("--passes", nargs="+")
    parser.add_argument("--rows", nargs="+")
    parser.add_argument("--json", type=Path, help="file to keep the results in, case by case")
    parser.add_argument("--resume", action="store_true", help="leave out cases that the file has")
    return parser.parse_args(arguments)


def chosen(args: argparse.Namespace) -> list[Any]:
    """Cases that the command line asks for."""
    from attention_cases import cases

    asked = [
        ("layout_name", args.layouts),
        ("tokens", args.sizes),
        ("width", args.widths),
        ("passes", args.passes),
    ]
    full = args.full or any(values for _, values in asked)
    return [
        case
        for case in cases(full)
        if all(values is None or getattr(case, name) in values for name, values in asked)
    ]


def sgemm() -> Any:
    """Make a call that multiplies two square matrices in single precision."""
    import numpy as np

    rng = np.random.default_rng(0)
    a, b, out = rng.standard_normal((3, SGEMM, SGEMM)).astype(np.float32)
    return lambda: np.matmul(a, b, out=out)


def run(case: Any, names: list[str] | None, seconds: float) -> dict[str, Any]:
    """Check and time the rows of a case."""
    from attention_rows import rows

    calls, called, errors = {}, {}, {}
    for name, row in rows(case, names).items():
        if row.compiles:
            row.call()
        start = time.perf_counter()
        value = row.call()
        called[name] = time.perf_counter() - start
        errors[name] = case.error(row.results(value))
        calls[name] = row.call
    times = measure.interleave(calls | {"sgemm": sgemm()}, called, seconds)
    kept: dict[str, Any] = {}
    for name, values in times.items():
        flops = 2 * SGEMM**3 if name == "sgemm" else case.flops
        rate = measure.spread([flops / t / 1e9 for t in values])
        kept[name] = {"gflops": rate, "rounds": len(values)}
        if name == "sgemm":
            continue
        scale = case.flops / (2 * SGEMM**3)
        kept[name]["share"] = measure.ratio([scale * t for t in times["sgemm"]], values)
        kept[name]["error"] = measure.rounded(errors[name])
        if name != "sensorium" and "sensorium" in times:
            kept[name]["times"] = measure.ratio(values, times["sensorium"])
    return {
        "layout": case.layout_name,
        "tokens": case.tokens,
        "width": case.width,
        "heads": case.heads,
        "batch": case.batch,
        "pass": case.passes,
        "pairs": case.layout.pairs,
        "date": datetime.date.today().isoformat(),
        "bound": measure.rounded(bound(case.width, case.passes)),
        "rows": kept,
    }


def line(name: str, row: dict[str, Any]) -> str:
    """Say what was measured of a row."""
    text = f"  {name:<12} {row['gflops']['median']:7.1f} GFLOP/s"
    if "share" in row:
        share = row["share"]
        text += f"   {share['median']:.2f} of SGEMM ({share['low']:.2f} to {share['high']:.2f})"
    if "times" in row:
        times = row["times"]
        text += f"   {times['median']:.2f} times as long ({times['low']:.2f} to {times['high']:.2f})"
    return text


def main(arguments: list[str]) -> None:
    """Measure what the command line asks for."""
    args = parse(arguments)
    measure.limit_processors(args.threads)
    import sensorium

    sensorium.keep_pages()
    about = measure.machine()
    kept: dict[str, Any] = {}
    if args.json and args.json.exists():
        kept = json.loads(args.json.read_text())["cases"]
    end = time.perf_counter() + 60 * args.minutes
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    for case in chosen(args):
        if args.resume and case.name in kept:
            continue
        if time.perf_counter() > end:
            print("out of time: --resume goes on from here")
            break
        result = run(case, args.rows, args.seconds)
        print(f"{case.name}: products can have {result['bound']:.2f} of the multiplication port")
        for name, row in result["rows"].items():
            print(line(name, row), flush=True)
        kept[case.name] = result
        if args.json:
            write(args.json, about, kept)


def write(path: Path, about: dict[str, Any], kept: dict[str, Any]) -> None:
    """Keep the results, a case a line, in the order of the cases."""
    from attention_cases import cases

    path.parent.mkdir(parents=True, exist_ok=True)
    order = [case.name for case in cases(full=True)]
    kept = {name: kept[name] for name in order if name in kept}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(case)}" for name, case in kept.items())
    path.write_text(f'{{"about": {json.dumps(about)},\n"cases": {{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main(sys.argv[1:])
