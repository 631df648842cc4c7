#!/usr/bin/env python3
"""Build packages: python3 packaging/build.py {deb,rpm,python,sums} ... [--output dist].

``python`` is the wheel and the source archive, ``sums`` the bill of materials and the checksums of
all that is in the output by then.

All from one copy of the source tree, in which times, modes and order are always the same: the
same source gives the same bytes wherever it is built.  The version is ``fusewatchd.__version__``.
The time is ``SOURCE_DATE_EPOCH``, else that of the last commit, else that of the version's file.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from sbom import bill_of_materials

TOP = Path(__file__).resolve().parents[1]
SOURCES = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "conf",
    "fusewatchd",
    "packaging",
    "pyproject.toml",
    "systemd",
    "tests",
)
_NO_SOURCES = re.compile(r"__pycache__|\.(?!ci$).*|.*\.egg-info|generated")
_SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
"""Without pythons that somebody keeps aside: the packages are for the system's."""
_COMPILED = (".so", ".pyd")
MAINTAINER = "fusewatchd developers <developers@fusewatchd.io>"


@dataclass(frozen=True, slots=True)
class Release:
    """What is built."""

    version: str
    """As Python writes it, PEP 440."""
    epoch: int
    """Seconds since 1970; no file in a package is newer."""
    changes: tuple[str, ...]
    """What is new, one paragraph each."""

    @property
    def package_version(self) -> str:
        """As dpkg and rpm order it: 1.0~rc1 comes before 1.0."""
        return re.sub(r"(?<=\d)\.?(?=(a|b|rc|dev)\d)", "~", self.version)


def main() -> int:
    """Build what was asked for."""
    parser = argparse.ArgumentParser(description="Build packages.")
    parser.add_argument("kinds", nargs="+", choices=list(_BUILDERS))
    parser.add_argument("--output", type=Path, default=TOP / "dist")
    options = parser.parse_args()
    os.umask(0o022)
    release = release_of(TOP)
    os.environ |= {
        "SOURCE_DATE_EPOCH": str(release.epoch),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fusewatchd-build-") as directory:
        tree = stage(Path(directory) / f"fusewatchd-{release.package_version}", release)
        for kind in options.kinds:
            for built in _BUILDERS[kind](tree, release, options.output):
                target = options.output / built.name
                shutil.move(built, target)
                print(target)
    return 0


def release_of(top: Path) -> Release:
    """Return the version, the time and the changes of a source tree."""
    file = top / "fusewatchd/__init__.py"
    found = re.search(r'^__version__ = "([^"]+)"$', file.read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit(f"no version in {file}")
    changes = newest_changes((top / "CHANGELOG.md").read_text())
    return Release(found[1], _epoch(top, file), changes)


def newest_changes(changelog: str) -> tuple[str, ...]:
    """Return the items below the first heading of second level."""
    section = re.split(r"^## ", changelog, flags=re.MULTILINE)[1].partition("\n")[2]
    items = re.split(r"^\* ", section, flags=re.MULTILINE)[1:]
    return tuple(" ".join(item.split()).replace("`", "") for item in items)


def _epoch(top: Path, fallback: Path) -> int:
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    command = ["git", "-C", str(top), "log", "-1", "--format=%ct"]
    if (top / ".git").exists() and shutil.which("git"):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip():
            return int(done.stdout)
    return int(fallback.stat().st_mtime)


def stage(tree: Path, release: Release) -> Path:
    """Copy the sources to ``tree``, with modes and times that say nothing of this machine."""
    tree.mkdir()
    for name in SOURCES:
        if (TOP / name).is_dir():
            shutil.copytree(TOP / name, tree / name, ignore=_ignored)
        else:
            shutil.copy(TOP / name, tree / name)
    generate = [sys.executable, "packaging/generate.py", "packaging/generated"]
    _run(generate, cwd=tree)
    for path in [tree, *tree.rglob("*")]:
        is_program = path.is_dir() or path.stat().st_mode & 0o100
        path.chmod(0o755 if is_program else 0o644)
        os.utime(path, (release.epoch, release.epoch))
    return tree


def _ignored(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if _NO_SOURCES.fullmatch(name)]


def _run(command: list[str], cwd: Path, **environ: str) -> None:
    subprocess.run(command, cwd=cwd, env={**os.environ, **environ}, check=True)


# ---------------------------------------------------------------------------------------- deb


def build_deb(tree: Path, release: Release, output: Path) -> list[Path]:
    """Build the binary package with debhelper."""
    work = tree.parent / "deb" / tree.name
    shutil.copytree(tree, work)
    shutil.copytree(work / "packaging/debian", work / "debian")
    for unit in (work / "systemd").iterdir():
        shutil.copy(unit, work / "debian")
    shutil.copy(work / "packaging/options", work / "debian/fusewatchd.default")
    (work / "debian/changelog").write_text(debian_changelog(release))
    # Which would ask for a compiler; what is lacking indeed is told by the build.
    command = ["dpkg-buildpackage", "--build=binary", "--no-sign", "--no-check-builddeps"]
    log = work.parent / "log"
    with log.open("wb") as file:
        environ = {**os.environ, "PATH": _SYSTEM_PATH}
        done = subprocess.run(command, cwd=work, env=environ, stdout=file, stderr=file)
    if done.returncode:
        raise SystemExit(f"{log.read_text(errors='replace')}\ndpkg-buildpackage failed")
    return list(work.parent.glob("*.deb"))


def debian_changelog(release: Release) -> str:
    """Return the only entry of the package's changelog; CHANGELOG.md has them all."""
    items = "\n".join(
        textwrap.fill(item, 78, initial_indent="  * ", subsequent_indent="    ")
        for item in release.changes
    )
    date = formatdate(release.epoch)
    head = f"fusewatchd ({release.package_version}) unstable; urgency=medium"
    return f"{head}\n\n{items}\n\n -- {MAINTAINER}  {date}\n"


# ---------------------------------------------------------------------------------------- rpm


def build_rpm(tree: Path, release: Release, output: Path) -> list[Path]:
    """Build the package that brings its libraries along, with rpmbuild."""
    top = tree.parent / "rpm"
    for name in ("SOURCES", "BUILD", "BUILDROOT", "RPMS", "SPECS"):
        (top / name).mkdir(parents=True)
    libraries = vendor(tree / "packaging/rpm/vendor.txt", top / "libraries")
    write_tar(tree, top / "SOURCES" / f"{tree.name}.tar.gz", release.epoch)
    write_tar(top / "libraries", top / "SOURCES/libraries.tar.gz", release.epoch)
    spec = top / "SPECS/fusewatchd.spec"
    bundled = "".join(f"Provides: bundled(python3dist({n})) = {v}\n" for n, v in libraries)
    template = (tree / "packaging/rpm/fusewatchd.spec").read_text()
    template = template.replace("@VERSION@", release.package_version)
    spec.write_text(template.replace("@BUNDLED@\n", bundled) + rpm_changelog(release))
    defines = {"_topdir": str(top), "_buildhost": "reproducible", "_builddir": str(top / "BUILD")}
    words = [w for k, v in defines.items() for w in ("--define", f"{k} {v}")]
    done = subprocess.run(
        ["rpmbuild", "-bb", "--quiet", *words, str(spec)], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}\nrpmbuild failed")
    return list((top / "RPMS").rglob("*.rpm"))


def rpm_changelog(release: Release) -> str:
    """Return the changelog's only entry."""
    date = formatdate(release.epoch).split()
    items = "\n".join(
        textwrap.fill(item.replace("%", "%%"), 78, initial_indent="- ", subsequent_indent="  ")
        for item in release.changes
    )
    # formatdate: Thu, 01 Jan 1970 ...; rpm: Thu Jan 01 1970
    day = f"{date[0].rstrip(',')} {date[2]} {date[1]} {date[3]}"
    return f"\n%changelog\n* {day} {MAINTAINER} - {release.package_version}-1\n{items}\n"


def vendor(requirements: Path, target: Path) -> list[tuple[str, str]]:
    """Unpack the pinned libraries into ``target``; return their names and versions."""
    downloads = target.with_name("downloads")
    platforms = [w for p in ("any", "manylinux2014_x86_64") for w in ("--platform", p)]
    pip = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
        "--python-version", "3.10", "--implementation", "cp", "--abi", "cp310", "--abi", "none",
        *platforms, "--requirement", str(requirements), "--dest", str(downloads),
    ]  # fmt: skip
    _run(pip, cwd=target.parent)
    target.mkdir()
    for archive in sorted(downloads.iterdir()):
        if archive.suffix == ".whl":
            _unpack_wheel(archive, target)
        else:
            _unpack_source(archive, target)
    pins = re.findall(r"^([\w.-]+)==(\S+)", requirements.read_text(), re.MULTILINE)
    return [(name.replace("_", "-"), version) for name, version in pins]


def _unpack_wheel(archive: Path, target: Path) -> None:
    with zipfile.ZipFile(archive) as wheel:
        for name in wheel.namelist():
            if not name.endswith((*_COMPILED, "/", ".dist-info/RECORD")):
                wheel.extract(name, target)


def _unpack_source(archive: Path, target: Path) -> None:
    """Take the modules of a source archive without running anything of it."""
    with tarfile.open(archive) as tar:
        tar.extractall(target.with_name("unpacked"), filter="data")
    (source,) = target.with_name("unpacked").glob(f"{archive.name.removesuffix('.tar.gz')}*")
    name = archive.name.split("-")[0]
    (module,) = (m for m in (source / f"python3/{name}.py", source / name) if m.exists())
    if module.is_dir():
        shutil.copytree(module, target / name)
    else:
        shutil.copy(module, target)
    licence = target / f"{source.name}.dist-info"
    licence.mkdir()
    for file in (*source.glob("LICENSE*"), *source.glob("COPYING*"), source / "PKG-INFO"):
        shutil.copy(file, licence / ("METADATA" if file.name == "PKG-INFO" else file.name))


# ------------------------------------------------------------------------- for Python's own tools


def build_python(tree: Path, release: Release, output: Path) -> list[Path]:
    """Build the wheel, and the source archive, which has the wheel's metadata in it."""
    work = tree.parent / "python"
    shutil.copytree(tree, work / "tree")
    # By its absolute path: a mere name is one of the registry's to pip.
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(work)]
    _run([*pip, str(work / "tree")], cwd=work)
    (wheel,) = work.glob(f"fusewatchd-{release.version}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        content = archive.read(metadata)
    named = work / f"fusewatchd-{release.version}"
    shutil.copytree(tree, named)
    (named / "PKG-INFO").write_bytes(content)
    source = work / f"fusewatchd-{release.version}.tar.gz"
    write_tar(named, source, release.epoch)
    return [wheel, source]


def write_sums(tree: Path, release: Release, output: Path) -> list[Path]:
    """Write the bill of materials, and the checksums of everything."""
    bill = tree.parent / f"fusewatchd-{release.version}.cdx.json"
    bill.write_text(bill_of_materials(tree, release.version, release.epoch))
    # What an earlier run left would be in its own sum.
    earlier = {"SHA256SUMS", bill.name}
    files = [bill, *(p for p in output.iterdir() if p.is_file() and p.name not in earlier)]
    sums = tree.parent / "SHA256SUMS"
    lines = sorted(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in files)
    sums.write_text("".join(lines))
    return [bill, sums]


def write_tar(directory: Path, archive: Path, epoch: int) -> None:
    """Pack a directory; the same files give the same bytes."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in _in_order(directory):
            member = tar.gettarinfo(path, str(path.relative_to(directory.parent)))
            member.uid = member.gid = 0
            member.uname = member.gname = "root"
            member.mtime = epoch
            member.mode = 0o755 if path.is_dir() or member.mode & 0o100 else 0o644
            if member.isfile():
                with path.open("rb") as file:
                    tar.addfile(member, file)
            else:
                tar.addfile(member)
    archive.write_bytes(gzip.compress(content.getvalue(), mtime=0))


def _in_order(directory: Path) -> Iterable[Path]:
    return [directory, *sorted(directory.rglob("*"))]


_BUILDERS = {"deb": build_deb, "rpm": build_rpm, "python": build_python, "sums": write_sums}

if __name__ == "__main__":
    sys.exit(main())
