"""What training shows while it runs: a live display in a terminal, plain lines anywhere else.

Training calls it with a record, a plain dict, a few times a second. Nothing here starts a thread or touches
the training: a record that lacks something is shown without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

__all__ = ["Progress", "blocks"]

_EVERY = 5.0  # seconds of training between two plain lines
_WIDEST = 16  # columns that a picture may take; larger ones are averaged down


class Progress:
    """A display to pass as ``progress`` to training; use it as a context.

    Parameters
    ----------
    console : rich.console.Console, optional
        Where to write; standard error where not given, so that results on standard output stay clean.
    live : bool, optional
        Whether to redraw in place; where not given, whether the console is a terminal.

    Notes
    -----
    A record may have ``step``, ``seconds``, ``fraction`` (of training done), ``loss``, ``loss_text`` and so
    on, ``examples_per_second``; ``phase``, a few words on what is being done; and ``samples``, a sequence of
    pairs: a label, and a word or an image ``(H, W)`` in [0, 1].

    Examples
    --------
    >>> import sys
    >>> from rich.console import Console
    >>> with Progress(Console(file=sys.stdout, width=100), live=False) as progress:
    ...     progress({"step": 1, "seconds": 0.5, "fraction": 0.1, "loss": 2.5, "loss_text": 1.25})
    step 1  0.5 s  about 4 s left  loss 2.500 (text 1.250)
    """

    def __init__(self, console: Console | None = None, *, live: bool | None = None) -> None:
        self.console = Console(stderr=True) if console is None else console
        self._display: Live | None = None
        if live if live is not None else self.console.is_terminal and not self.console.is_dumb_terminal:
            self._display = Live(console=self.console, auto_refresh=False, transient=True)
        self._record: dict[str, Any] = {}
        self._shown = -math.inf
        self._pending = False

    def __enter__(self) -> Self:
        if self._display is not None:
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.stop()
        if self._pending:
            self._line()

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Show a record."""
        if "phase" in record and "step" not in record:
            self._phase(str(record["phase"]))
            return
        self._record = {**self._record, **record}
        self._pending = True
        if self._display is not None:
            self._display.update(self._panel(), refresh=True)
        elif _number(record.get("seconds"), 0.0) - self._shown >= _EVERY or record.get("fraction") == 1.0:
            self._line()

    update = __call__

    def _phase(self, words: str) -> None:
        if self._pending:
            self._line()
        self._record = {}
        if self._display is not None:
            self._display.update(Text(words, style="dim"), refresh=True)
        else:
            self.console.print(words, markup=False, highlight=False)

    def _line(self) -> None:
        self._pending = False
        self._shown = _number(self._record.get("seconds"), self._shown)
        self.console.print(_summary(self._record), markup=False, highlight=False, soft_wrap=True)

    def _panel(self) -> RenderableType:
        record = self._record
        rows: list[RenderableType] = []
        if "fraction" in record:
            done = min(max(_number(record["fraction"], 0.0), 0.0), 1.0)
            bar = Table.grid(padding=(0, 1))
            bar.add_row(ProgressBar(total=1.0, completed=done, width=40), _time_left(record))
            rows.append(bar)
        rows.append(Text(_summary({k: v for k, v in record.items() if k != "fraction"})))
        if record.get("samples"):
            rows.append(_samples(record["samples"]))
        rows.append(Text("Ctrl-C ends training here and keeps what was learnt", style="dim"))
        return Group(*rows)


def blocks(image: NDArray[np.floating]) -> Text:
    """Return a grey image ``(H, W)`` in [0, 1] as characters, two rows of pixels a line.

    Examples
    --------
    >>> import numpy as np
    >>> print(blocks(np.eye(4)).plain)
    ▀▀▀▀
    ▀▀▀▀
    """
    grey = np.clip(np.nan_to_num(np.asarray(image, np.float64)), 0, 1)
    if grey.ndim == 3:
        grey = grey.mean(axis=2)
    factor = -(-max(grey.shape) // _WIDEST)
    high, wide = (-(-size // factor) for size in grey.shape)
    padded = np.pad(grey, [(0, high * factor - grey.shape[0]), (0, wide * factor - grey.shape[1])])
    small = padded.reshape(high, factor, wide, factor).mean(axis=(1, 3))
    levels = np.rint(np.pad(small, [(0, high % 2), (0, 0)]) * 255).astype(int)
    text = Text()
    for y in range(0, len(levels), 2):
        for top, bottom in zip(levels[y].tolist(), levels[y + 1].tolist(), strict=True):
            text.append("▀", style=f"rgb({top},{top},{top}) on rgb({bottom},{bottom},{bottom})")
        if y + 2 < len(levels):
            text.append("\n")
    return text


def _samples(samples: Sequence[tuple[str, str | NDArray[np.floating]]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row(*[Text(label, style="dim") for label, _ in samples])
    table.add_row(*[Text(item) if isinstance(item, str) else blocks(item) for _, item in samples])
    return table


def _summary(record: Mapping[str, Any]) -> str:
    parts = []
    if "step" in record:
        parts.append(f"step {int(record['step']):,}")
    if "seconds" in record:
        parts.append(f"{_number(record['seconds'], 0.0):.1f} s")
    if "fraction" in record:
        parts.append(_time_left(record))
    if "loss" in record:
        losses = [(k.removeprefix("loss_"), v) for k, v in sorted(record.items()) if k.startswith("loss_")]
        named = ", ".join(f"{name} {_number(value, math.nan):.3f}" for name, value in losses)
        parts.append(f"loss {_number(record['loss'], math.nan):.3f}" + (f" ({named})" if named else ""))
    if "examples_per_second" in record:
        parts.append(f"{_number(record['examples_per_second'], 0.0):,.0f} examples/s")
    return "  ".join(part for part in parts if part)


def _time_left(record: Mapping[str, Any]) -> str:
    done, seconds = _number(record.get("fraction"), 0.0), _number(record.get("seconds"), 0.0)
    if not 0 < done < 1:
        return ""
    left = seconds * (1 - done) / done
    return f"about {left:.0f} s left" if left < 120 else f"about {left / 60:.0f} min left"


def _number(value: object, other: float) -> float:
    return float(value) if isinstance(value, int | float | np.number) else other
