"""Where a bind came from, remembered from the time when that could be seen.

While a bind works, its file system is mounted a second time outside the pods directory: that
path is its source, whatever the driver.  The kernel forgets it the moment the source is
mounted anew, so it is remembered here, as a fact about one *mount*, not about a path or a
device: device numbers are reused at once by unrelated file systems, and all volumes of a
driver may carry the same mount source string.  A fact dies with its mount.

A copy of a bind shows the same as its source does, and may be another volume's place tomorrow.  So
only a mount that is older than every bind of its file system is a place to come from.  What has
the shape of a pod's mount, under whichever kubelet's directory, is a bind.  Ages are the 64-bit
ids; without them the order of the table, in which the kernel attached the mounts.

Every FUSE mount has a fact of its own, those without any such place too: what is mounted later
is no place for them either.  Whichever of them is left tells a mount that is seen for the first
time where their common file system came from.

A server may mount straight into a pod.  Then the kubelet's subPath binds of this volume come from
the pod's own mount of it: remembered beside the places outside, and told to no other mount.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from fusewatchd.model.findings import SourceAnswer, SourcePath
from fusewatchd.model.ledger import Fact, Facts, Place
from fusewatchd.model.mount_table import MountTable, below
from fusewatchd.model.mounts import DELETED, Device, Mount
from fusewatchd.model.pods import BindKind, BindPath
from fusewatchd.parse.kubelet_paths import is_in_a_pod, parse_bind_path

MAX_CANDIDATES = 8


def plain_root(root: str) -> str:
    """Return a bind's root without the kernel's mark of a removed directory."""
    return root[: -len(DELETED)] if root.endswith(DELETED) else root


def learn(
    facts: Facts,
    table: MountTable,
    ignored_fs_types: Collection[str],
    pods: str,
    working: Collection[Device],
    *,
    is_ordered: bool = True,
) -> dict[int, Fact]:
    """Return the facts that hold after this look at the mount table.

    A mount whose file system is mounted at an older place teaches its source.  One that was never
    seen before takes over what is known of others that show the same.  ``pods`` is the directory of
    the pods, ``working`` are the devices that answer.  ``is_ordered`` is False in a copied
    namespace, whose mounts were made all at once.
    """
    mounts = [mount for mount in table.fuse_mounts() if mount.fs_type not in ignored_fs_types]
    look = _Look(facts, mounts, pods, is_ordered=is_ordered)
    learned: dict[int, Fact] = {}
    for mount in mounts:
        fact = look.fact_about(mount)
        if fact is None:
            continue
        if not fact.seen_working and mount.device in working and look.shows(fact):
            fact = replace(fact, seen_working=True)
        learned[mount.mount_id] = fact
    return learned


class _Aged(NamedTuple):
    """A place that is there now; the smaller its age, the longer."""

    age: int
    mount_id: int
    place: Place


_Word = tuple[tuple[Place, ...], int, bool, bool]
"""All that a fact has to say to others: of a thousand binds of one volume it is the same."""


class _Look:
    """What one look at the table adds to what is known."""

    def __init__(self, facts: Facts, mounts: list[Mount], pods: str, *, is_ordered: bool) -> None:
        self._pods = pods
        self._inside = f"{pods}/"
        self._is_ordered = is_ordered
        self._has_ids = any(mount.unique_id for mount in mounts)
        self._known: dict[int, Fact] = {}
        self._siblings: dict[Device, dict[_Word, Fact]] = {}
        self._outside: dict[Device, list[_Aged]] = {}
        self._first_bind: dict[Device, int] = {}
        self._of_pods: dict[tuple[Device, str, str], list[Place]] = {}
        for position, mount in enumerate(mounts, 1):
            known = facts.get(mount.mount_id)
            if known is not None and known.is_about(mount):
                self._take_known(known, mount)
            age = mount.unique_id if self._has_ids else position
            if age:
                self._take_place(mount, age)
        for device, places in self._outside.items():
            first = self._first_bind.get(device)
            places[:] = sorted(p for p in places if first is None or p.age < first)
        self._ages = {p.mount_id: p.age for places in self._outside.values() for p in places}
        self._shown: dict[tuple[Device, str], tuple[_Aged, ...]] = {}

    def _take_place(self, mount: Mount, age: int) -> None:
        place = Place(mount.mount_point, mount.root, mount.unique_id)
        is_bind = self._is_bind(mount.mount_point)
        known = self._known.get(mount.mount_id)
        # Once it was later than a bind, it is so for good, whatever became of that one.
        if is_bind or (known is not None and not known.is_place):
            first = self._first_bind.get(mount.device, age)
            self._first_bind[mount.device] = min(first, age)
        else:
            aged = _Aged(age, mount.mount_id, place)
            self._outside.setdefault(mount.device, []).append(aged)
        path = parse_bind_path(self._pods, mount.mount_point) if is_bind else None
        if path is not None and path.kind in _VOLUMES:
            self._of_pods.setdefault(_volume(mount, path), []).append(place)

    def _is_bind(self, mount_point: str) -> bool:
        return mount_point.startswith(self._inside) or is_in_a_pod(mount_point)

    def _take_known(self, known: Fact, mount: Mount) -> None:
        # A mount that came or went while the table was read has no 64-bit id in it, and may
        # stand beside another file system that has got its number meanwhile.
        if known.unique_id == mount.unique_id or not mount.unique_id:
            self._known[mount.mount_id] = known
        if mount.unique_id or not known.unique_id:
            word = known.candidates, known.tied, known.seen_working, known.is_ordered
            self._siblings.setdefault(mount.device, {})[word] = known

    def shows(self, fact: Fact) -> bool:
        """Return True when the place that a mount came from shows it now."""
        if fact.of_pod is not None and not fact.candidates:
            return True
        there = self._places(fact.device, plain_root(fact.root))
        return any(aged.place in fact.candidates[: fact.tied] for aged in there)

    def fact_about(self, mount: Mount) -> Fact | None:
        known = self._known.get(mount.mount_id)
        if self._has_ids and not mount.unique_id:
            return known  # how old it is will be known at the next look
        of_pod = known.of_pod if known is not None and known.of_pod else self._of_pod(mount)
        places = self._older_than(mount)
        if known is not None:
            if of_pod is not known.of_pod:
                known = replace(known, of_pod=of_pod)
            if self._is_ordered and not known.is_ordered and known.candidates[:1] == places[:1]:
                known = replace(known, is_ordered=True)
            paths = _paths(known)
            new = tuple(place for place in places if place.path not in paths)
            return _with_places(known, new) if new else known
        fact = replace(
            fact_of(mount, places),
            of_pod=of_pod,
            is_ordered=self._is_ordered,
            is_place=mount.mount_id in self._ages,
        )
        siblings = self._siblings.get(mount.device)
        return _with_siblings(fact, siblings.values()) if siblings else fact

    def _of_pod(self, mount: Mount) -> Place | None:
        """Return the pod's own mount of the volume of which this is a subPath bind."""
        path = parse_bind_path(self._pods, mount.mount_point)
        if path is None or path.kind is not BindKind.SUBPATH:
            return None
        root = plain_root(mount.root)
        places = self._of_pods.get(_volume(mount, path), ())
        found = {p.path: p for p in places if below(root, p.root) is not None}
        return next(iter(found.values())) if len(found) == 1 else None

    def _older_than(self, mount: Mount) -> tuple[Place, ...]:
        """Return the places that show what a mount shows and that are no later than itself."""
        own = self._ages.get(mount.mount_id)
        places = self._places(mount.device, plain_root(mount.root))
        return tuple(aged.place for aged in places if own is None or aged.age <= own)

    def _places(self, device: Device, root: str) -> tuple[_Aged, ...]:
        """Return the oldest places that show this."""
        found = self._shown.get((device, root))
        if found is None:
            outside = self._outside.get(device, ())
            shown = (aged for aged in outside if below(root, aged.place.root) is not None)
            found = self._shown[device, root] = tuple(islice(shown, MAX_CANDIDATES))
        return found


def _paths(fact: Fact) -> set[SourcePath]:
    return {place.path for place in fact.candidates}


_VOLUMES = frozenset({BindKind.PUBLISH, BindKind.FLEXVOLUME})
"""The pod's own mount of a volume, which the kubelet binds parts of."""


def _volume(mount: Mount, path: BindPath) -> tuple[Device, str, str]:
    return mount.device, path.pod_uid, path.volume


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
        known = [
            place
            for place in sibling.candidates
            if below(root, place.root) is not None and not _is_later(place, fact)
        ]
        firsts.update(dict.fromkeys(place.path for place in known[: sibling.tied]))
        _merge(merged, known)
    _merge(merged, fact.candidates)
    if not merged:
        return fact
    if all(place.unique_id for place in merged.values()):
        in_order = sorted(merged.values(), key=lambda place: place.unique_id)
        tied = 1
    else:
        # What is remembered was there before what is only seen now; but of what different mounts
        # remember, nothing says which is the older.
        in_order = [merged[path] for path in dict.fromkeys((*firsts, *merged))]
        tied = max(1, len(firsts))
    told = [sibling for sibling in siblings if sibling.candidates]
    return replace(
        fact,
        candidates=tuple(in_order[:MAX_CANDIDATES]),
        tied=tied,
        seen_working=any(t.seen_working and t.candidates[0].path == in_order[0].path for t in told),
        is_ordered=fact.is_ordered and all(t.is_ordered for t in told),
    )


def _is_later(place: Place, fact: Fact) -> bool:
    return bool(place.unique_id and fact.unique_id) and place.unique_id > fact.unique_id


def _merge(merged: dict[SourcePath, Place], places: Iterable[Place]) -> None:
    for place in places:
        known = merged.get(place.path)
        if known is None or (place.unique_id and not known.unique_id):
            merged[place.path] = place


def bound(mount: Mount, source: Place, *, is_of_pod: bool) -> Fact:
    """Return the fact that the daemon has just bound this mount from there."""
    fact = fact_of(mount, () if is_of_pod else (source,))
    of_pod = source if is_of_pod else None
    return replace(fact, of_pod=of_pod, seen_working=True, is_ordered=True)


def fact_of(mount: Mount, candidates: tuple[Place, ...]) -> Fact:
    """Return the fact that this mount came from the first of these places."""
    return Fact(
        mount.mount_point,
        mount.mount_id,
        mount.unique_id,
        mount.device,
        mount.root,
        mount.fs_type,
        candidates,
    )


def restore(facts: Iterable[Fact], table: MountTable) -> dict[int, Fact]:
    """Keep of remembered facts those whose very mount is in the first table after a start."""
    kept: dict[int, Fact] = {}
    for fact in facts:
        mount = table.by_id(fact.mount_id)
        if mount is not None and fact.is_about(mount):
            kept[fact.mount_id] = fact if fact.is_ordered else _without_copies(fact, table)
    return kept


def _without_copies(fact: Fact, table: MountTable) -> Fact:
    """Forget the places that are later than the mount: earlier versions took copies for sources."""
    on_device = [mount for mount in table.fuse_mounts() if mount.device == fact.device]
    own = next((n for n, m in enumerate(on_device) if m.mount_id == fact.mount_id), 0)
    later = {SourcePath(m.mount_point, m.root) for m in on_device[own + 1 :]}
    later -= {SourcePath(m.mount_point, m.root) for m in on_device[: own + 1]}
    known = tuple(
        place
        for place in fact.candidates
        if not (_is_later(place, fact) or place.path in later or is_in_a_pod(place.mount_point))
    )
    return replace(fact, candidates=known, tied=max(1, min(fact.tied, len(known))))


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
    if not (fact.seen_working or fact.is_ordered):
        return None
    others = len(fact.candidates) - fact.tied
    why = f"mounted there{' while' if fact.seen_working else ', never seen'} healthy"
    why += f", and at {others} more places" if others else ""
    paths = tuple(place.path for place in fact.candidates[: fact.tied])
    return SourceAnswer("lineage", why, paths, is_seen=fact.seen_working, is_older=fact.is_ordered)


def is_source(facts: Facts, mount: Mount, *, is_by_name: bool) -> bool:
    """Return True for the oldest mount of its file system, or where a name tells: for any place."""
    fact = facts.get(mount.mount_id)
    if fact is None or not fact.is_about(mount) or not fact.is_place:
        return False
    own = Place(mount.mount_point, mount.root, mount.unique_id)
    return is_by_name or fact.candidates[:1] == (own,)


def is_copy(facts: Facts, mount: Mount) -> bool:
    """Return True for what is later than a bind of its file system, or is one."""
    fact = facts.get(mount.mount_id)
    return fact is not None and fact.is_about(mount) and not fact.is_place


def mount_of_pod(facts: Facts, mount: Mount) -> SourcePath | None:
    """Return the pod's own mount that a subPath bind was seen to be a part of."""
    fact = facts.get(mount.mount_id)
    if fact is None or fact.of_pod is None or not fact.is_about(mount):
        return None
    return fact.of_pod.path
