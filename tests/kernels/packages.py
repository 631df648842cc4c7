"""What Debian's archive gives: the tools, and the kernels of its releases."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from kernels import Kernel

MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGE = "linux-image-cloud-amd64"
_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "cpio": "cpio",
    "depmod": "kmod",
}


def install_tools() -> None:
    """Install what is missing on this machine."""
    missing = [package for tool, package in _TOOLS.items() if shutil.which(tool) is None]
    if missing:
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL)


def fetch_kernel(kernel: Kernel, directory: Path) -> Path:
    """Return where the newest kernel of a release is unpacked, below ``directory``.

    Its apt has sources, lists and a state of its own, all in ``directory``.
    """
    apt = _apt(kernel.suite, directory / "apt")
    subprocess.run(["apt-get", *apt, "update", "-qq"], check=True)
    depends = ["apt-cache", *apt, "depends", "--important", PACKAGE]
    answer = subprocess.run(depends, check=True, stdout=subprocess.PIPE, text=True).stdout
    (package,) = [line.split()[1] for line in answer.splitlines() if "Depends: linux-image" in line]
    unpacked = directory / package
    if not unpacked.exists():
        fresh = directory / "fresh"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        subprocess.run(["apt-get", *apt, "download", "-qq", package], cwd=fresh, check=True)
        (archive,) = fresh.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, fresh], check=True)
        archive.unlink()
        fresh.rename(unpacked)
    return unpacked


def _apt(suite: str, directory: Path) -> list[str]:
    """Return the options that give apt a world of its own in ``directory``."""
    for name in ("lists/partial", "archives/partial"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    (directory / "status").touch()
    sources = directory / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n")
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State": directory,
        "Dir::State::status": directory / "status",
        "Dir::Cache": directory,
        "Acquire::Languages": "none",
        # The download goes to a directory that only root may write to.
        "APT::Sandbox::User": "root",
    }
    return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
