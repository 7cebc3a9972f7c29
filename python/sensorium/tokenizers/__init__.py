"""Tokenisers: text, images and sound to discrete tokens and back.

Each is a frozen dataclass with ``fit``, ``encode``, ``decode``, and with ``to_arrays`` and ``config`` so that
a model file can hold it.
"""

from .audio import AudioTokenizer as AudioTokenizer
from .augment import jitter_images as jitter_images
from .augment import jitter_logmel as jitter_logmel
from .codebook import FSQ as FSQ
from .codebook import KMeans as KMeans
from .patches import ImageTokenizer as ImageTokenizer
from .text import TextTokenizer as TextTokenizer
