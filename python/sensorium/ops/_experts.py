"""Gaussian experts as the public functions take them: arrays over all, or dicts by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._validate import as_array, as_floats, check_dims
from ..errors import ArgumentError, DTypeError, ShapeError

__all__ = [
    "Array",
    "Experts",
    "Given",
    "Mask",
    "Prior",
    "check_experts",
    "matrix",
    "presence",
    "same_keys",
    "weights_of",
]

Array = NDArray[Any]
#: An array over all experts, or a dict by their names.
Given: TypeAlias = ArrayLike | Mapping[str, ArrayLike]
Mask: TypeAlias = ArrayLike | Mapping[str, ArrayLike]
Prior: TypeAlias = bool | tuple[ArrayLike, ArrayLike]


@dataclass(frozen=True, eq=False)
class Experts:
    """Experts that were checked."""

    #: ``(B, D)`` each; rows are contiguous, and any distance apart.
    mu: list[Array]
    logvar: list[Array]
    #: ``(M, B)``, or None where all are present.
    mask: NDArray[np.bool_] | None
    #: ``(M, B)``, or None where all are 1.
    weights: Array | None
    #: Whether there is a standard prior, or mean and logarithm of the variance of the prior.
    prior: bool | tuple[Array, Array]
    #: Keys, where experts came as dicts.
    names: tuple[str, ...] | None
    #: Whether the weights came for all rows at once, or for each.
    one_weight_for_all_rows: bool

    @property
    def shape(self) -> tuple[int, int]:
        """``(B, D)``."""
        batch, width = self.mu[0].shape
        return batch, width

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.mu[0].dtype

    @property
    def how(self) -> tuple[NDArray[np.bool_] | None, Array | None, bool, tuple[Array, Array] | None]:
        """What the kernels take beside the experts."""
        given = self.prior if isinstance(self.prior, tuple) else None
        return self.mask, self.weights, self.prior is True, given

    def form(self, array: Array) -> Any:
        """Return an array over all experts in the form that the experts came in."""
        return array if self.names is None else dict(zip(self.names, array, strict=True))

    def unwritten_grads(self) -> tuple[Array, Array, Array | None, Array | None]:
        """Return arrays that a kernel writes gradients by experts, weights and prior to."""
        shape = (len(self.mu), *self.shape)
        weights = None if self.weights is None else np.empty_like(self.weights)
        prior = np.empty((2, self.shape[1]), self.dtype) if isinstance(self.prior, tuple) else None
        return np.empty(shape, self.dtype), np.empty(shape, self.dtype), weights, prior

    def form_grads(
        self, grads: tuple[Array, Array, Array | None, Array | None]
    ) -> tuple[Any, Any, Any, tuple[Array, Array] | None]:
        """Return those gradients in the form that the arguments came in."""
        mu, logvar, weights, prior = grads
        if weights is not None and self.one_weight_for_all_rows:
            weights = weights.sum(axis=1)
        of_weights = None if weights is None else self.form(weights)
        return self.form(mu), self.form(logvar), of_weights, None if prior is None else (prior[0], prior[1])


def check_like(name: str, array: Array, shape: tuple[int, ...], experts: Experts) -> Array:
    """Return an array that has the dtype of the experts and a shape.

    Raises
    ------
    DTypeError, ShapeError
        Where it has another.
    """
    if array.dtype != experts.dtype:
        raise DTypeError(f"{name} has dtype {array.dtype} but mu has {experts.dtype}")
    if array.shape != shape:
        raise ShapeError(f"{name} has shape {array.shape}, expected {shape}")
    return array


def gradient(name: str, value: ArrayLike | None, shape: tuple[int, ...], experts: Experts) -> Array | None:
    """Return a gradient as the kernels read it; None where there is none."""
    if value is None:
        return None
    (array,) = as_floats(**{name: value})
    return check_like(name, array, shape, experts)


def matrix(name: str, value: ArrayLike) -> Array:
    """Return a matrix of floats as the kernels read it: as it is where its rows are contiguous.

    Raises
    ------
    DTypeError
        Where it is of no dtype that the kernels compute in.
    """
    array = value if type(value) is np.ndarray else as_array(name, value)
    dtype = array.dtype
    if dtype.kind != "f" or dtype.itemsize not in (4, 8):
        raise DTypeError(f"{name} has dtype {dtype}, expected float32 or float64")
    if array.ndim == 2 and dtype.isnative and array.flags.aligned:
        row, column = array.strides
        if column == dtype.itemsize and row >= 0 and row % dtype.itemsize == 0:
            return array
    return np.require(array, dtype=dtype.newbyteorder("="), requirements=["C", "A"])


def same_keys(name: str, value: Any, names: tuple[str, ...]) -> Mapping[str, ArrayLike]:
    """Return a dict that has the keys of ``mu``.

    Raises
    ------
    ArgumentError
        Where it is none, or has others.
    """
    if not isinstance(value, Mapping):
        raise ArgumentError(f"{name} must be a dict, as mu is")
    for key in names:
        if key not in value:
            raise ArgumentError(f"{name} has no {key!r}, which mu has")
    for key in value:
        if key not in names:
            raise ArgumentError(f"{name} has {key!r}, which mu does not have")
    return value


def _split(mu: Given, logvar: Given) -> tuple[tuple[str, ...] | None, list[str], list[Array], list[Array]]:
    """Return the names, how errors call the experts, and matrices."""
    if isinstance(mu, Mapping):
        names = tuple(mu)
        others = same_keys("logvar", logvar, names)
        labels = [f"[{name!r}]" for name in names]
        means = [matrix(f"mu[{name!r}]", mu[name]) for name in names]
        return names, labels, means, [matrix(f"logvar[{name!r}]", others[name]) for name in names]
    if isinstance(logvar, Mapping):
        raise ArgumentError("logvar must be an array, as mu is")
    stacks = []
    for name, value in (("mu", mu), ("logvar", logvar)):
        array = value if type(value) is np.ndarray else as_array(name, value)
        if array.ndim != 3:
            raise ShapeError(f"{name} has shape {array.shape}, expected 3 dimensions (M, B, D)")
        stacks.append([matrix(name, part) for part in array])
    if len(stacks[0]) != len(stacks[1]):
        raise ShapeError(f"logvar has M={len(stacks[1])} but mu has M={len(stacks[0])}")
    return None, [""] * len(stacks[0]), stacks[0], stacks[1]


def presence(
    mask: Mask | None, names: tuple[str, ...] | None, count: int, batch: int
) -> NDArray[np.bool_] | None:
    """Return who is present ``(M, B)``, or None where nothing says that anybody is missing."""
    if mask is None:
        return None
    if names is not None:
        by_name = same_keys("mask", mask, names)
        rows = [_rows(f"mask[{name!r}]", by_name[name], batch) for name in names]
        array = np.stack(rows)
    else:
        if isinstance(mask, Mapping):
            raise ArgumentError("mask must be an array, as mu is")
        array = as_array("mask", mask)
        if array.shape == (count,):
            array = array[:, None]
        elif array.shape != (count, batch):
            raise ShapeError(f"mask has shape {array.shape}, expected {(count, batch)} or {(count,)}")
        array = np.broadcast_to(array, (count, batch))
    if array.dtype != np.bool_:
        raise DTypeError(f"mask has dtype {array.dtype}, expected bool")
    return np.require(array, dtype=np.bool_, requirements=["C", "A"])


def _rows(name: str, value: ArrayLike, batch: int) -> Array:
    """Return one value, or one for each row, as one for each row."""
    array = as_array(name, value)
    if array.shape not in ((), (batch,)):
        raise ShapeError(f"{name} has shape {array.shape}, expected {(batch,)} or ()")
    return np.broadcast_to(array, (batch,))


def weights_of(
    weights: Given | None,
    names: tuple[str, ...] | None,
    count: int,
    batch: int,
    dtype: np.dtype[Any],
    called: str = "weights",
) -> tuple[Array | None, bool]:
    """Return weights ``(M, B)``, whatever they are called, and whether they came for all rows at once."""
    if weights is None:
        return None, False
    if names is not None:
        by_name = same_keys(called, weights, names)
        arrays = [as_array(f"{called}[{name!r}]", by_name[name]) for name in names]
        for_all = all(array.ndim == 0 for array in arrays)
        array = np.stack(
            [_rows(f"{called}[{name!r}]", part, batch) for name, part in zip(names, arrays, strict=True)]
        )
    else:
        if isinstance(weights, Mapping):
            raise ArgumentError(f"{called} must be an array, as mu is")
        array = as_array(called, weights)
        for_all = array.shape == (count,)
        if not for_all and array.shape != (count, batch):
            raise ShapeError(f"{called} has shape {array.shape}, expected {(count, batch)} or {(count,)}")
        array = np.broadcast_to(array[:, None] if for_all else array, (count, batch))
    if array.dtype.kind not in "fiu":
        raise DTypeError(f"{called} has dtype {array.dtype}, expected numbers")
    return np.require(array, dtype=dtype, requirements=["C", "A"]), for_all


def _prior(prior: Prior, width: int, dtype: np.dtype[Any]) -> bool | tuple[Array, Array]:
    if isinstance(prior, (bool, np.bool_)):
        return bool(prior)
    if not isinstance(prior, (tuple, list)) or len(prior) != 2:
        raise ArgumentError("prior must be True, False, or a pair of mean and logvar")
    parts = []
    for name, value in zip(("prior mean", "prior logvar"), prior, strict=True):
        array = as_array(name, value)
        if array.dtype.kind != "f" or array.dtype.newbyteorder("=") != dtype:
            raise DTypeError(f"{name} has dtype {array.dtype} but mu has {dtype}")
        if array.shape != (width,):
            raise ShapeError(f"{name} has shape {array.shape}, expected {(width,)}")
        parts.append(np.require(array, dtype=dtype, requirements=["C", "A"]))
    return parts[0], parts[1]


def check_experts(
    mu: Given, logvar: Given, mask: Mask | None, weights: Given | None, prior: Prior
) -> Experts:
    """Check everything against everything, and return it as the kernels take it.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other; the message names the argument.
    """
    names, labels, means, logvars = _split(mu, logvar)
    if not means:
        raise ArgumentError("mu has no expert")
    if means[0].ndim != 2:
        check_dims("B D", **{f"mu{labels[0]}": means[0]})
    shape, dtype = means[0].shape, means[0].dtype
    for label, mean, log in zip(labels, means, logvars, strict=True):
        for name, array in ((f"mu{label}", mean), (f"logvar{label}", log)):
            if array.shape != shape:
                check_dims("B D, B D", **{f"mu{labels[0]}": means[0], name: array})
            if array.dtype != dtype:
                raise DTypeError(f"{name} has dtype {array.dtype} but mu{labels[0]} has {dtype}")
    batch, width = shape
    held, for_all = weights_of(weights, names, len(means), batch, dtype)
    return Experts(
        mu=means,
        logvar=logvars,
        mask=presence(mask, names, len(means), batch),
        weights=held,
        prior=_prior(prior, width, dtype),
        names=names,
        one_weight_for_all_rows=for_all,
    )
