"""How many threads the kernels use."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager

from . import _core
from .errors import ArgumentError, DTypeError

__all__ = ["get_num_threads", "num_threads", "set_num_threads"]


def _check(n: int) -> int:
    try:
        n = operator.index(n)
    except TypeError as error:
        raise DTypeError(f"n must be an integer, not {type(n).__name__}") from error
    if not 1 <= n <= _core.MAX_THREADS:
        raise ArgumentError(f"n must be from 1 to {_core.MAX_THREADS}, not {n}")
    return n


def get_num_threads() -> int:
    """Return the number of threads that kernels called from this thread may use."""
    return _core.num_threads()


def set_num_threads(n: int) -> None:
    """Set the number of threads that kernels may use, in the whole process.

    The start value is the environment variable ``SENSORIUM_NUM_THREADS`` or else the number of processors
    that the process may run on. Results do not depend on it, bit for bit.

    Parameters
    ----------
    n : int
        From 1 to 256.

    Raises
    ------
    DTypeError, ArgumentError
        Where ``n`` is not an integer, or out of range.
    """
    _core.set_num_threads(_check(n))


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Use ``n`` threads within a ``with`` block, for calls from the thread that entered it.

    Examples
    --------
    >>> import sensorium
    >>> with sensorium.num_threads(1):
    ...     sensorium.get_num_threads()
    1
    """
    before = _core.set_local_num_threads(_check(n))
    try:
        yield
    finally:
        _core.set_local_num_threads(before)
