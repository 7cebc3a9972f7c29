"""A multimodal VAE in one object and one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import checkpoint
from ...errors import CheckpointError, SensoriumError
from .config import Config
from .network import Params, init, shapes

__all__ = ["Model"]

FORMAT = "sensorium-vae-1"


@dataclass(frozen=True, eq=False)
class Model:
    """Configuration and parameters.

    Parameters
    ----------
    config : Config
        Sizes and modalities.
    params : dict
        Nested dict of ``float32`` arrays.
    """

    config: Config
    params: Params

    @classmethod
    def init(cls, config: Config, rng: np.random.Generator) -> Model:
        """Return a model before training."""
        return cls(config, init(config, rng))

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(a.size for a in checkpoint.flatten(self.params).values())

    def save(self, path: str | Path, **notes: Any) -> None:
        """Write the model as one ``safetensors`` file, with notes that JSON can hold.

        A file that was there stays whole until it is done.
        """
        arrays, metadata = self.to_arrays()
        checkpoint.save(Path(path), arrays, notes | metadata)

    def to_arrays(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the arrays and the JSON-able description that make the model."""
        metadata = {"format": FORMAT, "config": self.config.to_json()}
        return checkpoint.flatten({"params": self.params}), metadata

    @classmethod
    def load(cls, path: str | Path) -> Model:
        """Read a model that :meth:`save` wrote.

        Raises
        ------
        CheckpointError
            Where the file is damaged, or not such a model.
        """
        return cls.from_arrays(*checkpoint.load(Path(path)), path=path)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any], *, path: str | Path = "model"
    ) -> Model:
        """Build a model from what :meth:`to_arrays` returned; other arrays are left alone.

        Raises
        ------
        CheckpointError
            Where something is missing or has a wrong shape or dtype.
        """
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path} is not a model of format {FORMAT}")
        try:
            config = Config.from_json(metadata["config"])
        except (KeyError, TypeError, SensoriumError) as error:
            raise CheckpointError(f"{path} does not describe a model: {error}") from error
        params = {k.removeprefix("params/"): a for k, a in arrays.items() if k.startswith("params/")}
        expected = {name: (shape, np.float32) for name, shape in shapes(config).items()}
        checkpoint.check_arrays(path, params, expected)
        return cls(config, checkpoint.unflatten(params))
