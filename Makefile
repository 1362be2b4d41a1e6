# The two commands of a new user are `make demo` and `make test`; `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_INSTALLED := $(VENV)/.demo-installed
# Percent of lines and branches that tests reach, at the least.
COMMON_COVERED := 95
OTHERS_COVERED := 90

.PHONY: help demo test check coverage fuzz lint types protos clean
.DEFAULT_GOAL := help

help: ## list the commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(DEMO_INSTALLED) ## a slow edge over three links: which way to run the network wins where
	@$(BIN)/splitpoint demo

test: $(INSTALLED) ## run every test, files side by side
	@$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: lint types ## lint, types and the fast tests: for every commit
	@$(BIN)/python -m pytest -q -n auto --dist loadfile -m "not slow"

coverage: $(INSTALLED) ## run every test and check how many lines and branches they reach
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest -q -n auto --dist loadfile $(PYTEST_ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report --include='common/*' --omit='*_pb2*' --fail-under=$(COMMON_COVERED)
	@$(BIN)/coverage report --omit='common/*' --fail-under=$(OTHERS_COVERED)

fuzz: $(INSTALLED) ## feed hostile bytes to every decoder for a minute
	@$(BIN)/python -m tests.fuzz.decoders -max_total_time=60 -print_final_stats=1

lint: $(INSTALLED) ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(INSTALLED) ## check types
	@$(BIN)/mypy

protos: $(INSTALLED) ## regenerate the gRPC stubs from protos/
	@$(BIN)/python -m grpc_tools.protoc -Icommon/rpc=protos/splitpoint/v1 \
		--python_out=. --pyi_out=. --grpc_python_out=. protos/splitpoint/v1/splitpoint.proto

clean: ## remove the environment and everything the demo keeps
	rm -rf $(VENV) .demo *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed, found $$($(PYTHON) -V); set PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "error: python3-venv is missing: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }

# What the demo needs is a part of what tests and benches need.
$(DEMO_INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@$(PYTHON) splitpoint/install.py $(VENV) search,edge,cloud,demo
	@touch $@

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@$(PYTHON) splitpoint/install.py $(VENV) search,edge,cloud,demo,bench,dev
	@touch $(DEMO_INSTALLED) $@
