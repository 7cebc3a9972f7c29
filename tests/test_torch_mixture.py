"""Mixtures of products as operators of PyTorch: what torch checks, and that they compute what `ops` does."""

import numpy as np
import pytest
import sensorium
from sensorium import ops

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install 'sensorium[torch]'")
import sensorium.torch as st  # noqa: E402 - needs torch
from torch_cases import QUIET, assert_same, draw, opcheck  # noqa: E402 - needs torch

pytestmark = QUIET
CALL = torch.ops.sensorium.mixture_of_products


def inputs(dtype=torch.float64, M=3, B=4, D=5, grad=True):
    return [draw(M, B, D, seed=seed, dtype=dtype, grad=grad) for seed in (0, 1)]


MASK = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.bool)
NOISE = draw(4, 5, seed=2, grad=False)
COMPONENT = torch.tensor([6, 3, 3, 0])


def samples():
    """Arguments of many kinds: what torch's checks are run over."""
    weights, mean, log = draw(3, 4, seed=3, low=0.1), draw(5, seed=4), draw(5, seed=5)
    for name, tensors, how in [
        ("least", inputs(), (None, None, None, None, True, [], None, None, 7, "stratified")),
        ("float32", inputs(torch.float32), (None, None, None, None, False, [], None, None, 7, "sampled")),
        ("all", inputs(), (MASK, weights, mean, log, False, [4, 7, 1], None, NOISE, 3, "stratified")),
        ("given", inputs(), (MASK, None, None, None, True, [], COMPONENT, NOISE, None, "stratified")),
        ("no row", inputs(B=0), (None, None, None, None, True, [], None, None, 7, "stratified")),
    ]:
        yield name, (*tensors, *how)


SAMPLES = list(samples())


@pytest.mark.parametrize("args", [s[1] for s in SAMPLES], ids=[s[0] for s in SAMPLES])
def test_torch_accepts_the_operator(args):
    opcheck(CALL, args)


def test_gradients_are_those_of_differences():
    weights, mean, log = draw(3, 4, seed=3, low=0.1), draw(5, seed=4), draw(5, seed=5)

    def function(mu, logvar, weights, mean, log):
        how = {"mask": MASK, "weights": weights, "prior": (mean, log), "noise": NOISE, "component": COMPONENT}
        return st.mixture_of_products(mu, logvar, **how)[:2]

    assert torch.autograd.gradcheck(function, (*inputs(), weights, mean, log))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_that_of_ops_bit_for_bit(dtype):
    mu, logvar = inputs(dtype)
    how = {"subsets": [[0], [1, 2], [2]], "rng": 11}
    got = st.mixture_of_products(mu, logvar, mask=MASK, **how)
    arrays = mu.detach().numpy(), logvar.detach().numpy()
    want = ops.mixture_of_products(*arrays, mask=MASK.numpy(), **how)
    assert_same(got, want)
    seeds = draw(4, 5, dtype=dtype, seed=8, grad=False), draw(4, dtype=dtype, seed=9, grad=False)
    grads = torch.autograd.grad(got[:2], (mu, logvar), seeds)
    slopes = ops.mixture_of_products_backward(
        *(s.numpy() for s in seeds), *arrays, mask=MASK.numpy(), component=want.component, **how
    )
    assert_same(grads, slopes[:2])


def test_dicts_and_names():
    mu, logvar = inputs()
    names = ("eye", "ear", "word")
    by_name = [dict(zip(names, t, strict=True)) for t in (mu, logvar)]
    want = st.mixture_of_products(mu, logvar, subsets=[[2], [0, 2]], component=COMPONENT % 2, noise=NOISE)
    how = {"subsets": [["word"], ["eye", "word"]], "component": COMPONENT % 2, "noise": NOISE}
    got = st.mixture_of_products(*by_name, **how)
    assert_same(got, [t.detach().numpy() for t in want])


def test_it_compiles_in_one_graph():
    def block(mu, logvar):
        z, kl, _ = st.mixture_of_products(mu.tanh(), logvar, component=COMPONENT, noise=NOISE)
        return z.square().sum() + kl.sum()

    tensors = inputs()
    results = []
    for call in (block, torch.compile(block, fullgraph=True, backend="aot_eager")):
        out = call(*tensors)
        results.append([out, *torch.autograd.grad(out, tensors)])
    torch.compiler.reset()
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_noise_is_torchs_own_where_there_is_no_seed():
    mu, logvar = inputs()
    torch.manual_seed(3)
    got = st.mixture_of_products(mu, logvar, component=COMPONENT)
    torch.manual_seed(3)
    noise = torch.randn_like(mu[0])
    want = st.mixture_of_products(mu, logvar, component=COMPONENT, noise=noise)
    np.testing.assert_array_equal(got.z.detach(), want.z.detach())


def test_wrong_arguments_are_named():
    mu, logvar = inputs(grad=False)
    for how, kind, words in [
        ({}, sensorium.ArgumentError, "component or rng must be given"),
        ({"rng": 1, "subsets": [[3]]}, sensorium.ArgumentError, r"subsets\[0\] must be at most 2"),
        ({"rng": 1, "subsets": []}, sensorium.ArgumentError, "subsets is empty"),
        ({"rng": 1, "subsets": [[]]}, sensorium.ArgumentError, r"subsets\[0\] is empty"),
        ({"rng": 1, "noise": NOISE[:2]}, sensorium.ShapeError, "noise has shape"),
        ({"component": COMPONENT[:2], "noise": NOISE}, sensorium.ShapeError, "component has shape"),
    ]:
        with pytest.raises(kind, match=words):
            st.mixture_of_products(mu, logvar, **how)
    with pytest.raises(sensorium.ArgumentError, match="which mu does not have"):
        st.mixture_of_products({"eye": mu[0]}, {"eye": logvar[0]}, rng=1, subsets=[["ear"]])
