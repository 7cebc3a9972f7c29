"""A few cases of attention through pytest-benchmark, to compare one state of the kernels with another.

`bench_attention.py` has the peers and all sizes.
"""

from __future__ import annotations

import pytest
import sensorium
from attention_cases import LAYOUTS, SAMPLE_TOKENS, Case
from attention_rows import ROWS
from threadpoolctl import threadpool_limits

CASES = [
    Case(*shape, passes)
    for shape in [*((name, 1024, 64) for name in LAYOUTS), ("quickstart", 4 * SAMPLE_TOKENS, 32)]
    for passes in ("forward", "both")
]


@pytest.mark.parametrize("row", ["sensorium", "numpy"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_attention(benchmark, case, row):
    sensorium.keep_pages()
    threads = sensorium.get_num_threads()
    with threadpool_limits(threads):
        made = ROWS[row](case)
        case.error(made.results(made.call()))
        benchmark.group = case.name
        benchmark.extra_info.update(flops=case.flops, threads=threads)
        benchmark(made.call)
