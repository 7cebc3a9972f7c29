"""Decoding over a cache: what full attention over the whole rows gives, whatever happened to the cache before."""

import re

import ml_dtypes
import numpy as np
import pytest
import sensorium
from hypothesis import given
from hypothesis import strategies as st
from reference import attention as reference
from sensorium.ops import KVCache, Layout, Segment, attention, attention_decode
from strategies import layouts

CAUSAL = Layout([Segment("causal", 2000)])


def filled(k, v, lengths=None, **options):
    """A cache that holds the first tokens of `k` and `v`."""
    cache = KVCache(k.shape[0], k.shape[1], k.shape[3], dtype=k.dtype, **options)
    cache.append(k, v, counts=lengths)
    return cache


def check(q, k, v, mask, got, lse, *, start=0, scale=None, softcap=None, slopes=None):
    """Compare one row, queries of `mask`'s rows against keys of its columns, with the reference."""
    bias = None if slopes is None else reference.alibi(slopes, *mask.shape, query_offset=start)
    options = {"scale": scale, "softcap": softcap, "bias": bias}
    arrays = [np.asarray(x, dtype=np.float64) for x in (q, k, v)]
    want, want_lse = reference.attention(*arrays, mask, **options)
    bound, lse_bound = reference.forward_bounds(*arrays, mask, np.finfo(lse.dtype).eps, **options)
    if got.dtype.itemsize == 2:
        # Rounded once more, to the nearest.
        half = ml_dtypes.finfo(got.dtype)
        bound = bound + float(half.eps) / 2 * (np.abs(want) + bound) + float(half.smallest_subnormal)
    same = lse == want_lse
    assert np.all(same | (np.abs(lse - np.where(np.isfinite(want_lse), want_lse, 0)) <= lse_bound))
    assert np.all(np.abs(got.astype(np.float64) - want) <= bound)


class Model:
    """Every row of the cache as arrays, changed the plain way."""

    def __init__(self, batch, kv_heads, width, dtype):
        self.rows = [np.zeros((2, kv_heads, 0, width), dtype) for _ in range(batch)]

    def append(self, kv, counts):
        for b, n in enumerate(counts):
            self.rows[b] = np.concatenate([self.rows[b], kv[:, b, :, :n]], axis=2)

    def truncate(self, lengths):
        for b, n in enumerate(lengths):
            self.rows[b] = self.rows[b][:, :, :n]

    def replace(self, starts, kv, counts):
        for b, (start, n) in enumerate(zip(starts, counts, strict=True)):
            self.rows[b] = self.rows[b].copy()
            self.rows[b][:, :, start : start + n] = kv[:, b, :, :n]

    def reorder(self, rows):
        self.rows = [self.rows[row].copy() for row in rows]


@given(st.data())
def test_any_history_gives_what_full_attention_gives(data):
    draw = data.draw
    batch, kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 5))
    width = draw(st.one_of(st.sampled_from([1, 8, 16, 64]), st.integers(0, 130)))
    dtype = np.dtype(draw(st.sampled_from([np.float32, np.float64, np.float16, ml_dtypes.bfloat16])))
    q_dtype = np.dtype(np.float32) if dtype.itemsize == 2 and draw(st.booleans()) else dtype
    softcap = draw(st.sampled_from([None, None, 2.0, 30.0]))
    slopes = draw(st.sampled_from([None, None, "random"]))
    scale = draw(st.sampled_from([None, 0.25, 1.0, -0.3, 0.0]))
    magnitude = draw(st.sampled_from([1.0, 1e-3, 4.0, 60.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if slopes:
        slopes = rng.uniform(-0.1, 0.5, size=kv_heads * group)
    options = {"scale": scale, "softcap": softcap}
    kind = draw(st.sampled_from(["none", "one", "each"]))
    rows = [draw(layouts(max_length=60)) for _ in range(1 if kind == "one" else batch)]
    masks = [reference.dense_mask(row.samples).reshape(2 * (len(row.layout),)) for row in rows]
    if kind == "none":
        masks = [np.tri(len(row.layout), dtype=bool) for row in rows]
    most = [len(rows[b % len(rows)].layout) for b in range(batch)]
    layout = {"none": None, "one": rows[0].layout, "each": [row.layout for row in rows]}[kind]
    capacity = draw(st.sampled_from([None, max(most)]))
    cache = KVCache(batch, kv_heads, width, capacity=capacity, dtype=dtype)
    model = Model(batch, kv_heads, width, dtype)

    def some(n):
        return rng.normal(scale=magnitude, size=(2, batch, kv_heads, n, width)).astype(dtype)

    def upto(limits):
        return [draw(st.integers(0, limit)) for limit in limits]

    for _ in range(draw(st.integers(1, 6))):
        lengths = [row.shape[2] for row in model.rows]
        action = draw(st.sampled_from(["append", "append", "append", "truncate", "replace", "reorder"]))
        if action == "append":
            counts = upto([m - n for m, n in zip(most, lengths, strict=True)])
            kv = some(max(counts))
            cache.append(*kv, counts=counts)
            model.append(kv, counts)
        elif action == "truncate":
            kept = upto(lengths)
            cache.truncate(kept)
            model.truncate(kept)
        elif action == "replace":
            starts = upto(lengths)
            counts = upto([n - start for n, start in zip(lengths, starts, strict=True)])
            kv = some(max(counts))
            cache.replace(starts, *kv, counts=counts)
            model.replace(starts, kv, counts)
        elif kind == "one":
            chosen = upto([batch - 1] * batch)
            cache.reorder(chosen)
            model.reorder(chosen)
        lengths = [row.shape[2] for row in model.rows]
        assert cache.lengths.tolist() == lengths
        for b, row in enumerate(model.rows):
            np.testing.assert_array_equal(cache.keys(b), row[0])
            np.testing.assert_array_equal(cache.values(b), row[1])

    last = draw(st.booleans())
    starts = upto(lengths)
    counts = (
        [n - start for n, start in zip(lengths, starts, strict=True)]
        if last
        else upto([n - start for n, start in zip(lengths, starts, strict=True)])
    )
    queries = max(counts) + draw(st.integers(0, 2))
    q = rng.normal(scale=magnitude, size=(batch, kv_heads * group, queries, width)).astype(q_dtype)
    results = []
    for threads in (1, 2, 3):
        with sensorium.num_threads(threads):
            where = {"start": None if last else starts, "counts": counts}
            results.append(
                attention_decode(q, cache, layout, **where, **options, alibi=slopes, return_lse=True)
            )
    out, lse = results[0]
    for other in results[1:]:
        np.testing.assert_array_equal(out, other[0])
        np.testing.assert_array_equal(lse, other[1])
    for b, (start, n) in enumerate(zip(starts, counts, strict=True)):
        mask = masks[b % len(masks)][start : start + n, : lengths[b]]
        k, v = model.rows[b][:, None]
        row = slice(b, b + 1)
        got = (out[row, :, :n], lse[row, :, :n])
        check(q[row, :, :n], k, v, mask, *got, start=start, **options, slopes=slopes)
        assert np.all(out[b, :, n:] == 0)
        assert np.all(lse[b, :, n:] == -np.inf)


LONG = [
    (1, 4, 4, 64),
    (2, 4, 2, 80),
    (3, 2, 2, 64),
    (5, 4, 1, 40),
    (8, 2, 2, 64),
    (25, 2, 2, 32),
    (70, 2, 1, 48),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("queries", "heads", "kv_heads", "width"), LONG)
def test_long_rows_at_every_number_of_queries(isa, dtype, queries, heads, kv_heads, width):
    # Long enough for several parts, with a mask that cuts across them.
    rng = np.random.default_rng(queries)
    layout = Layout([Segment("causal", 500), Segment("full", 400, hidden=True), Segment("causal", 300)])
    lengths = [1180, 700]
    k, v = rng.normal(size=(2, 2, kv_heads, 1180, width)).astype(dtype)
    q = rng.normal(size=(2, heads, queries, width)).astype(dtype)
    cache = filled(k, v, lengths)
    dense = layout.dense()
    for mask, of in ((dense, layout), (np.tri(1200, dtype=bool), None)):
        for softcap, slopes in ((None, None), (5.0, np.linspace(0.5, 0.002, heads))):
            out, lse = attention_decode(q, cache, of, softcap=softcap, alibi=slopes, return_lse=True)
            options = {"softcap": softcap, "slopes": slopes}
            for b, n in enumerate(lengths):
                row = slice(b, b + 1)
                part = (mask[n - queries : n, :n], out[row], lse[row])
                check(q[row], k[row, :, :n], v[row, :, :n], *part, start=n - queries, **options)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("queries", [1, 6, 40])
def test_half_precision_is_exact_storage(isa, dtype, queries):
    # The same numbers held in float32 give the same bits: storage is all that differs.
    rng = np.random.default_rng(0)
    k, v = rng.normal(size=(2, 2, 2, 1100, 72)).astype(dtype)
    q = rng.normal(size=(2, 4, queries, 72)).astype(np.float32)
    half, wide = filled(k, v), filled(k.astype(np.float32), v.astype(np.float32))
    assert half.nbytes * 2 == wide.nbytes
    np.testing.assert_array_equal(attention_decode(q, half), attention_decode(q, wide))
    rounded = KVCache(2, 2, 72, dtype=dtype)
    rounded.append(*rng.normal(size=(2, 2, 2, 10, 72)).astype(np.float32))
    rounded.append(k.astype(np.float32), v.astype(np.float32))
    rounded.replace(0, k[:, :, :10], v[:, :, :10])
    np.testing.assert_array_equal(rounded.keys(1)[:, 10:], k[1])
    np.testing.assert_array_equal(rounded.values(0)[:, :10], v[0, :, :10])
    rounded.append(*np.full((2, 2, 2, 1, 72), 1e30, dtype=np.float32))
    assert np.isinf(rounded.keys(0)[:, -1].astype(np.float32)).all() == (dtype == np.float16)


def test_a_row_is_the_same_in_any_batch():
    rng = np.random.default_rng(3)
    k, v = rng.normal(size=(2, 3, 2, 1500, 32)).astype(np.float32)
    q = rng.normal(size=(3, 4, 5, 32)).astype(np.float32)
    lengths = [1500, 30, 800]
    together = attention_decode(q, filled(k, v, lengths))
    for b, n in enumerate(lengths):
        row = slice(b, b + 1)
        alone = attention_decode(q[row], filled(k[row, :, :n], v[row, :, :n]))
        np.testing.assert_array_equal(alone, together[row])


@pytest.mark.parametrize("queries", [1, 4, 20])
def test_the_number_of_threads_changes_no_bit_where_work_is_shared(queries):
    rng = np.random.default_rng(1)
    k, v = rng.normal(size=(2, 2, 3, 4000, 64)).astype(np.float32)
    q = rng.normal(size=(2, 6, queries, 64)).astype(np.float32)
    cache = filled(k, v, [4000, 2500])
    results = []
    for n in (1, 2, 5):
        with sensorium.num_threads(n):
            results.append(attention_decode(q, cache, return_lse=True))
    for out, lse in results[1:]:
        np.testing.assert_array_equal(out, results[0][0])
        np.testing.assert_array_equal(lse, results[0][1])


@pytest.mark.parametrize("queries", [3, 5, 30])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_nan_and_infinity_reach_the_rows_that_see_them(isa, queries, bad, which):
    rng = np.random.default_rng(0)
    n = 120
    kv = rng.normal(size=(2, 1, 1, n, 20)).astype(np.float32)
    kv[0] = np.abs(kv[0])
    q = np.abs(rng.normal(size=(1, 2, queries, 20)).astype(np.float32)) + 0.5
    clean = attention_decode(q, filled(*kv))
    for token in (n - 1, n - 2, n - queries):
        spoilt = kv.copy()
        spoilt[which, ..., token, 3] = bad
        out, lse = attention_decode(q, filled(*spoilt), return_lse=True)
        sees = np.arange(n - queries, n) >= token
        np.testing.assert_allclose(out[:, :, ~sees], clean[:, :, ~sees], rtol=0, atol=1e-6)
        assert np.isfinite(lse[:, :, ~sees]).all()
        if which == 0 and bad < 0:
            assert np.isfinite(out).all()  # a score of -inf: the key is as good as not seen
        else:
            assert not np.isfinite(out[:, :, sees, 3]).any()


def test_what_is_not_a_token_is_never_read(isa):
    # Beyond each row's length, where the last chunk ends, lies what was appended before and taken back.
    rng = np.random.default_rng(0)
    k, v = rng.normal(size=(2, 1, 2, 50, 24)).astype(np.float32)
    cache = filled(k, v)
    junk = np.full((1, 2, 30, 24), np.nan, dtype=np.float32)
    cache.append(junk, junk)
    cache.truncate(50)
    for queries in (1, 3, 12):
        q = rng.normal(size=(1, 4, queries, 24)).astype(np.float32)
        out = attention_decode(q, cache)
        np.testing.assert_array_equal(out, attention_decode(q, filled(k, v)))
        assert np.isfinite(out).all()


@pytest.mark.parametrize("size", [1e2, 1e4, 1e8, 1e15])
@pytest.mark.parametrize("queries", [1, 20])
def test_large_scores_do_not_overflow(isa, size, queries):
    n = 700
    k = np.full((1, 1, n, 1), -size, dtype=np.float32)
    k[:, :, [5, 660]] = size
    v = np.arange(n, dtype=np.float32).reshape(1, 1, n, 1)
    q = np.ones((1, 1, queries, 1), dtype=np.float32)
    layout = Layout([Segment("full", n)])
    out, lse = attention_decode(q, filled(k, v), layout, scale=1.0, return_lse=True)
    np.testing.assert_allclose(out, (5 + 660) / 2, rtol=1e-6)
    np.testing.assert_allclose(lse, size + np.log(2), rtol=1e-6)


def test_queries_that_see_nothing_and_no_queries():
    k = np.ones((2, 1, 4, 8))
    cache = filled(k, k, [4, 0])
    q = np.ones((2, 2, 3, 8))
    layout = Layout([Segment("none", 4)])
    out, lse = attention_decode(q, cache, layout, counts=[3, 0], return_lse=True)
    assert np.all(out == 0)
    assert np.all(lse == -np.inf)
    for shape in [(2, 2, 0, 8), (2, 0, 3, 8)]:
        assert attention_decode(np.ones(shape), cache, counts=[min(shape[2], 3), 0]).shape == shape
    empty = KVCache(0, 1, 8, dtype=np.float64)
    assert attention_decode(np.ones((0, 2, 3, 8)), empty).shape == (0, 2, 3, 8)
    narrow = KVCache(1, 1, 0, dtype=np.float64)
    narrow.append(np.ones((1, 1, 5, 0)), np.ones((1, 1, 5, 0)))
    _, lse = attention_decode(np.ones((1, 1, 2, 0)), narrow, return_lse=True)
    np.testing.assert_allclose(lse, np.log([[[4, 5]]]))


def test_an_image_that_is_denoised_is_replaced_and_the_rest_is_not_computed_again():
    rng = np.random.default_rng(0)
    layout = Layout([Segment("causal", 30), Segment("full", 64), Segment("causal", 30)])
    q, k, v = rng.normal(size=(3, 1, 4, 124, 16))
    cache = filled(k[:, :, :94], v[:, :, :94])
    for _ in range(3):
        q[:, :, 30:94], k[:, :, 30:94], v[:, :, 30:94] = rng.normal(size=(3, 1, 4, 64, 16))
        cache.replace(30, k[:, :, 30:94], v[:, :, 30:94])
        image = attention_decode(q[:, :, 30:94], cache, layout, start=30)
        whole, _ = attention(q, k, v, layout)
        np.testing.assert_allclose(image, whole[:, :, 30:94], rtol=0, atol=1e-13)
    cache.append(k[:, :, 94:], v[:, :, 94:])
    np.testing.assert_allclose(
        attention_decode(q[:, :, 94:], cache, layout), whole[:, :, 94:], rtol=0, atol=1e-13
    )
    # The replaced image once more, now with text behind it, which it does not see.
    again = attention_decode(q[:, :, 30:94], cache, layout, start=30)
    np.testing.assert_allclose(again, image, rtol=0, atol=1e-13)


class Language:
    """A language model of two layers with random weights: enough for tokens to depend on all before them."""

    def __init__(self, rng, words=40, layers=2, heads=4, kv_heads=2, width=16):
        size = heads * width
        self.heads, self.kv_heads, self.width = heads, kv_heads, width
        self.embedding = rng.normal(size=(words, size))
        self.head = rng.normal(size=(size, words))
        self.layers = [
            {
                "q": rng.normal(size=(size, size)) / size**0.5,
                "kv": rng.normal(size=(size, 2 * kv_heads * width)) / size**0.5,
                "out": rng.normal(size=(size, size)) / size**0.5,
                "up": rng.normal(size=(size, 2 * size)) / size**0.5,
                "down": rng.normal(size=(2 * size, size)) / size**0.5,
            }
            for _ in range(layers)
        ]

    def split(self, x, heads):
        return x.reshape(x.shape[0], x.shape[1], heads, self.width).transpose(0, 2, 1, 3)

    def run(self, tokens, attend):
        """Logits (B, N, words) of tokens (B, N); `attend(layer, q, k, v)` mixes them."""
        x = self.embedding[tokens]
        for i, layer in enumerate(self.layers):
            normed = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)
            k, v = np.split(normed @ layer["kv"], 2, axis=-1)
            out = attend(
                i,
                self.split(normed @ layer["q"], self.heads),
                self.split(k, self.kv_heads),
                self.split(v, self.kv_heads),
            )
            x = x + out.transpose(0, 2, 1, 3).reshape(x.shape) @ layer["out"]
            x = x + np.maximum(x @ layer["up"], 0) @ layer["down"]
        return x @ self.head

    def full(self, tokens):
        layout = Layout([Segment("causal", tokens.shape[1])])
        return self.run(tokens, lambda _, q, k, v: attention(q, k, v, layout, return_lse=False))

    def caches(self, batch):
        return [KVCache(batch, self.kv_heads, self.width, dtype=np.float64) for _ in self.layers]

    def cached(self, tokens, caches, counts=None):
        def attend(i, q, k, v):
            caches[i].append(k, v, counts=counts)
            return attention_decode(q, caches[i], counts=counts)

        return self.run(tokens, attend)


def test_greedy_tokens_by_the_cache_are_those_by_full_recomputation():
    rng = np.random.default_rng(7)
    model = Language(rng)
    prompt = rng.integers(0, 40, size=(2, 9))
    tokens = prompt
    for _ in range(30):
        tokens = np.concatenate([tokens, model.full(tokens)[:, -1].argmax(axis=-1)[:, None]], axis=1)
    assert len({tuple(row) for row in tokens}) == 2
    assert len(set(tokens[0, 9:])) > 3

    caches = model.caches(2)
    logits = model.cached(prompt, caches)
    made = [logits[:, -1].argmax(axis=-1)]
    while len(made) < 30:
        made.append(model.cached(made[-1][:, None], caches)[:, -1].argmax(axis=-1))
    np.testing.assert_array_equal(np.stack(made, axis=1), tokens[:, 9:])


def test_speculative_drafts_give_the_tokens_of_greedy_decoding():
    # A poor draft: the model's tokens, every third of them changed; what is rejected is taken back, row by row.
    rng = np.random.default_rng(8)
    model = Language(rng)
    prompt = rng.integers(0, 40, size=(3, 5))
    tokens = prompt
    for _ in range(24):
        tokens = np.concatenate([tokens, model.full(tokens)[:, -1].argmax(axis=-1)[:, None]], axis=1)
    caches = model.caches(3)
    model.cached(prompt[:, :-1], caches)
    done = [list(row) for row in prompt]
    rejected = 0
    while min(len(row) for row in done) < 29:
        # Each row's last token, whose keys are not cached yet, and a draft of up to three more.
        counts = [min(4, 29 - len(row) + 1) if len(row) < 29 else 0 for row in done]
        fed = np.zeros((3, max(counts)), dtype=int)
        for b, row in enumerate(done):
            draft = list(tokens[b, len(row) : len(row) + max(counts[b] - 1, 0)])
            draft = [t if (len(row) + i) % 3 else (t + 1) % 40 for i, t in enumerate(draft)]
            fed[b, : counts[b]] = ([row[-1], *draft])[: counts[b]]
        best = model.cached(fed, caches, counts).argmax(axis=-1)
        for b, row in enumerate(done):
            for i in range(counts[b]):
                row.append(int(best[b, i]))
                if i + 1 < counts[b] and fed[b, i + 1] != best[b, i]:
                    rejected += 1
                    break
            del row[29:]
        for cache in caches:
            cache.truncate([len(row) - 1 for row in done])
    assert rejected > 5
    np.testing.assert_array_equal(np.array(done), tokens)


def test_forks_of_a_prompt_do_not_touch_each_other():
    rng = np.random.default_rng(0)
    k, v = rng.normal(size=(2, 2, 1, 300, 8))
    cache = filled(k, v, [300, 200])
    forks = cache.select([1, 0, 0])
    assert forks.lengths.tolist() == [200, 300, 300]
    new = rng.normal(size=(3, 1, 1, 8))
    forks.append(new, new)
    np.testing.assert_array_equal(forks.keys(1)[:, :300], cache.keys(0))
    np.testing.assert_array_equal(forks.keys(2)[:, 300:], new[2])
    forks.reorder([2, 1, 0])
    np.testing.assert_array_equal(forks.keys(0)[:, 300:], new[2])
    np.testing.assert_array_equal(forks.values(2), np.concatenate([cache.values(1), new[0]], axis=1))
    assert cache.lengths.tolist() == [300, 200]


def test_room_doubles_and_fixed_room_does_not_move():
    k = np.ones((1, 1, 1, 4), dtype=np.float32)
    cache = KVCache(1, 1, 4)
    first = cache.capacity
    for _ in range(first + 1):
        cache.append(k, k)
    assert cache.capacity == 2 * first
    assert cache.nbytes == 2 * 2 * first * 4 * 4
    assert np.all(cache.keys(0) == 1)
    cache.reset()
    assert (cache.lengths.tolist(), cache.capacity) == ([0], 2 * first)
    fixed = KVCache(1, 1, 4, capacity=3)
    fixed.append(np.ones((1, 1, 3, 4), dtype=np.float32), np.ones((1, 1, 3, 4), dtype=np.float32))
    with pytest.raises(sensorium.ArgumentError, match=r"^k ends at token 4, but capacity is 3$"):
        fixed.append(k, k)
    assert fixed.lengths.tolist() == [3]


def test_views_follow_the_cache_and_cannot_be_written_to():
    k = np.ones((1, 1, 3, 4), dtype=np.float32)
    cache = filled(k, k)
    view = cache.keys(0)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 2
    cache.replace(1, 5 * k[:, :, :1], k[:, :, :1])
    assert view[0, :, 0].tolist() == [1, 5, 1]


@pytest.mark.parametrize("forms", ["strided", "out"])
def test_views_are_read_and_written_where_they_are(forms):
    rng = np.random.default_rng(0)
    packed = rng.normal(size=(2, 6, 3, 4, 8)).astype(np.float32)
    q, k, v = packed.transpose(2, 0, 3, 1, 4)
    cache = filled(k, v)
    want = attention_decode(np.ascontiguousarray(q), filled(np.ascontiguousarray(k), np.ascontiguousarray(v)))
    if forms == "strided":
        got = attention_decode(q, cache)
        assert got.transpose(0, 2, 1, 3).flags.c_contiguous
    else:
        got = np.empty((2, 6, 4, 8), dtype=np.float32).transpose(0, 2, 1, 3)
        assert attention_decode(q, cache, out=got) is got
    np.testing.assert_array_equal(got, want)


class TestErrors:
    k = np.zeros((2, 2, 5, 8), dtype=np.float32)

    def cache(self):
        return filled(self.k, self.k, [5, 3])

    def refuse(self, error, words, call):
        cache = self.cache()
        before = [(cache.keys(b).copy(), cache.values(b).copy()) for b in range(2)]
        with pytest.raises(error, match=f"^{re.escape(words)}$"):
            call(cache)
        assert cache.lengths.tolist() == [5, 3]
        for b, (keys, values) in enumerate(before):
            np.testing.assert_array_equal(cache.keys(b), keys)
            np.testing.assert_array_equal(cache.values(b), values)

    @pytest.mark.parametrize(
        ("call", "error", "words"),
        [
            (lambda c, k: c.append(k.astype(np.float64), k), sensorium.DTypeError, "k has dtype float64, but the cache has float32"),
            (lambda c, k: c.append(k, k.astype(int)), sensorium.DTypeError, "v has dtype int64, but the cache has float32"),
            (lambda c, k: c.append(k[0], k), sensorium.ShapeError, "k has shape (2, 5, 8), expected 4 dimensions (B, H_kv, n, D)"),
            (lambda c, k: c.append(k[:, :1], k), sensorium.ShapeError, "k has H_kv=1 but the cache has H_kv=2"),
            (lambda c, k: c.append(k, k[..., :7]), sensorium.ShapeError, "v has D=7 but the cache has D=8"),
            (lambda c, k: c.append(k, k[:, :, :4]), sensorium.ShapeError, "v has n=4 but k has n=5"),
            (lambda c, k: c.append(k, k, counts=[1, 6]), sensorium.ArgumentError, "counts is 6 for row 1, expected 0 to 5"),
            (lambda c, k: c.append(k, k, counts=[1]), sensorium.ShapeError, "counts has shape (1,), expected (2,): one for each row"),
            (lambda c, k: c.append(k, k, counts=[0.5, 1]), sensorium.DTypeError, "counts has dtype float64, expected integers"),
            (lambda c, k: c.truncate([5, 4]), sensorium.ArgumentError, "lengths is 4 for row 1, which has 3 tokens"),
            (lambda c, k: c.truncate(-1), sensorium.ArgumentError, "lengths is -1 for row 0, expected 0 to 2147483647"),
            (lambda c, k: c.replace(1, k[:, :, :3], k[:, :, :3]), sensorium.ArgumentError, "start is 1 for row 1: 3 tokens from there end beyond its 3"),
            (lambda c, k: c.reorder([0, 2]), sensorium.ArgumentError, "rows holds 2, expected indices from 0 to 1"),
            (lambda c, k: c.reorder([0]), sensorium.ShapeError, "rows has 1 rows, expected B=2"),
            (lambda c, k: c.keys(2), sensorium.ArgumentError, "row must be at most 1, not 2"),
            (lambda c, k: attention_decode(k[:1], c), sensorium.ShapeError, "q has B=1 but the cache has B=2"),
            (lambda c, k: attention_decode(k[..., :4], c), sensorium.ShapeError, "q has D=4 but the cache has D=8"),
            (lambda c, k: attention_decode(k[0], c), sensorium.ShapeError, "q has shape (2, 5, 8), expected 4 dimensions (B, H, n, D)"),
            (lambda c, k: attention_decode(k.astype(np.float64), c), sensorium.DTypeError, "q has dtype float64 but the cache has float32"),
            (lambda c, k: attention_decode(np.concatenate([k, k[:, :1]], 1), c), sensorium.ArgumentError, "cache has H_kv=2, which does not divide H=3 of q"),
            (lambda c, k: attention_decode(k, c), sensorium.ArgumentError, "q has 5 tokens for row 1 but the cache has 3: append their keys first"),
            (lambda c, k: attention_decode(k, c, start=[0, 1], counts=[5, 3]), sensorium.ArgumentError, "start is 1 for row 1: 3 queries from there end beyond its 3 tokens"),
            (lambda c, k: attention_decode(k[:, :, :3], c, Layout([Segment("causal", 4)])), sensorium.ShapeError, "layout has length 4, but row 0 has 5 tokens"),
            (lambda c, k: attention_decode(k[:, :, :3], c, [CAUSAL]), sensorium.ShapeError, "layout has 1 layouts, expected B=2: one for each row"),
            (lambda c, k: attention_decode(k[:, :, :3], c, [CAUSAL, Layout([])]), sensorium.ShapeError, "layout[1] has length 0, but row 1 has 3 tokens"),
            (lambda c, k: attention_decode(k[:, :, :3], c, [CAUSAL, 3]), sensorium.DTypeError, "layout[1] must be a Layout, not int"),
            (lambda c, k: attention_decode(k[:, :, :3], c, "causal"), sensorium.DTypeError, "layout must be a Layout, or one for each row, not str"),
            (lambda c, k: attention_decode(k[:, :, :3], c, scale=np.inf), sensorium.ArgumentError, "scale must be finite, not inf"),
            (lambda c, k: attention_decode(k[:, :, :3], c, out=k), sensorium.ShapeError, "out has shape (2, 2, 5, 8) and dtype float32, expected (2, 2, 3, 8) and float32"),
            (lambda c, k: attention_decode(k[:, :, :3], k), sensorium.DTypeError, "cache must be a KVCache, not ndarray"),
        ],
    )  # fmt: skip
    def test_words(self, call, error, words):
        self.refuse(error, words, lambda cache: call(cache, self.k))

    def test_of_a_new_cache(self):
        with pytest.raises(
            sensorium.DTypeError, match=r"^dtype is int64, expected float32, float64, float16 or bfloat16$"
        ):
            KVCache(1, 1, 1, dtype=np.int64)
        with pytest.raises(sensorium.ArgumentError, match=r"^width must be at least 0, not -1$"):
            KVCache(1, 1, -1)
        with pytest.raises(
            sensorium.ArgumentError, match=r"^batch=1, kv_heads=1099511627776, width=1048576 and"
        ):
            KVCache(1, 2**40, 2**20)

    def test_out_that_is_q(self):
        q = self.k[:, :, :3].copy()
        with pytest.raises(sensorium.ArgumentError, match="share memory with no other argument"):
            attention_decode(q, self.cache(), out=q)
