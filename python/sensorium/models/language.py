"""Language models of recurrent layers: loading, scores, and generation whose memory does not grow.

:mod:`sensorium.models.mamba` and :mod:`sensorium.models.mamba2` say what a layer is; everything else is here.
A model is a configuration, parameters in a nested dict by the names of checkpoints, and functions of both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .. import autodiff as ad
from .. import ops
from .._tree import tree_items, tree_leaves
from .._validate import as_indices, check_integer
from ..errors import ArgumentError, CheckpointError, DTypeError, ShapeError
from ._config import BaseConfig
from ._folder import read_config, read_weights, write_folder
from ._pick import Choice
from ._state import State
from ._text import ByteTokenizer, Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from ._generation import Generation

__all__ = ["LanguageModel", "State", "init", "load", "logits", "loss"]

Array = NDArray[Any]
Params = dict[str, Any]

PREFILL = 1024  # Tokens of a prompt that are read at a time: what bounds the memory of a long one.


def init(config: BaseConfig, rng: np.random.Generator) -> Params:
    """Return the parameters of a model before training, ``float32``.

    Embeddings are normal with a deviation of 0.02; the layers begin as their papers say.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.models import mamba
    >>> config = mamba.Config(vocab_size=256, hidden_size=8, num_hidden_layers=2)
    >>> sorted(init(config, np.random.default_rng(0)))
    ['embeddings', 'layers', 'norm_f']
    """

    def norm() -> Params:
        weight = {"weight": np.ones(config.hidden_size, np.float32)}
        return weight | ({"bias": np.zeros(config.hidden_size, np.float32)} if config.norm == "layer" else {})

    shape = (config.vocab_size, config.hidden_size)
    params: Params = {
        "embeddings": {"weight": rng.standard_normal(shape, np.float32) * np.float32(0.02)},
        "layers": {
            str(i): {"norm": norm(), "mixer": config.init_mixer(rng)} for i in range(config.num_hidden_layers)
        },
        "norm_f": norm(),
    }
    if not config.tie_word_embeddings:
        weight = rng.standard_normal(shape[::-1], np.float32) * np.float32(0.02)
        params["lm_head"] = {"weight": weight}
    return params


def logits(params: Params, config: BaseConfig, tokens: ArrayLike, **packing: Any) -> Any:
    """Return the scores of the next token after each token, differentiable by ``params``.

    Parameters
    ----------
    params : dict
        As :func:`init` makes them.
    config : Config
        Of a family.
    tokens : array (B, L) of integers
        From 0 to V - 1.
    **packing
        ``seq_idx`` or ``cu_seqlens``, where a row holds several texts (:func:`sensorium.ops.selective_scan`).

    Returns
    -------
    array (B, L, V)

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.models import mamba
    >>> config = mamba.Config(vocab_size=16, hidden_size=8, num_hidden_layers=1)
    >>> params = init(config, np.random.default_rng(0))
    >>> logits(params, config, np.array([[1, 2, 3]])).shape
    (1, 3, 16)
    """
    x = ad.embedding(params["embeddings"]["weight"], tokens)  # (B, L, D)
    for i in range(config.num_hidden_layers):
        p = params["layers"][str(i)]
        x = config.mixer(p["mixer"], _norm(ad, p["norm"], config, x), x, **packing)
    return ad.linear(_norm(ad, params["norm_f"], config, x), _head(params))


def loss(
    params: Params, config: BaseConfig, tokens: ArrayLike, weights: ArrayLike | None = None, **packing: Any
) -> Any:
    """Return the mean of ``-log p(token | those before)`` in nats, differentiable by ``params``.

    Parameters
    ----------
    params, config
        As for :func:`logits`.
    tokens : array (B, L + 1) of integers
        Each but the first of a row is predicted.
    weights : array (B, L), optional
        Of the predictions; 1 where not given.
    **packing
        Of the ``L`` tokens that are read.

    Returns
    -------
    scalar

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.models import mamba
    >>> config = mamba.Config(vocab_size=16, hidden_size=8, num_hidden_layers=1)
    >>> value = loss(init(config, np.random.default_rng(0)), config, np.array([[1, 2, 3]]))
    >>> bool(abs(value - np.log(16)) < 0.1)
    True
    """
    tokens = np.asarray(tokens)
    return ad.cross_entropy(logits(params, config, tokens[:, :-1], **packing), tokens[:, 1:], weights)


def _head(params: Params) -> Any:
    """Return the matrix ``(D, V)`` of the head, which may be the table of embeddings."""
    head = params.get("lm_head")
    return params["embeddings"]["weight"].T if head is None else head["weight"]


def _norm(fn: Any, params: Params, config: BaseConfig, x: Any) -> Any:
    if config.norm == "layer":
        return fn.layer_norm(x, params["weight"], params["bias"], eps=config.layer_norm_epsilon)
    return fn.rms_norm(x, params["weight"], eps=config.layer_norm_epsilon)


def load(folder: str | os.PathLike[str], *, dtype: DTypeLike | None = None) -> LanguageModel:
    """Return the model of a folder, of the family that its ``config.json`` names.

    Parameters
    ----------
    folder : path-like
        With ``config.json`` and ``model.safetensors``, or ``model.safetensors.index.json`` and its files.
    dtype : dtype, optional
        What to turn the matrices into: ``float32``, ``float64``, ``float16`` or ``bfloat16``. They stay as
        they are stored, and mapped, where not given.

    Raises
    ------
    CheckpointError
        Where a file is missing, damaged or hostile, or of another kind of model; the message names it.
    """
    from . import mamba, mamba2

    entries = read_config(folder)
    families: dict[str, type[LanguageModel]] = {"mamba": mamba.Model, "mamba2": mamba2.Model}
    name = entries.get("model_type")
    if "d_model" in entries:
        ssm = entries.get("ssm_cfg")
        name = "mamba2" if isinstance(ssm, dict) and ssm.get("layer") == "Mamba2" else "mamba"
    if not isinstance(name, str) or name not in families:
        raise CheckpointError(
            f"{os.fspath(folder)} holds a model of type {name!r}, expected {' or '.join(map(repr, families))}"
        )
    return families[name].load(folder, dtype=dtype)


class LanguageModel:
    """A language model: a configuration, parameters, and where there is one a tokeniser.

    Parameters
    ----------
    config : Config
        Of the family.
    params : dict
        As :func:`init` makes them; matrices may be of half precision.
    tokenizer : optional
        With ``encode(text)`` and ``decode(tokens)``; bytes where the configuration says so.

    Examples
    --------
    >>> import numpy as np
    >>> from sensorium.models import mamba
    >>> config = mamba.Config(vocab_size=256, hidden_size=16, num_hidden_layers=2, tokenizer="bytes")
    >>> model = mamba.Model.init(config, np.random.default_rng(0))
    >>> generation = model.generate("Once", max_new_tokens=5, seed=1)
    >>> len(generation.tokens[0]), generation.reasons
    (5, ['length'])
    """

    config_type: ClassVar[type[BaseConfig]]

    def __init__(self, config: BaseConfig, params: Params, tokenizer: Tokenizer | None = None) -> None:
        if not isinstance(config, self.config_type):
            raise DTypeError(
                f"config is a {type(config).__module__}.Config, not one of {self.config_type.family}"
            )
        self.config = config
        self.params = params
        self.tokenizer = ByteTokenizer() if tokenizer is None and config.tokenizer == "bytes" else tokenizer
        self._ready: Params | None = None

    @classmethod
    def init(cls, config: BaseConfig, rng: np.random.Generator) -> Self:
        """Return a model before training."""
        return cls(config, init(config, rng))

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, dtype: DTypeLike | None = None) -> Self:
        """Return the model of a folder: what :func:`load` does, for this family.

        Raises
        ------
        CheckpointError
            Where a file is missing, damaged or hostile; a missing, surplus or misshapen array is named.
        """
        where = os.fspath(folder)
        entries = read_config(folder)
        if (
            "d_model" not in entries
            and entries.get("model_type", cls.config_type.family) != cls.config_type.family
        ):
            raise CheckpointError(
                f"{where} holds a model of type {entries['model_type']!r}, not {cls.config_type.family!r}"
            )
        try:
            config = cls.config_type.from_json(entries)
        except (ArgumentError, DTypeError) as error:
            raise CheckpointError(f"{where}: config.json: {error}") from error
        params = _from_file(where, config, read_weights(folder), dtype)
        return cls(config, params, load_tokenizer(folder))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a folder that :meth:`load` reads, and ``transformers`` too.

        Raises
        ------
        ArgumentError
            Where the model has options that ``transformers`` does not know.
        OSError
            Where the place cannot be written.
        """
        write_folder(folder, self.config.to_json() | {"dtype": self.dtype.name}, _to_file(self.params))

    @property
    def dtype(self) -> np.dtype[Any]:
        """How the matrices are stored."""
        dtype: np.dtype[Any] = self.params["embeddings"]["weight"].dtype
        return dtype

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(leaf.size for leaf in tree_leaves(self.params))

    def describe(self) -> str:
        """Return a few lines on what the model is."""
        c = self.config
        state = self.new_state(1)
        text = "none" if self.tokenizer is None else "bytes" if c.tokenizer == "bytes" else "tokenizer.json"
        return "\n".join(
            [
                f"{c.family}, {self.parameters:,} parameters as {self.dtype.name}",
                f"{c.num_hidden_layers} layers of width {c.hidden_size}, scans of {c.inner} channels "
                f"with {c.state_size} numbers of state each",
                f"{c.vocab_size:,} tokens, tokeniser: {text}",
                f"{state.nbytes:,} bytes of state, however long the text",
            ]
        )

    def new_state(self, batch: int = 1) -> State:
        """Return the state before the first token, for so many rows."""
        check_integer("batch", batch)
        layers = self._prepared()["layers"]
        return State([self.config.mixer_state(layer["mixer"], batch) for layer in layers])

    def logits(self, tokens: ArrayLike) -> Array:
        """Return the scores of the next token after each token.

        Parameters
        ----------
        tokens : array (B, L) or (L,) of integers

        Returns
        -------
        array (B, L, V) or (L, V)

        Raises
        ------
        ShapeError, DTypeError, ArgumentError
            Where tokens are not such an array, or one is not in the vocabulary.
        """
        rows = np.asarray(tokens)
        if rows.ndim == 1:
            alone: Array = self.logits(rows[None])[0]
            return alone
        return self.scores(rows, self.new_state(len(rows) if rows.ndim else 0))

    def scores(self, tokens: ArrayLike, state: State) -> Array:
        """Read the next tokens of each row as :meth:`step` does, and return the scores after every one.

        Parameters
        ----------
        tokens : array (B, n) of integers
        state : State
            Of ``B`` rows; changed in place.

        Returns
        -------
        array (B, n, V)

        Raises
        ------
        ShapeError, DTypeError, ArgumentError
            Where tokens are not such an array, or one is not in the vocabulary; the state is as it was.
        """
        rows = self._rows(tokens)
        if len(rows) != state.batch:
            raise ShapeError(f"tokens has B={len(rows)} but state has B={state.batch}")
        return self._score(self._hidden(rows, state))

    def step(self, tokens: ArrayLike, state: State) -> Array:
        """Read the next tokens of each row, move ``state`` past them, and return the scores of what follows.

        Parameters
        ----------
        tokens : array (B, n) of integers
            At least one of each row.
        state : State
            From :meth:`new_state`, of ``B`` rows; changed in place.

        Returns
        -------
        array (B, V)

        Raises
        ------
        ShapeError, DTypeError, ArgumentError
            Where tokens are not such an array, or one is not in the vocabulary; the state is as it was.
        """
        rows = self._rows(tokens)
        if len(rows) != state.batch:
            raise ShapeError(f"tokens has B={len(rows)} but state has B={state.batch}")
        if not rows.shape[1]:
            raise ShapeError("tokens has no token in a row, expected at least one")
        for begin in range(0, rows.shape[1], PREFILL):
            hidden = self._hidden(rows[:, begin : begin + PREFILL], state)
        return self._score(hidden[:, -1])

    def generate(
        self,
        prompt: str | Sequence[str] | ArrayLike,
        *,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop_tokens: Sequence[int] | None = None,
        stop: Sequence[str | Sequence[int]] = (),
        on_token: Callable[[int, int, str], Any] | None = None,
    ) -> Generation:
        """Write on from one prompt or several.

        Parameters
        ----------
        prompt : str, sequence of str, or integers (L,), (B, L) or a list of rows of any lengths
            Read whole first; then each token costs the same time and no more memory.
        max_new_tokens : int
            Of each row.
        temperature : float
            Of sampling; 0 takes the likeliest token.
        top_k : int, optional
            Draw among so many of the likeliest.
        top_p : float, optional
            Draw among the likeliest that together have this probability.
        repetition_penalty : float
            Scores of tokens that the row holds are divided by it where positive, multiplied where negative.
        seed : int
            Of every draw. A row's draws depend on the seed and its place in the batch alone.
        stop_tokens : sequence of int, optional
            Tokens that end a row; those of the configuration where not given.
        stop : sequence of str or of token sequences
            What ends a row as soon as it stands at the end of what was written.
        on_token : callable, optional
            Called with the row, the token and the text that has become whole (``""`` without a tokeniser).
            Where it returns False the generation ends there.

        Returns
        -------
        Generation
            Tokens and texts of each row, why each ended, and :meth:`Generation.resume` to go on. Ctrl-C ends
            a generation early; it then says ``interrupted``.

        Raises
        ------
        ShapeError, DTypeError, ArgumentError
            Where an argument does not fit.
        CallbackError
            Where ``on_token`` raises; its ``generation`` holds what was written, ready to be resumed.

        Examples
        --------
        >>> import numpy as np
        >>> from sensorium.models import mamba2
        >>> sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "state_size": 4}
        >>> config = mamba2.Config(**sizes, head_dim=4)
        >>> model = mamba2.Model.init(config, np.random.default_rng(0))
        >>> generation = model.generate([[1, 2], [3]], max_new_tokens=3, temperature=0)
        >>> [len(row) for row in generation.tokens]
        [3, 3]
        >>> [len(row) for row in generation.resume(max_new_tokens=2).tokens]
        [5, 5]
        """
        from ._generation import Generation

        generation = Generation(
            self,
            prompt,
            Choice(temperature, top_k, top_p, repetition_penalty),
            seed=seed,
            stop_tokens=self.config.eos_token_id if stop_tokens is None else stop_tokens,
            stop=stop,
        )
        return generation.resume(max_new_tokens=max_new_tokens, on_token=on_token)

    def _rows(self, tokens: ArrayLike) -> NDArray[np.int64]:
        rows = as_indices("tokens", tokens, self.config.vocab_size)
        if rows.ndim != 2:
            raise ShapeError(f"tokens has shape {rows.shape}, expected 2 dimensions (B, L)")
        return rows

    def _prepared(self) -> Params:
        """Return the parameters as generation reads them: layers as a list, the head as a matrix."""
        if self._ready is None:
            layers = [
                {"norm": layer["norm"], "mixer": self.config.prepare_mixer(layer["mixer"])}
                for layer in self.params["layers"].values()
            ]
            self._ready = {**self.params, "layers": layers, "head": _head(self.params)}
        return self._ready

    def _hidden(self, rows: NDArray[np.int64], state: State) -> Array:
        """Return what the head reads, ``(B, n, D)``, and move ``state`` past the tokens."""
        params, config = self._prepared(), self.config
        x: Array = params["embeddings"]["weight"][rows]
        x = x.astype(params["norm_f"]["weight"].dtype, copy=False)
        for layer, memory in zip(params["layers"], state.layers, strict=True):
            x = config.mixer_step(layer["mixer"], _norm(ops, layer["norm"], config, x), memory, x)
        out: Array = _norm(ops, params["norm_f"], config, x)
        return out

    def _score(self, hidden: Array) -> Array:
        out: Array = ops.linear(hidden, self._prepared()["head"])
        return out


# --- files --------------------------------------------------------------------------------------------

_OLD, _TABLE, _HEAD = "backbone.embedding.weight", "backbone.embeddings.weight", "lm_head.weight"
_KINDS = ("float32", "float64", "float16", "bfloat16")


def _from_file(
    where: str, config: BaseConfig, arrays: Mapping[str, Array], dtype: DTypeLike | None
) -> Params:
    """Return the parameters that the arrays of a file are, each held to the name and shape it should have."""
    found = {_TABLE if name == _OLD else name: array for name, array in arrays.items()}
    if config.tie_word_embeddings:
        found.pop(_HEAD, None)  # Some files hold the table twice.
    if config.num_hidden_layers > len(found):
        raise CheckpointError(
            f"{where} describes {config.num_hidden_layers} layers but holds {len(found)} arrays"
        )
    expected = config.shapes()
    for name, shape in expected.items():
        array = found.get(name)
        if array is None:
            raise CheckpointError(f"{where} lacks {name}")
        if array.shape != shape:
            raise CheckpointError(f"{where}: {name} has shape {array.shape}, expected {shape}")
        if array.dtype.name not in _KINDS:
            raise CheckpointError(f"{where}: {name} has dtype {array.dtype}, expected {' or '.join(_KINDS)}")
    if surplus := sorted(found.keys() - expected.keys()):
        raise CheckpointError(f"{where} has {surplus[0]}, which its config.json does not tell of")
    wanted = None if dtype is None else np.dtype(dtype)
    if wanted is not None and wanted.name not in _KINDS:
        raise DTypeError(f"dtype must be one of {', '.join(_KINDS)}, not {wanted}")
    kind = found[_TABLE].dtype if wanted is None else wanted
    arithmetic = np.dtype(np.float64 if kind == np.float64 else np.float32)
    params: Params = {}
    for name in expected:
        array = found[name]
        matrix = _is_matrix(name)
        target = (array.dtype if wanted is None else wanted) if matrix else arithmetic
        if target.itemsize > 2:
            target = arithmetic
        array = array.astype(target, copy=False)
        _put(params, name.removeprefix("backbone."), _turned(name, array))
    return params


def _to_file(params: Params) -> dict[str, Array]:
    """Return the arrays of a file by their names, in its own forms."""
    arrays = {}
    for path, array in tree_items(params):
        name = path if path.startswith("lm_head") else f"backbone.{path}"
        if name.endswith("conv1d.weight"):
            array = array[:, None]
        elif _is_matrix(name) and name != _TABLE:
            array = array.T
        dtype = params["embeddings"]["weight"].dtype
        arrays[name] = np.ascontiguousarray(array.astype(dtype, copy=False))
    return arrays


def _is_matrix(name: str) -> bool:
    return name.endswith("_proj.weight") or name in (_TABLE, _HEAD)


def _turned(name: str, array: Array) -> Array:
    """Return an array of a file as a parameter: matrices with outputs in columns, taps without a middle."""
    if name.endswith("conv1d.weight"):
        return array[:, 0]
    return array.T if _is_matrix(name) and name != _TABLE else array


def _put(tree: Params, path: str, array: Array) -> None:
    *parents, leaf = path.split(".")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[leaf] = array
