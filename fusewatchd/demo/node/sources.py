"""Source mounts of the demo node and the FUSE servers behind them.

Times are seconds of CLOCK_MONOTONIC.  Everything here runs in the node's namespace.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum

from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.fuse.daemonized import DetachedServer
from fusewatchd.demo.timeouts import patient
from fusewatchd.errors import FusewatchError
from fusewatchd.linux import syscalls
from fusewatchd.linux.procfs import open_process
from fusewatchd.linux.statmount import fdinfo_mount_id

MOST_LAYERS = 100_000
"""As many mounts as a namespace may have, fs.mount-max in proc_sys_fs(5)."""


class OldServer(Enum):
    """What becomes of the old server at a restart."""

    KILLED = "killed"
    DRAINING = "draining"
    """Its mount is detached lazily and it goes on serving whoever still has it."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the demo's own server mounts; times in seconds."""

    fs_type: str = "fuse.demofs"
    source: str = "demofs"
    user_id: int = 0
    allows_other: bool = True
    allows_idmap: bool = False
    is_read_only: bool = False
    init_delay: float = 0.0
    answer_delay: float = 0.0
    attr_timeout: float = 1.0
    holds_only: str = ""
    """Name of the only request that ``Source.hold`` leaves unanswered, as ``STATFS``."""
    request_timeout: int = 0
    """After which the kernel aborts the connection, Linux 6.15 and newer; 0: never."""
    lingers: bool = False
    """It goes on, with its descriptor, when its connection is cut."""
    keeper: str = ""
    """Socket of what keeps the connection for the next server; empty: it ends with the server."""

    def arguments(self) -> list[str]:
        """Return the command-line arguments of ``fuse.server``."""
        words = ["--fs-type", self.fs_type, "--source", self.source]
        words += ["--user-id", str(self.user_id), "--attr-timeout", str(self.attr_timeout)]
        words += ["--init-delay", str(self.init_delay), "--answer-delay", str(self.answer_delay)]
        if self.holds_only:
            words += ["--hold-only", self.holds_only]
        if self.request_timeout:
            words += ["--request-timeout", str(self.request_timeout)]
        if self.lingers:
            words.append("--lingers")
        if self.keeper:
            words += ["--keeper", self.keeper]
        if not self.allows_other:
            words.append("--no-allow-other")
        if self.allows_idmap:
            words.append("--allow-idmap")
        if self.is_read_only:
            words.append("--read-only")
        return words


class ServerProcess:
    """One running FUSE server, as a rule a child of ours."""

    def __init__(self, process: subprocess.Popen[bytes] | DetachedServer) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def kill(self, timeout: float = 10.0) -> float:
        """SIGKILL and reap it; returns the moment just before the signal."""
        moment = time.monotonic()
        self._process.kill()
        self._process.wait(patient(timeout))
        self._close()
        return moment

    def terminate(self) -> None:
        """SIGTERM: the server unmounts and ends by itself."""
        self._process.terminate()
        self._process.wait(patient(10))
        self._close()

    def pause(self) -> None:
        """SIGSTOP: from now on nothing is answered.  Returns when it has stopped."""
        self._process.send_signal(signal.SIGSTOP)
        end = time.monotonic() + patient(5)
        while _process_state(self.pid) not in ("T", "Z"):
            if time.monotonic() > end:
                raise TimeoutError(f"server {self.pid} did not stop")
            time.sleep(0.0005)

    def resume(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def hold(self) -> None:
        """Make the demo's own server read requests and answer none, until ``release``."""
        self._process.send_signal(signal.SIGUSR1)

    def release(self) -> None:
        """Let it answer what it holds, and go on."""
        self._process.send_signal(signal.SIGUSR2)

    def read_line(self, timeout: float) -> str:
        """Return the next line of its stdout; empty when it ended.

        Raises:
            TimeoutError: nothing came in ``timeout`` seconds.
        """
        if self._process.stdout is None:
            raise FusewatchError("the server has no stdout of ours")
        if not select.select([self._process.stdout], [], [], patient(timeout))[0]:
            raise TimeoutError(f"server {self.pid} is not ready after {timeout} s")
        return self._process.stdout.readline().decode(errors="replace")

    def exit_status(self, timeout: float = 5.0) -> int:
        """Wait for the end."""
        return self._process.wait(patient(timeout))

    def _close(self) -> None:
        if self._process.stdout is not None:
            self._process.stdout.close()


class Source:
    """A path on the node where a FUSE server mounts a backing directory."""

    def __init__(
        self,
        name: str,
        path: str,
        backing: str,
        options: ServerOptions,
        command: Sequence[str] = (),
        detaches: bool = False,
    ) -> None:
        """Describe a source; nothing is mounted yet.

        ``command`` is an external server, each word formatted with ``{backing}`` and
        ``{mount}``; empty for the demo's own.  One that ``detaches`` itself is found by the
        mount point among its arguments, any other must stay in the foreground.
        """
        self.name = name
        self.path = path
        self.backing = backing
        self.options = options
        self.draining: list[ServerProcess] = []
        """Old servers that still serve what has not been re-bound."""
        self._command = tuple(command)
        self._detaches = detaches
        self._server: ServerProcess | None = None
        self._mount_before = 0

    @property
    def server(self) -> ServerProcess:
        """The server started last, running or not."""
        if self._server is None:
            raise FusewatchError(f"source {self.name} has no server yet")
        return self._server

    def put(self, name: str, content: str) -> None:
        """Write a file into the backing directory, past the server."""
        path = os.path.join(self.backing, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(content)

    def start(self, timeout: float = 20.0) -> float:
        """Start a server on the bare path; returns when its mount became visible.

        Raises:
            FusewatchError: the server ended instead; what it printed is on our stderr.
            TimeoutError: not ready in ``timeout`` seconds.
        """
        self.launch()
        return self.wait_ready(timeout)

    def launch(self) -> None:
        """Begin to start a server; ``wait_ready`` ends it."""
        # A dead mount may be there, which is no directory to whoever looks.
        with suppress(FileExistsError):
            os.makedirs(self.path)
        self._mount_before = mount_id_at(self.path)
        if self._command:
            words = [word.format(backing=self.backing, mount=self.path) for word in self._command]
        else:
            words = [sys.executable, "-m", "fusewatchd.demo.fuse.server"]
            words += ["--mount", self.path, "--backing", self.backing, *self.options.arguments()]
        self._server = ServerProcess(
            subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=None if self._command else subprocess.PIPE,
                cwd="/",
                env=python_environment(),
            )
        )

    def wait_ready(self, timeout: float = 20.0) -> float:
        """Wait for what ``launch`` began; returns when the mount became visible."""
        if self._command:
            return self._wait_for_mount(timeout)
        line = self.server.read_line(timeout)
        word, _, moment = line.strip().partition("mounted_at=")
        if word != "READY ":
            raise FusewatchError(f"server of {self.name} ended: {self.server.exit_status()}")
        return float(moment)

    def _wait_for_mount(self, timeout: float) -> float:
        """Watch the path without asking the server; an external one says nothing."""
        end = time.monotonic() + patient(timeout)
        while mount_id_at(self.path) == self._mount_before:
            if not self.server.is_running:
                self._check_exit_status()
            if time.monotonic() > end:
                raise TimeoutError(f"source {self.name} is not mounted after {timeout} s")
            time.sleep(0.0002)
        mounted_at = time.monotonic()
        if self._detaches:
            self._check_exit_status(timeout)
            self._server = ServerProcess(DetachedServer(self.path))
        return mounted_at

    def _check_exit_status(self, timeout: float = 5.0) -> None:
        status = self.server.exit_status(timeout)
        if status or not self._detaches:
            raise FusewatchError(f"the server of {self.name} ended with status {status}")

    def kill(self) -> float:
        """SIGKILL the server; returns the moment just before.  The dead mount stays."""
        return self.server.kill()

    def pause(self) -> None:
        """SIGSTOP the server: the mount hangs."""
        self.server.pause()

    def resume(self) -> None:
        """SIGCONT the server."""
        self.server.resume()

    def hold(self) -> None:
        """Make the server read requests and answer none: the mount hangs, and so do callers."""
        self.server.hold()

    def release(self) -> None:
        """Let the server answer again, what it holds first."""
        self.server.release()

    def restart(self, *, old: OldServer = OldServer.KILLED, path: str | None = None) -> float:
        """Detach the old mount, start a new server; returns when the new mount was visible.

        ``path`` moves the source to another place, as drivers with a new staging hash do.
        """
        self.stop(old)
        self.path = path or self.path
        return self.start()

    def stop(self, old: OldServer = OldServer.KILLED) -> None:
        """Take the source away: the server (unless it drains) and every mount at the path."""
        if self._server is not None and self._server.is_running:
            if old is OldServer.KILLED:
                self._server.kill()
            else:
                self.draining.append(self._server)
        self.unmount()

    def unmount(self) -> int:
        """Detach lazily whatever is mounted at the path; returns how many layers it had."""
        return detach_all(self.path)

    def close(self) -> None:
        """Kill every server of this source; what is mounted stays."""
        servers = self.draining if self._server is None else [*self.draining, self._server]
        for server in servers:
            if server.is_running:
                server.kill()


def mount_id_at(path: str) -> int:
    """Return the mount id of what is on top of ``path``, without asking a FUSE server."""
    with syscalls.closing_fd(os.open(path, os.O_PATH | os.O_CLOEXEC)) as fd:
        return fdinfo_mount_id(fd)


def detach_all(path: str) -> int:
    """Detach every mount at ``path`` (MNT_DETACH); returns how many there were."""
    for count in range(MOST_LAYERS):
        try:
            syscalls.umount2(path, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return count
            raise
    raise FusewatchError(f"more than {MOST_LAYERS} mounts at {path}")


def _process_state(pid: int) -> str:
    """Return the state letter of proc_pid_stat(5)."""
    with open_process(pid) as process:
        return process.stat()[1]
