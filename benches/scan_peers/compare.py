"""Rows of a case held against float64, then timed in turn.

    from scan_peers import compare, selective

    arrays = selective.arrays(batch=1, width=1536, length=1024)
    result = compare.compare(selective, arrays, "forward", seconds=4, per_second={"exp": 1536 * 1024 * 16})
    compare.say("forward B1 D1536 L1024 S16", result)

Rows whose call takes seconds are called once or twice, as `measure.interleave` does. A matrix product of
NumPy's BLAS, `sgemm`, takes part in every round, so that a row can be set against it.
"""

from __future__ import annotations

import datetime
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import measure
import numpy as np

from scan_peers._row import Arrays, distance

SGEMM = 2048


def sgemm() -> Any:
    """Make a call that multiplies two square matrices in single precision."""
    rng = np.random.default_rng(0)
    a, b, out = rng.standard_normal((3, SGEMM, SGEMM)).astype(np.float32)
    return lambda: np.matmul(a, b, out=out)


def compare(
    family: Any,
    arrays: Arrays,
    passes: str,
    *,
    seconds: float = 4.0,
    names: Sequence[str] | None = None,
    without: Sequence[str] = (),
    per_second: Mapping[str, float] | None = None,
    threads: int = 2,
    rounds: int = 9,
) -> dict[str, Any]:
    """Check and time the rows of a case.

    Parameters
    ----------
    family
        Module `selective`, `ssd` or `ttt`, or one of the same form.
    arrays
        The case, as `family.arrays` or `family.step_arrays` draws it.
    passes
        ``"forward"``, ``"both"`` or ``"step"``.
    seconds
        About how long to go round.
    names, without
        Rows to measure, all where none are given, and rows to leave out.
    per_second
        Work of a call by name, such as ``{"flops": ...}``: its rate is given for every row.
    threads
        Threads of every row.
    rounds
        Most rounds.

    Returns
    -------
    Under ``"rows"``: milliseconds, rounds, distance to float64, and ``times``, how many times as long a row
    takes as this package in the same rounds, each with its quarter and three quarters. With backward,
    ``of_forward`` is how many times forward alone the package takes.
    """
    given = dict(arrays)
    if passes != "both":
        given.pop("grad_out", None)
    truth = family.truth(given, passes)
    wanted = [n for n in family.ROWS if (names is None or n in names) and n not in without]
    calls, called, errors, titles = {}, {}, {}, {}
    for name in wanted:
        if not family.ROWS[name].takes(given, passes):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = family.ROWS[name](given, passes, threads)
            if row.compiles:
                row.call()
            start = time.perf_counter()
            value = row.call()
            called[name] = time.perf_counter() - start
            errors[name] = distance(row.results(value), truth)
        calls[name], titles[name] = row.call, row.title
        del value
    if passes == "both" and "sensorium" in calls:
        # In the same rounds, for how many times forward the two passes take.
        alone = {name: x for name, x in given.items() if name != "grad_out"}
        calls["forward alone"] = family.ROWS["sensorium"](alone, "forward", threads).call
    times = measure.interleave(calls | {"sgemm": sgemm()}, called, seconds, rounds)
    kept: dict[str, Any] = {}
    forward = times.pop("forward alone", None)
    for name, values in times.items():
        kept[name] = {
            "milliseconds": measure.spread([1e3 * t for t in values]),
            "rounds": len(values),
            "title": titles.get(name, "SGEMM"),
        }
        if name == "sgemm":
            kept[name]["gflops"] = measure.spread([2 * SGEMM**3 / t / 1e9 for t in values])
            continue
        kept[name]["error"] = measure.rounded(errors[name])
        for work, amount in (per_second or {}).items():
            kept[name][f"{work}_per_second"] = measure.spread([amount / t for t in values])
            if work == "flops":
                share = [amount / (2 * SGEMM**3) * t for t in times["sgemm"]]
                kept[name]["of_sgemm"] = measure.ratio(share, values)
        if name == "sensorium" and forward is not None:
            kept[name]["of_forward"] = measure.ratio(values, forward)
        if name != "sensorium" and "sensorium" in times:
            kept[name]["times"] = measure.ratio(values, times["sensorium"])
    return {"pass": passes, "date": datetime.date.today().isoformat(), "rows": kept}


def say(title: str, result: Mapping[str, Any]) -> None:
    """Print what was measured."""
    print(title)
    for name, row in result["rows"].items():
        text = f"  {name:<16} {row['milliseconds']['median']:9.3f} ms"
        if "times" in row:
            t = row["times"]
            text += f"   {t['median']:7.2f} times as long ({t['low']:.2f} to {t['high']:.2f})"
        if "of_forward" in row:
            text += f"   {row['of_forward']['median']:.2f} times forward"
        if "of_sgemm" in row:
            text += f"   {row['of_sgemm']['median']:.2f} of SGEMM"
        elif name == "sgemm":
            text += f"   {row['gflops']['median']:.0f} GFLOP/s"
        for key, value in row.items():
            if key.endswith("_per_second"):
                text += f"   {value['median'] / 1e9:.2f} G {key.removesuffix('_per_second')}/s"
        print(text, flush=True)
