"""Keeping the connection of a FUSE server for its successor, as JuiceFS and nydus do.

``python -m fusewatchd.demo.fuse.fd_keeper SOCKET`` is the keeper: whoever connects and sends ``K``
with a descriptor has it kept, whoever sends ``T`` gets it.  While the keeper lives the connection
does, served or not.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.timeouts import patient

KEEP, TAKE, NOTHING = b"K", b"T", b"N"


def keep(path: str, fd: int) -> None:
    """Have the keeper at a socket's path keep a descriptor.

    Raises:
        OSError: there is no keeper.
    """
    with _connected(path) as sock:
        socket.send_fds(sock, [KEEP], [fd])
        sock.recv(1)


def take(path: str) -> int | None:
    """Return the descriptor that is kept; None when there is none.

    Raises:
        OSError: there is no keeper.
    """
    with _connected(path) as sock:
        sock.send(TAKE)
        _, descriptors, _, _ = socket.recv_fds(sock, 1, 1)
    if descriptors:
        os.set_inheritable(descriptors[0], False)
    return descriptors[0] if descriptors else None


def _connected(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


class Keeper:
    """The keeper as a process of ours, for the length of a ``with`` block."""

    def __init__(self, path: str) -> None:
        """It will listen at ``path``."""
        self.path = path
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Keeper:
        words = [sys.executable, "-m", "fusewatchd.demo.fuse.fd_keeper", self.path]
        self._process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, cwd="/", env=python_environment()
        )
        end = time.monotonic() + patient(20)
        while not os.path.exists(self.path):
            if self._process.poll() is not None or time.monotonic() > end:
                raise TimeoutError("the keeper did not start")
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL it, and with it the connection if nobody serves that; safe to repeat."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()


def main(path: str) -> None:
    """Keep the descriptor that was sent last, for ever."""
    kept: list[int] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            client, _ = listener.accept()
            with client:
                word, descriptors, _, _ = socket.recv_fds(client, 1, 1)
                if word == KEEP and descriptors:
                    for fd in kept:
                        os.close(fd)
                    kept = list(descriptors)
                    client.send(KEEP)
                elif word == TAKE and kept:
                    socket.send_fds(client, [TAKE], kept)
                else:
                    client.send(NOTHING)


if __name__ == "__main__":
    main(sys.argv[1])
