# Two commands do all of their own set-up on a machine that has Python >= 3.11, pip and make:
#   make demo    generate a world, import it, train, serve, and show that a click changes the list
#   make test    ruff, mypy and pytest
# ARGS goes through to the command: `make demo ARGS="--exit"`, `make test ARGS="-k import"`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ARGS ?=
JOBS ?= auto

.PHONY: help demo test lint format types unit docs reliability install clean
.DEFAULT_GOAL := help

help:  ## Show the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## Generate a world, import, train, serve; a visitor clicks and the list answers
	$(BIN)/headwater demo $(ARGS)

test: lint types unit  ## Everything that has to be green before a merge

lint: $(INSTALLED)  ## Ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)  ## mypy --strict
	$(BIN)/mypy

unit: $(INSTALLED)  ## pytest, a file of tests at a time on each of JOBS processes
	$(BIN)/pytest -n $(JOBS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

docs: $(INSTALLED)  ## The documentation as a site in build/site; a broken link or anchor is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

reliability: $(INSTALLED)  ## Every fault of docs/reliability.md in full (hours); ARGS="--rows 3,9 --short"
	$(BIN)/python -m tests.reliability.rows $(ARGS)

format: $(INSTALLED)  ## Rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(INSTALLED)  ## Create .venv and install the package with its development tools

# Some distributions ship Python without ensurepip; the system's pip then fills the new environment.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Headwater needs Python 3.11 or newer; give one with PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV) && $(PYTHON) -m venv --without-pip $(VENV); }

$(INSTALLED): pyproject.toml | $(BIN)/python
	@echo "Installing Headwater into $(VENV) (once; takes a minute or two)"
	@if $(BIN)/python -m pip --version >/dev/null 2>&1; \
		then $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'; \
		else $(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check -e '.[dev]'; fi
	@touch $@

clean:  ## Remove the environment and the caches (never the data directory)
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
