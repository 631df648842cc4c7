"""Detach a dead source mount, and nothing that answers."""

from __future__ import annotations

import errno
import os

from fusewatchd.linux import statfs
from fusewatchd.linux.mount_kernel import MountKernel, fail, refuse, skip
from fusewatchd.linux.mount_stack import mounts_on, opened
from fusewatchd.linux.statfs import Refuser
from fusewatchd.model.actions import DetachDeadSource, Expect, Outcome, OutcomeStatus
from fusewatchd.model.mounts import Mount
from fusewatchd.model.verdicts import Reason


def detach_dead_source(kernel: MountKernel, action: DetachDeadSource) -> Outcome:
    """Carry the action out: prove once more that the mount is dead, detach it, look again.

    Raises:
        Stop: it was not done, or something else was taken.
        OSError: the path or the mount table cannot be read.
    """
    try:
        with opened(kernel, action.expect.mount_point) as fd:
            mount = kernel.mount_of(fd)
            if not (mount.is_fuse and action.expect.is_met_by(mount)):
                raise skip(Reason.VANISHED, f"mount {mount.mount_id} of {mount.device} is there")
            _require_dead(fd)
            # The last thing before the call, which takes whatever is on top by then.
            if mounts_on(kernel, mount):
                raise refuse(Reason.CHILD_MOUNT, "something is mounted there or inside")
            kernel.detach(fd)
    except FileNotFoundError:
        raise skip(Reason.VANISHED, "the path is gone") from None
    if _is_still_there(kernel, mount):
        raise fail(Reason.RACED, "somebody mounted there in the moment of the call")
    return Outcome(action, OutcomeStatus.DETACHED)


def _require_dead(fd: int) -> None:
    found = statfs.ask(fd)
    if found.refuser is not Refuser.KERNEL:
        error = f"with {os.strerror(found.errno)}" if found.errno else "well"
        raise refuse(Reason.ANSWERING, f"it answers {error}")


def _is_still_there(kernel: MountKernel, mount: Mount) -> bool:
    try:
        found = kernel.mount_by_id(mount.mount_id, mount.unique_id)
    except OSError as exc:
        if exc.errno != errno.ENOENT:
            raise
        return False
    return Expect.of(mount).is_met_by(found)
