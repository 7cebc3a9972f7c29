"""The kernels as operators of PyTorch: what torch checks of an operator, and that they compute what `ops` does."""

import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import sensorium
from hypothesis import given, settings
from hypothesis import strategies as draws
from sensorium import ops
from sensorium.ops import Layout, Segment
from strategies import attentions, in_form

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'sensorium[torch]'")
import sensorium.torch as st  # noqa: E402 - needs torch
import test_torch_conv  # noqa: E402 - needs torch
import test_torch_linear_scan  # noqa: E402 - needs torch
import test_torch_scan  # noqa: E402 - needs torch
import test_torch_ssd  # noqa: E402 - needs torch
import test_torch_ttt  # noqa: E402 - needs torch

pytestmark = pytest.mark.filterwarnings(
    # opcheck itself reads .grad of tensors that are not leaves.
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
    # torch's own modules, while it compiles.
    "ignore:`torch.jit.script:FutureWarning",
    "ignore:`torch.jit.script:DeprecationWarning",
)

MIXED = Layout([Segment("causal", 5), Segment("full", 6, hidden=True), Segment("full", 6)])
OTHER = Layout([Segment("full", 8), Segment("causal", 9)], window=0)
LISTED = [Layout([Segment("causal", 12)]), Layout([Segment("full", 17)])]
POSITIONS = torch.linspace(0, 9, 17, dtype=torch.float64)
TURN = ops.Rotary(50.0, 6, True)
CALLS = torch.ops.sensorium


def draw(*shape, dtype=torch.float64, seed=0, grad=True):
    values = np.random.default_rng([seed, *shape]).normal(size=shape)
    return torch.from_numpy(values).to(dtype).requires_grad_(grad)


def packed(batch, tokens, heads, width, **how):
    """As a projection gives it: heads beside each other in memory."""
    return draw(batch, tokens, heads, width, **how).transpose(1, 2)


def triple(heads=4, kv_heads=2, tokens=17, keys=17, width=8, **how):
    return [
        draw(2, h, n, width, seed=i, **how)
        for i, (h, n) in enumerate([(heads, tokens), (kv_heads, keys), (kv_heads, keys)])
    ]


def as_array(tensor):
    """The memory of a tensor, whatever its dtype."""
    tensor = tensor.detach()
    if tensor.dtype is not torch.bfloat16:
        return tensor.numpy()
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="NumPy needs ml_dtypes for bfloat16")
    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def how(
    layout,
    scale=None,
    softcap=None,
    alibi=None,
    dropout=0.0,
    seed=None,
    positions=None,
    rotary=None,
    offsets=(),
):
    """What the operators of attention have after their tensors; packed ones have no offsets."""
    table, text = st._layouts.layout_arguments(layout)
    options = st._attention._how(text, scale, softcap, dropout, rotary)
    return (table, alibi, seed, positions, *options, *([] if offsets is None else [list(offsets)]))


def with_lse(q, k, v, *how):
    out, lse = CALLS.attention(q, k, v, *how)
    return [t.detach() for t in (torch.ones_like(out), q, k, v, out, lse)]


def samples():
    """Operator and arguments of many kinds: what torch's checks are run over."""
    q, k, v = triple()
    p = packed(2, 17, 4, 8)
    few = triple(tokens=3)[0]
    seed = torch.tensor(-5)
    slopes = torch.from_numpy(ops.alibi_slopes(4))
    for name, tensors, options in [
        ("grouped heads", (q, k, v), how(MIXED)),
        ("float32", triple(dtype=torch.float32), how(MIXED)),
        ("views of a projection", (p, p, p), how(OTHER, 0.5)),
        ("strided", [draw(2, 8, 17, 4).permute(0, 3, 2, 1)] * 3, how(MIXED)),
        ("heads last in memory", [draw(2, 17, 8, 4).permute(0, 3, 1, 2)] * 3, how(MIXED)),
        ("a layout as a tensor", (q, k, v), how(st.layout_tensor(MIXED))),
        ("a layout a sample", (q, k, v), how(LISTED)),
        ("layouts as a tensor", (q, k, v), how(st.layout_tensor(LISTED), -0.2)),
        ("the last queries", (few, k, v), how(MIXED)),
        ("queries at an offset", (few, k, v), how(MIXED, offsets=(0, 5))),
        ("one head", triple(1, 1), how(MIXED)),
        ("no sample", [t[:0].detach().requires_grad_() for t in (q, k, v)], how(MIXED)),
        ("without a gradient", triple(grad=False), how(MIXED)),
        ("a gradient by k alone", (q.detach(), k, v.detach()), how(MIXED)),
        ("soft-capped", (q, k, v), how(MIXED, softcap=2.0)),
        ("linear biases", (q, k, v), how(MIXED, alibi=slopes)),
        ("dropout", (q, k, v), how(MIXED, dropout=0.3, seed=seed)),
        ("rotary", (q, k, v), how(MIXED, rotary=ops.Rotary())),
        ("all options", (q, k, v), how(MIXED, 0.4, 2.0, slopes.float(), 0.3, seed, POSITIONS, TURN)),
        ("bfloat16", triple(dtype=torch.bfloat16, grad=False), how(MIXED)),
        ("float16", triple(dtype=torch.float16, grad=False), how(MIXED, rotary=ops.Rotary())),
    ]:
        yield f"attention: {name}", CALLS.attention, (*tensors, *options)
        yield (
            f"attention_backward: {name}",
            CALLS.attention_backward,
            (*with_lse(*tensors, *options), *options),
        )
    qkv = draw(2, 17, 3, 4, 8)
    for name, options in [
        ("a text", how(MIXED, offsets=None)),
        ("a tensor", how(st.layout_tensor(LISTED), 0.3, offsets=None)),
        ("all options", how(MIXED, 0.4, 2.0, slopes, 0.3, seed, POSITIONS, TURN, offsets=None)),
    ]:
        yield f"self_attention: {name}", CALLS.self_attention, (qkv, *options)
        out, lse = (t.detach() for t in CALLS.self_attention(qkv, *options))
        args = (out, qkv.detach(), out, lse, *options)
        yield f"self_attention_backward: {name}", CALLS.self_attention_backward, args
    turned = (10000.0, None, False, 1.0)
    for name, x, positions, inverse, rotary in [
        ("halves", q, None, False, turned),
        ("heads beside each other", p, None, False, turned),
        ("neighbours, turned back", p, torch.arange(17), True, (100.0, 6, True, 0.5)),
        ("positions of each sample", q, torch.rand(2, 17), False, turned),
        ("three dimensions", draw(2, 17, 8), None, False, turned),
        ("five dimensions, strided", draw(2, 17, 2, 3, 8).permute(0, 2, 3, 1, 4), None, False, turned),
        ("float16", q.detach().half(), None, False, turned),
        ("bfloat16", p.detach().bfloat16(), None, False, turned),
    ]:
        yield f"rotary: {name}", CALLS.rotary, (x, positions, inverse, *rotary)
    x, w, b = draw(3, 5, 8), draw(8), draw(8, seed=1)
    matrix, residual = draw(8, 6), draw(3, 5, 6)
    targets, weights = torch.arange(15).reshape(3, 5) % 8, draw(3, 5, grad=False).abs()
    for name, call, args in [
        ("layer_norm", CALLS.layer_norm, (x, w, b, 1e-5)),
        ("layer_norm: no bias", CALLS.layer_norm, (x, w, None, 1e-5)),
        ("layer_norm: strided", CALLS.layer_norm, (draw(8, 5, 3).permute(2, 1, 0), w, b, 1e-5)),
        ("rms_norm", CALLS.rms_norm, (x, w, 1e-6)),
        ("gelu", CALLS.gelu, (x,)),
        ("gelu: strided", CALLS.gelu, (draw(4, 3).T,)),
        ("silu", CALLS.silu, (x,)),
        ("linear", CALLS.linear, (x, matrix, draw(6), residual, "gelu", True)),
        ("linear: no activation", CALLS.linear, (x, matrix, draw(6), None, None, True)),
        ("linear: product alone", CALLS.linear, (x, matrix, None, None, None, False)),
        ("linear: a transposed weight", CALLS.linear, (x, draw(6, 8).T, None, residual, "silu", True)),
        ("cross_entropy", CALLS.cross_entropy, (x, targets, weights)),
        ("cross_entropy: no weights", CALLS.cross_entropy, (x, targets, None)),
        ("embedding", CALLS.embedding, (draw(9, 4), targets)),
    ]:
        yield name, call, args


SAMPLES = list(samples())


@pytest.mark.parametrize(("call", "args"), [s[1:] for s in SAMPLES], ids=[s[0] for s in SAMPLES])
def test_torch_accepts_the_operator(call, args):
    done = torch.library.opcheck(call.default, args)
    assert len(done) == 4
    assert set(done.values()) == {"SUCCESS"}


def test_every_operator_is_checked():
    names = {
        name.split("::")[1]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("sensorium::")
    }
    backwards = {name for name in names if name.endswith("_backward")}
    writing = {name for name in names if getattr(CALLS, name).default._schema.is_mutable}
    assert {f"{name}_backward" for name in names - backwards - writing - {"rotary"}} == backwards
    # opcheck of an operator runs its backward, so that those of the small ones need no sample of their own.
    others = (test_torch_conv, test_torch_linear_scan, test_torch_scan, test_torch_ssd, test_torch_ttt)
    samples = [*SAMPLES, *(sample for module in others for sample in module.SAMPLES)]
    checked = {call._qualified_op_name.split("::")[1] for _, call, _ in samples}
    assert checked >= names - backwards


GRADIENTS = {
    "attention": (lambda q, k, v: st.attention(q, k, v, MIXED), triple()),
    "attention: scale": (lambda q, k, v: st.attention(q, k, v, OTHER, scale=-0.7), triple(2, 1)),
    "attention: a layout a sample": (lambda q, k, v: st.attention(q, k, v, LISTED), triple()),
    "attention: some queries": (
        lambda q, k, v: st.attention(q, k, v, MIXED, query_offset=4),
        triple(tokens=5),
    ),
    "attention: some keys": (
        lambda q, k, v: st.attention(q, k, v, MIXED, query_offset=4, key_offset=2),
        triple(tokens=5, keys=9),
    ),
    "attention: views": (
        lambda x: st.attention(*x.transpose(2, 3).unbind(1), MIXED),
        [draw(2, 3, 17, 2, 8)],
    ),
    "attention: soft-capped": (lambda q, k, v: st.attention(q, k, v, MIXED, softcap=1.5), triple()),
    "attention: linear biases": (
        lambda q, k, v: st.attention(q, k, v, MIXED, alibi=torch.tensor([0.5, 0.1, 1.0, 0.0])),
        triple(),
    ),
    "attention: dropout": (lambda q, k, v: st.attention(q, k, v, MIXED, dropout=0.3, seed=3), triple()),
    "attention: rotary": (
        lambda q, k, v: st.attention(q, k, v, MIXED, rotary=TURN, positions=POSITIONS, query_offset=2),
        triple(tokens=5),
    ),
    "self_attention: all options": (
        lambda x: st.self_attention(
            x,
            MIXED,
            scale=0.3,
            softcap=2.0,
            alibi=torch.tensor([0.5, 0.1]),
            rotary=TURN,
            positions=POSITIONS,
            dropout=0.2,
            seed=2**64 - 1,
        ),
        [draw(2, 17, 3, 2, 8)],
    ),
    "rotary": (st.rotary, [draw(2, 3, 5, 8)]),
    "rotary: turned back": (
        lambda x: st.rotary(x, ops.Rotary(10.0, 4, True, 0.5), torch.linspace(0, 3, 5), inverse=True),
        [draw(2, 5, 8)],
    ),
    "self_attention": (lambda x: st.self_attention(x, MIXED), [draw(2, 17, 3, 2, 8)]),
    "layer_norm": (st.layer_norm, [draw(3, 5, 8), draw(8), draw(8, seed=1)]),
    "layer_norm: no bias": (lambda x, w: st.layer_norm(x, w, eps=0.1), [draw(3, 5, 8), draw(8)]),
    "rms_norm": (st.rms_norm, [draw(3, 5, 8), draw(8)]),
    "gelu": (st.gelu, [draw(3, 5)]),
    "silu": (st.silu, [draw(3, 5)]),
    "linear": (
        lambda x, w, b, r: st.linear(x, w, b, activation="gelu", residual=r),
        [draw(3, 5, 8), draw(8, 6), draw(6), draw(3, 5, 6)],
    ),
    "linear: silu": (lambda x, w: st.linear(x, w.T, activation="silu"), [draw(4, 8), draw(6, 8)]),
    "linear: product alone": (st.linear, [draw(4, 8), draw(8, 6)]),
    "cross_entropy": (
        lambda x: st.cross_entropy(x, torch.tensor([1, 0, 2]), torch.tensor([1.0, 0.0, 2.0])),
        [draw(3, 4)],
    ),
    "embedding": (lambda table: st.embedding(table, torch.tensor([[1, 1], [4, 0]])), [draw(5, 3)]),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_are_those_of_differences(name):
    function, args = GRADIENTS[name]
    assert torch.autograd.gradcheck(function, args)


# What is computed


@settings(max_examples=40)
@given(attentions(), draws.booleans())
def test_attention_is_that_of_ops_bit_for_bit(case, as_tensor):
    given_arrays = [
        np.ascontiguousarray(a, dtype=a.dtype.newbyteorder("=")) for a in (case.q, case.k, case.v)
    ]
    grad = np.array(case.grad_out, dtype=given_arrays[0].dtype, order="C")
    q, k, v = (torch.from_numpy(a.copy()).requires_grad_() for a in given_arrays)
    layout = st.layout_tensor(case.layout) if as_tensor else case.layout
    out, lse = st.attention(q, k, v, layout, scale=case.scale, return_lse=True)
    want_out, want_lse = ops.attention(*given_arrays, case.layout, scale=case.scale)
    np.testing.assert_array_equal(out.detach().numpy(), want_out)
    np.testing.assert_array_equal(lse.numpy(), want_lse)
    grads = torch.autograd.grad(out, (q, k, v), torch.from_numpy(grad))
    wanted = ops.attention_backward(grad, *given_arrays, want_out, want_lse, case.layout, scale=case.scale)
    for got, want in zip(grads, wanted, strict=True):
        np.testing.assert_array_equal(got.numpy(), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_that_of_ops_bit_for_bit(dtype):
    tensors = triple(dtype=dtype)
    out, lse = st.attention(*tensors, MIXED, return_lse=True)
    arrays = [as_array(t) for t in tensors]
    want_out, want_lse = ops.attention(*arrays, MIXED)
    grads = torch.autograd.grad(out, tensors, torch.ones_like(out))
    wanted = ops.attention_backward(np.ones_like(want_out), *arrays, want_out, want_lse, MIXED)
    assert lse.dtype == torch.float32
    for got, want in zip([out, lse, *grads], [want_out, want_lse, *wanted], strict=True):
        np.testing.assert_array_equal(as_array(got), want)
    packed_form = torch.stack([t.repeat_interleave(4 // t.shape[1], 1) for t in tensors]).permute(
        1, 3, 0, 2, 4
    )
    same = st.self_attention(packed_form, MIXED).view(2, 17, 4, 8).transpose(1, 2)
    assert torch.equal(same, out)


@pytest.mark.parametrize("layouts", [LISTED, LISTED[::-1], tuple(LISTED)], ids=["list", "turned", "tuple"])
def test_each_sample_has_its_layout(layouts):
    q, k, v = triple(grad=False)
    want, _ = ops.attention(q.numpy(), k.numpy(), v.numpy(), layouts)
    assert not np.array_equal(want, ops.attention(q.numpy(), k.numpy(), v.numpy(), layouts[::-1])[0])
    for given_layouts in (layouts, st.layout_tensor(layouts)):
        np.testing.assert_array_equal(st.attention(q, k, v, given_layouts).numpy(), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [MIXED, OTHER], ids=repr)
def test_attention_is_torchs_with_the_dense_mask(layout, dtype):
    mask = torch.from_numpy(layout.dense())
    results = []
    for attend in (
        lambda q, k, v: st.attention(q, k, v, layout),
        lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, enable_gqa=True
        ),
    ):
        args = triple(dtype=dtype)
        out = attend(*args)
        results.append([out, *torch.autograd.grad(out.square().sum(), args)])
    bound = {torch.float32: 2e-5, torch.float64: 1e-13}[dtype]
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)


def test_the_small_operators_are_torchs():
    functional = torch.nn.functional
    x, w, b = draw(3, 5, 8), draw(8), draw(8, seed=1)
    targets = torch.arange(15).reshape(3, 5) % 8
    for ours, theirs in [
        (st.layer_norm(x, w, b), functional.layer_norm(x, (8,), w, b)),
        (st.rms_norm(x, w), functional.rms_norm(x, (8,), w, 1e-6)),
        (st.gelu(x), functional.gelu(x, approximate="tanh")),
        (st.silu(x), functional.silu(x)),
        (st.linear(x, w.expand(6, 8).T), functional.linear(x, w.expand(6, 8))),
        (st.cross_entropy(x, targets), functional.cross_entropy(x.flatten(0, 1), targets.flatten())),
        (st.embedding(x[0], targets % 5), functional.embedding(targets % 5, x[0])),
    ]:
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_operators_follow_one_another_in_a_network():
    rng = torch.Generator().manual_seed(0)
    table, matrix, bias = (
        torch.randn(s, generator=rng, dtype=torch.float64, requires_grad=True) for s in [(11, 8), (8, 24), 24]
    )
    tokens = torch.arange(34).reshape(2, 17) % 11

    def loss(linear, attend, embedding, norm, cross_entropy):
        x = embedding(table, tokens)
        qkv = linear(norm(x), matrix, bias).view(2, 17, 3, 2, 4)
        return cross_entropy((x + attend(qkv)) @ table.T, tokens)

    def attend(qkv):
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mask = torch.from_numpy(MIXED.dense())
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2).reshape(2, 17, 8)

    scale = torch.ones(8, dtype=torch.float64)
    ours = loss(
        st.linear,
        lambda x: st.self_attention(x, MIXED),
        st.embedding,
        lambda x: st.rms_norm(x, scale),
        st.cross_entropy,
    )
    theirs = loss(
        lambda x, w, b: x @ w + b,
        attend,
        lambda table, i: table[i],
        lambda x: torch.nn.functional.rms_norm(x, (8,), eps=1e-6),
        lambda logits, i: torch.nn.functional.cross_entropy(logits.flatten(0, 1), i.flatten()),
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for got, want in zip(
        *(torch.autograd.grad(end, (table, matrix, bias)) for end in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rotary_is_that_of_ops_bit_for_bit(dtype):
    x = draw(2, 3, 5, 8, grad=False).to(dtype)
    rotary = ops.Rotary(100.0, 6)
    want = ops.rotary(as_array(x), rotary)
    got = st.rotary(x, rotary)
    assert got.dtype == dtype
    assert bytes(got.view(torch.uint8).numpy()) == want.tobytes()


def test_rotary_has_derivatives_of_any_order():
    x = draw(2, 3, 5, 8)
    assert torch.autograd.gradgradcheck(lambda x: st.rotary(x).pow(3), [x])


def test_options_reach_the_kernel():
    q, k, v = triple(grad=False)
    options = {"scale": 0.4, "softcap": 2.0, "dropout": 0.3, "seed": 2**64 - 2, "rotary": TURN}
    arrays = {"alibi": ops.alibi_slopes(4), "positions": POSITIONS.numpy()}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    for packed_form in (False, True):
        if packed_form:
            x = torch.stack([t.repeat_interleave(4 // t.shape[1], 1) for t in (q, k, v)]).permute(
                1, 3, 0, 2, 4
            )
            got = st.self_attention(x, MIXED, **tensors, **options)
            want, _ = ops.self_attention(x.numpy(), MIXED, **arrays, **options)
        else:
            got = st.attention(q, k, v, MIXED, **tensors, **options)
            want, _ = ops.attention(q.numpy(), k.numpy(), v.numpy(), MIXED, **arrays, **options)
        np.testing.assert_array_equal(got.numpy(), want)


@pytest.mark.parametrize(
    "offsets",
    [{}, {"query_offset": 4}, {"query_offset": 2, "key_offset": 3}, {"key_offset": 8}],
    ids=["last", "from 4", "both", "last keys"],
)
def test_offsets_reach_the_kernel(offsets):
    q, k, v = triple(tokens=3, keys=9 if "key_offset" in offsets else 17)
    out = st.attention(q, k, v, MIXED, **offsets)
    arrays = [t.detach().numpy() for t in (q, k, v)]
    want, lse = ops.attention(*arrays, MIXED, **offsets)
    np.testing.assert_array_equal(out.detach().numpy(), want)
    grads = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    wanted = ops.attention_backward(np.ones_like(want), *arrays, want, lse, MIXED, **offsets)
    for got, expected in zip(grads, wanted, strict=True):
        np.testing.assert_array_equal(got.numpy(), expected)


def test_dropout_follows_torchs_seed():
    q, k, v = triple(grad=False)

    def call(seed):
        torch.manual_seed(seed)
        return st.attention(q, k, v, MIXED, dropout=0.5)

    first = call(1)
    torch.testing.assert_close(call(1), first, rtol=0, atol=0)
    assert not torch.equal(call(2), first)
    torch.manual_seed(1)
    assert not torch.equal(*(st.attention(q, k, v, MIXED, dropout=0.5) for _ in range(2)))
    state = torch.get_rng_state()
    st.attention(q, k, v, MIXED)
    assert torch.equal(torch.get_rng_state(), state)
    as_tensor = st.attention(q, k, v, MIXED, dropout=0.5, seed=torch.tensor(-7))
    torch.testing.assert_close(
        st.attention(q, k, v, MIXED, dropout=0.5, seed=2**64 - 7), as_tensor, rtol=0, atol=0
    )


def test_a_checkpointed_module_draws_the_same_dropout_again():
    q, k, v = triple()

    def attend(q):
        return st.attention(q, k, v, MIXED, dropout=0.5).square()

    grads = []
    for call in (attend, lambda q: torch.utils.checkpoint.checkpoint(attend, q, use_reentrant=False)):
        torch.manual_seed(3)
        grads += torch.autograd.grad(call(q).sum(), q)
    torch.testing.assert_close(*grads, rtol=0, atol=0)


# Under torch.compile


class Attend(torch.nn.Module):
    def __init__(self, layout):
        super().__init__()
        self.layout = layout
        self.project = torch.nn.Linear(16, 48)
        self.out = torch.nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.project(x).view(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4)
        heads = st.attention(q, k, v, self.layout)
        return x + self.out(heads.transpose(1, 2).reshape(x.shape))


def counted():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    return graphs, backend


@pytest.fixture(autouse=True)
def _forget_graphs():
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_module_compiles_in_one_graph(backend):
    torch.manual_seed(0)
    module = Attend(MIXED)
    x = draw(2, 17, 16, dtype=torch.float32)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    results = []
    for call in (module, compiled):
        out = call(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *module.parameters()])])
    for ours, want in zip(*results, strict=True):
        torch.testing.assert_close(ours, want)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_every_operator_compiles(backend):
    x, w, matrix, targets = draw(5, 8), draw(8), draw(8, 8), torch.arange(5)

    def chain(x, w, matrix):
        x = st.layer_norm(st.gelu(x), w) + st.rms_norm(st.silu(x), w)
        x = st.linear(x, matrix, w, activation="silu", residual=x) + st.embedding(x, targets)
        return st.cross_entropy(x, targets)

    want = chain(x, w, matrix)
    got = torch.compile(chain, fullgraph=True, backend=backend)(x, w, matrix)
    torch.testing.assert_close(got, want)
    for ours, theirs in zip(*(torch.autograd.grad(end, (x, w, matrix)) for end in (got, want)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_another_layout_makes_another_graph_and_an_equal_one_does_not():
    graphs, backend = counted()
    module = Attend(MIXED)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    x = draw(2, 17, 16, dtype=torch.float32, grad=False)
    torch.testing.assert_close(compiled(x), module(x))
    module.layout = OTHER
    torch.testing.assert_close(compiled(x), module(x))
    assert len(graphs) == 2
    module.layout = Layout(MIXED.segments)
    torch.testing.assert_close(compiled(x), module(x))
    module.layout = LISTED
    torch.testing.assert_close(compiled(x), module(x))
    assert len(graphs) == 3
    module.layout = LISTED[::-1]
    torch.testing.assert_close(compiled(x), module(x))
    assert len(graphs) == 4


def test_layouts_as_tensors_share_a_graph():
    graphs, backend = counted()
    compiled = torch.compile(st.self_attention, fullgraph=True, backend=backend)
    qkv = draw(1, 17, 3, 2, 8, grad=False)
    seen = []
    for cut in range(1, 17):
        layout = Layout([Segment("causal", cut), Segment("full", 17 - cut)])
        seen.append(compiled(qkv, st.layout_tensor(layout)))
        np.testing.assert_array_equal(seen[-1].numpy(), ops.self_attention(qkv.numpy(), layout)[0])
    assert len({out.numpy().tobytes() for out in seen}) > 10
    assert len(graphs) <= 2  # the second one for any length of the text


def test_sizes_and_offsets_are_symbols_of_one_graph():
    graphs, backend = counted()

    def last(q, k, v, offset):
        return st.attention(q, k, v, LONG, query_offset=offset, key_offset=0)

    LONG = Layout([Segment("causal", 40), Segment("full", 24)])
    compiled = torch.compile(last, fullgraph=True, backend=backend, dynamic=True)
    for n, keys, offset in [(3, 20, 9), (5, 30, 12), (7, 33, 40)]:
        q, k, v = triple(tokens=n, keys=keys, grad=False)
        np.testing.assert_array_equal(compiled(q, k, v, offset).numpy(), last(q, k, v, offset).numpy())
    assert len(graphs) == 1


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_module_draws_another_dropout_in_every_call(backend):
    q, k, v = triple(grad=False)
    compiled = torch.compile(
        lambda q: st.attention(q, k, v, MIXED, dropout=0.5), fullgraph=True, backend=backend
    )
    assert len({compiled(q).numpy().tobytes() for _ in range(5)}) == 5


def test_a_scale_that_changes_is_the_one_that_counts():
    q, k, v = triple(grad=False)

    def attend(scale, softcap):
        return st.attention(q, k, v, MIXED, scale=scale, softcap=softcap)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for scale, cap in [(0.5, None), (0.25, None), (0.1, 3.0), (1 / 3, 5.0), (-1, 5.0), (0.25, None)]:
        np.testing.assert_array_equal(compiled(scale, cap).numpy(), attend(scale, cap).numpy())


def test_a_rotary_that_changes_is_the_one_that_counts():
    q, k, v = triple(grad=False)

    def attend(rotary):
        return st.attention(q, k, v, MIXED, rotary=rotary)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for rotary in (
        ops.Rotary(),
        ops.Rotary(50.0),
        ops.Rotary(7.0),
        ops.Rotary(7.0, 4),
        ops.Rotary(7.0, 6),
        TURN,
    ):
        np.testing.assert_array_equal(compiled(rotary).numpy(), attend(rotary).numpy())


def test_seeds_share_a_graph():
    graphs, backend = counted()
    q, k, v = triple(grad=False)

    def attend(seed):
        return st.attention(q, k, v, MIXED, dropout=0.5, seed=seed)

    compiled = torch.compile(attend, fullgraph=True, backend=backend)
    for seed in range(2, 8):
        np.testing.assert_array_equal(compiled(seed).numpy(), attend(seed).numpy())
    assert len(graphs) <= 2  # the second one for any seed


def test_a_rotary_is_guarded_on():
    graphs, backend = counted()
    x = draw(2, 3, 5, 8, grad=False)
    compiled = torch.compile(st.rotary, fullgraph=True, backend=backend)
    for how in (ops.Rotary(), ops.Rotary(interleaved=True), ops.Rotary(width=4), ops.Rotary()):
        np.testing.assert_array_equal(compiled(x, how).numpy(), ops.rotary(x.numpy(), how))
    assert len(graphs) == 3


def test_a_module_is_exported():
    module = Attend(MIXED)
    x = draw(2, 17, 16, dtype=torch.float32, grad=False)
    program = torch.export.export(module, (x,))
    assert "(causal5 full6h full6)" in str(program.graph)
    torch.testing.assert_close(program.module()(x), module(x))


# Memory


def test_nothing_is_copied(monkeypatch):
    seen = {}
    attention = ops.attention

    def spy(q, k, v, **how):
        out, lse = attention(q, k, v, **how)
        seen.update(q=q, k=k, v=v, out=out, lse=lse)
        return out, lse

    monkeypatch.setattr(ops, "attention", spy)
    p = packed(2, 17, 6, 8, dtype=torch.float32)
    q, k, v = p.split(2, dim=1)
    out, lse = st.attention(q, k, v, MIXED, return_lse=True)
    for name, tensor in {"q": q, "k": k, "v": v, "out": out, "lse": lse}.items():
        assert tensor.data_ptr() == seen[name].ctypes.data, name
        assert tuple(4 * s for s in tensor.stride()) == seen[name].strides, name
    assert out.transpose(1, 2).is_contiguous()  # as q was


def test_results_cross_over_without_copies():
    q, k, v = triple(grad=False, dtype=torch.float32)
    out = st.attention(q, k, v, MIXED)
    array = np.from_dlpack(out)
    assert array.ctypes.data == out.data_ptr()
    again, lse = ops.attention(array, k.numpy(), v.numpy(), MIXED)
    for result in (again, lse):
        assert torch.from_dlpack(result).data_ptr() == result.ctypes.data
        assert torch.from_numpy(result).data_ptr() == result.ctypes.data


def test_arrays_and_tensors_are_taken_alike_by_ops():
    q, k, v = triple(grad=False)
    want, _ = ops.attention(q.numpy(), k.numpy(), v.numpy(), MIXED)
    got, _ = ops.attention(q, k, v, MIXED)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("form", ["packed", "strided", "fortran"])
def test_strides_do_not_matter(form):
    q, k, v = triple(grad=False)
    want = st.attention(q, k, v, MIXED)
    q, k, v = (torch.from_numpy(in_form(t.numpy(), form)) for t in (q, k, v))
    torch.testing.assert_close(st.attention(q, k, v, MIXED), want, rtol=0, atol=0)


def test_expanded_and_conjugate_views_are_read_right():
    q, k, v = triple(kv_heads=1, grad=False)
    k, v = k.expand(2, 4, 17, 8), v.expand(2, 4, 17, 8)
    want = st.attention(q, k.contiguous(), v.contiguous(), MIXED)
    torch.testing.assert_close(st.attention(q, k, v, MIXED), want, rtol=0, atol=0)
    negated = torch.complex(torch.zeros_like(q), -q).conj().imag
    assert negated.is_neg()
    torch.testing.assert_close(st.attention(negated, k, v, MIXED), want, rtol=0, atol=0)


def test_gradients_of_expanded_results():
    q, k, v = triple()
    (got,) = torch.autograd.grad(st.attention(q, k, v, MIXED).sum(), q)  # its gradient has strides of 0
    (want,) = torch.autograd.grad(st.attention(q, k, v, MIXED), q, torch.ones_like(q))
    torch.testing.assert_close(got, want, rtol=0, atol=0)


# In company


def test_threads_with_layouts_of_their_own():
    q, k, v = triple(grad=False)
    wrong, barrier = [], threading.Barrier(4)

    def work(seed):
        barrier.wait()
        for cut in range(1, 17):
            layout = Layout([Segment("causal", cut), Segment("full", 17 - cut)], window=seed % 2)
            given_layout = st.layout_tensor(layout) if seed > 1 else layout
            got = st.attention(q, k, v, given_layout)
            want = ops.attention(q.numpy(), k.numpy(), v.numpy(), layout, return_lse=False)
            if not np.array_equal(got.numpy(), want):
                wrong.append(layout)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_more_layouts_than_are_kept():
    q, k, v = triple(tokens=600, keys=600, width=1, grad=False)
    for _ in range(2):
        for cut in range(1, 400):
            layout = Layout([Segment("full", cut)]).padded(600)
            assert int((st.attention(q, k, v, layout)[0, 0, :, 0] != 0).sum()) == cut
    assert st._layouts._read.cache_info().currsize == st._layouts._KEPT


def test_vmap_is_a_loop():
    q, k, v = triple(grad=False)
    many = torch.stack([q, q + 1, q - 1], dim=2)
    got = torch.vmap(lambda q: st.attention(q, k, v, MIXED), in_dims=2)(many)
    want = torch.stack([st.attention(q, k, v, MIXED) for q in many.unbind(2)])
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    rows = draw(4, 3, 8, grad=False)
    torch.testing.assert_close(torch.vmap(st.gelu)(rows), st.gelu(rows), rtol=0, atol=0)
    with pytest.raises(sensorium.ArgumentError, match="axis of size 0"):
        torch.vmap(st.gelu)(rows[:0])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_lowers_attention_as_torch_lowers_its_own(dtype, compiled):
    project = torch.nn.Linear(8, 8)
    x = draw(2, 4, 17, 8, dtype=torch.float32, grad=False)

    def attend(x):
        half = project(x)
        return half, st.attention(half, half, x, MIXED)

    call = torch.compile(attend, fullgraph=True, backend="aot_eager") if compiled else attend
    with torch.autocast("cpu", dtype=dtype):
        half, out = call(x)
        packed_form = st.self_attention(torch.stack([x] * 3).permute(1, 3, 0, 2, 4), MIXED)
        double = st.attention(x.double(), x.double(), x.double(), MIXED)
    assert half.dtype == out.dtype == packed_form.dtype == dtype
    assert double.dtype == torch.float64
    assert torch.equal(out, st.attention(half, half, x.to(dtype), MIXED))
    assert call(x)[1].dtype == torch.float32
    out.sum().backward()
    assert project.weight.grad.dtype == torch.float32


def test_autocast_leaves_norms_and_losses_in_float32():
    x = draw(3, 8, dtype=torch.float32, grad=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch.nn.functional.linear(x, torch.eye(8))
        assert y.dtype == torch.bfloat16
        assert st.rms_norm(y, torch.ones(8)).dtype == torch.float32
        loss = st.cross_entropy(y, torch.tensor([0, 1, 2]))
        assert st.rotary(y).dtype == torch.bfloat16
    assert torch.equal(loss, st.cross_entropy(y.float(), torch.tensor([0, 1, 2])))


def test_bfloat16_without_ml_dtypes_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(
        sensorium.MissingExtraError, match=r"^q has dtype torch.bfloat16, for which NumPy needs"
    ):
        st.attention(*triple(dtype=torch.bfloat16, grad=False), MIXED)


def test_meta_tensors_have_the_shapes():
    q, k, v = (t.to("meta") for t in triple(tokens=3, grad=False))
    out, lse = st.attention(q, k, v, MIXED, return_lse=True)
    assert out.device.type == lse.device.type == "meta"
    assert (out.shape, lse.shape) == ((2, 4, 3, 8), (2, 4, 3))


# Refusals


def test_what_has_no_gradient_says_so():
    q, k, v = triple()
    out, lse = st.attention(q, k, v, MIXED, return_lse=True)
    assert out.requires_grad
    assert not lse.requires_grad
    logits, targets = draw(3, 4), torch.tensor([0, 1, 2])
    with pytest.raises(
        sensorium.ArgumentError, match=r"^weights requires a gradient, which cross_entropy does not have"
    ):
        st.cross_entropy(logits, targets, torch.ones(3, dtype=torch.float64, requires_grad=True))
    with pytest.raises(
        sensorium.ArgumentError, match=r"^alibi requires a gradient, which attention does not have"
    ):
        st.attention(q, k, v, MIXED, alibi=torch.ones(4, requires_grad=True))


@pytest.mark.parametrize(
    "name", [name for name in GRADIENTS if ":" not in name and name not in ("embedding", "rotary")]
)
def test_second_derivatives_are_refused(name):
    function, args = GRADIENTS[name]
    (grad,) = torch.autograd.grad(function(*args).square().sum(), args[:1], create_graph=True)
    with pytest.raises(
        NotImplementedError, match=rf"^the gradient of {name} has no gradient: first derivatives only"
    ):
        grad.sum().backward()


@pytest.mark.parametrize("grad", [False, True])
def test_forward_derivatives_are_refused(grad):
    from torch.autograd import forward_ad

    q, k, v = triple(grad=grad)
    words = r"attention has no forward-mode derivative"
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=words):
        st.attention(forward_ad.make_dual(q, q), k, v, MIXED)
    q, k, v = triple(grad=False)
    with pytest.raises(NotImplementedError, match=words):
        torch.func.jvp(lambda q: st.attention(q, k, v, MIXED), (q,), (q,))


def test_transformed_gradients_are_refused():
    q, k, v = triple(grad=False)
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda q: st.attention(q, k, v, MIXED).sum())(q)


WRONG = {
    "bfloat16": (
        lambda q, k, v: (q.bfloat16(), k, v),
        sensorium.DTypeError,
        "k has dtype float64 but q has bfloat16",
    ),
    "float16": (
        lambda q, k, v: (q, k.half(), v),
        sensorium.DTypeError,
        "k has dtype float16 but q has float64",
    ),
    "complex": (
        lambda q, k, v: (q, k, v + 0j),
        sensorium.DTypeError,
        "v has dtype complex128, expected",
    ),
    "integers": (
        lambda q, k, v: (q.long(), k, v),
        sensorium.DTypeError,
        "q has dtype int64, expected",
    ),
    "two dtypes": (
        lambda q, k, v: (q, k.float(), v),
        sensorium.DTypeError,
        "k has dtype float32 but q has float64",
    ),
    "sparse": (
        lambda q, k, v: (q, k.to_sparse(), v),
        sensorium.ArgumentError,
        "k is torch.sparse_coo, expected a dense",
    ),
    "device": (lambda q, k, v: (q, k, v.to("meta")), sensorium.ArgumentError, "v is on meta but q is on cpu"),
    "dimensions": (lambda q, k, v: (q[0], k, v), sensorium.ShapeError, "q has"),
    "width": (lambda q, k, v: (q, k[..., :3], v), sensorium.ShapeError, "k has D=3 but q has D=8"),
    "heads": (
        lambda q, k, v: (q[:, :3], k, v),
        sensorium.ArgumentError,
        "k has H_kv=2, which does not divide H=3 of q",
    ),
    "length": (lambda q, k, v: (q[:, :, 1:], k[:, :, 1:], v[:, :, 1:]), sensorium.ShapeError, "length 17"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tensors_are_named(name):
    spoil, kind, words = WRONG[name]
    with pytest.raises(kind, match=words):
        st.attention(*spoil(*triple(grad=False)), MIXED)


@pytest.mark.parametrize("name", [name for name in WRONG if name not in ("sparse", "device")])
def test_wrong_tensors_are_found_while_tracing(name):
    spoil, _, words = WRONG[name]
    words = re.sub(r"has (dtype )?(\w+\d)", r"has \1(torch.)?\2", words.split(", expected")[0])
    args = spoil(*triple(grad=False))
    with pytest.raises(RuntimeError, match=words):
        torch.compile(st.attention, fullgraph=True, backend="eager")(*args, MIXED)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"dropout": 0.1, "seed": -1}, sensorium.ArgumentError, "seed must be from 0"),
        ({"dropout": 1.5}, sensorium.ArgumentError, "dropout must be in"),
        ({"softcap": 0.0}, sensorium.ArgumentError, "softcap must be above 0"),
        ({"alibi": torch.ones(3)}, sensorium.ShapeError, "alibi has H=3 but q has H=4"),
        ({"scale": "big"}, sensorium.DTypeError, "scale must be a number, not str"),
        ({"scale": float("nan")}, sensorium.ArgumentError, "scale must be finite"),
        ({"dropout": 0.1, "seed": torch.zeros(2)}, sensorium.DTypeError, "seed has dtype float32 and shape"),
    ],
)
def test_wrong_options_are_named(options, kind, words):
    with pytest.raises(kind, match=words):
        st.attention(*triple(grad=False), MIXED, **options)


def test_a_wrong_rotary_is_named():
    with pytest.raises(sensorium.DTypeError, match="rotary must be a Rotary, not int"):
        st.rotary(draw(5, 8), 3)
    with pytest.raises(sensorium.DTypeError, match=r"x has dtype torch.float8_e5m2"):
        st.rotary(torch.zeros(5, 8, dtype=torch.float8_e5m2))


def test_a_tensor_of_a_graphics_card_is_refused():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        q = torch.empty(2, 4, 17, 8, device="cuda")
        with pytest.raises(
            sensorium.ArgumentError, match=r"^q is on cuda:0, expected a CPU tensor: move it with q.cpu()"
        ):
            st.attention(q, q, q, MIXED)


@pytest.mark.parametrize(
    ("layout", "kind", "words"),
    [
        (None, sensorium.DTypeError, "layout must be a Layout, or one for each sample, not NoneType"),
        ([MIXED, 3], sensorium.DTypeError, r"layout\[1\] must be a Layout, not int"),
        ([MIXED], sensorium.ShapeError, "layout has 1 layouts, expected B=2"),
        ([], sensorium.ShapeError, "layout has 0 layouts, expected B=2"),
        (torch.zeros(3), sensorium.DTypeError, "layout has dtype float32"),
        (torch.zeros(3, dtype=torch.uint8), sensorium.ArgumentError, "does not describe a layout"),
        (torch.full((3,), 200, dtype=torch.uint8), sensorium.ArgumentError, "does not describe a layout"),
    ],
)
def test_a_wrong_layout_is_named(layout, kind, words):
    q, k, v = triple(grad=False)
    with pytest.raises(kind, match=words):
        st.attention(q, k, v, layout)


def test_the_page_runs():
    page = Path(__file__).parents[1] / "docs" / "torch.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 3
    assert names["module"].qkv.weight.grad.abs().sum() > 0
    assert names["out"].shape == (1, 80, 128)
