"""Gaussian experts: their product, and the sample and divergence that an autoencoder takes of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from .. import _core
from .._validate import check_integer
from ..errors import ArgumentError, DTypeError, ShapeError
from ._experts import Array, Experts, Given, Mask, Prior, check_experts, check_like, gradient, matrix

__all__ = [
    "FusedPosterior",
    "FusedPosteriorGrads",
    "ProductOfExpertsGrads",
    "fused_posterior",
    "fused_posterior_backward",
    "normal_noise",
    "product_of_experts",
    "product_of_experts_backward",
]


class ProductOfExpertsGrads(NamedTuple):
    """Gradients of :func:`product_of_experts`, in the form that the arguments were given in.

    That of the weights is None where there were none, that of the prior a pair where the prior was one.
    """

    mu: Any
    logvar: Any
    weights: Any
    prior: tuple[Array, Array] | None


class FusedPosterior(NamedTuple):
    """What :func:`fused_posterior` returns; mean and logvar are None where they were not asked for."""

    z: Array
    kl: Array
    mean: Array | None
    logvar: Array | None


#: Gradients of :func:`fused_posterior`.
FusedPosteriorGrads = ProductOfExpertsGrads


def _out(out: tuple[Array, ...] | None, names: tuple[str, ...], experts: Experts) -> tuple[Array, ...]:
    """Return where results go: new arrays, or those that the caller gave."""
    if out is None:
        return tuple(np.empty(experts.shape, dtype=experts.dtype) for _ in names)
    if not isinstance(out, tuple) or len(out) != len(names):
        raise ArgumentError(f"out must be a tuple of {len(names)} arrays: {', '.join(names)}")
    for name, array in zip(names, out, strict=True):
        if not isinstance(array, np.ndarray) or array.dtype != experts.dtype:
            raise DTypeError(f"out ({name}) must be an array of dtype {experts.dtype}")
        if array.shape != experts.shape:
            raise ShapeError(f"out ({name}) has shape {array.shape}, expected {experts.shape}")
    return out


def product_of_experts(
    mu: Given,
    logvar: Given,
    *,
    mask: Mask | None = None,
    weights: Given | None = None,
    prior: Prior = True,
    return_log_normaliser: bool = False,
    out: tuple[Array, Array] | None = None,
) -> Any:
    """Return mean and logarithm of the variance of the product of Gaussian experts.

    Precisions add up, and the mean is that of the experts weighted by their precisions:
    ``1 / var = [1] + sum_m w_m / var_m``, ``mean = var * sum_m w_m mu_m / var_m``. It is computed as a
    softmax over ``-logvar``, so that it is right for any logarithm of a variance that a float holds, from
    -200 to 200 and beyond.

    Parameters
    ----------
    mu, logvar : array (M, B, D), or dict of arrays (B, D)
        Means and logarithms of variances of M experts, ``float32`` or ``float64``. Dicts have the same keys.
        Rows that are contiguous are read where they are: halves of the rows of an encoder need no copy.
    mask : bool array (M, B) or (M,), or dict of bool or bool arrays (B,), optional
        Whether an expert is present. Nothing of a missing one is read: it may hold NaN.
    weights : array (M, B) or (M,), or dict of numbers or arrays (B,), optional
        Factors of precisions, at least 0; an expert of weight 0 is as good as missing.
    prior : bool, or pair of arrays (D,)
        One more expert in every row: ``N(0, I)``, none with False, or mean and logvar of the pair.
    return_log_normaliser : bool
        Also return the logarithm of what the product of the densities integrates to: how well the experts of
        a row agree.
    out : pair of arrays (B, D), optional
        Where mean and logvar go, so that no new memory is touched.

    Returns
    -------
    mean, logvar : array (B, D)
    log_normaliser : array (B,)
        Only with ``return_log_normaliser``. Weights are powers of the densities.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other, or a row has no expert at all; the message names it.

    References
    ----------
    Hinton (2002), Training Products of Experts by Minimizing Contrastive Divergence. Wu and Goodman (2018),
    Multimodal Generative Models for Scalable Weakly-Supervised Learning, arXiv:1802.05335.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import product_of_experts
    >>> mu, logvar = np.array([[[1.0]], [[3.0]]]), np.zeros((2, 1, 1))
    >>> mean, log = product_of_experts(mu, logvar, prior=False)
    >>> mean, np.exp(log)
    (array([[2.]]), array([[0.5]]))
    >>> product_of_experts({"eye": mu[0], "ear": mu[1] * np.nan}, {"eye": logvar[0], "ear": logvar[1]},
    ...                    mask={"eye": True, "ear": False})
    (array([[0.5]]), array([[-0.69314718]]))
    """
    experts = check_experts(mu, logvar, mask, weights, prior)
    mean, log = _out(out, ("mean", "logvar"), experts)
    normaliser = np.empty(experts.shape[0], experts.dtype) if return_log_normaliser else None
    _core.fuse(experts.mu, experts.logvar, experts.how, None, None, (mean, log, None, None, normaliser))
    return (mean, log) if normaliser is None else (mean, log, normaliser)


def _backward(
    experts: Experts,
    grads: tuple[Array | None, Array | None, Array | None, Array | None, Array | None],
    noise: Array | None,
    seed: int | None,
) -> ProductOfExpertsGrads:
    wanted = experts.unwritten_grads()
    _core.fuse_backward(experts.mu, experts.logvar, experts.how, noise, seed, grads, wanted)
    return ProductOfExpertsGrads(*experts.form_grads(wanted))


def product_of_experts_backward(
    grad_mean: ArrayLike | None,
    grad_logvar: ArrayLike | None,
    mu: Given,
    logvar: Given,
    *,
    mask: Mask | None = None,
    weights: Given | None = None,
    prior: Prior = True,
    grad_log_normaliser: ArrayLike | None = None,
) -> ProductOfExpertsGrads:
    """Return the gradients of :func:`product_of_experts`, in one pass.

    Parameters
    ----------
    grad_mean, grad_logvar : array (B, D), optional
        Gradients of the results; None for one that is zero.
    mu, logvar, mask, weights, prior
        As given to the forward.
    grad_log_normaliser : array (B,), optional
        Gradient of the logarithm of the normaliser, where the forward returned it.

    Returns
    -------
    ProductOfExpertsGrads
        ``mu`` and ``logvar`` in the form that they were given in, zero for missing experts; ``weights`` and
        ``prior`` where they were given.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other; the message names the argument.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import product_of_experts_backward
    >>> mu, logvar = np.array([[[1.0]], [[3.0]]]), np.zeros((2, 1, 1))
    >>> grads = product_of_experts_backward(np.ones((1, 1)), None, mu, logvar, prior=False)
    >>> grads.mu.ravel(), grads.logvar.ravel()
    (array([0.5, 0.5]), array([ 0.5, -0.5]))
    """
    experts = check_experts(mu, logvar, mask, weights, prior)
    grads = (
        gradient("grad_mean", grad_mean, experts.shape, experts),
        gradient("grad_logvar", grad_logvar, experts.shape, experts),
        None,
        None,
        gradient("grad_log_normaliser", grad_log_normaliser, experts.shape[:1], experts),
    )
    return _backward(experts, grads, None, None)


def seed_of(rng: np.random.Generator | int) -> int:
    """Return a seed of 64 bits: the number itself, or the next one of a generator.

    Raises
    ------
    DTypeError, ArgumentError
        Where ``rng`` is neither, or the number is negative or too large.
    """
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**64, dtype=np.uint64))
    return check_integer("rng", rng, 0, 2**64 - 1)


def noise_or_seed(
    noise: ArrayLike | None, rng: np.random.Generator | int | None, experts: Experts
) -> tuple[Array | None, int | None]:
    """Return the noise, or the seed that the kernel draws it from.

    Raises
    ------
    ArgumentError, DTypeError, ShapeError
        Where there is neither, or it does not fit the experts.
    """
    if noise is not None:
        return check_like("noise", matrix("noise", noise), experts.shape, experts), None
    if rng is None:
        raise ArgumentError("noise or rng must be given")
    return None, seed_of(rng)


def _noise(
    noise: ArrayLike | None, rng: np.random.Generator | int | None, experts: Experts
) -> tuple[Array | None, int | None]:
    if noise is not None and rng is not None:
        raise ArgumentError("noise and rng cannot both be given")
    return noise_or_seed(noise, rng, experts)


def fused_posterior(
    mu: Given,
    logvar: Given,
    *,
    mask: Mask | None = None,
    weights: Given | None = None,
    prior: Prior = True,
    noise: ArrayLike | None = None,
    rng: np.random.Generator | int | None = None,
    moments: bool = True,
) -> FusedPosterior:
    """Return a sample of the product of experts and its divergence from the prior, in one pass.

    What a multimodal variational autoencoder does between its encoders and its decoders:
    :func:`product_of_experts`, ``z = mean + exp(logvar / 2) * noise``, and the Kullback-Leibler divergence
    ``kl = 1/2 sum_d (var + mean**2 - 1 - logvar)`` from ``N(0, I)``, or from the prior where that is a pair.

    Parameters
    ----------
    mu, logvar, mask, weights, prior
        As of :func:`product_of_experts`.
    noise : array (B, D), optional
        Standard normal numbers; where not given they are drawn from ``rng``.
    rng : Generator or int, optional
        An integer is a seed: the noise is that of :func:`normal_noise`, and the backward draws it again from
        the same number. A generator gives the next seed.
    moments : bool
        Whether mean and logvar are returned too: half of what is written.

    Returns
    -------
    FusedPosterior
        ``z (B, D)``, ``kl (B,)``, ``mean (B, D)``, ``logvar (B, D)``; the last two None without ``moments``.
        In the divergence a ratio of variances over ``exp(80)`` (``float64``: ``exp(700)``) counts as that,
        so that it cannot overflow.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        As :func:`product_of_experts`, and where there is neither noise nor ``rng``, or both.

    References
    ----------
    Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114. Wu and Goodman (2018),
    arXiv:1802.05335.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import fused_posterior
    >>> mu, logvar = np.array([[[1.0]], [[3.0]]]), np.zeros((2, 1, 1))
    >>> z, kl, mean, log = fused_posterior(mu, logvar, noise=np.zeros((1, 1)))
    >>> z, mean
    (array([[1.33333333]]), array([[1.33333333]]))
    >>> np.round(kl, 6)
    array([1.104862])
    """
    experts = check_experts(mu, logvar, mask, weights, prior)
    given, seed = _noise(noise, rng, experts)
    z, kl = np.empty(experts.shape, experts.dtype), np.empty(experts.shape[0], experts.dtype)
    mean, log = (np.empty_like(z), np.empty_like(z)) if moments else (None, None)
    _core.fuse(experts.mu, experts.logvar, experts.how, given, seed, (mean, log, z, kl, None))
    return FusedPosterior(z, kl, mean, log)


def fused_posterior_backward(
    grad_z: ArrayLike | None,
    grad_kl: ArrayLike | None,
    mu: Given,
    logvar: Given,
    *,
    mask: Mask | None = None,
    weights: Given | None = None,
    prior: Prior = True,
    noise: ArrayLike | None = None,
    rng: int | None = None,
    grad_mean: ArrayLike | None = None,
    grad_logvar: ArrayLike | None = None,
) -> FusedPosteriorGrads:
    """Return the gradients of :func:`fused_posterior`, in one pass.

    Parameters
    ----------
    grad_z : array (B, D), optional
        Gradient of the sample; None where it is zero.
    grad_kl : array (B,), optional
        Gradient of the divergence; None where it is zero.
    mu, logvar, mask, weights, prior, noise, rng
        As given to the forward; ``rng`` is the number, not a generator, which would have moved on.
    grad_mean, grad_logvar : array (B, D), optional
        Gradients of the moments; None where they are zero.

    Returns
    -------
    FusedPosteriorGrads
        As :func:`product_of_experts_backward`; that of a given prior is by the product and the divergence.

    Raises
    ------
    ShapeError, DTypeError, ArgumentError
        Where arguments do not fit each other; the message names the argument.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import fused_posterior_backward
    >>> mu, logvar = np.array([[[1.0]], [[3.0]]]), np.zeros((2, 1, 1))
    >>> grads = fused_posterior_backward(np.ones((1, 1)), np.ones(1), mu, logvar, noise=np.zeros((1, 1)))
    >>> grads.mu.ravel()
    array([0.77777778, 0.77777778])
    """
    if isinstance(rng, np.random.Generator):
        raise ArgumentError("rng must be the seed that the forward drew from, not a generator")
    experts = check_experts(mu, logvar, mask, weights, prior)
    given, seed = _noise(noise, rng, experts)
    grads = (
        gradient("grad_mean", grad_mean, experts.shape, experts),
        gradient("grad_logvar", grad_logvar, experts.shape, experts),
        gradient("grad_z", grad_z, experts.shape, experts),
        gradient("grad_kl", grad_kl, experts.shape[:1], experts),
        None,
    )
    return _backward(experts, grads, given, seed)


def normal_noise(
    shape: tuple[int, ...],
    rng: np.random.Generator | int,
    *,
    dtype: Any = np.float32,
    stream: int = 0,
    position: int = 0,
) -> Array:
    """Return standard normal numbers by position: number ``i`` depends on seed, stream and ``i`` alone.

    Parameters
    ----------
    shape : tuple of int
        Of the result; its elements in reading order are consecutive numbers of the stream.
    rng : Generator or int
        An integer is the seed; a generator gives the next one.
    dtype : dtype
        ``float32`` or ``float64``. Both are made of the same random words.
    stream : int
        Streams of one seed have nothing to do with one another; :func:`fused_posterior` draws from stream 0.
    position : int
        Number of the first element.

    Returns
    -------
    array of that shape and dtype

    Raises
    ------
    DTypeError, ArgumentError
        Where an argument is of a wrong kind or out of range; the message names it.

    References
    ----------
    Salmon, Moraes, Dror and Shaw (2011), Parallel Random Numbers: As Easy as 1, 2, 3. Box and Muller (1958),
    A Note on the Generation of Random Normal Deviates.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.ops import normal_noise
    >>> whole = normal_noise((4, 100), rng=7)
    >>> bool((normal_noise((100,), rng=7, position=300) == whole[3]).all())
    True
    """
    kind = np.dtype(dtype)
    if kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise DTypeError(f"dtype is {kind}, expected float32 or float64")
    sizes = tuple(check_integer("shape", size) for size in shape)
    out = np.empty(sizes, kind)
    most = 2**64 - 1
    first = check_integer("position", position, 0, most)
    _core.normal_numbers(seed_of(rng), check_integer("stream", stream, 0, most), first, out)
    return out
