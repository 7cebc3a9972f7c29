"""A trained model: configuration, parameters and tokenisers in one object and one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import checkpoint
from ..._blas import one_blas_thread
from ...errors import ArgumentError, CheckpointError, DTypeError, SensoriumError, ShapeError
from ...tokenizers import AudioTokenizer, ImageTokenizer, TextTokenizer
from .decode import generate, log_likelihood
from .network import Config, shapes
from .sequence import Ints, Modality, Vocabulary

__all__ = ["Decoding", "Model"]

FORMAT = "sensorium-unified-1"
Params = dict[str, Any]
Item = str | NDArray[np.float32]
_HOW = {"autoregressive": "from left to right", "diffusion": "by masked diffusion", "readout": "at once"}
_TOKENIZERS: dict[str, Any] = {"text": TextTokenizer, "image": ImageTokenizer, "audio": AudioTokenizer}


@dataclass(frozen=True)
class Decoding:
    """How codes are drawn, for one target modality; see :func:`sensorium.models.unified.generate`.

    Parameters
    ----------
    temperature, guidance, steps, choice_temperature
        As for :func:`~sensorium.models.unified.generate`.
    candidates : int
        Samples drawn for each answer. The model reads each one back, and keeps the one from which the word
        that it was made for is most likely. 1 keeps the first.
    """

    temperature: float = 1.0
    guidance: float = 1.0
    steps: int = 8
    choice_temperature: float = 1.0
    candidates: int = 1


@dataclass(frozen=True, eq=False)
class Model:
    """An any-to-any model.

    Parameters
    ----------
    config : Config
        Sizes and modalities.
    params : dict
        Nested dict of ``float32`` arrays.
    tokenizers : mapping of str to tokeniser
        ``text``, ``image``, ``audio``, or some of them.
    decoding : mapping of str to Decoding
        Defaults for each target modality.
    through_words : bool
        Whether image to audio and audio to image write a word first, and go on from that word.

    Examples
    --------
    >>> model = Model.load("model.safetensors")  # doctest: +SKIP
    >>> model.generate("seven", source_kind="text", to="image")[0].shape  # doctest: +SKIP
    (8, 8)
    """

    config: Config
    params: Params
    tokenizers: Mapping[str, Any]
    decoding: Mapping[str, Decoding] = field(default_factory=dict)
    through_words: bool = True

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities."""
        return tuple(m.name for m in self.config.vocabulary.modalities)

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(a.size for a in checkpoint.flatten(self.params).values())

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of an image that the model reads and writes: ``(H, W)`` or ``(H, W, 3)``."""
        t = self._tokenizer("image")
        return (t.height, t.width) if t.channels == 1 else (t.height, t.width, t.channels)

    @property
    def sample_rate(self) -> int:
        """Samples a second of the sound that the model reads and writes."""
        return int(self._tokenizer("audio").sample_rate)

    def describe(self) -> str:
        """Return the model's sizes and modalities as a few lines of text."""
        c = self.config
        lines = [
            f"{self.parameters:,} parameters: width {c.width}, {c.depth} blocks, {c.heads} heads, "
            f"MLP {c.hidden}"
        ]
        if c.mixer != "attention":
            lines.append(f"mixers: {', '.join(c.mixers)}")
        if c.window is not None and "attention" in c.mixers:
            lines.append(f"attention sees {c.window} segments before its own")
        for m in c.vocabulary.modalities:
            how = _HOW[m.kind]
            lines.append(f"{m.name:<6} {m.length} tokens of {m.codes} codes, written {how}")
        return "\n".join(lines)

    def _tokenizer(self, name: str) -> Any:
        if name not in self.tokenizers:
            raise ArgumentError(f"the model knows {', '.join(self.modalities)}, not {name!r}")
        return self.tokenizers[name]

    def encode(self, kind: str, items: Sequence[Item]) -> Ints:
        """Return the codes ``(n, length)`` of texts, images or sounds."""
        tokenizer = self._tokenizer(kind)
        if kind == "text":
            return text_codes(tokenizer, items)
        batch = np.stack([np.asarray(i) for i in items]) if kind == "image" else list(items)
        return np.asarray(tokenizer.encode(batch), np.int64)

    def decode(self, kind: str, codes: Ints) -> list[Any]:
        """Return the texts, images or sounds that codes ``(n, length)`` stand for."""
        return list(self._tokenizer(kind).decode(codes))

    def generate_codes(
        self,
        source_kind: str | None,
        codes: Ints | None,
        to: str,
        *,
        rng: np.random.Generator,
        rows: int = 1,
        through_words: bool | None = None,
        **overrides: Any,
    ) -> Ints:
        """Return codes of ``to`` for codes of ``source_kind``; the batched form of :meth:`generate`.

        ``source_kind=None`` writes ``rows`` samples without a condition.
        """
        how = replace(
            self.decoding.get(to, Decoding()), **{k: v for k, v in overrides.items() if v is not None}
        )
        if how.candidates < 1:
            raise ArgumentError(f"candidates must be above 0, not {how.candidates}")
        through = self.through_words if through_words is None else through_words
        word: Ints | None = codes if source_kind == "text" else None
        if source_kind not in (None, "text") and to != "text" and through and "text" in self.modalities:
            word = self.generate_codes(source_kind, codes, "text", rng=rng)
            source_kind, codes = "text", word
        options = asdict(how)
        candidates = options.pop("candidates")
        if word is None or to == "text" or candidates == 1:
            sources = {} if source_kind is None or codes is None else {source_kind: codes}
            return generate(self.params, self.config, sources, to, rng=rng, rows=rows, **options)
        n = len(word)
        repeated = np.repeat(np.asarray(codes), candidates, axis=0)
        drawn = generate(self.params, self.config, {str(source_kind): repeated}, to, rng=rng, **options)
        read = log_likelihood(
            self.params, self.config, {to: drawn}, "text", np.repeat(word, candidates, axis=0)
        )
        best = read.reshape(n, candidates).argmax(axis=1)
        kept: Ints = drawn.reshape(n, candidates, -1)[np.arange(n), best]
        return kept

    @one_blas_thread()
    def generate(
        self,
        source: Item | None,
        *,
        to: str,
        source_kind: str | None = None,
        samples: int = 1,
        seed: int = 0,
        temperature: float | None = None,
        guidance: float | None = None,
        steps: int | None = None,
        candidates: int | None = None,
        through_words: bool | None = None,
    ) -> list[Any]:
        """Turn a text, an image or a sound into another.

        Parameters
        ----------
        source : str or ndarray
            A text; an image of :attr:`image_shape`, in [0, 1]; a sound ``(samples,)`` at :attr:`sample_rate`,
            in [-1, 1]; ``None`` for samples without a condition.
        to : str
            ``"text"``, ``"image"`` or ``"audio"``.
        source_kind : str, optional
            What the source is; told from its type where it is not given.
        samples : int
            Number of answers.
        seed : int
            Seed of the draws.
        temperature, guidance, steps, candidates, through_words : optional
            Override the model's defaults (:class:`Decoding`).

        Returns
        -------
        list
            ``samples`` texts, images ``float32`` or sounds ``float32``.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError
            Where the source does not fit the model.
        """
        if samples < 1:
            raise ArgumentError(f"samples must be above 0, not {samples}")
        self._tokenizer(to)
        codes = None
        if source is not None:
            source_kind = source_kind or _kind_of(source)
            if source_kind == to:
                raise ArgumentError(f"source and target are both {to}")
            codes = np.repeat(
                self.encode(source_kind, [self._fit_source(source_kind, source)]), samples, axis=0
            )
        out = self.generate_codes(
            source_kind if source is not None else None,
            codes,
            to,
            rng=np.random.default_rng(seed),
            rows=samples,
            through_words=through_words,
            temperature=temperature,
            guidance=guidance,
            steps=steps,
            candidates=candidates,
        )
        return self.decode(to, out)

    def _fit_source(self, kind: str, source: Item) -> Item:
        if kind == "text":
            if not isinstance(source, str):
                raise DTypeError(f"source must be a str, not {type(source).__name__}")
            return source
        array = np.asarray(source, np.float32)
        if kind == "image" and array.shape != self.image_shape:
            raise ShapeError(f"source has shape {array.shape}, expected {self.image_shape}")
        if kind == "audio" and (array.ndim != 1 or array.size == 0):
            raise ShapeError(f"source has shape {array.shape}, expected (samples,)")
        if not np.isfinite(array).all():
            raise ArgumentError("source holds NaN or infinite values")
        return array

    def save(self, path: str | Path) -> None:
        """Write the model as one ``safetensors`` file; a file that was there stays whole until it is done."""
        arrays, metadata = self.to_arrays()
        checkpoint.save(Path(path), arrays, metadata)

    def to_arrays(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the arrays and the JSON-able description that make the model."""
        arrays = checkpoint.flatten({"params": self.params})
        for name, tokenizer in self.tokenizers.items():
            arrays |= {f"tokenizers/{name}/{key}": a for key, a in tokenizer.to_arrays().items()}
        c = self.config
        metadata = {
            "format": FORMAT,
            "config": _config_of(c),
            "modalities": [_modality_of(m) for m in c.vocabulary.modalities],
            "tokenizers": {name: t.config for name, t in self.tokenizers.items()},
            "decoding": {name: asdict(d) for name, d in self.decoding.items()},
            "through_words": self.through_words,
        }
        return arrays, metadata

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
        """Build a model from what :meth:`to_arrays` returned.

        Raises
        ------
        CheckpointError
            Where something is missing or has a wrong shape or dtype.
        """
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path} is not a model of format {FORMAT}")
        try:
            vocabulary = Vocabulary(tuple(Modality(**m) for m in metadata["modalities"]))
            config = Config(vocabulary, **metadata["config"])
            tokenizers = {
                name: _TOKENIZERS[name].from_arrays(_under(arrays, f"tokenizers/{name}/"), conf)
                for name, conf in metadata["tokenizers"].items()
            }
            decoding = {name: Decoding(**d) for name, d in metadata["decoding"].items()}
            through_words = bool(metadata["through_words"])
        except (KeyError, TypeError, AttributeError, SensoriumError) as error:
            raise CheckpointError(f"{path} does not describe a model: {error}") from error
        if set(tokenizers) != set(vocabulary.by_name):
            raise CheckpointError(f"{path} has tokenisers for {sorted(tokenizers)}, but other modalities")
        for name, t in tokenizers.items():
            m = vocabulary.by_name[name]
            if (t.size, t.tokens - (name == "text")) != (m.codes, m.length):
                raise CheckpointError(f"{path} has a tokeniser for {name} that does not fit the model")
        params = _under(arrays, "params/")
        _check_params(config, params, path)
        return cls(config, checkpoint.unflatten(params), tokenizers, decoding, through_words)


def text_codes(tokenizer: TextTokenizer, texts: Sequence[Any]) -> Ints:
    """Return the codes of texts without the begin token, ended and filled up with the end token."""
    codes = np.asarray(tokenizer.encode(list(texts)), np.int64)[:, 1:]
    return np.where(codes == tokenizer.pad, tokenizer.end, codes)


def _config_of(config: Config) -> dict[str, Any]:
    """Return the sizes as plain data; what is at its default is left out where older files lack it too."""
    out: dict[str, Any] = {k: getattr(config, k) for k in ("width", "depth", "heads", "hidden")}
    for k in ("mixer", "window", "rotary", "state"):
        value = getattr(config, k)
        if value != getattr(Config, k):
            out[k] = list(value) if isinstance(value, tuple) else value
    return out


def _modality_of(modality: Modality) -> dict[str, Any]:
    out = asdict(modality)
    if modality.prompts == 1:
        del out["prompts"]
    return out


def _under(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}


def _check_params(config: Config, params: Mapping[str, NDArray[Any]], path: str | Path) -> None:
    """Hold the arrays of a file to the shapes that its configuration asks for."""
    if config.depth > len(params):
        raise CheckpointError(f"{path} describes {config.depth} blocks but holds {len(params)} parameters")
    expected = shapes(config)
    for name, want in expected.items():
        got = params.get(name)
        if got is None:
            raise CheckpointError(f"{path} lacks the parameter {name}")
        if got.shape != want or got.dtype != np.float32:
            raise CheckpointError(f"{path} has {name} of {got.dtype} {got.shape}, expected float32 {want}")
    extra = sorted(set(params) - set(expected))
    if extra:
        raise CheckpointError(
            f"{path} has parameters that its configuration does not: {', '.join(extra[:3])}"
        )


def _kind_of(source: Item) -> str:
    if isinstance(source, str):
        return "text"
    return "audio" if np.asarray(source).ndim == 1 else "image"
