"""Asking FUSE connections whether they are alive, from children that may hang for ever.

A child opens the mount's root, makes sure that it is on the device it was sent to ask, and
calls statfs(2), which no cache answers.  A child that a dead request keeps is not waited for.
"""

from __future__ import annotations

import errno
import os
import select
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fusewatchd.connections import Question
from fusewatchd.errors import WorkerError
from fusewatchd.linux import syscalls
from fusewatchd.linux.channel import Channel
from fusewatchd.linux.forkserver import Credentials, Worker
from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model import Answer, Device

STALL_SECONDS = 0.02
"""A child without an answer for this long no longer holds up the questions behind it."""
STUCK_SECONDS = 1.0
"""A child without an answer for this long is not counted among those at work."""
MAX_IDLE = 2
IDLE_SECONDS = 30.0
"""Children without work beyond ``MAX_IDLE`` are ended by the first ``collect`` after this."""
RETRY_SECONDS = 1.0
"""Pause after a child could not be started."""

_DISCONNECTED = (errno.ENOTCONN, errno.ECONNABORTED)
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
    channel.serve(lambda message: channel.send(_probe(message)))


def _probe(message: dict[str, Any]) -> dict[str, Any]:
    try:
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
        above = _open_below(root, directory or "/", syscalls.RESOLVE_IN_ROOT)
    with closing_fd(above):
        no_link = syscalls.AT_SYMLINK_NOFOLLOW | syscalls.AT_NO_AUTOMOUNT
        with suppress(OSError):
            return syscalls.open_tree(above, name or ".", syscalls.OPEN_TREE_CLONE | no_link)
        return _open_below(above, name or ".", 0)


def _open_below(fd: int, path: str, resolve: int) -> int:
    resolve |= syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
    try:
        return syscalls.openat2(fd, path, os.O_PATH, resolve)
    except OSError as exc:
        if exc.errno != errno.ENOSYS:
            raise
    # Before Linux 5.6 a symlink may lead elsewhere; the device check finds that out.
    return os.open(path.lstrip("/") or ".", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)


@dataclass(slots=True)
class _Child:
    worker: Worker
    credentials: Credentials | None
    question: Question | None = None
    asked_at: float = 0.0
    """When the question was submitted."""
    since: float = 0.0
    """When it was given the question, or became idle."""


class ProbePool:
    """Sends each question to a child that has nothing else to do.

    At most ``max_children`` work at a time and as many more are stuck; after that questions
    wait.  ``waiting`` says which: nothing can be concluded about these connections.
    """

    def __init__(self, spawn: Callable[[Credentials | None], Worker], max_children: int) -> None:
        """Take the means to start a child."""
        self._spawn = spawn
        self._max = max_children
        self._children: list[_Child] = []
        self._queues: dict[Credentials | None, deque[tuple[Question, float]]] = {}
        self._waiting: set[Device] = set()
        self._epoll = select.epoll()
        self._spawned_at = float("-inf")
        self._retry_at = float("-inf")

    def submit(self, question: Question, now: float) -> None:
        """Accept a question; its answer comes from ``collect``.

        Never a second one about a device whose first is unanswered: that is dropped.
        """
        if question.device in self._waiting or self._child_asking(question.device) is not None:
            return
        wanted = None
        if question.uid is not None and question.gid is not None:
            wanted = Credentials(question.uid, question.gid)
        self._queues.setdefault(wanted, deque()).append((question, now))
        self._waiting.add(question.device)
        self._assign(wanted, now)

    def collect(self, now: float) -> list[ProbeAnswer]:
        """Return the answers that have arrived, and do what has become due."""
        answers: list[ProbeAnswer] = []
        for child in tuple(self._children):
            try:
                messages = child.worker.channel.receive()
            except EOFError:
                if child.question is not None:
                    answers.append(ProbeAnswer(child.question.device, None, 0, child.asked_at))
                self._end(child)
                continue
            for message in messages:
                if child.question is not None:
                    answers.append(_answer(child.question, child.asked_at, message))
                    child.question, child.since = None, now
        for credentials in tuple(self._queues):
            self._assign(credentials, now)
        self._end_surplus(now)
        return answers

    def forget(self, device: Device) -> None:
        """Give up a question about a superblock that is gone, and the child it holds."""
        if device in self._waiting:
            self._waiting.discard(device)
            for who, queue in self._queues.items():
                self._queues[who] = deque(item for item in queue if item[0].device != device)
        child = self._child_asking(device)
        if child is not None:
            self._end(child)

    @property
    def waiting(self) -> frozenset[Device]:
        """Devices whose question no child has been given yet."""
        return frozenset(self._waiting)

    def filenos(self) -> list[int]:
        """Return what becomes readable when answers arrive.

        It is one descriptor that stays the same, whatever children come and go: a number
        that is closed and at once used again would be lost to the selector outside.
        """
        return [self._epoll.fileno()]

    def stuck(self, now: float, deadline: float) -> int:
        """Count the children whose question is unanswered for longer than ``deadline``."""
        return sum(c.question is not None and now >= c.since + deadline for c in self._children)

    def next_deadline(self) -> float | None:
        """Return when ``collect`` must be called although nothing arrived."""
        times = [self._spawn_at(credentials) for credentials in self._queues]
        return min((time for time in times if time is not None), default=None)

    def close(self) -> None:
        """End all children."""
        for child in tuple(self._children):
            self._end(child)
        self._epoll.close()

    def _child_asking(self, device: Device) -> _Child | None:
        for child in self._children:
            if child.question is not None and child.question.device == device:
                return child
        return None

    def _assign(self, credentials: Credentials | None, now: float) -> None:
        queue = self._queues[credentials]
        while queue:
            child = self._free_child(credentials, now)
            if child is None:
                return
            question, child.asked_at = queue.popleft()
            self._waiting.discard(question.device)
            child.question, child.since = question, now
            device = [question.device.major, question.device.minor]
            message = {"path": question.path, "pid": question.pid, "device": device}
            child.worker.channel.send(message)
        del self._queues[credentials]

    def _free_child(self, credentials: Credentials | None, now: float) -> _Child | None:
        for child in self._children:
            if child.question is None and child.credentials == credentials:
                return child
        due = self._spawn_at(credentials)
        if due is None or now < due:
            return None
        if self._capacity_at() > now:
            self._end(self._idle_longest_first()[0])
        try:
            worker = self._spawn(credentials)
        except WorkerError:
            self._retry_at = now + RETRY_SECONDS
            return None
        self._spawned_at = now
        child = _Child(worker, credentials, since=now)
        self._children.append(child)
        self._epoll.register(worker.channel.fileno(), select.EPOLLIN)
        return child

    def _spawn_at(self, credentials: Credentials | None) -> float | None:
        """Return from when on one more child may be started for a queue, None for not yet.

        That is when no child of this user is free, and either none of them gave an answer
        for a while or the first in the queue has waited as long.
        """
        queue = self._queues.get(credentials)
        if not queue:
            return None
        times = [self._retry_at]
        if not any(child.question is None for child in self._children):
            times.append(self._capacity_at())
        mates = [c.since for c in self._children if c.credentials == credentials]
        if mates:
            waited = max(queue[0][1], self._spawned_at)
            times.append(min(max(mates), waited) + STALL_SECONDS)
        due = max(times)
        return None if due == float("inf") else due

    def _capacity_at(self) -> float:
        """Return from when on there is room for one more child, by mere passing of time."""
        excess = len(self._children) - self._max + 1
        if excess <= 0:
            return float("-inf")
        stuck_at = sorted(c.since + STUCK_SECONDS for c in self._children if c.question)
        if len(self._children) >= 2 * self._max or excess > len(stuck_at):
            return float("inf")
        return stuck_at[excess - 1]

    def _idle_longest_first(self) -> list[_Child]:
        idle = [child for child in self._children if child.question is None]
        return sorted(idle, key=lambda child: child.since)

    def _end_surplus(self, now: float) -> None:
        for child in self._idle_longest_first()[:-MAX_IDLE]:
            if now >= child.since + IDLE_SECONDS:
                self._end(child)

    def _end(self, child: _Child) -> None:
        self._children.remove(child)
        with suppress(OSError):
            self._epoll.unregister(child.worker.channel.fileno())
        child.worker.kill()


def _answer(question: Question, asked_at: float, message: dict[str, Any]) -> ProbeAnswer:
    if message.get("moved"):
        return ProbeAnswer(question.device, None, 0, asked_at)
    unreachable = message.get("unreachable", 0)
    if unreachable in _NOWHERE:
        return ProbeAnswer(question.device, None, unreachable, asked_at)
    number = unreachable or message["errno"]
    if not unreachable and number in _DISCONNECTED:
        answer = Answer.DISCONNECTED
    elif not unreachable and number in _NO_STATFS:
        answer = Answer.ANSWERED
    elif number == errno.EACCES or (not number and message["zeros"]):
        answer = Answer.NOT_ALLOWED
    else:
        answer = Answer.ERROR if number else Answer.ANSWERED
    return ProbeAnswer(question.device, answer, number, asked_at)
