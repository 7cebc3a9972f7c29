"""Small random changes that keep the meaning: more training data from the same images and sounds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import ShapeError

__all__ = ["jitter_images", "jitter_logmel"]


def jitter_images(
    images: NDArray[np.float32],
    *,
    rng: np.random.Generator,
    shift: float = 0.075,
    turn: float = 0.15,
    scale: float = 0.1,
    shear: float = 0.1,
) -> NDArray[np.float32]:
    """Shift, turn, scale and shear each image by a little, drawn uniformly; what comes into view is 0.

    Parameters
    ----------
    images : ndarray
        ``float32 (n, H, W)`` or ``(n, H, W, C)``.
    rng : numpy.random.Generator
        Draws the changes.
    shift : float
        Largest shift, as a share of the image's size.
    turn : float
        Largest angle, in radians.
    scale, shear : float
        Largest relative changes.

    Returns
    -------
    ndarray
        Images of the same shape, by bilinear interpolation.

    Examples
    --------
    >>> import numpy as np
    >>> image = np.zeros((1, 8, 8), dtype=np.float32)
    >>> image[0, 3:5, 3:5] = 1
    >>> moved = jitter_images(image, rng=np.random.default_rng(0))
    >>> moved.shape, bool(0 < np.abs(moved - image).max() < 1)
    ((1, 8, 8), True)
    """
    if images.ndim not in (3, 4):
        raise ShapeError(f"images has shape {images.shape}, expected (n, H, W) or (n, H, W, C)")
    n, height, width = images.shape[:3]

    def draw(most: float) -> NDArray[np.float64]:
        return rng.uniform(-most, most, size=(n, 1, 1))

    angle, tall, wide, slant = draw(turn), 1 + draw(scale), 1 + draw(scale), draw(shear)
    down, right = draw(shift * height), draw(shift * width)
    y = np.arange(height)[:, None] - (height - 1) / 2
    x = np.arange(width)[None, :] - (width - 1) / 2
    row = tall * (np.cos(angle) * y - np.sin(angle) * x) + down + (height - 1) / 2
    column = wide * (np.sin(angle) * y + np.cos(angle) * x + slant * y) + right + (width - 1) / 2
    # a border of zeros: every place outside the image reads one
    frame = [(0, 0), (1, 2), (1, 2)] + [(0, 0)] * (images.ndim - 3)
    padded = np.pad(images, frame)
    row, column = np.clip(row + 1, 0, height + 1), np.clip(column + 1, 0, width + 1)
    i, j = np.floor(row).astype(np.int64), np.floor(column).astype(np.int64)
    lower, righter = (row - i).astype(np.float32), (column - j).astype(np.float32)
    if images.ndim == 4:
        lower, righter = lower[..., None], righter[..., None]
    k = np.arange(n)[:, None, None]
    top = padded[k, i, j] * (1 - righter) + padded[k, i, j + 1] * righter
    bottom = padded[k, i + 1, j] * (1 - righter) + padded[k, i + 1, j + 1] * righter
    out: NDArray[np.float32] = (top * (1 - lower) + bottom * lower).astype(np.float32)
    return out


def jitter_logmel(
    logmel: NDArray[np.float32],
    *,
    rng: np.random.Generator,
    floor: float,
    shift: float = 1.5,
    stretch: float = 0.12,
    warp: float = 0.08,
    gain: float = 0.4,
) -> NDArray[np.float32]:
    """Move, stretch, warp and amplify each sound by a little, drawn uniformly, on its log-mel frames.

    Parameters
    ----------
    logmel : ndarray
        ``float32 (n, frames, bands)``.
    rng : numpy.random.Generator
        Draws the changes.
    floor : float
        The value of silence: what comes into view, and the least value of the result.
    shift : float
        Largest shift in time, in frames.
    stretch, warp : float
        Largest relative changes of speed and of frequency (of the mel scale), as logarithms.
    gain : float
        Largest change of the log magnitudes.

    Returns
    -------
    ndarray
        Frames of the same shape.

    Examples
    --------
    >>> import numpy as np
    >>> logmel = np.full((1, 10, 4), -7, dtype=np.float32)
    >>> logmel[0, 4:6] = -1
    >>> moved = jitter_logmel(logmel, rng=np.random.default_rng(0), floor=-7)
    >>> moved.shape, float(moved.min())
    ((1, 10, 4), -7.0)
    """
    if logmel.ndim != 3:
        raise ShapeError(f"logmel has shape {logmel.shape}, expected 3 dimensions (n, frames, bands)")
    n, frames, bands = logmel.shape

    def draw(most: float) -> NDArray[np.float64]:
        return rng.uniform(-most, most, size=(n, 1))

    time = (np.arange(frames)[None] - draw(shift)) * np.exp(draw(stretch))
    band = np.clip(np.arange(bands)[None] * np.exp(draw(warp)), 0, bands - 1)
    padded = np.pad(logmel, ((0, 0), (1, 2), (0, 0)), constant_values=floor)
    time = np.clip(time + 1, 0, frames + 1)
    k = np.arange(n)[:, None]
    early, late = np.floor(time).astype(np.int64), (time % 1).astype(np.float32)[:, :, None]
    moved = padded[k, early] * (1 - late) + padded[k, early + 1] * late
    low, up = np.floor(band).astype(np.int64), (band % 1).astype(np.float32)[:, None, :]
    high = np.minimum(low + 1, bands - 1)
    below = np.take_along_axis(moved, low[:, None, :], axis=2)
    above = np.take_along_axis(moved, high[:, None, :], axis=2)
    louder = below * (1 - up) + above * up + draw(gain)[:, :, None]
    out: NDArray[np.float32] = np.maximum(louder, floor).astype(np.float32)
    return out
