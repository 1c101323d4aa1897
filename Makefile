PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PACKAGES := pipeline stepsize trainer ops
# One more than there are cores, since many tests wait for what they have started.
WORKERS = $(shell $(PYTHON) -c 'import os; print(min(os.cpu_count() + 1, 4))')

.DEFAULT_GOAL := help
.PHONY: help demo install extras test alerts check format bench gpu constraints clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "alphastream needs Python 3.11 or newer; this is " + sys.version.split()[0] + " (set PYTHON=...)")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	$(PIP) -e .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "Installing what tests and checks need ..."
	$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/installed-extras: $(VENV)/installed-dev
	@echo "Installing Ray, DALI, Triton and what examples need ..."
	$(PIP) -e '.[ray,dali,cuda,examples]'
	@touch $@

install: $(VENV)/installed  ## create .venv and install

demo: $(VENV)/installed  ## the main job: sample, preprocess, train with α* applied, report (under three minutes)
	$(BIN)/alphastream demo

extras: $(VENV)/installed-extras  ## Ray, DALI, Triton, Lightning and the Trainer of Hugging Face as well, whose tests are skipped without them

test: $(VENV)/installed-dev  ## the tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

alerts: $(VENV)/installed-dev  ## real runs watched by a real Prometheus, with the processor for themselves
	$(BIN)/python -m pytest tests/faults/alerts

check: $(VENV)/installed-dev  ## format, lint, types, import rules, duplicate code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/pylint $(PACKAGES) tests/unit tests/integration tests/faults --recursive=y

format: $(VENV)/installed-dev  ## rewrite to the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Peers have an environment of their own: they hold numpy and others to older versions than the tests use.
$(PEERS)/installed: pyproject.toml tests/bench/constraints.txt
	@echo "Installing peers into $(PEERS) ..."
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c tests/bench/constraints.txt \
		-e '.[peers,curvlinops,optimizers]'
	@touch $@

bench: $(PEERS)/installed  ## the benchmarks: ratios against named peers, in .venv-peers
	$(PEERS)/bin/python -m tests.bench

gpu:  ## tests and benchmarks on a GPU, with PYTHON's own torch; tests/gpu/wheels.txt has what else it takes
	$(PYTHON) -m tests.gpu

constraints: $(VENV)/installed-extras  ## pin the versions installed now
	$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//' > constraints.txt

clean:  ## remove both environments and caches
	rm -rf $(VENV) $(PEERS) .pytest_cache .ruff_cache .import_linter_cache .hypothesis
