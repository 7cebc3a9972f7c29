"""Soft-capping, linear biases and dropout in attention, against the reference and the laws that they obey."""

import re
from dataclasses import dataclass

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
    alibi_slopes,
    attention,
    attention_backward,
    attention_dropout_mask,
    rotary,
    self_attention,
    self_attention_backward,
)
from strategies import Attention, attentions


def factors(shape, dropout, seed, **offsets):
    """What dropout multiplies probabilities by, from the probability in sixteen bits."""
    if dropout == 0:
        return np.ones(shape)
    p = min(max(round(dropout * 65536), 1), 65535) / 65536
    return attention_dropout_mask(shape, dropout, seed, **offsets) / (1 - p)


@dataclass
class Case:
    """A call of attention with options, and the same options as the reference takes them."""

    call: Attention
    options: dict

    def __repr__(self):
        return f"{self.call!r} {self.options}"

    def reference(self):
        batch, heads, n, _ = self.call.q.shape
        o = self.options
        bias = None if o["alibi"] is None else reference.alibi(o["alibi"], n, n)
        kept = factors((batch, heads, n, n), o["dropout"], o["seed"])
        return {"scale": self.call.scale, "softcap": o["softcap"], "bias": bias, "kept": kept}

    def mask(self):
        n = self.call.layout.length
        return reference.dense_mask(self.call.row.samples).reshape(n, n)

    def arrays(self):
        return self.call.q, self.call.k, self.call.v

    def forward(self):
        return attention(*self.arrays(), self.call.layout, scale=self.call.scale, **self.options)

    def backward(self, out, lse):
        args = (self.call.grad_out, *self.arrays(), out, lse, self.call.layout)
        return attention_backward(*args, scale=self.call.scale, **self.options)


@st.composite
def cases(draw, **sizes):
    call = draw(attentions(**sizes))
    heads = call.q.shape[1]
    slopes = st.lists(st.sampled_from([0.0, 2.0**-8, 0.3, 2.0, -0.05]), min_size=heads, max_size=heads)
    options = {
        "softcap": draw(st.sampled_from([None, 0.5, 5.0, 50.0])),
        "alibi": draw(st.one_of(st.none(), st.just(alibi_slopes(heads)), slopes)),
        "dropout": draw(st.sampled_from([0.0, 0.1, 0.5, 0.97])),
        "seed": draw(st.integers(0, 2**64 - 1)),
    }
    return Case(call, options)


def check(case):
    mask, how = case.mask(), case.reference()
    eps = np.finfo(case.call.q.dtype).eps
    out, lse = case.forward()
    want_out, want_lse = reference.attention(*case.arrays(), mask, **how)
    out_bound, lse_bound = reference.forward_bounds(*case.arrays(), mask, eps, **how)
    seen = np.isfinite(want_lse)
    np.testing.assert_array_equal(np.isneginf(lse), ~seen)
    assert np.all(np.abs(lse[seen] - want_lse[seen]) <= lse_bound[seen])
    assert np.all(np.abs(out - want_out) <= out_bound)
    got = case.backward(out, lse)
    grad_out = case.call.grad_out
    want = reference.attention_backward(grad_out, *case.arrays(), want_out, want_lse, mask, **how)
    bounds = reference.backward_bounds(grad_out, *case.arrays(), mask, eps, **how)
    for name, g, w, b in zip(("dq", "dk", "dv"), got, want, bounds, strict=True):
        assert g.shape == w.shape
        assert np.all(np.abs(g - w) <= b), name


@given(cases())
def test_agrees_with_the_reference(case):
    check(case)


@settings(max_examples=12)
@given(data=st.data())
def test_agrees_at_every_instruction_set(data):
    case = data.draw(cases(max_length=40))
    before = _core.isa_level()
    try:
        for level in _core.isa_available():
            assert _core.set_isa(level) == level
            check(case)
    finally:
        _core.set_isa(before)


@given(cases(dtypes=(np.float64,), max_length=20))
def test_gradient_along_a_random_direction(case):
    # Central difference in float64: error h^2 from the third derivative, eps / h from rounding.
    rng = np.random.default_rng(0)
    native = [np.array(x, dtype=np.float64) for x in (*case.arrays(), case.call.grad_out)]
    q, k, v, grad_out = (x / max(1.0, np.abs(x).max(initial=0.0)) for x in native)
    directions = [rng.normal(size=x.shape) for x in (q, k, v)]
    options = {"scale": case.call.scale, **case.options}

    def loss(h):
        moved = [x + h * d for x, d in zip((q, k, v), directions, strict=True)]
        return float((attention(*moved, case.call.layout, **options, return_lse=False) * grad_out).sum())

    out, lse = attention(q, k, v, case.call.layout, **options)
    grads = attention_backward(grad_out, q, k, v, out, lse, case.call.layout, **options)
    slope = sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True))
    h = 1e-5
    numeric = (loss(h) - loss(-h)) / (2 * h)
    size = sum(float(np.abs(g * d).sum()) for g, d in zip(grads, directions, strict=True))
    # Kept pairs are up to 1 / (1 - dropout) larger, and so are all derivatives.
    total = float(np.abs(out * grad_out).sum()) + float(np.abs(grad_out).sum()) / (
        1 - case.options["dropout"]
    )
    # A cap of c adds second and third derivatives of 1 / c and 1 / c^2 of the first.
    cap = case.options["softcap"] or np.inf
    third = (1.0 + q.shape[-1]) ** 1.5 * (1.0 + total + size) * (1 + 1 / cap) ** 2
    assert abs(slope - numeric) <= 1e-13 * (1 + total) / h + 60 * h**2 * third + 1e-9 * size


@given(cases(max_length=30))
def test_the_number_of_threads_changes_no_bit(case):
    results = []
    for n in (1, 2, 3):
        with sensorium.num_threads(n):
            out, lse = case.forward()
            results.append((out, lse, *case.backward(out, lse)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_threads_and_windows_share_one_mask():
    # Large enough to be cut into several tasks, within heads too; and windows that start anywhere.
    rng = np.random.default_rng(1)
    layout = Layout([Segment("causal", 150), Segment("full", 450)])
    q, grad_out = rng.normal(size=(2, 2, 3, 600, 16)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 1, 600, 16)).astype(np.float32)
    options = {"softcap": 4.0, "alibi": alibi_slopes(3), "dropout": 0.3, "seed": 2**63 + 5}
    results = []
    for n in (1, 2, 5):
        with sensorium.num_threads(n):
            out, lse = attention(q, k, v, layout, **options)
            results.append((out, lse, *attention_backward(grad_out, q, k, v, out, lse, layout, **options)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    out, lse, *grads = results[0]
    how = {
        "softcap": 4.0,
        "bias": reference.alibi(options["alibi"], 600, 600),
        "kept": factors((2, 3, 600, 600), 0.3, options["seed"]),
    }
    mask = layout.dense()
    want = reference.attention(q, k, v, mask, **how)
    np.testing.assert_allclose(out, want[0], rtol=0, atol=3e-6)
    np.testing.assert_allclose(lse, want[1], rtol=0, atol=3e-6)
    for got, expected in zip(
        grads, reference.attention_backward(grad_out, q, k, v, *want, mask, **how), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=0, atol=4e-5)
    for first, last in [(0, 1), (37, 200), (599, 600), (151, 600)]:
        part, part_lse = attention(q[:, :, first:last], k, v, layout, query_offset=first, **options)
        np.testing.assert_allclose(part, out[:, :, first:last], rtol=0, atol=3e-6)
        np.testing.assert_allclose(part_lse, lse[:, :, first:last], rtol=0, atol=3e-6)


@given(
    st.sampled_from([np.float32, np.float64]),
    st.tuples(st.integers(0, 70), st.integers(1, 90)),
    st.tuples(st.integers(0, 70), st.integers(1, 90)),
    st.sampled_from([0.001, 0.25, 0.5, 0.9]),
    st.integers(0, 2**64 - 1),
)
def test_forward_and_backward_drop_the_pairs_of_the_mask(dtype, queries, keys, dropout, seed):
    # With v the identity, out is what is left of the probabilities; with grad_out the identity, so is dv transposed.
    (first, n), (first_key, m) = queries, keys
    rng = np.random.default_rng(seed)
    layout = Layout([Segment("full", max(first + n, first_key + m))])
    width = max(n, m)
    q = rng.normal(size=(2, 3, n, width)).astype(dtype)
    k = rng.normal(size=(2, 3, m, width)).astype(dtype)
    v = np.broadcast_to(np.eye(m, width, dtype=dtype), k.shape)
    options = {"query_offset": first, "key_offset": first_key, "dropout": dropout, "seed": seed}
    out, lse = attention(q, k, v, layout, **options)
    kept = attention_dropout_mask((2, 3, n, m), dropout, seed, query_offset=first, key_offset=first_key)
    np.testing.assert_array_equal(out[..., :m] != 0, kept)
    grad_out = np.broadcast_to(np.eye(n, width, dtype=dtype), q.shape)
    _, _, dv = attention_backward(grad_out, q, k, v, out, lse, layout, **options)
    np.testing.assert_array_equal(dv[..., :n].swapaxes(-1, -2) != 0, kept)
    p = min(max(round(dropout * 65536), 1), 65535) / 65536
    undropped = attention(q, k, v, layout, query_offset=first, key_offset=first_key)
    np.testing.assert_array_equal(lse, undropped[1])
    rtol = 4 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(out, undropped[0] / (1 - p) * (out != 0), rtol=rtol, atol=0)


@pytest.mark.parametrize("dropout", [2.0**-10, 0.1, 0.5, 0.9])
def test_as_many_pairs_are_kept_as_should_be(dropout):
    # Five standard deviations of a binomial: one run in 1.7 million would fail by chance, and the seeds are fixed.
    p = round(dropout * 65536) / 65536
    shape = (3, 4, 200, 211)
    n = np.prod(shape)
    for seed in (0, 1, 2**32, 2**64 - 1):
        kept = attention_dropout_mask(shape, dropout, seed)
        assert abs(kept.sum() - n * (1 - p)) <= 5 * np.sqrt(n * p * (1 - p))
        # Each query, key, head and sample on its own, Bonferroni over the 400 of them: six deviations.
        for axis in [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)]:
            count = np.prod([shape[a] for a in axis])
            assert np.all(
                np.abs(kept.mean(axis=axis) - (1 - p)) <= 6 * np.sqrt(p * (1 - p) / count) + 3 / count
            )


def test_pairs_are_dropped_independently():
    # Correlation with the next key, query, head, sample and seed: within five of its standard errors, n^-1/2.
    x = attention_dropout_mask((4, 4, 128, 128), 0.5, 7) - 0.5
    y = attention_dropout_mask((4, 4, 128, 128), 0.5, 8) - 0.5
    neighbours = [(x, y)]
    for axis in range(4):
        for step in (1, 2, 3) if axis < 2 else (1, 2, 4, 8, 16, 48):
            n = x.shape[axis]
            neighbours.append((x.take(range(n - step), axis), x.take(range(step, n), axis)))
    for a, b in neighbours:
        assert abs((4 * a * b).mean()) <= 5 / np.sqrt(a.size)


def test_the_mean_over_seeds_is_attention_without_dropout():
    rng = np.random.default_rng(0)
    layout = Layout([Segment("causal", 24)])
    q, k, v = rng.normal(size=(3, 1, 2, 24, 8))
    want, _ = attention(q, k, v, layout)
    samples = np.array(
        [attention(q, k, v, layout, dropout=0.4, seed=s, return_lse=False) for s in range(2000)]
    )
    error = samples.std(axis=0) / np.sqrt(len(samples))
    # 384 numbers, each within five standard errors.
    assert np.all(np.abs(samples.mean(axis=0) - want) <= 5 * error)


@given(attentions(max_length=30), st.integers(0, 9))
def test_nothing_is_what_no_option_gives(case, seed):
    args, scale = (case.q, case.k, case.v), case.scale
    out, lse = attention(*args, case.layout, scale=scale)
    grads = attention_backward(case.grad_out, *args, out, lse, case.layout, scale=scale)
    for dropout in (0, 0.0, np.float32(0)):
        same = attention(
            *args, case.layout, scale=scale, dropout=dropout, seed=seed, softcap=None, alibi=None
        )
        np.testing.assert_array_equal(same[0], out)
        np.testing.assert_array_equal(same[1], lse)
        again = attention_backward(
            case.grad_out, *args, *same, case.layout, scale=scale, dropout=dropout, seed=seed
        )
        for a, b in zip(grads, again, strict=True):
            np.testing.assert_array_equal(a, b)


def test_slopes_of_eight_heads_and_others():
    # Press et al. give 1/2, 1/4, ... 1/256 for 8 heads, and 2^-0.5, 2^-1, ... 2^-8 for 16.
    np.testing.assert_array_equal(alibi_slopes(8), 0.5 ** np.arange(1, 9))
    np.testing.assert_allclose(alibi_slopes(16), 2 ** (-0.5 * np.arange(1, 17)), rtol=1e-15)
    want = [*(0.5 ** np.arange(1, 9)), *(2.0 ** np.array([-0.5, -1.5, -2.5, -3.5]))]
    np.testing.assert_allclose(alibi_slopes(12), want, rtol=1e-15)
    np.testing.assert_array_equal(alibi_slopes(1), [2.0**-8])
    np.testing.assert_allclose(alibi_slopes(3), [2.0**-4, 2.0**-8, 2.0**-2], rtol=1e-15)
    assert alibi_slopes(0).shape == (0,)
    for heads in range(1, 70):
        slopes = alibi_slopes(heads)
        assert slopes.shape == (heads,)
        assert len(np.unique(slopes)) == heads
        assert np.all((slopes > 0) & (slopes < 1))


def test_biases_alone_are_a_geometric_series(isa):
    # With equal products, P_ij is proportional to r^|i - j| with r = e^-slope.
    n = 150
    q = np.zeros((1, 4, n, 8))
    v = np.random.default_rng(0).normal(size=q.shape)
    slopes = alibi_slopes(4)
    out, lse = attention(q, q, v, Layout([Segment("causal", n)]), alibi=slopes)
    r = np.exp(-slopes)[:, None]
    i = np.arange(n)
    np.testing.assert_allclose(lse[0], np.log((1 - r ** (i + 1)) / (1 - r)), rtol=1e-13, atol=1e-14)
    # Then out_i = v_i + r s_(i-1) over the same for ones: a recurrence.
    state, total = np.zeros((4, 8)), np.zeros((4, 1))
    for token in range(n):
        state, total = v[0, :, token] + r * state, 1 + r * total
        np.testing.assert_allclose(out[0, :, token], state / total, rtol=1e-12, atol=1e-13)


def test_a_head_whose_slope_is_steep_sees_itself_alone(isa):
    x = np.random.default_rng(0).normal(size=(1, 2, 100, 8)).astype(np.float32)
    out, _ = attention(x, x, x, Layout([Segment("full", 100)]), alibi=[1e4, 0.0])
    np.testing.assert_array_equal(out[:, 0], x[:, 0])
    plain, _ = attention(x, x, x, Layout([Segment("full", 100)]))
    np.testing.assert_allclose(out[:, 1], plain[:, 1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_capped_scores(isa, dtype):
    # Gemma 2 caps attention's logits at 50. Values of 50 tanh(x / 50), to the digits printed.
    known = {10.0: 9.868766, 25.0: 23.105858, 50.0: 38.079708, 100.0: 48.201379, 1e4: 50.0, -1e30: -50.0}
    for score, capped in known.items():
        q = np.full((1, 1, 1, 1), score, dtype=dtype)
        one = np.ones_like(q)
        _, lse = attention(q, one, one, Layout([Segment("full", 1)]), scale=1.0, softcap=50.0)
        np.testing.assert_allclose(lse, capped, rtol=3e-7)
    # The same with the sign in the scale, and a scale that is not 1.
    q = np.full((1, 1, 1, 1), 100.0, dtype=dtype)
    _, lse = attention(q, np.ones_like(q), q, Layout([Segment("full", 1)]), scale=-0.25, softcap=50.0)
    np.testing.assert_allclose(lse, -23.105858, rtol=3e-7)


def test_a_high_cap_is_none(isa):
    q, k, v = np.random.default_rng(0).normal(size=(3, 1, 2, 80, 16))
    layout = Layout([Segment("causal", 80)])
    out, lse = attention(q, k, v, layout)
    # tanh(x) = x - x^3 / 3: scores below 10 move by less than 1e3 / 3 / c^2.
    capped, capped_lse = attention(q, k, v, layout, softcap=1e5)
    np.testing.assert_allclose(capped, out, rtol=0, atol=1e-6)
    np.testing.assert_allclose(capped_lse, lse, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_keep_their_digits_where_the_cap_is_reached(isa, dtype):
    # 1 - tanh^2 at 12 is 1.5e-10: as one minus a square it would be nothing or noise in float32.
    q = np.array([12.0, 0.0], dtype=dtype).reshape(1, 1, 2, 1)
    k = np.array([1.0, -0.1], dtype=dtype).reshape(1, 1, 2, 1)
    v = np.array([1.0, 0.0], dtype=dtype).reshape(1, 1, 2, 1)
    layout = Layout([Segment("full", 2)])
    out, lse = attention(q, k, v, layout, scale=1.0, softcap=1.0)
    grad = np.array([1.0, 0.0], dtype=dtype).reshape(out.shape)
    _, dk, _ = attention_backward(grad, q, k, v, out, lse, layout, scale=1.0, softcap=1.0)
    p = 1 / (1 + np.exp(np.tanh(-1.2) - np.tanh(12.0)))
    np.testing.assert_allclose(dk[0, 0, 0, 0], 12 * p * (1 - p) / np.cosh(12.0) ** 2, rtol=1e-5)


@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_reach_the_rows_that_see_them(isa, bad, which):
    rng = np.random.default_rng(0)
    layout = Layout(
        [Segment("causal", 50), Segment("full", 40), Segment("causal", 30)], visible=np.zeros((3, 3), bool)
    )
    arrays = dict(zip("qkv", rng.normal(size=(3, 1, 1, 120, 20)).astype(np.float32), strict=True))
    arrays["q"] = np.abs(arrays["q"]) + 0.5
    options = {"softcap": 5.0, "alibi": [0.1], "dropout": 0.5, "seed": 3}
    clean, clean_lse = attention(**arrays, layout=layout, **options)
    for token in (10, 49, 60, 100):
        spoilt = arrays | {which: arrays[which].copy()}
        spoilt[which][..., token, 3] = bad
        out, lse = attention(**spoilt, layout=layout, **options)
        sees = layout.dense()[:, token]
        np.testing.assert_allclose(out[:, :, ~sees], clean[:, :, ~sees], rtol=0, atol=1e-6)
        if which == "k" and not np.isnan(bad):
            # A product of +-inf has the score +-c.
            assert np.isfinite(out).all()
            bias = reference.alibi([0.1], 120, 120)[0, :, token]
            assert np.all(lse[0, 0, sees] >= np.sign(bad) * 5.0 + bias[sees] - 1e-5)
            assert np.all((lse != clean_lse)[:, :, sees])
        else:
            # Whether the pair is dropped or not.
            assert not np.isfinite(out[:, :, sees, 3]).any()
            np.testing.assert_array_equal(lse[:, :, ~sees], clean_lse[:, :, ~sees])


def test_a_query_that_sees_nothing(isa):
    q, k, v, grad_out = np.random.default_rng(0).normal(size=(4, 1, 2, 50, 16)).astype(np.float32)
    layout = Layout([Segment("none", 20), Segment("full", 30)], window=0)
    options = {"softcap": 5.0, "alibi": [0.1, 0.2], "dropout": 0.5, "seed": 3}
    out, lse = attention(q, k, v, layout, **options)
    assert np.all(out[:, :, :20] == 0)
    assert np.all(lse[:, :, :20] == -np.inf)
    grads = attention_backward(grad_out, q, k, v, out, lse, layout, **options)
    for grad in grads:
        assert np.all(grad[:, :, :20] == 0)
        assert np.isfinite(grad).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_self_attention_is_attention(dtype):
    rng = np.random.default_rng(0)
    qkv = rng.normal(size=(2, 20, 3, 4, 8)).astype(dtype)
    grad = rng.normal(size=(2, 20, 32)).astype(dtype)
    layout = Layout([Segment("causal", 5), Segment("full", 15)])
    options = {"softcap": 2.0, "alibi": alibi_slopes(4), "dropout": 0.2, "seed": 5, "scale": 0.5}
    out, lse = self_attention(qkv, layout, **options)
    q, k, v = (np.ascontiguousarray(x) for x in qkv.transpose(2, 0, 3, 1, 4))
    want, want_lse = attention(q, k, v, layout, **options)
    np.testing.assert_array_equal(out.reshape(2, 20, 4, 8), want.transpose(0, 2, 1, 3))
    np.testing.assert_array_equal(lse, want_lse)
    dqkv = self_attention_backward(grad, qkv, out, lse, layout, **options)
    grad_out = grad.reshape(2, 20, 4, 8).transpose(0, 2, 1, 3)
    parts = attention_backward(grad_out, q, k, v, want, want_lse, layout, **options)
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(dqkv[:, :, i], part.transpose(0, 2, 1, 3))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_and_rotation_go_with_the_options(dtype):
    # Stored halves are computed as float32: the same scores and the same mask, and one rounding of what is returned.
    rng = np.random.default_rng(0)
    layout = Layout([Segment("causal", 70)])
    q, k, v, grad_out = (rng.normal(size=(2, 4, 70, 16)).astype(dtype) for _ in range(4))
    wide = [x.astype(np.float32) for x in (q, k, v, grad_out)]
    options = {"softcap": 3.0, "alibi": alibi_slopes(4), "dropout": 0.3, "seed": 5, "rotary": Rotary()}
    out, lse = attention(q, k, v, layout, **options)
    want, want_lse = attention(*wide[:3], layout, **options)
    np.testing.assert_array_equal(out, want.astype(dtype))
    np.testing.assert_array_equal(lse, want_lse)
    del options["rotary"]
    turned = attention(rotary(wide[0]), rotary(wide[1]), wide[2], layout, **options)
    np.testing.assert_allclose(turned[0], want, rtol=0, atol=3e-6)
    np.testing.assert_allclose(turned[1], want_lse, rtol=0, atol=3e-6)


def test_autodiff_takes_the_options():
    rng = np.random.default_rng(0)
    q, k, v, g = rng.normal(size=(4, 1, 2, 12, 4))
    layout = Layout([Segment("causal", 12)])
    options = {"softcap": 2.0, "alibi": [0.5, 0.1], "dropout": 0.2, "seed": 5}
    value, grads = autodiff.value_and_grad(
        lambda p: (autodiff.attention(p["q"], p["k"], p["v"], layout, **options) * g).sum()
    )({"q": q, "k": k, "v": v})
    out, lse = attention(q, k, v, layout, **options)
    assert value == pytest.approx((out * g).sum())
    for name, want in zip("qkv", attention_backward(g, q, k, v, out, lse, layout, **options), strict=True):
        np.testing.assert_array_equal(grads[name], want)
    qkv = np.ascontiguousarray(np.stack([q, k, v]).transpose(1, 3, 0, 2, 4))
    grad = np.ascontiguousarray(g.transpose(0, 2, 1, 3).reshape(1, 12, 8))
    value, dqkv = autodiff.value_and_grad(
        lambda p: (autodiff.self_attention(p["qkv"], layout, **options) * grad).sum()
    )({"qkv": qkv})
    assert value == pytest.approx((out * g).sum())
    for i, name in enumerate("qkv"):
        np.testing.assert_allclose(dqkv["qkv"][:, :, i], grads[name].transpose(0, 2, 1, 3), rtol=1e-12)


class TestErrors:
    q = np.zeros((2, 4, 5, 8), dtype=np.float32)
    layout = Layout([Segment("causal", 5)])

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"softcap": 0.0}, sensorium.ArgumentError, "softcap must be above 0, not 0"),
            ({"softcap": np.inf}, sensorium.ArgumentError, "softcap must be finite, not inf"),
            ({"softcap": "low"}, sensorium.DTypeError, "softcap must be a number, not str"),
            ({"alibi": [1.0, 2.0]}, sensorium.ShapeError, "alibi has H=2 but q has H=4"),
            ({"alibi": np.ones((4, 1))}, sensorium.ShapeError, "alibi has shape (4, 1), expected 1 dimensions (H)"),
            ({"alibi": [0.0, 1.0, np.nan, 2.0]}, sensorium.ArgumentError, "alibi must be finite, not nan"),
            ({"alibi": True}, sensorium.DTypeError, "alibi has dtype bool, expected numbers"),
            ({"dropout": 1.0, "seed": 0}, sensorium.ArgumentError, "dropout must be in [0, 1), not 1"),
            ({"dropout": -0.1, "seed": 0}, sensorium.ArgumentError, "dropout must be in [0, 1), not -0.1"),
            ({"dropout": np.nan, "seed": 0}, sensorium.ArgumentError, "dropout must be finite, not nan"),
            ({"dropout": None}, sensorium.DTypeError, "dropout must be a number, not NoneType"),
            ({"dropout": 0.1}, sensorium.ArgumentError, "seed must be given where dropout is above 0"),
            ({"dropout": 0.1, "seed": -1}, sensorium.ArgumentError, "seed must be at least 0, not -1"),
            ({"dropout": 0.1, "seed": 2**64}, sensorium.ArgumentError,
             f"seed must be at most {2**64 - 1}, not {2**64}"),
            ({"dropout": 0.1, "seed": 1.5}, sensorium.DTypeError, "seed must be an integer, not float"),
        ],
    )  # fmt: skip
    def test_options(self, options, error, words):
        q, lse, qkv = self.q, self.q[..., 0], np.zeros((2, 5, 3, 4, 8))
        out = np.zeros((2, 5, 32))
        for call in (
            lambda: attention(q, q, q, self.layout, **options),
            lambda: attention_backward(q, q, q, q, q, lse, self.layout, **options),
            lambda: self_attention(qkv, self.layout, **options),
            lambda: self_attention_backward(out, qkv, out, lse, self.layout, **options),
        ):
            with pytest.raises(error, match=f"^{re.escape(words)}$"):
                call()

    @pytest.mark.parametrize(
        ("call", "error", "words"),
        [
            (lambda: alibi_slopes(-1), sensorium.ArgumentError, "heads must be at least 0, not -1"),
            (lambda: alibi_slopes(2.0), sensorium.DTypeError, "heads must be an integer, not float"),
            (lambda: attention_dropout_mask((1, 2, 3), 0.5, 0), sensorium.ShapeError,
             "shape has 3 sizes, expected 4 (B, H, N, N_k)"),
            (lambda: attention_dropout_mask((1, 2, 3, -4), 0.5, 0), sensorium.ArgumentError,
             "shape must be at least 0, not -4"),
            (lambda: attention_dropout_mask((1, 1, 1, 1), 2, 0), sensorium.ArgumentError,
             "dropout must be in [0, 1), not 2"),
            (lambda: attention_dropout_mask((1, 1, 1, 1), 0.5, 0, key_offset=2**32), sensorium.ArgumentError,
             "key_offset is too large: 4294967296"),
        ],
    )  # fmt: skip
    def test_helpers(self, call, error, words):
        with pytest.raises(error, match=f"^{re.escape(words)}$"):
            call()

    def test_sizes_of_zero(self):
        assert attention_dropout_mask((0, 2, 3, 4), 0.5, 1).shape == (0, 2, 3, 4)
        assert attention_dropout_mask((1, 2, 0, 4), 0.5, 1).shape == (1, 2, 0, 4)
        assert attention_dropout_mask((1, 2, 3, 4), 0.0, 1).all()
        options = {"softcap": 1.0, "alibi": [], "dropout": 0.5, "seed": 1}
        x = np.zeros((2, 0, 5, 4))
        out, lse = attention(x, x, x, self.layout, **options)
        assert [g.shape for g in attention_backward(out, x, x, x, out, lse, self.layout, **options)] == [
            x.shape
        ] * 3
