"""Where a bind came from, remembered from the time when that could be seen.

While a bind works, its file system is mounted a second time outside the pods directory: that
path is its source, whatever the driver.  The kernel forgets it the moment the source is
mounted anew, so it is remembered here, as a fact about one *mount*, not about a path or a
device: device numbers are reused at once by unrelated file systems, and all volumes of a
driver may carry the same mount source string.  A fact dies with its mount.

Every FUSE mount has a fact of its own: the layers that others cover, which may come to light
when the source is long gone, and those outside the pods directory.  Whichever of them is left
tells a mount that is seen for the first time where their common file system came from.

A server may mount straight into a pod.  Then the kubelet's subPath binds of this volume come from
the pod's own mount of it: remembered beside the places outside, and told to no other mount.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from fusewatchd.kubeletdir import parse_bind_path, pods_prefix
from fusewatchd.model import (
    DELETED,
    BindKind,
    BindPath,
    Device,
    Mount,
    SourceAnswer,
    SourcePath,
)
from fusewatchd.mountinfo import MountTable, below


@dataclass(frozen=True, slots=True)
class Place:
    """A mount that shows, or showed, a file system, and that others may have come from."""

    mount_point: str
    root: str
    unique_id: int = 0
    """Of that mount: the smaller, the older.  0 where the kernel has no such ids."""

    @property
    def path(self) -> SourcePath:
        """Where it is, whichever mount is there by now."""
        return SourcePath(self.mount_point, self.root)


@dataclass(frozen=True, slots=True)
class Fact:
    """One mount, and every place outside the pods directory that showed the same thing.

    The first candidate is the one that was mounted first: the server's own mount.  The others
    are binds of it, which may be left over or reused for something else later, so only the
    first is ever acted on.
    """

    mount_point: str
    mount_id: int
    unique_id: int
    device: Device
    root: str
    fs_type: str
    candidates: tuple[Place, ...]
    tied: int = 1
    """So many of the first candidates nothing tells apart."""
    seen_working: bool = False
    """The file system answered at a moment when a candidate showed it."""
    of_pod: Place | None = None
    """For a subPath bind: the pod's own mount of this volume, when that showed the same."""

    def is_about(self, mount: Mount) -> bool:
        """True when this fact was learned from exactly this mount."""
        if (self.mount_point, self.device) != (mount.mount_point, mount.device):
            return False
        return mount.has_id(self.mount_id, self.unique_id)


MAX_CANDIDATES = 8

Facts = Mapping[int, Fact]
"""By ``mount_id``; of the host's mounts only."""


def plain_root(root: str) -> str:
    """Return a bind's root without the kernel's mark of a removed directory."""
    return root[: -len(DELETED)] if root.endswith(DELETED) else root


def learn(
    facts: Facts,
    table: MountTable,
    ignored_fs_types: Collection[str],
    kubelet_root: str,
    working: Collection[Device],
) -> dict[int, Fact]:
    """Return the facts that hold after this look at the mount table.

    A mount whose file system is mounted outside the pods directory too teaches its source.
    One whose file system is not keeps what is known of the very same mount, and one that was
    never seen before takes over what is known of others that show the same.  Everything else is
    forgotten.  ``working`` are the devices that answer.
    """
    mounts = [mount for mount in table.fuse_mounts() if mount.fs_type not in ignored_fs_types]
    look = _Look(facts, mounts, kubelet_root)
    learned: dict[int, Fact] = {}
    for mount in mounts:
        fact = look.fact_about(mount)
        if fact is None:
            continue
        if not fact.seen_working and mount.device in working and look.shows(mount):
            fact = replace(fact, seen_working=True)
        learned[mount.mount_id] = fact
    return learned


_Word = tuple[tuple[Place, ...], int, bool]
"""All that a fact has to say to others: of a thousand binds of one volume it is the same."""


class _Look:
    """What one look at the table adds to what is known."""

    def __init__(self, facts: Facts, mounts: Iterable[Mount], kubelet_root: str) -> None:
        self._root = kubelet_root
        self._inside = pods_prefix(kubelet_root)
        self._has_ids = False
        self._known: dict[int, Fact] = {}
        self._siblings: dict[Device, dict[_Word, Fact]] = {}
        self._outside: dict[Device, list[Place]] = {}
        self._of_pods: dict[tuple[Device, str, str], list[Place]] = {}
        for mount in mounts:
            self._has_ids = self._has_ids or bool(mount.unique_id)
            known = facts.get(mount.mount_id)
            if known is not None and known.is_about(mount):
                self._take_known(known, mount)
            self._take_place(mount)
        for places in self._outside.values():
            # Without ids the order of the table stays: the kernel's, in which they came.
            places.sort(key=lambda place: place.unique_id)
        self._shown: dict[tuple[Device, str], tuple[Place, ...]] = {}

    def _take_place(self, mount: Mount) -> None:
        place = Place(mount.mount_point, mount.root, mount.unique_id)
        if not mount.mount_point.startswith(self._inside):
            self._outside.setdefault(mount.device, []).append(place)
            return
        path = parse_bind_path(self._root, mount.mount_point)
        if path is not None and path.kind in _VOLUMES:
            self._of_pods.setdefault(_volume(mount, path), []).append(place)

    def _take_known(self, known: Fact, mount: Mount) -> None:
        # A mount that came or went while the table was read has no 64-bit id in it, and may
        # stand beside another file system that has got its number meanwhile.
        if known.unique_id == mount.unique_id or not mount.unique_id:
            self._known[mount.mount_id] = known
        if mount.unique_id or not known.unique_id:
            word = known.candidates, known.tied, known.seen_working
            self._siblings.setdefault(mount.device, {})[word] = known

    def shows(self, mount: Mount) -> bool:
        """Return True when a place that this may have come from shows it now."""
        return bool(self._places(mount) or self._of_pod(mount))

    def fact_about(self, mount: Mount) -> Fact | None:
        known = self._known.get(mount.mount_id)
        of_pod = known.of_pod if known is not None and known.of_pod else self._of_pod(mount)
        # What was mounted later is a bind of this one, and never where it came from; nor is what
        # was mounted later than the mount that this is a bind of.
        first = of_pod or Place(mount.mount_point, mount.root, mount.unique_id)
        places = tuple(place for place in self._places(mount) if not _is_later(place, first))
        if known is not None:
            if of_pod is not known.of_pod:
                known = replace(known, of_pod=of_pod)
            paths = {place.path for place in known.candidates}
            new = tuple(place for place in places if place.path not in paths)
            return _with_places(known, new) if new else known
        fact = replace(fact_of(mount, places), of_pod=of_pod)
        siblings = self._siblings.get(mount.device) if self._may_inherit(mount) else None
        if siblings:
            fact = _with_siblings(fact, siblings.values())
        return fact if fact.candidates or of_pod else None

    def _of_pod(self, mount: Mount) -> Place | None:
        """Return the pod's own mount of the volume of which this is a subPath bind."""
        path = parse_bind_path(self._root, mount.mount_point)
        if path is None or path.kind is not BindKind.SUBPATH:
            return None
        root = plain_root(mount.root)
        places = self._of_pods.get(_volume(mount, path), ())
        found = {p.path: p for p in places if below(root, p.root) is not None}
        return next(iter(found.values())) if len(found) == 1 else None

    def _may_inherit(self, mount: Mount) -> bool:
        """A mount outside may be a server's own, which came from nowhere."""
        return mount.mount_point.startswith(self._inside) and (
            bool(mount.unique_id) or not self._has_ids
        )

    def _places(self, mount: Mount) -> tuple[Place, ...]:
        """Return the oldest places that show what a mount shows."""
        root = plain_root(mount.root)
        found = self._shown.get((mount.device, root))
        if found is None:
            outside = self._outside.get(mount.device, ())
            shown = (place for place in outside if below(root, place.root) is not None)
            found = self._shown[mount.device, root] = tuple(islice(shown, MAX_CANDIDATES))
        return found


_VOLUMES = frozenset({BindKind.PUBLISH, BindKind.FLEXVOLUME})
"""The pod's own mount of a volume, which the kubelet binds parts of."""


def _volume(mount: Mount, path: BindPath) -> tuple[Device, str, str]:
    return mount.device, path.pod_uid, path.volume


def _is_later(place: Place, other: Place) -> bool:
    return bool(place.unique_id and other.unique_id) and place.unique_id > other.unique_id


def _with_places(fact: Fact, new: tuple[Place, ...]) -> Fact:
    """Add places that are seen now; what was known before came before."""
    if len(fact.candidates) >= MAX_CANDIDATES:
        return fact
    return replace(fact, candidates=(fact.candidates + new)[:MAX_CANDIDATES])


def _with_siblings(fact: Fact, siblings: Collection[Fact]) -> Fact:
    """Take over what is known of other mounts of the same file system."""
    root = plain_root(fact.root)
    merged: dict[SourcePath, Place] = {}
    firsts: dict[SourcePath, None] = {}
    for sibling in siblings:
        known = [place for place in sibling.candidates if below(root, place.root) is not None]
        if fact.of_pod is not None:
            known = [place for place in known if not _is_later(place, fact.of_pod)]
        firsts.update(dict.fromkeys(place.path for place in known[: sibling.tied]))
        _merge(merged, known)
    _merge(merged, fact.candidates)
    if not merged:
        return fact
    seen_working = any(sibling.seen_working for sibling in siblings)
    if all(place.unique_id for place in merged.values()):
        by_age = sorted(merged.values(), key=lambda place: place.unique_id)
        return replace(fact, candidates=tuple(by_age[:MAX_CANDIDATES]), seen_working=seen_working)
    # What is remembered was there before what is only seen now; but of what different mounts
    # remember, nothing says which is the older.
    in_order = [merged[path] for path in dict.fromkeys((*firsts, *merged))]
    return replace(
        fact,
        candidates=tuple(in_order[:MAX_CANDIDATES]),
        tied=max(1, len(firsts)),
        seen_working=seen_working,
    )


def _merge(merged: dict[SourcePath, Place], places: Iterable[Place]) -> None:
    for place in places:
        known = merged.get(place.path)
        if known is None or (place.unique_id and not known.unique_id):
            merged[place.path] = place


def fact_of(mount: Mount, candidates: tuple[Place, ...], *, seen_working: bool = False) -> Fact:
    """Return the fact that this mount came from the first of these places."""
    return Fact(
        mount.mount_point,
        mount.mount_id,
        mount.unique_id,
        mount.device,
        mount.root,
        mount.fs_type,
        candidates,
        seen_working=seen_working,
    )


def restore(facts: Iterable[Fact], table: MountTable) -> dict[int, Fact]:
    """Keep of remembered facts those whose very mount is in the first table after a start."""
    kept: dict[int, Fact] = {}
    for fact in facts:
        mount = table.by_id(fact.mount_id)
        if mount is not None and fact.is_about(mount):
            kept[fact.mount_id] = fact
    return kept


def places(facts: Facts, mount: Mount) -> tuple[SourcePath, ...]:
    """Return every place that was seen to show what this mount shows, the oldest first."""
    fact = facts.get(mount.mount_id)
    if fact is None or not fact.is_about(mount):
        return ()
    return tuple(place.path for place in fact.candidates)


def answer(facts: Facts, mount: Mount) -> SourceAnswer | None:
    """Return where this mount came from, if that was ever seen."""
    fact = facts.get(mount.mount_id)
    if fact is None or not fact.candidates or not fact.is_about(mount):
        return None
    others = len(fact.candidates) - fact.tied
    why = (
        "mounted there while healthy" if fact.seen_working else "mounted there, never seen healthy"
    )
    why += f", and at {others} more places" if others else ""
    return SourceAnswer("lineage", why, tuple(p.path for p in fact.candidates[: fact.tied]))


def mount_of_pod(facts: Facts, mount: Mount) -> SourcePath | None:
    """Return the pod's own mount that a subPath bind was seen to be a part of."""
    fact = facts.get(mount.mount_id)
    if fact is None or fact.of_pod is None or not fact.is_about(mount):
        return None
    return fact.of_pod.path
