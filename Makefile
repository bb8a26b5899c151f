# All commands make their own .venv first; the second time that takes no time.
.DEFAULT_GOAL := help
.PHONY: help serve check test test-slow test-browser chaos bench openapi clean

# Which Python makes .venv: `make serve PYTHON=/path/to/python3.12`. Empty: the first of 3.11, 3.12, 3.13 found.
PYTHON ?=
export PYTHON

BIN := .venv/bin
# Two processes, each with its own Redis, model and service; a file's tests stay together. Empty: one after the other.
PARALLEL ?= -n 2 --dist loadfile
SETUP := pyproject.toml scripts/setup_venv.sh

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

serve: .venv/stamp-serve ## start Redis, worker and server here; Ctrl-C stops them
	@$(BIN)/python -m embedded

check: .venv/stamp-dev ## linters, types and import arrows
	@echo "check: ruff" && $(BIN)/python -m ruff check .
	@echo "check: format" && $(BIN)/python -m ruff format --check .
	@echo "check: mypy" && $(BIN)/python -m mypy
	@echo "check: import arrows" && $(BIN)/lint-imports

test: check ## the linters and all fast tests, with coverage
	@echo "test: pytest" && $(BIN)/python -m pytest $(PARALLEL) --cov --cov-fail-under=85

test-slow: .venv/stamp-dev ## the tests that need minutes or much memory
	@$(BIN)/python -m pytest $(PARALLEL) -m 'slow and not gpu and not browser' || [ $$? -eq 5 ] # 5: there are none

test-browser: .venv/stamp-dev ## the web page in Chromium, where there is one; else they are skipped, and say so
	@$(BIN)/python -m pytest -m browser tests/browser

chaos: .venv/stamp-dev ## kill, stop and starve the real processes, for minutes; nothing may be lost or doubled
	@CHAOS=long $(BIN)/python -m pytest tests/e2e/chaos -s

bench: .venv/stamp-dev ## serving against plain PEFT, as ratios; ARGS="--adapters 16" and so on
	@$(BIN)/python -m benchmarks.serve $(ARGS)

openapi: .venv/stamp-dev ## write openapi.json anew, after a change of the HTTP contract
	@$(BIN)/python -m scripts.write_openapi

clean: ## remove .venv and caches; keeps data/
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/stamp-serve: $(SETUP)
	@scripts/setup_venv.sh serve

.venv/stamp-dev: $(SETUP)
	@scripts/setup_venv.sh dev
