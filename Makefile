# `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The CPU builds; `make setup CONSTRAINTS=` takes the builds for a GPU.
CONSTRAINTS ?= constraints/cpu.txt
STAMP := $(VENV)/.installed

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 14

setup: $(STAMP) ## create .venv with everything in it; nothing to do when it is current

$(STAMP): pyproject.toml $(wildcard constraints/*.txt)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e '.[synthetic,analysis,launchers,dev]'
	@touch $@

demo: setup ## make the embedded corpus, train on it, print WER, RTF and expert use (about 6 minutes on 2 cores)
	$(BIN)/moe-asr prepare synthetic recipe=digits
	$(BIN)/moe-asr train experiment=demo name=demo

test: lint ## everything the project checks: lint, types, import direction, tests
	$(BIN)/python -m pytest

lint: setup ## ruff, mypy, import-linter; prints lines per floor
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(BIN)/python tests/lines_per_floor.py

format: setup ## let ruff rewrite the code
	$(BIN)/ruff check --fix src tests
	$(BIN)/ruff format src tests

clean: ## remove caches, but neither corpora nor runs
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.PHONY: help setup demo test lint format clean
.DEFAULT_GOAL := help
