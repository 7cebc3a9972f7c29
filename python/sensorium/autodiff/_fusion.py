"""Products of Gaussian experts and fused posteriors."""

from __future__ import annotations

from typing import Any

import numpy as np
from autograd.core import defvjp_argnums

from .. import ops
from ..errors import ArgumentError
from ..ops.fusion import seed_of
from ._primitive import Vjp, chosen, like, primitive

__all__ = ["fused_posterior", "product_of_experts"]


def _is_dict(value: Any) -> bool:
    """Whether a value is a dict, or autograd's box of one."""
    return hasattr(value, "keys")


class _Form:
    """How the arguments of a call are laid out as one list, since autograd looks into no dict."""

    def __init__(self, mu: Any, logvar: Any, weights: Any, prior: Any, mask: Any) -> None:
        self.names = tuple(mu.keys()) if _is_dict(mu) else None
        self.weighted = weights is not None
        self.pair = not isinstance(prior, (bool, np.bool_))
        self.prior = None if self.pair else bool(prior)
        self.mask = mask

    def flat(self, mu: Any, logvar: Any, weights: Any, prior: Any) -> list[Any]:
        tensors: list[Any] = []
        for argument, given in (("mu", mu), ("logvar", logvar), ("weights", weights)):
            if given is None and argument == "weights":
                continue
            if self.names is None:
                tensors.append(given)
            elif not _is_dict(given) or set(given.keys()) != set(self.names):
                raise ArgumentError(f"{argument} must be a dict with the keys of mu: {', '.join(self.names)}")
            else:
                tensors += [given[name] for name in self.names]
        if not self.pair:
            return tensors
        if not hasattr(prior, "__len__") or len(prior) != 2:
            raise ArgumentError("prior must be True, False, or a pair of mean and logvar")
        return [*tensors, prior[0], prior[1]]

    def call(self, tensors: tuple[Any, ...]) -> tuple[Any, Any, dict[str, Any]]:
        """Return mu, logvar and the other arguments."""
        rest = list(tensors)

        def take() -> Any:
            if self.names is None:
                return rest.pop(0)
            return {name: rest.pop(0) for name in self.names}

        mu, logvar = take(), take()
        how = {"mask": self.mask, "weights": take() if self.weighted else None}
        how["prior"] = tuple(rest) if self.pair else self.prior
        return mu, logvar, how

    def grads(self, grads: ops.ProductOfExpertsGrads, tensors: tuple[Any, ...]) -> list[Any]:
        """Return gradients in the order of the list."""
        flat: list[Any] = []
        for grad in (grads.mu, grads.logvar, *([grads.weights] if self.weighted else [])):
            flat += [grad] if self.names is None else [grad[name] for name in self.names]
        flat += grads.prior or []
        # A weight that is one number has the gradients of all rows.
        return [
            like(grad, np.asarray(tensor)) if np.ndim(tensor) else float(np.sum(grad))
            for grad, tensor in zip(flat, tensors, strict=True)
        ]


@primitive
def _product_of_experts(form: _Form, normaliser: bool, *tensors: Any) -> Any:
    mu, logvar, how = form.call(tensors)
    return ops.product_of_experts(mu, logvar, **how, return_log_normaliser=normaliser)


def _product_of_experts_vjp(argnums: tuple[int, ...], ans: Any, args: Any, kwargs: Any) -> Vjp:
    form, _, *tensors = args
    mu, logvar, how = form.call(tensors)

    def vjp(g: Any) -> tuple[Any, ...]:
        dmean, dlogvar, *normaliser = (like(part, of) for part, of in zip(g, ans, strict=True))
        of_normaliser = normaliser[0] if normaliser else None
        grads = ops.product_of_experts_backward(
            dmean, dlogvar, mu, logvar, **how, grad_log_normaliser=of_normaliser
        )
        return chosen(argnums, (None, None, *form.grads(grads, tensors)))

    return vjp


defvjp_argnums(_product_of_experts, _product_of_experts_vjp)


def product_of_experts(
    mu: Any,
    logvar: Any,
    *,
    mask: Any = None,
    weights: Any = None,
    prior: Any = True,
    return_log_normaliser: bool = False,
) -> Any:
    """Differentiable :func:`sensorium.ops.product_of_experts`, by all but the mask."""
    form = _Form(mu, logvar, weights, prior, mask)
    tensors = form.flat(mu, logvar, weights, prior)
    results = _product_of_experts(form, bool(return_log_normaliser), *tensors)
    return tuple(results[i] for i in range(3 if return_log_normaliser else 2))


@primitive
def _fused_posterior(form: _Form, noise: dict[str, Any], moments: bool, *tensors: Any) -> Any:
    mu, logvar, how = form.call(tensors)
    results = ops.fused_posterior(mu, logvar, **how, **noise, moments=moments)
    return tuple(results) if moments else (results.z, results.kl)


def _fused_posterior_vjp(argnums: tuple[int, ...], ans: Any, args: Any, kwargs: Any) -> Vjp:
    form, noise, _, *tensors = args
    mu, logvar, how = form.call(tensors)

    def vjp(g: Any) -> tuple[Any, ...]:
        dz, dkl, *of_moments = (like(part, of) for part, of in zip(g, ans, strict=True))
        dmean, dlogvar = of_moments or (None, None)
        grads = ops.fused_posterior_backward(
            dz, dkl, mu, logvar, **how, **noise, grad_mean=dmean, grad_logvar=dlogvar
        )
        return chosen(argnums, (None, None, None, *form.grads(grads, tensors)))

    return vjp


defvjp_argnums(_fused_posterior, _fused_posterior_vjp)


def fused_posterior(
    mu: Any,
    logvar: Any,
    *,
    mask: Any = None,
    weights: Any = None,
    prior: Any = True,
    noise: Any = None,
    rng: Any = None,
    moments: bool = True,
) -> ops.FusedPosterior:
    """Differentiable :func:`sensorium.ops.fused_posterior`, by all but the mask and the noise."""
    form = _Form(mu, logvar, weights, prior, mask)
    drawn = {"noise": noise, "rng": None if rng is None else seed_of(rng)}
    results = _fused_posterior(form, drawn, bool(moments), *form.flat(mu, logvar, weights, prior))
    mean, log = (results[2], results[3]) if moments else (None, None)
    return ops.FusedPosterior(results[0], results[1], mean, log)
