"""Structured state-space duality against SGEMM, chunk by chunk, and against NumPy and what else is installed.

    python benches/bench_ssd.py [--threads 2] [--json FILE] [--cases WORD ...] [--rows NAME ...] [--full]

The work of a case is the multiply-adds of the chunked algorithm, two operations each, with the triangle of a
chunk counted once; nothing is counted for decays, and of backward nothing that is computed again. Every row
first agrees with the result in float64, and rows are timed in turn with a single-precision matrix product of
NumPy's BLAS. A step's work is its bytes: the state read and written. `--full` takes all shapes; FILE keeps
cases that were not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import measure


def forward_flops(B: int, L: int, H: int, P: int, G: int, S: int, Q: int) -> float:
    """Operations of the scan: a head's triangle, what the state gives and takes; a group's squares."""
    adds = 0.0
    for length in [Q] * (L // Q) + ([L % Q] if L % Q else []):
        triangle = length * (length + 1) / 2
        adds += H * (triangle * P + 2 * length * S * P) + G * triangle * S
    return 2 * B * adds


def backward_flops(B: int, L: int, H: int, P: int, G: int, S: int, Q: int) -> float:
    """Operations of its gradients: four products with a state and two with a triangle a head; a group's two.

    The states themselves and the squares are computed again, and not counted.
    """
    adds = 0.0
    for length in [Q] * (L // Q) + ([L % Q] if L % Q else []):
        triangle = length * (length + 1) / 2
        adds += H * (2 * triangle * P + 4 * length * S * P) + G * 2 * triangle * S
    return 2 * B * adds


@dataclass(frozen=True)
class Case:
    """Sizes, a pass, and the chunks of the package's own rows."""

    passes: str
    B: int = 1
    L: int = 2048
    H: int = 24
    P: int = 64
    G: int = 1
    S: int = 128
    chunks: tuple[int, ...] = (64,)
    options: bool = False

    @property
    def name(self) -> str:
        """What it is called."""
        sizes = " ".join(f"{letter}{getattr(self, letter)}" for letter in "BLHPGS")
        return f"ssd {self.passes} {sizes}" + (", D, z, bias" if self.options else "")

    def flops(self, chunk: int) -> float:
        """Operations with chunks of that size."""
        sizes = (self.B, self.L, self.H, self.P, self.G, self.S, chunk)
        both = self.passes == "both"
        return forward_flops(*sizes) + (backward_flops(*sizes) if both else 0)


def cases(full: bool) -> list[Case]:
    """The shapes of Mamba-2 models, and others that try the kernels."""
    few = [
        Case("forward", chunks=(32, 64, 96, 128, 256)),
        Case("both", chunks=(32, 64, 128, 256)),
        Case("step"),
    ]
    if not full:
        return few
    return [
        *few,
        Case("forward", options=True),
        Case("both", options=True),
        Case("forward", L=16384),
        Case("forward", B=8, L=256),
        Case("forward", H=80, L=512),
        Case("forward", G=8),
        Case("forward", S=64, chunks=(32, 64, 128)),
        Case("forward", S=16, chunks=(16, 32, 64, 128)),
        Case("both", S=16, chunks=(16, 32, 64)),
        Case("forward", H=48, P=32),
        Case("forward", H=12, P=128),
        Case("forward", H=1),
        Case("step", B=16),
        Case("step", H=80),
    ]


def family(case: Case) -> Any:
    """The peers, with a row of the package for each chunk."""
    from scan_peers import ssd

    def row(chunk: int) -> Any:
        class Chunked(ssd.Sensorium):
            title = f"sensorium, chunks of {chunk}"
            options: ClassVar[dict[str, Any]] = {**ssd.Sensorium.options, "chunk_size": chunk}

        return Chunked

    rows = {"sensorium": row(case.chunks[0] if len(case.chunks) == 1 else 64)}
    rows |= {f"chunks of {chunk}": row(chunk) for chunk in case.chunks if len(case.chunks) > 1}
    rows |= {name: kind for name, kind in ssd.ROWS.items() if name != "sensorium"}
    return SimpleNamespace(ROWS=rows, truth=ssd.truth)


def measured(case: Case, names: list[str] | None, seconds: float, threads: int) -> dict[str, Any]:
    """Check and time a case; every chunk has its own share of SGEMM."""
    from scan_peers import compare, ssd

    if case.passes == "step":
        arrays = ssd.step_arrays(case.B, case.H, case.P, case.S, case.G)
        work = {"bytes": 8.0 * case.B * case.H * case.P * case.S}
    else:
        arrays = ssd.arrays(case.B, case.L, case.H, case.P, case.S, case.G, options=case.options)
        work = {"flops": case.flops(64)}
    result: dict[str, Any] = compare.compare(
        family(case), arrays, case.passes, seconds=seconds, names=names, per_second=work, threads=threads
    )
    for chunk in case.chunks:
        row = result["rows"].get(f"chunks of {chunk}")
        if row and case.passes != "step":
            scale = case.flops(chunk) / case.flops(64)
            for kept in ("flops_per_second", "of_sgemm"):
                row[kept] = {key: measure.rounded(value * scale) for key, value in row[kept].items()}
    return result


def main(arguments: list[str]) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long to measure a case")
    parser.add_argument("--cases", nargs="+", help="words, one of which a case's name has")
    parser.add_argument("--rows", nargs="+")
    parser.add_argument("--full", action="store_true", help="every shape")
    parser.add_argument("--json", type=Path, help="file to keep the results in, case by case")
    args = parser.parse_args(arguments)
    measure.limit_processors(args.threads)
    import sensorium
    from scan_peers import compare

    sensorium.keep_pages()
    facts, kept = measure.machine(), {}
    if args.json and args.json.exists():
        kept = json.loads(args.json.read_text())["cases"]
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    for case in cases(args.full):
        if args.cases and not any(word in case.name for word in args.cases):
            continue
        result = measured(case, args.rows, args.seconds, args.threads)
        compare.say(case.name, result)
        kept[case.name] = result
        if args.json:
            lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in kept.items()]
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(
                f'{{"about": {json.dumps(facts)},\n"cases": {{\n' + ",\n".join(lines) + "\n}}\n"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
