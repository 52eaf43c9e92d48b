# make env   the environment in .venv (Python 3.11 or 3.12)
# make test  lint, import contracts and all tests
# make demo  the main job on a phantom, with nothing but this repository

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
# The version the tests run with; any torch from 2.2 on works. On Linux without a GPU, point pip at a CPU build of it.
TORCH ?= torch==2.13.0
BIN := .venv/bin

.PHONY: env test demo bench clean

env: .venv/ready

.venv/ready: pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "MedXAI needs Python 3.11 or 3.12; say where it is: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "Python's venv module is incomplete; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install -q --upgrade pip setuptools wheel
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[scene,test]"
	@if $(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then \
	  $(BIN)/python -m pip install -q --no-build-isolation "pyradiomics==3.0.1" || \
	  echo "pyradiomics could not be built (it needs a C compiler and Python's headers: apt-get install gcc python3-dev);" \
	       "everything works without it, and the tests that compare features with it are skipped."; \
	else echo "pyradiomics does not install on Python 3.12; the tests that compare features with it are skipped."; fi
	@touch $@

test: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest

demo: env
	rm -rf demo
	$(BIN)/medxai demo --output demo

bench: env
	$(BIN)/python -m Testing.Benchmarks dream
	$(BIN)/python -m Testing.Benchmarks ability

clean:
	rm -rf .venv demo build dist *.egg-info
