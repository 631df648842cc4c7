"""Nodes on which everybody copies mounts, in every order, and that know which volume is where.

A node is made of random steps.  What it does with a daemon is what a node does: looks, restarts
that keep the state file, and some that lose it.  Every mount and every superblock knows its volume,
so that whatever the daemon plans can be judged.

Nothing tells a server's own mount from a copy of it, once the own one is gone that nobody has seen
and no bind is left that is older than the copy.  Such a copy is unmounted before the daemon looks.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from fusewatchd.config.settings import DeadSourceSettings
from fusewatchd.model.actions import Outcome, OutcomeStatus, ReplaceMount
from fusewatchd.model.ledger import Ledger
from fusewatchd.model.mounts import Device, Mount
from fusewatchd.model.plan import RecoveryMode
from fusewatchd.model.servers import Answer
from fusewatchd.plan import dead_sources
from fusewatchd.plan.back_off import BackOff
from fusewatchd.reconcile.ledger_update import take_outcomes, take_plan
from fusewatchd.state.document import document_of, ledger_from
from tests.unit.scenes import ROOT, Scene

DETACH = DeadSourceSettings(detach=True, grace_seconds=0.0, confirmations=1)
COPIES = ("/copies/a", "/copies/b", "/run/kata/shared/sandboxes/s/mounts/c-data")
PLACES = (*COPIES, "/other/pods/etcd-static/volumes/kubernetes.io~csi/v/mount")


@dataclass
class Volume:
    """What must never be seen by another volume's pods."""

    name: str
    place: str
    is_direct: bool = False
    """Its server mounts straight into its pod."""
    is_guest: bool = False
    """It turned up where a copy was, and no pod uses it."""


@dataclass
class Superblock:
    """What one start of a server made."""

    volume: Volume
    device: Device
    is_alive: bool = True
    looks: int = 0


@dataclass
class Place:
    """A mount, and the truth about it."""

    mount: Mount
    superblock: Superblock
    age: int
    is_own: bool
    """The server's own mount."""
    source: Place | None = None
    knows: bool = False
    """The daemon saw it in a table that told where its file system came from."""
    was_healthy: bool = False
    """So it was while the server's own mount was there and the server answered."""


@dataclass
class CopiedNode:
    """One node; ``run`` does some steps and judges each of the daemon's plans."""

    chance: random.Random
    has_ids: bool
    volumes: list[Volume] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    scene: Scene = field(default_factory=Scene)
    recovered: int = 0
    expected: int = 0
    last_age: int = 0
    last_pod: int = 0

    def __post_init__(self) -> None:
        self.scene.last_id = 0
        for number in range(self.chance.choice((1, 1, 2, 3))):
            is_direct = self.chance.random() < 0.3
            place = publish(self._new_pod(), f"v{number}") if is_direct else f"/sources/v{number}"
            self.volumes.append(Volume(f"v{number}", place, is_direct))

    def run(self, steps: int) -> None:
        for volume in self.volumes:
            self._start(volume)
        deeds = (
            *(self._publish,) * 3, self._subpath, *(self._copy,) * 4, self._kill, self._restart,
            self._unmount_source, self._unmount_any, *(self._put_another_there,) * 2,
            self._end_pod, *(self._look,) * 4, self._restart_daemon, self._lose_memory,
        )  # fmt: skip
        for _ in range(steps):
            self.chance.choice(deeds)()
        self._bring_all_back()

    # ------------------------------------------------------------------------- mounts

    def _attach(
        self, point: str, superblock: Superblock, root: str = "/", source: Place | None = None
    ) -> Place:
        taken = {place.mount.mount_id for place in self.places}
        number = next(n for n in range(2, 1000) if n not in taken)
        self.last_age += 1
        made = Mount(
            number, 1, superblock.device, root, point, "rw,relatime", 0, 0, "fuse.demofs",
            "demofs", "rw,allow_other", 10_000 + self.last_age if self.has_ids else 0,
        )  # fmt: skip
        top = self._top(point)
        if top is not None:
            made = replace(made, parent_id=top.mount.mount_id)
        place = Place(made, superblock, self.last_age, source is None, source)
        self.places.append(place)
        return place

    def _detach(self, place: Place) -> None:
        self.places.remove(place)
        below = place.mount
        for other in self.places:
            if other.mount.parent_id == below.mount_id:
                other.mount = replace(other.mount, parent_id=below.parent_id)

    def _top(self, point: str) -> Place | None:
        return next((p for p in reversed(self.places) if p.mount.mount_point == point), None)

    def _tops(self) -> list[Place]:
        return [p for p in self.places if self._top(p.mount.mount_point) is p]

    def _of(self, superblock: Superblock) -> list[Place]:
        return [place for place in self.places if place.superblock is superblock]

    # ---------------------------------------------------------------- what people do

    def _start(self, volume: Volume) -> None:
        """Mount a new file system; its number is the lowest that no mount has."""
        taken = {place.mount.device for place in self.places}
        device = next(d for d in (Device(0, n) for n in range(40, 999)) if d not in taken)
        self._attach(volume.place, Superblock(volume, device))

    def _publish(self) -> None:
        volume = self._any_volume()
        top = self._top(volume.place)
        if not volume.is_direct and top is not None and top.superblock.volume is volume:
            self._attach(publish(self._new_pod(), volume.name), top.superblock, source=top)

    def _subpath(self) -> None:
        published = [p for p in self._binds() if "/volumes/" in p.mount.mount_point]
        if published:
            whole = self.chance.choice(published)
            pod = whole.mount.mount_point[len(ROOT) :].split("/")[2]
            name = whole.superblock.volume.name
            point = f"{ROOT}/pods/{pod}/volume-subpaths/{name}/app/{self.chance.randrange(3)}"
            if self._top(point) is None:
                self._attach(point, whole.superblock, "/sub", whole)

    def _copy(self) -> None:
        """Bind anything to any other place, where a source belongs sometimes."""
        if self.places:
            original = self.chance.choice(self._tops())
            point = self.chance.choice(PLACES)
            if self.chance.random() < 0.2:
                point = self._any_volume().place
            # What is mounted at a volume's own place is the volume, unless it is a pod's mount.
            own = [v for v in self.volumes if v.place == point]
            if own and (
                own[0].is_direct
                or not (is_in_pod(original) or original.superblock.volume is own[0])
            ):
                return
            self._attach(point, original.superblock, original.mount.root, original)

    def _put_another_there(self) -> None:
        """Where a copy was, or is, another volume is mounted."""
        point = self.chance.choice(PLACES)
        while self.chance.random() < 0.7 and (top := self._top(point)) is not None:
            self._detach(top)
        self._start(Volume(f"guest{self.last_age}", point, is_guest=True))

    def _kill(self) -> None:
        alive = [p.superblock for p in self.places if p.superblock.is_alive]
        if alive:
            self.chance.choice(alive).is_alive = False

    def _restart(self) -> None:
        volume = self._any_volume()
        for place in self.places:
            if place.superblock.volume is volume:
                place.superblock.is_alive = False
        while self.chance.random() < 0.8 and (top := self._top(volume.place)) is not None:
            if volume.is_direct and not top.is_own:
                break
            self._detach(top)
        self._start(volume)

    def _unmount_source(self) -> None:
        own = [p for p in self._tops() if p.is_own]
        if own:
            self._detach(self.chance.choice(own))

    def _unmount_any(self) -> None:
        if self.places:
            self._detach(self.chance.choice(self._tops()))

    def _end_pod(self) -> None:
        binds = self._binds()
        if binds:
            pod = self.chance.choice(binds).mount.mount_point[len(ROOT) :].split("/")[2]
            for place in reversed(
                [p for p in self.places if f"/pods/{pod}/" in p.mount.mount_point]
            ):
                self._detach(place)

    def _any_volume(self) -> Volume:
        return self.chance.choice(self.volumes)

    def _binds(self) -> list[Place]:
        return [p for p in self._tops() if p.mount.mount_point.startswith(f"{ROOT}/pods/")]

    def _new_pod(self) -> str:
        self.last_pod += 1
        return f"aaaaaaaa-0000-4000-8000-{self.last_pod:012}"

    # -------------------------------------------------------------- what the daemon does

    def _restart_daemon(self) -> None:
        self._show()
        written = json.loads(json.dumps(document_of(self.scene.ledger, "boot")))
        self.scene.ledger = ledger_from(written, "boot", self.scene.snapshot().table)

    def _lose_memory(self) -> None:
        self.scene.ledger = Ledger()
        for place in self.places:
            place.knows = place.was_healthy = False

    def _look(self) -> None:
        self._clean_up_what_nothing_tells()
        self._show()
        findings, todo = self.scene.plan()
        self.scene.ledger, _ = take_plan(self.scene.ledger, findings, todo, (), self.scene.now)
        for action in todo.actions:
            if isinstance(action, ReplaceMount):
                self._judge_replacement(action)
        self._judge_detaches(findings)
        for place in self.places:
            place.superblock.looks += 1
        self._note_what_could_be_seen()

    def _show(self) -> None:
        self.scene.mounts = [place.mount for place in self.places]
        self.scene.answers = {
            place.mount.device: None
            if not place.superblock.looks and place.superblock.is_alive
            else Answer.ANSWERED
            if place.superblock.is_alive
            else Answer.DISCONNECTED
            for place in self.places
        }

    def _superblocks(self) -> Iterator[tuple[Superblock, list[Place]]]:
        for superblock in {id(p.superblock): p.superblock for p in self.places}.values():
            yield superblock, self._of(superblock)

    def _clean_up_what_nothing_tells(self) -> None:
        for _, places in list(self._superblocks()):
            if any(place.is_own or place.knows for place in places):
                continue
            first = min((p.age for p in places if is_in_pod(p)), default=self.last_age + 1)
            for place in [p for p in places if not is_in_pod(p) and p.age < first]:
                self._detach(place)

    def _note_what_could_be_seen(self) -> None:
        for superblock, places in self._superblocks():
            has_own = any(place.is_own for place in places)
            is_told = has_own or any(place.knows for place in places)
            is_healthy = superblock.is_alive and superblock.looks > 1
            for place in places:
                place.knows = place.knows or is_told
                place.was_healthy = place.was_healthy or (is_healthy and has_own)

    def _judge_replacement(self, action: ReplaceMount) -> None:
        bind = self._top(action.key.mount_point)
        origin = self._top(action.origin.mount_point)
        assert bind is not None and origin is not None
        wanted, got = bind.superblock.volume, origin.superblock.volume
        assert wanted is got, f"{bind.mount.mount_point} of {wanted} would show {got}"
        self._detach(bind)
        made = self._attach(action.key.mount_point, origin.superblock, bind.mount.root, origin)
        made.knows, made.was_healthy = True, origin.superblock.looks > 0
        self.recovered += 1
        outcome = Outcome(action, OutcomeStatus.RECOVERED, mount=made.mount)
        self.scene.ledger = take_outcomes(self.scene.ledger, [outcome], BackOff())

    def _judge_detaches(self, findings: object) -> None:
        snapshot = self.scene.snapshot()
        connections = {
            device: replace(c, disconnected_at=1.0 if c.is_dead else None, server_gone_at=1.0)
            for device, c in snapshot.connections.items()
        }
        step = dead_sources.step(
            findings,  # type: ignore[arg-type]
            replace(snapshot, connections=connections),
            self.scene.ledger.facts,
            {},
            (),
            DETACH,
            RecoveryMode.RECOVER,
            self.scene.now,
        )
        for action in step.detaches:
            top = self._top(action.key.mount_point)
            assert top is not None and is_source(top), f"{action} would take a copy away"
            assert not top.superblock.is_alive

    def _bring_all_back(self) -> None:
        """Every bind whose source was seen serving gets it back, whatever was copied where."""
        for place in self.places:
            place.superblock.is_alive = place.superblock.volume.is_guest
        binds = [p for p in self._binds() if p.was_healthy and not p.superblock.volume.is_direct]
        waiting = {place.mount.mount_point: place.superblock.volume for place in binds}
        for volume in self.volumes:
            if not volume.is_direct:
                self._start(volume)
        for _ in range(4):
            self._look()
        self.expected += len(waiting)
        for point, volume in waiting.items():
            top = self._top(point)
            assert top is not None and top.superblock.is_alive, f"{point} of {volume} stays dead"


def publish(pod: str, volume: str) -> str:
    return f"{ROOT}/pods/{pod}/volumes/kubernetes.io~csi/{volume}/mount"


def is_source(place: Place) -> bool:
    """True for a server's own mount, and for what pods of the volume are bound from instead."""
    is_at_it = place.mount.mount_point == place.superblock.volume.place
    return place.is_own or (is_at_it and not is_in_pod(place))


def is_in_pod(place: Place) -> bool:
    return "/pods/" in place.mount.mount_point
