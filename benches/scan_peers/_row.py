"""A way to compute a case, and how far its results are from float64."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

Arrays = Mapping[str, Any]
#: Largest distance to float64 that rounding explains, in units of the largest element.
TOLERANCE = 1e-4


def installed(*modules: str) -> bool:
    """Whether all of them are."""
    return all(importlib.util.find_spec(module) for module in modules)


class Row:
    """Computes a case forward, with backward, or one step of it.

    A row keeps its inputs in the form that suits it best; what is timed is `call`. `results` turns what a
    call returned into arrays by name, in the layouts of the package: ``y``, or a gradient under the name of
    its input.
    """

    #: What it is called in a table.
    title = ""
    #: Modules that it needs.
    needs: tuple[str, ...] = ()
    passes: tuple[str, ...] = ("forward", "both")
    #: Whether its first call compiles.
    compiles = False
    #: Inputs that it has no place for.
    lacks: tuple[str, ...] = ()

    def __init__(self, arrays: Arrays, passes: str, threads: int = 2) -> None:
        self.arrays, self.passes_asked, self.threads = arrays, passes, threads
        self.prepare()

    @classmethod
    def takes(cls, arrays: Arrays, passes: str) -> bool:
        """Whether it is installed and computes such a case."""
        return (
            installed(*cls.needs) and passes in cls.passes and not any(name in arrays for name in cls.lacks)
        )

    def prepare(self) -> None:
        """Bring the inputs into the form that suits it."""

    def call(self) -> Any:
        """Compute the case."""
        return getattr(self, self.passes_asked)()

    def results(self, value: Any) -> dict[str, Any]:
        """Return the arrays of a call by name."""
        return {"y": np.asarray(value)} if self.passes_asked != "both" else dict(value)


class Package(Row):
    """A function of `sensorium.ops`, its gradients from what the forward keeps, and its step."""

    title = "sensorium"
    #: Names of the functions.
    scan, update = "", ""
    options: ClassVar[dict[str, Any]] = {}
    step_options: ClassVar[dict[str, Any]] = {}

    @classmethod
    def name_of(cls, arrays: Arrays) -> str:
        """Name of the function for those arrays."""
        return cls.scan

    @classmethod
    def takes(cls, arrays: Arrays, passes: str) -> bool:
        from sensorium import ops

        name = cls.name_of(arrays)
        wanted = {"forward": name, "both": f"{name}_backward", "step": cls.update}[passes]
        return passes in cls.passes and hasattr(ops, wanted)

    def prepare(self) -> None:
        from sensorium import ops

        self.given = {name: np.array(x) for name, x in self.arrays.items()}
        self.grad_out = self.given.pop("grad_out", None)
        name = self.name_of(self.arrays)
        self.run, self.back = getattr(ops, name), getattr(ops, f"{name}_backward", None)
        self.one = getattr(ops, self.update, None)

    def forward(self) -> Any:
        return self.run(**self.given, **self.options)

    def both(self) -> Any:
        return forward_and_backward(self.run, self.back, self.grad_out, self.given | self.options)[1]

    def step(self) -> Any:
        assert self.one is not None
        return self.one(**self.given, **self.step_options)

    def results(self, value: Any) -> dict[str, Any]:
        return value._asdict() if self.passes_asked == "both" else {"y": value}


def forward_and_backward(run: Any, back: Any, grad_out: Any, given: dict[str, Any]) -> tuple[Any, Any]:
    """Call an operation and its gradients, which take what the forward keeps for them where it keeps any."""
    if "return_checkpoints" in inspect.signature(run).parameters:
        y, kept = run(**given, return_checkpoints=True)
        return y, back(grad_out, **given, checkpoints=kept)
    y = run(**given)
    kept = {"h": y} if "h" in inspect.signature(back).parameters else {}
    return y, back(grad_out, **given, **kept)


class TorchRow(Row):
    """A function of tensors, and its gradients by autograd."""

    needs = ("torch",)

    def prepare(self) -> None:
        import torch

        self.torch = torch
        torch.set_num_threads(self.threads)
        given = {name: self.arrange(name, x) for name, x in self.arrays.items()}
        self.grad_out = given.pop("grad_out", None)
        self.leaves = {name: x.requires_grad_(self.passes_asked == "both") for name, x in given.items()}

    def arrange(self, name: str, x: Any) -> Any:
        """Make a tensor of an array."""
        return self.torch.from_numpy(np.ascontiguousarray(x))

    def restore(self, name: str, x: Any) -> Any:
        """Turn a result of that name into an array."""
        return x.detach().numpy()

    def run(self, **tensors: Any) -> Any:
        """Compute ``y``."""
        raise NotImplementedError

    def forward(self) -> Any:
        with self.torch.no_grad():
            return self.run(**self.leaves)

    def both(self) -> Any:
        y = self.run(**self.leaves)
        grads = self.torch.autograd.grad(y, list(self.leaves.values()), self.grad_out)
        return dict(zip(self.leaves, grads, strict=True))

    def results(self, value: Any) -> dict[str, Any]:
        if self.passes_asked != "both":
            return {"y": self.restore("y", value)}
        return {name: self.restore(name, x) for name, x in value.items()}


class JaxRow(Row):
    """A function of arrays under `jit`, and its gradients by `vjp`."""

    needs = ("jax",)
    compiles = True

    def prepare(self) -> None:
        import jax

        self.jax = jax
        given = {name: jax.numpy.asarray(self.arrange(name, x)) for name, x in self.arrays.items()}
        self.grad_out = given.pop("grad_out", None)
        self.inputs = given
        self.jitted = jax.jit(lambda inputs: self.run(**inputs))

        def gradients(inputs: Any, grad_out: Any) -> Any:
            return jax.vjp(lambda inputs: self.run(**inputs), inputs)[1](grad_out)[0]

        self.gradients = jax.jit(gradients)

    def arrange(self, name: str, x: Any) -> Any:
        """Bring an array into the layout of `run`."""
        return x

    def restore(self, name: str, x: Any) -> Any:
        """Undo that."""
        return np.asarray(x)

    def run(self, **arrays: Any) -> Any:
        """Compute ``y``."""
        raise NotImplementedError

    def forward(self) -> Any:
        return self.jax.block_until_ready(self.jitted(self.inputs))

    def both(self) -> Any:
        return self.jax.block_until_ready(self.gradients(self.inputs, self.grad_out))

    def results(self, value: Any) -> dict[str, Any]:
        if self.passes_asked != "both":
            return {"y": self.restore("y", value)}
        return {name: self.restore(name, x) for name, x in value.items()}


def distance(results: Arrays, truth: Arrays) -> float:
    """Largest distance of any element of any array to the truth, in units of that array's largest element.

    Raises
    ------
    AssertionError
        Where an array is missing, is not finite, or is further away than rounding explains.
    """
    worst = 0.0
    for name, want in truth.items():
        got = np.asarray(results[name])
        assert got.shape == want.shape, f"{name} has shape {got.shape}, expected {want.shape}"
        away = float(np.abs(got - want).max() / np.abs(want).max()) if want.size else 0.0
        assert away < TOLERANCE, f"{name} is off by {away:.1e} of the largest element"
        worst = max(worst, away)
    return worst
