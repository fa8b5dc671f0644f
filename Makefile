# Everything a newcomer needs: `make demo`, `make test`. Each makes .venv by itself; nothing else has to be installed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STORE ?= supermask-store
FIGURES ?= figures
STUDIES := mask-criteria mask-1-actions mask-0-actions learned-supermasks

.PHONY: demo test lint format clean

demo: $(VENV)/installed
	@for study in $(STUDIES); do $(BIN)/supermask run $$study scale=digits --store $(STORE) || exit; done
	@for study in $(STUDIES); do $(BIN)/supermask figure $$study scale=digits --store $(STORE) --out $(FIGURES) || exit; done
	@$(BIN)/supermask status mask-criteria scale=digits --store $(STORE)
	@$(BIN)/supermask status learned-supermasks scale=digits --store $(STORE)
	@echo "The figures are in $(FIGURES)/; the first to look at are $(FIGURES)/mask-criteria-accuracy.png"
	@echo "and $(FIGURES)/learned-supermasks-supermasks.png: weights that were never trained, good by their mask alone."

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

clean:
	rm -rf $(VENV) build dist
