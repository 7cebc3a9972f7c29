"""Rows that hold several sequences."""

import numpy as np
import pytest
from sensorium.errors import ArgumentError, DTypeError, ShapeError
from sensorium.ops._packed import check_packing


def test_states_belong_to_rows_or_to_packed_sequences():
    assert check_packing(3, 5, None, None) == (None, None, 3)
    ids, offsets, states = check_packing(2, 3, np.array([[0, 0, 1], [4, 4, 4]], np.int32), None)
    assert ids.dtype == np.int64
    assert ids.flags.c_contiguous
    assert (offsets, states) == (None, 2)
    ids, offsets, states = check_packing(1, 5, None, [0, 2, 2, 5])
    assert (ids, offsets.tolist(), states) == (None, [0, 2, 2, 5], 3)
    assert check_packing(1, 0, None, [0])[2] == 0


@pytest.mark.parametrize(
    ("B", "seq_idx", "cu_seqlens", "error", "words"),
    [
        (1, np.zeros((1, 5), int), [0, 5], ArgumentError, "seq_idx and cu_seqlens cannot both be given"),
        (1, np.zeros((1, 4), int), None, ShapeError, r"seq_idx has shape \(1, 4\), expected \(1, 5\)"),
        (1, np.zeros((1, 5)), None, DTypeError, "seq_idx has dtype float64, expected integers"),
        (2, None, [0, 5], ShapeError, "cu_seqlens needs a batch of 1, not 2"),
        (1, None, [[0, 5]], ShapeError, "cu_seqlens has shape"),
        (1, None, [], ArgumentError, "cu_seqlens must begin with 0"),
        (1, None, [1, 5], ArgumentError, "cu_seqlens must begin with 0"),
        (1, None, [0, 4], ArgumentError, "cu_seqlens must end with the length, 5"),
        (1, None, [0, 4, 3, 5], ArgumentError, "cu_seqlens must not fall"),
    ],
)
def test_errors_name_the_argument(B, seq_idx, cu_seqlens, error, words):
    with pytest.raises(error, match=words):
        check_packing(B, 5, seq_idx, cu_seqlens)
