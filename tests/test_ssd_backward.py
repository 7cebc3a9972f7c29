"""Gradients of structured state-space duality: against the recurrence, along directions, and under autograd."""

import numpy as np
import pytest
import sensorium
from hypothesis import given
from hypothesis import strategies as st
from reference import ssd as reference
from sensorium import autodiff as ad
from sensorium import ops
from strategies import FORMS, in_form
from test_autodiff import directional, weighted
from test_ssd import BASE, DTYPES, RNG, TOKENS, cases, plain, within

NAMES = ops.SSDGrads._fields


def upstream(rng, arguments, final=True):
    """Gradients of what a call returns."""
    dtype = arguments["x"].dtype.newbyteorder("=")
    y, last = ops.ssd(**arguments, return_final_states=True)
    grad_out = rng.normal(size=y.shape).astype(dtype)
    return {
        "grad_out": grad_out,
        "grad_final_states": rng.normal(size=last.shape).astype(dtype) if final else None,
    }


def check(given_grads, arguments):
    eps = np.finfo(arguments["x"].dtype).eps
    got = ops.ssd_backward(**given_grads, **arguments)
    want = reference.ssd_backward(**given_grads, **arguments)
    bounds = reference.backward_bounds(eps, **given_grads, **arguments)
    for name, g, w, bound in zip(NAMES, got, want, bounds, strict=True):
        assert (g is None) == (w is None), name
        if g is not None:
            assert g.dtype == arguments["x"].dtype.newbyteorder("=")
            assert g.shape == np.shape(arguments[name]), name
            within(g, w, bound)
    return got, bounds


@given(cases(longest=100), st.booleans(), st.sampled_from(FORMS))
def test_gradients_are_those_of_the_recurrence(case, final, form):
    grads = upstream(RNG(0), case.arguments, final)
    grads["grad_out"] = in_form(grads["grad_out"], form)
    check(grads, case.arguments)


@pytest.mark.parametrize("chunk", [1, 16, None])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set(isa, dtype, chunk):
    arguments = plain(RNG(0), L=70, dtype=dtype) | {"chunk_size": chunk}
    got, bounds = check(upstream(RNG(1), arguments), arguments)
    # The bounds say something.
    for grad, bound in zip(got, bounds, strict=True):
        assert bound.max() < 2e6 * np.finfo(dtype).eps * np.abs(grad).max()


@pytest.mark.parametrize("packing", ["whole", "ids", "offsets"])
def test_windows_go_on_from_checkpoints(packing):
    # 2,300 tokens are five windows of 512; a sequence of 1,500 reaches over their ends.
    L, B = 2300, 1 if packing == "offsets" else 2
    arguments = plain(RNG(2), B=B, L=L, H=2, P=3, G=1, S=2)
    if packing == "ids":
        arguments["seq_idx"] = np.stack([np.arange(L) // 1500, np.arange(L) // 701])
    if packing == "offsets":
        arguments["cu_seqlens"] = np.array([0, 20, 20, 1600, L])
        arguments["initial_states"] = RNG(3).normal(size=(4, 2, 3, 2))
    grads = upstream(RNG(4), arguments)
    got, _ = check(grads, arguments)
    _, checkpoints = ops.ssd(**arguments, return_checkpoints=True)
    again = ops.ssd_backward(**grads, **arguments, checkpoints=checkpoints)
    for a, b in zip(got, again, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_nothing(dtype):
    arguments = plain(RNG(6), B=3, L=1100, H=6, P=8, G=1, S=16, dtype=dtype)
    grads = upstream(RNG(7), arguments)
    with sensorium.num_threads(1):
        want = ops.ssd_backward(**grads, **arguments)
    for threads in (2, 9):
        with sensorium.num_threads(threads):
            got = ops.ssd_backward(**grads, **arguments)
        for g, w in zip(got, want, strict=True):
            np.testing.assert_array_equal(g, w)


def test_many_heads_share_what_they_read():
    # 40 heads of a group are ten parts.
    arguments = plain(RNG(8), B=1, L=40, H=40, P=4, G=1, S=5)
    check(upstream(RNG(9), arguments), arguments)


def test_step_sizes_that_a_limit_holds_have_no_gradient():
    arguments = plain(RNG(10), L=30) | {"dt_limit": (0.7, 0.75)}
    raw = reference.softplus(arguments["dt"] + arguments["dt_bias"])
    held = (raw < 0.7) | (raw > 0.75)
    assert held.any()
    assert not held.all()
    got, _ = check(upstream(RNG(11), arguments), arguments)
    assert np.all(got.dt[held] == 0)
    assert np.all(got.dt[~held] != 0)


def test_strong_decays_keep_the_digits_of_their_gradients():
    # Of every step next to nothing is left: the gradient is 1e-4 of the sums whose difference it is in the usual form,
    # which would leave two digits of it.
    arguments = plain(RNG(12), B=1, L=64, H=2, P=8, G=1, S=8)
    arguments = {k: arguments[k] for k in ("x", "B", "C")} | {
        "dt": np.ones((1, 64, 2)),
        "A": np.array([-9.0, -10.0]),
    }
    grads = {"grad_out": RNG(13).normal(size=(1, 64, 2, 8))}
    want = reference.ssd_backward(**grads, **arguments)
    single = {k: v.astype(np.float32) for k, v in arguments.items()}
    got = ops.ssd_backward(**{k: v.astype(np.float32) for k, v in grads.items()}, **single)
    np.testing.assert_allclose(got.A, want[2], rtol=1e-5)


def test_nan_stays_where_it_is(isa):
    arguments = plain(RNG(14), dtype=np.float32)
    grads = upstream(RNG(15), arguments)
    want = ops.ssd_backward(**grads, **arguments)
    # A gradient reaches what came before it, in its own channel; step sizes and what heads share, in all.
    spoilt = grads["grad_out"].copy()
    spoilt[1, 37, 2, 5] = np.nan
    got = ops.ssd_backward(**grads | {"grad_out": spoilt}, **arguments)
    assert np.isnan(got.x[1, 37, 2, 5])
    clean = np.ones(want.x.shape, dtype=bool)
    clean[1, :38, 2, 5] = False
    np.testing.assert_array_equal(got.x[clean], want.x[clean])
    np.testing.assert_array_equal(got.dt[0], want.dt[0])
    np.testing.assert_array_equal(got.dt[1][:, [0, 1, 3]], want.dt[1][:, [0, 1, 3]])
    np.testing.assert_array_equal(got.dt[1, 38:], want.dt[1, 38:])
    np.testing.assert_array_equal(got.B[1, :, 0], want.B[1, :, 0])
    np.testing.assert_array_equal(got.B[1, 38:], want.B[1, 38:])
    np.testing.assert_array_equal(got.C[1, :37], want.C[1, :37])
    np.testing.assert_array_equal(got.C[1, 38:], want.C[1, 38:])
    rest = np.ones(want.initial_states.shape, dtype=bool)
    rest[1, 2, 5] = False
    np.testing.assert_array_equal(got.initial_states[rest], want.initial_states[rest])


def test_nothing_crosses_into_another_sequence():
    arguments = plain(RNG(16))
    arguments["seq_idx"] = np.repeat([[3, 1, 4], [1, 1, 2]], 30, axis=1)
    grads = upstream(RNG(17), arguments)
    want = ops.ssd_backward(**grads, **arguments)
    spoilt = grads["grad_out"].copy()
    spoilt[:, 60:] = np.nan
    got = ops.ssd_backward(**grads | {"grad_out": spoilt}, **arguments)
    for name in TOKENS:
        np.testing.assert_array_equal(getattr(got, name)[:, :60], getattr(want, name)[:, :60])


def packed(p):
    return ad.ssd(p["x"], p["dt"], p["A"], p["B"], p["C"], 4, cu_seqlens=np.array([0, 5, 9]), D=p["D"])


def with_all(p):
    names = ("D", "z", "dt_bias", "initial_states")
    y, last = ad.ssd(
        *(p[k] for k in ("x", "dt", "A", "B", "C")),
        chunk_size=4,
        dt_softplus=True,
        return_final_states=True,
        dt_limit=(0.1, 3.0),
        **{k: p[k] for k in names},
    )
    return weighted(y) + weighted(last)


def test_the_gradient_along_a_direction():
    rng = RNG(18)
    arrays = {k: v for k, v in plain(rng, L=9, P=3, S=2).items() if k != "dt_softplus"}
    directional(with_all, arrays, rng)


def test_the_gradient_along_a_direction_in_packed_rows():
    rng = RNG(19)
    arrays = {k: v for k, v in plain(rng, B=1, L=9, P=3, S=2).items() if k in ("x", "dt", "A", "B", "C", "D")}
    directional(lambda p: weighted(packed(p)), arrays, rng)


def test_float32_gradients_stay_float32():
    arrays = {k: v for k, v in plain(RNG(20), L=9, dtype=np.float32).items() if k != "dt_softplus"}
    _, grads = ad.value_and_grad(with_all)(arrays)
    for name, grad in grads.items():
        assert grad.dtype == np.float32, name


WRONG = [
    (
        {"grad_out": np.zeros((1, 6, 4, 2))},
        "ShapeError",
        r"grad_out has shape \(1, 6, 4, 2\), expected \(1, 6, 4, 3\)",
    ),
    (
        {"grad_out": np.zeros((1, 6, 4, 3), np.float32)},
        "DTypeError",
        "grad_out has dtype float32 but x has float64",
    ),
    (
        {"grad_final_states": np.zeros((1, 4, 3, 1))},
        "ShapeError",
        r"grad_final_states has shape \(1, 4, 3, 1\), expected \(1, 4, 3, 2\)",
    ),
    ({"checkpoints": np.zeros(5)}, "ShapeError", "checkpoints has 5 elements, expected 128"),
    ({"dt": np.zeros((1, 6, 3))}, "ShapeError", "dt has H=3 but x has H=4"),
]


@pytest.mark.parametrize(("change", "error", "words"), WRONG)
def test_errors_say_what_is_wrong(change, error, words):
    with pytest.raises(getattr(sensorium, error), match=f"^{words}"):
        ops.ssd_backward(**{"grad_out": BASE["x"]} | BASE | change)
