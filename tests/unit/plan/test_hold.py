"""Which connections are held, and for which reason another one is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest

from fusewatchd.config.settings import ExcludeSettings
from fusewatchd.diagnose.exclusions import Switches
from fusewatchd.model.findings import Gap
from fusewatchd.model.held import HeldConnection, NotHeld
from fusewatchd.model.mounts import Device
from fusewatchd.model.plan import RecoveryMode
from fusewatchd.model.quota import AGENT, RefusedOwner, Resource
from fusewatchd.model.servers import Answer, FuseServer
from fusewatchd.plan.hold import NOTHING, HoldPlan, HoldPolicy, choose_holds
from tests.unit.scenes import NEW, OLD, UID, Scene, pod, usual

SERVER = FuseServer(700, 11, (OLD,), name="demofs")
POLICY = HoldPolicy(("demofs",))
HELD = {OLD: HeldConnection(OLD, "demofs", 5)}


def scene() -> Scene:
    made, _, _ = usual()
    made.servers = {OLD: (SERVER,)}
    return made


def chosen(
    made: Scene,
    policy: HoldPolicy = POLICY,
    held: Mapping[Device, HeldConnection] = MappingProxyType({}),
    before: HoldPlan = NOTHING,
    **more: object,
) -> HoldPlan:
    findings = made.look().findings
    snapshot = replace(made.snapshot(), **more)  # type: ignore[arg-type]
    return choose_holds(findings, snapshot, made.ledger.owners, policy, held, before)


@pytest.mark.parametrize("name", ["demofs", "fuse.demofs", "fuse.*", "*"])
def test_a_connection_with_a_bind_in_a_container_is_held(name: str) -> None:
    plan = chosen(scene(), HoldPolicy((name,)))
    (hold,) = plan.holds
    assert (hold.device, hold.server, [c.pid for c in hold.callers]) == (OLD, SERVER, [4000])
    assert not plan.refused and not plan.releases


def test_what_is_not_named_or_in_no_container_is_no_subject() -> None:
    assert chosen(scene(), HoldPolicy()) == HoldPlan()
    assert chosen(scene(), HoldPolicy(("juicefs",))) == HoldPlan()
    made = scene()
    made.namespaces.clear()
    assert chosen(made) == HoldPlan()


def two_holders(made: Scene) -> None:
    made.servers = {OLD: (SERVER, replace(SERVER, pid=701))}


def no_server(made: Scene) -> None:
    made.servers = {}


def block_device(made: Scene) -> None:
    made.mounts[:] = [replace(mount, fs_type="fuseblk") for mount in made.mounts]
    made.namespaces[:] = [
        replace(n, mounts=tuple(replace(m, fs_type="fuseblk") for m in n.mounts))
        for n in made.namespaces
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (two_holders, NotHeld.OTHER_HOLDER),
        (no_server, NotHeld.SERVER_UNKNOWN),
        (block_device, NotHeld.BLOCK_DEVICE),
    ],
)
def test_each_reason_not_to_hold_is_told(change: Callable[[Scene], None], reason: NotHeld) -> None:
    made = scene()
    change(made)
    plan = chosen(made, HoldPolicy(("*",)))
    assert not plan.holds
    assert [(one.device, one.reason) for one in plan.refused] == [(OLD, reason)]


@pytest.mark.parametrize(
    ("policy", "more", "reason"),
    [
        (replace(POLICY, mode=RecoveryMode.REPORT), {}, NotHeld.REPORT_ONLY),
        (replace(POLICY, has_stand_ins=False), {}, NotHeld.KERNEL),
        (
            replace(POLICY, switches=Switches(ExcludeSettings(drivers=("demofs",)))),
            {},
            NotHeld.SWITCHED_OFF,
        ),
        (replace(POLICY, switches=Switches(containers=False)), {}, NotHeld.SWITCHED_OFF),
        (
            POLICY,
            {"refused_owners": (RefusedOwner(AGENT, Resource.DESCRIPTORS, 1),)},
            NotHeld.NOT_EVERYBODY_SEEN,
        ),
        (
            POLICY,
            {"servers": {}, "anonymous_servers": (replace(SERVER, devices=()),)},
            NotHeld.CONNECTION_UNKNOWN,
        ),
    ],
)
def test_each_circumstance_that_forbids_it_is_told(
    policy: HoldPolicy, more: dict[str, object], reason: NotHeld
) -> None:
    plan = chosen(scene(), policy, **more)
    assert not plan.holds
    assert [one.reason for one in plan.refused] == [reason]


def test_pods_that_are_being_deleted_are_named() -> None:
    made = scene()
    made.pods = {UID: pod(is_deleting=True)}
    (hold,) = chosen(made).holds
    assert [caller.is_deleting for caller in hold.callers] == [True]


def test_one_whose_server_has_ended_is_held_on_whatever_is_seen() -> None:
    made = scene()
    made.servers, made.answers[OLD] = {}, Answer.DISCONNECTED
    plan = chosen(made, held=HELD)
    assert [(hold.device, hold.server) for hold in plan.holds] == [(OLD, None)]
    assert not plan.releases
    # Neither by a configuration that names it no more.
    plan = chosen(made, HoldPolicy(), HELD)
    assert len(plan.holds) == 1 and not plan.releases


def test_a_living_one_is_let_go_when_nothing_wants_it() -> None:
    assert chosen(scene(), HoldPolicy(), HELD).releases == (OLD,)
    made = scene()
    two_holders(made)
    assert chosen(made, held=HELD).releases == (OLD,)
    made = scene()
    made.namespaces.clear()
    assert chosen(made, held=HELD).releases == (OLD,)


def test_one_whose_server_has_closed_its_descriptor_is_let_go() -> None:
    made = scene()
    made.servers, made.looked_at = {}, 50.0
    plan = chosen(made, held=HELD)
    # It may be about to end, as one does that was told to.
    assert not plan.releases and [hold.device for hold in plan.holds] == [OLD]
    assert plan.unserved == {OLD: 50.0}
    for looked_at, is_released in ((51.9, False), (52.0, True)):
        made.looked_at = looked_at
        plan = chosen(made, held=HELD, before=HoldPlan(unserved={OLD: 50.0}))
        assert (plan.releases == (OLD,)) is is_released
        assert (not plan.holds) is is_released
    made.servers = {OLD: (SERVER,)}
    assert not chosen(made, held=HELD, before=HoldPlan(unserved={OLD: 50.0})).unserved


def test_what_could_not_be_seen_lets_go_of_nothing() -> None:
    made = scene()
    made.servers, made.looked_at = {}, 0.0
    assert [hold.device for hold in chosen(made, held=HELD).holds] == [OLD]
    over = (RefusedOwner(AGENT, Resource.DESCRIPTORS, 1),)
    plan = chosen(scene(), held=HELD, refused_owners=over, servers={})
    assert [hold.device for hold in plan.holds] == [OLD]
    made = scene()
    made.namespaces.clear()
    made.gaps = (Gap("namespaces", "the look did not end"),)
    assert not chosen(made, held=HELD).releases
    made.gaps, made.looked_at = (), 0.0
    assert not chosen(made, held=HELD).releases


def test_a_caller_whose_mount_is_replaced_goes_on_to_wait_for_the_others() -> None:
    made = scene()
    made.container(made.inside())
    made.servers, made.answers[OLD] = {}, Answer.DISCONNECTED
    made.namespaces[1] = replace(made.namespaces[1], pid=4001)
    before = chosen(made, held=HELD)
    assert [caller.pid for caller in before.holds[0].callers] == [4000, 4001]
    made.namespaces[0] = replace(made.namespaces[0], mounts=(made.inside(device=NEW),))
    after = chosen(made, held=HELD, before=before)
    assert after.holds[0].callers == before.holds[0].callers
    made.namespaces[1] = replace(made.namespaces[1], mounts=(made.inside(device=NEW),))
    dead = {OLD: replace(HELD[OLD], is_dead=True)}
    after = chosen(made, held=dead, before=after)
    assert [h.callers for h in after.holds if h.device == OLD] == [before.holds[0].callers]
