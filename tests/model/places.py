"""What the model knows of sources and of the places where pods see them, and how it looks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.pods import DemoPod
from fusewatchd.demo.node.sources import ServerProcess, Source
from fusewatchd.linux.statmount import mount_unique_id
from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model.mount_table import MountTable, parse_mount_table
from fusewatchd.model.mounts import Device, Mount
from tests.model.shapes import marker

Options = frozenset[str]
Layer = tuple[int, Device]
"""A mount by its id, which alone may mean another one the next moment."""


class Violation(Exception):
    """A promise was broken; the text says which and how."""


def options_of(mount: Mount) -> Options:
    """Return the per-mount options without ``rw``, which is nothing but no ``ro``."""
    return frozenset(mount.options.split(",")) - {"rw"}


@dataclass(slots=True)
class Upgraded:
    """A server that had to make way for another one, and goes on."""

    device: Device
    process: ServerProcess
    is_gone: bool = False
    """It has ended since nothing showed it any more, and the number is another's."""


@dataclass(slots=True)
class SourceState:
    """A source as the model last made it."""

    source: Source
    device: Device = field(default_factory=lambda: Device(0, 0))
    mount_id: int = 0
    is_mounted: bool = True
    """The newest mount is there, dead or alive."""
    is_up: bool = True
    is_hung: bool = False
    upgraded: list[Upgraded] = field(default_factory=list)
    """Servers that nobody has ended yet, the oldest first."""
    stacked: int = 0
    """Layers that came to the source's path when the model stacked one on a peer of it."""
    fs_type: str = "fuse.demofs"
    """Of its next mount."""
    errno: int = 0
    """The newest server answers with it, as one does whose backend is away."""
    which: str = "all"
    """What it answers so: ``all``, or ``files``, when it still tells how much room there is."""

    dead_before: set[Device] = field(default_factory=set)
    """Devices of it that nobody served any more when its newest mount was made."""
    is_over: bool = False
    """Its newest mount covers an older one: unmounting a peer of it would take it away."""
    is_unproven: bool = False
    """It was started so, and has not served anything yet."""

    @property
    def answers(self) -> bool:
        """True when it serves what it should."""
        return self.is_up and not self.is_hung and not self.errno

    def is_served(self, device: Device) -> bool:
        """True when a server answers for this device, be it with errors."""
        old = any(o.device == device and not o.is_gone for o in self.upgraded)
        return old or (self.is_up and not self.is_hung and device == self.device)

    def serve(self) -> None:
        """End the errors."""
        self.errno, self.is_unproven = 0, False
        self.tell_server()

    def tell_server(self) -> None:
        """Write what ``tests.servers.erring`` reads, and its next start."""
        path = control_of(self.source)
        with open(f"{path}.new", "w", encoding="ascii") as file:
            pid = self.source.server.pid if self.is_up else 0
            file.write(f"{self.fs_type} {self.errno} {self.which} {pid}")
        os.rename(f"{path}.new", path)


def control_of(source: Source) -> str:
    """Return the file that tells the source's server how to behave."""
    return f"{source.backing}.control"


@dataclass(slots=True)
class Target:
    """One place where a pod sees a source, on the host or in a container."""

    path: str
    source: str
    root: str
    options: set[Options]
    """Any of these is right: the ones it began with, or those of a layer of somebody else."""
    is_read_only: bool = False
    """Of a container's mount: it could not be written to when the container started, because the
    pod wants that or because the bind on the host is so.  It must stay so in either case."""
    container: Container | None = None
    origin: Target | None = None
    """Of a container's mount: the bind on the host."""
    foreign: set[Layer] = field(default_factory=set)
    """Layers that somebody else put there, or put others on, as far as they are there still."""
    stuck: dict[Layer, Device] = field(default_factory=dict)
    """Dead layers that somebody covered, and with which device."""
    is_bare: bool = False
    """Somebody unmounted it."""
    is_leaving: bool = False
    """Somebody wants to, and met a hung server: a probe that waits for it holds the mount."""
    is_overlaid: bool = False
    """Somebody put a layer of his there, and the flags have not been right since."""
    is_learned: bool = False
    """The daemon has said which source this very mount has."""
    served_id: int = 0
    """Mount id at a moment when the daemon saw it, its source, and that the server served."""
    is_kept: bool = False
    """It showed the newest server when that began to answer with errors."""
    receives: bool = False
    """What was mounted inside the source reached it when it was made, and must after recoveries."""
    is_private: bool = False
    """Of a container's mount: nothing may be propagated to it."""
    published: set[int] = field(default_factory=set)
    """Mount ids of what the driver or another recoverer bound there."""
    is_lost: bool = False
    """Of a container's mount: the daemon that knew whose copy it is ended before it could write
    that down, or there was none, and its successor has not said so yet."""

    @property
    def host(self) -> Target:
        return self.origin or self

    def add_options(self, options: Options) -> None:
        """Note the options of a layer of somebody else that may have arrived here."""
        was_read_only = self.is_read_only or any("ro" in known for known in self.options)
        if not self.is_read_only:
            self.options.add(options)
        if self.container is not None and was_read_only:
            # In a container what was read-only stays so, or becomes so again.
            self.options.add(options | {"ro"})

    def __str__(self) -> str:
        if self.container is None:
            return self.path
        return f"{self.path} in the container of {self.host.path}"


@dataclass(slots=True)
class Copy:
    """A bind that is nobody's business, at a place that may later show something else."""

    place: str
    source: str
    device: Device
    mount_id: int
    is_mounted: bool = True
    layers: int = 0
    """That came to it from its peers."""


@dataclass(slots=True)
class PodState:
    """A pod and every place where it sees a source."""

    pod: DemoPod
    shape: str
    on_host: dict[str, Target]
    """By path."""
    inside: dict[str, list[Target]] = field(default_factory=dict)
    """By container, of those that run."""
    waiting: list[str] = field(default_factory=list)
    """Containers that could not start: the kubelet tries again."""
    is_ending: bool = False
    """A first attempt to take it away met a hung server."""

    def targets(self) -> Iterator[Target]:
        yield from self.on_host.values()
        for targets in self.inside.values():
            yield from targets


class Tables:
    """The mount tables of the host and of containers at one moment."""

    def __init__(self, containers: list[Container]) -> None:
        self.host = table_of("self")
        self.inside = {c.pid: table_of(str(c.pid)) for c in containers if c.is_running}

    def of(self, container: Container | None) -> MountTable:
        return self.host if container is None else self.inside[container.pid]


def layers_at(table: MountTable, path: str) -> set[Layer]:
    """Return the mounts at a path, those too that others hide."""
    return {(mount.mount_id, mount.device) for mount in table.at(path)}


def table_of(process: str) -> MountTable:
    """Return the mount table that a process has now."""
    with open(f"/proc/{process}/mountinfo", "rb") as file:
        return parse_mount_table(file.read())


def with_unique_id(top: Mount) -> Mount:
    """Return a topmost mount of the host with the id that no other one will have, if it is told."""
    with closing_fd(os.open(top.mount_point, os.O_PATH | os.O_CLOEXEC)) as fd:
        return replace(top, unique_id=mount_unique_id(fd) or 0)


def content(target: Target) -> tuple[str, str]:
    """Return what the marker file of a target says, and what it must say."""
    below, expected = marker(target.root, target.source)
    path = target.path + below
    if target.container is not None:
        return target.container.read(path), expected
    with open(path, encoding="utf-8") as file:
        return file.read(), expected
