# `make quickstart` and `make test` need nothing but Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= recipes/quickstart.toml

.PHONY: quickstart test test-long lint docs reproduce bench fuzz clean

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

# The documentation site, into site/: strictly, that is, a link to nowhere ends it. What its pages take from the program is
# made anew by docs/tools/renew.py.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m zensical build --clean --strict

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

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

# Absurd values for every option of every command, longer than `make test` tries them.
fuzz: $(VENV)/.installed-dev
	$(PYTEST) -m long tests/test_hostile_options.py

clean:
	rm -rf $(VENV) build dist site .cache .pytest_cache .mypy_cache .ruff_cache
