PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Where a machine switches off Python's cache of compiled modules, every process that a test starts would compile torch
# and lightning anew: 18 seconds of import instead of 8.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench clean

help: ## Print this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## Train on the embedded digits, show where the network looked (2 to 6 minutes)
	$(BIN)/abn demo

test: $(INSTALLED) ## Run every test (about 12 minutes on two slow cores)
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

check: $(INSTALLED) ## Lint, format and type check
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

format: $(INSTALLED) ## Mend what the linter can mend
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

bench: $(INSTALLED) ## Measure the speed table of the README on this machine
	$(BIN)/python benchmarks/speed.py

clean: ## Remove the environment and caches (runs stay)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
