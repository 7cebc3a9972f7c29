"""Mamba as a language model: embeddings, layers of norm and :mod:`sensorium.nn.mamba`, a norm and a head.

Folders that ``transformers`` writes for ``MambaForCausalLM`` and those of the authors' own naming load as
they are (:meth:`Model.load`).

References
----------
Gu and Dao (2023), Mamba: Linear-Time Sequence Modeling with Selective State Spaces (arXiv:2312.00752).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .._validate import check_integer
from ..errors import ArgumentError
from ..nn import mamba as layer
from ._config import BaseConfig, authors_own, one_of, read_fields
from .language import LanguageModel

__all__ = ["Config", "Model"]


@dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Sizes and choices of a model, by the names of ``config.json``.

    Parameters
    ----------
    vocab_size, hidden_size, num_hidden_layers : int
        Tokens, width of the residual stream, layers.
    state_size, conv_kernel : int
        Numbers of state a channel, and taps of the convolution.
    expand : float
        Width of the scan over ``hidden_size``.
    time_step_rank : int, optional
        ``hidden_size / 16``, rounded up, where not given.
    use_bias, use_conv_bias : bool
        Whether the projections in and out, and the convolution, have a bias.
    layer_norm_epsilon : float
        Of all norms.
    norm : {"rms", "layer"}
        Kind of the norms.
    tie_word_embeddings : bool
        Whether the head is the table of embeddings.
    time_step_min, time_step_max, time_step_floor : float
        What time steps begin training between.
    eos_token_id : tuple of int
        Tokens that end a text.
    tokenizer : {"bytes"}, optional
        How text becomes tokens, where the folder has no ``tokenizer.json``.

    Examples
    --------
    >>> config = Config(vocab_size=256, hidden_size=64, num_hidden_layers=2)
    >>> config.inner, config.rank
    (128, 4)
    """

    family: ClassVar[str] = "mamba"

    state_size: int = 16
    time_step_rank: int | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time_step_rank is not None:
            check_integer("time_step_rank", self.time_step_rank, 1)

    @property
    def rank(self) -> int:
        """Rank of the time step, ``R``."""
        return math.ceil(self.hidden_size / 16) if self.time_step_rank is None else self.time_step_rank

    def mixer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the arrays of a layer's mixer as a file holds them."""
        D, E, S, R = self.hidden_size, self.inner, self.state_size, self.rank
        shapes: dict[str, tuple[int, ...]] = {
            "in_proj.weight": (2 * E, D),
            "conv1d.weight": (E, 1, self.conv_kernel),
            "x_proj.weight": (R + 2 * S, E),
            "dt_proj.weight": (E, R),
            "dt_proj.bias": (E,),
            "A_log": (E, S),
            "D": (E,),
            "out_proj.weight": (D, E),
        }
        return shapes | self.bias_shapes(2 * E, E)

    def init_mixer(self, rng: np.random.Generator) -> dict[str, Any]:
        """Return the parameters of a layer's mixer before training."""
        return layer.init(
            rng,
            self.hidden_size,
            expand=self.expand,
            state_size=self.state_size,
            conv_kernel=self.conv_kernel,
            time_step_rank=self.time_step_rank,
            use_bias=self.use_bias,
            use_conv_bias=self.use_conv_bias,
            time_step=(self.time_step_min, self.time_step_max),
            time_step_floor=self.time_step_floor,
            out_scale=self.num_hidden_layers**-0.5,
        )

    def mixer(self, params: Any, x: Any, residual: Any, **packing: Any) -> Any:
        """Return the mixer's output over whole sequences, added to ``residual``."""
        return layer.forward(params, x, residual=residual, **packing)

    def mixer_step(self, params: Any, x: Any, state: Any, residual: Any) -> Any:
        """Return the same for the next tokens, and move ``state`` past them."""
        return layer.step(params, x, state, residual=residual)

    def mixer_state(self, params: Any, batch: int) -> Any:
        """Return the mixer's state before the first token."""
        return layer.state(params, batch)

    def prepare_mixer(self, params: Any) -> Any:
        """Return the parameters as generation uses them."""
        return layer.prepare(params)

    def to_json(self) -> dict[str, Any]:
        """Return ``config.json`` as ``transformers`` reads it."""
        if self.norm != "rms":
            raise ArgumentError("norm='layer' cannot be written: transformers' Mamba has RMS norms alone")
        return self.shared_json("MambaForCausalLM") | {
            "state_size": self.state_size,
            "intermediate_size": self.inner,
            "time_step_rank": self.rank,
        }

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Config:
        """Return what a ``config.json`` describes, of ``transformers`` or of the authors.

        Raises
        ------
        ArgumentError, DTypeError
            Where an entry is missing, cannot be used, or asks for what is not supported.
        """
        if "d_model" not in entries:
            rank = entries.get("time_step_rank", "auto")
            return cls(
                **cls.shared_fields(entries),
                **read_fields(entries, state_size=int),
                time_step_rank=None if rank == "auto" else rank,
            )
        shared, ssm = authors_own(entries)
        one_of("ssm_cfg.layer", ssm.pop("layer", "Mamba1"), "Mamba1")
        rank = ssm.pop("dt_rank", "auto")
        fields = {
            "state_size": ssm.pop("d_state", 16),
            "conv_kernel": ssm.pop("d_conv", 4),
            "expand": ssm.pop("expand", 2),
            "use_bias": ssm.pop("bias", False),
            "use_conv_bias": ssm.pop("conv_bias", True),
            "time_step_rank": None if rank == "auto" else rank,
        }
        for name in ("dt_scale", "dt_init", "dt_min", "dt_max", "dt_init_floor", "use_fast_path"):
            ssm.pop(name, None)  # What training began with, or how the authors' code runs.
        if ssm:
            raise ArgumentError(f"ssm_cfg has {sorted(ssm)[0]!r}, which is not supported")
        return cls(**shared, **fields)


class Model(LanguageModel):
    """A Mamba language model: :class:`~sensorium.models.language.LanguageModel` for this family."""

    config_type = Config
