"""The Mamba layer: against the recurrence written out token by token, streamed, packed, differentiated."""

import numpy as np
import pytest
from sensorium import autodiff
from sensorium.nn import mamba

CASES = {
    "plain": {"state_size": 3},
    "biases": {"state_size": 5, "conv_kernel": 2, "use_bias": True, "use_conv_bias": False},
    "wide": {"state_size": 1, "expand": 3, "time_step_rank": 4, "conv_kernel": 1},
}


def drawn(name, dtype=np.float64):
    """Parameters that are all different, and inputs."""
    rng = np.random.default_rng(0)

    def stir(tree):
        return {
            k: stir(v) if isinstance(v, dict) else (v + 0.3 * rng.standard_normal(v.shape)).astype(dtype)
            for k, v in tree.items()
        }

    params = stir(mamba.init(rng, 8, **CASES[name]))
    return params, rng.standard_normal((2, 11, 8)).astype(dtype)


def silu(x):
    return x / (1 + np.exp(-x))


def written_out(params, x):
    """The layer as its formulas stand, one row and one token at a time."""
    E, S = params["A_log"].shape
    R = params["dt_proj"]["weight"].shape[0]
    taps = params["conv1d"]["weight"]
    out = np.zeros_like(x)
    for b, row in enumerate(x):
        before, h = np.zeros((taps.shape[1] - 1, E)), np.zeros((E, S))
        for t, token in enumerate(row):
            u, z = np.split(token @ params["in_proj"]["weight"] + params["in_proj"].get("bias", 0), 2)
            window = np.concatenate([before, u[None]])
            before = window[1:]
            u = silu((window * taps.T).sum(axis=0) + params["conv1d"].get("bias", 0))
            dt, B, C = np.split(u @ params["x_proj"]["weight"], [R, R + S])
            delta = np.log1p(np.exp(dt @ params["dt_proj"]["weight"] + params["dt_proj"]["bias"]))
            h = np.exp(-delta[:, None] * np.exp(params["A_log"])) * h + np.outer(delta * u, B)
            y = (h @ C + params["D"] * u) * silu(z)
            out[b, t] = y @ params["out_proj"]["weight"] + params["out_proj"].get("bias", 0)
    return out


@pytest.mark.parametrize("name", CASES)
def test_as_written_out(name):
    params, x = drawn(name)
    want = written_out(params, x)
    np.testing.assert_allclose(mamba.forward(params, x), want, atol=1e-11)
    np.testing.assert_allclose(mamba.forward(params, x, residual=x), want + x, atol=1e-11)
    single, small = drawn(name, np.float32)
    got = mamba.forward(single, small)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cuts", [[1] * 11, [4, 7], [10, 1], [3, 1, 0, 7]])
def test_streamed(name, cuts):
    params, x = drawn(name)
    state, ready = mamba.state(params, 2), mamba.prepare(params)
    pieces = [
        mamba.step(ready, piece, state, residual=piece) for piece in np.split(x, np.cumsum(cuts)[:-1], axis=1)
    ]
    np.testing.assert_allclose(
        np.concatenate(pieces, axis=1), mamba.forward(params, x, residual=x), atol=1e-11
    )


@pytest.mark.parametrize("name", CASES)
def test_packed(name):
    params, x = drawn(name)
    apart = np.concatenate([mamba.forward(params, part) for part in (x[:1, :4], x[:1, 4:])], axis=1)
    for packing in ({"seq_idx": [[5] * 4 + [2] * 7]}, {"cu_seqlens": [0, 4, 11]}):
        np.testing.assert_allclose(mamba.forward(params, x[:1], **packing), apart, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_gradient_along_a_direction(name):
    params, x = drawn(name)
    rng = np.random.default_rng(1)
    g = rng.standard_normal(x.shape)

    def value(tree):
        return (mamba.forward(tree["params"], tree["x"]) * g).sum()

    def like(tree):
        return {k: like(v) if isinstance(v, dict) else rng.standard_normal(v.shape) for k, v in tree.items()}

    def moved(tree, along, t):
        return {
            k: moved(v, along[k], t) if isinstance(v, dict) else v + t * along[k] for k, v in tree.items()
        }

    def dot(a, b):
        return sum(dot(a[k], b[k]) if isinstance(a[k], dict) else np.sum(a[k] * b[k]) for k in a)

    tree = {"params": params, "x": x}
    along = like(tree)
    _, grads = autodiff.value_and_grad(value)(tree)
    at = [value(moved(tree, along, t)) for t in (2e-5, 1e-5, -1e-5, -2e-5)]
    numeric = (8 * (at[1] - at[2]) - (at[0] - at[3])) / 12e-5
    assert dot(grads, along) == pytest.approx(numeric, rel=1e-6)


def test_it_begins_where_it_should():
    params = mamba.init(np.random.default_rng(0), 256, time_step=(0.01, 0.1), state_size=4)
    dt = np.log1p(np.exp(params["dt_proj"]["bias"].astype(float)))
    assert 0.0099 < dt.min() < 0.0105
    assert 0.095 < dt.max() < 0.1001
    np.testing.assert_allclose(np.exp(params["A_log"]), np.tile([1, 2, 3, 4], (512, 1)), rtol=1e-6)
    assert params["x_proj"]["weight"].shape == (512, 16 + 8)
    assert abs(params["in_proj"]["weight"]).max() <= 256**-0.5
