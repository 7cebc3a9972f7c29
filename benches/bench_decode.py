"""Decoding over a cache against NumPy and, where it is installed, PyTorch; and against what memory gives.

Bytes are those of the visible keys and values, each counted once a call: the least that any kernel must read.
Two rows say what the memory gives in the same rounds, on as many threads: `add` is `a = b + c` over arrays of
128 MB, the traffic of STREAM's triad (three streams counted, 12 bytes an element; `a` is read too, which is
not counted), `read` is their dot product, which writes nothing, as decoding does.
Operations are 4 D a pair of a query and a visible key. Each row first agrees with the float64 reference on
one head.

    python benches/bench_decode.py --threads 2 --json benches/results/decode.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import measure

# OpenBLAS computes it, and its threads look for work for a while.
measure.BLAS = (*measure.BLAS, "read")

NEW = (1, 2, 4, 8, 16, 64)
KEYS = (1_000, 10_000, 100_000)
ELEMENTS = 1 << 25


@dataclass(frozen=True)
class Case:
    new: int
    keys: int
    heads: int = 8
    kv_heads: int = 8
    width: int = 64
    dtype: str = "float32"

    @property
    def name(self):
        return f"n{self.new} keys{self.keys} H{self.heads}:{self.kv_heads} D{self.width} {self.dtype}"

    @property
    def bytes(self):
        return 2 * self.kv_heads * self.keys * self.width * (2 if "16" in self.dtype else 4)

    @property
    def flops(self):
        # Query i of n sees keys - n + i + 1 of them.
        return 4 * self.heads * self.width * (self.new * self.keys - self.new * (self.new - 1) // 2)


CASES = [Case(n, keys, width=d) for d in (64, 128) for keys in KEYS for n in NEW]
CASES += [Case(n, keys, kv_heads=2, width=d) for d in (64, 128) for keys in KEYS for n in NEW]
CASES += [Case(n, 100_000, width=d, dtype="bfloat16") for d in (64, 128) for n in NEW]


def make_arrays(case):
    import ml_dtypes
    import numpy as np

    dtype = ml_dtypes.bfloat16 if case.dtype == "bfloat16" else np.dtype(case.dtype)
    rng = np.random.default_rng(0)
    shape = (1, case.kv_heads, case.keys, case.width)
    k, v = (rng.standard_normal(shape, dtype=np.float32).astype(dtype) for _ in range(2))
    q = rng.standard_normal((1, case.heads, case.new, case.width), dtype=np.float32)
    return q, k, v


def sensorium_row(case, q, k, v):
    import numpy as np
    from sensorium.ops import KVCache, attention_decode

    cache = KVCache(1, case.kv_heads, case.width, capacity=case.keys, dtype=k.dtype)
    cache.append(k, v)
    out = np.empty_like(q)
    return lambda: attention_decode(q, cache, out=out)


def numpy_row(case, q, k, v):
    """A key head at a time; scores of all its rows are one product."""
    import numpy as np

    if case.dtype != "float32":
        return None
    rows = case.heads // case.kv_heads * case.new
    late = np.where(np.tri(case.new, k=-1, dtype=bool).T, np.float32(-np.inf), np.float32(0))
    late = np.tile(late, (case.heads // case.kv_heads, 1))
    grouped = q.reshape(case.kv_heads, rows, case.width) * np.float32(case.width**-0.5)

    def call():
        out = np.empty_like(grouped)
        for h in range(case.kv_heads):
            p = grouped[h] @ k[0, h].T
            p[:, -case.new :] += late
            p -= p.max(axis=-1, keepdims=True)
            np.exp(p, out=p)
            np.matmul(p, v[0, h], out=out[h])
            out[h] /= p.sum(axis=-1, keepdims=True)
        return out.reshape(q.shape)

    return call


def torch_row(case, q, k, v):
    """`scaled_dot_product_attention`, with a mask where there is more than one query."""
    try:
        import torch
    except ImportError:
        return None
    import numpy as np

    if case.dtype == "bfloat16":
        tq, tk, tv = (torch.from_numpy(x.astype(np.float32)).bfloat16() for x in (q, k, v))
    else:
        tq, tk, tv = (torch.from_numpy(x) for x in (q, k, v))
    mask = None
    if case.new > 1:
        mask = torch.from_numpy(np.tri(case.new, case.keys, case.keys - case.new, dtype=bool))
    grouped = {"enable_gqa": True} if case.heads != case.kv_heads else {}

    def call():
        with torch.no_grad():
            attend = torch.nn.functional.scaled_dot_product_attention
            return attend(tq, tk, tv, attn_mask=mask, **grouped).float().numpy()

    return call


def memory_rows(threads):
    """`add` and `read`: NumPy releases the interpreter's lock in the one, BLAS has threads in the other."""
    import numpy as np

    a, b, c = (np.ones(ELEMENTS, dtype=np.float32) for _ in range(3))
    pool = ThreadPoolExecutor(threads)
    cuts = [ELEMENTS * i // threads for i in range(threads + 1)]
    parts = [slice(*pair) for pair in itertools.pairwise(cuts)]

    def add():
        return list(pool.map(lambda part: np.add(b[part], c[part], out=a[part]), parts))

    return {"add": add, "read": lambda: b @ c}, {"add": 12 * ELEMENTS, "read": 8 * ELEMENTS}


def check(case, got, q, k, v):
    """Compare the last head with the reference."""
    import numpy as np
    from reference import attention as reference

    mask = np.tri(case.new, case.keys, case.keys - case.new, dtype=bool)
    want, _ = reference.attention(q[:, -1:], k[:, -1:], v[:, -1:], mask)
    np.testing.assert_allclose(got[:, -1:], want, rtol=0, atol=1e-2 if case.dtype == "bfloat16" else 1e-5)


ROWS = {"sensorium": sensorium_row, "numpy": numpy_row, "torch": torch_row}


def run(cases, threads, seconds):
    import sensorium
    from threadpoolctl import threadpool_limits

    sensorium.keep_pages()
    memory, sizes = memory_rows(threads)
    results = []
    with threadpool_limits(threads):
        for case in cases:
            arrays = make_arrays(case)
            rows, called = {}, {}
            for name, make in ROWS.items():
                call = make(case, *arrays)
                if call is not None:
                    check(case, call(), *arrays)
                    called[name] = measure.once(call)
                    rows[name] = call
            # Where the caches hold all, memory says nothing.
            if case.bytes > 64 << 20:
                rows |= memory
                called |= dict.fromkeys(memory, 0.01)
            times = measure.interleave(rows, called, seconds, rounds=7)
            mine = times["sensorium"]
            entry = {
                "case": case.__dict__ | {"bytes": case.bytes, "flops": case.flops},
                "microseconds": {name: measure.spread([t * 1e6 for t in ts]) for name, ts in times.items()},
                "speedup": {
                    n: measure.ratio(times[n], mine) for n in times if n in ROWS and n != "sensorium"
                },
                "gb_per_second": {"sensorium": measure.rounded(case.bytes / min(mine) / 1e9)}
                | {n: measure.rounded(sizes[n] / min(times[n]) / 1e9) for n in memory if n in times},
                "share_of": {
                    n: measure.ratio([t / sizes[n] for t in times[n]], [t / case.bytes for t in mine])
                    for n in memory
                    if n in times
                },
                "gflops": measure.rounded(case.flops / min(mine) / 1e9),
            }
            results.append(entry)
            show(case, entry)
    return results


def show(case, entry):
    middle = {name: spread["median"] for name, spread in entry["microseconds"].items()}
    others = " ".join(f"{n} x{entry['speedup'][n]['median']:.2f}" for n in entry["speedup"])
    shares = " ".join(f"{s['median']:.2f} of {n}" for n, s in entry["share_of"].items())
    rate = case.bytes / middle["sensorium"] / 1e3
    speed = case.flops / middle["sensorium"] / 1e3
    rates = f"{middle['sensorium']:10.1f} us {rate:6.1f} GB/s {speed:6.1f} GFLOP/s"
    print(f"{case.name:38} {rates}  {others}  {shares}", flush=True)


def test_decode(benchmark):
    """One query against 10,000 keys, for `make bench`; the script measures the rest, in turn with peers."""
    case = Case(1, 10_000)
    arrays = make_arrays(case)
    call = sensorium_row(case, *arrays)
    check(case, call(), *arrays)
    benchmark.group = f"decode {case.name}"
    benchmark.extra_info.update(bytes=case.bytes, flops=case.flops)
    benchmark(call)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="a case")
    parser.add_argument("--only", default="", help="words that a case's name must hold")
    parser.add_argument("--json", type=Path, help="results, kept beside those that are there")
    options = parser.parse_args()
    measure.limit_processors(options.threads)
    cases = [case for case in CASES if all(word in case.name.split() for word in options.only.split())]
    results = run(cases, options.threads, options.seconds)
    if options.json:
        kept = json.loads(options.json.read_text())["cases"] if options.json.exists() else []
        fresh = [entry["case"] for entry in results]
        facts = measure.machine() | {"threads": options.threads}
        cases = [entry for entry in kept if entry["case"] not in fresh] + results
        options.json.write_text(json.dumps({"machine": facts, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
