"""Trees as files: the columns, and settings and actions as JSON."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import checkpoint
from ..errors import ArgumentError, CheckpointError, DTypeError, MemoryLimitError, SensoriumError
from . import policies

Array = NDArray[Any]

_FORMAT = "sensorium.search.Tree 1"


def save(
    path: str | os.PathLike[str],
    columns: dict[str, Array],
    counters: tuple[int, float, float],
    labels: Sequence[Any],
    settings: dict[str, Any],
) -> None:
    """Write a tree; handed-out leaves are counted as released."""
    columns["waiting"] = np.zeros_like(columns["waiting"])
    columns["flags"] &= 0xFF ^ 16
    arrays = {f"nodes.{name}": column for name, column in columns.items()}
    arrays["draws"] = np.array([counters[0]], dtype=np.uint64)
    arrays["range"] = np.array(counters[1:], dtype=np.float64)
    written = []
    for i, label in enumerate(labels):
        if isinstance(label, np.ndarray):
            arrays[f"label.{i}"] = label
            written.append({"array": i})
        else:
            written.append(_encode(label))
    arrays["labels"] = np.frombuffer(json.dumps(written).encode(), dtype=np.uint8)
    policy = settings["policy"]
    described = {
        "format": _FORMAT,
        "policy": _described(policy),
        **{name: value for name, value in settings.items() if name != "policy"},
    }
    checkpoint.save(path, arrays, described)


def load(path: str | os.PathLike[str], build: Callable[..., None]) -> None:
    """Read a tree, and call ``build`` with what makes it."""
    arrays, described = checkpoint.load(path)
    try:
        settings = _settings(described)
        columns = {
            name.removeprefix("nodes."): array for name, array in arrays.items() if name.startswith("nodes.")
        }
        for name, dtype in (("draws", "u8"), ("range", "f8"), ("labels", "u1")):
            if name not in arrays or arrays[name].dtype != np.dtype(dtype) or arrays[name].ndim != 1:
                raise CheckpointError(f"has no {name} that are those of a tree")
        if arrays["draws"].size != 1 or arrays["range"].size != 2:
            raise CheckpointError("has counters of a wrong size")
        if any(column.ndim != 1 for column in columns.values()):
            raise CheckpointError("has columns of more than one dimension")
        labels = _labels(arrays)
        codes = columns.get("actions")
        if codes is not None and codes.size and codes.dtype == np.int32 and int(codes.min()) < -len(labels):
            raise CheckpointError("has actions without labels")
        low, high = arrays["range"].tolist()
        build(settings, labels, columns, (int(arrays["draws"][0]), low, high))
    except MemoryLimitError:
        raise
    except (SensoriumError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error


def _settings(described: dict[str, Any]) -> dict[str, Any]:
    described = dict(described)
    if described.pop("format", None) != _FORMAT:
        raise CheckpointError("is not the file of a tree")
    policy = described.pop("policy", None)
    names = {"seed", "discount", "players", "normalise", "virtual_loss", "win", "max_nodes", "max_bytes"}
    if not isinstance(policy, dict) or described.keys() != names:
        raise CheckpointError("lacks settings of a tree, or has others")
    _check_kinds(described)
    policy = dict(policy)
    if policy.get("class") == "Widening" and isinstance(policy.get("policy"), dict):
        policy["policy"] = _policy(policy["policy"], within=True)
    return {"policy": _policy(policy), **described}


def _described(policy: Any) -> dict[str, Any]:
    """Return a policy, and one within it, as JSON holds it."""
    fields = {field.name: getattr(policy, field.name) for field in dataclasses.fields(policy)}
    if "policy" in fields:
        fields["policy"] = _described(fields["policy"])
    return {"class": type(policy).__name__, **fields}


def _policy(described: dict[str, Any], *, within: bool = False) -> Any:
    numbers = dict(described)
    kind = numbers.pop("class", None)
    if kind not in policies.__all__ or kind == "Policy" or (within and kind == "Widening"):
        raise CheckpointError(f"has an unknown policy {kind!r:.40}")
    _check_kinds({name: value for name, value in numbers.items() if name != "policy" or within})
    return getattr(policies, kind)(**numbers)


def _check_kinds(values: dict[str, Any]) -> None:
    for name, value in values.items():
        if not isinstance(value, int | float | None):
            raise CheckpointError(f"has {name} of a wrong kind")


def _labels(arrays: dict[str, Array]) -> list[Any]:
    try:
        entries = json.loads(arrays["labels"].tobytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError("has a list of actions that is not JSON") from error
    if not isinstance(entries, list):
        raise CheckpointError("has no list of actions")
    labels: list[Any] = []
    for entry in entries:
        if isinstance(entry, dict) and entry.keys() == {"array"}:
            name = f"label.{entry['array']}"
            if name not in arrays:
                raise CheckpointError(f"lacks the array {name!r:.40}")
            labels.append(arrays[name])
        else:
            labels.append(_decode(entry))
    return labels


def _encode(label: Any) -> Any:
    """Return a label as JSON holds it; tuples are objects, so that lists stay unknown."""
    if label is None or type(label) in (str, bool, int):
        return label
    if type(label) is float and np.isfinite(label):
        return label
    if type(label) is tuple:
        return {"tuple": [_encode(part) for part in label]}
    raise DTypeError(
        f"action {label!r:.60} cannot be saved: it is no number, string, None, array, or tuple of these"
    )


def _decode(entry: Any) -> Any:
    if isinstance(entry, dict) and entry.keys() == {"tuple"} and isinstance(entry["tuple"], list):
        return tuple(_decode(part) for part in entry["tuple"])
    if entry is None or isinstance(entry, str | bool | int | float):
        return entry
    raise ArgumentError("has an action of an unknown kind")
