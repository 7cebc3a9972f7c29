"""Test-time-training layers over a sequence and token by token, against NumPy, torch and JAX.

    python benches/bench_ttt.py [--threads 2] [--json FILE] [--kinds linear mlp] [--heads 4 12] [--rows NAME]

Sequences of 2,048 tokens in mini-batches of 16 with heads of 64, forward and with backward, as in
`bench_scans.py`, with the work in floating-point operations and its share of a matrix product of NumPy's BLAS
in the same rounds. Then generation: a token at a time for a whole mini-batch, the state written in place,
against the same in NumPy (weights moved for every token, sums kept), with the bytes of the state that a token
reads and writes. Every row first agrees with the result in float64. Ratios are taken round by round.
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

WIDTH, LENGTH, SIZE = 64, 2048, 16


def flops(kind: str, heads: int, passes: str) -> int:
    """Operations of matrix products: those with a layer's matrix, and the lower triangles of pairs.

    The backward takes twice the products of the forward, and those of the forward again.
    """
    sizes = [(WIDTH, WIDTH)] if kind == "linear" else [(WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]
    # Keys, queries and the step of every layer, and the gradient through the second.
    products = sum(3 * a * c for a, c in sizes) + sum(a * c for a, c in sizes[1:])
    pairs = sum(SIZE * (a + c / 2) for a, c in sizes)
    forward = 2 * heads * LENGTH * (products + pairs)
    return int(forward if passes == "forward" else 4 * forward)


def sequences(args: argparse.Namespace) -> dict[str, Any]:
    """Measure whole sequences."""
    from scan_peers import compare, ttt

    kept = {}
    for kind in args.kinds:
        for heads in args.heads:
            for passes in ("forward", "both"):
                name = f"{kind} {passes} B1 H{heads} L{LENGTH} D{WIDTH}"
                kept[name] = compare.compare(
                    ttt,
                    ttt.arrays(1, heads, LENGTH, WIDTH, mlp=kind == "mlp"),
                    passes,
                    seconds=args.seconds,
                    names=args.rows,
                    per_second={"flops": flops(kind, heads, passes)},
                    threads=args.threads,
                )
                compare.say(name, kept[name])
    return kept


def generated(a: dict[str, Any], weights: list[Any], sums: list[Any], place: int, t: int) -> Any:
    """One token in NumPy: what it reads; `sums` are added to, and at the end of a mini-batch taken."""
    from scan_peers import ttt

    q, k, v, eta = (a[name][0, :, t, None] for name in ("q", "k", "v", "eta"))
    mlp = len(weights) == 4
    z = k @ weights[0] + weights[1][:, None]
    x = ttt.gelu(z) if mlp else k
    g = ttt.norm_gradient(x @ weights[2] + weights[3][:, None] if mlp else z, v - k, a)
    steps = [(x, g)]
    if mlp:
        steps.insert(0, (k, g @ weights[2].swapaxes(-1, -2) * ttt.gelu_slope(z)))
    for i, (x, g) in enumerate(steps):
        sums[2 * i] += eta[:, :, None] * x.swapaxes(-1, -2) * g
        sums[2 * i + 1] += eta * g[:, 0]
    moved = [w - s / (place + 1) for w, s in zip(weights, sums, strict=True)]
    z = q @ moved[0] + moved[1][:, None]
    if mlp:
        z = ttt.gelu(z) @ moved[2] + moved[3][:, None]
    if place + 1 == SIZE:
        weights[:] = moved
        for s in sums:
            s[...] = 0
    return q + ttt.norm(z, a)[0]


def generation(kind: str, heads: int, seconds: float) -> dict[str, Any]:
    """Measure a mini-batch generated token by token."""
    import numpy as np
    from scan_peers import ttt
    from sensorium import ops

    def arrays(dtype: Any) -> dict[str, Any]:
        return ttt.arrays(1, heads, SIZE, WIDTH, mlp=kind == "mlp", dtype=dtype)

    def in_numpy(a: dict[str, Any]) -> Any:
        weights = [a[name].copy() for name in a if name[0] in "Wb"]
        sums = [np.zeros_like(w) for w in weights]
        return lambda: np.stack([generated(a, weights, sums, t, t)[:, 0] for t in range(SIZE)], axis=1)

    narrow = arrays(np.float32)
    del narrow["grad_out"]
    run = ops.ttt_mlp if kind == "mlp" else ops.ttt_linear
    weights = {name: narrow[name] for name in narrow if name[0] in "Wb"}
    rest = weights | {name: narrow[name] for name in ("norm_weight", "norm_bias")}
    tokens = [
        {name: narrow[name][:, :, t : t + 1].copy() for name in ("q", "k", "v", "eta")} for t in range(SIZE)
    ]

    def in_place() -> Any:
        state = ops.TTTState.initial(1, *weights.values())
        how = {"mini_batch_size": SIZE, "initial_state": state, "out_state": state}
        return lambda: np.concatenate([run(**token, **rest, **how)[0] for token in tokens], axis=2)[0]

    truth = in_numpy(arrays(np.float64))()
    made = {"sensorium": in_place, "numpy": lambda: in_numpy(narrow)}
    calls, called, errors = {}, {}, {}
    for name, make in made.items():
        error = np.abs(make()() - truth).max() / np.abs(truth).max()
        assert error < 1e-4, f"{name} differs by {error:.2g}"
        calls[name], errors[name] = make(), measure.rounded(float(error))
        start = time.perf_counter()
        calls[name]()
        called[name] = time.perf_counter() - start
    times = measure.interleave(calls, called, seconds)
    # Weights and sums are read, sums written; the last token of a mini-batch writes weights too.
    state = sum(w.nbytes for w in weights.values())
    rows = {
        name: {
            "microseconds": measure.spread([1e6 * t / SIZE for t in values]),
            "bytes_per_second": measure.spread([3 * state * SIZE / t for t in values]),
            "times": measure.ratio(values, times["sensorium"]),
            "error": errors[name],
        }
        for name, values in times.items()
    }
    return {"state_bytes": 2 * state, "date": datetime.date.today().isoformat(), "rows": rows}


def main(arguments: list[str]) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long to measure a case")
    parser.add_argument("--kinds", nargs="+", default=["linear", "mlp"])
    parser.add_argument("--heads", type=int, nargs="+", default=[4, 12])
    parser.add_argument("--rows", nargs="+", help="rows of the sequences: numpy, torch, torch_compiled, jax")
    parser.add_argument("--json", type=Path, help="file to keep the results in")
    args = parser.parse_args(arguments)
    measure.limit_processors(args.threads)
    if args.rows is not None:
        args.rows = list(dict.fromkeys(["sensorium", "numpy", *args.rows]))
    import sensorium

    sensorium.keep_pages()
    facts = measure.machine()
    print(", ".join(f"{key} {value}" for key, value in facts.items()))
    kept = sequences(args)
    for kind in args.kinds:
        for heads in args.heads:
            name = f"{kind} a token B1 H{heads} D{WIDTH}"
            kept[name] = result = generation(kind, heads, args.seconds)
            print(name)
            for row, values in result["rows"].items():
                times, rate = values["times"]["median"], values["bytes_per_second"]["median"] / 1e9
                print(
                    f"  {row:<16} {values['microseconds']['median']:9.1f} us   {times:7.2f}   {rate:.1f} GB/s"
                )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in kept.items())
        args.json.write_text(f'{{"about": {json.dumps(facts)},\n"cases": {{\n{lines}\n}}}}\n')


if __name__ == "__main__":
    main(sys.argv[1:])
