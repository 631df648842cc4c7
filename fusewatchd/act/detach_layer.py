"""Detach a layer of our own, or the mount of a pod that has ended."""

from __future__ import annotations

from fusewatchd.linux import statfs
from fusewatchd.linux.mount_kernel import MountKernel, refuse, skip
from fusewatchd.linux.mount_stack import mounts_on, opened
from fusewatchd.linux.statfs import Refuser
from fusewatchd.model.actions import DetachOrphan, DetachOwnLayer, Outcome, OutcomeStatus
from fusewatchd.model.verdicts import Reason


def detach_own_layer(kernel: MountKernel, action: DetachOwnLayer) -> Outcome:
    """Detach a layer of our own, if it is on top."""
    with opened(kernel, action.expect.mount_point) as fd:
        mount = kernel.mount_of(fd)
        is_it = action.expect.is_met_by(mount)
        if not is_it or (not mount.unique_id and mount.peer_group != action.peer_group):
            raise skip(Reason.VANISHED, "our layer is not on top any more")
        kernel.detach(fd)
    return Outcome(action, OutcomeStatus.DETACHED)


def detach_orphan(kernel: MountKernel, action: DetachOrphan) -> Outcome:
    """Detach it unless its server answers: what is dead cannot come back to life.

    A mount that root may not use is answered for by the kernel; of that one the plan is believed.
    """
    try:
        with opened(kernel, action.expect.mount_point) as fd:
            mount = kernel.mount_of(fd)
            if not (mount.is_fuse and action.expect.is_met_by(mount)):
                detail = f"mount {mount.mount_id} of {mount.device} is there now"
                raise skip(Reason.VANISHED, detail)
            found = statfs.ask(fd)
            if found.refuser is not Refuser.KERNEL and not found.is_empty:
                raise refuse(Reason.ANSWERING, "its server answers")
            if mounts_on(kernel, mount):
                raise refuse(Reason.CHILD_MOUNT, "something is mounted inside")
            kernel.detach(fd)
    except FileNotFoundError:
        raise skip(Reason.VANISHED, "the kubelet has removed the directory") from None
    return Outcome(action, OutcomeStatus.DETACHED)
