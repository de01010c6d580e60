# SPDX-License-Identifier: Apache-2.0
# One command a task, each may be repeated. `make` alone prepares .venv; `make help` lists the tasks.
.DEFAULT_GOAL := venv
SHELL := /bin/bash -eu -o pipefail
PY := .venv/bin/python
TESTBED := .venv/bin/devicemount-testbed
PYTEST := $(PY) -m pytest --durations=10 --durations-min=1
BENCH_N ?= 20
STAMP := .venv/.complete

.PHONY: venv help demo test soak lint unit component node cluster kubeconfig images manifests docs claims reliability support proto crds bench gpu-check clean cluster-tests lifecycle binaries component-agent component-others

venv: $(STAMP) ## prepare .venv with locked dependencies
$(STAMP): requirements/dev.txt pyproject.toml testbed/pyproject.toml tools/venv.sh
	@tools/venv.sh
	@touch $@

help: ## list the tasks
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: cluster ## mount a real device into a running pod on each node, and take it back
	@$(PY) -m devicemount_testbed.demo

test: lint unit component node lifecycle cluster-tests ## everything that CI checks, fast layers first

soak: cluster ## storms, thousands of rounds and long waits (hours; never in CI)
	@$(PYTEST) tests/soak
	@HOSTILE_SWAPS=4000 HOSTILE_GRANTS=2000 HOSTILE_OPENS=1000000 HOSTILE_CLIENT_MOUNTS=4 $(PYTEST) tests/hostile

lint: $(STAMP) docs ## format, style, types, layers, licences, generated files
	@.venv/bin/ruff format --check --quiet . || { echo "run: .venv/bin/ruff format ." >&2; exit 1; }
	@.venv/bin/ruff check --quiet .
	@tools/spdx.sh
	@layers=$$(.venv/bin/lint-imports --no-logo) || { echo "$$layers"; exit 1; }
	@.venv/bin/mypy
	@tools/proto.sh --check

unit: $(STAMP) ## pure tests, seconds, no root
	@$(PYTEST) tests/unit

binaries: $(STAMP)
	@$(TESTBED) build

# Two processes at once, since most of the time they wait; each is said as a whole when it ends.
component: binaries ## operator, agent and plugin against real API server and real gRPC
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target component-agent component-others

component-agent: binaries
	@$(PYTEST) -p no:cacheprovider tests/component/agent

component-others: binaries
	@$(PYTEST) -p no:cacheprovider tests/component --ignore=tests/component/agent

node: binaries ## the real kernel, as root: cgroups v1 and v2, device files, holders, hostile tenants
	@$(PYTEST) tests/node tests/hostile

cluster: $(STAMP) ## leave a running testbed with devicemount deployed from manifests/
	@$(TESTBED) up
	@$(TESTBED) deploy

lifecycle: binaries
	@$(TESTBED) down
	@$(PYTEST) tests/testbed/lifecycle

cluster-tests: cluster
	@$(PYTEST) tests/testbed/cluster tests/cluster

kubeconfig: $(STAMP) ## print the path of the testbed's kubeconfig (make -s kubeconfig)
	@$(TESTBED) kubeconfig

images: $(STAMP) ## build the three images, and archives of them in dist/ for nodes that pull nothing
	@$(TESTBED) images

manifests: binaries ## render manifests/install.yaml
	@tools/manifests.sh

proto: $(STAMP) ## generate the gRPC code from the proto files
	@tools/proto.sh

crds: $(STAMP) ## generate crds/ from the pydantic models, and docs/reasons.md
	@$(PY) -m devicemount_operator.api.crd > crds/devicemounts.yaml
	@$(PY) -m devicemount_operator.reasons > docs/reasons.md

claims: $(STAMP) ## generate docs/claims.md from docs/claims.yaml
	@$(PY) -m tools.claims > docs/claims.md.new && mv docs/claims.md.new docs/claims.md

reliability: $(STAMP) ## generate docs/reliability.md from docs/reliability.yaml
	@$(PY) -m tools.reliability > docs/reliability.md.new && mv docs/reliability.md.new docs/reliability.md

support: $(STAMP) ## take over what the last run of the matrix found: docs/support.json, docs/support.md
	@cp dist/support.json docs/support.json
	@$(PY) -m tools.support > docs/support.md.new && mv docs/support.md.new docs/support.md

docs: $(STAMP) ## build the documentation as a site, strictly, into dist/site
	@said=$$(NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict 2>&1) || { echo "$$said" >&2; exit 1; }

gpu-check: $(STAMP) ## on a machine with an NVIDIA GPU: resolver, holders, a grant and a revoke seen by CUDA
	@$(PYTEST) tests/gpu -rs

bench: cluster ## latency against the floor of the same run (BENCH_N samples)
	@$(PY) -m bench --samples $(BENCH_N)

clean: ## end and remove the testbed and everything that was made here (the build cache stays)
	@if [ -x $(TESTBED) ]; then $(TESTBED) down; fi
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
