"""Half precision in memory, float32 in arithmetic: attention of bfloat16 and float16 arrays.

Rounding is monotone: a result that is within a bound of the truth before it is stored lies, once stored, between what
both ends of the bound are stored as. No bound is needed for storage itself.
"""

import re

import ml_dtypes
import numpy as np
import pytest
import sensorium
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import attention as reference
from sensorium import _core, autodiff
from sensorium.ops import (
    Layout,
    Rotary,
    Segment,
    attention,
    attention_backward,
    rotary,
    self_attention,
    self_attention_backward,
)
from strategies import attentions

HALVES = [np.float16, ml_dtypes.bfloat16]
EPS = np.finfo(np.float32).eps


def stored(x, dtype):
    with np.errstate(over="ignore"):
        return x.astype(dtype).astype(np.float64)


def check(name, got, want, bound, dtype):
    assert got.dtype == dtype, name
    assert got.shape == want.shape, name
    got = got.astype(np.float64)
    # Ends of the bound are float64: a rounding of float32 on the way to bfloat16 is covered by 2 EPS.
    slack = bound + 2 * EPS * np.abs(want)
    low, high = stored(want - slack, dtype), stored(want + slack, dtype)
    assert np.all((low <= got) & (got <= high)), name


def check_both(case):
    dtype = (
        np.dtype(case.q.dtype.newbyteorder("=")) if case.q.dtype.kind == "f" else np.dtype(ml_dtypes.bfloat16)
    )
    native = [np.asarray(x, dtype=dtype).astype(np.float64) for x in (case.q, case.k, case.v, case.grad_out)]
    n = case.layout.length
    mask = reference.dense_mask(case.row.samples).reshape(n, n)
    out, lse = attention(case.q, case.k, case.v, case.layout, scale=case.scale)
    assert lse.dtype == np.float32
    q, k, v, g = native
    want_out, want_lse = reference.attention(q, k, v, mask, scale=case.scale)
    out_bound, lse_bound = reference.forward_bounds(q, k, v, mask, EPS, scale=case.scale)
    check("out", out, want_out, out_bound, dtype)
    seen = np.isfinite(want_lse)
    np.testing.assert_array_equal(seen, np.isfinite(lse))
    assert np.all(np.abs(lse[seen] - want_lse[seen]) <= lse_bound[seen])

    grads = attention_backward(case.grad_out, case.q, case.k, case.v, out, lse, case.layout, scale=case.scale)
    # The gradient is that of the results as they are stored.
    want = reference.attention_backward(g, q, k, v, out.astype(np.float64), want_lse, mask, scale=case.scale)
    bounds = reference.backward_bounds(g, q, k, v, mask, EPS, scale=case.scale)
    for name, got, w, bound in zip(("dq", "dk", "dv"), grads, want, bounds, strict=True):
        check(name, got, w, bound, dtype)


@given(attentions(dtypes=HALVES))
def test_agrees_with_the_reference(case):
    check_both(case)


@settings(max_examples=8)
@given(data=st.data())
def test_agrees_at_every_instruction_set(data):
    case = data.draw(attentions(dtypes=HALVES, max_length=40))
    before = _core.isa_level()
    try:
        for level in _core.isa_available():
            assert _core.set_isa(level) == level
            check_both(case)
    finally:
        _core.set_isa(before)


@pytest.mark.parametrize("dtype", HALVES)
def test_results_are_those_of_float32_rounded(dtype):
    rng = np.random.default_rng(0)
    layout = Layout([Segment("causal", 50), Segment("full", 250)])
    how = {"rotary": Rotary(width=16, interleaved=True), "scale": 0.3}
    q, g = rng.normal(size=(2, 2, 4, 300, 24)).astype(dtype)
    k, v = rng.normal(size=(2, 2, 2, 300, 24)).astype(dtype)
    wide = [x.astype(np.float32) for x in (q, k, v, g)]
    results = []
    for n in (1, 3):
        with sensorium.num_threads(n):
            out, lse = attention(q, k, v, layout, **how)
            results.append((out, lse, *attention_backward(g, q, k, v, out, lse, layout, **how)))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
    out, lse, *grads = results[0]
    want, want_lse = attention(*wide[:3], layout, **how)
    np.testing.assert_array_equal(lse, want_lse)
    np.testing.assert_array_equal(out, want.astype(dtype))
    want_grads = attention_backward(wide[3], *wide[:3], out.astype(np.float32), lse, layout, **how)
    for got, w in zip(grads, want_grads, strict=True):
        np.testing.assert_array_equal(got, w.astype(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_self_attention(dtype):
    rng = np.random.default_rng(0)
    qkv = rng.normal(size=(2, 20, 3, 4, 8)).astype(dtype)
    grad = rng.normal(size=(2, 20, 32)).astype(dtype)
    layout = Layout([Segment("causal", 5), Segment("full", 15)])
    out, lse = self_attention(qkv, layout)
    assert out.dtype == dtype
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    want, want_lse = attention(q, k, v, layout)
    np.testing.assert_array_equal(out.reshape(2, 20, 4, 8), want.transpose(0, 2, 1, 3))
    np.testing.assert_array_equal(lse, want_lse)
    dqkv = self_attention_backward(grad, qkv, out, lse, layout)
    grad_out = grad.reshape(2, 20, 4, 8).transpose(0, 2, 1, 3)
    parts = attention_backward(grad_out, q, k, v, want, want_lse, layout)
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(dqkv[:, :, i], part.transpose(0, 2, 1, 3))


@pytest.mark.parametrize("dtype", HALVES)
def test_extremes(dtype):
    # The largest numbers, subnormal numbers, infinity and NaN go through as in float32.
    info = ml_dtypes.finfo(dtype)
    layout = Layout([Segment("diagonal", 6)])
    q = np.zeros((1, 1, 6, 1), dtype=dtype)
    v = np.array([info.max, -info.max, info.smallest_subnormal, 0.0, np.inf, np.nan], dtype=dtype)
    out, lse = attention(q, q, v.reshape(q.shape), layout)
    np.testing.assert_array_equal(out.reshape(6).astype(float), v.astype(float))
    np.testing.assert_array_equal(lse, 0.0)
    # The sum of two overflows float16, their average does not: sums are float32.
    two = np.full((1, 1, 2, 1), min(float(info.max), 1e38), dtype=dtype)
    out, _ = attention(np.zeros_like(two), np.zeros_like(two), two, Layout([Segment("full", 2)]))
    np.testing.assert_array_equal(out.astype(float), two.astype(float))


@pytest.mark.parametrize("dtype", HALVES)
def test_a_query_that_sees_nothing(dtype):
    q = np.random.default_rng(0).normal(size=(1, 2, 50, 16)).astype(dtype)
    layout = Layout([Segment("none", 20), Segment("full", 30)], window=0)
    out, lse = attention(q, q, q, layout)
    assert np.all(out[:, :, :20] == 0)
    assert np.all(lse[:, :, :20] == -np.inf)
    for grad in attention_backward(q, q, q, q, out, lse, layout):
        assert np.all(grad[:, :, :20] == 0)
        assert np.all(grad[:, :, 20:] != 0)


@pytest.mark.parametrize("dtype", HALVES)
def test_gradient_under_autograd(dtype):
    import autograd

    x = np.random.default_rng(0).normal(size=(1, 1, 9, 8)).astype(dtype)
    layout = Layout([Segment("causal", 9)])
    gradient = autograd.elementwise_grad(lambda x: autodiff.attention(x, x, x, layout, rotary=Rotary()))(x)
    assert gradient.dtype == dtype
    out, lse = attention(x, x, x, layout, rotary=Rotary())
    parts = attention_backward(np.ones_like(out), x, x, x, out, lse, layout, rotary=Rotary())
    want = sum(part.astype(np.float64) for part in parts)
    # Two sums in half precision.
    size = sum(np.abs(part.astype(np.float64)) for part in parts)
    assert np.all(np.abs(gradient.astype(np.float64) - want) <= 2 * float(ml_dtypes.finfo(dtype).eps) * size)


def test_the_dtype_is_told_without_an_import():
    # Where nobody imported ml_dtypes there are no arrays of bfloat16; the package does not import it.
    import subprocess
    import sys

    code = "import sys, sensorium.ops; print('ml_dtypes' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"


Q = np.zeros((2, 4, 5, 8), dtype=ml_dtypes.bfloat16)
HALF = Q.astype(np.float16)
WIDE = Q.astype(np.float32)
LSE = WIDE[..., 0]
LAYOUT = Layout([Segment("causal", 5)])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: attention(Q, HALF, Q, LAYOUT), "k has dtype float16 but q has bfloat16"),
        (lambda: attention(WIDE, WIDE, Q, LAYOUT), "v has dtype bfloat16 but q has float32"),
        (lambda: attention(Q.view(np.uint16), Q, Q, LAYOUT),
         "q has dtype uint16, expected float32, float64, float16 or bfloat16"),
        (lambda: attention(Q.astype(ml_dtypes.float8_e5m2), Q, Q, LAYOUT),
         "q has dtype float8_e5m2, expected float32, float64, float16 or bfloat16"),
        (lambda: attention_backward(WIDE, Q, Q, Q, Q, LSE, LAYOUT), "grad_out has dtype float32 but q has bfloat16"),
        (lambda: attention_backward(Q, Q, Q, Q, WIDE, LSE, LAYOUT), "out has dtype float32 but q has bfloat16"),
        (lambda: attention_backward(Q, Q, Q, Q, Q, Q[..., 0], LAYOUT),
         "lse has dtype bfloat16 but q has bfloat16, whose lse is float32"),
    ],
)  # fmt: skip
def test_dtypes_are_not_mixed(make, words):
    with pytest.raises(sensorium.DTypeError, match=f"^{re.escape(words)}$"):
        make()


@pytest.mark.parametrize("dtype", HALVES)
def test_rotary_of_half_precision_is_that_of_float32_rounded(dtype):
    x = np.random.default_rng(0).normal(size=(2, 3, 40, 26)).astype(dtype)
    for how in (Rotary(), Rotary(width=10, interleaved=True)):
        got = rotary(x, how)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, rotary(x.astype(np.float32), how).astype(dtype))
