# Set-up and jobs. `make demo` and `make test` need Python 3.11+, a C++ compiler, make; nothing else.
#   make demo ARGS="--out runs/demo seeds=1"      make test ARGS="tests/unit/codec -k energy"
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.ONESHELL:

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml constraints.txt CMakeLists.txt \
  $(wildcard */native/*.* ovtrain/*/native/*.* ovtrain/*/native/*/*.*)

.PHONY: help demo test test-full lint format wheel clean

help:
	@sed -n 's/^## //p' Makefile

## make demo       set up, then video -> shards -> labels -> two stages -> probe -> report
demo: $(VENV)/.demo
	@$(BIN)/ovtrain demo $(ARGS)

## make test       set up with the test extras, run the tests
test: $(VENV)/.test
	@$(BIN)/python -m pytest -m "not full" $(ARGS)

## make test-full  the tests that take minutes: demo, wheel, sanitizers, kills and other faults
test-full: $(VENV)/.test
	@$(BIN)/python -m pytest -m full $(ARGS)

## make lint       ruff, pyright, import contracts
lint: $(VENV)/.test
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache

## make format     let ruff rewrite the code
format: $(VENV)/.test
	@$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

## make wheel      dist/ovtrain-*.whl
wheel: $(VENV)/.demo
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	ls dist

## make clean      remove .venv, build and caches; runs/ stays
clean:
	@rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.demo: $(SOURCES) .ci/install
	@.ci/install $(PYTHON) $(VENV) cpu
	touch $@

$(VENV)/.test: $(SOURCES) .ci/install tests/integration/transformers-4.txt
	@.ci/install $(PYTHON) $(VENV) cpu,dali,hf,lint,test
	rm -rf $(VENV)/transformers-4
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --target $(VENV)/transformers-4 -r tests/integration/transformers-4.txt
	touch $@ $(VENV)/.demo
