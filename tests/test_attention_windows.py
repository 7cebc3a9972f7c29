"""Fewer queries than keys, and a layout for each sample: what the whole row gives, cut out."""

import re

import numpy as np
import pytest
import sensorium
from hypothesis import given
from hypothesis import strategies as st
from reference import attention as reference
from sensorium import autodiff
from sensorium.ops import Layout, Segment, attention, attention_backward
from strategies import layouts


def arrays(seed, batch, heads, kv_heads, queries, keys, width, dtype=np.float64):
    rng = np.random.default_rng(seed)
    q, grad_out = rng.normal(size=(2, batch, heads, queries, width)).astype(dtype)
    k, v = rng.normal(size=(2, batch, kv_heads, keys, width)).astype(dtype)
    return q, k, v, grad_out


def check(q, k, v, grad_out, layout, mask, **window):
    """Against the reference; `mask` is (N_q, N_k), or (B, 1, N_q, N_k)."""
    out, lse = attention(q, k, v, layout, **window)
    want_out, want_lse = reference.attention(q, k, v, mask)
    tolerance = 1e-12 if q.dtype == np.float64 else 2e-5
    np.testing.assert_allclose(out, want_out, rtol=0, atol=tolerance)
    np.testing.assert_allclose(lse, want_lse, rtol=tolerance, atol=tolerance)
    got = attention_backward(grad_out, q, k, v, out, lse, layout, **window)
    want = reference.attention_backward(grad_out, q, k, v, want_out, want_lse, mask)
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=30 * tolerance)


@given(layouts(max_length=80), st.data())
def test_a_window_is_that_part_of_the_mask(row, data):
    n = row.layout.length
    first, last = sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))
    begin, end = sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    parts = arrays(data.draw(st.integers(0, 99)), 2, 4, 2, last - first, end - begin, 8, dtype)
    mask = reference.dense_mask(row.samples).reshape(n, n)[first:last, begin:end]
    check(*parts, row.layout, mask, query_offset=first, key_offset=begin)


@given(layouts(max_length=80), st.data())
def test_queries_are_the_last_tokens_where_nothing_is_said(row, data):
    n = row.layout.length
    m = data.draw(st.integers(0, n))
    parts = arrays(0, 1, 2, 1, m, n, 16)
    check(*parts, row.layout, reference.dense_mask(row.samples).reshape(n, n)[n - m :])


@given(st.lists(layouts(max_length=60), min_size=1, max_size=4), st.data())
def test_each_sample_has_its_own_layout(rows, data):
    n = max(row.layout.length for row in rows) + data.draw(st.integers(0, 3))
    mask = np.zeros((len(rows), 1, n, n), dtype=bool)
    for row, one in zip(rows, mask, strict=True):
        m = row.layout.length
        one[0, :m, :m] = reference.dense_mask(row.samples).reshape(m, m)
    parts = arrays(1, len(rows), 4, 2, n, n, 8, data.draw(st.sampled_from([np.float32, np.float64])))
    check(*parts, [row.layout for row in rows], mask)
    begin = data.draw(st.integers(0, n))
    parts = arrays(2, len(rows), 2, 1, n - begin, n, 8)
    check(*parts, [row.layout for row in rows], mask[:, :, begin:], query_offset=begin)


def test_each_sample_alone_gives_the_same():
    some = [Layout([Segment("causal", 40), Segment("full", 60)]), Layout([Segment("full", 90)])]
    q, k, v, grad_out = arrays(3, 2, 3, 3, 100, 100, 32, np.float32)
    out, lse = attention(q, k, v, some)
    grads = attention_backward(grad_out, q, k, v, out, lse, some)
    for b, layout in enumerate(some):
        one = slice(b, b + 1)
        alone = attention(q[one], k[one], v[one], layout.padded(100))
        np.testing.assert_array_equal(out[one], alone[0])
        np.testing.assert_array_equal(lse[one], alone[1])
        alone = attention_backward(grad_out[one], q[one], k[one], v[one], *alone, layout.padded(100))
        for whole, part in zip(grads, alone, strict=True):
            np.testing.assert_allclose(whole[one], part, rtol=0, atol=2e-5)


def test_threads_change_no_bit_where_samples_differ():
    # Large enough for tasks, and as unequal as samples get.
    some = [Layout([Segment("full", 700)]), Layout([Segment("causal", 20)]), Layout([Segment("causal", 300)])]
    q, k, v, grad_out = arrays(4, 3, 4, 2, 700, 700, 32, np.float32)
    results = []
    for n in (1, 2, 5):
        with sensorium.num_threads(n):
            out, lse = attention(q, k, v, some)
            results.append((out, lse, *attention_backward(grad_out, q, k, v, out, lse, some)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_gradients_through_autograd():
    layout = Layout([Segment("causal", 6), Segment("full", 5)])
    q, k, v, grad_out = arrays(5, 1, 2, 2, 4, 11, 8)

    def loss(parameters):
        y = autodiff.attention(parameters["q"], k, v, layout, query_offset=7)
        return (y * grad_out).sum()

    value, grads = autodiff.value_and_grad(loss)({"q": q})
    step = 1e-6 * np.random.default_rng(6).normal(size=q.shape)
    ahead, back = loss({"q": q + step}), loss({"q": q - step})
    np.testing.assert_allclose((ahead - back) / 2, (grads["q"] * step).sum(), rtol=1e-6)
    assert abs(value - (ahead + back) / 2) < 1e-9


def test_tokens_without_a_key_are_not_seen():
    # A cache that has dropped its oldest tokens: the mask of what is left.
    layout = Layout([Segment("causal", 12)])
    q, k, v, grad_out = arrays(7, 1, 1, 1, 3, 8, 4)
    check(q, k, v, grad_out, layout, np.tri(12, dtype=bool)[9:, 4:], key_offset=4)
    # Queries before all keys see nothing.
    out, lse = attention(q, k, v, layout, query_offset=0, key_offset=4)
    assert np.all(out == 0)
    assert np.all(lse == -np.inf)


def test_windows_of_one_layout_are_kept_apart():
    layout = Layout([Segment("causal", 64)])
    q, k, v, _ = arrays(8, 1, 1, 1, 64, 64, 8)
    whole, _ = attention(q, k, v, layout)
    for _ in range(2):
        for first in range(0, 60, 5):  # more windows than a layout keeps plans of
            part, _ = attention(q[:, :, first : first + 4], k, v, layout, query_offset=first)
            np.testing.assert_allclose(part, whole[:, :, first : first + 4], rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"query_offset": 3}, sensorium.ShapeError,
         "layout has length 8, but q is its rows 3 to 9 and k its rows 0 to 8"),
        ({"query_offset": -1}, sensorium.ArgumentError, "query_offset must be at least 0, not -1"),
        ({"query_offset": 1.5}, sensorium.DTypeError, "query_offset must be an integer, not float"),
        ({"key_offset": True + 1}, sensorium.ShapeError,
         "layout has length 8, but q is its rows 4 to 10 and k its rows 2 to 10"),
        ({"key_offset": 2**70, "query_offset": 0}, sensorium.ShapeError,
         f"layout has length 8, but q is its rows 0 to 6 and k its rows {2**70} to {2**70 + 8}"),
        ({"layout": Layout([Segment("full", 9)])}, sensorium.ShapeError,
         "layout has length 9, but q is its rows 2 to 8 and k its rows 0 to 8"),
        ({"k": np.zeros((2, 1, 4, 4)), "v": np.zeros((2, 1, 4, 4))}, sensorium.ShapeError,
         "q has N=6, more than the 4 of k after key_offset=0: "
         "give query_offset, the row that the first query is"),
        ({"layout": [Layout([Segment("full", 8)])]}, sensorium.ShapeError,
         "layout has 1 layouts, expected B=2: one for each sample"),
        ({"layout": [Layout([Segment("full", 8)]), None]}, sensorium.DTypeError,
         "layout[1] must be a Layout, not NoneType"),
        ({"layout": [Layout([Segment("full", 8)]), Layout([Segment("full", 9)])]}, sensorium.ShapeError,
         "layout[1] has length 9, but q is its rows 2 to 8 and k its rows 0 to 8"),
        ({"layout": [Layout([Segment("full", 8)])] * 2, "query_offset": 2**40}, sensorium.ArgumentError,
         f"query_offset is too large: {2**40}"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(change, error, words):
    q, k = np.zeros((2, 1, 6, 4)), np.zeros((2, 1, 8, 4))
    args = {"q": q, "k": k, "v": k, "layout": Layout([Segment("causal", 8)])} | change
    with pytest.raises(error, match=f"^{re.escape(words)}$"):
        attention(**args)
    with pytest.raises(error, match=f"^{re.escape(words)}$"):
        attention_backward(**args, grad_out=q, out=q, lse=q[..., 0])
