"""Hold every row against float64 on small, ragged cases, and the float64 against `tests/reference`.

PYTHONPATH=python python benches/scan_peers/check.py
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from scan_peers import ggml, selective, ssd, ttt
from scan_peers._row import distance


def cases() -> list[tuple[str, Any, dict[str, Any], str]]:
    """Names, families, arrays and passes."""
    found = []
    for passes in ("forward", "both"):
        for options in (False, True):
            words = f"{passes}, {'D, z and bias' if options else 'plain'}"
            given = selective.arrays(2, 24, 83, 16, options=options)
            found.append((f"selective {words}", selective, given, passes))
            given = ssd.arrays(2, 150, 4, 8, 16, 2, options=options)
            found.append((f"ssd {words}", ssd, given, passes))
        for mlp in (False, True):
            given = ttt.arrays(2, 3, 64, 8, mlp=mlp)
            found.append((f"ttt {'mlp' if mlp else 'linear'} {passes}", ttt, given, passes))
    found.append(("selective step", selective, selective.step_arrays(2, 24), "step"))
    found.append(("ssd step", ssd, ssd.step_arrays(2, 4, 8, 16, 2), "step"))
    return found


def main() -> None:
    """Check all of them; an error stops."""
    warnings.simplefilter("ignore")
    print(f"ggml {ggml.version()}")
    for name, family, arrays, passes in cases():
        if passes != "both":
            arrays.pop("grad_out", None)
        truth = family.truth(arrays, passes)
        for row_name, row in family.rows(arrays, passes).items():
            error = distance(row.results(row.call()), truth)
            print(f"{name:<32} {row_name:<18} {error:.1e}", flush=True)


if __name__ == "__main__":
    main()
