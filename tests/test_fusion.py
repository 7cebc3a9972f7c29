"""Products of experts and fused posteriors against their float64 reference, with bounds that are derived.

u is half an epsilon. Powers are taken relative to the last expert, the prior where there is one, or to 40 below the heaviest
(300 in float64) where that is more. A share is an exponential of a difference that is rounded once (twice with a weight, whose
logarithm is added to a number up to `size` large), divided by a sum of M: relative to the largest share it is off by (M + 8) u,
by size u more with weights, and by as much as the difference times u more where the last expert is not the standard prior,
whose logarithm is zero. So is a mean, times the largest of the means; the logarithm of the variance is off by that and by u of
itself. What is made of it by an exponential is off by as much again, relatively.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import sensorium
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from reference import fusion as reference
from sensorium import ops


@dataclass
class Case:
    mu: np.ndarray
    logvar: np.ndarray
    how: dict
    noise: np.ndarray
    grads: dict
    about: str

    def __repr__(self):
        return f"{self.about} {self.mu.shape} {self.mu.dtype} { ({k: np.shape(v) for k, v in self.how.items()}) }"


def in_form(array, form):
    """The same numbers, held in memory in another way."""
    if form == "halves":
        M, B, D = array.shape
        wide = np.full((M, B, 2 * D + 1), np.nan, array.dtype)
        wide[..., D : 2 * D] = array
        return wide[..., D : 2 * D]
    if form == "reversed":
        return array[:, ::-1, ::-1].copy()[:, ::-1, ::-1]
    if form == "byte-swapped":
        return array.astype(array.dtype.newbyteorder())
    if form == "read-only":
        array = array.copy()
        array.flags.writeable = False
    return array


@st.composite
def cases(draw, dtypes=(np.float32, np.float64), wide=(False, True)):
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    M, B = draw(st.integers(1, 8)), draw(st.sampled_from([1, 2, 5, 0]))
    D = draw(st.sampled_from([1, 3, 16, 17, 40, 67, 0]))
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    wide = draw(st.sampled_from(wide))
    prior = draw(st.sampled_from([True, False, "pair"]))
    masks, weighing = draw(st.sampled_from([0, 1, 2])), draw(st.sampled_from([0, 1, 2]))
    form = draw(st.sampled_from(["plain", "halves", "reversed", "byte-swapped", "read-only"]))
    mu, noise = rng.normal(size=(M, B, D)).astype(dtype), rng.normal(size=(B, D)).astype(dtype)
    logvar = (rng.uniform(-200, 200, (M, B, D)) if wide else rng.normal(size=(M, B, D))).astype(dtype)
    mask = None if not masks else rng.random((M,) if masks == 1 else (M, B)) < 0.6
    weights = None if not weighing else rng.uniform(0.2, 3, (M,) if weighing == 1 else (M, B)).astype(dtype)
    if mask is not None and prior is False:
        mask[rng.integers(M)] = True
    if weights is not None and M > 1:
        zero = rng.integers(M)
        if prior is not False or (mask is None):
            weights[zero] = 0
    if prior == "pair":
        prior = tuple(rng.normal(size=(2, D)).astype(dtype))
    if mask is not None:
        for array in (mu, logvar):
            array[np.broadcast_to(mask[:, None] if mask.ndim == 1 else mask, (M, B)) == 0] = np.nan
    grads = {name: rng.normal(size=(B, D)).astype(dtype) for name in ("z", "mean", "logvar")}
    grads["kl"] = rng.normal(size=B).astype(dtype)
    for name in list(grads):
        if draw(st.booleans()):
            grads[name] = None
    how = {"mask": mask, "weights": weights, "prior": prior}
    return Case(
        in_form(mu, form), in_form(logvar, form), how, noise, grads, f"seed {seed} {form} wide={wide}"
    )


def close(got, want, slack):
    assert got.shape == want.shape
    if got.size:
        excess = np.abs(got - want) - slack
        assert not np.isnan(excess).any()
        assert (excess <= 0).all(), f"worst excess {excess.max():.3g}"


def most(*arrays):
    return max(float(np.nanmax(np.abs(np.asarray(a, np.float64)), initial=0.0)) for a in arrays)


class Sizes:
    """Magnitudes of a case in float64, and what is lost of them."""

    def __init__(self, case):
        self.mean, self.log = reference.product_of_experts(case.mu, case.logvar, **case.how)
        self.eps = np.finfo(case.noise.dtype).eps
        present = np.isfinite(np.asarray(case.logvar, np.float64))
        logvar = np.where(present, case.logvar, 0.0)
        heaviest = 0 if case.how["weights"] is None else 2 + np.abs(logvar).max(initial=0)
        if case.how["prior"] is not True:
            heaviest += min(40 if self.eps > 1e-10 else 300, 2 * most(logvar, *(case.how["prior"] or ())))
        self.unit = (len(case.mu) + 9 + heaviest) * self.eps / 2
        pair = (
            case.how["prior"] if isinstance(case.how["prior"], tuple) else (np.zeros(case.mu.shape[2]),) * 2
        )
        self.m, self.v = (np.asarray(part, np.float64) for part in pair)
        self.size = most(np.where(present, case.mu, 0.0), self.m) + 1
        self.of_log = self.unit + 2 * self.eps * np.abs(self.log)
        # Relative, of exponentials of the logarithm of the variance.
        self.of_power = self.of_log + 2 * self.eps * (np.abs(self.v) + 2)
        self.deviation, self.ratio = np.exp(self.log / 2), np.exp(self.log - self.v)
        self.precision = np.exp(-self.v)

    def of_kl(self):
        far = np.abs(self.mean) + np.abs(self.m) + 2 * self.unit * self.size
        terms = self.ratio + far**2 * self.precision + 1 + np.abs(self.log) + np.abs(self.v)
        lost = self.of_power * (self.ratio + far**2 * self.precision) + self.of_log
        lost += 4 * self.unit * self.size * far * self.precision + 2 * self.eps * terms
        return lost.sum(axis=1) + self.mean.shape[1] * self.eps * terms.sum(axis=1)


def agree(case):
    how, dtype, sizes = case.how, case.noise.dtype, Sizes(case)
    tiny = np.finfo(dtype).tiny
    mean, log = ops.product_of_experts(case.mu, case.logvar, **how)
    assert mean.dtype == log.dtype == dtype
    close(mean, sizes.mean, 2 * sizes.unit * sizes.size)
    close(log, sizes.log, sizes.of_log)
    z, kl, same_mean, same_log = ops.fused_posterior(case.mu, case.logvar, noise=case.noise, **how)
    assert_array_equal(same_mean, mean)
    assert_array_equal(same_log, log)
    want_z, want_kl, *_ = reference.fused_posterior(case.mu, case.logvar, noise=case.noise, **how)
    # Where a deviation or a ratio of variances is over its bound, they say so by staying there.
    bound = 80 if dtype == np.float32 else 700
    assert np.isfinite(z).all()
    assert np.isfinite(kl).all()
    spread = sizes.deviation * np.abs(case.noise)
    slack = 2 * sizes.unit * sizes.size + (sizes.of_power + 2 * sizes.eps) * spread + tiny
    within = sizes.log < 2 * bound
    close(np.where(within, z, 0), np.where(within, want_z, 0), slack)
    within = (np.maximum(sizes.log, sizes.log - sizes.v) < bound).all(axis=1)
    close(np.where(within, kl, 0), np.where(within, want_kl, 0), sizes.of_kl() + tiny)


def agree_backward(case):
    """Each gradient within the bound of its parts: a share, times what the product's gradients and the distance are."""
    how, grads, sizes = case.how, case.grads, Sizes(case)
    dtype, tiny = case.noise.dtype, np.finfo(case.noise.dtype).tiny
    rest = {"noise": case.noise, "grad_mean": grads["mean"], "grad_logvar": grads["logvar"], **how}
    got = ops.fused_posterior_backward(grads["z"], grads["kl"], case.mu, case.logvar, **rest)
    want = reference.fused_posterior_backward(grads["z"], grads["kl"], case.mu, case.logvar, **rest)
    zero = np.zeros_like(sizes.mean)
    dz, dmean, dlog = (
        zero if grads[k] is None else np.abs(grads[k], dtype=float) for k in ("z", "mean", "logvar")
    )
    dkl = zero if grads["kl"] is None else np.abs(grads["kl"], dtype=float)[:, None]
    pull = 2 * sizes.size * sizes.precision
    g = dz + dmean + dkl * pull
    l = dlog + dz * np.abs(case.noise) * sizes.deviation + dkl * (sizes.ratio + 1)  # noqa: E741
    lost = 8 * (sizes.unit + sizes.of_power)
    of_mu, of_log = lost * g + tiny, lost * (l + 2 * sizes.size * g) + tiny
    assert got.mu.dtype == got.logvar.dtype == dtype
    close(got.mu, want[0], of_mu)
    close(got.logvar, want[1], of_log)
    if how["weights"] is None:
        assert got.weights is None
    else:
        M, B = case.mu.shape[:2]
        weights = np.broadcast_to(how["weights"].reshape(M, -1), (M, B)).astype(float)
        # By the largest share that there is with a weight of one.
        share = np.exp(sizes.log - np.nan_to_num(np.asarray(case.logvar, float))).max(axis=2, initial=0)
        slack = (
            2 * of_log.sum(axis=1) * (share + np.divide(1, weights, where=weights > 0, out=np.zeros((M, B))))
        )
        slack += case.mu.shape[2] * sizes.eps * ((l + 2 * sizes.size * g).sum(axis=1) * share)
        by_row = got.weights.ndim == 2
        close(
            got.weights,
            want[2] if by_row else want[2].sum(axis=1),
            slack if by_row else 2 * slack.sum(axis=1),
        )
    if isinstance(how["prior"], tuple):
        rows = len(g) * sizes.eps
        own = dkl * (1 + sizes.ratio + 2 * sizes.size * pull)
        close(got.prior[0], want[3][0], 2 * (of_mu + (lost + rows) * (g + dkl * pull)).sum(axis=0) + tiny)
        close(
            got.prior[1],
            want[3][1],
            2 * (of_log + (lost + rows) * (l + own + 2 * sizes.size * g)).sum(axis=0) + tiny,
        )
    else:
        assert got.prior is None


@given(case=cases())
def test_agrees_with_the_reference(case):
    agree(case)


@given(case=cases(wide=(False,)))
def test_gradients_agree_with_the_reference(case):
    agree_backward(case)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@settings(max_examples=8)
@given(data=st.data())
def test_agrees_at_every_level(dtype, data):
    case = data.draw(cases((dtype,), wide=(False,)))
    agree(case)
    agree_backward(case)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_threads_do_not_change_a_bit(n):
    rng = np.random.default_rng(0)
    mu, logvar = rng.normal(size=(2, 3, 700, 70)).astype(np.float32)
    prior = tuple(rng.normal(size=(2, 70)).astype(np.float32))
    weights = rng.uniform(0.5, 2, (3, 700)).astype(np.float32)
    how = {"weights": weights, "prior": prior, "rng": 3}
    dz, dkl = rng.normal(size=(700, 70)).astype(np.float32), rng.normal(size=700).astype(np.float32)
    results = []
    for threads in (1, n):
        with sensorium.num_threads(threads):
            grads = ops.fused_posterior_backward(dz, dkl, mu, logvar, **how)
            results.append(
                [*ops.fused_posterior(mu, logvar, **how), grads.mu, grads.logvar, grads.weights, *grads.prior]
            )
    for one, two in zip(*results, strict=True):
        assert_array_equal(one, two)


def test_noise_is_drawn_again_by_the_backward_and_is_that_of_its_seed():
    rng = np.random.default_rng(1)
    for dtype in (np.float32, np.float64):
        mu, logvar = rng.normal(size=(2, 2, 150, 37)).astype(dtype)
        noise = ops.normal_noise((150, 37), 99, dtype=dtype)
        dz, dkl = rng.normal(size=(150, 37)).astype(dtype), rng.normal(size=150).astype(dtype)
        for one, two in zip(
            ops.fused_posterior(mu, logvar, rng=99), ops.fused_posterior(mu, logvar, noise=noise), strict=True
        ):
            assert_array_equal(one, two)
        one = ops.fused_posterior_backward(dz, dkl, mu, logvar, rng=99)
        two = ops.fused_posterior_backward(dz, dkl, mu, logvar, noise=noise)
        assert_array_equal(one.mu, two.mu)
        assert_array_equal(one.logvar, two.logvar)
        assert not np.array_equal(
            ops.fused_posterior(mu, logvar, rng=100).z, ops.fused_posterior(mu, logvar, rng=99).z
        )


@pytest.mark.usefixtures("isa")
def test_noise_is_the_reference_number_by_number():
    for seed, stream, position, n in [(0, 0, 0, 5000), (2**63 + 11, 7, 61, 200), (5, 2**40, 2**35 - 3, 300)]:
        want = reference.normal_noise(n, seed, stream=stream, position=position)
        how = {"stream": stream, "position": position}
        np.testing.assert_allclose(
            ops.normal_noise((n,), seed, dtype=np.float64, **how), want, rtol=0, atol=3e-14
        )
        # A radius below 1e-2 is made of a number whose distance from one is a few units of float32.
        got = ops.normal_noise((n,), seed, **how)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_generator_gives_the_next_seed():
    rng = np.random.default_rng(4)
    mu = np.zeros((1, 3, 4))
    first, second = (ops.fused_posterior(mu, mu, rng=rng).z for _ in range(2))
    assert not np.array_equal(first, second)
    again = ops.fused_posterior(mu, mu, rng=np.random.default_rng(4)).z
    assert_array_equal(first, again)
