"""The scan of Mamba-2 (Dao & Gu 2024, arXiv:2405.21060), and how others compute it on a processor.

Arrays are named and laid out as in `sensorium.ops.ssd`: ``x``, ``z`` ``(B, L, H, P)``, ``dt`` ``(B, L,
H)``, ``A`` ``(H,)``, ``B``, ``C`` ``(B, L, G, S)``, ``D``, ``dt_bias`` ``(H,)``, ``grad_out`` ``(B, L, H,
P)``; softplus is applied to ``dt``. ``D``, ``z`` and ``dt_bias`` may be left out. A step takes ``state (B,
H, P, S)``, ``x`` ``(B, H, P)``, ``dt`` ``(B, H)``, ``A``, ``B``, ``C`` ``(B, G, S)``.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from scan_peers import ggml
from scan_peers._row import Arrays, JaxRow, Package, Row, TorchRow
from scan_peers.selective import sigmoid, softplus


def arrays(
    batch: int,
    length: int,
    heads: int = 24,
    width: int = 64,
    states: int = 128,
    groups: int = 1,
    *,
    options: bool = False,
    dtype: Any = np.float32,
) -> dict[str, Any]:
    """Draw a case as a trained layer has it: A from -1 to -16, dt from 0.001 to 0.1 after softplus."""
    rng = np.random.default_rng(0)
    step = np.exp(rng.uniform(np.log(1e-3), np.log(0.1), (batch, length, heads)))
    given = {
        "x": rng.standard_normal((batch, length, heads, width)),
        "dt": np.log(np.expm1(step)),
        "A": -rng.uniform(1, 16, heads),
        "B": rng.standard_normal((batch, length, groups, states)),
        "C": rng.standard_normal((batch, length, groups, states)),
    }
    if options:
        given["D"] = rng.standard_normal(heads)
        given["z"] = rng.standard_normal((batch, length, heads, width))
        given["dt_bias"] = 0.1 * rng.standard_normal(heads)
    given["grad_out"] = rng.standard_normal((batch, length, heads, width))
    return {name: x.astype(dtype) for name, x in given.items()}


def step_arrays(
    batch: int, heads: int = 24, width: int = 64, states: int = 128, groups: int = 1, dtype: Any = np.float32
) -> dict[str, Any]:
    """Draw one step of a layer."""
    rng = np.random.default_rng(0)
    given = {
        "state": rng.standard_normal((batch, heads, width, states)),
        "x": rng.standard_normal((batch, heads, width)),
        "dt": rng.uniform(-7, -2, (batch, heads)),
        "A": -rng.uniform(1, 16, heads),
        "B": rng.standard_normal((batch, groups, states)),
        "C": rng.standard_normal((batch, groups, states)),
    }
    return {name: x.astype(dtype) for name, x in given.items()}


#: Inputs in the order of their gradients.
GRADIENTS = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias")


class Sensorium(Package):
    """The package."""

    passes = ("forward", "both", "step")
    scan, update = "ssd", "ssd_state_update"
    options: ClassVar[dict[str, Any]] = {"dt_softplus": True}
    step_options: ClassVar[dict[str, Any]] = {"dt_softplus": True}


class NumPy(Row):
    """Chunk after chunk on matrix products, all heads at once, the states kept before every chunk."""

    title = "NumPy, by chunks"
    passes = ("forward", "both", "step")
    chunk = 32

    def prepare(self) -> None:
        if self.passes_asked == "step":
            self.given = {name: np.array(x) for name, x in self.arrays.items()}
            return
        a = self.arrays
        self.batch, self.length, self.heads, self.width = a["x"].shape
        self.groups, self.states = a["B"].shape[2:]
        self.per = self.heads // self.groups
        # Heads before time: (B, G, H / G, L, P) and (B, G, 1, L, S).
        self.x = self.by_head(a["x"])
        self.dt = a["dt"].transpose(0, 2, 1).reshape(self.batch, self.groups, self.per, self.length)
        self.B, self.C = (np.ascontiguousarray(a[name].transpose(0, 2, 1, 3)[:, :, None]) for name in "BC")
        self.z, self.grad_out = (self.by_head(a[name]) if name in a else None for name in ("z", "grad_out"))
        self.A = self.of_head(a["A"])
        self.D, self.bias = (self.of_head(a[name]) if name in a else None for name in ("D", "dt_bias"))

    def by_head(self, x: Any) -> Any:
        """Bring ``(B, L, H, P)`` to ``(B, G, H / G, L, P)``."""
        shape = (self.batch, self.groups, self.per, self.length, x.shape[-1])
        return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(shape)

    def of_head(self, x: Any) -> Any:
        """View a number a head so that it goes over ``dt``."""
        return x.reshape(self.groups, self.per, 1)

    def slices(self) -> list[slice]:
        """Chunks of the sequence."""
        starts = range(0, self.length, self.chunk)
        return [slice(start, min(start + self.chunk, self.length)) for start in starts]

    def decays(self, part: slice) -> tuple[Any, Any, Any]:
        """Within a chunk: from j to i, from before it to i, and from j to its end, for every head."""
        total = np.cumsum(self.steps[..., part] * self.A, axis=-1)
        between = total[..., :, None] - total[..., None, :]
        n = total.shape[-1]
        between[..., ~np.tri(n, dtype=bool)] = -np.inf
        return np.exp(between), np.exp(total), np.exp(total[..., -1:] - total)

    def scan(self, keep: list[Any] | None = None) -> Any:
        """Return the sums over states, and keep the state before every chunk."""
        self.raw = self.dt if self.bias is None else self.dt + self.bias
        self.steps = softplus(self.raw)
        self.xdt = self.x * self.steps[..., None]
        h = np.zeros((self.batch, self.groups, self.per, self.states, self.width), self.x.dtype)
        y = np.empty_like(self.x)
        for part in self.slices():
            if keep is not None:
                keep.append(h.copy())
            within, start, end = self.decays(part)
            b, c, x = self.B[..., part, :], self.C[..., part, :], self.xdt[..., part, :]
            within *= c @ b.swapaxes(-1, -2)
            out = c @ h
            out *= start[..., None]
            out += within @ x
            y[..., part, :] = out
            h *= start[..., -1:, None]
            h += b.swapaxes(-1, -2) @ (end[..., None] * x)
        return y

    def forward(self) -> Any:
        y = self.scan()
        if self.D is not None:
            y += self.D[..., None] * self.x
        if self.z is not None:
            y *= self.z * sigmoid(self.z)
        return y

    def both(self) -> Any:
        keep: list[Any] = []
        y, dy, grads = self.scan(keep), self.grad_out, {}
        if self.D is not None:
            y += self.D[..., None] * self.x
        if self.z is not None:
            s = sigmoid(self.z)
            grads["z"] = dy * y * (s * (1 + self.z * (1 - s)))
            dy = dy * (self.z * s)
        dxdt = np.empty_like(self.x)
        dB, dC = np.empty_like(self.B), np.empty_like(self.C)
        log = np.empty_like(self.dt)
        g = np.zeros_like(keep[0])
        for part, h in reversed(list(zip(self.slices(), keep, strict=True))):
            within, start, end = self.decays(part)
            b, c, x, d = self.B[..., part, :], self.C[..., part, :], self.xdt[..., part, :], dy[..., part, :]
            scores = c @ b.swapaxes(-1, -2)
            weights = d @ x.swapaxes(-1, -2)
            weights *= within
            pairs = weights * scores
            within *= scores
            weights = weights.sum(axis=2, keepdims=True)
            bg = b @ g
            bg *= end[..., None]
            dxdt[..., part, :] = within.swapaxes(-1, -2) @ d + bg
            ds = d * start[..., None]
            dC[..., part, :] = weights @ b + (ds @ h.swapaxes(-1, -2)).sum(axis=2, keepdims=True)
            xe = x * end[..., None]
            dB[..., part, :] = weights.swapaxes(-1, -2) @ c + (xe @ g.swapaxes(-1, -2)).sum(
                axis=2, keepdims=True
            )
            # How the logarithm of the decay up to i enters: out of i, into i, and at the end of the chunk.
            carried = (xe * (b @ g)).sum(axis=-1)
            total = pairs.sum(axis=-1) - pairs.sum(axis=-2) + (ds * (c @ h)).sum(axis=-1) - carried
            total[..., -1] += carried.sum(axis=-1) + start[..., -1] * (g * h).sum(axis=(-1, -2))
            log[..., part] = np.cumsum(total[..., ::-1], axis=-1)[..., ::-1]
            g *= start[..., -1:, None]
            g += c.swapaxes(-1, -2) @ ds
        grads["A"] = (log * self.steps).sum(axis=(0, -1)).ravel()
        ddt = (log * self.A + (dxdt * self.x).sum(axis=-1)) * sigmoid(self.raw)
        grads |= {"x": dxdt * self.steps[..., None], "B": dB, "C": dC, "dt": ddt}
        if self.D is not None:
            grads["x"] += self.D[..., None] * dy
            grads["D"] = (dy * self.x).sum(axis=(0, -1, -2)).ravel()
        if self.bias is not None:
            grads["dt_bias"] = ddt.sum(axis=(0, -1)).ravel()
        return grads

    def step(self) -> Any:
        a = self.given
        dt, per = softplus(a["dt"]), a["x"].shape[1] // a["B"].shape[1]
        b, c = (np.repeat(a[name], per, axis=1) for name in "BC")
        a["state"] *= np.exp(dt * a["A"])[:, :, None, None]
        a["state"] += (dt[:, :, None] * a["x"])[..., None] * b[:, :, None]
        return (a["state"] @ c[..., None])[..., 0]

    def results(self, value: Any) -> dict[str, Any]:
        if self.passes_asked == "step":
            return {"y": value}
        named = value if self.passes_asked == "both" else {"y": value}
        found = {}
        for name, x in named.items():
            if x.ndim == 5:
                x = x.reshape(self.batch, -1, self.length, x.shape[-1]).transpose(0, 2, 1, 3)
            elif x.ndim == 4:
                x = x.reshape(self.batch, self.heads, self.length).transpose(0, 2, 1)
            found[name] = x
        return found


class Ggml(Row):
    """ggml's operator, step after step; it has no D, gate, bias or backward."""

    title = "ggml"
    passes = ("forward", "step")
    lacks = ("D", "z", "dt_bias")

    @classmethod
    def takes(cls, arrays: Arrays, passes: str) -> bool:
        return super().takes(arrays, passes) and ggml.library() is not None

    def prepare(self) -> None:
        a = self.arrays
        x, dt, b, c, state = (a.get(name) for name in ("x", "dt", "B", "C", "state"))
        if self.passes_asked == "step":
            x, dt, b, c = (array[:, None] for array in (x, dt, b, c))
        else:
            state = np.zeros((len(x), *x.shape[2:], b.shape[-1]), np.float32)
        make = ggml.quickest if self.passes_asked == "step" else ggml.Scan
        self.graph = make(state, x, dt, a["A"][:, None], b, c, threads=self.threads)

    def forward(self) -> Any:
        self.graph.compute()
        return self.graph.y

    def step(self) -> Any:
        return self.forward()

    def results(self, value: Any) -> dict[str, Any]:
        return {"y": value[:, 0] if self.passes_asked == "step" else value}


class Minimal(TorchRow):
    """The form of the paper's listing 1 in plain torch: all chunks at once, then the states between them."""

    title = "torch, ssd_minimal"
    chunk = 64

    def chunked(self, x: Any) -> Any:
        """Bring ``(B, L, ...)`` to ``(B, chunks, chunk, ...)``, with zeros at the end."""
        missing = -x.shape[1] % self.chunk
        if missing:
            x = self.torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], dim=1)
        return x.unflatten(1, (-1, self.chunk))

    def segment_sums(self, x: Any) -> Any:
        """Sums of ``x`` from after j to i, minus infinity where j is after i."""
        torch, n = self.torch, x.shape[-1]
        wide = x[..., None].expand(*x.shape, n)
        wide = wide.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(-1), 0).cumsum(dim=-2)
        return wide.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf)

    def run(self, **a: Any) -> Any:
        torch, functional = self.torch, self.torch.nn.functional
        length, heads = a["x"].shape[1:3]
        dt = functional.softplus(a["dt"] + a["dt_bias"] if "dt_bias" in a else a["dt"])
        per = heads // a["B"].shape[2]
        b, c = (self.chunked(a[name].repeat_interleave(per, dim=2)) for name in "BC")
        x = self.chunked(a["x"] * dt[..., None])
        log = self.chunked(dt * a["A"]).permute(0, 3, 1, 2)
        total = log.cumsum(dim=-1)
        inner = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", c, b, self.segment_sums(log).exp(), x)
        states = torch.einsum("bclhn,bhcl,bclhp->bchpn", b, (total[..., -1:] - total).exp(), x)
        states = torch.cat([torch.zeros_like(states[:, :1]), states], dim=1)
        between = self.segment_sums(functional.pad(total[..., -1], (1, 0))).exp()
        states = torch.einsum("bhzc,bchpn->bzhpn", between, states)[:, :-1]
        y = inner + torch.einsum("bclhn,bchpn,bhcl->bclhp", c, states, total.exp())
        y = y.flatten(1, 2)[:, :length]
        y = y + a["D"][:, None] * a["x"] if "D" in a else y
        return y * functional.silu(a["z"]) if "z" in a else y


class MinimalLong(Minimal):
    """The same with chunks of 256, its published default."""

    title = "torch, ssd_minimal, chunks of 256"
    chunk = 256


class Transformers(TorchRow):
    """`mamba2_chunk_scan` of transformers, as its models call it on a processor."""

    title = "transformers"
    needs = ("torch", "transformers")
    passes = ("forward", "both", "step")
    chunk = 64

    @classmethod
    def takes(cls, arrays: Arrays, passes: str) -> bool:
        if not super().takes(arrays, passes):
            return False
        from transformers.models.mamba2 import modeling_mamba2

        return hasattr(modeling_mamba2, "mamba2_chunk_scan")

    def prepare(self) -> None:
        from transformers.models.mamba2 import modeling_mamba2

        super().prepare()
        self.scan = modeling_mamba2.mamba2_chunk_scan
        self.update = modeling_mamba2.mamba2_selective_state_update

    def arrange(self, name: str, x: Any) -> Any:
        return self.torch.from_numpy(np.array(x))

    def run(self, **a: Any) -> Any:
        z = a.pop("z", None)
        x, dt, A, B, C = (a.pop(name) for name in ("x", "dt", "A", "B", "C"))
        y = self.scan(x, dt, A, B, C, self.chunk, **a, dt_softplus=True)
        return y if z is None else y * self.torch.nn.functional.silu(z)

    def step(self) -> Any:
        a = self.leaves
        shape = a["state"].shape
        with self.torch.no_grad():
            dt = a["dt"][..., None].expand(shape[:3])
            A = a["A"][:, None, None].expand(shape[1:])
            return self.update(a["state"], a["x"], dt, A, a["B"], a["C"], dt_softplus=True)


class TransformersLong(Transformers):
    """The same with chunks of 256, the default of its configuration."""

    title = "transformers, chunks of 256"
    passes = ("forward", "both")
    chunk = 256


class Jax(JaxRow):
    """`lax.scan` over chunks of matrix products under `jit`."""

    title = "JAX, lax.scan over chunks, jit"
    chunk = 64
    lacks = ("state",)

    def arrange(self, name: str, x: Any) -> Any:
        """Bring ``(B, L, ...)`` to ``(chunks, B, ..., chunk)`` or ``(chunks, B, H, chunk, P)``."""
        if x.ndim < 3:
            return x
        missing = [(0, 0)] * x.ndim
        missing[1] = (0, -x.shape[1] % self.chunk)
        self.length = x.shape[1]
        x = np.pad(x, missing)
        x = x.reshape(len(x), -1, self.chunk, *x.shape[2:])
        return np.moveaxis(np.moveaxis(x, 1, 0), 2, 3)

    def restore(self, name: str, x: Any) -> Any:
        x = np.asarray(x)
        if x.ndim < 3:
            return x
        x = np.moveaxis(np.moveaxis(x, 3, 2), 0, 1)
        return x.reshape(len(x), -1, *x.shape[3:])[:, : self.length]

    def run(self, **a: Any) -> Any:
        jax, jnp = self.jax, self.jax.numpy
        batch, heads, width = a["x"].shape[1], a["x"].shape[2], a["x"].shape[4]
        groups, states = a["B"].shape[2], a["B"].shape[4]
        per = heads // groups
        dt = jax.nn.softplus(a["dt"] + a["dt_bias"][:, None] if "dt_bias" in a else a["dt"])
        lower = jnp.tril(jnp.ones((self.chunk, self.chunk), bool))

        def body(h: Any, now: Any) -> Any:
            x, b, c, log = now
            x = x.reshape(batch, groups, per, self.chunk, width)
            total = jnp.cumsum(log, axis=-1).reshape(batch, groups, per, self.chunk)
            within = jnp.exp(jnp.where(lower, total[..., :, None] - total[..., None, :], -jnp.inf))
            scores = jnp.einsum("bgln,bgsn->bgls", c, b)[:, :, None] * within
            y = scores @ x + jnp.einsum("bgln,bgrnp->bgrlp", c, h) * jnp.exp(total)[..., None]
            end = jnp.exp(total[..., -1:] - total)
            h = h * jnp.exp(total[..., -1:, None]) + jnp.einsum("bgln,bgrlp->bgrnp", b, x * end[..., None])
            return h, y.reshape(batch, heads, self.chunk, width)

        start = jnp.zeros((batch, groups, per, states, width), dt.dtype)
        given = (a["x"] * dt[..., None], a["B"], a["C"], dt * a["A"][:, None])
        y = jax.lax.scan(body, start, given)[1]
        y = y + a["D"][:, None, None] * a["x"] if "D" in a else y
        return y * jax.nn.silu(a["z"]) if "z" in a else y


#: In the order in which they are measured.
ROWS: dict[str, type[Row]] = {
    "sensorium": Sensorium,
    "numpy": NumPy,
    "ggml": Ggml,
    "minimal": Minimal,
    "minimal_256": MinimalLong,
    "transformers": Transformers,
    "transformers_256": TransformersLong,
    "jax": Jax,
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
