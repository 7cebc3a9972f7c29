"""What every training shares: a goal, the state that it resumes from, and the loop of its steps."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import checkpoint
from ._interrupt import graceful_interrupt
from ._validate import check_integer, check_positive
from .errors import ArgumentError, CheckpointError

__all__ = ["Progress", "TrainingState", "check_goal", "check_key", "rate", "restore", "run_steps"]

Progress = Callable[[dict[str, Any]], None]

RECORD_EVERY = 0.25  # Seconds between two records of the history.


@dataclass
class TrainingState:
    """What changes from step to step, and what a checkpoint holds beside the model."""

    params: dict[str, Any]
    optimizer: dict[str, Any]
    rng: np.random.Generator
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """Return all but the arrays, and the key of the run that they belong to."""
        return {
            "key": dict(key),
            "step": self.step,
            "seconds": self.seconds,
            "optimizer_step": int(self.optimizer["step"]),
            "rng": self.rng.bit_generator.state,
            "history": self.history,
        }

    def take(self, training: Mapping[str, Any], path: Path) -> None:
        """Go on from what :meth:`to_json` said.

        Raises
        ------
        CheckpointError
            Where it cannot be used.
        """
        try:
            self.rng.bit_generator.state = training["rng"]
            self.step, self.seconds = int(training["step"]), float(training["seconds"])
            self.history = list(training["history"])
            self.optimizer["step"] = int(training["optimizer_step"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path} holds a training state that cannot be used: {error}") from error


def check_goal(seconds: float | None, steps: int | None) -> dict[str, float | int | None]:
    """Return a goal, exactly one of seconds and steps, as what a run is known by.

    Raises
    ------
    ArgumentError
        Where not exactly one is given, or it is not above 0.
    """
    if (seconds is None) == (steps is None):
        raise ArgumentError("give either seconds or steps")
    if seconds is not None:
        check_positive("seconds", seconds)
    if steps is not None:
        check_integer("steps", steps, 1)
    return {"seconds": seconds, "steps": steps}


def check_key(path: Path, training: Mapping[str, Any], key: Mapping[str, Any]) -> None:
    """Raise ``CheckpointError`` where a checkpoint is of another run than ``key`` says."""
    was = training.get("key")
    for name, value in key.items():
        if not isinstance(was, dict) or was.get(name) != json.loads(json.dumps(value)):
            raise CheckpointError(f"{path} was trained with another {name}; resume with the same one")


def restore(
    path: Path,
    name: str,
    what: str,
    key: Mapping[str, Any],
    state: TrainingState,
    present: Mapping[str, NDArray[Any]],
) -> None:
    """Go on from a checkpoint of the same run.

    Parameters
    ----------
    path : Path
        The checkpoint.
    name, what : str
        Where its metadata say how training stood, and what was trained, for messages.
    key : mapping
        What the run is known by.
    state, present
        The state of training, and its arrays by their names in the checkpoint: both are overwritten.

    Raises
    ------
    CheckpointError
        Where the checkpoint is damaged, or of another run.
    """
    arrays, metadata = checkpoint.load(path)
    training: Any = metadata.get(name)
    if not isinstance(training, dict):
        raise CheckpointError(f"{path} holds no training of {what}; there is nothing to resume")
    check_key(path, training, key)
    checkpoint.check_arrays(path, arrays, {n: (a.shape, a.dtype) for n, a in present.items()})
    state.take(training, path)
    for n, array in present.items():  # In place: sums over all arrays keep their order.
        array[...] = arrays[n]


def rate(peak: float, warmup: float, done: float) -> float:
    """Return the learning rate after a share of training: up to the peak in ``warmup``, then down to zero."""
    up = done / warmup if warmup > 0 else 1.0
    down = (1.0 - done) / (1.0 - warmup) if warmup < 1 else 1.0
    return peak * max(0.0, min(1.0, up + 1e-3, down))


def run_steps(
    state: TrainingState,
    step: Callable[[float], None],
    describe: Callable[[float], dict[str, Any]],
    *,
    begin: float,
    seconds: float | None,
    steps: int | None,
    save: Callable[[], None],
    save_every: float,
    tell: Progress,
) -> bool:
    """Make steps until the goal is reached or Ctrl-C is pressed; return whether it was reached.

    Parameters
    ----------
    state : TrainingState
        Counts its steps, and gets the records; its seconds are up to date whenever it is saved.
    step : callable
        Makes a step, given the share of the goal that is reached.
    describe : callable
        Returns what a record says beside ``step``, ``seconds`` and ``fraction``, given the seconds since the
        record before.
    begin : float
        ``time.perf_counter()`` of the start, earlier by what was trained before a resumption.
    seconds, steps : float or int
        The goal, one of them None.
    save : callable
        Writes the state; called every ``save_every`` seconds, at the end, and before an error of ``tell``
        passes on: what a callback does wrong must not cost what was learnt.
    tell : callable
        Takes each record.
    """
    longest = 0.0  # Seconds of a slow step: the next one must end before the time does.

    def done() -> float:
        if steps is not None:
            return state.step / steps
        return min(1.0, (time.perf_counter() - begin + longest) / float(seconds or 1))

    def keep() -> None:
        state.seconds = time.perf_counter() - begin
        save()

    last_save = last_record = time.perf_counter()
    with graceful_interrupt() as asked:
        while not asked() and done() < 1.0:
            start = time.perf_counter()
            step(done())
            state.step += 1
            now = time.perf_counter()
            longest = max(0.9 * longest, now - start)
            if now - last_record > RECORD_EVERY or state.step in (1, steps):
                record = {"step": state.step, "seconds": now - begin, "fraction": done()}
                state.history.append(record | describe(max(now - last_record, 1e-9)))
                last_record = now
                try:
                    tell(state.history[-1])
                except BaseException:
                    keep()
                    raise
            if now - last_save > save_every:
                keep()
                last_save = time.perf_counter()
    keep()
    return done() >= 1.0
