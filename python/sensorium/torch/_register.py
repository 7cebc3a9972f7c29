"""The one place where a kernel becomes a ``torch.library`` operator.

An operator is written as a function of NumPy arrays and plain values, a rule for the shapes and strides of
its results, and, where it has a derivative, the arguments of the operator that is its backward. Everything
that torch asks of an operator is registered here: the CPU kernel, fake tensors, autograd, autocast, ``vmap``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.autograd import forward_ad

from ..errors import ArgumentError, DTypeError, MissingExtraError

__all__ = [
    "Tensor",
    "check_float",
    "define",
    "differentiable",
    "empty_like",
    "like",
    "or_empty",
    "without_dispatch",
]

Tensor: TypeAlias = Any  # torch.Tensor, without asking that torch is there when types are checked

_FLOATS = (torch.float32, torch.float64)
_HALVES = (torch.float16, torch.bfloat16)
_KERNELS: dict[Any, Callable[..., Any]] = {}
_ARGUMENT = re.compile(r"([A-Za-z]+)(?:\(\w!\))?\??(?:\[\])? (\w+)")


def _array(name: str, tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return the memory of a CPU tensor as an array: nothing is copied."""
    if not tensor.is_cpu or tensor.layout is not torch.strided:
        _check_tensor(name, tensor)
    try:
        if tensor.dtype is not torch.bfloat16:
            array: np.ndarray[Any, Any] = tensor.numpy()
            return array
        bits: np.ndarray[Any, Any] = tensor.view(torch.int16).numpy()
        return bits.view(_bfloat16(name))
    except RuntimeError:  # conjugated and negated views are marked as such, and not yet computed
        resolved = tensor.resolve_conj().resolve_neg()
        if resolved is tensor:
            raise
        return _array(name, resolved)
    except TypeError:
        raise DTypeError(
            f"{name} has dtype {tensor.dtype}, expected torch.float32 or torch.float64"
        ) from None


def _bfloat16(name: str) -> Any:
    """Return the dtype that NumPy knows only with ``ml_dtypes``."""
    try:
        from ml_dtypes import bfloat16
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{name} has dtype torch.bfloat16, for which NumPy needs ml_dtypes: pip install ml_dtypes"
        ) from error
    return bfloat16


def _tensor(result: Any) -> Tensor:
    """Return a tensor over the memory of a new array."""
    array = np.asarray(result)
    if array.dtype.itemsize == 2 and array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _check_tensor(name: str, tensor: Tensor) -> None:
    if tensor.device.type not in ("cpu", "meta"):
        raise ArgumentError(f"{name} is on {tensor.device}, expected a CPU tensor: move it with {name}.cpu()")
    if tensor.layout is not torch.strided:
        raise ArgumentError(f"{name} is {tensor.layout}, expected a dense tensor: {name}.to_dense()")


def check_float(name: str, tensor: Tensor, *, half: bool = False) -> None:
    """Raise where a tensor is of no dtype that the kernels compute in, or, with ``half``, store."""
    if tensor.dtype not in _FLOATS and not (half and tensor.dtype in _HALVES):
        more = ", torch.float16 or torch.bfloat16" if half else ""
        want = f"torch.float32{',' if half else ' or'} torch.float64{more}"
        raise DTypeError(f"{name} has dtype {tensor.dtype}, expected {want}")


def like(tensor: Tensor) -> Tensor:
    """Return an empty tensor ``(B, H, N, D)`` with heads and tokens as in memory, as the kernels do."""
    batch, heads, tokens, width = tensor.shape
    if tensor.stride(3) == 1 and tensor.stride(1) < tensor.stride(2):
        return tensor.new_empty((batch, tokens, heads, width)).transpose(1, 2)
    return tensor.new_empty(tensor.shape)


def or_empty(results: Sequence[np.ndarray[Any, Any] | None]) -> tuple[np.ndarray[Any, Any], ...]:
    """Return results of a run, with what an operator must return for those that there are not."""
    first = next(result for result in results if result is not None)
    return tuple(np.empty(0, dtype=first.dtype) if result is None else result for result in results)


def empty_like(tensors: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """Return empty contiguous tensors of the shapes of some: the rule that goes with :func:`or_empty`."""
    first = next(tensor for tensor in tensors if tensor is not None)
    return tuple(
        first.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape) for tensor in tensors
    )


def define(
    name: str,
    signature: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    backward_of: str = "",
    autocast: bool = True,
    mutates: Sequence[str] = (),
) -> Any:
    """Register an operator without a derivative, and return it.

    Parameters
    ----------
    name : str
        ``sensorium::name`` is the operator.
    signature : str
        In torch's words, ``"(Tensor x, float eps) -> (Tensor, Tensor)"``, without default values, so that
        every argument reaches each of the functions in this order.
    run : callable
        Takes arrays where the signature has tensors, and returns new arrays.
    fake : callable
        Takes tensors without data and returns ``new_empty`` ones of the shapes and strides of the results.
    backward_of : str
        Name of the operator whose backward this is: asking for its derivative is an error that says so.
    autocast : bool
        Whether floating arguments are cast to ``float32`` under autocast: for a kernel that takes no half
        precision.
    mutates : sequence of str
        Arguments that the operator writes into, ``Tensor(a!)`` in its signature. It has neither a derivative
        nor a rule for ``vmap``.

    Returns
    -------
    torch.OpOverload
    """
    arguments = _ARGUMENT.findall(signature.split("->")[0])
    tensors = [(i, argument) for i, (kind, argument) in enumerate(arguments) if kind == "Tensor"]

    def kernel(*args: Any) -> Any:
        if getattr(forward_ad, "_current_level", -1) >= 0:  # torch would drop the tangents without a word
            raise NotImplementedError(f"{name} has no forward-mode derivative: use a backward pass")
        values = list(args)
        for i, argument in tensors:
            if values[i] is not None:
                values[i] = _array(argument, values[i])
        results = run(*values)
        return tuple(map(_tensor, results)) if isinstance(results, tuple) else _tensor(results)

    def shapes(*args: Any) -> Any:
        given = [(argument, args[i]) for i, argument in tensors if args[i] is not None]
        for argument, tensor in given:
            _check_tensor(argument, tensor)
            if tensor.device != given[0][1].device:
                first, other = given[0]
                raise ArgumentError(f"{argument} is on {tensor.device} but {first} is on {other.device}")
        return fake(*args)

    qualified = f"sensorium::{name}"
    operator = torch.library.custom_op(qualified, kernel, mutates_args=mutates, schema=signature)
    operator.register_fake(shapes)
    if autocast:
        operator.register_autocast("cpu", torch.float32)
    if not mutates:
        operator.register_vmap(_one_by_one(getattr(torch.ops.sensorium, name).default))
    if backward_of:

        def refuse(ctx: Any, *grads: Any) -> Any:
            raise NotImplementedError(
                f"the gradient of {backward_of} has no gradient: first derivatives only"
            )

        operator.register_autograd(refuse)
    registered = getattr(torch.ops.sensorium, name).default
    _KERNELS[registered] = kernel
    return registered


def without_dispatch(operator: Any, *args: Any) -> Any:
    """Call the CPU kernel of an operator on plain tensors where nobody traces: 20 microseconds less.

    For callers that know that there is no gradient, no autocast and no ``vmap`` to care for.
    """
    plain = not torch.compiler.is_compiling() and type(args[0]) is torch.Tensor
    return (_KERNELS[operator] if plain else operator)(*args)


def differentiable(
    operator: Any,
    wrt: Sequence[str],
    save: Callable[[tuple[Any, ...], Any], tuple[Any, ...]],
    backward: Callable[..., Sequence[Any]],
    *,
    constant_results: Sequence[int] = (),
) -> None:
    """Give an operator its derivative.

    Parameters
    ----------
    operator : torch.OpOverload
        What :func:`define` returned.
    wrt : sequence of str
        Arguments that have a gradient. Another one that asks for a gradient is an error.
    save : callable
        Takes the inputs and the results of the operator and returns what the backward needs: tensors, None
        and plain values in any order.
    backward : callable
        Takes a gradient for each result that has one, then what was saved, and returns the gradients of
        ``wrt`` in order.
    constant_results : sequence of int
        Results without a derivative, such as ``lse``.
    """
    names = [argument.name for argument in operator._schema.arguments]
    places = [names.index(name) for name in wrt]

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        for i, needed in enumerate(ctx.needs_input_grad[: len(names)]):
            if needed and i not in places:
                raise ArgumentError(
                    f"{names[i]} requires a gradient, which {operator._opname} does not have: "
                    f"pass {names[i]}.detach()"
                )
        saved = list(save(inputs, output))
        ctx.tensor_places = [i for i, value in enumerate(saved) if isinstance(value, torch.Tensor)]
        ctx.save_for_backward(*[saved[i] for i in ctx.tensor_places])
        for i in ctx.tensor_places:
            saved[i] = None
        ctx.plain = saved
        if constant_results:
            ctx.mark_non_differentiable(*(output[i] for i in constant_results))

    def propagate(ctx: Any, *grads: Any) -> Any:
        saved = list(ctx.plain)
        for i, tensor in zip(ctx.tensor_places, ctx.saved_tensors, strict=True):
            saved[i] = tensor
        given = [grad for i, grad in enumerate(grads) if i not in constant_results]
        out = [None] * len(names)
        for place, grad in zip(places, backward(*given, *saved), strict=True):
            out[place] = grad if ctx.needs_input_grad[place] else None
        return tuple(out)

    torch.library.register_autograd(operator.name().split(".")[0], propagate, setup_context=keep)


def _one_by_one(operator: Any) -> Callable[..., Any]:
    """Return the rule of ``vmap``: the operator for one element of the mapped axis after the other."""

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
        if not info.batch_size:
            raise ArgumentError("vmap over an axis of size 0 has no result to take the shape from")
        results = []
        for i in range(info.batch_size):
            element = (
                arg.select(dim, i) if isinstance(dim, int) else arg
                for arg, dim in zip(args, in_dims, strict=True)
            )
            results.append(operator(*element))
        if isinstance(results[0], tuple):
            return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])
        return torch.stack(results), 0

    return rule
