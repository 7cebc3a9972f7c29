"""One sound at another sample rate."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

LARGEST_FACTOR = (
    1000  # of the ratio of rates; the filter grows with it, and pitch is off by less than one in a million
)


def resample(sound: NDArray[np.floating], rate: int, target: int) -> NDArray[np.float64]:
    """Return ``sound`` (samples, ...) at ``target`` samples a second, low-passed where it would alias."""
    from scipy.signal import resample_poly

    ratio = Fraction(target, rate).limit_denominator(LARGEST_FACTOR)
    if ratio == 1:
        return sound.astype(np.float64)
    resampled: NDArray[np.float64] = resample_poly(
        sound.astype(np.float64), ratio.numerator, ratio.denominator, axis=0
    )
    return resampled
