"""Thread counts: what is set is what is used, per process and per thread."""

import os
import threading

import pytest
import sensorium


def test_context_restores_and_nests():
    before = sensorium.get_num_threads()
    with sensorium.num_threads(3):
        assert sensorium.get_num_threads() == 3
        with sensorium.num_threads(1):
            assert sensorium.get_num_threads() == 1
        assert sensorium.get_num_threads() == 3
    assert sensorium.get_num_threads() == before


def test_context_holds_for_its_own_thread_alone():
    seen = []
    with sensorium.num_threads(7):
        other = threading.Thread(target=lambda: seen.append(sensorium.get_num_threads()))
        other.start()
        other.join()
    assert seen == [sensorium.get_num_threads()]


def test_set_num_threads_is_global():
    before = sensorium.get_num_threads()
    try:
        sensorium.set_num_threads(5)
        assert sensorium.get_num_threads() == 5
    finally:
        sensorium.set_num_threads(before)


@pytest.mark.parametrize("n", [0, -1, 257])
def test_out_of_range(n):
    with pytest.raises(sensorium.ArgumentError, match=f"n must be from 1 to 256, not {n}"):
        sensorium.set_num_threads(n)


def test_not_an_integer():
    with pytest.raises(sensorium.DTypeError, match="n must be an integer, not float"):
        sensorium.set_num_threads(1.5)  # type: ignore[arg-type]


def test_environment(tmp_path):
    import subprocess
    import sys

    code = "import sensorium; print(sensorium.get_num_threads())"
    env = {**os.environ, "SENSORIUM_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"
