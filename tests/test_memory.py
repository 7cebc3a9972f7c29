"""Memory that stays with the process."""

import subprocess
import sys

import pytest
import sensorium

resource = pytest.importorskip("resource")  # What counts page faults is not on Windows.

CODE = """
import resource, sys
import numpy as np
import sensorium

kept = sensorium.keep_pages() if sys.argv[1] == "keep" else False
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(6_000_000 // 4, np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(int(kept), faults())
"""


def faults(how):
    done = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True)
    kept, count = done.stdout.split()
    return kept == "1", int(count)


def test_later_arrays_find_their_pages_mapped():
    kept, count = faults("keep")
    if not kept:
        pytest.skip("not the GNU C library: nothing to keep")
    assert count < 20 * 6_000_000 / resource.getpagesize() / 100


def test_it_can_be_called_again():
    assert sensorium.keep_pages() == sensorium.keep_pages()
