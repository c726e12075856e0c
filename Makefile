# One task runner; every target makes what it needs. Nothing here needs root.
SHELL := /bin/bash
PYTHON ?= python3.11
PYTHON := $(shell command -v $(PYTHON) || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_ARGS ?=
# One worker more than cores: many tests wait for programs. Who is done takes over what waits at another.
TEST_ARGS ?= -n $(shell expr $$(nproc) + 1) --dist worksteal

.PHONY: demo test check format bench peers clean

demo: $(VENV)/demo.stamp  ## set up and run the demo fleet on the recorded attacks
	$(BIN)/vedette demo $(DEMO_ARGS)

test: $(VENV)/dev.stamp check  ## set up and run every check and test
	$(BIN)/python -m pytest -q -m "not slow" $(TEST_ARGS)

check: $(VENV)/dev.stamp  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp  ## put the sources into their form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/dev.stamp $(VENV)/peers.stamp  ## measure every claim beside its peers, as JSON
	$(BIN)/python bench/artifacts.py --json
	$(BIN)/python bench/capture.py --json
	$(BIN)/python bench/live.py --json
	$(BIN)/python bench/score.py --json
	$(BIN)/python bench/broker.py --json
	$(BIN)/python bench/attestation.py --json
	$(BIN)/python bench/secagg.py --json
	$(BIN)/python bench/secagg_exact.py --rounds 10000 --json
	$(BIN)/python bench/poisoning.py --json

peers: $(VENV)/dev.stamp $(VENV)/peers.stamp  ## peers of benchmarks that cannot share this environment

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(VENV)/bin/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/demo.stamp

$(VENV)/peers.stamp: $(VENV)/bin/python bench/flower_peer.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/flower -r bench/flower_peer.txt
	touch $@

clean:  ## remove what the targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist .vedette
