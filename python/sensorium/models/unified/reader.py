"""Reading rows of tokens piece by piece: what has been read is not computed again.

A token's keys and values depend on what it sees, and a sample sees no segment after it. So what stands before
the target is read once, a text is read token by token as it is written, and an image or a sound, which
changes as a whole from step to step, is read anew alone, over the keys that were there. A scan has no keys to
go back to, but a state: those at the end of the sources and at the last token read are kept, and reading goes
on from the latest that is still true.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import nn
from ...ops import KVCache, attention_decode, rotary
from .mixers import SCANS
from .network import ROTARY, Config, embed
from .sequence import Ints, Row

__all__ = ["Reader"]

Params = dict[str, Any]
Hidden = NDArray[np.floating]


class Reader:
    """Hidden states of rows of joint tokens ``(B, N)``, computed from left to right.

    Parameters
    ----------
    params, config
        The model.
    row : Row
        A single sample: each segment sees those before it.
    tokens : ndarray of int, shape (B, N)
        What stands in the row; the caller may change what has not been read, or has been forgotten.
    """

    def __init__(self, params: Params, config: Config, row: Row, tokens: Ints) -> None:
        self.params, self.config, self.row, self.tokens = params, config, row, tokens
        rows, width = len(tokens), config.width // config.heads
        dtype = params["token"].dtype
        self.layout = row.windowed(config.window)
        self.caches = {
            i: KVCache(rows, config.heads, width, capacity=row.length, dtype=dtype)
            for i, name in enumerate(config.mixers)
            if name == "attention"
        }
        # States of the scans after so many tokens, by block.
        self.states: dict[int, dict[int, Any]] = {0: dict.fromkeys(self._scans)}
        self.known = 0

    @property
    def _scans(self) -> list[int]:
        return [i for i in range(self.config.depth) if i not in self.caches]

    def forget(self, start: int) -> None:
        """Read the tokens from column ``start`` on anew when they are next asked for."""
        self.known = min(self.known, start)

    def read(self, start: int, stop: int) -> Hidden:
        """Return the hidden states ``(B, stop - start, D)``, reading up to ``stop`` what is not known yet."""
        begin = min(self.known, start)
        if self._scans:
            begin = max(at for at in self.states if at <= begin)
            target = self.row.slots[-1].start
            if begin < target < stop:
                # The state at the end of the sources is one to come back to.
                before = self._read(begin, target)
                parts = [before, self._read(target, stop)]
                out: Hidden = np.concatenate(parts, axis=1)[:, start - begin :]
                return out
        return self._read(begin, stop)[:, start - begin :]

    def _read(self, begin: int, stop: int) -> Hidden:
        states: dict[int, Any] = {}

        def attend(i: int, qkv: Any) -> Any:
            B, n, _, heads, width = qkv.shape
            q, k, v = qkv.transpose(2, 0, 3, 1, 4)
            if self.config.rotary:
                q, k = (rotary(a, ROTARY, np.arange(begin, stop)) for a in (q, k))
            self.caches[i].truncate(begin)
            self.caches[i].append(k, v)
            out = attention_decode(q, self.caches[i], self.layout)
            return out.transpose(0, 2, 1, 3).reshape(B, n, heads * width)

        def mix(i: int, p: Params, h: Any, x: Any) -> Any:
            heads, name = self.config.heads, self.config.mixers[i]
            if name == "attention":
                return nn.attention(p, h, lambda qkv: attend(i, qkv), heads, residual=x)
            y, states[i] = SCANS[name].step(p["mixer"], h, self.states[begin][i], heads)
            for slot in self.row.slots:
                if begin <= slot.start < stop and slot.two_way(self.config.vocabulary):
                    at = slice(slot.start - begin, slot.stop - begin)
                    back, _ = SCANS[name].step(p["mixer"], h[:, at][:, ::-1], None, heads)
                    y[:, at] += back[:, ::-1]
            return x + y

        x = embed(self.params, self.row, self.tokens[:, begin:stop], slice(begin, stop))
        h: Hidden = nn.transformer(self.params, x, mix)
        self.known = stop
        fixed = self.row.slots[-1].start
        self.states = {at: s for at, s in self.states.items() if at in (0, fixed) and at < stop}
        self.states[stop] = states
        return h
