"""How mounts go: by a driver at the end of a pod, and whatever is left at the end of a lab."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from enum import Enum

from fusewatchd.demo.node.sources import MOST_LAYERS
from fusewatchd.demo.node.world import mount_points
from fusewatchd.linux import syscalls


class Unmounting(Enum):
    """How a CSI driver takes its bind away at the end of a pod."""

    UNTIL_BARE = "until bare"
    ONCE = "once"
    """One umount, then the directory must go; the kubelet tries again later."""


def mount_points_below(directory: str) -> list[str]:
    """Return the mount points below a directory in the order of the mount table."""
    return [path for path in mount_points() if path.startswith(directory + "/")]


def take_away(target: str, unmounting: Unmounting) -> int:
    """Unmount and remove a mount point; returns how many mounts it had."""
    most = 1 if unmounting is Unmounting.ONCE else MOST_LAYERS
    count = 0
    try:
        while count < most:
            syscalls.umount2(target, syscalls.UMOUNT_NOFOLLOW)
            count += 1
    except OSError as error:
        if error.errno == errno.ENOENT:
            return 0
        if error.errno != errno.EINVAL:
            raise
    try:
        os.rmdir(target)
    except NotADirectoryError:
        os.unlink(target)
    return count


def abort_connection(device: str) -> None:
    """Make the kernel fail everything that waits for a FUSE server, where fusectl is there."""
    path = f"/sys/fs/fuse/connections/{device.partition(':')[2]}/abort"
    with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
        file.write("1")


def fuse_devices(process: str) -> set[str]:
    """Return the devices of the (not block device) FUSE mounts that a process sees."""
    found = set()
    with contextlib.suppress(OSError), open(f"/proc/{process}/mountinfo", "rb") as file:
        for line in file:
            fields, _, fs_type = line.partition(b" - ")
            device = os.fsdecode(fields.split(b" ")[2])
            if device.startswith("0:") and re.match(rb"fuse[. ]", fs_type):
                found.add(device)
    return found
