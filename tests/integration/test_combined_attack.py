"""Everything that strangers can multiply, at once, while another pod's server crashes."""

from __future__ import annotations

from statistics import median
from typing import Any

import pytest

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from tests.attacks import DEADLINE, SMALL, attackers, crashes, nothing
from tests.lab import in_lab, pod_with_container

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

CRASHES = 10
RATIO = 100
"""Of the medians; a machine of two processors has other tests beside this one."""


@in_lab(timeout=180)
def test_ten_recoveries_among_all_attacks(node: DemoNode) -> None:
    source = node.add_source("victim")
    _, container = pod_with_container(node, source, "victim")
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(2)
        quiet = crashes(source, container, CRASHES, nothing)
        with attackers(node, SMALL) as attack:
            # The pod, and the users of the node together.
            daemon.wait_for(lambda d: named(d) >= {attack.pod.uid, None}, DEADLINE)
            taken = crashes(source, container, CRASHES, attack.crash)
        assert len(taken) == CRASHES
        assert median(taken) <= RATIO * median(quiet), (quiet, taken)
        assert f"owner=pod pod_uid={attack.pod.uid}" in daemon.log()


def named(document: Any) -> set[str | None]:
    owners = document["refused_owners"]
    return {owner["pod"]["uid"] if owner["pod"] else None for owner in owners}
