#!/usr/bin/env bash
# Rewrites the hashed requirement files from pyproject.toml. `make lock` runs it.
# Hashes without index addresses: any mirror of PyPI will do.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${UV:-.venv/bin/uv}
lock() { # lock OUTPUT EXTRA...
  local out=$1; shift
  "$uv" pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
    --no-header --no-emit-package patchbay-sdk --no-emit-package patchbay-gateway --no-emit-package patchbay-operator "$@" -o "requirements/$out"
}
lock dev.txt pyproject.toml operator/pyproject.toml --extra up --extra postgres --group dev
lock up.txt pyproject.toml --extra up -c requirements/dev.txt
for service in edge scheduler executors usage; do
  extras=(--extra "$service")
  [ "$service" = usage ] && extras+=(--extra postgres)
  lock "$service.txt" pyproject.toml "${extras[@]}" -c requirements/dev.txt
done
lock operator.txt operator/pyproject.toml -c requirements/dev.txt
lock sdk.txt services/sdk/pyproject.toml --extra cli -c requirements/dev.txt
