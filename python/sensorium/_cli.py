"""What the commands share: common options, errors in one line, and files of what was made."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar

import numpy as np
import typer

from .errors import ArgumentError, SensoriumError

__all__ = ["Resume", "Seconds", "Seed", "Steps", "one_goal", "picture_file", "reported", "sound_file"]

SMALLEST_SIDE = 128  # pixels of a picture that is written to be looked at

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


def picture_file(image: Any, suffix: str, scale: int | None) -> bytes:
    """Return an image in [0, 1] as a PNG or JPEG file; without a scale enlarged until it can be seen."""
    from PIL import Image

    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    factor = scale or -(-SMALLEST_SIDE // min(pixels.shape[:2]))
    pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG" if suffix == ".png" else "JPEG", quality=95)
    return file.getvalue()


def sound_file(samples: Any, rate: int, suffix: str) -> bytes:
    """Return samples in [-1, 1] as a WAV or FLAC file of 16 bits."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), rate, format=suffix[1:].upper(), subtype="PCM_16")
    return file.getvalue()
