"""A process that forks the workers, itself forked before the daemon has any thread.

Workers touch FUSE file systems and enter mount namespaces: they must be single-threaded and
disposable.  The fork server is their parent, so that a worker in an uninterruptible wait is
never the daemon's to wait for; it ends with the daemon and takes all workers along.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fusewatchd.errors import WorkerError, WorkerShortageError
from fusewatchd.linux.capabilities import PR_SET_KEEPCAPS, PR_SET_NAME, PR_SET_PDEATHSIG, prctl
from fusewatchd.workers.channel import Channel
from fusewatchd.workers.confinement import confine, filter_of, set_oom_score
from fusewatchd.workers.privileges import PRIVILEGES, Kind, Privileges

_MAX_REQUEST = 4096
_ANSWER_SECONDS = 10.0

WorkerMain = Callable[[Channel], None]


@dataclass(frozen=True, slots=True)
class WorkerKind:
    """What the workers of one kind do, and with which rights."""

    main: WorkerMain
    privileges: Privileges
    prepare: Callable[[], None] = lambda: None
    """Called while the worker can still read what only root can."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Whom a worker becomes, for good."""

    uid: int
    gid: int


class Worker:
    """The daemon's side of one worker process."""

    def __init__(self, server: ForkServer, number: int, pid: int, channel: Channel) -> None:
        """Made by ``ForkServer.spawn``."""
        self.pid = pid
        self.channel = channel
        self._number = number
        self._server = server
        self._is_killed = False

    def end(self) -> None:
        """SIGKILL the process; the channel tells its end, which may be long in coming."""
        self._server.kill(self._number)

    def kill(self) -> None:
        """End the process and close the channel; harmless when repeated."""
        if not self._is_killed:
            self._is_killed = True
            self.channel.close()
            self._server.kill(self._number)


class ForkServer:
    """Starts and ends workers on request."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        """Made by ``start``."""
        self.pid = pid
        self._socket = sock
        self._last_number = 0

    @classmethod
    def start(cls, kinds: Mapping[str, WorkerKind]) -> ForkServer:
        """Fork the server; the caller must have no thread yet.

        Every descriptor above 2 that is open now is closed there: a worker that nothing can
        end must not keep a lock or a port of the daemon's.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        daemon = os.getpid()
        pid = os.fork()
        if pid == 0:
            _run_and_exit(lambda: _Server(theirs, kinds, daemon).run())
        theirs.close()
        ours.settimeout(_ANSWER_SECONDS)
        return cls(ours, pid)

    def spawn(self, kind: str, credentials: Credentials | None = None) -> Worker:
        """Start a worker, as another user if ``credentials`` say so.

        The capabilities of its kind stay.  With CAP_DAC_READ_SEARCH it gets through directories
        that are root's alone; FUSE looks at user and group ids only.

        Raises:
            WorkerError: the fork server is gone.
            WorkerShortageError: it is there, but there is nothing to make a worker of.
        """
        self._last_number += 1
        number = self._last_number
        who = None if credentials is None else [credentials.uid, credentials.gid]
        request = json.dumps({"spawn": kind, "number": number, "as": who}).encode()
        try:
            ours, theirs = socket.socketpair()
        except OSError as exc:
            raise WorkerShortageError(f"no {kind} worker: {exc.strerror}") from exc
        with theirs:
            try:
                socket.send_fds(self._socket, [request], [theirs.fileno()])
                answer = self._answer_to(number)
            except OSError as exc:
                ours.close()
                raise WorkerError(f"the fork server does not answer: {exc}") from exc
        if not answer.get("pid"):
            ours.close()
            if "error" in answer:
                raise WorkerShortageError(f"no {kind} worker: {answer['error']}")
            raise WorkerError(f"no {kind} worker: the fork server ended")
        ours.setblocking(False)
        return Worker(self, number, answer["pid"], Channel(ours))

    def kill(self, number: int) -> None:
        """SIGKILL a worker by its number: its pid may be another one's by now."""
        with suppress(OSError):
            self._socket.send(json.dumps({"kill": number}).encode())

    def close(self, timeout_seconds: float = 2.0) -> None:
        """End the server and with it all workers; one that cannot die is not waited for."""
        self._socket.close()
        with suppress(OSError):
            fd = os.pidfd_open(self.pid)
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if poll.poll(timeout_seconds * 1000):
                os.waitpid(self.pid, os.WNOHANG)
            os.close(fd)

    def _answer_to(self, number: int) -> dict[str, Any]:
        while True:
            data = self._socket.recv(_MAX_REQUEST)
            answer: dict[str, Any] = json.loads(data) if data else {}
            # Else the late answer to a request that was given up.
            if not data or answer["number"] == number:
                return answer


def _run_and_exit(main: Callable[[], None]) -> None:
    """Run the whole life of a forked process; it must never get back into the caller."""
    status = 1
    try:
        main()
        status = 0
    except (BrokenPipeError, ConnectionResetError, EOFError):
        status = 2  # the daemon went away
    finally:
        if status == 1:
            traceback.print_exc()
        os._exit(status)


def end_with_parent(parent: int) -> None:
    """Have the kernel end this process when ``parent``, which forked it, ends."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


class _Server:
    """Inside the fork server's process."""

    def __init__(self, sock: socket.socket, kinds: Mapping[str, WorkerKind], daemon: int) -> None:
        self._socket = sock
        self._kinds = kinds
        self._daemon = daemon
        self._children: dict[int, int] = {}
        """Pid by number, until reaped: so long the pid is nobody else's."""
        self._woken: tuple[int, int] = (-1, -1)
        self._filters: dict[str, bytes | None] = {}
        """Of system calls, for each kind; made once."""

    def run(self) -> None:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_NAME, b"fusewatchd-fork")
        if os.getppid() != self._daemon:
            return
        # What the daemon has as garbage now must not close, later, a number used anew here.
        gc.freeze()
        _close_all_but(self._socket.fileno())
        os.chdir("/")
        self._filters = {name: filter_of(kind.privileges) for name, kind in self._kinds.items()}
        own = PRIVILEGES[Kind.FORK_SERVER]
        confine(own, filter_of(own))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._woken[1], warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.register(self._woken[0], select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            self._reap()
            if self._socket.fileno() in ready and not self._answer():
                break
        for pid in self._children.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._woken[0], 4096)
        with suppress(ChildProcessError):
            while True:
                pid, _ = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                self._children = {n: p for n, p in self._children.items() if p != pid}

    def _answer(self) -> bool:
        """Do what the daemon asks for; False when it closed its end."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._socket, _MAX_REQUEST, 1)
        except ConnectionResetError:
            return False
        if not data:
            return False
        request = json.loads(data)
        if "kill" in request:
            pid = self._children.get(request["kill"])
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return True
        answer: dict[str, object] = {"number": request["number"]}
        try:
            answer["pid"] = self._fork(request, descriptors[0])
        except OSError as exc:
            answer["error"] = os.strerror(exc.errno or 0)
        finally:
            for fd in descriptors:
                os.close(fd)
        try:
            self._socket.send(json.dumps(answer).encode())
        except OSError:
            return False
        return True

    def _fork(self, request: dict[str, Any], fd: int) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _run_and_exit(lambda: self._become(request["spawn"], request["as"], fd, parent))
        self._children[request["number"]] = pid
        return pid

    def _become(self, name: str, who: list[int] | None, fd: int, parent: int) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._socket.close()
        for end in self._woken:
            os.close(end)
        kind = self._kinds[name]
        kind.prepare()
        if who is not None:
            # Of a process that changes its user, /proc has files of root's alone from then on.
            set_oom_score(kind.privileges.oom_score_adj)
            _become_user(*who)
        # After the change of user, which clears it, prctl(2).
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_NAME, f"fusewatchd-{name}"[:15].encode())
        if os.getppid() != parent:
            return
        channel = Channel(socket.socket(fileno=fd))
        confine(kind.privileges, self._filters[name])
        kind.main(channel)


def _close_all_but(kept: int) -> None:
    # Not os.closerange: before Linux 5.9 that tries every number up to the limit.
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd != kept:
            with suppress(OSError):
                os.close(fd)


def _become_user(uid: int, gid: int) -> None:
    """Take another user's ids, all of them; what is permitted stays permitted."""
    prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
