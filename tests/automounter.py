"""A small automounter on the kernel's autofs, protocol 5 (include/uapi/linux/auto_fs.h).

An indirect mount: whoever walks to ``<directory>/<name>`` gets what ``mount`` makes there, and
it goes when nobody has used it for the timeout.  What was mounted, wanted in vain and expired is
written down line by line.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress

from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.timeouts import patient
from fusewatchd.linux import syscalls

_READY, _FAIL, _SET_TIMEOUT, _EXPIRE_MULTI = 0x9360, 0x9361, 0xC0089364, 0x40049366
_MISSING_INDIRECT, _EXPIRE_INDIRECT = 3, 4
_PACKET = struct.Struct("=iiIIQIIIII256s4x")


class Automounter:
    """A process of its own, whose children are the servers; ``served`` are their commands."""

    def __init__(self, directory: str, served: dict[str, Sequence[str]], timeout: int) -> None:
        """Mount autofs there; each command mounts ``<directory>/<name>`` and stays."""
        self.directory = directory
        self._served = served
        self._timeout = timeout
        self._journal = f"{directory}.journal"
        os.makedirs(directory)
        ready, told = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            try:
                os.setpgid(0, 0)  # who is in its process group sees what is below
                self._live(told)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(told)
        with os.fdopen(ready, "rb") as file:
            assert file.read(1) == b"+", "no autofs"

    def events(self) -> list[str]:
        """Return what happened: ``mounted repo``, ``missing other``, ``expired repo``."""
        with open(self._journal, encoding="utf-8") as file:
            return file.read().splitlines()

    def wait_for(self, event: str, seconds: float) -> bool:
        """Return True once it is written down, False when the time is over."""
        end = time.monotonic() + patient(seconds)
        while event not in self.events():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def close(self) -> None:
        """Kill the servers and take everything away."""
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        while True:
            try:
                syscalls.umount2(self.directory, syscalls.MNT_DETACH)
            except OSError:
                return

    # ------------------------------------------------------------------- its own process

    def _live(self, told: int) -> None:
        requests, kernel = os.pipe()
        options = f"fd={kernel},pgrp={os.getpgrp()},minproto=5,maxproto=5,indirect"
        syscalls.mount("automounter", self.directory, "autofs", 0, options)
        os.close(kernel)
        root = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.ioctl(root, _SET_TIMEOUT, struct.pack("L", self._timeout))
        self._write("started")
        os.write(told, b"+")
        os.close(told)
        threading.Thread(target=self._expire, args=(root,), daemon=True).start()
        while packet := os.read(requests, _PACKET.size):
            _, kind, token, _, _, _, _, _, _, length, name = _PACKET.unpack(packet)
            is_done = self._serve(kind, name[:length].decode())
            fcntl.ioctl(root, _READY if is_done else _FAIL, token)

    def _expire(self, root: int) -> None:
        while True:
            time.sleep(0.2)
            with suppress(OSError):  # EAGAIN: nobody has been idle for so long
                fcntl.ioctl(root, _EXPIRE_MULTI, struct.pack("i", 0))

    def _serve(self, kind: int, name: str) -> bool:
        path = os.path.join(self.directory, name)
        if kind == _EXPIRE_INDIRECT:
            syscalls.umount2(path, 0)
            os.rmdir(path)
            self._write(f"expired {name}")
            return True
        if kind != _MISSING_INDIRECT or name not in self._served:
            self._write(f"missing {name}")
            return False
        os.mkdir(path)
        words = self._served[name]
        server = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=python_environment()
        )
        assert server.stdout is not None
        is_mounted = server.stdout.readline().startswith(b"READY")
        self._write(f"mounted {name}")
        return is_mounted

    def _write(self, event: str) -> None:
        with open(self._journal, "a", encoding="utf-8") as file:
            file.write(f"{event}\n")
