"""Values as JSON and back, of the same types: tuples, bytes, sets, arrays, and dictionaries of any keys."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import TraceError

__all__ = ["digest", "from_json", "to_json"]

_MARK = "$"
Hook = Callable[[Any], Any]


def to_json(value: Any, hook: Hook | None = None) -> Any:
    """Return ``value`` as what ``json`` writes and :func:`from_json` reads back.

    Raises
    ------
    TraceError
        Where a value has a type that is neither JSON's nor one of the above, and ``hook`` does not turn it
        into one that is.
    """
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {_MARK: "float", "v": repr(value)}
    if kind is list:
        return [to_json(item, hook) for item in value]
    if kind is dict:
        if all(type(key) is str for key in value) and _MARK not in value:
            return {key: to_json(item, hook) for key, item in value.items()}
        return {_MARK: "dict", "v": [[to_json(k, hook), to_json(v, hook)] for k, v in value.items()]}
    if kind is tuple:
        return {_MARK: "tuple", "v": [to_json(item, hook) for item in value]}
    if kind in (set, frozenset):
        items = [to_json(item, hook) for item in value]
        return {_MARK: kind.__name__, "v": sorted(items, key=json.dumps)}
    if kind is bytes:
        return {_MARK: "bytes", "v": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufcSUMm":
        array = np.asarray(value)
        data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
        name = "array" if isinstance(value, np.ndarray) else "scalar"
        return {_MARK: name, "dtype": array.dtype.str, "shape": list(array.shape), "v": data}
    if hook is not None:
        return {_MARK: "own", "v": to_json(hook(value))}
    raise TraceError(
        f"a {kind.__module__}.{kind.__qualname__} cannot be written to a trace: "
        "give the trace encode and decode, which turn it into plain values and back"
    )


def from_json(value: Any, hook: Hook | None = None) -> Any:
    """Return what :func:`to_json` was given."""
    if isinstance(value, list):
        return [from_json(item, hook) for item in value]
    if not isinstance(value, dict):
        return value
    if _MARK not in value:
        return {key: from_json(item, hook) for key, item in value.items()}
    kind, body = value[_MARK], value["v"]
    if kind == "float":
        return float(body)
    if kind == "dict":
        return {from_json(k, hook): from_json(v, hook) for k, v in body}
    if kind in ("tuple", "set", "frozenset"):
        make = {"tuple": tuple, "set": set, "frozenset": frozenset}[kind]
        return make(from_json(item, hook) for item in body)
    if kind == "bytes":
        return base64.b64decode(body)
    if kind in ("array", "scalar"):
        array = np.frombuffer(base64.b64decode(body), np.dtype(value["dtype"])).reshape(value["shape"])
        return array.copy() if kind == "array" else array[()]
    if kind == "own":
        if hook is None:
            raise TraceError("the trace holds values of a type of its writer's own: give it decode")
        return hook(from_json(body))
    raise TraceError(f"the trace holds a value of an unknown kind {kind!r}")


def digest(value: Any) -> str:
    """Return a short name of what :func:`to_json` returned: equal for equal values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
