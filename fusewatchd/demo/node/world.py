"""A private world to make a demo node in: nothing mounted or started there outlives it.

A mount namespace of its own (with a user namespace for whoever lacks CAP_SYS_ADMIN), every
inherited mount made private, one tmpfs made shared as a host's tree is, and with
``run_in_private_world`` a pid namespace too: a scan of /proc sees this world's processes
only, and when its first process ends the kernel kills all the others.

mount_namespaces(7), user_namespaces(7), pid_namespaces(7).
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Final, NamedTuple, NoReturn

from fusewatchd.demo.node import cgroups
from fusewatchd.errors import FusewatchError
from fusewatchd.linux import syscalls

_CLONE_NEWPID: Final = 0x20000000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_FUSECTL: Final = "/sys/fs/fuse/connections"
_LAB_CANDIDATES: Final = ("/mnt", "/media", "/srv", "/opt", "/home")
_STARTED: Final = b"started"
_NO_PROC: Final = b"no proc"
_GRACE_SECONDS: Final = 5.0


class NamespaceForbiddenError(FusewatchError):
    """This user or machine may not make the namespaces; the text says what forbids it."""


class PrivateWorld(NamedTuple):
    """What was made, for whoever works in it."""

    lab: str
    """Root of the shared tmpfs: every directory of the demo node is below it."""
    in_user_namespace: bool
    """True for an ordinary user, who is uid 0 of this world and nobody elsewhere."""
    in_pid_namespace: bool
    fusectl_problem: str
    """Why /sys/fs/fuse/connections could not be mounted; empty when it is there."""
    cgroup: str
    """Name of this world's cgroup below the cgroup2 root; made when first needed."""


def choose_lab() -> str:
    """Return a directory to mount the lab's tmpfs on, one that hides nothing we need.

    It is an existing directory, so that nothing is left behind on the host.

    Raises:
        FusewatchError: every candidate holds the program, Python, the working directory or
            a mount.
    """
    needed = [
        os.path.realpath(__file__),
        os.path.realpath(sys.executable),
        os.path.realpath(sys.prefix),
        os.path.realpath(tempfile.gettempdir()),
        os.path.realpath("."),
        *mount_points(),
    ]
    for candidate in _LAB_CANDIDATES:
        hides_something = any(path.startswith(candidate + "/") for path in needed)
        if os.path.isdir(candidate) and not hides_something and candidate not in needed:
            return candidate
    raise FusewatchError(f"no directory to mount a tmpfs on; tried {', '.join(_LAB_CANDIDATES)}")


def mount_points() -> list[str]:
    """Return every mount point of this namespace in the order of the mount table."""
    with open("/proc/self/mountinfo", "rb") as file:
        raw = [line.split(b" ")[4] for line in file]
    return [os.fsdecode(path.decode("unicode_escape").encode("latin-1")) for path in raw]


def be_at_the_root() -> None:
    """Cut this process's own mount namespace off from all others, and put its root on top.

    In a chroot the root is a directory somewhere below that of the namespace, and whoever
    enters the namespace with setns(2), as one enters a container, does not come out there.

    Raises:
        OSError: /proc is missing, or a mount failed.
    """
    with (
        syscalls.closing_fd(os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)) as namespace,
        syscalls.closing_fd(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root,
    ):
        syscalls.setns(namespace, syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        if _identity(os.stat(root)) == _identity(os.stat("/")):
            return
        os.fchdir(root)
        # Only a mount can be moved, and entering it by its path leads to the new one.
        syscalls.mount(".", ".", None, syscalls.MS_BIND | syscalls.MS_REC)
        os.chdir(os.getcwd())
        syscalls.mount(".", "/", None, syscalls.MS_MOVE)
        os.chroot(".")
        os.chdir("/")


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def run_in_private_world(
    body: Callable[[PrivateWorld], int],
    *,
    lab: str | None = None,
    deadline_seconds: float | None = None,
) -> int:
    """Run ``body`` in a forked child in a private world and return its exit status.

    The status is 128 plus the signal's number when the body was killed.  Where /proc cannot
    be mounted in a user namespace (a container that masks parts of it) the world has no pid
    namespace, which ``PrivateWorld.in_pid_namespace`` says.

    Raises:
        NamespaceForbiddenError: the namespaces cannot be made here.
        TimeoutError: the deadline passed; everything in the world has been or is being killed.
        FusewatchError: setting the world up failed.
    """
    order = _Order(body, lab or choose_lab(), cgroups.new_name(), with_pids=True)
    cgroups.remove_leftovers()
    try:
        try:
            return _run(order, deadline_seconds)
        except _ProcForbidden:
            return _run(order._replace(with_pids=False), deadline_seconds)
    finally:
        cgroups.remove_tree(order.cgroup)


class _Order(NamedTuple):
    """What is to be made, and what is to run in it."""

    body: Callable[[PrivateWorld], int]
    lab: str
    cgroup: str
    with_pids: bool


class _ProcForbidden(Exception):
    """A new procfs may not be mounted in this user namespace."""


def _run(order: _Order, deadline_seconds: float | None) -> int:
    """Fork ``starter``, which unshares and forks ``init``, which forks the body."""
    sys.stdout.flush()
    sys.stderr.flush()
    report, write_end = os.pipe()
    starter = os.fork()
    if starter == 0:
        os.close(report)
        _never_return(lambda: _starter(order, write_end))
    os.close(write_end)
    with os.fdopen(report, "rb") as reader:
        message = reader.read()
    if message == _STARTED:
        return _wait_for(starter, deadline_seconds)
    _reap(starter)
    if message == _NO_PROC:
        raise _ProcForbidden
    kind, _, text = message.decode(errors="replace").partition(":")
    if kind == NamespaceForbiddenError.__name__:
        raise NamespaceForbiddenError(text)
    raise FusewatchError(f"the private world could not be made: {text or 'no reason given'}")


def _reap(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _never_return(work: Callable[[], NoReturn]) -> NoReturn:
    """Run a forked child's work; nothing of the parent's stack runs in it afterwards."""
    try:
        work()
    finally:
        traceback.print_exc()
        os._exit(1)


def _wait_for(pid: int, deadline_seconds: float | None) -> int:
    """Wait for the starter; the interrupt key is the body's to handle, within its grace."""
    end = None if deadline_seconds is None else time.monotonic() + deadline_seconds
    fd = os.pidfd_open(pid)
    has_ended = False
    try:
        while not has_ended:
            left = None if end is None else max(0.0, end - time.monotonic())
            try:
                has_ended = bool(select.select([fd], [], [], left)[0])
            except KeyboardInterrupt:
                end = min(end or float("inf"), time.monotonic() + _GRACE_SECONDS)
                continue
            if not has_ended:
                raise TimeoutError(f"the private world did not end in {deadline_seconds} s")
    finally:
        os.close(fd)
        if not has_ended:
            os.kill(pid, signal.SIGKILL)
        status = _reap(pid)
    return status


def _starter(order: _Order, write_end: int) -> NoReturn:
    """Make the namespaces, start ``init`` in them and end with its status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        flags = syscalls.CLONE_NEWNS | (_CLONE_NEWPID if order.with_pids else 0)
        in_user_namespace = _unshare(flags)
    except (FusewatchError, OSError) as error:
        _report_failure(write_end, error)
    init = os.fork()
    if init == 0:
        _never_return(lambda: _init(order, write_end, in_user_namespace))
    os.close(write_end)
    _leave(_reap(init))


def _init(order: _Order, write_end: int, in_user_namespace: bool) -> NoReturn:
    """Furnish the world, run the body in a child and reap whatever else ends meanwhile."""
    # The kernel empties a pid namespace when its init ends; without one that is our work.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if order.with_pids else signal.SIGTERM)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        be_at_the_root()
        if order.with_pids:
            _mount_proc(write_end)
        syscalls.mount("fusewatchd-demo", order.lab, "tmpfs", 0, "mode=755")
        syscalls.mount(None, order.lab, None, syscalls.MS_SHARED)
        fusectl_problem = _mount_fusectl()
    except (FusewatchError, OSError) as error:
        _report_failure(write_end, error)
    os.write(write_end, _STARTED)
    os.close(write_end)
    world = PrivateWorld(
        order.lab, in_user_namespace, order.with_pids, fusectl_problem, order.cgroup
    )
    first = os.fork()
    if first == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            status = order.body(world)
        except BaseException:
            traceback.print_exc()
            status = 1
        _leave(status)
    try:
        signal.signal(signal.SIGTERM, _raise_ended)
        status = _reap_until(first)
    except _StarterEnded:
        status = 128 + signal.SIGTERM
    if not order.with_pids:
        _kill_descendants()
    _leave(status)


class _StarterEnded(Exception):
    """The process that waits for ``init`` is gone: its caller's deadline passed."""


def _raise_ended(number: int, frame: FrameType | None) -> NoReturn:
    raise _StarterEnded


def _reap_until(pid: int) -> int:
    """Reap children, adopted ones too, until ``pid`` ends; returns its exit status."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


def _kill_descendants() -> None:
    """Kill what the body left; orphans come to us, their subreaper, one level at a time."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < end:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="utf-8") as file:
            children = file.read().split()
        for child in children:
            os.kill(int(child), signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def _leave(status: int) -> NoReturn:
    """Exit without running the parent's exit handlers a second time."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if status >= 0 else 128 - status)


def _report_failure(write_end: int, error: Exception) -> NoReturn:
    os.write(write_end, f"{type(error).__name__}:{error}".encode())
    os._exit(1)


def _mount_proc(write_end: int) -> None:
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    try:
        syscalls.mount("proc", "/proc", "proc", flags)
    except PermissionError:
        os.write(write_end, _NO_PROC)
        os._exit(1)


def _unshare(flags: int) -> bool:
    """Unshare, in a new user namespace if that is the only way; returns whether it was."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        syscalls.unshare(flags)
    except PermissionError:
        pass
    else:
        return False
    try:
        syscalls.unshare(flags | syscalls.CLONE_NEWUSER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"0 {uid} 1")
        _write("/proc/self/gid_map", f"0 {gid} 1")
    except OSError as error:
        raise NamespaceForbiddenError(_why_forbidden(error)) from error
    return True


_FORBIDDERS: Final = (
    ("kernel.unprivileged_userns_clone", "/proc/sys/kernel/unprivileged_userns_clone", "0"),
    ("user.max_user_namespaces", "/proc/sys/user/max_user_namespaces", "0"),
    (
        "kernel.apparmor_restrict_unprivileged_userns",
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
    ),
)


def _why_forbidden(error: OSError) -> str:
    """Name the sysctl that forbids user namespaces, as far as one of the known ones does."""
    causes = []
    for name, path, forbidding in _FORBIDDERS:
        try:
            with open(path, encoding="utf-8") as file:
                value = file.read().strip()
        except OSError:
            continue
        if value == forbidding:
            causes.append(f"{name} is {value}")
    unknown = "perhaps a chroot, a container's seccomp profile or a security module"
    reason = "; ".join(causes) or unknown
    return (
        f"private namespaces are not allowed for uid {os.getuid()} "
        f"({error.strerror}): {reason}.  Run as root, or allow user namespaces."
    )


def _mount_fusectl() -> str:
    """Return why fusectl cannot be had, or nothing."""
    try:
        syscalls.mount("fusectl", _FUSECTL, "fusectl", 0)
    except OSError as error:
        # EBUSY: it is mounted there already.
        if error.errno == errno.EBUSY:
            return ""
        return f"fusectl: {error.strerror}"
    return ""


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
