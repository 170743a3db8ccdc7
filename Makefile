# `make quickstart` and `make test` need nothing but Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= recipes/quickstart.toml

.PHONY: quickstart test test-long test-fast test-oldest test-newest test-torch test-wheel coverage lint docs reproduce bench fuzz audit clean

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

# The most telling tests, in under 90 seconds on two cores; which those are stands in tests/conftest.py.
FAST := -m 'fast and not long'
test-fast: $(VENV)/.installed-dev
	$(PYTEST) $(FAST)

# What the tests reach, programs that they start included; the lines that nothing reaches are in htmlcov/.
coverage: $(VENV)/.installed-dev
	rm -f .coverage .coverage.*
	$(PYTEST) -m 'not long' --cov --cov-report=
	$(BIN)/coverage html --quiet
	$(BIN)/coverage report --skip-covered --sort=cover

# The oldest versions that pyproject.toml allows, in an environment of their own; PYTHON should be the oldest one, too.
test-oldest:
	$(PYTHON) -m venv --clear .venv-oldest
	$(PYTHON) tools/oldest.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint .venv-oldest/constraints.txt --editable '.[dev,timm]'
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest --numprocesses auto $(FAST)

# The newest that there are, likewise.
test-newest:
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check \
		--upgrade --upgrade-strategy eager --editable '.[dev,timm]'
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest --numprocesses auto $(FAST)

# All tests but the long ones with one version of PyTorch, make test-torch TORCH=2.14.1, in an environment of their own;
# with TESTS=fast the fast ones. torchvision says which torch it works with, so pip finds one that belongs to it.
TESTS ?= all
SELECTED_all := -m 'not long'
SELECTED_fast := $(FAST)
test-torch:
	$(PYTHON) -m venv --clear .venv-torch
	.venv-torch/bin/python -m pip install --quiet --disable-pip-version-check \
		torch==$(or $(TORCH),$(error which PyTorch? for example: make test-torch TORCH=2.14.1)) torchvision \
		--editable '.[dev,timm]'
	.venv-torch/bin/python -m pip list --disable-pip-version-check | grep --extended-regexp '^(torch|torchvision|timm) '
	OMP_NUM_THREADS=1 .venv-torch/bin/python -m pytest --numprocesses auto \
		$(or $(SELECTED_$(TESTS)),$(error TESTS is all or fast, not $(TESTS)))

# Wheel and sdist in dist/; then the quickstart, shortened, from the wheel alone: an empty environment, no source tree.
test-wheel: $(VENV)/.installed-dev
	rm -rf dist
	$(BIN)/python -m build
	set -e; empty=$$(mktemp -d); trap 'rm -rf "$$empty"' EXIT; wheel=$$(ls "$$PWD"/dist/*.whl); \
	$(PYTHON) -m venv "$$empty/venv"; \
	"$$empty/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$$wheel"; \
	cd "$$empty"; \
	for words in "train quickstart_baseline --set train.epochs=2" "train quickstart --set train.epochs=2" compare \
		prune-branches "export --mode single --format onnx"; \
	do venv/bin/distilkit $$words; done

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
	rm -rf $(VENV) .venv-oldest .venv-newest .venv-torch build dist site .cache htmlcov .coverage .pytest_cache .mypy_cache .ruff_cache
