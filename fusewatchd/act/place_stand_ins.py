"""Put a dead file system in the place of mounts of a held connection, on the host.

Each stand-in goes beneath the held mount, which is detached then: the bare directory is never
visible, and nothing of the old connection is asked.  It is written down before it is attached.
One that an attempt has left beneath its mount is not made twice.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from fusewatchd.act.drop_layers import detach_known
from fusewatchd.linux.mount_kernel import (
    Attributes,
    FileKind,
    MountKernel,
    Stop,
    fail,
    refuse,
    skip,
)
from fusewatchd.linux.mount_stack import mounts_on, opened, top_at
from fusewatchd.model.actions import Expect, Outcome, OutcomeStatus, PlaceStandIns, Propagation
from fusewatchd.model.mounts import Mount
from fusewatchd.model.stand_in import StandIn
from fusewatchd.model.verdicts import Reason

NoteStandIn = Callable[[StandIn], None]


def ignore_stand_in(one: StandIn) -> None:
    """Take no note of it."""


def place_stand_ins(
    kernel: MountKernel, action: PlaceStandIns, note: NoteStandIn = ignore_stand_in
) -> Outcome:
    """Carry the action out: all of them that can be placed are, whatever becomes of others.

    The outcome has every stand-in that may be there now.
    """
    placed: list[StandIn] = []
    problems: list[tuple[Mount, Stop | OSError]] = []

    def take_note(one: StandIn) -> None:
        placed.append(one)
        note(one)

    with ExitStack() as kept:
        work = _Placing(kernel, action, take_note, kept)
        for mount in action.mounts:
            try:
                work.place(mount)
            except (Stop, OSError) as exc:
                problems.append((mount, exc))
    return _outcome(action, tuple(placed), problems)


def _outcome(
    action: PlaceStandIns,
    placed: tuple[StandIn, ...],
    problems: list[tuple[Mount, Stop | OSError]],
) -> Outcome:
    if not problems:
        return Outcome(action, OutcomeStatus.PLACED, stand_ins=placed)
    mount, exc = problems[0]
    count = f"{len(problems)} of {len(action.mounts)}, the first at {mount.mount_point}"
    if isinstance(exc, Stop):
        detail = f"{exc.detail} ({count})"
        return Outcome(action, exc.status, exc.reason, detail=detail, stand_ins=placed)
    detail = f"{exc.strerror}: {exc.filename} ({count})"
    return Outcome(
        action,
        OutcomeStatus.FAILED,
        Reason.SYSTEM_CALL,
        exc.errno or 0,
        detail,
        stand_ins=placed,
    )


class _Placing:
    """One attempt; the dead file systems are made when they are needed."""

    def __init__(
        self, kernel: MountKernel, action: PlaceStandIns, note: NoteStandIn, kept: ExitStack
    ) -> None:
        self._kernel = kernel
        self._known = {one.unique_id: one for one in action.known}
        self._note = note
        self._kept = kept
        self._first: dict[FileKind, int] = {}
        """A mount of each dead file system that is attached, to be copied from then on."""

    def place(self, mount: Mount) -> None:
        """Put a stand-in in the place of one mount.

        Raises:
            Stop: it is not the mount that was seen, or a rule forbids it.
            OSError: a system call failed.
        """
        with opened(self._kernel, mount.mount_point) as fd:
            self._require(fd, mount)
            if not self._is_prepared(mount):
                self._attach(fd, mount)
            detach_known(self._kernel, fd, mount, frozenset())
        top = top_at(self._kernel, mount.mount_point)
        if top is None or top.device == mount.device:
            raise fail(Reason.NOT_VERIFIED, "the held mount is still there")

    def _require(self, fd: int, mount: Mount) -> None:
        there = self._kernel.mount_of(fd)
        if not (there.is_fuse and there.unique_id and Expect.of(mount).is_met_by(there)):
            raise skip(Reason.RACED, f"mount {there.mount_id} of {there.device} is there now")
        if there.is_idmapped:
            raise refuse(Reason.IDMAP, "a dead file system cannot be id-mapped")
        if mounts_on(self._kernel, there):
            raise refuse(Reason.CHILD_MOUNT, "something is mounted there or inside")

    def _is_prepared(self, mount: Mount) -> bool:
        """Return True when an attempt that was cut has left a stand-in beneath it."""
        below = self._kernel.covered_by(mount)
        return bool(below) and below[0].unique_id in self._known

    def _attach(self, fd: int, mount: Mount) -> None:
        kind = self._kernel.kind_of(fd)
        if kind is FileKind.OTHER:
            raise refuse(Reason.TYPE_MISMATCH, "it is neither directory nor file")
        with ExitStack() as parts:
            copy = self._copy_of(kind, mount)
            parts.callback(self._kernel.close, copy)
            propagation = Propagation.OWN_GROUP if mount.peer_group else Propagation.PRIVATE
            clone = self._kernel.configure(copy, Attributes(mount.options, propagation))
            # The first of a file system is held until the last copy of it is made.
            keeper = parts if kind in self._first else self._kept
            keeper.callback(self._kernel.close, clone)
            ids = self._kernel.ids_of(clone)
            self._note(StandIn(mount, *ids, self._kernel.device_of(clone)))
            self._kernel.attach_beneath(clone, fd)
            self._first.setdefault(kind, clone)

    def _copy_of(self, kind: FileKind, mount: Mount) -> int:
        first = self._first.get(kind)
        if first is None:
            return self._kernel.make_dead(mount, is_directory=kind is FileKind.DIRECTORY)
        return self._kernel.copy_of(first)
