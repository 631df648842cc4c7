"""The demo node itself: what the other integration tests stand on."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.container_spec import Access, CgroupKind, MountPropagation, UserNamespace
from fusewatchd.demo.node.node import DemoNode, ForeignKind
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume, VolumeKind
from fusewatchd.demo.node.sources import OldServer, ServerOptions, Source
from fusewatchd.demo.node.unmounting import Unmounting, mount_points_below
from fusewatchd.linux import syscalls
from tests.features import Feature, needs
from tests.lab import in_lab

DISCONNECTED = (errno.ENOTCONN, errno.ECONNABORTED)


def mount_lines(table: str, mount_point: str) -> list[list[str]]:
    """Return the mountinfo lines at a mount point, split into fields."""
    rows = [line.split() for line in table.splitlines()]
    return [row for row in rows if row[4] == mount_point]


def own_table() -> str:
    return Path("/proc/self/mountinfo").read_text()


def one_pod(node: DemoNode, *mounts: PodMount, source: Source | None = None) -> DemoPod:
    """Make a pod with one FUSE volume ``v``."""
    volume = PodVolume("v", source or node.add_source("one"), directory="pv-one")
    return node.add_pod("app", [volume], mounts or [PodMount("v", "/data")])


def container_errno(container: Container, command: str, **arguments: Any) -> int:
    """Return the errno a command fails with in a container, 0 when it works."""
    try:
        container.call(command, **arguments)
    except OSError as error:
        return error.errno or -1
    return 0


# ----------------------------------------------------------------------- layout


@in_lab()
def test_publish_bind_is_where_the_kubelet_puts_it(node: DemoNode) -> None:
    pod = one_pod(node)
    target = f"{node.lab}/kubelet/pods/{pod.uid}/volumes/kubernetes.io~csi/pv-one/mount"
    (bind,) = mount_lines(own_table(), target)
    (source,) = mount_lines(own_table(), f"{node.lab}/sources/one")
    assert bind[2] == source[2]
    assert bind[5] == "rw,nosuid,nodev,relatime"
    # Peers, as after the mount --bind of every driver on a shared tree.
    assert bind[6] == source[6] and bind[6].startswith("shared:")
    data = json.loads(Path(target).with_name("vol_data.json").read_text())
    assert data["specVolID"] == "pv-one"
    assert data["volumeHandle"] == "handle-pv-one"
    assert data["driverName"] == "fuse.csi.demo"


@in_lab()
def test_publish_flags(node: DemoNode) -> None:
    flags = "ro,nosuid,nodev,noexec,noatime"
    volume = PodVolume("v", node.add_source("one"), flags=flags)
    pod = node.add_pod("app", [volume])
    (bind,) = mount_lines(own_table(), pod.volume_path("v"))
    assert bind[5] == flags
    with pytest.raises(OSError, match="Read-only"):
        Path(pod.volume_path("v"), "x").write_text("")


@in_lab()
def test_subpath_of_directory_and_file(node: DemoNode) -> None:
    source = node.add_source("one", files={"a b/in": "inside", "file": "text"})
    mounts = [
        PodMount("v", "/dir", sub_path="a b"),
        PodMount("v", "/file", sub_path="file"),
        PodMount("v", "/new", sub_path="made/by/kubelet"),
    ]
    pod = one_pod(node, *mounts, source=source)
    (bind,) = mount_lines(own_table(), f"{pod.directory}/volume-subpaths/pv-one/app/0")
    assert bind[3] == "/a\\040b"
    container = node.start_container(pod)
    assert container.read("/dir/in") == "inside"
    assert container.read("/file") == "text"
    assert container.list("/new") == []
    assert os.path.isdir(f"{source.backing}/made/by/kubelet")


@in_lab()
def test_fluid_and_staging_paths(node: DemoNode) -> None:
    fluid = node.add_source("f", path=node.fluid_path("jindo", "default", "spark"))
    assert fluid.path == f"{node.lab}/runtime-mnt/jindo/default/spark/jindo-fuse"
    staged = node.add_source("s", path=node.staging_path("fuse.csi.demo", "vol-1"))
    assert staged.path.startswith(f"{node.kubelet_root}/plugins/kubernetes.io/csi/fuse.csi.demo/")
    assert Path(staged.path, "hello").read_text() == "s"


@in_lab()
def test_pod_list_is_what_a_kubelet_answers(node: DemoNode) -> None:
    pod = one_pod(node, PodMount("v", "/data", "sub", Access.READ_ONLY))
    container = node.start_container(pod)
    pod.is_deleting = True
    document = json.loads(json.dumps(node.pod_list()))
    (item,) = document["items"]
    assert document["kind"] == "PodList"
    assert item["metadata"]["uid"] == pod.uid
    assert "deletionTimestamp" in item["metadata"]
    assert item["spec"]["volumes"] == [
        {"name": "v", "persistentVolumeClaim": {"claimName": "pv-one-claim"}}
    ]
    assert item["spec"]["containers"][0]["volumeMounts"] == [
        {"name": "v", "mountPath": "/data", "readOnly": True, "subPath": "sub"}
    ]
    status = item["status"]["containerStatuses"][0]
    assert status["containerID"] == f"containerd://{container.spec.container_id}"
    assert item["status"]["phase"] == "Running"


@in_lab()
def test_removed_pod_leaves_nothing(node: DemoNode) -> None:
    source = node.add_source("one")
    volumes = [PodVolume("v", source), PodVolume("e", kind=VolumeKind.EMPTY_DIR)]
    mounts = [PodMount("v", "/data"), PodMount("v", "/sub", "sub"), PodMount("e", "/e")]
    pod = node.add_pod("app", volumes, mounts)
    node.start_container(pod).write("/e/file", "x")
    assert node.remove_pod(pod) == 2
    assert os.listdir(node.pods_directory) == []
    assert mount_points_below(f"{node.lab}/sources") == [source.path]
    assert mount_points_below(node.kubelet_root) == []


@in_lab()
def test_removing_a_pod_fails_while_its_volume_is_held(node: DemoNode) -> None:
    pod = one_pod(node)
    with syscalls.closing_fd(os.open(pod.volume_path("v"), os.O_PATH)):
        with pytest.raises(OSError) as caught:
            node.remove_pod(pod)
        assert caught.value.errno == errno.EBUSY
    assert node.remove_pod(pod) == 1


@in_lab()
def test_driver_that_unmounts_once_needs_one_try_a_layer(node: DemoNode) -> None:
    source = node.add_source("one")
    pod = one_pod(node, source=source)
    # Away from the source's peer group, where one mount would become two.
    syscalls.mount(None, pod.volume_path("v"), None, syscalls.MS_PRIVATE)
    syscalls.mount(node.kubelet_root, pod.volume_path("v"), None, syscalls.MS_BIND)
    with pytest.raises(OSError) as caught:
        node.remove_pod(pod, Unmounting.ONCE)
    assert caught.value.errno == errno.EBUSY
    assert node.remove_pod(pod, Unmounting.ONCE) == 1
    assert os.listdir(node.pods_directory) == []


# ------------------------------------------------------------------------ containers


@pytest.mark.parametrize(
    ("propagation", "tag"),
    [
        (MountPropagation.NONE, ""),
        (MountPropagation.HOST_TO_CONTAINER, "master"),
        (MountPropagation.BIDIRECTIONAL, "shared"),
    ],
)
@in_lab()
def test_propagation(node: DemoNode, propagation: MountPropagation, tag: str) -> None:
    pod = one_pod(node, PodMount("v", "/data", propagation=propagation))
    container = node.start_container(pod)
    (inside,) = mount_lines(container.mountinfo(), "/data")
    (host,) = mount_lines(own_table(), pod.volume_path("v"))
    group = host[6].removeprefix("shared:")
    assert inside[6] == (f"{tag}:{group}" if tag else "-")
    # What is mounted on the host arrives in the container, or does not.
    os.mkdir(f"{pod.volume_path('v')}/below")
    syscalls.mount("below", f"{pod.volume_path('v')}/below", "tmpfs", 0)
    arrived = mount_lines(container.mountinfo(), "/data/below")
    assert len(arrived) == (0 if propagation is MountPropagation.NONE else 1)
    container.stop()
    assert mount_lines(own_table(), f"{pod.volume_path('v')}/below")


@in_lab()
def test_mount_made_in_a_bidirectional_container_reaches_the_host(node: DemoNode) -> None:
    pod = one_pod(node, PodMount("v", "/data", propagation=MountPropagation.BIDIRECTIONAL))
    container = node.start_container(pod)
    container.call("mount_tmpfs", path="/data/inner")
    assert len(mount_lines(own_table(), f"{pod.volume_path('v')}/inner")) == 1
    container.stop()
    assert len(mount_lines(own_table(), f"{pod.volume_path('v')}/inner")) == 1


@in_lab()
def test_read_only_container_of_a_writable_volume(node: DemoNode) -> None:
    pod = one_pod(node, PodMount("v", "/data", access=Access.READ_ONLY), PodMount("v", "/rw"))
    container = node.start_container(pod)
    (inside,) = mount_lines(container.mountinfo(), "/data")
    assert inside[5] == "ro,nosuid,nodev,relatime"
    assert container_errno(container, "write", path="/data/x", content="") == errno.EROFS
    container.write("/rw/x", "written")
    assert container.read("/data/x") == "written"


@in_lab()
def test_empty_dir_inside_the_fuse_volume(node: DemoNode) -> None:
    source = node.add_source("one")
    volumes = [PodVolume("v", source), PodVolume("e", kind=VolumeKind.EMPTY_DIR)]
    mounts = [PodMount("v", "/data"), PodMount("e", "/data/cache")]
    container = node.start_container(node.add_pod("app", volumes, mounts))
    container.write("/data/cache/x", "cached")
    (outer,) = mount_lines(container.mountinfo(), "/data")
    (inner,) = mount_lines(container.mountinfo(), "/data/cache")
    assert inner[1] == outer[0]
    assert os.listdir(f"{source.backing}/cache") == []


@in_lab()
def test_cgroup_names_the_pod(node: DemoNode) -> None:
    pod = one_pod(node)
    container = node.start_container(pod)
    text = Path(f"/proc/{container.pid}/cgroup").read_text()
    wanted = f"/kubepods/besteffort/pod{pod.uid}/{container.spec.container_id}"
    assert container.cgroup_kind is CgroupKind.KERNEL
    assert any(line.startswith("0::/") and line.endswith(wanted) for line in text.splitlines())


@needs(Feature.FUSE_IDMAP)
@in_lab()
def test_user_namespace_gets_idmapped_mounts(node: DemoNode) -> None:
    source = node.add_source("one", options=ServerOptions(allows_idmap=True))
    os.chmod(source.backing, 0o755)
    ids = UserNamespace(first_id=200_000)
    pod = one_pod(node, PodMount("v", "/data"), source=source)
    container = node.start_container(pod, user_namespace=ids)
    (inside,) = mount_lines(container.mountinfo(), "/data")
    assert "idmapped" in inside[5].split(",")
    own, theirs = os.stat("/proc/self/ns/user"), os.stat(f"/proc/{container.pid}/ns/user")
    assert own.st_ino != theirs.st_ino
    container.write("/data/x", "by root of the container")
    assert os.stat(f"{source.backing}/x").st_uid == 0
    assert container.call("stat", path="/data/x")["st_uid"] == 0


@in_lab()
def test_server_without_idmaps_refuses_user_namespaces(node: DemoNode) -> None:
    pod = one_pod(node)
    with pytest.raises(OSError) as caught:
        node.start_container(pod, user_namespace=UserNamespace())
    assert caught.value.errno == errno.EINVAL


@in_lab()
def test_container_of_a_dead_volume_does_not_start(node: DemoNode) -> None:
    source = node.add_source("one", options=ServerOptions(attr_timeout=0.0))
    pod = one_pod(node, source=source)
    source.kill()
    with pytest.raises(OSError) as caught:
        node.start_container(pod)
    assert caught.value.errno in DISCONNECTED
    assert not pod.containers["app"].is_running


@in_lab()
def test_restarted_container_replaces_the_old_one(node: DemoNode) -> None:
    pod = one_pod(node)
    first = node.start_container(pod)
    second = node.start_container(pod)
    assert not first.is_running
    assert pod.containers == {"app": second}
    assert second.spec.container_id != first.spec.container_id
    assert second.read("/data/hello") == "one"
    assert node.pod_list()["items"][0]["status"]["containerStatuses"][0]["restartCount"] == 1


@in_lab()
def test_hostile_swapping_ends_as_it_began(node: DemoNode) -> None:
    pod = one_pod(node, PodMount("v", "/a/data"))
    container = node.start_container(pod)
    container.call("start_swapping", path="/a", target="/tmp", interval=0.0001)
    seen: set[int] = set()
    end = time.monotonic() + 20
    while len(seen) < 2 and time.monotonic() < end:
        seen.add(container_errno(container, "read", path="/a/data/hello"))
    assert container.call("stop_swapping") > 0
    assert seen == {0, errno.ENOENT}
    assert container.read("/a/data/hello") == "one"


# ---------------------------------------------------------------- death and return


@in_lab()
def test_death_makes_every_bind_stale_and_the_table_stays(node: DemoNode) -> None:
    source = node.add_source("one")
    pod = one_pod(node, PodMount("v", "/data"), source=source)
    container = node.start_container(pod)
    before = own_table()
    source.kill()
    assert own_table() == before
    with pytest.raises(OSError) as caught:
        os.statvfs(pod.volume_path("v"))
    assert caught.value.errno in DISCONNECTED
    assert container_errno(container, "read", path="/data/hello") in DISCONNECTED


@in_lab()
def test_restart_brings_back_the_source_only(node: DemoNode) -> None:
    source = node.add_source("one")
    pod = one_pod(node, source=source)
    container = node.start_container(pod)
    old_device = mount_lines(own_table(), source.path)[0][2]
    asked = time.monotonic()
    visible = source.restart()
    assert asked <= visible <= time.monotonic()
    (line,) = mount_lines(own_table(), source.path)
    assert line[2] != old_device
    assert Path(source.path, "hello").read_text() == "one"
    assert container_errno(container, "read", path="/data/hello") in DISCONNECTED
    assert mount_lines(own_table(), pod.volume_path("v"))[0][2] == old_device


@in_lab()
def test_draining_server_serves_the_old_binds(node: DemoNode) -> None:
    source = node.add_source("one", options=ServerOptions(attr_timeout=0.0))
    pod = one_pod(node, source=source)
    container = node.start_container(pod)
    source.restart(old=OldServer.DRAINING)
    assert container.read("/data/hello") == "one"
    (old,) = source.draining
    old.kill()
    assert container_errno(container, "read", path="/data/hello") in DISCONNECTED
    assert Path(source.path, "hello").read_text() == "one"


@in_lab()
def test_source_can_come_back_elsewhere(node: DemoNode) -> None:
    source = node.add_source("one")
    old_path = source.path
    source.restart(path=f"{node.lab}/sources/moved")
    assert Path(source.path, "hello").read_text() == "one"
    assert not os.path.ismount(old_path)


@in_lab()
def test_paused_server_hangs_its_callers_until_resumed(node: DemoNode) -> None:
    source = node.add_source("one", options=ServerOptions(attr_timeout=0.0))
    container = node.start_container(one_pod(node, source=source))
    source.pause()
    request = container.begin("read", path="/data/hello")
    with pytest.raises(TimeoutError):
        container.finish(request, timeout=0.2)
    source.resume()
    assert container.finish(request) == "one"


@in_lab()
def test_a_hung_lab_still_ends(node: DemoNode) -> None:
    source = node.add_source("one", options=ServerOptions(attr_timeout=0.0))
    container = node.start_container(one_pod(node, source=source))
    source.pause()
    container.begin("statfs", path="/data")


@in_lab()
def test_a_connection_somebody_holds_does_not_keep_the_lab(node: DemoNode) -> None:
    """A caller whose request was read and never answered cannot be killed: state D."""
    source = node.add_source("one", options=ServerOptions(answer_delay=3600.0), starts=False)
    source.start()
    pod = one_pod(node, source=source)
    pid = source.server.pid
    fds = {int(fd): os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    (device,) = [fd for fd, name in fds.items() if name == "/dev/fuse"]
    pidfd_getfd = 438
    with syscalls.closing_fd(os.pidfd_open(pid)) as pidfd:
        types = (ctypes.c_int, ctypes.c_int, ctypes.c_uint)
        syscalls.system_call(pidfd_getfd, *types)(None, pidfd, device, 0)
    container = node.launch_container(pod)
    end = time.monotonic() + 30
    # time.sleep is clock_nanosleep(2) since Python 3.11, and was select(2) before.
    while not any(
        w in Path(f"/proc/{pid}/wchan").read_text() for w in ("nanosleep", "select", "poll")
    ):
        assert time.monotonic() < end
        time.sleep(0.001)
    source.kill()
    assert container.is_running


@in_lab()
def test_open_loop_tells_outage_and_return(node: DemoNode) -> None:
    source = node.add_source("one", options=ServerOptions(attr_timeout=0.0))
    volume = PodVolume("v", kind=VolumeKind.HOST_PATH, host_path=f"{node.lab}/sources")
    mount = PodMount("v", "/data", propagation=MountPropagation.HOST_TO_CONTAINER)
    container = node.start_container(node.add_pod("app", [volume], [mount]))
    container.start_open_loop("/data/one/hello")
    killed = source.kill()
    source.stop()
    visible = source.start()
    back = container.wait_until_readable("/data/one/hello", 20)
    end = time.monotonic() + 20
    while container.open_loop("/data/one/hello").first_success_after(killed) is None:
        assert time.monotonic() < end
    report = container.stop_open_loop("/data/one/hello")
    assert report.transitions[0].errno == 0
    assert any(moment.errno for moment in report.transitions)
    first = report.first_success_after(killed)
    assert first is not None
    assert visible <= first
    assert visible <= back
    assert report.first_success_after(time.monotonic()) is None


@in_lab()
def test_old_descriptors_and_cwd_stay_dead(node: DemoNode) -> None:
    source = node.add_source("one", options=ServerOptions(attr_timeout=0.0))
    container = node.start_container(one_pod(node, source=source))
    container.call("chdir", path="/data")
    held = container.call("open", path="/data/hello")
    source.kill()
    assert container_errno(container, "read_fd", fd=held) in DISCONNECTED
    assert container_errno(container, "list", path=".") in DISCONNECTED


@pytest.mark.parametrize("command", [("bindfs", "-f", "{backing}", "{mount}")])
@in_lab()
def test_external_server(node: DemoNode, command: tuple[str, ...]) -> None:
    source = node.add_source("one", command=command)
    container = node.start_container(one_pod(node, source=source))
    assert container.read("/data/hello") == "one"
    source.kill()
    source.restart()
    assert Path(source.path, "hello").read_text() == "one"


# --------------------------------------------------------------- foreign namespaces


@in_lab()
def test_foreign_namespaces_see_the_binds(node: DemoNode) -> None:
    pod = one_pod(node)
    target = pod.volume_path("v")
    (host,) = mount_lines(own_table(), target)
    group = host[6].removeprefix("shared:")
    plugin = node.add_foreign(ForeignKind.CSI_PLUGIN)
    agent = node.add_foreign(ForeignKind.NODE_AGENT)
    unit = node.add_foreign(ForeignKind.SYSTEM_UNIT)
    assert mount_lines(plugin.mountinfo(), target)[0][6] == f"shared:{group}"
    assert mount_lines(agent.mountinfo(), f"/host{target}")[0][6] == "-"
    assert mount_lines(unit.mountinfo(), target)[0][6] == f"master:{group}"
    assert "/kubepods/" in Path(f"/proc/{plugin.pid}/cgroup").read_text()
    assert "/system.slice/" in Path(f"/proc/{unit.pid}/cgroup").read_text()
    assert len({c.mount_namespace for c in (plugin, agent, unit)}) == 3


@in_lab()
def test_csi_plugin_unmounts_on_the_host(node: DemoNode) -> None:
    pod = one_pod(node)
    plugin = node.add_foreign(ForeignKind.CSI_PLUGIN)
    plugin.call("umount", path=pod.volume_path("v"))
    assert mount_lines(own_table(), pod.volume_path("v")) == []


# --------------------------------------------------------------------------- scale


@in_lab(timeout=120)
def test_many_containers_at_once(node: DemoNode) -> None:
    source = node.add_source("one")
    pods = [
        node.add_pod(f"app-{number}", [PodVolume("v", source)], [PodMount("v", "/data")])
        for number in range(20)
    ]
    containers = [node.launch_container(pod) for pod in pods]
    for container in containers:
        container.wait_ready()
    assert [container.read("/data/hello") for container in containers] == ["one"] * 20


@in_lab()
def test_servers_started_in_threads_live_on(node: DemoNode) -> None:
    sources = [node.add_source(f"s{number}", starts=False) for number in range(4)]
    threads = [threading.Thread(target=source.start) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [Path(s.path, "hello").read_text() for s in sources] == ["s0", "s1", "s2", "s3"]
