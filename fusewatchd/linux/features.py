"""What this kernel can do, found out by doing it once in a private mount namespace.

Never by version: distributions backport, containers filter, and a call that is there may
still be refused.  The trial runs in a forked child and touches no mount of the host.  While no
mount namespace is to be had, it is only found out which calls the kernel knows.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass

from fusewatchd.errors import UnsupportedKernelError
from fusewatchd.linux import syscalls
from fusewatchd.linux.limits import Limit, why_not
from fusewatchd.linux.mount_kernel import Way


@dataclass(frozen=True, slots=True)
class Features:
    """Each field is one call, tried; ``way`` is what follows from them."""

    open_tree: bool
    mount_setattr: bool
    beneath: bool
    mounts_on_detached: bool
    namespace_shortage: str = ""
    """Why no mount namespace is to be had for now; then no call was tried."""

    @property
    def best_way(self) -> Way:
        """Return the newest way of replacing a mount that works here.

        Raises:
            UnsupportedKernelError: none does; detached clones came with Linux 5.2.
        """
        if not self.open_tree:
            raise UnsupportedKernelError(
                "this kernel has no open_tree(2) and move_mount(2): Linux 5.2 or newer is needed"
            )
        if not self.mount_setattr:
            return Way.STAGED
        return Way.BENEATH if self.beneath else Way.ON_TOP

    def allows_mounts_on_detached(self, way: Way) -> bool:
        """A forced older way also does without what came later, as its kernels must."""
        return self.mounts_on_detached and way is Way.BENEATH


def probe_features() -> Features:
    """Try every call in a child of its own.

    To be called before any thread exists.

    Raises:
        UnsupportedKernelError: the trial could not even begin, with the reason.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            with open(writer, "w", encoding="ascii") as file:
                json.dump(_trial(), file)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, encoding="ascii") as file:
        answer = file.read()
    os.waitpid(pid, 0)
    if not answer:
        raise UnsupportedKernelError("the trial of mount calls ended without an answer")
    document = json.loads(answer)
    if "errno" in document:
        number = int(document["errno"])
        raise UnsupportedKernelError(
            f"a private mount namespace cannot be made: {os.strerror(number)}"
            + (" (CAP_SYS_ADMIN is needed)" if number == errno.EPERM else "")
        )
    return Features(**document)


def _trial() -> dict[str, int | bool | str]:
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        # Covers a directory that every system has, in this namespace only.
        syscalls.mount("trial", "/proc", "tmpfs", 0, "size=64k")
        for name in ("source", "target", "source/inner"):
            os.mkdir(f"/proc/{name}")
        syscalls.mount("/proc/source", "/proc/target", None, syscalls.MS_BIND)
    except OSError as exc:
        if exc.errno == errno.ENOSPC:
            return asdict(_without_namespace(why_not(exc, Limit.MOUNT_NAMESPACES)))
        return {"errno": exc.errno or 0}
    return asdict(
        Features(
            open_tree=_succeeds(_try_attach),
            mount_setattr=_succeeds(_try_setattr),
            beneath=_succeeds(_try_beneath),
            mounts_on_detached=_succeeds(_try_mount_on_detached),
        )
    )


def _without_namespace(shortage: str) -> Features:
    """Tell which calls the kernel knows: each looks at its flags first, then at descriptors."""
    return Features(
        open_tree=_is_known(_open_nothing) and _is_known(lambda: syscalls.move_mount(-1, -1)),
        mount_setattr=_is_known(lambda: syscalls.mount_setattr(-1, syscalls.MOUNT_ATTR_RDONLY)),
        beneath=_is_known(lambda: syscalls.move_mount(-1, -1, syscalls.MOVE_MOUNT_BENEATH)),
        mounts_on_detached=False,
        namespace_shortage=shortage,
    )


def _open_nothing() -> int:
    return syscalls.open_tree(-1, "", syscalls.OPEN_TREE_CLONE | syscalls.AT_EMPTY_PATH)


def _is_known(call: Callable[[], object]) -> bool:
    try:
        call()
    except OSError as exc:
        return exc.errno == errno.EBADF
    return False


def _succeeds(call: Callable[[], object]) -> bool:
    try:
        call()
    except OSError:
        return False
    return True


def _clone() -> int:
    return syscalls.open_tree(syscalls.AT_FDCWD, "/proc/source", syscalls.OPEN_TREE_CLONE)


def _try_attach() -> None:
    syscalls.move_mount(_clone(), os.open("/proc/target", os.O_PATH))


def _try_setattr() -> None:
    syscalls.mount_setattr(_clone(), attr_set=syscalls.MOUNT_ATTR_RDONLY)


def _try_beneath() -> None:
    target = os.open("/proc/target", os.O_PATH)
    syscalls.move_mount(_clone(), target, syscalls.MOVE_MOUNT_BENEATH)


def _try_mount_on_detached() -> None:
    tree = _clone()
    syscalls.move_mount(_clone(), os.open("inner", os.O_PATH, dir_fd=tree))
