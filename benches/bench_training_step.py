"""One training step of a small transformer: forward, backward, clipping, AdamW.

The same model from the same values in four ways. Rows are measured in turn, so that a slow moment of the
machine hits all of them, and each row first shows that it computes the same loss and the same updated
parameters, in float64.

    python benches/bench_training_step.py [--size small|base] [--rounds 15] [--threads 2] [--json FILE]

`keep_pages` holds for the whole process, so every row profits from it. NumPy's BLAS takes its threads from
OPENBLAS_NUM_THREADS.

`sensorium` is this package; `autograd, tuned` is NumPy under HIPS autograd in the form that is fastest there
(2-D products, products instead of powers, no `mean`); `autograd, plain` is what one writes first; `torch` is
eager mode with `scaled_dot_product_attention`, `layer_norm`, `gelu`, `cross_entropy` and `torch.optim.AdamW`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import autograd.numpy as anp
import numpy as np
import sensorium
from autograd import value_and_grad as autograd_value_and_grad
from sensorium import autodiff as ad
from sensorium._tree import tree_leaves, tree_map
from sensorium.ops import Layout, Segment
from sensorium.optim import adamw_init, adamw_step

HOW = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
MAX_NORM = 1.0


@dataclass(frozen=True)
class Size:
    """Sizes of a model and of its batch."""

    vocabulary: int
    width: int
    depth: int
    heads: int
    batch: int
    layout: Layout

    @property
    def tokens(self) -> int:
        """Tokens of a row."""
        return len(self.layout)


def packed(samples: int) -> Layout:
    """Rows of many small segments: a word, a picture and a sound a sample."""
    sample = [Segment("causal", 6), Segment("full", 16), Segment("full", 22)]
    return Layout.packed([sample] * samples)


SIZES = {
    "small": Size(vocabulary=512, width=96, depth=4, heads=4, batch=19, layout=packed(3)),
    "base": Size(
        vocabulary=512, width=256, depth=4, heads=8, batch=16, layout=Layout([Segment("causal", 256)])
    ),
}


def init(size: Size, dtype: Any, seed: int = 0) -> dict[str, Any]:
    """Initial parameters."""
    rng = np.random.default_rng(seed)
    D = size.width

    def linear(k: int, n: int) -> dict[str, Any]:
        weight = rng.standard_normal((k, n)) / np.sqrt(k)
        return {"weight": weight.astype(dtype), "bias": np.zeros(n, dtype)}

    def norm() -> dict[str, Any]:
        return {"weight": np.ones(D, dtype), "bias": np.zeros(D, dtype)}

    def block() -> dict[str, Any]:
        return {
            "norm1": norm(),
            "qkv": linear(D, 3 * D),
            "out": linear(D, D),
            "norm2": norm(),
            "up": linear(D, 4 * D),
            "down": linear(4 * D, D),
        }

    return {
        "token": (0.5 * rng.standard_normal((size.vocabulary, D))).astype(dtype),
        "position": (0.5 * rng.standard_normal((size.tokens, D))).astype(dtype),
        "blocks": [block() for _ in range(size.depth)],
        "norm": norm(),
        "head": linear(D, size.vocabulary),
    }


def data(size: Size, seed: int = 1) -> tuple[Any, Any]:
    """Tokens and targets ``(B, N)``."""
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, size.vocabulary, (2, size.batch, size.tokens))
    return tokens, targets


class Sensorium:
    """This package."""

    name = "sensorium"

    def __init__(self, size: Size, dtype: Any) -> None:
        self.size, self.params = size, init(size, dtype)
        self.state = adamw_init(self.params)
        self.tokens, self.targets = data(size)
        self.value_and_grad = ad.value_and_grad(self.loss)

    def loss(self, p: Any) -> Any:
        x = ad.embedding(p["token"], self.tokens) + p["position"]
        for block in p["blocks"]:
            x = ad.transformer_block(
                block, x, self.size.layout, heads=self.size.heads, norm="layer", eps=1e-5
            )
        x = ad.layer_norm(x, p["norm"]["weight"], p["norm"]["bias"], eps=1e-5)
        logits = ad.linear(x, p["head"]["weight"], p["head"]["bias"])
        return ad.cross_entropy(logits, self.targets)

    def step(self) -> float:
        loss, grads = self.value_and_grad(self.params)
        adamw_step(self.params, grads, self.state, max_norm=MAX_NORM, **HOW)
        return float(loss)

    def arrays(self) -> list[Any]:
        return tree_leaves(self.params)


class SensoriumByParts(Sensorium):
    """This package, an operation a node."""

    name = "sensorium, by parts"

    def loss(self, p: Any) -> Any:
        size = self.size
        D, heads = size.width, size.heads
        x = ad.embedding(p["token"], self.tokens) + p["position"]
        for b in p["blocks"]:
            h = ad.layer_norm(x, b["norm1"]["weight"], b["norm1"]["bias"])
            qkv = ad.linear(h, b["qkv"]["weight"], b["qkv"]["bias"])
            qkv = anp.reshape(qkv, (size.batch, size.tokens, 3, heads, D // heads))
            a = ad.self_attention(qkv, size.layout)
            x = ad.linear(a, b["out"]["weight"], b["out"]["bias"], residual=x)
            h = ad.layer_norm(x, b["norm2"]["weight"], b["norm2"]["bias"])
            h = ad.linear(h, b["up"]["weight"], b["up"]["bias"], activation="gelu")
            x = ad.linear(h, b["down"]["weight"], b["down"]["bias"], residual=x)
        x = ad.layer_norm(x, p["norm"]["weight"], p["norm"]["bias"])
        logits = ad.linear(x, p["head"]["weight"], p["head"]["bias"])
        return ad.cross_entropy(logits, self.targets)


def numpy_adamw(params: Any, grads: Any, state: dict[str, Any]) -> None:
    """Clipping and AdamW in NumPy, in place."""
    p, g = tree_leaves(params), tree_leaves(grads)
    norm = np.sqrt(sum(float(np.vdot(x, x)) for x in g))
    scale = min(1.0, MAX_NORM / norm)
    b1, b2 = HOW["betas"]
    state["step"] += 1
    c1, c2 = 1 - b1 ** state["step"], 1 - b2 ** state["step"]
    for p_, g_, m, v in zip(p, g, tree_leaves(state["m"]), tree_leaves(state["v"]), strict=True):
        g_ = g_ * p_.dtype.type(scale)
        m *= b1
        m += (1 - b1) * g_
        v *= b2
        v += (1 - b2) * (g_ * g_)
        if p_.ndim >= 2:
            p_ *= 1 - HOW["lr"] * HOW["weight_decay"]
        p_ -= (HOW["lr"] / c1) * m / (np.sqrt(v) / np.sqrt(c2) + HOW["eps"])


class Plain:
    """What one writes first."""

    name = "autograd, plain"

    def __init__(self, size: Size, dtype: Any) -> None:
        self.size, self.params = size, init(size, dtype)
        self.state = adamw_init(self.params)
        self.tokens, self.targets = data(size)
        self.hidden = np.where(size.layout.dense(), 0, -np.inf).astype(dtype)
        self.value_and_grad = autograd_value_and_grad(self.loss)

    def norm(self, x: Any, p: Any) -> Any:
        mean = anp.mean(x, axis=-1, keepdims=True)
        var = anp.mean((x - mean) ** 2, axis=-1, keepdims=True)
        return (x - mean) / anp.sqrt(var + 1e-5) * p["weight"] + p["bias"]

    def gelu(self, x: Any) -> Any:
        return 0.5 * x * (1 + anp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def linear(self, x: Any, p: Any) -> Any:
        return x @ p["weight"] + p["bias"]

    def split(self, qkv: Any) -> tuple[Any, Any, Any]:
        size = self.size
        parts = anp.split(qkv, 3, axis=-1)
        shape = (size.batch, size.tokens, size.heads, -1)
        q, k, v = (anp.transpose(anp.reshape(part, shape), (0, 2, 1, 3)) for part in parts)
        return q, k, v

    def softmax(self, s: Any) -> Any:
        e = anp.exp(s - anp.max(s, axis=-1, keepdims=True))
        return e / anp.sum(e, axis=-1, keepdims=True)

    def attention(self, qkv: Any) -> Any:
        size = self.size
        q, k, v = self.split(qkv)
        scale = self.hidden.dtype.type((size.width // size.heads) ** -0.5)
        weights = self.softmax(anp.matmul(q, anp.swapaxes(k, -1, -2)) * scale + self.hidden)
        out = anp.transpose(anp.matmul(weights, v), (0, 2, 1, 3))
        return anp.reshape(out, (size.batch, size.tokens, size.width))

    def cross_entropy(self, logits: Any) -> Any:
        shifted = logits - anp.max(logits, axis=-1, keepdims=True)
        lse = anp.log(anp.sum(anp.exp(shifted), axis=-1))
        rows, columns = np.indices(self.targets.shape)
        return anp.mean(lse - shifted[rows, columns, self.targets])

    def loss(self, p: Any) -> Any:
        x = p["token"][self.tokens] + p["position"]
        for b in p["blocks"]:
            x = x + self.linear(self.attention(self.linear(self.norm(x, b["norm1"]), b["qkv"])), b["out"])
            x = x + self.linear(self.gelu(self.linear(self.norm(x, b["norm2"]), b["up"])), b["down"])
        return self.cross_entropy(self.linear(self.norm(x, p["norm"]), p["head"]))

    def step(self) -> float:
        loss, grads = self.value_and_grad(self.params)
        grads = tree_map(lambda p, g: np.asarray(g, p.dtype), self.params, grads)
        numpy_adamw(self.params, grads, self.state)
        return float(loss)

    def arrays(self) -> list[Any]:
        return tree_leaves(self.params)


class Tuned(Plain):
    """The fastest form known for NumPy operations under autograd."""

    name = "autograd, tuned"

    def norm(self, x: Any, p: Any) -> Any:
        share = x.dtype.type(1 / self.size.width)
        x = x - anp.sum(x, axis=-1, keepdims=True) * share
        var = anp.sum(x * x, axis=-1, keepdims=True) * share
        return x * (1 / anp.sqrt(var + x.dtype.type(1e-5))) * p["weight"] + p["bias"]

    def gelu(self, x: Any) -> Any:
        f = x.dtype.type
        t = anp.tanh(x * (f(np.sqrt(2 / np.pi)) + f(np.sqrt(2 / np.pi) * 0.044715) * (x * x)))
        return f(0.5) * x * (f(1) + t)

    def linear(self, x: Any, p: Any) -> Any:
        return anp.dot(x, p["weight"]) + p["bias"]  # Rows of all samples: a 2-D product.

    def split(self, qkv: Any) -> tuple[Any, Any, Any]:
        size = self.size
        shape = (size.batch, size.tokens, 3, size.heads, size.width // size.heads)
        parts = anp.transpose(anp.reshape(qkv, shape), (2, 0, 3, 1, 4))
        return parts[0], parts[1], parts[2]

    def softmax(self, s: Any) -> Any:
        e = anp.exp(s - np.max(s._value if hasattr(s, "_value") else s, axis=-1, keepdims=True))
        return e * (1 / anp.sum(e, axis=-1, keepdims=True))

    def attention(self, qkv: Any) -> Any:
        return anp.reshape(super().attention(qkv), (-1, self.size.width))

    def cross_entropy(self, logits: Any) -> Any:
        top = np.max(logits._value if hasattr(logits, "_value") else logits, axis=-1, keepdims=True)
        shifted = logits - top
        lse = anp.log(anp.sum(anp.exp(shifted), axis=-1))
        chosen = shifted[np.arange(self.targets.size), self.targets.ravel()]
        return anp.sum(lse - chosen) * logits.dtype.type(1 / self.targets.size)

    def loss(self, p: Any) -> Any:
        x = anp.reshape(p["token"][self.tokens] + p["position"], (-1, self.size.width))
        for b in p["blocks"]:
            x = x + self.linear(self.attention(self.linear(self.norm(x, b["norm1"]), b["qkv"])), b["out"])
            x = x + self.linear(self.gelu(self.linear(self.norm(x, b["norm2"]), b["up"])), b["down"])
        return self.cross_entropy(self.linear(self.norm(x, p["norm"]), p["head"]))


class Torch:
    """PyTorch in eager mode."""

    name = "torch"

    def __init__(self, size: Size, dtype: Any) -> None:
        import torch

        self.torch, self.size = torch, size
        self.params = tree_map(lambda a: torch.tensor(a, requires_grad=True), init(size, dtype))
        tokens, targets = data(size)
        self.tokens, self.targets = torch.tensor(tokens), torch.tensor(targets)
        causal = size.layout.dense() == np.tri(size.tokens, dtype=bool)
        self.mask = None if causal.all() else torch.tensor(size.layout.dense())
        leaves = tree_leaves(self.params)
        groups = [
            {"params": [p for p in leaves if p.ndim >= 2], "weight_decay": HOW["weight_decay"]},
            {"params": [p for p in leaves if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.leaves = leaves
        self.optimizer = torch.optim.AdamW(groups, lr=HOW["lr"], betas=HOW["betas"], eps=HOW["eps"])

    def loss(self, p: Any) -> Any:
        F = self.torch.nn.functional
        B, N, D, H = self.size.batch, self.size.tokens, self.size.width, self.size.heads
        x = F.embedding(self.tokens, p["token"]) + p["position"]

        def norm(x: Any, p: Any) -> Any:
            return F.layer_norm(x, (D,), p["weight"], p["bias"])

        def linear(x: Any, p: Any) -> Any:
            return F.linear(x, p["weight"].T, p["bias"])

        for b in p["blocks"]:
            qkv = linear(norm(x, b["norm1"]), b["qkv"]).view(B, N, 3, H, D // H)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            a = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, is_causal=self.mask is None)
            x = x + linear(a.transpose(1, 2).reshape(B, N, D), b["out"])
            x = x + linear(F.gelu(linear(norm(x, b["norm2"]), b["up"]), approximate="tanh"), b["down"])
        logits = linear(norm(x, p["norm"]), p["head"])
        return F.cross_entropy(logits.view(B * N, -1), self.targets.view(-1))

    def step(self) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.params)
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.leaves, MAX_NORM)
        self.optimizer.step()
        return float(loss.detach())

    def arrays(self) -> list[Any]:
        return [leaf.detach().numpy() for leaf in tree_leaves(self.params)]


def rows() -> list[Any]:
    """What can be measured here."""
    kinds: list[Any] = [Sensorium, SensoriumByParts, Tuned, Plain]
    try:
        import torch  # noqa: F401
    except ImportError:
        return kinds
    return [*kinds, Torch]


def check(size: Size, kinds: list[Any]) -> None:
    """Hold every row to the first: two steps in float64, then one loss in float32."""
    size = replace(size, depth=2, batch=2)
    first: list[Any] | None = None
    for kind in kinds:
        model = kind(size, np.float64)
        losses = [model.step(), model.step()]
        arrays = [np.array(losses), *model.arrays()]
        first = first or arrays
        for got, want in zip(arrays, first, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7, err_msg=kind.name)
    losses = [kind(size, np.float32).step() for kind in kinds]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


def measure(size: Size, kinds: list[Any], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step of each row, in turn."""
    models = [kind(size, np.float32) for kind in kinds]
    seconds: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    losses: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    for _ in range(rounds + 2):
        for model in models:
            start = time.perf_counter()
            losses[model.name].append(model.step())
            seconds[model.name].append(time.perf_counter() - start)
    for name, values in losses.items():
        np.testing.assert_allclose(values, losses["sensorium"], rtol=2e-3, err_msg=name)
    return {name: times[2:] for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=sensorium.get_num_threads())
    parser.add_argument("--only", help="rows whose names begin with one of these, separated by commas")
    parser.add_argument("--fresh-pages", action="store_true", help="leave the allocator as it is")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    kinds = rows()
    if args.only:
        kinds = [kind for kind in kinds if kind.name.startswith(tuple(args.only.split(",")))]
    sensorium.set_num_threads(args.threads)
    if not args.fresh_pages:
        sensorium.keep_pages()
    if any(kind is Torch for kind in kinds):
        import torch

        torch.set_num_threads(args.threads)
    size = SIZES[args.size]
    check(size, kinds)
    seconds = measure(size, kinds, args.rounds)
    count = sum(a.size for a in tree_leaves(init(size, np.float32)))
    print(f"{args.size}: {count:,} parameters, {size.batch} x {size.tokens} tokens, {args.threads} threads")
    ours = statistics.median(seconds["sensorium"])
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:<22} {1e3 * median:9.1f} ms  (best {1e3 * min(times):.1f})  x {median / ours:.2f}")
    if args.json:
        result = {
            "size": args.size,
            "parameters": count,
            "tokens": size.batch * size.tokens,
            "threads": args.threads,
            "machine": platform.processor() or platform.machine(),
            "isa": sensorium.config()["isa"] if hasattr(sensorium, "config") else None,
            "numpy": np.__version__,
            "seconds": seconds,
        }
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
