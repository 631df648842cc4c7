"""A process that forks the workers, itself forked before the daemon has any thread.

Workers touch FUSE file systems and enter mount namespaces: they must be single-threaded and
disposable.  The fork server is their parent, so that a worker in an uninterruptible wait is
never the daemon's to wait for; it ends with the daemon and takes all workers along.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from fusewatchd.errors import WorkerError
from fusewatchd.linux.channel import Channel

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_MAX_REQUEST = 4096
_ANSWER_SECONDS = 10.0

WorkerMain = Callable[[Channel], None]


@dataclass(frozen=True, slots=True)
class Credentials:
    """Whom a worker becomes, for good."""

    uid: int
    gid: int


class Worker:
    """The daemon's side of one worker process."""

    def __init__(self, server: ForkServer, pid: int, channel: Channel) -> None:
        """Made by ``ForkServer.spawn``."""
        self.pid = pid
        self.channel = channel
        self._server = server
        self._is_killed = False

    def kill(self) -> None:
        """End the process and close the channel; harmless when repeated."""
        if not self._is_killed:
            self._is_killed = True
            self.channel.close()
            self._server.kill(self.pid)


class ForkServer:
    """Starts and ends workers on request."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        """Made by ``start``."""
        self._socket = sock
        self._pid = pid

    @classmethod
    def start(cls, kinds: Mapping[str, WorkerMain]) -> ForkServer:
        """Fork the server; the caller must have no thread yet."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _run_and_exit(lambda: _Server(theirs, kinds, parent).run())
        theirs.close()
        ours.settimeout(_ANSWER_SECONDS)
        return cls(ours, pid)

    def spawn(self, kind: str, credentials: Credentials | None = None) -> Worker:
        """Start a worker.

        Raises:
            WorkerError: the fork server is gone or could not fork.
        """
        ours, theirs = socket.socketpair()
        who = None if credentials is None else [credentials.uid, credentials.gid]
        request = json.dumps({"spawn": kind, "as": who}).encode()
        try:
            socket.send_fds(self._socket, [request], [theirs.fileno()])
            answer = json.loads(self._socket.recv(_MAX_REQUEST) or b"{}")
        except (OSError, ValueError) as exc:
            raise WorkerError(f"the fork server does not answer: {exc}") from exc
        finally:
            theirs.close()
        pid = answer.get("pid", 0)
        if not pid:
            ours.close()
            raise WorkerError(f"no {kind} worker: {answer.get('error', 'no answer')}")
        return Worker(self, pid, Channel(ours))

    def kill(self, pid: int) -> None:
        """SIGKILL a worker; a pid that is no worker of this server is ignored there."""
        with suppress(OSError):
            self._socket.send(json.dumps({"kill": pid}).encode())

    def close(self, timeout_seconds: float = 2.0) -> None:
        """End the server and with it all workers; one that cannot die is not waited for."""
        self._socket.close()
        with suppress(OSError):
            fd = os.pidfd_open(self._pid)
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if poll.poll(timeout_seconds * 1000):
                os.waitpid(self._pid, os.WNOHANG)
            os.close(fd)


def _run_and_exit(main: Callable[[], None]) -> None:
    status = 1
    try:
        main()
        status = 0
    except (OSError, EOFError, KeyboardInterrupt):
        status = 2
    finally:
        os._exit(status)


def _prctl(option: int, value: object) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class _Server:
    """Inside the fork server's process."""

    def __init__(self, sock: socket.socket, kinds: Mapping[str, WorkerMain], daemon: int) -> None:
        self._socket = sock
        self._kinds = kinds
        self._daemon = daemon
        self._children: set[int] = set()

    def run(self) -> None:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _prctl(_PR_SET_NAME, b"fusewatchd-fork")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if os.getppid() != self._daemon:
            return
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while True:
            is_ready = bool(poll.poll(1000))
            self._reap()
            if is_ready and not self._answer():
                break
        for pid in self._children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, _ = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                self._children.discard(pid)

    def _answer(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._socket, _MAX_REQUEST, 4)
        if not data:
            return False
        request = json.loads(data)
        if "kill" in request:
            if request["kill"] in self._children:
                with suppress(ProcessLookupError):
                    os.kill(request["kill"], signal.SIGKILL)
            return True
        try:
            answer: dict[str, object] = {"pid": self._fork(request, descriptors[0])}
        except OSError as exc:
            answer = {"error": exc.strerror}
        finally:
            for fd in descriptors:
                os.close(fd)
        self._socket.send(json.dumps(answer).encode())
        return True

    def _fork(self, request: dict[str, object], fd: int) -> int:
        kind = str(request["spawn"])
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _run_and_exit(lambda: self._become(kind, request["as"], fd, parent))
        self._children.add(pid)
        return pid

    def _become(self, kind: str, who: object, fd: int, parent: int) -> None:
        self._socket.close()
        os.chdir("/")
        if isinstance(who, list):
            uid, gid = who
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        # After the change of user, which clears it, prctl(2).
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _prctl(_PR_SET_NAME, f"fusewatchd-{kind}"[:15].encode())
        if os.getppid() != parent:
            return
        self._kinds[kind](Channel(socket.socket(fileno=fd)))
