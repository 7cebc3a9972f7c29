"""Writing on, token by token: what was written, and the state to go on from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._blas import one_blas_thread
from .._interrupt import graceful_interrupt
from .._validate import as_indices, check_integer
from ..errors import ArgumentError, DTypeError, SensoriumError
from ._pick import Choice
from ._state import State
from ._text import TextStream

if TYPE_CHECKING:
    from .language import LanguageModel

__all__ = ["CallbackError", "Generation"]

PIECE = 1024  # Tokens of a prompt between two looks at whether Ctrl-C was pressed.

OnToken = Callable[[int, int, str], Any]


class CallbackError(SensoriumError):
    """A callback raised during a generation; ``generation`` holds what was written until then."""

    def __init__(self, message: str, generation: Generation) -> None:
        super().__init__(message)
        self.generation = generation


class _Row:
    """A text that is being written."""

    def __init__(self, prompt: NDArray[np.int64], seed: int, index: int, model: LanguageModel) -> None:
        self.tokens: list[int] = []
        self.reason = "length"
        self.done = False
        self.state = model.new_state(1)
        self.unread = prompt  # What the state has not seen: the last token, once the prompt is read.
        self.rng = np.random.default_rng([seed, index])
        self.seen = np.zeros(model.config.vocab_size, np.bool_)
        self.seen[prompt] = True
        self.stream = None if model.tokenizer is None else TextStream(model.tokenizer)
        self.streamed = 0  # Tokens that went through it.

    def catch_up(self) -> str:
        """Return the text that has become whole with the tokens since the last call."""
        if self.stream is None:
            return ""
        text = "".join(map(self.stream.push, self.tokens[self.streamed :]))
        self.streamed = len(self.tokens)
        return text


class Generation:
    """What a model has written after each prompt, and where it stands.

    :meth:`~sensorium.models.language.LanguageModel.generate` makes it.

    Attributes
    ----------
    tokens : list of list of int
        What was written after each prompt, a token that ended it included.
    reasons : list of str
        Why each row ended: ``"stop"``, or ``"length"`` where it can go on.
    interrupted : bool
        Whether Ctrl-C, or a callback that returned False, ended it early.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompt: str | Sequence[str] | ArrayLike,
        choice: Choice,
        *,
        seed: int,
        stop_tokens: Sequence[int],
        stop: Sequence[str | Sequence[int]],
    ) -> None:
        self.model = model
        self.interrupted = False
        self._choice = choice
        check_integer("seed", seed)
        self._stop_tokens = frozenset(check_integer("stop_tokens", token) for token in stop_tokens)
        self._stop_texts, self._stop_sequences = _stops(model, stop)
        self._rows = [_Row(row, seed, i, model) for i, row in enumerate(_prompts(model, prompt))]

    @property
    def tokens(self) -> list[list[int]]:
        """What was written after each prompt."""
        return [list(row.tokens) for row in self._rows]

    @property
    def texts(self) -> list[str]:
        """The same as text.

        Raises
        ------
        ArgumentError
            Where the model has no tokeniser.
        """
        tokenizer = self.model.tokenizer
        if tokenizer is None:
            raise ArgumentError("the model has no tokeniser; tokens holds what was written")
        ends = self._stop_tokens if self.model.config.tokenizer is None else frozenset()
        return [tokenizer.decode([t for t in row.tokens if t not in ends]) for row in self._rows]

    @property
    def reasons(self) -> list[str]:
        """Why each row ended."""
        return [row.reason for row in self._rows]

    @property
    def state(self) -> State:
        """A copy of the state of every row, which has read all of its tokens but the last one."""
        return State.join([row.state for row in self._rows])

    @one_blas_thread()
    def resume(self, *, max_new_tokens: int = 128, on_token: OnToken | None = None) -> Generation:
        """Write on, rows that were stopped included, and return the same object.

        Parameters
        ----------
        max_new_tokens : int
            That each row gets on top of what it has.
        on_token : callable, optional
            As for :meth:`~sensorium.models.language.LanguageModel.generate`.

        Raises
        ------
        CallbackError
            Where ``on_token`` raises.
        """
        check_integer("max_new_tokens", max_new_tokens)
        self.interrupted = False
        goals = [len(row.tokens) + max_new_tokens for row in self._rows]
        for row in self._rows:
            row.done, row.reason = not max_new_tokens, "length"
            if on_token is not None:
                row.catch_up()
        with graceful_interrupt() as asked:
            if self._read(asked):
                self._run(goals, asked, on_token)
            else:
                self.interrupted = True
        return self

    def _read(self, asked: Callable[[], bool]) -> bool:
        """Read prompts up to their last token, piece by piece; return whether Ctrl-C left the time for it."""
        for row in self._rows:
            while len(row.unread) > 1:
                if asked():
                    return False
                piece = row.unread[: min(PIECE, len(row.unread) - 1)]
                self.model.step(piece[None], row.state)
                row.unread = row.unread[len(piece) :]
        return True

    def _run(self, goals: list[int], asked: Callable[[], bool], on_token: OnToken | None) -> None:
        """Step all rows that are not done together, until none is left."""
        active = [i for i, row in enumerate(self._rows) if not row.done]
        state: State | None = None
        try:
            while active:
                if asked():
                    self.interrupted = True
                    return
                if state is None:
                    state = State.join([self._rows[i].state for i in active])
                scores = self.model.step(np.stack([self._rows[i].unread for i in active]), state)
                for place, i in enumerate(active):
                    self._choose(i, scores[place], goals[i])
                left = [i for i in active if not self._rows[i].done]
                going = self._tell(active, on_token)
                if len(left) < len(active) or not going:
                    self._put_back(active, state)
                    state, active = None, left
                if not going:
                    self.interrupted = True
                    return
        finally:
            if state is not None:
                self._put_back(active, state)

    def _put_back(self, active: list[int], state: State) -> None:
        for place, i in enumerate(active):
            self._rows[i].state = state.take([place])

    def _choose(self, index: int, scores: NDArray[np.floating[Any]], goal: int) -> None:
        row = self._rows[index]
        token = self._choice.pick(scores, row.seen, row.rng)
        row.tokens.append(token)
        row.seen[token] = True
        row.unread = np.array([token])
        if token in self._stop_tokens or self._ends(row):
            row.done, row.reason = True, "stop"
        elif len(row.tokens) >= goal:
            row.done = True

    def _ends(self, row: _Row) -> bool:
        if any(row.tokens[-len(s) :] == s for s in self._stop_sequences):
            return True
        if not self._stop_texts or self.model.tokenizer is None:
            return False
        # A character takes at most some tokens, so that this many hold every text that could end here.
        longest = max(len(text.encode("utf-8", "surrogateescape")) for text in self._stop_texts)
        tail = self.model.tokenizer.decode(row.tokens[-(longest + 4) :])
        before = self.model.tokenizer.decode(row.tokens[-(longest + 4) : -1])
        return any(tail.count(text) > before.count(text) for text in self._stop_texts)

    def _tell(self, active: list[int], on_token: OnToken | None) -> bool:
        """Call the callback for the newest token of each row; return whether to go on."""
        if on_token is None:
            return True
        going = True
        for i in active:
            row = self._rows[i]
            text = ""
            if row.stream is not None:
                text = row.catch_up()
                text += row.stream.flush() if row.done else ""
            try:
                going = on_token(i, row.tokens[-1], text) is not False and going
            except Exception as error:
                raise CallbackError(
                    f"on_token raised {type(error).__name__}: {error}; the generation is kept", self
                ) from error
        return going


def _prompts(model: LanguageModel, prompt: Any) -> list[NDArray[np.int64]]:
    """Return the tokens of each prompt, at least one."""
    if isinstance(prompt, str):
        prompt = [prompt]
    if isinstance(prompt, Sequence) and any(isinstance(item, str) for item in prompt):
        if not all(isinstance(item, str) for item in prompt):
            raise DTypeError("prompt mixes texts and tokens")
        if model.tokenizer is None:
            raise ArgumentError("prompt is text, but the model has no tokeniser; give tokens")
        prompt = [model.tokenizer.encode(text) for text in prompt]
    elif np.ndim(prompt[0] if len(prompt) else 0) == 0:
        prompt = [prompt]
    rows = []
    for i, row in enumerate(prompt):
        tokens = as_indices(f"prompt[{i}]", row, model.config.vocab_size)
        if tokens.ndim != 1:
            raise DTypeError(f"prompt[{i}] has shape {tokens.shape}, expected (L,)")
        if not tokens.size:
            raise ArgumentError(f"prompt[{i}] holds no token; a model needs one to begin from")
        rows.append(tokens)
    return rows


def _stops(model: LanguageModel, stop: Any) -> tuple[list[str], list[list[int]]]:
    if isinstance(stop, str):
        stop = [stop]
    texts, sequences = [], []
    for i, item in enumerate(stop):
        if isinstance(item, str):
            if model.tokenizer is None:
                raise ArgumentError(f"stop[{i}] is text, but the model has no tokeniser; give tokens")
            texts.append(item)
        else:
            sequences.append(as_indices(f"stop[{i}]", item).tolist())
        if not len(item):
            raise ArgumentError(f"stop[{i}] is empty")
    return texts, sequences
