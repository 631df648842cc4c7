"""The watch on the pods' directories, or the means to do without and to try again.

New pods are noticed sooner by it, and in no other way worse without.
"""

from __future__ import annotations

import errno
import os

from fusewatchd.linux.inotify import PodsDirectoryWatch
from fusewatchd.linux.limits import Limit, why_not
from fusewatchd.model.degraded import Degraded
from fusewatchd.observe.degradations import RETRY_SECONDS, Degradations
from fusewatchd.text import counted


class PodsDirectory:
    """Owns the watch; to be used by one thread."""

    def __init__(self, pods: str, degraded: Degradations) -> None:
        """Watch nothing before ``try_again``."""
        self._pods = pods
        self._degraded = degraded
        self._watch: PodsDirectoryWatch | None = None
        self.overflows = 0
        """How often the kernel lost changes so far."""
        self.due_at: float | None = 0.0 if pods else None
        """When to ``try_again``; None: it is not needed, or of no use."""

    def fileno(self) -> int:
        """Return the descriptor, readable when something changed; -1 while there is none."""
        return self._watch.fileno() if self._watch is not None else -1

    def try_again(self, now: float) -> bool:
        """Watch what is not watched yet; True when ``fileno`` is another one than before."""
        if not self._pods:
            return False
        if self._watch is not None:
            self._watch.retry_refused()
            self._note_refused(now)
            return False
        try:
            self._watch = PodsDirectoryWatch(self._pods)
        except ImportError as exc:
            self._degraded.note(Degraded.INOTIFY, str(exc))
            self.due_at = None
            return False
        except OSError as exc:
            self._degraded.note(Degraded.INOTIFY, why_not(exc, Limit.INOTIFY_INSTANCES))
            self.due_at = now + RETRY_SECONDS
            return False
        self._degraded.note(Degraded.INOTIFY, "")
        self._note_refused(now)
        return True

    def drain(self, now: float) -> frozenset[str]:
        """Follow what changed and return the directory uids of the pods concerned."""
        if self._watch is None:
            return frozenset()
        changed = self._watch.drain()
        self.overflows = self._watch.overflows
        self._note_refused(now)
        return changed

    def _note_refused(self, now: float) -> None:
        assert self._watch is not None
        why = unwatched_text(self._watch)
        self._degraded.note(Degraded.INOTIFY_WATCHES, why)
        if why and (self.due_at is None or self.due_at <= now):
            self.due_at = now + RETRY_SECONDS
        elif not why:
            self.due_at = None


def unwatched_text(watch: PodsDirectoryWatch) -> str:
    """Say how many directories cannot be watched, and why; empty: all are."""
    if not watch.unwatched:
        return ""
    number = watch.refusal or errno.ENOSPC
    why = why_not(OSError(number, os.strerror(number)), Limit.INOTIFY_WATCHES)
    return (
        f"{counted(watch.unwatched, 'directory', 'directories')} of pods cannot be watched, {why}"
    )
