"""The TTT layer: what it computes, written out; packed rows; pieces; the words of its errors."""

import itertools

import numpy as np
import pytest
from sensorium import checkpoint
from sensorium._tree import tree_map
from sensorium.errors import ArgumentError, ShapeError
from sensorium.nn import ttt

KINDS = ("linear", "mlp")
kinds = pytest.mark.parametrize("kind", KINDS)


def params_of(kind, seed=0, width=8, heads=2, **more):
    rng = np.random.default_rng(seed)
    params = ttt.init(rng, width, heads=heads, kind=kind, **more)
    return tree_map(lambda a: a + 0.3 * rng.standard_normal(a.shape), params)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def layer_norm(x, weight, bias, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight + bias


def convolve(x, p):
    padded = np.concatenate([np.zeros((3, x.shape[1])), x])
    return p["bias"] + sum(padded[k : k + len(x)] * p["weight"][:, k] for k in range(4))


def written_out(p, x, heads):
    """TTT-Linear of one sequence ``(L, D)``, token by token, with the inner gradient of every token."""
    L, D = x.shape
    d, b = D // heads, len(p["token"])
    qk = x @ p["qk"]["weight"]
    q, k = convolve(qk, p["conv_q"]), convolve(qk, p["conv_k"])
    v = x @ p["v"]["weight"]
    eta = 1 / (1 + np.exp(-(x @ p["rate"]["weight"] + p["rate"]["bias"]))) / d
    scale = np.maximum(1 / np.arange(1, b + 1) + p["token"], 0)
    z = np.zeros((L, D))
    for h in range(heads):
        part = slice(h * d, (h + 1) * d)
        W, bias = p["fast"]["W"][h].copy(), p["fast"]["b"][h].copy()
        gain, shift = p["norm"]["weight"][h], p["norm"]["bias"][h]
        dW, db = np.zeros_like(W), np.zeros_like(bias)
        for t in range(L):
            if t % b == 0:
                W, bias = W - scale[-1] * dW, bias - scale[-1] * db
                dW, db = np.zeros_like(W), np.zeros_like(bias)
            key, target = k[t, part], v[t, part] - k[t, part]
            u = key @ W + bias
            # The gradient of half the squared error, through the norm, by the middle of two small steps.
            f = lambda u: 0.5 * ((layer_norm(u, gain, shift, 1e-6) - target) ** 2).sum()  # noqa: B023, E731
            g = np.array([(f(u + e) - f(u - e)) / 2e-6 for e in 1e-6 * np.eye(d)])
            dW, db = dW + eta[t, h] * np.outer(key, g), db + eta[t, h] * g
            now, at = W - scale[t % b] * dW, bias - scale[t % b] * db
            z[t, part] = q[t, part] + layer_norm(q[t, part] @ now + at, gain, shift, 1e-6)
    z = layer_norm(z, p["post_norm"]["weight"], p["post_norm"]["bias"], 1e-5)
    return (gelu(x @ p["gate"]["weight"]) * z) @ p["out"]["weight"]


def test_the_layer_written_out():
    params = params_of("linear", mini_batch_size=3)
    x = np.random.default_rng(1).standard_normal((2, 8, 8))
    got = ttt.forward(params, x, heads=2)
    for row, want in zip(got, x, strict=True):
        np.testing.assert_allclose(row, written_out(params, want, 2), rtol=0, atol=1e-6)


@kinds
def test_shapes_are_those_of_init(kind):
    params = ttt.init(np.random.default_rng(0), 8, heads=2, kind=kind, mini_batch_size=5)
    want = ttt.shapes(8, heads=2, kind=kind, mini_batch_size=5)
    assert {name: a.shape for name, a in checkpoint.flatten(params).items()} == want
    assert {a.dtype for a in checkpoint.flatten(params).values()} == {np.dtype(np.float32)}


@kinds
def test_a_new_layer_adds_nothing(kind):
    params = ttt.init(np.random.default_rng(0), 8, heads=2, kind=kind)
    x = np.random.default_rng(1).standard_normal((1, 20, 8), np.float32)
    assert not ttt.forward(params, x, heads=2).any()


@kinds
def test_packed_rows_are_as_if_alone(kind):
    params = params_of(kind)
    x = np.random.default_rng(1).standard_normal((2, 40, 8))
    seq_idx = np.zeros((2, 40), int)
    seq_idx[0, 25:], seq_idx[0, 30:] = 1, 2
    seq_idx[1, 1:] = 7
    got = ttt.forward(params, x, heads=2, seq_idx=seq_idx)
    for row, cuts in ((0, [0, 25, 30, 40]), (1, [0, 1, 40])):
        for a, b in itertools.pairwise(cuts):
            own = ttt.forward(params, x[row : row + 1, a:b], heads=2)
            np.testing.assert_allclose(got[row, a:b], own[0], rtol=0, atol=1e-12)


@kinds
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pieces_are_the_whole(kind, dtype):
    params = tree_map(lambda a: a.astype(dtype), params_of(kind))
    x = np.random.default_rng(1).standard_normal((2, 40, 8)).astype(dtype)
    whole = ttt.forward(params, x, heads=2)
    state, parts, states = None, [], []
    for a, b in ((0, 1), (1, 2), (2, 17), (17, 33), (33, 40)):
        y, state = ttt.step(params, x[:, a:b], state, heads=2)
        parts.append(y)
        states.append(state)
    tolerance = 1e-11 if dtype == np.float64 else 2e-4
    assert parts[0].dtype == dtype
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=tolerance)
    again, _ = ttt.step(params, x[:, 2:17], states[1], heads=2)  # a state is not used up
    np.testing.assert_array_equal(again, parts[2])


def test_wrong_arguments():
    rng = np.random.default_rng(0)
    with pytest.raises(ArgumentError, match="width=8 must be a multiple of heads=3"):
        ttt.init(rng, 8, heads=3)
    with pytest.raises(ArgumentError, match='kind must be "linear" or "mlp", not \'rnn\''):
        ttt.init(rng, 8, heads=2, kind="rnn")
    with pytest.raises(ArgumentError, match="mini_batch_size must be at least 1, not 0"):
        ttt.init(rng, 8, heads=2, mini_batch_size=0)
    params = ttt.init(rng, 8, heads=2)
    with pytest.raises(ShapeError, match="x has D=6 but the parameters have D=8"):
        ttt.forward(params, np.zeros((1, 3, 6), np.float32), heads=2)
    with pytest.raises(ShapeError, match=r"seq_idx has shape \(1, 4\), expected \(1, 3\)"):
        ttt.forward(params, np.zeros((1, 3, 8), np.float32), heads=2, seq_idx=np.zeros((1, 4), int))
