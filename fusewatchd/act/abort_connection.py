"""Abort one hung FUSE connection, and no other one.

The number of a connection is used again as soon as it is free.  So what aborts is opened
first, and belongs to the connection that has the number then; after that the mount is looked
for by which the connection was known.  If it is still there it was there all the time, and
with it the number could be nobody else's.

Just before, the queue is watched closely: a server that is slow with ``statfs`` but serves
others is not hung, and looks like it to anyone who counts only now and then.
"""

from __future__ import annotations

import errno
import os
import time

from fusewatchd.linux import fusectl
from fusewatchd.linux.mount_kernel import MountKernel, fail, refuse, skip
from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model.actions import AbortConnection, Outcome, OutcomeStatus
from fusewatchd.model.mounts import Device
from fusewatchd.model.verdicts import Reason

WATCH_SECONDS = 1.0
"""How long nobody must be served before it is done."""
BURST = 8
"""Counts between two rests.  Who is served often asks again within 0.1 ms, so they must be
close; but a watcher that never rests and shares a processor with a server and its caller gets
to see only the moments in which both of them sleep."""
REST_SECONDS = 0.0001
MOST_SECONDS = 0.1
"""So much of the time between two looks counts."""
DRAIN_SECONDS = 1.0
"""How long the queue may take to be empty afterwards; it takes microseconds."""


def abort_connection(kernel: MountKernel, action: AbortConnection) -> Outcome:
    """Carry the action out and read back that nobody waits any more.

    Raises:
        Stop: it was not done, or did not work.
        OSError: neither fusectl nor the mount table should fail like that.
    """
    device = action.expect.device
    if not fusectl.is_available():
        raise refuse(Reason.NO_FUSECTL, "the FUSE control file system is not mounted")
    count = _watch(device)
    with closing_fd(_open_abort(device)) as fd:
        _check_identity(kernel, action)
        if _count(device) < count:
            raise skip(Reason.ANSWERING, "a request was answered in the last moment")
        os.write(fd, b"1")
    _verify(device)
    return Outcome(action, OutcomeStatus.ABORTED)


def _watch(device: Device) -> int:
    """Make sure that nobody is served; return how many requests wait."""
    left, at = WATCH_SECONDS, time.monotonic()
    before = _count(device)
    while left > 0:
        time.sleep(REST_SECONDS)
        now = time.monotonic()
        # A machine that was paused in between took the time from the server as well.
        left, at = left - min(now - at, MOST_SECONDS), now
        for _ in range(BURST):
            count = _count(device)
            if count < before:
                raise skip(Reason.ANSWERING, f"{before - count} of {before} requests were answered")
            before = count
    return before


def _count(device: Device) -> int:
    count = fusectl.waiting(device)
    if count is None:
        raise skip(Reason.VANISHED, f"there is no connection {device} any more")
    if not count:
        raise skip(Reason.ANSWERING, "no request waits for it")
    return count


def _open_abort(device: Device) -> int:
    try:
        return fusectl.open_abort(device)
    except FileNotFoundError as exc:
        raise skip(Reason.VANISHED, f"there is no connection {device} any more") from exc
    except OSError as exc:
        raise refuse(Reason.NO_FUSECTL, f"{exc.strerror}: {exc.filename}") from exc


def _check_identity(kernel: MountKernel, action: AbortConnection) -> None:
    expect = action.expect
    kernel.enter(action.namespace)
    try:
        mount = kernel.mount_by_id(expect.mount_id, expect.unique_id)
    except OSError as exc:
        if exc.errno != errno.ENOENT:
            raise
        raise skip(Reason.VANISHED, f"mount {expect.mount_id} is gone") from exc
    finally:
        kernel.leave()
    if not expect.is_met_by(mount) or not mount.is_fuse:
        raise skip(Reason.RACED, f"mount {mount.mount_id} of {mount.device} is there now")


def _verify(device: Device) -> None:
    """Wait until nobody waits; that it is dead indeed is for the next probe to say."""
    end = time.monotonic() + DRAIN_SECONDS
    while count := fusectl.waiting(device):
        if time.monotonic() >= end:
            raise fail(Reason.NOT_VERIFIED, f"{count} requests wait as before")
        time.sleep(REST_SECONDS)
