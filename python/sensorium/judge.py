"""Judges of what a picture shows and what a sound says, and measures of how varied generated items are.

A judge is a classifier trained on real training items alone. It never sees what a model makes until it judges
it, and its own accuracy on real held-out items is the ceiling that a model's figures are read against.

The eye sees pixels and histograms of gradient orientations (Dalal and Triggs 2005); the ear sees a log-mel
spectrogram, trimmed, levelled, smoothed over 40 ms and stretched to one length, so that neither loudness,
silence, tempo nor the phase of a vocoder matters. Both are support vector machines (Cortes and Vapnik 1995).

What the figures say is bounded by that: a judge always answers with one of its groups, so noise is right one
time in as many as there are groups, and an item that is plainly a seven but ugly is a seven.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ._validate import as_floats
from .data._resample import resample
from .data.corpus import Corpus
from .errors import ArgumentError, ShapeError

__all__ = [
    "Judge",
    "audio_features",
    "distinct_share",
    "image_features",
    "nearest_neighbour_distance",
    "wilson",
]

LARGEST_SIDE = 32  # images are averaged down to this before their gradients are looked at
PIXELS_SIDE = 10  # and to this before their pixels are: 28x28 pixels as such cost half a point of accuracy
ORIENTATIONS = 8
MAX_GROUPS = (
    200  # the classifiers tell every pair of groups apart, so that their number grows with the square
)
MAX_FITTED = 10_000  # items a classifier is fitted on: its time grows with the square of their number

MAX_RATE = 16_000  # Hz; sounds are heard at this rate or at their own if that is lower
WINDOW, HOP = 0.032, 0.008  # seconds
SMOOTHING = 5  # frames
BANDS, LOWEST, HIGHEST = 24, 80.0, 0.475  # mel bands from Hz to a share of the sample rate
FRAMES = 20  # length that every spectrogram is stretched to
TRIM, FLOOR = 1e-3, 1e-4  # of the loudest frame's, and of the loudest band's energy
# Shifts of the mel bands that the ear is trained under: longer and shorter vocal tracts.
SEMITONES = (0.0, -1.0, 1.0)


class Judge:
    """Tell which group an image or a sound belongs to.

    Parameters
    ----------
    C : float
        Penalty of the support vector machines.
    seed : int
        Draws the items to fit where there are more than 10,000 of a modality.

    Attributes
    ----------
    image_size_ : tuple of int
        Shape of the images fitted on, absent where there were none.
    sample_rate_ : int
        Sample rate that sounds are heard at, absent where there were none.

    Examples
    --------
    >>> from sensorium.data import digits
    >>> corpus = digits()
    >>> judge = Judge().fit(corpus)
    >>> judge.image(corpus.images[:4]).tolist(), judge.audio(corpus.audios[:4], 8000).tolist()
    ([0, 1, 2, 3], [0, 1, 2, 3])
    >>> figures = judge.score(corpus)
    >>> figures["image"] > 0.98, figures["audio"] > 0.98
    (True, True)
    """

    def __init__(self, *, C: float = 10.0, seed: int = 0) -> None:
        self.C = C
        self.seed = seed

    def fit(self, corpus: Corpus) -> Self:
        """Learn from the training items of a corpus; items held out are not looked at.

        Parameters
        ----------
        corpus : Corpus
            With images or sounds, or both, of at least two groups.

        Raises
        ------
        ArgumentError
            Where neither modality has training items of at least two groups, or one has them of more than
            200: a judge tells kinds of things apart, not single things (see `Corpus.merge_names`).
        """
        train = corpus.select("train")
        for name, count in (
            ("images", len(np.unique(train.image_group))),
            ("sounds", len(np.unique(train.audio_group))),
        ):
            if count > MAX_GROUPS:
                raise ArgumentError(
                    f"corpus has training {name} of {count} groups, more than {MAX_GROUPS}: "
                    "merge those that show the same thing, with corpus.merge_names()"
                )
        self._eye: Any = None
        self._ear: Any = None
        if len(np.unique(train.image_group)) > 1:
            self.image_size_ = train.images.shape[1:]
            keep = self._draw(len(train.images))
            images, groups = train.images[keep], train.image_group[keep]
            if 5 * len(images) <= MAX_FITTED:
                images, groups = np.concatenate(_shifts(images)), np.tile(groups, 5)
            self._eye = self._classifier().fit(image_features(images), groups)
        if len(np.unique(train.audio_group)) > 1:
            self.sample_rate_ = min(train.sample_rate, MAX_RATE)
            keep = self._draw(len(train.audios))
            audios, groups = [train.audios[index] for index in keep], train.audio_group[keep]
            shifts = SEMITONES if len(SEMITONES) * len(audios) <= MAX_FITTED else (0.0,)
            heard = [
                audio_features(audios, train.sample_rate, at=self.sample_rate_, semitones=shift)
                for shift in shifts
            ]
            self._ear = self._classifier().fit(np.concatenate(heard), np.tile(groups, len(shifts)))
        if self._eye is None and self._ear is None:
            raise ArgumentError(
                "corpus has neither training images nor training sounds of at least two groups to tell apart"
            )
        return self

    def image(self, images: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the group that each image shows.

        Parameters
        ----------
        images : ndarray, (n, H, W) or (n, H, W, 3), float32
            Of the size fitted on, in [0, 1].

        Returns
        -------
        ndarray, (n,), int64

        Raises
        ------
        ArgumentError
            Where the judge was fitted on no images, or a value is not finite.
        ShapeError
            Where the images are of another size.
        """
        if getattr(self, "_eye", None) is None:
            raise ArgumentError("this judge was not fitted on images")
        if images.shape[1:] != self.image_size_:
            raise ShapeError(f"images has shape {images.shape}, expected (n, {str(self.image_size_)[1:]}")
        return _predict(self._eye, image_features(images))

    def audio(self, audios: Sequence[NDArray[np.float32]], sample_rate: int) -> NDArray[np.int64]:
        """Return the group that each sound says.

        Parameters
        ----------
        audios : sequence of ndarray, (samples,), float32
            Waveforms of any length and loudness.
        sample_rate : int
            Samples a second.

        Returns
        -------
        ndarray, (n,), int64

        Raises
        ------
        ArgumentError
            Where the judge was fitted on no sounds, or a value is not finite.
        ShapeError
            Where a waveform is empty or has another number of dimensions.
        """
        if getattr(self, "_ear", None) is None:
            raise ArgumentError("this judge was not fitted on sounds")
        return _predict(self._ear, audio_features(audios, sample_rate, at=self.sample_rate_))

    def score(self, corpus: Corpus, *, confidence: float = 0.95) -> dict[str, float]:
        """Return the judge's own accuracy on real held-out items: the ceiling for what it judges.

        Parameters
        ----------
        corpus : Corpus
            Its test items are judged.
        confidence : float
            Of the interval around each accuracy.

        Returns
        -------
        dict
            ``image``, ``image_low``, ``image_high`` and ``image_count``, and the same for ``audio``, for each
            modality that the judge was fitted on and that has items held out.
        """
        test = corpus.select("test")
        figures: dict[str, float] = {}
        if getattr(self, "_eye", None) is not None and len(test.images):
            figures |= _accuracy("image", self.image(test.images) == test.image_group, confidence)
        if getattr(self, "_ear", None) is not None and len(test.audios):
            right = self.audio(test.audios, test.sample_rate) == test.audio_group
            figures |= _accuracy("audio", right, confidence)
        return figures

    def _classifier(self) -> Any:
        from sklearn.svm import SVC

        return SVC(C=self.C, gamma="scale")

    def _draw(self, count: int) -> NDArray[np.int64]:
        if count <= MAX_FITTED:
            return np.arange(count)
        return np.sort(np.random.default_rng(self.seed).choice(count, MAX_FITTED, replace=False))


def wilson(successes: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return an interval for a share, from how often it came out (Wilson 1927).

    It stays within [0, 1] and is sensible for few trials and for shares near 0 and 1. Without any trial it is
    the whole of [0, 1].

    Parameters
    ----------
    successes, trials : int
        How many, of how many.
    confidence : float
        Probability that such an interval holds the true share, above 0 and below 1.

    Returns
    -------
    low, high : float

    Raises
    ------
    ArgumentError
        Where ``successes`` is not from 0 to ``trials``, or ``confidence`` is out of range.

    Examples
    --------
    >>> low, high = wilson(95, 100)
    >>> round(low, 3), round(high, 3)
    (0.888, 0.978)
    """
    if not 0 <= successes <= trials:
        raise ArgumentError(f"successes must be from 0 to trials={trials}, not {successes}")
    if not 0 < confidence < 1:
        raise ArgumentError(f"confidence must be above 0 and below 1, not {confidence}")
    if trials == 0:
        return 0.0, 1.0
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    share = successes / trials
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * (share * (1 - share) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == trials else min(1.0, centre + half)
    return low, high


def nearest_neighbour_distance(
    samples: NDArray[np.floating], train: NDArray[np.floating], held_out: NDArray[np.floating] | None = None
) -> dict[str, float]:
    """Return how far samples lie from their nearest training items: near zero where a model only repeats.

    The distance is the root mean square difference per value. Real held-out items are the yardstick: samples
    as far from the training items as those are neither copies nor strangers.

    Parameters
    ----------
    samples : ndarray, (n, ...), float
        Generated items. For sounds, their `audio_features`.
    train : ndarray, (m, ...), float
        Real items that the model was trained on, of the same shape.
    held_out : ndarray, (k, ...), float, optional
        Real items that it was not trained on.

    Returns
    -------
    dict
        ``median``, ``q05``, ``q25``, ``q75`` and ``q95`` of the distances; with ``held_out`` also
        ``held_out_median`` and so on.

    Raises
    ------
    ShapeError
        Where shapes differ or an array is empty.

    Examples
    --------
    >>> train = np.zeros((1, 4))
    >>> nearest_neighbour_distance(np.full((3, 4), 0.5), train, held_out=train)["median"]
    0.5
    """
    figures = _quantiles(_nearest("samples", samples, train))
    if held_out is not None:
        yardstick = _quantiles(_nearest("held_out", held_out, train))
        figures |= {f"held_out_{name}": value for name, value in yardstick.items()}
    return figures


def distinct_share(
    samples: Sequence[NDArray[np.floating]] | NDArray[np.floating], *, decimals: int = 3
) -> float:
    """Return the share of samples that differ from all before them: 1 / n where they are all the same.

    Parameters
    ----------
    samples : sequence of ndarray, or ndarray (n, ...)
        Generated items, of any shapes.
    decimals : int
        Values are compared after rounding to this many decimals.

    Raises
    ------
    ArgumentError
        Where there are no samples.

    Examples
    --------
    >>> distinct_share(np.array([[0.1, 0.2], [0.1, 0.2], [0.1, 0.3], [0.1, 0.2]]))
    0.5
    """
    if len(samples) == 0:
        raise ArgumentError("samples is empty, so that no share of it is distinct")
    seen = set()
    for sample in samples:
        rounded = np.round(np.asarray(sample, np.float64), decimals) + 0.0  # + 0.0 turns -0.0 into 0.0
        seen.add((rounded.shape, rounded.tobytes()))
    return len(seen) / len(samples)


def image_features(images: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return what the eye sees: pixels, and histograms of gradient orientations over overlapping cells.

    Parameters
    ----------
    images : ndarray, (n, H, W) or (n, H, W, 3), float
        In [0, 1]; colour is averaged, and large images are averaged down.

    Returns
    -------
    ndarray, (n, features), float64
    """
    (array,) = as_floats(images=images)
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] != 3) or 0 in array.shape[1:]:
        raise ShapeError(f"images has shape {array.shape}, expected (n, H, W) or (n, H, W, 3)")
    grey = array.astype(np.float64) if array.ndim == 3 else array.mean(axis=3, dtype=np.float64)
    if not np.isfinite(grey).all():
        raise ArgumentError("images holds values that are not finite")
    pixels = _average_down(grey, PIXELS_SIDE)
    pixels = pixels.reshape(len(grey), math.prod(pixels.shape[1:]))
    return np.concatenate([pixels, _orientations(_average_down(grey, LARGEST_SIDE))], axis=1)


def audio_features(
    audios: Sequence[NDArray[np.floating]], sample_rate: int, *, at: int | None = None, semitones: float = 0.0
) -> NDArray[np.float64]:
    """Return what the ear hears: log-mel energies below the loudest, over 20 frames from first to last sound.

    Parameters
    ----------
    audios : sequence of ndarray, (samples,), float
        Waveforms of any length and loudness. Silence gives zeros.
    sample_rate : int
        Samples a second.
    at : int, optional
        Sample rate to hear them at: 16 kHz or their own, whichever is lower, where it is not given.
    semitones : float
        Moves the mel bands, which stands for another length of vocal tract.

    Returns
    -------
    ndarray, (n, 480), float64
        In nepers of energy; 24 bands for each of 20 frames.
    """
    if sample_rate <= 0:
        raise ArgumentError(f"sample_rate must be above 0, not {sample_rate}")
    rate = min(sample_rate, MAX_RATE) if at is None else at
    bank = _mel_bank(rate, 2.0 ** (semitones / 12))
    features = np.zeros((len(audios), FRAMES * BANDS))
    for index, audio in enumerate(audios):
        name = f"audios[{index}]"
        (array,) = as_floats(**{name: audio})
        if array.ndim != 1 or array.size == 0:
            raise ShapeError(f"{name} has shape {array.shape}, expected (samples,) with at least one sample")
        if not np.isfinite(array).all():
            raise ArgumentError(f"{name} holds values that are not finite")
        features[index] = _spectrogram(resample(array, sample_rate, rate), rate, bank).ravel()
    return features


def _spectrogram(sound: NDArray[np.float64], rate: int, bank: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-mel energies (FRAMES, BANDS) below the loudest, from the first to the last frame with sound."""
    peak = np.abs(sound).max()
    if peak == 0:
        return np.zeros((FRAMES, BANDS))
    window, hop = round(WINDOW * rate), max(1, round(HOP * rate))
    padded = np.pad(sound / peak, window // 2 + 1)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop] * np.hanning(window)
    energy = np.abs(np.fft.rfft(frames)) ** 2 @ bank  # (frames, BANDS)
    kernel = np.hanning(SMOOTHING + 2)[1:-1] / np.hanning(SMOOTHING + 2).sum()
    blurred = np.pad(energy, ((SMOOTHING // 2, SMOOTHING // 2), (0, 0)))
    energy = np.lib.stride_tricks.sliding_window_view(blurred, SMOOTHING, axis=0) @ kernel
    loudness = energy.sum(axis=1)
    if loudness.max() == 0:
        return np.zeros((FRAMES, BANDS))
    loud = np.flatnonzero(loudness > TRIM * loudness.max())
    energy = energy[loud[0] : loud[-1] + 1]
    level = np.log(np.maximum(energy, FLOOR * energy.max()) / energy.max())
    at = np.linspace(0, len(level) - 1, FRAMES)
    below = np.minimum(at.astype(int), max(len(level) - 2, 0))
    above = np.minimum(below + 1, len(level) - 1)
    weight = (at - below)[:, None]
    stretched: NDArray[np.float64] = (1 - weight) * level[below] + weight * level[above]
    return stretched


def _mel_bank(rate: int, factor: float) -> NDArray[np.float64]:
    """Triangular bands (bins, BANDS), evenly spaced in mel (O'Shaughnessy 1987), edges times ``factor``."""
    bins = np.fft.rfftfreq(round(WINDOW * rate), 1 / rate)
    low, high = 2595 * np.log10(1 + np.array([LOWEST, HIGHEST * rate]) / 700)
    edges = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1) * factor
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - left) / (centre - left)
    falling = (right - bins[:, None]) / (right - centre)
    return np.maximum(0, np.minimum(rising, falling))


def _orientations(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """Histograms of gradient orientations over half-overlapping cells, each of unit length, (n, features)."""
    count, height, width = grey.shape
    padded = np.pad(grey, ((0, 0), (1, 1), (1, 1)))
    dx = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    dy = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    turn = (np.arctan2(dy, dx) / (2 * np.pi)) % 1 * ORIENTATIONS
    lower = np.floor(turn)
    share = turn - lower
    planes = np.zeros((count, ORIENTATIONS, height, width))
    for orientation in range(ORIENTATIONS):
        weight = np.where(lower % ORIENTATIONS == orientation, 1 - share, 0)
        weight += np.where((lower + 1) % ORIENTATIONS == orientation, share, 0)
        planes[:, orientation] = np.hypot(dx, dy) * weight
    cells = []
    for top, tall in _cells(height):
        for left, wide in _cells(width):
            cell = planes[:, :, top : top + tall, left : left + wide].sum(axis=(2, 3))
            norm = np.sqrt((cell**2).sum(axis=1, keepdims=True) + 0.05 * tall * wide / 16)
            cells.append(cell / norm)
    return np.concatenate(cells, axis=1)


def _cells(side: int) -> list[tuple[int, int]]:
    """Start and length of the cells along a side: about six, each overlapping the next by half."""
    stride = max(2, round(side / 7))
    length = min(2 * stride, side)
    return [(start, length) for start in range(0, side - length + 1, stride)]


def _average_down(grey: NDArray[np.float64], limit: int) -> NDArray[np.float64]:
    """Average each side down to at most ``limit`` equal parts; a pixel on a border is shared by both."""
    for axis in (1, 2):
        side = grey.shape[axis]
        if side > limit:
            edges, pixels = np.linspace(0, side, limit + 1), np.arange(side)
            overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
            weights = np.maximum(overlap, 0) * (limit / side)
            grey = np.moveaxis(np.tensordot(weights, grey, axes=(1, axis)), 0, axis)
    return grey


def _shifts(images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return the images, and each of them moved by a pixel up, down, left and right over black."""
    moved = [images]
    for axis in (1, 2):
        for step in (1, -1):
            shifted = np.roll(images, step, axis=axis)
            edge: list[slice | int] = [slice(None)] * images.ndim
            edge[axis] = 0 if step == 1 else -1
            shifted[tuple(edge)] = 0
            moved.append(shifted)
    return moved


def _predict(classifier: Any, features: NDArray[np.float64]) -> NDArray[np.int64]:
    if len(features) == 0:
        return np.zeros(0, np.int64)
    return np.asarray(classifier.predict(features), np.int64)


def _accuracy(name: str, right: NDArray[np.bool_], confidence: float) -> dict[str, float]:
    low, high = wilson(int(right.sum()), len(right), confidence=confidence)
    return {name: float(right.mean()), f"{name}_low": low, f"{name}_high": high, f"{name}_count": len(right)}


def _nearest(name: str, samples: NDArray[np.floating], train: NDArray[np.floating]) -> NDArray[np.float64]:
    """Root mean square difference per value between each sample and its nearest training item."""
    from scipy.spatial.distance import cdist

    samples, train = np.asarray(samples, np.float64), np.asarray(train, np.float64)
    if samples.shape[1:] != train.shape[1:] or samples.ndim < 2:
        raise ShapeError(f"{name} has shape {samples.shape} but train has {train.shape}: items must be alike")
    if samples.size == 0 or train.size == 0:
        raise ShapeError(f"{name} has shape {samples.shape} and train {train.shape}: neither may be empty")
    flat, real = samples.reshape(len(samples), -1), train.reshape(len(train), -1)
    chunk = max(1, 10_000_000 // len(real))  # at most 80 MB of distances at a time
    nearest = [cdist(flat[at : at + chunk], real).min(axis=1) for at in range(0, len(flat), chunk)]
    distances: NDArray[np.float64] = np.concatenate(nearest) / math.sqrt(flat.shape[1])
    return distances


def _quantiles(distances: NDArray[np.float64]) -> dict[str, float]:
    names = {"median": 0.5, "q05": 0.05, "q25": 0.25, "q75": 0.75, "q95": 0.95}
    return {name: float(np.quantile(distances, share)) for name, share in names.items()}
