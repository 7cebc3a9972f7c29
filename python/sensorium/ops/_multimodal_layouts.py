"""Layouts of text, images and video by name. docs/layouts.md draws them and says what published code does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Self, cast, get_args

import numpy as np

from .._validate import check_integer
from ..errors import ArgumentError, DTypeError
from ._segment import (
    MAX_LENGTH,
    MAX_RELATION,
    MAX_SEGMENTS,
    Constructed,
    Inner,
    Segment,
    items,
    one_of,
    some,
    token_count,
    window_of,
)

Kind = Literal["text", "image", "noised"]


def _parts(parts: Iterable[tuple[Kind, int]]) -> list[tuple[Kind, int]]:
    out: list[tuple[Kind, int]] = []
    for i, part in enumerate(items("parts", parts, "pairs (kind, length)")):
        if not isinstance(part, tuple | list) or len(part) != 2:
            raise DTypeError(f"parts[{i}] must be a pair (kind, length), not {part!r}")
        kind = one_of(f"the kind of parts[{i}]", part[0], get_args(Kind))
        length = token_count(f"the length of parts[{i}]", part[1])
        if length:
            out.append((cast(Kind, kind), length))
    return out


class MultimodalLayouts(Constructed):
    """Constructors that :class:`sensorium.ops.Layout` inherits."""

    __slots__ = ()

    @classmethod
    def text_to_image(cls, text: int, image: int) -> Self:
        """Return causal text, then an image that sees the text and all of itself.

        Text does not see the image that is made from it. Tokens that mark where an image starts and ends
        belong to ``image`` in Show-o, and to the text around it in Show-o2 and Transfusion.

        Parameters
        ----------
        text, image : int
            Tokens of each; 0 leaves it out.

        References
        ----------
        Xie et al. 2024 (Show-o), arXiv:2408.12528, figure 5b. Xie et al. 2025 (Show-o2), arXiv:2506.15564.

        Examples
        --------
        >>> from sensorium.ops import Layout
        >>> Layout.text_to_image(2, 2).dense().astype(int)
        array([[1, 0, 0, 0],
               [1, 1, 0, 0],
               [1, 1, 1, 1],
               [1, 1, 1, 1]])
        """
        return cls(some("causal", token_count("text", text)) + some("full", token_count("image", image)))

    @classmethod
    def image_to_text(cls, image: int, text: int, *, prompt: int = 0) -> Self:
        """Return an image that sees all of itself, then causal text that sees the image.

        Parameters
        ----------
        image, text : int
            Tokens of each; 0 leaves it out.
        prompt : int
            Causal tokens before the image, which do not see it. Where published code lets them see it, the
            layout is ``Layout.prefix_lm(prompt + image, text)``.

        References
        ----------
        Xie et al. 2024 (Show-o), arXiv:2408.12528, figure 5a. Xie et al. 2025 (Show-o2), arXiv:2506.15564.

        Examples
        --------
        >>> from sensorium.ops import Layout
        >>> Layout.image_to_text(2, 1, prompt=1).dense().astype(int)
        array([[1, 0, 0, 0],
               [1, 1, 1, 0],
               [1, 1, 1, 0],
               [1, 1, 1, 1]])
        """
        return cls(
            some("causal", token_count("prompt", prompt))
            + some("full", token_count("image", image))
            + some("causal", token_count("text", text))
        )

    @classmethod
    def interleaved(cls, parts: Iterable[tuple[Kind, int]]) -> Self:
        """Return text and images in any order: every part sees all that comes before it.

        Text is causal within itself, an image sees all of itself. A noised copy of an image, which is being
        denoised, sees what comes before it and itself, and no other part sees it.

        Transfusion and Show-o2 have no copies: ``[("text", 9), ("image", 16), ("text", 5)]``, where later
        parts see the image as it is, with its noise in training. BAGEL trains on a noised copy, then the
        clean image, then the image as its other encoder sees it, of which later parts see the last two:
        ``[("text", 9), ("noised", 16), ("image", 16), ("image", 12), ("text", 5)]``. Images that BAGEL
        groups see one another: they are one part.

        Parameters
        ----------
        parts : sequence of (kind, length)
            ``kind`` is ``"text"`` for what is causal (speech codes too), ``"image"`` for what sees all of
            itself, ``"noised"`` for an image that no other part sees. A length of 0 leaves a part out.

        Raises
        ------
        ArgumentError, DTypeError
            Where a part is none of these.

        References
        ----------
        Zhou et al. 2024 (Transfusion), arXiv:2408.11039, section 3. Xie et al. 2025 (Show-o2),
        arXiv:2506.15564. Deng et al. 2025 (BAGEL), arXiv:2505.14683, section 2.3.

        Examples
        --------
        >>> from sensorium.ops import Layout
        >>> Layout.interleaved([("text", 1), ("noised", 2), ("image", 2), ("text", 1)]).dense().astype(int)
        array([[1, 0, 0, 0, 0, 0],
               [1, 1, 1, 0, 0, 0],
               [1, 1, 1, 0, 0, 0],
               [1, 0, 0, 1, 1, 0],
               [1, 0, 0, 1, 1, 0],
               [1, 0, 0, 1, 1, 1]])
        """
        return cls(
            Segment("causal" if kind == "text" else "full", length, hidden=kind == "noised")
            for kind, length in _parts(parts)
        )

    @classmethod
    def decoupled(cls, parts: Iterable[tuple[Kind, int]]) -> Self:
        """Return text and images in any order, where text sees text only.

        Images see all that comes before them, as in :meth:`interleaved`: what text computes does not depend
        on the images, and its keys and values can be kept while images change.

        Parameters
        ----------
        parts : sequence of (kind, length)
            As in :meth:`interleaved`.

        Raises
        ------
        ArgumentError, DTypeError
            Where a part is none of these, or there are more than 4,096.

        Examples
        --------
        >>> from sensorium.ops import Layout
        >>> Layout.decoupled([("text", 1), ("image", 2), ("text", 1)]).dense().astype(int)
        array([[1, 0, 0, 0],
               [1, 1, 1, 0],
               [1, 1, 1, 0],
               [1, 0, 0, 1]])
        """
        given = _parts(parts)
        if len(given) > MAX_RELATION:
            raise ArgumentError(f"parts has {len(given)} parts, expected at most {MAX_RELATION}")
        text = np.array([kind == "text" for kind, _ in given], dtype=np.bool_)
        noised = np.array([kind == "noised" for kind, _ in given], dtype=np.bool_)
        earlier = np.tri(len(given), k=-1, dtype=np.bool_)
        visible = earlier & ~noised & (~text[:, None] | text)
        return cls(
            [Segment("causal" if t else "full", n) for t, (_, n) in zip(text, given, strict=True)],
            None,
            visible,
        )

    @classmethod
    def frames(
        cls,
        frames: int,
        tokens: int,
        *,
        window: int | None = None,
        keyframes: Iterable[int] = (),
        prompt: int = 0,
        inner: Inner = "full",
    ) -> Self:
        """Return a video: each frame sees itself, the frames of a sliding window, and all earlier keyframes.

        Parameters
        ----------
        frames : int
            ``T``.
        tokens : int
            Tokens of each frame, at least 1.
        window : int, optional
            Frames before its own that a frame sees; all of them where None.
        keyframes : sequence of int
            Which frames all later ones see, however far back: for the first of each eight,
            ``range(0, T, 8)``.
        prompt : int
            Causal tokens before the first frame, which all frames see.
        inner : {"full", "causal", "diagonal", "none"}
            How a frame sees itself.

        Raises
        ------
        ArgumentError, DTypeError
            Where a number is out of range; the message names it.

        References
        ----------
        Yin et al. 2024 (CausVid), arXiv:2412.07772: causal over frames, full within one. Xiao et al. 2023
        (StreamingLLM), arXiv:2309.17453: a sliding window is only good with what was first still in sight.

        Examples
        --------
        >>> from sensorium.ops import Layout
        >>> Layout.frames(4, 1, window=1, keyframes=[0]).dense().astype(int)
        array([[1, 0, 0, 0],
               [1, 1, 0, 0],
               [1, 1, 1, 0],
               [1, 0, 1, 1]])
        """
        count = check_integer("frames", frames, 0, MAX_SEGMENTS)
        each = check_integer("tokens", tokens, 1, MAX_LENGTH)
        how = one_of("inner", inner, get_args(Inner))
        listed = items("keyframes", keyframes, "int")
        if listed and not count:
            raise ArgumentError("keyframes must be empty where there are no frames")
        keys = {check_integer(f"keyframes[{i}]", t, 0, count - 1) for i, t in enumerate(listed)}
        plain, key = Segment(how, each), Segment(how, each, anchor=True)
        row = [key if t in keys else plain for t in range(count)]
        return cls(some("causal", token_count("prompt", prompt), anchor=True) + row, window_of(window))
