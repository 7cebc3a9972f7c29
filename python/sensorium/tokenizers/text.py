"""Text by characters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validate import as_indices
from ..errors import ArgumentError, DTypeError, ShapeError

__all__ = ["TextTokenizer"]


@dataclass(frozen=True)
class TextTokenizer:
    """One token a character, between a begin and an end token, padded to one length.

    Parameters
    ----------
    characters : str
        The characters that can be written, each once. Character ``i`` is token ``i + 3``.
    length : int
        Longest text, in characters.

    Notes
    -----
    An encoded text is ``begin, characters, end, pad, pad, ...``, ``length + 2`` tokens in all. An
    autoregressive model reads ``row[:-1]`` and predicts ``row[1:]``, padding left out of the loss.

    Examples
    --------
    >>> words = TextTokenizer.from_corpus(["one", "two"])
    >>> words.encode(["two"])
    array([[1, 6, 7, 5, 2]], dtype=int32)
    >>> words.decode([[1, 6, 7, 5, 2]])
    ['two']
    """

    characters: str
    length: int

    pad = 0
    begin = 1
    end = 2
    _special = 3

    def __post_init__(self) -> None:
        if not isinstance(self.characters, str):
            raise DTypeError(f"characters must be a string, not {type(self.characters).__name__}")
        if len(set(self.characters)) != len(self.characters):
            raise ArgumentError("characters holds a character twice")
        if isinstance(self.length, bool) or not isinstance(self.length, int):
            raise DTypeError(f"length must be an integer, not {type(self.length).__name__}")
        if self.length < 1:
            raise ArgumentError(f"length must be at least 1, not {self.length}")

    @classmethod
    def from_corpus(cls, texts: Iterable[str], *, length: int | None = None) -> TextTokenizer:
        """Take the characters, and the length unless it is given, from ``texts``.

        Raises
        ------
        ArgumentError
            Where there is no character in ``texts``.
        """
        texts = list(texts)
        characters = "".join(sorted(set("".join(texts))))
        if not characters:
            raise ArgumentError("texts holds no character")
        return cls(characters, max(map(len, texts)) if length is None else length)

    @property
    def size(self) -> int:
        """Number of different tokens: the characters, and pad, begin and end."""
        return len(self.characters) + self._special

    @property
    def tokens(self) -> int:
        """Tokens of an encoded text, ``length + 2``."""
        return self.length + 2

    @property
    def config(self) -> dict[str, Any]:
        """What ``from_arrays`` needs, ready for JSON."""
        return {"characters": self.characters, "length": self.length}

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays to save: none."""
        return {}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], config: dict[str, Any]) -> TextTokenizer:
        """Build the tokeniser that ``config`` describes.

        Raises
        ------
        ArgumentError
            Where ``config`` lacks an entry or has one that cannot be used.
        """
        try:
            return cls(config["characters"], config["length"])
        except KeyError as error:
            raise ArgumentError(f"config lacks {error}") from error

    def encode(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """Return the tokens of each text.

        Parameters
        ----------
        texts : sequence of str
            ``n`` texts of at most ``length`` characters each.

        Returns
        -------
        ndarray
            ``int32 (n, length + 2)``: begin, characters, end, padding.

        Raises
        ------
        ArgumentError
            Where a text is too long, or holds a character that the tokeniser does not know.
        """
        if isinstance(texts, str):
            raise DTypeError("texts must be a sequence of strings, not one string")
        index = {character: i + self._special for i, character in enumerate(self.characters)}
        out = np.full((len(texts), self.tokens), self.pad, dtype=np.int32)
        for row, text in enumerate(texts):
            if len(text) > self.length:
                raise ArgumentError(f"texts[{row}] has {len(text)} characters, at most {self.length} fit")
            unknown = [character for character in text if character not in index]
            if unknown:
                known = "".join(self.characters)
                raise ArgumentError(f"texts[{row}] holds {unknown[0]!r}, which is not one of {known!r}")
            out[row, : len(text) + 2] = [self.begin, *(index[character] for character in text), self.end]
        return out

    def decode(self, tokens: ArrayLike) -> list[str]:
        """Return the text of each row, up to its first end token.

        Parameters
        ----------
        tokens : array_like
            Integers ``(n, any)``; begin and padding are passed over.

        Returns
        -------
        list of str
            ``n`` texts.
        """
        rows = as_indices("tokens", tokens, self.size)
        if rows.ndim != 2:
            raise ShapeError(f"tokens has shape {rows.shape}, expected 2 dimensions (n, length)")
        texts = []
        for row in rows.tolist():
            if self.end in row:
                row = row[: row.index(self.end)]
            texts.append("".join(self.characters[i - self._special] for i in row if i >= self._special))
        return texts
