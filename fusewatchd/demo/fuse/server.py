"""A small real FUSE server: the kernel's own protocol over /dev/fuse, without libfuse.

``python -m fusewatchd.demo.fuse.server --mount PATH --backing DIR`` mounts, prints one line
``READY mounted_at=<CLOCK_MONOTONIC seconds>`` once the kernel's INIT is answered, serves in
the foreground and ends with status 0 when the file system is unmounted or SIGTERM comes.
Like a libfuse server it refuses a path that shows a dead FUSE mount.

From SIGUSR1 on it reads requests and answers none (or all but those of one kind), like a server
whose backend is away; SIGUSR2 makes it answer what it holds, in the order in which that came,
and go on as before.

With ``--faults FILE`` each line of the file, ``STATFS 107`` or ``* 5``, says with which errno the
server answers a request of this kind, and ``GETATTR never`` that it does not answer it.  The file
is read for each request.

With ``--keeper SOCKET`` it gives its connection to a keeper (``fd_keeper``), or goes on with the
one that is kept there.

One thread: a request that blocks in the backing directory blocks them all.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from fusewatchd.demo.fuse import fd_keeper
from fusewatchd.demo.fuse import protocol as fuse
from fusewatchd.demo.fuse.passthrough import HANDLERS, PassThrough
from fusewatchd.demo.fuse.protocol import Opcode
from fusewatchd.linux import syscalls

NEVER = "never"
"""In the file of faults: a request that is not answered at all."""
_NEVER_ANSWERED = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})


class Terminated(Exception):
    """SIGTERM or SIGINT asked the server to end."""


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fuse.server", description="Pass-through FUSE server.")
    parser.add_argument("--mount", required=True, metavar="PATH")
    parser.add_argument("--backing", required=True, metavar="DIR")
    parser.add_argument("--fs-type", default="fuse.demofs", help="fuse or fuse.<subtype>")
    parser.add_argument("--source", default="demofs", help="what mountinfo shows as source")
    parser.add_argument("--user-id", type=int, default=0, metavar="N")
    parser.add_argument("--no-allow-other", action="store_true")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--allow-idmap", action="store_true", help="needs Linux 6.12")
    parser.add_argument("--init-delay", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--answer-delay", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--attr-timeout", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("--hold-only", default="", metavar="OPCODE", help="hold no other request")
    parser.add_argument("--faults", default="", metavar="FILE", help="lines of OPCODE ERRNO")
    parser.add_argument("--request-timeout", type=int, default=0, metavar="SECONDS")
    parser.add_argument("--lingers", action="store_true", help="outlive the connection")
    parser.add_argument("--keeper", default="", metavar="SOCKET", help="keeps the connection")
    return parser.parse_args(arguments)


def mount_fuse(options: argparse.Namespace, root_type: int) -> int:
    """Mount and return the descriptor of /dev/fuse that serves the new connection.

    Raises:
        OSError: ENOTCONN when ``--mount`` shows a dead FUSE mount, EACCES or EPERM where
            /dev/fuse or mount(2) is not for us, others from mount(2).
    """
    os.statvfs(options.mount)
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    words = [
        f"fd={fd}",
        f"rootmode={root_type:o}",
        f"user_id={options.user_id}",
        f"group_id={options.user_id}",
        "default_permissions",
    ]
    if not options.no_allow_other:
        words.append("allow_other")
    # The flags that fusermount always sets.
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
    if options.read_only:
        flags |= syscalls.MS_RDONLY
    try:
        syscalls.mount(options.source, options.mount, options.fs_type, flags, ",".join(words))
    except OSError:
        os.close(fd)
        raise
    return fd


class Server:
    """The request loop of one connection."""

    def __init__(self, fd: int, file_system: PassThrough, options: argparse.Namespace) -> None:
        self._fd = fd
        self._file_system = file_system
        self._init_delay: float = options.init_delay
        self._answer_delay: float = options.answer_delay
        self._flags = fuse.ALLOW_IDMAP if options.allow_idmap else 0
        self._request_timeout: int = options.request_timeout
        self._flags |= fuse.REQUEST_TIMEOUT if self._request_timeout else 0
        self._lingers: bool = options.lingers
        self._faults: str = options.faults
        only = options.hold_only
        self._holdable = frozenset({Opcode[only]} if only else Opcode)
        self._is_holding = False
        self._held: deque[bytes] = deque()

    def hold(self) -> None:
        """Answer nothing from now on; to be called by a signal handler."""
        self._is_holding = True

    def release(self) -> None:
        """Answer what was held, and whatever comes; to be called by a signal handler."""
        self._is_holding = False
        while self._held:
            self._handle(memoryview(self._held.popleft()))

    def serve(self, mounted_at: float) -> None:
        """Answer until the connection ends; say READY after INIT."""
        buffer = bytearray(fuse.BUFFER_SIZE)
        whole = memoryview(buffer)
        while True:
            try:
                length = os.readv(self._fd, (buffer,))
            except OSError as error:
                if error.errno == errno.ENODEV and self._lingers:
                    signal.pause()
                if error.errno == errno.ENODEV:
                    return
                # ENOENT: the request was withdrawn between wake-up and read (fuse(4)).
                if error.errno == errno.ENOENT:
                    continue
                raise
            request = whole[:length]
            _, opcode, unique, *_ = fuse.IN_HEADER.unpack_from(request)
            if opcode == Opcode.INIT:
                time.sleep(self._init_delay)
                self._reply(unique, 0, self._init(request[fuse.IN_HEADER.size :]))
                print(f"READY mounted_at={mounted_at:.9f}", flush=True)
            elif self._is_holding and opcode in self._holdable:
                self._keep(bytes(request))
            else:
                self._handle(request)

    def _keep(self, request: bytes) -> None:
        self._held.append(request)
        if not self._is_holding:
            # Told so between the look and the append.
            self.release()

    def _handle(self, request: memoryview) -> None:
        _, opcode, unique, node_id, uid, gid, _, _ = fuse.IN_HEADER.unpack_from(request)
        if self._answer_delay and opcode not in _NEVER_ANSWERED:
            time.sleep(self._answer_delay)
        handler = HANDLERS.get(opcode)
        if handler is None:
            self._reply(unique, -errno.ENOSYS, b"")
            return
        self._file_system.set_caller(uid, gid)
        fault = _fault(self._faults, Opcode(opcode)) if self._faults else ""
        if fault and opcode not in _NEVER_ANSWERED:
            if fault != NEVER:
                self._reply(unique, -int(fault), b"")
            return
        try:
            answer = handler(self._file_system, node_id, request[fuse.IN_HEADER.size :])
        except OSError as error:
            self._reply(unique, -(error.errno or errno.EIO), b"")
        else:
            if answer is not None:
                self._reply(unique, 0, answer)

    def _reply(self, unique: int, error: int, payload: bytes) -> None:
        header = fuse.OUT_HEADER.pack(fuse.OUT_HEADER.size + len(payload), error, unique)
        try:
            os.writev(self._fd, (header, payload))
        except OSError as failure:
            # ENOENT: nobody waits for this answer any more; ENODEV: unmounted meanwhile.
            if failure.errno not in (errno.ENOENT, errno.ENODEV):
                raise

    def _init(self, body: memoryview) -> bytes:
        """Answer INIT: of what the kernel offers, take what this server knows."""
        major, minor, max_readahead, offered = fuse.INIT_IN.unpack_from(body)
        if major != fuse.KERNEL_VERSION:
            raise OSError(errno.EPROTO, f"the kernel speaks FUSE {major}, not 7")
        if offered & fuse.INIT_EXT:
            offered |= fuse.INIT_IN_FLAGS2.unpack_from(body, fuse.INIT_IN.size)[0] << 32
        if self._flags & ~offered:
            raise OSError(
                errno.EOPNOTSUPP, "this kernel has no idmapped FUSE mounts (6.12), or no timeouts"
            )
        wanted = fuse.ATOMIC_O_TRUNC | fuse.BIG_WRITES | fuse.PARALLEL_DIROPS | fuse.MAX_PAGES
        flags = offered & (wanted | fuse.INIT_EXT | self._flags)
        return fuse.INIT_OUT.pack(
            fuse.KERNEL_VERSION,
            min(minor, fuse.HIGHEST_MINOR),
            max_readahead,
            flags & 0xFFFF_FFFF,
            12,  # max_background and congestion_threshold: libfuse's own defaults
            9,
            fuse.MAX_WRITE,
            1,
            fuse.MAX_WRITE // os.sysconf("SC_PAGE_SIZE"),
            0,
            flags >> 32,
            0,
            self._request_timeout,
        )


def _fault(path: str, opcode: Opcode) -> str:
    try:
        with open(path, encoding="ascii") as file:
            told = dict(line.split() for line in file)
    except FileNotFoundError:
        return ""
    return told.get(opcode.name) or told.get("*", "")


def device_at(path: str) -> tuple[int, int]:
    """Return the device of what is mounted there; no server is asked."""
    with syscalls.closing_fd(os.open(path, os.O_PATH | os.O_CLOEXEC)) as fd:
        return syscalls.device_of(fd)


def unmount_own(path: str, device: tuple[int, int]) -> None:
    """Detach the mount at ``path``; leave it when another file system is on top.

    As libfuse does, without a question to the connection: a keeper of it may have that wait.
    """
    with suppress(OSError):
        if device_at(path) == device:
            syscalls.umount2(path, syscalls.MNT_DETACH)


def _raise_terminated(number: int, frame: FrameType | None) -> NoReturn:
    # A second signal must not interrupt the unmounting.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise Terminated


def main(arguments: Sequence[str]) -> int:
    """Mount, serve, end.  Returns the exit status; 1 when mounting failed."""
    options = parse_arguments(arguments)
    kept = fd_keeper.take(options.keeper) if options.keeper else None
    signal.signal(signal.SIGTERM, _raise_terminated)
    signal.signal(signal.SIGINT, _raise_terminated)
    os.umask(0)
    try:
        first_id = fuse.ROOT_ID + 1 if kept is None else time.monotonic_ns()
        file_system = PassThrough(options.backing, options.attr_timeout, first_id)
        fd = mount_fuse(options, file_system.root_type) if kept is None else kept
    except OSError as error:
        print(f"fuse.server{error}", file=sys.stderr)
        return 1
    device = device_at(options.mount)
    mounted_at = time.clock_gettime(time.CLOCK_MONOTONIC)
    # A descriptor of the backing tree must not keep a directory of the node busy.
    os.chdir("/")
    try:
        if kept is not None:
            print(f"READY mounted_at={mounted_at:.9f}", flush=True)
        elif options.keeper:
            fd_keeper.keep(options.keeper, fd)
        server = Server(fd, file_system, options)
        signal.signal(signal.SIGUSR1, lambda *_: server.hold())
        signal.signal(signal.SIGUSR2, lambda *_: server.release())
        server.serve(mounted_at)
    except Terminated:
        os.close(fd)
        unmount_own(options.mount, device)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
