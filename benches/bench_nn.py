"""Fused operations against the same in NumPy, at the sizes of the quickstart and of a wider model.

Each row first agrees with the reference. `extra_info` states the work: `flops` for products, else `bytes`
read and written.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import sensorium
from sensorium import ops
from sensorium._tree import tree_leaves
from sensorium.optim import adamw_init, adamw_step

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference import nn as reference

SIZES = {"quickstart": (2508, 96, 384, 512), "wide": (4096, 256, 1024, 512)}
SQRT = np.float32(np.sqrt(2 / np.pi))


def numpy_layer_norm(x, weight, bias):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-5)) * weight + bias


def numpy_layer_norm_backward(grad, x, weight, mean, rstd):
    h = (x - mean[:, None]) * rstd[:, None]
    g = grad * weight
    dx = g - g.mean(-1, keepdims=True) - h * (g * h).mean(-1, keepdims=True)
    return rstd[:, None] * dx, (grad * h).sum(0), grad.sum(0)


def numpy_gelu(x):
    return np.float32(0.5) * x * (1 + np.tanh(SQRT * (x + np.float32(0.044715) * x * x * x)))


def numpy_gelu_backward(grad, x):
    square = x * x
    t = np.tanh(SQRT * (x + np.float32(0.044715) * square * x))
    dt = SQRT * (1 + np.float32(3 * 0.044715) * square)
    return grad * np.float32(0.5) * (1 + t + x * (1 - t * t) * dt)


def numpy_linear_gelu(x, weight, bias):
    return numpy_gelu(x @ weight + bias)


def numpy_linear_backward(grad, x, weight):
    return grad @ weight.T, x.T @ grad, grad.sum(0)


def numpy_cross_entropy(logits, targets):
    shifted = logits - logits.max(-1, keepdims=True)
    lse = np.log(np.exp(shifted).sum(-1))
    return (lse - shifted[np.arange(len(targets)), targets]).mean()


def numpy_embedding_backward(grad, indices, v):
    out = np.zeros((v, grad.shape[-1]), grad.dtype)
    np.add.at(out, indices, grad)
    return out


def numpy_adamw(params, grads, state):
    state["step"] += 1
    c1, c2 = 1 - 0.9 ** state["step"], 1 - 0.95 ** state["step"]
    leaves = (tree_leaves(t) for t in (params, grads, state["m"], state["v"]))
    for p, g, m, v in zip(*leaves, strict=True):
        m += np.float32(0.1) * (g - m)
        v += np.float32(0.05) * (g * g - v)
        p *= np.float32(1 - 1e-4)
        p -= np.float32(1e-3 / c1) * m / (np.sqrt(v) / np.float32(np.sqrt(c2)) + np.float32(1e-8))


def cases(size):
    """``name -> (ours, NumPy's, reference, work)``."""
    M, D, F, K = SIZES[size]
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    x, h, grad, wide, logits = draw(M, D), draw(M, F), draw(M, D), draw(M, F), draw(M, K)
    w, b, up, up_bias = draw(D), draw(D), draw(D, F) / np.float32(D**0.5), draw(F)
    targets = rng.integers(0, K, M)
    _, mean, rstd = ops.layer_norm(x, w, b, return_stats=True)
    return {
        "layer_norm": (
            ops.layer_norm,
            numpy_layer_norm,
            reference.layer_norm,
            (x, w, b),
            {"bytes": 8 * x.size},
        ),
        "layer_norm_backward": (
            ops.layer_norm_backward,
            numpy_layer_norm_backward,
            reference.layer_norm_backward,
            (grad, x, w, mean, rstd),
            {"bytes": 12 * x.size},
        ),
        "gelu": (ops.gelu, numpy_gelu, reference.gelu, (h,), {"bytes": 8 * h.size}),
        "gelu_backward": (
            ops.gelu_backward,
            numpy_gelu_backward,
            reference.gelu_backward,
            (wide, h),
            {"bytes": 12 * h.size},
        ),
        "linear_gelu": (
            lambda *a: ops.linear(*a, activation="gelu"),
            numpy_linear_gelu,
            lambda *a: reference.linear(*a, activation="gelu"),
            (x, up, up_bias),
            {"flops": 2 * M * D * F},
        ),
        "linear_backward": (
            ops.linear_backward,
            numpy_linear_backward,
            reference.linear_backward,
            (wide, x, up),
            {"flops": 4 * M * D * F},
        ),
        "cross_entropy": (
            ops.cross_entropy,
            numpy_cross_entropy,
            reference.cross_entropy,
            (logits, targets),
            {"bytes": 4 * logits.size},
        ),
        "embedding_backward": (
            ops.embedding_backward,
            numpy_embedding_backward,
            reference.embedding_backward,
            (grad, targets, K),
            {"bytes": 4 * (grad.size + K * D)},
        ),
    }


NAMES = list(cases("quickstart"))


@pytest.mark.parametrize("row", ["sensorium", "numpy"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_operation(benchmark, name, size, row):
    sensorium.keep_pages()
    ours, numpys, wanted, arguments, work = cases(size)[name]
    function = ours if row == "sensorium" else numpys
    got, want = function(*arguments), wanted(*arguments)
    for g, r in zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]:
        np.testing.assert_allclose(g, r, rtol=1e-4, atol=1e-4 * np.abs(r).max())
    benchmark.group = f"{name} {size}"
    benchmark.extra_info.update(work, threads=sensorium.get_num_threads())
    benchmark(function, *arguments)


@pytest.mark.parametrize("row", ["sensorium", "numpy"])
def test_adamw(benchmark, row):
    rng = np.random.default_rng(0)
    shapes = [(256, 768), (256, 256), (256, 1024), (1024, 256), (256,), (256,)] * 4
    params = {str(i): rng.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)}
    grads = {k: rng.standard_normal(p.shape).astype(np.float32) for k, p in params.items()}

    def ours(params, grads, state):
        adamw_step(params, grads, state, lr=1e-3, weight_decay=0.1, decay=lambda path, array: True)

    other = {k: p.copy() for k, p in params.items()}
    ours(params, grads, adamw_init(params))
    numpy_adamw(other, grads, adamw_init(other))
    for k in params:
        np.testing.assert_allclose(params[k], other[k], rtol=1e-4, atol=1e-5)
    count = sum(p.size for p in params.values())
    benchmark.group = "adamw"
    benchmark.extra_info.update(bytes=28 * count, threads=sensorium.get_num_threads())
    state = adamw_init(params)
    benchmark(ours if row == "sensorium" else numpy_adamw, params, grads, state)
