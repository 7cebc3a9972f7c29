"""One safe file for arrays and settings: a model, or a training run that can go on.

The format is `safetensors`: eight bytes with the length of the header, a JSON header that names each array's
element type, shape and place, then the data. The header's metadata holds the caller's own settings as JSON,
and a SHA-256 over the whole file, its own 64 digits read as zeros. So a flipped bit is found wherever it is.

Writing goes to a neighbour of the file, is synced, and replaces the file in one step: a process that is
killed leaves the old file or the new one. Reading believes nothing: every number of the header is held
against the size of the file before memory is asked for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .errors import ArgumentError, CheckpointError, DTypeError, MissingExtraError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "check_arrays",
    "export",
    "flatten",
    "load",
    "map_arrays",
    "parse_json",
    "save",
    "unflatten",
    "write_atomically",
    "write_json",
]

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"
Array: TypeAlias = NDArray[Any]
Tree: TypeAlias = "dict[str, Array | Tree]"

# The header of a model of a thousand arrays has 100 kB. JSON grows up to thirtyfold when it is read.
MAX_HEADER_BYTES = 16 << 20
_MAX_NDIM = 32
_MAX_DIM = (1 << 63) - 1
_CHUNK = 1 << 20

_VERSION = "1"
_BLANK = "0" * 64
_DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def save(
    path: str | os.PathLike[str], arrays: Mapping[str, ArrayLike], metadata: Mapping[str, JSON] | None = None
) -> None:
    """Write arrays and settings to one file, or leave the file that is there as it is.

    Parameters
    ----------
    path : path-like
        The file. A symbolic link keeps pointing to where it points.
    arrays : mapping of str to array
        Arrays of any shape: booleans, integers, or floats of 16, 32 or 64 bits. A nested dict of parameters
        becomes such a mapping through :func:`flatten`.
    metadata : mapping of str to JSON values, optional
        Settings: what ``json`` can write, without NaN or infinities. It is part of the header, which may have
        16 MiB; long tables belong into ``arrays``.

    Raises
    ------
    ArgumentError, DTypeError
        Where a name, an element type or a setting cannot be stored; nothing is written.
    OSError
        Where the disk is full or the place cannot be written; the message names the file. What was there
        before is still there.

    Notes
    -----
    Safe against ``kill -9`` and Ctrl-C at any moment. Two processes that save to one place take turns.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from sensorium import checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "model.safetensors"
    ...     checkpoint.save(file, {"w": np.eye(2, dtype=np.float32)}, {"config": {"width": 2}})
    ...     checkpoint.load(file)
    ({'w': array([[1., 0.],
           [0., 1.]], dtype=float32)}, {'config': {'width': 2}})
    """
    stored = _stored(arrays)
    header, digest_at = _header(stored, {} if metadata is None else metadata)
    with _replacing(path) as fd:
        digest = hashlib.sha256()
        pieces: list[bytes | memoryview[int]] = [header, *(_bytes(array) for _, array in stored)]
        for piece in pieces:
            digest.update(piece)
            _write(fd, piece)
        os.lseek(fd, digest_at, os.SEEK_SET)
        _write(fd, digest.hexdigest().encode())


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file of any kind the way :func:`save` does: whole, or not at all.

    Parameters
    ----------
    path : path-like
        The file.
    data : bytes
        All of it.

    Raises
    ------
    OSError
        Where the disk is full or the place cannot be written; what was there before is still there.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(pathlib.Path(folder) / "metrics.json", b"{}")
    ...     (pathlib.Path(folder) / "metrics.json").read_text()
    '{}'
    """
    with _replacing(path) as fd:
        _write(fd, data)


def write_json(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON, sorted by key, with :func:`write_atomically`."""
    write_atomically(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Array], dict[str, JSON]]:
    """Read what :func:`save` wrote.

    Parameters
    ----------
    path : path-like
        The file.

    Returns
    -------
    arrays : dict of str to ndarray
        Contiguous, writeable, in the byte order of this machine, sorted by name.
    metadata : dict
        The settings.

    Raises
    ------
    CheckpointError
        Where the file is truncated, damaged, hostile, or another kind of file. No more memory is asked for
        than the file is long, beside what its header takes.
    OSError
        Where there is no such file, or it cannot be read.
    """
    try:
        with _open_regular(path) as file:
            return _read(file, os.fstat(file.fileno()).st_size)
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error.__cause__


def map_arrays(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Map the arrays of any ``safetensors`` file into memory, whoever wrote it, without reading them.

    Parameters
    ----------
    path : path-like
        The file. It must stay as it is while the arrays are in use.

    Returns
    -------
    dict of str to ndarray
        Read-only, in the order of the file. The system reads a page when it is first looked at, and shares
        it between processes. ``bfloat16`` is that of ``ml_dtypes``. An array that does not begin at a
        multiple of its element size is a copy.

    Raises
    ------
    CheckpointError
        Where the file is truncated, hostile, or another kind of file.
    MissingExtraError
        Where there is a ``bfloat16`` array, and no ``ml_dtypes``.
    OSError
        Where there is no such file, or it cannot be read.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> from sensorium import checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "model.safetensors"
    ...     checkpoint.export(file, {"w": np.eye(2, dtype=np.float32)})
    ...     checkpoint.map_arrays(file)["w"].sum()
    np.float32(2.0)
    """
    try:
        with _open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            _, text = _head(file, size)
            entries = _parse(text, "header")
            metadata = entries.pop("__metadata__", None)
            if metadata is not None and not isinstance(metadata, dict):
                raise CheckpointError("has a __metadata__ that is not a JSON object")
            begin = 8 + len(text)
            places = _places(entries, size - begin, _foreign_dtypes(entries))
            data = np.memmap(file, np.uint8, "r") if places and size > begin else np.zeros(0, np.uint8)
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error.__cause__
    arrays = {}
    for name, dtype, shape in places:
        end = begin + math.prod(shape) * dtype.itemsize
        piece = np.asarray(data[begin:end])
        if piece.ctypes.data % dtype.itemsize:
            piece = piece.copy()
        array = piece.view(dtype).reshape(shape)
        arrays[name] = np.require(array, dtype.newbyteorder("="))
        arrays[name].flags.writeable = False
        begin = end
    return arrays


def export(
    path: str | os.PathLike[str], arrays: Mapping[str, ArrayLike], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a ``safetensors`` file as other programs do: no checksum, ``bfloat16`` allowed.

    Parameters
    ----------
    path : path-like
        The file; replaced in one step, as by :func:`save`.
    arrays : mapping of str to array
        As for :func:`save`, or ``bfloat16`` of ``ml_dtypes``.
    metadata : mapping of str to str, optional
        ``{"format": "pt"}`` is what ``transformers`` asks for.

    Raises
    ------
    ArgumentError, DTypeError, OSError
        As :func:`save`.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     export(pathlib.Path(folder) / "model.safetensors", {"w": np.zeros(3)}, {"format": "pt"})
    """
    own = {} if metadata is None else dict(metadata)
    for key, value in own.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise DTypeError(f"metadata[{key!r}] is {value!r}, expected strings")
    stored = _stored(arrays, {**_NAMES, **_bfloat16_name(arrays)})
    header = _header_bytes(stored, own)
    with _replacing(path) as fd:
        _write(fd, header)
        for _, array in stored:
            _write(fd, _bytes(array))


def parse_json(path: str | os.PathLike[str], *, most: int = MAX_HEADER_BYTES) -> dict[str, Any]:
    """Read a file that is one JSON object; ``Infinity`` is a number in it, a key twice is an error.

    Parameters
    ----------
    path : path-like
        The file.
    most : int
        Bytes that it may have.

    Raises
    ------
    CheckpointError
        Where it is longer, or not such an object.
    OSError
        Where there is no such file, or it cannot be read.
    """
    try:
        with _open_regular(path) as file:
            text = file.read(most + 1)
        if len(text) > most:
            raise CheckpointError(f"has more than {most} bytes")
        return _parse(text, "text", infinite=True)
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error.__cause__


def check_arrays(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Array],
    expected: Mapping[str, tuple[tuple[int, ...], DTypeLike]],
) -> None:
    """Hold loaded arrays to the names, shapes and element types that a model expects.

    Parameters
    ----------
    path : path-like
        The file that they came from, for the message.
    arrays : mapping of str to ndarray
        What :func:`load` returned.
    expected : mapping of str to (shape, dtype)
        What should be there, and nothing else.

    Raises
    ------
    CheckpointError
        Where an array is missing, is one too many, or has another shape or element type.

    Examples
    --------
    >>> import numpy as np
    >>> check_arrays("m.safetensors", {"w": np.zeros((2, 3))}, {"w": ((2, 4), np.float64)})
    Traceback (most recent call last):
    sensorium.errors.CheckpointError: m.safetensors: w has shape (2, 3), expected (2, 4)
    """
    where = os.fspath(path)
    if missing := sorted(expected.keys() - arrays.keys()):
        raise CheckpointError(f"{where}: lacks {_some(missing)}")
    if surplus := sorted(arrays.keys() - expected.keys()):
        raise CheckpointError(f"{where}: has {_some(surplus)}, which the model does not know")
    for name, (shape, dtype) in expected.items():
        got = arrays[name]
        if got.shape != tuple(shape):
            raise CheckpointError(f"{where}: {name} has shape {got.shape}, expected {tuple(shape)}")
        if got.dtype != np.dtype(dtype):
            raise CheckpointError(f"{where}: {name} has dtype {got.dtype}, expected {np.dtype(dtype)}")


def flatten(tree: Mapping[str, Any], sep: str = "/") -> dict[str, Array]:
    """Return a nested dict of arrays as one dict, each key the path to its array.

    Parameters
    ----------
    tree : nested mapping of str to array
    sep : str
        What joins the keys of a path; no key may hold it.

    Raises
    ------
    ArgumentError
        Where a key holds ``sep``, is empty, or a branch below the root is empty: it could not come back.
    DTypeError
        Where a key is not a string.

    Examples
    --------
    >>> import numpy as np
    >>> flatten({"block": {"w": np.ones(2), "b": np.zeros(1)}})
    {'block/w': array([1., 1.]), 'block/b': array([0.])}
    """
    flat: dict[str, Array] = {}

    def walk(branch: Mapping[str, Any], prefix: str) -> None:
        for key, value in branch.items():
            if not isinstance(key, str):
                raise DTypeError(f"tree has the key {key!r} under {prefix!r}, expected strings")
            if not key or sep in key:
                raise ArgumentError(
                    f"tree has the key {key!r} under {prefix!r}; keys have no {sep!r} in them"
                )
            if not isinstance(value, Mapping):
                flat[prefix + key] = np.asarray(value)
            elif value:
                walk(value, prefix + key + sep)
            else:
                raise ArgumentError(f"tree has an empty branch {prefix + key!r}")

    walk(tree, "")
    return flat


def unflatten(flat: Mapping[str, Array], sep: str = "/") -> Tree:
    """Return the nested dict that :func:`flatten` made ``flat`` of.

    Raises
    ------
    ArgumentError
        Where one key is an array and the beginning of another key's path, or a part of a path is empty.

    Examples
    --------
    >>> unflatten({"block/w": np.ones(2), "block/b": np.zeros(1)})
    {'block': {'w': array([1., 1.]), 'b': array([0.])}}
    """
    tree: Tree = {}
    for path, array in flat.items():
        *parents, leaf = path.split(sep)
        branch = tree
        for key in parents:
            below = branch.setdefault(key, {})
            if not isinstance(below, dict):
                raise ArgumentError(f"flat has {path!r} below an array")
            branch = below
        if not all([*parents, leaf]):
            raise ArgumentError(f"flat has {path!r}, a path with an empty part")
        if leaf in branch:
            raise ArgumentError(f"flat has {path!r} above another array")
        branch[leaf] = array
    return tree


# --- writing ------------------------------------------------------------------------------------------


def _stored(
    arrays: Mapping[str, ArrayLike], known: Mapping[np.dtype[Any], str] = _NAMES
) -> list[tuple[str, Array]]:
    """Return contiguous little-endian arrays in the order of the file: wide elements first, then by name."""
    stored = []
    for name, value in arrays.items():
        if not isinstance(name, str):
            raise DTypeError(f"arrays has the key {name!r}, expected strings")
        if not name or name == "__metadata__" or not _encodable(name):
            raise ArgumentError(f"arrays has the key {name!r}, which cannot be the name of an array")
        array = np.asarray(value)
        little = array.dtype.newbyteorder("<") if array.dtype.kind in "biuf" else array.dtype
        if little not in known:
            raise DTypeError(f"arrays[{name!r}] has dtype {array.dtype}, which the format does not know")
        if array.ndim > _MAX_NDIM:
            raise ArgumentError(
                f"arrays[{name!r}] has {array.ndim} dimensions, at most {_MAX_NDIM} can be kept"
            )
        stored.append((name, np.require(array, dtype=little, requirements=["C"])))
    return sorted(stored, key=lambda item: (-item[1].itemsize, item[0]))


def _header(stored: list[tuple[str, Array]], metadata: Mapping[str, JSON]) -> tuple[bytes, int]:
    """Return length and header as they begin the file, checksum blank, and the checksum's place."""
    own = {"sensorium": _VERSION, "sha256": _BLANK, "metadata": _dump_metadata(metadata)}
    head = _header_bytes(stored, own)
    return head, head.index(_BLANK.encode())


def _header_bytes(stored: list[tuple[str, Array]], own: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": own} if own else {}
    start = 0
    for name, array in stored:
        entries[name] = {
            "dtype": _NAMES.get(array.dtype, "BF16"),
            "shape": array.shape,
            "data_offsets": [start, start + array.nbytes],
        }
        start += array.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8
    if len(text) > MAX_HEADER_BYTES:
        raise ArgumentError(
            f"metadata is too long: a header of {len(text)} bytes, at most {MAX_HEADER_BYTES} are read"
        )
    return len(text).to_bytes(8, "little") + text


def _bfloat16_name(arrays: Mapping[str, ArrayLike]) -> dict[np.dtype[Any], str]:
    """Return the dtype ``bfloat16`` with its name in the format, where an array is of it."""
    found = {array.dtype for array in arrays.values() if isinstance(array, np.ndarray)}
    return {dtype: "BF16" for dtype in found if dtype.name == "bfloat16"}


def _dump_metadata(metadata: Mapping[str, JSON]) -> str:
    _check_json(metadata, "metadata")
    try:
        return json.dumps(metadata, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except RecursionError as error:
        raise ArgumentError("metadata is nested too deeply") from error


def _check_json(value: object, where: str, depth: int = 0) -> None:
    """Refuse what JSON would change on the way: keys that are not strings, NaN, objects of other types."""
    if depth > 100:
        raise ArgumentError("metadata is nested too deeply")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise DTypeError(f"{where} has the key {key!r}, expected strings")
            _check_json(item, f"{where}[{key!r}]", depth + 1)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_json(item, f"{where}[{index}]", depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ArgumentError(f"{where} is {value}, which JSON does not know")
    elif value is not None and not isinstance(value, bool | int | str):
        raise DTypeError(f"{where} is of type {type(value).__name__}, which JSON does not know")


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _bytes(array: Array) -> memoryview[int]:
    if not array.size:
        return memoryview(b"")
    buffer: Any = array.reshape(-1).view(np.uint8)
    return memoryview(buffer)


def _write(fd: int, data: bytes | memoryview[int]) -> None:
    """Write all of ``data``; the system may take less at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest[:_CHUNK]) :]


@contextlib.contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[int]:
    """Open a neighbour of ``path`` to write to; it takes the place of ``path`` where writing ends well."""
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{target.name}.partial")
    try:
        with _partial(partial) as fd:
            yield fd
            os.fsync(fd)
            if os.name != "nt":  # while the lock is held: nobody else may begin to write to the neighbour
                partial.replace(target)
        if os.name == "nt":  # an open file cannot be renamed there
            partial.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[int]:
    """Open the neighbour, held by a lock, empty; remove it where writing does not end well."""
    fd = _open_locked(path)
    try:
        yield fd
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


def _open_locked(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    while True:
        fd = os.open(path, flags, 0o666)
        try:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks: no turns are taken
                    fcntl.flock(fd, fcntl.LOCK_EX)
            # Whoever held the lock before may have renamed the file; then this is not the neighbour any more.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), path.stat()):
                    os.ftruncate(fd, 0)
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _sync_folder(folder: Path) -> None:
    """Ask the disk to keep the new name too; not every system can."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)


# --- reading ------------------------------------------------------------------------------------------


def _open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    # A pipe would block for ever, and a device has no end.
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise CheckpointError("is not a file")
    return Path(path).open("rb")


def _read(reader: BufferedReader, size: int) -> tuple[dict[str, Array], dict[str, JSON]]:
    prefix, text = _head(reader, size)
    entries = _parse(text, "header")
    own = _own_metadata(entries.pop("__metadata__", None))
    places = _places(entries, size - 8 - len(text))

    digest = hashlib.sha256(prefix)
    digest.update(text.replace(own["sha256"].encode(), _BLANK.encode(), 1))
    arrays = {}
    for name, dtype, shape in places:
        array = arrays[name] = _empty(name, dtype, shape)
        data = _bytes(array)
        for start in range(0, len(data), _CHUNK):
            piece = data[start : start + _CHUNK]
            if reader.readinto(piece) != len(piece):
                raise CheckpointError("became shorter while it was read")
            digest.update(piece)
    if digest.hexdigest() != own["sha256"]:
        raise CheckpointError("is damaged: its checksum does not match")
    for name, array in arrays.items():
        if array.dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
            raise CheckpointError(f"{name} holds booleans that are neither 0 nor 1")
    native = {name: np.require(arrays[name], arrays[name].dtype.newbyteorder("=")) for name in sorted(arrays)}
    return native, _parse(own["metadata"], "metadata")


def _head(reader: BufferedReader, size: int) -> tuple[bytes, bytes]:
    """Return the eight bytes that tell the header's length, and the header."""
    if size < 8:
        raise CheckpointError(f"has {size} bytes, too few for a safetensors file")
    prefix = _exactly(reader, 8)
    length = int.from_bytes(prefix, "little")
    if length > size - 8:
        raise CheckpointError(
            f"is truncated or no safetensors file: a header of {length} bytes, but {size - 8} are left"
        )
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"has a header of {length} bytes, at most {MAX_HEADER_BYTES} are read")
    return prefix, _exactly(reader, length)


def _exactly(reader: BufferedReader, count: int) -> bytes:
    data = reader.read(count)
    if len(data) != count:
        raise CheckpointError("became shorter while it was read")
    return data


def _parse(text: bytes | str, what: str, *, infinite: bool = False) -> dict[str, Any]:
    """Parse JSON strictly: one object, no key twice, no NaN."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise CheckpointError(f"has a {what} with a key twice")
        return entries

    def constant_of(constant: str) -> float:
        if infinite and constant != "NaN":
            return float(constant)
        raise CheckpointError(f"has a {what} with {constant}, which JSON does not know")

    try:
        string = text if isinstance(text, str) else text.decode()
        entries = json.loads(string, object_pairs_hook=once, parse_constant=constant_of)
    except CheckpointError:
        raise
    except RecursionError as error:
        raise CheckpointError(f"has a {what} that is nested too deeply") from error
    except ValueError as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise CheckpointError(f"has a {what} that is not JSON") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"has a {what} that is not a JSON object")
    return entries


def _own_metadata(own: object) -> dict[str, str]:
    if not isinstance(own, dict) or own.get("sensorium") is None:
        raise CheckpointError("is a safetensors file that sensorium did not write")
    if own["sensorium"] != _VERSION:
        raise CheckpointError(f"is of format {own['sensorium']!r}, this version reads {_VERSION!r}")
    for key in ("sha256", "metadata"):
        if not isinstance(own.get(key), str):
            raise CheckpointError(f"lacks {key!r} in its header")
    if len(own["sha256"]) != 64 or not own["sha256"].isascii():
        raise CheckpointError("has no SHA-256 where it should be")
    return own


def _foreign_dtypes(entries: dict[str, Any]) -> dict[str, np.dtype[Any]]:
    """Return the element types of the file by name, with ``bfloat16`` where it is needed."""
    if not any(isinstance(entry, dict) and entry.get("dtype") == "BF16" for entry in entries.values()):
        return _DTYPES
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingExtraError(
            "bfloat16 arrays need ml_dtypes: pip install 'sensorium[bfloat16]'"
        ) from error
    return {**_DTYPES, "BF16": np.dtype(ml_dtypes.bfloat16)}


def _places(
    entries: dict[str, Any], data_bytes: int, dtypes: Mapping[str, np.dtype[Any]] = _DTYPES
) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    """Return name, element type and shape in the order of the file; the arrays cover the data exactly."""
    places = []
    for name, entry in entries.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise CheckpointError(
                f"describes {_short(name)} by something else than dtype, shape, data_offsets"
            )
        dtype = dtypes.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
        if dtype is None:
            raise CheckpointError(f"{_short(name)} has an unknown dtype {_short(entry['dtype'])}")
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not _are_sizes(shape) or len(shape) > _MAX_NDIM:
            raise CheckpointError(f"{_short(name)} has an impossible shape {_short(shape)}")
        if not _are_sizes(offsets) or len(offsets) != 2:
            raise CheckpointError(f"{_short(name)} has impossible data_offsets {_short(offsets)}")
        if offsets[1] > data_bytes:
            raise CheckpointError(
                f"is truncated: {_short(name)} ends at byte {offsets[1]} of the data, which has {data_bytes}"
            )
        if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
            raise CheckpointError(
                f"{_short(name)} has a shape {_short(shape)} that its data_offsets do not fit"
            )
        places.append((offsets[0], offsets[1], name, dtype, tuple(shape)))
    places.sort(key=lambda place: place[:3])
    end = 0
    for start, stop, name, _, _ in places:
        if start != end:
            raise CheckpointError(f"{_short(name)} begins at byte {start} of the data, expected {end}")
        end = stop
    if end != data_bytes:
        raise CheckpointError(f"has {data_bytes} bytes of data, its arrays take {end}")
    return [(name, dtype, shape) for _, _, name, dtype, shape in places]


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= _MAX_DIM for n in value)


def _empty(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    try:
        return np.empty(shape, dtype)
    except ValueError as error:  # a size of 0 beside sizes whose product no machine can address
        raise CheckpointError(f"{_short(name)} has an impossible shape {_short(list(shape))}") from error
    except MemoryError as error:
        raise CheckpointError(
            f"{_short(name)} has a shape {_short(list(shape))}, more than memory holds"
        ) from error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _some(names: list[str]) -> str:
    shown = ", ".join(_short(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
