#!/bin/sh
# Kernels know nothing of Python: no crate but sensorium-py may depend on pyo3, however far away.
set -eu
tree=$(cargo tree --locked --workspace --exclude sensorium-py --prefix none)
# The list itself must be real, or its silence would prove nothing.
printf '%s\n' "$tree" | grep -q '^sensorium-core '
if printf '%s\n' "$tree" | grep -E '^(pyo3|numpy)[a-z-]* '; then
    echo 'a kernel crate depends on Python' >&2
    exit 1
fi
if cargo tree --locked -p sensorium-attention -i pyo3 >/dev/null 2>&1; then
    echo 'sensorium-attention depends on pyo3' >&2
    exit 1
fi
