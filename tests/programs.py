"""FUSE servers that others wrote, as people start them, and what is known of each."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.backends import SSHD, Backends

_BACKING, _MOUNT = "{backing}", "{mount}"
_SYSTEM_PYTHON = "/usr/bin/python3"
_PYFUSE3_SERVER = Path(__file__).parent / "servers" / "pyfuse3_directory.py"


class Need(NamedTuple):
    """An executable, or a module of some Python, and the package that has it."""

    name: str
    package: str
    python: str = ""

    def is_there(self) -> bool:
        if not self.python:
            return shutil.which(self.name) is not None
        find = f"import importlib.util as u, sys; sys.exit(u.find_spec({self.name!r}) is None)"
        done = subprocess.run([self.python, "-c", find], capture_output=True, check=False)
        return done.returncode == 0


@dataclass(frozen=True, slots=True)
class Program:
    """How a server is started."""

    needs: tuple[Need, ...]
    command: Callable[[Backends], Sequence[str]]
    """Made for ``Source``, with ``{backing}`` and ``{mount}``."""
    detaches: bool = False
    """It goes into the background by itself."""
    looks_alive_when_dead: bool = False
    """It lets the kernel keep attributes for so long that its dead root can still be looked at."""

    def why_not(self) -> str:
        """Return why it cannot be started here, or nothing."""
        missing = [need for need in self.needs if not need.is_there()]
        return "; ".join(f"no {need.name} here (package {need.package})" for need in missing)


def _bindfs(*options: str) -> Callable[[Backends], Sequence[str]]:
    return lambda _: ("bindfs", *options, _BACKING, _MOUNT)


def _mergerfs(*options: str) -> Callable[[Backends], Sequence[str]]:
    return lambda _: ("mergerfs", *options, "-o", "allow_other", _BACKING, _MOUNT)


def _pyfuse3(_: Backends) -> Sequence[str]:
    return (_SYSTEM_PYTHON, str(_PYFUSE3_SERVER), _BACKING, _MOUNT)


def _rclone(*options: str) -> Callable[[Backends], Sequence[str]]:
    # Its S3 client refuses to work where AWS_CA_BUNDLE is set.
    def command(backends: Backends) -> Sequence[str]:
        config = ("--config", backends.rclone_config)
        words = ("env", "-u", "AWS_CA_BUNDLE", "rclone", *config, "mount", "--allow-other")
        return (*words, *options, "lab:bucket", _MOUNT)

    return command


def _s3fs(*options: str) -> Callable[[Backends], Sequence[str]]:
    def command(backends: Backends) -> Sequence[str]:
        at = f"url={backends.s3_url},use_path_request_style,allow_other"
        at += f",passwd_file={backends.s3_password_file}"
        return ("s3fs", *options, "bucket", _MOUNT, "-o", at)

    return command


def _squashfuse(program: str, *options: str) -> Callable[[Backends], Sequence[str]]:
    return lambda backends: (program, *options, backends.image, _MOUNT)


def _sshfs(*options: str) -> Callable[[Backends], Sequence[str]]:
    return lambda backends: (
        *("sshfs", "-F", backends.ssh_config, *options, "-o", "allow_other"),
        *(f"lab:{backends.directory}", _MOUNT),
    )


def _unionfs(*options: str) -> Callable[[Backends], Sequence[str]]:
    return lambda _: ("unionfs", *options, "-o", "allow_other", "{backing}=RW", _MOUNT)


_BINDFS = (Need("bindfs", "bindfs"),)
_MERGERFS = (Need("mergerfs", "mergerfs"),)
_PYFUSE3 = (Need("pyfuse3", "python3-pyfuse3", _SYSTEM_PYTHON),)
_S3_SERVER = Need("moto", "moto[s3,server], from PyPI", sys.executable)
_RCLONE = (Need("rclone", "rclone"), _S3_SERVER)
_S3FS = (Need("s3fs", "s3fs"), _S3_SERVER)
_SQUASHFUSE = (Need("squashfuse", "squashfuse"), Need("mksquashfs", "squashfs-tools"))
_SSHFS = (Need("sshfs", "sshfs"), Need(SSHD, "openssh-server"))
_UNIONFS = (Need("unionfs", "unionfs-fuse"),)

PROGRAMS = {
    "bindfs": Program(_BINDFS, _bindfs("-f")),
    "bindfs-single": Program(_BINDFS, _bindfs("-f", "-s")),
    "bindfs-daemon": Program(_BINDFS, _bindfs(), detaches=True),
    "mergerfs": Program(_MERGERFS, _mergerfs("-f")),
    "mergerfs-daemon": Program(_MERGERFS, _mergerfs(), detaches=True),
    "pyfuse3": Program(_PYFUSE3, _pyfuse3, looks_alive_when_dead=True),
    "rclone": Program(_RCLONE, _rclone()),
    "rclone-daemon": Program(_RCLONE, _rclone("--daemon"), detaches=True),
    "s3fs": Program(_S3FS, _s3fs("-f")),
    "s3fs-daemon": Program(_S3FS, _s3fs(), detaches=True),
    "squashfuse-single": Program(_SQUASHFUSE, _squashfuse("squashfuse", "-f", "-s")),
    "squashfuse-daemon": Program(_SQUASHFUSE, _squashfuse("squashfuse"), detaches=True),
    "squashfuse_ll-daemon": Program(
        _SQUASHFUSE, _squashfuse("squashfuse_ll"), detaches=True, looks_alive_when_dead=True
    ),
    "sshfs": Program(_SSHFS, _sshfs("-f")),
    "sshfs-single-daemon": Program(_SSHFS, _sshfs("-s"), detaches=True),
    "unionfs": Program(_UNIONFS, _unionfs("-f")),
    "unionfs-daemon": Program(_UNIONFS, _unionfs(), detaches=True),
}
