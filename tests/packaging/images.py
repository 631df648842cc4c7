"""Root file systems of Debian releases, to boot machines from.

The mirror is that of this machine's own apt; what is made is kept below ``build/machines``.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build" / "machines"
PACKAGES = (
    "bindfs",
    "cloud-init",
    "curl",
    "dbus",
    "fuse3",
    "libpam-systemd",
    "procps",
    "python3",
    "python3-prometheus-client",
    "python3-pyinotify",
    "python3-requests",
    "python3-sdnotify",
    "python3-yaml",
    "rpm",
    "systemd",
    "systemd-sysv",
)
"""What fusewatchd depends on is in the image: a booted machine has no network."""


def image(suite: str) -> Path:
    """Return the directory of a release's root, made when there is none of this recipe."""
    recipe = hashlib.sha256(repr((suite, PACKAGES, _finish.__code__.co_consts)).encode())
    root = BUILD / f"{suite}-{recipe.hexdigest()[:12]}"
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / f"{suite}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            for old in BUILD.glob(f"{suite}-*"):
                shutil.rmtree(old)
            fresh = BUILD / f"{suite}-fresh"
            bootstrap = ["mmdebstrap", "--quiet", "--variant=minbase", "--format=directory"]
            bootstrap += [f"--include={','.join(PACKAGES)}", suite, str(fresh), mirror()]
            subprocess.run(bootstrap, check=True)
            _finish(fresh)
            fresh.rename(root)
    return root


def _finish(root: Path) -> None:
    # With it no package may start its service.
    (root / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
    # There are no modules to load, for which newer releases call the machine degraded.
    unit = root / "etc/systemd/system/systemd-modules-load.service"
    os.symlink("/dev/null", unit)
    (root / "etc/machine-id").write_text("")
    # A test runs it; at a boot it would look for a cloud.
    (root / "etc/cloud/cloud-init.disabled").touch()


def mirror() -> str:
    """Return where this machine's apt gets Debian's archive from.

    Raises:
        LookupError: it has no such source.
    """
    ask = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(LABEL) $(COMPONENT)"]
    answer = subprocess.run(ask, check=True, capture_output=True, text=True).stdout
    for line in answer.splitlines():
        uri, label, component = line.split()
        if label == "Debian" and component == "main":
            return uri
    raise LookupError("apt has no source of Debian's archive here")
