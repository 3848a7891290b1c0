# Every target says in its comment what it does; `make` alone lists them. What they do in detail is in scripts/.

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-clean test test-slow lint fmt bench dist clean
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
# Long campaigns are sampled in `make test`; the seed chooses the sample. POCKETCLOUD_SEED=N make test repeats one.
export POCKETCLOUD_SEED ?= $(shell date +%s)
MADE := .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis dist bench.json
ROOT_FOR_TESTS := scripts/as-root "run real machines and networks in the tests"

help: ## List what can be made
	@echo "pocketcloud: make TARGET"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' Makefile

setup: ## Install system packages (says which and why) and make .venv; quick when all is there
	@scripts/setup

demo: setup ## Set up, then raise a lab of two machines, break it, reset it and prove it
	@scripts/demo

demo-clean: ## Remove what `make demo` left
	@scripts/demo --clean

test: ## Set up, check the code, run the tests; long campaigns are sampled
	@scripts/setup --test
	@$(MAKE) lint
	@echo "Tests (long campaigns sampled with POCKETCLOUD_SEED=$(POCKETCLOUD_SEED); the same seed repeats the sample)"
	@POCKETCLOUD_SAMPLE=1 $(ROOT_FOR_TESTS) scripts/test

test-slow: ## Run the long tests whole, part by part; goes on where it was interrupted (FRESH=1: from the start)
	@scripts/setup --slow
	@$(ROOT_FOR_TESTS) scripts/test-slow $(if $(FRESH),--fresh)

lint: setup ## Check style, formatting and types
	@$(BIN)/ruff check --quiet --output-format concise .
	@$(BIN)/ruff format --check --quiet . || { echo "Not formatted as it should be: make fmt"; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@echo "Style, formatting and types: nothing to complain about"

fmt: setup ## Put the code in the form that lint wants
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

bench: setup ## Measure, in ratios taken in one run; writes bench.json
	@scripts/as-root "run the machines that are measured" $(BIN)/python bench/run.py

dist: setup ## Build wheel and sdist into dist/
	@$(BIN)/python -m build --no-isolation --outdir dist .

clean: ## Remove .venv and everything built or cached in this checkout
	@rm -rf $(MADE) 2>/dev/null || scripts/as-root "remove what the tests left as root" rm -rf $(MADE)
	@find . -name __pycache__ -prune -exec rm -rf {} +
	@echo "Removed: $(MADE)"
