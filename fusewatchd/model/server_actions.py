"""The values of what is done so that a FUSE server can come back.

A bind is put onto a new source by an ``Action`` of ``actions``.  Before that there must be a new
source: these are about servers, one for each place where one mounts, and never about a bind.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from fusewatchd.model.mounts import Device, Mount, TargetKey
from fusewatchd.model.verdicts import Reason
from fusewatchd.rate_limit import Bucket

if TYPE_CHECKING:
    from fusewatchd.model.actions import DetachDeadSource, Outcome

# ---------------------------------------------------------------------- dead sources


@dataclass(frozen=True, slots=True)
class DeadSource:
    """A source mount that is dead itself, for longer than a restart takes."""

    mount: Mount
    """The topmost one there."""
    layers: int
    """Dead mounts at the path, one on the other."""
    driver: str
    since: float
    """When its death was proven."""
    binds: frozenset[TargetKey]
    """Binds on the host that wait for this source."""
    held_back: Reason
    """Why it is not detached; NONE: it is about to be."""

    @property
    def path(self) -> str:
        """Where the server would mount."""
        return self.mount.mount_point


@dataclass(frozen=True, slots=True)
class SourceWatch:
    """What is remembered of a dead source from one cycle to the next."""

    mount_id: int
    looks: int = 0
    """Looks at the node's processes, one after the other, that found nobody who serves it."""
    looked_at: float = 0.0
    """When the last of them began."""
    failures: int = 0
    retry_at: float = 0.0
    is_in_flight: bool = False


# ------------------------------------------------------------------------- commands


class CommandKind(Enum):
    """What an ``on_stale`` rule asks for (label ``kind``)."""

    UNIT = "unit"
    COMMAND = "command"


@dataclass(frozen=True, slots=True)
class RunCommand:
    """Run a program on the node that is to bring a server back."""

    place: str
    """Where that server mounts: one command at a time for each."""
    device: Device
    """Of the dead superblock."""
    driver: str
    kind: CommandKind
    argv: tuple[str, ...]
    timeout_seconds: float
    attempt: int
    """How often in this trouble, this time included."""
    pods: tuple[str, ...] = ()
    """Directory uids of the pods that wait for it."""

    def describe(self) -> str:
        """Say in one line what this would do."""
        return f"run {shlex.join(self.argv)}"


class CommandResult(Enum):
    """How a command ended (label ``outcome``)."""

    SUCCEEDED = "succeeded"
    """Its status was 0; whether the server is back is for the mount table to say."""
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    NOT_STARTED = "not_started"


@dataclass(frozen=True, slots=True)
class CommandEnd:
    """What came of a command."""

    command: RunCommand
    result: CommandResult
    status: int | None = None
    """Exit status, negative for a signal; None when there was no end."""
    detail: str = ""
    """The end of what it printed, or why it was not started; not escaped."""
    started_at: float = 0.0
    finished_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Trouble:
    """A place whose server is gone and for which there is an ``on_stale`` rule."""

    place: str
    driver: str
    kind: CommandKind
    attempts: int
    held_back: Reason
    """Why nothing is run just now; NONE: a command runs."""
    retry_at: float | None = None
    last: CommandEnd | None = None


@dataclass(frozen=True, slots=True)
class Attempts:
    """The commands that were run for one place."""

    count: int = 0
    retry_at: float = 0.0
    is_running: bool = False
    command: RunCommand | None = None
    """The one that runs, or ran last."""
    last: CommandEnd | None = None
    came_back: bool = False
    """A living server was seen there after the last one."""


# --------------------------------------------------------------------------- a cycle


@dataclass(frozen=True, slots=True)
class ServerMemory:
    """What is remembered from one cycle to the next."""

    sources: Mapping[str, SourceWatch] = field(default_factory=dict)
    """By path of the dead source."""
    attempts: Mapping[str, Attempts] = field(default_factory=dict)
    """By place."""
    bucket: Bucket = field(default_factory=Bucket)
    """Of commands, for the whole node."""


@dataclass(frozen=True, slots=True)
class ServerReport:
    """What a cycle found, began and saw ended."""

    dead_sources: tuple[DeadSource, ...] = ()
    troubles: tuple[Trouble, ...] = ()
    detaches: tuple[DetachDeadSource, ...] = ()
    commands: tuple[RunCommand, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    ends: tuple[CommandEnd, ...] = ()
    due_at: float | None = None
    """When the next cycle is needed although nothing happens."""
    wants_look: bool = False
    """Something waits for a look at the node's processes."""


NO_SERVER_ACTIONS = ServerReport()
