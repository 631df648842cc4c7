"""Reading ``vol_data.json`` beside a CSI publish target.

Written by the kubelet (kubernetes, pkg/volume/csi/csi_util.go) next to the directory that the
driver mounts on, so the file itself is on the kubelet's own disk.
"""

from __future__ import annotations

import json
import os
import stat

from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model.pods import VolumeData

MAX_BYTES = 64 * 1024


def read_volume_data(directory: str) -> VolumeData | None:
    """Return driver and volume handle of the volume in ``directory``; None when there is none.

    The directory must not be a mount point.  Nothing there is followed, and nothing that is
    no small regular file is read: the tree belongs to the kubelet, but a pod may once have
    been able to write near it.
    """
    try:
        with closing_fd(os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            text = _read_small_file(fd, "vol_data.json")
        document = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    driver, handle = document.get("driverName"), document.get("volumeHandle")
    if not isinstance(driver, str) or not isinstance(handle, str):
        return None
    return VolumeData(driver, handle, document.get("volumeLifecycleMode") == "Ephemeral")


def _read_small_file(directory: int, name: str) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with closing_fd(os.open(name, flags, dir_fd=directory)) as fd:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            raise ValueError("not a small regular file")
        return os.read(fd, MAX_BYTES)
