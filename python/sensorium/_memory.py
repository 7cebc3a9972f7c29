"""How the process keeps memory that it has used once."""

from __future__ import annotations

import ctypes
from functools import cache

__all__ = ["keep_pages"]

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


@cache
def keep_pages() -> bool:
    """Let freed memory stay with the process, so that later arrays find pages that are already mapped.

    By default the GNU C library asks the system for every array over its threshold (at most 32 MB) and gives
    it back when the array is freed, so that each step of training touches all of its memory for the first
    time again. On a virtual machine that costs 0.25 to 4 microseconds for each 4 kB. After this call large
    arrays come from the same heap as small ones, and the heap does not shrink: the process holds what it
    needed at its peak until it ends. Training calls it; calling it again does nothing.

    Returns
    -------
    bool
        Whether the process now keeps its pages: False where the C library is not GNU's, and nothing changed.

    Examples
    --------
    >>> import sensorium
    >>> sensorium.keep_pages() in (True, False)
    True
    """
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - other libraries have a mallopt with other meanings.
        mallopt = libc.mallopt
    except (OSError, AttributeError, TypeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
