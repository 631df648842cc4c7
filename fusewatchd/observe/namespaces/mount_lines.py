"""What is told of a mount table of another namespace, whoever made it and however long it is; pure.

Only lines that are needed are unescaped: names may be thousands of bytes that all need it.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from fusewatchd.errors import ParseError
from fusewatchd.model.mount_table import mount_from_line
from fusewatchd.model.mounts import Mount
from fusewatchd.model.quota import LINE_BYTES, TOLD_FACTOR

FUSE_MARK = b" - fuse"
"""A space inside a field is escaped, so this is nothing but separator and type."""


_DIRECTORY_MARK = b"/volume"
_DIRECTORY = re.compile(
    rb"^\d+ \d+ [\d:]+ [^ ]*/(?:volumes/(?:kubernetes\.io~(?:csi|local-volume)|(?!kubernetes\.io~)"
    rb"[^/ ~]+~[^/ ]+)/[^/ ]|volume-subpaths/[^/ ]+/[^/ ]+/[^/ ])[^\n]*",
    re.MULTILINE,
)
"""A mount of the node's directory where the kubelet mounts a volume, or a part of one."""


def shows_directory(data: bytes) -> bool:
    """Return True when some mount shows a directory in which the kubelet mounts a volume."""
    return _DIRECTORY_MARK in data and _DIRECTORY.search(data) is not None


@dataclass(frozen=True, slots=True)
class Told:
    """The FUSE mounts, all that they stand on and what is mounted inside them."""

    mounts: tuple[Mount, ...]
    fuse: int = 0
    """How many of them are FUSE mounts."""
    wanted: int = 0
    """How many FUSE mounts the lines have."""
    is_cut: bool = False
    """Something was left out: lines are too many or too long, or there was no room for all."""
    directories: tuple[int, ...] = ()
    """Ids of those that show a directory in which the kubelet mounts a volume; in ``mounts``."""


def relevant(data: bytes, most_lines: int, most_fuse: int, most_bytes: int) -> Told:
    """Keep what recovery needs of a mountinfo file, in its order.

    Args:
        data: what was read of it.
        most_lines: of the file that are looked at.
        most_fuse: FUSE mounts that are kept, the first ones.
        most_bytes: of the lines that are kept.

    Raises:
        ParseError: a line has not the documented form.
    """
    lines = data.split(b"\n")
    is_cut = bool(lines.pop()) or len(lines) > most_lines
    rows: dict[int, bytes] = {}
    parents: dict[int, int] = {}
    for line in lines[:most_lines]:
        if len(line) > LINE_BYTES:
            is_cut = True
            continue
        number, parent = _ids(line)
        rows[number], parents[number] = line, parent
    marked = [number for number, line in rows.items() if FUSE_MARK in line]
    if is_cut:
        marked = _standing(marked, rows, parents)
    kept = _Kept(rows, TOLD_FACTOR * most_fuse, most_bytes)
    fuse: list[int] = []
    for number in marked[: most_fuse + 1]:
        mount = mount_from_line(rows[number])
        if mount.is_fuse and len(fuse) < most_fuse:
            if not kept.add([number, *_above(number, parents)]):
                break
            fuse.append(number)
    # A table that is cut does not show what is mounted on them.
    found = () if is_cut else _directories(rows)
    directories = _with_room(found, most_fuse - len(fuse), parents, kept)
    _keep_inside([*fuse, *directories], parents, kept)
    told = tuple(mount_from_line(rows[number]) for number in rows if number in kept.numbers)
    is_cut = is_cut or kept.is_full or len(directories) < len(found)
    return Told(told, len(fuse), len(marked), is_cut, directories)


def _directories(rows: dict[int, bytes]) -> tuple[int, ...]:
    """Return the mounts that show a directory in which the kubelet mounts a volume."""
    return tuple(
        number
        for number, line in rows.items()
        if _DIRECTORY_MARK in line and FUSE_MARK not in line and _DIRECTORY.match(line)
    )


def _with_room(
    numbers: Iterable[int], room: int, parents: dict[int, int], kept: _Kept
) -> tuple[int, ...]:
    """Keep these mounts with all that they stand on, as far as there is room."""
    first = islice(numbers, max(0, room))
    return tuple(n for n in first if kept.add([n, *_above(n, parents)]))


class _Kept:
    """The lines that are told, as long as there is room."""

    def __init__(self, rows: dict[int, bytes], most: int, most_bytes: int) -> None:
        self.numbers: set[int] = set()
        self.is_full = False
        self._rows = rows
        self._left = most
        self._bytes_left = most_bytes

    def add(self, numbers: Iterable[int]) -> bool:
        """Keep all of these, or none where there is no room for them."""
        new = set(numbers) - self.numbers
        size = sum(len(self._rows[number]) for number in new)
        if len(new) > self._left or size > self._bytes_left:
            self.is_full = True
            return False
        self.numbers |= new
        self._left -= len(new)
        self._bytes_left -= size
        return True


def _ids(line: bytes) -> tuple[int, int]:
    try:
        number, parent, _ = line.split(b" ", 2)
        return int(number), int(parent)
    except ValueError:
        raise ParseError("a line of mountinfo does not begin with two numbers") from None


def _standing(marked: Iterable[int], rows: dict[int, bytes], parents: dict[int, int]) -> list[int]:
    """Return those of which all is known that they stand on, down to the root.

    What a mount stands on decides whether it may be replaced.
    """
    known: dict[int, bool] = {}
    for number in marked:
        way = []
        step = number
        while step not in known and step in rows:
            known[step] = False  # and the end of a circle
            way.append(step)
            step = parents[step]
        is_at_root = bool(way) and rows[way[-1]].split(b" ", 5)[4] == b"/"
        stands = known[step] if step in rows and step not in way else is_at_root
        known.update(dict.fromkeys(way, stands))
    return [number for number in marked if known[number]]


def _keep_inside(fuse: Iterable[int], parents: dict[int, int], kept: _Kept) -> None:
    """Keep what is mounted inside FUSE mounts, parents first."""
    children: dict[int, list[int]] = {}
    for number, parent in parents.items():
        children.setdefault(parent, []).append(number)
    queue = deque(fuse)
    seen = set(queue)
    while queue:
        for child in children.get(queue.popleft(), ()):
            if child not in seen:
                if not kept.add([child]):
                    return
                seen.add(child)
                queue.append(child)


def _above(number: int, parents: dict[int, int]) -> list[int]:
    """Return what a mount stands on, down to the root."""
    above: dict[int, None] = {}
    while (number := parents.get(number, -1)) in parents and number not in above:
        above[number] = None
    return list(above)
