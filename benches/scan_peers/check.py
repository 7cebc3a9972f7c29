"""Hold every row against float64 on small, ragged cases, and the float64 against `tests/reference`.

PYTHONPATH=python python benches/scan_peers/check.py
"""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

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


def reference(name: str) -> Any:
    """Load a module of `tests/reference`."""
    return importlib.import_module(f"reference.{name}")


def first(found: Any) -> Any:
    """Return what comes before the states."""
    return found[0] if isinstance(found, tuple) else found


def independent(name: str, family: Any, arrays: dict[str, Any], passes: str, truth: Any) -> float | None:
    """Distance of the float64 that rows are held against to the reference of the tests, where that has it."""
    given = {key: x.astype("float64") for key, x in arrays.items()}
    grad_out = given.pop("grad_out", None)
    module = reference({"selective": "scan"}.get(name, name))
    if passes == "step":
        run = getattr(module, family.Sensorium.update)
        return distance({"y": first(run(**given, **family.Sensorium.step_options))}, truth)
    run_name, options = family.Sensorium.name_of(arrays), dict(family.Sensorium.options)
    run = getattr(module, run_name if passes == "forward" else f"{run_name}_backward", None)
    if run is None:
        return None
    if passes == "forward":
        return distance({"y": first(run(**given, **options))}, truth)
    grads = run(grad_out, **given, **options)
    named = grads if isinstance(grads, dict) else dict(zip(family.GRADIENTS, grads, strict=False))
    return distance(named, truth)


def main() -> None:
    """Check all of them; an error stops."""
    warnings.simplefilter("ignore")
    print(f"ggml {ggml.version()}")
    for name, family, arrays, passes in cases():
        if passes != "both":
            arrays.pop("grad_out", None)
        truth = family.truth(arrays, passes)
        error = independent(family.__name__.rsplit(".", 1)[1], family, arrays, passes, truth)
        if error is not None:
            print(f"{name:<32} {'float64':<18} {error:.1e} to the reference of the tests", flush=True)
        for row_name, row in family.rows(arrays, passes).items():
            error = distance(row.results(row.call()), truth)
            print(f"{name:<32} {row_name:<18} {error:.1e}", flush=True)


if __name__ == "__main__":
    main()
