"""A child that asks FUSE connections whether they are alive, and may hang for ever.

A child opens the mount's root, makes sure that it is on the device it was sent to ask, and
calls statfs(2), which no cache answers (``statfs``).  When it is told to, it then asks for the
attributes of the root, and sends a second message: a server may live and serve nothing.
``probe_pool`` has as many children as are needed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fusewatchd.linux import statfs, syscalls
from fusewatchd.linux.procfs import PROC, open_same_process
from fusewatchd.linux.statfs import Refuser
from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model.mounts import Device
from fusewatchd.model.servers import Answer
from fusewatchd.observe.connections.covered_mounts import CoveredMounts, open_warily
from fusewatchd.observe.connections.questions import Question
from fusewatchd.workers.channel import Channel

_NO_STATFS = (errno.ENOSYS, errno.EOPNOTSUPP)
"""A server that has no statfs says so itself, and so is alive."""


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """What one question brought."""

    device: Device
    answer: Answer | None
    """None: it was not answered; ask again."""
    errno: int
    """0 without an answer: another mount was at its path, or the child ended."""
    asked_at: float
    root_follows: bool = False
    """A ``RootAnswer`` will come, unless the device is forgotten."""


@dataclass(frozen=True, slots=True)
class RootAnswer:
    """What the question for the root's attributes brought; it follows a ``ProbeAnswer``."""

    device: Device
    errno: int | None
    """None: the deadline passed."""


def serve_probes(channel: Channel) -> None:
    """Main function of a probe child."""
    covered = CoveredMounts()
    channel.serve(lambda message: _probe(message, covered, channel.send))


def _probe(
    message: dict[str, Any], covered: CoveredMounts, send: Callable[[dict[str, Any]], None]
) -> None:
    who = message["pid"], message["start_time"]
    try:
        if message["is_covered"]:
            fd = covered.copy(message["path"], who, Device(*message["device"]))
        else:
            fd = _reach(message["path"], who)
    except OSError as exc:
        # Whatever this says, it says it of a file system on the way, not of the one asked.
        send({"unreachable": exc.errno or errno.EIO})
        return
    with closing_fd(fd):
        answer = _ask(fd, message)
        if answer.get("root_follows"):
            send(answer)
            answer = {"root": syscalls.refresh(fd)}
    # Who has the answer finds no reference to the mount any more.
    send(answer)


def _ask(fd: int, message: dict[str, Any]) -> dict[str, Any]:
    try:
        if list(syscalls.device_of(fd)) != message["device"]:
            return {"moved": True}
    except OSError as exc:
        return {"errno": exc.errno or errno.EIO}
    found = statfs.ask(fd)
    lives = not found.errno or found.errno in _NO_STATFS
    # What refuses statfs(2) may serve all the same.
    follows = found.refuser is Refuser.SERVER or (message["asks_root"] and lives)
    return {
        "errno": found.errno,
        "zeros": found.is_empty,
        "refuser": found.refuser.value,
        "root_follows": follows and message["may_ask_root"] and not found.is_empty,
    }


def _reach(path: str, who: tuple[int, int]) -> int:
    """Open the root of the mount at ``path``, of a process when its pid is not 0.

    If possible of a copy of the mount that nobody else has: an answer may take as long as the
    server likes, and the descriptor of a mount makes umount(8) answer EBUSY meanwhile.  Where
    no copy can be had (another namespace, another user than root) it is the mount's own.
    """
    directory, _, name = path.rstrip("/").rpartition("/")
    with closing_fd(_root_of(*who)) as root:
        above = open_warily(root, directory or "/", syscalls.RESOLVE_IN_ROOT)
    with closing_fd(above):
        no_link = syscalls.AT_SYMLINK_NOFOLLOW | syscalls.AT_NO_AUTOMOUNT
        with suppress(OSError):
            return syscalls.open_tree(above, name or ".", syscalls.OPEN_TREE_CLONE | no_link)
        return open_warily(above, name or ".", 0)


def _root_of(pid: int, start_time: int) -> int:
    if not pid:
        return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    with (
        closing_fd(os.open(PROC, os.O_PATH | os.O_CLOEXEC)) as proc,
        open_same_process(pid, start_time, proc) as process,
    ):
        return process.open_link("root")


def answer_of(question: Question, asked_at: float, message: dict[str, Any]) -> ProbeAnswer:
    """Return what a probe child's message says of the connection that it was sent to ask."""
    if message.get("moved"):
        return ProbeAnswer(question.device, None, 0, asked_at)
    if unreachable := message.get("unreachable"):
        return ProbeAnswer(question.device, None, unreachable, asked_at)
    number = message["errno"]
    refuser = Refuser(message.get("refuser", Refuser.NOBODY.value))
    if refuser is Refuser.KERNEL:
        answer = Answer.DISCONNECTED
    elif refuser is not Refuser.NOBODY:
        answer = Answer.REFUSED
    elif number in _NO_STATFS:
        answer = Answer.ANSWERED
    elif number == errno.EACCES or (not number and message["zeros"]):
        answer = Answer.NOT_ALLOWED
    else:
        answer = Answer.ERROR if number else Answer.ANSWERED
    follows = message.get("root_follows", False)
    return ProbeAnswer(question.device, answer, number, asked_at, follows)
