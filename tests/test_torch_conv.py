"""Causal convolutions as operators of PyTorch: what torch checks of them, and that they compute what `ops` does."""

import pytest
import sensorium
from sensorium import ops

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'sensorium[torch]'")
import sensorium.torch as st  # noqa: E402 - needs torch
from torch_cases import CUTS, QUIET, SEQUENCES, arrays, assert_same, draw, opcheck  # noqa: E402 - needs torch

pytestmark = QUIET
CALLS = torch.ops.sensorium


def conv_inputs(channels_last=False, rows=2, states=None, full=True, taps=3, **how):
    """Tensors of a convolution: B 2, D 4, K 3, L 7."""
    x = draw(*((rows, 7, 4) if channels_last else (rows, 4, 7)), **how)
    rest = [draw(4, **how), draw(states or rows, 4, taps - 1, **how)]
    return [x, draw(4, taps, **how), *(rest if full else [None] * 2)]


def samples():
    """Operator and arguments of many kinds: what torch's checks are run over."""
    for name, tensors, options in [
        ("all", conv_inputs(), (None, None, "silu", False)),
        ("float32", conv_inputs(dtype=torch.float32), (None, None, "silu", False)),
        ("least", conv_inputs(full=False), (None, None, None, False)),
        ("one tap", conv_inputs(taps=1), (None, None, None, False)),
        ("channels last", conv_inputs(channels_last=True), (None, None, "silu", True)),
        ("some of more channels", [draw(2, 7, 9)[..., 2:6], *conv_inputs()[1:]], (None, None, None, True)),
        ("sequences", conv_inputs(), (SEQUENCES, None, "silu", False)),
        ("lengths", conv_inputs(rows=1, states=3), (None, CUTS, "silu", False)),
        ("no row", conv_inputs(rows=0), (None, None, "silu", False)),
    ]:
        yield f"causal_conv1d: {name}", CALLS.causal_conv1d, (*tensors, *options)


def steps():
    """Operators that write a state, and their arguments."""
    x, weight, bias, state = conv_inputs(grad=False)
    row = x[..., 0].clone()
    yield "causal_conv1d_update", CALLS.causal_conv1d_update, (row, state, weight, bias, "silu")
    some = draw(2, 4, 5, grad=False)[..., 2:4]
    yield "causal_conv1d_update: some of more", CALLS.causal_conv1d_update, (row, some, weight, None, None)


SAMPLES = [*samples(), *steps()]


@pytest.mark.parametrize(("call", "args"), [s[1:] for s in SAMPLES], ids=[s[0] for s in SAMPLES])
def test_torch_accepts_the_operator(call, args):
    opcheck(call, args)


GRADIENTS = {
    "causal_conv1d": (
        lambda x, w, b, s: st.causal_conv1d(
            x, w, b, activation="silu", initial_state=s, return_last_state=True
        ),
        conv_inputs(),
    ),
    "causal_conv1d: lengths": (
        lambda x, w, b, s: st.causal_conv1d(
            x, w, b, initial_state=s, cu_seqlens=CUTS, return_last_state=True
        ),
        conv_inputs(rows=1, states=3),
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_differences(name):
    function, args = GRADIENTS[name]
    assert torch.autograd.gradcheck(function, args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_causal_conv1d_is_that_of_ops_bit_for_bit(dtype):
    tensors = conv_inputs(channels_last=True, dtype=dtype)
    *inputs, state = tensors
    how = {"activation": "silu", "channels_last": True}
    got = st.causal_conv1d(*inputs, initial_state=state, seq_idx=SEQUENCES, return_last_state=True, **how)
    *given, given_state = arrays(tensors)
    how |= {"seq_idx": SEQUENCES.numpy(), "initial_state": given_state}
    assert_same(got, ops.causal_conv1d(*given, return_last_state=True, **how))
    seeds = [draw(*part.shape, dtype=dtype, seed=9, grad=False) for part in got]
    grads = torch.autograd.grad(got, tensors, seeds)
    assert_same(
        grads, ops.causal_conv1d_backward(seeds[0].numpy(), *given, grad_last_state=seeds[1].numpy(), **how)
    )


def test_causal_conv1d_is_torchs():
    x, weight, bias, _ = conv_inputs()
    want = torch.nn.functional.conv1d(x, weight.unsqueeze(1), bias, padding=2, groups=4)[..., :7]
    got = st.causal_conv1d(x, weight, bias, activation="silu")
    torch.testing.assert_close(got, torch.nn.functional.silu(want), rtol=1e-12, atol=1e-12)


def test_steps_of_a_convolution_are_the_convolution():
    x, weight, bias, state = conv_inputs(grad=False)
    want, last = st.causal_conv1d(
        x, weight, bias, activation="silu", initial_state=state, return_last_state=True
    )
    held = state.clone()
    rows = [st.causal_conv1d_update(x[..., t], held, weight, bias, activation="silu") for t in range(7)]
    torch.testing.assert_close(torch.stack(rows, -1), want, rtol=0, atol=0)
    torch.testing.assert_close(held, last, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_graph_writes_the_state(backend):
    def step(state, x, weight):
        return 2 * st.causal_conv1d_update(x, state, weight, activation="silu")

    x, weight, _, state = conv_inputs(grad=False)
    results = []
    for call in (step, torch.compile(step, fullgraph=True, backend=backend)):
        held = state.clone()
        results.append([*(call(held, x[..., t], weight) for t in range(3)), held])
    torch.compiler.reset()
    assert not torch.equal(results[0][-1], state)
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_a_step_has_neither_a_gradient_nor_a_map():
    x, weight, _, state = conv_inputs(grad=False)
    y = st.causal_conv1d_update(x[..., 0].requires_grad_(), state.clone(), weight)
    with pytest.raises(RuntimeError, match="causal_conv1d_update"):
        y.sum().backward()
    with pytest.raises(RuntimeError, match="causal_conv1d_update"):
        torch.vmap(lambda x: st.causal_conv1d_update(x, state.clone(), weight))(x.movedim(-1, 0))


def test_wrong_tensors_are_named():
    x, weight, bias, state = conv_inputs(grad=False)
    for wrong, kind, words in [
        ({"weight": weight[:2]}, sensorium.ShapeError, "weight has D=2"),
        ({"x": x.half()}, sensorium.DTypeError, "x has dtype float16"),
        ({"bias": bias.float()}, sensorium.DTypeError, "bias has dtype float32 but x has float64"),
        ({"bias": bias.to("meta")}, sensorium.ArgumentError, "bias is on meta"),
        ({"activation": "tanh"}, sensorium.ArgumentError, 'activation must be None or "silu"'),
        ({"seq_idx": SEQUENCES, "cu_seqlens": CUTS}, sensorium.ArgumentError, "cannot both be given"),
    ]:
        with pytest.raises(kind, match=words):
            st.causal_conv1d(**{"x": x, "weight": weight, "bias": bias, **wrong})
    with pytest.raises(sensorium.ShapeError, match="state has shape"):
        st.causal_conv1d_update(x[..., 0], state[..., 1:], weight)
