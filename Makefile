# Every habit is a word. `make` alone lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3.11
UV := $(shell command -v uv || echo .tools/bin/uv)
BIN := .venv/bin
PYTEST_WORKERS ?= 2

.PHONY: help setup setup-tff setup-custom setup-bench demo test test-again test-fast frameworks faults fuzz check cover mutants bench lock audit docs images e2e registry clean

help: ## list the words
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.tools/bin/uv: requirements/uv.txt
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	touch $@

.venv/.ready: requirements/dev.txt pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv
	$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements/dev.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q src
	touch $@

setup: .venv/.ready ## make .venv (finds or installs uv by itself)

.venv-tff/.ready: requirements/tff.txt pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv-tff
	$(UV) pip sync --quiet --compile-bytecode --python .venv-tff/bin/python --require-hashes requirements/tff.txt
	$(UV) pip install --quiet --python .venv-tff/bin/python --no-deps --no-build-isolation --editable .
	touch $@

setup-tff: .venv-tff/.ready ## make .venv-tff, for TensorFlow Federated

.venv-custom/.ready: requirements/custom.txt pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv-custom
	$(UV) pip sync --quiet --compile-bytecode --python .venv-custom/bin/python --require-hashes requirements/custom.txt
	$(UV) pip install --quiet --python .venv-custom/bin/python --no-deps --no-build-isolation --editable .
	touch $@

setup-custom: .venv-custom/.ready ## make .venv-custom, for the custom learners of examples/frameworks

.venv-frameworks/.ready: requirements/frameworks.txt pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv-frameworks
	$(UV) pip sync --quiet --compile-bytecode --python .venv-frameworks/bin/python --require-hashes requirements/frameworks.txt
	$(UV) pip install --quiet --python .venv-frameworks/bin/python --no-deps --no-build-isolation --editable .
	touch $@

.venv-bench/.ready: requirements/bench.txt | $(UV)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv-bench
	$(UV) pip sync --quiet --compile-bytecode --python .venv-bench/bin/python --require-hashes requirements/bench.txt
	touch $@

setup-bench: .venv-bench/.ready ## make .venv-bench, for the peers that benchmarks compare with

demo: setup ## train five learners on handwritten digits, and show the report
	$(BIN)/fedpipe init demo --force
	$(BIN)/fedpipe run demo/federation.yaml --out demo/out

test: setup setup-tff setup-custom ## run every test
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadgroup --no-loadscope-reorder --durations=10 --durations-min=1

test-again: ## try again, one by one, what failed in the last `make test`, if that is at most three tests
	@$(BIN)/python -c 'import json, sys; failed = json.load(open(".pytest_cache/v/cache/lastfailed")); print("once more:", *failed, sep="\n  "); sys.exit(len(failed) > 3)'
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none

cover: setup setup-tff setup-custom ## run every test, and list the lines that none of them runs
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadgroup --no-loadscope-reorder --cov --cov-report=term-missing:skip-covered

test-fast: setup ## run the tests that take seconds
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadgroup --no-loadscope-reorder -m "not heavy"

faults: setup ## 1000 disturbed sessions of real processes, 11 000 simulated ones, 1000 of secure sums, 300 killed runs, 300 killed agents (about an hour)
	FEDPIPE_FAULTS=1000 $(BIN)/python -m pytest -n $(PYTEST_WORKERS) tests/faults

fuzz: setup ## 100 000 mutated manifests, signs, boards, scores, ballots, timings, enrolments and plans (about two minutes)
	FEDPIPE_FUZZ=100000 $(BIN)/python -m pytest -n $(PYTEST_WORKERS) tests/faults/test_fuzz.py

frameworks: setup .venv-frameworks/.ready ## learners in PyTorch and JAX (installs several GB of packages)
	$(BIN)/python -m pytest tests/frameworks

mutants: setup ## change 200 operators and constants, one at a time; 85 % must be noticed (about ten minutes)
	$(BIN)/python -m tests.mutants --jobs $(PYTEST_WORKERS)

check: setup ## ruff, mypy, import rules, generated docs, English
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/reference.py --check
	$(BIN)/python docs/chart.py --check
	$(BIN)/python docs/english.py
	$(BIN)/python docs/keys.py --check
	$(BIN)/python docs/catalogue.py --check
	$(BIN)/python -m pytest --collect-only -qq tests/e2e tests/frameworks tests/model_registry

bench: setup setup-tff setup-bench ## measure side by side with peers
	$(BIN)/python -m benchmarks

docs: setup ## write the generated pages of docs/
	$(BIN)/python docs/reference.py
	$(BIN)/python docs/chart.py
	$(BIN)/python docs/keys.py
	$(BIN)/python docs/catalogue.py
	$(BIN)/python docs/messages.py

images: ## build the containers of the steps with podman, buildah or docker (images/build --help)
	images/build

e2e: setup ## a real Kubernetes on this machine: chart, images, a federation of pods (needs root)
	$(BIN)/python -m pytest --color=no tests/e2e

registry: setup ## Kubeflow's own Model Registry, of the checkout that FEDPIPE_MODEL_REGISTRY names (needs MariaDB)
	$(BIN)/python -m pytest tests/model_registry

lock: | $(UV) ## write requirements/*.txt, pinned by hash
	UV="$(UV)" requirements/lock

audit: ## look the packages of all locks up in the OSV database; ends with 3 where it cannot be reached
	$(PYTHON) requirements/audit

clean: ## remove environments and caches
	rm -rf .venv .venv-* .tools .cache demo
