"""What the commands share: common options, and errors in one line."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, ParamSpec, TypeVar

import typer

from .errors import ArgumentError, SensoriumError

__all__ = ["Resume", "Seconds", "Seed", "Steps", "one_goal", "reported"]

P = ParamSpec("P")
R = TypeVar("R")

Seconds = Annotated[float | None, typer.Option(help="Train for so long on the clock.")]
Steps = Annotated[
    int | None, typer.Option(help="Train for so many steps instead; the same seed then gives the same model.")
]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the checkpoint in the folder, where there is one.")
]


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """Say in one red line what the user can mend, and leave tracebacks to what is a fault of ours."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (SensoriumError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            typer.secho(f"error: {_one_line(error)}", fg="red", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            typer.secho("interrupted", fg="red", err=True)
            raise typer.Exit(130) from error

    return run


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def one_goal(seconds: float | None, steps: int | None) -> None:
    """Refuse two goals of training at once."""
    if seconds is not None and steps is not None:
        raise ArgumentError("give --seconds or --steps, not both")
