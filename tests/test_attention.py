"""Attention against the float64 reference with a dense mask, and the laws that it obeys."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import sensorium
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import attention as reference
from sensorium import _core
from sensorium.ops import (
    Layout,
    Segment,
    attention,
    attention_backward,
    self_attention,
    self_attention_backward,
)
from strategies import attentions, layouts


def mask_of(case):
    n = case.layout.length
    return reference.dense_mask(case.row.samples).reshape(n, n)


def check_forward(case):
    mask = mask_of(case)
    out, lse = attention(case.q, case.k, case.v, case.layout, scale=case.scale)
    want_out, want_lse = reference.attention(case.q, case.k, case.v, mask, scale=case.scale)
    eps = np.finfo(case.q.dtype).eps
    out_bound, lse_bound = reference.forward_bounds(case.q, case.k, case.v, mask, eps, scale=case.scale)
    assert out.dtype == lse.dtype == case.q.dtype.newbyteorder("=")
    assert out.shape == case.q.shape
    assert np.all(
        (lse == want_lse) | (np.abs(lse - np.where(np.isfinite(want_lse), want_lse, 0)) <= lse_bound)
    )
    assert np.all(np.abs(out - want_out) <= out_bound)
    return out, lse


def check_backward(case, out, lse):
    mask = mask_of(case)
    args = (case.q, case.k, case.v)
    got = attention_backward(case.grad_out, *args, out, lse, case.layout, scale=case.scale)
    out, lse = reference.attention(*args, mask, scale=case.scale)
    want = reference.attention_backward(case.grad_out, *args, out, lse, mask, scale=case.scale)
    eps = np.finfo(case.q.dtype).eps
    bounds = reference.backward_bounds(case.grad_out, *args, mask, eps, scale=case.scale)
    for name, g, w, b in zip(("dq", "dk", "dv"), got, want, bounds, strict=True):
        assert g.shape == w.shape
        assert np.all(np.abs(g - w) <= b), name


@given(attentions())
def test_agrees_with_the_reference(case):
    check_backward(case, *check_forward(case))


@settings(max_examples=12)
@given(data=st.data())
def test_agrees_at_every_instruction_set(data):
    case = data.draw(attentions(max_length=40))
    before = _core.isa_level()
    try:
        for level in _core.isa_available():
            assert _core.set_isa(level) == level
            check_backward(case, *check_forward(case))
    finally:
        _core.set_isa(before)


@given(attentions(dtypes=(np.float64,), max_length=20))
def test_gradient_along_a_random_direction(case):
    # Central difference in float64: error h^2 from the third derivative, eps / h from rounding.
    rng = np.random.default_rng(0)
    native = [np.array(x, dtype=np.float64) for x in (case.q, case.k, case.v, case.grad_out)]
    q, k, v, grad_out = (x / max(1.0, np.abs(x).max(initial=0.0)) for x in native)
    directions = [rng.normal(size=x.shape) for x in (q, k, v)]

    def loss(h):
        moved = [x + h * d for x, d in zip((q, k, v), directions, strict=True)]
        return float((attention(*moved, case.layout, scale=case.scale, return_lse=False) * grad_out).sum())

    out, lse = attention(q, k, v, case.layout, scale=case.scale)
    grads = attention_backward(grad_out, q, k, v, out, lse, case.layout, scale=case.scale)
    slope = sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True))
    h = 1e-5
    numeric = (loss(h) - loss(-h)) / (2 * h)
    size = sum(float(np.abs(g * d).sum()) for g, d in zip(grads, directions, strict=True))
    total = float(np.abs(out * grad_out).sum())
    # Directions are of size sqrt(D), so that the third derivative grows with D^3 at most at scale 1.
    third = (1.0 + q.shape[-1]) ** 1.5 * (1.0 + total + size)
    assert abs(slope - numeric) <= 1e-11 * (1 + total) / h * 0.01 + 60 * h**2 * third + 1e-9 * size


@given(layouts(max_length=30), st.integers(0, 2**32 - 1))
def test_rows_are_convex_combinations(row, seed):
    rng = np.random.default_rng(seed)
    n = row.layout.length
    q, k = rng.normal(size=(2, 1, 2, n, 8)).astype(np.float32)
    mask = reference.dense_mask(row.samples).reshape(n, n)
    ones = attention(q, k, np.ones_like(k), row.layout, return_lse=False)
    sees = mask.any(axis=1)
    np.testing.assert_allclose(ones[:, :, sees], 1.0, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(ones[:, :, ~sees], 0.0)
    v = rng.normal(size=q.shape).astype(np.float32)
    out = attention(q, k, v, row.layout, return_lse=False)
    for i in np.flatnonzero(sees):
        seen = v[:, :, mask[i]]
        assert np.all(out[:, :, i] <= seen.max(axis=2) + 1e-5)
        assert np.all(out[:, :, i] >= seen.min(axis=2) - 1e-5)


@given(attentions(max_length=30))
def test_the_number_of_threads_changes_no_bit(case):
    results = []
    for n in (1, 2, 3):
        with sensorium.num_threads(n):
            out, lse = attention(case.q, case.k, case.v, case.layout, scale=case.scale)
            args = (case.q, case.k, case.v, out, lse, case.layout)
            results.append((out, lse, *attention_backward(case.grad_out, *args, scale=case.scale)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (6, 2), (20, 20)])
def test_the_number_of_threads_changes_no_bit_where_work_is_shared(heads, kv_heads):
    # Large enough to be cut into several tasks, within heads too.
    rng = np.random.default_rng(1)
    layout = Layout([Segment("causal", 150), Segment("full", 450)])
    q, grad_out = rng.normal(size=(2, 1, heads, 600, 32)).astype(np.float32)
    k, v = rng.normal(size=(2, 1, kv_heads, 600, 32)).astype(np.float32)
    results = []
    for n in (1, 2, 5):
        with sensorium.num_threads(n):
            out, lse = attention(q, k, v, layout)
            results.append((out, lse, *attention_backward(grad_out, q, k, v, out, lse, layout)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    mask = layout.dense()
    want = reference.attention(q, k, v, mask)
    np.testing.assert_allclose(results[0][0], want[0], rtol=0, atol=2e-6)
    want = reference.attention_backward(grad_out, q, k, v, *want, mask)
    for got, expected in zip(results[0][2:], want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


@given(attentions(dtypes=(np.float64,), max_length=30))
def test_float32_agrees_with_float64(case):
    narrow = [np.array(x, dtype=np.float32) for x in (case.q, case.k, case.v)]
    wide = [x.astype(np.float64) for x in narrow]
    out, lse = attention(*narrow, case.layout, scale=case.scale)
    want_out, want_lse = attention(*wide, case.layout, scale=case.scale)
    eps = np.finfo(np.float32).eps
    bounds = reference.forward_bounds(*wide, mask_of(case), eps, scale=case.scale)
    assert np.all(np.abs(out - want_out) <= bounds[0])
    seen = np.isfinite(want_lse)
    np.testing.assert_array_equal(seen, np.isfinite(lse))
    assert np.all(np.abs(lse[seen] - want_lse[seen]) <= bounds[1][seen])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e2, 1e4, 1e8, 1e15])
def test_large_scores_do_not_overflow(isa, dtype, size):
    # Scores of +-size: the softmax is a choice of the largest, ties shared.
    n = 70
    q = np.ones((1, 1, n, 1), dtype=dtype)
    k = np.full((1, 1, n, 1), -size, dtype=dtype)
    k[:, :, [5, 60]] = size
    v = np.arange(n, dtype=dtype).reshape(1, 1, n, 1)
    out, lse = attention(q, k, v, Layout([Segment("full", n)]), scale=1.0)
    np.testing.assert_allclose(out, (5 + 60) / 2, rtol=1e-6)
    np.testing.assert_allclose(lse, size + np.log(2), rtol=1e-6)
    grads = attention_backward(np.ones_like(out), q, k, v, out, lse, Layout([Segment("full", n)]), scale=1.0)
    assert all(np.isfinite(g).all() for g in grads)


def test_a_query_that_sees_nothing(isa):
    rng = np.random.default_rng(0)
    q, k, v, grad_out = rng.normal(size=(4, 1, 2, 50, 16)).astype(np.float32)
    layout = Layout([Segment("none", 20), Segment("full", 30)], window=0)
    out, lse = attention(q, k, v, layout)
    assert np.all(out[:, :, :20] == 0)
    assert np.all(lse[:, :, :20] == -np.inf)
    assert np.all(np.isfinite(lse[:, :, 20:]))
    dq, dk, dv = attention_backward(grad_out, q, k, v, out, lse, layout)
    for grad in (dq, dk, dv):
        assert np.all(grad[:, :, :20] == 0)
        assert np.all(grad[:, :, 20:] != 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["k", "v"])
def test_nan_and_infinity_reach_the_rows_that_see_them(isa, bad, which):
    rng = np.random.default_rng(0)
    n = 120
    layout = Layout(
        [Segment("causal", 50), Segment("full", 40), Segment("diagonal", 30)], visible=np.zeros((3, 3), bool)
    )
    arrays = dict(zip("qkv", rng.normal(size=(3, 1, 1, n, 20)).astype(np.float32), strict=True))
    arrays["q"] = np.abs(arrays["q"]) + 0.5
    arrays["k"] = np.abs(arrays["k"])
    clean, _ = attention(**arrays, layout=layout)
    for token in (10, 49, 60, 100):
        spoilt = arrays | {which: arrays[which].copy()}
        spoilt[which][..., token, 3] = bad
        out, lse = attention(**spoilt, layout=layout)
        sees = layout.dense()[:, token]
        np.testing.assert_allclose(out[:, :, ~sees], clean[:, :, ~sees], rtol=0, atol=1e-6)
        if which == "k" and bad < 0:
            # A score of -inf: the key is as good as not seen.
            alone = sees & (layout.dense().sum(axis=1) == 1)
            assert np.all(np.isfinite(out[:, :, sees]))
            assert np.all(lse[:, :, alone] == -np.inf)
            assert np.all(out[:, :, alone] == 0)
            grads = attention_backward(np.ones_like(out), **spoilt, out=out, lse=lse, layout=layout)
            assert np.isfinite(grads[2]).all()
            assert np.all(grads[2][:, :, token] == 0)
        else:
            assert not np.isfinite(out[:, :, sees, 3]).any()


def test_a_query_of_nan_spoils_its_own_row_alone(isa):
    q = np.ones((1, 1, 40, 8), dtype=np.float32)
    clean, _ = attention(q, q, q, Layout([Segment("causal", 40)]))
    bad = q.copy()
    bad[:, :, 7] = np.nan
    out, lse = attention(bad, q, q, Layout([Segment("causal", 40)]))
    assert np.isnan(out[:, :, 7]).all()
    assert np.isnan(lse[:, :, 7]).all()
    rest = np.arange(40) != 7
    np.testing.assert_array_equal(out[:, :, rest], clean[:, :, rest])


def test_zero_sizes():
    layout = Layout([Segment("causal", 3), Segment("full", 2)])
    for shape in [(0, 2, 5, 4), (2, 0, 5, 4), (2, 2, 5, 0)]:
        x = np.zeros(shape)
        out, lse = attention(x, x, x, layout)
        assert out.shape == shape
        assert lse.shape == shape[:3]
        assert [g.shape for g in attention_backward(out, x, x, x, out, lse, layout)] == [shape] * 3
        if lse.size:
            # Without width all scores are 0: what is left is the number of keys.
            np.testing.assert_allclose(lse[0, 0], np.log([1, 2, 3, 5, 5]))
    x = np.zeros((2, 2, 0, 4))
    out, lse = attention(x, x, x, Layout([]))
    assert out.shape == x.shape
    assert attention_backward(out, x, x, x, out, lse, Layout([]))[0].shape == x.shape


def test_memory_of_the_results_is_like_that_of_the_inputs():
    rng = np.random.default_rng(0)
    qkv = rng.normal(size=(2, 6, 3, 4, 8)).astype(np.float32)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    layout = Layout([Segment("causal", 6)])
    out, lse = attention(q, k, v, layout)
    assert out.transpose(0, 2, 1, 3).flags.c_contiguous
    assert np.shares_memory(out.transpose(0, 2, 1, 3).reshape(2, 6, 32), out)
    dq, dk, dv = attention_backward(out, q, k, v, out, lse, layout)
    for grad in (dq, dk, dv):
        assert grad.transpose(0, 2, 1, 3).flags.c_contiguous
    plain = [np.ascontiguousarray(x) for x in (q, k, v)]
    same, _ = attention(*plain, layout)
    assert same.flags.c_contiguous
    np.testing.assert_array_equal(same, out)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_self_attention_is_attention(dtype):
    rng = np.random.default_rng(0)
    qkv = rng.normal(size=(2, 20, 3, 4, 8)).astype(dtype)
    grad = rng.normal(size=(2, 20, 32)).astype(dtype)
    layout = Layout([Segment("causal", 5), Segment("full", 15)])
    out, lse = self_attention(qkv, layout, scale=0.5)
    q, k, v = (np.ascontiguousarray(x) for x in qkv.transpose(2, 0, 3, 1, 4))
    want, want_lse = attention(q, k, v, layout, scale=0.5)
    np.testing.assert_array_equal(out.reshape(2, 20, 4, 8), want.transpose(0, 2, 1, 3))
    np.testing.assert_array_equal(lse, want_lse)
    dqkv = self_attention_backward(grad, qkv, out, lse, layout, scale=0.5)
    grad_out = grad.reshape(2, 20, 4, 8).transpose(0, 2, 1, 3)
    parts = attention_backward(grad_out, q, k, v, want, want_lse, layout, scale=0.5)
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(dqkv[:, :, i], part.transpose(0, 2, 1, 3))
    swapped = qkv.astype(qkv.dtype.newbyteorder())
    np.testing.assert_array_equal(self_attention(swapped, layout, scale=0.5)[0], out)
    np.testing.assert_array_equal(self_attention_backward(grad, swapped, out, lse, layout, scale=0.5), dqkv)


def test_inputs_are_left_alone():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(1, 2, 30, 8)) for _ in range(4)]
    copies = [x.copy() for x in arrays]
    q, k, v, grad_out = arrays
    layout = Layout([Segment("causal", 30)])
    out, lse = attention(q, k, v, layout)
    attention_backward(grad_out, q, k, v, out, lse, layout)
    for a, b in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(a, b)


class TestErrors:
    q = np.zeros((2, 4, 5, 8), dtype=np.float32)
    layout = Layout([Segment("causal", 5)])

    def refuse(self, error, words, call):
        with pytest.raises(error, match=f"^{re.escape(words)}$"):
            call()

    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            ({"q": np.zeros((2, 4, 5, 8), dtype=int)}, sensorium.DTypeError,
             "q has dtype int64, expected float32, float64, float16 or bfloat16"),
            ({"q": np.zeros((2, 4, 5, 8), dtype=np.float16)}, sensorium.DTypeError,
             "k has dtype float32 but q has float16"),
            ({"k": q.astype(np.float64)}, sensorium.DTypeError, "k has dtype float64 but q has float32"),
            ({"v": q.astype(np.float64)}, sensorium.DTypeError, "v has dtype float64 but q has float32"),
            ({"q": q[0]}, sensorium.ShapeError, "q has shape (4, 5, 8), expected 4 dimensions (B, H, N, D)"),
            ({"k": q[..., :7]}, sensorium.ShapeError, "k has D=7 but q has D=8"),
            ({"k": q[:, :, :4]}, sensorium.ShapeError, "v has N_k=5 but k has N_k=4"),
            ({"k": q[:1]}, sensorium.ShapeError, "k has B=1 but q has B=2"),
            ({"v": q[:, :2]}, sensorium.ShapeError, "v has H_kv=2 but k has H_kv=4"),
            ({"k": q[:, :3], "v": q[:, :3]}, sensorium.ArgumentError,
             "k has H_kv=3, which does not divide H=4 of q"),
            ({"layout": Layout([Segment("full", 6)])}, sensorium.ShapeError, "q has N=5 but layout has length 6"),
            ({"layout": np.ones((5, 5), dtype=bool)}, sensorium.DTypeError,
             "layout must be a Layout, or one for each sample, not ndarray"),
            ({"scale": np.nan}, sensorium.ArgumentError, "scale must be finite, not nan"),
            ({"scale": "large"}, sensorium.DTypeError, "scale must be a number, not str"),
        ],
    )  # fmt: skip
    def test_attention(self, change, error, words):
        args = {"q": self.q, "k": self.q, "v": self.q, "layout": self.layout} | change
        self.refuse(error, words, lambda: attention(**args))
        full = args | {"grad_out": self.q, "out": self.q, "lse": self.q[..., 0]}
        self.refuse(error, words, lambda: attention_backward(**full))

    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            ({"grad_out": q[:, :, :4]}, sensorium.ShapeError,
             "grad_out has shape (2, 4, 4, 8), expected (2, 4, 5, 8) to fit q"),
            ({"out": q.astype(np.float64)}, sensorium.DTypeError, "out has dtype float64 but q has float32"),
            ({"lse": q}, sensorium.ShapeError, "lse has shape (2, 4, 5, 8), expected (2, 4, 5) to fit q"),
            ({"lse": q[..., 0].astype(int)}, sensorium.DTypeError, "lse has dtype int64 but q has float32"),
        ],
    )  # fmt: skip
    def test_backward(self, change, error, words):
        q = self.q
        args = {"grad_out": q, "q": q, "k": q, "v": q, "out": q, "lse": q[..., 0], "layout": self.layout}
        self.refuse(error, words, lambda: attention_backward(**(args | change)))

    def test_self_attention(self):
        words = "qkv has shape (2, 4, 5, 8), expected (B, N, 3, H, D)"
        self.refuse(sensorium.ShapeError, words, lambda: self_attention(self.q, self.layout))
        qkv = np.zeros((2, 5, 3, 4, 8))
        out, lse = self_attention(qkv, self.layout)
        words = "grad_out has shape (2, 5, 31), expected (2, 5, 32) to fit qkv"
        bad = out[..., :31]
        self.refuse(
            sensorium.ShapeError, words, lambda: self_attention_backward(bad, qkv, out, lse, self.layout)
        )

    def test_results_that_share_memory_are_refused(self):
        core, at = [self.layout._core], (0, 0)
        plain = (1.0, None, None, None)
        q, lse = self.q.copy(), np.zeros((2, 4, 5), dtype=np.float32)
        with pytest.raises(
            sensorium.ArgumentError, match="out must be writeable and share memory with no other"
        ):
            _core.attention_forward(core, at, q, q, q, plain, q, lse)
        flat = np.broadcast_to(np.zeros((1, 1, 5, 8), dtype=np.float32), q.shape)
        with pytest.raises(sensorium.ArgumentError, match="out has elements that share memory"):
            _core.attention_forward(core, at, q, q, q, plain, flat, lse)
        with pytest.raises(sensorium.ArgumentError, match="q must be contiguous along D"):
            _core.attention_forward(
                core, at, np.zeros((2, 4, 5, 16), dtype=np.float32)[..., ::2], q, q, plain, q, lse
            )


def run_python(code, **env):
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_forked_child_computes_the_same():
    code = """
import os, sys, signal
import numpy as np
import sensorium
from sensorium.ops import Layout, Segment, attention, attention_backward
sensorium.set_num_threads(3)
x = np.random.default_rng(0).normal(size=(2, 4, 300, 32)).astype(np.float32)
layout = Layout([Segment("causal", 100), Segment("full", 200)])
def work():
    out, lse = attention(x, x, x, layout)
    return [out, lse, *attention_backward(x, x, x, x, out, lse, layout)]
want = work()
child = os.fork()
if child == 0:
    signal.alarm(60)
    same = all(np.array_equal(a, b) for a, b in zip(want, work()))
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
again = all(np.array_equal(a, b) for a, b in zip(want, work()))
print(os.waitstatus_to_exitcode(status), again)
"""
    done = run_python(code)
    assert done.stdout.split() == ["0", "True"], done.stderr


def test_memory_grows_with_tokens_and_not_with_their_square():
    # N = 40,000: an N x N array of bytes would be 1.6 GB.
    code = """
import resource
import numpy as np
from sensorium.ops import Layout, Segment, attention, attention_backward
layout = Layout([Segment("full", 50)] * 800, window=1)
x = np.ones((1, 1, 40_000, 16), dtype=np.float32)
small = Layout([Segment("full", 50)] * 2)
attention(x[:, :, :100], x[:, :, :100], x[:, :, :100], small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out, lse = attention(x, x, x, layout)
attention_backward(x, x, x, x, out, lse, layout)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, out.min(), out.max())
"""
    done = run_python(code)
    grown, least, most = (float(x) for x in done.stdout.split())
    # One array of N x D is 2.4 MB; the results are four of them, and backward keeps a few more.
    assert grown < 60, done.stderr
    assert least == pytest.approx(1.0)
    assert most == pytest.approx(1.0)
