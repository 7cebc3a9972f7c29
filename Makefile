# Every target does its own set-up in .venv: cargo, Python >= 3.11 and a C compiler are all that it needs.
# Choose the interpreter with `make PYTHON=/path/to/python3 ...`.

VENV := .venv
BENCH_VENV := .venv-bench
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --quiet --disable-pip-version-check
export PYO3_PYTHON := $(CURDIR)/$(PY)

RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test bench bench-scans bench-env lint format docs wheel clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1 /p' $(firstword $(MAKEFILE_LIST)) | while read -r name what; do printf '  make %-11s %s\n' "$$name" "$$what"; done

quickstart: $(VENV)/.package  ## Train an any-to-any model for 30 seconds and write a report (ARGS="--seconds 60")
	$(VENV)/bin/sensorium quickstart $(ARGS)

test: $(VENV)/.package $(VENV)/.dev  ## Rust tests, Python tests, examples in docstrings
	cargo test --workspace --exclude sensorium-py
	$(PY) -m pytest --doctest-modules tests python/sensorium $(ARGS)

# Attention and scans are measured against what is installed: the environment of `make bench-env` where there is one.
BENCH_PY = $(firstword $(wildcard $(BENCH_VENV)/bin/python) $(PY))
ATTENTION := --json benches/results/attention.local.json

bench: $(VENV)/.package $(VENV)/.dev  ## Every kernel against its NumPy reference and, for attention, its peers
	$(PY) -m pytest benches --benchmark-only --benchmark-json=benches/results/latest.local.json $(ARGS)
	PYTHONPATH=python $(BENCH_PY) benches/bench_attention.py $(ATTENTION)
	$(PY) benches/bench_pairs.py

# `make bench-scans SCANS=` keeps the figures that scripts/scan_results.py writes into the pages.
SCANS := .local
KEPT = benches/results/$(1)$(SCANS).json

bench-scans: $(VENV)/.package  ## Scans against others' code, and what length costs them: about eight minutes
	PYTHONPATH=python $(BENCH_PY) benches/bench_scans.py --json $(call KEPT,scans)
	PYTHONPATH=python $(BENCH_PY) benches/bench_scan_length.py --json $(call KEPT,scan_length)

bench-env: $(VENV)/.package  ## An environment with the peers of attention and scans, several GB, in .venv-bench
	sh scripts/venv.sh $(BENCH_VENV)
	@$(PY) scripts/requirements.py peers > $(BENCH_VENV)/peers.txt
	$(BENCH_VENV)/bin/python -m pip install -r $(BENCH_VENV)/peers.txt

lint: $(VENV)/.package $(VENV)/.dev  ## Formatting, clippy, ruff, mypy, stubs, direction of dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m mypy.stubtest --allowlist scripts/stubtest.allow sensorium._core
	sh scripts/check_directions.sh

format: $(VENV)/.dev  ## Format Rust and Python
	cargo fmt --all
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

docs: $(VENV)/.package $(VENV)/.docs  ## The documentation as pages, in site/
	$(PY) -m mkdocs build --strict

wheel: $(VENV)/.build  ## A wheel for this platform, in dist/
	$(PY) -m maturin build --release --out dist

clean:  ## Remove what was built; .venv stays
	cargo clean
	rm -rf dist site $(VENV)/.package

# --- set-up, each step once ---------------------------------------------------------------------------

$(VENV)/.build: scripts/venv.sh scripts/bootstrap_pip.py
	@command -v cargo >/dev/null || { echo 'sensorium needs cargo: see https://rustup.rs' >&2; exit 1; }
	@command -v cc >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null || \
	    { echo 'sensorium needs a C compiler, to link: gcc or clang' >&2; exit 1; }
	sh scripts/venv.sh $(VENV)
	$(PIP) install 'maturin>=1.14,<2'
	@touch $@

# An editable install: Python sources are read where they are, so only Rust sources ask for another build.
$(VENV)/.package: $(VENV)/.build pyproject.toml $(RUST_SOURCES)
	@echo 'Building the kernels: about a minute the first time'
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PIP) install --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.build pyproject.toml
	@$(PY) scripts/requirements.py dev > $@.txt
	$(PIP) install -r $@.txt
	@touch $@

$(VENV)/.docs: $(VENV)/.build pyproject.toml
	@$(PY) scripts/requirements.py docs > $@.txt
	$(PIP) install -r $@.txt
	@touch $@
