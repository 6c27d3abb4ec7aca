# One-line commands. `make demo` and `make test` each set up everything they need on a machine with Python 3.10 or later.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt

.PHONY: help demo test lint types check bench docs-pictures clean

help:           ## show this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "relume needs Python 3.10 or later; name one with: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "Python's venv module is missing. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing relume and torch into $(VENV) (once, a minute or two)"
	@$(PIP) -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing relume, torch and the test tools into $(VENV) (once, a minute or two)"
	@$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo  ## train a network that dies beside one that doesn't, and write the report
	$(BIN)/relume demo

test: $(VENV)/.dev  ## the whole suite, in parallel
	$(BIN)/python -m pytest -n auto $(ARGS)

lint: $(VENV)/.dev  ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev  ## mypy, strict
	$(BIN)/mypy

check: test lint types  ## what CI runs

bench: $(VENV)/.dev  ## what watching costs (see benchmarks/README.md)
	$(BIN)/python benchmarks/overhead.py

docs-pictures: $(VENV)/.dev  ## docs/report.png, from a fresh demo
	$(BIN)/relume demo
	$(BIN)/python docs/pictures.py

clean:          ## remove what the build made
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis runs
