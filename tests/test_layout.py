"""Layouts: the mask they say, against masks written by hand from the papers' rules; and every refusal."""

import copy
import json
import pickle

import numpy as np
import pytest
import sensorium
from hypothesis import given
from reference.attention import dense_mask
from sensorium.ops import Layout, Segment
from strategies import layouts


def mask(*rows):
    return np.array([[c == "1" for c in row.replace(" ", "")] for row in rows])


def test_show_o():
    layout = Layout([Segment("causal", 3), Segment("full", 3)])
    want = mask("100 000", "110 000", "111 000", "111 111", "111 111", "111 111")
    np.testing.assert_array_equal(layout.dense(), want)


def test_interleaved_with_hidden_noised_copies():
    # BAGEL and Transfusion: text, the image as it is being denoised, the clean image, more text. Nothing later sees
    # the noised copy; the clean image is seen by what follows.
    layout = Layout(
        [Segment("causal", 2), Segment("full", 2, hidden=True), Segment("full", 2), Segment("causal", 2)]
    )
    want = mask(
        "10 00 00 00",
        "11 00 00 00",
        "11 11 00 00",
        "11 11 00 00",
        "11 00 11 00",
        "11 00 11 00",
        "11 00 11 10",
        "11 00 11 11",
    )
    np.testing.assert_array_equal(layout.dense(), want)


def test_packed_rows():
    layout = Layout.packed([[Segment("causal", 2)], [Segment("causal", 1), Segment("full", 2)]])
    want = mask("11000", "11000", "00100", "00111", "00111")
    want[0, 1] = False
    np.testing.assert_array_equal(layout.dense(), want)


def test_window_and_anchor():
    # A window of one frame, and the first frame as a keyframe.
    layout = Layout([Segment("full", 1, anchor=True)] + [Segment("full", 1)] * 4, window=1)
    np.testing.assert_array_equal(layout.dense(), mask("10000", "11000", "11100", "10110", "10011"))


def test_window_of_nothing_but_the_own_segment():
    layout = Layout([Segment("full", 1)] * 3, window=0)
    np.testing.assert_array_equal(layout.dense(), np.eye(3, dtype=bool))


@pytest.mark.parametrize("window", [None, 0, 1])
def test_hidden_wins_over_anchor(window):
    segments = [Segment("full", 1, hidden=True, anchor=True)] + [Segment("full", 1, hidden=True)] * 2
    np.testing.assert_array_equal(Layout(segments, window=window).dense(), np.eye(3, dtype=bool))


@pytest.mark.parametrize(
    ("inner", "want"),
    [("causal", mask("100", "110", "111")), ("full", mask("111", "111", "111")),
     ("diagonal", mask("100", "010", "001")), ("none", mask("000", "000", "000"))],
)  # fmt: skip
def test_one_segment(inner, want):
    np.testing.assert_array_equal(Layout([Segment(inner, 3)]).dense(), want)


def test_a_relation_replaces_the_rules():
    # Text sees text alone, and an image may see a later segment: anything at all.
    segments = [Segment("causal", 2), Segment("full", 1, hidden=True), Segment("causal", 1)]
    visible = np.array([[0, 0, 0], [1, 0, 1], [1, 0, 0]], dtype=bool)
    layout = Layout(segments, visible=visible)
    np.testing.assert_array_equal(layout.dense(), mask("1000", "1100", "1111", "1101"))


def test_padding_sees_nothing_and_is_not_seen():
    layout = Layout([Segment("causal", 2)]).padded(4)
    np.testing.assert_array_equal(layout.dense(), mask("1000", "1100", "0000", "0000"))
    assert layout.padded(4) is layout


@given(layouts(max_length=12))
def test_dense_is_the_rules_token_by_token(row):
    want = dense_mask(row.samples)
    got = row.layout.dense()
    np.testing.assert_array_equal(got, want.reshape(got.shape))
    assert row.layout.pairs == want.sum()
    assert row.layout.length == len(row.layout) == len(want)


@given(layouts(max_length=12))
def test_visible_gives_the_same_layout(row):
    for layout in row.layout.samples:
        again = Layout(layout.segments, visible=layout.visible)
        np.testing.assert_array_equal(again.dense(), layout.dense())


@given(layouts(max_length=12))
def test_copies_are_equal(row):
    layout = row.layout
    for other in (
        Layout.from_dict(json.loads(json.dumps(layout.to_dict()))),
        pickle.loads(pickle.dumps(layout)),
        copy.deepcopy(layout),
        Layout.packed(layout.samples),
    ):
        assert other == layout
        assert hash(other) == hash(layout)
        np.testing.assert_array_equal(other.dense(), layout.dense())


def test_layouts_differ_by_what_they_were_made_of():
    one = Layout([Segment("causal", 2), Segment("full", 1)])
    others = [
        Layout([Segment("causal", 2), Segment("full", 2)]),
        Layout([Segment("causal", 2), Segment("full", 1)], window=1),
        Layout([Segment("causal", 2, hidden=True), Segment("full", 1)]),
        Layout([Segment("causal", 2), Segment("full", 1)], visible=one.visible),
        Layout.packed([[Segment("causal", 2)], [Segment("full", 1)]]),
    ]
    assert len({one, *others}) == 6
    assert one != "layout"


def test_repr():
    assert repr(Layout([Segment("causal", 16, hidden=True), Segment("full", 64)], window=2)) == (
        "Layout([causal 16 hidden, full 64], window=2)"
    )
    assert (
        repr(Layout.packed([[Segment("full", 1)], [Segment("none", 2)]]))
        == "Layout.packed([[full 1], [none 2]])"
    )
    assert repr(Layout([], visible=np.zeros((0, 0), dtype=bool))) == "Layout([], visible=given)"


def test_spans_and_window():
    layout = Layout.packed([[Segment("full", 2), Segment("none", 1)], [Segment("causal", 3)]], window=4)
    assert layout.spans == (slice(0, 2), slice(2, 3), slice(3, 6))
    assert layout.window == 4
    assert layout.segments[2] == Segment("causal", 3)
    assert Layout.packed([Layout([], window=1), Layout([])]).window is None


def test_a_million_tokens_are_quick_and_have_no_dense_mask():
    layout = Layout([Segment("causal", 10), Segment("full", 10, hidden=True)] * 50_000, window=8)
    # The hidden half is seen by nobody; of 8 segments before one, 4 are text.
    assert layout.length == 1_000_000
    own = 50_000 * (55 + 100)
    text = 10 * 10 * sum(min(s // 2, 4) for s in range(0, 100_000, 2))
    image = 10 * 10 * sum(min((s + 1) // 2, 4) for s in range(1, 100_000, 2))
    assert layout.pairs == own + text + image
    with pytest.raises(
        sensorium.ArgumentError, match="length is 1000000: a dense mask is made up to 16384 tokens"
    ):
        layout.dense()


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_draw(tmp_path, suffix):
    layout = Layout.packed(
        [
            [Segment("causal", 5), Segment("full", 6, hidden=True), Segment("diagonal", 4)],
            [Segment("causal", 300)],
        ]
    ).padded(330)
    path = layout.draw(tmp_path / f"mask.{suffix}", labels=["a", "b", "c", "d", "pad"])
    first = path.read_bytes()
    assert first.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    layout.draw(path, labels=["a", "b", "c", "d", "pad"])
    assert path.read_bytes() == first
    Layout([]).draw(tmp_path / f"empty.{suffix}")


def test_the_picture_shows_the_mask(tmp_path):
    # Pixels in the middle of each cell: white where not seen, and one colour for each way of seeing.
    from matplotlib.image import imread

    layout = Layout([Segment("causal", 4), Segment("full", 3), Segment("diagonal", 3)])
    image = imread(layout.draw(tmp_path / "mask.png"))[..., :3]
    dark = np.argwhere((image < 0.99).any(axis=-1))
    # The frame of the axes: the first and last long dark row and column.
    rows = np.flatnonzero((image < 0.2).all(axis=-1).mean(axis=1) > 0.5)
    columns = np.flatnonzero((image < 0.2).all(axis=-1).mean(axis=0) > 0.5)
    assert len(dark)
    top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
    n = layout.length
    at = (np.arange(n) + 0.5) / n
    cells = image[np.ix_((top + at * (bottom - top)).astype(int), (left + at * (right - left)).astype(int))]
    np.testing.assert_array_equal((cells < 0.99).any(axis=-1), layout.dense())


class TestErrors:
    @pytest.mark.parametrize(
        ("make", "error", "words"),
        [
            (lambda: Segment("sparse", 1), sensorium.ArgumentError,
             "inner must be one of causal, full, diagonal, none, not 'sparse'"),
            (lambda: Segment("full", 0), sensorium.ArgumentError, "length must be at least 1, not 0"),
            (lambda: Segment("full", -3), sensorium.ArgumentError, "length must be at least 1, not -3"),
            (lambda: Segment("full", 2.0), sensorium.DTypeError, "length must be an integer, not float"),
            (lambda: Segment("full", 2**31), sensorium.ArgumentError,
             "length must be at most 2147483647, not 2147483648"),
            (lambda: Segment("full", 1, hidden=1), sensorium.DTypeError, "hidden must be True or False, not int"),
            (lambda: Segment("full", 1, anchor="no"), sensorium.DTypeError, "anchor must be True or False, not str"),
            (lambda: Layout(3), sensorium.DTypeError, "segments must be a sequence of Segment, not int"),
            (lambda: Layout([("full", 1)]), sensorium.DTypeError, "segments[0] must be a Segment, not tuple"),
            (lambda: Layout([Segment("full", 2**31 - 1)] * 2), sensorium.ArgumentError,
             "segments hold more than 2147483647 tokens"),
            (lambda: Layout([], window=-1), sensorium.ArgumentError, "window must be at least 0, not -1"),
            (lambda: Layout([], window=1.5), sensorium.DTypeError, "window must be an integer, not float"),
            (lambda: Layout([Segment("full", 1)], visible=np.zeros((1, 2), dtype=bool)), sensorium.ShapeError,
             "visible has shape (1, 2), expected (1, 1): one row a segment"),
            (lambda: Layout([Segment("full", 1)], visible=[[1.0]]), sensorium.DTypeError,
             "visible has dtype float64, expected bool"),
            (lambda: Layout([], window=1, visible=[]), sensorium.ArgumentError,
             "window and visible exclude each other: visible replaces the rules"),
            (lambda: Layout.packed(4), sensorium.DTypeError, "samples must be a sequence, not int"),
            (lambda: Layout.packed([[1]]), sensorium.DTypeError, "samples[0][0] must be a Segment, not int"),
            (lambda: Layout([Segment("full", 3)]).padded(2), sensorium.ArgumentError,
             "length must be at least 3, not 2"),
            (lambda: Layout([]).draw("mask.gif"), sensorium.ArgumentError,
             "path must end in .png or .svg, not 'mask.gif'"),
            (lambda: Layout([]).draw("mask.png", labels=["a"]), sensorium.ShapeError,
             "labels has 1 names, expected 0: one a segment"),
            (lambda: Layout.from_dict({"samples": [{}]}), sensorium.ArgumentError,
             "data does not describe a layout: 'segments'"),
            (lambda: Layout.from_dict({"samples": [{"segments": [{"inner": "full", "length": -1}]}]}),
             sensorium.ArgumentError, "length must be at least 1, not -1"),
        ],
    )  # fmt: skip
    def test_words(self, make, error, words):
        with pytest.raises(error) as caught:
            make()
        assert str(caught.value) == words


@given(layouts(), layouts())
def test_the_text_of_a_layout_is_that_of_its_equals_and_of_no_others(row, other):
    text = row.layout._text
    assert Layout._from_text(text) == row.layout
    assert Layout._from_text(text)._text == text
    assert (other.layout._text == text) == (other.layout == row.layout)


@pytest.mark.parametrize(
    "text",
    [
        "causal3",
        "(causal3",
        "(causal3) ",
        "(sideways3)",
        "(causal0)",
        "(causal3 causal03)",
        "(v0:full1)",
        "(full1ah)",
    ],
)
def test_a_text_of_no_layout_is_refused(text):
    with pytest.raises(sensorium.ArgumentError, match=r"does not describe a layout"):
        Layout._from_text(text)
