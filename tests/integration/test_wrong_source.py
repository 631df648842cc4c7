"""Each bind gets its own source or none: whatever has the same name, number or place."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume, VolumeKind
from fusewatchd.demo.node.sources import Source, detach_all
from fusewatchd.linux import syscalls
from fusewatchd.model.mount_table import parse_mount_table
from tests.lab import in_lab, pod_with_container

pytestmark = pytest.mark.kernel

DEADLINE = 10.0
FLUID = "fuse.csi.fluid.io"
UNTIL_ON_DISK = 0.7
SEVERAL_CYCLES = 0.5
ALL_LOOKS = 2.0
"""Beyond the last look at the containers that follows a recovery."""


def device_at(path: str) -> str:
    with open("/proc/self/mountinfo", "rb") as file:
        top = parse_mount_table(file.read()).top_at(path)
    return str(top.device) if top else "nothing"


def refusals(document: Any, pod: DemoPod) -> set[str]:
    return {b["refusal"] for b in document["binds"] if b["pod"]["uid"] == pod.uid}


def wait_for_refusal(daemon: DaemonProcess, pod: DemoPod, reason: str) -> None:
    """Wait until the pod's bind on the host is refused for this reason, and see that it lasts."""
    daemon.wait_for(lambda d: reason in refusals(d, pod), DEADLINE)
    time.sleep(SEVERAL_CYCLES)
    assert reason in refusals(daemon.status(), pod)


def is_broken(container: Container, path: str = "/data/hello") -> bool:
    try:
        container.read(path)
    except OSError:
        return True
    return False


# ---------------------------------------------------------------------- names that are alike


class TwoTeams:
    """Dataset ``b-c`` of namespace ``a`` and ``c`` of ``a-b``: both volumes are ``a-b-c``."""

    def __init__(self, node: DemoNode) -> None:
        self.sources = [
            node.add_source(f"{namespace}/{dataset}", path=path, backing=f"{node.lab}/{namespace}")
            for namespace, dataset in (("a", "b-c"), ("a-b", "c"))
            for path in (node.fluid_path("juicefs", namespace, dataset),)
        ]
        self.pods: list[DemoPod] = []
        self.containers: list[Container] = []
        for namespace, source in zip(("a", "a-b"), self.sources, strict=True):
            volume = PodVolume("v", source, directory="a-b-c", driver=FLUID)
            pod = node.add_pod("p", [volume], [PodMount("v", "/data")], namespace=namespace)
            self.pods.append(pod)
            self.containers.append(node.start_container(pod))

    def check_nobody_has_the_others(self) -> None:
        for container, source in zip(self.containers, self.sources, strict=True):
            assert is_broken(container) or container.read("/data/hello") == source.name

    def wait_until_each_has_its_own(self) -> None:
        for container, source in zip(self.containers, self.sources, strict=True):
            container.wait_until_readable("/data/hello", DEADLINE)
            assert container.read("/data/hello") == source.name


@in_lab(timeout=60)
def test_two_teams_with_one_volume_name_are_told_apart_by_lineage(node: DemoNode) -> None:
    teams = TwoTeams(node)
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(4)
        for source in teams.sources:
            source.stop()
        for source in reversed(teams.sources):
            source.start()
            time.sleep(0.3)
            teams.check_nobody_has_the_others()
        teams.wait_until_each_has_its_own()


@pytest.mark.slow
@in_lab(timeout=60)
def test_two_teams_with_one_volume_name_are_told_apart_by_namespace(node: DemoNode) -> None:
    teams = TwoTeams(node)
    for source in teams.sources:
        source.stop()
    with (
        DemoKubelet(node.pod_list) as kubelet,
        DaemonProcess(node, settings={"kubelet.url": kubelet.url}) as daemon,
    ):
        daemon.wait_for(lambda d: d["pods_known"])
        first, second = teams.sources
        second.start()
        wait_for_refusal(daemon, teams.pods[0], "source_missing")
        teams.check_nobody_has_the_others()
        first.start()
        teams.wait_until_each_has_its_own()


@pytest.mark.slow
@in_lab(timeout=60)
def test_without_names_or_memory_two_teams_get_nothing(node: DemoNode) -> None:
    teams = TwoTeams(node)
    for source in teams.sources:
        source.stop()
    with DaemonProcess(node) as daemon:
        for source in teams.sources:
            # The first one alone is no answer either: the other team's may come.
            source.start()
            for pod in teams.pods:
                wait_for_refusal(daemon, pod, "ambiguous_source")
            assert all(map(is_broken, teams.containers))


@in_lab(timeout=60)
def test_a_bind_that_two_sources_claim_is_left_alone(node: DemoNode) -> None:
    """It came from a place that is not where its driver has its dataset."""
    real = node.add_source("real")
    node.add_source("claimant", path=node.fluid_path("juicefs", "demo", "data"))
    volume = PodVolume("v", real, directory="demo-data", driver=FLUID)
    pod = node.add_pod("p", [volume], [PodMount("v", "/data")])
    container = node.start_container(pod)
    with DaemonProcess(node) as daemon:
        daemon.wait_for(lambda d: any(b["source"]["candidates"][1:] for b in d["binds"]))
        real.kill()
        real.restart()
        wait_for_refusal(daemon, pod, "ambiguous_source")
        assert is_broken(container)


@pytest.mark.slow
@in_lab(timeout=60)
def test_one_dataset_with_two_runtimes_is_left_alone(node: DemoNode) -> None:
    source = node.add_source("one", path=node.fluid_path("juicefs", "demo", "data"))
    volume = PodVolume("v", source, directory="demo-data", driver=FLUID)
    pod = node.add_pod("p", [volume], [PodMount("v", "/data")])
    container = node.start_container(pod)
    source.kill()
    source.restart()
    node.add_source("two", path=node.fluid_path("alluxio", "demo", "data"))
    with DaemonProcess(node) as daemon:
        wait_for_refusal(daemon, pod, "ambiguous_source")
        assert is_broken(container)


@in_lab(timeout=60)
def test_equal_mount_source_strings_mean_nothing(node: DemoNode) -> None:
    sources = [node.add_source(name) for name in ("one", "two", "three")]
    containers = [pod_with_container(node, source, source.name)[1] for source in sources]
    with open("/proc/self/mountinfo", "rb") as file:
        names = {mount.source for mount in parse_mount_table(file.read()).fuse_mounts()}
    assert len(names) == 1, "the strings differ: nothing is tested"
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(6)
        for source in sources:
            source.stop()
        for source in reversed(sources):
            source.start()
        for container, source in zip(containers, sources, strict=True):
            container.wait_until_readable("/data/hello", DEADLINE)
            assert container.read("/data/hello") == source.name


# ------------------------------------------------------------------------------- places


@in_lab(timeout=60)
def test_a_source_at_a_new_place_is_not_guessed(node: DemoNode) -> None:
    source = node.add_source("one")
    pod, container = pod_with_container(node, source, "p")
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(2)
        old = source.path
        source.restart(path=f"{node.lab}/sources/elsewhere")
        wait_for_refusal(daemon, pod, "source_missing")
        assert is_broken(container)
        source.restart(path=old)
        container.wait_until_readable("/data/hello", DEADLINE)


@pytest.mark.slow
@in_lab(timeout=60)
def test_another_kind_of_file_system_at_the_place_is_no_source(node: DemoNode) -> None:
    source = node.add_source("one")
    pod, container = pod_with_container(node, source, "p")
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(2)
        source.stop()
        syscalls.mount("tmpfs", source.path, "tmpfs", 0, "size=64k")
        wait_for_refusal(daemon, pod, "source_type")
        assert is_broken(container)
        detach_all(source.path)
        source.start()
        container.wait_until_readable("/data/hello", DEADLINE)


def pod_with_hostpath(node: DemoNode) -> tuple[Source, Source, Container]:
    """A pod with a volume of source ``one`` and a hostPath to source ``two``."""
    one, two = node.add_source("one"), node.add_source("two")
    volumes = [PodVolume("v", one), PodVolume("h", kind=VolumeKind.HOST_PATH, host_path=two.path)]
    mounts = [PodMount("v", "/data"), PodMount("h", "/host")]
    return one, two, node.start_container(node.add_pod("p", volumes, mounts))


@pytest.mark.slow
@in_lab(timeout=60)
def test_a_hostpath_beside_the_pods_only_volume_is_not_that_volume(node: DemoNode) -> None:
    one, two, container = pod_with_hostpath(node)
    with (
        DemoKubelet(node.pod_list) as kubelet,
        DaemonProcess(node, settings={"kubelet.url": kubelet.url}) as daemon,
    ):
        daemon.wait_until_watching(2)
        for source in (two, one):
            source.kill()
            source.restart()
        container.wait_until_readable("/data/hello", DEADLINE)
        time.sleep(ALL_LOOKS)
        assert container.read("/data/hello") == "one"
        assert container.read("/host/hello") == "two"


@pytest.mark.slow
@in_lab(timeout=60)
def test_without_the_pods_spec_a_hostpath_is_nobodys(node: DemoNode) -> None:
    one, two, container = pod_with_hostpath(node)
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(2)
        for source in (two, one):
            source.kill()
            source.restart()
        container.wait_until_readable("/data/hello", DEADLINE)
        time.sleep(ALL_LOOKS)
        assert is_broken(container, "/host/hello")


# ------------------------------------------------------------------------------ numbers


def unpublish(pod: DemoPod) -> None:
    """Take a pod's container and bind away as if they had never been."""
    for container in pod.containers.values():
        container.stop()
    detach_all(pod.volume_path("v"))


@contextmanager
def lower_numbers_taken(node: DemoNode, device: str) -> Iterator[None]:
    """Let this number be the next that the kernel gives away, unless somebody has it already."""
    fillers: list[str] = []
    for number in range(200):
        path = os.path.join(node.lab, f"filler{number}")
        os.makedirs(path, exist_ok=True)
        syscalls.mount("filler", path, "tmpfs", 0, "size=4k")
        fillers.append(path)
        if int(device_at(path).split(":")[1]) >= int(device.split(":")[1]):
            detach_all(fillers.pop())
            break
    try:
        yield
    finally:
        for path in fillers:
            detach_all(path)


def hand_number_over(
    node: DemoNode, daemon: DaemonProcess, one: Source, two: Source
) -> tuple[DemoPod, str]:
    """Let the daemon learn a pod's source, and give its number to another while nobody watches.

    Returns the pod, which has nothing mounted any more, and the number.  Others on this machine
    get numbers too: until it is ours it is tried again.
    """
    for number in range(20):
        one.start()
        pod, _ = pod_with_container(node, one, f"p{number}")
        daemon.start()
        daemon.wait_until_watching(2)
        time.sleep(UNTIL_ON_DISK)
        device = device_at(one.path)
        daemon.stop()
        unpublish(pod)
        one.stop()
        with lower_numbers_taken(node, device):
            two.start()
        if device_at(two.path) == device:
            return pod, device
        two.stop()
    raise AssertionError("the number was never used again: nothing is tested")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["other-pod", "same-path"])
@in_lab(timeout=90)
def test_a_device_number_that_another_server_got_while_nobody_watched(
    node: DemoNode, where: str
) -> None:
    one, two = node.add_source("one", starts=False), node.add_source("two", starts=False)
    daemon = DaemonProcess(node)
    pod, device = hand_number_over(node, daemon, one, two)
    if where == "other-pod":
        pod, container = pod_with_container(node, two, "q")
    else:
        syscalls.mount(two.path, pod.volume_path("v"), None, syscalls.MS_BIND)
        container = node.start_container(pod)
    assert device_at(pod.volume_path("v")) == device
    one.start()
    # Dead before anybody could see it alive: all that is known is what was written down.
    two.kill()
    with daemon:
        wait_for_refusal(daemon, pod, "source_missing")
        assert is_broken(container)
        two.restart()
        container.wait_until_readable("/data/hello", DEADLINE)
        assert container.read("/data/hello") == "two"


@pytest.mark.slow
@in_lab(timeout=90)
def test_a_device_number_without_any_trace_of_its_source(node: DemoNode) -> None:
    one, two = node.add_source("one", starts=False), node.add_source("two", starts=False)
    daemon = DaemonProcess(node)
    pod, _ = hand_number_over(node, daemon, one, two)
    syscalls.mount(two.path, pod.volume_path("v"), None, syscalls.MS_BIND)
    container = node.start_container(pod)
    two.stop()
    one.start()
    with daemon:
        two.start()
        wait_for_refusal(daemon, pod, "no_source")
        assert is_broken(container)


@pytest.mark.slow
@in_lab(timeout=90)
def test_device_numbers_that_change_hands_while_somebody_watches(node: DemoNode) -> None:
    """Each crash frees a number that the next server gets, the other volume's too."""
    sources = [node.add_source("one"), node.add_source("two")]
    containers = [pod_with_container(node, source, source.name)[1] for source in sources]
    owners: dict[str, set[str]] = {}
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(4)
        for number in range(40):
            if number >= 8 and any(len(names) > 1 for names in owners.values()):
                break
            both = sources if number % 2 else list(reversed(sources))
            for source in both:
                source.stop()
            for source in both:
                source.start()
                owners.setdefault(device_at(source.path), set()).add(source.name)
            check_own_data(containers, sources)
    assert any(len(names) > 1 for names in owners.values()), owners


def check_own_data(containers: Sequence[Container], sources: Sequence[Source]) -> None:
    for container, source in zip(containers, sources, strict=True):
        container.wait_until_readable("/data/hello", DEADLINE)
        assert container.read("/data/hello") == source.name


@in_lab(timeout=60)
def test_the_table_before_the_daemon_is_left_as_it_is(node: DemoNode) -> None:
    """Started on a node where everything is strange already, it changes nothing."""
    one = node.add_source("one")
    pod, container = pod_with_container(node, one, "p")
    other = os.path.join(node.lab, "other")
    os.mkdir(other)
    one.stop()
    one.restart(path=other)
    with open("/proc/self/mountinfo") as file:
        before = file.read()
    inside = container.mountinfo()
    with DaemonProcess(node) as daemon:
        wait_for_refusal(daemon, pod, "no_source")
        with open("/proc/self/mountinfo") as file:
            assert file.read() == before
        assert container.mountinfo() == inside
