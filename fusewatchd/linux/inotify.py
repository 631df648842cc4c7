"""Noticing new and removed directory entries by inotify(7), through pyinotify.

Only directories that the kubelet or a driver owns are watched, never a mount point:
pyinotify stats what it is given, and a stat on a FUSE mount may block for ever.  inotify
says nothing of mounts: those come from the mount table.

pyinotify 0.9.6 imports asyncore, which Python 3.12 dropped; with the pyasyncore package,
or as patched by distributions, it works there too.  Where it does not, ``UNAVAILABLE`` says
why, and whoever wanted to watch goes on without.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import warnings
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Final

from fusewatchd.linux import statmount
from fusewatchd.linux.syscalls import closing_fd

UNAVAILABLE: str = ""
"""Why pyinotify cannot be used; empty when it can."""

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # asyncore is deprecated in 3.10 and 3.11
        import pyinotify  # type: ignore[import-untyped]
except ImportError as exc:
    UNAVAILABLE = f"pyinotify cannot be imported: {exc}"
else:
    # It prints to standard error by itself otherwise.
    for _handler in list(pyinotify.log.handlers):
        pyinotify.log.removeHandler(_handler)
    pyinotify.log.addHandler(logging.NullHandler())
    pyinotify.log.propagate = False

# <linux/inotify.h>
_IN_MOVED_FROM: Final = 0x40
_IN_MOVED_TO: Final = 0x80
_IN_CREATE: Final = 0x100
_IN_DELETE: Final = 0x200
_IN_Q_OVERFLOW: Final = 0x4000
_IN_IGNORED: Final = 0x8000
_IN_ONLYDIR: Final = 0x1000000
_IN_DONT_FOLLOW: Final = 0x2000000
_IN_ISDIR: Final = 0x40000000
_MASK: Final = (
    _IN_CREATE | _IN_DELETE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_ONLYDIR | _IN_DONT_FOLLOW
)

MAX_WATCHES = 65536


class ChangeKind(Enum):
    """What happened to an entry."""

    CREATED = "created"
    DELETED = "deleted"
    MOVED_IN = "moved_in"
    MOVED_OUT = "moved_out"
    UNWATCHED = "unwatched"
    """The watched directory itself is gone; the change has no name."""
    OVERFLOW = "overflow"
    """Changes were lost: look at everything again.  The change has no path."""


@dataclass(frozen=True, slots=True)
class DirectoryChange:
    """One change of one entry of a watched directory."""

    path: str
    """The directory."""
    name: str
    kind: ChangeKind
    is_directory: bool = False


_KINDS: Final = (
    (_IN_CREATE, ChangeKind.CREATED),
    (_IN_MOVED_TO, ChangeKind.MOVED_IN),
    (_IN_DELETE, ChangeKind.DELETED),
    (_IN_MOVED_FROM, ChangeKind.MOVED_OUT),
    (_IN_IGNORED, ChangeKind.UNWATCHED),
    (_IN_Q_OVERFLOW, ChangeKind.OVERFLOW),
)
_LOST: Final = DirectoryChange("", "", ChangeKind.OVERFLOW)


class DirectoryWatch:
    """Watches single directories, without what is inside their directories."""

    def __init__(self, max_watches: int = MAX_WATCHES) -> None:
        """Make an inotify instance.

        Raises:
            ImportError: there is no usable pyinotify.
            OSError: the user's inotify instances are used up.
        """
        if UNAVAILABLE:
            raise ImportError(UNAVAILABLE)
        self._max_watches = max_watches
        self._manager = _manager()
        os.set_inheritable(self.fileno(), False)
        # The non-blocking flag keeps a read that finds nothing from waiting.
        os.set_blocking(self.fileno(), False)
        self._changes: list[DirectoryChange] = []
        self._notifier = pyinotify.Notifier(self._manager, self._note, timeout=0)
        self._by_path: dict[str, int] = {}
        self._by_watch: dict[int, str] = {}
        self.refusal = 0
        """With which errno the last directory was refused, inotify_add_watch(2)."""

    def fileno(self) -> int:
        """Return the descriptor, readable when there are changes."""
        fd: int = self._manager.get_fd()
        return fd

    def close(self) -> None:
        """Forget everything."""
        self._manager.close()

    @property
    def paths(self) -> tuple[str, ...]:
        """The directories that are watched."""
        return tuple(self._by_path)

    def add(self, path: str) -> bool:
        """Watch a directory; whoever calls this knows that it is no mount point.

        Returns:
            False when it is not there, not a directory, a symbolic link, or one too many.
        """
        path = os.path.normpath(path)
        if path in self._by_path:
            return True
        if len(self._by_path) >= self._max_watches:
            return False
        try:
            watch: int = self._manager.add_watch(path, _MASK, quiet=True)[path]
        except UnicodeEncodeError:  # pyinotify cannot express a name that is not UTF-8
            return False
        if watch < 0:
            self.refusal = ctypes.get_errno()
            return False
        # One directory under two names is one watch to the kernel: the later name counts.
        if (former := self._by_watch.get(watch)) is not None:
            del self._by_path[former]
        self._by_path[path] = watch
        self._by_watch[watch] = path
        return True

    def remove(self, path: str) -> None:
        """Stop watching a directory, if it is watched."""
        watch = self._by_path.pop(os.path.normpath(path), None)
        if watch is not None:
            del self._by_watch[watch]
            self._manager.rm_watch(watch, quiet=True)

    def drain(self) -> list[DirectoryChange]:
        """Return what changed, in order; never blocks."""
        try:
            while self._notifier.check_events(timeout=0):
                self._notifier.read_events()
                self._notifier.process_events()
        except UnicodeDecodeError:
            # Raised half way through what was read, so the rest of it is lost.
            self._notifier.process_events()
            self._changes.append(_LOST)
        changes, self._changes = self._changes, []
        return changes

    def _note(self, event: pyinotify.Event) -> None:
        kind = next((kind for bit, kind in _KINDS if event.mask & bit), None)
        if kind is None:
            return
        if kind is ChangeKind.OVERFLOW:
            self._changes.append(_LOST)
            return
        path = self._by_watch.get(event.wd)
        if path is None:
            return
        if kind is ChangeKind.UNWATCHED:
            del self._by_watch[event.wd], self._by_path[path]
        is_directory = bool(event.mask & _IN_ISDIR)
        self._changes.append(DirectoryChange(path, event.name or "", kind, is_directory))


def _manager() -> pyinotify.WatchManager:
    try:
        return pyinotify.WatchManager()
    except OSError as exc:
        # It says so in words only.  inotify_init(2): too many instances, or descriptors.
        number = ctypes.get_errno() or errno.EMFILE
        raise OSError(number, os.strerror(number)) from exc


class _Level(Enum):
    """What is done with a directory below the pods directory."""

    NOT_OURS = "not_ours"
    WATCH = "watch"
    """Its entries may be mount points: they are never touched."""
    WATCH_AND_LIST = "watch_and_list"


def _level(parts: tuple[str, ...]) -> _Level:
    """Classify a path relative to the pods directory (kubernetes, pkg/kubelet/kubelet_getters.go).

    Below a CSI volume's directory the driver mounts on ``mount``; of every other plugin the
    volume's directory may be the mount point itself, so only its appearance is seen.
    """
    if len(parts) < 2:
        return _Level.WATCH_AND_LIST
    if parts[1] == "volumes" and len(parts) <= 4:
        is_csi = parts[2:3] == ("kubernetes.io~csi",)
        if len(parts) == 2 or (len(parts) == 3 and is_csi):
            return _Level.WATCH_AND_LIST
        return _Level.WATCH if len(parts) == 3 or is_csi else _Level.NOT_OURS
    if parts[1] == "volume-subpaths" and len(parts) <= 4:
        return _Level.WATCH if len(parts) == 4 else _Level.WATCH_AND_LIST
    return _Level.NOT_OURS


class PodsDirectoryWatch:
    """Watches the directories in which the kubelet makes mount points of pods.

    Names pods whose directories changed.  Mount points themselves are never opened, listed
    or watched.
    """

    def __init__(self, pods: str, max_watches: int = MAX_WATCHES) -> None:
        """Watch what is there; ``rescan`` again later when it was not there yet.

        Args:
            pods: real path of the directory that holds one for each pod.
            max_watches: directories beyond that are left out and counted.

        Raises:
            ImportError, OSError: as ``DirectoryWatch`` does.
        """
        self._pods = os.path.normpath(pods)
        self._watch = DirectoryWatch(max_watches)
        self._refused: set[str] = set()
        self._overflows = 0
        self.rescan()

    def fileno(self) -> int:
        """Return the descriptor, readable when something changed."""
        return self._watch.fileno()

    def close(self) -> None:
        """Stop watching."""
        self._watch.close()

    @property
    def watched(self) -> tuple[str, ...]:
        """The directories that are watched; none while the pods directory is not there."""
        return self._watch.paths

    @property
    def unwatched(self) -> int:
        """How many directories could not be watched (fs.inotify.max_user_watches, the bound)."""
        return len(self._refused)

    @property
    def refusal(self) -> int:
        """With which errno the last of them was refused; 0: there is none."""
        return self._watch.refusal

    @property
    def overflows(self) -> int:
        """How often the kernel lost changes so far."""
        return self._overflows

    def rescan(self) -> frozenset[str]:
        """List everything again and return the uids of all pods that are there."""
        self._refused.clear()
        found: set[str] = set()
        self._enter((), found)
        return frozenset(found)

    def retry_refused(self) -> None:
        """Try those again that could not be watched, until one is refused again."""
        for path in sorted(self._refused):
            self._refused.discard(path)
            self._enter(self._parts(path), set())
            if path in self._refused:
                return

    def drain(self) -> frozenset[str]:
        """Follow what changed and return the directory uids of the pods concerned."""
        changes = self._watch.drain()
        changed: set[str] = set()
        lost = Counter(change.kind for change in changes)[ChangeKind.OVERFLOW]
        if lost:
            self._overflows += lost
            changed |= {parts[0] for parts in map(self._parts, self._watch.paths) if parts}
            changed |= self.rescan()
        for change in changes:
            if change.kind is not ChangeKind.OVERFLOW:
                self._follow(change, changed)
        return frozenset(changed)

    def _follow(self, change: DirectoryChange, changed: set[str]) -> None:
        parts = self._parts(change.path)
        if change.name:
            parts = (*parts, change.name)
        if parts:
            changed.add(parts[0])
        if change.kind in (ChangeKind.CREATED, ChangeKind.MOVED_IN) and change.is_directory:
            self._enter(parts, changed)
        elif change.kind is ChangeKind.MOVED_OUT and change.is_directory:
            self._leave(parts)
        else:
            self._refused.discard(os.path.join(self._pods, *parts))

    def _parts(self, path: str) -> tuple[str, ...]:
        return tuple(path[len(self._pods) + 1 :].split("/")) if path != self._pods else ()

    def _enter(self, parts: tuple[str, ...], seen: set[str]) -> None:
        """Watch a directory and what is in it already.

        Listed after the watch is there: what is made in between is seen twice, not never.
        """
        level = _level(parts)
        if level is _Level.NOT_OURS:
            return
        path = os.path.join(self._pods, *parts)
        if not self._is_plain_directory(path):
            return
        if parts:
            seen.add(parts[0])
        if not self._watch.add(path):
            self._refused.add(path)
        if level is _Level.WATCH_AND_LIST:
            for name in _directories_in(path):
                self._enter((*parts, name), seen)

    def _is_plain_directory(self, path: str) -> bool:
        """Tell whether a path is no mount point, link or file, asking no file system's server."""
        try:
            above = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            with closing_fd(above):
                flags = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
                name = os.path.basename(path)
                with closing_fd(os.open(name, flags, dir_fd=above)) as fd:
                    # The pods directory may well be a disk of its own.
                    if path == self._pods:
                        return True
                    return statmount.mount_id_of_fd(fd) == statmount.mount_id_of_fd(above)
        except OSError:
            return False

    def _leave(self, parts: tuple[str, ...]) -> None:
        gone = os.path.join(self._pods, *parts)
        for path in self._watch.paths:
            if path == gone or path.startswith(gone + "/"):
                self._watch.remove(path)


def _directories_in(path: str) -> list[str]:
    """List directories; the entry's type comes with its name, so no entry is looked at."""
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
