# Two commands matter: `make demo` and `make test`. Each makes .venv first if it is not there or out of date.

# A Python from 3.11 to 3.13: make demo PYTHON=python3.12
PYTHON ?= python3

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: help demo test check
.DELETE_ON_ERROR:

help:
	@echo "make demo    draw a picture from a sentence, offline, on the CPU: demo.png"
	@echo "make test    run the tests"
	@echo "make check   lint, types and the order of the floors"
	@echo "Each makes .venv first, with what constraints.txt pins. PYTHON=python3.12 chooses another Python."

demo: .venv/run.stamp
	$(BIN)/lineardit generate "a red apple left of a cat on a sky blue background" -o demo.png --seed 7 --force

# Tests use one thread each, and as many run at once as there are cores.
test: .venv/dev.stamp
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

check: .venv/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_floors.py

# torch goes first and exactly: whatever is installed after it then has to be content with it.
.venv/run.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit( \
		"Python %d.%d was found; 3.11 to 3.13 is needed: make PYTHON=python3.12 ..." % v)'
	@echo "making .venv: some minutes, once"
	$(PYTHON) -m venv .venv
	$(INSTALL) $(TORCH)
	$(INSTALL) --editable .
	@touch $@

.venv/dev.stamp: .venv/run.stamp
	$(INSTALL) --editable '.[dev]'
	@touch $@
