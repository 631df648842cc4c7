"""Aborting one FUSE connection, and never another one, on the real kernel."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest

from fusewatchd.act import abort_connection
from fusewatchd.act.replace_mount import carry_out
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.sources import Source
from fusewatchd.linux import fusectl, syscalls
from fusewatchd.linux.mount_kernel import Stop
from fusewatchd.linux.running_kernel import RealKernel
from fusewatchd.linux.statmount import mount_unique_id
from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model.actions import AbortConnection, Expect, NamespaceRef, Outcome, OutcomeStatus
from fusewatchd.model.mount_table import parse_mount_table
from fusewatchd.model.mounts import Mount, TargetKey
from fusewatchd.model.verdicts import Reason
from tests.features import best_way
from tests.lab import in_lab, pod_with_container, real_kernel

pytestmark = pytest.mark.kernel

T = TypeVar("T")


def mount_at(path: str, mountinfo: str = "/proc/self/mountinfo") -> Mount:
    with open(mountinfo, "rb") as file:
        (mount,) = parse_mount_table(file.read()).stack_at(path)
    return mount


def abort_of(source: Source) -> AbortConnection:
    """Return the action for a source as it is now, as a plan has it."""
    mount = mount_at(source.path)
    with closing_fd(os.open(source.path, os.O_PATH)) as fd:
        unique = mount_unique_id(fd) or 0
    expect = Expect(source.path, mount.device, mount.mount_id, unique)
    return AbortConnection(TargetKey(0, source.path), expect, 3)


def attempt(action: AbortConnection) -> Outcome:
    return carry_out(real_kernel(best_way()), action)


class Caller:
    """A process that waits for an answer of the file system at a path."""

    def __init__(self, path: str) -> None:
        before = fusectl.waiting(mount_at(path).device) or 0
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.statvfs(path)
            except OSError as exc:
                os._exit(exc.errno or 255)
            os._exit(0)
        while (fusectl.waiting(mount_at(path).device) or 0) <= before:
            time.sleep(0.001)

    def end(self) -> None:
        """Let it wait no longer."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def errno(self) -> int:
        """Wait for its end and return what it got; 0 for an answer."""
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def hung_source(node: DemoNode, name: str = "one") -> tuple[Source, Caller]:
    source = node.add_source(name)
    source.pause()
    return source, Caller(source.path)


@in_lab()
def test_everybody_who_waits_is_told_and_nobody_else(node: DemoNode) -> None:
    other, other_caller = hung_source(node, "other")
    source, caller = hung_source(node)
    outcome = attempt(abort_of(source))
    assert (outcome.status, outcome.reason) == (OutcomeStatus.ABORTED, Reason.NONE)
    assert caller.errno() == errno.ECONNABORTED
    with pytest.raises(OSError) as error:
        os.statvfs(source.path)
    assert error.value.errno == errno.ENOTCONN
    other.resume()
    assert other_caller.errno() == 0


@in_lab()
def test_one_whose_server_has_read_the_request(node: DemoNode) -> None:
    source = node.add_source("one")
    source.hold()
    caller = Caller(source.path)
    assert attempt(abort_of(source)).status is OutcomeStatus.ABORTED
    assert caller.errno() == errno.ECONNABORTED


@in_lab()
def test_a_mount_in_a_container_names_its_connection(node: DemoNode) -> None:
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "p")
    inside = mount_at("/data", f"/proc/{container.pid}/mountinfo")
    source.pause()
    caller = Caller(source.path)
    with open(f"/proc/{container.pid}/stat") as file:
        start_time = int(file.read().rpartition(")")[2].split()[19])
    namespace = NamespaceRef(container.mount_namespace, container.pid, start_time)
    expect = Expect("/data", inside.device, inside.mount_id)
    action = AbortConnection(TargetKey(namespace.inode, "/data"), expect, 3, namespace)
    elsewhere = replace(action, namespace=None)
    assert attempt(elsewhere).status is OutcomeStatus.SKIPPED
    assert attempt(action).status is OutcomeStatus.ABORTED
    assert caller.errno() == errno.ECONNABORTED


@in_lab()
def test_a_request_less_while_it_is_watched(node: DemoNode) -> None:
    """Another one waits on: only the queue says that somebody was served, or gave up."""
    source, caller = hung_source(node)
    action = abort_of(source)
    other = Caller(source.path)

    def give_up() -> None:
        time.sleep(abort_connection.WATCH_SECONDS / 2)
        other.end()

    thread = threading.Thread(target=give_up)
    thread.start()
    # Namespaces are changed by single-threaded processes only, so no real kernel here.
    with pytest.raises(Stop) as stop:
        abort_connection.abort_connection(NO_KERNEL, action)
    thread.join()
    assert (stop.value.status, stop.value.reason) == (OutcomeStatus.SKIPPED, Reason.ANSWERING)
    source.resume()
    assert caller.errno() == 0


NO_KERNEL: RealKernel = None  # type: ignore[assignment]  # as it says
"""Whoever uses it fails."""


@in_lab()
def test_one_for_which_nobody_waits(node: DemoNode) -> None:
    source = node.add_source("one")
    source.pause()
    outcome = attempt(abort_of(source))
    assert (outcome.status, outcome.reason) == (OutcomeStatus.SKIPPED, Reason.ANSWERING)
    source.resume()
    os.statvfs(source.path)


def successor_of(node: DemoNode, look: Callable[[Source], T]) -> tuple[T, Source, Caller]:
    """Look at a source, let it go, and let another hung one have its connection's number.

    Numbers are the whole machine's, and the lowest free one is given: somebody else may take it
    first, or may have let go of lower ones, which others hold then until its turn has come.
    """
    for turn in range(30):
        source = node.add_source(f"one{turn}")
        seen, number = look(source), mount_at(source.path).device
        source.stop()
        others: list[Source] = []
        for _ in range(1 + turn // 5):
            successor = node.add_source(f"next{turn}.{len(others)}")
            if mount_at(successor.path).device == number:
                successor.pause()
                return seen, successor, Caller(successor.path)
            others.append(successor)
        for other in others:
            other.stop()
    raise AssertionError("no number was used again")


@in_lab()
def test_another_connection_with_the_same_number_is_left_alone(node: DemoNode) -> None:
    action, successor, caller = successor_of(node, abort_of)
    outcome = attempt(action)
    assert (outcome.status, outcome.reason) == (OutcomeStatus.SKIPPED, Reason.VANISHED)
    successor.resume()
    assert caller.errno() == 0


@in_lab()
def test_before_linux_6_8_the_place_must_be_the_same_as_well(node: DemoNode) -> None:
    """Without the id that is never used again, even when the other one is."""
    known, successor, caller = successor_of(node, abort_of)
    now = abort_of(successor)
    mixed = replace(known.expect, mount_id=now.expect.mount_id, unique_id=0)
    outcome = attempt(replace(known, expect=mixed))
    assert (outcome.status, outcome.reason) == (OutcomeStatus.SKIPPED, Reason.RACED)
    successor.resume()
    assert caller.errno() == 0


@in_lab()
def test_what_was_opened_for_one_connection_aborts_no_other(node: DemoNode) -> None:
    """On this the order of the last steps rests."""
    fd, successor, caller = successor_of(
        node, lambda s: fusectl.open_abort(mount_at(s.path).device)
    )
    with closing_fd(fd):
        os.write(fd, b"1")
    successor.resume()
    assert caller.errno() == 0


def unmount_fusectl() -> None:
    syscalls.umount2(fusectl.CONNECTIONS, syscalls.MNT_DETACH)


def make_fusectl_read_only() -> None:
    flags = syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY
    syscalls.mount(None, fusectl.CONNECTIONS, None, flags)


@pytest.mark.parametrize("damage", [unmount_fusectl, make_fusectl_read_only])
@in_lab()
def test_without_fusectl(node: DemoNode, damage: Callable[[], None]) -> None:
    source, caller = hung_source(node)
    action = abort_of(source)
    damage()
    outcome = attempt(action)
    assert (outcome.status, outcome.reason) == (OutcomeStatus.REFUSED, Reason.NO_FUSECTL)
    source.resume()
    assert caller.errno() == 0
