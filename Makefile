# Every target sets up what it needs in .venv: a machine needs Python, its pip and make, nothing else.
PYTHON ?= python3
UV ?= uv
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
COMPILE := $(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
	--custom-compile-command "make lock" $(ARGS)
# Two makes at once in one folder would install over each other: the second waits, then finds the work done.
ALONE := $(if $(shell command -v flock),flock Makefile) $(MAKE) --silent --no-print-directory

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo test coverage fuzz openapi vendor storm proof bench bench-growth lint format lock clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | \
		while IFS='|' read -r name what; do printf '%-12s %s\n' "$$name" "$$what"; done

install: ## Make .venv with the soundpost command
	@$(ALONE) .venv/.runtime

install-dev: ## The same, and the tools for tests and lint
	@$(ALONE) .venv/.dev

demo: install ## The main job from submit to a playable file, with nothing set up
	@$(BIN)/soundpost demo

test: install-dev ## The tests, on SQLite and PostgreSQL; ARGS="-k submit" picks some
	@$(BIN)/python -m pytest -n 4 --dist worksteal $(ARGS)

coverage: install-dev ## Branch coverage after make test ARGS=--cov; fails below 95 % where it matters most
	@$(BIN)/coverage report --skip-covered
	@for room in tasks upstream callbacks webhooks database; do \
		printf '%-10s' $$room; \
		$(BIN)/coverage report --include="app/$$room/*" --format=total --fail-under=95 || exit 1; \
	done

fuzz: install-dev ## Requests made from the OpenAPI document, for FUZZ_SECONDS (600) on each database
	@FUZZ_SECONDS=$${FUZZ_SECONDS:-600} $(BIN)/python -m pytest tests/api/test_any_request.py $(ARGS)

openapi: install-dev ## Write tests/api/openapi.json again, for review
	@$(BIN)/python -m tests.api.document

vendor: install-dev ## Fetch the files of others in app/console/static/vendor again, from npm
	@$(BIN)/python -m tests.console.vendor

storm: install-dev ## A minute of orders, upstream faults and kills on each database; prints the counts
	@$(BIN)/python -m pytest -m "slow or not slow" tests/faults/test_storm.py $(ARGS)

proof: install-dev ## The slow tests: the long storm, the large crowds, a thousand orders for four processes
	@$(BIN)/python -m pytest -m slow -n 2 $(ARGS)

bench: install-dev ## What requests, tasks and waits cost, beside other servers; ARGS="callbacks submit", or --quick
	@$(BIN)/python -m tests.bench $(ARGS)

bench-growth: install-dev ## Each call's time with a million tasks against a few; ARGS="--tasks 100000 --database sqlite"
	@$(BIN)/python -m tests.bench.growth $(ARGS)

lint: install-dev ## Format, lint, types, import layers and the one writer of tasks, changing nothing
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m tests.lint_task_writers

format: install-dev ## Bring the code into the house format
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

lock: ## Pin the dependencies again (needs uv); ARGS=--upgrade takes newer ones
	@$(COMPILE) --group dev pyproject.toml --output-file requirements-dev.lock
	@$(COMPILE) --group build --constraint requirements-dev.lock pyproject.toml --output-file requirements.lock

clean: ## Remove what was installed and cached; var/, with your data, stays
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis .schemathesis

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed, as in: make PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -m venv .venv

# The locks are complete. With dependencies, pip would look for the latest version of one that is named with an extra.
.venv/.runtime: .venv/bin/python requirements.lock pyproject.toml
	@echo 'Installing into .venv …'
	@$(PIP) install --no-deps --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

# The development lock holds all of the runtime's, in the same versions.
.venv/.dev: .venv/bin/python requirements-dev.lock pyproject.toml
	@echo 'Installing the development tools into .venv …'
	@$(PIP) install --no-deps --require-hashes -r requirements-dev.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch .venv/.runtime $@
