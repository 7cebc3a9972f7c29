"""The display of training: lines where there is no terminal, and never in the way."""

import io
import math

import numpy as np
import pytest
from rich.console import Console
from sensorium.progress import Progress, blocks


def shown(records, *, live=False, width=120):
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=live, color_system="truecolor" if live else None)
    with Progress(console, live=live) as progress:
        for record in records:
            progress(record)
    return file.getvalue()


def record(seconds, **more):
    return {
        "step": int(seconds * 100),
        "seconds": seconds,
        "fraction": seconds / 30,
        "loss": 3 - seconds / 15,
    } | more


def test_lines_come_every_few_seconds_and_the_last_one_always():
    lines = shown([record(i / 4) for i in range(1, 121)]).splitlines()
    assert [line.split("  ")[1] for line in lines] == [
        "0.2 s", "5.2 s", "10.2 s", "15.2 s", "20.2 s", "25.2 s", "30.0 s",
    ]  # fmt: skip
    assert shown([record(0.25), record(0.5)]).splitlines()[-1].startswith("step 50  0.5 s")


def test_a_line_has_no_codes_and_does_not_wrap():
    line = shown([record(1.0, loss_text=1, loss_image=2.0, examples_per_second=1234.5)], width=20)
    assert (
        line == "step 100  1.0 s  about 29 s left  loss 2.933 (image 2.000, text 1.000)  1,234 examples/s\n"
    )


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"loss": math.nan},
        {"step": 1},
        {"seconds": None},
        {"fraction": 0.0},
        {"fraction": 2.0, "seconds": 1.0},
        {"loss": "?"},
    ],
)
@pytest.mark.parametrize("live", [False, True])
def test_a_record_may_lack_anything(odd, live):
    shown([odd], live=live)


def test_phases_are_told():
    text = shown([record(1.0), {"phase": "judging [six] directions"}])
    assert text.splitlines()[1] == "judging [six] directions"


def test_the_live_display_cleans_up_and_leaves_the_last_line():
    text = shown(
        [record(1.0), record(2.0, samples=[("text → image", np.eye(8)), ("image → text", "[b]seven")])],
        live=True,
    )
    assert "▀" in text
    assert "[b]seven" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor comes back
    assert text.splitlines()[-1].endswith("step 200  2.0 s  about 28 s left  loss 2.867")


def test_the_cursor_comes_back_after_an_error():
    file = io.StringIO()

    def interrupted():
        with Progress(Console(file=file, force_terminal=True), live=True) as progress:
            progress(record(1.0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "\x1b[?25h" in file.getvalue()


@pytest.mark.parametrize(
    ("shape", "lines", "columns"),
    [((8, 8), 4, 8), ((28, 28), 7, 14), ((5, 3), 3, 3), ((100, 10), 8, 2), ((1, 1), 1, 1), ((6, 6, 3), 3, 6)],
)
def test_blocks(shape, lines, columns):
    drawn = blocks(np.ones(shape)).plain.split("\n")
    assert len(drawn) == lines
    assert {len(line) for line in drawn} == {columns}


def test_blocks_are_as_bright_as_the_picture():
    image = np.array([[1.0, 0.0], [np.nan, 0.5]])
    styles = [str(span.style) for span in blocks(image).spans]
    assert styles == ["rgb(255,255,255) on rgb(0,0,0)", "rgb(0,0,0) on rgb(128,128,128)"]
