# `make demo` and `make test` are all that a newcomer needs. Each creates .venv; nothing else has to be installed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STORE ?= supermask-store
FIGURES ?= figures
REPORT ?= report.html
DEMO_FIGURES := mask-criteria learned-supermasks

.PHONY: demo test quick harness lint format cli-reference clean

demo: $(VENV)/installed
	@$(BIN)/supermask reproduce --scale digits --store $(STORE) --out $(REPORT)
	@for study in $(DEMO_FIGURES); do $(BIN)/supermask figure $$study scale=digits --store $(STORE) --out $(FIGURES) || exit; done
	@$(BIN)/supermask status mask-criteria scale=digits --store $(STORE)
	@echo
	@echo "Open $(REPORT) in a browser: claims, interactive figures, tables, provenance. It needs no network."
	@echo "Figures for papers are in $(FIGURES)/. Results on MNIST: docs/findings.md."

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q -n $${WORKERS:-2} --dist worksteal

# Without the slow tests, the clusters and the browser: under 90 s on two cores.
quick: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q -n $${WORKERS:-2} --dist worksteal -m "not slow and not cluster and not browser"

# The kill harness at full size: about four minutes. `make test` runs a share of it.
harness: $(VENV)/installed-dev
	SUPERMASK_FULL_HARNESS=1 $(BIN)/python -m pytest -q tests/execution/test_kill.py

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Rewrites docs/cli.md from the live commands.
cli-reference: $(VENV)/installed-dev
	PYTHONPATH=tests $(BIN)/python -m helpers.cli_reference

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("supermask needs Python 3.11 or later: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build dist
