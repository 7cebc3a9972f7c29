"""Mamba-2's scan as an operator of PyTorch: what torch checks of it, and that it computes what `ops` does."""

import pytest
import sensorium
from sensorium import ops

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'sensorium[torch]'")
import sensorium.torch as st  # noqa: E402 - needs torch
from torch_cases import CUTS, QUIET, SEQUENCES, arrays, assert_same, draw, opcheck  # noqa: E402 - needs torch

pytestmark = QUIET
CALLS = torch.ops.sensorium


def ssd_inputs(groups=1, rows=2, states=None, full=True, each=False, **how):
    """Tensors of Mamba-2: B 2, L 7, H 4, P 3, S 5."""
    x, z = (draw(rows, 7, 4, 3, seed=i, **how) for i in (0, 1))
    B, C = (draw(rows, 7, groups, 5, seed=i, **how) for i in (2, 3))
    D = draw(4, 3, **how) if each else draw(4, **how)
    rest = [D, z, draw(4, seed=1, **how), draw(states or rows, 4, 3, 5, **how)]
    return [x, draw(rows, 7, 4, **how), draw(4, low=-1.5, **how), B, C, *(rest if full else [None] * 4)]


def samples():
    """Operator and arguments of many kinds: what torch's checks are run over."""
    inf = float("inf")
    for name, tensors, options in [
        ("all", ssd_inputs(), (None, None, None, True, 0.0, inf)),
        ("float32", ssd_inputs(dtype=torch.float32), (None, None, None, True, 0.0, inf)),
        ("least", ssd_inputs(full=False), (None, None, None, False, 0.0, inf)),
        ("groups, chunks, limits", ssd_inputs(groups=2, each=True), (None, None, 2, True, 0.1, 2.0)),
        ("sequences", ssd_inputs(), (SEQUENCES, None, 4, True, 0.0, inf)),
        ("lengths", ssd_inputs(rows=1, states=3), (None, CUTS, None, True, 0.0, inf)),
        ("no row", ssd_inputs(rows=0), (None, None, None, True, 0.0, inf)),
    ]:
        yield f"ssd: {name}", CALLS.ssd, (*tensors, *options)
    x, dt, A, B, C, D, z, bias, state = ssd_inputs(groups=2, grad=False)
    x, dt, B, C, z = (tensor[:, 0].clone() for tensor in (x, dt, B, C, z))
    args = (state, x, dt, A, B, C, D, z, bias, True, 0.0, 3.0)
    yield "ssd_state_update", CALLS.ssd_state_update, args


SAMPLES = list(samples())


@pytest.mark.parametrize(("call", "args"), [s[1:] for s in SAMPLES], ids=[s[0] for s in SAMPLES])
def test_torch_accepts_the_operator(call, args):
    opcheck(call, args)


GRADIENTS = {
    "all": (
        lambda *t: st.ssd(*t[:5], None, *t[5:8], True, t[8], return_final_states=True),
        ssd_inputs(groups=2),
    ),
    "least": (lambda *t: st.ssd(*t, chunk_size=2), ssd_inputs(full=False)[:5]),
    "sequences, D for each": (
        lambda *t: st.ssd(*t[:5], 4, *t[5:8], True, t[8], SEQUENCES, True, dt_limit=(0.0, 50.0)),
        ssd_inputs(each=True),
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_differences(name):
    function, args = GRADIENTS[name]
    assert torch.autograd.gradcheck(function, args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ssd_is_that_of_ops_bit_for_bit(dtype):
    tensors = ssd_inputs(groups=2, dtype=dtype)
    names = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states")
    how = {"dt_softplus": True, "dt_limit": (0.1, 1.5), "chunk_size": 4}
    got = st.ssd(**dict(zip(names, tensors, strict=True)), **how, seq_idx=SEQUENCES, return_final_states=True)
    given = dict(zip(names, arrays(tensors), strict=True))
    how["seq_idx"] = SEQUENCES.numpy()
    assert_same(got, ops.ssd(**given, **how, return_final_states=True))
    seeds = [draw(*part.shape, dtype=dtype, seed=9, grad=False) for part in got]
    grads = torch.autograd.grad(got, tensors, seeds)
    wanted = ops.ssd_backward(seeds[0].numpy(), **given, **how, grad_final_states=seeds[1].numpy())
    assert_same(grads, wanted)


def test_steps_of_mamba2_are_the_whole():
    x, dt, A, B, C, D, z, bias, state = ssd_inputs(groups=2, grad=False)
    how = {"dt_softplus": True, "dt_limit": (0.1, 1.5)}
    want, last = st.ssd(
        x, dt, A, B, C, None, D, z, bias, initial_states=state, return_final_states=True, **how
    )
    held, rows = state.clone(), []
    for t in range(7):
        row = [tensor[:, t] for tensor in (x, dt, B, C, z)]
        rows.append(st.ssd_state_update(held, *row[:2], A, *row[2:4], D, row[4], bias, **how))
    torch.testing.assert_close(torch.stack(rows, 1), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(held, last, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_it_compiles_in_one_graph(backend):
    def block(x, dt, A, B, C):
        y, states = st.ssd(2 * x, dt, A, B, C, dt_softplus=True, return_final_states=True)
        return y.sin().sum() + states.sum()

    tensors = ssd_inputs(full=False)[:5]
    results = []
    for call in (block, torch.compile(block, fullgraph=True, backend=backend)):
        out = call(*tensors)
        results.append([out, *torch.autograd.grad(out, tensors)])
    torch.compiler.reset()
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_wrong_tensors_are_named():
    names = ("x", "dt", "A", "B", "C")
    right = dict(zip(names, ssd_inputs(full=False, grad=False)[:5], strict=True))
    for wrong, kind, words in [
        ({"A": right["A"][:2]}, sensorium.ShapeError, "A has H=2"),
        ({"x": right["x"].half()}, sensorium.DTypeError, "x has dtype float16"),
        ({"dt": right["dt"].to("meta")}, sensorium.ArgumentError, "dt is on meta"),
        ({"seq_idx": SEQUENCES, "cu_seqlens": CUTS}, sensorium.ArgumentError, "cannot both be given"),
    ]:
        with pytest.raises(kind, match=words):
            st.ssd(**{**right, **wrong})
