"""What a search did, written while it does it, so that another process can go on from there.

A trace is a file of JSON, one record a line. A call is written when it begins and, before its result is used,
when it ends. A search that is started again with the trace of one that died takes the results that are there,
asks again for the calls that were under way, under the keys that they had, and goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..checkpoint import write_atomically
from ..errors import TraceError
from ._codec import digest, from_json, to_json
from ._page import render
from .budget import Cost

__all__ = ["Call", "Node", "Trace"]

_VERSION = 1


@dataclass(frozen=True)
class Node:
    """A place in the tree of a search.

    Parameters
    ----------
    id : str
        Name, the same in every run with the same seed.
    parent : str or None
        The node that it came from; None at the root.
    status : str
        ``open``, ``scored``, ``kept``, ``pruned``, ``finished``, ``failed`` or ``answer``.
    score : float or None
        What the verifier said.
    note : str
        Why it failed, or what else there is to say.
    call : str
        Key of the call that made it; ``index`` is its place among the candidates of that call.
    """

    id: str
    parent: str | None = None
    status: str = "open"
    score: float | None = None
    note: str = ""
    call: str = ""
    index: int = 0


@dataclass
class Call:
    """A call of a generator, a verifier or a critic, with all attempts at it.

    Parameters
    ----------
    key : str
        Name within the search.
    role, node : str
        Who was called, and at which node.
    arguments : str
        A digest of what it was called with; empty in a trace without a file.
    status : str
        ``begun``, ``done`` or ``failed``.
    value : object
        What it returned, once it is done.
    error : str
        Why it failed.
    costs : list of Cost
        Of each attempt, the last included.
    bad : int
        Attempts that returned something that could not be used.
    """

    key: str
    role: str
    node: str
    arguments: str = ""
    status: str = "begun"
    value: Any = None
    error: str = ""
    costs: list[Cost] = field(default_factory=list)
    bad: int = 0


class Trace:
    """A search's record of itself, in memory and, with a path, in a file that survives the process.

    Parameters
    ----------
    path : path-like, optional
        A file that is made, or gone on from where there is one. A line that was being written when the
        process died is taken back.
    durable : bool
        Whether the file is forced to the disk after each result: then a result also survives a crash of the
        machine. Without it, one of the process.
    encode, decode : callable, optional
        For candidates that are neither JSON's types nor tuples, sets, bytes or arrays: ``encode`` returns
        such a value as plain ones, ``decode`` makes it again.
    retry_failed : bool
        Whether calls that failed for good in an earlier run are made anew. Otherwise they stay failed.

    Attributes
    ----------
    nodes : dict of str to Node
        The tree.
    calls : dict of str to Call
        Every call by its key.
    run : str
        A name that nothing else has; idempotency keys begin with it.

    Notes
    -----
    A trace belongs to one search: the same strategy, seed, state and arguments of each call, which is
    checked. Limits may differ, so that a search can be given more. A file is locked while it is written to,
    where the system can.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from sensorium.search import best_of_n
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "run.jsonl"
    ...     first = best_of_n(lambda state, n: [state + 1] * n, lambda x: x, 1, n=2, trace=Trace(path))
    ...     again = best_of_n(lambda state, n: 1 / 0, lambda x: 1 / 0, 1, n=2, trace=Trace(path))
    ...     again.answer, again.budget.used.calls, {entry.replayed for entry in again.budget.ledger}
    (2, 4, {True})
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        durable: bool = True,
        encode: Callable[[Any], Any] | None = None,
        decode: Callable[[Any], Any] | None = None,
        retry_failed: bool = False,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.durable = durable
        self.retry_failed = retry_failed
        self._encode, self._decode = encode, decode
        self._file: int | None = None
        self._clear()

    def _clear(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.calls: dict[str, Call] = {}
        self.header: dict[str, Any] = {}
        self.outcome: dict[str, Any] = {}
        self.elapsed = 0.0
        self.run = uuid.uuid4().hex

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Trace({str(self.path or '')!r}, calls={len(self.calls)}, nodes={len(self.nodes)})"

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, decode: Callable[[Any], Any] | None = None) -> Trace:
        """Return the trace in a file, to be looked at; the file is not touched.

        Raises
        ------
        TraceError
            Where a line other than the last cannot be read; the message has its number.
        OSError
            Where there is no such file.
        """
        trace = cls(path, decode=decode)
        trace._parse(Path(path).read_bytes())
        return trace

    def close(self) -> None:
        """Give the file back; the trace can still be looked at."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    # --- what a search does with it -------------------------------------------------------------------

    def attach(self, strategy: str, seed: int, state: Any) -> None:
        """Begin a search, or go on with one. What a search calls first.

        Raises
        ------
        TraceError
            Where the trace is that of another search, or another process writes to it.
        """
        if self.path is None:
            if self.header:
                raise TraceError("trace has served another search: give each its own, or one with a path")
            self.header = {"strategy": strategy, "seed": seed}
            return
        self.close()
        self._clear()
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            with open(self._file, "rb", closefd=False) as file:
                file.seek(0)
                data = file.read()
            os.ftruncate(self._file, self._parse(data))
            header = {"strategy": strategy, "seed": seed, "state": digest(self.encode(state))}
            for name, value in header.items():
                if self.header and self.header.get(name) != value:
                    was = "another" if name == "state" else f"{name} {self.header.get(name)!r}"
                    now = "state" if name == "state" else repr(value)
                    raise TraceError(
                        f"trace {self.path} is of a search with {was}, not {now}: use another path"
                    )
            if not self.header:
                self.header = header
                self._write(
                    {"type": "start", "version": _VERSION, "run": self.run, **header}, 0.0, force=True
                )
        except BaseException:
            self.close()
            raise

    def encode(self, value: Any) -> Any:
        """Return a value as it stands in the file."""
        return to_json(value, self._encode)

    def begin(self, call: Call, attempt: int, elapsed: float) -> None:
        """Write that an attempt at a call is about to be made."""
        self.calls[call.key] = call
        record = {"key": call.key, "role": call.role, "node": call.node, "arguments": call.arguments}
        self._write({"type": "begin", **record, "attempt": attempt}, elapsed)

    def attempt_failed(self, call: Call, cost: Cost, error: str, bad: bool, elapsed: float) -> None:
        """Write that an attempt came to nothing, and what it cost."""
        call.costs.append(cost)
        call.bad += bad
        record = {"type": "attempt", "key": call.key, "error": error, "bad": bad, "cost": cost.as_dict()}
        self._write(record, elapsed)

    def end(self, call: Call, value: Any, cost: Cost, elapsed: float) -> Any:
        """Write what a call returned; return it as it will be read."""
        if self._file is not None:
            encoded = self.encode(value)
            record = {"type": "end", "key": call.key, "value": encoded, "cost": cost.as_dict()}
            self._write(record, elapsed, force=True)
            value = from_json(encoded, self._decode)
        call.costs.append(cost)
        call.status, call.value = "done", value
        return value

    def give_up(self, call: Call, error: str, elapsed: float) -> None:
        """Write that no further attempt will be made."""
        call.status, call.error = "failed", error
        self._write({"type": "failed", "key": call.key, "error": error}, elapsed)

    def node(self, id: str, elapsed: float = 0.0, **changes: Any) -> Node:
        """Make a node, or change it."""
        before = self.nodes.get(id)
        after = replace(before or Node(id), **changes)
        if after != before:
            self.nodes[id] = after
            record = {name: value for name, value in vars(after).items() if value not in ("", None)}
            self._write({"type": "node", **self.encode(record)}, elapsed)
        return after

    def finish(self, record: Mapping[str, Any], elapsed: float) -> None:
        """Write how the search ended, and give the file back."""
        record = self.encode(dict(record))
        if self.outcome != record:
            self.outcome = dict(record)
            self._write({"type": "outcome", **record}, elapsed, force=True)
        self.close()

    # --- what a reader does with it -------------------------------------------------------------------

    def value(self, node: str) -> Any:
        """Return the candidate at a node; None where it has none.

        Raises
        ------
        KeyError
            Where there is no such node.
        """
        place = self.nodes[node]
        call = self.calls.get(place.call)
        if call is None or call.status != "done":
            return None
        return call.value[place.index]

    def cost(self, node: str) -> Cost:
        """Return what was spent at a node, over all attempts."""
        return sum((cost for call in self.calls.values() if call.node == node for cost in call.costs), Cost())

    def to_html(self, path: str | os.PathLike[str] | None = None, *, limit: int = 5000) -> str:
        """Return one self-contained page with the tree to click through, and write it where a path is given.

        The page loads nothing and runs nothing. What candidates say is shown as text, never as markup.

        Parameters
        ----------
        path : path-like, optional
            Where to write it.
        limit : int
            Nodes beyond this many are counted and not shown.
        """
        page = render(self, limit)
        if path is not None:
            write_atomically(path, page.encode())
        return page

    # --- the file -------------------------------------------------------------------------------------

    def _lock(self) -> None:
        with contextlib.suppress(ImportError):
            import fcntl

            assert self._file is not None
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise TraceError(f"trace {self.path} is being written to by another search") from error

    def _write(self, record: dict[str, Any], elapsed: float, *, force: bool = False) -> None:
        if self._file is None:
            return
        text = json.dumps({"t": round(elapsed, 6), **record}, allow_nan=False, separators=(",", ":"))
        line = memoryview(text.encode() + b"\n")
        while line:
            line = line[os.write(self._file, line) :]
        if force and self.durable:
            os.fsync(self._file)

    def _parse(self, data: bytes) -> int:
        """Take in the records; return how many bytes of them are whole."""
        good = 0
        for number, line in enumerate(data.splitlines(keepends=True), 1):
            try:
                record = json.loads(line)
                if not line.endswith(b"\n") or not isinstance(record, dict):
                    raise ValueError("it is not a record")
            except ValueError as error:
                if good + len(line) == len(data):
                    break  # it was being written when the process died
                raise TraceError(f"trace {self.path}, line {number} cannot be read: {error}") from error
            if number == 1 and (record.get("type") != "start" or record.get("version") != _VERSION):
                raise TraceError(f"trace {self.path} is not a trace that this version writes")
            try:
                self._take(record)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise TraceError(f"trace {self.path}, line {number} cannot be used: {error!r}") from error
            good += len(line)
        return good

    def _take(self, record: dict[str, Any]) -> None:
        self.elapsed = max(self.elapsed, float(record.pop("t", 0.0)))
        kind = record.pop("type")
        if kind == "start":
            self.run = record["run"]
            self.header = {name: record[name] for name in ("strategy", "seed", "state")}
        elif kind == "begin":
            record.pop("attempt")
            self.calls.setdefault(record["key"], Call(**record)).status = "begun"
        elif kind == "attempt":
            call = self.calls[record["key"]]
            call.costs.append(Cost(**record["cost"]))
            call.bad += bool(record["bad"])
        elif kind == "end":
            call = self.calls[record["key"]]
            call.costs.append(Cost(**record["cost"]))
            call.status, call.value = "done", from_json(record["value"], self._decode)
        elif kind == "failed":
            call = self.calls[record["key"]]
            call.status, call.error = "failed", record["error"]
        elif kind == "node":
            node = Node(**from_json(record))
            self.nodes[node.id] = node
        elif kind == "outcome":
            self.outcome = record
        else:
            raise ValueError(f"unknown type {kind!r}")
