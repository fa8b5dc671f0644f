# `make demo` and `make test` are all that a newcomer needs. Each creates .venv; nothing else has to be installed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STORE ?= supermask-store
FIGURES ?= figures
REPORT ?= report.html
# Build of torch: `cpu` is PyTorch's own CPU build (Linux), `default` what pip finds: on Linux usually the CUDA build.
TORCH ?= $(if $(filter Linux,$(shell uname -s)),cpu,default)
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# Workers of pytest: one more than the cores of the smallest machine that is meant, because tests wait for processes.
WORKERS ?= 3
DEMO_FIGURES := mask-criteria learned-supermasks resnet20

# Tests start hundreds of processes: each would compile the package's sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test quick harness lint format cli-reference docs package clean

demo: $(VENV)/installed
	@$(BIN)/supermask reproduce --scale digits --store $(STORE) --out $(REPORT)
	@for study in $(DEMO_FIGURES); do $(BIN)/supermask figure $$study scale=digits --store $(STORE) --out $(FIGURES) || exit; done
	@$(BIN)/supermask status mask-criteria scale=digits --store $(STORE)
	@echo
	@echo "Open $(REPORT) in a browser: claims, interactive figures, tables, provenance. It needs no network."
	@echo "Figures for papers are in $(FIGURES)/. Results on MNIST: docs/findings.md."

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

# Without the slow tests, the clusters and the browser: under 90 s on two cores.
quick: $(VENV)/installed-dev
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow and not cluster and not browser"

# At full size what `make test` runs a share of: hundreds of kills, 10,000 flipped bits, 200 steps of each engine, every
# value where one stands for several.
harness: $(VENV)/installed-dev
	SUPERMASK_FULL_HARNESS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal \
	  tests/execution tests/store/test_documents.py tests/engines tests/benchmarks tests/cli/test_output.py tests/test_site.py \
	  tests/test_package.py tests/export/test_ticket_files.py tests/reporting/test_figure_options.py \
	  tests/core/test_certificate_false_alarms.py tests/analysis/test_false_positives.py

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

# The documentation site in site/: strict, so a broken link or an undocumented public name fails. Runs the tutorials.
docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Wheel and source distribution in dist/; the test builds its own, installs both and looks into them.
package: $(VENV)/installed-dev
	$(BIN)/hatchling build -t sdist -t wheel
	$(BIN)/python -m pytest -q tests/test_package.py

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("supermask needs Python 3.11 or later: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

ifeq ($(TORCH),cpu)
# Few retries, so that a machine that does not reach the index goes on within seconds.
define install-torch
$(BIN)/pip install --quiet --constraint constraints.txt --no-deps --retries 1 --timeout 10 --index-url $(TORCH_CPU_INDEX) torch \
	  || { echo "PyTorch's CPU index is not reachable: installing the torch that pip finds (on Linux perhaps the CUDA build, 6 GB)."; \
	  $(BIN)/pip install --quiet --constraint constraints.txt torch; }
endef
else ifeq ($(TORCH),default)
install-torch = $(BIN)/pip install --quiet --constraint constraints.txt torch
else
$(error TORCH=$(TORCH) is not a build of torch: give TORCH=cpu or TORCH=default)
endif

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(install-torch)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(install-torch)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build dist site
