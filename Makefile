# Every target needs only Python 3.11 or newer and pip; the first one asked for installs into .venv.

PYTHON ?= python3
DEMO_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs format bench clean
.DELETE_ON_ERROR:

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile
	@echo '  variables: PYTHON=python3.12 DEMO_ARGS=--quick TEST_ARGS="-k bank" BENCH_ARGS=...'

demo: $(STAMP) ## adapt one encoder to seven tasks, compare recipes, export (DEMO_ARGS=--quick)
	$(BIN)/coadapt demo $(DEMO_ARGS)

test: $(STAMP) ## run the tests
	$(BIN)/python -m pytest -n 2 $(TEST_ARGS)

lint: $(STAMP) ## check style, types, spelling and file hygiene
	$(BIN)/pre-commit run --all-files
	$(BIN)/pyright

docs: $(STAMP) ## make the documentation site, build/docs/index.html
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs build/docs

format: $(STAMP) ## mend what ruff can mend
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format

bench: $(STAMP) ## time what coadapt does beside PEFT, write results and docs/benchmarks.md (BENCH_ARGS="--only step")
	$(BIN)/python benchmarks/all.py $(BENCH_ARGS)

clean: ## remove .venv, caches and builds, never runs/
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so that an installation cut short is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "coadapt needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	@touch $@
