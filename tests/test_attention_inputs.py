"""Arrays in every form that memory can have, and results written where the caller says."""

import re

import ml_dtypes
import numpy as np
import pytest
import sensorium
from hypothesis import given
from hypothesis import strategies as st
from sensorium import ops
from sensorium.ops import (
    Layout,
    Rotary,
    Segment,
    attention,
    attention_backward,
    rotary,
    self_attention,
    self_attention_backward,
)
from strategies import FORMS, in_form

LAYOUT = Layout([Segment("causal", 4), Segment("full", 7)])
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
MORE = [
    "reversed heads",
    "reversed width",
    "transposed",
    "gapped width",
    "subclass",
    "dlpack",
    "array",
    "list",
]


class Dlpack:
    """Nothing but the protocol."""

    def __init__(self, array):
        self._array = array

    def __dlpack__(self, **kwargs):
        return self._array.__dlpack__(**kwargs)

    def __dlpack_device__(self):
        return self._array.__dlpack_device__()


class AsArray:
    """Nothing but NumPy's protocol."""

    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        return self._array if dtype is None else self._array.astype(dtype)


class Subclass(np.ndarray):
    pass


def held(array, form):
    """The same numbers in another form, and the memory that they lie in."""
    if form in FORMS:
        array = in_form(array, form)
        return array, array
    if form == "reversed heads":
        array = array[:, ::-1].copy()[:, ::-1]
    elif form == "reversed width":
        array = array[..., ::-1].copy()[..., ::-1]
    elif form == "transposed":
        array = array.transpose(3, 2, 1, 0).copy().transpose(3, 2, 1, 0)
    elif form == "gapped width":
        wide = np.zeros((*array.shape[:3], 2 * array.shape[3]), dtype=array.dtype)
        wide[..., ::2] = array
        array = wide[..., ::2]
    elif form == "subclass":
        array = array.view(Subclass)
    elif form == "dlpack":
        return Dlpack(array), array
    elif form == "array":
        return AsArray(array), array
    elif form == "list":
        return array.tolist(), array
    return array, array


def everything(q, k, v, g, layout, **how):
    out, lse = attention(q, k, v, layout, **how)
    return (out, lse, *attention_backward(g, q, k, v, out, lse, layout, **how))


@st.composite
def calls(draw):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    plain = [rng.normal(size=(2, h, LAYOUT.length, draw(st.just(8)))).astype(dtype) for h in (4, 2, 2, 4)]
    # Lists are of float64; DLPack and NumPy have no bfloat16 in common.
    forms = [
        form
        for form in FORMS + MORE
        if not (form == "list" and dtype != np.float64)
        and not (form == "dlpack" and dtype == ml_dtypes.bfloat16)
    ]
    return plain, [draw(st.sampled_from(forms)) for _ in plain], draw(st.booleans())


@given(calls())
def test_the_form_of_an_array_changes_no_bit(call):
    plain, forms, turned = call
    how = {"rotary": Rotary()} if turned else {}
    want = everything(*plain, LAYOUT, **how)
    given_as = [held(x, form) for x, form in zip(plain, forms, strict=True)]
    before = [memory.copy() for _, memory in given_as]
    flags = [(memory.flags.writeable, memory.strides) for _, memory in given_as]
    got = everything(*(value for value, _ in given_as), LAYOUT, **how)
    for a, b in zip(got, want, strict=True):
        assert type(a) is np.ndarray
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    for (_, memory), copy, flag in zip(given_as, before, flags, strict=True):
        np.testing.assert_array_equal(memory, copy)
        assert (memory.flags.writeable, memory.strides) == flag


@pytest.mark.parametrize("dtype", DTYPES)
def test_broadcast_arrays_are_read_where_they_are(dtype):
    # One query for all tokens, one head of keys for all samples.
    rng = np.random.default_rng(0)
    shape = (3, 2, LAYOUT.length, 8)
    q = np.broadcast_to(rng.normal(size=(3, 2, 1, 8)).astype(dtype), shape)
    k = np.broadcast_to(rng.normal(size=(1, 1, LAYOUT.length, 8)).astype(dtype), shape)
    v = np.broadcast_to(rng.normal(size=(1, 1, 1, 1)).astype(dtype), shape)
    g = np.broadcast_to(np.ones((), dtype=dtype), shape)
    want = everything(*(np.ascontiguousarray(x) for x in (q, k, v, g)), LAYOUT)
    for a, b in zip(everything(q, k, v, g, LAYOUT), want, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.flags.writeable


@pytest.mark.parametrize("form", [form for form in FORMS if form != "packed"] + ["dlpack", "array"])
def test_packed_projections_in_any_form(form):
    rng = np.random.default_rng(0)
    qkv = rng.normal(size=(2, 11, 3, 4, 8)).astype(np.float32)
    grad = rng.normal(size=(2, 11, 32)).astype(np.float32)
    out, lse = self_attention(qkv, LAYOUT)
    want = self_attention_backward(grad, qkv, out, lse, LAYOUT)
    # The forms are of four dimensions.
    flat, _ = held(qkv.reshape(2, 11, 3, 32), form if form in FORMS else "contiguous")
    packed = flat.reshape(2, 11, 3, 4, 8) if form != "reversed" else qkv[:, ::-1].copy()[:, ::-1]
    packed = {"dlpack": Dlpack, "array": AsArray}.get(form, lambda x: x)(packed)
    grad = {"dlpack": Dlpack, "array": AsArray}.get(form, lambda x: x)(grad)
    again, lse_again = self_attention(packed, LAYOUT)
    np.testing.assert_array_equal(again, out)
    np.testing.assert_array_equal(lse_again, lse)
    np.testing.assert_array_equal(self_attention_backward(grad, packed, out, lse, LAYOUT), want)


def test_a_dlpack_object_is_read_without_a_copy(monkeypatch):
    taken = []
    q = np.zeros((1, 1, 11, 4), dtype=np.float32)
    from_dlpack = np.from_dlpack

    def watched(value):
        taken.append(from_dlpack(value))
        return taken[-1]

    monkeypatch.setattr(np, "from_dlpack", watched)
    attention(Dlpack(q), q, q, LAYOUT)
    assert len(taken) == 1
    assert np.shares_memory(taken[0], q)


def test_an_object_of_another_device_is_refused_by_name():
    class Elsewhere(Dlpack):
        def __dlpack__(self, **kwargs):
            raise BufferError("in the memory of another device")

    q = np.zeros((1, 1, 11, 4), dtype=np.float32)
    words = "k cannot be read as an array: in the memory of another device"
    with pytest.raises(sensorium.DTypeError, match=words):
        attention(q, Elsewhere(q), q, LAYOUT)


def test_other_operations_read_dlpack_objects_too():
    x = np.random.default_rng(0).normal(size=(5, 6))
    np.testing.assert_array_equal(ops.gelu(Dlpack(x)), ops.gelu(x))
    np.testing.assert_array_equal(rotary(Dlpack(x)), rotary(x))


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_results_leave_by_dlpack_without_a_copy(dtype):
    q = np.random.default_rng(0).normal(size=(1, 2, 11, 4)).astype(dtype)
    out, lse = attention(q, q, q, LAYOUT)
    for result in (out, lse, *attention_backward(q, q, q, q, out, lse, LAYOUT), rotary(q)):
        seen = np.from_dlpack(Dlpack(result))
        assert np.shares_memory(seen, result)
        np.testing.assert_array_equal(seen, result)


def places(shape, dtype):
    """Arrays of a shape to write to, each as a fresh one."""
    batch, heads, tokens, width = shape
    gapped = np.full((batch, heads, 2 * tokens, width + 3), 7, dtype=dtype)
    return {
        "contiguous": np.empty(shape, dtype=dtype),
        "heads last": np.empty((batch, tokens, heads, width), dtype=dtype).transpose(0, 2, 1, 3),
        "gapped": gapped[:, :, ::2, 1 : 1 + width],
        "reversed": np.empty(shape, dtype=dtype)[:, :, ::-1],
        "fortran": np.empty(shape, dtype=dtype, order="F"),
        "width apart": np.empty((*shape[:3], 2 * width), dtype=dtype)[..., ::2],
        "unaligned": np.zeros(np.prod(shape) * dtype.itemsize + 1, np.uint8)[1:].view(dtype).reshape(shape),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("place", list(places((1, 1, 1, 1), np.dtype(np.float32))))
def test_results_are_written_where_the_caller_says(dtype, place):
    rng = np.random.default_rng(0)
    q, g = rng.normal(size=(2, 2, 4, 11, 8)).astype(dtype)
    k, v = rng.normal(size=(2, 2, 2, 11, 8)).astype(dtype)
    want, want_lse = attention(q, k, v, LAYOUT)
    out = places(q.shape, q.dtype)[place]
    got, lse = attention(q, k, v, LAYOUT, out=out)
    assert got is out
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(lse, want_lse)
    assert attention(q, k, v, LAYOUT, out=out, return_lse=False) is out
    wanted = attention_backward(g, q, k, v, want, lse, LAYOUT)
    grads = tuple(places(x.shape, x.dtype)[place] for x in (q, k, v))
    got = attention_backward(g, q, k, v, out, lse, LAYOUT, grads=grads)
    assert all(a is b for a, b in zip(got, grads, strict=True))
    for a, b in zip(grads, wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    if place == "gapped":
        base = out.base
        assert np.all(base[:, :, 1::2] == 7)
        assert np.all(base[..., 0] == 7)
        assert np.all(base[..., -2:] == 7)


def test_parts_of_one_array_are_written_apart():
    rng = np.random.default_rng(0)
    packed = rng.normal(size=(2, 11, 4, 2, 8)).astype(np.float32)
    q, k, v, out = packed.transpose(2, 0, 3, 1, 4)
    want, _ = attention(q.copy(), k.copy(), v.copy(), LAYOUT)
    before = packed[:, :, :3].copy()
    got, lse = attention(q, k, v, LAYOUT, out=out)
    assert got is out
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(packed[:, :, :3], before)
    wanted = attention_backward(q, q, k, v, out, lse, LAYOUT)
    dqkv = np.empty((2, 11, 3, 2, 8), dtype=np.float32)
    attention_backward(q, q, k, v, out, lse, LAYOUT, grads=dqkv.transpose(2, 0, 3, 1, 4))
    for i, part in enumerate(wanted):
        np.testing.assert_array_equal(dqkv[:, :, i], part.transpose(0, 2, 1, 3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_self_attention_writes_where_the_caller_says(dtype):
    rng = np.random.default_rng(0)
    qkv = rng.normal(size=(2, 11, 3, 4, 8)).astype(dtype)
    grad = rng.normal(size=(2, 11, 32)).astype(dtype)
    want, want_lse = self_attention(qkv, LAYOUT)
    for out in (
        np.empty_like(want),
        np.empty((2, 22, 35), dtype=dtype)[:, ::2, 1:33],
        np.empty_like(want, order="F"),
    ):
        got, lse = self_attention(qkv, LAYOUT, out=out)
        assert got is out
        np.testing.assert_array_equal(out, want)
        np.testing.assert_array_equal(lse, want_lse)
    wanted = self_attention_backward(grad, qkv, want, want_lse, LAYOUT)
    for dqkv in (
        np.empty_like(qkv),
        np.empty_like(qkv, order="F"),
        np.empty((2, 11, 3, 4, 16), dtype)[..., ::2],
    ):
        assert self_attention_backward(grad, qkv, want, want_lse, LAYOUT, grads=dqkv) is dqkv
        np.testing.assert_array_equal(dqkv, wanted)


Q = np.zeros((2, 2, 11, 8), dtype=np.float32)
FIXED = np.zeros_like(Q)
FIXED.flags.writeable = False
ONE = np.lib.stride_tricks.as_strided(np.zeros(88, dtype=np.float32), Q.shape, (0, 0, 32, 4))


@pytest.mark.parametrize(
    ("out", "error", "words"),
    [
        (Q.tolist(), sensorium.DTypeError, "out must be an ndarray, not list"),
        (Q.astype(np.float64), sensorium.DTypeError, "out has dtype float64, expected float32"),
        (Q.astype(">f4"), sensorium.DTypeError, "out has dtype >f4, expected float32"),
        (Q[:1], sensorium.ShapeError, "out has shape (1, 2, 11, 8), expected (2, 2, 11, 8)"),
        (FIXED, sensorium.ArgumentError, "out is read-only"),
        (Q, sensorium.ArgumentError, "out shares memory with q"),
        (ONE, sensorium.ArgumentError, "out has elements that share memory"),
    ],
)  # fmt: skip
def test_places_that_cannot_be_written_to_are_refused(out, error, words):
    k = np.ones_like(Q)
    with pytest.raises(error, match=f"^{re.escape(words)}$"):
        attention(Q, k, k, LAYOUT, out=out)
    lse = Q[..., 0].copy()
    words = words.replace("out ", "dq ")
    with pytest.raises(error, match=f"^{re.escape(words)}$"):
        attention_backward(k, Q, k, k, k, lse, LAYOUT, grads=(out, k.copy(), k.copy()))


def test_gradients_must_not_share_memory():
    k = np.ones_like(Q)
    lse, dk = Q[..., 0].copy(), np.empty_like(Q)

    def refuse(words, *grads):
        with pytest.raises(sensorium.ArgumentError, match=f"^{re.escape(words)}$"):
            attention_backward(k, Q, k, k, k, lse, LAYOUT, grads=grads)

    refuse("dv shares memory with dk", np.empty_like(Q), dk, dk)
    refuse("dk shares memory with grad_out", np.empty_like(Q), k, dk)
    refuse("grads must be three arrays (dq, dk, dv), not 2", dk, dk)


def test_a_packed_gradient_must_not_share_memory():
    qkv = np.zeros((2, 11, 3, 2, 8), dtype=np.float32)
    out = np.zeros((2, 11, 16), dtype=np.float32)
    block = np.zeros(qkv.size, dtype=np.float32)
    with pytest.raises(sensorium.ArgumentError, match=r"^grads shares memory with lse$"):
        self_attention_backward(
            out, qkv, out, block[:44].reshape(2, 2, 11), LAYOUT, grads=block.reshape(qkv.shape)
        )
    with pytest.raises(sensorium.ArgumentError, match=r"^out shares memory with qkv$"):
        self_attention(qkv, LAYOUT, out=qkv.reshape(-1)[: out.size].reshape(out.shape))
