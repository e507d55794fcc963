# `make demo` and `make test` need nothing but Python 3.11 or newer; everything else goes into .venv.
PYTHON ?= $(firstword $(foreach name,python3 python3.11 python3.12 python3.13 python3.14,$(shell \
    $(name) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(name))))
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test check fix docs clean
.DEFAULT_GOAL := help

help: ## show the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

demo: $(VENV)/.demo ## run the telemetry example
	$(BIN)/python -m zfabric.examples.telemetry

test: $(VENV)/.tox ## run the tests on every Python here, then lint, types and docs (ARGS goes to pytest)
	$(BIN)/tox run $(if $(ARGS),-- $(ARGS))

check: $(VENV)/.check ## check style, format, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	PATH="$(CURDIR)/$(BIN):$$PATH" .ci/types
	$(BIN)/lint-imports --no-cache --no-logo

fix: $(VENV)/.check ## mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.tox ## build the documentation into build/docs
	$(BIN)/tox run -e docs

clean: ## remove everything that was built
	rm -rf $(VENV) .tox build dist *.egg-info

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "zfabric needs Python 3.11 or newer" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.check: setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[demo,lint,test]'
	@touch $@

$(VENV)/.tox: | $(BIN)/python
	$(BIN)/pip install --quiet 'tox>=4.20'
	@touch $@
