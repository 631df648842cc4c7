"""What the keeper asks of systemd: to store descriptors, and to watch it, sd_notify(3).

The library that the daemon uses for its state sends text only.  Nothing here waits: a message that
systemd cannot take now is not sent, and the caller learns that.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Mapping, Sequence

WATCHDOG_SECONDS = 1.0
"""After so long without a word from a keeper that has callers waiting, it is killed."""


class ServiceManager:
    """systemd, or what stands in its place; each method returns False where no message was sent."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Find it in the environment; without ``NOTIFY_SOCKET`` there is none."""
        name = environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{name[1:]}" if name.startswith("@") else name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    @property
    def is_there(self) -> bool:
        """True when there is one."""
        return bool(self._address)

    def ready(self) -> bool:
        """Say that starting is complete."""
        return self._tell("READY=1")

    def watch(self, *, is_on: bool) -> bool:
        """Have this process killed when it says nothing for ``WATCHDOG_SECONDS``, or no longer."""
        limit = int(WATCHDOG_SECONDS * 1_000_000) if is_on else 0
        return self._tell(f"WATCHDOG=1\nWATCHDOG_USEC={limit}")

    def goes_on(self) -> bool:
        """Say that this process does."""
        return self._tell("WATCHDOG=1")

    def keep(self, name: str, descriptors: Sequence[int]) -> bool:
        """Store copies of these descriptors, to be given to the next process of this service.

        Not to be polled: of ``/dev/fuse`` that would wake systemd at every request of a caller.
        """
        return self._tell(f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", descriptors)

    def forget(self, name: str) -> bool:
        """Close all copies that were stored by this name."""
        return self._tell(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def barrier(self) -> int | None:
        """Return a descriptor that hangs up when all messages before are handled; None: not sent.

        The caller closes it.
        """
        ours, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        is_told = self._tell("BARRIER=1", [theirs])
        os.close(theirs)
        if is_told:
            return ours
        os.close(ours)
        return None

    def _tell(self, text: str, descriptors: Sequence[int] = ()) -> bool:
        if not self._address:
            return False
        # Not socket.send_fds(): before Python 3.14 that sends to no address.
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        try:
            self._socket.sendmsg(
                [text.encode("ascii")], [rights] if descriptors else [], 0, self._address
            )
        except OSError:
            return False
        return True


def given(environ: Mapping[str, str], pid: int) -> list[tuple[str, int]]:
    """Return the names and descriptors that the manager started this process with.

    sd_listen_fds_with_names(3): sockets that it listens at, and what was stored.
    """
    if environ.get("LISTEN_PID") != str(pid):
        return []
    first, count = 3, int(environ.get("LISTEN_FDS", "0"))
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    found: list[tuple[str, int]] = []
    for number in range(count):
        os.set_inheritable(first + number, False)
        found.append((names[number] if number < len(names) else "", first + number))
    return found
