# Every target does its own set-up. `make` alone lists them.
#
#   make test ARGS="tests/imap -k literal"    some of the tests
#   make demo ONCE=1                          check yourself and end
#   make bench BENCH=../bench ROUNDS=5        against nginx; root

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
MADE    = .make
ROUNDS ?= 3
# What prints the pages of docs/ that are made from the code: docs/NAME.md by the module PAGE_NAME.
PAGE_settings = proxy.settings.reference
PAGE_metrics  = proxy.observe.reference

INSTALLED = $(MADE)/installed
CLIENTS   = $(MADE)/npm/installed
HELM      = $(MADE)/helm/installed

.PHONY: help test demo check lint format bench docs servers clean always
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

test: $(INSTALLED) servers $(CLIENTS) $(HELM) ## all tests, with real servers and mail clients; installs those where root and apt are
	@$(BIN)/python -m pytest $(ARGS)

check: lint test ## what must be green: format, lint, types, all tests; a warning is an error

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED) ## put the code into form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo: $(INSTALLED) ## two small IMAP servers and the proxy before them; ONCE=1 ends after a self-check
	@$(BIN)/imap-porter demo $(if $(ONCE),--once)

# The harness builds and writes in its own folder: a copy of it is run, so that the original may be read-only.
bench: $(INSTALLED) ## measure CPU, latency and memory beside nginx; BENCH= names the harness's folder
	@test -x "$(BENCH)/measure.py" || { echo 'make bench BENCH=FOLDER: the folder with measure.py in it' >&2; exit 1; }
	@rm -rf $(MADE)/bench && mkdir -p $(MADE) && cp -R "$(BENCH)" $(MADE)/bench && chmod -R u+w $(MADE)/bench
	@$(MAKE) --no-print-directory -C $(MADE)/bench
	cd $(MADE)/bench && PORTER="$(abspath $(BIN)/imap-porter)" ./measure.py --target porter --vs nginx --rounds $(ROUNDS)
	$(BIN)/python -m tests.measure_watching $(MADE)/bench

docs: docs/settings.md docs/metrics.md helm/imap-porter/values.schema.json ## write from the code what is made from it: pages, the chart's schema

# By way of another file: a page is whole, or as it was. Always, since it depends on more of the code than make knows.
docs/%.md: $(INSTALLED) always
	$(BIN)/python -m $(PAGE_$*) > $(MADE)/$*.md
	@mv $(MADE)/$*.md $@

helm/imap-porter/values.schema.json: $(INSTALLED) always
	$(BIN)/python helm/make_schema.py > $(MADE)/$(@F)
	@mv $(MADE)/$(@F) $@

clean: ## remove all that make has made
	rm -rf $(MADE) $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find proxy tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- set-up ---

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo '$(PYTHON) is not Python 3.11 or later; name one that is: make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo '$(PYTHON) cannot make environments; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A changed list of dependencies is the only reason to ask the package index again.
$(INSTALLED): pyproject.toml $(VENV)/pyvenv.cfg
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo,dev]'
	@mkdir -p $(@D) && touch $@

# Elsewhere than under CI a server or client that cannot be installed leaves its tests skipped, and the last line says so.
servers:
	@tests/servers/install.sh || [ "$(CI)" != true ]

$(CLIENTS): tests/servers/package.json | servers
	@mkdir -p $(@D) && cp $< $(@D)/
	@if ! command -v npm >/dev/null; then echo 'npm is not installed' >&2; [ "$(CI)" != true ]; \
	elif cd $(@D) && npm install --no-package-lock --no-audit --no-fund --ignore-scripts --loglevel=error; then touch installed; \
	else [ "$(CI)" != true ]; fi

$(HELM): tests/servers/helm.sh | servers
	@tests/servers/helm.sh || [ "$(CI)" != true ]
