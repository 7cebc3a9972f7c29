"""What a language model remembers of the tokens that it has read: of one size, however many they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError

__all__ = ["State"]

Layer = dict[str, NDArray[Any]]


class State:
    """The state of every layer, for each row of a batch.

    Parameters
    ----------
    layers : list of dict
        Arrays whose first dimension is the row, by name.
    """

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers

    @property
    def batch(self) -> int:
        """Number of rows."""
        return len(next(iter(self.layers[0].values())))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for layer in self.layers for array in layer.values())

    def take(self, rows: Sequence[int]) -> State:
        """Return a copy of some rows, in that order; a row may come twice."""
        index = np.asarray(rows, np.int64)
        return State([{name: array[index] for name, array in layer.items()} for layer in self.layers])

    def copy(self) -> State:
        """Return a copy, which a model can go on from without changing this one."""
        return self.take(range(self.batch))

    @staticmethod
    def join(states: Sequence[State]) -> State:
        """Return one state with the rows of several, in order.

        Raises
        ------
        ArgumentError
            Where there are none.
        """
        if not states:
            raise ArgumentError("states is empty")
        return State(
            [
                {name: np.concatenate([layer[name] for layer in layers]) for name in layers[0]}
                for layers in zip(*(state.layers for state in states), strict=True)
            ]
        )
