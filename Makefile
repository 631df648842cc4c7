# make demo: show a recovery on this machine.  make test: set everything up and run the tests.
PYTHON ?= python3
VENV ?= .venv
SUDO_APT = $(if $(filter 0,$(shell id -u)),yes)
TEST_PACKAGES = fuse3 bindfs python3-pyfuse3 openssl curl procps
SLOW_TEST_PACKAGES = prometheus chromium
JOBS ?= $(shell expr 2 \* $$(nproc 2>/dev/null || echo 1))
# Debian packages, as far as they are missing and this machine is one that has them.
install = if [ "$(SUDO_APT)" = yes ] && command -v apt-get >/dev/null && ! dpkg -s $(1) >/dev/null 2>&1; \
  then apt-get update -qq && apt-get install -y -qq --no-install-recommends $(1); fi

.PHONY: demo test test-slow test-kernels check bench clean

demo: $(VENV)/.run
	$(VENV)/bin/fusewatchd demo

test: check
	$(VENV)/bin/python -m pytest -n $(JOBS) -m "not slow"

test-slow: $(VENV)/.dev
	@$(call install,$(SLOW_TEST_PACKAGES))
	$(VENV)/bin/python -m pytest -n $(JOBS) -m slow

test-kernels:
	$(PYTHON) tests/kernels/run.py

check: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy fusewatchd

bench: $(VENV)/.dev
	$(VENV)/bin/python tests/bench/recovery.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  if [ "$(SUDO_APT)" = yes ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && apt-get install -y -qq python3 python3-venv; \
	  else echo "python3 with venv is needed (Debian: apt install python3-venv)" >&2; exit 1; fi; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml
	$(VENV)/bin/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	@# FUSE servers and tools for the tests of real mounts, where they can be had.
	@$(call install,$(TEST_PACKAGES))
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
