"""What attention is measured against: each row computes a case, forward or with backward.

A row keeps its inputs in the form that suits it best; what is timed is the call. `results` turns what a call
returned into arrays of ``(B, H, N, D)``.
"""

from __future__ import annotations

import importlib.util
from functools import partial
from typing import Any

import numpy as np
import sensorium
from attention_cases import IMAGE, SAMPLE_TOKENS, TEXT, Case
from sensorium.ops import attention, attention_backward

if importlib.util.find_spec("torch"):
    import torch
    from torch.nn.functional import scaled_dot_product_attention as sdpa


def installed(*modules: str) -> bool:
    """Whether all of them are."""
    return all(importlib.util.find_spec(module) for module in modules)


class Row:
    """A way to compute a case."""

    #: What it is called in a table.
    title = ""
    #: Modules that it needs.
    needs: tuple[str, ...] = ()
    passes: tuple[str, ...] = ("forward", "both")
    #: Whether its first call compiles.
    compiles = False
    #: Widths at which it is measured; all where none are given.
    widths: tuple[int, ...] = ()
    #: Most tokens at which it is measured.
    most = 1 << 20

    def __init__(self, case: Case) -> None:
        self.case = case

    @classmethod
    def takes(cls, case: Case) -> bool:
        """Whether it is installed and measured on a case."""
        return (
            installed(*cls.needs)
            and case.passes in cls.passes
            and case.tokens <= cls.most
            and (not cls.widths or case.width in cls.widths or case.layout_name == "quickstart")
        )

    def call(self) -> Any:
        """Compute the case."""
        return getattr(self, self.case.passes)()

    def results(self, value: Any) -> list[Any]:
        """Return the arrays of a call."""
        return [value] if self.case.passes == "forward" else list(value)


class Sensorium(Row):
    title = "sensorium"

    def forward(self) -> Any:
        q, k, v, _ = self.case.arrays
        return attention(q, k, v, self.case.layout, return_lse=False)

    def both(self) -> Any:
        q, k, v, grad_out = self.case.arrays
        out, lse = attention(q, k, v, self.case.layout)
        return attention_backward(grad_out, q, k, v, out, lse, self.case.layout)


class NumPy(Row):
    """A head at a time, so that the scores of a head stay in the cache, with a dense mask, in place."""

    title = "NumPy, a head at a time"
    widths = (64, 128)

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.hidden = np.where(case.layout.dense(), np.float32(0), np.float32(-np.inf))
        self.scale = np.float32(case.width**-0.5)

    def probabilities(self, q: Any, k: Any) -> tuple[Any, Any]:
        p = (q * self.scale) @ k.T
        p += self.hidden
        p -= p.max(axis=-1, keepdims=True)
        np.exp(p, out=p)
        return p, p.sum(axis=-1, keepdims=True)

    def forward(self) -> Any:
        q, k, v, _ = self.case.arrays
        out = np.empty_like(q)
        for head in np.ndindex(q.shape[:2]):
            p, total = self.probabilities(q[head], k[head])
            np.matmul(p, v[head], out=out[head])
            out[head] /= total
        return out

    def both(self) -> Any:
        arrays = self.case.arrays
        dq, dk, dv = (np.empty_like(x) for x in arrays[:3])
        for head in np.ndindex(dq.shape[:2]):
            q, k, v, grad_out = (x[head] for x in arrays)
            p, total = self.probabilities(q, k)
            p /= total
            out = p @ v
            np.matmul(p.T, grad_out, out=dv[head])
            ds = grad_out @ v.T
            ds -= (grad_out * out).sum(axis=-1, keepdims=True)
            ds *= p
            ds *= self.scale
            np.matmul(ds, k, out=dq[head])
            np.matmul(ds.T, q, out=dk[head])
        return dq, dk, dv


class Torch(Row):
    """`scaled_dot_product_attention` with a dense boolean mask."""

    title = "SDPA, dense mask"
    needs = ("torch",)
    widths = (64, 128)

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        torch.set_num_threads(sensorium.get_num_threads())
        self.inputs = [torch.from_numpy(x) for x in case.arrays[:3]]
        self.grad_out = torch.from_numpy(case.arrays[3])
        self.leaves = [x.detach().requires_grad_() for x in self.inputs]
        self.options = self.make_options()

    def make_options(self) -> dict[str, Any]:
        return {"attn_mask": torch.from_numpy(self.case.layout.dense())}

    def forward(self) -> Any:
        with torch.no_grad():
            return sdpa(*self.inputs, **self.options)

    def both(self) -> Any:
        return torch.autograd.grad(sdpa(*self.leaves, **self.options), self.leaves, self.grad_out)


class TorchParts(Torch):
    """What a careful user of SDPA makes of a layout: a call for every segment, over the keys that it sees.

    Images see contiguous keys, all of them: no mask. Text sees what is before it and itself causally: a
    mask of 64 rows, made beforehand; where text sees text only, one gathered causal call for all of it.
    Rows of equal samples are a batch of samples. One causal segment is `is_causal`. With backward, the
    gradients of a part are added to where they belong as soon as it is done, so that autograd makes no
    padded copies.
    """

    title = "SDPA, by segments"
    widths = ()

    def make_options(self) -> dict[str, Any]:
        self.parts = list(self.plan())
        return {}

    def plan(self) -> Any:
        """Yield queries, keys and options of each call; keys are a slice or an index."""
        name, n = self.case.layout_name, self.case.tokens
        causal = {"is_causal": True}
        if name == "causal":
            yield slice(0, n), slice(0, n), causal
        elif name == "showo2":
            yield slice(0, n // 4), slice(0, n // 4), causal
            yield slice(n // 4, n), slice(0, n), {}
        elif name == "quickstart":
            dense = self.case.layout.dense()[:SAMPLE_TOKENS, :SAMPLE_TOKENS]
            yield slice(0, n), slice(0, n), {"attn_mask": torch.from_numpy(dense)}
        else:
            if name == "decoupled":
                texts = torch.arange(n).reshape(-1, TEXT + IMAGE)[:, :TEXT].reshape(-1)
                yield texts, texts, causal
            for start in range(0, n, TEXT + IMAGE):
                middle, end = start + TEXT, start + TEXT + IMAGE
                if name == "bagel":
                    seen = torch.ones(TEXT, middle, dtype=torch.bool).tril(start)
                    mask = torch.zeros(TEXT, middle).masked_fill(~seen, -torch.inf)
                    yield slice(start, middle), slice(0, middle), {"attn_mask": mask}
                yield slice(middle, end), slice(0, end), {}

    def by_sample(self, x: Any) -> Any:
        """View `quickstart`'s rows as a batch of samples."""
        if self.case.layout_name != "quickstart":
            return x
        batch, heads, _, width = x.shape
        return x.view(batch, heads, -1, SAMPLE_TOKENS, width).transpose(1, 2).flatten(0, 1)

    def by_row(self, x: Any) -> Any:
        """Undo that."""
        if self.case.layout_name != "quickstart":
            return x
        batch, heads, tokens, width = self.inputs[0].shape
        x = x.view(batch, -1, heads, SAMPLE_TOKENS, width).transpose(1, 2)
        return x.reshape(batch, heads, tokens, width)

    def forward(self) -> Any:
        q, k, v = (self.by_sample(x) for x in self.inputs)
        with torch.no_grad():
            if len(self.parts) == 1:
                return self.by_row(sdpa(q, k, v, **self.parts[0][2]))
            out = torch.empty_like(q)
            for queries, keys, options in self.parts:
                out[:, :, queries] = sdpa(q[:, :, queries], k[:, :, keys], v[:, :, keys], **options)
            return out

    def both(self) -> Any:
        inputs = [self.by_sample(x) for x in self.inputs]
        grad_out = self.by_sample(self.grad_out)
        if len(self.parts) == 1:
            leaves = [x.detach().requires_grad_() for x in inputs]
            grads = torch.autograd.grad(sdpa(*leaves, **self.parts[0][2]), leaves, grad_out)
            return [self.by_row(x) for x in grads]
        q, k, v = inputs
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for queries, keys, options in self.parts:
            part = (q[:, :, queries], k[:, :, keys], v[:, :, keys])
            leaves = [x.detach().requires_grad_() for x in part]
            grads = torch.autograd.grad(sdpa(*leaves, **options), leaves, grad_out[:, :, queries])
            dq[:, :, queries] = grads[0]
            for total, grad in ((dk, grads[1]), (dv, grads[2])):
                if isinstance(keys, slice):
                    total[:, :, keys] += grad
                else:
                    total.index_add_(2, keys, grad)
        return dq, dk, dv


class Flex(Torch):
    """`flex_attention` with a block mask, compiled; it has no backward on a CPU."""

    title = "flex_attention, compiled"
    compiles = True
    widths = (64,)
    passes = ("forward",)

    def make_options(self) -> dict[str, Any]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        dense = torch.from_numpy(self.case.layout.dense())

        def visible(b: Any, h: Any, i: Any, j: Any) -> Any:
            return dense[i, j]

        n = self.case.tokens
        torch.compiler.reset()
        self.compiled = torch.compile(flex_attention, dynamic=False)
        return {"block_mask": create_block_mask(visible, None, None, n, n, device="cpu")}

    def forward(self) -> Any:
        with torch.no_grad():
            return self.compiled(*self.inputs, **self.options)


class OnnxRuntime(Row):
    """`MultiHeadAttention` with the mask as a bias, its inputs as it wants them: ``(B, N, H D)``."""

    title = "onnxruntime"
    widths = (64,)
    needs = ("onnx", "onnxruntime")
    passes = ("forward",)

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        import onnxruntime
        from onnx import TensorProto, helper

        n = case.tokens
        shape = [case.batch, n, case.heads * case.width]
        info = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
        inputs = [info(name=name, shape=shape) for name in "qkv"] + [info(name="bias", shape=[1, 1, n, n])]
        node = helper.make_node(
            "MultiHeadAttention",
            ["q", "k", "v", "", "", "bias"],
            ["out"],
            domain="com.microsoft",
            num_heads=case.heads,
        )
        graph = helper.make_graph([node], "attention", inputs, [info(name="out", shape=shape)])
        versions = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=versions, ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = sensorium.get_num_threads()
        # Its threads else spin between calls, in the time of the next row.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {
            name: np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(shape)
            for name, x in zip("qkv", case.arrays[:3], strict=True)
        }
        hidden = np.where(case.layout.dense(), np.float32(0), np.float32(-np.inf))
        self.inputs["bias"] = hidden[None, None]

    def forward(self) -> Any:
        return self.session.run(None, self.inputs)[0]

    def results(self, value: Any) -> list[Any]:
        case = self.case
        return [value.reshape(case.batch, case.tokens, case.heads, case.width).transpose(0, 2, 1, 3)]


class Jax(Row):
    """`jax.nn.dot_product_attention` under `jit`, with a dense mask; inputs ``(B, N, H, D)``, as it wants."""

    title = "JAX, jit"
    compiles = True
    widths = (64,)
    #: A call takes half a minute at 8192.
    most = 4096
    needs = ("jax",)

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        import jax

        self.block = jax.block_until_ready
        dense = jax.numpy.asarray(case.layout.dense())[None, None]
        self.inputs = [jax.numpy.asarray(x.transpose(0, 2, 1, 3)) for x in case.arrays]

        def run(q: Any, k: Any, v: Any) -> Any:
            return jax.nn.dot_product_attention(q, k, v, mask=dense)

        def gradients(q: Any, k: Any, v: Any, grad_out: Any) -> Any:
            return jax.vjp(run, q, k, v)[1](grad_out)

        self.run, self.gradients = jax.jit(run), jax.jit(gradients)

    def forward(self) -> Any:
        return self.block(self.run(*self.inputs[:3]))

    def both(self) -> Any:
        return self.block(self.gradients(*self.inputs))

    def results(self, value: Any) -> list[Any]:
        return [np.asarray(x).transpose(0, 2, 1, 3) for x in super().results(value)]


#: In the order in which they are measured.
ROWS: dict[str, type[Row]] = {
    "sensorium": Sensorium,
    "sdpa_mask": Torch,
    "sdpa_parts": TorchParts,
    "flex": Flex,
    "onnxruntime": OnnxRuntime,
    "jax": Jax,
    "numpy": NumPy,
}


def rows(case: Case, names: list[str] | None = None) -> dict[str, Row]:
    """Rows that are measured on a case; all, or those named."""
    return {
        name: kind(case)
        for name, kind in ROWS.items()
        if (names is None or name in names) and kind.takes(case)
    }
