# `make demo` and `make test` do all set-up by themselves; the first time takes a few minutes and 8 GB.
# LYRA_VENV=/some/folder puts the Python environment elsewhere, PYTHON=/path/to/python chooses the interpreter.

SHELL := /bin/bash
ENVIRONMENT := $(shell bash .ci/environment.sh)
WORKERS ?= 2
DEMO ?= demo

# The code is always that of this checkout, whichever checkout the environment was installed from.
export PATH := $(ENVIRONMENT)/bin:$(PATH)
export PYTHONPATH := $(CURDIR)
# Threads that spin while they wait starve the others on machines of few cores.
export OMP_WAIT_POLICY := PASSIVE

PYTEST = python -m pytest --timeout 600 -n $(WORKERS)

.PHONY: demo test test-fast setup lint format type unit e2e bench-gpu clean

demo: setup
	ns-lyra demo --output $(DEMO)

test: setup lint type
	$(PYTEST)

setup:
	@bash .ci/setup.sh

lint: setup
	ruff check .
	ruff format --check .
	@bash .ci/imports.sh

format: setup
	ruff check --fix .
	ruff format .

type: setup
	@bash .ci/typecheck.sh

unit: setup
	$(PYTEST) -m "not end_to_end and not browser"

# What takes no more than a second or two each: a look of three minutes at most while one works.
test-fast: setup
	$(PYTEST) -m "not slow and not end_to_end and not browser and not gpu"

e2e: setup
	$(PYTEST) -m "end_to_end or browser"

# Needs a CUDA device and the package's extra `cuda`; PARTS="forward training" measures some parts again.
bench-gpu: setup
	python -m benchmarks.full_size $(if $(PARTS),--parts $(PARTS))
	python -m benchmarks.tables

clean:
	rm -rf demo build dist *.egg-info .typecheck .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
