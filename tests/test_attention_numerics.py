"""What rounding, overflow, underflow and NaN may do to attention: derived bounds, and the edges of both dtypes."""

import numpy as np
import pytest
import sensorium
from hypothesis import given
from hypothesis import strategies as st
from reference import attention as reference
from sensorium import _core
from sensorium.ops import Layout, Segment, attention, attention_backward
from strategies import layouts

DTYPES = [np.float32, np.float64]
LAYOUTS = {
    "full": Layout.full(90),
    "causal": Layout.causal(90),
    "bagel": Layout.interleaved(
        [("text", 20), ("noised", 15), ("image", 15), ("text", 20), ("noised", 10), ("image", 10)]
    ),
    "sliding": Layout.sliding_window(90, 7, sinks=2),
    "padded": Layout.text_to_image(20, 50).padded(90, side="left"),
}


def softmax(scores, mask):
    """Probabilities and their logarithmic sum in extended precision."""
    scores = np.where(mask, scores.astype(np.longdouble), -np.inf)
    top = scores.max(axis=-1, initial=-np.inf, keepdims=True)
    finite = np.where(np.isfinite(top), top, 0)
    weights = np.exp(scores - finite)
    total = weights.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        return weights / np.where(total > 0, total, 1), (finite + np.log(total))[..., 0]


def column(values, dtype):
    """Keys of width 1 whose scores against queries of 1 are these values, exactly."""
    return np.asarray(values, dtype=dtype).reshape(1, 1, -1, 1)


# Large logits.


def large(dtype, width, seed):
    """Queries and keys whose scaled scores reach +-1e4."""
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(2, 1, 2, 90, width))
    q *= 1e4 / np.abs(q @ k.swapaxes(-1, -2) / np.sqrt(width)).max()
    v, grad_out = rng.normal(size=(2, 1, 2, 90, width))
    return [x.astype(dtype) for x in (q, k, v, grad_out)]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_at_logits_of_1e4_are_within_their_bounds(isa, dtype, width, name):
    layout, eps = LAYOUTS[name], np.finfo(dtype).eps
    mask = layout.dense()
    q, k, v, grad_out = large(dtype, width, seed=width)
    out, lse = attention(q, k, v, layout)
    want, want_lse = reference.attention(q, k, v, mask)
    bound, lse_bound = reference.forward_bounds(q, k, v, mask, eps)
    assert np.abs(want_lse[np.isfinite(want_lse)]).max() > 2e3
    assert np.all(np.abs(out - want) <= bound)
    seen = mask.any(axis=1)
    assert np.all(np.abs(lse[..., seen] - want_lse[..., seen]) <= lse_bound[..., seen])
    assert np.all(lse[..., ~seen] == -np.inf)
    grads = attention_backward(grad_out, q, k, v, out, lse, layout)
    wants = reference.attention_backward(grad_out, q, k, v, want, want_lse, mask)
    bounds = reference.backward_bounds(grad_out, q, k, v, mask, eps)
    for got, should, most in zip(grads, wants, bounds, strict=True):
        assert np.all(np.abs(got - should) <= most)
    # The bounds say something: of float64 hardly a digit may be lost.
    if dtype == np.float64:
        assert bound.max() < 1e-7
        assert (
            max(np.abs(most / (1 + np.abs(should))).max() for most, should in zip(bounds, wants, strict=True))
            < 1e-3
        )


@pytest.mark.parametrize("offset", [0, 1e4, -1e4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_that_are_exact_lose_no_digits(isa, dtype, offset):
    # Whole numbers about +-1e4: what is left are roundings of the exponent, at most 4 eps times the distance to lse,
    # of the exponential, and of sums that are taken in parts.
    rng = np.random.default_rng(3)
    n, eps = 500, np.finfo(dtype).eps
    k = column(offset + rng.integers(-12, 13, size=n), dtype)
    v = column(rng.normal(size=n), dtype)
    layout = Layout.causal(n)
    out, lse = attention(np.ones_like(k), k, v, layout, scale=1.0)
    p, want_lse = softmax(np.broadcast_to(k[0, 0, :, 0], (n, n)), layout.dense())
    values = np.abs(v[0, 0, :, 0].astype(np.longdouble))
    with np.errstate(divide="ignore"):
        relative = eps * (8 + 4 * np.abs(np.log(np.where(p > 0, p, 1))))
    # Four sums a chunk of 64, chunks one after another: 16 + n / 64 additions, and a few for the products.
    terms = 16 + n / 64 + 70
    bound = (p * relative) @ values + ((p * relative).sum(axis=1) + terms * eps) * (p @ values)
    want = p @ v[0, 0, :, 0].astype(np.longdouble)
    assert np.all(np.abs(out[0, 0, :, 0] - want) <= bound)
    assert bound.max() < 300 * eps
    assert np.all(np.abs(lse[0, 0] - want_lse) <= 3 * np.spacing(np.abs(want_lse).astype(dtype)) + 40 * eps)


@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1e4, 1e6])
@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 1000, 6000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lse_is_right_to_a_few_ulp(dtype, n, size):
    # Scores are exact, and their maximum not below 0, so that nothing cancels: two units in the last place.
    rng = np.random.default_rng(n)
    for seed in range(3):
        k = np.floor(rng.uniform(-size, size, size=n))
        if size == 1.0:
            k = np.floor(rng.uniform(-1, 1, size=n) * 64) / 64
        k[seed % n] = max(size, k.max())
        q = np.ones((1, 1, 4, 1), dtype=dtype)
        layout = Layout.cross(n, 4)
        _, lse = attention(q, column(k, dtype), column(k, dtype), layout, scale=1.0, query_offset=n)
        _, want = softmax(k[None].astype(dtype), np.ones((1, n), dtype=bool))
        ulp = np.spacing(np.maximum(np.abs(want), np.finfo(dtype).eps).astype(dtype)).astype(np.longdouble)
        assert np.all(np.abs(lse[0, 0] - want) <= 2 * ulp), (np.abs(lse[0, 0] - want) / ulp).max()


@given(
    st.integers(1, 220),
    st.integers(0, 2**32 - 1),
    st.sampled_from(DTYPES),
    st.floats(0.0, 1.0),
    st.booleans(),
)
def test_scores_of_any_size(n, seed, dtype, spread, ties):
    # From 1 to the largest that can be scaled, in any order, with neighbours and ties: which score wins, and by how
    # much, is exact up to the rounding of the exponent.
    rng = np.random.default_rng(seed)
    most = 37.0 if dtype == np.float32 else 307.0
    size = 10 ** (rng.uniform(0, 1) * most)
    scores = (rng.choice([-1, 1], size=n) * size ** rng.uniform(1 - spread, 1, size=n)).astype(dtype)
    if ties:
        at = rng.integers(0, n, size=2 * n)
        scores[at[:n]] = scores[at[n:]]
        scores = np.where(rng.random(n) < 0.3, np.nextafter(scores, dtype(0)), scores)
    v = rng.normal(size=n).astype(dtype)
    layout = Layout.causal(n)
    out, lse = attention(
        column(np.ones(n), dtype), column(scores, dtype), column(v, dtype), layout, scale=1.0
    )
    p, want_lse = softmax(np.broadcast_to(scores, (n, n)), layout.dense())
    eps, values = np.finfo(dtype).eps, np.abs(v.astype(np.longdouble))
    with np.errstate(divide="ignore", over="ignore"):
        relative = np.expm1(np.minimum(eps * (8 + 4 * np.abs(np.log(np.where(p > 0, p, 1)))), 50))
    lost = n * 2.0 ** (-100 if dtype == np.float32 else -900)
    average = (p * relative).sum(axis=1)
    bound = (p * relative) @ values + (average + (n + 8) * eps) * (p @ values) + lost
    assert np.all(np.abs(out[0, 0, :, 0] - p @ v.astype(np.longdouble)) <= bound)
    assert np.all(np.abs(lse[0, 0] - want_lse) <= average + (n + 8) * eps + 4 * eps * np.abs(want_lse))
    grads = attention_backward(
        np.ones_like(out),
        column(np.ones(n), dtype),
        column(scores, dtype),
        column(v, dtype),
        out,
        lse,
        layout,
        scale=1.0,
    )
    assert all(np.isfinite(g).all() for g in grads)
    # Whatever the rounding of a large lse, a probability is at most 1.
    assert np.all(grads[2][0, 0, :, 0] <= np.arange(n, 0, -1) * (1 + n * eps))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scale_out_of_range(isa, dtype):
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 1, 1, 7, 4)).astype(dtype)
    tiny = np.finfo(dtype).tiny
    out, lse = attention(q, k, v, Layout.full(7), scale=float(tiny) ** 2)
    np.testing.assert_allclose(lse, np.log(7), rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_allclose(out, np.broadcast_to(v.mean(axis=2, keepdims=True), v.shape), rtol=1e-5)
    if dtype == np.float32:
        for scale in (1e39, -1e300, 2.4e38):
            with pytest.raises(sensorium.ArgumentError, match=r"^scale is .*, too large for float32$"):
                attention(q, k, v, Layout.full(7), scale=scale)


# float32 against float64, and against NumPy.


def numpy_attention(q, k, v, mask, scale):
    """The usual form, in the dtype of the arrays."""
    scores = np.where(mask, (q @ k.swapaxes(-1, -2)) * q.dtype.type(scale), q.dtype.type(-np.inf))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)) @ v


@pytest.mark.parametrize(("n", "width"), [(64, 64), (300, 64), (512, 64), (256, 128)])
@pytest.mark.parametrize("size", [0.3, 1.0, 3.0, 10.0])
def test_float32_is_closer_to_the_truth_than_numpy(n, size, width):
    # Root mean square errors of 24 draws. Their ratio is 0.6 to 0.95 where it was measured; the claim is that the mean
    # of its logarithm is below 0 by more than three standard errors.
    ratios = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        q, k, v = rng.normal(size=(3, 1, 2, n, width)).astype(np.float32)
        q *= np.float32(size)
        layout = Layout.causal(n) if seed % 2 else Layout.full(n)
        mask, scale = layout.dense(), width**-0.5
        truth, _ = reference.attention(q, k, v, mask)
        ours, _ = attention(q, k, v, layout)
        theirs = numpy_attention(q, k, v, mask, scale)
        error = [float(np.sqrt(np.mean((x - truth) ** 2))) for x in (ours, theirs)]
        ratios.append(np.log(error[0] / error[1]))
    assert np.mean(ratios) + 3 * np.std(ratios, ddof=1) / np.sqrt(len(ratios)) < 0, np.exp(np.mean(ratios))


# Nothing seen, infinity, NaN.


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_score_of_minus_infinity_is_a_key_not_seen(isa, dtype):
    # Products that overflow to -inf, of finite queries and keys: gradients are finite and nothing reaches those keys.
    rng = np.random.default_rng(0)
    n, huge = 70, np.sqrt(np.finfo(dtype).max) * 10
    q, k, v, grad_out = rng.normal(size=(4, 1, 1, n, 3)).astype(dtype)
    q[..., 0], k[..., 0] = huge, 0
    away = np.zeros(n, dtype=bool)
    away[[0, 5, 40, 64, 69]] = True
    k[:, :, away, 0] = -huge
    layout = Layout.causal(n)
    out, lse = attention(q, k, v, layout)
    mask = layout.dense() & ~away
    without = Layout.from_dense(mask)
    k[:, :, away, 0] = 0
    want, want_lse = attention(q, k, v, without)
    k[:, :, away, 0] = -huge
    close = {"rtol": 1e3 * np.finfo(dtype).eps, "atol": 1e3 * np.finfo(dtype).eps}
    np.testing.assert_allclose(out, want, **close)
    np.testing.assert_allclose(lse, want_lse, **close)
    # The first row sees that key alone.
    assert np.all(out[:, :, 0] == 0)
    assert np.all(lse[:, :, 0] == -np.inf)
    dq, dk, dv = attention_backward(grad_out, q, k, v, out, lse, layout)
    assert all(np.isfinite(g).all() for g in (dq, dk, dv))
    assert np.all(dq[:, :, 0] == 0)
    assert np.all(dk[:, :, away] == 0)
    assert np.all(dv[:, :, away] == 0)
    assert np.all(dv[:, :, ~away] != 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_score_of_plus_infinity_makes_its_row_nan(isa, dtype):
    n, huge = 80, np.sqrt(np.finfo(dtype).max) * 10
    q, k = np.ones((2, 1, 1, n, 1), dtype=dtype)
    q[:, :, [3, 70]] = huge
    k[:, :, 50] = huge
    out, lse = attention(q, k, k, Layout.full(n), scale=1.0)
    rows = np.isin(np.arange(n), [3, 70])
    assert np.isnan(lse[:, :, rows]).all()
    assert np.isnan(out[:, :, rows]).all()
    assert np.isfinite(lse[:, :, ~rows]).all()
    assert np.isfinite(out[:, :, ~rows]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_see_nothing_meet_nothing(isa, dtype):
    # All that is not seen is NaN: padding on both sides, and a segment that sees nothing.
    layout = Layout.packed(
        [[Segment("none", 30)], [Segment("causal", 50), Segment("full", 20)], [Segment("none", 60)]]
    )
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(4, 1, 2, 160, 8)).astype(dtype)
    clean = [x.copy() for x in arrays]
    seen = layout.dense().any(axis=1)
    assert seen.sum() == 70
    arrays[:, :, :, ~seen] = np.nan
    q, k, v, grad_out = arrays
    out, lse = attention(q, k, v, layout)
    grads = attention_backward(grad_out, q, k, v, out, lse, layout)
    assert np.all(out[:, :, ~seen] == 0)
    assert np.all(lse[:, :, ~seen] == -np.inf)
    want, want_lse = attention(*clean[:3], layout)
    wants = attention_backward(clean[3], *clean[:3], want, want_lse, layout)
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(lse, want_lse)
    for got, should in zip(grads, wants, strict=True):
        assert np.all(got[:, :, ~seen] == 0)
        np.testing.assert_allclose(
            got[:, :, seen], should[:, :, seen], rtol=0, atol=400 * np.finfo(dtype).eps
        )


def reached(mask, which, token):
    """Rows that a NaN in a token of q, k, v or grad_out reaches, and keys that those rows see."""
    rows = mask[:, token] if which in ("k", "v") else (np.arange(len(mask)) == token) & mask.any(axis=1)
    return rows, mask[rows].any(axis=0)


@given(
    layouts(max_segments=5, max_length=70),
    st.sampled_from(["q", "k", "v", "grad_out"]),
    st.sampled_from(DTYPES),
    st.sampled_from(_core.isa_available()),
    st.integers(0, 2**32 - 1),
)
def test_nan_stays_with_the_rows_that_see_it(row, which, dtype, level, seed):
    layout = row.layout
    n = len(layout)
    if n == 0:
        return
    mask = layout.dense()
    rng = np.random.default_rng(seed)
    names = ("q", "k", "v", "grad_out")
    clean = dict(zip(names, rng.normal(size=(4, 1, 1, n, 5)).astype(dtype), strict=True))
    token, place = int(rng.integers(n)), int(rng.integers(5))
    spoilt = clean | {which: clean[which].copy()}
    spoilt[which][0, 0, token, place] = np.nan
    results = []
    before = _core.isa_level()
    try:
        _core.set_isa(level)
        for arrays in (clean, spoilt):
            args = [arrays[name] for name in ("q", "k", "v")]
            out, lse = attention(*args, layout)
            grads = attention_backward(arrays["grad_out"], *args, out, lse, layout)
            results.append([x[0, 0] for x in (out, lse, *grads)])
    finally:
        _core.set_isa(before)
    rows, keys = reached(mask, which, token)
    one = np.arange(5) == place
    none, everything = np.zeros(n, dtype=bool), np.ones(5, dtype=bool)
    # What is NaN of out, lse, dq, dk and dv: rows or keys, and features.
    nan = {
        "q": [(rows, everything), rows, (rows, everything), (keys, everything), (keys, everything)],
        "k": [(rows, everything), rows, (rows, everything), (keys, everything), (keys, everything)],
        "v": [(rows, one), none, (rows, everything), (keys, everything), (none, everything)],
        "grad_out": [(none, one), none, (rows, everything), (keys, everything), (keys, one)],
    }[which]
    tolerance = 200 * np.finfo(dtype).eps
    for name, good, bad, where in zip(("out", "lse", "dq", "dk", "dv"), *results, nan, strict=True):
        want = where if name == "lse" else np.outer(*where)
        np.testing.assert_array_equal(np.isnan(bad), want, err_msg=name)
        with np.errstate(invalid="ignore"):
            assert np.all((good == bad) | want | (np.abs(good - bad) <= tolerance)), name


# Denormal numbers.


@pytest.mark.parametrize("dtype", DTYPES)
def test_denormal_values(isa, dtype):
    least = np.finfo(dtype).smallest_subnormal
    n = 60
    rng = np.random.default_rng(0)
    v = (rng.integers(-1000, 1000, size=(1, 1, n, 3)) * np.float64(least)).astype(dtype)
    assert np.abs(v).max() < np.finfo(dtype).tiny
    ones = np.ones((1, 1, n, 3), dtype=dtype)
    # Where a row sees itself alone, its value comes back as it is.
    alone, _ = attention(ones, ones, v, Layout([Segment("diagonal", n)]))
    np.testing.assert_array_equal(alone, v)
    # Averages are right to one denormal for each sum of 16 and for each chunk, and one for the quotient.
    out, _ = attention(ones, ones, v, Layout.causal(n))
    want = np.cumsum(v.astype(np.longdouble), axis=2) / np.arange(1, n + 1)[:, None]
    assert np.all(np.abs(out - want) <= 2 * np.longdouble(least))
    assert np.any(out != 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_denormal_scores_gradients_and_probabilities(isa, dtype):
    info = np.finfo(dtype)
    least, n = info.smallest_subnormal, 40
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 1, n, 3)).astype(dtype)
    small = (x * (np.float64(least) * 100)).astype(dtype)
    # Scores of denormal size are as good as 0.
    out, lse = attention(small, np.ones_like(x), x, Layout.full(n))
    np.testing.assert_allclose(lse, np.log(n), rtol=4 * info.eps)
    np.testing.assert_allclose(
        out, np.broadcast_to(x.mean(axis=2, keepdims=True), x.shape), atol=1e2 * info.eps
    )
    # A gradient of denormal size is not lost.
    _, _, dv = attention_backward(small, x * 0, x, x, out, lse * 0, Layout([Segment("diagonal", n)]))
    np.testing.assert_array_equal(dv, small)
    # A probability of denormal size is lost, with no more than the least normal number of the largest value.
    deep = np.log(np.float64(info.tiny)) - np.arange(n) / 4
    deep[0] = 0
    out, _ = attention(
        column(np.ones(n), dtype),
        column(deep, dtype),
        column(np.r_[0, np.ones(n - 1)], dtype),
        Layout.full(n),
        scale=1.0,
    )
    p, _ = softmax(column(deep, dtype)[0, 0, :, 0][None], np.ones((1, n), dtype=bool))
    assert np.all(np.abs(out[0, 0, :, 0] - p[0, 1:].sum()) <= n * np.longdouble(info.tiny))
