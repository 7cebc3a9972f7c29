"""What bounds the attention kernels: a count of vector operations, from the algorithm and the width.

On the measured processor (Zen 4) a core does one 512-bit fused multiply-add or multiplication a cycle, and
one addition or maximum beside it, in ports of their own. So products, and what an exponential has of
multiplications, take turns on one port, and nothing else need take time:

- a product over a tile: D multiply-adds a pair; forward has two, backward five;
- the exponential and its argument: `EXP` multiply-adds and multiplications a pair, forward and backward
  alike,
  and one more product of `P` and `dP` backward.

A matrix product has no such part, but reaches only what its loads and edges leave of the port. Shares of
SGEMM above this bound are possible for that reason, and are measured at large widths.
"""

from __future__ import annotations

#: On the multiplication port, per vector of scores: the scaled, shifted argument; the polynomial of degree
#: 5 and the factor before it; the product with the power of two.
EXP = 8


def bound(width: int, passes: str) -> float:
    """Share of the port's cycles that products can have."""
    if passes == "forward":
        return 2 * width / (2 * width + EXP)
    # Forward, then backward with its own exponential and the product of `P` and `dP - delta`.
    return 7 * width / (7 * width + 2 * EXP + 1)
