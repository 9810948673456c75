# Everything a person or CI types. `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
VENV := .venv
BIN := $(VENV)/bin
LAB := tests/lab/lab
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help cluster down test test-fast test-lab test-slow chaos chaos-full lint bench clean

help: ## what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/ready: pyproject.toml tests/setup
	tests/setup $(VENV)
	touch $@

cluster: $(VENV)/ready ## start the lab, deploy Kubernetes on it, show the cluster
	$(LAB) up
	$(LAB) deploy
	$(LAB) salt-run indigo.status
	$(LAB) kubectl get nodes -o wide
	@echo
	@echo "The cluster runs. Try:"
	@echo "  $(LAB) kubectl get all --all-namespaces"
	@echo "  $(LAB) salt '*' state.apply          # changes nothing"
	@echo "  $(LAB) kill lb1 ; $(LAB) salt-run indigo.status ; $(LAB) start lb1"
	@echo "  make down"

down: ## stop the lab and remove what it made (its cache stays)
	$(LAB) down

test: test-fast test-lab ## all tests but the slowest of the lab's: test-slow and chaos-full

test-fast: $(VENV)/ready lint ## all tests that need no lab
	$(PYTEST) --numprocesses=auto --dist=loadfile tests/unit tests/render tests/integration

test-lab: $(VENV)/ready ## the tests on the lab: real hosts, real Kubernetes
	$(PYTEST) tests/e2e

test-slow: $(VENV)/ready ## what test-lab leaves out, with what it stands on: hours
	$(PYTEST) $$(grep -l mark.slow tests/e2e/test_*.py) -m "not chaos_full"

chaos: $(VENV)/ready ## faults on purpose: hosts lost, services killed, files damaged
	INDIGO_CHARTS=1 $(PYTEST) tests/e2e/test_4b_chaos.py -m "not chaos_full"

chaos-full: $(VENV)/ready ## all of them, with the slow ones: about 20 minutes
	INDIGO_CHARTS=1 $(PYTEST) tests/e2e/test_4b_chaos.py -m chaos

lint: $(VENV)/ready ## ruff, pylint for Salt's dunders, salt-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pylint --disable=all --enable=undefined-variable,unused-import,unreachable,dangerous-default-value _modules _states _runners
	find salt pillar -name '*.sls' ! -name view.sls | xargs $(BIN)/salt-lint

bench: $(VENV)/ready ## measure on the lab, print the figures of docs/benchmarks.md and draw them
	$(BIN)/python tests/bench/run.py

clean: ## remove the virtual environment and caches in the checkout
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis
