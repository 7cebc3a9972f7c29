"""The selective scan by layout, options and threads, and what bounds it.

    python benches/bench_scan.py [--seconds 2] [--threads 2] [--json FILE] [--cases WORD ...]

Every result first agrees with a loop over time in NumPy, which is a row of every case. Printed of a scan are
milliseconds, exponentials a second and core, and the share of what the multiply-add port allows: eleven
instructions for 16 exponentials, so 16 / 11 of what the port does a second, which a loop of nothing else
measures as `sgemm` does. Of a step: the bytes that it reads and writes a second, beside a copy of as many
bytes, for one layer (which stays in cache) and for layers in turn that no cache holds. Others' code is
measured by `bench_scans.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure

#: Layers in turn for a step out of memory: 96 of D 5,120 and S 16 are 63 MB.
LAYERS = 96
#: Largest distance to NumPy's loop in units of the largest element.
TOLERANCE = 1e-4


def held(name: str, got: Any, want: Any) -> None:
    """Refuse a result that is far from NumPy's."""
    import numpy as np

    far = np.abs(np.asarray(got, np.float64) - want).max() / max(np.abs(want).max(), 1e-30)
    if not far < TOLERANCE:
        raise AssertionError(f"{name} is {far:g} away from NumPy's")


def scan_rows(arrays: dict[str, Any], rows: dict[str, Callable[[], Any]]) -> None:
    """Add the package's rows of a scan, forward and with backward, in both layouts."""
    import numpy as np
    from sensorium import ops

    arrays = dict(arrays)
    grad = arrays.pop("grad_out")
    last = {k: np.ascontiguousarray(np.moveaxis(v, -1, 1)) if v.ndim == 3 else v for k, v in arrays.items()}
    grad_last = np.ascontiguousarray(np.moveaxis(grad, -1, 1))
    for layout, given, g, flag in (("first", arrays, grad, False), ("last", last, grad_last, True)):
        out = np.empty_like(given["u"])
        how = {"delta_softplus": True, "channels_last": flag}

        def forward(given: Any = given, how: Any = how, out: Any = out) -> Any:
            return ops.selective_scan(**given, **how, out=out)

        def both(given: Any = given, how: Any = how, out: Any = out, g: Any = g) -> Any:
            _, kept = ops.selective_scan(**given, **how, out=out, return_checkpoints=True)
            return ops.selective_scan_backward(g, **given, **how, checkpoints=kept)

        rows[f"channels {layout}"] = forward
        rows[f"channels {layout}, with backward"] = both


def scan(sizes: tuple[int, int, int, int], options: bool, seconds: float, threads: int) -> dict[str, Any]:
    """Measure a scan of ``(B, D, L, S)``."""
    import numpy as np
    from scan_peers import compare, selective

    batch, width, length, states = sizes
    arrays = selective.arrays(batch, width, length, states, options=options)
    loop = selective.NumPy(arrays, "forward", threads)
    rows: dict[str, Callable[[], Any]] = {}
    scan_rows(arrays, rows)
    want = loop.results(loop.call())["y"]
    held("channels first", rows["channels first"](), want)
    held("channels last", np.moveaxis(rows["channels last"](), 1, -1), want)
    rows |= {"numpy": loop.call, "sgemm": compare.sgemm()}
    times = measure.interleave(rows, {}, seconds)
    kept: dict[str, Any] = {}
    for name, values in times.items():
        kept[name] = {"ms": measure.spread([1e3 * t for t in values])}
        if name not in ("numpy", "sgemm"):
            kept[name]["times faster than numpy"] = measure.ratio(times["numpy"], values)
        if name.startswith("channels") and "backward" not in name:
            exps = batch * width * length * states
            kept[name]["G exp a core"] = measure.spread([exps / t / 1e9 / threads for t in values])
            both = times[f"{name}, with backward"]
            kept[f"{name}, with backward"] = {"times forward": measure.ratio(both, values)}
    return kept


def step(width: int, states: int, layers: int, seconds: float) -> dict[str, Any]:
    """Measure a step of so many layers in turn, beside a copy of the bytes that it moves."""
    import numpy as np
    from scan_peers import selective
    from sensorium import ops

    given = [selective.step_arrays(1, width, states) for _ in range(layers)]
    how = {"dt_softplus": True}
    first = {k: np.array(v) for k, v in given[0].items()}
    loop = selective.NumPy(first, "step")
    held("step", ops.selective_state_update(**{k: np.array(v) for k, v in first.items()}, **how), loop.call())
    moved = 3 * width * states * 4
    halves = [(np.ones(moved // 8, np.float32), np.ones(moved // 8, np.float32)) for _ in given]

    def steps() -> None:
        for one in given:
            ops.selective_state_update(**one, **how)

    def copies() -> None:
        for a, b in halves:
            np.copyto(b, a)

    times = measure.interleave({"sensorium": steps, "copy": copies, "numpy": loop.call}, {}, seconds)
    times = {name: [t / (1 if name == "numpy" else layers) for t in values] for name, values in times.items()}
    return {
        name: {
            "us": measure.spread([1e6 * t for t in values]),
            "GB/s": measure.spread([moved / t / 1e9 for t in values]),
        }
        for name, values in times.items()
    }


def cases(threads: int, seconds: float) -> dict[str, Callable[[], dict[str, Any]]]:
    """All of them, by name."""
    sizes = [
        (1, 1536, 1024, 16),
        (1, 1536, 4096, 16),
        (8, 256, 512, 16),
        (1, 1536, 1024, 64),
        (1, 64, 64, 16),
    ]
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for s in sizes:
        for options in (False, True):
            name = "scan B{} D{} L{} S{}".format(*s) + (", D, z, bias" if options else "")
            found[name] = lambda s=s, options=options: scan(s, options, seconds, threads)  # type: ignore[misc]
    for layers in (1, LAYERS):
        name = f"step D5120 S16, {layers} layer{'s' if layers > 1 else ''} in turn"
        found[name] = lambda layers=layers: step(5120, 16, layers, seconds)  # type: ignore[misc]
    return found


def main(arguments: list[str]) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long to measure a case")
    parser.add_argument("--cases", nargs="+", help="words, one of which a case's name has")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    args = parser.parse_args(arguments)
    measure.limit_processors(args.threads)
    import sensorium

    sensorium.keep_pages()
    about, results = measure.machine(), {}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    for name, case in cases(args.threads, args.seconds).items():
        if args.cases and not any(word in name for word in args.cases):
            continue
        results[name] = case()
        print(name)
        for row, facts in results[name].items():
            words = "  ".join(f"{key} {value['median']:g}" for key, value in facts.items())
            print(f"  {row:<32} {words}", flush=True)
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps({"about": about, "cases": results}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
