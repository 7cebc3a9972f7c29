"""Real text that arrives with pip: the pages that ``help()`` shows, and handwriting as characters."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._validate import check_finite_number, check_integer
from ..errors import ArgumentError
from .digits import TEST_SHARE, stratified_split

__all__ = ["HeldOutText", "load_help_topics", "load_written_digits"]

Bytes = NDArray[np.uint8]

LARGEST = 0.05  # Share of the text that a held-out page may have.
INK = " .,:;-+*=oxXO0#%@"  # Characters of the 17 levels of grey, white first.


class HeldOutText(NamedTuple):
    """Text to learn from, and text to be measured on, as bytes."""

    train: Bytes
    test: Bytes


def load_help_topics(*, held_out: float = 0.1, seed: int = 0) -> HeldOutText:
    """Return the help topics of the running Python, whole pages held out.

    Pages repeat each other's paragraphs, so each paragraph is kept once, where it comes first. With Python
    3.11 that leaves some 380,000 bytes on 79 pages.

    Parameters
    ----------
    held_out : float
        Share of the text in held-out pages, at least; from 0 to 0.5.
    seed : int
        Which pages these are.

    Returns
    -------
    HeldOutText
        ``train`` and ``test``, ``uint8``.

    Raises
    ------
    ArgumentError
        Where ``held_out`` is out of range, or this Python came without its help topics.

    Examples
    --------
    >>> text = load_help_topics()
    >>> bool(0.05 < len(text.test) / len(text.train) < 0.3)
    True
    """
    held_out, seed = check_finite_number("held_out", held_out), check_integer("seed", seed)
    if not 0 <= held_out <= 0.5:
        raise ArgumentError(f"held_out must be from 0 to 0.5, not {held_out:g}")
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ArgumentError("this Python came without its help topics (pydoc_data)") from error
    seen: set[str] = set()
    pages: list[bytes] = []
    for name in sorted(topics):
        paragraphs = dict.fromkeys(p.strip("\n") for p in topics[name].split("\n\n") if p.strip())
        kept = [p for p in paragraphs if p not in seen]
        seen.update(kept)
        if kept:
            pages.append(("\n\n".join(kept) + "\n\n").encode())
    total = sum(map(len, pages))
    chosen: set[int] = set()
    size = 0
    for i in np.random.default_rng(seed).permutation(len(pages)).tolist():
        if size < held_out * total and len(pages[i]) <= LARGEST * total:
            chosen.add(i)
            size += len(pages[i])
    parts = [[page for i, page in enumerate(pages) if (i in chosen) is held] for held in (False, True)]
    return HeldOutText(*(np.frombuffer(b"".join(part), np.uint8) for part in parts))


def load_written_digits(*, seed: int = 0) -> HeldOutText:
    """Return scikit-learn's 1,797 handwritten digits, each as a line with its name and eight lines of ink.

    An empty line ends a digit: 75 bytes. A fifth of each digit is held out. What comes after a pixel depends
    on those above it, nine bytes back and more: farther than counted strings reach.

    Parameters
    ----------
    seed : int
        Which digits are held out, and the order.

    Returns
    -------
    HeldOutText
        ``train`` and ``test``, ``uint8``.

    Examples
    --------
    >>> text = load_written_digits()
    >>> len(text.train) // 75, len(text.test) // 75
    (1438, 359)
    >>> print(text.test[:74].tobytes().decode().replace(" ", "_"), end="")
    6
    __.0*___
    __*#,___
    __0-____
    __@:____
    _:@xOO:_
    _:@X-oO_
    _.0X;0X_
    __.O@X,_
    """
    from sklearn.datasets import load_digits

    seed = check_integer("seed", seed)
    pixels, labels = load_digits(return_X_y=True)
    ink = np.frombuffer(INK.encode(), np.uint8)
    pages = np.full((len(labels), 75), ord("\n"), np.uint8)
    pages[:, 0] = ord("0") + labels
    pages[:, 2:74].reshape(-1, 8, 9)[:, :, :8] = ink[pixels.astype(np.int64)].reshape(-1, 8, 8)
    split = stratified_split(labels, TEST_SHARE, seed=seed)
    order = np.random.default_rng(seed).permutation(len(labels))
    return HeldOutText(*(pages[order[split[order] == name]].ravel() for name in ("train", "test")))
