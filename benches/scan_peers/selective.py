"""The selective scan of Mamba (Gu & Dao 2023, arXiv:2312.00752), and how others compute it on a processor.

Arrays are named and laid out as in `sensorium.ops.selective_scan`: ``u``, ``delta``, ``z`` ``(B, D, L)``,
``A`` ``(D, S)``, ``B``, ``C`` ``(B, S, L)``, ``D``, ``delta_bias`` ``(D,)``, ``grad_out`` ``(B, D, L)``;
softplus is applied to ``delta``. ``D``, ``z`` and ``delta_bias`` may be left out. A step takes ``state (B,
D, S)``, ``x``, ``dt``, ``z`` ``(B, D)``, ``A``, ``B``, ``C`` ``(B, S)``, ``D`` and ``dt_bias``.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import numpy as np

from scan_peers import ggml
from scan_peers._row import Arrays, JaxRow, Package, Row, TorchRow

#: Steps of which NumPy keeps the states at a time while it goes backward.
CHUNK = 64


def arrays(
    batch: int, width: int, length: int, states: int = 16, *, options: bool = False, dtype: Any = np.float32
) -> dict[str, Any]:
    """Draw a case as a trained layer has it: A about -1 to -S, delta from 0.001 to 0.1 after softplus."""
    rng = np.random.default_rng(0)
    step = np.exp(rng.uniform(np.log(1e-3), np.log(0.1), (batch, width, length)))
    given = {
        "u": rng.standard_normal((batch, width, length)),
        "delta": np.log(np.expm1(step)),
        "A": -np.arange(1.0, states + 1) * np.exp(0.2 * rng.standard_normal((width, states))),
        "B": rng.standard_normal((batch, states, length)),
        "C": rng.standard_normal((batch, states, length)),
    }
    if options:
        given["D"] = rng.standard_normal(width)
        given["z"] = rng.standard_normal((batch, width, length))
        given["delta_bias"] = 0.1 * rng.standard_normal(width)
    given["grad_out"] = rng.standard_normal((batch, width, length))
    return {name: x.astype(dtype) for name, x in given.items()}


def step_arrays(batch: int, width: int, states: int = 16, dtype: Any = np.float32) -> dict[str, Any]:
    """Draw one step of a layer."""
    rng = np.random.default_rng(0)
    given = {
        "state": rng.standard_normal((batch, width, states)),
        "x": rng.standard_normal((batch, width)),
        "dt": rng.uniform(-7, -2, (batch, width)),
        "A": -np.arange(1.0, states + 1) * np.exp(0.2 * rng.standard_normal((width, states))),
        "B": rng.standard_normal((batch, states)),
        "C": rng.standard_normal((batch, states)),
    }
    return {name: x.astype(dtype) for name, x in given.items()}


def softplus(x: Any) -> Any:
    """``log(1 + exp(x))`` without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def sigmoid(x: Any) -> Any:
    """``1 / (1 + exp(-x))`` without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


#: Inputs in the order of their gradients.
GRADIENTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


class Sensorium(Package):
    """The package."""

    passes = ("forward", "both", "step")
    scan, update = "selective_scan", "selective_state_update"
    options: ClassVar[dict[str, Any]] = {"delta_softplus": True}
    step_options: ClassVar[dict[str, Any]] = {"dt_softplus": True}


class NumPy(Row):
    """A loop over time, all channels and states at once, channels last and in place."""

    title = "NumPy, channels last, in place"
    passes = ("forward", "both", "step")

    def prepare(self) -> None:
        if self.passes_asked == "step":
            self.given = {name: np.array(x) for name, x in self.arrays.items()}
            return
        first = {
            name: np.ascontiguousarray(np.moveaxis(x, -1, 0))
            for name, x in self.arrays.items()
            if x.ndim == 3
        }
        self.u, self.delta, self.B, self.C = (first[name] for name in ("u", "delta", "B", "C"))
        self.z, self.grad_out = first.get("z"), first.get("grad_out")
        self.A = np.ascontiguousarray(self.arrays["A"].T)
        self.D, self.bias = self.arrays.get("D"), self.arrays.get("delta_bias")
        self.length, self.batch, self.width = self.u.shape
        self.dtype, self.states = self.u.dtype, len(self.A)

    def scan(self, keep: list[Any] | None = None) -> Any:
        """Return the sums over states, and keep the state before every chunk."""
        raw = self.delta if self.bias is None else self.delta + self.bias
        self.raw, self.dt = raw, softplus(raw)
        self.x = self.dt * self.u
        h = np.zeros((self.batch, self.states, self.width), self.dtype)
        decay, term = np.empty_like(h), np.empty_like(h)
        y = np.empty_like(self.u)
        for t in range(self.length):
            if keep is not None and t % CHUNK == 0:
                keep.append(h.copy())
            np.multiply(self.dt[t][:, None], self.A, out=decay)
            np.exp(decay, out=decay)
            np.multiply(self.B[t][:, :, None], self.x[t][:, None], out=term)
            h *= decay
            h += term
            np.matmul(self.C[t][:, None], h, out=y[t][:, None])
        return y

    def forward(self) -> Any:
        y = self.scan()
        if self.D is not None:
            y += self.D * self.u
        if self.z is not None:
            y *= self.z * sigmoid(self.z)
        return y

    def both(self) -> Any:
        keep: list[Any] = []
        y, dy, grads = self.scan(keep), self.grad_out, {}
        if self.D is not None:
            y += self.D * self.u
        if self.z is not None:
            s = sigmoid(self.z)
            grads["z"] = dy * y * (s * (1 + self.z * (1 - s)))
            dy = dy * (self.z * s)
        dx, ddt = np.empty_like(self.u), np.empty_like(self.u)
        dA = np.zeros_like(self.A)
        dB, dC = np.empty_like(self.B), np.empty_like(self.C)
        g = np.zeros((self.batch, self.states, self.width), self.dtype)
        h = np.empty((CHUNK + 1, *g.shape), self.dtype)
        decay, term = np.empty_like(h[1:]), np.empty_like(g)
        for start in reversed(range(0, self.length, CHUNK)):
            steps = range(start, min(start + CHUNK, self.length))
            h[0] = keep[start // CHUNK]
            for i, t in enumerate(steps):
                np.multiply(self.dt[t][:, None], self.A, out=decay[i])
                np.exp(decay[i], out=decay[i])
                np.multiply(self.B[t][:, :, None], self.x[t][:, None], out=term)
                np.multiply(h[i], decay[i], out=h[i + 1])
                h[i + 1] += term
            for i, t in reversed(list(enumerate(steps))):
                np.matmul(h[i + 1], dy[t][:, :, None], out=dC[t][:, :, None])
                np.multiply(self.C[t][:, :, None], dy[t][:, None], out=term)
                g += term
                np.matmul(g, self.x[t][:, :, None], out=dB[t][:, :, None])
                np.matmul(self.B[t][:, None], g, out=dx[t][:, None])
                g *= decay[i]
                np.multiply(g, h[i], out=term)
                np.einsum("bsd,sd->bd", term, self.A, out=ddt[t])
                term *= self.dt[t][:, None]
                dA += term.sum(axis=0)
        grads |= {"A": dA.T, "B": dB, "C": dC, "u": dx * self.dt}
        grads["delta"] = (ddt + dx * self.u) * sigmoid(self.raw)
        if self.D is not None:
            grads["u"] += self.D * dy
            grads["D"] = (dy * self.u).sum(axis=(0, 1))
        if self.bias is not None:
            grads["delta_bias"] = grads["delta"].sum(axis=(0, 1))
        return grads

    def step(self) -> Any:
        a = self.given
        dt = softplus(a["dt"])
        a["state"] *= np.exp(dt[:, :, None] * a["A"])
        a["state"] += (dt * a["x"])[:, :, None] * a["B"][:, None]
        return np.matmul(a["state"], a["C"][:, :, None])[:, :, 0]

    def results(self, value: Any) -> dict[str, Any]:
        if self.passes_asked == "step":
            return {"y": value}
        named = value if self.passes_asked == "both" else {"y": value}
        return {name: np.moveaxis(x, 0, -1) if x.ndim == 3 else x for name, x in named.items()}


class NumPyPlain(Row):
    """The loop as one would write it: states last, a fresh array for every product."""

    title = "NumPy, a plain loop over time"
    passes = ("forward",)

    def prepare(self) -> None:
        self.a = dict(self.arrays)

    def forward(self) -> Any:
        a = self.a
        dt = softplus(a["delta"] + a["delta_bias"][:, None] if "delta_bias" in a else a["delta"])
        h = np.zeros((*dt.shape[:2], a["A"].shape[1]), dt.dtype)
        y = np.empty_like(a["u"])
        for t in range(dt.shape[2]):
            step = dt[:, :, t, None]
            h = np.exp(step * a["A"]) * h + step * a["u"][:, :, t, None] * a["B"][:, None, :, t]
            y[:, :, t] = np.einsum("bds,bs->bd", h, a["C"][:, :, t])
        y = y + a["D"][:, None] * a["u"] if "D" in a else y
        return y * a["z"] * sigmoid(a["z"]) if "z" in a else y


def numba_kernels() -> tuple[Any, Any]:
    """Compile loops over channels in parallel, with the states of a channel in registers or cache."""
    from numba import njit, prange

    compiled = partial(njit, parallel=True, fastmath=True)

    @compiled()
    def forward(u, delta, A, B, C, D, z, bias, has_d, has_z, has_bias):  # type: ignore[no-untyped-def]
        batch, width, length = u.shape
        states = A.shape[1]
        y = np.empty_like(u)
        for row in prange(batch * width):
            b, d = row // width, row % width
            h = np.zeros(states, u.dtype)
            a = A[d]
            for t in range(length):
                raw = delta[b, d, t] + bias[d] if has_bias else delta[b, d, t]
                dt = raw if raw > 20 else np.log1p(np.exp(raw))
                x = dt * u[b, d, t]
                total = D[d] * u[b, d, t] if has_d else u.dtype.type(0)
                for s in range(states):
                    h[s] = np.exp(dt * a[s]) * h[s] + x * B[b, t, s]
                    total += h[s] * C[b, t, s]
                if has_z:
                    total *= z[b, d, t] / (1 + np.exp(-z[b, d, t]))
                y[b, d, t] = total
        return y

    @compiled()
    def backward(dy, u, delta, A, B, C, D, z, bias, has_d, has_z, has_bias, parts):  # type: ignore[no-untyped-def]
        batch, width, length = u.shape
        states = A.shape[1]
        du, ddelta, dz = np.empty_like(u), np.empty_like(u), np.zeros_like(u)
        dA = np.zeros((batch, width, states), u.dtype)
        dD, dbias = np.zeros((batch, width), u.dtype), np.zeros((batch, width), u.dtype)
        dB = np.zeros((parts, batch, length, states), u.dtype)
        dC = np.zeros((parts, batch, length, states), u.dtype)
        for part in prange(parts):
            h = np.empty((length + 1, states), u.dtype)
            decay = np.empty((length, states), u.dtype)
            g = np.empty(states, u.dtype)
            for row in range(part, batch * width, parts):
                b, d = row // width, row % width
                a = A[d]
                for s in range(states):
                    h[0, s] = 0
                    g[s] = 0
                for t in range(length):
                    raw = delta[b, d, t] + bias[d] if has_bias else delta[b, d, t]
                    dt = raw if raw > 20 else np.log1p(np.exp(raw))
                    x = dt * u[b, d, t]
                    for s in range(states):
                        decay[t, s] = np.exp(dt * a[s])
                        h[t + 1, s] = decay[t, s] * h[t, s] + x * B[b, t, s]
                for t in range(length - 1, -1, -1):
                    raw = delta[b, d, t] + bias[d] if has_bias else delta[b, d, t]
                    dt = raw if raw > 20 else np.log1p(np.exp(raw))
                    x, out = dt * u[b, d, t], dy[b, d, t]
                    if has_z:
                        sig = 1 / (1 + np.exp(-z[b, d, t]))
                        y = D[d] * u[b, d, t] if has_d else u.dtype.type(0)
                        for s in range(states):
                            y += h[t + 1, s] * C[b, t, s]
                        dz[b, d, t] = out * y * sig * (1 + z[b, d, t] * (1 - sig))
                        out *= z[b, d, t] * sig
                    dx, ddt = u.dtype.type(0), u.dtype.type(0)
                    for s in range(states):
                        dC[part, b, t, s] += h[t + 1, s] * out
                        g[s] += C[b, t, s] * out
                        dB[part, b, t, s] += g[s] * x
                        dx += g[s] * B[b, t, s]
                        g[s] *= decay[t, s]
                        lead = g[s] * h[t, s]
                        ddt += lead * a[s]
                        dA[b, d, s] += lead * dt
                    du[b, d, t] = dx * dt
                    if has_d:
                        du[b, d, t] += D[d] * out
                        dD[b, d] += out * u[b, d, t]
                    ddelta[b, d, t] = (ddt + dx * u[b, d, t]) / (1 + np.exp(-raw))
                    dbias[b, d] += ddelta[b, d, t]
        return du, ddelta, dA, dB, dC, dD, dz, dbias

    return forward, backward


class Numba(Row):
    """Typed loops, compiled, channels in parallel; with backward all states of a channel are kept."""

    title = "numba"
    needs = ("numba",)
    compiles = True
    kernels: Any = None

    def prepare(self) -> None:
        import numba

        numba.set_num_threads(min(self.threads, numba.config.NUMBA_NUM_THREADS))
        Numba.kernels = Numba.kernels or numba_kernels()
        a = {name: np.ascontiguousarray(x) for name, x in self.arrays.items()}
        for name in ("B", "C"):
            a[name] = np.ascontiguousarray(a[name].transpose(0, 2, 1))
        none = np.zeros(0, a["u"].dtype)
        self.options = [name in a for name in ("D", "z", "delta_bias")]
        self.inputs = [a[name] for name in ("u", "delta", "A", "B", "C")]
        self.inputs += [a.get("D", none), a.get("z", none.reshape(0, 0, 0)), a.get("delta_bias", none)]
        self.grad_out = a.get("grad_out")

    def forward(self) -> Any:
        return self.kernels[0](*self.inputs, *self.options)

    def both(self) -> Any:
        self.forward()
        grads = self.kernels[1](self.grad_out, *self.inputs, *self.options, self.threads)
        summed = (False, False, True, True, True, True, False, True)
        return [x.sum(axis=0) if add else x for x, add in zip(grads, summed, strict=True)]

    def results(self, value: Any) -> dict[str, Any]:
        if self.passes_asked == "forward":
            return {"y": value}
        named = dict(zip(("u", "delta", "A", "B", "C", "D", "z", "delta_bias"), value, strict=True))
        return {name: x.transpose(0, 2, 1) if name in "BC" else x for name, x in named.items()}


class Ggml(Row):
    """ggml's operator; it has no D, gate, bias or backward."""

    title = "ggml"
    passes = ("forward", "step")
    lacks = ("D", "z", "delta_bias")

    @classmethod
    def takes(cls, arrays: Arrays, passes: str) -> bool:
        return super().takes(arrays, passes) and ggml.library() is not None

    def prepare(self) -> None:
        a = self.arrays
        if self.passes_asked == "step":
            x, dt, b, c = (
                a["x"][:, None, :, None],
                a["dt"][:, None],
                a["B"][:, None, None],
                a["C"][:, None, None],
            )
            state = a["state"][:, :, None]
        else:
            x, dt = a["u"].transpose(0, 2, 1)[..., None], a["delta"].transpose(0, 2, 1)
            b, c = (a[name].transpose(0, 2, 1)[:, :, None] for name in "BC")
            state = np.zeros((len(x), x.shape[2], 1, a["A"].shape[1]), np.float32)
        make = ggml.quickest if self.passes_asked == "step" else ggml.Scan
        self.graph = make(state, x, dt, a["A"], b, c, threads=self.threads)

    def forward(self) -> Any:
        self.graph.compute()
        return self.graph.y

    def step(self) -> Any:
        return self.forward()

    def results(self, value: Any) -> dict[str, Any]:
        y = value[..., 0].transpose(0, 2, 1)
        return {"y": y[:, :, 0] if self.passes_asked == "step" else y}


class Reference(TorchRow):
    """The formula of mamba_ssm's reference: all decays at once, then a loop over time."""

    title = "torch, mamba_ssm's reference"
    passes = ("forward", "both", "step")

    def run(self, **a: Any) -> Any:
        torch, softplus = self.torch, self.torch.nn.functional.softplus
        dt = a["delta"] + a["delta_bias"][:, None] if "delta_bias" in a else a["delta"]
        dt = softplus(dt)
        decay = torch.exp(torch.einsum("bdl,dn->bdln", dt, a["A"]))
        term = torch.einsum("bdl,bnl,bdl->bdln", dt, a["B"], a["u"])
        h, parts = torch.zeros_like(decay[:, :, 0]), []
        for t in range(dt.shape[2]):
            h = decay[:, :, t] * h + term[:, :, t]
            parts.append(torch.einsum("bdn,bn->bd", h, a["C"][:, :, t]))
        y = torch.stack(parts, dim=2)
        if "D" in a:
            y = y + a["u"] * a["D"][:, None]
        return y * torch.nn.functional.silu(a["z"]) if "z" in a else y

    def step(self) -> Any:
        torch, a = self.torch, self.leaves
        with torch.no_grad():
            dt = torch.nn.functional.softplus(a["dt"])
            decay = torch.exp(torch.einsum("bd,dn->bdn", dt, a["A"]))
            a["state"].copy_(a["state"] * decay + a["x"][:, :, None] * torch.einsum("bd,bn->bdn", dt, a["B"]))
            return torch.einsum("bdn,bn->bd", a["state"], a["C"])

    def arrange(self, name: str, x: Any) -> Any:
        return self.torch.from_numpy(np.array(x))


class Transformers(TorchRow):
    """`mamba_selective_scan` of transformers, as its models call it on a processor: sequential."""

    title = "transformers, sequential"
    needs = ("torch", "transformers")
    passes = ("forward", "both", "step")
    options: ClassVar[dict[str, Any]] = {}

    @classmethod
    def takes(cls, arrays: Arrays, passes: str) -> bool:
        if not super().takes(arrays, passes):
            return False
        from transformers.models.mamba import modeling_mamba

        return hasattr(modeling_mamba, "mamba_selective_scan")

    def prepare(self) -> None:
        from transformers.models.mamba import modeling_mamba

        super().prepare()
        self.scan = modeling_mamba.mamba_selective_scan
        self.update = modeling_mamba.mamba_selective_state_update

    def arrange(self, name: str, x: Any) -> Any:
        return self.torch.from_numpy(np.array(x))

    def run(self, **a: Any) -> Any:
        names = {"u": "hidden_states", "delta": "dt"}
        return self.scan(**{names.get(n, n): x for n, x in a.items()}, delta_softplus=True, **self.options)

    def step(self) -> Any:
        a = self.leaves
        with self.torch.no_grad():
            return self.update(a["state"], a["x"], a["dt"], a["A"], a["B"], a["C"], dt_softplus=True)


class Associative(Transformers):
    """The same function, its associative scan under `torch.compile`."""

    title = "transformers, associative scan, compiled"
    compiles = True
    passes = ("forward", "both")
    options: ClassVar[dict[str, Any]] = {"use_associative_scan": True}

    def prepare(self) -> None:
        super().prepare()
        self.torch.compiler.reset()
        self.scan = self.torch.compile(self.scan, dynamic=False)


class MambaPy(TorchRow):
    """The parallel scan of mamba.py, by the method of its block."""

    title = "mamba.py, pscan"
    needs = ("torch", "mambapy")

    def arrange(self, name: str, x: Any) -> Any:
        x = np.swapaxes(x, 1, 2) if x.ndim == 3 else x
        return self.torch.from_numpy(np.array(x, order="C"))

    def restore(self, name: str, x: Any) -> Any:
        x = x.detach().numpy()
        return np.swapaxes(x, 1, 2) if x.ndim == 3 else x

    def run(self, **a: Any) -> Any:
        from mambapy.mamba import MambaBlock

        functional = self.torch.nn.functional
        dt = functional.softplus(a["delta"] + a["delta_bias"] if "delta_bias" in a else a["delta"])
        skip = a.get("D", self.torch.zeros(()))
        y = MambaBlock.selective_scan(None, a["u"], dt, a["A"], a["B"], a["C"], skip)
        return y * functional.silu(a["z"]) if "z" in a else y


class JaxScan(JaxRow):
    """`lax.scan` over time under `jit`."""

    title = "JAX, lax.scan, jit"
    passes = ("forward", "both", "step")

    def arrange(self, name: str, x: Any) -> Any:
        return np.moveaxis(x, -1, 0) if x.ndim == 3 and name != "state" else x

    def restore(self, name: str, x: Any) -> Any:
        x = np.asarray(x)
        return np.moveaxis(x, 0, -1) if x.ndim == 3 else x

    def inner(self, dt: Any, a: Any) -> Any:
        """Return the sums over states."""
        jnp = self.jax.numpy

        def body(h: Any, now: Any) -> Any:
            dt, x, b, c = now
            h = jnp.exp(dt[:, :, None] * a["A"]) * h + x[:, :, None] * b[:, None]
            return h, jnp.einsum("bds,bs->bd", h, c)

        start = jnp.zeros((dt.shape[1], *a["A"].shape), dt.dtype)
        return self.jax.lax.scan(body, start, (dt, dt * a["u"], a["B"], a["C"]))[1]

    def run(self, **a: Any) -> Any:
        if "state" in a:
            return self.one(**a)
        dt = self.jax.nn.softplus(a["delta"] + a["delta_bias"] if "delta_bias" in a else a["delta"])
        y = self.inner(dt, a)
        y = y + a["D"] * a["u"] if "D" in a else y
        return y * self.jax.nn.silu(a["z"]) if "z" in a else y

    def one(self, **a: Any) -> Any:
        """One step: the new state and the output."""
        jnp, dt = self.jax.numpy, self.jax.nn.softplus(a["dt"])
        h = jnp.exp(dt[:, :, None] * a["A"]) * a["state"] + (dt * a["x"])[:, :, None] * a["B"][:, None]
        return h, jnp.einsum("bds,bs->bd", h, a["C"])

    def step(self) -> Any:
        return self.forward()

    def results(self, value: Any) -> dict[str, Any]:
        return {"y": np.asarray(value[1])} if self.passes_asked == "step" else super().results(value)


class JaxAssociative(JaxScan):
    """`lax.associative_scan` under `jit`."""

    title = "JAX, associative_scan, jit"
    passes = ("forward", "both")

    def inner(self, dt: Any, a: Any) -> Any:
        jnp = self.jax.numpy
        decay = jnp.exp(dt[..., None] * a["A"])
        term = (dt * a["u"])[..., None] * a["B"][:, :, None]

        def combine(left: Any, right: Any) -> Any:
            return left[0] * right[0], right[0] * left[1] + right[1]

        h = self.jax.lax.associative_scan(combine, (decay, term))[1]
        return jnp.einsum("lbds,lbs->lbd", h, a["C"])


#: In the order in which they are measured.
ROWS: dict[str, type[Row]] = {
    "sensorium": Sensorium,
    "numpy": NumPy,
    "numpy_plain": NumPyPlain,
    "ggml": Ggml,
    "numba": Numba,
    "reference": Reference,
    "transformers": Transformers,
    "associative": Associative,
    "mambapy": MambaPy,
    "jax": JaxScan,
    "jax_associative": JaxAssociative,
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
