"""The rpm: installed, upgraded and erased on a booted machine, and run by every Python there is."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusewatchd import __version__
from tests.packaging.conftest import OLD_VERSION, Packages
from tests.packaging.node import PACKAGES, PackagedNode, packaged_node
from tests.packaging.test_life import CONFIG, nothing_moved

HOME = "/usr/lib/fusewatchd"
BINDS = 2
OF_THE_DISTRIBUTION = {"/etc/sysconfig", "/usr/share/licenses", "/usr/share/zsh/site-functions"}
"""Directories that belong to other packages of Fedora, and that Debian does not have."""

pytestmark = [pytest.mark.packaging, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="class")
def node(packages: Packages) -> Iterator[PackagedNode]:
    with packaged_node("bookworm", packages.directory) as node:
        node.add("one")
        yield node


def rpm(node: PackagedNode, option: str, package: str) -> None:
    # Debian's rpm knows nothing of Debian's python3 and systemd.
    node.machine.run("rpm", option, "--nodeps", package)


class TestOnMachine:
    before: set[str]

    def test_install(self, node: PackagedNode, packages: Packages) -> None:
        TestOnMachine.before = node.files()
        with nothing_moved(node):
            rpm(node, "--install", f"{PACKAGES}/{packages.old_rpm.name}")
            node.wait_until_up()
            node.wait_until_watching(BINDS)
        words = node.machine.output("cat", f"/proc/{node.pid}/cmdline").replace("\0", " ")
        assert f"-I -S -B {HOME} run" in words
        assert node.machine.output("rpm", "--verify", "--nodeps", "fusewatchd") == ""

    def test_its_libraries_are_its_own(self, node: PackagedNode) -> None:
        code = "import fusewatchd.daemon.daemon, fusewatchd.kube.http, sys; print(*(m.__file__ for m in sys.modules.values()"
        code += " if getattr(m, '__file__', None)), sep='\\n')"
        script = f"import sys; sys.path.insert(0, {HOME!r}); {code}"
        files = node.machine.output("/usr/bin/python3", "-I", "-S", "-B", "-c", script).splitlines()
        assert [f for f in files if "dist-packages" in f] == []
        assert any(f.startswith(f"{HOME}/requests/") for f in files)

    def test_upgrade(self, node: PackagedNode, packages: Packages) -> None:
        node.machine.run("sh", "-c", f"echo 'node_name: changed' >> {CONFIG}")
        before = node.pid
        node.do("kill", name="one")
        with nothing_moved(node):
            rpm(node, "--upgrade", f"{PACKAGES}/{packages.rpm.name}")
            node.wait_until_up(besides=before)
        assert node.do("error", name="one") == errno.ENOTCONN
        node.do("restart", name="one")
        assert node.reads("one")
        node.wait_until_watching(BINDS)
        # Of byte code of the old version nothing is run, though times and sizes are the same.
        assert node.machine.output("fusewatchd", "--version") == f"fusewatchd {__version__}"
        assert f"version={__version__}" in node.journal()
        assert "node_name: changed" in node.machine.output("cat", CONFIG)

    def test_downgrade(self, node: PackagedNode, packages: Packages) -> None:
        before = node.pid
        with nothing_moved(node):
            node.machine.run(
                "rpm",
                "--upgrade",
                "--oldpackage",
                "--nodeps",
                f"{PACKAGES}/{packages.old_rpm.name}",
            )
            node.wait_until_up(besides=before)
        assert f"version={OLD_VERSION}" in node.journal("-n", "5")

    def test_erase(self, node: PackagedNode) -> None:
        with nothing_moved(node):
            rpm(node, "--erase", "fusewatchd")
        assert node.processes() == []
        left = {f for f in node.files() - self.before if not f.startswith("/var/lib/fusewatchd")}
        assert left - OF_THE_DISTRIBUTION == {"/etc/fusewatchd", f"{CONFIG}.rpmsave"}
        assert node.reads("one")


def test_every_python_runs_it(packages: Packages, tmp_path: Path) -> None:
    unpack = 'rpm2cpio "$1" | cpio --quiet -idm'
    subprocess.run(["sh", "-c", unpack, "sh", packages.rpm], cwd=tmp_path, check=True)
    home = tmp_path / HOME.lstrip("/")
    tried = []
    for python in _pythons():
        version = subprocess.run(
            [python, "-I", "-S", "-B", home, "--version"], capture_output=True, text=True
        )
        assert version.stdout == f"fusewatchd {__version__}\n", version.stderr
        code = f"import sys; sys.path[:0] = [{str(home)!r}]"
        code += "; import fusewatchd.daemon.daemon, fusewatchd.kube.http"
        subprocess.run([python, "-I", "-S", "-B", "-W", "ignore", "-c", code], check=True)
        tried.append(python)
    assert tried


def _pythons() -> list[str]:
    """Return every Python from 3.10 on: of the system, and of pyenv."""
    found = [p for minor in range(10, 16) if (p := shutil.which(f"python3.{minor}"))]
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True).stdout.strip()
        found += sorted(str(p) for p in Path(root).glob("versions/3.1[0-9]*/bin/python"))
    runs = ["-c", "import sys; sys.exit(sys.version_info < (3, 10))"]
    return [p for p in found if subprocess.run([p, *runs], capture_output=True).returncode == 0]
