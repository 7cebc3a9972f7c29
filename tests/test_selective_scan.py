"""The selective scan: the kernel against the recurrence, and the laws that both obey."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import sensorium
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from reference import scan as reference
from scipy.signal import lfilter
from sensorium import errors, ops
from strategies import FORMS, in_form

DTYPES = [np.float32, np.float64]
RNG = np.random.default_rng


def form_of(array, form):
    """The same numbers in another form of memory."""
    if array.ndim < 3:
        return array
    return in_form(array, form) if array.ndim == 4 else in_form(array[:, None], form)[:, 0]


@dataclass
class Case:
    """A whole call."""

    arguments: dict
    about: str

    def __repr__(self):
        shapes = {k: np.shape(v) if isinstance(v, np.ndarray) else v for k, v in self.arguments.items()}
        return f"{self.about} {self.arguments['u'].dtype} {shapes}"


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
def cases(draw, longest=150):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    B, L = draw(st.sampled_from([1, 2, 0])), draw(st.one_of(st.integers(0, 20), st.integers(0, longest)))
    G = draw(st.integers(1, 3))
    D = G * draw(st.one_of(st.sampled_from([1, 8, 16, 32]), st.integers(0, 20)))
    S = draw(st.one_of(st.sampled_from([1, 4, 16, 32]), st.integers(0, 20), st.just(256)))
    S = S if B * L * D < 2000 else min(S, 20)
    size, rate = draw(st.sampled_from([1.0, 1e-3, 30.0])), draw(st.sampled_from([1.0, 1e-3, 30.0, 1e4]))
    last = draw(st.booleans())
    seed = draw(st.integers(0, 2**32 - 1))
    rng = RNG(seed)

    def normal(*shape, scale=size):
        return rng.normal(scale=scale, size=shape).astype(dtype)

    def coefficient():
        kind = draw(st.sampled_from(["group", "groups", "constant"]))
        if kind == "constant":
            return normal(D, S)
        if kind == "group" and G == 1:
            return normal(B, L, S) if last else normal(B, S, L)
        return normal(B, L, G, S) if last else normal(B, G, S, L)

    shape = (B, L, D) if last else (B, D, L)
    arguments = {
        "u": normal(*shape),
        "delta": np.abs(normal(*shape, scale=1.0)),
        "A": -np.abs(normal(D, S, scale=rate)),
        "B": coefficient(),
        "C": coefficient(),
        "D": draw(st.sampled_from([None, normal(D)])),
        "z": draw(st.sampled_from([None, normal(*shape, scale=3.0)])),
        "channels_last": last,
    }
    if draw(st.booleans()):
        arguments |= {"delta": normal(*shape, scale=2.0), "delta_softplus": True}
        arguments["delta_bias"] = draw(st.sampled_from([None, normal(D, scale=2.0)]))
    packing, states = draw_packing(draw, rng, B, L)
    arguments |= packing
    arguments["initial_state"] = draw(st.sampled_from([None, normal(states, D, S)]))
    forms = []
    for name in ("u", "delta", "B", "C", "z"):
        if arguments[name] is not None:
            forms.append(draw(st.sampled_from(FORMS)))
            arguments[name] = form_of(arguments[name], forms[-1])
    return Case(arguments, f"seed {seed}, forms {forms}")


def within(got, want, bound):
    """Hold an array to another within a bound, element by element."""
    assert got.shape == want.shape
    assert np.all(np.abs(got - want) <= bound), (np.abs(got - want) / np.where(bound > 0, bound, 1)).max()


@given(cases())
def test_it_is_the_recurrence(case):
    eps = np.finfo(case.arguments["u"].dtype).eps
    got, last = ops.selective_scan(**case.arguments, return_last_state=True)
    want, want_last = reference.selective_scan(**case.arguments, return_last_state=True)
    bound, last_bound = reference.bounds(eps, **case.arguments)
    assert got.dtype == last.dtype == case.arguments["u"].dtype.newbyteorder("=")
    within(got, want, bound)
    within(last, want_last, last_bound)


def plain(rng, B=2, L=150, D=40, S=16, G=1, dtype=np.float64, last=False):
    """Arguments of a usual kind."""

    def normal(*shape):
        return rng.normal(size=shape).astype(dtype)

    shape = (B, L, D) if last else (B, D, L)
    of = (B, L, G, S) if last else (B, G, S, L)
    return {
        "u": normal(*shape),
        "delta": normal(*shape) - dtype(2),
        "A": -np.exp(normal(D, S)),
        "B": normal(*of),
        "C": normal(*of),
        "D": normal(D),
        "z": normal(*shape),
        "delta_bias": normal(D) * dtype(0.1),
        "delta_softplus": True,
        "initial_state": normal(B, D, S),
        "channels_last": last,
    }


TOKENS = ("u", "delta", "B", "C", "z")


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("D", "S", "G"), [(40, 16, 1), (33, 1, 3), (16, 8, 2), (5, 37, 1)])
def test_every_instruction_set(isa, dtype, last, D, S, G):
    arguments = plain(RNG(0), D=D, S=S, G=G, dtype=dtype, last=last)
    got, state = ops.selective_scan(**arguments, return_last_state=True)
    want, want_state = reference.selective_scan(**arguments, return_last_state=True)
    bound, state_bound = reference.bounds(np.finfo(dtype).eps, **arguments)
    within(got, want, bound)
    within(state, want_state, state_bound)
    # The bound says something.
    assert np.median(bound) < 3e3 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_and_groups_are_the_same_bits(isa, dtype):
    first = plain(RNG(1), G=2, dtype=dtype)
    last = first | {"channels_last": True}
    last |= {name: np.moveaxis(first[name], -1, 1) for name in TOKENS}
    want, want_state = ops.selective_scan(**first, return_last_state=True)
    for copied in (False, True):
        arrays = {name: last[name].copy() for name in TOKENS} if copied else {}
        got, state = ops.selective_scan(**last | arrays, return_last_state=True)
        assert_array_equal(got, np.moveaxis(want, -1, 1))
        assert_array_equal(state, want_state)
    # Groups written out are groups of one channel.
    wide = {name: np.repeat(first[name], 20, axis=1) for name in ("B", "C")}
    assert_array_equal(ops.selective_scan(**first | wide), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["B", "C", "BC"])
def test_a_constant_coefficient_is_one_at_every_token(isa, dtype, name):
    arguments = plain(RNG(2), dtype=dtype, last=True)
    constant = {n: RNG(3).normal(size=(40, 16)).astype(dtype) for n in name}
    spread = {n: np.broadcast_to(c, (2, 150, 40, 16)) for n, c in constant.items()}
    spread |= {n: np.repeat(arguments[n], 40, axis=2) for n in "BC" if n not in name}
    got = ops.selective_scan(**arguments | constant)
    assert_array_equal(got, ops.selective_scan(**arguments | spread))


@given(st.integers(0, 150), st.integers(0, 150), st.booleans(), st.integers(0, 2**32 - 1))
def test_cut_anywhere_with_the_state_carried_is_the_same_bits(first, second, last, seed):
    arguments = plain(RNG(seed), dtype=np.float32, last=last)
    want, want_state = ops.selective_scan(**arguments, return_last_state=True)
    state, parts = arguments.pop("initial_state"), []
    for start, end in pairwise([0, *sorted((first, second)), 150]):
        cut = (slice(None), slice(start, end)) if last else (..., slice(start, end))
        part = arguments | {k: arguments[k][cut] for k in TOKENS}
        y, state = ops.selective_scan(**part, initial_state=state, return_last_state=True)
        parts.append(y)
    assert_array_equal(np.concatenate(parts, axis=1 if last else 2), want)
    assert_array_equal(state, want_state)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("D", "S", "G"), [(40, 16, 1), (9, 5, 3), (70, 37, 2), (16, 1, 1)])
def test_steps_are_the_whole(isa, dtype, D, S, G):
    arguments = plain(RNG(4), L=12, D=D, S=S, G=G, dtype=dtype, last=True)
    whole, whole_state = ops.selective_scan(**arguments, return_last_state=True)
    want = reference.selective_scan(**arguments)
    bound, _ = reference.bounds(np.finfo(dtype).eps, **arguments)
    state = arguments.pop("initial_state").copy()
    _, names = arguments.pop("channels_last"), {"delta": "dt", "u": "x"}
    how = {"dt_bias": arguments.pop("delta_bias"), "dt_softplus": arguments.pop("delta_softplus")}
    for t in range(12):
        one = arguments | {k: arguments[k][:, t] for k in TOKENS}
        y = ops.selective_state_update(state, **{names.get(k, k): v for k, v in one.items()} | how)
        within(y, want[:, t], bound[:, t])
    assert_array_equal(
        state, whole_state
    )  # States are the same bits; sums over states have an order of their own.
    within(whole, want, bound)


def test_a_step_with_few_options(isa):
    rng = RNG(5)
    state = rng.normal(size=(3, 20, 4))
    x, dt, B, C = (
        rng.normal(size=(3, 20)),
        rng.random((3, 20)),
        rng.normal(size=(3, 4)),
        rng.normal(size=(3, 4)),
    )
    A = -rng.random((20, 4))
    want_state = state.copy()
    want = reference.selective_state_update(want_state, x, dt, A, B, C)
    got = ops.selective_state_update(state, x, dt, A, B, C)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(state, want_state, rtol=1e-12, atol=1e-13)


def test_a_constant_rate_is_a_linear_filter(isa):
    # S4D with real rates: constant A, B, C and step size are a sum of first-order filters.
    rng = RNG(6)
    u, A, B, C = rng.normal(size=(1, 3, 2000)), -np.arange(1.0, 6.0), rng.normal(size=5), rng.normal(size=5)
    want = sum(
        lfilter([0.1 * b * c], [1.0, -np.exp(0.1 * a)], u, axis=2) for a, b, c in zip(A, B, C, strict=True)
    )
    matrices = [np.tile(v, (3, 1)) for v in (A, B, C)]
    got = ops.selective_scan(u, np.full_like(u, 0.1), *matrices)
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)


def test_threads_change_nothing():
    for dtype in DTYPES:
        arguments = plain(RNG(7), B=3, L=700, D=70, dtype=dtype)
        with sensorium.num_threads(1):
            want, want_state = ops.selective_scan(**arguments, return_last_state=True)
        for threads in (2, 5):
            with sensorium.num_threads(threads):
                got, state = ops.selective_scan(**arguments, return_last_state=True)
            assert_array_equal(got, want)
            assert_array_equal(state, want_state)


def test_nan_stays_where_it_is(isa):
    arguments = plain(RNG(8), G=2, dtype=np.float32)
    want, want_state = ops.selective_scan(**arguments, return_last_state=True)
    for name, at, (row, token, channels) in [
        ("u", (1, 37, 70), (1, 70, [37])),
        ("z", (1, 37, 70), (1, 70, [37])),
        ("delta", (0, 5, 70), (0, 70, [5])),
        ("B", (0, 1, 3, 70), (0, 70, range(20, 40))),
        ("C", (0, 0, 3, 70), (0, 70, range(20))),
    ]:
        spoilt = arguments[name].copy()
        spoilt[at] = np.nan
        got, state = ops.selective_scan(**arguments | {name: spoilt}, return_last_state=True)
        may = np.zeros(got.shape, dtype=bool)
        end = token + 1 if name in ("z", "C") else None
        may[np.ix_([row], channels, range(150)[token:end])] = True
        assert np.isnan(got[row, channels[0], token])
        assert_array_equal(got[~may], want[~may])
        stays = may[:, :, -1] & (name not in ("z", "C"))
        assert_array_equal(state[~stays], want_state[~stays])


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_crosses_into_another_sequence(isa, dtype):
    arguments = plain(RNG(9), dtype=dtype)
    arguments["seq_idx"] = np.repeat([[3, 1, 4], [1, 1, 2]], 50, axis=1)
    want = ops.selective_scan(**arguments)
    spoilt = {k: arguments[k].copy() for k in ("u", "delta", "B")}
    for array in spoilt.values():
        array[..., :100] = np.nan
    assert_array_equal(ops.selective_scan(**arguments | spoilt)[..., 100:], want[..., 100:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_decays_of_any_size_stay_finite_and_exact(isa, dtype):
    # Steps that forget everything beside steps that forget next to nothing: powers of exp(-2^-10) since the last
    # strong one.
    L = 300
    strong = RNG(10).random(L) < 0.1
    delta = np.where(strong, 1e30, 2.0**-10)[None, None].astype(dtype)
    B = np.where(strong, 0.0, 1.0)[None, None].astype(dtype)
    one = np.ones((1, 1, L), dtype=dtype)
    y = ops.selective_scan(one, delta, np.array([[-1.0]], dtype=dtype), B, one)[0, 0]
    since = np.arange(L) - np.maximum.accumulate(np.where(strong, np.arange(L), -1))
    want = 2.0**-10 * np.expm1(-since * 2.0**-10) / np.expm1(-(2.0**-10))
    # Sums of up to `since` positive terms, each off by a few roundings.
    assert np.all(np.abs(y - want) <= (2 * since + 8) * np.finfo(dtype).eps * want)


def test_a_million_tokens_stay_finite(isa):
    L = 1_000_000
    u = np.ones((1, L, 1), np.float32)
    A, BC = np.array([[-1e-3]], np.float32), np.ones((1, L, 1), np.float32)
    y = ops.selective_scan(u, u, A, BC, BC, channels_last=True)
    # The limit of the sum of powers of exp(-1/1000). A decay is off by less than 3 eps, which counts a thousand times.
    assert abs(y[0, -1, 0] * -np.expm1(-1e-3) - 1) < 3500 * np.finfo(np.float32).eps


def test_what_overflows(isa):
    big, three = np.finfo(np.float32).max, np.ones((1, 1, 3), np.float32)
    one = np.ones((1, 1), np.float32)
    for rate in (-big, -np.inf):
        assert_array_equal(ops.selective_scan(three, three, one * np.float32(rate), one, one), three)
    # A rate above zero grows, at last beyond all numbers.
    y = ops.selective_scan(three, three, one * 60, one, one)[0, 0]
    assert np.isfinite(y[:2]).all()
    assert y[2] == np.inf
    grows = plain(RNG(11), S=4) | {"A": np.tile([[0.3, -1.0, 0.1, 0.0]], (40, 1))}
    within(
        ops.selective_scan(**grows), reference.selective_scan(**grows), reference.bounds(1e-14, **grows)[0]
    )


def test_views_are_read_where_they_are():
    # A Mamba block: u and z are halves of one projection, B and C parts of another.
    rng = RNG(12)
    xz, rest = rng.normal(size=(2, 50, 40)), rng.normal(size=(2, 50, 3 + 8 + 8))
    u, z, B, C = xz[..., :20], xz[..., 20:], rest[..., 3:11], rest[..., 11:]
    delta, A = rng.random((2, 50, 20)), -rng.random((20, 8))
    want = ops.selective_scan(u.copy(), delta, A, B.copy(), C.copy(), z=z.copy(), channels_last=True)
    assert_array_equal(ops.selective_scan(u, delta, A, B, C, z=z, channels_last=True), want)
    out = np.full((2, 50, 40), 7.0)
    half = out[..., ::2]
    assert ops.selective_scan(u, delta, A, B, C, z=z, channels_last=True, out=half) is half
    assert_array_equal(half, want)
    assert (out[..., 1::2] == 7).all()
    whole = np.empty_like(want)
    assert ops.selective_scan(u, delta, A, B, C, z=z, channels_last=True, out=whole) is whole
    assert_array_equal(whole, want)


BASE = plain(RNG(13), B=1, L=6, D=4, S=2)
WRONG = [
    ({"u": np.zeros((6, 4))}, "ShapeError", r"u has shape \(6, 4\), expected 3 dimensions"),
    ({"delta": np.zeros((1, 4, 5))}, "ShapeError", "delta has L=5 but u has L=6"),
    ({"A": np.zeros((3, 2))}, "ShapeError", "A has D=3 but u has D=4"),
    ({"B": np.zeros((1, 1, 2, 5))}, "ShapeError", r"B has shape \(1, 1, 2, 5\), expected \(1, 1, 2, 6\)"),
    ({"B": np.zeros((4, 3))}, "ShapeError", r"B has shape \(4, 3\), expected \(4, 2\)"),
    ({"C": np.zeros(3)}, "ShapeError", r"C has shape \(3,\), expected 2, 3 or 4 dimensions"),
    (
        {k: np.zeros((1, 3, 2, 6)) for k in "BC"},
        "ArgumentError",
        "B has G=3, which does not divide D=4 of u",
    ),
    (
        {"C": np.zeros((1, 2, 2, 6))},
        "ShapeError",
        r"C has shape \(1, 2, 2, 6\), expected as many groups as B",
    ),
    ({"D": np.zeros(3)}, "ShapeError", r"D has shape \(3,\), expected \(4,\)"),
    ({"z": np.zeros((1, 4, 7))}, "ShapeError", r"z has shape \(1, 4, 7\), expected \(1, 4, 6\)"),
    ({"delta_bias": np.zeros(2)}, "ShapeError", r"delta_bias has shape \(2,\), expected \(4,\)"),
    (
        {"initial_state": np.zeros((1, 4, 1))},
        "ShapeError",
        r"initial_state has shape .* expected \(1, 4, 2\)",
    ),
    ({"seq_idx": np.zeros((1, 5), int)}, "ShapeError", r"seq_idx has shape \(1, 5\), expected \(1, 6\)"),
    ({"cu_seqlens": [0, 3]}, "ArgumentError", "cu_seqlens must end with the length, 6"),
    ({"delta": np.zeros((1, 4, 6), np.float32)}, "DTypeError", "delta has dtype float32 but u has float64"),
    (
        {"u": np.zeros((1, 4, 6), np.float16)},
        "DTypeError",
        "u has dtype float16, expected float32 or float64",
    ),
    ({"A": np.zeros((4, 2), int)}, "DTypeError", "A has dtype int64, expected float32 or float64"),
    ({"out": np.zeros((1, 4, 5))}, "ShapeError", r"out has shape \(1, 4, 5\), expected \(1, 4, 6\)"),
    ({"out": BASE["u"]}, "ArgumentError", "out shares memory with u"),
]


@pytest.mark.parametrize(("change", "error", "words"), WRONG)
def test_words_of_errors(change, error, words):
    with pytest.raises(getattr(errors, error), match=words):
        ops.selective_scan(**BASE | change)


STEP = {
    "state": np.zeros((1, 4, 2)),
    "x": np.zeros((1, 4)),
    "dt": np.zeros((1, 4)),
    "A": np.zeros((4, 2)),
    "B": np.zeros((1, 2)),
    "C": np.zeros((1, 2)),
}
WRONG_STEP = [
    ({"state": [[[0.0]]]}, "DTypeError", "state must be an ndarray, not list"),
    ({"state": np.zeros((1, 4, 3))}, "ShapeError", "A has S=2 but state has S=3"),
    ({"state": np.zeros((1, 4, 2), int)}, "DTypeError", "state has dtype int64"),
    ({"state": np.zeros((1, 4, 4))[..., ::2]}, "ArgumentError", "state must be writeable and contiguous"),
    ({"x": np.zeros((1, 3))}, "ShapeError", "x has D=3 but state has D=4"),
    ({"x": np.zeros((1, 4), np.float32)}, "DTypeError", "has dtype float64 but x has float32"),
    ({"B": np.zeros((1, 3))}, "ShapeError", r"B has shape \(1, 3\), expected \(1, 2\)"),
    ({"C": np.zeros((1, 1, 2))}, "ShapeError", r"C has shape \(1, 1, 2\), expected \(1, 2\)"),
    (
        {k: np.zeros((1, 3, 2)) for k in "BC"},
        "ArgumentError",
        "B has G=3, which does not divide D=4 of state",
    ),
    ({"D": np.zeros(3)}, "ShapeError", r"D has shape \(3,\), expected \(4,\)"),
    ({"z": np.zeros((1, 3))}, "ShapeError", r"z has shape \(1, 3\), expected \(1, 4\)"),
    ({"dt_bias": np.zeros(3)}, "ShapeError", r"dt_bias has shape \(3,\), expected \(4,\)"),
]


@pytest.mark.parametrize(("change", "error", "words"), WRONG_STEP)
def test_words_of_errors_of_a_step(change, error, words):
    with pytest.raises(getattr(errors, error), match=words):
        ops.selective_state_update(**STEP | change)
