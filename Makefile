# Needs Python 3.11 or newer, make and a shell. `make help` lists the targets.

PYTHON ?= python3
ARGS ?=
VENV := .venv
STUDIO_VENV := .venv-studio
STUDIO_VERSION := 1.23.2
BIN := $(VENV)/bin
PIP_INSTALL := -m pip --disable-pip-version-check install

# A stamp is younger than what it was made from when nothing is left to do.
INSTALLED := $(VENV)/.installed
STUDIO_INSTALLED := $(STUDIO_VENV)/.installed-$(STUDIO_VERSION)

.PHONY: help install studio browser haproxy demo serve test test-long e2e bench fuzz load audit pin lint
.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED) ## everything that runs and tests this package, in .venv
	@case " $(MAKECMDGOALS) " in *" install "*) \
	  echo 'Call it as $(BIN)/vlsam --help, or as vlsam after: export PATH="$$PWD/$(BIN):$$PATH"' >&2;; esac

# label-studio-ml 1.0.9, the registry's only release, pins Flask 1.1.2 and Werkzeug 2.0.2, which cannot live
# beside our own current ones, but works with these. So it comes without its dependencies: the extra
# label-studio-ml has those that it needs.
$(INSTALLED): pyproject.toml constraints.txt
	@echo "Installing vlsam and its libraries into $(VENV) (several GB the first time)" >&2
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python $(PIP_INSTALL) --no-deps label-studio-ml==1.0.9
	@touch $@

studio: $(STUDIO_INSTALLED) ## a real Label Studio in a venv of its own, for the demo and the end-to-end tests

$(STUDIO_INSTALLED):
	@echo "Installing Label Studio $(STUDIO_VERSION) into $(STUDIO_VENV)" >&2
	test -x $(STUDIO_VENV)/bin/python || $(PYTHON) -m venv $(STUDIO_VENV)
	$(STUDIO_VENV)/bin/python $(PIP_INSTALL) label-studio==$(STUDIO_VERSION)
	@rm -f $(STUDIO_VENV)/.installed-*
	@touch $@

demo: install studio ## Label Studio with a pre-annotated project; ARGS=--once exits when it is ready
	@$(BIN)/python -m backend.demo $(ARGS)

serve: install ## the backend alone, on port 9090
	@$(BIN)/vlsam serve $(ARGS)

# Playwright's own browsers come from a host of theirs, so it drives the distribution's.
browser: ## Chromium for the tests in a browser: CI installs it, elsewhere they are skipped without it
	@command -v chromium >/dev/null || test "$$CI" != true || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null || { \
	    echo "The tests in a browser need Chromium: install it as root (on Debian: apt-get install chromium)." >&2; \
	    exit 1; }; \
	  apt-get update -q && apt-get install -yq chromium; }

haproxy: ## HAProxy for the tests with replicas: CI installs it, elsewhere they are skipped without it
	@PATH="$$PATH:/usr/sbin" command -v haproxy >/dev/null || test "$$CI" != true || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null || { \
	    echo "The tests with replicas need HAProxy: install it as root (on Debian: apt-get install haproxy)." >&2; \
	    exit 1; }; \
	  apt-get update -q && apt-get install -yq haproxy; }

test: lint studio browser haproxy ## lint, then all tests but the long ones, against a real Label Studio too
	$(BIN)/python -m pytest -m "not long" $(ARGS)

test-long: install studio ## only the long tests
	$(BIN)/python -m pytest -m long $(ARGS)

e2e: install studio browser haproxy ## only the tests against a real Label Studio
	$(BIN)/python -m pytest tests/e2e $(ARGS)

bench: install ## how good the built-in models are, as one JSON object; ARGS='--scenes 200'
	$(BIN)/python -m model.builtin.measure $(ARGS)

# Where the advisory service cannot be reached nothing was found out, and it says so; a hole fails.
audit: install ## the pinned versions against known holes (OSV); skipped where that cannot be reached
	@log=$$(mktemp); $(BIN)/pip-audit --vulnerability-service osv --no-deps --disable-pip \
	  --requirement constraints.txt >$$log 2>&1; status=$$?; \
	  if [ $$status != 0 ] && grep -qE 'ConnectionError|Timeout' $$log; then status=0; \
	  echo "audit: skipped: the advisory service cannot be reached from here, nothing was compared"; \
	  else cat $$log; fi; rm $$log; exit $$status

pin: ## writes constraints.txt anew, from what .venv holds
	$(BIN)/python -m pip freeze --exclude-editable --exclude vlsam | grep '==' >constraints.txt

fuzz: install ## 20 000 hostile inputs and more, with the count of each status; half an hour
	$(BIN)/python -m pytest tests/fuzz --hypothesis-profile=fuzz $(ARGS)

load: install ## 8 annotators beside a batch of 200 tasks, for minutes, as one JSON object; ARGS='--seconds 60'
	@$(BIN)/python -m tests.bench.load $(ARGS)

lint: install ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
