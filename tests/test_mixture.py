"""Mixtures of products of experts against their float64 reference, with bounds that are derived; and their laws.

Precisions are sums of at most M + 1 positive terms of two roundings each, so that a product is right to (M + 3) u and
its mean to twice that of the mean of magnitudes; a division for four subsets adds 4 u. What is summed over subsets and
columns rounds once a term of a lane and once a lane. From logarithms, a logarithm l is right to u |l| for each expert
that joins, and an exponential of it to as many times itself.
"""

from dataclasses import dataclass

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
import sensorium
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from reference import mixture as reference
from sensorium import autodiff, ops
from sensorium.errors import ArgumentError, DTypeError, ShapeError


@dataclass
class Case:
    mu: np.ndarray
    logvar: np.ndarray
    how: dict
    component: np.ndarray
    noise: np.ndarray
    grad_z: np.ndarray
    grad_kl: np.ndarray

    def __repr__(self):
        kinds = {
            k: v if isinstance(v, (bool, list)) else getattr(v, "shape", "pair") for k, v in self.how.items()
        }
        return f"mu{self.mu.shape} {self.mu.dtype} {kinds}"


def eligible(M, B, how):
    """Numbers of the subsets that each row has."""
    present = np.broadcast_to(how.get("mask", True), (M, B)).copy()
    if "weights" in how:
        present &= np.broadcast_to((how["weights"] > 0).reshape(M, -1), (M, B))
    subsets = how.get("subsets") or reference.all_subsets(M)
    return [[k for k, s in enumerate(subsets) if present[list(s), b].all()] for b in range(B)]


def in_form(array, form):
    """The same numbers, held in memory in another way."""
    if form == "halves":  # of the rows of an encoder
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
        wide[..., : array.shape[-1]] = array
        return wide[..., : array.shape[-1]]
    if form == "swapped":
        array = array.astype(array.dtype.newbyteorder())
    if form == "reversed":
        array = array[:, ::-1, ::-1].copy()[:, ::-1, ::-1]
    array.flags.writeable = False
    return array


@st.composite
def cases(draw, dtypes=(np.float32, np.float64), spread=(1.0, 1.0, 9.0)):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    M, B = draw(st.integers(1, 6)), draw(st.sampled_from([1, 2, 5, 0]))
    D = draw(st.sampled_from([1, 3, 8, 16, 17, 40, 130, 0]))
    dtype = draw(st.sampled_from(dtypes))
    how = {}
    if draw(st.booleans()):
        listed = reference.all_subsets(M)
        picked = [listed[i] for i in rng.permutation(len(listed))[: rng.integers(1, len(listed) + 1)]]
        how["subsets"] = [*{*picked, *((m,) for m in range(M))}]
    if draw(st.booleans()):
        how["mask"] = rng.random((M, B)) < 0.7
        how["mask"][rng.integers(M, size=B), np.arange(B)] = True
    if draw(st.booleans()):
        how["weights"] = rng.uniform(0.1, 3, (M, B) if draw(st.booleans()) else (M,)).astype(dtype)
    prior = draw(st.sampled_from(["standard", "none", "pair"]))
    how["prior"] = {"standard": True, "none": False}.get(prior, ())
    if prior == "pair":
        how["prior"] = (rng.normal(size=D).astype(dtype), rng.uniform(-1, 1, D).astype(dtype))
    component = np.array([rng.choice(row) for row in eligible(M, B, how)], dtype=np.int64)
    scale = draw(st.sampled_from(spread))
    arrays = [rng.normal(size=(M, B, D)), rng.normal(scale=scale, size=(M, B, D)).clip(-60, 60)]
    form = draw(st.sampled_from(["plain", "halves", "swapped", "reversed"]))
    mu, logvar = (in_form(a.astype(dtype), form) for a in arrays)
    noise, grad_z = rng.normal(size=(2, B, D)).astype(dtype)
    return Case(mu, logvar, how, component, noise, grad_z, rng.normal(size=B).astype(dtype))


def close(got, want, slack):
    assert got.shape == want.shape
    excess = np.abs(got - want) - slack
    assert not np.isnan(excess).any()
    assert (excess <= 0).all(), f"worst excess {excess.max():.3g}"


def agree(case):
    M, _, D = case.mu.shape
    dtype = case.noise.dtype
    draw = {"component": case.component, "noise": case.noise}
    got = ops.mixture_of_products(case.mu, case.logvar, **case.how, **draw)
    assert got.z.dtype == got.kl.dtype == dtype
    assert_array_equal(got.component, case.component)
    z, kl, size = reference.mixture_of_products(case.mu, case.logvar, **case.how, **draw)
    logs = np.abs(case.logvar.astype(float)).max(initial=0)
    unit = np.finfo(dtype).eps / 2 * (4 * (M + 5) + M * logs)
    terms = np.finfo(dtype).eps / 2 * (D / 4 + 2**M / 4 + 8)
    reach = np.abs(case.mu).max(initial=0) + 2
    spread = np.abs(z) + reach + np.abs(z - reach)
    close(got.z, z, unit * spread)
    close(got.kl, kl, (unit + terms) * size)
    grads = ops.mixture_of_products_backward(
        case.grad_z, case.grad_kl, case.mu, case.logvar, **case.how, **draw
    )
    want, most = reference.mixture_of_products_backward(
        case.grad_z, case.grad_kl, case.mu, case.logvar, **case.how, **draw
    )
    tiny = np.finfo(dtype).tiny
    close(grads.mu, want[0], (2 * unit + terms) * most[0] + tiny)
    close(grads.logvar, want[1], (2 * unit + terms) * most[1] + tiny)
    if "weights" in case.how:
        one = case.how["weights"].ndim == 1
        slack = (2 * unit + 2 * terms) * most[2] + tiny
        close(grads.weights, want[2].sum(1) if one else want[2], slack.sum(1) if one else slack)
    if isinstance(case.how["prior"], tuple):
        close(np.array(grads.prior), want[3], (3 * unit + 2 * terms) * most[3] + tiny)


@given(case=cases())
def test_agrees_with_the_reference(case):
    agree(case)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=8)
@given(data=st.data())
def test_agrees_at_every_level(dtype, data):
    agree(data.draw(cases((dtype,), (1.0, 25.0))))


@pytest.mark.parametrize("M", [8, 12])
def test_many_experts_agree(M):
    rng = np.random.default_rng(M)
    mu, logvar = rng.normal(size=(2, M, 2, 20)).astype(np.float32)
    noise = rng.normal(size=(2, 20)).astype(np.float32)
    how = {"prior": True}
    if M == 12:  # of 4,095 some
        listed = reference.all_subsets(M)
        how["subsets"] = [listed[i] for i in rng.permutation(len(listed))[:60]]
    component = np.array([59, 7])
    agree(Case(mu, logvar, how, component, noise, noise[::-1], np.float32([1.0, -0.5])))


def draw_case(M=4, B=6, D=21, dtype=np.float32, seed=0, logs=1.0):
    rng = np.random.default_rng(seed)
    mu, logvar = rng.normal(size=(2, M, B, D))
    noise, grad = rng.normal(size=(2, B, D)).astype(dtype)
    return mu.astype(dtype), (logs * logvar).astype(dtype), noise, grad, rng.normal(size=B).astype(dtype)


@pytest.mark.parametrize("prior", [True, False])
@pytest.mark.parametrize("way", ["mask", "weights"])
def test_missing_is_the_same_as_removed_and_is_not_read(prior, way):
    mu, logvar, noise, grad, grad_kl = draw_case()
    keep = [0, 2, 3]
    component = np.array([0, 1, 2, 4, 6, 3])  # of the three that are kept
    wider = {s: k for k, s in enumerate(reference.all_subsets(4))}
    mapped = [wider[tuple(keep[m] for m in reference.all_subsets(3)[k])] for k in component]
    how = {"noise": noise, "prior": prior}
    want = ops.mixture_of_products(mu[keep], logvar[keep], component=component, **how)
    slopes = ops.mixture_of_products_backward(
        grad, grad_kl, mu[keep], logvar[keep], component=component, **how
    )
    held = np.array([True, False, True, True])
    how |= {way: held if way == "mask" else held.astype(np.float32)}
    for nothing in (0.0, np.nan, np.inf, 1e30):
        mu[1] = logvar[1] = nothing
        got = ops.mixture_of_products(mu, logvar, component=mapped, **how)
        assert_array_equal(got.z, want.z)
        assert_array_equal(got.kl, want.kl)
        grads = ops.mixture_of_products_backward(grad, grad_kl, mu, logvar, component=mapped, **how)
        for one, ref in ((grads.mu, slopes.mu), (grads.logvar, slopes.logvar)):
            assert_array_equal(one[keep], ref)
            assert_array_equal(one[1], 0)
        parts = ops.subset_products(mu, logvar, prior=prior, **{way: how[way]})
        assert np.isfinite(parts.mean).all()
        sample = ops.mixture_of_experts(mu, logvar, rng=1, **{way: how[way]})
        assert np.isfinite(sample.z).all()
        assert (sample.component != 1).all()
        density = ops.gaussian_mixture_log_prob(grad, mu, logvar, **{way: how[way]})
        ref = ops.gaussian_mixture_log_prob(grad, mu[keep], logvar[keep])
        np.testing.assert_allclose(density, ref, rtol=1e-6)


@pytest.mark.parametrize("prior", [True, False, "pair"])
def test_one_modality_is_a_product(prior):
    mu, logvar, noise, *_ = draw_case(M=1, dtype=np.float64)
    if prior == "pair":
        prior = (noise[0], noise[1])
    got = ops.mixture_of_products(mu, logvar, component=[0] * 6, noise=noise, prior=prior)
    want = ops.fused_posterior(mu, logvar, noise=noise, prior=prior)
    np.testing.assert_allclose(got.z, want.z, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(got.kl, want.kl, rtol=1e-12)


def test_the_full_subset_alone_is_the_product_of_all():
    mu, logvar, noise, grad, grad_kl = draw_case(dtype=np.float64)
    how = {"noise": noise, "weights": np.array([0.5, 1.0, 2.0, 3.0])}
    subset = {"subsets": [range(4)], "component": [0] * 6}
    got = ops.mixture_of_products(mu, logvar, **subset, **how)
    want = ops.fused_posterior(mu, logvar, **how)
    np.testing.assert_allclose(got.z, want.z, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(got.kl, want.kl, rtol=1e-12)
    grads = ops.mixture_of_products_backward(grad, grad_kl, mu, logvar, **subset, **how)
    for one, ref in zip(
        grads[:3], ops.fused_posterior_backward(grad, grad_kl, mu, logvar, **how), strict=False
    ):
        np.testing.assert_allclose(one, ref, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("prior", [True, False])
@pytest.mark.parametrize("logs", [(-200, 200), (-200, -190), (190, 200), (-30, 30)])
def test_any_logarithm_of_a_variance(logs, prior):
    """Experts that differ by hundreds, in every order; subsets of the imprecise alone among them."""
    rng = np.random.default_rng(1)
    mu = rng.normal(size=(4, 7, 19)).astype(np.float32)
    logvar = rng.uniform(*logs, size=mu.shape).astype(np.float32)
    noise, grad = rng.normal(size=(2, 7, 19)).astype(np.float32)
    component, grad_kl = np.arange(7) * 2, rng.normal(size=7).astype(np.float32)
    draw = {"component": component, "noise": noise, "prior": prior}
    got = ops.mixture_of_products(mu, logvar, **draw)
    grads = ops.mixture_of_products_backward(grad, grad_kl, mu, logvar, **draw)
    for array in (got.z, got.kl, grads.mu, grads.logvar):
        assert np.isfinite(array).all()
    z, kl, size = reference.mixture_of_products(mu, logvar, **draw)
    want, most = reference.mixture_of_products_backward(grad, grad_kl, mu, logvar, **draw)
    unit = np.finfo(np.float32).eps * 4 * (1 + max(map(abs, logs)))
    if prior or logs[1] < 80:  # otherwise some variance is beyond what float32 holds
        close(got.kl, kl, unit * size)
        close(got.z, z, unit * (np.abs(z) + 4 + np.abs(z) * 4))
        close(grads.mu, want[0], unit * most[0] + 1e-37)
        close(grads.logvar, want[1], unit * most[1] + 1e-37)
    else:
        assert (got.kl > 1e30).all()
    parts = ops.subset_products(mu, logvar, prior=prior)
    for k, subset in enumerate(parts.subsets):
        mean, log, _ = reference.product(
            mu.astype(float),
            logvar.astype(float),
            np.ones((4, 7)),
            (np.zeros(19), np.zeros(19)) if prior else None,
            subset,
        )
        close(parts.mean[k], mean, unit * np.abs(mu).max())
        close(parts.logvar[k], -log, unit * (1 + np.abs(log)))


def test_an_uninformative_expert_has_the_prior_for_its_subset():
    mu, logvar, noise, *_ = draw_case()
    logvar[1] = np.inf
    got = ops.mixture_of_products(mu, logvar, component=[1] * 6, noise=noise)  # the subset of that one
    assert_array_equal(got.z, noise)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_an_element_is_computed_by_depends_on_it_alone(dtype):
    mu, logvar, noise, grad, grad_kl = draw_case(D=40, dtype=dtype)
    how = {"component": [14] * 6, "noise": noise}
    want = ops.mixture_of_products(mu, logvar, **how)
    slopes = ops.mixture_of_products_backward(grad, grad_kl, mu, logvar, **how)
    at = (slice(None), slice(None), [3, 37])
    logvar[at], mu[at] = -900.0, 5.0
    got = ops.mixture_of_products(mu, logvar, **how)
    grads = ops.mixture_of_products_backward(grad, grad_kl, mu, logvar, **how)
    others = np.setdiff1d(np.arange(40), [3, 37])
    assert_array_equal(got.z[:, others], want.z[:, others])
    assert_array_equal(grads.mu[:, :, others], slopes.mu[:, :, others])
    assert_array_equal(grads.logvar[:, :, others], slopes.logvar[:, :, others])
    assert (got.kl > want.kl + 100).all()


def test_a_nan_stays_in_its_row():
    mu, logvar, noise, *_ = draw_case()
    want = ops.mixture_of_products(mu, logvar, component=[14] * 6, noise=noise)
    for array in (mu, logvar):
        kept = array[2, 3, 4]
        array[2, 3, 4] = np.nan
        got = ops.mixture_of_products(mu, logvar, component=[14] * 6, noise=noise)
        array[2, 3, 4] = kept
        assert np.isnan(got.kl[3])
        assert np.isnan(got.z[3, 4])
        rows = [0, 1, 2, 4, 5]
        assert_array_equal(got.z[rows], want.z[rows])
        assert_array_equal(got.kl[rows], want.kl[rows])


def test_threads_do_not_change_a_bit():
    mu, logvar, noise, grad, grad_kl = draw_case(M=5, B=301, D=70)
    mask = np.random.default_rng(3).random((5, 301)) < 0.8
    mask[0] = True
    prior = (noise[0], noise[1] / 4)
    results = []
    for n in (1, 2, 5):
        with sensorium.num_threads(n):
            got = ops.mixture_of_products(mu, logvar, mask=mask, prior=prior, rng=9)
            how = {"mask": mask, "prior": prior, "rng": 9, "component": got.component}
            grads = ops.mixture_of_products_backward(grad, grad_kl, mu, logvar, **how)
            results.append([*got, grads.mu, grads.logvar, *grads.prior])
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert_array_equal(one, two)


def test_noise_that_is_drawn_is_that_of_the_seed():
    mu, logvar, _, grad, grad_kl = draw_case()
    got = ops.mixture_of_products(mu, logvar, rng=5)
    noise = ops.normal_noise((6, 21), 5)
    same = ops.mixture_of_products(mu, logvar, component=got.component, noise=noise)
    assert_array_equal(got.z, same.z)
    given = {"component": got.component}
    drawn = ops.mixture_of_products_backward(grad, grad_kl, mu, logvar, rng=5, **given)
    kept = ops.mixture_of_products_backward(grad, grad_kl, mu, logvar, noise=noise, **given)
    assert_array_equal(drawn.mu, kept.mu)
    one = ops.mixture_of_products(mu, logvar, rng=np.random.default_rng(1))
    two = ops.mixture_of_products(mu, logvar, rng=np.random.default_rng(1))
    assert_array_equal(one.z, two.z)
    rng = np.random.default_rng(1)
    ops.mixture_of_products(mu, logvar, rng=rng)
    assert (ops.mixture_of_products(mu, logvar, rng=rng).z != one.z).any()


def test_dicts_give_what_arrays_give():
    mu, logvar, noise, grad, grad_kl = draw_case(M=3)
    names = ("eye", "ear", "word")
    by_name = [dict(zip(names, a, strict=True)) for a in (mu, logvar)]
    mask = np.random.default_rng(4).random((3, 6)) < 0.6
    mask[2] = True
    weights = np.float32([0.5, 2.0, 1.0])
    lists = [(2,), (0, 2), (0, 1, 2)]
    how = {"component": [0] * 6, "noise": noise}
    arrays = {"mask": mask, "weights": weights, "subsets": lists}
    dicts = {
        "mask": dict(zip(names, mask, strict=True)),
        "weights": dict(zip(names, weights, strict=True)),
        "subsets": [("word",), ("eye", "word"), ("ear", "eye", "word")],
    }
    want = ops.mixture_of_products(mu, logvar, **arrays, **how)
    got = ops.mixture_of_products(*by_name, **dicts, **how)
    assert_array_equal(got.z, want.z)
    assert_array_equal(got.kl, want.kl)
    slopes = ops.mixture_of_products_backward(grad, grad_kl, mu, logvar, **arrays, **how)
    grads = ops.mixture_of_products_backward(grad, grad_kl, *by_name, **dicts, **how)
    for m, name in enumerate(names):
        assert_array_equal(grads.mu[name], slopes.mu[m])
        assert_array_equal(grads.logvar[name], slopes.logvar[m])
        assert_array_equal(grads.weights[name], slopes.weights[m])
    parts = ops.subset_products(*by_name, **dicts)
    assert parts.subsets == (("word",), ("eye", "word"), ("eye", "ear", "word"))
    assert_array_equal(parts.present, [mask[2], mask[0] & mask[2], mask.all(axis=0)])


@settings(max_examples=10)
@given(case=cases((np.float64,), (1.0,)), seed=st.integers(0, 2**32 - 1))
def test_autodiff_along_a_random_direction(case, seed):
    rng = np.random.default_rng(seed)
    given_prior, weighted = isinstance(case.how["prior"], tuple), "weights" in case.how
    inputs = [np.array(case.mu, float), np.array(case.logvar, float)]
    inputs += [case.how["weights"]] if weighted else []
    inputs += [*case.how["prior"]] if given_prior else []
    ways = [rng.normal(size=v.shape) for v in inputs]
    if weighted:
        ways[2] *= inputs[2]

    def loss(*arrays):
        rest, how = list(arrays[2:]), dict(case.how)
        if weighted:
            how["weights"] = rest.pop(0)
        if given_prior:
            how["prior"] = tuple(rest)
        z, kl, _ = autodiff.mixture_of_products(
            arrays[0], arrays[1], component=case.component, noise=case.noise, **how
        )
        return anp.sum(z * case.grad_z) + anp.sum(kl * case.grad_kl)

    grads = autograd.grad(loss, tuple(range(len(inputs))))(*inputs)
    slope = sum((g * w).sum() for g, w in zip(grads, ways, strict=True))
    h = 1e-4
    steps = [loss(*(v + s * h * w for v, w in zip(inputs, ways, strict=True))) for s in (1, -1, 2, -2)]
    found = (8 * (steps[0] - steps[1]) - (steps[2] - steps[3])) / (12 * h)
    size = sum((np.abs(g * w)).sum() for g, w in zip(grads, ways, strict=True))
    assert abs(found - slope) <= 1e-6 * (size + 1)


def test_autodiff_of_dicts():
    mu, logvar, noise, *_ = draw_case(M=2, dtype=np.float64)

    def loss(params):
        z, kl, component = autodiff.mixture_of_products(params["mu"], params["logvar"], rng=3)
        assert component.shape == (6,)
        sample = autodiff.mixture_of_experts(params["mu"], params["logvar"], rng=4, num_samples=2)
        density = autodiff.gaussian_mixture_log_prob(sample.z, params["mu"], params["logvar"])
        return anp.sum(z * z) + anp.sum(kl) + anp.sum(density)

    params = {name: {"a": v[0], "b": v[1]} for name, v in (("mu", mu), ("logvar", logvar))}
    value, grads = autodiff.value_and_grad(loss)(params)
    h, way = 1e-6, noise
    moved = []
    for step in (h, -h):
        there = {"mu": {"a": mu[0] + step * way, "b": mu[1]}, "logvar": params["logvar"]}
        moved.append(loss(there))
    assert np.isfinite(value)
    slope = (grads["mu"]["a"] * way).sum()
    np.testing.assert_allclose((moved[0] - moved[1]) / (2 * h), slope, rtol=1e-6, atol=1e-6)


def test_errors_of_arguments():
    mu, logvar, noise, grad, grad_kl = draw_case()
    good = {"component": [0] * 6, "noise": noise}
    lacking = np.ones((4, 6), bool)
    lacking[:, 3] = False
    for kind, words, change in [
        (ArgumentError, "mask leaves row 3 without a subset", {"mask": lacking}),
        (
            ArgumentError,
            "mask leaves row 0 without a subset",
            {"mask": np.array([1, 0, 1, 1], bool), "subsets": [[1]]},
        ),
        (ArgumentError, "component chooses experts that row 0 lacks", {"mask": np.array([0, 1, 1, 1], bool)}),
        (ArgumentError, "component holds 15, expected indices from 0 to 14", {"component": [15] * 6}),
        (ShapeError, r"component has shape \(2,\), expected \(6,\)", {"component": [0, 1]}),
        (DTypeError, "component has dtype float64, expected integers", {"component": np.zeros(6)}),
        (ArgumentError, r"subsets\[1\] is empty", {"subsets": [[0], []]}),
        (ArgumentError, r"subsets\[1\] is the same as subsets\[0\]", {"subsets": [[0, 1], [1, 0]]}),
        (ArgumentError, r"subsets\[0\] has 2 twice", {"subsets": [[2, 2]]}),
        (ArgumentError, r"subsets\[0\] must be at most 3, not 4", {"subsets": [[4]]}),
        (ArgumentError, "subsets is empty", {"subsets": []}),
        (ArgumentError, "weights must be finite and not negative", {"weights": np.float32([1, -1, 1, 1])}),
        (ArgumentError, "selection must be", {"selection": "random"}),
        (ShapeError, r"noise has shape \(6, 20\), expected \(6, 21\)", {"noise": noise[:, 1:]}),
        (DTypeError, "noise has dtype float64 but mu has float32", {"noise": noise.astype(float)}),
        (ArgumentError, "noise or rng must be given", {"noise": None}),
        (ShapeError, "prior mean has shape", {"prior": (noise[0, :2], noise[0])}),
    ]:
        with pytest.raises(kind, match=words):
            ops.mixture_of_products(mu, logvar, **(good | change))
        if "selection" not in change:
            with pytest.raises(kind, match=words):
                ops.mixture_of_products_backward(grad, grad_kl, mu, logvar, **(good | change))
    with pytest.raises(ArgumentError, match="component or rng must be given"):
        ops.mixture_of_products(mu, logvar, noise=noise)
    with pytest.raises(ArgumentError, match="mu has 13 experts, and subsets are made of 1 to 12"):
        ops.mixture_of_products(np.zeros((13, 1, 1)), np.zeros((13, 1, 1)), rng=0)
    with pytest.raises(ShapeError, match=r"grad_kl has shape \(5,\), expected \(6,\)"):
        ops.mixture_of_products_backward(grad, grad_kl[1:], mu, logvar, **good)
    with pytest.raises(DTypeError, match="rng must be an integer"):
        ops.mixture_of_products_backward(
            grad, grad_kl, mu, logvar, component=[0] * 6, rng=np.random.default_rng(0)
        )
    with pytest.raises(ArgumentError, match=r"subsets\[0\] has 'nose', which mu does not have"):
        ops.subset_products({"eye": mu[0]}, {"eye": logvar[0]}, subsets=[["nose"]])
