"""Mixtures of Gaussian experts, and of their products over subsets of the modalities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core
from .._validate import as_array, as_floats, check_integer
from ..errors import ArgumentError, DTypeError, ShapeError
from ._experts import Array, Experts, Given, Mask, Prior, check_experts, gradient
from .fusion import ProductOfExpertsGrads, noise_or_seed, normal_noise, seed_of
from .gaussian import gaussian_log_prob

__all__ = [
    "MixtureOfProducts",
    "MixtureOfProductsGrads",
    "MixtureSample",
    "SubsetProducts",
    "gaussian_mixture_log_prob",
    "mixture_of_experts",
    "mixture_of_products",
    "mixture_of_products_backward",
    "subset_products",
]

Bools = NDArray[np.bool_]
Indices = NDArray[np.int64]
Rng = np.random.Generator | int | None
#: Indices, or names, of the experts of each subset.
Subsets = Sequence[Sequence[int | str]]

#: Most experts of which all subsets are taken.
MAX_EXPERTS = 12


class MixtureSample(NamedTuple):
    """A sample of a mixture, and the component that each row of it comes from."""

    z: Array
    component: Indices


class MixtureOfProducts(NamedTuple):
    """What :func:`mixture_of_products` returns; ``component`` counts in the order of the subsets."""

    z: Array
    kl: Array
    component: Indices


#: Gradients of :func:`mixture_of_products`.
MixtureOfProductsGrads = ProductOfExpertsGrads


class SubsetProducts(NamedTuple):
    """A product of experts for each subset; 0 both where ``present`` is False."""

    mean: Array
    logvar: Array
    #: The experts of each subset: indices, or names where experts were given by names.
    subsets: tuple[tuple[Any, ...], ...]
    #: ``(K, B)``: whether a row has all experts of a subset.
    present: Bools


def _presence(experts: Experts) -> Bools | None:
    """Return which rows have which experts, ``(M, B)``; None where all have all."""
    mask = experts.mask
    if experts.weights is None:
        return mask
    if not ((experts.weights >= 0) & (experts.weights < np.inf)).all():
        raise ArgumentError("weights must be finite and not negative")
    weighted = experts.weights > 0
    return weighted if mask is None else mask & weighted


def _subset_bits(subsets: Subsets | None, experts: Experts) -> NDArray[np.uint32]:
    """Return a number for each subset, with bit ``m`` for expert ``m``."""
    count = len(experts.mu)
    if count > MAX_EXPERTS:
        raise ArgumentError(f"mu has {count} experts, and subsets are made of 1 to {MAX_EXPERTS}")
    if subsets is None:
        return np.arange(1, 2**count, dtype=np.uint32)
    bits: list[int] = []
    for i, subset in enumerate(subsets):
        number = 0
        for member in (subset,) if isinstance(subset, str) else subset:
            if experts.names is not None:
                if member not in experts.names:
                    raise ArgumentError(f"subsets[{i}] has {member!r}, which mu does not have")
                m = experts.names.index(str(member))
            else:
                m = check_integer(f"subsets[{i}]", member, 0, count - 1)
            if number >> m & 1:
                raise ArgumentError(f"subsets[{i}] has {member!r} twice")
            number |= 1 << m
        if not number:
            raise ArgumentError(f"subsets[{i}] is empty")
        if number in bits:
            raise ArgumentError(f"subsets[{i}] is the same as subsets[{bits.index(number)}]")
        bits.append(number)
    if not bits:
        raise ArgumentError("subsets is empty")
    return np.array(bits, dtype=np.uint32)


def _eligible(bits: NDArray[np.uint32], present: Bools | None, batch: int) -> Bools | None:
    """Return which subsets each row has, ``(K, B)``; None where all have all."""
    if present is None:
        return None
    missing = np.zeros(batch, dtype=np.uint32)
    for m, row in enumerate(present):
        missing |= np.where(row, 0, 1 << m).astype(np.uint32)
    eligible = (bits[:, None] & missing) == 0
    _check_rows(eligible, "a subset")
    return np.asarray(eligible)


def _check_rows(eligible: Bools, what: str) -> None:
    alone = ~eligible.any(axis=0)
    if alone.any():
        raise ArgumentError(f"mask leaves row {int(alone.argmax())} without {what}")


def _choose(
    eligible: Bools | None,
    weights: Array | None,
    sizes: tuple[int, int, int],
    selection: str,
    rng: np.random.Generator,
) -> Indices:
    """Draw components ``(N, B)``, each row's of those that it has, by weights ``(K, B)`` or all alike.

    Stratified, rows with the same components share them out: how often two are chosen differs by at most one,
    and every row has each of its components with the same probability all the same.
    """
    samples, count, batch = sizes
    if selection not in ("stratified", "sampled"):
        raise ArgumentError(f'selection must be "stratified" or "sampled", not {selection!r}')
    stratified = selection == "stratified"
    if weights is not None:
        share = weights if eligible is None else np.where(eligible, weights, 0)
        edges = np.cumsum(share, axis=0, dtype=np.float64)
        u = rng.random((samples, batch))
        if stratified:
            steps = rng.permutation(u.size).reshape(u.shape)
            u = (steps + rng.random()) / max(u.size, 1)
        below = edges <= u[:, None] * edges[-1]
        # Rounding may put a number at the very end; what has no weight there is passed over.
        last = count - 1 - (share[::-1] > 0).argmax(axis=0)
        return np.asarray(np.minimum(below.sum(axis=1), last), dtype=np.int64)
    if eligible is None:
        eligible = np.ones((count, 1), dtype=np.bool_)
        group = np.zeros(batch, dtype=np.int64)
    else:
        packed = np.packbits(eligible, axis=0)
        _, first, group = np.unique(packed, axis=1, return_index=True, return_inverse=True)
        eligible, group = eligible[:, first], group.reshape(-1)
    number = eligible.sum(axis=0)
    if stratified:
        order = rng.permutation(batch)
        order = order[np.argsort(group[order], kind="stable")]
        sizes_of = np.bincount(group, minlength=len(number))
        rank = np.empty(batch, dtype=np.int64)
        rank[order] = np.arange(batch) - np.repeat(np.cumsum(sizes_of) - sizes_of, sizes_of)
        turn = rng.integers(number) if batch else np.zeros(len(number), dtype=np.int64)
        place = (rank * samples + turn[group] + np.arange(samples)[:, None]) % number[group]
    else:
        place = rng.integers(np.broadcast_to(number[group], (samples, batch)))
    shuffle = rng.permutation(count)
    table = np.argsort(~eligible[shuffle], axis=0, kind="stable")
    return np.asarray(shuffle[table[place, group]], dtype=np.int64)


def _generator(rng: Rng, why: str) -> np.random.Generator:
    if rng is None:
        raise ArgumentError(f"{why} or rng must be given")
    return rng if isinstance(rng, np.random.Generator) else np.random.default_rng(seed_of(rng))


def _components(component: ArrayLike, count: int, batch: int) -> Indices:
    array = as_array("component", component)
    if array.dtype.kind not in "iu" and array.size:
        raise DTypeError(f"component has dtype {array.dtype}, expected integers")
    if array.shape != (batch,):
        raise ShapeError(f"component has shape {array.shape}, expected {(batch,)}")
    if array.size and (array.min() < 0 or array.max() >= count):
        bad = array.min() if array.min() < 0 else array.max()
        raise ArgumentError(f"component holds {bad}, expected indices from 0 to {count - 1}")
    return array.astype(np.int64)


def mixture_of_products(
    mu: Given,
    logvar: Given,
    *,
    subsets: Subsets | None = None,
    mask: Mask | None = None,
    weights: Given | None = None,
    prior: Prior = True,
    selection: str = "stratified",
    rng: Rng = None,
    noise: ArrayLike | None = None,
    component: ArrayLike | None = None,
) -> MixtureOfProducts:
    """Return a sample of the mixture of all subsets' products, and their mean divergence, in one pass.

    The posterior of MoPoE: a product of experts for each subset of the modalities that a row has, and the
    mixture of these with equal weights. A row's sample comes from the product of one of them,
    ``z = mean + exp(logvar / 2) * noise``; ``kl`` is the mean over all of the row's subsets of the
    Kullback-Leibler divergence from ``N(0, I)``, or from the prior where that is a pair, which bounds that of
    the mixture. A subset costs two additions, a quarter of a division and a quarter of taking an exponent.

    Parameters
    ----------
    mu, logvar : array (M, B, D), or dict of arrays (B, D)
        Means and logarithms of variances of M experts, 1 to 12, ``float32`` or ``float64``.
    subsets : sequence of sequences of int or str, optional
        Indices, or names where ``mu`` is a dict, of the experts of each of K subsets; a row takes part in
        those of which it has all experts. All ``2**M - 1`` where not given, in the order of the numbers whose
        bits are the experts: {0}, {1}, {0, 1}, {2}, ...
    mask : bool array (M, B) or (M,), or dict of bool or bool arrays (B,), optional
        Whether an expert is present. Nothing of a missing one is read: it may hold NaN.
    weights : array (M, B) or (M,), or dict of numbers or arrays (B,), optional
        Factors of precisions, at least 0; an expert of weight 0 is as good as missing.
    prior : bool, or pair of arrays (D,)
        One more expert in every subset: ``N(0, I)``, none with False, or mean and logvar of the pair, whose
        deviation must be a normal number.
    selection : "stratified" or "sampled"
        Stratified, rows with the same experts share their subsets out: how often two are chosen differs by at
        most one. Sampled, each row draws on its own. Either way a row has every subset with the same
        probability.
    rng : Generator or int, optional
        Where components and noise are drawn from. With an integer the noise is that of
        :func:`normal_noise`, and the backward draws it again from the same number.
    noise : array (B, D), optional
        Standard normal numbers, instead of drawing them.
    component : array (B,) of integers, optional
        Which of the subsets each row's sample comes from, instead of drawing them.

    Returns
    -------
    MixtureOfProducts
        ``z (B, D)``, ``kl (B,)``, ``component (B,)``.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other, or a row has no subset; the message names it.

    References
    ----------
    Sutter, Daunhawer and Vogt (2021), Generalized Multimodal ELBO, arXiv:2105.02470.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import mixture_of_products
    >>> mu, logvar = np.array([[[1.0]], [[3.0]]]), np.zeros((2, 1, 1))
    >>> z, kl, component = mixture_of_products(mu, logvar, component=[2], noise=np.zeros((1, 1)))
    >>> z  # of the product of both experts and the prior
    array([[1.33333333]])
    >>> np.round(kl, 6)
    array([0.849336])
    """
    experts = check_experts(mu, logvar, mask, weights, prior)
    bits = _subset_bits(subsets, experts)
    batch = experts.shape[0]
    eligible = _eligible(bits, _presence(experts), batch)
    if component is None:
        generator = _generator(rng, "component")
        which = _choose(eligible, None, (1, len(bits), batch), selection, generator)[0]
        rng = seed_of(generator) if noise is None and generator is rng else rng
    else:
        if selection not in ("stratified", "sampled"):
            raise ArgumentError(f'selection must be "stratified" or "sampled", not {selection!r}')
        which = _components(component, len(bits), batch)
    given, seed = noise_or_seed(noise, rng, experts)
    z, kl = np.empty(experts.shape, experts.dtype), np.empty(batch, experts.dtype)
    draw = (None if subsets is None else bits, bits[which])
    _core.mixture_of_products(experts.mu, experts.logvar, experts.how, draw, given, seed, (z, kl))
    return MixtureOfProducts(z, kl, which)


def mixture_of_products_backward(
    grad_z: ArrayLike | None,
    grad_kl: ArrayLike | None,
    mu: Given,
    logvar: Given,
    *,
    component: ArrayLike,
    subsets: Subsets | None = None,
    mask: Mask | None = None,
    weights: Given | None = None,
    prior: Prior = True,
    rng: int | None = None,
    noise: ArrayLike | None = None,
) -> MixtureOfProductsGrads:
    """Return the gradients of :func:`mixture_of_products`, in one pass.

    Parameters
    ----------
    grad_z : array (B, D), optional
        Gradient of the sample; None where it is zero.
    grad_kl : array (B,), optional
        Gradient of the divergence; None where it is zero.
    mu, logvar, subsets, mask, weights, prior
        As given to the forward.
    component : array (B,) of integers
        What the forward returned.
    rng : int, optional
        The integer that the forward was given.
    noise : array (B, D), optional
        The noise that the forward was given.

    Returns
    -------
    MixtureOfProductsGrads
        ``mu`` and ``logvar`` in the form that they were given in, zero for missing experts; ``weights`` and
        ``prior`` where they were given, and None otherwise. The choice of components has no gradient.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other; the message names the argument.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import mixture_of_products_backward
    >>> mu, logvar = np.array([[[1.0]], [[3.0]]]), np.zeros((2, 1, 1))
    >>> grads = mixture_of_products_backward(
    ...     np.ones((1, 1)), None, mu, logvar, component=[0], noise=np.zeros((1, 1))
    ... )
    >>> grads.mu.ravel(), grads.logvar.ravel()
    (array([0.5, 0. ]), array([-0.25,  0.  ]))
    """
    experts = check_experts(mu, logvar, mask, weights, prior)
    bits = _subset_bits(subsets, experts)
    batch = experts.shape[0]
    _eligible(bits, _presence(experts), batch)
    which = _components(component, len(bits), batch)
    if noise is None and not (rng is None or isinstance(rng, (int, np.integer))):
        raise DTypeError("rng must be an integer: the generator has moved on")
    given, seed = noise_or_seed(noise, rng, experts)
    of_z = gradient("grad_z", grad_z, experts.shape, experts)
    of_kl = gradient("grad_kl", grad_kl, experts.shape[:1], experts)
    grads = (
        np.zeros(experts.shape, experts.dtype) if of_z is None else of_z,
        np.zeros(experts.shape[0], experts.dtype) if of_kl is None else of_kl,
    )
    draw = (None if subsets is None else bits, bits[which])
    wanted = experts.unwritten_grads()
    _core.mixture_of_products_backward(
        experts.mu, experts.logvar, experts.how, draw, given, seed, grads, wanted
    )
    return MixtureOfProductsGrads(*experts.form_grads(wanted))


def _clean(array: Array, row: Bools | None) -> Array:
    """Return an expert's array with zeros where rows lack it, so that nothing of these is used."""
    return array if row is None else np.where(row[:, None], array, np.zeros((), array.dtype))


def subset_products(
    mu: Given,
    logvar: Given,
    *,
    subsets: Subsets | None = None,
    mask: Mask | None = None,
    weights: Given | None = None,
    prior: Prior = True,
) -> SubsetProducts:
    """Return the product of experts for each subset of the modalities.

    Each is made of the subset without its lowest expert, in logarithms of precisions: with ``l`` that of the
    subset and ``t`` that of the expert that joins it, ``logaddexp(l, t)`` is that of both, and the expert has
    the share ``sigmoid(t - l)`` of the mean. So experts may differ by any factor.

    Parameters
    ----------
    mu, logvar, subsets, mask, weights, prior
        As of :func:`mixture_of_products`.

    Returns
    -------
    SubsetProducts
        ``mean`` and ``logvar`` of shape (K, B, D), ``subsets``, and ``present`` (K, B). A row that lacks an
        expert of a subset has mean and logvar 0 there. Mean, logvar and, as the mask, ``present`` are what
        :func:`gaussian_mixture_log_prob` takes for the density of the mixture.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        As :func:`mixture_of_products`.

    References
    ----------
    Sutter, Daunhawer and Vogt (2021), arXiv:2105.02470.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import subset_products
    >>> experts = {"eye": np.array([[1.0]]), "ear": np.array([[3.0]])}
    >>> parts = subset_products(experts, {name: np.zeros((1, 1)) for name in experts}, prior=False)
    >>> for subset, mean, logvar in zip(parts.subsets, parts.mean, parts.logvar):
    ...     print(subset, mean[0], np.round(logvar[0], 4))
    ('eye',) [1.] [0.]
    ('ear',) [3.] [0.]
    ('eye', 'ear') [2.] [-0.6931]
    """
    experts = check_experts(mu, logvar, mask, weights, prior)
    bits = _subset_bits(subsets, experts)
    presence = _presence(experts)
    batch, width = experts.shape
    eligible = _eligible(bits, presence, batch)
    if eligible is None:
        eligible = np.ones((len(bits), batch), dtype=np.bool_)
    logs, means = [], []
    for m, (mean, log) in enumerate(zip(experts.mu, experts.logvar, strict=True)):
        row = None if presence is None else presence[m]
        shift = np.zeros((batch, 1), experts.dtype)
        if experts.weights is not None:
            weight = np.where(experts.weights[m] > 0, experts.weights[m], 1)
            shift = np.log(weight, dtype=experts.dtype)[:, None]
        logs.append(shift - _clean(log, row))
        means.append(_clean(mean, row))
    nodes: dict[int, tuple[Array, Array]] = {}
    if isinstance(experts.prior, tuple):
        nodes[0] = (np.broadcast_to(-experts.prior[1], experts.shape), experts.prior[0])
    elif experts.prior:
        nodes[0] = (np.zeros(experts.shape, experts.dtype), np.zeros((), experts.dtype))
    out = np.zeros((2, len(bits), batch, width), experts.dtype)
    for k, subset in enumerate(bits.tolist()):
        log, mean = _node(subset, nodes, logs, means)
        row = eligible[k][:, None]
        np.copyto(out[0, k], mean, where=row)
        np.copyto(out[1, k], 0 - log, where=row)
    names: tuple[Any, ...] = experts.names or tuple(range(len(experts.mu)))
    listed = tuple(tuple(n for m, n in enumerate(names) if s >> m & 1) for s in bits.tolist())
    return SubsetProducts(out[0], out[1], listed, eligible)


def _node(
    subset: int, nodes: dict[int, tuple[Array, Array]], logs: list[Array], means: list[Array]
) -> tuple[Array, Array]:
    """Return the logarithm of the precision and the mean of a subset, from those of less."""
    if subset not in nodes:
        parent, m = subset & (subset - 1), (subset & -subset).bit_length() - 1
        if parent == 0 and 0 not in nodes:
            nodes[subset] = logs[m], means[m]
        else:
            log, mean = _node(parent, nodes, logs, means)
            apart = logs[m] - log
            share, rest = (np.exp(-np.logaddexp(0, sign * apart)) for sign in (-1, 1))
            joined = np.maximum(log, logs[m]) + np.log1p(np.exp(-np.abs(apart)))
            nodes[subset] = joined, share * means[m] + rest * mean
    return nodes[subset]


def _mixing(experts: Experts) -> tuple[Bools | None, Array | None]:
    """Return which rows have which components, and the weights of the mixture."""
    present = _presence(experts)
    if present is not None:
        _check_rows(present, "an expert")
    return present, experts.weights


def mixture_of_experts(
    mu: Given,
    logvar: Given,
    *,
    mask: Mask | None = None,
    weights: Given | None = None,
    selection: str = "stratified",
    rng: Rng = None,
    noise: ArrayLike | None = None,
    component: ArrayLike | None = None,
    num_samples: int | None = None,
) -> MixtureSample:
    """Return samples of a mixture of Gaussian experts, the posterior of MMVAE.

    Parameters
    ----------
    mu, logvar, mask
        As of :func:`mixture_of_products`; any number of experts.
    weights : array (M, B) or (M,), or dict of numbers or arrays (B,), optional
        Weights of the mixture, at least 0, of any sum; all the same where not given.
    selection : "stratified" or "sampled"
        Stratified, rows with the same experts share them out: how often two are chosen differs by at most
        one, over all samples, and so it does over the samples of a row. With weights, samples take equal
        steps through them. Sampled, each sample draws on its own. Either way it has every expert with the
        probability that the weights say.
    rng : Generator or int, optional
        Where components and noise are drawn from.
    noise : array (B, D), or (N, B, D) with ``num_samples``, optional
        Standard normal numbers, instead of drawing them.
    component : array (B,), or (N, B), of integers, optional
        The expert that each sample comes from, instead of drawing it.
    num_samples : int, optional
        Samples of each row, N. One, and no axis for it, where not given.

    Returns
    -------
    MixtureSample
        ``z (B, D)`` and ``component (B,)``; ``(N, B, D)`` and ``(N, B)`` with ``num_samples``.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other, or a row has no expert; the message names it.

    References
    ----------
    Shi, Siddharth, Paige and Torr (2019), Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep
    Generative Models, arXiv:1911.03393. Cochran (1977), Sampling Techniques.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import mixture_of_experts
    >>> mu = np.array([[[1.0], [2.0]], [[3.0], [4.0]]])
    >>> z, component = mixture_of_experts(mu, np.zeros((2, 2, 1)), rng=0, noise=np.zeros((2, 1)))
    >>> sorted(component.tolist())
    [0, 1]
    >>> bool((z == mu[component, [0, 1]]).all())
    True
    """
    experts = check_experts(mu, logvar, mask, weights, False)
    present, shares = _mixing(experts)
    batch, width = experts.shape
    many = 1 if num_samples is None else check_integer("num_samples", num_samples, 0)
    rows = (batch,) if num_samples is None else (many, batch)
    count = len(experts.mu)
    if component is None:
        generator = _generator(rng, "component")
        which = _choose(present, shares, (many, count, batch), selection, generator).reshape(rows)
        rng = generator
    else:
        array = as_array("component", component)
        if array.shape != rows:
            raise ShapeError(f"component has shape {array.shape}, expected {rows}")
        which = _components(array.reshape(-1), count, array.size).reshape(rows)
        if present is not None and not present[which, np.arange(batch)].all():
            row = int((~present[which, np.arange(batch)]).reshape(-1, batch).any(axis=0).argmax())
            raise ArgumentError(f"component chooses an expert that row {row} lacks")
    if noise is None:
        if rng is None:
            raise ArgumentError("noise or rng must be given")
        epsilon = normal_noise((*rows, width), rng, dtype=experts.dtype)
    else:
        _, epsilon = as_floats(mu=np.empty(0, experts.dtype), noise=noise)
        if epsilon.shape != (*rows, width):
            raise ShapeError(f"noise has shape {epsilon.shape}, expected {(*rows, width)}")
    z = np.empty((*rows, width), experts.dtype)
    for m in range(count):
        at = np.nonzero(which == m)
        mean, log = experts.mu[m][at[-1]], experts.logvar[m][at[-1]]
        z[at] = mean + np.exp(log / 2) * epsilon[at]
    return MixtureSample(z, which)


def mixture_terms(z: Array, experts: Experts) -> tuple[list[Array], list[Array], list[Array]]:
    """Return logarithms of weighted densities, ``(..., B)``, and means and logarithms of variances.

    All in ``float64``; a row has minus infinity, and zeros, of an expert that it lacks.
    """
    present, weights = _mixing(experts)
    held = np.ones((len(experts.mu), experts.shape[0])) if weights is None else weights.astype(np.float64)
    held = held if present is None else np.where(present, held, 0)
    with np.errstate(divide="ignore"):
        shares = np.log(held) - np.log(held.sum(axis=0))
    wide, terms, means, logs = z.astype(np.float64), [], [], []
    for m, (mean, log) in enumerate(zip(experts.mu, experts.logvar, strict=True)):
        row = None if present is None else present[m]
        means.append(_clean(mean, row).astype(np.float64))
        logs.append(_clean(log, row).astype(np.float64))
        terms.append(gaussian_log_prob(wide, means[-1], logs[-1]) + shares[m])
    return terms, means, logs


def _log_sum_exp(terms: list[Array]) -> Array:
    """Return the logarithm of the sum of exponentials over a list of arrays; minus infinity of nothing."""
    most = terms[0]
    for term in terms[1:]:
        most = np.maximum(most, term)
    shift = np.where(np.isfinite(most), most, 0)
    total = np.zeros_like(most)
    for term in terms:
        total += np.exp(term - shift)
    with np.errstate(divide="ignore"):
        return np.asarray(shift + np.log(total))


def check_mixture(
    z: ArrayLike, mu: Given, logvar: Given, mask: Mask | None, weights: Given | None
) -> tuple[Array, Experts]:
    """Check the arguments of :func:`gaussian_mixture_log_prob` against each other.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where they do not fit; the message names the argument.
    """
    experts = check_experts(mu, logvar, mask, weights, False)
    _, array = as_floats(mu=np.empty(0, experts.dtype), z=z)
    if array.shape[-2:] != experts.shape or array.ndim < 2:
        batch, width = experts.shape
        raise ShapeError(f"z has shape {array.shape}, expected (..., {batch}, {width})")
    return array, experts


def gaussian_mixture_log_prob(
    z: ArrayLike, mu: Given, logvar: Given, *, mask: Mask | None = None, weights: Given | None = None
) -> Array:
    """Return the logarithm of the density of a mixture of diagonal Gaussians, row by row.

    ``log sum_m weight_m N(z; mu_m, exp(logvar_m))`` with weights that sum to one over a row's experts.

    Parameters
    ----------
    z : array (..., B, D)
        Where, of the dtype of ``mu``.
    mu, logvar, mask
        As of :func:`mixture_of_products`; any number of experts.
    weights : array (M, B) or (M,), or dict of numbers or arrays (B,), optional
        Weights of the mixture, at least 0, of any sum; all the same where not given.

    Returns
    -------
    log_prob : array (..., B)
        In nats, of the same dtype; arithmetic is ``float64``.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other, or a row has no expert; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import gaussian_mixture_log_prob
    >>> mu = np.array([[[-3.0]], [[3.0]]])
    >>> np.round(gaussian_mixture_log_prob(np.array([[3.0]]), mu, np.zeros_like(mu)), 4)
    array([-1.6121])
    """
    array, experts = check_mixture(z, mu, logvar, mask, weights)
    log = _log_sum_exp(mixture_terms(array, experts)[0])
    with np.errstate(over="ignore"):
        return log.astype(experts.dtype, copy=False)
