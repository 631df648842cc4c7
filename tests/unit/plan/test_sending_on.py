"""Callers are sent on when everything is replaced, and not a moment earlier."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from fusewatchd.model.actions import Outcome, OutcomeStatus
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.held import HeldConnection
from fusewatchd.model.ledger import Ledger, TargetState
from fusewatchd.model.mounts import Device, TargetKey
from fusewatchd.model.servers import Answer
from fusewatchd.plan.sending_on import PROVEN_SECONDS, SendingOn, due_at, may_send_on
from fusewatchd.reconcile.incidents import follow
from tests.unit.scenes import (
    NAMESPACE,
    NEW,
    OLD,
    OTHER_UID,
    SOURCE,
    THIRD,
    UID,
    Scene,
    pod,
    publish_path,
    replacements,
)


@dataclass
class Outage:
    """A node whose held server ends, cycle by cycle."""

    scene: Scene
    memory: SendingOn = field(default_factory=SendingOn)
    states: dict[TargetKey, TargetState] = field(default_factory=dict)
    ended: list[Outcome] = field(default_factory=list)
    held: dict[Device, HeldConnection] = field(
        default_factory=lambda: {OLD: HeldConnection(OLD, "demofs", 5, is_dead=True)}
    )
    incidents: dict = field(default_factory=dict)  # type: ignore[type-arg]

    def cycle(self) -> tuple[Device, ...]:
        """Look once, carry nothing out, and return who may be sent on."""
        findings, todo = self.scene.plan()
        snapshot = self.scene.snapshot()
        step = follow(self.incidents, findings, self.ended, self.states, snapshot, self.scene.now)
        self.incidents, outcomes = dict(step.open), tuple(self.ended)
        self.ended.clear()
        ledger = replace(Ledger(), incidents=self.incidents, states=dict(self.states))
        report = CycleReport(
            1, (), self.scene.now, self.scene.now, snapshot, findings, todo, outcomes, (), ledger,
            incidents_opened=step.opened, incidents_closed=step.closed,
        )  # fmt: skip
        self.todo = todo
        self.memory, done = may_send_on(self.memory, report, self.held)
        return done

    def carry_out(self, key: TargetKey) -> bool:
        """Replace one mount, if the plan says so."""
        action = next((a for a in replacements(self.todo) if a.key == key), None)
        if action is None:
            return False
        new = action.origin.device
        if key.is_host:
            (old,) = [m for m in self.scene.mounts if m.mount_point == key.mount_point]
            self.scene.unmount(old)
            mount = self.scene.mount(key.mount_point, new, root=old.root, peer_group=6)
        else:
            number = key.namespace - NAMESPACE
            mount = self.scene.inside(key.mount_point, new)
            namespace = self.scene.namespaces[number]
            self.scene.namespaces[number] = replace(namespace, mounts=(mount,))
        now = self.scene.now
        done = Outcome(
            action, OutcomeStatus.RECOVERED, mount=mount, started_at=now, finished_at=now
        )
        self.ended.append(done)
        return True

    def shows(self, device: Device) -> bool:
        """True while a mount of the host's binds or of a container shows it."""
        inside = [m for namespace in self.scene.namespaces for m in namespace.mounts]
        binds = [m for m in self.scene.mounts if m.mount_point != SOURCE]
        return any(mount.device == device for mount in (*binds, *inside))


def outage(containers: int = 1) -> Outage:
    scene = Scene()
    source = scene.mount(SOURCE)
    scene.mount(publish_path(), peer_group=6)
    for _ in range(containers):
        scene.container(scene.inside())
    scene.look()
    scene.looked_at = scene.now
    made = Outage(scene)
    scene.unmount(source)
    scene.answers[OLD] = Answer.DISCONNECTED
    return made


def keys_of(made: Outage) -> list[TargetKey]:
    inside = [TargetKey(NAMESPACE + n, "/data") for n in range(len(made.scene.namespaces))]
    return [TargetKey(0, publish_path()), *inside]


@settings(max_examples=60)
@given(
    containers=st.integers(1, 4),
    order=st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=30),
)
def test_nobody_is_sent_on_before_all_is_replaced_and_looked_at(
    containers: int, order: list[tuple[int, bool]]
) -> None:
    """In whichever order mounts are replaced, and whichever looks are old ones."""
    made = outage(containers)
    keys = keys_of(made)
    made.cycle()
    made.scene.mount(SOURCE, NEW)
    last_replaced = -1.0
    for number, is_looked_at in [*order, *[(n, True) for n in range(6) for _ in range(2)]]:
        if number < len(keys) and made.carry_out(keys[number]):
            last_replaced = made.scene.now
        if is_looked_at:
            made.scene.looked_at = made.scene.now + 1
        done = made.cycle()
        if done:
            assert done == (OLD,)
            assert not made.shows(OLD)
            assert made.scene.looked_at is not None and made.scene.looked_at >= last_replaced
            return
    raise AssertionError("everything is replaced, and the callers still wait")


def test_what_is_refused_for_good_holds_up_nobody_else() -> None:
    made = outage()
    other = made.scene.mount(publish_path(OTHER_UID), peer_group=7)
    made.scene.container(made.scene.inside(), uid=OTHER_UID)
    made.scene.pods = {UID: pod(), OTHER_UID: pod(OTHER_UID, is_deleting=True)}
    made.cycle()
    made.scene.mount(SOURCE, NEW)
    made.cycle()
    host, inside, _ = keys_of(made)
    assert made.carry_out(host) and made.cycle() == ()
    assert made.carry_out(inside)
    # A look from before the last replacement proves nothing.
    assert made.cycle() == ()
    made.scene.looked_at = made.scene.now + 1
    assert made.cycle() == (OLD,)
    assert other in made.scene.mounts


def test_an_outage_that_ends_without_a_replacement_sends_nobody_on() -> None:
    made = outage()
    made.cycle()
    made.scene.mounts.clear()
    made.scene.namespaces.clear()
    assert made.cycle() == () and made.cycle() == ()


def test_after_a_second_crash_the_successor_has_to_prove_itself() -> None:
    made = outage()
    made.cycle()
    up_at = made.scene.now
    made.scene.mount(SOURCE, NEW)
    made.scene.seen_at[NEW] = up_at
    made.scene.looked_at = None
    made.cycle()
    for key in keys_of(made):
        made.carry_out(key)
        done = made.cycle()
    assert done == (OLD,)
    # The new one ends within the minute.
    made.held = {NEW: HeldConnection(NEW, "demofs", 6, is_dead=True)}
    made.scene.answers[NEW] = Answer.DISCONNECTED
    source = next(m for m in made.scene.mounts if m.mount_point == SOURCE)
    made.scene.unmount(source)
    made.cycle()
    made.scene.mount(SOURCE, THIRD)
    made.scene.seen_at[THIRD] = made.scene.now + 100
    made.scene.now += 100 - 50
    made.cycle()
    for key in keys_of(made):
        made.carry_out(key)
        assert made.cycle() == ()
    waits_until = due_at(made.memory)
    assert waits_until == made.scene.seen_at[THIRD] + PROVEN_SECONDS
    made.scene.now = waits_until
    assert made.cycle() == (NEW,)


def test_nobody_is_sent_into_a_mount_whose_server_has_ended_as_well() -> None:
    made = outage()
    made.scene.looked_at = None
    made.cycle()
    made.scene.mount(SOURCE, NEW)
    made.cycle()
    host, inside = keys_of(made)
    made.carry_out(host)
    made.cycle()
    made.carry_out(inside)
    made.scene.answers[NEW] = Answer.DISCONNECTED
    made.held[NEW] = HeldConnection(NEW, "demofs", 6, is_dead=True)
    for _ in range(3):
        assert made.cycle() == ()
