"""Elementary functions against NumPy's, on arrays that fit the second-level cache, and on larger ones.

Each row first agrees with the function in higher precision. `extra_info` states the work in `elements`.
"""

from __future__ import annotations

import numpy as np
import pytest
import sensorium
from sensorium import _core


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.logaddexp(x, x.dtype.type(0))


FUNCTIONS = {
    "exp": np.exp,
    "exp_nonpositive": np.exp,
    "exp2": np.exp2,
    "exp2_nonpositive": np.exp2,
    "log": np.log,
    "log1p": np.log1p,
    "sigmoid": sigmoid,
    "softplus": softplus,
    "tanh": np.tanh,
}


@pytest.mark.parametrize("row", ["sensorium", "numpy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("size", [1 << 13, 1 << 21])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(benchmark, name, size, dtype, row):
    sensorium.keep_pages()
    x = np.random.default_rng(0).uniform(-8, 8, size).astype(dtype)
    if name.endswith("nonpositive"):
        x = -abs(x)
    elif name.startswith("log"):
        x = abs(x)
    wide = np.float64 if dtype == np.float32 else np.longdouble

    def ours(x):
        return _core.elementary(x, name)

    function = ours if row == "sensorium" else FUNCTIONS[name]
    np.testing.assert_allclose(
        function(x), FUNCTIONS[name](x.astype(wide)), rtol=4 * np.finfo(dtype).eps, atol=0
    )
    benchmark.group = f"{name} {size} {np.dtype(dtype)}"
    benchmark.extra_info.update(elements=size, threads=sensorium.get_num_threads())
    benchmark(function, x)
