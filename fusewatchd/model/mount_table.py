"""Reading ``/proc/<pid>/mountinfo``, proc_pid_mountinfo(5), into a value.

Nodes with tens of thousands of mounts exist, and the table is read again whenever one of
them changes.  So FUSE lines are parsed at once, all others when somebody asks about them,
and a line that the previous table had already parsed is not parsed again.

Do not read the table to learn whether an umount that returned 0 has worked: it has.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

from fusewatchd.errors import ParseError
from fusewatchd.model.mounts import Device, Mount
from fusewatchd.model.overlay import Overlay
from fusewatchd.text import printable

# Names may hold any byte but those that the kernel escapes, a carriage return for instance:
# only the space separates fields and only the line feed separates lines.  Numbers have 32
# bits; what is longer is none, and Python would refuse to convert it.
_LINE = re.compile(
    rb"(?P<id>\d{1,10}) (?P<parent>\d{1,10}) (?P<major>\d{1,10}):(?P<minor>\d{1,10})"
    rb" (?P<root>[^ ]+) (?P<point>[^ ]+) (?P<options>[^ ]+)"
    rb"(?P<optional>(?: [^ ]+)*?) -"
    rb" (?P<type>[^ ]+) (?P<source>[^ ]*) (?P<super>.*)",
    re.DOTALL,
)
_PEER_GROUP = re.compile(rb" shared:(\d{1,10})(?!\d)")
_MASTER = re.compile(rb" master:(\d{1,10})(?!\d)")
_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")
# A space inside a field is escaped, so this is nothing but separator and type.
_FUSE_MARK = b" - fuse"
FEW_MOUNTS = 4
"""A table of so few, as one path has, is faster searched than grouped."""

_Key = TypeVar("_Key", bound=Hashable)


def mount_from_line(line: bytes, unique_ids: Mapping[int, int] = MappingProxyType({})) -> Mount:
    """Parse one line, without its line feed; the 64-bit id comes from a map by the other one.

    Super options stay as printed: an escaped comma inside a value, once decoded, could not
    be told from the commas between the options.

    Raises:
        ParseError: the line does not have the documented form.
    """
    match = _LINE.fullmatch(line)
    if match is None:
        raise ParseError(f"not a mountinfo line: {_shown(line)}")
    optional = match["optional"]
    mount_id = int(match["id"])
    return Mount(
        mount_id=mount_id,
        parent_id=int(match["parent"]),
        device=Device(int(match["major"]), int(match["minor"])),
        root=unescape(match["root"]),
        mount_point=unescape(match["point"]),
        options=_decode(match["options"]),
        peer_group=_tag(_PEER_GROUP, optional),
        master=_tag(_MASTER, optional),
        fs_type=unescape(match["type"]),
        source=unescape(match["source"]),
        super_options=_decode(match["super"]),
        unique_id=unique_ids.get(mount_id, 0),
    )


def unescape(field: bytes) -> str:
    r"""Decode a field: ``\NNN`` is a byte in octal, and no UTF-8 survives as surrogates."""
    if b"\\" in field:
        field = _ESCAPE.sub(lambda match: bytes((int(match[1], 8),)), field)
    return _decode(field)


def parse_mount_table(
    data: bytes,
    previous: MountTable | None = None,
    unique_ids: Mapping[int, int] = MappingProxyType({}),
) -> MountTable:
    """Parse a whole mountinfo file.

    Args:
        data: everything that the kernel returned.
        previous: an earlier table of the same process, whose parsed lines are used again.
        unique_ids: the 64-bit ids by the 32-bit ones.  A mount that it lacks gets 0: an id from
            an earlier table may be another mount's that looked the same.

    Raises:
        ParseError: a FUSE line is malformed, a line has no separator, or the text ends
            within a line.  Other malformed lines raise when the table is first asked about
            more than its FUSE mounts.
    """
    lines = data.split(b"\n")
    if lines.pop():
        raise ParseError("mountinfo ends in the middle of a line")
    if data.count(b" - ") < len(lines):
        number = next((n for n, line in enumerate(lines, 1) if b" - " not in line), len(lines))
        raise ParseError(f"mountinfo line {number} has no separator: {_shown(lines[number - 1])}")
    return MountTable._of_lines(lines, previous, unique_ids)


def below(path: str, ancestor: str) -> str | None:
    """Return ``path`` relative to ``ancestor`` (empty when equal), None when outside."""
    if path == ancestor:
        return ""
    prefix = ancestor.rstrip("/") + "/"
    return path[len(prefix) :] if path.startswith(prefix) else None


class MountTable:
    """The mounts of one mount namespace at one moment; never changes, equal by content.

    The order of the mounts is the kernel's, and no part of the content: it differs between
    kernels and a table built from changes cannot know it.
    """

    __slots__ = (
        "_by_device", "_by_id", "_by_master", "_by_parent", "_by_point", "_fuse", "_fuse_points",
        "_lines", "_parsed", "_stacks", "_unique_ids",
    )  # fmt: skip

    def __init__(self, by_id: Overlay[int, Mount] | None = None) -> None:
        """Make an empty table; see ``of`` and ``parse_mount_table`` for others."""
        self._lines: list[bytes] = []
        self._parsed: dict[bytes, Mount] = {}
        self._unique_ids: Mapping[int, int] = {}
        self._fuse: tuple[Mount, ...] = ()
        self._fuse_points: list[str] | None = None
        self._stacks: dict[str, tuple[Mount, ...]] = {}
        self._by_id: Overlay[int, Mount] | None = Overlay({}) if by_id is None else by_id
        self._by_parent: Overlay[int, tuple[Mount, ...]] | None = None
        self._by_point: Overlay[str, tuple[Mount, ...]] | None = None
        self._by_device: Overlay[Device, tuple[Mount, ...]] | None = None
        self._by_master: Overlay[int, tuple[Mount, ...]] | None = None

    @classmethod
    def of(cls, mounts: Iterable[Mount]) -> MountTable:
        """Make a table of these mounts; of two with one id the later one counts."""
        by_id = {mount.mount_id: mount for mount in mounts}
        table = cls(Overlay(by_id))
        table._fuse = tuple(mount for mount in by_id.values() if mount.is_fuse)
        return table

    @classmethod
    def _of_lines(
        cls, lines: list[bytes], previous: MountTable | None, unique_ids: Mapping[int, int]
    ) -> MountTable:
        table = cls()
        table._lines = lines
        table._unique_ids = unique_ids
        table._by_id = None
        # Only what is still in the table is carried along, or it would grow for ever.
        known = previous._parsed if previous is not None else {}
        table._parsed = {line: known[line] for line in lines if line in known} if known else {}
        fuse = [(n, line) for n, line in enumerate(lines, 1) if _FUSE_MARK in line]
        mounts = (table._mount(number, line) for number, line in fuse)
        table._fuse = tuple(mount for mount in mounts if mount.is_fuse)
        return table

    def _mount(self, number: int, line: bytes) -> Mount:
        mount = self._parsed.get(line)
        if mount is None:
            try:
                mount = self._parsed[line] = mount_from_line(line, self._unique_ids)
            except ParseError as exc:
                raise ParseError(f"mountinfo line {number}: {exc}") from exc
        unique_id = self._unique_ids.get(mount.mount_id, 0)
        if mount.unique_id != unique_id:
            mount = self._parsed[line] = replace(mount, unique_id=unique_id)
        return mount

    def fuse_mounts(self) -> tuple[Mount, ...]:
        """Return the mounts of FUSE file systems in table order."""
        return self._fuse

    def fuse_points(self, prefix: str) -> list[str]:
        """Return the mount points of FUSE file systems that begin so, sorted, each one once."""
        if self._fuse_points is None:
            self._fuse_points = sorted({mount.mount_point for mount in self._fuse})
        points = self._fuse_points
        first = end = bisect_left(points, prefix)
        while end < len(points) and points[end].startswith(prefix):
            end += 1
        return points[first:end]

    def by_id(self, mount_id: int) -> Mount | None:
        """Return the mount with this (reused, 32-bit) id."""
        return self._ids().get(mount_id)

    def children_of(self, mount_id: int) -> tuple[Mount, ...]:
        """Return the mounts attached to this one, what is stacked on its root included."""
        if self._by_parent is None:
            if len(self) <= FEW_MOUNTS:
                return tuple(mount for mount in self if _attached_to(mount) == mount_id)
            self._by_parent = _grouped(self, _attached_to)
        return self._by_parent.get(mount_id, ())

    def on_device(self, device: Device) -> tuple[Mount, ...]:
        """Return every mount of this superblock."""
        if self._by_device is None:
            self._by_device = _grouped(self, _device)
        return self._by_device.get(device, ())

    def slaves_of(self, peer_group: int) -> tuple[Mount, ...]:
        """Return the mounts that receive from this peer group (``master:`` in mountinfo)."""
        if self._by_master is None:
            self._by_master = _grouped(self, _master)
        return self._by_master.get(peer_group, ())

    def below(self, prefix: str) -> tuple[Mount, ...]:
        """Return the mounts at paths strictly inside ``prefix``; looks at every mount."""
        start = prefix.rstrip("/") + "/"
        return tuple(m for m in self if m.mount_point.startswith(start) and m.mount_point != start)

    def at(self, mount_point: str) -> tuple[Mount, ...]:
        """Return every mount at a path in no particular order, hidden ones included."""
        return self._points().get(mount_point, ())

    def stack_at(self, mount_point: str) -> tuple[Mount, ...]:
        """Return the mounts stacked at a path, bottom to top; empty when none is there.

        When another mount at a directory above hides some of them, those that the path
        leads to are returned.
        """
        group = self.at(mount_point)
        if len(group) < 2:
            return group
        known = self._stacks.get(mount_point)
        if known is None:
            known = self._stacks[mount_point] = self._stack_of(group)
        return known

    def _stack_of(self, group: tuple[Mount, ...]) -> tuple[Mount, ...]:
        ids = {mount.mount_id for mount in group}
        bottoms = [m for m in group if m.parent_id not in ids or m.parent_id == m.mount_id]
        if not bottoms:
            return group
        return _chain(bottoms[0] if len(bottoms) == 1 else self._reached(bottoms), group)

    def top_at(self, mount_point: str) -> Mount | None:
        """Return the mount that a path which is a mount point leads to."""
        stack = self.stack_at(mount_point)
        return stack[-1] if stack else None

    def with_changes(self, removed_ids: Collection[int], added: Iterable[Mount]) -> MountTable:
        """Return a table without the mounts ``removed_ids`` and with the ``added`` ones.

        An added mount replaces the one that has its id.  Costs the number of changes,
        whatever the size of the table.
        """
        new = {mount.mount_id: mount for mount in added}
        before = self._ids()
        gone = [before[i] for i in {*removed_ids, *new} if i in before]
        table = MountTable()
        table._by_id = before.changed({**{mount.mount_id: None for mount in gone}, **new})
        table._parsed = self._parsed
        table._fuse = self._fuse
        if any(mount.is_fuse for mount in (*gone, *new.values())):
            table._fuse = _fuse_after(self._fuse, gone, new)
        table._by_parent = _regrouped(self._by_parent, _attached_to, gone, new)
        table._by_point = _regrouped(self._by_point, _point, gone, new)
        table._by_device = _regrouped(self._by_device, _device, gone, new)
        table._by_master = _regrouped(self._by_master, _master, gone, new)
        return table

    def __len__(self) -> int:
        return len(self._lines) if self._by_id is None else len(self._by_id)

    def __iter__(self) -> Iterator[Mount]:
        return iter(self._ids().values())

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True  # and none of the lines has to be parsed
        if not isinstance(other, MountTable) or len(self) != len(other):
            return False
        return self._ids() == other._ids()

    __hash__ = None  # type: ignore[assignment]  # equal by content, as dicts are

    def __repr__(self) -> str:
        return f"<MountTable of {len(self)}, {len(self._fuse)} FUSE>"

    def _ids(self) -> Overlay[int, Mount]:
        if self._by_id is None:
            mounts = (self._mount(number, line) for number, line in enumerate(self._lines, 1))
            self._by_id = Overlay({mount.mount_id: mount for mount in mounts})
        return self._by_id

    def _points(self) -> Overlay[str, tuple[Mount, ...]]:
        if self._by_point is None:
            self._by_point = _grouped(self, _point)
        return self._by_point

    def _reached(self, bottoms: list[Mount]) -> Mount:
        """Of several stacks with one path, return the bottom of the one a walk arrives at."""
        path = bottoms[0].mount_point
        while path != "/":
            path = path.rpartition("/")[0] or "/"
            carrier = self.top_at(path)
            if carrier is not None:
                for bottom in bottoms:
                    if bottom.parent_id == carrier.mount_id:
                        return bottom
                break
        return bottoms[-1]


def _chain(bottom: Mount, group: Iterable[Mount]) -> tuple[Mount, ...]:
    upon = {mount.parent_id: mount for mount in group if mount is not bottom}
    chain = [bottom]
    # Every step takes one out, so even a table that shows a cycle has an end.
    while (mount := upon.pop(chain[-1].mount_id, None)) is not None:
        chain.append(mount)
    return tuple(chain)


def _grouped(
    mounts: Iterable[Mount], key: Callable[[Mount], _Key]
) -> Overlay[_Key, tuple[Mount, ...]]:
    lists: dict[_Key, list[Mount]] = {}
    for mount in mounts:
        lists.setdefault(key(mount), []).append(mount)
    return Overlay({name: tuple(members) for name, members in lists.items()})


def _regrouped(
    groups: Overlay[_Key, tuple[Mount, ...]] | None,
    key: Callable[[Mount], _Key],
    gone: Iterable[Mount],
    new: Mapping[int, Mount],
) -> Overlay[_Key, tuple[Mount, ...]] | None:
    """Apply changes to groups that exist; those nobody asked for stay unmade."""
    if groups is None:
        return None
    leaving: dict[_Key, set[int]] = {}
    for mount in gone:
        leaving.setdefault(key(mount), set()).add(mount.mount_id)
    coming = _grouped(new.values(), key)
    result: dict[_Key, tuple[Mount, ...] | None] = {}
    for name in {*leaving, *coming}:
        ids = leaving.get(name, ())
        stay = (mount for mount in groups.get(name, ()) if mount.mount_id not in ids)
        result[name] = (*stay, *coming.get(name, ())) or None
    return groups.changed(result)


def _fuse_after(
    fuse: tuple[Mount, ...], gone: Iterable[Mount], new: Mapping[int, Mount]
) -> tuple[Mount, ...]:
    """Replace in place what has an id in both, so that a change of flags keeps the order."""
    left = {mount.mount_id for mount in gone}
    kept = {m.mount_id: m for m in fuse if m.mount_id not in left or m.mount_id in new}
    kept.update(new)
    return tuple(mount for mount in kept.values() if mount.is_fuse)


def _attached_to(mount: Mount) -> int:
    # The first root file system is its own parent.
    return mount.parent_id if mount.parent_id != mount.mount_id else -1


def _point(mount: Mount) -> str:
    return mount.mount_point


def _device(mount: Mount) -> Device:
    return mount.device


def _master(mount: Mount) -> int:
    return mount.master


def _tag(pattern: re.Pattern[bytes], optional: bytes) -> int:
    match = pattern.search(optional)
    return int(match[1]) if match else 0


def _decode(field: bytes) -> str:
    return field.decode("utf-8", "surrogateescape")


def _shown(line: bytes) -> str:
    return printable(_decode(line))
