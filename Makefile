# Needs Python 3.11 or newer, make and a shell. `make help` lists the targets.

PYTHON ?= python3
ARGS ?=
VENV := .venv
STUDIO_VENV := .venv-studio
STUDIO_VERSION := 1.23.2
BIN := $(VENV)/bin
PIP_INSTALL := -m pip --disable-pip-version-check install

# A target is up to date when its stamp is newer than its sources.
INSTALLED := $(VENV)/.installed
STUDIO_INSTALLED := $(STUDIO_VENV)/.installed-$(STUDIO_VERSION)

.PHONY: help install studio browser haproxy demo serve check fast-model fast-others test test-long e2e bench fuzz load audit pin lint docs reference
.DEFAULT_GOAL := help

help: ## print this list
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED) ## install the package and its tools in .venv
	@case " $(MAKECMDGOALS) " in *" install "*) \
	  echo 'Call it as $(BIN)/vlsam --help, or as vlsam after: export PATH="$$PWD/$(BIN):$$PATH"' >&2;; esac

# label-studio-ml 1.0.9, the registry's only release, pins Flask 1.1.2 and Werkzeug 2.0.2, but works with current
# releases. So it is installed without dependencies. The extra label-studio-ml has those that it imports.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing vlsam and its libraries into $(VENV) (several GB the first time)" >&2
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python $(PIP_INSTALL) --no-deps label-studio-ml==1.0.9
	@touch $@

studio: $(STUDIO_INSTALLED) ## install a real Label Studio in .venv-studio, for the demo and the end-to-end tests

$(STUDIO_INSTALLED):
	@echo "Installing Label Studio $(STUDIO_VERSION) into $(STUDIO_VENV)" >&2
	test -x $(STUDIO_VENV)/bin/python || $(PYTHON) -m venv $(STUDIO_VENV)
	$(STUDIO_VENV)/bin/python $(PIP_INSTALL) label-studio==$(STUDIO_VERSION)
	@rm -f $(STUDIO_VENV)/.installed-*
	@touch $@

demo: install studio ## start Label Studio with a pre-annotated project; ARGS=--once exits when it is ready
	@$(BIN)/python -m backend.demo $(ARGS)

serve: install ## start the backend alone, on port 9090
	@$(BIN)/vlsam serve $(ARGS)

# Use the distribution's Chromium: Playwright's own comes from a host of its own.
browser: ## install Chromium in CI; elsewhere the browser tests are skipped without it
	@command -v chromium >/dev/null || test "$$CI" != true || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null || { \
	    echo "The tests in a browser need Chromium: install it as root (on Debian: apt-get install chromium)." >&2; \
	    exit 1; }; \
	  apt-get update -q && apt-get install -yq chromium; }

haproxy: ## install HAProxy in CI; elsewhere the tests of replicas are skipped without it
	@PATH="$$PATH:/usr/sbin" command -v haproxy >/dev/null || test "$$CI" != true || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null || { \
	    echo "The tests with replicas need HAProxy: install it as root (on Debian: apt-get install haproxy)." >&2; \
	    exit 1; }; \
	  apt-get update -q && apt-get install -yq haproxy; }

# Run lint and two halves of the fast tests side by side, with one thread each.
check: install ## run lint and the fast tests, in under two minutes
	@$(MAKE) --no-print-directory -j3 lint fast-model fast-others

FAST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not long" --hypothesis-profile=quick
fast-model: ; $(FAST) tests/model
fast-others: ; $(FAST) --ignore tests/model

test: lint studio browser haproxy ## run lint and all tests but the long ones, also against a real Label Studio
	$(BIN)/python -m pytest -m "not long" $(ARGS)

test-long: install studio ## run only the long tests
	$(BIN)/python -m pytest -m long $(ARGS)

e2e: install studio browser haproxy ## run only the tests against a real Label Studio
	$(BIN)/python -m pytest tests/e2e $(ARGS)

bench: install ## measure the built-in models; print one JSON object; ARGS='--scenes 200'
	$(BIN)/python -m model.builtin.measure $(ARGS)

# A known vulnerability fails. If the advisory service cannot be reached, say that nothing was compared.
audit: install ## compare the pinned versions with known vulnerabilities (OSV); skipped without a connection
	@log=$$(mktemp); $(BIN)/pip-audit --vulnerability-service osv --no-deps --disable-pip \
	  --requirement constraints.txt >$$log 2>&1; status=$$?; \
	  if [ $$status != 0 ] && grep -qE 'ConnectionError|Timeout' $$log; then status=0; \
	  echo "audit: skipped: the advisory service cannot be reached from here, nothing was compared"; \
	  else cat $$log; fi; rm $$log; exit $$status

pin: ## write constraints.txt from the versions in .venv
	$(BIN)/python -m pip freeze --exclude-editable --exclude vlsam | grep '==' >constraints.txt

fuzz: install ## send more than 20 000 hostile inputs; print the count of each status; half an hour
	$(BIN)/python -m pytest tests/fuzz --hypothesis-profile=fuzz $(ARGS)

load: install ## simulate 8 annotators beside a batch of 200 tasks; print one JSON object; ARGS='--seconds 60'
	@$(BIN)/python -m tests.bench.load $(ARGS)

lint: install ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: reference ## build the documentation in docs/_build/html; a warning fails
	$(BIN)/sphinx-build -W --keep-going -n -q -b html -d docs/_build/doctrees docs docs/_build/html

reference: install ## generate docs/reference from the code
	$(BIN)/python docs/generate.py
