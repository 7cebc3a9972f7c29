"""Gated linear recurrences as operators of PyTorch: what torch checks, and that they compute what `ops` does."""

import pytest
import sensorium
from sensorium import ops

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'sensorium[torch]'")
import sensorium.torch as st  # noqa: E402 - needs torch
from torch_cases import CUTS, QUIET, SEQUENCES, arrays, assert_same, draw, opcheck  # noqa: E402 - needs torch

pytestmark = QUIET
CALLS = torch.ops.sensorium


def inputs(channels_last=False, rows=2, states=None, full=True, **how):
    """Tensors of a recurrence: B 2, D 4, L 7."""
    shape = (rows, 7, 4) if channels_last else (rows, 4, 7)
    return [
        draw(*shape, **how),
        draw(*shape, seed=1, **how),
        draw(states or rows, 4, **how) if full else None,
    ]


def samples():
    """Operator and arguments of many kinds: what torch's checks are run over."""
    for name, tensors, options in [
        ("all", inputs(), (None, None, False, False)),
        ("float32", inputs(dtype=torch.float32), (None, None, False, False)),
        ("least", inputs(full=False), (None, None, False, False)),
        ("backwards, channels last", inputs(channels_last=True), (None, None, True, True)),
        ("sequences", inputs(), (SEQUENCES, None, False, False)),
        ("lengths", inputs(rows=1, states=3), (None, CUTS, True, False)),
        ("no row", inputs(rows=0), (None, None, False, False)),
    ]:
        yield f"gated_linear_scan: {name}", CALLS.gated_linear_scan, (*tensors, *options)


SAMPLES = list(samples())


@pytest.mark.parametrize(("call", "args"), [s[1:] for s in SAMPLES], ids=[s[0] for s in SAMPLES])
def test_torch_accepts_the_operator(call, args):
    opcheck(call, args)


@pytest.mark.parametrize("how", [{}, {"reverse": True, "seq_idx": SEQUENCES}], ids=["plain", "packed"])
def test_gradients_are_those_of_differences(how):
    def function(a, x, state):
        return st.gated_linear_scan(a, x, state, return_last_state=True, **how)

    assert torch.autograd.gradcheck(function, inputs())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_that_of_ops_bit_for_bit(dtype):
    tensors = inputs(channels_last=True, dtype=dtype)
    how = {"reverse": True, "channels_last": True}
    got = st.gated_linear_scan(*tensors, True, seq_idx=SEQUENCES, **how)
    a, x, state = arrays(tensors)
    how["seq_idx"] = SEQUENCES.numpy()
    assert_same(got, ops.gated_linear_scan(a, x, state, True, **how))
    seeds = [draw(*part.shape, dtype=dtype, seed=9, grad=False) for part in got]
    grads = torch.autograd.grad(got, tensors, seeds)
    first, last = arrays(seeds)
    assert_same(grads, ops.gated_linear_scan_backward(first, a, x, state, grad_last_state=last, **how))


def test_it_compiles_in_one_graph():
    def block(a, x):
        return st.gated_linear_scan(a.sigmoid(), x).square().sum()

    tensors = inputs(full=False)[:2]
    results = []
    for call in (block, torch.compile(block, fullgraph=True, backend="aot_eager")):
        out = call(*tensors)
        results.append([out, *torch.autograd.grad(out, tensors)])
    torch.compiler.reset()
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_wrong_tensors_are_named():
    a, x, state = inputs(grad=False)
    for args, kind, words in [
        ((a, x[:, :2]), sensorium.ShapeError, "x has D=2"),
        ((a.half(), x), sensorium.DTypeError, "a has dtype float16"),
        ((a, x, state[:1]), sensorium.ShapeError, "initial_state has shape"),
        ((a, x.to("meta")), sensorium.ArgumentError, "x is on meta"),
    ]:
        with pytest.raises(kind, match=words):
            st.gated_linear_scan(*args)
