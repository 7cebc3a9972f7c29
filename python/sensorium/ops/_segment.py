"""The pieces that a layout is made of, and how arguments are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike

from .._validate import check_integer
from ..errors import ArgumentError, DTypeError

Inner = Literal["none", "diagonal", "causal", "full"]
INNER: tuple[str, ...] = get_args(Inner)
MAX_LENGTH = 2**31 - 1
MAX_SEGMENTS = 2**20  # of one call: about 200 MB while the layout is made
MAX_RELATION = 2**12  # segments in a relation that a constructor makes: 16 MB


def items(name: str, value: Iterable[Any], what: str) -> list[Any]:
    """Return what is in ``value``, or say that it must be a sequence of ``what``."""
    if isinstance(value, str | bytes):
        raise DTypeError(f"{name} must be a sequence of {what}, not {type(value).__name__}")
    try:
        return list(value)
    except TypeError:
        raise DTypeError(f"{name} must be a sequence of {what}, not {type(value).__name__}") from None


def token_count(name: str, value: Any) -> int:
    """Return ``value`` as a number of tokens, 0 included."""
    return check_integer(name, value, 0, MAX_LENGTH)


def window_of(window: Any) -> int | None:
    """Return ``window`` as a distance in segments, or None."""
    return None if window is None else check_integer("window", window, 0)


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> Any:
    """Return ``value``, which must be one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ArgumentError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise DTypeError(f"{name} must be True or False, not {type(value).__name__}")
    return bool(value)


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens that the others see whole or not at all.

    Parameters
    ----------
    inner : {"causal", "full", "diagonal", "none"}
        How a token sees its own segment: itself and what comes before it, all of it, itself alone, or
        nothing.
    length : int
        Tokens, at least 1.
    hidden : bool
        No later segment sees it: a noised copy, or the target of a prediction.
    anchor : bool
        Later segments see it beyond the window: a keyframe, or a system prompt.

    Raises
    ------
    ArgumentError, DTypeError
        Where an argument is none of these.

    Examples
    --------
    >>> from sensorium.ops import Segment
    >>> Segment("causal", 16)
    Segment(inner='causal', length=16, hidden=False, anchor=False)
    """

    inner: Inner
    length: int
    hidden: bool = False
    anchor: bool = False

    def __post_init__(self) -> None:
        if self.inner not in INNER:
            raise ArgumentError(f"inner must be one of causal, full, diagonal, none, not {self.inner!r}")
        object.__setattr__(self, "length", check_integer("length", self.length, 1, MAX_LENGTH))
        object.__setattr__(self, "hidden", _flag("hidden", self.hidden))
        object.__setattr__(self, "anchor", _flag("anchor", self.anchor))

    def _describe(self) -> str:
        flags = [name for name in ("hidden", "anchor") if getattr(self, name)]
        return " ".join([self.inner, str(self.length), *flags])


def some(inner: Inner, length: int, *, hidden: bool = False, anchor: bool = False) -> list[Segment]:
    """Return one segment, or none where it would have no tokens."""
    return [Segment(inner, length, hidden=hidden, anchor=anchor)] if length else []


class Constructed:
    """What the constructors of :class:`sensorium.ops.Layout` need of it."""

    __slots__ = ()

    if TYPE_CHECKING:

        def __init__(
            self, segments: Iterable[Segment], window: int | None = None, visible: ArrayLike | None = None
        ) -> None: ...

        @classmethod
        def packed(cls, samples: Iterable[Any], window: int | None = None) -> Self: ...
