"""Reading rows of tokens piece by piece: what has been read is not computed again.

A token's keys and values depend on what it sees, and a sample sees no segment after it. So what stands before
the target is read once, a text is read token by token as it is written, and an image or a sound, which
changes as a whole from step to step, is read anew alone, over the keys that were there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import nn
from ...ops import KVCache, attention_decode
from .network import Config, embed
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
        self.caches = [
            KVCache(rows, config.heads, width, capacity=row.length, dtype=params["token"].dtype)
            for _ in range(config.depth)
        ]
        self.known = 0

    def forget(self, start: int) -> None:
        """Read the tokens from column ``start`` on anew when they are next asked for."""
        self.known = min(self.known, start)

    def read(self, start: int, stop: int) -> Hidden:
        """Return the hidden states ``(B, stop - start, D)``, reading up to ``stop`` what is not known yet."""
        begin = min(self.known, start)

        def attend(i: int, qkv: Any) -> Any:
            B, n, _, heads, width = qkv.shape
            q, k, v = qkv.transpose(2, 0, 3, 1, 4)
            self.caches[i].truncate(begin)
            self.caches[i].append(k, v)
            out = attention_decode(q, self.caches[i], self.row.layout)
            return out.transpose(0, 2, 1, 3).reshape(B, n, heads * width)

        x = embed(self.params, self.row, self.tokens[:, begin:stop], slice(begin, stop))
        h = nn.transformer(self.params, x, self.config.heads, attend)
        self.known = stop
        out: Hidden = h[:, start - begin :]
        return out
