"""What is installed and what it runs on."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from typing import Any

from . import _core

__all__ = ["config", "show_config"]

_PACKAGES = ("numpy", "scipy", "autograd", "scikit-learn", "soundfile", "pillow", "matplotlib")


def config() -> dict[str, Any]:
    """Return versions, instruction set and threads as a JSON-able dictionary."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "sensorium": _core.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "isa": _core.isa_level(),
        "isa_available": _core.isa_available(),
        "threads": _core.num_threads(),
        "packages": versions,
    }


def show_config() -> None:
    """Print versions, instruction set and threads: what a bug report needs.

    Examples
    --------
    >>> import sensorium
    >>> sensorium.show_config()  # doctest: +ELLIPSIS
    sensorium ...
    """
    c = config()
    lines = [
        f"sensorium {c['sensorium']}",
        f"python    {c['python']} on {c['platform']}",
        f"isa       {c['isa']} (available: {', '.join(c['isa_available'])})",
        f"threads   {c['threads']}",
    ]
    lines += [f"{name:<13} {version or 'not installed'}" for name, version in c["packages"].items()]
    sys.stdout.write("\n".join(lines) + "\n")
