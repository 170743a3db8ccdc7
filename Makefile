# `make quickstart` and `make test` need nothing but Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= recipes/quickstart.toml

.PHONY: quickstart test test-long lint reproduce bench fuzz audit clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "distilkit needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# Two trainings with the same budget on scikit-learn's hand-written digits, then the deployment: about two minutes.
quickstart: $(VENV)/.installed
	$(BIN)/distilkit train recipes/quickstart_baseline.toml
	$(BIN)/distilkit train $(RECIPE)
	$(BIN)/distilkit compare
	$(BIN)/distilkit prune-branches
	$(BIN)/distilkit export --mode single --format onnx

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread for each of several test processes: threads that wait for each other cost more than they bring.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto

test: lint
	$(PYTEST) -m 'not long'

test-long: lint
	$(PYTEST)

# A table of trainings in slices, see benchmarks/reproduce.py: make reproduce TABLE=small DATA=images MINUTES=60 JOBS=2
TABLE ?= small
MINUTES ?= 60
JOBS ?= 1
reproduce: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/reproduce.py $(TABLE) $(if $(DATA),--data $(DATA)) --minutes $(MINUTES) --jobs $(JOBS)

# How fast it is on this machine, see benchmarks/bench.py: make bench BENCHMARKS="evaluate startup"
BENCHMARKS ?=
bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/bench.py $(BENCHMARKS)

# Damaged files for every loader, see tests/fuzzing.py, for about so many seconds in all: make fuzz SECONDS=300. The same
# SEED gives the same inputs. Before that, absurd values for every option of every command, more than `make test` tries.
SECONDS ?= 300
SEED ?= $(shell date +%s)
fuzz: $(VENV)/.installed-dev
	$(PYTEST) -m long tests/test_hostile_options.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzzing.py --seconds $(SECONDS) --seed $(SEED)

# Known vulnerabilities of what is installed, from the database that PyPI serves: it needs the network.
audit: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/python -m pip_audit --local --skip-editable --progress-spinner off

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
