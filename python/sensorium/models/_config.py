"""What configurations of language models share: checked fields, and the two dialects of ``config.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from .._validate import check_integer, check_positive
from ..errors import ArgumentError, DTypeError

__all__ = ["BaseConfig", "authors_own", "number", "one_of", "read_fields"]


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """Fields of every family; the families' own classes describe them."""

    family: ClassVar[str]

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    state_size: int
    expand: float = 2
    conv_kernel: int = 4
    use_bias: bool = False
    use_conv_bias: bool = True
    layer_norm_epsilon: float = 1e-5
    norm: str = "rms"
    tie_word_embeddings: bool = True
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4
    eos_token_id: tuple[int, ...] = ()
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        """Hold every field to what it can be."""
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "state_size", "conv_kernel"):
            check_integer(name, getattr(self, name), 1, 1 << 40)
        for name in ("expand", "time_step_min", "time_step_max", "time_step_floor"):
            check_positive(name, getattr(self, name))
        if not 0 <= number("layer_norm_epsilon", self.layer_norm_epsilon) < math.inf:
            raise ArgumentError(f"layer_norm_epsilon must not be negative, not {self.layer_norm_epsilon:g}")
        if self.time_step_min > self.time_step_max:
            raise ArgumentError(
                f"time_step_min={self.time_step_min:g} is above time_step_max={self.time_step_max:g}"
            )
        for name, value in vars(self).items():
            if name.startswith(("use_", "tie_", "gated_", "skip_", "norm_")) and not isinstance(value, bool):
                raise DTypeError(f"{name} must be true or false, not {value!r}")
        one_of("norm", self.norm, "rms", "layer")
        one_of("tokenizer", self.tokenizer, "bytes", None)
        if self.tokenizer == "bytes" and self.vocab_size < 256:
            raise ArgumentError(f"tokenizer='bytes' needs a vocab_size of 256, not {self.vocab_size}")
        for token in self.eos_token_id:
            check_integer("eos_token_id", token)
        if self.inner < 1:
            raise ArgumentError(f"expand={self.expand:g} leaves a scan of no channels")

    @property
    def inner(self) -> int:
        """Width of the scan, ``E``."""
        return int(self.expand * self.hidden_size)

    def mixer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the arrays of a layer's mixer as a file holds them."""
        raise NotImplementedError

    def init_mixer(self, rng: np.random.Generator) -> dict[str, Any]:
        """Return the parameters of a layer's mixer before training."""
        raise NotImplementedError

    def mixer(self, params: Any, x: Any, residual: Any, **packing: Any) -> Any:
        """Return the mixer's output over whole sequences, added to ``residual``."""
        raise NotImplementedError

    def mixer_step(self, params: Any, x: Any, state: Any, residual: Any) -> Any:
        """Return the same for the next tokens, and move ``state`` past them."""
        raise NotImplementedError

    def mixer_state(self, params: Any, batch: int) -> Any:
        """Return the mixer's state before the first token."""
        raise NotImplementedError

    def prepare_mixer(self, params: Any) -> Any:
        """Return the parameters as generation uses them."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Return ``config.json`` as ``transformers`` reads it."""
        raise NotImplementedError

    @classmethod
    def from_json(cls, entries: Mapping[str, Any]) -> Self:
        """Return what a ``config.json`` describes."""
        raise NotImplementedError

    def bias_shapes(self, into: int, channels: int) -> dict[str, tuple[int, ...]]:
        """Return the biases of a mixer's projections and convolution, where it has them."""
        shapes: dict[str, tuple[int, ...]] = {}
        if self.use_bias:
            shapes |= {"in_proj.bias": (into,), "out_proj.bias": (self.hidden_size,)}
        if self.use_conv_bias:
            shapes["conv1d.bias"] = (channels,)
        return shapes

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return every array of a file by the names of ``transformers``."""
        D, V = self.hidden_size, self.vocab_size
        norm = {"weight": (D,)} | ({"bias": (D,)} if self.norm == "layer" else {})
        mixer = self.mixer_shapes()
        shapes: dict[str, tuple[int, ...]] = {"backbone.embeddings.weight": (V, D)}
        for i in range(self.num_hidden_layers):
            shapes |= {f"backbone.layers.{i}.norm.{name}": shape for name, shape in norm.items()}
            shapes |= {f"backbone.layers.{i}.mixer.{name}": shape for name, shape in mixer.items()}
        shapes |= {f"backbone.norm_f.{name}": shape for name, shape in norm.items()}
        return shapes if self.tie_word_embeddings else shapes | {"lm_head.weight": (V, D)}

    def shared_json(self, architecture: str) -> dict[str, Any]:
        """Return the entries of ``config.json`` that every family has."""
        expand = int(self.expand) if self.expand == int(self.expand) else self.expand
        eos: Any = list(self.eos_token_id) if len(self.eos_token_id) > 1 else None
        return {
            "architectures": [architecture],
            "model_type": self.family,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "expand": expand,
            "conv_kernel": self.conv_kernel,
            "use_bias": self.use_bias,
            "use_conv_bias": self.use_conv_bias,
            "hidden_act": "silu",
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "tie_word_embeddings": self.tie_word_embeddings,
            "time_step_min": self.time_step_min,
            "time_step_max": self.time_step_max,
            "time_step_floor": self.time_step_floor,
            "bos_token_id": None,
            "pad_token_id": None,
            "eos_token_id": self.eos_token_id[0] if len(self.eos_token_id) == 1 else eos,
        } | ({} if self.tokenizer is None else {"sensorium": {"tokenizer": self.tokenizer}})

    @staticmethod
    def shared_fields(entries: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that every family has, from ``config.json`` of ``transformers``."""
        one_of("hidden_act", entries.get("hidden_act", "silu"), "silu", "swish")
        own = entries.get("sensorium")
        fields = read_fields(
            entries,
            vocab_size=int,
            hidden_size=int,
            num_hidden_layers=int,
            expand=float,
            conv_kernel=int,
            use_bias=bool,
            use_conv_bias=bool,
            layer_norm_epsilon=float,
            tie_word_embeddings=bool,
            time_step_min=float,
            time_step_max=float,
            time_step_floor=float,
        )
        for name in ("vocab_size", "hidden_size", "num_hidden_layers"):
            if name not in fields:
                raise ArgumentError(f"lacks {name}")
        fields["eos_token_id"] = _tokens(entries.get("eos_token_id"))
        return fields | ({"tokenizer": own.get("tokenizer")} if isinstance(own, dict) else {})


def read_fields(entries: Mapping[str, Any], **types: type) -> dict[str, Any]:
    """Return the entries that are there, each of its type.

    Raises
    ------
    DTypeError
        Where one is of another type.
    """
    fields: dict[str, Any] = {}
    for name, kind in types.items():
        if entries.get(name) is None:
            continue
        value = entries[name]
        fits = type(value) in (int, float) if kind is float else type(value) is kind
        if not fits:
            raise DTypeError(f"{name} is {value!r}, expected {kind.__name__}")
        fields[name] = value
    return fields


def authors_own(entries: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of a ``config.json`` in the authors' naming, and a copy of its ``ssm_cfg``.

    The table of embeddings has ``vocab_size`` rows, rounded up to a multiple of ``pad_vocab_size_multiple``.

    Raises
    ------
    ArgumentError, DTypeError
        Where it asks for layers of another kind, or an entry cannot be used.
    """
    numbers = read_fields(entries, d_model=int, n_layer=int, vocab_size=int, pad_vocab_size_multiple=int)
    for name in ("d_model", "n_layer", "vocab_size"):
        if name not in numbers:
            raise ArgumentError(f"lacks {name}")
    for name in ("d_intermediate", "attn_layer_idx", "attn_cfg"):
        if entries.get(name):
            raise ArgumentError(f"{name} is {entries[name]!r}: layers of attention or MLPs are not supported")
    multiple = check_integer("pad_vocab_size_multiple", numbers.get("pad_vocab_size_multiple", 8), 1)
    flags = read_fields(entries, rms_norm=bool, tie_embeddings=bool)
    ssm = entries.get("ssm_cfg") or {}
    if not isinstance(ssm, dict):
        raise DTypeError(f"ssm_cfg is {ssm!r}, expected an object")
    fields = {
        "vocab_size": -(-numbers["vocab_size"] // multiple) * multiple,
        "hidden_size": numbers["d_model"],
        "num_hidden_layers": numbers["n_layer"],
        "norm": "rms" if flags.get("rms_norm", True) else "layer",
        "tie_word_embeddings": flags.get("tie_embeddings", True),
        "eos_token_id": (0,),  # Of the GPT-NeoX vocabulary, which all of the authors' models have.
    }
    return fields, dict(ssm)


def one_of(name: str, value: Any, *allowed: Any) -> None:
    """Refuse a choice that is not among those supported."""
    if value not in allowed:
        raise ArgumentError(f"{name} is {value!r}, expected {' or '.join(map(repr, allowed))}")


def number(name: str, value: Any) -> float:
    """Return a number, which may be infinite, from JSON or from a string."""
    try:
        out = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        out = math.nan
    if math.isnan(out):
        raise DTypeError(f"{name} must be a number, not {value!r}")
    return out


def _tokens(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)
