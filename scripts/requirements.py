"""Print the requirements of a dependency group of pyproject.toml, one a line.

Older versions of pip do not know dependency groups.
"""

import sys
import tomllib
from pathlib import Path


def main(groups: list[str]) -> None:
    """Print the requirements of each group named."""
    pyproject = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    for group in groups:
        print("\n".join(pyproject["dependency-groups"][group]))


if __name__ == "__main__":
    main(sys.argv[1:])
