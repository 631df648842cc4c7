"""The recipe for signed repositories of one's own, up to a package that apt installed from one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusewatchd import __version__
from tests.packaging.conftest import Packages
from tests.packaging.node import PACKAGES, PackagedNode, packaged_node

TOP = Path(__file__).parents[2]
KEY = "packages@fusewatchd.example"
KEYRING = "/etc/apt/keyrings/fusewatchd.gpg"

pytestmark = [pytest.mark.packaging, pytest.mark.slow, pytest.mark.timeout(600)]


def run(*words: str | Path, **environ: str) -> str:
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, **environ}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, packages: Packages) -> Path:
    """A directory with both repositories, signed by a key that is made for this."""
    base = tmp_path_factory.mktemp("repository")
    home, dist, output = base / "gnupg", base / "dist", base / "shared"
    home.mkdir(mode=0o700)
    dist.mkdir()
    for package in (packages.deb, packages.rpm):
        shutil.copy(package, dist)
    gnupg = {"GNUPGHOME": str(home)}
    run("gpg", "--batch", "--passphrase", "", "--quick-gen-key", KEY, "rsa3072", "sign", **gnupg)
    try:
        run(TOP / "packaging/repository.sh", dist, KEY, output, **gnupg)
        # Again, as with the next release: nothing is in the way.
        run(TOP / "packaging/repository.sh", dist, KEY, output, **gnupg)
    finally:
        run("gpgconf", "--kill", "gpg-agent", **gnupg)
    return output


@pytest.fixture(scope="module")
def node(shared: Path) -> Iterator[PackagedNode]:
    with packaged_node("bookworm", shared) as node:
        yield node


def test_apt_installs_from_it_and_from_no_other_that_is_not_signed(node: PackagedNode) -> None:
    machine = node.machine
    sources = machine.output("cat", f"{PACKAGES}/fusewatchd.sources")
    url = f"URIs: file:{PACKAGES}/apt"
    node.write("/etc/apt/sources.list.d/fusewatchd.sources", sources.replace("URIs: URL/apt", url))
    only = ["-o", "Dir::Etc::sourcelist=/etc/apt/sources.list.d/fusewatchd.sources"]
    only += ["-o", "Dir::Etc::sourceparts=-"]
    # Without the key it is not trusted.
    refused = machine.run("apt-get", "update", *only, check=False)
    assert "NO_PUBKEY" in refused.stdout + refused.stderr
    machine.run("mkdir", "-p", "/etc/apt/keyrings")
    machine.run("cp", f"{PACKAGES}/fusewatchd.gpg", KEYRING)
    machine.run("apt-get", "update", *only)
    machine.run("apt-get", "install", "--yes", "fusewatchd")
    policy = machine.output("apt-cache", "policy", "fusewatchd")
    assert f"Installed: {__version__}" in policy
    assert f"file:{PACKAGES}/apt" in policy
    assert machine.output("fusewatchd", "--version") == f"fusewatchd {__version__}"
    node.wait_until_up()


def test_dnf_finds_it_by_the_key_and_refuses_what_was_changed(shared: Path, tmp_path: Path) -> None:
    copy = tmp_path / "served"
    shutil.copytree(shared, copy)
    assert f"fusewatchd-0:{__version__}-1.noarch\n" in found_by_dnf(copy, tmp_path / "one")
    index = copy / "rpm/repodata/repomd.xml"
    index.write_text(index.read_text().replace("</repomd>", "<!-- --></repomd>"))
    said = found_by_dnf(copy, tmp_path / "two")
    assert f"fusewatchd-0:{__version__}" not in said
    assert "signature" in said


def found_by_dnf(repository: Path, work: Path) -> str:
    """Return what dnf, which has nothing but this repository, finds in it."""
    (work / "reposdir").mkdir(parents=True)
    described = (repository / "fusewatchd.repo").read_text()
    (work / "reposdir/fusewatchd.repo").write_text(described.replace("URL", f"file://{repository}"))
    options = {"reposdir": work / "reposdir", "cachedir": work / "cache"}
    settings = [f"--setopt={name}={path}" for name, path in options.items()]
    root = ["--releasever=9", f"--installroot={work}/root"]
    said = run("dnf", "--assumeyes", *settings, *root, "repoquery", "fusewatchd")
    # dnf leaves an agent behind for each of its keyrings.
    for keyring in work.glob("cache/*/pubring"):
        run("gpgconf", "--homedir", keyring, "--kill", "gpg-agent")
    return said


def test_the_rpm_is_signed_by_the_key(shared: Path, tmp_path: Path) -> None:
    database = tmp_path / "rpm"
    run("rpmkeys", "--dbpath", database, "--import", shared / "fusewatchd.asc")
    (rpm,) = (shared / "rpm").glob("*.rpm")
    said = run("rpmkeys", "--dbpath", database, "--checksig", "--verbose", rpm)
    assert "Signature, key ID" in said
    assert "NOKEY" not in said
    assert "BAD" not in said


def test_what_autopkgtest_runs_passes_on_the_installed_package(node: PackagedNode) -> None:
    control = (TOP / "packaging/debian/tests/control").read_text()
    commands = re.findall(r"^Test-Command: (.*)$", control, re.MULTILINE)
    assert any("demo" in command for command in commands)
    for command in commands:
        node.machine.run("sh", "-ec", command, timeout=120.0)
