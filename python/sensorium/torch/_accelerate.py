"""The slow paths of transformers' Mamba models on a CPU, exchanged for the kernels."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from types import MethodType, TracebackType
from typing import Any

import torch

from ..errors import ArgumentError, DTypeError
from ._mixers import head_forward, mamba2_forward, mamba_forward

__all__ = ["Acceleration", "accelerate"]

_COMMON = ("A_log", "D", "activation", "conv1d", "in_proj", "layer_idx", "out_proj")
_MAMBA = (*_COMMON, "dt_proj", "x_proj")
#: What takes the place of the forward of a mixer, and the attributes that it reads.
_MIXERS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "MambaMixer": (mamba_forward, _MAMBA),
    "FalconMambaMixer": (mamba_forward, (*_MAMBA, "dt_layernorm", "b_layernorm", "c_layernorm")),
    "Mamba2Mixer": (mamba2_forward, (*_COMMON, "dt_bias", "n_groups", "norm", "time_step_limit")),
}


#: Versions of transformers between which tests ran. Mixers of older ones compute something else.
_OLDEST, _NEWEST = (4, 57), "5.24"


class Acceleration:
    """What :func:`accelerate` exchanged; as a context manager, until the end of the block.

    Attributes
    ----------
    layers : tuple of str
        Names of the mixers that were exchanged, those that had been before not among them.
    """

    def __init__(self, mixers: dict[str, Any]):
        self.layers = tuple(name for name, mixer in mixers.items() if _kind(mixer))
        self._mixers = mixers
        self._before: dict[str, Any] = {}
        for name, mixer in mixers.items():
            if "forward" in mixer.__dict__:
                self._before[name] = mixer.__dict__["forward"]
            mixer.forward = MethodType(_forward_for(mixer), mixer)

    def undo(self) -> None:
        """Give each mixer back the forward that it had. A second call does nothing.

        Raises
        ------
        ArgumentError
            Where something else was put in the place of a forward since: that has to be undone first.
        """
        for name, mixer in self._mixers.items():
            if not _is_ours(mixer):
                raise ArgumentError(
                    f"{name}.forward was replaced after accelerate: undo that first, then accelerate"
                )
        for name, mixer in self._mixers.items():
            del mixer.forward
            if name in self._before:
                mixer.forward = self._before[name]
        self._mixers, self._before = {}, {}

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"<Acceleration of {len(self.layers)} layers{'' if self._mixers else ', undone'}>"


def accelerate(model: Any) -> Acceleration:
    """Let the Mamba layers of a transformers model run on the kernels, in training and in generation.

    Weights, state dict, caches and the model's own methods stay what they are: the forward of each mixer
    and of the output head is exchanged, for the same mathematics. Logits agree within rounding.

    Parameters
    ----------
    model : torch.nn.Module
        ``MambaForCausalLM``, ``MambaModel``, ``Mamba2ForCausalLM``, ``Mamba2Model``,
        ``FalconMambaForCausalLM`` or any module that holds their layers, on the CPU, of any floating dtype.

    Returns
    -------
    Acceleration
        Its ``undo()`` gives back the forwards that there were, as does the end of a ``with`` block. Layers
        that are accelerated already are left alone, by ``undo()`` as well.

    Raises
    ------
    DTypeError
        Where `model` is no module.
    ArgumentError
        Where no layer is known, a parameter of one is not on the CPU, or a version of transformers has a
        mixer that lacks what is needed; the message names it.

    Examples
    --------
    A model of two layers with random weights, if transformers is there:

    >>> import torch
    >>> from sensorium.torch import accelerate
    >>> try:
    ...     from transformers import MambaConfig, MambaForCausalLM
    ... except ModuleNotFoundError:
    ...     same = True
    ... else:
    ...     config = MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)
    ...     model = MambaForCausalLM(config).eval()
    ...     tokens = torch.arange(20)[None]
    ...     want = model(tokens).logits
    ...     with accelerate(model):
    ...         same = torch.allclose(model(tokens).logits, want, atol=1e-4)
    >>> same
    True
    """
    if not isinstance(model, torch.nn.Module):
        raise DTypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    found = {name: module for name, module in model.named_modules() if _kind(module)}
    if not found:
        raise ArgumentError(f"model has no Mamba layer that accelerate knows{_others(model)}")
    for name, mixer in found.items():
        _check(name, mixer)
    found |= _heads(model, found)
    return Acceleration({name: mixer for name, mixer in found.items() if not _is_ours(mixer)})


def _kind(module: Any) -> str | None:
    """Return the name of the mixer that a module is, by the class that its forward is of."""
    for base in type(module).__mro__:
        if base.__name__ in _MIXERS and base.__module__.partition(".")[0] == "transformers":
            own = type(module).forward is base.__dict__.get("forward")
            return base.__name__ if own else None
    return None


def _heads(model: torch.nn.Module, mixers: dict[str, Any]) -> dict[str, Any]:
    """Return the output heads of the language models that mixers are in."""
    heads = {}
    for name, module in model.named_modules():
        head: Any = getattr(module, "lm_head", None)
        prefix = f"{name}." if name else ""
        holds = any(mixer.startswith(prefix) for mixer in mixers)
        if type(head) is torch.nn.Linear and holds and "forward" not in head.__dict__ and head.weight.is_cpu:
            heads[f"{prefix}lm_head"] = head
    return heads


def _forward_for(mixer: Any) -> Callable[..., Any]:
    kind = _kind(mixer)
    return _MIXERS[kind][0] if kind else head_forward


def _is_ours(mixer: Any) -> bool:
    forward = mixer.__dict__.get("forward")
    return isinstance(forward, MethodType) and forward.__func__ is _forward_for(mixer)


def _check(name: str, mixer: Any) -> None:
    kind = _kind(mixer) or ""
    missing = [attribute for attribute in _MIXERS[kind][1] if not hasattr(mixer, attribute)]
    takes = inspect.signature(type(mixer).forward).parameters
    if not {"cache", "cache_params", "kwargs"} & set(takes):
        missing.append("a cache")
    if missing or _version_number() < _OLDEST:
        without = f" without {', '.join(missing)}" if missing else ""
        raise ArgumentError(
            f"{name} is a {kind} of {_version()}{without}, "
            f"which accelerate does not know: it has been run with {_OLDEST[0]}.{_OLDEST[1]} to {_NEWEST}"
        )
    for parameter, tensor in mixer.named_parameters():
        if not tensor.is_cpu:
            raise ArgumentError(
                f"{name}.{parameter} is on {tensor.device}, expected the CPU: move the model with model.cpu()"
            )
        if not tensor.is_floating_point():
            raise ArgumentError(f"{name}.{parameter} has dtype {tensor.dtype}, expected a floating one")


def _others(model: torch.nn.Module) -> str:
    """Return the classes that look as if they were Mamba layers, for the message."""
    kinds = {type(module).__name__ for module in model.modules()}
    near = sorted(kind for kind in kinds if "mamba" in kind.lower() and "mixer" in kind.lower())
    return f", only {', '.join(near)} of {_version()}" if near else ""


def _version() -> str:
    module = sys.modules.get("transformers")
    return f"transformers {getattr(module, '__version__', 'of no known version')}"


def _version_number() -> tuple[int, ...]:
    numbers = re.findall(r"\d+", _version())
    return tuple(map(int, numbers[:2])) if len(numbers) > 1 else _OLDEST
