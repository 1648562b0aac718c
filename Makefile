# Commands to set up, test and document the project; `make` without a target lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The name of the stamp has a checksum of both files, not their dates: nothing is installed or downloaded twice.
STAMP  := $(VENV)/.installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet --progress-bar off -c constraints.txt

# A temporary HOME, as in a clean job, hides the account's pip settings, such as a folder of wheels: name their file.
ACCOUNT_PIP := $(wildcard $(shell getent passwd "$$(id -u)" | cut -d: -f6)/.config/pip/pip.conf)
ifneq ($(ACCOUNT_PIP),)
export PIP_CONFIG_FILE ?= $(ACCOUNT_PIP)
endif

# One thread per parallel test: oversubscription is ten times slower. No test connects to a model hub.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONDONTWRITEBYTECODE=

.DEFAULT_GOAL := help
.PHONY: help setup demo test coverage thorough check fix docs bench screenshots

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## create .venv and install everything in it, once

$(STAMP):
	@echo "setup: installing into $(VENV) (about 2 GB, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch==2.13.0
	@$(PIP) -e ".[train,export,code,report,dev]"
	@$(BIN)/python -m compileall -q cockpit engines exporters recipes
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: setup  ## train, export and quantize a small language model, in about ten minutes
	@$(BIN)/cockpit run recipes/demo.toml

check: setup  ## check formatting, lint, types and import contracts
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

fix: setup  ## format the code and apply the fixes of the linter
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

test: check  ## run check and all tests
	@$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile -q

coverage: setup  ## run all tests and measure which lines they reach; takes half as long again
	@$(BIN)/python -m coverage erase
	@$(TEST_ENV) $(BIN)/python -m coverage run -m pytest -n 2 --dist loadfile -q
	@$(BIN)/python -m tests.coverage_summary

thorough: check  ## run all tests, with more examples of some claims
	@$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile -q --thorough

docs: setup  ## generate the documents that come from the code: fields of recipes, manual page
	@$(BIN)/python -m recipes.reference
	@$(BIN)/python -m cockpit.man > docs/cockpit.1

bench: setup  ## measure the performance figures and print one table
	@$(BIN)/python -m bench

screenshots: setup  ## draw the pictures in screenshots/ from recorded runs
	@$(BIN)/python -m screenshots
