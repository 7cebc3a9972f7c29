"""The commands ``sensorium vae train``, ``generate`` and ``report``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._cli import Resume, Seconds, Seed, Steps, one_goal, picture_file, reported, sound_file
from .errors import ArgumentError

if TYPE_CHECKING:
    from .vae_jobs import Trained

__all__ = ["app"]

app = typer.Typer(
    help="Multimodal VAEs: train them on rows that may lack senses, and write any sense from any others.",
    no_args_is_help=True,
)


class Kind(StrEnum):
    """How experts become a posterior."""

    product = "product"
    mixture = "mixture"
    mixture_of_products = "mixture_of_products"
    mmvae_plus = "mmvae_plus"


class Sense(StrEnum):
    """A modality."""

    image = "image"
    audio = "audio"
    text = "text"


Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="A folder that training wrote, or its model.safetensors.")
]


@app.command()
@reported
def train(
    data: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines, each with any of text (a label), image, audio (paths), split. "
            "Without it: the quickstart's digits, written, spoken and spelt."
        ),
    ] = None,
    posterior: Annotated[
        Kind, typer.Option(help="How what the senses say becomes one posterior.")
    ] = Kind.product,
    seconds: Seconds = None,
    steps: Steps = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder to write the model to.")] = Path("vae"),
    resume: Resume = False,
    latent_dim: Annotated[
        int | None,
        typer.Option(min=1, help="Width of the latent that all share; by default that of the posterior."),
    ] = None,
    private_dim: Annotated[
        int | None,
        typer.Option(min=0, help="Width of a latent of each sense alone; by default that of the posterior."),
    ] = None,
    beta: Annotated[float, typer.Option(min=0, help="Weight of the divergence from the prior.")] = 1.0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first row that cannot be read.")
    ] = False,
    image_size: Annotated[
        tuple[int, int], typer.Option(metavar="H W", help="Height and width that pictures are resized to.")
    ] = (16, 16),
    colour: Annotated[bool, typer.Option("--colour", help="Keep the colours of pictures.")] = False,
    sample_rate: Annotated[int, typer.Option(help="Samples a second that sounds are resampled to.")] = 8000,
) -> None:
    """Train a multimodal VAE on digits, or on your own rows. A row may lack some of the senses.

    Without --seconds or --steps it trains for half a minute. Ctrl-C ends training early and still writes the
    model; --resume goes on.
    """
    from . import vae_jobs
    from .progress import Progress

    one_goal(seconds, steps)
    source = vae_jobs.Source(
        manifest=None if data is None else str(data),
        seed=seed,
        image_size=image_size,
        channels=3 if colour else 1,
        sample_rate=sample_rate,
    )
    widths = {"latent_dim": latent_dim, "private_dim": private_dim}
    options: dict[str, Any] = {name: width for name, width in widths.items() if width is not None}
    with Progress() as progress:
        trained = vae_jobs.train(
            source,
            posterior.value,
            seconds=30.0 if seconds is None and steps is None else seconds,
            steps=steps,
            seed=seed,
            out=out,
            resume=resume,
            strict=strict,
            beta=beta,
            progress=progress,
            warn=_warn,
            **options,
        )
    model = trained.model
    names = ", ".join(model.config.names)
    typer.echo(
        f"{posterior.value} of {names}: {model.parameters:,} parameters, {trained.facts['steps']:,} steps"
    )
    if trained.facts["interrupted"]:
        typer.echo("training was ended early; --resume goes on")
    typer.echo(f"model   {out / 'model.safetensors'}")


@app.command()
@reported
def generate(
    model: Folder,
    given: Annotated[
        list[str] | None,
        typer.Option(
            help="What to go by, image=FILE, audio=FILE or text=WORDS; may be given several times. "
            "Without any: whatever comes to mind."
        ),
    ] = None,
    word: Annotated[str | None, typer.Option(help="Short for --given text=WORD.")] = None,
    to: Annotated[
        list[Sense] | None,
        typer.Option(help="What to write; may be given several times. Without it: all that is not given."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder to write image.png, audio.wav and text.txt to; samples are numbered.")
    ] = Path("generated"),
    samples: Annotated[int, typer.Option(min=1, max=10_000, help="How many of each.")] = 1,
    seed: Seed = 0,
    mean: Annotated[
        bool, typer.Option("--mean", help="Go by the mean of the posterior instead of draws from it.")
    ] = False,
    scale: Annotated[
        int | None,
        typer.Option(
            min=1, max=64, help="Enlarge pictures by this factor; by default until they can be seen."
        ),
    ] = None,
) -> None:
    """Write any of the senses from any subset of them.

    sensorium vae generate vae --given image=seven.png --word seven --to audio
    """
    from . import vae_jobs
    from .checkpoint import write_atomically

    trained = vae_jobs.Trained.load(model)
    wanted = None if not to else tuple(dict.fromkeys(sense.value for sense in to))
    for name in wanted or ():
        _known(trained, name, "--to")
    items = _read(trained, [*(given or []), *([] if word is None else [f"text={word}"])])
    made = vae_jobs.write(
        trained, items, to=wanted, samples=samples, seed=seed, latent="mean" if mean else "sample"
    )
    out.mkdir(parents=True, exist_ok=True)
    texts = made.pop("text", None)
    if texts is not None:
        typer.echo("\n".join(texts))
        write_atomically(out / "text.txt", ("\n".join(texts) + "\n").encode())
        typer.echo(str(out / "text.txt"))
    for name, things in made.items():
        suffix = ".png" if name == "image" else ".wav"
        for number, thing in enumerate(things, 1):
            path = out / (f"{name}{suffix}" if len(things) == 1 else f"{name}-{number}{suffix}")
            if name == "image":
                file = picture_file(thing, suffix, scale)
            else:
                assert trained.encoding.audio is not None
                file = sound_file(thing, trained.encoding.audio.sample_rate, suffix)
            write_atomically(path, file)
            typer.echo(str(path))


@app.command()
@reported
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that training wrote.")],
    baseline: Annotated[
        bool,
        typer.Option(
            help="Train a model of each sense alone, for as many steps, to compare likelihoods with."
        ),
    ] = True,
    seed: Seed = 0,
) -> None:
    """Measure a model on held-out rows, and write report.html and metrics.json beside it."""
    from . import vae_jobs
    from .progress import Progress

    if not folder.is_dir():
        raise ArgumentError(f"{folder}: expected a folder that training wrote")
    with Progress() as progress:
        metrics = vae_jobs.write_report(folder, baseline=baseline, seed=seed, progress=progress, warn=_warn)
    for given, shares in metrics.get("coherence", {}).items():
        for target, of in shares.items():
            if target not in given.split("+"):
                way = f"{given.replace('+', ' + ')} → {target}"
                low, high = 100 * of["low"], 100 * of["high"]
                typer.echo(f"{way:<24}{100 * of['share']:6.1f} %  ({low:.1f} to {high:.1f})")
    found = metrics["log_likelihood"]
    typer.echo(f"log-likelihood of a held-out row   {found['joint']:.2f} nats, at least")
    if "gain" in found:
        gain = found["gain"]
        typer.echo(
            f"over models of each sense alone    {gain['mean']:+.2f} nats "
            f"({gain['low']:+.2f} to {gain['high']:+.2f})"
        )
    typer.echo(f"report  {folder / 'report.html'}")


def _warn(words: str) -> None:
    typer.secho(words, fg="yellow", err=True)


def _known(trained: Trained, name: str, option: str) -> None:
    if name not in trained.encoding.shapes:
        has = ", ".join(trained.encoding.shapes)
        raise ArgumentError(f"{option} {name}: the model knows {has}")


def _read(trained: Trained, given: list[str]) -> dict[str, Any]:
    """Read what is given as the model does."""
    from .data.manifest import read_audio, read_image

    items: dict[str, Any] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not value:
            raise ArgumentError(f"--given {one}: expected image=FILE, audio=FILE or text=WORDS")
        _known(trained, name, "--given")
        if name in items:
            raise ArgumentError(f"--given {one}: {name} is given twice")
        if name == "image":
            height, width, *rest = trained.encoding.shapes["image"]
            items[name] = read_image(value, image_size=(height, width), channels=3 if rest else 1)
        elif name == "audio":
            assert trained.encoding.audio is not None
            items[name] = read_audio(value, sample_rate=trained.encoding.audio.sample_rate)
        else:
            items[name] = value
    return items
