"""Mixtures of products of Gaussian experts as operators of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from .. import ops
from .._validate import check_integer
from ..errors import ArgumentError
from ._fusion import _INPUTS, _WRT, _fake_grads, _flat, _how, _inputs, _sizes
from ._register import Tensor, define, differentiable

__all__ = ["MixtureOfProducts", "mixture_of_products"]


class MixtureOfProducts(NamedTuple):
    """What :func:`mixture_of_products` returns; ``component`` counts in the order of the subsets."""

    z: Tensor
    kl: Tensor
    component: Tensor


def _draw(bits: Sequence[int], component: Any, noise: Any, rng: int | None) -> dict[str, Any]:
    """Return what is drawn and from what, by name; no numbers of subsets stand for all of them."""
    subsets = [[m for m in range(s.bit_length()) if s >> m & 1] for s in bits]
    return {"subsets": subsets or None, "component": component, "noise": noise, "rng": rng}


def _run(mu: Any, logvar: Any, *rest: Any) -> tuple[Any, ...]:
    *how, bits, component, noise, rng, selection = rest
    drawn = _draw(bits, component, noise, rng)
    return tuple(ops.mixture_of_products(mu, logvar, **_how(*how), **drawn, selection=selection))


def _fake(mu: Tensor, logvar: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    batch, width = _sizes(mu, logvar)
    component = mu.new_empty((batch,), dtype=torch.int64)
    return mu.new_empty((batch, width)), mu.new_empty((batch,)), component


def _backward(dz: Any, dkl: Any, mu: Any, logvar: Any, *rest: Any) -> Any:
    *how, bits, component, noise, rng = rest
    drawn = _draw(bits, component, noise, rng)
    return _flat(ops.mixture_of_products_backward(dz, dkl, mu, logvar, **_how(*how), **drawn))


_mixture_of_products = define(
    "mixture_of_products",
    f"({_INPUTS}, int[] subsets, Tensor? component, Tensor? noise, int? rng, str selection)"
    " -> (Tensor z, Tensor kl, Tensor component)",
    _run,
    _fake,
)
_mixture_of_products_backward = define(
    "mixture_of_products_backward",
    f"(Tensor grad_z, Tensor grad_kl, {_INPUTS}, int[] subsets, Tensor component, Tensor? noise, int? rng)"
    " -> (Tensor dmu, Tensor dlogvar, Tensor dweights, Tensor dprior_mean, Tensor dprior_logvar)",
    _backward,
    lambda dz, dkl, *inputs: _fake_grads(*inputs),
    backward_of="mixture_of_products",
)


def _save(inputs: tuple[Any, ...], output: Any) -> tuple[Any, ...]:
    *experts, _, noise, rng, _ = inputs
    return (*experts, output[2], noise, rng)


differentiable(
    _mixture_of_products,
    _WRT,
    save=_save,
    backward=_mixture_of_products_backward,
    constant_results=(2,),
)


def _bits(subsets: Any, mu: Any) -> list[int]:
    """Return a number for each subset, with bit ``m`` for expert ``m``."""
    names = list(mu) if isinstance(mu, Mapping) else None
    out = []
    for i, subset in enumerate(subsets):
        number = 0
        for member in (subset,) if isinstance(subset, str) else subset:
            if names is None:
                m = check_integer(f"subsets[{i}]", member, 0, mu.shape[0] - 1)
            elif member in names:
                m = names.index(member)
            else:
                raise ArgumentError(f"subsets[{i}] has {member!r}, which mu does not have")
            number |= 1 << m
        out.append(number)
    if not out:
        raise ArgumentError("subsets is empty")
    return out


def mixture_of_products(
    mu: Any,
    logvar: Any,
    *,
    subsets: Sequence[Sequence[int | str]] | None = None,
    mask: Any = None,
    weights: Any = None,
    prior: Any = True,
    selection: str = "stratified",
    rng: int | None = None,
    noise: Tensor | None = None,
    component: Tensor | None = None,
) -> MixtureOfProducts:
    """Differentiable :func:`sensorium.ops.mixture_of_products` of tensors.

    By the experts, the weights and a given prior; the choice of components has no gradient.

    Parameters
    ----------
    mu, logvar, mask, weights, prior
        As of :func:`product_of_experts`.
    subsets, selection
        As of :func:`sensorium.ops.mixture_of_products`.
    rng : int, optional
        A seed below 2^63, from which what is not given is drawn.
    noise : tensor (B, D), optional
        Standard normal numbers. Where there is neither noise nor ``rng``, torch draws it, by
        ``torch.randn_like``.
    component : tensor (B,) of integers, optional
        Which of the subsets each row's sample comes from, instead of drawing them.

    Returns
    -------
    MixtureOfProducts
        ``z (B, D)``, ``kl (B,)``, ``component (B,)``.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError, NotImplementedError
        As :func:`sensorium.torch.selective_scan`.

    Examples
    --------
    >>> import torch
    >>> from sensorium.torch import mixture_of_products
    >>> mu, logvar = torch.tensor([[[1.0]], [[3.0]]], requires_grad=True), torch.zeros(2, 1, 1)
    >>> z, kl, component = mixture_of_products(
    ...     mu, logvar, component=torch.tensor([2]), noise=torch.zeros(1, 1)
    ... )
    >>> z.sum().backward()
    >>> z.detach(), mu.grad.ravel()
    (tensor([[1.3333]]), tensor([0.3333, 0.3333]))
    """
    inputs = _inputs(mu, logvar, mask, weights, prior)
    bits = [] if subsets is None else _bits(subsets, mu)
    if component is None and rng is None:
        raise ArgumentError("component or rng must be given")
    if noise is None and rng is None:
        noise = torch.randn_like(inputs[0][0])
    results = _mixture_of_products(*inputs, bits, component, noise, rng, selection)
    return MixtureOfProducts(*results)
