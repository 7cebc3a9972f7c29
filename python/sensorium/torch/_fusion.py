"""Products of Gaussian experts and fused posteriors as operators of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from .. import ops
from .._validate import check_dims, check_integer
from ..errors import ArgumentError
from ._register import Tensor, check_float, define, differentiable, empty_like, or_empty

__all__ = ["FusedPosterior", "fused_posterior", "product_of_experts"]

_WRT = ("mu", "logvar", "weights", "prior_mean", "prior_logvar")
_INPUTS = (
    "Tensor mu, Tensor logvar, Tensor? mask, Tensor? weights, Tensor? prior_mean, Tensor? prior_logvar, "
    "bool standard"
)
_NOISE = "Tensor? noise, int? rng"


class FusedPosterior(NamedTuple):
    """What :func:`fused_posterior` returns; mean and logvar are None where they were not asked for."""

    z: Tensor
    kl: Tensor
    mean: Tensor | None
    logvar: Tensor | None


def _how(mask: Any, weights: Any, mean: Any, logvar: Any, standard: bool) -> dict[str, Any]:
    return {"mask": mask, "weights": weights, "prior": standard if mean is None else (mean, logvar)}


def _flat(grads: ops.ProductOfExpertsGrads) -> tuple[np.ndarray[Any, Any], ...]:
    """Return gradients of ``_WRT``."""
    return or_empty([grads.mu, grads.logvar, grads.weights, *(grads.prior or (None, None))])


def _sizes(mu: Tensor, logvar: Tensor) -> tuple[Any, Any]:
    check_float("mu", mu)
    sizes = check_dims("M B D, M B D", mu=mu, logvar=logvar)
    return sizes["B"], sizes["D"]


def _fake_grads(mu: Tensor, logvar: Tensor, mask: Any, *rest: Any) -> tuple[Tensor, ...]:
    weights, mean, log = rest[:3]
    return empty_like([mu, logvar, weights, mean, log])


_product_of_experts = define(
    "product_of_experts",
    f"({_INPUTS}) -> (Tensor mean, Tensor logvar)",
    lambda mu, logvar, *how: ops.product_of_experts(mu, logvar, **_how(*how)),
    lambda mu, logvar, *how: (mu.new_empty(_sizes(mu, logvar)), mu.new_empty(_sizes(mu, logvar))),
)
_product_of_experts_backward = define(
    "product_of_experts_backward",
    f"(Tensor grad_mean, Tensor grad_logvar, {_INPUTS})"
    " -> (Tensor dmu, Tensor dlogvar, Tensor dweights, Tensor dprior_mean, Tensor dprior_logvar)",
    lambda grad_mean, grad_logvar, mu, logvar, *how: _flat(
        ops.product_of_experts_backward(grad_mean, grad_logvar, mu, logvar, **_how(*how))
    ),
    lambda grad_mean, grad_logvar, *inputs: _fake_grads(*inputs),
    backward_of="product_of_experts",
)
differentiable(
    _product_of_experts,
    _WRT,
    save=lambda inputs, output: inputs,
    backward=_product_of_experts_backward,
)


def _fused_run(mu: Any, logvar: Any, *rest: Any) -> tuple[Any, ...]:
    *how, noise, rng, moments = rest
    return or_empty(ops.fused_posterior(mu, logvar, **_how(*how), noise=noise, rng=rng, moments=moments))


def _fused_fake(mu: Tensor, logvar: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    shape = _sizes(mu, logvar)
    moment = shape if rest[-1] else (0,)
    return mu.new_empty(shape), mu.new_empty(shape[:1]), mu.new_empty(moment), mu.new_empty(moment)


def _fused_backward(dz: Any, dkl: Any, dmean: Any, dlogvar: Any, mu: Any, logvar: Any, *rest: Any) -> Any:
    *how, noise, rng, moments = rest
    grad_mean, grad_logvar = (dmean, dlogvar) if moments else (None, None)
    return _flat(
        ops.fused_posterior_backward(
            dz,
            dkl,
            mu,
            logvar,
            **_how(*how),
            noise=noise,
            rng=rng,
            grad_mean=grad_mean,
            grad_logvar=grad_logvar,
        )
    )


_fused_posterior = define(
    "fused_posterior",
    f"({_INPUTS}, {_NOISE}, bool moments) -> (Tensor z, Tensor kl, Tensor mean, Tensor logvar)",
    _fused_run,
    _fused_fake,
)
_fused_posterior_backward = define(
    "fused_posterior_backward",
    "(Tensor grad_z, Tensor grad_kl, Tensor grad_mean, Tensor grad_logvar, "
    f"{_INPUTS}, {_NOISE}, bool moments)"
    " -> (Tensor dmu, Tensor dlogvar, Tensor dweights, Tensor dprior_mean, Tensor dprior_logvar)",
    _fused_backward,
    lambda dz, dkl, dmean, dlogvar, *inputs: _fake_grads(*inputs),
    backward_of="fused_posterior",
)
differentiable(
    _fused_posterior,
    _WRT,
    save=lambda inputs, output: inputs,
    backward=_fused_posterior_backward,
)


def _stacked(name: str, value: Any, names: tuple[str, ...] | None, like: Tensor | None = None) -> Any:
    """Return a tensor over all experts: a dict is stacked in the order of the names."""
    if names is None:
        if isinstance(value, Mapping):
            raise ArgumentError(f"{name} must be a tensor, as mu is")
        return value
    if not isinstance(value, Mapping) or set(value) != set(names):
        raise ArgumentError(f"{name} must be a dict with the keys of mu: {', '.join(map(repr, names))}")
    parts = [value[key] for key in names]
    if like is not None:  # one value, or one for each row
        dtype = torch.bool if name == "mask" else like.dtype
        parts = [torch.as_tensor(part, dtype=dtype).expand(like.shape[1]) for part in parts]
    return torch.stack(parts)


def _inputs(mu: Any, logvar: Any, mask: Any, weights: Any, prior: Any) -> tuple[Any, ...]:
    """Return the arguments of the operators."""
    names = tuple(mu) if isinstance(mu, Mapping) else None
    if names == ():
        raise ArgumentError("mu has no expert")
    mu, logvar = _stacked("mu", mu, names), _stacked("logvar", logvar, names)
    mask, weights = (
        None if value is None else _stacked(name, value, names, mu)
        for name, value in (("mask", mask), ("weights", weights))
    )
    if isinstance(prior, bool):
        return mu, logvar, mask, weights, None, None, prior
    if not isinstance(prior, (tuple, list)) or len(prior) != 2:
        raise ArgumentError("prior must be True, False, or a pair of mean and logvar")
    return mu, logvar, mask, weights, prior[0], prior[1], False


def product_of_experts(
    mu: Any, logvar: Any, *, mask: Any = None, weights: Any = None, prior: Any = True
) -> tuple[Tensor, Tensor]:
    """Differentiable :func:`sensorium.ops.product_of_experts` of tensors, by all but the mask.

    Parameters
    ----------
    mu, logvar, mask, weights, prior
        As of :func:`sensorium.ops.product_of_experts`, of tensors: ``(M, B, D)``, or dicts, which are
        stacked; ``float32`` or ``float64``.

    Returns
    -------
    mean, logvar : tensor (B, D)

    Raises
    ------
    ShapeError, DTypeError, ArgumentError, NotImplementedError
        As :func:`sensorium.torch.selective_scan`.

    Examples
    --------
    >>> import torch
    >>> from sensorium.torch import product_of_experts
    >>> mean, logvar = product_of_experts(torch.tensor([[[1.0]], [[3.0]]]), torch.zeros(2, 1, 1), prior=False)
    >>> mean, logvar.exp()
    (tensor([[2.]]), tensor([[0.5000]]))
    """
    mean, log = _product_of_experts(*_inputs(mu, logvar, mask, weights, prior))
    return mean, log


def fused_posterior(
    mu: Any,
    logvar: Any,
    *,
    mask: Any = None,
    weights: Any = None,
    prior: Any = True,
    noise: Tensor | None = None,
    rng: int | None = None,
    moments: bool = True,
) -> FusedPosterior:
    """Differentiable :func:`sensorium.ops.fused_posterior` of tensors, by all but the mask and the noise.

    Parameters
    ----------
    mu, logvar, mask, weights, prior, moments
        As of :func:`product_of_experts` and :func:`sensorium.ops.fused_posterior`.
    noise : tensor (B, D), optional
        Standard normal numbers. Where there is neither noise nor ``rng``, torch draws it, by
        ``torch.randn_like``.
    rng : int, optional
        A seed below 2^63: the kernel draws the noise, forward and again backward, and no tensor holds it.

    Returns
    -------
    FusedPosterior
        ``z (B, D)``, ``kl (B,)``, ``mean (B, D)``, ``logvar (B, D)``; the last two None without ``moments``.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError, NotImplementedError
        As :func:`sensorium.torch.selective_scan`.

    Examples
    --------
    >>> import torch
    >>> from sensorium.torch import fused_posterior
    >>> mu, logvar = torch.zeros(2, 4, 8, requires_grad=True), torch.zeros(2, 4, 8)
    >>> z, kl, mean, log = fused_posterior(mu, logvar, rng=1)
    >>> kl.sum().backward()
    >>> mu.grad.shape, bool((mean == 0).all())
    (torch.Size([2, 4, 8]), True)
    """
    inputs = _inputs(mu, logvar, mask, weights, prior)
    if noise is None and rng is None:
        noise = torch.randn_like(inputs[0][0])
    elif rng is not None:
        rng = check_integer("rng", rng, 0, 2**63 - 1)
    z, kl, mean, log = _fused_posterior(*inputs, noise, rng, bool(moments))
    return FusedPosterior(z, kl, mean, log) if moments else FusedPosterior(z, kl, None, None)
