"""What a multimodal VAE is: its modalities, its latents, and how experts become a posterior."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..._validate import check_finite_number, check_integer, check_positive
from ...errors import ArgumentError, DTypeError

__all__ = ["Config", "ModalityConfig", "mmvae", "mmvae_plus", "mopoe", "mvae", "unimodal"]

LIKELIHOODS = ("bernoulli", "categorical", "gaussian", "laplace")
POSTERIORS = ("product", "mixture", "mixture_of_products")
MOST_MODALITIES = {"product": 64, "mixture": 64, "mixture_of_products": 8}  # of the last: 255 subsets
MOST_VALUES = 1 << 30  # of an item: a hostile configuration must not ask for more memory than that


@dataclass(frozen=True, kw_only=True)
class ModalityConfig:
    """How a modality is read and written.

    Parameters
    ----------
    shape : int or tuple of int
        Shape of an item. Of ``"categorical"`` items the last axis has one number for each category.
    likelihood : {"bernoulli", "categorical", "gaussian", "laplace"}
        Family of ``p(x | z)``, every value independent given ``z``. Bernoulli values are from 0 to 1;
        categorical values are probabilities, of a known category a single 1.
    hidden : tuple of int
        Widths of the hidden layers of the encoder, and in reverse of the decoder; ``()`` makes both linear.
    weight : float
        Weight of ``log p(x | z)`` in the loss.
    scale : float, optional
        Deviation of a Gaussian, or scale of a Laplace likelihood. One number that is learnt where not given.
    trials : int
        A Bernoulli value is the share of successes in so many trials, and its likelihood binomial: a grey
        level from 0 to 16 has 16. Values in between count by the same formula.

    Examples
    --------
    >>> ModalityConfig(shape=(8, 8), likelihood="bernoulli", trials=16).size
    64
    """

    shape: int | tuple[int, ...]
    likelihood: str = "gaussian"
    hidden: tuple[int, ...] = (128,)
    weight: float = 1.0
    scale: float | None = None
    trials: int = 1

    def __post_init__(self) -> None:
        shape = (self.shape,) if not isinstance(self.shape, Sequence) else self.shape
        object.__setattr__(self, "shape", tuple(check_integer("shape", side, 1) for side in shape))
        if not self.shape or self.size > MOST_VALUES:
            raise ArgumentError(f"shape is {self.shape}, expected from 1 to {MOST_VALUES} values")
        if self.likelihood not in LIKELIHOODS:
            raise ArgumentError(
                f"likelihood must be one of {', '.join(LIKELIHOODS)}, not {self.likelihood!r}"
            )
        if isinstance(self.hidden, str) or not isinstance(self.hidden, Sequence):
            raise DTypeError(f"hidden must be a sequence of int, not {type(self.hidden).__name__}")
        widths = tuple(check_integer("hidden", width, 1, MOST_VALUES) for width in self.hidden)
        object.__setattr__(self, "hidden", widths)
        if check_finite_number("weight", self.weight) < 0:
            raise ArgumentError(f"weight must not be negative, not {self.weight:g}")
        check_integer("trials", self.trials, 1, 1 << 20)
        if self.scale is not None:
            check_positive("scale", self.scale)
        if self.scale is not None and self.likelihood not in ("gaussian", "laplace"):
            raise ArgumentError(f"scale is for gaussian and laplace likelihoods, not {self.likelihood}")
        if self.trials != 1 and self.likelihood != "bernoulli":
            raise ArgumentError(f"trials is for bernoulli likelihoods, not {self.likelihood}")

    @property
    def dims(self) -> tuple[int, ...]:
        """Shape of an item."""
        return self.shape if isinstance(self.shape, tuple) else (self.shape,)

    @property
    def size(self) -> int:
        """Number of values of an item."""
        return math.prod(self.dims)

    @property
    def learns_scale(self) -> bool:
        """Whether the likelihood has a scale that is learnt."""
        return self.likelihood in ("gaussian", "laplace") and self.scale is None


@dataclass(frozen=True, kw_only=True)
class Config:
    """A multimodal VAE; :func:`mvae`, :func:`mmvae`, :func:`mopoe` and :func:`mmvae_plus` choose for you.

    Parameters
    ----------
    modalities : mapping of str to ModalityConfig
        In the order that a ``(M, B)`` mask has them.
    latent_dim : int
        Width ``D`` of the latent that all modalities share.
    private_dim : int
        Width of a latent that each modality has for itself: what no other modality can know of it. 0 for
        none.
    posterior : {"product", "mixture", "mixture_of_products"}
        How the experts of the modalities that are there become one posterior. A product has the prior
        ``N(0, I)`` as one more expert.
    beta : float
        Weight of the divergence from the prior in the loss (Higgins et al. 2017).
    samples : int
        Samples ``K`` of each posterior in a step. More than one makes the loss the importance-weighted bound
        (Burda et al. 2016, arXiv:1509.00519).
    singles : bool
        Products alone: whether a step also takes the posterior of each modality by itself.
    subsets : int
        Products alone: how many random subsets of the modalities of each row a step takes beside the whole
        row.
    part_weight : float
        Products alone: weight of each of those posteriors of a part of the row, where the whole row's is 1.
    reconstruct : {"present", "given"}
        What a posterior of some modalities of a row is to explain: all that the row has, or those alone.

    Examples
    --------
    >>> config = Config(modalities={"image": ModalityConfig(shape=(8, 8))}, latent_dim=4)
    >>> config.posterior, config.names
    ('product', ('image',))
    """

    modalities: Mapping[str, ModalityConfig]
    latent_dim: int
    private_dim: int = 0
    posterior: str = "product"
    beta: float = 1.0
    samples: int = 1
    singles: bool = True
    subsets: int = 1
    part_weight: float = 1.0
    reconstruct: str = "present"
    names: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.modalities, Mapping):
            raise DTypeError(f"modalities must be a mapping, not {type(self.modalities).__name__}")
        if self.posterior not in POSTERIORS:
            raise ArgumentError(f"posterior must be one of {', '.join(POSTERIORS)}, not {self.posterior!r}")
        most = MOST_MODALITIES[self.posterior]
        if not 1 <= len(self.modalities) <= most:
            count = len(self.modalities)
            raise ArgumentError(f"modalities has {count}, expected from 1 to {most} for a {self.posterior}")
        for name, modality in self.modalities.items():
            if not isinstance(name, str) or not name or "/" in name:
                raise ArgumentError(f"modalities has the name {name!r}, expected a str without '/'")
            if not isinstance(modality, ModalityConfig):
                kind = type(modality).__name__
                raise DTypeError(f"modalities[{name!r}] must be a ModalityConfig, not {kind}")
        check_integer("latent_dim", self.latent_dim, 1, 1 << 20)
        check_integer("private_dim", self.private_dim, 0, 1 << 20)
        check_integer("samples", self.samples, 1)
        check_integer("subsets", self.subsets)
        for name in ("beta", "part_weight"):
            if check_finite_number(name, getattr(self, name)) < 0:
                raise ArgumentError(f"{name} must not be negative, not {getattr(self, name):g}")
        if not isinstance(self.singles, bool):
            raise DTypeError(f"singles must be a bool, not {self.singles!r}")
        if self.reconstruct not in ("present", "given"):
            raise ArgumentError(f"reconstruct must be 'present' or 'given', not {self.reconstruct!r}")
        object.__setattr__(self, "modalities", dict(self.modalities))
        object.__setattr__(self, "names", tuple(self.modalities))

    def to_json(self) -> dict[str, Any]:
        """Return the configuration as plain data."""
        out = {name: getattr(self, name) for name in _FIELDS}
        out["modalities"] = {
            name: {**vars(m), "shape": list(m.dims), "hidden": list(m.hidden)}
            for name, m in self.modalities.items()
        }
        return out

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Config:
        """Return what :meth:`to_json` described.

        Raises
        ------
        ArgumentError, DTypeError
            Where something is missing, unknown, or cannot be used.
        """
        try:
            fields = dict(entries)
            modalities = {
                str(name): ModalityConfig(**{**m, "shape": tuple(m["shape"]), "hidden": tuple(m["hidden"])})
                for name, m in fields.pop("modalities").items()
            }
            return cls(modalities=modalities, **fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise ArgumentError(f"config cannot be used: {error}") from error


_FIELDS = (
    "latent_dim",
    "private_dim",
    "posterior",
    "beta",
    "samples",
    "singles",
    "subsets",
    "part_weight",
    "reconstruct",
)


def mvae(modalities: Mapping[str, ModalityConfig], latent_dim: int, **options: Any) -> Config:
    """Return a product of experts, trained on whole rows, single modalities and random subsets.

    As its authors have it, each of those explains itself alone.

    References
    ----------
    Wu and Goodman (2018), Multimodal Generative Models for Scalable Weakly-Supervised Learning
    (arXiv:1802.05335).
    """
    chosen: dict[str, Any] = {"posterior": "product", "reconstruct": "given"} | options
    return Config(modalities=modalities, latent_dim=latent_dim, **chosen)


def mmvae(modalities: Mapping[str, ModalityConfig], latent_dim: int, **options: Any) -> Config:
    """Return a mixture of experts, with ten samples of each and the importance-weighted bound.

    References
    ----------
    Shi et al. (2019), Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models
    (arXiv:1911.03393).
    """
    chosen: dict[str, Any] = {"posterior": "mixture", "samples": 10} | options
    return Config(modalities=modalities, latent_dim=latent_dim, **chosen)


def mopoe(modalities: Mapping[str, ModalityConfig], latent_dim: int, **options: Any) -> Config:
    """Return a mixture of the products of all subsets of the experts.

    References
    ----------
    Sutter, Daunhawer and Vogt (2021), Generalized Multimodal ELBO (arXiv:2105.02470).
    """
    chosen: dict[str, Any] = {"posterior": "mixture_of_products"} | options
    return Config(modalities=modalities, latent_dim=latent_dim, **chosen)


def mmvae_plus(
    modalities: Mapping[str, ModalityConfig], latent_dim: int, private_dim: int, **options: Any
) -> Config:
    """Return a mixture of experts with private latents.

    From another modality's posterior, a modality is written with a private latent that is drawn from a
    learnt Gaussian rather than its own encoder. The authors leave the divergence of that Gaussian from the
    prior out of the loss; here it is paid, so that the loss is a bound.

    References
    ----------
    Palumbo, Daunhawer and Vogt (2023), MMVAE+: Enhancing the Generative Quality of Multimodal VAEs without
    Compromises (openreview sdQGxouELX).
    """
    check_integer("private_dim", private_dim, 1)
    chosen: dict[str, Any] = {"posterior": "mixture", "private_dim": private_dim} | options
    return Config(modalities=modalities, latent_dim=latent_dim, **chosen)


def unimodal(config: Config) -> dict[str, Config]:
    """Return each modality of a model as a VAE by itself: the baseline of independent models.

    Encoders, decoders and the width of what a decoder reads are those of ``config``.

    Examples
    --------
    >>> both = Config(
    ...     modalities={"image": ModalityConfig(shape=64), "text": ModalityConfig(shape=8)},
    ...     latent_dim=4,
    ...     private_dim=2,
    ... )
    >>> alone = unimodal(both)["text"]
    >>> alone.names, alone.latent_dim, alone.private_dim
    (('text',), 6, 0)
    """
    width = config.latent_dim + config.private_dim
    return {
        name: replace(config, modalities={name: m}, latent_dim=width, private_dim=0, posterior="product")
        for name, m in config.modalities.items()
    }
