"""Mixtures of Gaussian experts, and of their products over subsets."""

from __future__ import annotations

from typing import Any

import numpy as np
from autograd.core import defvjp_argnums

from .. import ops
from ..ops._experts import check_experts
from ..ops._gaussian import quarter, quiet, standardised
from ..ops.fusion import seed_of
from ..ops.mixture import check_mixture, mixture_terms
from ._fusion import _Form
from ._primitive import Vjp, chosen, like, primitive

__all__ = ["gaussian_mixture_log_prob", "mixture_of_experts", "mixture_of_products"]


@primitive
def _mixture_of_products(form: _Form, options: dict[str, Any], kept: list[Any], *tensors: Any) -> Any:
    mu, logvar, how = form.call(tensors)
    results = ops.mixture_of_products(mu, logvar, **how, **options)
    kept[:] = [results.component]
    return results.z, results.kl


def _mixture_of_products_vjp(argnums: tuple[int, ...], ans: Any, args: Any, kwargs: Any) -> Vjp:
    form, options, kept, *tensors = args
    mu, logvar, how = form.call(tensors)
    same = {name: options[name] for name in ("subsets", "rng", "noise")}

    def vjp(g: Any) -> tuple[Any, ...]:
        dz, dkl = (like(part, of) for part, of in zip(g, ans, strict=True))
        grads = ops.mixture_of_products_backward(dz, dkl, mu, logvar, component=kept[0], **how, **same)
        return chosen(argnums, (None, None, None, *form.grads(grads, tensors)))

    return vjp


defvjp_argnums(_mixture_of_products, _mixture_of_products_vjp)


def mixture_of_products(
    mu: Any,
    logvar: Any,
    *,
    subsets: Any = None,
    mask: Any = None,
    weights: Any = None,
    prior: Any = True,
    selection: str = "stratified",
    rng: Any = None,
    noise: Any = None,
    component: Any = None,
) -> ops.MixtureOfProducts:
    """Differentiable :func:`sensorium.ops.mixture_of_products`, by experts, weights and a given prior.

    The choice of components has no gradient.
    """
    form = _Form(mu, logvar, weights, prior, mask)
    kept: list[Any] = []
    options = {
        "subsets": subsets,
        "selection": selection,
        "rng": None if rng is None else seed_of(rng),
        "noise": noise,
        "component": component,
    }
    z_and_kl = _mixture_of_products(form, options, kept, *form.flat(mu, logvar, weights, prior))
    return ops.MixtureOfProducts(z_and_kl[0], z_and_kl[1], kept[0])


def _per_expert(form: _Form, grads: tuple[Any, Any], tensors: tuple[Any, ...]) -> list[Any]:
    """Return gradients by means and by logarithms of variances, each a list, in the order of a form."""
    flat = list(map(np.stack, grads)) if form.names is None else [*grads[0], *grads[1]]
    return [like(grad, np.asarray(tensor)) for grad, tensor in zip(flat, tensors, strict=True)]


@primitive
def _mixture_of_experts(form: _Form, options: dict[str, Any], kept: list[Any], *tensors: Any) -> Any:
    mu, logvar, _ = form.call(tensors)
    results = ops.mixture_of_experts(mu, logvar, mask=form.mask, **options)
    kept[:] = [results.component]
    return results.z


def _mixture_of_experts_vjp(argnums: tuple[int, ...], ans: Any, args: Any, kwargs: Any) -> Vjp:
    form, _, kept, *tensors = args
    mu, logvar, _ = form.call(tensors)

    def vjp(g: Any) -> tuple[Any, ...]:
        experts = check_experts(mu, logvar, None, None, False)
        grad, component = like(g, ans), kept[0]
        dmu = [np.zeros(experts.shape, experts.dtype) for _ in experts.mu]
        dlogvar = [np.zeros(experts.shape, experts.dtype) for _ in experts.mu]
        for m in range(len(dmu)):
            at = np.nonzero(component == m)
            row = at[-1]
            # A row is there several times where it has several samples.
            np.add.at(dmu[m], row, grad[at])
            np.add.at(dlogvar[m], row, grad[at] * (ans[at] - experts.mu[m][row]) / 2)
        return chosen(argnums, (None, None, None, *_per_expert(form, (dmu, dlogvar), tuple(tensors))))

    return vjp


defvjp_argnums(_mixture_of_experts, _mixture_of_experts_vjp)


def mixture_of_experts(
    mu: Any,
    logvar: Any,
    *,
    mask: Any = None,
    weights: Any = None,
    selection: str = "stratified",
    rng: Any = None,
    noise: Any = None,
    component: Any = None,
    num_samples: int | None = None,
) -> ops.MixtureSample:
    """Differentiable :func:`sensorium.ops.mixture_of_experts`, by the experts.

    The choice of components, which the weights are for, has no gradient.
    """
    form = _Form(mu, logvar, None, True, mask)
    kept: list[Any] = []
    options = {
        "weights": weights,
        "selection": selection,
        "rng": rng,
        "noise": noise,
        "component": component,
        "num_samples": num_samples,
    }
    z = _mixture_of_experts(form, options, kept, *form.flat(mu, logvar, None, True))
    return ops.MixtureSample(z, kept[0])


@primitive
def _log_prob(form: _Form, weights: Any, z: Any, *tensors: Any) -> Any:
    mu, logvar, _ = form.call(tensors)
    return ops.gaussian_mixture_log_prob(z, mu, logvar, mask=form.mask, weights=weights)


def _log_prob_vjp(argnums: tuple[int, ...], ans: Any, args: Any, kwargs: Any) -> Vjp:
    form, weights, z, *tensors = args
    mu, logvar, _ = form.call(tensors)

    def vjp(g: Any) -> tuple[Any, ...]:
        array, experts = check_mixture(z, mu, logvar, form.mask, weights)
        terms, means, logs = mixture_terms(array, experts)
        outer, total = np.asarray(g, dtype=np.float64), np.asarray(ans, dtype=np.float64)
        dz = np.zeros(array.shape)
        dmu, dlogvar = [], []
        leading = tuple(range(array.ndim - 2))
        for term, mean, log in zip(terms, means, logs, strict=True):
            with quiet():
                share = (outer * np.exp(term - np.where(np.isfinite(total), total, 0)))[..., None]
                root = quarter(log)
                apart = standardised(array - mean, root)
                # Where an expert has no share, nothing of it counts, whatever its own slope.
                slope = np.where(share == 0, 0, share * standardised(apart, root))
                curve = np.where(share == 0, 0, share * (apart * apart - 1) / 2)
            dz -= slope
            dmu.append(slope.sum(axis=leading))
            dlogvar.append(curve.sum(axis=leading))
        grads = _per_expert(form, (dmu, dlogvar), tuple(tensors))
        return chosen(argnums, (None, None, like(dz, np.asarray(z)), *grads))

    return vjp


defvjp_argnums(_log_prob, _log_prob_vjp)


def gaussian_mixture_log_prob(z: Any, mu: Any, logvar: Any, *, mask: Any = None, weights: Any = None) -> Any:
    """Differentiable :func:`sensorium.ops.gaussian_mixture_log_prob`, by ``z`` and the experts."""
    form = _Form(mu, logvar, None, True, mask)
    return _log_prob(form, weights, z, *form.flat(mu, logvar, None, True))
