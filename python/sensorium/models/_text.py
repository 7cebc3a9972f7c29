"""Text as the tokens of a language model: bytes, or what a folder's ``tokenizer.json`` says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import CheckpointError, MissingExtraError

__all__ = ["ByteTokenizer", "TextStream", "Tokenizer", "load_tokenizer"]

_BROKEN = "�"  # What decoding writes for bytes that are not, or not yet, a character.
_LONGEST = 16  # Tokens after which text that does not become whole is given out as it is.


class Tokenizer(Protocol):
    """What turns text into tokens and back."""

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""


class ByteTokenizer:
    """One token a byte of UTF-8.

    Examples
    --------
    >>> ByteTokenizer().encode("é")
    [195, 169]
    >>> ByteTokenizer().decode([195, 169])
    'é'
    """

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text."""
        return list(text.encode("utf-8", "surrogateescape"))

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of bytes; those that are no UTF-8, and tokens that are no byte, become ``�``."""
        return b"".join(bytes([t]) if 0 <= t < 256 else _BROKEN.encode() for t in map(int, tokens)).decode(
            "utf-8", "replace"
        )


class _FileTokenizer:
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.inner.encode(text).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self.inner.decode([int(t) for t in tokens], skip_special_tokens=True)
        return text


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer | None:
    """Return the tokeniser of a folder's ``tokenizer.json``, or None where there is no such file.

    Raises
    ------
    CheckpointError
        Where the file cannot be used.
    MissingExtraError
        Where the package ``tokenizers`` is not installed.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        from tokenizers import Tokenizer as Reader
    except ImportError as error:
        raise MissingExtraError(
            f"{path} needs tokenizers: pip install 'sensorium[tokenizers]'; without it, give tokens"
        ) from error
    try:
        return _FileTokenizer(Reader.from_file(os.fspath(path)))
    except Exception as error:  # the package raises nothing more precise
        raise CheckpointError(f"{path} cannot be used: {error}") from error


class TextStream:
    """Text that grows token by token: each piece once, and no half characters.

    Parameters
    ----------
    tokenizer : Tokenizer
        Of the tokens.

    Examples
    --------
    >>> stream = TextStream(ByteTokenizer())
    >>> [stream.push(token) for token in "aé".encode()], stream.flush()
    (['a', '', 'é'], '')
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._kept: list[
            int
        ] = []  # Tokens of which some are given out already, for what comes before a word.
        self._given = 0  # How many of them.

    def push(self, token: int) -> str:
        """Return the text that has become whole with one more token."""
        self._kept.append(token)
        before = self._tokenizer.decode(self._kept[: self._given])
        text = self._tokenizer.decode(self._kept)
        waiting = len(self._kept) - self._given
        if text.endswith(_BROKEN) and waiting < _LONGEST:
            return ""
        self._kept = self._kept[self._given :]
        self._given = len(self._kept)
        return text[len(before) :]

    def flush(self) -> str:
        """Return what is left."""
        before = self._tokenizer.decode(self._kept[: self._given])
        text = self._tokenizer.decode(self._kept)
        self._kept, self._given = [], 0
        return text[len(before) :]
