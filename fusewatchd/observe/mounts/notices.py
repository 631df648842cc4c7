"""The kernel's notices of mounts that changed in this process's namespace.

Poll on mountinfo, proc_pid_mounts(5), fires for every attach, detach, remount and
mount_setattr(2), and says no more.  fanotify names the mounts that were attached or detached.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator

from fusewatchd.linux.limits import Limit, is_shortage, why_not
from fusewatchd.observe.mounts.fanotify import MountEvent, MountEvents


class MountNotices:
    """Tells that mounts changed, and which ones where fanotify may be used; not thread safe."""

    def __init__(self, mountinfo_path: str, *, use_fanotify: bool) -> None:
        """Open the sources; fanotify is tried once and done without when it is refused.

        Raises:
            OSError: the file cannot be opened.
        """
        # Each open file has an event counter of its own that every poll brings up to date.
        # One only wakes the daemon's selector, which polls it whenever it likes; the other
        # is polled here and nowhere else, so no change is lost between the two.
        self._waker = os.open(mountinfo_path, os.O_RDONLY | os.O_CLOEXEC)
        self._file = os.open(mountinfo_path, os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLPRI)
        self._epoll = select.epoll()
        self._epoll.register(self._waker, select.EPOLLPRI)
        self._events: MountEvents | None = None
        self.shortage = ""
        """Why fanotify is not used; empty: it is, or this kernel does not have it."""
        if use_fanotify:
            self._open_fanotify()

    def _open_fanotify(self) -> None:
        try:
            self._events = MountEvents()
        except OSError as exc:
            if is_shortage(exc):
                is_mark = exc.errno == errno.ENOSPC
                limit = Limit.FANOTIFY_MARKS if is_mark else Limit.FANOTIFY_GROUPS
                self.shortage = why_not(exc, limit)
            return
        self._epoll.register(self._events.fileno(), select.EPOLLIN)

    @property
    def uses_fanotify(self) -> bool:
        """True when single changes are known, not only that there was one."""
        return self._events is not None

    def fileno(self) -> int:
        """Return a descriptor for a selector: readable after a change, until ``rest``."""
        return self._epoll.fileno()

    def close(self) -> None:
        """Close everything."""
        self._epoll.close()
        os.close(self._waker)
        os.close(self._file)
        if self._events is not None:
            self._events.close()

    def rest(self) -> None:
        """Let the descriptor be unreadable until the next change."""
        self._epoll.poll(0)

    def has_changed(self) -> bool:
        """Return True when poll has fired since the last call."""
        return bool(self._poll.poll(0))

    def events(self) -> Iterator[list[MountEvent]]:
        """Take the records that wait."""
        while self._events is not None and (events := self._events.read()):
            yield events

    def read_all(self) -> bytes:
        """Return the text of mountinfo."""
        # Opened long ago: there may be no descriptor left when a read is needed most.
        os.lseek(self._file, 0, os.SEEK_SET)
        with open(self._file, "rb", buffering=0, closefd=False) as file:
            return file.readall()
