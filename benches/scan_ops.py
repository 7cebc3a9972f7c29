"""The scans at one width and any length, for time and memory against length.

    python benches/scan_ops.py NAME PASS LENGTH

run as a program, prints the bytes that a call returns and by how many the peak of resident memory rose.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CHANNELS, STATES, TAPS = 256, 16, 4
#: Heads of 64; states of Mamba-2.
HEADS, WIDTH, WIDE = 4, 64, 64
#: Heads of test-time-training layers, and tokens that share their weights.
LAYERS, BATCH = 2, 16


@dataclass(frozen=True)
class Operation:
    """A scan: its inputs, the names of its functions in `ops`, and their options."""

    arrays: Callable[[int], dict[str, Any]]
    forward: str
    options: dict[str, Any]
    #: Numbers a step that an array of all states would have; none where states are the output.
    states: float = 0


def convolution(length: int) -> dict[str, Any]:
    """Inputs of the convolution."""
    rng = np.random.default_rng(0)
    shapes = {
        "x": (1, CHANNELS, length),
        "weight": (CHANNELS, TAPS),
        "bias": (CHANNELS,),
        "grad_out": (1, CHANNELS, length),
    }
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def linear(length: int) -> dict[str, Any]:
    """Inputs of the gated linear scan: factors as of a gate."""
    rng = np.random.default_rng(0)
    a, x, grad_out = rng.standard_normal((3, 1, CHANNELS, length), np.float32)
    return {"a": 1 / (1 + np.exp(-a)), "x": x, "grad_out": grad_out}


def selective(length: int) -> dict[str, Any]:
    """Inputs of the selective scan."""
    from scan_peers import selective

    return selective.arrays(1, CHANNELS, length, STATES, options=True)


def ssd(length: int) -> dict[str, Any]:
    """Inputs of the scan of Mamba-2."""
    from scan_peers import ssd

    return ssd.arrays(1, length, HEADS, WIDTH, WIDE, options=True)


def ttt(length: int, *, mlp: bool) -> dict[str, Any]:
    """Inputs of a test-time-training layer."""
    from scan_peers import ttt

    return ttt.arrays(1, LAYERS, length, WIDTH, mlp=mlp)


OPERATIONS = {
    "selective_scan": Operation(
        selective, "selective_scan", {"delta_softplus": True}, states=CHANNELS * STATES
    ),
    "ssd": Operation(ssd, "ssd", {"dt_softplus": True}, states=HEADS * WIDTH * WIDE),
    "causal_conv1d": Operation(convolution, "causal_conv1d", {"activation": "silu"}),
    "gated_linear_scan": Operation(linear, "gated_linear_scan", {}),
    "ttt_linear": Operation(
        lambda length: ttt(length, mlp=False), "ttt_linear", {}, states=LAYERS * WIDTH * WIDTH / BATCH
    ),
    "ttt_mlp": Operation(
        lambda length: ttt(length, mlp=True), "ttt_mlp", {}, states=2 * 4 * LAYERS * WIDTH * WIDTH / BATCH
    ),
}


def there(name: str) -> bool:
    """Whether the package has the operation with its gradients."""
    from sensorium import ops

    return hasattr(ops, OPERATIONS[name].forward) and hasattr(ops, f"{OPERATIONS[name].forward}_backward")


def calls(name: str, length: int) -> dict[str, Callable[[], Any]]:
    """Forward, and forward and backward, of an operation."""
    from scan_peers._row import forward_and_backward
    from sensorium import ops

    operation = OPERATIONS[name]
    given = operation.arrays(length)
    grad_out = given.pop("grad_out")
    run = getattr(ops, operation.forward)
    back = getattr(ops, f"{operation.forward}_backward")

    def forward() -> Any:
        return [run(**given, **operation.options)]

    def both() -> Any:
        y, grads = forward_and_backward(run, back, grad_out, given | operation.options)
        return [y, *(g for g in grads if g is not None)]

    return {"forward": forward, "both": both}


def resident(name: str) -> int:
    """Bytes of memory under a name of the process's status."""
    found = re.search(name + r":\s*(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def main(name: str, passes: str, length: str) -> None:
    """Print bytes returned, and bytes by which the peak rose."""
    call = calls(name, int(length))[passes]
    before = resident("VmRSS")
    if before < resident("VmHWM") - (1 << 20):
        Path("/proc/self/clear_refs").write_text("5")
    returned = sum(x.nbytes for x in call())
    print(returned, resident("VmHWM") - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
