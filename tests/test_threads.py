"""Thread counts: what is set is what is used, per process and per thread."""

import os
import subprocess
import sys
import threading

import pytest
import sensorium
from sensorium import _core


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


def run(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(("value", "want"), [("3", "3"), (" 2 ", "2"), ("", None)])
def test_environment(value, want):
    done = run("import sensorium; print(sensorium.get_num_threads())", SENSORIUM_NUM_THREADS=value)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == want if want else int(done.stdout) >= 1


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("SENSORIUM_NUM_THREADS", "two", 'must be a whole number from 1 to 256, not "two"'),
        ("SENSORIUM_NUM_THREADS", "0", 'must be a whole number from 1 to 256, not "0"'),
        ("SENSORIUM_NUM_THREADS", "257", 'must be a whole number from 1 to 256, not "257"'),
        ("SENSORIUM_ISA", "sse9", 'must be one of baseline, neon, avx2, avx512, not "sse9"'),
    ],
)
def test_a_mistyped_variable_stops_the_import(variable, value, words):
    done = run("import sensorium", **{variable: value})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"sensorium.errors.ArgumentError: {variable} {words}"


@pytest.mark.parametrize("level", _core.isa_available())
def test_isa_environment(level):
    done = run("from sensorium import _core; print(_core.isa_level())", SENSORIUM_ISA=level)
    assert done.stdout.strip() == level


SQUARE = """
import numpy as np
from sensorium import ops
a = np.random.default_rng(0).standard_normal((300, 300))
want = ops.matmul(a, a)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_computes_on_its_own_threads():
    code = (
        SQUARE
        + """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forking where there are threads.
child = os.fork()
if child == 0:
    os._exit(0 if (ops.matmul(a, a) == want).all() else 3)
assert (ops.matmul(a, a) == want).all()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    )
    done = run(code, SENSORIUM_NUM_THREADS="2")
    assert done.returncode == 0, done.stderr


def test_calls_from_several_threads_at_once():
    code = (
        SQUARE
        + """
import threading
wrong = []
def call():
    for _ in range(50):
        if not (ops.matmul(a, a) == want).all():
            wrong.append(1)
threads = [threading.Thread(target=call) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
assert not wrong
"""
    )
    done = run(code, SENSORIUM_NUM_THREADS="3")
    assert done.returncode == 0, done.stderr
