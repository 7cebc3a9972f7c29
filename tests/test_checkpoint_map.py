"""Files of other programs, mapped into memory: what they hold, or an error."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from sensorium import CheckpointError, DTypeError, checkpoint

FLOATS = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def test_a_damaged_file_is_no_worse_than_an_error(tmp_path):
    file = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(
        {"w": np.arange(40, dtype=np.float32).reshape(4, 10), "n": np.arange(9)}, file, {"format": "pt"}
    )
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")

    @given(st.integers(0, header - 1), st.integers(1, 255))
    def changed(place, bits):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1 :])
        try:
            arrays = checkpoint.map_arrays(file)
        except CheckpointError:
            return
        assert sum(array.nbytes for array in arrays.values()) == len(whole) - header

    @given(st.integers(0, len(whole) - 1))
    def shortened(length):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            checkpoint.map_arrays(file)

    changed()
    shortened()


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*FLOATS, np.int64, np.uint8, np.bool_]),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        max_size=5,
    )
)
def test_any_safetensors_file_is_mapped(tmp_path_factory, drawn):
    rng = np.random.default_rng(0)
    arrays = {
        str(i): np.asarray(9 * rng.random(shape)).astype(dtype) for i, (dtype, shape) in enumerate(drawn)
    }
    file = tmp_path_factory.mktemp("any") / "x.safetensors"
    safetensors.numpy.save_file(arrays, file)
    mapped = checkpoint.map_arrays(file)
    assert mapped.keys() == arrays.keys()
    for name, array in arrays.items():
        assert mapped[name].dtype == array.dtype
        np.testing.assert_array_equal(mapped[name].astype(np.float64), array.astype(np.float64))
    checkpoint.export(file, arrays)
    again = safetensors.numpy.load_file(file)
    assert all(again[name].tobytes() == array.tobytes() for name, array in arrays.items())


def test_an_array_at_an_odd_place_is_copied(tmp_path):
    entries = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    header = json.dumps(entries).encode()
    data = b"\x07" + np.array([1.5, -2.0], "<f4").tobytes()
    file = tmp_path / "odd.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)
    mapped = checkpoint.map_arrays(file)
    assert mapped["b"].flags.aligned
    assert mapped["b"].tolist() == [1.5, -2.0]
    file.write_bytes(b"\x02" + bytes(7) + b"{}")
    assert checkpoint.map_arrays(file) == {}


def test_mapped_arrays_are_not_read_and_not_written(tmp_path):
    file = tmp_path / "x.safetensors"
    checkpoint.export(file, {"w": np.arange(6.0)}, {"format": "pt"})
    array = checkpoint.map_arrays(file)["w"]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    while not isinstance(array, np.memmap):
        array = array.base
        assert array is not None
    with pytest.raises(DTypeError, match=r"metadata\['format'\] is 1, expected strings"):
        checkpoint.export(file, {}, {"format": 1})
    with pytest.raises(DTypeError, match="complex128"):
        checkpoint.export(file, {"w": np.zeros(2, complex)})
    with pytest.raises(DTypeError, match="bfloat16"):  # our own files have none
        checkpoint.save(file, {"w": np.zeros(2, ml_dtypes.bfloat16)})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[1]", "not a JSON object"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1, "a": 2}', "a key twice"),
        (b"{" + b" " * 300 + b"}", "has more than 256 bytes"),
        (b"\xff", "not JSON"),
    ],
)
def test_json_that_cannot_be_used(text, words, tmp_path):
    file = tmp_path / "config.json"
    file.write_bytes(text)
    with pytest.raises(CheckpointError, match=words):
        checkpoint.parse_json(file, most=256)
    file.write_bytes(b'{"a": Infinity}')
    assert checkpoint.parse_json(file) == {"a": float("inf")}
