"""Asking FUSE connections whether they are alive, from children that may hang for ever.

A child opens the mount's root, makes sure that it is on the device it was sent to ask, and
calls statfs(2), which no cache answers.  A child that a dead request keeps is not waited for.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fusewatchd.connections import Question
from fusewatchd.linux import syscalls
from fusewatchd.linux.channel import Channel
from fusewatchd.linux.forkserver import Credentials, Worker
from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model import Answer, Device

STALL_SECONDS = 0.02
MAX_IDLE = 2
_DISCONNECTED = (errno.ENOTCONN, errno.ECONNABORTED)


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """What one question brought; ``answer`` None: another mount was found at its path."""

    device: Device
    answer: Answer | None
    errno: int
    asked_at: float


def serve_probes(channel: Channel) -> None:
    """Main function of a probe child."""
    channel.serve(lambda message: channel.send(_probe(message)))


def _probe(message: dict[str, Any]) -> dict[str, Any]:
    try:
        with closing_fd(_open_root(message["path"], message["pid"])) as fd:
            if list(syscalls.device_of(fd)) != message["device"]:
                return {"moved": True}
            found = os.fstatvfs(fd)
    except OSError as exc:
        return {"errno": exc.errno or errno.EIO}
    # To callers that may not use the mount the kernel answers by itself, with zeros.
    return {"errno": 0, "zeros": not found.f_bsize and not found.f_namemax}


def _open_root(path: str, pid: int) -> int:
    resolve = syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
    if not pid:
        try:
            return syscalls.openat2(syscalls.AT_FDCWD, path, os.O_PATH, resolve)
        except OSError as exc:
            if exc.errno != errno.ENOSYS:
                raise
            return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    with closing_fd(root):
        return syscalls.openat2(root, path, os.O_PATH, resolve | syscalls.RESOLVE_IN_ROOT)


@dataclass(slots=True)
class _Child:
    worker: Worker
    credentials: Credentials | None
    question: Question | None = None
    asked_at: float = 0.0


class ProbePool:
    """Sends each question to a child that has nothing else to do."""

    def __init__(self, spawn: Callable[[Credentials | None], Worker], max_children: int) -> None:
        """Take the means to start a child."""
        self._spawn = spawn
        self._max = max_children
        self._children: list[_Child] = []
        self._queue: deque[tuple[Question, float]] = deque()

    def submit(self, question: Question, now: float) -> None:
        """Accept a question; its answer comes from ``collect``."""
        self._queue.append((question, now))
        self._assign(now)

    def collect(self, now: float) -> list[ProbeAnswer]:
        """Return the answers that have arrived."""
        answers: list[ProbeAnswer] = []
        for child in tuple(self._children):
            try:
                messages = child.worker.channel.receive()
            except EOFError:
                self._end(child)
                continue
            for message in messages:
                if child.question is not None:
                    answers.append(_answer(child.question, child.asked_at, message))
                    child.question = None
        self._assign(now)
        self._end_surplus()
        return answers

    def forget(self, device: Device) -> None:
        """Give up a question about a superblock that is gone, and the child it holds."""
        kept = [(q, at) for q, at in self._queue if q.device != device]
        self._queue = deque(kept)
        for child in tuple(self._children):
            if child.question is not None and child.question.device == device:
                self._end(child)

    def filenos(self) -> list[int]:
        """Return what becomes readable when answers arrive."""
        return [child.worker.channel.fileno() for child in self._children]

    def stuck(self, now: float, deadline: float) -> int:
        """Count the children whose question is unanswered for longer than ``deadline``."""
        return sum(c.question is not None and now - c.asked_at >= deadline for c in self._children)

    def next_deadline(self) -> float | None:
        """Return when the queue must be looked at although nothing arrived."""
        if not self._queue:
            return None
        return min((c.asked_at + STALL_SECONDS for c in self._children), default=None)

    def close(self) -> None:
        """End all children."""
        for child in tuple(self._children):
            self._end(child)

    def _assign(self, now: float) -> None:
        for _ in range(len(self._queue)):
            question, submitted_at = self._queue.popleft()
            child = self._child_for(question, now)
            if child is None:
                self._queue.append((question, submitted_at))
                continue
            child.question, child.asked_at = question, submitted_at
            device = [question.device.major, question.device.minor]
            message = {"path": question.path, "pid": question.pid, "device": device}
            with suppress(OSError):  # a child that just ended is found by collect
                child.worker.channel.send(message)

    def _child_for(self, question: Question, now: float) -> _Child | None:
        wanted = None
        if question.uid is not None and question.gid is not None:
            wanted = Credentials(question.uid, question.gid)
        mates = [child for child in self._children if child.credentials == wanted]
        for child in mates:
            if child.question is None:
                return child
        is_stalled = all(now - child.asked_at >= STALL_SECONDS for child in mates)
        if not is_stalled or len(self._children) >= self._max:
            return None
        child = _Child(self._spawn(wanted), wanted)
        self._children.append(child)
        return child

    def _end_surplus(self) -> None:
        idle = [child for child in self._children if child.question is None]
        for child in idle[MAX_IDLE:]:
            self._end(child)

    def _end(self, child: _Child) -> None:
        self._children.remove(child)
        child.worker.kill()


def _answer(question: Question, asked_at: float, message: dict[str, Any]) -> ProbeAnswer:
    if message.get("moved"):
        return ProbeAnswer(question.device, None, 0, asked_at)
    number = message["errno"]
    if number in _DISCONNECTED:
        answer = Answer.DISCONNECTED
    elif number == errno.EACCES or (not number and message["zeros"]):
        answer = Answer.NOT_ALLOWED
    elif number in (errno.ENOENT, errno.ENOTDIR, errno.ESRCH):
        return ProbeAnswer(question.device, None, number, asked_at)
    else:
        answer = Answer.ERROR if number else Answer.ANSWERED
    return ProbeAnswer(question.device, answer, number, asked_at)
