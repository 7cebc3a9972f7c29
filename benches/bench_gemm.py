"""Matrix products against NumPy's BLAS, at the sizes of training and at large ones.

Each row first agrees with the product in double precision. `extra_info` states `flops`, threads and NumPy's
BLAS. `b` is the transpose of what lies in memory where a shape says `nt`, `a` where it says `tn`:
the two products of a linear map's backward pass.
"""

from __future__ import annotations

import numpy as np
import pytest
import sensorium
from sensorium import ops
from threadpoolctl import threadpool_info, threadpool_limits

SHAPES = {
    "forward": (2500, 288, 96, "nn"),
    "forward up": (2500, 384, 96, "nn"),
    "forward down": (2500, 96, 384, "nn"),
    "forward square": (2500, 96, 96, "nn"),
    "forward wide": (4000, 512, 256, "nn"),
    "input's gradient": (2500, 96, 288, "nt"),
    "input's gradient wide": (2000, 512, 512, "nt"),
    "weight's gradient": (96, 288, 2500, "tn"),
    "weight's gradient up": (96, 384, 2500, "tn"),
    "weight's gradient down": (384, 96, 2500, "tn"),
    "weight's gradient wide": (512, 512, 2000, "tn"),
    "decode": (1, 288, 96, "nn"),
    "64": (64, 64, 64, "nn"),
    "128": (128, 128, 128, "nn"),
    "512": (512, 512, 512, "nn"),
    "1024": (1024, 1024, 1024, "nn"),
    "2048": (2048, 2048, 2048, "nn"),
}


@pytest.mark.parametrize("row", ["sensorium", "numpy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", SHAPES)
def test_product(benchmark, name, dtype, row):
    sensorium.keep_pages()
    m, n, k, layout = SHAPES[name]
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((m, k)).astype(dtype), rng.standard_normal((k, n)).astype(dtype)
    if layout == "tn":
        a = a.T.copy().T
    if layout == "nt":
        b = b.T.copy().T
    function = ops.matmul if row == "sensorium" else np.matmul
    threads = sensorium.get_num_threads()
    with threadpool_limits(threads):
        rows = np.arange(0, m, max(1, m // 50))
        want = a[rows].astype(np.float64) @ b.astype(np.float64)
        scale = k * np.finfo(dtype).eps * (abs(a[rows]).astype(np.float64) @ abs(b).astype(np.float64))
        assert (abs(function(a, b)[rows] - want) <= scale).all()
        blas = [f"{p['internal_api']} {p['version']} {p.get('architecture', '')}" for p in threadpool_info()]
        benchmark.group = f"{name} {m}x{n}x{k} {layout} {np.dtype(dtype)}"
        benchmark.extra_info.update(flops=2 * m * n * k, threads=threads, blas=", ".join(blas))
        benchmark(function, a, b)
