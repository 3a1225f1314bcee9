# make setup | demo | up | down | test | chaos | test-all | check | bench | golden | lock
# Each target may be run first: what it needs is installed into .venv.
SHELL := /bin/bash
BIN := .venv/bin
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest
# Three files at a time on two cores: tests that start processes wait for them more than they compute.
TESTS_AT_ONCE := -n 3 --dist loadfile

.PHONY: setup demo up down test chaos test-all check bench golden lock

setup:
	@./convoy --install

demo: setup
	@./convoy demo

# Prefect, MLflow and Ray as servers: docs/platform.md.
up: setup
	@./convoy up

down: setup
	@./convoy down

# Without what takes minutes, needs a GPU, or kills processes; `make test-all` runs everything.
test: setup
	$(PYTEST) $(TESTS_AT_ONCE) -m "not slow and not gpu and not chaos"

# What kills real processes, and is done within minutes.
chaos: setup
	$(PYTEST) -n 2 --dist loadfile -m "chaos and not slow"

test-all: setup
	$(PYTEST)

check: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.supplychain

bench: setup
	@for script in benchmarks/*.py; do echo "== $$script"; PYTHONPATH=. $(BIN)/python "$$script" || exit 1; done

# Writes the golden losses anew, after a change that is meant to move them.
golden: setup
	CONVOY_GOLDEN=write $(PYTEST) -k golden

# Resolves requirements.in afresh and pins it; run it in a clean virtual environment of its own.
lock:
	rm -rf .venv-lock && python3.11 -m venv .venv-lock
	.venv-lock/bin/pip install --quiet --no-compile -r requirements.in
	{ sed -n '/^#/p' requirements.lock; .venv-lock/bin/pip freeze --all \
	    | grep -v '^pip==' | sed 's/+cpu$$//'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf .venv-lock
