"""Gaussian experts as operators of PyTorch: what torch checks, and that they compute what `ops` does."""

import numpy as np
import pytest
import sensorium
from sensorium import ops

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'sensorium[torch]'")
import sensorium.torch as st  # noqa: E402 - needs torch
from torch_cases import QUIET, arrays, assert_same, draw, opcheck  # noqa: E402 - needs torch

pytestmark = QUIET
CALLS = torch.ops.sensorium
M, B, D = 3, 2, 5
MASK = torch.tensor([[True, False], [True, True], [False, True]])


def inputs(weighted=True, pair=True, **how):
    """Tensors in the order of the operators: mu, logvar, mask, weights, mean and logvar of the prior, whether it is standard."""
    mu, logvar = draw(M, B, D, **how), draw(M, B, D, seed=1, **how)
    weights = draw(M, B, low=0.5, **how) if weighted else None
    prior = [draw(D, seed=2, **how), draw(D, seed=3, **how)] if pair else [None, None]
    return [mu, logvar, MASK if weighted else None, weights, *prior, not pair]


def samples():
    """Operator and arguments of many kinds: what torch's checks are run over."""
    noise = draw(B, D, seed=4, grad=False)
    for name, given in [
        ("all", inputs()),
        ("float32", inputs(dtype=torch.float32)),
        ("least", inputs(weighted=False, pair=False)),
    ]:
        yield f"product_of_experts: {name}", CALLS.product_of_experts, given
        drawn = noise.to(given[0].dtype)
        yield f"fused_posterior: {name}", CALLS.fused_posterior, [*given, drawn, None, True]
        yield f"fused_posterior: {name}, drawn", CALLS.fused_posterior, [*given, None, 7, False]


SAMPLES = list(samples())


@pytest.mark.parametrize(("call", "args"), [s[1:] for s in SAMPLES], ids=[s[0] for s in SAMPLES])
def test_torch_accepts_the_operator(call, args):
    opcheck(call, tuple(args))


@pytest.mark.parametrize("moments", [True, False])
def test_gradients_are_those_of_differences(moments):
    mu, logvar, mask, weights, mean, log, _ = inputs()

    def function(mu, logvar, weights, mean, log):
        how = {"mask": mask, "weights": weights, "prior": (mean, log), "rng": 3, "moments": moments}
        return tuple(part for part in st.fused_posterior(mu, logvar, **how) if part is not None)

    assert torch.autograd.gradcheck(function, (mu, logvar, weights, mean, log))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_that_of_ops_bit_for_bit(dtype):
    mu, logvar, mask, weights, mean, log, _ = inputs(dtype=dtype)
    got = st.fused_posterior(mu, logvar, mask=mask, weights=weights, prior=(mean, log), rng=11)
    a, b, w, m, v = arrays((mu, logvar, weights, mean, log))
    how = {"mask": mask.numpy(), "weights": w, "prior": (m, v)}
    assert_same(got, ops.fused_posterior(a, b, **how, rng=11))
    seeds = [draw(*part.shape, dtype=dtype, seed=9, grad=False) for part in got]
    grads = torch.autograd.grad(got, (mu, logvar, weights, mean, log), seeds)
    dz, dkl, dmean, dlog = arrays(seeds)
    want = ops.fused_posterior_backward(dz, dkl, a, b, **how, rng=11, grad_mean=dmean, grad_logvar=dlog)
    assert_same(grads, (want.mu, want.logvar, want.weights, *want.prior))
    got = st.product_of_experts(mu, logvar, mask=mask, weights=weights, prior=(mean, log))
    assert_same(got, ops.product_of_experts(a, b, **how))


def test_dicts_are_stacked_and_differentiated():
    mu, logvar, *_ = inputs()
    names = ("eye", "ear", "word")
    first, second = (dict(zip(names, tensor.unbind(), strict=True)) for tensor in (mu, logvar))
    how = {
        "mask": {"word": MASK[2], "eye": MASK[0], "ear": True},
        "weights": {"eye": 1.0, "ear": 2.0, "word": 0.5},
    }
    got = st.fused_posterior(first, second, **how, rng=1)
    how = {"mask": MASK.numpy(), "weights": np.array([1.0, 2.0, 0.5])}
    assert_same(got, ops.fused_posterior(*arrays((mu, logvar)), **how, rng=1))
    (grad,) = torch.autograd.grad(got.kl.sum(), mu)
    want = ops.fused_posterior_backward(None, np.ones(B), *arrays((mu, logvar)), **how, rng=1)
    assert_same([grad], [want.mu])


def test_noise_of_torch_where_none_is_asked_for():
    mu, logvar = (x.detach() for x in inputs()[:2])
    torch.manual_seed(3)
    one = st.fused_posterior(mu, logvar)
    torch.manual_seed(3)
    noise = torch.randn_like(mu[0])
    assert_same(one, ops.fused_posterior(*arrays((mu, logvar)), noise=noise.numpy()))


def test_it_compiles_in_one_graph():
    def block(mu, logvar):
        z, kl, _, _ = st.fused_posterior(mu.tanh(), logvar, rng=5, moments=False)
        return z.square().sum() + kl.sum()

    mu, logvar = inputs()[:2]
    results = []
    for call in (block, torch.compile(block, fullgraph=True, backend="aot_eager")):
        out = call(mu, logvar)
        results.append([out, *torch.autograd.grad(out, (mu, logvar))])
    torch.compiler.reset()
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_wrong_tensors_are_named():
    mu, logvar = inputs(grad=False)[:2]
    for args, how, kind, words in [
        ((mu, logvar[..., :2]), {}, sensorium.ShapeError, "logvar has D=2"),
        ((mu.half(), logvar), {}, sensorium.DTypeError, "mu has dtype float16"),
        ((mu, logvar.to("meta")), {}, sensorium.ArgumentError, "logvar is on meta"),
        (({}, {}), {}, sensorium.ArgumentError, "mu has no expert"),
        (
            ({"a": mu[0]}, {"b": mu[0]}),
            {},
            sensorium.ArgumentError,
            "logvar must be a dict with the keys of mu: 'a'",
        ),
        ((mu, {"a": mu[0]}), {}, sensorium.ArgumentError, "logvar must be a tensor, as mu is"),
        ((mu, logvar), {"prior": None}, sensorium.ArgumentError, "prior must be True, False, or a pair"),
        ((mu, logvar), {"mask": ~MASK & False, "prior": False}, sensorium.ArgumentError, "mask leaves row 0"),
        ((mu, logvar), {"rng": 2**63}, sensorium.ArgumentError, "rng must be at most"),
        (
            (mu, logvar),
            {"noise": mu[0], "rng": 1},
            sensorium.ArgumentError,
            "noise and rng cannot both be given",
        ),
    ]:
        with pytest.raises(kind, match=words):
            st.fused_posterior(*args, **how)
