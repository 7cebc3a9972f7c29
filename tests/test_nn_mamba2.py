"""The Mamba-2 layer: against the recurrence written out token by token, streamed, packed, differentiated."""

import numpy as np
import pytest
from sensorium import ArgumentError, autodiff
from sensorium.nn import mamba2

CASES = {
    "plain": ({"head_dim": 4, "state_size": 3}, {}),
    "groups": (
        {"head_dim": 4, "state_size": 3, "n_groups": 2, "use_bias": True, "use_conv_bias": False},
        {"n_groups": 2, "eps": 1e-2, "dt_limit": (0.3, 0.7)},
    ),
    "norm first": ({"head_dim": 8, "state_size": 5, "conv_kernel": 2}, {"norm_before_gate": True}),
    "no norm": ({"head_dim": 2, "state_size": 4, "conv_kernel": 1, "expand": 3, "use_norm": False}, {}),
}


def drawn(name, dtype=np.float64):
    """Parameters that are all different, and inputs."""
    rng = np.random.default_rng(0)
    made, how = CASES[name]

    def stir(tree):
        return {
            k: stir(v) if isinstance(v, dict) else (v + 0.3 * rng.standard_normal(v.shape)).astype(dtype)
            for k, v in tree.items()
        }

    params = stir(mamba2.init(rng, 8, **made))
    return params, rng.standard_normal((2, 11, 8)).astype(dtype), how


def silu(x):
    return x / (1 + np.exp(-x))


def written_out(params, x, n_groups=1, eps=1e-5, norm_before_gate=False, dt_limit=(0, np.inf)):
    """The layer as its formulas stand, one row, one token, one head at a time."""
    B, L, _ = x.shape
    E, H = params["out_proj"]["weight"].shape[0], len(params["A_log"])
    P, taps = E // H, params["conv1d"]["weight"]
    C, K = taps.shape
    S = (C - E) // (2 * n_groups)
    out = np.zeros_like(x)
    for b in range(B):
        before, state = np.zeros((K - 1, C)), np.zeros((H, P, S))
        for t in range(L):
            row = x[b, t] @ params["in_proj"]["weight"] + params["in_proj"].get("bias", 0)
            z, channels, dt = row[:E], row[E : E + C], row[E + C :]
            window = np.concatenate([before, channels[None]])
            before = window[1:]
            channels = silu((window * taps.T).sum(axis=0) + params["conv1d"].get("bias", 0))
            dt = np.clip(np.log1p(np.exp(dt + params["dt_bias"])), *dt_limit)
            y = np.zeros((H, P))
            for h in range(H):
                g = h * n_groups // H
                u = channels[h * P : (h + 1) * P]
                b_t = channels[E + g * S : E + (g + 1) * S]
                c_t = channels[E + (n_groups + g) * S : E + (n_groups + g + 1) * S]
                state[h] = np.exp(-dt[h] * np.exp(params["A_log"][h])) * state[h] + dt[h] * np.outer(u, b_t)
                y[h] = state[h] @ c_t + params["D"][h] * u
            y = y.ravel()
            if "norm" not in params:
                y = y * silu(z)
            else:
                y = y if norm_before_gate else y * silu(z)
                groups = y.reshape(n_groups, -1)
                y = (groups / np.sqrt((groups**2).mean(axis=1, keepdims=True) + eps)).ravel()
                y = y * params["norm"]["weight"] * (silu(z) if norm_before_gate else 1)
            out[b, t] = y @ params["out_proj"]["weight"] + params["out_proj"].get("bias", 0)
    return out


@pytest.mark.parametrize("name", CASES)
def test_as_written_out(name):
    params, x, how = drawn(name)
    want = written_out(params, x, **how)
    np.testing.assert_allclose(mamba2.forward(params, x, **how), want, atol=1e-11)
    np.testing.assert_allclose(mamba2.forward(params, x, residual=x, **how), want + x, atol=1e-11)
    single, small, how = drawn(name, np.float32)
    got = mamba2.forward(single, small, **how)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=2e-5)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cuts", [[1] * 11, [4, 7], [10, 1], [3, 1, 0, 7]])
def test_streamed(name, cuts):
    params, x, how = drawn(name)
    state = mamba2.state(params, 2, n_groups=how.get("n_groups", 1))
    ready = mamba2.prepare(params)
    pieces = [
        mamba2.step(ready, piece, state, residual=piece, **how)
        for piece in np.split(x, np.cumsum(cuts)[:-1], axis=1)
    ]
    np.testing.assert_allclose(
        np.concatenate(pieces, axis=1), mamba2.forward(params, x, residual=x, **how), atol=1e-11
    )


@pytest.mark.parametrize("name", CASES)
def test_packed(name):
    params, x, how = drawn(name)
    apart = np.concatenate([mamba2.forward(params, part, **how) for part in (x[:1, :4], x[:1, 4:])], axis=1)
    for packing in ({"seq_idx": [[5] * 4 + [2] * 7]}, {"cu_seqlens": [0, 4, 11]}):
        np.testing.assert_allclose(mamba2.forward(params, x[:1], **how, **packing), apart, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_gradient_along_a_direction(name):
    params, x, how = drawn(name)
    rng = np.random.default_rng(1)
    g = rng.standard_normal(x.shape)
    tree = {"params": params, "x": x}

    def value(tree):
        y = mamba2.forward(tree["params"], tree["x"], **how)
        return (y * g).sum()

    def along(tree, draw, t):
        return {
            k: along(v, draw, t) if isinstance(v, dict) else v + t * draw.standard_normal(v.shape)
            for k, v in tree.items()
        }

    def dot(a, b):
        return sum(dot(a[k], b[k]) if isinstance(a[k], dict) else np.sum(a[k] * b[k]) for k in a)

    _, grads = autodiff.value_and_grad(value)(tree)
    at = [value(along(tree, np.random.default_rng(2), t)) for t in (2e-5, 1e-5, -1e-5, -2e-5)]
    numeric = (8 * (at[1] - at[2]) - (at[0] - at[3])) / 12e-5
    step = along({"d": tree}, np.random.default_rng(2), 1.0)["d"]
    minus = along({"d": tree}, np.random.default_rng(2), 0.0)["d"]
    assert dot(grads, step) - dot(grads, minus) == pytest.approx(numeric, rel=1e-6)


def test_sizes_that_do_not_divide():
    rng = np.random.default_rng(0)
    with pytest.raises(ArgumentError, match=r"head_dim=5 does not divide expand \* width = 16"):
        mamba2.init(rng, 8, head_dim=5)
    with pytest.raises(ArgumentError, match="n_groups=3 does not divide the 4 heads"):
        mamba2.init(rng, 8, head_dim=4, n_groups=3)


def test_time_steps_begin_where_they_should():
    params = mamba2.init(np.random.default_rng(0), 512, head_dim=1, time_step=(0.01, 0.1))
    dt = np.log1p(np.exp(params["dt_bias"].astype(float)))
    assert 0.0099 < dt.min() < 0.0105
    assert 0.095 < dt.max() < 0.1001
    assert abs(np.log(dt).mean() - np.log(0.01**0.5 * 0.1**0.5)) < 0.1
    assert 1 <= np.exp(params["A_log"]).min() < 1.1
    assert all(leaf.dtype == np.float32 for leaf in (params["dt_bias"], params["in_proj"]["weight"]))
