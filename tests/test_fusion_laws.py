"""What holds of products of Gaussian experts whatever they are: laws, gradients, extremes, inputs, words of errors."""

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from reference import fusion as reference
from sensorium import autodiff, ops
from sensorium.errors import ArgumentError, DTypeError, ShapeError


def draw(M, B, D, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, M, B, D)).astype(dtype)


def same(got, want, rtol=1e-13, atol=1e-13):
    for one, two in zip(got, want, strict=True):
        assert_allclose(one, two, rtol=rtol, atol=atol)


@given(order=st.permutations(range(5)))
def test_order_does_not_matter(order):
    mu, logvar = draw(5, 3, 20)
    order = list(order)
    weights = np.linspace(0.5, 2, 5)
    how = {"return_log_normaliser": True}
    want = ops.product_of_experts(mu, logvar, weights=weights, **how)
    same(ops.product_of_experts(mu[order], logvar[order], weights=weights[order], **how), want)
    by_name = {f"{i}": mu[i] for i in order}, {f"{i}": logvar[i] for i in range(5)}
    same(ops.product_of_experts(*by_name, weights={f"{i}": w for i, w in enumerate(weights)}, **how), want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("logvar_of_nothing", [200.0, 1e30, np.inf])
def test_an_uninformative_expert_changes_no_bit(dtype, logvar_of_nothing):
    mu, logvar = draw(3, 4, 17, dtype=dtype)
    logvar[1] = logvar_of_nothing
    mu[1] = 1e6
    keep = [0, 2]
    assert_array_equal(ops.product_of_experts(mu, logvar), ops.product_of_experts(mu[keep], logvar[keep]))
    grads = ops.product_of_experts_backward(mu[0], mu[2], mu, logvar)
    want = ops.product_of_experts_backward(mu[0], mu[2], mu[keep], logvar[keep])
    assert_array_equal(grads.mu[keep], want.mu)
    assert_array_equal(grads.logvar[keep], want.logvar)
    assert_allclose([grads.mu[1], grads.logvar[1]], 0, atol=1e-30 if dtype is np.float32 else 1e-78)


def test_equal_experts_divide_the_variance():
    mu, logvar = draw(1, 3, 10)
    for n in (2, 3, 7):
        mean, log = ops.product_of_experts(np.repeat(mu, n, 0), np.repeat(logvar, n, 0), prior=False)
        same((mean, log), (mu[0], logvar[0] - np.log(n)))
        same(ops.product_of_experts(mu, logvar, weights=[float(n)], prior=False), (mean, log))


def test_the_product_with_a_prior_is_the_conjugate_posterior():
    """Observations x_i of N(theta, s^2) and the prior N(m, t^2) of theta, as any textbook has it."""
    rng = np.random.default_rng(0)
    s, t, m = 0.7, 1.9, 0.4
    x = rng.normal(size=(6, 2, 1))
    prior = (np.array([m]), np.array([2 * np.log(t)]))
    mean, log, evidence = ops.product_of_experts(
        x, np.full_like(x, 2 * np.log(s)), prior=prior, return_log_normaliser=True
    )
    variance = 1 / (1 / t**2 + len(x) / s**2)
    same((mean, np.exp(log)), (variance * (m / t**2 + x.sum(axis=0) / s**2), np.full((2, 1), variance)))
    # The marginal likelihood: x is jointly normal, of variance s^2 and covariance t^2.
    covariance = s**2 * np.eye(6) + t**2
    for b in range(2):
        away = x[:, b, 0] - m
        _, determinant = np.linalg.slogdet(2 * np.pi * covariance)
        assert_allclose(
            evidence[b], -0.5 * (determinant + away @ np.linalg.solve(covariance, away)), rtol=1e-13
        )


@pytest.mark.parametrize("prior", [False, True])
def test_the_normaliser_is_what_quadrature_finds(prior):
    mu, logvar = draw(3, 2, 2)
    weights = np.array([1.0, 0.4, 2.5])
    mask = np.array([[True, True], [True, False], [True, True]])
    x = np.linspace(-12, 12, 4001)[:, None, None, None]
    log_density = -0.5 * (np.log(2 * np.pi) + logvar + (x - mu) ** 2 * np.exp(-logvar))
    total = (log_density * (weights[:, None] * mask)[..., None]).sum(axis=1)
    if prior:
        total += -0.5 * (np.log(2 * np.pi) + x[:, 0] ** 2)
    want = np.log(np.trapezoid(np.exp(total), dx=24 / 4000, axis=0)).sum(axis=-1)
    how = {"weights": weights, "mask": mask, "prior": prior}
    *_, found = ops.product_of_experts(mu, logvar, **how, return_log_normaliser=True)
    assert_allclose(found, want, rtol=1e-12)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("M", [1, 2, 5, 8])
def test_the_normaliser_and_its_gradients_agree_with_the_reference(M, dtype):
    rng = np.random.default_rng(M)
    mu, logvar = rng.normal(size=(2, M, 5, 37)).astype(dtype)
    logvar *= 4
    weights = rng.uniform(0, 2, (M, 5)).astype(dtype)
    weights[M // 2, 0] = 0
    mask = rng.random((M, 5)) < 0.7
    how = {"weights": weights, "mask": mask, "prior": tuple(rng.normal(size=(2, 37)).astype(dtype))}
    g = rng.normal(size=5).astype(dtype)
    u = 100 * np.finfo(dtype).eps
    *_, found = ops.product_of_experts(mu, logvar, **how, return_log_normaliser=True)
    *_, want = reference.product_of_experts(mu, logvar, **how, return_log_normaliser=True)
    assert found.dtype == dtype
    assert_allclose(found, want, rtol=u, atol=u * 37)
    grads = ops.product_of_experts_backward(None, None, mu, logvar, **how, grad_log_normaliser=g)
    want = reference.product_of_experts_backward(None, None, mu, logvar, **how, grad_log_normaliser=g)
    for one, two in zip(
        (grads.mu, grads.logvar, grads.weights, *grads.prior), (*want[:3], *want[3]), strict=True
    ):
        # Relative to the largest of a row: a derivative is a sum of forces of all experts on one.
        assert_allclose(one, two, rtol=u, atol=u * np.abs(two).max(initial=1))


@pytest.mark.parametrize("M", [2, 6])
def test_the_normaliser_keeps_its_digits_beside_an_expert_that_outweighs_the_others(M):
    """The distance of a precise expert to the mean is lost by rounding; its precision times that is what counts."""
    mu, logvar = draw(M, 3, 5, dtype=np.float32)
    logvar[0] = -60
    how = {"grad_log_normaliser": np.ones(3, np.float32)}
    grads = ops.product_of_experts_backward(None, None, mu, logvar, **how)
    others = np.exp(-logvar[1:].astype(float))
    # The others, and the prior, see a point at the precise mean.
    force = (others * (mu[1:] - mu[0].astype(float))).sum(axis=0) - mu[0]
    assert_allclose(grads.mu[0], force, rtol=1e-5, atol=1e-5)


@given(seed=st.integers(0, 2**32 - 1), M=st.integers(1, 7), weighted=st.booleans(), drawn=st.booleans())
def test_gradients_along_a_random_direction(seed, M, weighted, drawn):
    rng = np.random.default_rng(seed)
    B, D = 3, 11
    inputs = {"mu": rng.normal(size=(M, B, D)), "logvar": rng.normal(size=(M, B, D))}
    inputs["prior_mean"], inputs["prior_logvar"] = rng.normal(size=(2, D))
    if weighted:
        inputs["weights"] = rng.uniform(0.3, 2, (M, B))
    ways = {name: rng.normal(size=x.shape) for name, x in inputs.items()}
    noise = {"rng": int(seed)} if drawn else {"noise": rng.normal(size=(B, D))}
    dz, dmean, dlog = rng.normal(size=(3, B, D))
    dkl, dnormaliser = rng.normal(size=(2, B))
    mask = rng.random((M, B)) < 0.7

    def split(step):
        moved = {name: x + step * ways[name] for name, x in inputs.items()}
        prior = moved.pop("prior_mean"), moved.pop("prior_logvar")
        return moved, {"prior": prior, "mask": mask}

    def value(step):
        moved, how = split(step)
        z, kl, mean, log = ops.fused_posterior(**moved, **how, **noise)
        *_, normaliser = ops.product_of_experts(**moved, **how, return_log_normaliser=True)
        return (
            (z * dz).sum() + kl @ dkl + (mean * dmean).sum() + (log * dlog).sum() + normaliser @ dnormaliser
        )

    here, how = split(0.0)
    first = ops.fused_posterior_backward(dz, dkl, **here, **how, **noise, grad_mean=dmean, grad_logvar=dlog)
    second = ops.product_of_experts_backward(None, None, **here, **how, grad_log_normaliser=dnormaliser)
    slope, size = 0.0, 1.0
    for grads in (first, second):
        found = {"mu": grads.mu, "logvar": grads.logvar, "weights": grads.weights}
        found["prior_mean"], found["prior_logvar"] = grads.prior
        for name, way in ways.items():
            slope += (found[name] * way).sum()
            size += np.abs(found[name] * way).sum()
    h = 1e-3
    ends = [value(s * h) for s in (1, -1, 2, -2)]
    assert abs((8 * (ends[0] - ends[1]) - (ends[2] - ends[3])) / (12 * h) - slope) <= 1e-7 * size


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_mask_is_removal_and_what_is_masked_is_never_read(dtype):
    rng = np.random.default_rng(3)
    mu, logvar = draw(4, 6, 33, dtype=dtype)
    mask = rng.random((4, 6)) < 0.5
    mask[0, 0], mask[:, 1] = True, False
    mu[~mask] = logvar[~mask] = np.nan
    weights = rng.uniform(0.5, 2, (4, 6)).astype(dtype)
    weights[~mask] = 1
    dz, dkl = draw(1, 6, 33, 1, dtype)[:, 0], np.ones(6, dtype)
    found = ops.fused_posterior(mu, logvar, mask=mask, weights=weights, rng=5)
    normaliser = ops.product_of_experts(mu, logvar, mask=mask, weights=weights, return_log_normaliser=True)[2]
    noise = ops.normal_noise((6, 33), 5, dtype=dtype)
    grads = ops.fused_posterior_backward(
        dz[0], dkl, mu, logvar, mask=mask, weights=weights, rng=5, grad_mean=dz[1]
    )
    for b in range(6):
        here, row = mask[:, b], slice(b, b + 1)
        if not here.any():
            assert_array_equal(found.mean[b], 0)
            assert_array_equal(found.logvar[b], 0)
            assert_array_equal(grads.mu[:, b], 0)
            continue
        left = {"mu": mu[here, row], "logvar": logvar[here, row], "weights": weights[here, row]}
        want = ops.fused_posterior(**left, noise=noise[row])
        for one, two in zip(found, want, strict=True):
            assert_array_equal(one[row], two)
        assert_array_equal(normaliser[row], ops.product_of_experts(**left, return_log_normaliser=True)[2])
        want = ops.fused_posterior_backward(
            dz[0, row], dkl[row], **left, noise=noise[row], grad_mean=dz[1, row]
        )
        assert_array_equal(grads.mu[here, row], want.mu)
        assert_array_equal(grads.logvar[here, row], want.logvar)
        assert_array_equal(grads.weights[here, row], want.weights)
        assert_array_equal(grads.weights[~here, b], 0)
        assert_array_equal(grads.mu[~here, b], 0)
        assert_array_equal(grads.logvar[~here, b], 0)


def test_masks_and_weights_of_all_rows_are_those_of_each():
    mu, logvar = draw(3, 4, 5)
    mask, weights = np.array([True, False, True]), np.array([1.0, 3.0, 0.5])
    whole = {"mask": np.repeat(mask[:, None], 4, 1), "weights": np.repeat(weights[:, None], 4, 1)}
    same(
        ops.product_of_experts(mu, logvar, mask=mask, weights=weights),
        ops.product_of_experts(mu, logvar, **whole),
    )
    one = ops.product_of_experts_backward(mu[0], mu[1], mu, logvar, mask=mask, weights=weights)
    two = ops.product_of_experts_backward(mu[0], mu[1], mu, logvar, **whole)
    assert_allclose(one.weights, two.weights.sum(axis=1), rtol=1e-14)
    names = ("image", "sound", "word")
    by_name = {
        "mu": dict(zip(names, mu, strict=True)),
        "logvar": dict(zip(names, logvar, strict=True)),
        "mask": {"word": np.ones(4, bool), "image": True, "sound": False},
        "weights": {"word": 0.5, "image": np.ones(4), "sound": 3.0},
    }
    same(ops.product_of_experts(**by_name), ops.product_of_experts(mu, logvar, **whole))
    three = ops.product_of_experts_backward(mu[0], mu[1], **by_name)
    for m, name in enumerate(names):
        assert_array_equal(three.mu[name], two.mu[m])
        assert_array_equal(three.logvar[name], two.logvar[m])
        assert_array_equal(three.weights[name], two.weights[m])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("M", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("prior", [True, False])
def test_any_logarithm_of_a_variance_gives_numbers_and_gradients(M, prior):
    rng = np.random.default_rng(M)
    logvar = rng.uniform(-200, 200, (M, 40, 37)).astype(np.float32)
    logvar[:, 0], logvar[:, 1], logvar[:, 2, ::2], logvar[:, 2, 1::2] = -200, 200, 200, -200
    mu = rng.normal(size=logvar.shape).astype(np.float32)
    dz, dmean, dlog = rng.normal(size=(3, 40, 37)).astype(np.float32)
    mean, log = ops.product_of_experts(mu, logvar, prior=prior)
    want_mean, want_log = reference.product_of_experts(mu, logvar, prior=prior)
    assert_allclose(mean, want_mean, atol=3e-6)
    # Without the prior, up to 40 is added to the logarithm of the variance and taken off again.
    assert_allclose(log, want_log, rtol=1e-6, atol=1e-6 if prior else 5e-6)
    z, kl, *_ = ops.fused_posterior(mu, logvar, prior=prior, rng=1)
    assert np.isfinite(z).all()
    assert np.isfinite(kl).all()
    dkl = rng.normal(size=40).astype(np.float32)
    grads = ops.fused_posterior_backward(
        dz, dkl, mu, logvar, prior=prior, rng=1, grad_mean=dmean, grad_logvar=dlog
    )
    assert np.isfinite(grads.mu).all()
    assert np.isfinite(grads.logvar).all()
    found = ops.product_of_experts_backward(dmean, dlog, mu, logvar, prior=prior)
    want = reference.product_of_experts_backward(dmean, dlog, mu, logvar, prior=prior)
    assert_allclose(found.mu, want[0], rtol=1e-4, atol=1e-5)
    assert_allclose(found.logvar, want[1], rtol=1e-4, atol=1e-5)


def test_a_sure_prior_and_unsure_experts_stay_numbers():
    mu, logvar = draw(2, 3, 20, dtype=np.float32)
    for v in (-200.0, -90.0, 90.0, 200.0):
        prior = (np.zeros(20, np.float32), np.full(20, v, np.float32))
        z, kl, *_ = ops.fused_posterior(mu, logvar, prior=prior, rng=0)
        assert np.isfinite(z).all()
        assert np.isfinite(kl).all()
        grads = ops.fused_posterior_backward(mu[0], np.ones(3, np.float32), mu, logvar, prior=prior, rng=0)
        for grad in (grads.mu, grads.logvar, *grads.prior):
            assert np.isfinite(grad).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_stays_in_its_element(bad):
    mu, logvar = draw(2, 4, 20)
    clean = ops.product_of_experts(mu, logvar)
    mu[1, 2, 7] = bad
    mean, log = ops.product_of_experts(mu, logvar)
    assert not np.isfinite(mean[2, 7])
    mean[2, 7] = clean[0][2, 7]
    assert_array_equal(mean, clean[0])
    assert_array_equal(log, clean[1])


@pytest.mark.parametrize("shape", [(3, 0, 5), (3, 4, 0), (1, 0, 0)])
def test_nothing_gives_nothing(shape):
    M, B, D = shape
    mu = np.zeros(shape)
    z, kl, mean, log = ops.fused_posterior(mu, mu, rng=0, mask=np.ones((M, B), bool), weights=np.ones((M, B)))
    assert z.shape == mean.shape == log.shape == (B, D)
    assert_array_equal(kl, np.zeros(B))
    grads = ops.fused_posterior_backward(
        z, kl, mu, mu, rng=0, prior=(np.zeros(D), np.zeros(D)), weights=np.ones(M)
    )
    assert grads.mu.shape == grads.logvar.shape == shape
    assert_array_equal(grads.weights, 0)
    assert_array_equal(grads.prior, np.zeros((2, D)))


def test_results_go_where_they_are_wanted():
    mu, logvar = draw(2, 3, 4)
    want = ops.product_of_experts(mu, logvar)
    out = np.empty((3, 4)), np.empty((3, 4))
    got = ops.product_of_experts(mu, logvar, out=out)
    assert got[0] is out[0]
    assert got[1] is out[1]
    same(got, want, 0, 0)
    for bad, error, words in [
        ([*out], ArgumentError, "out must be a tuple of 2 arrays: mean, logvar"),
        ((out[0], np.empty((3, 5))), ShapeError, r"out \(logvar\) has shape \(3, 5\), expected \(3, 4\)"),
        ((out[0].astype(np.float32), out[1]), DTypeError, r"out \(mean\) must be an array of dtype float64"),
        ((np.empty((4, 3)).T, out[1]), ArgumentError, "mean must be C-contiguous"),
        ((out[0], out[0]), ArgumentError, "logvar must be writeable and share memory with no other argument"),
        ((mu[0], out[1]), ArgumentError, "mean must be writeable and share memory with no other argument"),
    ]:
        with pytest.raises(error, match=words):
            ops.product_of_experts(mu, logvar, out=bad)


def test_rows_of_an_encoder_are_read_where_they_are():
    """Mean and logarithm of the variance as halves of one row, which is what encoders return."""
    heads = {name: np.random.default_rng(i).normal(size=(5, 14)) for i, name in enumerate("ab")}
    mu, logvar = {k: h[:, :7] for k, h in heads.items()}, {k: h[:, 7:] for k, h in heads.items()}
    want = ops.product_of_experts(np.stack(list(mu.values())), np.stack(list(logvar.values())))
    same(ops.product_of_experts(mu, logvar), want, 0, 0)


CASES = [
    ({"mu": np.zeros((3, 4))}, ShapeError, r"mu has shape \(3, 4\), expected 3 dimensions \(M, B, D\)"),
    ({"logvar": np.zeros((3, 3, 4))}, ShapeError, "logvar has M=3 but mu has M=2"),
    ({"logvar": np.zeros((2, 3, 5))}, ShapeError, "logvar has D=5 but mu has D=4"),
    ({"mu": np.zeros((2, 3, 4), int)}, DTypeError, "mu has dtype int64, expected float32 or float64"),
    ({"logvar": np.zeros((2, 3, 4), np.float32)}, DTypeError, "logvar has dtype float32 but mu has float64"),
    ({"mu": np.zeros((0, 3, 4)), "logvar": np.zeros((0, 3, 4))}, ArgumentError, "mu has no expert"),
    ({"mu": {}, "logvar": {}}, ArgumentError, "mu has no expert"),
    ({"mu": {"a": np.zeros((3, 4))}}, ArgumentError, "logvar must be a dict, as mu is"),
    ({"logvar": {"a": np.zeros((3, 4))}}, ArgumentError, "logvar must be an array, as mu is"),
    (
        {"mu": {"a": np.zeros((3, 4))}, "logvar": {"b": np.zeros((3, 4))}},
        ArgumentError,
        "logvar has no 'a', which mu has",
    ),
    (
        {
            "mu": {"a": np.zeros((3, 4)), "b": np.zeros((3, 5))},
            "logvar": {"a": np.zeros((3, 4)), "b": np.zeros((3, 4))},
        },
        ShapeError,
        r"mu\['b'\] has D=5 but mu\['a'\] has D=4",
    ),
    ({"mask": np.ones((3, 2), bool)}, ShapeError, r"mask has shape \(3, 2\), expected \(2, 3\) or \(2,\)"),
    ({"mask": np.ones(2)}, DTypeError, "mask has dtype float64, expected bool"),
    ({"mask": {"a": True}}, ArgumentError, "mask must be an array, as mu is"),
    ({"weights": np.ones((3, 2))}, ShapeError, r"weights has shape \(3, 2\), expected \(2, 3\) or \(2,\)"),
    ({"weights": [1.0, -1.0]}, ArgumentError, "weights must be finite and not negative, not -1"),
    ({"weights": [1.0, np.nan]}, ArgumentError, "weights must be finite and not negative, not NaN"),
    ({"weights": ["a", "b"]}, DTypeError, "weights has dtype <U1, expected numbers"),
    ({"prior": "yes"}, ArgumentError, "prior must be True, False, or a pair of mean and logvar"),
    ({"prior": (np.zeros(3), np.zeros(4))}, ShapeError, r"prior mean has shape \(3,\), expected \(4,\)"),
    (
        {"prior": (np.zeros(4), np.zeros(4, np.float32))},
        DTypeError,
        "prior logvar has dtype float32 but mu has float64",
    ),
    (
        {"mask": np.array([[True, False, True], [False, False, True]]), "prior": False},
        ArgumentError,
        "mask leaves row 1 without an expert, and there is no prior",
    ),
    ({"weights": [0.0, 0.0], "prior": False}, ArgumentError, "weights leaves row 0 without an expert"),
]


@pytest.mark.parametrize(("change", "error", "words"), CASES, ids=[case[2][:40] for case in CASES])
def test_errors_name_the_argument(change, error, words):
    given = {"mu": np.zeros((2, 3, 4)), "logvar": np.zeros((2, 3, 4)), **change}
    with pytest.raises(error, match=words):
        ops.product_of_experts(**given)
    with pytest.raises(error, match=words):
        ops.fused_posterior(**given, rng=0)
    with pytest.raises(error, match=words):
        ops.fused_posterior_backward(np.zeros((3, 4)), np.zeros(3), **given, rng=0)


def test_errors_of_noise_and_gradients():
    mu = np.zeros((2, 3, 4))
    for noise, error, words in [
        ({}, ArgumentError, "noise or rng must be given"),
        ({"noise": np.zeros((3, 4)), "rng": 1}, ArgumentError, "noise and rng cannot both be given"),
        ({"noise": np.zeros((3, 5))}, ShapeError, r"noise has shape \(3, 5\), expected \(3, 4\)"),
        ({"noise": np.zeros((3, 4), np.float32)}, DTypeError, "noise has dtype float32 but mu has float64"),
        ({"rng": -1}, ArgumentError, "rng must be at least 0"),
        ({"rng": 1.5}, DTypeError, "rng must be an integer"),
    ]:
        with pytest.raises(error, match=words):
            ops.fused_posterior(mu, mu, **noise)
    with pytest.raises(ArgumentError, match="rng must be the seed that the forward drew from"):
        ops.fused_posterior_backward(None, None, mu, mu, rng=np.random.default_rng(0))
    with pytest.raises(ShapeError, match=r"grad_kl has shape \(4,\), expected \(3,\)"):
        ops.fused_posterior_backward(None, np.zeros(4), mu, mu, rng=0)
    with pytest.raises(DTypeError, match="grad_mean has dtype float32 but mu has float64"):
        ops.product_of_experts_backward(np.zeros((3, 4), np.float32), None, mu, mu)
    with pytest.raises(DTypeError, match="dtype is int64, expected float32 or float64"):
        ops.normal_noise((3,), 0, dtype=int)
    with pytest.raises(ArgumentError, match="shape must be at least 0"):
        ops.normal_noise((-3,), 0)


def tensors(names, B=3, D=5):
    mu, logvar = draw(len(names), B, D)
    return dict(zip(names, mu, strict=True)), dict(zip(names, logvar, strict=True))


@pytest.mark.parametrize("moments", [True, False])
def test_autodiff_differentiates_arrays(moments):
    mu, logvar = draw(3, 4, 5)
    weights, prior = np.array([1.0, 0.5, 2.0]), tuple(draw(1, 1, 5, 2).reshape(2, 5))
    g = draw(1, 4, 5, 1).reshape(2, 4, 5)
    mask = np.array([[True, True, False, True], [True] * 4, [False, True, True, True]])

    def loss(mu, logvar, weights, mean, log):
        how = {"weights": weights, "mask": mask, "prior": (mean, log), "rng": 3, "moments": moments}
        z, kl, *rest = autodiff.fused_posterior(mu, logvar, **how)
        value = anp.sum(z * g[0]) + anp.sum(kl * kl)
        return value + anp.sum(rest[0] * g[1]) + anp.sum(rest[1]) if moments else value

    found = autograd.grad(loss, tuple(range(5)))(mu, logvar, weights, *prior)
    how = {"weights": weights, "mask": mask, "prior": prior, "rng": 3}
    _, kl, *_ = ops.fused_posterior(mu, logvar, **how)
    more = {"grad_mean": g[1], "grad_logvar": np.ones((4, 5))} if moments else {}
    want = ops.fused_posterior_backward(g[0], 2 * kl, mu, logvar, **how, **more)
    same(found, (want.mu, want.logvar, want.weights, *want.prior))


def test_autodiff_differentiates_dicts_and_the_normaliser():
    mu, logvar = tensors("xyz")
    weights = {"x": 1.0, "y": np.array([1.0, 2.0, 0.5]), "z": 0.5}
    g = draw(1, 3, 5, 1).reshape(2, 3, 5)

    def loss(mu, logvar, weights):
        mean, log, agreement = autodiff.product_of_experts(
            mu, logvar, weights=weights, return_log_normaliser=True
        )
        return anp.sum(mean * g[0]) + anp.sum(log * g[1]) + anp.sum(agreement)

    found = autograd.grad(lambda inputs: loss(*inputs))((mu, logvar, weights))
    want = ops.product_of_experts_backward(*g, mu, logvar, weights=weights, grad_log_normaliser=np.ones(3))
    for one, two in zip(found, want, strict=False):
        for name in "xyz":
            assert_allclose(one[name], two[name].sum() if np.ndim(one[name]) == 0 else two[name], rtol=1e-13)


def test_autodiff_keeps_float32():
    mu, logvar = draw(2, 3, 4, dtype=np.float32)
    grads = autograd.grad(lambda x: anp.sum(autodiff.fused_posterior(x[0], x[1], rng=0).z))((mu, logvar))
    assert {grad.dtype for grad in grads} == {np.dtype(np.float32)}


def test_autodiff_says_what_is_wrong():
    mu, logvar = tensors("ab")
    with pytest.raises(ArgumentError, match="logvar must be a dict with the keys of mu: a, b"):
        autodiff.product_of_experts(mu, {"a": logvar["a"]})
    with pytest.raises(ArgumentError, match="noise or rng must be given"):
        autodiff.fused_posterior(mu, logvar)
    with pytest.raises(ArgumentError, match="prior must be True, False, or a pair of mean and logvar"):
        autodiff.fused_posterior(mu, logvar, prior=None, rng=0)
