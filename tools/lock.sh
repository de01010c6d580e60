#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Writes the hash-locked requirement files anew from pyproject.toml: one an image, one for development.
# Versions that still fit are kept; `tools/lock.sh --upgrade` looks for newer ones.
set -eu
cd "$(dirname "$0")/.."

lock() {
  output=$1
  shift
  # No index address and no path: the files must be the same wherever they are made.
  .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-emit-find-links --no-header --annotation-style line \
    --output-file "requirements/$output" "$@"
}

mkdir -p requirements
lock operator.txt "$@" pyproject.toml --extra operator
lock agent.txt "$@" pyproject.toml --extra agent
lock dev.txt "$@" pyproject.toml --extra dev testbed/pyproject.toml
