"""Selective scans as operators of PyTorch: what torch checks of them, and that they compute what `ops` does."""

import pytest
import sensorium
from sensorium import ops

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'sensorium[torch]'")
import sensorium.torch as st  # noqa: E402 - needs torch
from torch_cases import CUTS, QUIET, SEQUENCES, arrays, assert_same, draw, opcheck  # noqa: E402 - needs torch

pytestmark = QUIET
CALLS = torch.ops.sensorium


@pytest.fixture(autouse=True)
def _forget_graphs():
    yield
    torch.compiler.reset()


def scan_inputs(channels_last=False, groups=0, rows=2, states=None, full=True, constant=False, **how):
    """Tensors of a selective scan: B 2, D 4, S 3, L 7."""
    u, delta, z = (draw(*((rows, 7, 4) if channels_last else (rows, 4, 7)), seed=i, **how) for i in range(3))
    shape = (rows, groups, 3, 7) if groups else (rows, 3, 7)
    B, C = (draw(*shape, seed=i, **how) for i in (3, 4))
    if channels_last:
        B, C = (t.detach().movedim(-1, 1).contiguous().requires_grad_(t.requires_grad) for t in (B, C))
    if constant:
        B, C = (draw(4, 3, seed=i, **how) for i in (3, 4))
    A = draw(4, 3, low=-1.5, **how)
    rest = [draw(4, **how), z, draw(4, seed=1, **how), draw(states or rows, 4, 3, **how)]
    return [u, delta, A, B, C, *(rest if full else [None] * 4)]


def samples():
    """Operator and arguments of many kinds: what torch's checks are run over."""
    strided = [draw(7, 4, 2).permute(2, 1, 0)] * 2
    for name, tensors, options in [
        ("all", scan_inputs(), (None, None, True, False)),
        ("float32", scan_inputs(dtype=torch.float32), (None, None, True, False)),
        ("least", scan_inputs(full=False), (None, None, False, False)),
        ("groups", scan_inputs(groups=2), (None, None, True, False)),
        ("constant B and C", scan_inputs(constant=True), (None, None, True, False)),
        ("channels last", scan_inputs(channels_last=True), (None, None, True, True)),
        ("sequences", scan_inputs(channels_last=True), (SEQUENCES, None, True, True)),
        ("lengths", scan_inputs(rows=1, states=3), (None, CUTS, False, False)),
        ("without a gradient", scan_inputs(grad=False), (None, None, True, False)),
        ("strided", [*strided, *scan_inputs(full=False)[2:]], (None, None, True, False)),
        ("no row", scan_inputs(rows=0), (None, None, True, False)),
    ]:
        yield f"selective_scan: {name}", CALLS.selective_scan, (*tensors, *options)


def steps():
    """Operators that write a state, and their arguments."""
    _, _, A, _, _, D, _, bias, state = scan_inputs(grad=False)
    x, dt, z = (draw(2, 4, seed=i, grad=False) for i in range(3))
    B, C = draw(2, 3, grad=False), draw(2, 3, seed=1, grad=False)
    yield "selective_state_update", CALLS.selective_state_update, (state, x, dt, A, B, C, D, z, bias, True)
    B, C = (draw(2, 2, 3, seed=i, grad=False) for i in (0, 1))
    least = (state, x, dt, A, B, C, None, None, None, False)
    yield "selective_state_update: groups", CALLS.selective_state_update, least


SAMPLES = [*samples(), *steps()]


@pytest.mark.parametrize(("call", "args"), [s[1:] for s in SAMPLES], ids=[s[0] for s in SAMPLES])
def test_torch_accepts_the_operator(call, args):
    opcheck(call, args)


GRADIENTS = {
    "all": (lambda *t: st.selective_scan(*t[:8], True, t[8], True), scan_inputs()),
    "least": (lambda *t: st.selective_scan(*t), scan_inputs(full=False)[:5]),
    "channels last, sequences": (
        lambda *t: st.selective_scan(
            *t[:8], True, t[8], seq_idx=SEQUENCES, return_last_state=True, channels_last=True
        ),
        scan_inputs(channels_last=True),
    ),
    "groups": (lambda *t: st.selective_scan(*t[:8], True, t[8]), scan_inputs(groups=2)),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_differences(name):
    function, args = GRADIENTS[name]
    assert torch.autograd.gradcheck(function, args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_selective_scan_is_that_of_ops_bit_for_bit(dtype):
    tensors = scan_inputs(channels_last=True, dtype=dtype)
    *inputs, state = tensors
    how = {"seq_idx": SEQUENCES, "channels_last": True}
    got = st.selective_scan(*inputs, True, state, True, **how)
    *given, given_state = arrays(tensors)
    how["seq_idx"] = SEQUENCES.numpy()
    want = ops.selective_scan(*given, True, given_state, True, **how)
    assert_same(got, want)
    seeds = [draw(*part.shape, dtype=dtype, seed=9, grad=False) for part in got]
    grads = torch.autograd.grad(got, tensors, seeds)
    wanted = ops.selective_scan_backward(
        seeds[0].numpy(), *given, True, given_state, grad_last_state=seeds[1].numpy(), **how
    )
    assert_same(grads, wanted)


def test_a_last_state_alone_has_a_gradient():
    u, delta, A, B, C = scan_inputs(full=False)[:5]
    _, state = st.selective_scan(u, delta, A, B, C, return_last_state=True)
    (grad,) = torch.autograd.grad(state.sum(), u)
    y, _ = st.selective_scan(u, delta, A, B, C, return_last_state=True)
    (other,) = torch.autograd.grad(y.sum(), u)
    assert grad.abs().max() > 0
    assert not torch.equal(grad, other)


def test_steps_of_a_selective_scan_are_the_scan():
    u, delta, A, B, C, D, z, bias, state = scan_inputs(grad=False)
    want, last = st.selective_scan(u, delta, A, B, C, D, z, bias, True, state, True)
    held, rows = state.clone(), []
    for t in range(7):
        row = [tensor[..., t] for tensor in (u, delta, B, C, z)]
        rows.append(st.selective_state_update(held, *row[:2], A, *row[2:4], D, row[4], bias, True))
    torch.testing.assert_close(torch.stack(rows, -1), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(held, last, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_graph_writes_the_state(backend):
    def step(state, used, x, dt, A, B, C, weight):
        x = st.causal_conv1d_update(x, used, weight, activation="silu")
        return st.selective_state_update(state, x * 2, dt, A, B, C)

    _, _, A, *_, state = scan_inputs(grad=False)
    x, dt, B, C = draw(2, 4, grad=False), draw(2, 4, low=0, grad=False), *draw(2, 2, 3, grad=False)
    weight, used = draw(4, 3, grad=False), draw(2, 4, 2, grad=False)
    results = []
    for call in (step, torch.compile(step, fullgraph=True, backend=backend)):
        held, kept = state.clone(), used.clone()
        results.append([*(call(held, kept, x, dt, A, B, C, weight) for _ in range(3)), held, kept])
    assert not torch.equal(results[0][0], results[0][1])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


class Block(torch.nn.Module):
    """Projections, convolution and scan, as in Mamba."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(8, 8)
        self.select = torch.nn.Linear(8, 18)
        self.conv = torch.nn.Parameter(torch.randn(8, 3))
        self.A = torch.nn.Parameter(-torch.rand(8, 5))

    def forward(self, x):
        x = st.causal_conv1d(self.first(x), self.conv, activation="silu", channels_last=True)
        delta, B, C = self.select(x).split([8, 5, 5], -1)
        return st.selective_scan(x, delta, self.A, B, C, delta_softplus=True, channels_last=True)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_module_compiles_in_one_graph(backend):
    torch.manual_seed(0)
    module = Block()
    results = []
    for call in (module, torch.compile(module, fullgraph=True, backend=backend, dynamic=True)):
        for length in (7, 4):
            out = call(draw(2, length, 8, dtype=torch.float32, grad=False))
            results.append([out, *torch.autograd.grad(out.square().sum(), list(module.parameters()))])
    for i in (0, 1):
        for ours, want in zip(results[2 + i], results[i], strict=True):
            torch.testing.assert_close(ours, want)


def test_autocast_keeps_single_precision():
    torch.manual_seed(0)
    module, x = Block(), draw(2, 7, 8, dtype=torch.float32, grad=False)
    want = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    assert out.dtype == torch.float32
    assert not torch.equal(out, want)
    torch.testing.assert_close(out, want, rtol=0.1, atol=0.1)


def test_vmap_runs_one_after_the_other():
    tensors = [torch.stack([t, 2 * t]) for t in scan_inputs(full=False, grad=False)[:5]]
    got = torch.vmap(lambda *t: st.selective_scan(*t, return_last_state=True))(*tensors)
    for i in range(2):
        want = st.selective_scan(*(t[i] for t in tensors), return_last_state=True)
        for ours, theirs in zip(got, want, strict=True):
            torch.testing.assert_close(ours[i], theirs, rtol=0, atol=0)


def test_a_second_derivative_is_refused():
    u, *rest = scan_inputs(full=False)[:5]
    (grad,) = torch.autograd.grad(st.selective_scan(u, *rest).sum(), u, create_graph=True)
    with pytest.raises(NotImplementedError, match="the gradient of selective_scan has no gradient"):
        torch.autograd.grad(grad.sum(), u)


def test_wrong_tensors_are_named():
    names = ("u", "delta", "A", "B", "C")
    right = dict(zip(names, scan_inputs(full=False, grad=False)[:5], strict=True))
    for wrong, kind, words in [
        ({"A": right["A"][:2]}, sensorium.ShapeError, "A has D=2"),
        ({"u": right["u"].half()}, sensorium.DTypeError, "u has dtype float16"),
        ({"delta": right["delta"].to("meta")}, sensorium.ArgumentError, "delta is on meta"),
        ({"seq_idx": SEQUENCES, "cu_seqlens": CUTS}, sensorium.ArgumentError, "cannot both be given"),
    ]:
        with pytest.raises(kind, match=words):
            st.selective_scan(**{**right, **wrong})
    traced = torch.compile(st.selective_scan, fullgraph=True, backend="eager")
    with pytest.raises(RuntimeError, match="A has D=2"):
        traced(**{**right, "A": right["A"][:2]})
