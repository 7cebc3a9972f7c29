"""What every differentiable operation is made with: one node of the tape with one joint backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from autograd.extend import primitive as _untyped_primitive
from numpy.typing import NDArray

__all__ = ["Array", "Vjp", "chosen", "like", "primitive"]

Array = NDArray[Any]
Vjp = Callable[[Any], tuple[Any, ...]]
F = TypeVar("F", bound=Callable[..., Any])


def primitive(function: F) -> F:
    """Return autograd's primitive of a function, with the function's types."""
    return cast(F, _untyped_primitive(function))


def like(grad: Any, array: Array) -> Array:
    """Return a gradient in the dtype of the array that it belongs to: autograd's own are at times float64."""
    return np.asarray(grad, dtype=array.dtype)


def chosen(argnums: tuple[int, ...], grads: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(grads[i] for i in argnums)
