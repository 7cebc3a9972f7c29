"""What the tests of strategies share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path


def torn_traces(whole: Path, part: Path, cuts: Callable[[int], Iterable[int]]) -> Iterator[int]:
    """Write the first lines of a record and a piece of the next to ``part``, and yield how many calls have ended.

    ``cuts`` says of how many lines at a time, given how many there are.
    """
    lines = whole.read_bytes().splitlines(keepends=True)
    for cut in cuts(len(lines)):
        part.write_bytes(b"".join(lines[:cut]) + b"".join(lines[cut : cut + 1])[:9])
        yield sum(b'"type":"end"' in line for line in lines[:cut])
