"""Private worlds: alone, without a trace, and for ordinary users too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.node import cgroups
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.world import (
    PrivateWorld,
    be_at_the_root,
    mount_points,
    run_in_private_world,
)
from fusewatchd.errors import FusewatchError
from fusewatchd.linux import syscalls
from fusewatchd.linux.private_namespace import Home
from fusewatchd.linux.syscalls import closing_fd
from tests.lab import ProcView, run_as_ordinary_user, run_in_world, why_no_lab

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(bool(why_no_lab()), reason=f"no lab: {why_no_lab()}"),
]


def test_lab_is_a_shared_tmpfs_and_everything_else_private() -> None:
    def body(world: PrivateWorld) -> list[str]:
        rows = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        shared = [row[4] for row in rows if row[6].startswith("shared:")]
        assert shared == [world.lab]
        assert not any(field.startswith("master:") for row in rows for field in row)
        return os.listdir(world.lab)

    assert run_in_world(body) == []


def test_nothing_of_it_is_seen_outside() -> None:
    before = mount_points()
    assert run_in_world(lambda world: len(mount_points())) > len(before)
    assert mount_points() == before


def test_fusectl_is_there_for_root() -> None:
    def body(world: PrivateWorld) -> str:
        assert os.path.ismount("/sys/fs/fuse/connections")
        return world.fusectl_problem

    assert run_in_world(body) == ""


def test_other_processes_are_not_seen() -> None:
    def body(world: PrivateWorld) -> tuple[bool, list[int]]:
        return world.in_pid_namespace, [int(pid) for pid in os.listdir("/proc") if pid.isdigit()]

    has_pids, pids = run_in_world(body)
    assert has_pids
    assert pids == [1, 2]


def test_status_of_the_body() -> None:
    assert run_in_private_world(lambda world: 7) == 7


def test_body_killed_by_a_signal() -> None:
    def body(world: PrivateWorld) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert run_in_private_world(body) == 128 + signal.SIGKILL


def test_deadline_kills_everything(tmp_path: Path) -> None:
    mark = tmp_path / "started"
    # End of file on it says that the last process of the world has gone.
    read_end, write_end = os.pipe()

    def body(world: PrivateWorld) -> int:
        os.close(read_end)
        subprocess.Popen(["sleep", "1000"], start_new_session=True, pass_fds=[write_end])
        mark.touch()
        time.sleep(1000)
        return 0

    with pytest.raises(TimeoutError):
        run_in_private_world(body, deadline_seconds=2)
    os.close(write_end)
    assert mark.exists()
    assert os.read(read_end, 1) == b""
    os.close(read_end)


def test_cgroups_are_removed_even_when_the_world_is_killed() -> None:
    if cgroups.hierarchy() is None:
        pytest.skip("no writable cgroup2 hierarchy here")

    def body(world: PrivateWorld) -> int:
        node = DemoNode(world)
        container = node.start_container(node.add_pod("app"))
        assert "kubepods" in Path(f"/proc/{container.pid}/cgroup").read_text()
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    def ours() -> list[str]:
        root = cgroups.hierarchy() or ""
        return [name for name in os.listdir(root) if f".{os.getpid()}." in name]

    assert run_in_private_world(body, deadline_seconds=60) == 128 + signal.SIGKILL
    assert ours() == []


def test_lab_that_cannot_be_mounted_is_an_error() -> None:
    with pytest.raises(FusewatchError, match="could not be made"):
        run_in_private_world(lambda world: 0, lab="/proc/version")


ORDINARY_USER = """
import os, sys
from fusewatchd.demo.node.world import run_in_private_world
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodMount, PodVolume

def body(world):
    assert world.in_user_namespace
    with DemoNode(world) as node:
        source = node.add_source("one")
        pod = node.add_pod("app", [PodVolume("v", source)], [PodMount("v", "/data")])
        container = node.start_container(pod)
        print("content:", container.read("/data/hello"))
        print("cgroup:", container.cgroup_kind.value)
        with open(f"/proc/{container.pid}/cgroup") as file:
            print("pod:", f"/kubepods/besteffort/pod{pod.uid}/" in file.read())
        source.kill()
        try:
            container.read("/data/hello")
        except OSError as error:
            print("dead:", error.errno)
        source.restart()
        with open(source.path + "/hello") as file:
            print("back:", file.read())
        print("fusectl:", world.fusectl_problem)
    return 0

assert os.getuid() == 65534
sys.exit(run_in_private_world(body, deadline_seconds=50))
"""


def test_ordinary_user_has_a_node_too() -> None:
    run = run_as_ordinary_user(["-c", ORDINARY_USER])
    assert run.returncode == 0, run.stderr
    said = dict(line.split(": ", 1) for line in run.stdout.splitlines())
    assert said["content"] == "one"
    assert said["cgroup"] == "bound file"
    assert said["pod"] == "True"
    assert int(said["dead"]) in (103, 107)
    assert said["back"] == "one"
    assert said["fusectl"] == "fusectl: Operation not permitted"


MASKED_PROC = """
import os, subprocess, sys, time
from fusewatchd.demo.node.world import run_in_private_world

def body(world):
    print("pid namespace:", world.in_pid_namespace, flush=True)
    # An orphan two levels down, out of reach of a plain kill of the children.
    subprocess.run(["sh", "-c", "(sleep 1000 & sleep 1000) &"])
    if sys.argv[1] == "hangs":
        time.sleep(1000)
    return 5

try:
    print("status:", run_in_private_world(body, deadline_seconds=5))
except TimeoutError:
    print("status: deadline")
end = time.monotonic() + 20
left = ""
while time.monotonic() < end:
    command = ["pgrep", "-u", "65534", "-g", str(os.getpgrp()), "sleep"]
    found = subprocess.run(command, stdout=subprocess.DEVNULL)
    if found.returncode == 1:
        sys.exit("nothing left")
    time.sleep(0.01)
"""


@pytest.mark.parametrize(("how", "status"), [("ends", "5"), ("hangs", "deadline")])
def test_without_a_pid_namespace_nothing_is_left_either(how: str, status: str) -> None:
    run = run_as_ordinary_user(["-c", MASKED_PROC, how], proc=ProcView.MASKED)
    assert run.stdout == f"pid namespace: False\nstatus: {status}\n", run.stderr
    assert run.stderr == "nothing left\n"


FORBIDDEN = """
import sys
from fusewatchd.demo.node.world import NamespaceForbiddenError, run_in_private_world

try:
    run_in_private_world(lambda world: 0)
except NamespaceForbiddenError as error:
    sys.exit(str(error))
"""


def test_forbidden_user_namespaces_are_named() -> None:
    """In a user namespace that may have no further ones, as an administrator can set."""
    limit = "echo 0 > /proc/sys/user/max_user_namespaces && "
    drop = "exec setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin "
    script = limit + drop + '"$0" -c "$1"'
    run = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", script, sys.executable, FORBIDDEN],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=python_environment(),
    )
    assert run.returncode == 1
    assert "user.max_user_namespaces is 0" in run.stderr
    assert "Run as root, or allow user namespaces." in run.stderr


def run_in_chroot(work: Callable[[], None]) -> None:
    """Run in a child that has a root of its own, with nothing but /proc in it."""

    def body(world: PrivateWorld) -> None:
        root = os.path.join(world.lab, "root")
        os.makedirs(f"{root}/proc")
        syscalls.mount("/proc", f"{root}/proc", None, syscalls.MS_BIND)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.chroot(root)
                os.chdir("/")
                syscalls.unshare(syscalls.CLONE_NEWNS)
                work()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        syscalls.umount2(f"{root}/proc", syscalls.MNT_DETACH)

    run_in_world(body)


def enter_own_namespace() -> None:
    with closing_fd(os.open("/proc/self/ns/mnt", os.O_RDONLY)) as own:
        syscalls.setns(own, syscalls.CLONE_NEWNS)


def test_a_world_made_in_a_chroot_is_whole() -> None:
    """Whoever enters its namespace comes out at the root that its processes see."""

    def work() -> None:
        be_at_the_root()
        assert os.listdir("/") == ["proc"]
        enter_own_namespace()
        assert os.listdir("/") == ["proc"]

    run_in_chroot(work)


def test_home_is_the_root_that_a_worker_came_from() -> None:
    def work() -> None:
        home = Home()
        enter_own_namespace()
        assert os.listdir("/") != ["proc"]  # or nothing is tested
        home.go()
        assert os.listdir("/") == ["proc"]

    run_in_chroot(work)
