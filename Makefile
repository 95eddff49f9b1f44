# Everything a contributor does is `make <verb>`; `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest

.PHONY: help
help: ## List the verbs
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

## Set-up ---------------------------------------------------------------------------------------

.PHONY: setup
setup: $(VENV)/.installed ## Make .venv with everything, from hashed requirements

# The stamp holds until a requirement file or a project file changes.
$(VENV)/.installed: requirements/dev.txt pyproject.toml services/sdk/pyproject.toml operator/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Patchbay needs Python 3.11 or newer; set PYTHON=python3.x")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || { grep -A60 -E '^uv==' requirements/dev.txt | awk 'NR==1 || /--hash/ {print; if (!/\\$$/) exit}' > $(VENV)/uv.txt && $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r $(VENV)/uv.txt; }
	@$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements/dev.txt
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e services/sdk -e . -e operator
	@touch $@

.PHONY: lock
lock: setup ## Rewrite the hashed requirement files
	requirements/compile.sh

## Use ------------------------------------------------------------------------------------------

.PHONY: run
run: setup ## Start Patchbay on http://127.0.0.1:8080
	@exec $(BIN)/patchbay up

## Check ----------------------------------------------------------------------------------------

.PHONY: check
check: setup lint types imports proto-check crds-check chart-check ## All linters, types, layers and generated files

.PHONY: lint
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

.PHONY: fmt
fmt: setup ## Format and fix what can be fixed
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format -q .

.PHONY: types
types: setup
	$(BIN)/mypy

.PHONY: imports
imports: setup
	$(BIN)/lint-imports

.PHONY: proto
proto: setup ## Generate the Python of the contract, and the Go of the example where there is Go
	proto/generate.sh >/dev/null 2>&1
	@! command -v go >/dev/null || PROTOC="$(CURDIR)/$(BIN)/python -m grpc_tools.protoc" services/sdk/examples/relay-go/generate.sh

.PHONY: proto-check
proto-check: setup ## Lint the contract and prove that the generated code is current
	scripts/proto-check

.PHONY: crds crds-check
crds: setup ## Generate the custom resource definitions of the chart
	$(BIN)/python -m patchbay_operator.api.crds charts/patchbay-crds/templates
crds-check: setup
	$(BIN)/python -m patchbay_operator.api.crds --check charts/patchbay-crds/templates

.PHONY: chart chart-check
chart: crds ## Generate the chart's schema and README, and lint both charts
	$(BIN)/python scripts/chart
	scripts/kube-tools helm lint charts/patchbay-crds charts/patchbay
chart-check: setup
	$(BIN)/python scripts/chart --check

.PHONY: docs
docs: setup ## Generate the pages that are made from code
	$(BIN)/python -m patchbay_gateway.kernel.config.schema > docs/configuration.md
	$(BIN)/python -m tests.conformance_matrix.page > docs/conformance-matrix.md

## Test -----------------------------------------------------------------------------------------

# Files are dealt to two processes (tests/harness/workers.py says which to whom); WORKERS=0 runs them in one.
# A process that dies ends the run: with another in its place, what it had taken may never come to an end.
WORKERS := 2
WORKING := --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.PHONY: test
test: setup ## Everything that this machine can run
	$(PYTEST) -n $(WORKERS) $(WORKING) tests

.PHONY: test-unit test-golden test-contract test-integration test-faults
test-unit: setup ## Pure logic
	$(PYTEST) tests/unit
test-golden: setup ## Files in, files out
	$(PYTEST) tests/golden
test-contract: setup ## The contract over real gRPC
	$(PYTEST) tests/contract tests/conformance
test-integration: setup ## Real processes
	$(PYTEST) tests/integration
test-faults: setup ## Kills, outages and bad clients at full length
	PATCHBAY_TEST_FULL_LENGTH=1 $(PYTEST) tests/faults

.PHONY: test-e2e
test-e2e: setup ## The charts on the cluster of KUBECONFIG (tests/e2e/conftest.py says how)
	PATCHBAY_E2E=1 $(PYTEST) -p no:randomly tests/e2e

## Compose and images ---------------------------------------------------------------------------

.PHONY: images up down
images: ## Build the container images
	docker/build
up: ## Start under docker-compose
	docker/compose up -d
down: ## Stop docker-compose and remove its volumes
	docker/compose down -v

.PHONY: bench
bench: setup ## Measure against named peers; results in bench/results
	bench/run
