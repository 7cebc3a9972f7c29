"""The commands ``info``, ``quickstart``, ``train``, ``generate``, ``recall``, ``show``, ``lm`` and ``vae``.

Each only reads its options and calls the function of Python that does the work. What is heavy is imported
within a command, so that ``sensorium --help`` answers at once.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import _core, _lm_cli, _vae_cli
from ._cli import Resume, Seconds, Seed, Steps, one_goal, picture_file, reported, sound_file
from ._config import show_config
from .errors import ArgumentError

if TYPE_CHECKING:
    from .models.unified import Model

__all__ = ["app", "main"]

app = typer.Typer(
    name="sensorium",
    help="Train and use models that turn words, pictures and sounds into each other, on this machine's CPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
AUDIO_SUFFIXES = (".wav", ".flac")


class Kind(StrEnum):
    """A modality."""

    text = "text"
    image = "image"
    audio = "audio"


class Images(StrEnum):
    """Which handwritten digits."""

    sklearn = "sklearn"
    mnist = "mnist"


ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="A model.safetensors that training wrote.")]

app.add_typer(_lm_cli.app, name="lm")
app.add_typer(_vae_cli.app, name="vae")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sensorium {_core.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None: ...


@app.command()
@reported
def info() -> None:
    """Show versions, instruction set and threads: what a bug report needs."""
    show_config()


@app.command()
@reported
def quickstart(
    seconds: Seconds = None,
    steps: Steps = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder to write model, figures and report to.")] = Path(
        "quickstart"
    ),
    images: Annotated[
        Images,
        typer.Option(help="8x8 digits of scikit-learn, or 28x28 digits of MNIST (needs sensorium[mnist])."),
    ] = Images.sklearn,
    resume: Resume = False,
) -> None:
    """Train on real digits and spoken words for half a minute, and write a report.

    Ctrl-C ends training early and still writes everything.
    """
    from .progress import Progress
    from .quickstart import run

    one_goal(seconds, steps)
    with Progress() as progress:
        metrics = run(
            seconds=30.0 if seconds is None and steps is None else seconds,
            steps=steps,
            seed=seed,
            out=out,
            images=images.value,
            resume=resume,
            progress=progress,
        )
    _tell(metrics, out)


@app.command()
@reported
def train(
    data: Annotated[
        Path, typer.Option(help="JSON lines, each with any of text, image, audio (paths), split.")
    ],
    seconds: Seconds = None,
    steps: Steps = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder to write model, figures and report to.")] = Path("model"),
    resume: Resume = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first row that cannot be read.")
    ] = False,
    image_size: Annotated[
        tuple[int, int], typer.Option(metavar="H W", help="Height and width that pictures are resized to.")
    ] = (28, 28),
    colour: Annotated[bool, typer.Option("--colour", help="Keep the colours of pictures.")] = False,
    sample_rate: Annotated[int, typer.Option(help="Samples a second that sounds are resampled to.")] = 8000,
) -> None:
    """Train on your own texts, pictures and sounds. A row may lack some.

    Without --seconds or --steps it trains for five minutes. Ctrl-C ends training early and still writes
    everything; --resume goes on.
    """
    from . import _own_data
    from .progress import Progress

    one_goal(seconds, steps)
    with Progress() as progress:
        metrics = _own_data.run(
            data,
            seconds=300.0 if seconds is None and steps is None else seconds,
            steps=steps,
            seed=seed,
            out=out,
            resume=resume,
            strict=strict,
            image_size=image_size,
            channels=3 if colour else 1,
            sample_rate=sample_rate,
            progress=progress,
            warn=lambda words: typer.secho(words, fg="yellow", err=True),
        )
    _tell(metrics, out)


@app.command()
@reported
def generate(
    model: ModelFile,
    to: Annotated[Kind, typer.Option(help="What to make.")],
    source: Annotated[
        str | None,
        typer.Option(
            "--from", help="A PNG, JPEG, WAV or FLAC file, or words. Without it: anything that comes to mind."
        ),
    ] = None,
    source_kind: Annotated[
        Kind | None, typer.Option("--from-kind", help="What --from is, where its name does not say.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write to; several samples are numbered.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many to make.")] = 1,
    seed: Seed = 0,
    temperature: Annotated[float | None, typer.Option(help="Of sampling; 0 takes the likeliest.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="How strongly the source is followed; 1 is plain.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps that a picture or a sound is uncovered in.")
    ] = None,
    invert: Annotated[
        bool,
        typer.Option(
            "--invert",
            help="The picture is dark on light, as ink on paper is; the model learnt light on dark.",
        ),
    ] = False,
    scale: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help="Enlarge pictures by this factor; by default until they can be seen."
        ),
    ] = None,
) -> None:
    """Turn words, a picture or a sound into another of them.

    sensorium generate model.safetensors --from digit.png --to audio --out seven.wav
    """
    from .models.unified import Model

    loaded = Model.load(model)
    kind, value = (None, None) if source is None else _read_source(source, source_kind, loaded, invert=invert)
    made = loaded.generate(
        value,
        source_kind=kind,
        to=to.value,
        samples=samples,
        seed=seed,
        temperature=temperature,
        guidance=guidance,
        steps=steps,
    )
    _write(made, to, out, loaded, scale)


@app.command()
@reported
def recall(
    mixer: Annotated[
        str,
        typer.Option(
            help="attention, mamba, mamba2, ttt_linear or ttt_mlp; with a comma, one for each of two blocks."
        ),
    ] = "mamba2",
    window: Annotated[
        int | None, typer.Option(min=0, help="Segments that attention sees back; all without it.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of training; 1,000 without it.")] = None,
    seed: Seed = 0,
    longer: Annotated[
        int, typer.Option(min=1, help="Also ask about albums so many times as long as those of training.")
    ] = 1,
    out: Annotated[Path | None, typer.Option(help="JSON file to write all figures to.")] = None,
) -> None:
    """Train a small model on albums of real digits, and ask it about items of long ago.

    It takes a minute or so. docs/mixers.md tells what is asked, and what every mixer reaches.
    """
    from . import recall as task
    from .checkpoint import write_json
    from .progress import Progress

    kinds = tuple(mixer.split(","))
    with Progress() as progress:
        found = task.run(
            kinds[0] if len(kinds) == 1 else kinds,
            window=window,
            steps=task.STEPS if steps is None else steps,
            seed=seed,
            longer=longer,
            progress=progress,
        )
    for part in ("test", "longer"):
        if part in found:
            tokens = found["tokens"] * (longer if part == "longer" else 1)
            typer.echo(
                f"albums of {tokens:,} tokens, items never met before: share of answers that are right"
            )
            _tell_shares(found[part], task.DISTANCES)
    if out is not None:
        write_json(out, found)
        typer.echo(f"figures {out}")


@app.command()
@reported
def show(model: ModelFile) -> None:
    """Describe a model: its sizes, what it reads and writes."""
    from .models.unified import Model

    loaded = Model.load(model)
    typer.echo(f"{model}, {model.stat().st_size:,} bytes")
    typer.echo(loaded.describe())


def _tell(metrics: dict[str, Any], out: Path) -> None:
    """Print the accuracies, and where everything is."""
    for key, share in metrics.items():
        name = key.removeprefix("accuracy.")
        if key.startswith("accuracy.") and not key.endswith(("_low", "_high")):
            low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
            interval = "" if low is None or high is None else f"  ({100 * low:.1f} to {100 * high:.1f})"
            typer.echo(f"{name.replace('_to_', ' → '):<16}{100 * share:6.1f} %{interval}")
    if metrics.get("interrupted"):
        typer.echo("training was ended early; --resume goes on")
    typer.echo(f"model   {out / 'model.safetensors'}")
    typer.echo(f"report  {out / 'report.html'}")


def _tell_shares(figures: dict[str, Any], distances: tuple[int, ...]) -> None:
    """Print how many answers were right, by the distance of what was asked for."""
    for key, share in figures.items():
        words = {"far": "far", "read": "items read"}.get(key) or _between(int(key), distances)
        low, high = 100 * share["low"], 100 * share["high"]
        typer.echo(
            f"  {words:<22}{100 * share['accuracy']:6.1f} %  ({low:.1f} to {high:.1f})"
            f"  of {share['questions']:,}"
        )


def _between(low: int, distances: tuple[int, ...]) -> str:
    high = distances[distances.index(low) + 1]
    return f"{low:,} tokens or more" if high == distances[-1] else f"{low:,} to {high - 1:,} tokens"


def _read_source(source: str, kind: Kind | None, model: Model, *, invert: bool) -> tuple[str, Any]:
    """Return what ``source`` is, and its value as the model reads it."""
    from .data.manifest import read_audio, read_image

    suffix = Path(source).suffix.lower()
    if kind is None:
        if suffix in IMAGE_SUFFIXES:
            kind = Kind.image
        elif suffix in AUDIO_SUFFIXES:
            kind = Kind.audio
        elif suffix and Path(source).is_file():
            raise ArgumentError(
                f"--from {source}: neither a PNG, JPEG, WAV or FLAC file; say what it is with --from-kind"
            )
        else:
            kind = Kind.text
    if kind is Kind.image:
        height, width, *rest = model.image_shape
        picture = read_image(source, image_size=(height, width), channels=3 if rest else 1)
        return kind.value, 1 - picture if invert else picture
    if kind is Kind.audio:
        return kind.value, read_audio(source, sample_rate=model.sample_rate)
    return kind.value, source


def _write(made: list[Any], kind: Kind, out: Path | None, model: Model, scale: int | None) -> None:
    """Print words; write pictures and sounds to files, and print where they are."""
    from .checkpoint import write_atomically

    if kind is Kind.text:
        if out is None:
            typer.echo("\n".join(made))
        else:
            write_atomically(out, ("\n".join(made) + "\n").encode())
        return
    target = out or Path("image.png" if kind is Kind.image else "audio.wav")
    suffixes = IMAGE_SUFFIXES if kind is Kind.image else AUDIO_SUFFIXES
    if target.suffix.lower() not in suffixes:
        raise ArgumentError(f"--out {target}: expected a name that ends in {' or '.join(suffixes)}")
    for number, item in enumerate(made, 1):
        path = target if len(made) == 1 else target.with_stem(f"{target.stem}-{number}")
        data = (
            picture_file(item, path.suffix.lower(), scale)
            if kind is Kind.image
            else sound_file(item, model.sample_rate, path.suffix.lower())
        )
        write_atomically(path, data)
        typer.echo(str(path))
        if kind is Kind.image and sys.stdout.isatty():
            from rich.console import Console

            from .progress import blocks

            Console().print(blocks(item))


def main() -> None:
    """Run the command line."""
    app()
