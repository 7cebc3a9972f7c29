"""The commands ``sensorium lm train``, ``generate`` and ``info``."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ._cli import Resume, Seconds, Seed, Steps, one_goal, reported

__all__ = ["app"]

app = typer.Typer(
    help="Language models of recurrent layers: train them on text, and write with them.", no_args_is_help=True
)


class Family(StrEnum):
    """What the layers are."""

    mamba = "mamba"
    mamba2 = "mamba2"


Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="A folder with config.json and model.safetensors.")
]


@app.command()
@reported
def train(
    text: Annotated[list[Path], typer.Argument(metavar="TEXT...", help="Files to learn from, byte by byte.")],
    out: Annotated[Path, typer.Option(help="Folder to write the model to.")] = Path("lm"),
    seconds: Seconds = None,
    steps: Steps = None,
    seed: Seed = 0,
    family: Annotated[Family, typer.Option(help="What the layers are.")] = Family.mamba,
    width: Annotated[int, typer.Option(min=16, help="Numbers that stand for a token between layers.")] = 128,
    layers: Annotated[int, typer.Option(min=1, help="How many.")] = 4,
    held_out: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share at the end of the text that is kept for measuring.")
    ] = 0.1,
    resume: Resume = False,
) -> None:
    """Train a model of bytes from scratch.

    Without --seconds or --steps it trains for a minute. Ctrl-C ends training early and still writes the
    model; --resume goes on.
    """
    from . import lm
    from .checkpoint import write_json
    from .models import mamba, mamba2
    from .progress import Progress

    one_goal(seconds, steps)
    data = np.frombuffer(b"".join(path.read_bytes() for path in text), np.uint8)
    cut = len(data) - int(held_out * len(data))
    sizes: dict[str, Any] = {"vocab_size": 256, "hidden_size": width, "num_hidden_layers": layers}
    config = (
        mamba.Config(**sizes, tokenizer="bytes")
        if family is Family.mamba
        else mamba2.Config(**sizes, tokenizer="bytes", head_dim=min(64, 2 * width), state_size=64)
    )
    out.mkdir(parents=True, exist_ok=True)
    with Progress() as progress:
        result = lm.fit(
            data[:cut],
            config,
            seconds=60.0 if seconds is None and steps is None else seconds,
            steps=steps,
            seed=seed,
            checkpoint_path=out / "checkpoint.safetensors",
            resume=resume,
            progress=progress,
        )
    result.model.save(out)
    facts: dict[str, Any] = {
        "steps": result.steps,
        "train_seconds": result.seconds,
        "parameters": result.model.parameters,
        "interrupted": result.interrupted,
    }
    if cut < len(data):
        facts["bits_per_byte"] = float(
            lm.bits_per_token(result.model, data[cut:], begin=int(data[cut - 1])).mean()
        )
        typer.echo(f"{facts['bits_per_byte']:.3f} bits a byte on the held-out end of the text")
    write_json(out / "metrics.json", facts)
    if result.interrupted:
        typer.echo("training was ended early; --resume goes on")
    typer.echo(f"model   {out}")


@app.command()
@reported
def generate(
    model: Folder,
    prompt: Annotated[
        str | None, typer.Option(help="Text to go on from; standard input where not given.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option(help="Tokens to go on from, separated by commas, instead of text.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", min=1, help="At most so many.")
    ] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="Of sampling; 0 takes the likeliest.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw among so many of the likeliest.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw among the likeliest that together have this probability.")
    ] = None,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1: what was written is less likely.")
    ] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text to end at; may be given several times.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Write on from a text, shown as it is written. Ctrl-C ends it."""
    from .models.language import load

    loaded = load(model)
    start: Any = prompt
    if tokens is not None:
        start = [int(token) if token.strip().isdecimal() else -1 for token in tokens.split(",")]
    elif prompt is None:
        start = sys.stdin.read()
    as_text = loaded.tokenizer is not None

    def show(_row: int, token: int, text: str) -> None:
        typer.echo(text if as_text else f"{token} ", nl=False)

    loaded.generate(
        start,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        stop=stop or (),
        seed=seed,
        on_token=show,
    )
    typer.echo()


@app.command()
@reported
def info(model: Folder) -> None:
    """Describe the model of a folder."""
    from .models.language import load

    typer.echo(load(model).describe())
