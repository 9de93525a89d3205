# Everything runs in a virtual environment of its own, which is made once and used again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Made anew when the dependencies change.
READY := $(VENV)/.ready

.PHONY: demo test test-slow test-all test-oldest lint format docs clean install

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(READY): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group test --group lint
	touch $(READY)

install: $(READY)

demo: $(READY)
	$(BIN)/niwaki demo --out demo

# Two processes, each with one thread of its own.
TEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test: $(READY)
	$(TEST) -m "not slow and not long"

test-slow: $(READY)
	$(TEST) -m "slow and not long"

test-all: $(READY)
	$(TEST)

# The quick tests with the oldest dependencies that pyproject.toml allows, which are several gigabytes.
# What these deprecate among themselves is not ours to fix.
OLDEST := .venv-oldest

$(OLDEST)/.ready: pyproject.toml tests/oldest.py
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(OLDEST)/bin/python tests/oldest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --constraint $(OLDEST)/constraints.txt \
		--editable . --group test
	touch $@

test-oldest: $(OLDEST)/.ready
	@echo "the quick tests with the oldest dependencies: $$(paste -sd ' ' $(OLDEST)/constraints.txt)"
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 -m "not slow and not long" -W ignore::DeprecationWarning $(TESTS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What only the documentation needs is installed when it is first built.
$(VENV)/.ready-docs: pyproject.toml $(READY)
	$(BIN)/python -m pip install --quiet --group docs
	touch $@

# A warning is an error. Notebooks run again only if they have changed.
docs: $(VENV)/.ready-docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -b html -W --keep-going docs docs/_build/html

clean:
	rm -rf $(VENV) $(OLDEST) docs/_build docs/api docs/experiments .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist demo
