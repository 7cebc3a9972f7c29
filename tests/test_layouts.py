"""Every named layout against masks written by hand, and against the paper's rule token by token; and every refusal.

Nothing here uses segments: a rule is a function of two positions and of what the tokens are.
"""

import numpy as np
import pytest
import sensorium
from hypothesis import given
from hypothesis import strategies as st
from sensorium.ops import Layout, Segment, attention
from strategies import layouts

few = st.integers(0, 7)
inners = st.sampled_from(["causal", "full", "diagonal", "none"])


def mask(*rows):
    return np.array([[c == "1" for c in row.replace(" ", "")] for row in rows], dtype=bool)


def by_rule(n, sees):
    """The mask of a rule ``sees(query, key)``."""
    return np.array([[bool(sees(i, j)) for j in range(n)] for i in range(n)], dtype=bool).reshape(n, n)


def inner_rule(inner, i, j):
    return {"causal": j <= i, "full": True, "diagonal": i == j, "none": False}[inner]


def check(layout, want):
    got = layout.dense()
    np.testing.assert_array_equal(got, want)
    assert layout.pairs == want.sum()
    assert len(layout) == len(want)


# Plain.


def test_causal():
    check(Layout.causal(4), mask("1000", "1100", "1110", "1111"))


def test_full():
    check(Layout.full(3), mask("111", "111", "111"))


def test_prefix_lm():
    # Raffel et al. 2019: full visibility over the prefix, causal after it.
    check(Layout.prefix_lm(2, 3), mask("11 000", "11 000", "11 100", "11 110", "11 111"))


@given(few, few)
def test_plain_by_rule(a, b):
    check(Layout.causal(a), by_rule(a, lambda i, j: j <= i))
    check(Layout.full(a), by_rule(a, lambda i, j: True))
    # Figure 4 of Raffel et al.: a token is seen where it is in the prefix or not later.
    check(Layout.prefix_lm(a, b), by_rule(a + b, lambda i, j: j < a or j <= i))


# Text and images.


def test_text_to_image():
    # Show-o, figure 5b: text causal; image tokens see all text before them and one another.
    want = mask("10 000", "11 000", "11 111", "11 111", "11 111")
    check(Layout.text_to_image(2, 3), want)


def test_image_to_text():
    # Show-o, figure 5a: image tokens see one another; text sees the image and the text before it.
    want = mask("111 00", "111 00", "111 00", "111 10", "111 11")
    check(Layout.image_to_text(3, 2), want)


def test_image_to_text_with_a_prompt():
    # The prompt does not see the image behind it, and the image sees the prompt.
    want = mask("10 00 0", "11 00 0", "11 11 0", "11 11 0", "11 11 1")
    check(Layout.image_to_text(2, 1, prompt=2), want)


def test_where_published_code_lets_the_prompt_see_the_image():
    want = mask("11 11 0", "11 11 0", "11 11 0", "11 11 0", "11 11 1")
    check(Layout.prefix_lm(2 + 2, 1), want)


@given(few, few, few)
def test_text_and_one_image_by_rule(text, image, prompt):
    def omni(is_image):
        # "Text via causal attention, image tokens via full attention": later keys only inside the one image.
        return lambda i, j: j <= i or (is_image[i] and is_image[j])

    row = [False] * text + [True] * image
    check(Layout.text_to_image(text, image), by_rule(len(row), omni(row)))
    row = [False] * prompt + [True] * image + [False] * text
    check(Layout.image_to_text(image, text, prompt=prompt), by_rule(len(row), omni(row)))


def test_transfusion():
    # Causal over every element, and both ways within each image. Later text and images see the image as it is.
    layout = Layout.interleaved([("text", 1), ("image", 2), ("text", 2), ("image", 2)])
    want = mask(
        "1 00 00 00", "1 11 00 00", "1 11 00 00", "1 11 10 00", "1 11 11 00", "1 11 11 11", "1 11 11 11"
    )
    check(layout, want)


def test_bagel():
    # Noised latents, clean latents and the other encoder's tokens of one image, between text. "Subsequent tokens
    # may attend to the clean VAE tokens and ViT tokens of preceding images, but not to their noised counterparts."
    layout = Layout.interleaved(
        [("text", 2), ("noised", 2), ("image", 2), ("image", 1), ("text", 1), ("noised", 2)]
    )
    want = mask(
        "10 00 00 0 0 00",
        "11 00 00 0 0 00",
        "11 11 00 0 0 00",
        "11 11 00 0 0 00",
        "11 00 11 0 0 00",
        "11 00 11 0 0 00",
        "11 00 11 1 0 00",
        "11 00 11 1 1 00",
        "11 00 11 1 1 11",
        "11 00 11 1 1 11",
    )
    check(layout, want)


def test_decoupled():
    layout = Layout.decoupled([("text", 1), ("image", 2), ("text", 2), ("noised", 1), ("image", 1)])
    want = mask(
        "1 00 00 0 0",
        "1 11 00 0 0",
        "1 11 00 0 0",
        "1 00 10 0 0",
        "1 00 11 0 0",
        "1 11 11 1 0",
        "1 11 11 0 1",
    )
    check(layout, want)


kinds = st.sampled_from(["text", "image", "noised"])
parts_of_rows = st.lists(st.tuples(kinds, st.integers(0, 4)), max_size=7)


def tokens(parts):
    return [(p, kind) for p, (kind, length) in enumerate(parts) for _ in range(length)]


@given(parts_of_rows)
def test_interleaved_by_rule(parts):
    row = tokens(parts)

    def sees(i, j):
        (part, kind), (other, other_kind) = row[i], row[j]
        if part == other:
            return j <= i if kind == "text" else True
        return j < i and other_kind != "noised"

    check(Layout.interleaved(parts), by_rule(len(row), sees))


@given(parts_of_rows)
def test_decoupled_by_rule(parts):
    row = tokens(parts)

    def sees(i, j):
        (part, kind), (other, other_kind) = row[i], row[j]
        if kind == "text":
            return other_kind == "text" and j <= i
        return part == other or (j < i and other_kind != "noised")

    check(Layout.decoupled(parts), by_rule(len(row), sees))


def test_text_of_decoupled_rows_does_not_depend_on_images():
    rng = np.random.default_rng(0)
    layout = Layout.decoupled([("text", 3), ("image", 4), ("text", 3)])
    q, k, v = rng.normal(size=(3, 1, 1, 10, 4))
    out, _ = attention(q, k, v, layout)
    k[:, :, 3:7], v[:, :, 3:7] = rng.normal(size=(2, 1, 1, 4, 4))
    again, _ = attention(q, k, v, layout)
    text = [0, 1, 2, 7, 8, 9]
    np.testing.assert_array_equal(out[:, :, text], again[:, :, text])
    assert not np.array_equal(out[:, :, 3:7], again[:, :, 3:7])


# Video.


def test_frames():
    # A window of one frame, frames 0 and 2 as keyframes, two tokens a frame after a prompt of one.
    want = mask(
        "1 00 00 00 00 00",
        "1 11 00 00 00 00",
        "1 11 00 00 00 00",
        "1 11 11 00 00 00",
        "1 11 11 00 00 00",
        "1 11 11 11 00 00",
        "1 11 11 11 00 00",
        "1 11 00 11 11 00",
        "1 11 00 11 11 00",
        "1 11 00 11 11 11",
        "1 11 00 11 11 11",
    )
    check(Layout.frames(5, 2, window=1, keyframes=[0, 2], prompt=1), want)


def test_frames_without_a_window_see_all_earlier_frames():
    check(Layout.frames(3, 1), mask("100", "110", "111"))
    check(Layout.frames(2, 2, inner="causal"), mask("1000", "1100", "1110", "1111"))
    check(Layout.frames(3, 1, window=0, inner="none"), mask("000", "000", "000"))


@given(
    st.integers(0, 6),
    st.integers(1, 3),
    st.none() | st.integers(0, 6),
    st.sets(st.integers(0, 5)),
    few,
    inners,
)
def test_frames_by_rule(frames, each, window, keyframes, prompt, inner):
    keyframes = {t for t in keyframes if t < frames}

    def sees(i, j):
        if i < prompt or j < prompt:
            return j <= i
        query, key = (i - prompt) // each, (j - prompt) // each
        if query == key:
            return inner_rule(inner, i, j)
        recent = window is None or query - key <= window
        return key < query and (recent or key in keyframes)

    layout = Layout.frames(frames, each, window=window, keyframes=keyframes, prompt=prompt, inner=inner)
    check(layout, by_rule(prompt + frames * each, sees))


def test_frames_cost_what_the_window_holds():
    # Work a frame does not grow with the history.
    long, longer = (Layout.frames(t, 16, window=4, keyframes=[0]) for t in (100, 200))
    assert longer.pairs - long.pairs == 100 * 16 * 16 * 6


# Windows and blocks of text.


def test_sliding_window():
    check(Layout.sliding_window(5, 2), mask("10000", "11000", "11100", "01110", "00111"))


def test_sliding_window_with_sinks():
    check(Layout.sliding_window(5, 1, sinks=2), mask("10000", "11000", "11100", "11110", "11011"))


@given(st.integers(0, 20), st.integers(0, 25), st.integers(0, 20))
def test_sliding_window_by_rule(length, window, sinks):
    sinks = min(sinks, length)
    want = by_rule(length, lambda i, j: j <= i and (i - j <= window or j < sinks))
    check(Layout.sliding_window(length, window, sinks=sinks), want)


def test_block_causal():
    check(Layout.block_causal(5, 2), mask("11000", "11000", "11110", "11110", "11111"))
    check(Layout.block_causal(5, 2, window=0), mask("11000", "11000", "00110", "00110", "00001"))


def test_block_diffusion():
    # Arriola et al. 2025, figure 3: block diagonal over noised blocks, offset block causal from noised to clean,
    # block causal over clean ones.
    want = mask(
        "11 0 00 0",
        "11 0 00 0",
        "00 1 11 0",
        "00 0 11 0",
        "00 0 11 0",
        "00 0 11 1",
    )
    check(Layout.block_diffusion(3, 2), want)


@given(st.integers(0, 12), st.integers(1, 5), st.none() | st.integers(0, 4))
def test_blocks_by_rule(length, block, window):
    def causal(i, j):
        distance = i // block - j // block
        return distance >= 0 and (window is None or distance <= window)

    check(Layout.block_causal(length, block, window=window), by_rule(length, causal))

    def diffusion(i, j):
        query_clean, key_clean = i >= length, j >= length
        query, key = i % length // block, j % length // block
        if query_clean == key_clean and query == key:
            return True
        return key_clean and key < query

    check(Layout.block_diffusion(length, block), by_rule(2 * length, diffusion))


# Packed rows, padding, rectangles.


def test_from_lengths():
    want = mask("1 00 00", "0 10 00", "0 11 00", "0 00 10", "0 00 11")
    check(Layout.from_lengths([1, 2, 0, 2]), want)
    check(Layout.from_cu_seqlens([0, 1, 3, 3, 5]), want)
    check(Layout.from_lengths([1, 2], inner="full"), mask("1 00", "0 11", "0 11"))


@given(st.lists(st.integers(0, 5), max_size=6), inners)
def test_packed_by_rule(lengths, inner):
    row = [sample for sample, length in enumerate(lengths) for _ in range(length)]
    want = by_rule(len(row), lambda i, j: row[i] == row[j] and inner_rule(inner, i, j))
    check(Layout.from_lengths(lengths, inner=inner), want)
    ends = np.cumsum([0, *lengths], dtype=np.int32)
    check(Layout.from_cu_seqlens(ends, inner=inner), want)
    assert Layout.from_cu_seqlens(ends, inner=inner) == Layout.from_lengths(
        np.array(lengths, dtype=int), inner=inner
    )


def test_padding_on_either_side():
    check(Layout.causal(2).padded(4), mask("1000", "1100", "0000", "0000"))
    check(Layout.causal(2).padded(4, side="left"), mask("0000", "0000", "0010", "0011"))
    layout = Layout.causal(3)
    assert layout.padded(3, side="left") is layout


@given(layouts(max_segments=4, max_length=5), st.integers(0, 6))
def test_padding_moves_the_mask_and_adds_no_pair(row, more):
    layout = row.layout
    n = len(layout)
    for side, at in (("left", more), ("right", 0)):
        want = np.zeros((n + more, n + more), dtype=bool)
        want[at : at + n, at : at + n] = layout.dense()
        check(layout.padded(n + more, side=side), want)


def test_cross():
    check(Layout.cross(2, 2), mask("0000", "0000", "1100", "1100"))
    check(Layout.cross(2, 2, inner="causal"), mask("0000", "0000", "1110", "1111"))


@given(few, few, inners)
def test_cross_by_rule(memory, queries, inner):
    def sees(i, j):
        return i >= memory and (j < memory or inner_rule(inner, i, j))

    check(Layout.cross(memory, queries, inner=inner), by_rule(memory + queries, sees))


# Masks.


@given(layouts(max_segments=5, max_length=8))
def test_from_dense_says_the_same_mask(row):
    layout = row.layout
    again = Layout.from_dense(layout.dense())
    check(again, layout.dense())
    assert len(again.segments) <= max(len(layout.segments), 1)
    # Samples are as many as can be: wherever one is cut, something sees across.
    for sample in again.samples:
        seen = sample.dense()
        for cut in range(1, len(sample)):
            inside = any(span.start < cut < span.stop for span in sample.spans)
            assert inside or seen[:cut, cut:].any() or seen[cut:, :cut].any()


@given(st.integers(0, 12), st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.3, 0.5, 0.9, 1.0]))
def test_from_dense_takes_any_mask(n, seed, density):
    want = np.random.default_rng(seed).random((n, n)) < density
    check(Layout.from_dense(want), want)


@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_from_dense_makes_the_fewest_segments(n, seed):
    # Against trying every way to cut a row: a run of tokens is a segment where all look alike from outside, and
    # see one another by one of the four rules.
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, n, size=2))
    group = np.searchsorted(cuts, np.arange(n), side="right")
    relation = rng.random((3, 3)) < 0.5
    want = relation[np.ix_(group, group)]
    rules = [
        np.tri(n, dtype=bool),
        np.ones((n, n), dtype=bool),
        np.eye(n, dtype=bool),
        np.zeros((n, n), dtype=bool),
    ]
    for g in range(3):
        at = np.flatnonzero(group == g)
        want[np.ix_(at, at)] = rules[rng.integers(4)][np.ix_(at, at)]

    def is_segment(a, b):
        out = np.r_[0:a, b:n]
        alike = (want[a:b][:, out] == want[a][out]).all() and (want[out][:, a:b] == want[out][:, [a]]).all()
        inside = want[a:b, a:b]
        return alike and any(np.array_equal(inside, rule[: b - a, : b - a]) for rule in rules)

    fewest = [0] + [n + 1] * n
    for b in range(1, n + 1):
        fewest[b] = min(fewest[a] + 1 for a in range(b) if is_segment(a, b))
    layout = Layout.from_dense(want)
    check(layout, want)
    assert len(layout.segments) == fewest[n]


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (Layout.causal(9), "Layout([causal 9])"),
        (Layout.full(9), "Layout([full 9])"),
        (Layout.text_to_image(4, 5), "Layout([causal 4, full 5])"),
        (Layout.image_to_text(5, 4, prompt=3), "Layout([causal 3, full 5, causal 4])"),
        (Layout.from_lengths([3, 4]), "Layout.packed([[causal 3], [causal 4]])"),
        (Layout.causal(4).padded(6, side="left"), "Layout.packed([[none 2], [causal 4]])"),
        (
            Layout.interleaved([("text", 2), ("noised", 3), ("image", 3), ("text", 2)]),
            "Layout([causal 2, full 3 hidden, full 3, causal 2])",
        ),
        (Layout.block_causal(6, 2), "Layout([full 2, full 2, full 2])"),
        (Layout.cross(3, 2), "Layout([none 3, none 2])"),
    ],
)
def test_from_dense_finds_the_layout(layout, words):
    assert repr(Layout.from_dense(layout.dense())) == words


def test_from_dense_of_many_tokens():
    # More rows than are compared at a time, and cuts at the edge between two turns.
    for text in (255, 256, 257, 300):
        layout = Layout.text_to_image(text, 600 - text)
        assert Layout.from_dense(layout.dense()) == layout
    layout = Layout.sliding_window(600, 37)
    assert len(Layout.from_dense(layout.dense()).segments) == 600


def test_named_layouts_are_plain_layouts():
    assert Layout.causal(3) == Layout([Segment("causal", 3)])
    assert Layout.interleaved([("text", 2), ("image", 3)]) == Layout.text_to_image(2, 3)
    assert Layout.interleaved([]) == Layout.causal(0) == Layout([])
    assert type(Layout.from_lengths([2])) is Layout

    class Named(Layout):
        pass

    assert type(Named.causal(2)) is type(Named.from_lengths([2])) is type(Named.from_dense([[True]])) is Named


def test_a_kind_may_come_from_json():
    assert Layout.interleaved([["text", 2], ["image", 1]]) == Layout.text_to_image(2, 1)


class TestErrors:
    @pytest.mark.parametrize(
        ("make", "error", "words"),
        [
            (lambda: Layout.causal(-1), sensorium.ArgumentError, "length must be at least 0, not -1"),
            (lambda: Layout.causal(2.0), sensorium.DTypeError, "length must be an integer, not float"),
            (lambda: Layout.full(2**31), sensorium.ArgumentError,
             "length must be at most 2147483647, not 2147483648"),
            (lambda: Layout.prefix_lm(2, -2), sensorium.ArgumentError, "suffix must be at least 0, not -2"),
            (lambda: Layout.prefix_lm("2", 2), sensorium.DTypeError, "prefix must be an integer, not str"),
            (lambda: Layout.prefix_lm(2**31 - 1, 1), sensorium.ArgumentError,
             "segments hold more than 2147483647 tokens"),
            (lambda: Layout.text_to_image(2, None), sensorium.DTypeError, "image must be an integer, not NoneType"),
            (lambda: Layout.image_to_text(2, 2, prompt=-1), sensorium.ArgumentError,
             "prompt must be at least 0, not -1"),
            (lambda: Layout.interleaved(3), sensorium.DTypeError,
             "parts must be a sequence of pairs (kind, length), not int"),
            (lambda: Layout.interleaved("text"), sensorium.DTypeError,
             "parts must be a sequence of pairs (kind, length), not str"),
            (lambda: Layout.interleaved([("text", 1), 4]), sensorium.DTypeError,
             "parts[1] must be a pair (kind, length), not 4"),
            (lambda: Layout.interleaved([("text", 1, 2)]), sensorium.DTypeError,
             "parts[0] must be a pair (kind, length), not ('text', 1, 2)"),
            (lambda: Layout.interleaved([("audio", 1)]), sensorium.ArgumentError,
             "the kind of parts[0] must be one of text, image, noised, not 'audio'"),
            (lambda: Layout.interleaved([(1, "text")]), sensorium.ArgumentError,
             "the kind of parts[0] must be one of text, image, noised, not 1"),
            (lambda: Layout.interleaved([("text", 1), ("image", -1)]), sensorium.ArgumentError,
             "the length of parts[1] must be at least 0, not -1"),
            (lambda: Layout.decoupled([("image", 1.5)]), sensorium.DTypeError,
             "the length of parts[0] must be an integer, not float"),
            (lambda: Layout.decoupled([("image", 1)] * 4097), sensorium.ArgumentError,
             "parts has 4097 parts, expected at most 4096"),
            (lambda: Layout.frames(-1, 4), sensorium.ArgumentError, "frames must be at least 0, not -1"),
            (lambda: Layout.frames(2**30, 4), sensorium.ArgumentError,
             "frames must be at most 1048576, not 1073741824"),
            (lambda: Layout.frames(2, 0), sensorium.ArgumentError, "tokens must be at least 1, not 0"),
            (lambda: Layout.frames(2, 4, window=-1), sensorium.ArgumentError, "window must be at least 0, not -1"),
            (lambda: Layout.frames(2, 4, window=0.5), sensorium.DTypeError, "window must be an integer, not float"),
            (lambda: Layout.frames(2, 4, keyframes=[0, 2]), sensorium.ArgumentError,
             "keyframes[1] must be at most 1, not 2"),
            (lambda: Layout.frames(2, 4, keyframes=[-1]), sensorium.ArgumentError,
             "keyframes[0] must be at least 0, not -1"),
            (lambda: Layout.frames(2, 4, keyframes=8), sensorium.DTypeError,
             "keyframes must be a sequence of int, not int"),
            (lambda: Layout.frames(0, 4, keyframes=[0]), sensorium.ArgumentError,
             "keyframes must be empty where there are no frames"),
            (lambda: Layout.frames(2, 4, inner="bidirectional"), sensorium.ArgumentError,
             "inner must be one of none, diagonal, causal, full, not 'bidirectional'"),
            (lambda: Layout.block_causal(4, 0), sensorium.ArgumentError, "block must be at least 1, not 0"),
            (lambda: Layout.block_causal(2**31 - 1, 1), sensorium.ArgumentError,
             "block is 1: 2147483647 tokens would make more than 1048576 blocks"),
            (lambda: Layout.block_diffusion(2**30, 1), sensorium.ArgumentError,
             "length must be at most 1073741823, not 1073741824"),
            (lambda: Layout.block_diffusion(4098, 2), sensorium.ArgumentError,
             "block is 2: 4098 tokens make 2049 blocks, expected at most 2048"),
            (lambda: Layout.sliding_window(2**21, 4), sensorium.ArgumentError,
             "length must be at most 1048576, not 2097152"),
            (lambda: Layout.sliding_window(4, -1), sensorium.ArgumentError, "window must be at least 0, not -1"),
            (lambda: Layout.sliding_window(4, None), sensorium.DTypeError, "window must be an integer, not NoneType"),
            (lambda: Layout.sliding_window(4, 1, sinks=5), sensorium.ArgumentError,
             "sinks must be at most 4, not 5"),
            (lambda: Layout.cross(2, -1), sensorium.ArgumentError, "queries must be at least 0, not -1"),
            (lambda: Layout.cross(2, 1, inner=None), sensorium.ArgumentError,
             "inner must be one of none, diagonal, causal, full, not None"),
            (lambda: Layout.from_lengths(4), sensorium.DTypeError, "lengths must be a sequence of int, not int"),
            (lambda: Layout.from_lengths([1, -1]), sensorium.ArgumentError, "lengths[1] must be at least 0, not -1"),
            (lambda: Layout.from_lengths([1.0]), sensorium.DTypeError, "lengths[0] must be an integer, not float"),
            (lambda: Layout.from_lengths(np.ones((2, 2), dtype=int)), sensorium.DTypeError,
             "lengths[0] must be an integer, not ndarray"),
            (lambda: Layout.from_lengths([2**31 - 1, 1]), sensorium.ArgumentError,
             "segments hold more than 2147483647 tokens"),
            (lambda: Layout.from_cu_seqlens([]), sensorium.ArgumentError, "cu_seqlens must start with 0: it is empty"),
            (lambda: Layout.from_cu_seqlens([1, 2]), sensorium.ArgumentError, "cu_seqlens must start with 0, not 1"),
            (lambda: Layout.from_cu_seqlens([0, 5, 3]), sensorium.ArgumentError,
             "cu_seqlens[2] is 3, less than cu_seqlens[1], 5"),
            (lambda: Layout.from_cu_seqlens([0, 5], inner="yes"), sensorium.ArgumentError,
             "inner must be one of none, diagonal, causal, full, not 'yes'"),
            (lambda: Layout.from_dense(np.zeros((2, 3), dtype=bool)), sensorium.ShapeError,
             "mask has shape (2, 3), expected (N, N)"),
            (lambda: Layout.from_dense(np.zeros((2, 2))), sensorium.DTypeError,
             "mask has dtype float64, expected bool: pass mask == 0 where it is added to scores"),
            (lambda: Layout.from_dense([[1]]), sensorium.DTypeError, "mask has dtype int64, expected bool"),
            (lambda: Layout.from_dense(np.broadcast_to(True, (20_000, 20_000))), sensorium.ArgumentError,
             "mask has N=20000: a dense mask is read up to 16384 tokens"),
            (lambda: Layout.causal(2).padded(4, side="both"), sensorium.ArgumentError,
             "side must be one of right, left, not 'both'"),
            (lambda: Layout.causal(2).padded(1, side="left"), sensorium.ArgumentError,
             "length must be at least 2, not 1"),
        ],
    )  # fmt: skip
    def test_words(self, make, error, words):
        with pytest.raises(error) as caught:
            make()
        assert str(caught.value) == words
