"""Test-time-training layers as operators of PyTorch: what torch checks, and that they compute what `ops` does."""

import pytest
import sensorium
from sensorium import ops
from sensorium.ops import TTTState

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'sensorium[torch]'")
import sensorium.torch as st  # noqa: E402 - needs torch
from torch_cases import QUIET, arrays, assert_same, draw, opcheck  # noqa: E402 - needs torch

pytestmark = QUIET
CALLS = torch.ops.sensorium
KINDS = {
    "ttt_linear": (st.ttt_linear, ops.ttt_linear, ops.ttt_linear_backward),
    "ttt_mlp": (st.ttt_mlp, ops.ttt_mlp, ops.ttt_mlp_backward),
}


def inputs(name, full=True, length=5, rows=2, packed=False, **how):
    """Tensors of a layer, its token scales and its state: H 2, D 3, F 4, mini-batches of 2."""
    if packed:
        q, k, v = (draw(rows, length, 2, 3, seed=i, **how).transpose(1, 2) for i in range(3))
    else:
        q, k, v = (draw(rows, 2, length, 3, seed=i, **how) for i in range(3))
    eta = draw(rows, 2, length, low=0.1, **how)
    shapes = [(3, 3), (3,)] if name == "ttt_linear" else [(3, 4), (4,), (4, 3), (3,)]
    weights = [draw(2, *shape, **how) for shape in shapes]
    norm = [draw(2, 3, low=0.5, **how), draw(2, 3, seed=1, **how)]
    parts = [draw(rows, 2, *shape, seed=i, **how) for i in (3, 4) for shape in shapes]
    tensors = [q, k, v, eta, *weights, *norm]
    return tensors, draw(2, low=0.5, **how) if full else None, parts if full else [None] * len(parts)


def samples():
    """Operator and arguments of many kinds: what torch's checks are run over."""
    for name in KINDS:
        for kind, how, options in [
            ("all", {}, (2, 1e-6, 1, True)),
            ("float32", {"dtype": torch.float32}, (2, 1e-6, 0, True)),
            ("least", {"full": False}, (3, 1e-6, 0, False)),
            ("heads beside each other", {"packed": True}, (2, 1e-6, 0, False)),
            ("without a gradient", {"grad": False}, (2, 1e-6, 1, True)),
        ]:
            tensors, scale, parts = inputs(name, **how)
            yield f"{name}: {kind}", getattr(CALLS, name), (*tensors, scale, *parts, *options)


SAMPLES = list(samples())


@pytest.mark.parametrize(("call", "args"), [s[1:] for s in SAMPLES], ids=[s[0] for s in SAMPLES])
def test_torch_accepts_the_operator(call, args):
    opcheck(call, args)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("full", [True, False], ids=["with a state", "least"])
def test_gradients_are_those_of_differences(name, full):
    tensors, scale, parts = inputs(name, full, rows=1)
    call, count = KINDS[name][0], len(tensors)

    def function(*given):
        how = {"mini_batch_size": 2}
        if not full:
            return call(*given, **how)
        half = len(parts) // 2
        state = TTTState(given[count + 1 : count + 1 + half], given[count + 1 + half :], 1)
        how |= {"token_scale": given[count], "initial_state": state, "return_last_state": True}
        y, last = call(*given[:count], **how)
        # Without tokens in the last mini-batch its sums have no gradient: here there are 6 of 2.
        return (y, *last.weights)

    assert torch.autograd.gradcheck(function, (*tensors, scale, *parts) if full else tensors)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_that_of_ops_bit_for_bit(name, dtype):
    tensors, scale, parts = inputs(name, dtype=dtype)
    half = len(parts) // 2
    call, run, backward = KINDS[name]
    how = {"mini_batch_size": 4, "eps": 1e-5}
    scale = draw(4, low=0.5, dtype=dtype)
    state = TTTState(tuple(parts[:half]), tuple(parts[half:]), 2)
    y, last = call(*tensors, token_scale=scale, initial_state=state, return_last_state=True, **how)
    given = arrays(tensors)
    how |= {"token_scale": scale.detach().numpy()}
    how["initial_state"] = TTTState(tuple(arrays(parts[:half])), tuple(arrays(parts[half:])), 2)
    want, want_last = run(*given, **how, return_last_state=True)
    assert last.position == want_last.position == 3
    got = [y, *last.weights, *last.sums]
    assert_same(got, [want, *want_last.weights, *want_last.sums])
    seeds = [draw(*part.shape, dtype=dtype, seed=9, grad=False) for part in got]
    grads = torch.autograd.grad(got, [*tensors, scale, *parts], seeds)
    first, *rest = arrays(seeds)
    grad_last = TTTState(tuple(rest[:half]), tuple(rest[half:]))
    *wanted, before = backward(first, *given, **how, grad_last_state=grad_last)
    assert_same(grads, [*wanted, *before.weights, *before.sums])


@pytest.mark.parametrize("name", KINDS)
def test_a_sequence_in_pieces_is_the_sequence(name):
    tensors, scale, _ = inputs(name, length=11)
    call = KINDS[name][0]
    how = {"token_scale": scale, "mini_batch_size": 2}
    want = call(*tensors, **how)
    pieces, state, start = [], None, 0
    for cut in (3, 1, 5, 2):
        rows = [tensor[:, :, start : start + cut] for tensor in tensors[:4]]
        y, state = call(*rows, *tensors[4:], **how, initial_state=state, return_last_state=True)
        pieces.append(y)
        start += cut
    torch.testing.assert_close(torch.cat(pieces, 2), want, rtol=1e-10, atol=1e-10)
    by_pieces = torch.autograd.grad(torch.cat(pieces, 2).sin().sum(), tensors[:4])
    for got, whole in zip(by_pieces, torch.autograd.grad(want.sin().sum(), tensors[:4]), strict=True):
        torch.testing.assert_close(got, whole, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "backend"), [("ttt_linear", "inductor"), ("ttt_linear", "aot_eager"), ("ttt_mlp", "aot_eager")]
)
def test_it_compiles_in_one_graph(name, backend):
    tensors, _, _ = inputs(name, full=False)

    def block(q, *rest):
        y, state = KINDS[name][0](2 * q, *rest, mini_batch_size=2, return_last_state=True)
        return y.sin().sum() + state.weights[0].sum()

    results = []
    for call in (block, torch.compile(block, fullgraph=True, backend=backend)):
        out = call(*tensors)
        results.append([out, *torch.autograd.grad(out, tensors)])
    torch.compiler.reset()
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_wrong_tensors_are_named():
    tensors, _, parts = inputs("ttt_linear", grad=False)
    q, k, v, eta, *rest = tensors
    for args, how, kind, words in [
        ((q, k[..., :2], v, eta), {}, sensorium.ShapeError, "k has D=2"),
        ((q.half(), k, v, eta), {}, sensorium.DTypeError, "q has dtype float16"),
        ((q, k, v.to("meta"), eta), {}, sensorium.ArgumentError, "v is on meta"),
        ((q, k, v, eta), {"mini_batch_size": 0}, sensorium.ArgumentError, "mini_batch_size"),
        ((q, k, v, eta), {"initial_state": 3}, sensorium.DTypeError, "must be a TTTState, not int"),
        (
            (q, k, v, eta),
            {"initial_state": TTTState(tuple(parts[:1]), ())},
            sensorium.ShapeError,
            "initial_state has 1 tensors, expected 4",
        ),
    ]:
        with pytest.raises(kind, match=words):
            st.ttt_linear(*args, *rest, **how)
