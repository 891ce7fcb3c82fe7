PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
UPSTREAM ?=
ARGS ?=

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml deploy/constraints.txt
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
		{ echo "make: $(PYTHON) cannot make a venv; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "installing cachesvc and its tools into $(VENV)"
	@$(BIN)/pip install -q --disable-pip-version-check -c deploy/constraints.txt -e '.[dev]'
	@$(BIN)/cachesvc model install
	@touch $@

.PHONY: setup
setup: $(STAMP) ## Make .venv with everything in it, once

.PHONY: run
run: $(STAMP) ## Run everything, with the demo upstream or UPSTREAM=https://…
	@exec $(BIN)/cachesvc up $(if $(UPSTREAM),--upstream $(UPSTREAM),--demo) $(ARGS)

.PHONY: test
test: $(STAMP) ## Run all tests (ARGS='-k words' for some)
	@# Two at a time; then those that measure latencies. 5 is pytest's "none of these was asked for".
	@$(BIN)/python -m pytest -m "not alone" -n 2 --dist loadfile $(ARGS) || test $$? -eq 5
	@$(BIN)/python -m pytest -m alone $(ARGS) || test $$? -eq 5
	@$(BIN)/python -m pytest tests/behaviours --pgbouncer -m "not alone" -n 2 --dist loadfile $(ARGS) || test $$? -eq 5

CLIENTS := .clients
PYTHON_CLIENTS := $(patsubst tests/clients/requirements/%.txt,%,$(wildcard tests/clients/requirements/*.txt))
NODE_FILES := $(addprefix tests/clients/node/,package.json package-lock.json .npmrc)

.PHONY: clients
clients: $(PYTHON_CLIENTS:%=$(CLIENTS)/%.ready) $(CLIENTS)/node.ready ## Install the foreign programs that tests drive, each apart
	@echo "clients: ready in $(CLIENTS)"

$(CLIENTS)/%.ready: tests/clients/requirements/%.txt
	@echo "clients: installing $< into $(CLIENTS)/$*"
	@rm -rf $(CLIENTS)/$* && mkdir -p $(CLIENTS) && $(PYTHON) -m venv $(CLIENTS)/$*
	@$(CLIENTS)/$*/bin/pip install -q --no-compile --disable-pip-version-check -r $<
	@touch $@

# Without npm there is no stamp, and the tests of the Node SDK tell why they are skipped.
$(CLIENTS)/node.ready: $(NODE_FILES)
	@mkdir -p $(CLIENTS)/node && cp $^ $(CLIENTS)/node/
	@ln -sf ../../tests/clients/node/driver.mjs $(CLIENTS)/node/driver.mjs
	@if command -v npm >/dev/null; then \
		echo "clients: installing the Node SDKs into $(CLIENTS)/node"; \
		npm ci --prefix $(CLIENTS)/node --silent --no-audit --no-fund --no-update-notifier && touch $@; \
	else echo "clients: npm is not installed, the Node SDK is left out"; fi

.PHONY: check
check: $(STAMP) ## Lint, formatting and types, as CI does
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "run: make fix" >&2; exit 1; }
	@$(BIN)/mypy

.PHONY: fix
fix: $(STAMP) ## Mend what the linter and the formatter can; the only target that writes code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: bench
bench: $(STAMP) ## Measure hits, misses and the service, each beside its floor, in one run
	@$(BIN)/python -m tests.bench $(ARGS)

.PHONY: bench-recall
bench-recall: $(STAMP) ## Measure what searches find of what is stored, beside an exact scan (an hour; ARGS=--quick)
	@$(BIN)/python -m tests.bench.recall $(ARGS)

PEERS := tests/bench/peers/requirements
PEERS_READY := $(CLIENTS)/gptcache.ready $(CLIENTS)/litellm.ready

$(CLIENTS)/gptcache.ready: $(PEERS)/gptcache.txt
	@echo "peers: installing $< into $(CLIENTS)/gptcache"
	@rm -rf $(CLIENTS)/gptcache && mkdir -p $(CLIENTS) && $(PYTHON) -m venv $(CLIENTS)/gptcache
	@$(CLIENTS)/gptcache/bin/pip install -q --no-compile --disable-pip-version-check -r $<
	@touch $@

.PHONY: bench-peers
bench-peers: $(STAMP) $(PEERS_READY) ## Measure cachesvc beside GPTCache and LiteLLM, 10 minutes (2 with ARGS=--quick)
	@$(BIN)/python -m tests.bench.peers $(ARGS)

.PHONY: schema
schema: $(STAMP) ## Write migrations/schema.sql anew from the migrations
	@$(BIN)/python -m tests.store.dump_schema

.PHONY: clean
clean: ## Remove the venvs and all caches
	rm -rf $(VENV) $(CLIENTS) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
