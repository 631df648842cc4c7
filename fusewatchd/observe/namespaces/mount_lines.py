"""What is told of a mount table of another namespace, whoever made it and however long it is; pure.

Only lines that are needed are unescaped: names may be thousands of bytes that all need it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from fusewatchd.errors import ParseError
from fusewatchd.model.mount_table import mount_from_line
from fusewatchd.model.mounts import Mount
from fusewatchd.model.quota import LINE_BYTES, TOLD_FACTOR

FUSE_MARK = b" - fuse"
"""A space inside a field is escaped, so this is nothing but separator and type."""


@dataclass(frozen=True, slots=True)
class Told:
    """The FUSE mounts, all that they stand on and what is mounted inside them."""

    mounts: tuple[Mount, ...]
    fuse: int = 0
    """How many of them are FUSE mounts."""
    wanted: int = 0
    """How many FUSE mounts the lines have."""
    is_cut: bool = False
    """Lines were left out: too many, too long, or the text ends within one."""


def relevant(data: bytes, most_lines: int, most_fuse: int) -> Told:
    """Keep what recovery needs of a mountinfo file, in its order.

    Args:
        data: what was read of it.
        most_lines: of the file that are looked at.
        most_fuse: FUSE mounts that are kept, the first ones.

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
    mounts = {number: mount_from_line(rows[number]) for number in marked[: most_fuse + 1]}
    fuse = [number for number, mount in mounts.items() if mount.is_fuse][:most_fuse]
    inside, has_more = _inside(fuse, parents, TOLD_FACTOR * most_fuse)
    kept = inside | _above(fuse, parents)
    told = tuple(
        mounts.get(number) or mount_from_line(rows[number]) for number in rows if number in kept
    )
    return Told(told, len(fuse), len(marked), is_cut or has_more)


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


def _inside(fuse: Iterable[int], parents: dict[int, int], most: int) -> tuple[set[int], bool]:
    """Return these mounts with what is inside them, and whether there is more."""
    children: dict[int, list[int]] = {}
    for number, parent in parents.items():
        children.setdefault(parent, []).append(number)
    inside = set(fuse)
    queue = deque(inside)
    while queue:
        for child in children.get(queue.popleft(), ()):
            if child in inside:
                continue
            if len(inside) >= most:
                return inside, True
            inside.add(child)
            queue.append(child)
    return inside, False


def _above(fuse: Iterable[int], parents: dict[int, int]) -> set[int]:
    above: set[int] = set()
    for number in fuse:
        while (number := parents.get(number, -1)) in parents and number not in above:
            above.add(number)
    return above
