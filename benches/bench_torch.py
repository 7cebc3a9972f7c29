"""What a call through PyTorch costs: the operator, the function that it calls, and torch's own attention.

Each row first agrees with torch's. `extra_info` states the flops over the visible pairs. One thread, so that
a small case shows the way through Python and not the waking of a pool.
"""

from __future__ import annotations

import numpy as np
import pytest
import sensorium
from sensorium import ops
from sensorium.ops import Layout, Segment

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'sensorium[torch]'")
from sensorium.torch import attention  # noqa: E402 - needs torch

SHAPES = {"tiny": (1, 1, 8, 8), "short": (1, 8, 64, 64), "row": (1, 8, 512, 64)}
ROWS = ("function", "operator", "compiled", "torch with the dense mask")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with sensorium.num_threads(1):
        yield
    torch.set_num_threads(before)


def calls(layout, tensors, grad):
    """Forward of each row, and how its gradients are had."""
    mask = torch.from_numpy(layout.dense())
    attend = {
        "operator": lambda q, k, v: attention(q, k, v, layout),
        "compiled": torch.compile(lambda q, k, v: attention(q, k, v, layout), fullgraph=True),
        "torch with the dense mask": lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask
        ),
    }
    arrays = [t.detach().numpy() for t in tensors]

    def function(both):
        out, lse = ops.attention(*arrays, layout)
        return ops.attention_backward(grad.numpy(), *arrays, out, lse, layout) if both else [out]

    def through_torch(name):
        def run(both):
            if both:
                return torch.autograd.grad(attend[name](*tensors), tensors, grad)
            with torch.no_grad():
                return [attend[name](*tensors)]

        return run

    return {"function": function, **{name: through_torch(name) for name in attend}}


@pytest.mark.parametrize("both", [False, True], ids=["forward", "with backward"])
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("shape", SHAPES)
def test_attention(benchmark, shape, row, both):
    batch, heads, tokens, width = SHAPES[shape]
    layout = Layout([Segment("causal", tokens // 4), Segment("full", tokens - tokens // 4)])
    rng = np.random.default_rng(0)
    values = [torch.from_numpy(rng.normal(size=SHAPES[shape]).astype(np.float32)) for _ in range(4)]
    tensors = [t.requires_grad_() for t in values[:3]]
    run = calls(layout, tensors, values[3])
    for got, want in zip(run[row](both), run[ROWS[-1]](both), strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=1e-3, atol=1e-4)
    benchmark.group = f"{shape} {SHAPES[shape]}, {'with backward' if both else 'forward'}"
    benchmark.extra_info["flops"] = (14 if both else 4) * width * layout.pairs * batch * heads
    benchmark(run[row], both)
