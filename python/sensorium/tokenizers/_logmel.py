"""Sounds as log-mel frames, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validate import as_floats
from ..errors import ArgumentError, ShapeError
from ._mel import griffin_lim, mel_bank, mel_to_linear, stft
from .codebook import _positive_int

__all__ = ["LogMel"]

_FLOOR = np.float32(np.log(1e-4))  # silence: 80 dB under a full-scale tone; at 60 dB an "f" was lost
_AUDIBLE = np.float32(1.0)  # a frame whose loudest band is less than this (9 dB) over the floor is silent
_CLIPS = 16  # sounds at a time: 2 MB of frames, which stay in the cache and in pages already mapped
_LONGEST = 60  # seconds; a hostile configuration must not ask for more memory than that


@dataclass(frozen=True)
class LogMel:
    """Log magnitudes of a sound in mel bands, over frames that are means of two short-time spectra.

    Sounds shorter than ``frames`` are filled with silence, longer ones are cut. The way back spreads the
    frames again, and finds phases by fast Griffin-Lim.

    Parameters
    ----------
    sample_rate : int
        In Hz.
    frames : int
        Frames of a sound.
    bands : int
        Mel bands.
    hop : int
        Samples from one spectrum to the next, even. The window has ``4 * hop`` samples, a frame ``2 * hop``.

    Examples
    --------
    >>> import numpy as np
    >>> tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(4000) / 8000)
    >>> mel = LogMel(8000, frames=32)
    >>> mel.encode([tone]).shape, len(mel.decode(mel.encode([tone]))[0])
    ((1, 32, 40), 4096)
    """

    sample_rate: int
    frames: int
    bands: int = 40
    hop: int = 64

    def __post_init__(self) -> None:
        for name in ("sample_rate", "frames", "bands", "hop"):
            object.__setattr__(self, name, _positive_int(name, getattr(self, name)))
        if self.hop % 2:
            raise ArgumentError(f"hop must be even, not {self.hop}")
        if self.samples > _LONGEST * self.sample_rate or self.hop > self.sample_rate:
            raise ArgumentError(f"frames={self.frames} make a sound of more than {_LONGEST} s")
        if self.bands > 2 * self.hop:
            raise ArgumentError(f"bands must be at most {2 * self.hop} for hop={self.hop}, not {self.bands}")

    @property
    def samples(self) -> int:
        """Samples of the longest sound."""
        return self.frames * 2 * self.hop

    @property
    def floor(self) -> float:
        """The log magnitude that stands for silence."""
        return float(_FLOOR)

    def encode(self, sounds: Sequence[ArrayLike]) -> NDArray[np.float32]:
        """Return the log magnitudes of each sound, ``float32 (n, frames, bands)``.

        Parameters
        ----------
        sounds : sequence of array_like
            One-dimensional, float, in [-1, 1], of any lengths. What is longer than ``samples`` is cut.

        Raises
        ------
        ShapeError, DTypeError, ArgumentError
            Where a sound has another form or is not finite; the message says which.
        """
        bank = mel_bank(self.bands, 4 * self.hop, self.sample_rate).T
        out = np.empty((len(sounds), self.frames, self.bands), dtype=np.float32)
        for start in range(0, len(sounds), _CLIPS):
            clips = np.zeros((min(_CLIPS, len(sounds) - start), self.samples), dtype=np.float32)
            for row in range(len(clips)):
                clip = _sound(start + row, sounds[start + row])[: self.samples]
                clips[row, : len(clip)] = clip
            # a tone of amplitude 1 has a peak of a quarter of the window
            magnitude = np.abs(stft(clips, 4 * self.hop, self.hop)[:, :-1]) @ bank / self.hop
            loudness = np.maximum(np.log(np.maximum(magnitude, 1e-12)), _FLOOR)
            out[start : start + len(clips)] = loudness.reshape(len(clips), self.frames, 2, self.bands).mean(
                axis=2
            )
        return out

    def decode(
        self, logmel: NDArray[np.float32], *, iterations: int = 32, trim: bool = True
    ) -> list[NDArray[np.float32]]:
        """Return the sound of each row of log magnitudes.

        Parameters
        ----------
        logmel : ndarray, (n, frames, bands), float32
            As :meth:`encode` gives them; what lies under the floor is silence.
        iterations : int
            Of Griffin-Lim.
        trim : bool
            Cut the silence after the sound.

        Returns
        -------
        list of ndarray
            ``n`` sounds, ``float32 (samples,)`` in [-1, 1]; silence alone is one frame long.
        """
        iterations = _positive_int("iterations", iterations)
        if logmel.ndim != 3 or logmel.shape[1:] != (self.frames, self.bands):
            raise ShapeError(f"logmel has shape {logmel.shape}, expected (n, {self.frames}, {self.bands})")
        window = 4 * self.hop
        bank = mel_bank(self.bands, window, self.sample_rate)
        out: list[NDArray[np.float32]] = []
        for start in range(0, len(logmel), _CLIPS):
            block = logmel[start : start + _CLIPS]
            mel = np.where(block < _FLOOR + 0.1, 0, np.exp(block)).astype(np.float32) * self.hop
            magnitude = mel_to_linear(_spread(mel), bank)
            sound = griffin_lim(magnitude, window, self.hop, iterations=iterations)
            for row, clip in zip(block, sound, strict=True):
                loudest = max(1.0, float(np.abs(clip).max()))
                frames = _audible(row) if trim else len(row)
                out.append(_faded(clip[: frames * 2 * self.hop] / loudest, self.hop))
        return out


def _sound(row: int, sound: ArrayLike) -> NDArray[np.float32]:
    (array,) = as_floats(**{f"sounds[{row}]": sound})
    if array.ndim != 1:
        raise ShapeError(f"sounds[{row}] has shape {array.shape}, expected 1 dimension (samples)")
    if not np.isfinite(array).all():
        raise ArgumentError(f"sounds[{row}] holds NaN or infinity")
    return array.astype(np.float32, copy=False)


def _spread(mel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Interpolate each frame to the two spectra it is the mean of, and one more for the end of the sound."""
    frames = mel.shape[1]
    at = np.clip((np.arange(2 * frames) + 0.5) / 2 - 0.5, 0, frames - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, frames - 1)
    share = (at - low)[:, None].astype(np.float32)
    spread = mel[:, low] * (1 - share) + mel[:, high] * share
    return np.concatenate([spread, np.zeros_like(spread[:, :1])], axis=1)


def _audible(logmel: NDArray[np.float32]) -> int:
    """Frames up to the last audible one, at least one."""
    audible = np.flatnonzero(logmel.max(axis=1) > _FLOOR + _AUDIBLE)
    return int(audible[-1]) + 1 if len(audible) else 1


def _faded(sound: NDArray[np.float32], samples: int) -> NDArray[np.float32]:
    """Fade both ends, so that a cut does not click."""
    samples = min(samples, len(sound) // 2)
    ramp = np.linspace(0, 1, samples, dtype=np.float32)
    out = sound.copy()
    out[:samples] *= ramp
    out[len(out) - samples :] *= ramp[::-1]
    return out
