# `make compare` and `make test` do everything on a fresh machine: environment, installation, the job.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: compare test test-all lint bench clean

compare: $(STAMP)
	$(BIN)/pliant compare

test: $(STAMP) lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-all: $(STAMP) lint
	$(BIN)/python -m pytest -m "slow or not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	for f in benchmarks/[a-z]*.py; do $(BIN)/python $$f || exit 1; done

# torch first: the build that the constraints file names, before anything else can ask for another.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist run .pytest_cache .mypy_cache .ruff_cache
