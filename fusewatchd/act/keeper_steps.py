"""What is to be said to the keeper, from what it holds and what it is to hold; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fusewatchd.keeper.protocol import Connection, Connections, State
from fusewatchd.model.held import Hold
from fusewatchd.model.mounts import Device
from fusewatchd.parse.cgroups import cgroup_lines, claim_of


@dataclass(frozen=True, slots=True)
class KeeperJob:
    """One talk with the keeper: after it both know the same."""

    socket: str
    grace_seconds: float
    holds: tuple[Hold, ...]
    releases: tuple[Device, ...] = ()
    replaced: tuple[int, ...] = ()
    """Holds of which all mounts are replaced."""
    ended_after: int = 0
    """The last ended hold that is known."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A connection that could not be taken or handed over."""

    device: Device
    text: str
    has_ring: bool = False


@dataclass(frozen=True, slots=True)
class KeeperReport:
    """What came of a talk."""

    problem: str = ""
    """Why there was none, or why it ended early."""
    failures: tuple[Failure, ...] = ()
    answered: tuple[int, ...] = ()
    """Holds of ``replaced`` that the keeper took in."""
    listed: Connections | None = None
    store_pid: int = 0
    """The parent of the keeper, which keeps its descriptors where they outlive it."""


@dataclass(frozen=True, slots=True)
class Steps:
    """What is to be done, in this order."""

    releases: tuple[int, ...] = ()
    """By hold."""
    takes: tuple[Hold, ...] = ()
    updates: tuple[tuple[int, Hold], ...] = ()
    """The hold that each of them is about."""


def steps(listed: Iterable[Connection], job: KeeperJob) -> Steps:
    """Compare.  One whose server has ended is neither taken nor released here."""
    known: Mapping[int, Connection] = {one.connection: one for one in listed}
    releases: list[int] = []
    takes: list[Hold] = []
    updates: list[tuple[int, Hold]] = []
    for device in job.releases:
        found = known.get(device.connection)
        if found is not None and found.state is State.HEALTHY:
            releases.append(found.hold)
    for hold in job.holds:
        found = known.get(hold.device.connection)
        server = hold.server
        if found is None:
            takes += [hold] if server is not None else []
        elif found.state is State.HEALTHY and server is not None and found.pids != (server.pid,):
            # Another process serves it by now.
            releases.append(found.hold)
            takes.append(hold)
        else:
            updates.append((found.hold, hold))
    return Steps(tuple(releases), tuple(takes), tuple(updates))


def pod_cgroups(text: str) -> frozenset[str]:
    """Return the cgroups that stand for the pod of a process, from ``/proc/<pid>/cgroup``.

    That of the pod where the path has it, else that of the container.
    """
    found: set[str] = set()
    for line in cgroup_lines(text):
        claim = claim_of(line.path)
        if claim is not None:
            found.add(claim.above if claim.anchor is not None else claim.container)
    return frozenset(found)


def server_cgroups(text: str, callers: Iterable[str]) -> tuple[str, ...]:
    """Return the cgroups that tell a server from the pods that use it, none of which is in them.

    Both arguments are as in ``/proc/<pid>/cgroup``.  A hierarchy that tells nothing of pods may
    have all of them in one cgroup.
    """
    own = pod_cgroups(text) or frozenset(line.path for line in cgroup_lines(text))
    paths = {f"{line.path}/" for caller in callers for line in cgroup_lines(caller)}
    shared = (path for path in own if any(p.startswith(f"{path}/") for p in paths))
    return tuple(sorted(own - {"/", *shared}))
