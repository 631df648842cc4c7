"""Which sources are dead themselves, and which of them may be detached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fusewatchd.config.settings import DeadSourceSettings, ExcludeSettings
from fusewatchd.diagnose.exclusions import Switches
from fusewatchd.model.actions import DetachDeadSource, Expect, Outcome, OutcomeStatus
from fusewatchd.model.findings import Gap
from fusewatchd.model.ledger import Ledger
from fusewatchd.model.mounts import Mount, TargetKey
from fusewatchd.model.plan import RecoveryMode
from fusewatchd.model.server_actions import SourceWatch
from fusewatchd.model.servers import Answer, FuseServer
from fusewatchd.model.verdicts import Reason
from fusewatchd.plan import dead_sources
from tests.unit.scenes import NEW, OLD, OTHER_UID, SOURCE, THIRD, Scene, publish_path, usual

ON = DeadSourceSettings(detach=True, grace_seconds=10.0, confirmations=2)
DIED_AT = 200.0


class World:
    """A scene and what is remembered from look to look."""

    def __init__(self) -> None:
        self.scene, self.source, self.bind = usual()
        self.scene.answers[OLD] = Answer.DISCONNECTED
        self.settings = ON
        self.mode = RecoveryMode.RECOVER
        self.watches: dict[str, SourceWatch] = {}
        self.anonymous: tuple[FuseServer, ...] = ()
        self.gone_at: float | None = DIED_AT

    def look(
        self, at: float, *outcomes: Outcome, looked_at: float | None = None
    ) -> dead_sources.Step:
        self.scene.now = at
        self.scene.looked_at = looked_at if looked_at is not None else at
        diagnosis = self.scene.look()
        findings = diagnosis.findings
        snapshot = self.scene.snapshot()
        connections = {
            device: replace(
                found,
                disconnected_at=DIED_AT if found.answer is Answer.DISCONNECTED else None,
                server_gone_at=self.gone_at,
            )
            for device, found in snapshot.connections.items()
        }
        snapshot = replace(snapshot, connections=connections, anonymous_servers=self.anonymous)
        step = dead_sources.step(
            findings,
            snapshot,
            diagnosis.facts,
            self.watches,
            outcomes,
            self.settings,
            self.mode,
            at,
        )
        self.watches = dict(step.watches)
        return step

    def until_detached(self) -> tuple[DetachDeadSource, ...]:
        """Look as often as it takes; return what would be done then."""
        for seconds in range(11, 16):
            step = self.look(DIED_AT + seconds)
            if step.detaches:
                return step.detaches
        return ()


def test_a_doubt_whether_a_server_lives_is_not_told_as_a_fact() -> None:
    world = World()
    perhaps_served(world)
    step = world.look(DIED_AT + 13)
    snapshot = world.scene.snapshot()
    (source,) = step.sources
    assert source.held_back is Reason.SERVER_ALIVE
    for gone_at, was_seen, reason in (
        (DIED_AT, True, Reason.SOURCE_DEAD),
        (None, False, Reason.SOURCE_DEAD),
        (None, True, Reason.SERVER_ALIVE),
    ):
        device = source.mount.device
        connection = replace(
            snapshot.connections[device], server_gone_at=gone_at, was_seen_working=was_seen
        )
        seen = replace(snapshot, connections={device: connection})
        assert set(dead_sources.reasons(step.sources, seen).values()) == {reason}


def test_one_that_is_dead_for_long_enough_is_detached_after_its_confirmations() -> None:
    world = World()
    early = world.look(DIED_AT + 9.9)
    assert (early.sources, early.detaches, early.due_at) == ((), (), DIED_AT + 10.0)
    first = world.look(DIED_AT + 11)
    assert [s.held_back for s in first.sources] == [Reason.UNCONFIRMED]
    assert first.wants_look
    # The same look once more is no second one.
    assert not world.look(DIED_AT + 12, looked_at=DIED_AT + 11).detaches
    step = world.look(DIED_AT + 13)
    expect = Expect.of(world.source)
    assert step.detaches == (DetachDeadSource(TargetKey(0, SOURCE), expect),)
    (source,) = step.sources
    assert (source.layers, source.binds) == (1, frozenset({TargetKey(0, publish_path())}))
    assert dead_sources.reasons(step.sources, world.scene.snapshot()) == {
        TargetKey(0, publish_path()): Reason.SOURCE_DEAD
    }
    assert not world.look(DIED_AT + 14).detaches  # it is in flight


def test_a_look_from_before_the_grace_was_over_confirms_nothing() -> None:
    world = World()
    for seconds in (6, 7, 8, 9):
        assert not world.look(DIED_AT + seconds + 5, looked_at=DIED_AT + seconds).detaches


def test_another_dead_mount_in_its_place_is_confirmed_anew() -> None:
    world = World()
    world.look(DIED_AT + 11)
    world.scene.unmount(world.source)
    other = world.scene.mount(SOURCE, NEW)
    world.scene.answers[NEW] = Answer.DISCONNECTED
    assert not world.look(DIED_AT + 12).detaches
    assert [a.expect for a in world.look(DIED_AT + 13).detaches] == [Expect.of(other)]


@pytest.mark.parametrize("point", [SOURCE, "/copy", f"/other/pods/{OTHER_UID}/volumes/x~y/pv"])
@pytest.mark.parametrize("is_known", [True, False], ids=["known", "unknown"])
def test_a_copy_of_a_bind_is_no_source(point: str, is_known: bool) -> None:
    """Wherever it is mounted, and if nothing else is left of the file system."""
    world = World()
    if not is_known:
        world.scene.ledger = Ledger()
    world.scene.unmount(world.source)
    copy = world.scene.mount(point)
    assert world.until_detached() == ()
    world.scene.unmount(world.bind)
    world.scene.mount(world.bind.mount_point)
    assert world.until_detached() == ()
    assert copy in world.scene.mounts


def test_a_copy_of_another_source_that_lies_on_this_one_stays() -> None:
    world = World()
    world.scene.mount("/mnt/other", THIRD)
    world.scene.mount(SOURCE, THIRD, parent=world.source.mount_id)
    world.scene.answers[THIRD] = Answer.DISCONNECTED
    assert world.until_detached() == ()


def test_a_place_that_nobody_saw_serving_is_left_alone() -> None:
    world = World()
    world.scene.ledger = Ledger()
    assert world.until_detached() == ()


def off(world: World) -> None:
    world.settings = replace(ON, detach=False)


def report(world: World) -> None:
    world.mode = RecoveryMode.REPORT


def switched_off(world: World) -> None:
    world.scene.switches = Switches(exclude=ExcludeSettings(volumes=("*",)))


def served(world: World) -> None:
    world.scene.servers = {OLD: (FuseServer(7, 1, (OLD,)),)}


def not_all_seen(world: World) -> None:
    world.scene.gaps = (Gap("namespaces", "2 processes may not be looked at"),)


def mounted_inside(world: World) -> None:
    world.scene.mount(f"{SOURCE}/cache", THIRD, parent=world.source.mount_id)


def perhaps_served(world: World) -> None:
    world.anonymous = (FuseServer(7, 1, (), f"mergerfs /a {SOURCE}"),)


def perhaps_served_by_a_long_command(world: World) -> None:
    world.anonymous = (FuseServer(7, 1, (), "x" * 256),)


def end_unseen(world: World) -> None:
    world.anonymous = (FuseServer(7, 1, (), "s3fs other /mnt/other"),)
    world.gone_at = None


@pytest.mark.parametrize(
    ("but", "reason"),
    [
        (off, Reason.SOURCE_DEAD),
        (report, Reason.REPORT_ONLY),
        (switched_off, Reason.DISABLED),
        (served, Reason.SERVER_ALIVE),
        (not_all_seen, Reason.SERVER_ALIVE),
        (mounted_inside, Reason.CHILD_MOUNT),
        (perhaps_served, Reason.SERVER_ALIVE),
        (perhaps_served_by_a_long_command, Reason.SERVER_ALIVE),
        (end_unseen, Reason.SERVER_ALIVE),
    ],
)
def test_reported_and_left_alone(but: Callable[[World], None], reason: Reason) -> None:
    assert World().until_detached()  # or nothing is tested
    world = World()
    but(world)
    assert world.until_detached() == ()
    assert [s.held_back for s in world.look(DIED_AT + 20).sources] == [reason]


def test_servers_of_others_are_no_reason_where_the_kernel_tells() -> None:
    world = World()
    world.anonymous = (FuseServer(7, 1, (), "x" * 256),)
    world.scene.servers = {THIRD: (FuseServer(8, 1, (THIRD,)),)}
    assert world.until_detached()


def alive(world: World) -> None:
    world.scene.answers[OLD] = Answer.ANSWERED


def not_asked(world: World) -> None:
    world.scene.answers[OLD] = None


def unmounted(world: World) -> None:
    world.scene.unmount(world.source)


def covered_by_a_live_one(world: World) -> None:
    world.scene.mount(SOURCE, NEW, parent=world.source.mount_id)


def covered_by_another_kind(world: World) -> None:
    world.scene.mount(SOURCE, THIRD, parent=world.source.mount_id, fs_type="fuseblk")
    world.scene.answers[THIRD] = Answer.DISCONNECTED


def covered_by_no_fuse(world: World) -> None:
    world.scene.mount(SOURCE, THIRD, parent=world.source.mount_id, fs_type="tmpfs")


def shown_from_elsewhere(world: World) -> None:
    changed = replace(world.source, root="/below")
    world.scene.mounts[world.scene.mounts.index(world.source)] = changed


@pytest.mark.parametrize(
    "but",
    [
        alive,
        not_asked,
        unmounted,
        covered_by_a_live_one,
        covered_by_another_kind,
        covered_by_no_fuse,
        shown_from_elsewhere,
    ],
)
def test_no_dead_source_at_all(but: Callable[[World], None]) -> None:
    world = World()
    but(world)
    assert world.until_detached() == ()
    assert world.look(DIED_AT + 20).sources == ()


def test_a_dead_bind_of_which_the_source_is_not_known_is_no_dead_source() -> None:
    scene = Scene()
    scene.mount(publish_path(OTHER_UID))
    scene.answers[OLD] = Answer.DISCONNECTED
    world = World()
    world.scene = scene
    assert world.until_detached() == ()


def _stacked(world: World) -> Mount:
    upper = world.scene.mount(SOURCE, NEW, parent=world.source.mount_id)
    world.scene.answers[NEW] = Answer.DISCONNECTED
    return upper


def test_a_stack_comes_down_from_the_top() -> None:
    world = World()
    upper = _stacked(world)
    (action,) = world.until_detached()
    assert action.expect == Expect.of(upper)
    world.scene.unmount(upper)
    done = Outcome(action, OutcomeStatus.DETACHED, finished_at=DIED_AT + 20)
    world.look(DIED_AT + 20, done)
    step = world.look(DIED_AT + 22)
    assert [a.expect for a in step.detaches] == [Expect.of(world.source)]


def test_layers_that_live_are_not_counted() -> None:
    world = World()
    world.scene.answers[OLD] = Answer.ANSWERED
    _stacked(world)
    step = world.look(DIED_AT + 11)
    assert [s.layers for s in step.sources] == [1]


def test_a_failure_backs_off_and_is_confirmed_anew() -> None:
    world = World()
    (action,) = world.until_detached()
    failed = Outcome(action, OutcomeStatus.REFUSED, Reason.ANSWERING, finished_at=DIED_AT + 13)
    assert [s.held_back for s in world.look(DIED_AT + 13, failed).sources] == [Reason.UNCONFIRMED]
    world.look(DIED_AT + 13.1)
    step = world.look(DIED_AT + 13.2)
    assert [s.held_back for s in step.sources] == [Reason.BACK_OFF]
    assert step.due_at is not None and step.due_at > DIED_AT + 13.2
    assert world.look(step.due_at).detaches
