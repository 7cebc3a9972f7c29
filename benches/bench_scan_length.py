"""What a scan costs as its sequence grows: time and memory against length.

    python benches/bench_scan_length.py [--threads 2] [--json FILE] [--operations NAME ...]

Sequences of 1,000 to 100,000 steps are timed in turn, forward and with backward, and a straight line is
fitted to the fastest of the rounds, each length with equal weight: residuals are in units of the time at
their length. Then sequences of 65,536 steps run in processes of their own, and what the peak of resident
memory rose by during the call is set against the arrays that the call returns, and against an array of the
states of all steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import measure
from scan_ops import OPERATIONS, calls, there

LENGTHS = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
LONG = 65_536
#: Rounds are this many, or fewer after so many seconds, but at least the least.
ROUNDS, SECONDS, LEAST = 7, 10.0, 2


def times(name: str) -> dict[str, Any]:
    """Time an operation at every length, and fit a line to each pass."""
    import numpy as np

    rows = {(passes, length): call for length in LENGTHS for passes, call in calls(name, length).items()}
    first = {}
    for key, call in rows.items():
        call()
        first[key] = measure.once(call)
    best = dict.fromkeys(rows, np.inf)
    end = time.perf_counter() + SECONDS
    for i in range(ROUNDS):
        if i >= LEAST and time.perf_counter() > end:
            break
        for key, call in rows.items():
            repeats = max(1, int(measure.BURST / first[key]))
            best[key] = min(best[key], measure.once(call, repeats))
    found = {}
    for passes in ("forward", "both"):
        seconds = np.array([best[passes, length] for length in LENGTHS])
        lengths = np.array(LENGTHS, float)
        # Of equal weight, whatever the length: the squares of relative residuals are least.
        start, slope = np.linalg.lstsq(
            np.stack([1 / seconds, lengths / seconds], axis=1), np.ones(len(LENGTHS)), rcond=None
        )[0]
        residual = (start + slope * lengths) / seconds - 1
        found[passes] = {
            "milliseconds": [measure.rounded(1e3 * t) for t in seconds],
            "nanoseconds_a_step": measure.rounded(1e9 * slope),
            "start_milliseconds": measure.rounded(1e3 * start),
            "largest_residual": measure.rounded(abs(residual).max()),
            "residuals": [measure.rounded(r) for r in residual],
        }
    return found


def memory(name: str, passes: str) -> dict[str, int]:
    """Bytes of what a call returns and by which the peak rose, in its own process, and of all states."""
    program = str(Path(__file__).parent / "scan_ops.py")
    command = [sys.executable, program, name, passes, str(LONG)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    returned, rose = map(int, done.stdout.split())
    return {
        "returned_bytes": returned,
        "peak_bytes": rose,
        "states_bytes": 4 * LONG * OPERATIONS[name].states,
    }


def keep(path: Path, kept: dict[str, Any]) -> None:
    """Write what was measured so far, an operation a line."""
    about = measure.machine() | {"lengths": LENGTHS, "long": LONG}
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(
        f" {json.dumps(name)}: {json.dumps(kept[name])}" for name in OPERATIONS if name in kept
    )
    path.write_text(f'{{"about": {json.dumps(about)},\n"operations": {{\n{lines}\n}}}}\n')


def main(arguments: list[str]) -> None:
    """Measure, say, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--operations", nargs="+", default=list(OPERATIONS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    measure.limit_processors(args.threads)
    import sensorium

    sensorium.keep_pages()
    kept: dict[str, Any] = {}
    if args.json and args.json.exists():
        kept = json.loads(args.json.read_text())["operations"]
    for name in args.operations:
        if not there(name):
            print(f"{name} is not in this version")
            continue
        kept[name] = {"memory": {passes: memory(name, passes) for passes in ("forward", "both")}}
        for passes, row in kept[name]["memory"].items():
            sizes = {key.removesuffix("_bytes"): f"{size / 2**20:.0f} MB" for key, size in row.items()}
            print(f"{name} {passes} L {LONG}: {sizes}")
        kept[name] |= times(name)
        for passes in ("forward", "both"):
            fit = kept[name][passes]
            print(
                f"{name} {passes}: {fit['nanoseconds_a_step']:.0f} ns a step, "
                f"largest residual {fit['largest_residual']:.1%}, {fit['milliseconds']} ms",
                flush=True,
            )
        if args.json:
            keep(args.json, kept)


if __name__ == "__main__":
    main(sys.argv[1:])
