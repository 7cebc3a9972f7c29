"""BLAS is held to one thread while it would only be in the way, and gets its threads back."""

import pytest
from sensorium._blas import one_blas_thread
from threadpoolctl import threadpool_info, threadpool_limits


def threads():
    found = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    assert found, "NumPy has no BLAS whose threads can be counted"
    return found


def test_within_and_after():
    with threadpool_limits(3, user_api="blas"):
        before = threads()
        with one_blas_thread():
            assert set(threads()) == {1}
        assert threads() == before
        with pytest.raises(KeyError), one_blas_thread():
            raise KeyError
        assert threads() == before


def test_as_a_decorator():
    assert set(one_blas_thread()(threads)()) == {1}
