"""Sound by log-mel frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validate import as_indices, check_positive
from ..errors import ArgumentError, ShapeError
from ._logmel import _LONGEST, LogMel
from .codebook import FSQ, KMeans, _positive_int, codebook_from_arrays

__all__ = ["AudioTokenizer"]


@dataclass(frozen=True, eq=False)
class AudioTokenizer:
    """A sound becomes log-mel frames; each few consecutive frames become one code.

    Frames are means of two short-time spectra. Sounds shorter than ``tokens`` tokens are filled with silence,
    longer ones are cut. The way back spreads the frames again, and finds phases by fast Griffin-Lim.

    Parameters
    ----------
    sample_rate : int
        In Hz.
    tokens : int
        Tokens of a sound.
    codebook : KMeans or FSQ
        Over vectors of ``stack * bands`` log magnitudes.
    bands : int
        Mel bands.
    stack : int
        Frames in one token.
    hop : int
        Samples from one spectrum to the next. The window has ``4 * hop`` samples, a frame ``2 * hop``, and a
        token lasts ``2 * hop * stack`` samples.

    References
    ----------
    Griffin and Lim 1984. Perraudin, Balazs and Sondergaard 2013.

    Examples
    --------
    >>> import numpy as np
    >>> time = np.arange(4000) / 8000
    >>> sounds = [0.5 * np.sin(2 * np.pi * pitch * time) for pitch in range(200, 1000, 20)]
    >>> tokenizer = AudioTokenizer.fit(
    ...     sounds, sample_rate=8000, seconds=0.512, codes=32, rng=np.random.default_rng(0)
    ... )
    >>> tokens = tokenizer.encode(sounds[:3])
    >>> tokens.shape
    (3, 8)
    >>> len(tokenizer.decode(tokens)), tokenizer.decode(tokens)[0].dtype
    (3, dtype('float32'))
    """

    sample_rate: int
    tokens: int
    codebook: KMeans | FSQ
    bands: int = 40
    stack: int = 4
    hop: int = 64

    def __post_init__(self) -> None:
        for name in ("sample_rate", "tokens", "bands", "stack", "hop"):
            object.__setattr__(self, name, _positive_int(name, getattr(self, name)))
        if self.hop % 2:
            raise ArgumentError(f"hop must be even, not {self.hop}")
        if self.samples > _LONGEST * self.sample_rate or self.hop > self.sample_rate:
            raise ArgumentError(f"tokens={self.tokens} make a sound of more than {_LONGEST} s")
        if self.bands > 2 * self.hop:
            raise ArgumentError(f"bands must be at most {2 * self.hop} for hop={self.hop}, not {self.bands}")
        if self.codebook.dim != self.stack * self.bands:
            want = self.stack * self.bands
            raise ShapeError(f"codebook has D={self.codebook.dim} but stack * bands is {want}")

    @classmethod
    def fit(
        cls,
        sounds: Sequence[ArrayLike],
        *,
        sample_rate: int,
        seconds: float,
        bands: int = 40,
        stack: int = 4,
        hop: int | None = None,
        codes: int = 256,
        levels: Sequence[int] | None = None,
        rng: np.random.Generator,
    ) -> AudioTokenizer:
        """Learn the codebook from sounds.

        Parameters
        ----------
        sounds : sequence of array_like
            One-dimensional, float, in [-1, 1], of any lengths.
        sample_rate : int
            In Hz.
        seconds : float
            Longest sound to hold; rounded up to whole tokens.
        bands, stack : int
            See the class.
        hop : int, optional
            Samples between spectra, by default 8 ms rounded to an even number.
        codes : int
            Number of codes of a ``KMeans`` codebook.
        levels : sequence of int, optional
            Where given, an ``FSQ`` codebook of these levels is used instead.
        rng : numpy.random.Generator
            For ``KMeans``.

        Returns
        -------
        AudioTokenizer
            The fitted tokeniser.
        """
        rate = _positive_int("sample_rate", sample_rate)
        step = 2 * max(1, round(0.004 * rate)) if hop is None else _positive_int("hop", hop)
        token = 2 * step * _positive_int("stack", stack)
        tokens = max(1, int(np.ceil(check_positive("seconds", seconds) * rate / token - 1e-6)))
        dim = stack * _positive_int("bands", bands)
        # an empty codebook of the right width, so that the constructor checks the numbers before any work
        blank = KMeans(np.zeros((1, dim), dtype=np.float32))
        draft = cls(rate, tokens, blank, bands, stack, step)
        if len(sounds) == 0:
            raise ArgumentError("sounds is empty")
        vectors = draft.stacked(draft.logmel(sounds))
        codebook = KMeans.fit(vectors, codes, rng=rng) if levels is None else FSQ.fit(vectors, levels)
        return cls(rate, tokens, codebook, bands, stack, step)

    @property
    def size(self) -> int:
        """Number of different tokens."""
        return self.codebook.size

    @property
    def samples(self) -> int:
        """Samples of the longest sound."""
        return self.tokens * self.stack * 2 * self.hop

    @property
    def _mel(self) -> LogMel:
        return LogMel(self.sample_rate, self.tokens * self.stack, self.bands, self.hop)

    @property
    def floor(self) -> float:
        """The log magnitude that stands for silence."""
        return self._mel.floor

    @property
    def config(self) -> dict[str, Any]:
        """What ``from_arrays`` needs besides the arrays, ready for JSON."""
        names = ("sample_rate", "tokens", "bands", "stack", "hop")
        return {name: getattr(self, name) for name in names} | {"codebook": self.codebook.config}

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays to save."""
        return self.codebook.to_arrays()

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], config: dict[str, Any]) -> AudioTokenizer:
        """Build the tokeniser that was saved.

        Raises
        ------
        ArgumentError
            Where something is missing, or the parts do not fit one another.
        """
        try:
            numbers = {name: config[name] for name in ("sample_rate", "tokens", "bands", "stack", "hop")}
            return cls(codebook=codebook_from_arrays(arrays, config["codebook"]), **numbers)
        except KeyError as error:
            raise ArgumentError(f"config lacks {error}") from error

    def logmel(self, sounds: Sequence[ArrayLike]) -> NDArray[np.float32]:
        """Return the log magnitudes of each sound, ``float32 (n, tokens * stack, bands)``.

        Parameters
        ----------
        sounds : sequence of array_like
            One-dimensional, float, in [-1, 1]. What is longer than ``samples`` is cut.
        """
        return self._mel.encode(sounds)

    def stacked(self, logmel: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the frames of each token in one vector, ``(n, tokens, stack * bands)``."""
        if logmel.ndim != 3 or logmel.shape[1:] != (self.tokens * self.stack, self.bands):
            want = f"(n, {self.tokens * self.stack}, {self.bands})"
            raise ShapeError(f"logmel has shape {logmel.shape}, expected {want}")
        return logmel.reshape(len(logmel), self.tokens, self.stack * self.bands)

    def encode(self, sounds: Sequence[ArrayLike]) -> NDArray[np.int32]:
        """Return the tokens of each sound.

        Parameters
        ----------
        sounds : sequence of array_like
            One-dimensional, float, in [-1, 1], of any lengths.

        Returns
        -------
        ndarray
            ``int32 (n, tokens)``.

        Raises
        ------
        ShapeError, DTypeError, ArgumentError
            Where a sound has another form or is not finite; the message says which.
        """
        return self.encode_logmel(self.logmel(sounds))

    def encode_logmel(self, logmel: NDArray[np.float32]) -> NDArray[np.int32]:
        """Return the tokens of log magnitudes as ``logmel`` gives them, ``int32 (n, tokens)``."""
        return self.codebook.encode(self.stacked(logmel))

    def decode_logmel(self, tokens: ArrayLike) -> NDArray[np.float32]:
        """Return the log magnitudes that each row of tokens stands for, ``(n, tokens * stack, bands)``."""
        codes = as_indices("tokens", tokens, self.size)
        if codes.ndim != 2 or codes.shape[1] != self.tokens:
            raise ShapeError(f"tokens has shape {codes.shape}, expected (n, {self.tokens})")
        return self.codebook.decode(codes).reshape(len(codes), self.tokens * self.stack, self.bands)

    def decode(
        self, tokens: ArrayLike, *, iterations: int = 32, trim: bool = True
    ) -> list[NDArray[np.float32]]:
        """Return the sound of each row of tokens.

        Parameters
        ----------
        tokens : array_like
            Integers ``(n, tokens)``.
        iterations : int
            Of Griffin-Lim.
        trim : bool
            Cut the silence after the sound.

        Returns
        -------
        list of ndarray
            ``n`` sounds, ``float32 (samples,)`` in [-1, 1]; silence alone is one frame long.
        """
        return self._mel.decode(self.decode_logmel(tokens), iterations=iterations, trim=trim)
