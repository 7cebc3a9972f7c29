#!/bin/sh
# Make a virtual environment with a recent pip: venv.sh [DIR]
#
# Needs Python >= 3.11 alone. Debian ships Python without ensurepip, and sometimes without pip; each way of
# making an environment is tried in turn, the usual one first.
set -eu

dir=${1:-.venv}
here=$(cd "$(dirname "$0")" && pwd)

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

python=
for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.14 python; do
    if recent "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
    echo "sensorium needs Python 3.11 or later, and found none. Install one, or name one: make PYTHON=/path/to/python3" >&2
    exit 1
fi

good() { [ -x "$dir/bin/python" ] && recent "$dir/bin/python" && "$dir/bin/python" -m pip --version >/dev/null 2>&1; }

with_venv() { "$python" -m venv --clear "$dir"; }
with_virtualenv() { "$python" -m virtualenv --clear --quiet "$dir"; }
with_borrowed_virtualenv() {
    # --target is allowed where the distribution forbids pip to touch its own packages.
    rm -rf "$dir.virtualenv"
    "$python" -m pip install --quiet --target "$dir.virtualenv" virtualenv &&
        PYTHONPATH="$dir.virtualenv" "$python" -m virtualenv --clear --quiet "$dir"
    status=$?
    rm -rf "$dir.virtualenv"
    return $status
}
with_uv() { uv venv --quiet --clear --seed --python "$python" "$dir"; }
with_fetched_pip() {
    "$python" -m venv --clear --without-pip "$dir" && "$dir/bin/python" "$here/bootstrap_pip.py"
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
for way in with_venv with_virtualenv with_borrowed_virtualenv with_uv with_fetched_pip; do
    good && break
    rm -rf "$dir"
    { echo "--- $way"; $way || true; } >>"$log" 2>&1
done
if ! good; then
    cat "$log" >&2
    echo "No virtual environment could be made with $python ($("$python" --version 2>&1)); every way was tried, see above." >&2
    echo "On Debian and Ubuntu: apt-get install python3-venv" >&2
    exit 1
fi
"$dir/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
