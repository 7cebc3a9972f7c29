"""Multimodal variational autoencoders: one latent space that any subset of the senses leads into.

Wu and Goodman (2018, arXiv:1802.05335) multiply the experts of the modalities that are there
(:func:`mvae`), Shi et al. (2019, arXiv:1911.03393) mix them (:func:`mmvae`), Sutter et al. (2021,
arXiv:2105.02470) mix the products of all their subsets (:func:`mopoe`), and Palumbo et al. (2023,
openreview sdQGxouELX) add latents of each modality alone (:func:`mmvae_plus`). All are one :class:`Config`.
"""

from .bounds import bound as bound
from .config import Config as Config
from .config import ModalityConfig as ModalityConfig
from .config import mmvae as mmvae
from .config import mmvae_plus as mmvae_plus
from .config import mopoe as mopoe
from .config import mvae as mvae
from .config import unimodal as unimodal
from .generation import generate as generate
from .generation import interpolate as interpolate
from .model import Model as Model
from .network import Expert as Expert
from .network import decode as decode
from .network import encode as encode
from .network import init as init
from .objective import loss as loss
from .posterior import Posterior as Posterior
from .posterior import posterior as posterior
