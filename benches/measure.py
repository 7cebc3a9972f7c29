"""Rows timed in turn, what is said of them, and the machine that they ran on.

A slow moment of the machine hits whatever runs in it. So the rows of a case are measured in turn, round after
round, and what is reported are ratios between rows of the same round: their median, and the quarter and three
quarters of them as the spread.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

#: Seconds that a row runs at a time, so that its threads are awake and its arrays in the cache.
BURST = 0.03
#: Seconds below which a call is made once, untimed, before each burst.
WARM = 0.1
#: Seconds above which a call is slow: such a row joins the first rounds only. Above `VERY_SLOW`, one call
#: is all.
SLOW, VERY_SLOW = 1.5, 4.0
#: Seconds for the threads of a row to give up looking for work before the next row starts. OpenBLAS's look
#: for more than 0.04 s, and take a quarter of what runs meanwhile; to shorten that by
#: OPENBLAS_THREAD_TIMEOUT would slow its own row.
PAUSE, PAUSE_BLAS = 0.01, 0.12
#: Rows that run on OpenBLAS.
BLAS = ("numpy", "sgemm")


def limit_processors(threads: int) -> None:
    """Let this process run on so many processors, and tell the libraries that read the environment.

    Call it before any of them is imported: some have no other way to say how many threads they may use.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "SENSORIUM_NUM_THREADS"):
        os.environ[name] = str(threads)


def once(call: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds of a call, on average over a few in a row."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def interleave(
    rows: Mapping[str, Callable[[], Any]],
    called: Mapping[str, float],
    seconds: float,
    rounds: int = 9,
    least: int = 3,
) -> dict[str, list[float]]:
    """Seconds of every row in each round that it took part in.

    `called` has the seconds of a first call, when pages were fresh. Rounds go on until
    there were `rounds` of them, or at least `least` and `seconds` have passed. Of a row whose call is slow,
    the call before the first round counts as its first, and one more is made; of a very slow one the first
    call is all.
    """
    first: dict[str, float] = {}
    for name, call in rows.items():
        first[name] = called.get(name, 0.0)
        if first[name] <= VERY_SLOW:
            first[name] = once(call)
            rest(name)
    times: dict[str, list[float]] = {name: [] for name in rows}
    start = time.perf_counter()
    for i in range(rounds):
        for name, call in rows.items():
            if first[name] > SLOW:
                if i == 0:
                    times[name].append(first[name])
                elif i == 1 and first[name] <= VERY_SLOW:
                    times[name].append(once(call))
                    rest(name)
                continue
            if first[name] < WARM:
                call()
            times[name].append(once(call, max(1, int(BURST / max(first[name], 1e-7)))))
            rest(name)
        if i + 1 >= least and time.perf_counter() - start > seconds:
            break
    return times


def rest(name: str) -> None:
    """Wait until the threads of a row have given up looking for work."""
    time.sleep(PAUSE_BLAS if name in BLAS else PAUSE)


def spread(values: list[float]) -> dict[str, float]:
    """Median, quarter and three quarters."""
    if len(values) < 2:
        values = values * 2
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": rounded(middle), "low": rounded(low), "high": rounded(high)}


def ratio(above: list[float], below: list[float]) -> dict[str, float]:
    """Spread of the ratio of two rows, round by round."""
    return spread([a / b for a, b in zip(above, below, strict=False)])


def rounded(value: float) -> float:
    """Four significant digits: more are noise."""
    return float(f"{value:.4g}")


def processor() -> str:
    """Name of the processor as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """What figures depend on: processor, threads, instruction set, versions, date."""
    import numpy as np
    from sensorium._config import config
    from threadpoolctl import threadpool_info

    facts = config()
    peers = {}
    for name in ("torch", "onnxruntime", "jax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            peers[name] = importlib.metadata.version(name)
    blas = [f"{p['internal_api']} {p['version']}" for p in threadpool_info() if p["user_api"] == "blas"]
    return {
        "processor": processor(),
        "threads": facts["threads"],
        "isa": facts["isa"],
        "python": facts["python"],
        "sensorium": facts["sensorium"],
        "numpy": np.__version__,
        "blas": blas[0] if blas else "unknown",
        **peers,
        "date": datetime.date.today().isoformat(),
    }
