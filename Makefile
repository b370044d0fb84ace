# `make demo` shows the service at work, `make test` runs the tests; both install first.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
TORCH  ?= torch==2.13.0
# the tests interpret and compile the GPU kernels; builds of PyTorch for CUDA bring their own
TRITON ?= triton==3.9.0
# /dev/null for the newest versions that pyproject.toml allows
CONSTRAINTS ?= constraints.txt

# three test processes for each core, as tests wait as well as compute; at most twelve
WORKERS  ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores > 4 ? 12 : 3 * cores)))
# CI=1 (or COVERAGE=1) prints how much of the code the tests run, programs that they start included
COVERAGE ?= $(CI)
PYTEST   = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(if $(COVERAGE),--cov --cov-report=term)

SUDO     ?= $(if $(filter-out 0,$(shell id -u)),sudo)
# on a slow machine more: how many times as long the programs of the cluster may take for anything
CLUSTER_PATIENCE ?= 1

# compile each module once, not in each of the hundreds of programs that the tests start
export PYTHONDONTWRITEBYTECODE :=

VENV   := .venv
BIN    := $(VENV)/bin
RUN    := $(VENV)/.installed
TOOLS  := $(VENV)/.tools-installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet

.PHONY: help install demo test test-all test-clients test-package test-upgrade test-cluster screenshots lint types check docs audit lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(TOOLS) ## create .venv with pinned packages, those of the tests too

demo: $(RUN) ## run the demo: two cameras, live captions, two questions; under three minutes
	@$(BIN)/streamer demo

test: install ## the tests
	@$(PYTEST)

test-all: install ## the tests and the slow ones
	@$(PYTEST) -m "not gpu and not soak and not clients"

test-clients: install ## programs of others, unmodified, against the API; installs each in its own venv
	@$(BIN)/python -m pytest -m clients

test-package: install ## the wheel, installed with its pins into an empty environment, where the demo runs
	@$(BIN)/python -m pytest -m slow tests/house/test_published_package.py

test-upgrade: install ## workers of release 0.1.0 (from git's history) beside those of this one
	@OLD_RELEASE_NEEDED=1 $(BIN)/python -m pytest -m slow tests/workers/test_two_releases.py

test-cluster: install ## a minute of random faults on a small cluster, and its ledger; takes root
	@$(SUDO) $(BIN)/python -m tests.cluster --seed 1 --drills 0 --minutes 1 --patience $(CLUSTER_PATIENCE)

screenshots: install ## the web page in a browser: each page goes to build/screenshots, on desktop and phone, light and dark
	@PAGE_SCREENSHOTS=$(CURDIR)/build/screenshots $(BIN)/python -m pytest -q -m slow tests/streamer/web tests/test_page_end_to_end.py

lint: install ## ruff and the import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache

types: install ## mypy
	@$(BIN)/mypy

check: lint types test ## all three

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "There is no '$(PYTHON)' here: install Python 3.11, 3.12 or 3.13, or name yours: make install PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) -V 2>&1), and 3.11, 3.12 or 3.13 is needed: make install PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || $(PYTHON) -m virtualenv --quiet $(VENV) 2>/dev/null || { \
	  rm -rf $(VENV); echo "$(PYTHON) cannot create a virtual environment: install its venv module (Debian and Ubuntu: python3-venv), then run make again." >&2; exit 1; }

# $(call requirements,LIST): what pyproject.toml asks for; LIST is a Python expression of p, the
# project, and x, its extras
requirements = $(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; x = p["optional-dependencies"]; print(*$(1), sep="\n")' > $(VENV)/requirements.txt

$(RUN): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing $(TORCH) (1 of 3; the largest, once)"
	@$(PIP) install "$(TORCH)"
	@echo "Installing the other pinned packages (2 of 3)"
	@$(PIP) install --constraint $(CONSTRAINTS) setuptools
	@$(call requirements,p["dependencies"] + [r for name in x if name not in ("all", "dev") for r in x[name]])
	@$(PIP) install --constraint $(CONSTRAINTS) --requirement $(VENV)/requirements.txt
	@echo "Installing this project (3 of 3)"
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(TOOLS): $(RUN)
	@echo "Installing the tools of the tests"
	@$(call requirements,x["dev"])
	@$(PIP) install --constraint $(CONSTRAINTS) --requirement $(VENV)/requirements.txt
	@$(BIN)/python -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("triton") is None)' \
	  || $(PIP) install --no-deps "$(TRITON)" || echo "No Triton for this machine: the tests of the GPU kernels will be skipped"
	@touch $@

docs: install ## write docs/cli.md from the commands
	@$(BIN)/typer streamer.cli.app utils docs --name streamer --title "Command line" --output docs/cli.md >/dev/null

audit: $(BIN)/python ## ask for known vulnerabilities of the pinned packages
	@$(BIN)/python -m venv $(VENV)/audit
	@$(VENV)/audit/bin/python -m pip --disable-pip-version-check --no-input --quiet install pip-audit
	@$(VENV)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

lock: install ## write constraints.txt from what .venv holds
	@# without the CUDA libraries of PyTorch: which ones it brings depends on its build
	@{ sed -n '/^#/p' constraints.txt; \
	  $(BIN)/python -m pip freeze --all --exclude-editable | grep -Ev '^(pip|wheel|triton|(nvidia|cuda)-[a-z0-9-]+)==| @ ' | sed -E 's/\+[a-z0-9.]+$$//'; } > $(VENV)/constraints.new
	@mv $(VENV)/constraints.new constraints.txt

clean: ## remove .venv and every cache
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage .coverage.* htmlcov
	@find nvila_core streamer workers tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
