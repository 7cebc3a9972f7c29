"""Short-time Fourier transforms, the mel scale, and the way back from mel magnitudes to sound.

Griffin and Lim 1984; its fast form with momentum by Perraudin, Balazs and Sondergaard 2013.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.fft
from numpy.typing import NDArray

__all__ = ["griffin_lim", "istft", "mel_bank", "mel_to_linear", "stft"]

_LOWEST = 60.0  # Hz, below the lowest voice
_MULTIPLICATIVE_STEPS = 10  # of the non-negative inversion; more do not change the sound


def hann(size: int) -> NDArray[np.float32]:
    """Return a periodic Hann window."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


def mel_bank(bands: int, window: int, sample_rate: int) -> NDArray[np.float32]:
    """Return triangles ``(bands, window // 2 + 1)``, equally spaced in mel, each with a sum of 1."""

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    edges = 700 * (10 ** (np.linspace(mel(_LOWEST), mel(sample_rate / 2), bands + 2) / 2595) - 1)
    frequency = np.arange(window // 2 + 1) * sample_rate / window
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bank = np.minimum((frequency - low) / (centre - low), (high - frequency) / (high - centre)).clip(0)
    # a triangle between two bins would be empty: it takes the bin next to its centre
    for band in np.flatnonzero(bank.sum(axis=1) == 0):
        bank[band, np.abs(frequency - edges[band + 1]).argmin()] = 1
    out: NDArray[np.float32] = (bank / bank.sum(axis=1, keepdims=True)).astype(np.float32)
    return out


def stft(sound: NDArray[np.float32], window: int, hop: int) -> NDArray[np.complex64]:
    """Return the spectrum around every ``hop``-th sample, ``(n, T // hop + 1, window // 2 + 1)``."""
    padded = np.pad(sound, ((0, 0), (window // 2, window // 2)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window, axis=1)[:, ::hop]
    return np.asarray(scipy.fft.rfft(frames * hann(window), axis=-1), dtype=np.complex64)


def istft(spectrum: NDArray[np.complex64], window: int, hop: int) -> NDArray[np.float32]:
    """Return the sound whose ``stft`` is nearest in least squares, ``(n, (frames - 1) * hop)``."""
    n, frames, _ = spectrum.shape
    overlap = window // hop
    taper = hann(window)
    pieces = scipy.fft.irfft(spectrum, n=window, axis=-1).astype(np.float32, copy=False) * taper
    pieces = pieces.reshape(n, frames, overlap, hop)
    square = (taper * taper).reshape(overlap, hop)
    sound = np.zeros((n, frames + overlap, hop), dtype=np.float32)
    weight = np.zeros((frames + overlap, hop), dtype=np.float32)
    for k in range(overlap):
        sound[:, k : k + frames] += pieces[:, :, k]
        weight[k : k + frames] += square[k]
    sound /= np.maximum(weight, 1e-3)
    start = window // 2
    return sound.reshape(n, -1)[:, start : start + (frames - 1) * hop]


def mel_to_linear(mel: NDArray[np.float32], bank: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return non-negative magnitudes ``(..., bins)`` whose mel magnitudes are near ``mel (..., bands)``.

    The least-squares solution, clipped, then multiplicative updates (Lee and Seung 2001).
    """
    tiny = np.float32(1e-9)
    rows = mel.reshape(
        -1, mel.shape[-1]
    )  # one product of many rows, where BLAS would make one for each sound
    magnitude = np.maximum(rows @ np.linalg.pinv(bank).T.astype(np.float32), tiny)
    target = rows @ bank
    gram = bank.T @ bank
    for _ in range(_MULTIPLICATIVE_STEPS):
        magnitude *= target / np.maximum(magnitude @ gram, tiny)
    return magnitude.reshape(*mel.shape[:-1], bank.shape[1])


def griffin_lim(
    magnitude: NDArray[np.float32], window: int, hop: int, *, iterations: int, momentum: float = 0.99
) -> NDArray[np.float32]:
    """Return a sound whose spectrum has nearly the given magnitudes ``(n, frames, bins)``.

    The first phases are those of steady tones at the centre of each bin, so no random draw is needed.
    """
    _, frames, bins = magnitude.shape
    turns = np.arange(frames)[:, None] * np.arange(bins) * (hop / window) + _first_phase(bins)
    estimate = magnitude * np.exp(2j * np.pi * (turns % 1)).astype(np.complex64)
    previous = np.zeros_like(estimate)
    for _ in range(iterations):
        projected = stft(istft(estimate, window, hop), window, hop)
        estimate = projected + np.float32(momentum) * (projected - previous)
        estimate *= magnitude / np.maximum(np.abs(estimate), np.float32(1e-9))
        previous = projected
    return istft(estimate, window, hop)


def _first_phase(bins: int) -> NDArray[np.float64]:
    """Spread the phases of the bins (by the golden ratio), so that the tones do not add up to a click."""
    return np.asarray(np.arange(bins) ** 2 * 0.6180339887 % 1, dtype=np.float64)
