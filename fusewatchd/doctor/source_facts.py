"""Looking at the directories above the sources that ``status`` names."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from fusewatchd.doctor.source_checks import SourceFacts
from fusewatchd.linux.mount_place import problem_of_place
from fusewatchd.linux.statmount import mount_id_of_fd
from fusewatchd.model.mount_table import MountTable, parse_mount_table
from fusewatchd.model.mounts import Mount


def examine_sources(paths: Iterable[str]) -> list[SourceFacts]:
    """Look at each place; to be called in the host's mount namespace, by root.

    Raises:
        OSError: the mount table cannot be read.
    """
    with open("/proc/self/mountinfo", "rb") as file:
        table = parse_mount_table(file.read())
    return [SourceFacts(path, _problem(path, table)) for path in paths]


def _problem(path: str, table: MountTable) -> str:
    top = table.top_at(path)
    if top is None:
        return ""  # it was unmounted a moment ago

    def describe(fd: int) -> Mount:
        mount = table.by_id(mount_id_of_fd(fd))
        if mount is None:
            raise OSError(errno.ESTALE, "the mount table has changed meanwhile")
        return mount

    try:
        return problem_of_place(path, top.user_id, describe)
    except OSError as exc:
        return f"the directories above it could not be looked at: {exc.strerror}"
