"""Where the sequences of a batch are, in plain Python."""

import itertools


def sequences(B, L, seq_idx=None, cu_seqlens=None):
    """``(row, start, end, initial, last)`` of each sequence, the last two being indices of states or None; and
    the number of states."""
    if cu_seqlens is not None:
        pairs = itertools.pairwise(cu_seqlens)
        return [(0, int(a), int(b), i, i) for i, (a, b) in enumerate(pairs)], len(cu_seqlens) - 1
    found = []
    for row in range(B):
        cuts = [0, L]
        if seq_idx is not None:
            cuts = [0, *(t for t in range(1, L) if seq_idx[row][t] != seq_idx[row][t - 1]), L]
        for start, end in itertools.pairwise(cuts):
            found.append((row, start, end, row if start == 0 else None, row if end == L else None))
    return found, B
