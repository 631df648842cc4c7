"""What each kind of process may do: its capabilities, system calls that it is denied, limits; pure.

The fork server alone has every capability of the unit.  Each worker gives up what its kind does
not need before it reads a byte of anybody, and cannot get it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from fusewatchd.linux.seccomp import Denied, Only
from fusewatchd.model.capabilities import Capability

# <sched.h>, <fcntl.h>, <sys/socket.h>
_CLONE_NEWNS: Final = 0x00020000
_CLONE_THREAD: Final = 0x00010000
_WRITING: Final = 0o3 | 0o100 | 0o1000
"""O_ACCMODE, O_CREAT, O_TRUNC."""
_WHOLE: Final = 0xFFFFFFFF


def _each(calls: str) -> dict[str, Only | None]:
    return dict.fromkeys(calls.split())


def _some(**conditions: Only) -> dict[str, Only | None]:
    return {**conditions}


class Calls(Enum):
    """Groups of system calls that a kind of process may be denied."""

    KERNEL = _each(
        "acct add_key bpf delete_module finit_module init_module io_uring_enter io_uring_register"
        " io_uring_setup ioperm iopl kexec_file_load kexec_load keyctl modify_ldt perf_event_open"
        " quotactl quotactl_fd reboot request_key swapoff swapon syslog userfaultfd"
    )
    """What changes the kernel or the whole machine, or has much of the kernel to attack."""
    MOUNTS = _each(
        "fsconfig fsmount fsopen fspick mount mount_setattr move_mount open_tree open_tree_attr"
        " pivot_root umount2"
    )
    NAMESPACES = _each("chroot setns unshare")
    OTHER_NAMESPACES = _some(
        setns=Only(1, _WHOLE, _CLONE_NEWNS), unshare=Only(0, _WHOLE, _CLONE_NEWNS)
    )
    """All but mount namespaces."""
    OPEN_BY_HANDLE = _each("open_by_handle_at")
    OTHER_PROCESSES = _each(
        "kcmp pidfd_getfd process_madvise process_mrelease process_vm_readv process_vm_writev"
        " ptrace"
    )
    """Memory and descriptors of others."""
    SIGNALS = _each("kill pidfd_send_signal rt_sigqueueinfo rt_tgsigqueueinfo tkill")
    PROGRAMS = _each("execve execveat")
    PROCESSES = _each("clone3 fork vfork") | _some(clone=Only(0, _CLONE_THREAD, _CLONE_THREAD))
    """Children that are no threads."""
    CHILDREN = _each("clone clone3 fork vfork")
    USERS = _each(
        "capset setfsgid setfsuid setgid setgroups setregid setresgid setresuid setreuid setuid"
    )
    SOCKETS = _each("accept accept4 bind connect listen socket socketpair")
    LISTENING = _each("listen")
    NAMES = _each(
        "chmod chown fchmod fchmodat fchmodat2 fchown fchownat file_setattr fremovexattr fsetxattr"
        " futimesat lchown link linkat lremovexattr lsetxattr removexattr removexattrat rmdir"
        " setxattr setxattrat symlink symlinkat truncate unlink unlinkat utime utimensat utimes"
    )
    """What removes a file or changes what it is; renaming is in ``WRITING``."""
    WRITING = _each(
        "creat fallocate ftruncate mkdir mkdirat mknod mknodat openat2 rename renameat renameat2"
    ) | _some(open=Only(1, _WRITING, 0), openat=Only(2, _WRITING, 0))
    """What makes a file or opens one to write to it; the flags of openat2 cannot be looked at."""


class Kind(Enum):
    """A kind of process; the value is how the fork server and ``ps`` call it."""

    CORE = "core"
    FORK_SERVER = "fork"
    MOUNT = "mount"
    ABORT = "abort"
    PROBE = "probe"
    USER_PROBE = "probe_as_user"
    SCAN = "scan"
    HOLDERS = "holders"
    DIRECTORIES = "directories"
    COMMAND = "command"
    TRIAL = "trial"
    KEEPER = "keeper_talk"
    FRONT = "front"


@dataclass(frozen=True, slots=True)
class Privileges:
    """What one kind of process keeps and what it is denied, for its whole life."""

    keeps: frozenset[Capability]
    denies: frozenset[Calls]
    oom_score_adj: int | None = None
    """proc_pid_oom_score_adj(5); None: as the daemon's."""
    address_space: int | None = None
    """Bytes, getrlimit(2) ``RLIMIT_AS``; None: as the daemon's."""

    def denied(self) -> Denied:
        """Return all the calls that are denied."""
        return {call: only for group in self.denies for call, only in group.value.items()}


_ALONE = frozenset(
    {
        Calls.CHILDREN,
        Calls.NAMES,
        Calls.OPEN_BY_HANDLE,
        Calls.OTHER_PROCESSES,
        Calls.PROGRAMS,
        Calls.SIGNALS,
        Calls.SOCKETS,
        Calls.USERS,
    }
)
"""Denied to every worker that starts nothing and talks to nobody but the daemon."""
_READS_ONLY = _ALONE | {Calls.MOUNTS, Calls.NAMESPACES, Calls.WRITING}
_SEES = frozenset({Capability.DAC_READ_SEARCH, Capability.SYS_PTRACE})
"""What it takes to look through /proc and directories of others."""
_ENTERS = _SEES | {Capability.SYS_ADMIN, Capability.SYS_CHROOT}
"""And to enter a mount namespace, to copy and to attach mounts, and to come back."""

PRIVILEGES: Final[Mapping[Kind, Privileges]] = {
    # The process that systemd started, from its first look at the node on.
    Kind.CORE: Privileges(
        frozenset({Capability.DAC_READ_SEARCH}),
        frozenset(
            {
                Calls.KERNEL,
                Calls.MOUNTS,
                Calls.NAMESPACES,
                Calls.OPEN_BY_HANDLE,
                Calls.OTHER_PROCESSES,
                Calls.PROCESSES,
                Calls.PROGRAMS,
                Calls.SIGNALS,
                Calls.USERS,
            }
        ),
    ),
    Kind.FORK_SERVER: Privileges(frozenset(Capability), frozenset({Calls.KERNEL})),
    Kind.MOUNT: Privileges(_ENTERS, _ALONE | {Calls.OTHER_NAMESPACES}),
    # It writes to a file of the user whose mount it is.
    Kind.ABORT: Privileges(_ENTERS | {Capability.DAC_OVERRIDE}, _ALONE | {Calls.OTHER_NAMESPACES}),
    # It copies mounts, and takes a copy of a whole stack apart in a namespace of its own.
    Kind.PROBE: Privileges(_ENTERS, _ALONE | {Calls.OTHER_NAMESPACES}),
    Kind.USER_PROBE: Privileges(_SEES, _ALONE | {Calls.OTHER_NAMESPACES}),
    # What it reads is as long as others make it: it is the first to go when memory is short.
    Kind.SCAN: Privileges(_SEES, _READS_ONLY, oom_score_adj=500, address_space=256 << 20),
    # What is mapped is opened through /proc/<pid>/map_files, which wants CAP_SYS_ADMIN.
    Kind.HOLDERS: Privileges(_SEES | {Capability.SYS_ADMIN}, _READS_ONLY),
    # It copies the mount on which a directory lies: other mounts hide the directory.
    Kind.DIRECTORIES: Privileges(
        frozenset({Capability.DAC_READ_SEARCH, Capability.SYS_ADMIN}),
        _ALONE | {Calls.NAMESPACES, Calls.WRITING},
    ),
    Kind.TRIAL: Privileges(
        frozenset({Capability.SYS_ADMIN, Capability.SYS_CHROOT}),
        _ALONE | {Calls.MOUNTS, Calls.OTHER_NAMESPACES, Calls.WRITING},
    ),
    # Its programs are chosen by root: what mounts, or enters a driver's container, must work.
    Kind.COMMAND: Privileges(
        _ENTERS | {Capability.DAC_OVERRIDE},
        frozenset({Calls.OPEN_BY_HANDLE, Calls.OTHER_PROCESSES}),
        oom_score_adj=0,
    ),
    # It takes descriptors of servers and hands them to the keeper: nothing else may do that.
    Kind.KEEPER: Privileges(
        _SEES, _READS_ONLY - {Calls.OTHER_PROCESSES, Calls.SOCKETS} | {Calls.LISTENING}
    ),
    # It has threads and sockets of its own; those that listen are handed over.
    Kind.FRONT: Privileges(
        frozenset(),
        _READS_ONLY - {Calls.CHILDREN, Calls.SOCKETS} | {Calls.PROCESSES, Calls.LISTENING},
        oom_score_adj=0,
        address_space=1 << 30,
    ),
}
"""The calls denied to the fork server are denied to all workers, which it starts."""
