"""What is said to the keeper, from what it holds and what it is to hold."""

from __future__ import annotations

from fusewatchd.act.keeper_steps import (
    KeeperJob,
    KeeperReport,
    Steps,
    pod_cgroups,
    server_cgroups,
    steps,
)
from fusewatchd.json_values import decode, encode
from fusewatchd.keeper.protocol import Connection, Connections, Counts, State
from fusewatchd.model.held import Caller, Hold
from fusewatchd.model.mounts import Device
from fusewatchd.model.servers import FuseServer

D = Device(0, 50)
SERVER = FuseServer(700, 11, (D,))
HOLD = Hold(D, "demofs", (Caller(4000, 1),), SERVER)
POD = "pod0a0a0a0a-0000-4000-8000-000000000001"
CONTAINER = "c" * 64


def job(*holds: Hold, releases: tuple[Device, ...] = ()) -> KeeperJob:
    return KeeperJob("/run/keeper.sock", 10.0, holds, releases)


def listed(state: State = State.HEALTHY, pid: int = 700) -> list[Connection]:
    return [Connection(5, 50, "demofs", (pid,), state, 0.0, 0, 0.0, Counts())]


def test_what_is_not_held_is_taken_and_what_is_held_is_told_of() -> None:
    assert steps([], job(HOLD)) == Steps(takes=(HOLD,))
    assert steps(listed(), job(HOLD)) == Steps(updates=((5, HOLD),))
    # Its keeper has lost it, and its server has ended: there is nothing to take.
    gone = Hold(D, "demofs", HOLD.callers)
    assert steps([], job(gone)) == Steps()


def test_another_server_is_taken_anew() -> None:
    assert steps(listed(pid=699), job(HOLD)) == Steps(releases=(5,), takes=(HOLD,))


def test_one_whose_server_has_ended_is_never_let_go() -> None:
    assert steps(listed(), job(releases=(D,))) == Steps(releases=(5,))
    for state in (State.HOLDING, State.ANSWERING, State.ENDING):
        assert steps(listed(state), job(releases=(D,))) == Steps()
        assert steps(listed(state, 699), job(HOLD)) == Steps(updates=((5, HOLD),))


def test_numbers_are_those_of_fusectl() -> None:
    for device in (D, Device(8, 17), Device(0, 0xFFFFF)):
        assert Device.of_connection(device.connection) == device


def test_jobs_and_reports_travel() -> None:
    assert decode(KeeperJob, encode(job(HOLD, releases=(D,)))) == job(HOLD, releases=(D,))
    report = KeeperReport(listed=Connections(tuple(listed()), (), 1, True))
    assert decode(KeeperReport, encode(report)) == report


def test_a_caller_is_known_by_the_cgroup_of_its_pod() -> None:
    path = f"/kubepods/burstable/{POD}"
    assert pod_cgroups(f"0::{path}/{CONTAINER}\n") == {path}
    # What a container names itself, below its own cgroup, changes nothing.
    assert pod_cgroups(f"0::{path}/{CONTAINER}/kubepods/podx\n") == {path}
    assert pod_cgroups(f"4:memory:{path}/{CONTAINER}\n1:cpu:{path}/{CONTAINER}\n") == {path}
    # A runtime that puts containers elsewhere: only the container's own, not all of those.
    assert pod_cgroups(f"0::/k8s.io/{CONTAINER}\n") == {f"/k8s.io/{CONTAINER}"}
    assert pod_cgroups("0::/user.slice\n") == frozenset()


def test_a_server_is_known_by_its_cgroup_unless_callers_are_in_it() -> None:
    pod = f"/kubepods/burstable/{POD}"
    caller = f"0::{pod}/{CONTAINER}\n"
    service = "/system.slice/x.service"
    assert server_cgroups(f"0::{service}\n", [caller]) == (service,)
    assert server_cgroups("0::/\n", [caller]) == ()
    assert server_cgroups("0::/kubepods\n", [caller]) == ()
    other = "0::/kubepods/pod0b0b0b0b-0000-4000-8000-000000000001/" + "d" * 64
    assert server_cgroups(caller, [other]) == (pod,)
    assert server_cgroups(caller, [caller]) == ()
    # A hierarchy in which all are in one cgroup tells nothing.
    assert server_cgroups(f"4:memory:/all\n0::{service}\n", [f"4:memory:/all\n{caller}"]) == (
        service,
    )
    assert server_cgroups("4:memory:/all\n0::/\n", [f"4:memory:/all\n{caller}"]) == ()
