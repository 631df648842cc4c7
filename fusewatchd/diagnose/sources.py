"""From a bind to the live mount that it should show.

Asked in a fixed order: the drivers, then lineage.  Where both know something they must agree.
More than one possible source is no source: refused and said, never guessed.

A server may mount straight into a pod: that mount has no source, but the kubelet's subPath binds of
this volume have it for theirs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType

from fusewatchd.diagnose import lineage
from fusewatchd.diagnose.proof import doubt_about
from fusewatchd.drivers.base import Driver, volume_data
from fusewatchd.model.findings import SourceAnswer, SourcePath
from fusewatchd.model.ledger import Facts
from fusewatchd.model.mount_table import below
from fusewatchd.model.mounts import Mount, is_of_another_user
from fusewatchd.model.pods import BindKind, BindPath
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason
from fusewatchd.parse.kubelet_paths import publish_directory

UNKNOWN_SOURCE = SourceAnswer("", "never seen mounted outside the pods directory")

BLOCK_BACKED = "fuseblk"
"""Its superblock belongs to the block device, whose number it has (linux, fs/fuse/inode.c): one
that is mounted again while a bind holds the old one is the old one, dead as it is.  What is mounted
from another disk is another volume, unless the place is this volume's own: disks that are attached
anew get other numbers."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """The mount to show, or why there is none."""

    mount: Mount | None
    refusal: Reason = Reason.NONE
    evidence: str = ""
    errno: int = 0
    """With what a new source that is not proven answers."""


def locate(
    bind: BindPath,
    mount: Mount,
    snapshot: Snapshot,
    facts: Facts,
    drivers: Sequence[Driver],
) -> SourceAnswer:
    """Say where the source of a bind is mounted, and by which rule."""
    answer = _outside_the_pod(bind, mount, snapshot, facts, drivers)
    if answer.candidates or bind.kind is not BindKind.SUBPATH:
        return answer
    return _of_its_pod(answer, bind, mount, snapshot, facts)


def _of_its_pod(
    answer: SourceAnswer, bind: BindPath, mount: Mount, snapshot: Snapshot, facts: Facts
) -> SourceAnswer:
    """Take a subPath bind for what it is: a part of the pod's own mount of the volume.

    Where that was never seen, a driver must know that its server mounts just there, as a whole.
    """
    path, rule = lineage.mount_of_pod(facts, mount), answer.rule or "lineage"
    why = "a part of its pod's own mount of the volume"
    is_there = answer.refusal is Reason.DIRECT_MOUNT and volume_data(bind, mount, snapshot)
    if path is None and is_there:
        volume = publish_directory(snapshot.kubelet, bind.pod_uid, bind.volume)
        path = SourcePath(f"{volume}/mount")
    return answer if path is None else SourceAnswer(rule, why, (path,), is_by_name=True)


def _outside_the_pod(
    bind: BindPath,
    mount: Mount,
    snapshot: Snapshot,
    facts: Facts,
    drivers: Sequence[Driver],
) -> SourceAnswer:
    # What a pod mounts for itself in its emptyDir is never bound from anywhere.
    is_its_own = bind.kind is BindKind.EMPTY_DIR
    remembered = None if is_its_own else lineage.answer(facts, mount)
    for driver in drivers:
        found = driver.locate(bind, mount, snapshot)
        if found is not None:
            return _agreed(found, remembered, lineage.places(facts, mount))
    return remembered or UNKNOWN_SOURCE


def _agreed(
    found: SourceAnswer, remembered: SourceAnswer | None, places: Sequence[SourcePath]
) -> SourceAnswer:
    """Let lineage decide between several candidates, and object to a wrong one.

    A server may mount at one place, and its driver bind that to the one where the kubelet wants
    it: where both were seen to show the same, the one that the driver names is the source.
    """
    if found.candidates:
        found = replace(found, is_by_name=True)
    if remembered is None:
        return found
    if not found.candidates:
        # A driver that knows of no place is wrong only where one was there before the bind.
        if not remembered.is_older:
            return found
        return (
            remembered if found.refusal is not Reason.NONE else replace(remembered, rule=found.rule)
        )
    both = [path for path in places if path in found.candidates]
    if both:
        return replace(found, candidates=tuple(both[:1]))
    why = f"{found.why}, but {remembered.why}"
    return replace(found, why=why, candidates=found.candidates + remembered.candidates)


NO_FACTS: Facts = MappingProxyType({})


def resolve(
    answer: SourceAnswer,
    mount: Mount,
    snapshot: Snapshot,
    facts: Facts = NO_FACTS,
    ignored_fs_types: Collection[str] = (),
) -> Resolution:
    """Return what is mounted at the source now, if it is new, live and of the same kind."""
    found = _resolve(answer, mount, snapshot, facts, ignored_fs_types)
    is_certain = answer.is_by_name and found.refusal is not Reason.SOURCE_MISSING
    if mount.fs_type == BLOCK_BACKED and not is_certain:
        return Resolution(None, Reason.BLOCK_DEVICE, f"the file system of disk {mount.device}")
    return found


def _resolve(
    answer: SourceAnswer,
    mount: Mount,
    snapshot: Snapshot,
    facts: Facts,
    ignored_fs_types: Collection[str],
) -> Resolution:
    if not answer.candidates:
        reason = Reason.SOURCE_MISSING if answer.rule else Reason.NO_SOURCE
        if answer.refusal is not Reason.NONE:
            reason = answer.refusal
        return Resolution(None, reason, answer.why)
    if len(answer.candidates) > 1:
        paths = " and ".join(path.mount_point for path in answer.candidates)
        return Resolution(None, Reason.AMBIGUOUS_SOURCE, f"both {paths} are possible")
    (path,) = answer.candidates
    source = snapshot.table.top_at(path.mount_point)
    if source is None or source.device == mount.device:
        return Resolution(None, Reason.SOURCE_MISSING, f"nothing new at {path.mount_point}")
    is_of_lineage = (answer.is_seen or answer.is_older) and not answer.is_by_name
    if is_of_lineage and _is_copy(source, snapshot, facts):
        evidence = f"a copy of a pod's mount is at {path.mount_point}"
        return Resolution(None, Reason.SOURCE_MISSING, evidence)
    if source.root != path.root:
        evidence = f"{path.mount_point} shows {source.root} of its file system now"
        return Resolution(None, Reason.SOURCE_ROOT, evidence)
    if not is_same_kind(answer, mount, source) or source.fs_type in ignored_fs_types:
        evidence = f"{path.mount_point} is {source.fs_type} of {source.source} now"
        return Resolution(None, Reason.SOURCE_TYPE, evidence)
    doubt = doubt_about(snapshot.connections.get(source.device))
    if doubt is not None:
        evidence = f"{path.mount_point} {doubt.text}"
        return Resolution(None, Reason.SOURCE_UNPROVEN, evidence, doubt.errno)
    return Resolution(source)


def is_same_kind(answer: SourceAnswer, mount: Mount, source: Mount) -> bool:
    """Return True for a file system that the source of a bind may show.

    With another version of a server its type may go from ``fuse`` to ``fuse.bindfs``: taken where
    the place is certain.  What is at a place that nobody saw serving must call itself the same.
    """
    is_certain = answer.is_by_name or answer.is_seen or not answer.is_older
    if is_certain:
        return source.is_fuse and _family(source) == _family(mount)
    return (source.fs_type, source.source) == (mount.fs_type, mount.source)


def _family(mount: Mount) -> str:
    """Return ``fuse`` or ``fuseblk``."""
    return mount.fs_type.partition(".")[0]


def _is_copy(source: Mount, snapshot: Snapshot, facts: Facts) -> bool:
    """True when all that shows this file system at its place is later than a bind of it.

    Who mounts over a bind mounts over its source too, its peer: the server's own mount is below.
    """
    stack = snapshot.table.at(source.mount_point)
    shown = (m for m in stack if (m.device, m.root) == (source.device, source.root))
    return all(lineage.is_copy(facts, layer) for layer in shown)


def subpath_of(mount: Mount, source: Mount) -> str | None:
    """Return which part of its source a bind shows; None when it is outside of it."""
    return below(lineage.plain_root(mount.root), source.root)


def compare(old: Mount, new: Mount, *, is_kept_read_only: bool = False) -> tuple[str, str]:
    """Say what the new superblock denies that the old one allowed, and what it allows more.

    Options as fuse(8) and mount(8) name them: a pod that worked before may get EACCES or
    EROFS from a perfectly live mount, and its owner should not have to search.  One that could
    not write before, and can now, may destroy what it was kept from.
    """
    return _compared(old.super_options, new.super_options, is_kept_read_only=is_kept_read_only)


@lru_cache(maxsize=64)
def _compared(old: str, new: str, *, is_kept_read_only: bool) -> tuple[str, str]:
    """Compare; all binds of one source have the same answer."""
    before, after = _options(old), _options(new)
    if is_kept_read_only and "rw" not in before:
        after.pop("rw", None)
    gone = [f"without {name}" for name in _PERMITTING if name in before and name not in after]
    come = [f"with {name}" for name in _PERMITTING if name in after and name not in before]
    gone += [f"with {name}" for name in _DENYING if name in after and name not in before]
    come += [f"without {name}" for name in _DENYING if name in before and name not in after]
    changed = [
        f"{name} {before.get(name) or 'none'} → {after.get(name) or 'none'}"
        for name in ("user_id", "group_id", "context", "fscontext", "defcontext", "rootcontext")
        if before.get(name) != after.get(name)
    ]
    return ", ".join(gone + changed), ", ".join(come)


def place_of_another_user(answer: SourceAnswer, old: Mount, new: Mount) -> str:
    """Return where the new mount is, if its server is neither root's nor whose the old one was."""
    places = [path.mount_point for path in answer.candidates]
    is_another = is_of_another_user(old, new) and len(places) == 1
    return places[0] if is_another else ""


_PERMITTING = ("allow_other", "rw")
_DENYING = ("default_permissions",)


def type_change(old: Mount, new: Mount) -> str:
    """Say how the type of a file system has changed; empty when it has not."""
    return "" if old.fs_type == new.fs_type else f"{old.fs_type} -> {new.fs_type}"


def _options(text: str) -> dict[str, str]:
    pairs = (option.partition("=") for option in text.split(","))
    return {name: value for name, _, value in pairs}
