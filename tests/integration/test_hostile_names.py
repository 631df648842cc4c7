"""Names that a pod or a user may choose: every byte that a file name can have."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume
from fusewatchd.linux.mount_kernel import Way
from fusewatchd.text import printable
from tests.features import best_way, needs_way
from tests.lab import in_lab

pytestmark = pytest.mark.kernel

DEADLINE = 15.0

NAMES = {
    "space": " a  b ",
    "newline": "a\nb",
    "line of a mount table": "1\n36 35 0:99 root etc rw - fuse.evil evil rw\n",
    "tab": "a\tb",
    "backslash": "a\\b\\",
    "written escape": "a\\040b\\012c",
    "all control characters": "".join(map(chr, [*range(1, 32), 127])),
    "invalid UTF-8": os.fsdecode(b"a\xff\xfe\xc3\x28"),
    "one surrogate in UTF-8": os.fsdecode(b"\xed\xa0\x80"),
    "longest": "n" * 248,
    "terminal": "\x1b[2J\x1b]0;owned\x07\u202e",
    "separator": "x - fuse.evil",
    "dots": "...",
    "deleted": "gone deleted",
    "percent": "%n%s%00{}{0}$(id)`id`",
    "wide": "\U0001f4a9" * 60,
}
ALL = tuple(NAMES)
QUICK = ("newline", "written escape", "invalid UTF-8", "longest")
LONG_PATH = "/" + "/".join("p" * 250 for _ in range(14))


@dataclass
class Subject:
    """A pod whose volume, subPath and paths in its container all have a name."""

    name: str
    pod: DemoPod
    container: Container
    paths: tuple[str, ...]


def add_subject(node: DemoNode, number: int, name: str) -> Subject:
    source = node.sources["one"]
    text = NAMES[name]
    volume = PodVolume("v", source, directory=f"v{text}", handle=f"h{number}")
    source.put(f"s{number}{text}/x{text}/hello", name)
    mounts = [
        PodMount("v", f"/d{text}"),
        PodMount("v", f"/e{text}/f{text}", sub_path=f"s{number}{text}/x{text}"),
    ]
    pod = node.add_pod(f"p{number}", [volume], mounts)
    paths = (f"/d{text}/s{number}{text}/x{text}/hello", f"/e{text}/f{text}/hello")
    return Subject(name, pod, node.start_container(pod), paths)


@pytest.mark.parametrize(
    ("way", "is_old", "names"),
    [
        (best_way(), False, QUICK),
        pytest.param(Way.BENEATH, False, ALL, marks=[pytest.mark.slow, needs_way(Way.BENEATH)]),
        pytest.param(Way.ON_TOP, False, ALL, marks=[pytest.mark.slow, needs_way(Way.ON_TOP)]),
        pytest.param(Way.STAGED, True, ALL, marks=pytest.mark.slow),
    ],
    ids=["quick", "beneath", "on-top", "staged-old-kernel"],
)
@in_lab(timeout=110)
def test_every_name_recovers(
    node: DemoNode, way: Way, is_old: bool, names: tuple[str, ...]
) -> None:
    source = node.add_source("one", files={"hello": "one"})
    subjects = [add_subject(node, number, name) for number, name in enumerate(names)]
    long = node.add_pod("long", [PodVolume("v", source)], [PodMount("v", LONG_PATH)])
    container = node.start_container(long)
    with DaemonProcess(node, way=way.value, as_old_kernel=is_old) as daemon:
        daemon.wait_until_watching(4 * len(subjects) + 2)
        for _ in range(2):
            source.kill()
            source.restart()
            # Whoever looks for a directory in the dead file system can make the kernel drop it.
            daemon.wait_until_watching(4 * len(subjects) + 2, 60)
            for subject in subjects:
                for path in subject.paths:
                    subject.container.wait_until_readable(path, DEADLINE)
                    assert subject.container.read(path) == subject.name
            container.wait_until_readable(f"{LONG_PATH}/hello", DEADLINE)
            document = daemon.wait_until_watching(4 * len(subjects) + 2)
        shown = {bind["mount_point"] for bind in document["binds"]}
        for subject in subjects:
            # Whole and escaped, so that it can be told which one it is.
            text = NAMES[subject.name]
            assert printable(f"/e{text}/f{text}", 10_000) in shown
            assert printable(subject.pod.volume_path("v"), 10_000) in shown
        assert daemon.log().isprintable() or all(map(str.isprintable, daemon.log().splitlines()))
