"""Gradients of the selective scan: the kernel against the reference, and laws that it obeys."""

from itertools import pairwise

import autograd.numpy as anp
import numpy as np
import pytest
import sensorium
from autograd import grad as gradient_of
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from reference import scan as reference
from sensorium import autodiff, errors, ops
from test_selective_scan import DTYPES, RNG, TOKENS, cases, form_of, plain, within


def last_states(arguments):
    """A gradient by the last states."""
    states = len(arguments["u"]) if "cu_seqlens" not in arguments else len(arguments["cu_seqlens"]) - 1
    return RNG(1).normal(size=(states, *arguments["A"].shape)).astype(arguments["A"].dtype)


def check(arguments, grad_out, grad_last):
    """Hold all gradients to the reference, element by element; with checkpoints they are the same bits."""
    eps = np.finfo(arguments["A"].dtype).eps
    got = ops.selective_scan_backward(grad_out, **arguments, grad_last_state=grad_last)
    want = reference.selective_scan_backward(grad_out, **arguments, grad_last_state=grad_last)
    bound = reference.gradient_bounds(eps, grad_out, **arguments, grad_last_state=grad_last)
    _, kept = ops.selective_scan(**arguments, return_checkpoints=True)
    again = ops.selective_scan_backward(grad_out, **arguments, grad_last_state=grad_last, checkpoints=kept)
    for name, array in got._asdict().items():
        if want[name] is None:
            assert array is None, name
        else:
            assert array.dtype == arguments["A"].dtype
            within(array, want[name], bound[name])
            assert_array_equal(getattr(again, name), array)
    return got


@given(cases(longest=100), st.sampled_from(["contiguous", "strided", "fortran"]), st.booleans())
def test_gradients_are_the_reference(case, form, whole):
    arguments = case.arguments
    u = arguments["u"]
    grad_out = RNG(0).normal(size=u.shape).astype(u.dtype.newbyteorder("="))
    check(arguments, form_of(grad_out, form), last_states(arguments) if whole else None)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("D", "S", "G", "gate"), [(40, 16, 1, True), (33, 5, 3, False), (16, 21, 2, True)])
def test_every_instruction_set(isa, dtype, last, D, S, G, gate):
    arguments = plain(RNG(2), D=D, S=S, G=G, dtype=dtype, last=last)
    if not gate:
        arguments["z"] = None
    grad_out = RNG(3).normal(size=arguments["u"].shape).astype(dtype)
    check(arguments, grad_out, last_states(arguments))


@pytest.mark.parametrize("constant", ["B", "C", "BC"])
def test_constant_coefficients(isa, constant):
    arguments = plain(RNG(4), dtype=np.float32, last=True)
    arguments |= {n: RNG(5).normal(size=(40, 16)).astype(np.float32) for n in constant}
    check(arguments, RNG(6).normal(size=arguments["u"].shape).astype(np.float32), None)


def test_along_a_random_direction():
    # Central differences of the reference's own result: neither gradient is taken on trust.
    arguments = plain(RNG(7), B=1, L=70, D=6, S=3)
    rng = RNG(8)
    grad_out, grad_last = rng.normal(size=(1, 6, 70)), rng.normal(size=(1, 6, 3))
    got = ops.selective_scan_backward(grad_out, **arguments, grad_last_state=grad_last)

    def loss(changed):
        y, last = reference.selective_scan(**arguments | changed, return_last_state=True)
        return (y * grad_out).sum() + (last * grad_last).sum()

    for name, grad in got._asdict().items():
        direction, h = rng.normal(size=grad.shape), 1e-5
        up, down = (loss({name: arguments[name] + sign * h * direction}) for sign in (1, -1))
        want = (up - down) / (2 * h)
        assert abs((grad * direction).sum() - want) <= 1e-7 * np.abs(grad * direction).sum(), name


def test_threads_change_nothing():
    for dtype in DTYPES:
        arguments = plain(RNG(9), B=2, L=1500, D=100, S=4, dtype=dtype)
        grad_out = RNG(10).normal(size=arguments["u"].shape).astype(dtype)
        with sensorium.num_threads(1):
            want = ops.selective_scan_backward(grad_out, **arguments)
        for threads in (2, 5):
            with sensorium.num_threads(threads):
                got = ops.selective_scan_backward(grad_out, **arguments)
            for a, b in zip(got, want, strict=True):
                assert_array_equal(a, b)


def test_sequences_have_gradients_of_their_own():
    # Packed in a row, or each in a call: gradients of tokens are the same bits, those of parameters their sum.
    arguments = plain(RNG(11), B=1, L=150, last=True) | {"initial_state": RNG(12).normal(size=(3, 40, 16))}
    cuts = [0, 64, 64, 150]
    grad_out = RNG(13).normal(size=(1, 150, 40))
    whole = ops.selective_scan_backward(grad_out, **arguments, cu_seqlens=cuts)
    total = np.zeros((40, 16))
    for i, (start, end) in enumerate(pairwise(cuts)):
        part = {name: arguments[name][:, start:end] for name in TOKENS}
        part["initial_state"] = arguments["initial_state"][i : i + 1]
        one = ops.selective_scan_backward(grad_out[:, start:end], **arguments | part)
        for name in TOKENS:
            assert_array_equal(getattr(one, name), getattr(whole, name)[:, start:end])
        assert_array_equal(one.initial_state[0], whole.initial_state[i])
        total += one.A
    np.testing.assert_allclose(whole.A, total, rtol=1e-10)


def test_nan_stays_in_its_row_and_channel(isa):
    arguments = plain(RNG(14), dtype=np.float32)
    grad_out = RNG(15).normal(size=arguments["u"].shape).astype(np.float32)
    want = ops.selective_scan_backward(grad_out, **arguments)
    spoilt = arguments["u"].copy()
    spoilt[1, 37, 70] = np.nan
    got = ops.selective_scan_backward(grad_out, **arguments | {"u": spoilt})
    for name in ("u", "delta", "z", "initial_state"):
        may = np.zeros(getattr(got, name).shape, dtype=bool)
        may[1, 37] = True
        assert_array_equal(getattr(got, name)[~may], getattr(want, name)[~may])
    for name in ("B", "C"):
        assert_array_equal(getattr(got, name)[0], getattr(want, name)[0])
    for name in ("A", "D", "delta_bias"):
        rows = np.arange(40) != 37
        assert_array_equal(getattr(got, name)[rows], getattr(want, name)[rows])


def test_autodiff_is_the_backward():
    arguments = plain(RNG(16), B=1, L=30, D=5, S=3)
    how = {name: arguments.pop(name) for name in ("delta_softplus", "channels_last")}
    rng = RNG(17)
    weight, weight_last = rng.normal(size=(1, 5, 30)), rng.normal(size=(1, 5, 3))
    names = tuple(arguments)

    def loss(arrays):
        named = dict(zip(names, arrays, strict=True))
        y, last = autodiff.selective_scan(**named, **how, return_last_state=True)
        return anp.sum(y * weight) + anp.sum(last * weight_last)

    got = gradient_of(loss)(tuple(arguments.values()))
    want = ops.selective_scan_backward(weight, **arguments, **how, grad_last_state=weight_last)
    for name, grad in zip(names, got, strict=True):
        np.testing.assert_allclose(grad, getattr(want, name), rtol=1e-12, atol=1e-13)

    def plainly(u):
        return anp.sum(autodiff.selective_scan(u, *list(arguments.values())[1:5], **how) ** 2)

    some = list(arguments.values())[1:5]
    y = ops.selective_scan(arguments["u"], *some, **how)
    want = ops.selective_scan_backward(2 * y, arguments["u"], *some, **how).u
    np.testing.assert_allclose(gradient_of(plainly)(arguments["u"]), want, rtol=1e-12, atol=1e-13)


BASE = plain(RNG(18), B=1, L=70, D=4, S=2)
GRAD = np.zeros((1, 4, 70))
WRONG = [
    (
        {"grad_out": np.zeros((1, 4, 6))},
        "ShapeError",
        r"grad_out has shape \(1, 4, 6\), expected \(1, 4, 70\)",
    ),
    ({"grad_out": GRAD.astype(np.float32)}, "DTypeError", "grad_out has dtype float32 but u has float64"),
    ({"grad_last_state": np.zeros((1, 4, 1))}, "ShapeError", "grad_last_state has shape .* expected"),
    ({"checkpoints": np.zeros(3)}, "ShapeError", "checkpoints has 3 elements, expected 8"),
]


@pytest.mark.parametrize(("change", "error", "words"), WRONG)
def test_words_of_errors(change, error, words):
    with pytest.raises(getattr(errors, error), match=words):
        ops.selective_scan_backward(**{"grad_out": GRAD} | BASE | change)
