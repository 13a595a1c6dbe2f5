# `make quickstart` and `make test` set up everything they need; nothing has to be installed or activated first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart test lint unit pipeline setup clean

quickstart: setup
	$(BIN)/score run pipelines/quickstart.toml --out runs/quickstart

test: lint unit pipeline

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: setup
	$(BIN)/python -m pytest -q -m "not pipeline and not gpu and not vllm"

pipeline: setup
	$(BIN)/python -m pytest -q -m pipeline

setup: $(READY)

# torch first and by itself: asked for together with the rest, a resolver may choose another build of it.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "score needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $(READY)

clean:
	rm -rf $(VENV) runs
