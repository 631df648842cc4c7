"""A child that asks FUSE connections whether they are alive, and may hang for ever.

A child opens the mount's root, makes sure that it is on the device it was sent to ask, and
calls statfs(2), which no cache answers.  ``probepool`` has as many of them as are needed.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fusewatchd.linux import syscalls
from fusewatchd.linux.channel import Channel
from fusewatchd.linux.covered import CoveredMounts, open_warily
from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model import Answer, Device
from fusewatchd.questions import Question

DISCONNECTED = (errno.ENOTCONN, errno.ECONNABORTED)
"""With what the kernel refuses everything on a connection that has no server any more."""
_NO_STATFS = (errno.ENOSYS, errno.EOPNOTSUPP)
"""A server that has no statfs says so itself, and so is alive."""
_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ESRCH)


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """What one question brought."""

    device: Device
    answer: Answer | None
    """None: it was not answered (another mount at its path, the child ended); ask again."""
    errno: int
    asked_at: float


def serve_probes(channel: Channel) -> None:
    """Main function of a probe child."""
    covered = CoveredMounts()
    channel.serve(lambda message: channel.send(_probe(message, covered)))


def _probe(message: dict[str, Any], covered: CoveredMounts) -> dict[str, Any]:
    try:
        if message["is_covered"]:
            fd = covered.copy(message["path"], message["pid"], Device(*message["device"]))
        else:
            fd = _reach(message["path"], message["pid"])
    except OSError as exc:
        # Whatever this says, it says it of a file system on the way, not of the one asked.
        return {"unreachable": exc.errno or errno.EIO}
    with closing_fd(fd):
        try:
            if list(syscalls.device_of(fd)) != message["device"]:
                return {"moved": True}
            found = os.fstatvfs(fd)
        except OSError as exc:
            return {"errno": exc.errno or errno.EIO}
    # To callers that may not use the mount the kernel answers by itself, with zeros.
    return {"errno": 0, "zeros": not found.f_bsize and not found.f_namemax}


def _reach(path: str, pid: int) -> int:
    """Open the root of the mount at ``path``, of a process when ``pid`` is not 0.

    If possible of a copy of the mount that nobody else has: an answer may take as long as the
    server likes, and the descriptor of a mount makes umount(8) answer EBUSY meanwhile.  Where
    no copy can be had (another namespace, another user than root) it is the mount's own.
    """
    base = f"/proc/{pid}/root" if pid else "/"
    directory, _, name = path.rstrip("/").rpartition("/")
    with closing_fd(os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        above = open_warily(root, directory or "/", syscalls.RESOLVE_IN_ROOT)
    with closing_fd(above):
        no_link = syscalls.AT_SYMLINK_NOFOLLOW | syscalls.AT_NO_AUTOMOUNT
        with suppress(OSError):
            return syscalls.open_tree(above, name or ".", syscalls.OPEN_TREE_CLONE | no_link)
        return open_warily(above, name or ".", 0)


def answer_of(question: Question, asked_at: float, message: dict[str, Any]) -> ProbeAnswer:
    """Return what a probe child's message says of the connection that it was sent to ask."""
    if message.get("moved"):
        return ProbeAnswer(question.device, None, 0, asked_at)
    unreachable = message.get("unreachable", 0)
    if unreachable in _NOWHERE:
        return ProbeAnswer(question.device, None, unreachable, asked_at)
    number = unreachable or message["errno"]
    if not unreachable and number in DISCONNECTED:
        answer = Answer.DISCONNECTED
    elif not unreachable and number in _NO_STATFS:
        answer = Answer.ANSWERED
    elif number == errno.EACCES or (not number and message["zeros"]):
        answer = Answer.NOT_ALLOWED
    else:
        answer = Answer.ERROR if number else Answer.ANSWERED
    return ProbeAnswer(question.device, answer, number, asked_at)
