"""Elementary functions against NumPy's in higher precision. The bounds are held more densely in Rust."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from sensorium import _core

LEVELS = _core.isa_available()


def sigmoid(x):
    z = np.exp(-abs(x))
    return np.where(x < 0, z, 1) / (1 + z)


def softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-abs(x)))


# Function, reference, units in the last place, exponents of the arguments: negative ones alone where -1.
FUNCTIONS = {
    "exp": (np.exp, 1.1, 0),
    "exp_nonpositive": (np.exp, 1.1, -1),
    "exp2": (np.exp2, 1.3, 0),
    "exp2_nonpositive": (np.exp2, 1.3, -1),
    "log": (np.log, 1.0, 1),
    "log1p": (np.log1p, 1.0, 1),
    "sigmoid": (sigmoid, 2.5, 0),
    "softplus": (softplus, 2.25, 0),
    "tanh": (np.tanh, 2.75, 0),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", FUNCTIONS)
@given(dtype=st.sampled_from([np.float32, np.float64]), size=st.integers(0, 100), seed=st.integers(0, 2**32))
def test_within_units_in_the_last_place(level, name, dtype, size, seed):
    reference, ulps, sign = FUNCTIONS[name]
    wide = np.float64 if dtype == np.float32 else np.longdouble
    if np.finfo(wide).eps > np.finfo(dtype).eps / 8:
        pytest.skip("long double is no wider than double here")
    rng = np.random.default_rng(seed)
    x = np.exp2(rng.uniform(-30, 6.4, size)) * rng.choice([-1, 1], size)
    x = (x if sign == 0 else sign * abs(x)).astype(dtype)
    before = _core.isa_level()
    try:
        assert _core.set_isa(level) == level
        got = _core.elementary(x, name)
    finally:
        _core.set_isa(before)
    want = reference(x.astype(wide))
    info = np.finfo(dtype)
    unit = np.maximum(abs(want), info.tiny).astype(dtype)
    unit = np.exp2(np.floor(np.log2(unit.astype(wide)))) * info.eps
    lowest = info.tiny if name.endswith("nonpositive") else 0
    overflow = want > info.max
    fine = (abs(got - want) <= ulps * unit) | ((want < lowest) & (got == 0)) | (overflow & np.isinf(got))
    assert fine.all(), (x[~fine], got[~fine], want[~fine])


def test_blocks_of_several_threads_meet():
    x = np.linspace(-5, 5, 100_003)
    assert_array_equal(_core.elementary(x, "exp")[7::100], _core.elementary(x[7::100].copy(), "exp"))


def test_an_unknown_name():
    with pytest.raises(ValueError, match=r'name must be one of exp, .*, tanh, not "cos"'):
        _core.elementary(np.zeros(3), "cos")
