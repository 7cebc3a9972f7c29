"""Folders that hold a language model: ``config.json`` and ``safetensors`` files, one or several."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .. import checkpoint
from ..errors import CheckpointError

__all__ = ["read_config", "read_weights", "write_folder"]

Arrays = dict[str, NDArray[Any]]

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_CONVERT = (
    'python -c "import torch, safetensors.torch as s; '
    "w = torch.load('pytorch_model.bin', weights_only=True); "
    "s.save_file({k: v.clone().contiguous() for k, v in w.items()}, 'model.safetensors')\""
)


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what ``config.json`` says.

    Raises
    ------
    CheckpointError
        Where there is none, or it is not a JSON object.
    """
    path = Path(folder)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder; a model is a folder with config.json in it")
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path} has no config.json")
    return checkpoint.parse_json(path / "config.json")


def read_weights(folder: str | os.PathLike[str]) -> Arrays:
    """Return the arrays of a folder by name, mapped into memory.

    Raises
    ------
    CheckpointError
        Where a file is missing, damaged or hostile, or there is only a pickle.
    """
    path = Path(folder)
    if (path / _WEIGHTS).is_file():
        return checkpoint.map_arrays(path / _WEIGHTS)
    if (path / _INDEX).is_file():
        return _read_shards(path)
    if pickles := sorted(p.name for p in path.glob("*.bin")):
        raise CheckpointError(
            f"{path} has weights in {pickles[0]} alone, a pickle, which can run any code when it is read. "
            f"Where you trust it, convert it once, in that folder: {_CONVERT}"
        )
    raise CheckpointError(f"{path} has neither {_WEIGHTS} nor {_INDEX}")


def _read_shards(folder: Path) -> Arrays:
    index = folder / _INDEX
    places = checkpoint.parse_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{index} has no weight_map")
    shards: dict[str, Arrays] = {}
    arrays: Arrays = {}
    for name, file in places.items():
        # A name of a file in this folder, nothing that leads out of it.
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{index} places {name!r} in {file!r}, expected a file beside it")
        if file not in shards:
            if not (folder / file).is_file():
                raise CheckpointError(f"{index} names {file}, which is not there")
            shards[file] = checkpoint.map_arrays(folder / file)
        if name not in shards[file]:
            raise CheckpointError(f"{folder / file} lacks {name!r}, which {_INDEX} places there")
        arrays[name] = shards[file][name]
    for file, held in shards.items():
        if extra := sorted(name for name in held if places.get(name) != file):
            raise CheckpointError(f"{folder / file} has {extra[0]!r}, which {_INDEX} does not place there")
    return arrays


def write_folder(
    folder: str | os.PathLike[str], config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Write ``model.safetensors``, then ``config.json``, each whole or not at all."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    checkpoint.export(path / _WEIGHTS, arrays, {"format": "pt"})
    checkpoint.write_json(path / "config.json", config)
