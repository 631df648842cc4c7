"""The mount table of this process's namespace, kept up to date at the price of what changed.

``notices`` tells of changes.  Where fanotify names the mounts, a few statmount(2) calls do
instead of a read of everything.  Where poll fires and fanotify is silent, flags have changed:
then everything is read.

Nothing at all is told (measured on 6.18) when mount(2) changes a propagation type, when a
directory above a mount point is renamed, and when the root of a bind is removed; ``audit``
is for these.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from fusewatchd.linux import statmount
from fusewatchd.model.mount_table import MountTable, parse_mount_table
from fusewatchd.model.mounts import Mount
from fusewatchd.observe.mounts.fanotify import MountEvent, MountEventKind
from fusewatchd.observe.mounts.notices import MountNotices

MAX_EVENTS = 300
"""Records that are applied one by one; a full read is cheaper and safer than more."""

REST_FACTOR = 4
"""After an update that took t, the next one waits 4 t: at most a fifth of one processor."""

MAX_REST_SECONDS = 1.0

MAX_REREADS = 2

SETTLE_SECONDS = 1.0
"""How long after the last single change was applied everything is read once, to be sure."""

MAX_SETTLE_SECONDS = 10.0
"""How long after the first one at the latest, on a node that changes its mounts all the time."""


class MountTableSource:
    """Tells when mounts change and gives the table as it is.

    Not thread safe.  A change that comes too soon after the last update is taken in at
    ``due_at``, so that a node which mounts without pause costs a bounded share of time; the
    first change after a rest is never delayed.
    """

    def __init__(
        self,
        mountinfo_path: str = "/proc/self/mountinfo",
        *,
        use_fanotify: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open the sources; fanotify is tried once and done without when it is refused.

        Args:
            mountinfo_path: of a process in the caller's own namespace, or one to be read
                without fanotify and 64-bit ids.
            use_fanotify: False never tries it.
            clock: monotonic seconds.

        Raises:
            OSError: the file cannot be opened.
        """
        self._clock = clock
        is_own = _is_namespace_of("self", mountinfo_path)
        self.is_in_order = _is_namespace_of("1", mountinfo_path)
        """False in a copied namespace: what it was made of got its ids and its place all at once.
        That of the first process was there before all that is watched."""
        self._ids = _UniqueIds(is_enabled=is_own)
        is_named = use_fanotify and is_own and statmount.is_supported()
        self._notices = MountNotices(mountinfo_path, use_fanotify=is_named)
        self._table = MountTable.of(())
        self._last_read: tuple[bytes, dict[int, int]] | None = None
        """What ``_table`` was made of, unless changes were applied to it since."""
        self._pending: list[MountEvent] = []
        self.least_rest = 0.0
        """How long the next update waits after one, in seconds, however little that took."""
        self.audit_seconds = 0.0
        """What the last audit took."""
        self._must_read = True
        self._not_before = float("-inf")
        self._settle_at: float | None = None
        self._settle_by = 0.0

    @property
    def uses_fanotify(self) -> bool:
        """True when single changes are known, not only that there was one."""
        return self._notices.uses_fanotify

    @property
    def fanotify_shortage(self) -> str:
        """Why fanotify is not used; empty: it is, or this kernel does not have it.

        It is not tried again: a daemon that has given up its rights may not open it.
        """
        return self._notices.shortage

    @property
    def due_at(self) -> float | None:
        """When (clock seconds) to call ``table`` even though nothing wakes; None: never.

        The moment at which it takes in changes that came too soon, or reads everything once
        more because flags may have changed unseen along with single mounts.
        """
        if self._is_outdated():
            return self._not_before
        return None if self._settle_at is None else max(self._settle_at, self._not_before)

    def fileno(self) -> int:
        """Return a descriptor for a selector: readable after a change, until ``drain``."""
        return self._notices.fileno()

    def close(self) -> None:
        """Close everything."""
        self._notices.close()

    def drain(self) -> bool:
        """Take in all notifications without blocking.

        Returns:
            True when the last table is known not to be what the kernel has.
        """
        self._notices.rest()
        has_changed = self._notices.has_changed()
        # Flags that change in the same moment as a mount is attached go unseen: the poll
        # has a reason already.  The read after SETTLE_SECONDS brings them.
        if not self._take_events() and has_changed:
            self._must_read = True
        return self._is_outdated()

    def table(self) -> MountTable:
        """Return the table, updated first when something changed and it is not too soon.

        The same object as before when nothing is different.

        Raises:
            OSError: mountinfo cannot be read.
            ParseError: it does not have the documented form.
        """
        self.drain()
        due_at = self.due_at
        if due_at is not None and self._clock() >= due_at:
            self._update()
        return self._table

    def refresh(self) -> None:
        """Let the next ``table`` take in what has changed, however soon after the last one.

        For changes that the caller made itself: they are bounded by its own work.
        """
        self._not_before = 0.0

    def audit(self) -> bool:
        """Read everything now; return True when the table had silently become wrong.

        False also when a change is announced meanwhile: then the next audit tells.

        Raises:
            OSError, ParseError: as ``table`` does.
        """
        if self.drain():
            self._update()
        before = self._table
        began = self._clock()
        self._read()
        self._rest(began)
        self.audit_seconds = self._clock() - began
        return not self.drain() and before != self._table

    def _is_outdated(self) -> bool:
        return self._must_read or bool(self._pending)

    def _update(self) -> None:
        began = self._clock()
        if self._must_read or not self._pending or not self._apply():
            self._read()
        self._rest(began)

    def _rest(self, began: float) -> None:
        end = self._clock()
        rest = min(REST_FACTOR * (end - began), MAX_REST_SECONDS)
        self._not_before = end + max(rest, self.least_rest)

    def _take_events(self) -> bool:
        """Keep the records that wait; return True when there were any."""
        has_any = False
        for events in self._notices.events():
            has_any = True
            if len(self._pending) + len(events) > MAX_EVENTS:
                self._must_read = True
            if self._must_read:
                self._pending = []
            else:
                self._pending += events
        return has_any

    def _read(self) -> None:
        self._must_read = True
        # First forget what was announced, then read: what happens meanwhile counts as new.
        self._notices.has_changed()
        self._take_events()
        present = self._ids.listed()
        data = self._notices.read_all()
        # Before Linux 5.8 a mount can be missing from a read during which others go.  That
        # is older than the 64-bit ids, so where there are none it is worth another read.
        for _ in range(0 if self._ids.is_enabled else MAX_REREADS):
            if not self._notices.has_changed():
                break
            data = self._notices.read_all()
        read = data, self._ids.of_all_through(present)
        if read != self._last_read:
            table = parse_mount_table(data, self._table, read[1])
            self._last_read = read
            if table != self._table:
                self._table = table
        self._must_read = False
        self._settle_at = None

    def _apply(self) -> bool:
        """Take in the pending records; False when only a full read gives a true table."""
        events, self._pending = self._pending, []
        try:
            changes = changes_of(self._table, events, self._ids.known)
        except OSError:
            changes = None
        if changes is None:
            return False
        self._ids.change(changes)
        if changes.removed_ids or changes.added:
            self._table = self._table.with_changes(changes.removed_ids, changes.added)
            self._last_read = None
        now = self._clock()
        if self._settle_at is None:
            self._settle_by = now + MAX_SETTLE_SECONDS
        self._settle_at = min(now + SETTLE_SECONDS, self._settle_by)
        return True


@dataclass(frozen=True, slots=True)
class Changes:
    """What makes one table out of another."""

    removed_ids: frozenset[int]
    removed_unique_ids: frozenset[int]
    added: tuple[Mount, ...]
    """New mounts, and those that changed along with others."""


def changes_of(
    table: MountTable, events: Iterable[MountEvent], known: Mapping[int, int]
) -> Changes | None:
    """Find out what records mean for a table, asking the kernel about single mounts.

    Args:
        table: what the records are to be applied to.
        events: in the order in which they came.
        known: 32-bit ids of the mounts of ``table`` by their 64-bit ones.

    Returns:
        None when they cannot be applied: overflow, a move, or anything that does not fit.

    Raises:
        OSError: the kernel refused to describe a mount that exists.
    """
    last = {event.unique_id: event.kind for event in events}
    kinds = set(last.values())
    # A mount that was moved takes its whole tree along, and only itself is announced.
    if MountEventKind.OVERFLOW in kinds or MountEventKind.MOVED in kinds:
        return None
    if len(known) != len(table):
        return None
    gone = {unique_id for unique_id, kind in last.items() if kind is MountEventKind.DETACHED}
    fresh: dict[int, Mount] = {}
    for unique_id in last.keys() - gone:
        mount = _describe(unique_id)
        if mount is None:
            gone.add(unique_id)
        elif unique_id not in known:
            fresh[unique_id] = mount
        elif table.by_id(known[unique_id]) != mount:
            return None
    gone &= known.keys()
    affected = _affected(table, {known[unique_id] for unique_id in gone}, fresh.values())
    if len(affected) > MAX_EVENTS:
        return None
    for unique_id in affected - last.keys():
        mount = _describe(unique_id)
        if mount is None:
            gone.add(unique_id)
        else:
            fresh[unique_id] = mount
    removed = frozenset(known[unique_id] for unique_id in gone)
    # In the order in which they were attached, which is that of mountinfo too.
    added = tuple(fresh[unique_id] for unique_id in sorted(fresh))
    return Changes(removed, frozenset(gone), added)


def _affected(table: MountTable, removed: Collection[int], fresh: Iterable[Mount]) -> set[int]:
    """Return the 64-bit ids of mounts that may look different without having been announced.

    A mount that goes beneath another, or one taken from beneath, changes the parent of what
    is at the same path; the last peer of a group that goes sets its slaves free.
    """
    old = [mount for mount in map(table.by_id, removed) if mount is not None]
    found: list[Mount] = []
    for point in {mount.mount_point for mount in (*old, *fresh)}:
        found += table.at(point)
    for group in {mount.peer_group for mount in old} - {0}:
        found += table.slaves_of(group)
    return {mount.unique_id for mount in found if mount.mount_id not in removed}


class _UniqueIds:
    """Knows the 64-bit ids; each is asked for once, since it never means another mount."""

    def __init__(self, *, is_enabled: bool) -> None:
        self.known: dict[int, int] = {}
        """32-bit ids by the 64-bit ones, of the mounts that are in the table."""
        self.is_enabled = is_enabled
        if is_enabled:
            try:
                statmount.listmount()
            except OSError:
                self.is_enabled = False

    def listed(self) -> list[int]:
        return statmount.listmount() if self.is_enabled else []

    def of_all_through(self, before: list[int]) -> dict[int, int]:
        """Return the 64-bit ids by the 32-bit ones of what was there then and is there now.

        Such a mount had its 32-bit id all the time, so a table that was read in between can
        mean no other by it.  Mounts that came or went meanwhile are left out.
        """
        through = set(before).intersection(self.listed())
        fresh = statmount.reused_ids(through - self.known.keys())
        known = {
            unique_id: mount_id
            for unique_id in sorted(through)
            if (mount_id := self.known.get(unique_id) or fresh.get(unique_id)) is not None
        }
        self.known = known
        return {mount_id: unique_id for unique_id, mount_id in known.items()}

    def change(self, changes: Changes) -> None:
        for unique_id in changes.removed_unique_ids:
            del self.known[unique_id]
        self.known.update((mount.unique_id, mount.mount_id) for mount in changes.added)


def _describe(unique_id: int) -> Mount | None:
    try:
        return statmount.statmount(unique_id)
    except FileNotFoundError:
        return None


def _is_namespace_of(process: str, mountinfo_path: str) -> bool:
    directory = os.path.dirname(mountinfo_path)
    try:
        return os.path.samefile(f"{directory}/ns/mnt", f"/proc/{process}/ns/mnt")
    except OSError:
        return False
