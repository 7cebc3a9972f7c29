"""Install pip into this interpreter's environment from the package index, with the standard library alone.

For the one case that nothing else covers: a Python that came without ensurepip and without pip. A wheel of
pip runs as it is, so the newest one is fetched, held to the checksum that the index states, and asked to
install itself. `PIP_INDEX_URL` is respected.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path


def newest_wheel(index: str) -> tuple[str, str, str]:
    """Return name, address and SHA-256 of the newest wheel of pip."""
    page = index.rstrip("/") + "/pip/"
    request = urllib.request.Request(page, headers={"Accept": "application/vnd.pypi.simple.v1+json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]

    def version(name: str) -> tuple[int, ...] | None:
        parts = name.split("-")[1].split(".")
        return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else None

    wheels = [f for f in files if f["filename"].endswith("-py3-none-any.whl") and not f.get("yanked")]
    released = [f for f in wheels if version(f["filename"])]
    best = max(released, key=lambda f: version(f["filename"]) or ())
    return best["filename"], urllib.parse.urljoin(page, best["url"]), best["hashes"]["sha256"]


def main() -> None:
    """Fetch, check, install."""
    name, address, sha256 = newest_wheel(os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple"))
    with urllib.request.urlopen(address, timeout=60) as answer:
        data = answer.read()
    if hashlib.sha256(data).hexdigest() != sha256:
        sys.exit(f"{name}: the checksum is not the one that the index states")
    with tempfile.TemporaryDirectory() as folder:
        wheel = Path(folder) / name
        wheel.write_bytes(data)
        subprocess.run(
            [sys.executable, str(wheel / "pip"), "install", "--quiet", "--no-index", str(wheel)], check=True
        )


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"pip could not be fetched: {error}")
