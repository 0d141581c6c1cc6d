# Every target builds what it needs in .venv, from the exact versions of constraints.txt; a second call builds nothing.
# PYTHON chooses the interpreter (3.11 or newer); JOBS the number of test processes; TESTS what to hand to pytest.

PYTHON ?= python3
JOBS ?= 2
TESTS ?=

VENV := .venv
BIN := $(VENV)/bin
# The notice of the theme on the next MkDocs is left out.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run test check docs app screenshots bench clean

help:
	@echo "make run     train on the sample and print the report"
	@echo "make test    run the tests"
	@echo "make check   lint, layers, types and the site"
	@echo "make docs    build the site into site/"
	@echo "make app     look at the runs in a browser"
	@echo "make screenshots  make the pictures in docs/images anew"
	@echo "make bench   run every benchmark, one by one, then make the report"
	@echo "make clean   remove builds and caches; .venv and runs stay"

run: $(VENV)/.train
	$(BIN)/balancer train --dataset balancer/data_samples/transactions.parquet

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) $(TESTS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --cache-dir .import_linter_cache
	$(BIN)/mypy -p balancer -p benchmarks
	$(MKDOCS) build --quiet

docs: $(VENV)/.docs
	$(MKDOCS) build
	@echo "read it with: $(BIN)/python -m http.server -d site"

app: $(VENV)/.app
	$(BIN)/balancer app

screenshots: $(VENV)/.dev
	$(BIN)/python -m tests.app.screenshots

bench: $(VENV)/.bench
	@set -e; for script in benchmarks/claims/[!_]*.py; do \
		name=benchmarks.claims.$$(basename "$$script" .py); echo "== $$name"; $(BIN)/python -m "$$name"; \
	done
	$(BIN)/python -m benchmarks.report

clean:
	rm -rf build dist site balancer.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "balancer needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The other extras include `train`.
$(VENV)/.train $(VENV)/.dev $(VENV)/.docs $(VENV)/.app $(VENV)/.bench: $(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/.python
	$(PIP) -e '.[$*]'
	@touch $@ $(VENV)/.train
