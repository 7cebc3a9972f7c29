"""Multimodal VAEs: bounds hold, gradients are those of the loss, and what is missing is not there."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.special import gammaln
from sensorium._tree import tree_leaves, tree_map
from sensorium.autodiff import value_and_grad
from sensorium.errors import ArgumentError, CheckpointError, DTypeError, ShapeError
from sensorium.models.vae import (
    Config,
    ModalityConfig,
    Model,
    bound,
    decode,
    encode,
    generate,
    init,
    interpolate,
    loss,
    mmvae,
    mmvae_plus,
    mopoe,
    mvae,
    posterior,
    unimodal,
)

MODALITIES = {
    "image": ModalityConfig(shape=(2, 3), likelihood="bernoulli", trials=4, hidden=(7,), weight=1.5),
    "sound": ModalityConfig(shape=5, likelihood="laplace", hidden=()),
    "word": ModalityConfig(shape=(2, 4), likelihood="categorical", hidden=(6, 5)),
    "touch": ModalityConfig(shape=3, hidden=(4,)),
}
CONFIGS = {
    "mvae": mvae(MODALITIES, 3),
    "mvae, present": mvae(
        MODALITIES, 3, reconstruct="present", private_dim=2, beta=0.5, subsets=2, part_weight=0.3
    ),
    "mvae, weighted": mvae(MODALITIES, 3, samples=3, private_dim=2),
    "mmvae": mmvae(MODALITIES, 3, samples=4),
    "mmvae_plus": mmvae_plus(MODALITIES, 3, 2),
    "mopoe": mopoe(MODALITIES, 3),
    "mopoe, weighted": mopoe(MODALITIES, 3, samples=2, private_dim=2),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def items(rows=5, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 5, (rows, 2, 3)) / 4,
        "sound": rng.standard_normal((rows, 5)),
        "word": np.eye(4)[rng.integers(0, 4, (rows, 2))],
        "touch": rng.standard_normal((rows, 3)),
    }


def parameters(config, seed=0, dtype=np.float64):
    """Parameters away from where training begins, where heads are zero."""
    rng = np.random.default_rng(seed)
    return tree_map(lambda a: (a + 0.2 * rng.standard_normal(a.shape)).astype(dtype), init(config, rng))


def some_mask(rows=5, seed=1):
    mask = np.random.default_rng(seed).random((4, rows)) < 0.6
    mask[:, 0] = False  # A row without anything counts for nothing.
    return mask


@every_config
def test_the_gradient_is_that_of_the_loss(config):
    params, batch, mask = parameters(config), items(), some_mask()

    def value(p):
        return loss(p, config, batch, mask, rng=np.random.default_rng(2))

    (_, parts), grads = value_and_grad(value, has_aux=True)(params)
    rng = np.random.default_rng(3)
    direction = tree_map(lambda a: rng.standard_normal(a.shape), params)
    step = 1e-5
    ahead = value(tree_map(lambda a, d: a + step * d, params, direction))[0]
    behind = value(tree_map(lambda a, d: a - step * d, params, direction))[0]
    along = sum(np.vdot(g, d) for g, d in zip(tree_leaves(grads), tree_leaves(direction), strict=True))
    assert along == pytest.approx((ahead - behind) / (2 * step), rel=1e-6, abs=1e-7)
    assert set(parts) <= {"kl", *MODALITIES}


@every_config
def test_missing_is_as_if_it_had_never_been_and_is_never_read(config):
    params, batch, mask = parameters(config), items(), some_mask()
    hidden = {name: array.copy() for name, array in batch.items()}
    for name, there in zip(config.names, mask, strict=True):
        hidden[name][~there] = np.nan
    draws = {"rng": np.random.default_rng(2)}, {"rng": np.random.default_rng(2)}
    assert (
        loss(params, config, batch, mask, **draws[0])[0] == loss(params, config, hidden, mask, **draws[1])[0]
    )
    by_name = dict(zip(config.names, mask, strict=True))
    assert np.array_equal(
        bound(params, config, hidden, by_name, num_samples=3, **draws[0]),
        bound(params, config, batch, mask, num_samples=3, **draws[1]),
    )
    # A modality masked everywhere is one that the batch lacks.
    mask[1] = False
    lacking = {name: array for name, array in hidden.items() if name != "sound"}
    assert (
        loss(params, config, hidden, mask, **draws[0])[0]
        == loss(params, config, lacking, mask, **draws[1])[0]
    )
    a, b = (posterior(params, config, x, mask) for x in (hidden, lacking))
    assert np.array_equal(a.mean, b.mean)
    assert np.array_equal(a.logvar, b.logvar)


@pytest.mark.parametrize("config", [CONFIGS["mvae"], CONFIGS["mopoe"], CONFIGS["mmvae"]])
def test_a_model_without_the_modality_says_the_same_of_the_others(config):
    params, batch = parameters(config), items()
    some = {name: m for name, m in MODALITIES.items() if name != "sound"}
    smaller, fewer = replace(config, modalities=some), {n: params[n] for n in some}
    lacking = {n: batch[n] for n in some}
    a, b = posterior(params, config, lacking), posterior(fewer, smaller, lacking)
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12)
    np.testing.assert_allclose(a.logvar, b.logvar, rtol=1e-12, atol=1e-12)
    for given in (None, ["image"]):
        x, y = (
            bound(p, c, lacking, num_samples=4000, given=given, targets=["word", "touch"], rng=np.random.default_rng(5))
            for p, c in ((params, config), (fewer, smaller))
        )  # fmt: skip
        np.testing.assert_allclose(x, y, atol=0.15)


@pytest.mark.parametrize("make", [mvae, mmvae, mopoe])
def test_one_modality_is_a_plain_vae(make):
    """The loss and its gradient against one written out for one modality."""
    config = make({"touch": MODALITIES["touch"]}, 3, samples=1, beta=0.7)
    params, x = parameters(config), items()["touch"]
    p = params["touch"]
    value, _ = loss(params, config, {"touch": x}, rng=np.random.default_rng(2))
    mu, logvar, _, _ = encode(params, config, {"touch": x})["touch"]
    if make is not mmvae:  # The prior is one more expert.
        total = 1 + np.exp(-logvar)
        mu, logvar = mu * np.exp(-logvar) / total, -np.log(total)
    expected = []
    for seed in range(2000 if make is not mvae else 500):
        noise = np.random.default_rng(seed).standard_normal(mu.shape)
        z = mu + np.exp(0.5 * logvar) * noise
        error = (decode(params, config, "touch", z) - x) * np.exp(-p["log_scale"])
        score = -0.5 * (error**2).sum(1) - 3 * (p["log_scale"] + 0.5 * np.log(2 * np.pi))
        kl = 0.5 * (np.exp(logvar) + mu**2 - 1 - logvar).sum(1)
        expected.append(-(score - 0.7 * kl).mean())
    values = [loss(params, config, {"touch": x}, rng=np.random.default_rng(s))[0] for s in range(500)]
    margin = 5 * (np.std(values) / np.sqrt(len(values)) + np.std(expected) / np.sqrt(len(expected)))
    assert np.mean(values) == pytest.approx(np.mean(expected), abs=margin)
    assert value == values[2]


def linear_gaussian(make, **options):
    """Two views of one latent through linear maps: ``x ~ N(b, W W^T + s^2 I)``.

    Each expert is the posterior of its view alone, somewhat wider and without correlations.
    """
    noises = {"a": 0.6, "b": 0.9}
    sizes = {"a": 4, "b": 3}
    views = {n: ModalityConfig(shape=sizes[n], hidden=(), scale=noises[n]) for n in "ab"}
    config = make(views, 2, **options)
    params = parameters(config, seed=4)
    for name, p in params.items():
        w, b = p["decoder"]["0"]["weight"][:2], p["decoder"]["0"]["bias"]
        covariance = np.linalg.inv(np.eye(2) + w @ w.T / noises[name] ** 2)
        p["mean"]["weight"][:] = w.T @ covariance / noises[name] ** 2
        p["mean"]["bias"][:] = -b @ p["mean"]["weight"]
        p["logvar"]["weight"][:] = 0
        p["logvar"]["bias"][:] = np.log(np.diag(covariance)) + 0.5
    rng = np.random.default_rng(5)
    weight = np.concatenate([params[n]["decoder"]["0"]["weight"][:2] for n in "ab"], axis=1)  # (D, 7)
    bias = np.concatenate([params[n]["decoder"]["0"]["bias"] for n in "ab"])
    noise = np.repeat([0.6, 0.9], [4, 3])
    x = rng.standard_normal((6, 2)) @ weight + bias + noise * rng.standard_normal((6, 7))
    return config, params, x, weight, bias, noise


def log_normal_density(x, mean, covariance):
    error = np.linalg.solve(np.linalg.cholesky(covariance), (x - mean).T)
    _, logdet = np.linalg.slogdet(covariance)
    return -0.5 * ((error**2).sum(axis=0) + logdet + len(covariance) * np.log(2 * np.pi))


@pytest.mark.parametrize("make", [mvae, mmvae, mopoe])
def test_bounds_rise_to_the_exact_likelihood_of_a_linear_gaussian_model(make):
    config, params, x, weight, bias, noise = linear_gaussian(make)
    batch = {"a": x[:, :4], "b": x[:, 4:]}
    for some, slots in ((None, slice(0, 7)), (["a"], slice(0, 4)), (["b"], slice(4, 7))):
        w = weight[:, slots]
        exact = log_normal_density(x[:, slots], bias[slots], w.T @ w + np.diag(noise[slots] ** 2))
        means, margins = [], []
        for K, repeats in ((1, 300), (10, 100), (2000, 4)):
            draws = [
                bound(params, config, batch, targets=some, num_samples=K, rng=np.random.default_rng(r))
                for r in range(repeats)
            ]
            means.append(np.mean(draws, axis=0))
            margins.append(4 * np.std(draws, axis=0) / np.sqrt(repeats))
        elbo, weighted, near = means
        assert (elbo < weighted + margins[0]).all()
        if some is None:
            assert elbo.mean() < weighted.mean() < exact.mean()
        assert (weighted < exact + margins[1]).all()
        np.testing.assert_allclose(near, exact, atol=0.05)


@pytest.mark.parametrize("make", [mvae, mmvae, mopoe])
def test_a_conditional_bound_rises_to_the_density_that_is_written_from(make):
    config, params, x, weight, bias, noise = linear_gaussian(make)
    batch = {"a": x[:, :4], "b": x[:, 4:]}
    q = posterior(params, config, batch, given=["b"])
    w, s = weight[:, :4], np.diag(noise[:4] ** 2)
    exact = []
    for row in range(len(x)):
        mean, var = q.mean[row], np.exp(q.logvar[row])
        exact.append(log_normal_density(x[row, :4], mean @ w + bias[:4], w.T * var @ w + s)[None])
    if make is mmvae:
        assert len(q.means) == 2
    draws = [
        bound(params, config, batch, given=["b"], num_samples=3000, rng=np.random.default_rng(r))
        for r in range(3)
    ]
    np.testing.assert_allclose(np.mean(draws, axis=0), np.ravel(exact), atol=0.05)


def with_private_latents():
    """The same views, each with a latent of its own whose proposal is the prior."""
    config, params, x, *_ = linear_gaussian(mvae, private_dim=1)
    for p in params.values():
        for head in ("private_mean", "private_logvar"):
            p[head] = tree_map(np.zeros_like, p[head])
    maps = {n: (p["decoder"]["0"]["weight"][:2], p["decoder"]["0"]["weight"][2:]) for n, p in params.items()}
    return config, params, {"a": x[:, :4], "b": x[:, 4:]}, maps


def test_bounds_with_private_latents_rise_to_the_exact_likelihood():
    config, params, batch, maps = with_private_latents()
    shared = np.concatenate([maps[n][0] for n in "ab"], axis=1)
    covariance = shared.T @ shared + np.diag(np.repeat([0.36, 0.81], [4, 3]))
    for n, slots in (("a", slice(0, 4)), ("b", slice(4, 7))):
        covariance[slots, slots] += maps[n][1].T @ maps[n][1]
    bias = np.concatenate([params[n]["decoder"]["0"]["bias"] for n in "ab"])
    exact = log_normal_density(np.concatenate([batch["a"], batch["b"]], axis=1), bias, covariance)
    near = [bound(params, config, batch, num_samples=4000, rng=np.random.default_rng(r)) for r in range(3)]
    np.testing.assert_allclose(np.mean(near, axis=0), exact, atol=0.06)
    q = posterior(params, config, batch, given=["b"])
    guess, (w, own) = params["a"]["guess"], maps["a"]
    mean = q.mean @ w + guess["mean"] @ own + params["a"]["decoder"]["0"]["bias"]
    noise = np.exp(guess["logvar"]) * own.T @ own + 0.36 * np.eye(4)
    exact = [
        log_normal_density(batch["a"][[row]], mean[row], (w.T * np.exp(q.logvar[row])) @ w + noise)[0]
        for row in range(6)
    ]
    near = [
        bound(params, config, batch, given=["b"], num_samples=4000, rng=np.random.default_rng(r))
        for r in range(3)
    ]
    np.testing.assert_allclose(np.mean(near, axis=0), exact, atol=0.06)


def test_private_latents_come_from_their_own_item_or_what_was_learnt_or_the_prior():
    config, params, batch, maps = with_private_latents()
    p, rng = params["a"], np.random.default_rng(0)
    p["private_mean"]["bias"][:] = 2.0
    for given, private in ((["a"], 2.0), (["b"], p["guess"]["mean"]), ([], 0.0)):
        z = posterior(params, config, batch, given=given).mean
        expected = z @ maps["a"][0] + private * maps["a"][1] + p["decoder"]["0"]["bias"]
        out = generate(params, config, batch, given=given, latent="mean", rng=rng)
        np.testing.assert_allclose(out["a"][0], expected, rtol=1e-9, atol=1e-9)
    out = generate(params, config, batch, given=["b"], num_samples=4000, rng=rng)["a"].var(axis=0)
    q = posterior(params, config, batch, given=["b"])
    expected = np.exp(q.logvar) @ maps["a"][0] ** 2 + np.exp(p["guess"]["logvar"]) * maps["a"][1] ** 2
    np.testing.assert_allclose(out, expected, rtol=0.15)


def test_the_weighted_loss_of_a_product_reaches_the_likelihood_and_that_of_a_mixture_stays_below():
    """Of a mixture it is the mean of a bound for each component, which is looser than one for all."""
    for make in (mvae, mmvae, mopoe):
        config, params, x, weight, bias, noise = linear_gaussian(make, samples=2000, singles=False, subsets=0)
        value, _ = loss(params, config, {"a": x[:, :4], "b": x[:, 4:]}, rng=np.random.default_rng(0))
        exact = log_normal_density(x, bias, weight.T @ weight + np.diag(noise**2)).mean()
        low = 0.05 if make is mvae else 0.3
        assert exact - low < -value < exact + (0.05 if make is mvae else 0)


@pytest.mark.parametrize("private_dim", [0, 2])
def test_the_loss_of_a_mixture_of_products_is_its_authors_bound_and_below_the_tight_one(private_dim):
    config = mopoe(MODALITIES, 3, private_dim=private_dim)
    params, batch = parameters(config), items()
    tight = replace(config, samples=2, modalities={n: replace(m, weight=1.0) for n, m in MODALITIES.items()})
    plain = replace(tight, samples=1)
    values = [-loss(params, plain, batch, rng=np.random.default_rng(s))[0] for s in range(100)]
    better = [-loss(params, tight, batch, rng=np.random.default_rng(s))[0] for s in range(100)]
    assert np.mean(values) < np.mean(better)


def from_the_prior(modality):
    """A model whose expert is the prior, so that a bound is a plain mean of likelihoods."""
    config = Config(modalities={"x": modality}, latent_dim=1, posterior="mixture")
    params = parameters(config)
    for head in ("mean", "logvar"):
        params["x"][head] = tree_map(np.zeros_like, params["x"][head])
    return params, config


@pytest.mark.parametrize(
    ("modality", "values", "spacing"),
    [
        (ModalityConfig(shape=1, likelihood="bernoulli", trials=4), np.arange(5)[:, None] / 4, 1),
        (ModalityConfig(shape=3, likelihood="categorical"), np.eye(3), 1),
        (ModalityConfig(shape=1, likelihood="gaussian"), np.linspace(-20, 20, 801)[:, None], 0.05),
        (ModalityConfig(shape=1, likelihood="laplace"), np.linspace(-20, 20, 801)[:, None], 0.05),
    ],
)
def test_likelihoods_add_up_to_one(modality, values, spacing):
    """Every value is scored with the same latents, so that the sum has no noise."""
    params, config = from_the_prior(modality)
    each = [
        bound(params, config, {"x": x[None]}, num_samples=100, rng=np.random.default_rng(0)) for x in values
    ]
    assert np.exp(each).sum() * spacing == pytest.approx(1, abs=1e-3)


def test_draws_have_the_mean_that_is_said():
    config = mvae(MODALITIES, 3)
    params, batch = parameters(config), items(2)
    rng = np.random.default_rng(0)
    drawn = generate(params, config, batch, num_samples=20000, draw=True, rng=rng)
    mean = generate(params, config, batch, num_samples=20000, rng=rng)
    for name, values in drawn.items():
        np.testing.assert_allclose(values.mean(axis=0), mean[name].mean(axis=0), atol=0.06)
    assert set(np.unique(drawn["image"] * 4)) <= set(range(5))
    assert np.array_equal(drawn["word"].sum(axis=-1), np.ones((20000, 2, 2)))


@every_config
def test_every_subset_writes_every_modality(config):
    params, batch = parameters(config, dtype=np.float32), items()
    for code in range(16):
        given = [n for m, n in enumerate(MODALITIES) if code >> m & 1]
        out = generate(params, config, batch, given=given, num_samples=2, rng=np.random.default_rng(0))
        for name, m in MODALITIES.items():
            assert out[name].shape == (2, 5, *m.dims)
            assert out[name].dtype == np.float32
            assert np.isfinite(out[name]).all()
    unconditional = generate(
        params, config, rows=3, num_samples=2, targets=["word"], rng=np.random.default_rng(0)
    )
    assert unconditional["word"].shape == (2, 3, 2, 4)
    means = generate(params, config, batch, latent="mean", rng=np.random.default_rng(0))
    again = generate(params, config, batch, latent="mean", rng=np.random.default_rng(1))
    assert np.array_equal(means["image"], again["image"])


def test_a_way_ends_where_its_ends_are():
    for config in (CONFIGS["mvae"], CONFIGS["mmvae_plus"]):
        params, a, b = parameters(config), items(seed=0), items(seed=1)
        way = interpolate(params, config, a, b, steps=5, targets=["touch"])
        ends = [
            generate(params, config, x, latent="mean", rng=np.random.default_rng(0))["touch"][0]
            for x in (a, b)
        ]
        assert way.keys() == {"touch"}
        np.testing.assert_allclose(way["touch"][[0, -1]], ends, rtol=1e-9)


def test_more_senses_sharpen_a_product_and_a_mixture_is_as_wide_as_its_parts_lie_apart():
    config = mvae(MODALITIES, 3)
    params, batch = parameters(config), items()
    widths = [posterior(params, config, batch, given=list(MODALITIES)[:n]).logvar for n in range(5)]
    assert np.array_equal(widths[0], np.zeros((5, 3)))
    assert all((after < before).all() for before, after in pairwise(widths))
    mixed = posterior(params, mmvae(MODALITIES, 3), batch)
    z = mixed.draw(40000, np.random.default_rng(0))
    np.testing.assert_allclose(z.mean(axis=0), mixed.mean, atol=0.05)
    np.testing.assert_allclose(np.log(z.var(axis=0)), mixed.logvar, atol=0.05)
    np.testing.assert_allclose(mixed.log_prob(z[:3]), [mixed.log_prob(one) for one in z[:3]])


def test_parts_of_a_row_count_by_their_weight():
    """With a weight of 0 only the whole row's posterior is left; the draws are the same."""
    values = []
    for weight in (0.0, 0.5, 1.0):
        config = mvae(
            {"touch": MODALITIES["touch"], "sound": MODALITIES["sound"]}, 3, subsets=0, part_weight=weight
        )
        batch = {name: items()[name] for name in config.names}
        values.append(loss(parameters(config), config, batch, rng=np.random.default_rng(0))[0])
    whole, half, even = values
    parts = (3 * even - whole) / 2  # Mean of two posteriors of one modality each.
    assert half == pytest.approx((whole + parts) / 2)
    assert abs(whole - parts) > 0.1


def test_the_independent_models_have_the_same_networks():
    config = mvae(MODALITIES, 3, private_dim=2)
    alone = unimodal(config)
    sizes = {n: Model.init(c, np.random.default_rng(0)).parameters for n, c in alone.items()}
    whole = Model.init(config, np.random.default_rng(0)).parameters
    assert whole - sum(sizes.values()) == 4 * 2 * 2  # What a modality is guessed to have for itself.


def test_a_file_gives_the_model_back(tmp_path):
    path = tmp_path / "model.safetensors"
    for config in CONFIGS.values():
        model = Model.init(config, np.random.default_rng(0))
        model.save(path, note=[1, 2])
        again = Model.load(path)
        assert again.config == config
        pairs = zip(tree_leaves(model.params), tree_leaves(again.params, like=model.params), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)


def test_a_file_of_another_model_is_refused(tmp_path):
    model = Model.init(CONFIGS["mvae"], np.random.default_rng(0))
    arrays, metadata = model.to_arrays()
    with pytest.raises(CheckpointError, match="is not a model of format"):
        Model.from_arrays(arrays, {"format": "other"})
    with pytest.raises(
        CheckpointError, match="does not describe a model: latent_dim must be at least 1, not 0"
    ):
        Model.from_arrays(arrays, metadata | {"config": metadata["config"] | {"latent_dim": 0}})
    with pytest.raises(CheckpointError, match="does not describe a model: config cannot be used"):
        Model.from_arrays(arrays, metadata | {"config": {}})
    del arrays["params/image/mean/bias"]
    with pytest.raises(CheckpointError, match="lacks 'image/mean/bias'"):
        Model.from_arrays(arrays, metadata)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"shape": 0}, ArgumentError, "shape must be at least 1, not 0"),
        ({"shape": 2.5}, DTypeError, "shape must be an integer, not float"),
        ({"shape": ()}, ArgumentError, r"shape is \(\), expected from 1"),
        ({"shape": (1 << 20, 1 << 20)}, ArgumentError, "shape is"),
        ({"shape": 2, "likelihood": "poisson"}, ArgumentError, "likelihood must be one of bernoulli"),
        ({"shape": 2, "hidden": 3}, DTypeError, "hidden must be a sequence of int, not int"),
        ({"shape": 2, "hidden": (0,)}, ArgumentError, "hidden must be at least 1, not 0"),
        ({"shape": 2, "weight": -1}, ArgumentError, "weight must not be negative, not -1"),
        ({"shape": 2, "weight": np.nan}, ArgumentError, "weight must be finite, not nan"),
        ({"shape": 2, "scale": 0.0}, ArgumentError, "scale must be above 0, not 0"),
        ({"shape": 2, "scale": 1.0, "likelihood": "bernoulli"}, ArgumentError, "scale is for gaussian and laplace"),
        ({"shape": 2, "trials": 3}, ArgumentError, "trials is for bernoulli likelihoods, not gaussian"),
    ],
)  # fmt: skip
def test_modalities_that_cannot_be(options, error, words):
    with pytest.raises(error, match=words):
        ModalityConfig(**options)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"latent_dim": 0}, ArgumentError, "latent_dim must be at least 1, not 0"),
        ({"private_dim": -1}, ArgumentError, "private_dim must be at least 0, not -1"),
        ({"posterior": "sum"}, ArgumentError, "posterior must be one of product, mixture, mixture_of_products"),
        ({"beta": -1.0}, ArgumentError, "beta must not be negative, not -1"),
        ({"samples": 0}, ArgumentError, "samples must be at least 1, not 0"),
        ({"subsets": -1}, ArgumentError, "subsets must be at least 0, not -1"),
        ({"part_weight": -0.5}, ArgumentError, "part_weight must not be negative, not -0.5"),
        ({"singles": 1}, DTypeError, "singles must be a bool, not 1"),
        ({"reconstruct": "all"}, ArgumentError, "reconstruct must be 'present' or 'given', not 'all'"),
        ({"modalities": {}}, ArgumentError, "modalities has 0, expected from 1 to 64 for a product"),
        ({"modalities": [1]}, DTypeError, "modalities must be a mapping, not list"),
        ({"modalities": {"a/b": ModalityConfig(shape=1)}}, ArgumentError, "modalities has the name 'a/b'"),
        ({"modalities": {"a": 3}}, DTypeError, r"modalities\['a'\] must be a ModalityConfig, not int"),
    ],
)  # fmt: skip
def test_configurations_that_cannot_be(options, error, words):
    with pytest.raises(error, match=words):
        Config(**({"modalities": MODALITIES, "latent_dim": 3} | options))


def test_too_many_modalities_for_all_subsets():
    many = {str(i): ModalityConfig(shape=1) for i in range(9)}
    with pytest.raises(
        ArgumentError, match="modalities has 9, expected from 1 to 8 for a mixture_of_products"
    ):
        mopoe(many, 2)
    with pytest.raises(ArgumentError, match="private_dim must be at least 1, not 0"):
        mmvae_plus(MODALITIES, 2, 0)


def bad(name, value):
    batch = items()
    batch[name] = value
    return batch


NOT_FINITE = np.full((5, 5), np.inf)


@pytest.mark.parametrize(
    ("batch", "mask", "error", "words"),
    [
        ({}, None, ArgumentError, "batch is empty, expected some of image, sound, word, touch"),
        ([1], None, DTypeError, "batch must be a mapping of modalities to arrays, not list"),
        (bad("smell", np.ones((5, 1))), None, ArgumentError, "batch has the modality 'smell'"),
        (bad("sound", np.ones((5, 4))), None, ShapeError, r"batch\['sound'\] has shape \(5, 4\), expected \(B, 5\)"),
        (bad("sound", np.ones(5)), None, ShapeError, r"batch\['sound'\] has shape \(5,\), expected \(B, 5\)"),
        (bad("sound", np.ones((4, 5))), None, ShapeError, r"batch\['sound'\] has 4 rows but batch\['image'\] has 5"),
        (bad("sound", np.ones((5, 5), complex)), None, DTypeError, r"batch\['sound'\] has dtype complex128"),
        (bad("sound", NOT_FINITE), None, ArgumentError, r"batch\['sound'\] holds values that are not finite"),
        (bad("sound", np.full((5, 5), 1e300)), None, ArgumentError, r"batch\['sound'\] holds values that are not"),
        (bad("image", np.full((5, 6), 1.5)), None, ArgumentError, r"batch\['image'\] holds 1.5, expected values from"),
        (bad("word", np.full((5, 8), -0.5)), None, ArgumentError, r"batch\['word'\] holds -0.5, expected values from"),
        (bad("word", np.full((5, 8), 0.5)), None, ArgumentError, r"batch\['word'\] has probabilities that add up to 2"),
        (items(), np.ones((4, 4), bool), ShapeError, r"mask has shape \(4, 4\), expected \(4, 5\)"),
        (items(), np.ones((4, 5)), DTypeError, "mask has dtype float64, expected bool"),
        (items(), {"smell": np.ones(5, bool)}, ArgumentError, "mask has the modality 'smell'"),
        (items(), {"word": np.ones(4, bool)}, ShapeError, r"mask\['word'\] has shape \(4,\), expected \(5,\)"),
        (items(), {"word": np.ones(5)}, DTypeError, r"mask\['word'\] has dtype float64, expected bool"),
        (items(), np.zeros((4, 5), bool), ArgumentError, "mask leaves no item in batch"),
        (items(0), None, ArgumentError, "mask leaves no item in batch"),
    ],
)  # fmt: skip
def test_batches_that_do_not_fit(batch, mask, error, words):
    config = CONFIGS["mvae"]
    with pytest.raises(error, match=words), np.errstate(over="ignore"):
        loss(parameters(config, dtype=np.float32), config, batch, mask, rng=np.random.default_rng(0))


def test_words_of_other_errors():
    config = CONFIGS["mvae"]
    params, batch, rng = parameters(config), items(), np.random.default_rng(0)
    with pytest.raises(ArgumentError, match="given holds 'smell', expected some of image"):
        posterior(params, config, batch, given=["smell"])
    with pytest.raises(DTypeError, match="targets is one str, expected a sequence"):
        generate(params, config, batch, targets="image", rng=rng)
    with pytest.raises(ArgumentError, match="targets holds 'word', which is given"):
        bound(params, config, batch, given=["word"], targets=["word", "image"], rng=rng)
    with pytest.raises(ArgumentError, match="num_samples must be at least 1, not 0"):
        bound(params, config, batch, num_samples=0, rng=rng)
    with pytest.raises(ArgumentError, match="latent must be 'sample' or 'mean', not 'mode'"):
        generate(params, config, batch, latent="mode", rng=rng)
    with pytest.raises(ArgumentError, match="steps must be at least 2, not 1"):
        interpolate(params, config, batch, batch, steps=1)
    with pytest.raises(ShapeError, match="stop has 4 rows but start has 5"):
        interpolate(params, config, batch, items(4))


def test_no_rows_give_no_rows():
    for config in CONFIGS.values():
        params, batch, rng = parameters(config), items(0), np.random.default_rng(0)
        assert bound(params, config, batch, rng=rng).shape == (0,)
        assert generate(params, config, batch, num_samples=2, rng=rng)["image"].shape == (2, 0, 2, 3)
        assert posterior(params, config, batch).mean.shape == (0, 3)


def test_arrays_of_any_kind_are_read():
    config = CONFIGS["mopoe"]
    params, batch = parameters(config), items()
    expected = posterior(params, config, batch).mean
    odd = {
        "image": np.asfortranarray(batch["image"]),
        "sound": batch["sound"].astype(">f8"),
        "word": batch["word"].astype(bool).reshape(5, 8),
        "touch": np.repeat(batch["touch"], 2, axis=0)[::2],
    }
    odd["touch"].flags.writeable = False
    assert np.array_equal(posterior(params, config, odd).mean, expected)


def test_the_binomial_coefficient_is_in_the_likelihood():
    params, config = from_the_prior(ModalityConfig(shape=1, likelihood="bernoulli", trials=16))
    params = tree_map(np.zeros_like, params)
    expected = gammaln(17) - gammaln(6) - gammaln(12) - 16 * np.log(2)
    value = bound(params, config, {"x": [[5 / 16]]}, num_samples=1, rng=np.random.default_rng(0))
    assert value == pytest.approx(expected)
