# Everything a contributor runs. `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
CLIENTS := build/clients
GENERATORS := $(CLIENTS)/bin/openapi-python-client $(CLIENTS)/node
STAMP := $(VENV)/.installed
# Tests wait more than they compute: four processes keep two cores busy.
PYTEST := $(BIN)/pytest -q -n 4 --dist worksteal
# What takes longer, in parts that can be run apart.
PATIENT := brokers or fleet or page or programs or clients
STORES ?=
PYTEST_ARGS ?=
# A newer pip is no news to somebody who tries the demo.
export PIP_DISABLE_PIP_VERSION_CHECK := 1
MINUTES ?= 30
REPLIES ?= tests/replies
BENCH_ARGS ?=
LOCK_ARGS ?=

.PHONY: help install demo demo-wheel test patient brokers fleet page programs clients stores model replies faults bench fuzz fuzz-heads soak audit bench-copy bench-whole bench-capacity lint types clean picture screenshots shown docs bench-page lock

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

install: $(STAMP) ## Create .venv and install everything, the embedded servers included

# An interpreter is tried by running it: version managers leave names behind that do not run.
$(BIN)/python:
	@for python in $${PYTHON:-} python3.13 python3.12 python3.11 python3; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Creating $(VENV) with $$python"; exec "$$python" -m venv $(VENV); \
	  fi; \
	done; \
	echo "Python 3.11 or newer is needed and none was found. Install one, or name it:" >&2; \
	echo "    make install PYTHON=/path/to/python3" >&2; \
	exit 1

# What the product and its demo need.
$(RUNTIME): pyproject.toml | $(BIN)/python
	@echo "Installing the harvester and its embedded servers …"
	$(BIN)/python -m pip install --quiet --editable '.[sandbox]'
	@touch $@

# The same and the developers' tools.
$(STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable '.[sandbox]' --group dev
	@touch $(RUNTIME) $@

demo: $(RUNTIME) ## Run the whole fleet on this machine, against a simulated upstream
	$(BIN)/harvester demo

demo-wheel: | $(BIN)/python ## Build the wheel and run the demo from it, in an empty environment of PYTHON
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$${PYTHON:-$(BIN)/python} -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip install --quiet "$$(echo build/wheel/*.whl)[sandbox]"
	cd build/wheel && env -i PATH=/usr/bin:/bin venv/bin/harvester demo

fuzz: $(STAMP) ## Read ten thousand damaged replies, and print what one costs at most (BENCH_ARGS=NUMBER)
	$(BIN)/python -m tests.bench.fuzz $(BENCH_ARGS)

fuzz-heads: $(STAMP) ## Look into a million damaged heads of files, and print what one costs at most
	$(BIN)/python -m tests.bench.heads $(BENCH_ARGS)

bench-capacity: $(STAMP) ## Measure what a fleet's size is computed from (see docs/capacity.md)
	$(BIN)/python -m tests.bench.capacity $(BENCH_ARGS)

test: $(STAMP) ## Run the tests that need no patience (PYTEST_ARGS adds arguments)
	$(PYTEST) -m 'not ($(PATIENT) or stores)' $(PYTEST_ARGS)

patient: $(STAMP) $(GENERATORS) ## Run brokers, fleet, page, programs and clients, all at the same time
	$(PYTEST) -n 6 -m '$(PATIENT)' $(PYTEST_ARGS)

brokers: $(STAMP) ## Test other ways to reach Redis, RabbitMQ, and lost connections
	$(PYTEST) -m brokers $(PYTEST_ARGS)

fleet: $(STAMP) ## Test several workers that are killed, frozen, upgraded or at their limits
	$(PYTEST) -m fleet $(PYTEST_ARGS)

page: $(STAMP) ## Test the page in Chromium, and fuzz the API
	$(PYTEST) -m page $(PYTEST_ARGS)

programs: $(STAMP) ## Test the examples, the wheel, the benches, up, demo and the Procfile
	$(PYTEST) -m programs $(PYTEST_ARGS)

# The generator needs other versions of what the harvester needs, so it has an environment of its own.
$(CLIENTS)/bin/openapi-python-client: | $(BIN)/python
	$(BIN)/python -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet openapi-python-client==0.29.1

$(CLIENTS)/node: tests/clients/package-lock.json
	@mkdir -p $@ && cp tests/clients/package*.json $@
	if command -v npm > /dev/null; then npm ci --prefix $@ --silent --no-audit --no-fund; fi
	@touch $@

clients: $(STAMP) $(GENERATORS) ## Generate a Python and a TypeScript client of the API, and use them
	$(PYTEST) -m clients -n 0 tests/integration/test_clients.py $(PYTEST_ARGS)

stores: $(STAMP) ## Test every real store here, and print the table of docs/stores.md (STORES="rclone ceph")
	STORES="$(STORES)" $(PYTEST) -n 3 -m stores tests/stores $(PYTEST_ARGS)

model: $(STAMP) ## Test the protocol of leases in many more orders of its steps
	HYPOTHESIS_PROFILE=thorough $(PYTEST) tests/model $(PYTEST_ARGS)

replies: $(STAMP) ## Read a folder of the upstream's replies (REPLIES; see CONTRIBUTING.md)
	$(BIN)/python -m tests.read_replies $(REPLIES)

faults: $(STAMP) ## Run the whole fault matrix and print its table (see docs/faults.md)
	FAULTS=full $(PYTEST) -o timeout=3600 -o run_timeout=14400 tests/faults $(PYTEST_ARGS)

soak: $(STAMP) ## Work under random faults for MINUTES (30), then plot memory and keys
	SOAK_MINUTES=$(MINUTES) $(BIN)/pytest -q -o timeout=0 -o run_timeout=$$(awk "BEGIN {print int($(MINUTES) * 60) + 3600}") \
	  tests/faults/test_soak.py $(PYTEST_ARGS)

# What is installed, and the oldest versions that may be.
audit: $(STAMP) ## Look for known vulnerabilities in what is installed, or may be
	$(BIN)/python -m pip install --quiet pip-audit uv
	@mkdir -p build && $(BIN)/python -m pip freeze --exclude-editable > build/installed.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --resolution lowest-direct \
	  --no-annotate --no-header pyproject.toml --output-file build/oldest.txt
	$(BIN)/python .ci/audit.py $(BIN)/pip-audit build/installed.txt build/oldest.txt

# uv writes what holds for every platform; the files name neither an index nor an address.
LOCK = $(BIN)/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
  --no-annotate --no-header $(LOCK_ARGS)
lock: $(STAMP) ## Pin what the image installs (LOCK_ARGS=--upgrade takes the newest versions)
	$(BIN)/python -m pip install --quiet uv
	$(LOCK) pyproject.toml --output-file deploy/image/requirements.lock
	$(LOCK) pyproject.toml --extra sandbox --constraints deploy/image/requirements.lock \
	  --output-file deploy/image/requirements-sandbox.lock
	$(LOCK) --group pyproject.toml:build --output-file deploy/image/build.lock

AIOBOTOCORE := $(VENV)/aiobotocore
$(AIOBOTOCORE)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m venv $(AIOBOTOCORE)
	$(AIOBOTOCORE)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(AIOBOTOCORE)/bin/python -m pip install --quiet --group aiobotocore
	@touch $@

bench-copy: $(STAMP) $(AIOBOTOCORE)/.installed ## Compare copying with other tools (BENCH_ARGS; see docs/performance.md)
	$(BIN)/python -m tests.bench.copy $(BENCH_ARGS)

bench: $(STAMP) ## Compare policies of asking, then the cost of a poll with that of other designs (BENCH_ARGS)
	$(BIN)/python -m tests.bench.traces $(filter --quick,$(BENCH_ARGS))
	$(BIN)/python -m tests.bench.polling --json build/polling.json --plot build/polling.png $(BENCH_ARGS)

bench-whole: $(STAMP) ## Measure tasks from submission to announcement, over TLS (BENCH_ARGS)
	$(BIN)/python -m tests.bench.whole $(BENCH_ARGS)

picture: $(STAMP) ## Draw the rooms in docs/architecture.md again, from the imports
	$(BIN)/python -m tests.rooms

screenshots: $(STAMP) ## Take the pictures of the page for the docs again
	SCREENSHOTS=docs/images $(BIN)/pytest -q tests/integration/test_web_looks.py

shown: $(STAMP) ## Run the demo and the tests, and show in README.md what they print
	$(BIN)/python -m tests.shown

# The same files in the same folders, so that their links hold here and there.
SITE := build/docs
$(VENV)/.docs: pyproject.toml | $(STAMP)
	$(BIN)/python -m pip install --quiet --group docs
	@touch $@

docs: $(VENV)/.docs ## Build the site of these documents in build/docs/site, and check its links
	rm -rf $(SITE) && mkdir -p $(SITE)/source
	tar cf - --exclude='*__' --exclude=node_modules *.md LICENSE docs examples deploy/kubernetes/monitoring/rules.yaml | tar xf - -C $(SITE)/source
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench-page: $(STAMP) ## Measure the page and the API with 1,000 and 100,000 records
	$(BIN)/python -m tests.bench.page $(BENCH_ARGS)

lint: $(STAMP) ## Check style, format and spelling
	$(BIN)/ruff check
	$(BIN)/codespell *.md docs examples worker config tests deploy .ci Makefile
	$(BIN)/ruff format --check

types: $(STAMP) ## Check types
	$(BIN)/mypy

clean: ## Remove the virtual environment and every cache
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
