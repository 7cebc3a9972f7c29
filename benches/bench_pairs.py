"""What attention costs as its layout changes: time against visible pairs, and memory against tokens.

    python benches/bench_pairs.py [--threads 2] [--json FILE]

A hundred random layouts of equal length, of text and images, hidden copies, windows, anchors and packed
samples, are timed in turn, forward and with backward, and a straight line is fitted to the time over the
pairs that they see. Then two layouts of 65,536 tokens with a window run in processes of their own, and what
the peak of resident memory rose by during the call is set against the arrays that the call returns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import measure

TOKENS, HEADS, WIDTH, LAYOUTS, ROUNDS = 4096, 4, 64, 100, 5
LONG = 65_536


def random_layout(rng: Any) -> Any:
    """Draw a layout of `TOKENS` tokens: one to 32 samples, segments of 16 to 1,024 tokens."""
    import numpy as np
    from sensorium.ops import Layout, Segment

    count = int(2 ** rng.uniform(0, 5))
    cuts = np.sort(rng.choice(np.arange(1, TOKENS // 64), count - 1, replace=False)) * 64
    samples = []
    for length in np.diff([0, *cuts, TOKENS]):
        segments, left = [], int(length)
        while left:
            size = min(left, int(16 * 2 ** rng.uniform(0, 6)))
            kind = str(rng.choice(["causal", "full"]))
            hidden, anchor = bool(rng.random() < 0.2), bool(rng.random() < 0.2)
            segments.append(Segment(kind, size, hidden=hidden, anchor=anchor))
            left -= size
        window = int(rng.integers(1, 9)) if rng.random() < 0.5 else None
        samples.append(Layout(segments, window=window))
    return Layout.packed(samples)


def times(passes: str) -> dict[str, Any]:
    """Time the layouts, and fit a line."""
    import numpy as np
    from sensorium.ops import attention, attention_backward

    rng = np.random.default_rng(0)
    layouts = [random_layout(rng) for _ in range(LAYOUTS)]
    q, k, v, grad_out = rng.standard_normal((4, 1, HEADS, TOKENS, WIDTH), np.float32)

    def call(layout: Any) -> None:
        out, lse = attention(q, k, v, layout)
        if passes == "both":
            attention_backward(grad_out, q, k, v, out, lse, layout)

    best = np.full(LAYOUTS, np.inf)
    for _ in range(ROUNDS):
        for i, layout in enumerate(layouts):
            best[i] = min(best[i], measure.once(lambda layout=layout: call(layout)))
    pairs = np.array([layout.pairs for layout in layouts], float)
    slope, start = np.polyfit(pairs, best, 1)
    residual = best - (start + slope * pairs)
    flops = (4 if passes == "forward" else 14) * WIDTH * HEADS
    return {
        "pairs": [int(n) for n in pairs],
        "milliseconds": [measure.rounded(1e3 * t) for t in best],
        "gflops": measure.rounded(flops / slope / 1e9),
        "start_milliseconds": measure.rounded(1e3 * start),
        "r2": round(1 - residual.var() / best.var(), 5),
        "largest_residual": measure.rounded(abs(residual).max() / best.max()),
    }


MEMORY = """
import re, sys
from pathlib import Path
import numpy as np
from sensorium.ops import Layout, Segment, attention, attention_backward

tokens, heads, width, kv_heads, passes = *map(int, sys.argv[1:5]), sys.argv[5]

def resident(name):
    return 1024 * int(re.search(name + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

frame = [Segment("causal", 32), Segment("full", 224)]
layout = Layout(frame * (tokens // 256), window=8)
rng = np.random.default_rng(0)
q, grad_out = (rng.standard_normal((1, heads, tokens, width), np.float32) for _ in range(2))
k, v = (rng.standard_normal((1, kv_heads, tokens, width), np.float32) for _ in range(2))
before = resident("VmRSS")
if before < resident("VmHWM") - (1 << 20):
    Path("/proc/self/clear_refs").write_text("5")
out, lse = attention(q, k, v, layout)
returned = out.nbytes + lse.nbytes
if passes == "both":
    returned += sum(x.nbytes for x in attention_backward(grad_out, q, k, v, out, lse, layout))
print(returned, resident("VmHWM") - before)
"""


def memory(tokens: int, heads: int, width: int, kv_heads: int, passes: str) -> tuple[int, int]:
    """Bytes of what a call returns, and by how much the peak of resident memory rose, in its own process."""
    arguments = [str(n) for n in (tokens, heads, width, kv_heads)]
    command = [sys.executable, "-c", MEMORY, *arguments, passes]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    returned, rose = map(int, done.stdout.split())
    return returned, rose


def main(arguments: list[str]) -> None:
    """Measure, say, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)
    measure.limit_processors(args.threads)
    import sensorium

    kept: dict[str, Any] = {"tokens": TOKENS, "heads": HEADS, "width": WIDTH, "memory": []}
    for passes in ("forward", "both"):
        for kv_heads in (8, 1):
            returned, rose = memory(LONG, 8, WIDTH, kv_heads, passes)
            row = {"pass": passes, "tokens": LONG, "heads": 8, "kv_heads": kv_heads, "width": WIDTH}
            kept["memory"].append(row | {"returned_bytes": returned, "peak_bytes": rose})
            print(
                f"{passes} N={LONG} H=8 H_kv={kv_heads}: returns {returned / 2**20:.0f} MB, "
                f"the peak rose by {rose / 2**20:.0f} MB; N^2 bytes are {LONG**2 / 2**20:.0f} MB"
            )
    sensorium.keep_pages()
    kept = {"about": measure.machine()} | kept
    for passes in ("forward", "both"):
        fit = kept[passes] = times(passes)
        print(
            f"{passes}: {LAYOUTS} layouts of {min(fit['pairs'])} to {max(fit['pairs'])} pairs, "
            f"{fit['gflops']:.0f} GFLOP/s along the line, {fit['start_milliseconds']:.2f} ms at none, "
            f"R^2 {fit['r2']:.4f}, largest residual {fit['largest_residual']:.1%} of the longest"
        )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(kept) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
