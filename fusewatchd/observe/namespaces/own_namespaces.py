"""Which of its mount namespaces is a container's own: that of its oldest process."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any

from fusewatchd.json_values import encode
from fusewatchd.linux.procfs import open_process
from fusewatchd.model.mounts import UserNamespaceRef
from fusewatchd.observe.namespaces.cgroupfs import FirstProcess, Membership, first_process


class OwnNamespaces:
    """Remembers the oldest process of each container.

    Its namespace stays the container's own as long as somebody is in it: a process that moves
    takes nothing along.
    """

    def __init__(self) -> None:
        """Know of no container."""
        self._first: dict[str, FirstProcess] = {}
        """By the cgroup of the container."""
        self._before: dict[str, FirstProcess] = {}
        self._believed: set[str] = set()
        self._inodes: Collection[int] = ()
        self._host = 0

    def begin(self, host: int, inodes: Collection[int], places: Iterable[Membership]) -> None:
        """Begin another look, which saw these mount namespaces beside that of the host."""
        self._host, self._inodes = host, inodes
        self._before, self._first = self._first, {}
        self._believed = _genuine(place for place in places if place.directory)

    def is_own(self, inode: int, place: Membership) -> bool:
        """Return True for the mount namespace that a container was made with."""
        first = self._first_of(place)
        is_first = first is not None and first.mount_namespace == inode
        return is_first and place.directory in self._believed

    def users(self, place: Membership) -> Any:
        """Return the encoded user namespace of a container; None where nobody shows it."""
        first = self._first_of(place)
        return encode(_users(first)) if first is not None and _lives_on(first) else None

    def _first_of(self, place: Membership) -> FirstProcess | None:
        if not place.directory:
            return None
        first = self._first.get(place.directory) or self._before.get(place.directory)
        if first is None or first.mount_namespace not in self._inodes:
            first = first_process(place.directory, self._host)
        if first is not None:
            self._first[place.directory] = first
        return first


def _genuine(places: Iterable[Membership]) -> set[str]:
    """Return the cgroups of containers, without those that bear the id of another one.

    Of several the one counts whose ``kubepods`` is above all the others'; else none.
    """
    by_id: dict[str, set[tuple[str, str]]] = {}
    for place in places:
        same = by_id.setdefault(place.container_id or place.directory, set())
        same.add((place.anchor, place.directory))
    found: set[str] = set()
    for same in by_id.values():
        anchor, directory = min(same)
        others = same - {(anchor, directory)}
        if all(other.startswith(f"{anchor}/") for other, _ in others):
            found.add(directory)
    return found


def _users(first: FirstProcess) -> UserNamespaceRef:
    return UserNamespaceRef(first.user_namespace, first.pid, first.start_time)


def _lives_on(first: FirstProcess) -> bool:
    """True for a process that is still in the user namespace in which it was found."""
    with suppress(OSError), open_process(first.pid) as process:
        is_same = process.stat()[2] == first.start_time
        return is_same and process.namespace("user") == first.user_namespace
    return False
