# make demo: show a recovery on this machine.  make test: set everything up and run the tests.
# make model: random lives of a node for an hour, or MINUTES=5, or with a SEED of yours.
# make deb, make rpm: packages in dist/.  make release: all that a release consists of.
PYTHON ?= python3
VENV ?= .venv
SUDO_APT = $(if $(filter 0,$(shell id -u)),yes)
TEST_PACKAGES = fuse3 openssl curl procps systemd linux-libc-dev \
  bindfs mergerfs python3-pyfuse3 rclone s3fs squashfs-tools squashfuse sshfs unionfs-fuse
# Debian's kubectl, where no other one is: they cannot be installed beside each other.
SLOW_TEST_PACKAGES = ntfs-3g prometheus chromium $(if $(shell command -v kubectl),,kubernetes-client)
# lxcfs and openssh-server are for .ci/run alone: elsewhere their services would be started.
# What builds packages, looks at them, and boots machines to install them on.
BUILD_PACKAGES = debhelper dh-python pybuild-plugin-pyproject python3-all python3-setuptools \
  python3-prometheus-client python3-pyinotify python3-requests python3-sdnotify python3-yaml \
  dpkg-dev rpm
PACKAGE_TEST_PACKAGES = lintian rpmlint groff zsh cpio systemd-container mmdebstrap reprepro createrepo-c dnf gnupg
JOBS ?= $(shell expr 2 \* $$(nproc 2>/dev/null || echo 1))
# Debian packages, as far as they are missing and this machine is one that has them.
install = if [ "$(SUDO_APT)" = yes ] && command -v apt-get >/dev/null && ! dpkg -s $(1) >/dev/null 2>&1; \
  then apt-get update -qq && apt-get install -y -qq --no-install-recommends $(1); fi

.PHONY: help reference unit demo test test-slow test-kernels test-packages model deb rpm release check bench attack plots soak packages clean

help:
	@sed -n 's/^\([a-z -]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name words; do \
	  printf '  make %-14s %s\n' "$$name" "$$words"; done

unit: $(VENV)/.unit  ## pure tests: no root, no Debian packages, seconds
	$(VENV)/bin/python -m pytest -q -n $(JOBS) --dist worksteal -m "not slow and not kernel and not root" tests/unit tests/fuzz

demo: $(VENV)/.run  ## show a recovery on this machine
	$(VENV)/bin/fusewatchd demo

test: check  ## check, and the quick tests, as root with real mounts; under a minute
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal -m "not slow"

test-slow: $(VENV)/.dev  ## every way of replacing mounts, storms, the demo; minutes
	@$(call install,$(SLOW_TEST_PACKAGES))
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal -m "slow and not packaging" $(PART)

test-kernels:  ## tests of real mounts on Linux 5.10, 6.1 and 6.12, each in QEMU
	$(PYTHON) tests/kernels/run.py

MINUTES = 60
model: $(VENV)/.dev
	$(VENV)/bin/python -m tests.model --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# One process for each release of Debian, whose tests go on from each other.
test-packages: $(VENV)/.dev  ## packages: built, looked at, installed on booted Debian machines; minutes
	@$(call install,$(BUILD_PACKAGES) $(PACKAGE_TEST_PACKAGES))
	$(VENV)/bin/python -m pip install --quiet --editable '.[packaging]'
	$(VENV)/bin/python -m pytest -n 2 --dist loadscope -m packaging

deb rpm: $(VENV)/bin/python  ## packages in dist/
	@$(call install,$(BUILD_PACKAGES))
	$(VENV)/bin/python packaging/build.py $@

release: $(VENV)/bin/python  ## all that a release consists of, in dist/
	@$(call install,$(BUILD_PACKAGES))
	rm -rf dist
	$(VENV)/bin/python packaging/build.py deb rpm python sums

check: $(VENV)/.dev  ## ruff, mypy --strict
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy fusewatchd

# Printed beside the last results, which are kept in tests/bench/results; QUICK=--quick: minutes.
bench: $(VENV)/.dev  ## numbers for tests/bench/README.md, beside the last ones; QUICK=--quick: minutes
	$(VENV)/bin/python -m tests.bench $(QUICK)

reference: $(VENV)/.run  ## write the generated tables of the README files
	$(VENV)/bin/python packaging/reference.py

attack: $(VENV)/.dev  ## recoveries while a stranger multiplies all he can; QUICK=--quick: in small
	$(VENV)/bin/python -m tests.bench attack $(QUICK)

plots: $(VENV)/.dev  ## draw the results of bench
	$(VENV)/bin/python -m pip install --quiet matplotlib
	$(VENV)/bin/python -m tests.bench.plots

soak: $(VENV)/.dev  ## 2,000 crashes under one daemon; nothing may grow
	$(VENV)/bin/python -m tests.bench.soak --keep tests/bench/results/soak.json

$(VENV)/bin/python:
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  if [ "$(SUDO_APT)" = yes ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && apt-get install -y -qq python3 python3-venv; \
	  else echo "python3 with venv is needed (Debian: apt install python3-venv)" >&2; exit 1; fi; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml
	$(VENV)/bin/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.unit: $(VENV)/bin/python pyproject.toml
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.run

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev,s3]'
	@# FUSE servers and tools for the tests of real mounts, where they can be had.
	@$(call install,$(TEST_PACKAGES))
	touch $@ $(VENV)/.run $(VENV)/.unit

packages:  ## print the Debian packages that tests and builds want
	@echo $(TEST_PACKAGES) $(SLOW_TEST_PACKAGES) $(BUILD_PACKAGES) $(PACKAGE_TEST_PACKAGES)

clean:  ## remove what was made here
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
