"""Test-time-training layers (Sun et al. 2024, arXiv:2407.04620), and how others compute them on a processor.

Arrays are named and laid out as in `sensorium.ops.ttt_linear` and `ttt_mlp`: ``q``, ``k``, ``v`` ``(B, H,
L, D)``, ``eta`` ``(B, H, L)``, ``W`` ``(H, D, D)`` and ``b`` ``(H, D)``, or ``W1`` ``(H, D, F)``, ``b1``,
``W2`` ``(H, F, D)`` and ``b2``, ``norm_weight``, ``norm_bias`` ``(H, D)``, ``grad_out`` ``(B, H, L, D)``.
Every mini-batch of 16 tokens is one step of the dual form: the gradient of ``|norm(k W + b) - (v - k)|^2 /
2`` at the weights before it, in closed form through the norm, enters the outputs of its tokens through a
lower-triangular matrix of rates.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, ClassVar

import numpy as np

from scan_peers._row import Arrays, JaxRow, Package, Row, TorchRow

SIZE, EPS = 16, 1e-6
#: The tanh form of GELU.
GELU, CUBE = math.sqrt(2 / math.pi), 0.044715


def arrays(
    batch: int, heads: int, length: int, width: int = 64, *, mlp: bool = False, dtype: Any = np.float32
) -> dict[str, Any]:
    """Draw a case as a layer at its start has it: weights of 0.02, rates of up to one over the width."""
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal((batch, heads, length, width)) for name in "qkv"}
    given["eta"] = rng.uniform(0, 1, (batch, heads, length)) / width
    shapes = {"W": (width, width), "b": (width,)}
    if mlp:
        shapes = {"W1": (width, 4 * width), "b1": (4 * width,), "W2": (4 * width, width), "b2": (width,)}
    for name, shape in shapes.items():
        given[name] = 0.02 * rng.standard_normal((heads, *shape))
    given["norm_weight"] = 1 + 0.1 * rng.standard_normal((heads, width))
    given["norm_bias"] = 0.1 * rng.standard_normal((heads, width))
    given["grad_out"] = rng.standard_normal((batch, heads, length, width))
    return {name: x.astype(dtype) for name, x in given.items()}


#: Inputs in the order of their gradients.
GRADIENTS: tuple[str, ...] = ()


class Sensorium(Package):
    """The package."""

    options: ClassVar[dict[str, Any]] = {"mini_batch_size": SIZE, "eps": EPS}

    @classmethod
    def name_of(cls, arrays: Arrays) -> str:
        return "ttt_mlp" if "W1" in arrays else "ttt_linear"


def norm(x: Any, a: Any) -> tuple[Any, Any, Any]:
    """Layer norm of every head, what is normed, and its standard deviation."""
    centred = x - x.mean(-1, keepdims=True)
    deviation = ((centred * centred).mean(-1, keepdims=True) + EPS) ** 0.5
    normed = centred / deviation
    return a["norm_weight"][:, None] * normed + a["norm_bias"][:, None], normed, deviation


def norm_gradient(x: Any, target: Any, a: Any) -> Any:
    """Gradient of half the squared distance of the norm to a target."""
    y, normed, deviation = norm(x, a)
    g = (y - target) * a["norm_weight"][:, None]
    g = g - g.mean(-1, keepdims=True) - normed * (g * normed).mean(-1, keepdims=True)
    return g / deviation


def gelu(x: Any, tanh: Any = np.tanh) -> Any:
    """GELU in its tanh form."""
    return 0.5 * x * (1 + tanh(GELU * x * (1 + CUBE * x * x)))


def gelu_slope(x: Any, tanh: Any = np.tanh) -> Any:
    """Its derivative."""
    t = tanh(GELU * x * (1 + CUBE * x * x))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * GELU * (1 + 3 * CUBE * x * x)


def linear_step(weights: Any, now: Any, a: Any, lower: Any, gelu: Any, slope: Any) -> tuple[Any, Any]:
    """One mini-batch of the linear layer: weights after it, and its outputs."""
    (W, b), (q, k, v, eta) = weights, now
    kt = k.swapaxes(-1, -2)
    g = norm_gradient(k @ W + b, v - k, a)
    rates = lower * eta[..., None, :]
    z = q @ W - (rates * (q @ kt)) @ g + b - rates @ g
    last = rates[..., -1:, :]
    W = W - (kt * last) @ g
    return (W, b - last @ g), q + norm(z, a)[0]


def mlp_step(weights: Any, now: Any, a: Any, lower: Any, gelu: Any, slope: Any) -> tuple[Any, Any]:
    """One mini-batch of the MLP layer."""
    (W1, b1, W2, b2), (q, k, v, eta) = weights, now
    kt = k.swapaxes(-1, -2)
    z = k @ W1 + b1
    x = gelu(z)
    g2 = norm_gradient(x @ W2 + b2, v - k, a)
    g1 = (g2 @ W2.swapaxes(-1, -2)) * slope(z)
    rates = lower * eta[..., None, :]
    y = gelu(q @ W1 - (rates * (q @ kt)) @ g1 + b1 - rates @ g1)
    xt = x.swapaxes(-1, -2)
    z = y @ W2 - (rates * (y @ xt)) @ g2 + b2 - rates @ g2
    last = rates[..., -1:, :]
    weights = W1 - (kt * last) @ g1, b1 - last @ g1, W2 - (xt * last) @ g2, b2 - last @ g2
    return weights, q + norm(z, a)[0]


def step_of(a: Any) -> Any:
    """The step that the weights ask for."""
    return mlp_step if "W1" in a else linear_step


def weights_of(a: Any) -> tuple[Any, ...]:
    """Weights, and biases as rows."""
    names = ("W1", "b1", "W2", "b2") if "W1" in a else ("W", "b")
    return tuple(a[name] if name.startswith("W") else a[name][:, None] for name in names)


def rates(dtype: Any) -> Any:
    """Rate that token i applies to the gradient of token j <= i, before it is multiplied by that of j."""
    return np.tril(np.repeat(1 / np.arange(1, SIZE + 1)[:, None], SIZE, axis=1)).astype(dtype)


class NumPy(Row):
    """A loop over mini-batches, all heads at once; backward is HIPS autograd's."""

    title = "NumPy, mini-batch after mini-batch"
    needs = ("autograd",)

    def prepare(self) -> None:
        self.given = {name: np.array(x) for name, x in self.arrays.items()}
        self.grad_out = self.given.pop("grad_out", None)
        self.lower = rates(self.given["q"].dtype)

    def run(self, a: Any, library: Any) -> Any:
        step, weights, outs = step_of(a), weights_of(a), []
        both = partial(gelu, tanh=library.tanh), partial(gelu_slope, tanh=library.tanh)
        count = self.given["q"].shape[2] // SIZE
        # Of a slice, the gradient would be an array of all tokens.
        given = [library.split(a[name], count, axis=2) for name in ("q", "k", "v", "eta")]
        for now in zip(*given, strict=True):
            weights, out = step(weights, now, a, self.lower, *both)
            outs.append(out)
        return library.concatenate(outs, axis=2)

    def forward(self) -> Any:
        return self.run(self.given, np)

    def both(self) -> Any:
        import autograd.numpy
        from autograd import make_vjp

        vjp, _ = make_vjp(lambda a: self.run(a, autograd.numpy))(self.given)
        return vjp(self.grad_out)


class Torch(TorchRow):
    """The mini-batch form in plain torch: a loop over steps, gradients by autograd."""

    title = "torch, the authors' form"

    def prepare(self) -> None:
        super().prepare()
        self.lower = self.torch.from_numpy(rates(self.arrays["q"].dtype))
        self.one = step_of(self.arrays)
        fused = self.torch.nn.functional.gelu
        self.gelu = partial(fused, approximate="tanh"), partial(gelu_slope, tanh=self.torch.tanh)

    def run(self, **a: Any) -> Any:
        torch = self.torch
        weights, outs = weights_of(a), []
        given = [a[name].split(SIZE, dim=2) for name in ("q", "k", "v", "eta")]
        for now in zip(*given, strict=True):
            weights, out = self.one(weights, now, a, self.lower, *self.gelu)
            outs.append(out)
        return torch.cat(outs, dim=2)


class TorchCompiled(Torch):
    """The same, its step under `torch.compile`."""

    title = "torch, the authors' form, compiled"
    compiles = True

    def prepare(self) -> None:
        super().prepare()
        self.torch.compiler.reset()
        self.one = self.torch.compile(self.one, dynamic=False)


class Jax(JaxRow):
    """`lax.scan` over mini-batches under `jit`."""

    title = "JAX, lax.scan, jit"

    def arrange(self, name: str, x: Any) -> Any:
        """Bring ``(B, H, L, ...)`` to ``(mini-batches, B, H, 16, ...)``."""
        if name not in ("q", "k", "v", "eta", "grad_out"):
            return x
        return np.moveaxis(x.reshape(*x.shape[:2], -1, SIZE, *x.shape[3:]), 2, 0)

    def restore(self, name: str, x: Any) -> Any:
        x = np.asarray(x)
        if name not in ("q", "k", "v", "eta", "y"):
            return x
        x = np.moveaxis(x, 0, 2)
        return x.reshape(*x.shape[:2], -1, *x.shape[4:])

    def run(self, **a: Any) -> Any:
        jax, jnp = self.jax, self.jax.numpy
        both = {"gelu": partial(gelu, tanh=jnp.tanh), "slope": partial(gelu_slope, tanh=jnp.tanh)}
        step = partial(step_of(a), a=a, lower=jnp.asarray(rates(a["q"].dtype)), **both)
        given = tuple(a[name] for name in ("q", "k", "v", "eta"))
        # The carry has the batch that the steps give it.
        start = tuple(jnp.broadcast_to(w, (a["q"].shape[1], *w.shape)) for w in weights_of(a))
        return jax.lax.scan(step, start, given)[1]


#: In the order in which they are measured.
ROWS: dict[str, type[Row]] = {
    "sensorium": Sensorium,
    "torch": Torch,
    "torch_compiled": TorchCompiled,
    "jax": Jax,
    "numpy": NumPy,
}


def rows(arrays: Arrays, passes: str, names: list[str] | None = None, threads: int = 2) -> dict[str, Row]:
    """Rows that compute a case; all that are installed, or those named."""
    return {
        name: kind(arrays, passes, threads)
        for name, kind in ROWS.items()
        if (names is None or name in names) and kind.takes(arrays, passes)
    }


def truth(arrays: Arrays, passes: str) -> dict[str, Any]:
    """Results in float64: NumPy's row, which `check` holds against an independent reference."""
    row = NumPy({name: np.asarray(x, np.float64) for name, x in arrays.items()}, passes)
    return row.results(row.call())
