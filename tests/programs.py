"""FUSE servers that others wrote, as people start them, and what is known of each."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.backends import SSHD, Backends

_BACKING, _MOUNT = "{backing}", "{mount}"
_SYSTEM_PYTHON = "/usr/bin/python3"
_PYFUSE3_SERVER = Path(__file__).parent / "servers" / "pyfuse3_directory.py"
_SQUASHFS = (("squashfuse", "squashfuse"), ("mksquashfs", "squashfs-tools"))
_SSHFS = (("sshfs", "sshfs"), (SSHD, "openssh-server"))


@dataclass(frozen=True, slots=True)
class Program:
    """How a server is started."""

    requires: tuple[tuple[str, str], ...]
    """Executables and the Debian packages they are in."""
    command: Callable[[Backends], Sequence[str]]
    """Made for ``Source``, with ``{backing}`` and ``{mount}``."""
    detaches: bool = False
    """It goes into the background by itself."""
    looks_alive_when_dead: bool = False
    """It lets the kernel keep attributes for so long that its dead root can still be looked at."""

    def why_not(self) -> str:
        """Return why it cannot be started here, or nothing."""
        for executable, package in self.requires:
            if shutil.which(executable) is None:
                return f"{executable} is not installed (Debian: {package})"
        if self.command is _pyfuse3:
            done = subprocess.run([_SYSTEM_PYTHON, "-c", "import pyfuse3"], capture_output=True)
            return "" if done.returncode == 0 else "python3-pyfuse3 is not installed"
        return ""


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


PROGRAMS = {
    "bindfs": Program((("bindfs", "bindfs"),), _bindfs("-f")),
    "bindfs-single": Program((("bindfs", "bindfs"),), _bindfs("-f", "-s")),
    "bindfs-daemon": Program((("bindfs", "bindfs"),), _bindfs(), detaches=True),
    "mergerfs": Program((("mergerfs", "mergerfs"),), _mergerfs("-f")),
    "mergerfs-daemon": Program((("mergerfs", "mergerfs"),), _mergerfs(), detaches=True),
    "pyfuse3": Program((), _pyfuse3, looks_alive_when_dead=True),
    "rclone": Program((("rclone", "rclone"),), _rclone()),
    "rclone-daemon": Program((("rclone", "rclone"),), _rclone("--daemon"), detaches=True),
    "s3fs": Program((("s3fs", "s3fs"),), _s3fs("-f")),
    "s3fs-daemon": Program((("s3fs", "s3fs"),), _s3fs(), detaches=True),
    "squashfuse-single": Program(_SQUASHFS, _squashfuse("squashfuse", "-f", "-s")),
    "squashfuse-daemon": Program(_SQUASHFS, _squashfuse("squashfuse"), detaches=True),
    "squashfuse_ll-daemon": Program(
        _SQUASHFS, _squashfuse("squashfuse_ll"), detaches=True, looks_alive_when_dead=True
    ),
    "sshfs": Program(_SSHFS, _sshfs("-f")),
    "sshfs-single-daemon": Program(_SSHFS, _sshfs("-s"), detaches=True),
    "unionfs": Program((("unionfs", "unionfs-fuse"),), _unionfs("-f")),
    "unionfs-daemon": Program((("unionfs", "unionfs-fuse"),), _unionfs(), detaches=True),
}
