"""Images by patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validate import as_floats, as_indices
from ..errors import ArgumentError, ShapeError
from .codebook import FSQ, KMeans, _positive_int, codebook_from_arrays

__all__ = ["ImageTokenizer"]


@dataclass(frozen=True, eq=False)
class ImageTokenizer:
    """An image is cut into equal patches; each patch becomes the code of its pixels.

    Parameters
    ----------
    height, width : int
        Size of the images, in pixels.
    channels : int
        1 for grey images ``(n, H, W)``, 3 for colour ``(n, H, W, 3)``.
    patch : (int, int)
        Height and width of a patch; they divide the image's.
    codebook : KMeans or FSQ
        Over vectors of ``patch height * patch width * channels`` pixels.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> images = rng.random((50, 8, 8), dtype=np.float32)
    >>> tokenizer = ImageTokenizer.fit(images, patch=(1, 8), codes=64, rng=rng)
    >>> tokens = tokenizer.encode(images)
    >>> tokens.shape, tokenizer.decode(tokens).shape
    ((50, 8), (50, 8, 8))
    """

    height: int
    width: int
    channels: int
    patch: tuple[int, int]
    codebook: KMeans | FSQ

    def __post_init__(self) -> None:
        for name in ("height", "width", "channels"):
            object.__setattr__(self, name, _positive_int(name, getattr(self, name)))
        if self.channels not in (1, 3):
            raise ArgumentError(f"channels must be 1 or 3, not {self.channels}")
        if len(self.patch) != 2:
            raise ShapeError(f"patch must be (height, width), not {self.patch}")
        patch = (_positive_int("patch", self.patch[0]), _positive_int("patch", self.patch[1]))
        object.__setattr__(self, "patch", patch)
        if self.height % patch[0] or self.width % patch[1]:
            raise ArgumentError(f"patch {patch} does not divide an image of {self.height} x {self.width}")
        if self.codebook.dim != patch[0] * patch[1] * self.channels:
            pixels = patch[0] * patch[1] * self.channels
            raise ShapeError(f"codebook has D={self.codebook.dim} but a patch has {pixels} values")

    @classmethod
    def fit(
        cls,
        images: ArrayLike,
        *,
        patch: tuple[int, int],
        codes: int = 256,
        levels: Sequence[int] | None = None,
        rng: np.random.Generator,
    ) -> ImageTokenizer:
        """Learn the codebook from images.

        Parameters
        ----------
        images : array_like
            ``(n, H, W)`` or ``(n, H, W, 3)``, float, in [0, 1].
        patch : (int, int)
            Height and width of a patch.
        codes : int
            Number of codes of a ``KMeans`` codebook.
        levels : sequence of int, optional
            Where given, an ``FSQ`` codebook of these levels is used instead.
        rng : numpy.random.Generator
            For ``KMeans``.

        Returns
        -------
        ImageTokenizer
            The fitted tokeniser.

        Raises
        ------
        ShapeError, DTypeError
            Where ``images`` is of another form.
        ArgumentError
            Where ``patch`` does not divide the images, or there are none.
        """
        array = _images(images)
        height, width, channels = array.shape[1:]
        if len(array) == 0:
            raise ArgumentError("images is empty")
        dim = _positive_int("patch", patch[0]) * _positive_int("patch", patch[1]) * channels
        # an empty codebook of the right width, so that the constructor checks the geometry before any work
        draft = cls(height, width, channels, patch, KMeans(np.zeros((1, dim), dtype=np.float32)))
        vectors = draft._cut(array)
        codebook = KMeans.fit(vectors, codes, rng=rng) if levels is None else FSQ.fit(vectors, levels)
        return cls(height, width, channels, patch, codebook)

    @property
    def size(self) -> int:
        """Number of different tokens."""
        return self.codebook.size

    @property
    def tokens(self) -> int:
        """Tokens of an image."""
        return (self.height // self.patch[0]) * (self.width // self.patch[1])

    @property
    def config(self) -> dict[str, Any]:
        """What ``from_arrays`` needs besides the arrays, ready for JSON."""
        return {
            "height": self.height,
            "width": self.width,
            "channels": self.channels,
            "patch": list(self.patch),
            "codebook": self.codebook.config,
        }

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays to save."""
        return self.codebook.to_arrays()

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], config: dict[str, Any]) -> ImageTokenizer:
        """Build the tokeniser that was saved.

        Raises
        ------
        ArgumentError
            Where something is missing, or the parts do not fit one another.
        """
        try:
            codebook = codebook_from_arrays(arrays, config["codebook"])
            height, width, channels = config["height"], config["width"], config["channels"]
            return cls(height, width, channels, tuple(config["patch"]), codebook)
        except KeyError as error:
            raise ArgumentError(f"config lacks {error}") from error

    def patches(self, images: ArrayLike) -> NDArray[np.float32]:
        """Return the pixels of each patch, ``float32 (n, tokens, D)``, left to right, then downwards."""
        array = _images(images)
        if array.shape[1:] != (self.height, self.width, self.channels):
            want = f"(n, {self.height}, {self.width}{', 3' if self.channels == 3 else ''})"
            raise ShapeError(f"images has shape {np.shape(images)}, expected {want}")
        return self._cut(array)

    def _cut(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        h, w = self.patch
        n, rows, columns = len(array), self.height // h, self.width // w
        cut = array.reshape(n, rows, h, columns, w, self.channels).transpose(0, 1, 3, 2, 4, 5)
        return np.ascontiguousarray(cut).reshape(n, self.tokens, h * w * self.channels)

    def encode(self, images: ArrayLike) -> NDArray[np.int32]:
        """Return the tokens of each image.

        Parameters
        ----------
        images : array_like
            ``(n, H, W)`` or ``(n, H, W, 3)``, float, in [0, 1].

        Returns
        -------
        ndarray
            ``int32 (n, tokens)``.

        Raises
        ------
        ShapeError, DTypeError
            Where ``images`` is of another form.
        """
        return self.codebook.encode(self.patches(images))

    def decode(self, tokens: ArrayLike) -> NDArray[np.float32]:
        """Return the image of each row of tokens.

        Parameters
        ----------
        tokens : array_like
            Integers ``(n, tokens)``.

        Returns
        -------
        ndarray
            ``float32 (n, H, W)`` or ``(n, H, W, 3)``, in [0, 1].
        """
        codes = as_indices("tokens", tokens, self.size)
        if codes.ndim != 2 or codes.shape[1] != self.tokens:
            raise ShapeError(f"tokens has shape {codes.shape}, expected (n, {self.tokens})")
        h, w = self.patch
        n, rows, columns = len(codes), self.height // h, self.width // w
        cut = self.codebook.decode(codes).reshape(n, rows, columns, h, w, self.channels)
        images = cut.transpose(0, 1, 3, 2, 4, 5).reshape(n, self.height, self.width, self.channels)
        clipped = np.clip(images, 0, 1)
        return clipped[..., 0] if self.channels == 1 else clipped


def _images(images: ArrayLike) -> NDArray[np.float32]:
    """Return ``images`` as ``float32 (n, H, W, channels)``."""
    (array,) = as_floats(images=images)
    if array.ndim == 3:
        array = array[..., None]
    elif array.ndim != 4 or array.shape[3] != 3:
        raise ShapeError(f"images has shape {array.shape}, expected (n, H, W) or (n, H, W, 3)")
    if not np.isfinite(array).all():
        raise ArgumentError("images holds NaN or infinity")
    return array.astype(np.float32, copy=False)
