"""What systemd does for a service: its descriptor store, its watchdog, starting it again.

``python -m tests.servicemanager NOTIFY LISTEN COMMAND...`` listens for the command, runs it and
prints a line for each thing that happens: ``started PID``, ``ready``, ``stored NAME``, ``removed
NAME COUNT``, ``watched USEC``, ``killed PID``, ``ended STATUS``.  It ends with a service that ends
with status 0.  A process of its own, since whoever forks with stored descriptors hands them on.
"""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import sys
import time

FIRST_DESCRIPTOR = 3


class Manager:
    """One service."""

    def __init__(self, path: str, listen: str, command: list[str]) -> None:
        self.command = command
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.store: list[tuple[str, int]] = []
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(listen)
        self.listener.listen()
        self.limit = 0.0
        self.heard_at = 0.0
        self.pid = 0
        self.pidfd = -1

    def run(self) -> int:
        while True:
            self.start()
            status = self.serve()
            os.close(self.pidfd)
            print(f"ended {status}", flush=True)
            if status == 0:
                return 0

    def start(self) -> None:
        self.limit = 0.0
        given = [("the.socket", self.listener.fileno()), *self.store]
        names = ":".join(name for name, _ in given)
        environ = {
            **os.environ,
            "NOTIFY_SOCKET": self.path,
            "LISTEN_FDS": str(len(given)),
            "LISTEN_FDNAMES": names,
        }
        self.pid = os.fork()
        if not self.pid:
            environ["LISTEN_PID"] = str(os.getpid())
            # Above all that is open, so that none is overwritten before it is copied.
            copies = [os.dup(fd) for _, fd in given]
            for number, fd in enumerate(copies):
                os.dup2(fd, FIRST_DESCRIPTOR + number)
            os.closerange(FIRST_DESCRIPTOR + len(copies), 4096)
            os.execvpe(self.command[0], self.command, environ)
        self.pidfd = os.pidfd_open(self.pid)
        print(f"started {self.pid}", flush=True)

    def serve(self) -> int:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        poll.register(self.socket, select.POLLIN)
        while True:
            ready = dict(poll.poll(50))
            if self.socket.fileno() in ready:
                self.hear()
            elif self.pidfd in ready:
                _, status = os.waitpid(self.pid, 0)
                return os.waitstatus_to_exitcode(status)
            if self.limit and time.monotonic() > self.heard_at + self.limit:
                print(f"killed {self.pid}", flush=True)
                self.limit = 0.0
                os.kill(self.pid, signal.SIGKILL)

    def hear(self) -> None:
        size = socket.CMSG_SPACE(16 * 4)
        text, extra, _, _ = self.socket.recvmsg(1 << 16, size, socket.MSG_CMSG_CLOEXEC)
        descriptors = array.array("i")
        for _, _, data in extra:
            descriptors.frombytes(data)
        said = dict(line.partition("=")[::2] for line in text.decode().splitlines())
        if "FDSTORE" in said:
            assert said["FDPOLL"] == "0"
            self.store += [(said["FDNAME"], fd) for fd in descriptors]
            print(f"stored {said['FDNAME']}", flush=True)
            return
        for fd in descriptors:
            os.close(fd)
        if "FDSTOREREMOVE" in said:
            gone = [fd for name, fd in self.store if name == said["FDNAME"]]
            self.store = [(name, fd) for name, fd in self.store if fd not in gone]
            for fd in gone:
                os.close(fd)
            print(f"removed {said['FDNAME']} {len(gone)}", flush=True)
        if "READY" in said:
            print("ready", flush=True)
        if "WATCHDOG" in said:
            self.heard_at = time.monotonic()
        if "WATCHDOG_USEC" in said:
            self.limit = int(said["WATCHDOG_USEC"]) / 1_000_000
            print(f"watched {said['WATCHDOG_USEC']}", flush=True)


if __name__ == "__main__":
    sys.exit(Manager(sys.argv[1], sys.argv[2], sys.argv[3:]).run())
