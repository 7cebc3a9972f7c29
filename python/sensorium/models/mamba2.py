"""Mamba-2 as a language model: embeddings, layers of norm and :mod:`sensorium.nn.mamba2`, a norm and a head.

Folders that ``transformers`` writes for ``Mamba2ForCausalLM`` and those of the authors' own naming load as
they are (:meth:`Model.load`).

References
----------
Dao and Gu (2024), Transformers are SSMs (arXiv:2405.21060).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .._validate import check_integer
from ..errors import ArgumentError
from ..nn import mamba2 as layer
from ._config import BaseConfig, authors_own, number, one_of, read_fields
from .language import LanguageModel

__all__ = ["Config", "Model"]


@dataclass(frozen=True, kw_only=True)
class Config(BaseConfig):
    """Sizes and choices of a model, by the names of ``config.json``.

    Parameters
    ----------
    vocab_size, hidden_size, num_hidden_layers : int
        Tokens, width of the residual stream, layers.
    head_dim, state_size, n_groups, conv_kernel : int
        Channels of a head, numbers of state a channel, groups of heads that share ``B`` and ``C``, and taps
        of the convolution.
    expand : float
        Width of the scan over ``hidden_size``.
    use_bias, use_conv_bias : bool
        Whether the projections in and out, and the convolution, have a bias.
    gated_norm : bool
        Whether the scan's output goes through a gated norm; it is gated alone otherwise.
    norm_before_gate : bool
        Whether that norm comes before the gate.
    skip_per_channel : bool
        Whether ``D`` is one number a channel rather than one a head.
    time_step_limit : tuple of float
        Time steps are kept between these two.
    layer_norm_epsilon : float
        Of all norms.
    norm : {"rms", "layer"}
        Kind of the norms outside of the mixer.
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
    >>> config = Config(vocab_size=256, hidden_size=64, num_hidden_layers=2, head_dim=32)
    >>> config.inner, config.heads
    (128, 4)
    """

    family: ClassVar[str] = "mamba2"

    state_size: int = 128
    head_dim: int = 64
    n_groups: int = 1
    gated_norm: bool = True
    norm_before_gate: bool = False
    skip_per_channel: bool = False
    time_step_limit: tuple[float, float] = layer.NO_LIMIT
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inner % check_integer("head_dim", self.head_dim, 1):
            raise ArgumentError(
                f"head_dim={self.head_dim} does not divide the width of the scan, {self.inner}"
            )
        if self.heads % check_integer("n_groups", self.n_groups, 1):
            raise ArgumentError(f"n_groups={self.n_groups} does not divide the {self.heads} heads")
        low, high = self.time_step_limit
        if not 0 <= low <= high:
            raise ArgumentError(f"time_step_limit must be two rising numbers from 0, not ({low:g}, {high:g})")

    @property
    def heads(self) -> int:
        """Heads of the scan, ``H``."""
        return self.inner // self.head_dim

    @property
    def channels(self) -> int:
        """Channels of the convolution, ``E + 2 G S``."""
        return self.inner + 2 * self.n_groups * self.state_size

    @property
    def _how(self) -> dict[str, Any]:
        return {
            "n_groups": self.n_groups,
            "eps": self.layer_norm_epsilon,
            "norm_before_gate": self.norm_before_gate,
            "dt_limit": self.time_step_limit,
        }

    def mixer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the arrays of a layer's mixer as a file holds them."""
        D, E, H, C = self.hidden_size, self.inner, self.heads, self.channels
        shapes: dict[str, tuple[int, ...]] = {
            "in_proj.weight": (E + C + H, D),
            "conv1d.weight": (C, 1, self.conv_kernel),
            "dt_bias": (H,),
            "A_log": (H,),
            "D": (E,) if self.skip_per_channel else (H,),
            "out_proj.weight": (D, E),
        }
        if self.gated_norm:
            shapes["norm.weight"] = (E,)
        return shapes | self.bias_shapes(E + C + H, C)

    def init_mixer(self, rng: np.random.Generator) -> dict[str, Any]:
        """Return the parameters of a layer's mixer before training."""
        params = layer.init(
            rng,
            self.hidden_size,
            expand=self.expand,
            head_dim=self.head_dim,
            state_size=self.state_size,
            n_groups=self.n_groups,
            conv_kernel=self.conv_kernel,
            use_bias=self.use_bias,
            use_conv_bias=self.use_conv_bias,
            use_norm=self.gated_norm,
            time_step=(self.time_step_min, self.time_step_max),
            time_step_floor=self.time_step_floor,
            out_scale=self.num_hidden_layers**-0.5,
        )
        return params | ({"D": np.ones(self.inner, np.float32)} if self.skip_per_channel else {})

    def mixer(self, params: Any, x: Any, residual: Any, **packing: Any) -> Any:
        """Return the mixer's output over whole sequences, added to ``residual``."""
        return layer.forward(params, x, residual=residual, **self._how, **packing)

    def mixer_step(self, params: Any, x: Any, state: Any, residual: Any) -> Any:
        """Return the same for the next tokens, and move ``state`` past them."""
        return layer.step(params, x, state, residual=residual, **self._how)

    def mixer_state(self, params: Any, batch: int) -> Any:
        """Return the mixer's state before the first token."""
        return layer.state(params, batch, n_groups=self.n_groups)

    def prepare_mixer(self, params: Any) -> Any:
        """Return the parameters as generation uses them."""
        return layer.prepare(params)

    def to_json(self) -> dict[str, Any]:
        """Return ``config.json`` as ``transformers`` reads it."""
        usual = {"norm": "rms", "gated_norm": True, "norm_before_gate": False, "skip_per_channel": False}
        for name, value in usual.items():
            if getattr(self, name) != value:
                raise ArgumentError(
                    f"{name}={getattr(self, name)!r} cannot be written: transformers' Mamba-2 knows {value!r}"
                )
        entries = self.shared_json("Mamba2ForCausalLM") | {
            "state_size": self.state_size,
            "head_dim": self.head_dim,
            "num_heads": self.heads,
            "n_groups": self.n_groups,
            "chunk_size": 256,
        }
        limited = self.time_step_limit != layer.NO_LIMIT
        return entries | ({"time_step_limit": list(self.time_step_limit)} if limited else {})

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Config:
        """Return what a ``config.json`` describes, of ``transformers`` or of the authors.

        Raises
        ------
        ArgumentError, DTypeError
            Where an entry is missing, cannot be used, or asks for what is not supported.
        """
        if "d_model" not in entries:
            config = cls(
                **cls.shared_fields({"tie_word_embeddings": False, **entries}),
                **read_fields(entries, state_size=int, head_dim=int),
                n_groups=entries.get("n_groups", 8),
                time_step_limit=_limit("time_step_limit", entries.get("time_step_limit")),
            )
            heads = entries.get("num_heads", 128)
            if heads != config.heads:
                raise ArgumentError(
                    f"num_heads is {heads!r}, but expand * hidden_size / head_dim is {config.heads}"
                )
            return config
        shared, ssm = authors_own(entries)
        one_of("ssm_cfg.layer", ssm.pop("layer", "Mamba1"), "Mamba2")
        fields = {
            "state_size": ssm.pop("d_state", 128),
            "conv_kernel": ssm.pop("d_conv", 4),
            "expand": ssm.pop("expand", 2),
            "head_dim": ssm.pop("headdim", 64),
            "n_groups": ssm.pop("ngroups", 1),
            "use_bias": ssm.pop("bias", False),
            "use_conv_bias": ssm.pop("conv_bias", True),
            "gated_norm": ssm.pop("rmsnorm", True),
            "norm_before_gate": ssm.pop("norm_before_gate", False),
            "skip_per_channel": ssm.pop("D_has_hdim", False),
            "time_step_limit": _limit("ssm_cfg.dt_limit", ssm.pop("dt_limit", None)),
        }
        one_of("ssm_cfg.d_ssm", ssm.pop("d_ssm", None), None)
        one_of("ssm_cfg.activation", ssm.pop("activation", "silu"), "silu", "swish")
        for name in ("A_init_range", "dt_min", "dt_max", "dt_init_floor", "chunk_size", "conv_init"):
            ssm.pop(name, None)  # What training began with, or how the authors' code runs.
        for name in ("use_mem_eff_path", "sequence_parallel"):
            ssm.pop(name, None)
        if ssm:
            raise ArgumentError(f"ssm_cfg has {sorted(ssm)[0]!r}, which is not supported")
        return cls(**shared, **fields)


def _limit(name: str, value: Any) -> tuple[float, float]:
    """Return two numbers, of which one may be infinite, in one of the forms that JSON has for it."""
    if value is None:
        return layer.NO_LIMIT
    if not isinstance(value, list) or len(value) != 2:
        raise ArgumentError(f"{name} is {value!r}, expected two numbers")
    low, high = (number(name, v.get("__float__") if isinstance(v, dict) else v) for v in value)
    return low, math.inf if high == math.inf else high


class Model(LanguageModel):
    """A Mamba-2 language model: :class:`~sensorium.models.language.LanguageModel` for this family."""

    config_type = Config
