"""Where a bind came from, remembered from the time when it was healthy.

While a bind works, its file system is mounted a second time outside the pods directory: that
path is its source, whatever the driver.  The kernel forgets it the moment the source is
mounted anew, so it is remembered here, as a fact about one *mount*, not about a path or a
device: device numbers are reused at once by unrelated file systems, and all volumes of a
driver may carry the same mount source string.  A fact dies with its mount.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from fusewatchd.model import DELETED, BindPath, Device, Mount, SourceAnswer, SourcePath
from fusewatchd.mountinfo import MountTable


@dataclass(frozen=True, slots=True)
class Fact:
    """One bind, and every place outside the pods directory that showed the same thing.

    The first candidate is the one seen first, in the order of mounting: the server's own
    mount.  The others are binds of it, which may be reused for something else later, so
    only the first is ever acted on.
    """

    mount_point: str
    mount_id: int
    unique_id: int
    device: Device
    root: str
    fs_type: str
    candidates: tuple[SourcePath, ...]

    def is_about(self, mount: Mount) -> bool:
        """True when this fact was learned from exactly this mount."""
        if (self.mount_point, self.device) != (mount.mount_point, mount.device):
            return False
        return mount.has_id(self.mount_id, self.unique_id)


MAX_CANDIDATES = 8

Facts = Mapping[str, Fact]
"""By mount point of the bind."""


def plain_root(root: str) -> str:
    """Return a bind's root without the kernel's mark of a removed directory."""
    return root[: -len(DELETED)] if root.endswith(DELETED) else root


def below(root: str, ancestor: str) -> str | None:
    """Return ``root`` relative to ``ancestor`` (empty when equal), None when outside."""
    if root == ancestor:
        return ""
    prefix = ancestor.rstrip("/") + "/"
    return root[len(prefix) :] if root.startswith(prefix) else None


def learn(
    facts: Facts,
    table: MountTable,
    binds: Iterable[tuple[BindPath, Mount]],
    pods_directory: str,
) -> dict[str, Fact]:
    """Return the facts that hold after this look at the mount table.

    A bind whose device is mounted outside the pods directory teaches its source.  One whose
    device is not keeps what is known of the very same mount.  Everything else is forgotten.
    """
    outside = _outside(table, pods_directory)
    learned: dict[str, Fact] = {}
    for _, mount in binds:
        candidates = _candidates(mount, outside.get(mount.device, ()))
        known = facts.get(mount.mount_point)
        if known is not None and known.is_about(mount):
            new = tuple(path for path in candidates if path not in known.candidates)
            merged = (known.candidates + new)[:MAX_CANDIDATES]
            learned[mount.mount_point] = replace(known, candidates=merged) if new else known
        elif candidates:
            learned[mount.mount_point] = fact_of(mount, candidates[:MAX_CANDIDATES])
    return learned


def _outside(table: MountTable, pods_directory: str) -> dict[Device, list[Mount]]:
    inside = pods_directory.rstrip("/") + "/"
    found: dict[Device, list[Mount]] = {}
    for mount in table.fuse_mounts():
        if not mount.mount_point.startswith(inside):
            found.setdefault(mount.device, []).append(mount)
    return found


def _candidates(bind: Mount, mounts: Iterable[Mount]) -> tuple[SourcePath, ...]:
    root = plain_root(bind.root)
    return tuple(
        SourcePath(mount.mount_point, mount.root)
        for mount in sorted(mounts, key=lambda m: m.unique_id)
        if below(root, mount.root) is not None
    )


def fact_of(mount: Mount, candidates: tuple[SourcePath, ...]) -> Fact:
    """Return the fact that this bind came from one of these places."""
    return Fact(
        mount.mount_point,
        mount.mount_id,
        mount.unique_id,
        mount.device,
        mount.root,
        mount.fs_type,
        candidates,
    )


def restore(facts: Iterable[Fact], table: MountTable) -> dict[str, Fact]:
    """Keep of remembered facts those whose very mount is in the first table after a start."""
    kept: dict[str, Fact] = {}
    for fact in facts:
        for mount in table.stack_at(fact.mount_point):
            if fact.is_about(mount):
                kept[fact.mount_point] = fact
    return kept


def answer(facts: Facts, mount: Mount) -> SourceAnswer | None:
    """Return where this mount came from, if that was ever seen."""
    fact = facts.get(mount.mount_point)
    if fact is None or not fact.is_about(mount):
        return None
    others = len(fact.candidates) - 1
    why = "mounted there while healthy" + (f", and at {others} more places" if others else "")
    return SourceAnswer("lineage", why, fact.candidates[:1])
