"""Scans against NumPy and what others' code does for the same work, where it is installed.

    python benches/bench_scans.py [--threads 2] [--json FILE] [--cases WORD ...] [--rows NAME ...]

Every row of a case first agrees with the result in float64. Rows are then timed in turn, round after round,
a single-precision matrix product of NumPy's BLAS among them (`sgemm`). Printed are milliseconds, and for
others how many times as long they take, with a quarter and three quarters of the rounds in FILE. `--cases`
takes the cases whose names have one of those words. FILE is written after every case, and keeps the cases
that were not measured again; `--minutes` starts no case after so long. A row that would take minutes is
measured at a shorter length alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure
from bench_ssd import backward_flops, forward_flops

#: Rows whose gradients take time with the square of the length.
SQUARE = ("reference", "transformers")


@dataclass(frozen=True)
class Case:
    """What is measured: a family, its arrays, a pass and the rows that are left out."""

    name: str
    family: str
    passes: str
    make: Callable[[Any], Any]
    work: dict[str, float] = field(default_factory=dict)
    without: tuple[str, ...] = ()


def selective(
    batch: int, width: int, length: int, passes: str, without: tuple[str, ...] = (), **more: Any
) -> Case:
    """A selective scan of 16 states; its work is one exponential a state, forward."""
    words = ", D, z, bias" if more else ""
    name = f"selective scan {passes} B{batch} D{width} L{length} S16{words}"
    return Case(
        name,
        "selective",
        passes,
        lambda family: family.arrays(batch, width, length, 16, **more),
        {"exp": batch * width * length * 16} if passes == "forward" else {},
        without,
    )


def step(family: str, name: str, make: Callable[[Any], Any], numbers: int) -> Case:
    """One step of a layer; its work is so many numbers of the state, and of A, that are read or written."""
    return Case(name, family, "step", make, {"bytes": 4.0 * numbers})


def ssd(length: int, passes: str) -> Case:
    """A scan of Mamba-2 with 24 heads of 64 and 128 states; its work is that of its chunks of 64."""
    sizes = (1, length, 24, 64, 1, 128, 64)
    flops = forward_flops(*sizes) + (backward_flops(*sizes) if passes == "both" else 0)
    return Case(
        f"ssd {passes} B1 L{length} H24 P64 S128",
        "ssd",
        passes,
        lambda family: family.arrays(1, length, 24, 64, 128),
        {"flops": flops},
    )


def ttt(kind: str, heads: int, passes: str) -> Case:
    """A test-time-training layer over 2,048 tokens, heads of 64, mini-batches of 16."""
    return Case(
        f"ttt {kind} {passes} B1 H{heads} L2048 D64",
        "ttt",
        passes,
        lambda family: family.arrays(1, heads, 2048, 64, mlp=kind == "mlp"),
    )


def cases() -> list[Case]:
    """All of them."""
    slow = (*SQUARE, "mambapy", "associative", "jax_associative")
    return [
        # First, before other cases have left threads behind that look for work.
        step(
            "selective", "selective scan step B1 D1536 S16", lambda f: f.step_arrays(1, 1536), 3 * 1536 * 16
        ),
        step(
            "selective", "selective scan step B1 D5120 S16", lambda f: f.step_arrays(1, 5120), 3 * 5120 * 16
        ),
        step("ssd", "ssd step B1 H24 P64 S128", lambda f: f.step_arrays(1), 2 * 24 * 64 * 128),
        selective(1, 1536, 1024, "forward"),
        selective(1, 1536, 4096, "forward", slow),
        selective(8, 256, 512, "forward", slow),
        selective(1, 1536, 1024, "forward", slow, options=True),
        selective(1, 1536, 256, "both", ("jax_associative",)),
        selective(1, 1536, 1024, "both", (*SQUARE, "jax_associative")),
        selective(1, 1536, 4096, "both", (*slow, "jax")),
        *(ssd(2048, passes) for passes in ("forward", "both")),
        *(
            ttt(kind, heads, p)
            for kind in ("linear", "mlp")
            for heads in (4, 12)
            for p in ("forward", "both")
        ),
    ]


def about() -> dict[str, Any]:
    """What figures depend on, others' versions included."""
    from scan_peers import ggml

    facts = measure.machine()
    for name in ("numba", "transformers", "mambapy"):
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return facts | {"ggml": ggml.version()}


def main(arguments: list[str]) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long to measure a case")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no case after so long")
    parser.add_argument("--cases", nargs="+", help="words, one of which a case's name has")
    parser.add_argument("--rows", nargs="+")
    parser.add_argument("--json", type=Path, help="file to keep the results in, case by case")
    args = parser.parse_args(arguments)
    measure.limit_processors(args.threads)
    import sensorium
    from scan_peers import compare, selective, ssd, ttt

    sensorium.keep_pages()
    families = {"selective": selective, "ssd": ssd, "ttt": ttt}
    facts, kept = about(), {}
    if args.json and args.json.exists():
        kept = json.loads(args.json.read_text())["cases"]
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    start = time.perf_counter()
    for case in cases():
        if args.cases and not any(word in case.name for word in args.cases):
            continue
        if time.perf_counter() - start > 60 * args.minutes:
            print("out of time")
            break
        family, began = families[case.family], time.perf_counter()
        result = compare.compare(
            family,
            case.make(family),
            case.passes,
            seconds=args.seconds,
            names=args.rows,
            without=case.without,
            per_second=case.work,
            threads=args.threads,
        )
        compare.say(f"{case.name} ({time.perf_counter() - began:.0f} s)", result)
        kept[case.name] = result
        if args.json:
            lines = [f" {json.dumps(c.name)}: {json.dumps(kept[c.name])}" for c in cases() if c.name in kept]
            text = f'{{"about": {json.dumps(facts)},\n"cases": {{\n' + ",\n".join(lines) + "\n}}\n"
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
