"""Running one program of the node on behalf of the daemon, in a worker that may be killed.

The program gets an argument list (no shell), nothing on its standard input, a small environment
that says nothing of the daemon's, ``/`` as its directory and a process group of its own, which is
ended when the time is over.  Only the end of what it prints is kept.

What it leaves running in the background goes on; but it is in the daemon's own control group, and
a service manager ends it along with the daemon.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from contextlib import suppress
from typing import Any

from fusewatchd.workers.channel import Channel
from fusewatchd.workers.fork_server import Worker, end_with_parent

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/"}
"""All of it."""
MAX_OUTPUT = 1024
"""Bytes of output that are kept, the last ones."""
TERM_SECONDS = 2.0
"""Between SIGTERM and SIGKILL, once the time is over."""
POLL_SECONDS = 0.02
MOST_SECONDS = 1.0
"""So much of the time between two looks at a program counts."""


def serve_commands(channel: Channel) -> None:
    """Main function of a command worker; it runs what it is sent, one after the other."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Ignored in the fork server, and that would be inherited.
        signal.signal(number, signal.SIG_DFL)
    channel.serve(lambda message: channel.send(_run(message["argv"], message["timeout"])))


def _run(argv: list[str], timeout: float) -> dict[str, Any]:
    worker = os.getpid()
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=ENVIRONMENT,
            start_new_session=True,
            umask=0o022,
            # Safe: this process has one thread.
            preexec_fn=lambda: end_with_parent(worker),
        )
    except (OSError, ValueError, subprocess.SubprocessError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        return {"is_started": False, "output": f"{argv[0]}: {reason}"}
    assert process.stdout is not None
    with process.stdout:
        output = _Output(process.stdout.fileno())
        is_timely = _wait(process, output, timeout)
        if not is_timely:
            _end(process, output)
        output.read()
    return {
        "is_started": True,
        "is_timely": is_timely,
        "status": process.returncode,
        "output": os.fsdecode(output.last),
    }


class _Output:
    """The end of what a program prints; it never has to wait for its reader."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.last = b""
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._is_open = True

    def wait(self, seconds: float) -> None:
        if self._is_open and self._poll.poll(seconds * 1000):
            self.read()
        elif not self._is_open:
            time.sleep(seconds)

    def read(self) -> None:
        """Take what is there, at most as much as a pipe holds: what goes on printing can wait."""
        with suppress(BlockingIOError):
            data = os.read(self._fd, 1 << 16)
            self._is_open = bool(data)
            self.last = (self.last + data)[-MAX_OUTPUT:]


def _wait(process: subprocess.Popen[bytes], output: _Output, timeout: float) -> bool:
    """Wait for the end of the program itself, not of what it leaves behind."""
    before = time.monotonic()
    while process.poll() is None:
        if timeout <= 0:
            return False
        output.wait(min(POLL_SECONDS, timeout))
        now = time.monotonic()
        # A machine that was paused in between took the time from the program as well.
        timeout, before = timeout - min(now - before, MOST_SECONDS), now
    return True


def _end(process: subprocess.Popen[bytes], output: _Output) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        # Its leader is not reaped: so long the group's number is nobody else's.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        end = time.monotonic() + TERM_SECONDS
        while number is signal.SIGTERM and time.monotonic() < end and _has_members(process.pid):
            output.wait(POLL_SECONDS)
    process.wait()


def _has_members(group: int) -> bool:
    """Return True while a process of the group has not ended; the leader is one until reaped."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] != b"Z":
            return True
    return False


class CommandWorker:
    """The daemon's side of one worker."""

    def __init__(self, worker: Worker) -> None:
        """Wrap a process started with ``serve_commands``."""
        self._worker = worker

    def fileno(self) -> int:
        """Return what becomes readable at the end of the command."""
        return self._worker.channel.fileno()

    def send(self, argv: tuple[str, ...], timeout: float) -> None:
        """Run a program; the time is in seconds."""
        self._worker.channel.send({"argv": list(argv), "timeout": timeout})

    def receive(self) -> dict[str, Any] | None:
        """Return how it ended; None: it has not.

        Raises:
            EOFError: the worker ended.
        """
        messages: list[dict[str, Any]] = self._worker.channel.receive()
        return messages[-1] if messages else None

    def kill(self) -> None:
        """End the worker, whatever it is doing, and with it the program."""
        self._worker.kill()
