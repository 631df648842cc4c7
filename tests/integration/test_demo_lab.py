"""The lab for tests must fail when its test does, and see what is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.world import PrivateWorld
from fusewatchd.linux import syscalls
from tests.lab import LabFailure, in_lab, run_in_lab, run_in_world, why_no_lab

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(bool(why_no_lab()), reason=f"no lab: {why_no_lab()}"),
]


def test_value_comes_back() -> None:
    assert run_in_lab(lambda node: [node.name, 1]) == ["demo-node", 1]


def test_failure_comes_back_with_its_line() -> None:
    def body(node: DemoNode) -> None:
        something = 1
        assert something == 2

    with pytest.raises(pytest.fail.Exception, match="assert 1 == 2"):
        run_in_lab(body)


def test_skip_comes_back() -> None:
    with pytest.raises(pytest.skip.Exception, match="because"):
        run_in_lab(lambda node: pytest.skip("because"))


def test_output_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    def body(node: DemoNode) -> None:
        print("from python")
        subprocess.run(["echo", "from a child"], check=True)
        print("to stderr", file=sys.stderr)

    run_in_lab(body)
    assert capsys.readouterr().out == "from python\nfrom a child\nto stderr\n"


def test_mount_left_behind_is_a_failure() -> None:
    def body(world: PrivateWorld) -> None:
        os.mkdir(f"{world.lab}/left")
        syscalls.mount("left", f"{world.lab}/left", "tmpfs", 0)

    with pytest.raises(pytest.fail.Exception, match=r"left behind in the lab: mount '.*/left'"):
        run_in_world(body)


def test_process_left_behind_is_a_failure() -> None:
    def body(world: PrivateWorld) -> None:
        # Its parent ends at once: only who adopts orphans can see it.
        subprocess.run(["sh", "-c", "sleep 1000 &"], check=True)

    with pytest.raises(pytest.fail.Exception, match=r"process \d+ sleep 1000"):
        run_in_world(body)


def test_deadline_is_a_failure() -> None:
    with pytest.raises(LabFailure, match="did not end in 1 s"):
        run_in_world(lambda world: time.sleep(1000), timeout=1)


def test_body_that_dies_is_a_failure() -> None:
    with pytest.raises(LabFailure, match="died with status 3"):
        run_in_world(lambda world: os._exit(3))


@pytest.mark.parametrize("number", [1, 2])
@in_lab(timeout=30)
def test_fixtures_and_parameters_follow_the_node(
    node: DemoNode, number: int, tmp_path: object
) -> None:
    assert number in (1, 2)
    assert os.path.isdir(str(tmp_path))
    assert os.path.isdir(node.pods_directory)
