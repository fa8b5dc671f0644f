# Everything a newcomer needs: `make demo`, `make test`. Each makes .venv by itself; nothing else has to be installed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STORE ?= supermask-store
FIGURES ?= figures
REPORT ?= report.html
DRAWN := mask-criteria learned-supermasks

.PHONY: demo test lint format cli-reference clean

demo: $(VENV)/installed
	@$(BIN)/supermask reproduce --scale digits --store $(STORE) --out $(REPORT)
	@for study in $(DRAWN); do $(BIN)/supermask figure $$study scale=digits --store $(STORE) --out $(FIGURES) || exit; done
	@$(BIN)/supermask status mask-criteria scale=digits --store $(STORE)
	@echo
	@echo "Open $(REPORT) in a browser: claims, interactive figures, tables, how it was made; it needs no network."
	@echo "Figures fit for a paper are in $(FIGURES)/. What the same command says of MNIST: docs/findings.md."

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q -n $${WORKERS:-2} --dist worksteal

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

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

cli-reference: $(VENV)/installed-dev
	PYTHONPATH=tests $(BIN)/python -m helpers.cli_reference

clean:
	rm -rf $(VENV) build dist
