"""What is built: the same bytes wherever it is built, and nothing for lintian and rpmlint to say."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from fusewatchd import __version__
from tests.packaging.conftest import TOP, Packages, build, copy_tree

pytestmark = [pytest.mark.packaging, pytest.mark.slow, pytest.mark.timeout(600)]


def digests(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.iterdir()}


def output(*words: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    epoch = {"SOURCE_DATE_EPOCH": "1700000000"}
    build(copy_tree(tmp_path / "a"), tmp_path / "one", "deb", "rpm", "python", **epoch)
    other = copy_tree(tmp_path / "of-another-length" / "b")
    for path in other.rglob("*"):
        os.utime(path, (1_500_000_000, 1_500_000_000))
        path.chmod(path.stat().st_mode & 0o700)
    umask = os.umask(0o077)
    try:
        elsewhere = {"TZ": "Asia/Tokyo", "LC_ALL": "C", "TMPDIR": str(tmp_path)}
        build(other, tmp_path / "two", "python", "rpm", "deb", **epoch, **elsewhere)
    finally:
        os.umask(umask)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert set(digests(tmp_path / "one")) == {
        f"fusewatchd_{__version__}_all.deb",
        f"fusewatchd-{__version__}-1.noarch.rpm",
        f"fusewatchd-{__version__}-py3-none-any.whl",
        f"fusewatchd-{__version__}.tar.gz",
    }


def test_the_source_archive_is_one_for_pip(tmp_path: Path) -> None:
    build(TOP, tmp_path / "built", "python", "sums")
    (archive,) = (tmp_path / "built").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        top = f"fusewatchd-{__version__}"
        member = tar.extractfile(f"{top}/PKG-INFO")
        assert member is not None
        assert f"Name: fusewatchd\nVersion: {__version__}\n" in member.read().decode()
        assert {f"{top}/fusewatchd/cli.py", f"{top}/packaging/debian/rules"} <= set(tar.getnames())
    output("sha256sum", "--check", "--strict", "SHA256SUMS", cwd=tmp_path / "built")
    assert (tmp_path / "built" / f"fusewatchd-{__version__}.cdx.json").exists()


def test_lintian_and_rpmlint_have_nothing_to_say(packages: Packages) -> None:
    tags = ["--pedantic", "--display-info", "--allow-root", "--no-tag-display-limit"]
    assert output("lintian", *tags, packages.deb) == ""
    said = output("rpmlint", "--config", TOP / "packaging/rpm/rpmlint.toml", packages.rpm)
    assert "0 errors, 0 warnings" in said


def test_versions_come_from_one_place(packages: Packages) -> None:
    assert output("dpkg-deb", "--field", packages.deb, "Version").strip() == __version__
    query = "%{VERSION}-%{RELEASE}"
    assert output("rpm", "-qp", "--queryformat", query, packages.rpm) == f"{__version__}-1"


def test_both_bring_the_same_files_but_for_their_customs(packages: Packages) -> None:
    deb = output("dpkg-deb", "--contents", packages.deb)
    rpm = output("rpm", "-qpl", packages.rpm)
    for path in (
        "/etc/fusewatchd/fusewatchd.yaml",
        "/usr/bin/fusewatchd",
        "/lib/systemd/system/fusewatchd.service",
        "/lib/systemd/system/fusewatchd-keeper.service",
        "/lib/systemd/system/fusewatchd-keeper.socket",
        "/lib/systemd/system/fusewatchd.service.wants/fusewatchd-keeper.socket",
        "/lib/sysusers.d/fusewatchd.conf",
        "/usr/share/man/man8/fusewatchd.8.gz",
        "/usr/share/man/man5/fusewatchd.yaml.5.gz",
        "/usr/share/man/man7/fusewatchd-reasons.7.gz",
        "/usr/lib/systemd/catalog/fusewatchd.catalog",
        "/usr/share/bash-completion/completions/fusewatchd",
        "/_fusewatchd",
    ):
        assert re.search(rf"{re.escape(path)}( -> .*)?$", deb, re.MULTILINE), path
        assert re.search(rf"{re.escape(path)}$", rpm, re.MULTILINE), path
    conffiles = output("dpkg-deb", "--info", packages.deb, "conffiles").split()
    assert conffiles == ["/etc/default/fusewatchd", "/etc/fusewatchd/fusewatchd.yaml"]
    configs = output("rpm", "-qp", "--configfiles", packages.rpm).split()
    assert configs == ["/etc/fusewatchd/fusewatchd.yaml", "/etc/sysconfig/fusewatchd"]
    # Whatever is in conf/ besides is for the node's administrator to look at.
    for example in (TOP / "conf").iterdir():
        assert f"/usr/share/doc/fusewatchd/examples/{example.name}" in deb
        assert f"/usr/share/doc/fusewatchd/examples/{example.name}" in rpm


def test_the_rpms_library_has_nothing_compiled_and_is_listed(packages: Packages) -> None:
    files = output("rpm", "-qpl", packages.rpm).split()
    assert [f for f in files if f.endswith((".so", ".pyc", ".pyd"))] == []
    provides = output("rpm", "-qp", "--provides", packages.rpm)
    pins = (TOP / "packaging/rpm/vendor.txt").read_text()
    for name, version in re.findall(r"^([\w.-]+)==(\S+)", pins, re.MULTILINE):
        assert f"bundled(python3dist({name.replace('_', '-')})) = {version}\n" in provides
        licences = f"/usr/lib/fusewatchd/{name}-{version}.dist-info"
        assert licences in files


def test_manual_pages_and_completions_are_well_formed(tmp_path: Path) -> None:
    output("python3", TOP / "packaging/generate.py", tmp_path)
    for page in ("fusewatchd.8", "fusewatchd.yaml.5"):
        done = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww", "-z", tmp_path / page],
            capture_output=True,
            text=True,
        )
        assert done.stderr == ""
    complete = (
        'source "$1"; COMP_WORDS=(fusewatchd "${@:2}"); COMP_CWORD=$(($# - 1)); _fusewatchd; '
    )
    complete += 'echo "${COMPREPLY[@]}"'

    def completed(*words: str) -> list[str]:
        return output("bash", "-c", complete, "bash", tmp_path / "fusewatchd", *words).split()

    assert completed("config-c") == ["config-check"]
    assert completed("status", "--w") == ["--watch"]
    assert completed("run", "--config", str(tmp_path / "_fuse")) == [str(tmp_path / "_fusewatchd")]
    assert shutil.which("zsh")
    output("zsh", "-n", tmp_path / "_fusewatchd")
