"""Structured state-space duality: the chunked kernel against the recurrence, and the laws that both obey."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import sensorium
from hypothesis import given
from hypothesis import strategies as st
from reference import ssd as reference
from scipy.signal import lfilter
from sensorium import ops
from strategies import FORMS, in_form

DTYPES = [np.float32, np.float64]
RNG = np.random.default_rng


@dataclass
class Case:
    """A whole call."""

    arguments: dict
    about: str

    def __repr__(self):
        shapes = {k: np.shape(v) if isinstance(v, np.ndarray) else v for k, v in self.arguments.items()}
        return f"{self.about} {self.arguments['x'].dtype} {shapes}"


def draw_packing(draw, rng, B, L):
    """``(arguments, number of states)``: sequences that begin anywhere, empty ones among them."""
    kind = draw(st.sampled_from(["whole", "ids", "offsets"]))
    if kind == "offsets" and B == 1:
        cuts = np.sort(rng.integers(0, L + 1, size=draw(st.integers(0, 5))))
        return {"cu_seqlens": np.concatenate([[0], cuts, [L]])}, len(cuts) + 1
    if kind == "ids":
        return {"seq_idx": rng.integers(0, 4, size=(B, L)) // draw(st.sampled_from([1, 2]))}, B
    return {}, B


@st.composite
def cases(draw, longest=150, forms=FORMS):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    B, L = draw(st.sampled_from([1, 2, 0])), draw(st.one_of(st.integers(0, 20), st.integers(0, longest)))
    G = draw(st.integers(1, 2))
    H, P = G * draw(st.integers(1, 3)), draw(st.one_of(st.sampled_from([1, 8, 16, 32]), st.integers(0, 40)))
    S = draw(st.one_of(st.sampled_from([1, 4, 16, 32]), st.integers(0, 40)))
    size = draw(st.sampled_from([1.0, 1e-3, 30.0]))
    rate = draw(st.sampled_from([1.0, 1e-3, 30.0, 1e4]))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = RNG(seed)

    def normal(*shape, scale=size):
        return rng.normal(scale=scale, size=shape).astype(dtype)

    arguments = {
        "x": normal(B, L, H, P),
        "dt": np.abs(normal(B, L, H, scale=1.0)),
        "A": -np.abs(normal(H, scale=rate)),
        "B": normal(B, L, G, S),
        "C": normal(B, L, G, S),
        "chunk_size": draw(st.sampled_from([None, 1, 3, 16, 64, 100, 10**9])),
    }
    arguments["D"] = draw(st.sampled_from([None, normal(H), normal(H, P)]))
    arguments["z"] = draw(st.sampled_from([None, normal(B, L, H, P, scale=3.0)]))
    if draw(st.booleans()):
        arguments |= {"dt_bias": normal(H, scale=2.0), "dt": normal(B, L, H, scale=2.0), "dt_softplus": True}
    arguments["dt_limit"] = draw(st.sampled_from([(0.0, np.inf), (0.1, 0.7)]))
    packing, states = draw_packing(draw, rng, B, L)
    arguments |= packing
    arguments["initial_states"] = draw(st.sampled_from([None, normal(states, H, P, S)]))
    used = []
    for name in ("x", "B", "C", "z"):
        if arguments[name] is not None:
            used.append(draw(st.sampled_from(forms)))
            arguments[name] = in_form(arguments[name], used[-1])
    return Case(arguments, f"seed {seed}, forms {used}")


def within(got, want, bound):
    assert got.shape == want.shape
    assert np.all(np.abs(got - want) <= bound), (np.abs(got - want) / np.where(bound > 0, bound, 1)).max()


@given(cases())
def test_it_is_the_recurrence(case):
    eps = np.finfo(case.arguments["x"].dtype).eps
    got, last = ops.ssd(**case.arguments, return_final_states=True)
    want, want_last = reference.ssd(**case.arguments, return_final_states=True)
    bound, last_bound = reference.forward_bounds(eps, **case.arguments)
    assert got.dtype == last.dtype == case.arguments["x"].dtype.newbyteorder("=")
    within(got, want, bound)
    within(last, want_last, last_bound)


def plain(rng, B=2, L=90, H=4, P=20, G=2, S=24, dtype=np.float64):
    """Arguments of a usual kind."""

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    return {
        "x": normal(B, L, H, P),
        "dt": np.abs(normal(B, L, H)) * dtype(0.3),
        "A": -np.exp(normal(H)),
        "B": normal(B, L, G, S),
        "C": normal(B, L, G, S),
        "D": normal(H),
        "z": normal(B, L, H, P),
        "dt_bias": normal(H) * dtype(0.1),
        "dt_softplus": True,
        "initial_states": normal(B, H, P, S),
    }


@pytest.mark.parametrize("chunk", [1, 5, 16, 64, 256, None])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_chunk_and_every_instruction_set(isa, dtype, chunk):
    arguments = plain(RNG(0), dtype=dtype) | {"chunk_size": chunk}
    got, last = ops.ssd(**arguments, return_final_states=True)
    want, want_last = reference.ssd(**arguments, return_final_states=True)
    bound, last_bound = reference.forward_bounds(np.finfo(dtype).eps, **arguments)
    within(got, want, bound)
    within(last, want_last, last_bound)
    # The bound says something.
    assert bound.max() < 1e6 * np.finfo(dtype).eps


TOKENS = ("x", "dt", "B", "C", "z")


@given(st.integers(0, 90), st.integers(0, 90), st.integers(0, 2**32 - 1))
def test_cut_anywhere_with_the_state_carried(first, second, seed):
    arguments = plain(RNG(seed))
    want, want_last = ops.ssd(**arguments, return_final_states=True)
    state, parts = arguments.pop("initial_states"), []
    cuts = [0, *sorted((first, second)), 90]
    for start, end in pairwise(cuts):
        part = arguments | {k: arguments[k][:, start:end] for k in TOKENS}
        y, state = ops.ssd(**part, initial_states=state, return_final_states=True)
        parts.append(y)
    bound, last_bound = reference.forward_bounds(2 * np.finfo(np.float64).eps, **plain(RNG(seed)))
    within(np.concatenate(parts, axis=1), want, bound)
    within(state, want_last, last_bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("P", "S"), [(20, 24), (1, 1), (64, 128), (7, 16), (3, 0), (33, 5)])
def test_steps_are_the_whole(isa, dtype, P, S):
    arguments = plain(RNG(1), L=12, P=P, S=S, dtype=dtype)
    arguments["D"] = RNG(2).normal(size=(4, P)).astype(dtype)
    want, want_last = reference.ssd(**arguments, return_final_states=True)
    bound, last_bound = reference.forward_bounds(np.finfo(dtype).eps, **arguments)
    state = arguments.pop("initial_states").copy()
    for t in range(12):
        y = ops.ssd_state_update(state, **arguments | {k: arguments[k][:, t] for k in TOKENS})
        within(y, want[:, t], bound[:, t])
    within(state, want_last, last_bound)


@pytest.mark.parametrize("limit", [(0.0, np.inf), (0.2, 0.9)])
def test_a_step_with_few_options(limit):
    rng = RNG(3)
    arguments = {k: v for k, v in plain(rng, L=1).items() if k in ("x", "dt", "A", "B", "C")}
    state = np.zeros((2, 4, 20, 24))
    y = ops.ssd_state_update(
        state, **arguments | {k: arguments[k][:, 0] for k in ("x", "dt", "B", "C")}, dt_limit=limit
    )
    want, last = reference.ssd(**arguments, return_final_states=True, dt_limit=limit)
    np.testing.assert_allclose(y, want[:, 0], rtol=1e-12)
    np.testing.assert_allclose(state, last, rtol=1e-12)


def test_a_constant_rate_is_a_linear_filter():
    # One state, B = C = 1 and a constant step size: y_t = exp(dt A) y_{t-1} + dt x_t.
    x = RNG(4).normal(size=(1, 1000, 1, 3))
    one, dt, A = np.ones((1, 1000, 1, 1)), np.full((1, 1000, 1), 0.2), np.array([-0.4])
    want = lfilter([0.2], [1.0, -np.exp(-0.08)], x[0, :, 0], axis=0)
    np.testing.assert_allclose(ops.ssd(x, dt, A, one, one)[0, :, 0], want, rtol=1e-12, atol=1e-13)


def test_many_states_are_a_sum_of_filters():
    rng = RNG(5)
    x, b, c = rng.normal(size=(1, 300, 1, 2)), rng.normal(size=5), rng.normal(size=5)
    B, C = (np.broadcast_to(v, (1, 300, 1, 5)) for v in (b, c))
    want = lfilter([0.1 * (b @ c)], [1.0, -np.exp(-0.3)], x[0, :, 0], axis=0)
    got = ops.ssd(x, np.full((1, 300, 1), 0.1), np.array([-3.0]), B, C)
    np.testing.assert_allclose(got[0, :, 0], want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 16, None])
def test_a_rate_that_all_states_share_is_a_selective_scan(chunk):
    # Channel p of head h is channel h P + p there, with the head's step size and rate for every state.
    arguments = plain(RNG(13), L=60) | {"chunk_size": chunk}
    B, L, H, P = arguments["x"].shape
    S = arguments["B"].shape[-1]

    def channels(value):
        return value.reshape(B, L, H * P)

    want, last = ops.selective_scan(
        channels(arguments["x"]),
        np.repeat(arguments["dt"], P, axis=2),
        np.repeat(arguments["A"], P)[:, None] * np.ones(S),
        arguments["B"],
        arguments["C"],
        np.repeat(arguments["D"], P),
        channels(arguments["z"]),
        np.repeat(arguments["dt_bias"], P),
        delta_softplus=True,
        initial_state=arguments["initial_states"].reshape(B, H * P, S),
        return_last_state=True,
        channels_last=True,
    )
    y, states = ops.ssd(**arguments, return_final_states=True)
    bound, last_bound = reference.forward_bounds(2 * np.finfo(np.float64).eps, **arguments)
    within(channels(y), want, channels(bound))
    within(states.reshape(last.shape), last, last_bound.reshape(last.shape))


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_nothing(dtype):
    arguments = plain(RNG(6), B=3, L=700, P=32, S=16, dtype=dtype)
    with sensorium.num_threads(1):
        want, want_last = ops.ssd(**arguments, return_final_states=True)
    for threads in (2, 5):
        with sensorium.num_threads(threads):
            got, last = ops.ssd(**arguments, return_final_states=True)
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(last, want_last)


@pytest.mark.parametrize("chunk", [4, 64])
def test_nan_stays_where_it_is(isa, chunk):
    arguments = plain(RNG(7), dtype=np.float32) | {"chunk_size": chunk}
    want, want_last = ops.ssd(**arguments, return_final_states=True)
    for name, at, (row, token, heads, channels) in [
        ("x", (1, 37, 2, 5), (1, 37, [2], [5])),
        ("z", (1, 37, 2, 5), (1, 37, [2], [5])),
        ("dt", (0, 37, 3), (0, 37, [3], range(20))),
        ("B", (0, 37, 1, 3), (0, 37, [2, 3], range(20))),
        ("C", (0, 37, 0, 3), (0, 37, [0, 1], range(20))),
    ]:
        spoilt = arguments[name].copy()
        spoilt[at] = np.nan
        got, last = ops.ssd(**arguments | {name: spoilt}, return_final_states=True)
        may = np.zeros(got.shape, dtype=bool)
        end = token + 1 if name in ("z", "C") else None
        may[np.ix_([row], range(90)[token:end], heads, channels)] = True
        assert np.isnan(got[row, token, heads[0], channels[0]])
        np.testing.assert_array_equal(got[~may], want[~may])
        stays = may[:, -1, :, :] & (name not in ("z", "C"))
        np.testing.assert_array_equal(last[~stays], want_last[~stays])


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_crosses_into_another_sequence(dtype):
    arguments = plain(RNG(8), dtype=dtype)
    arguments["seq_idx"] = np.repeat([[3, 1, 4], [1, 1, 2]], 30, axis=1)
    want = ops.ssd(**arguments)
    spoilt = {k: arguments[k].copy() for k in ("x", "dt", "B")}
    for array in spoilt.values():
        array[:, :60] = np.nan
    np.testing.assert_array_equal(ops.ssd(**arguments | spoilt)[:, 60:], want[:, 60:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [1, 64, 256])
def test_decays_of_any_size_stay_finite_and_exact(isa, dtype, chunk):
    # Steps that forget everything beside steps that forget next to nothing: decays after a strong one must lose no
    # digits to it. The exact result of each is known: powers of exp(-2^-10) since the last strong one.
    rng = RNG(9)
    L = 300
    strong = rng.random(L) < 0.1
    dt = np.where(strong, 1e30, 2.0**-10)[None, :, None].astype(dtype)
    B = np.where(strong, 0.0, 1.0)[None, :, None, None].astype(dtype)
    one = np.ones((1, L, 1, 1), dtype=dtype)
    y = ops.ssd(one, dt, np.array([-1.0], dtype=dtype), B, one, chunk)[0, :, 0, 0]
    since = np.arange(L) - np.maximum.accumulate(np.where(strong, np.arange(L), -1))
    want = 2.0**-10 * np.expm1(-since * 2.0**-10) / np.expm1(-(2.0**-10))
    # Sums of up to `since` positive terms, each off by a few roundings.
    assert np.all(np.abs(y - want) <= (since + 8) * np.finfo(dtype).eps * want)


def test_rates_that_overflow():
    big = np.finfo(np.float32).max
    x, one = np.ones((1, 3, 1, 1), np.float32), np.ones((1, 3, 1, 1), np.float32)
    y = ops.ssd(x, np.full((1, 3, 1), 1e10, np.float32), np.array([-big]), one, one)
    np.testing.assert_array_equal(y, np.full((1, 3, 1, 1), 1e10, np.float32))
    y = ops.ssd(x, np.ones((1, 3, 1), np.float32), np.array([-np.inf], np.float32), one, one)
    np.testing.assert_array_equal(y, one)


def test_a_rate_above_zero_grows():
    arguments = plain(RNG(10)) | {"A": np.array([0.3, -1.0, 0.1, 0.0])}
    want = reference.ssd(**arguments)
    np.testing.assert_allclose(ops.ssd(**arguments), want, rtol=1e-9, atol=1e-9)


def test_views_are_read_where_they_are():
    # The packed projection of a Mamba-2 block: x, B, C and z are slices of one array.
    rng = RNG(11)
    L, H, P, G, S = 50, 4, 16, 2, 8
    packed = rng.normal(size=(2, L, 2 * H * P + 2 * G * S))
    x, z, B, C = (
        part.reshape(2, L, heads, width)
        for part, heads, width in zip(
            np.split(packed, np.cumsum([H * P, H * P, G * S]), axis=2),
            (H, H, G, G),
            (P, P, S, S),
            strict=True,
        )
    )
    assert np.shares_memory(x, packed)
    assert not x.flags.c_contiguous
    dt, A = np.abs(rng.normal(size=(2, L, H))), -np.ones(H)
    got = ops.ssd(x, dt, A, B, C, z=z)
    np.testing.assert_array_equal(got, ops.ssd(x.copy(), dt, A, B.copy(), C.copy(), z=z.copy()))
    out = np.empty((2, L, H, 2 * P))[..., ::2]
    assert ops.ssd(x, dt, A, B, C, z=z, out=out) is out
    np.testing.assert_array_equal(out, got)


BASE = plain(RNG(12), B=1, L=6, P=3, S=2)
WRONG = [
    ({"x": np.zeros((6, 4, 3))}, "ShapeError", r"x has shape \(6, 4, 3\), expected 4 dimensions"),
    ({"dt": np.zeros((1, 6, 3))}, "ShapeError", "dt has H=3 but x has H=4"),
    ({"A": np.zeros(3)}, "ShapeError", "A has H=3 but x has H=4"),
    ({"B": np.zeros((1, 5, 2, 2))}, "ShapeError", "B has L=5 but x has L=6"),
    ({"C": np.zeros((1, 6, 2, 3))}, "ShapeError", "C has S=3 but B has S=2"),
    ({k: np.zeros((1, 6, 3, 2)) for k in "BC"}, "ArgumentError", "B has G=3, which does not divide H=4 of x"),
    ({"D": np.zeros(3)}, "ShapeError", r"D has shape \(3,\), expected \(4,\) or \(4, 3\) to fit x"),
    ({"z": np.zeros((1, 6, 4, 2))}, "ShapeError", "z has P=2 but x has P=3"),
    ({"dt_bias": np.zeros(2)}, "ShapeError", "dt_bias has H=2 but dt has H=4"),
    (
        {"initial_states": np.zeros((1, 4, 3, 1))},
        "ShapeError",
        r"initial_states has shape \(1, 4, 3, 1\), expected \(1, 4, 3, 2\)",
    ),
    ({"chunk_size": 0}, "ArgumentError", "chunk_size must be at least 1, not 0"),
    ({"chunk_size": 2.5}, "DTypeError", "chunk_size must be an integer, not float"),
    ({"dt_limit": (1.0, 0.5)}, "ArgumentError", r"dt_limit must not fall, not \(1.0, 0.5\)"),
    ({"dt_limit": (np.nan, 0.5)}, "ArgumentError", r"dt_limit must not fall, not \(nan, 0.5\)"),
    ({"dt_limit": 3}, "ArgumentError", "dt_limit must be two numbers, not 3"),
    ({"seq_idx": np.zeros((1, 5), int)}, "ShapeError", r"seq_idx has shape \(1, 5\), expected \(1, 6\)"),
    ({"cu_seqlens": [0, 3]}, "ArgumentError", "cu_seqlens must end with the length, 6"),
    ({"dt": np.zeros((1, 6, 4), np.float32)}, "DTypeError", "dt has dtype float32 but x has float64"),
    ({"z": np.zeros((1, 6, 4, 3), np.float32)}, "DTypeError", "z has dtype float32 but x has float64"),
    (
        {"x": np.zeros((1, 6, 4, 3), np.float16)},
        "DTypeError",
        "x has dtype float16, expected float32 or float64",
    ),
    ({"A": np.zeros(4, int)}, "DTypeError", "A has dtype int64, expected float32 or float64"),
    ({"out": np.zeros((1, 6, 4, 2))}, "ShapeError", r"out has shape \(1, 6, 4, 2\), expected \(1, 6, 4, 3\)"),
    ({"out": BASE["x"]}, "ArgumentError", "out shares memory with x"),
]


@pytest.mark.parametrize(("change", "error", "words"), WRONG)
def test_errors_say_what_is_wrong(change, error, words):
    with pytest.raises(getattr(sensorium, error), match=f"^{words}"):
        ops.ssd(**BASE | change)


STEP = {k: v[:, 0] if k in TOKENS else v for k, v in BASE.items() if k != "initial_states"}
STEP["state"] = BASE["initial_states"]
WRONG_STEPS = [
    ({"state": [1.0]}, "DTypeError", "state must be an ndarray, not list"),
    (
        {"state": np.zeros((1, 4, 3, 2), int)},
        "DTypeError",
        "state has dtype int64, expected float32 or float64",
    ),
    ({"state": np.zeros((1, 4, 3, 4))[..., ::2]}, "ArgumentError", "state must be writeable and contiguous"),
    ({"state": np.zeros((1, 4, 2, 2))}, "ShapeError", "x has P=3 but state has P=2"),
    (
        {"state": np.zeros((1, 4, 3, 2), np.float32)},
        "DTypeError",
        "x has dtype float64 but state has float32",
    ),
    ({"dt": np.zeros((1, 3))}, "ShapeError", "dt has H=3 but state has H=4"),
    ({"C": np.zeros((1, 1, 2))}, "ShapeError", "C has G=1 but B has G=2"),
    (
        {k: np.zeros((1, 3, 2)) for k in "BC"},
        "ArgumentError",
        "B has G=3, which does not divide H=4 of state",
    ),
    (
        {"D": np.zeros((4, 2))},
        "ShapeError",
        r"D has shape \(4, 2\), expected \(4,\) or \(4, 3\) to fit state",
    ),
    ({"z": np.zeros((1, 4, 2))}, "ShapeError", "z has P=2 but x has P=3"),
    ({"dt_bias": np.zeros(2)}, "ShapeError", "dt_bias has H=2 but dt has H=4"),
    ({"dt_bias": np.zeros(4, np.float32)}, "DTypeError", "dt_bias has dtype float32 but state has float64"),
]


@pytest.mark.parametrize(("change", "error", "words"), WRONG_STEPS)
def test_errors_of_a_step_say_what_is_wrong(change, error, words):
    with pytest.raises(getattr(sensorium, error), match=f"^{words}"):
        ops.ssd_state_update(**STEP | change)
