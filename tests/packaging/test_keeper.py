"""The keeper as systemd runs it: its socket, its store of descriptors, its watchdog."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.packaging.conftest import Packages
from tests.packaging.node import PackagedNode, packaged_node

pytestmark = [pytest.mark.packaging, pytest.mark.slow, pytest.mark.timeout(600)]

SERVICE, LISTENER = "fusewatchd-keeper.service", "fusewatchd-keeper.socket"
MOUNT, CALLER = "/srv/keeper/mount", "keeper-caller.service"

ASK = """
import json, os, sys
from fusewatchd.json_values import encode
from fusewatchd.keeper.client import Client
from fusewatchd.keeper.protocol import Hold, List
from fusewatchd.linux.fuse_device import is_fuse_device
with Client("/run/fusewatchd-keeper.sock", 10) as client:
    if len(sys.argv) > 1:
        mount, server, pod = sys.argv[1:]
        device = os.stat(mount).st_dev
        request = Hold(os.major(device) << 20 | os.minor(device), "test", 60.0, True, (pod,))
        copies = [int(n) for n in os.listdir(f"/proc/{server}/fd")
                  if os.readlink(f"/proc/{server}/fd/{n}") == "/dev/fuse"]
        import ctypes
        pidfd = os.pidfd_open(int(server))
        copy = ctypes.CDLL(None).syscall(438, pidfd, copies[0], 0)
        answer = client.ask(request, [copy, pidfd])
    else:
        answer = client.ask(List())
    print(json.dumps(encode(answer)))
"""


@pytest.fixture
def node(packages: Packages) -> Iterator[PackagedNode]:
    with packaged_node("bookworm", packages.directory) as node:
        node.install(packages.deb)
        node.write("/srv/ask.py", ASK)
        yield node


def show(node: PackagedNode, unit: str, name: str) -> str:
    return node.machine.output("systemctl", "show", "--value", "--property", name, unit)


def ask(node: PackagedNode, *words: str) -> Any:
    # The modules of the package are outside of Python's own path.
    path = "PYTHONPATH=/usr/share/fusewatchd"
    return json.loads(node.machine.output("env", path, "python3", "/srv/ask.py", *words))


def keeper_pid(node: PackagedNode) -> int:
    return int(show(node, SERVICE, "MainPID"))


def wait_for_another(node: PackagedNode, before: int) -> None:
    node.machine.wait_for(lambda: keeper_pid(node) not in (0, before))
    node.machine.wait_for(lambda: show(node, SERVICE, "ActiveState") == "active")


def test_systemd_keeps_what_the_keeper_holds(node: PackagedNode, packages: Packages) -> None:
    run = node.machine.run
    # It runs when there is something to hold.
    assert show(node, LISTENER, "ActiveState") == "active"
    assert show(node, SERVICE, "ActiveState") == "inactive"
    run("mkdir", "-p", "/srv/keeper/backing", MOUNT)
    run("systemd-run", "--unit=keeper-server", "bindfs", "-f", "/srv/keeper/backing", MOUNT)
    run("sh", "-c", f"until mountpoint -q {MOUNT}; do sleep 0.1; done")
    server = show(node, "keeper-server.service", "MainPID")
    hold = ask(node, MOUNT, server, f"/system.slice/{CALLER}")["hold"]
    first = keeper_pid(node)
    node.machine.wait_for(lambda: show(node, SERVICE, "NFileDescriptorStore") == "2")
    # Neither a restart of the daemon nor an upgrade is one of the keeper.
    run("systemctl", "restart", "fusewatchd.service")
    node.install(packages.deb, "--reinstall")
    assert keeper_pid(node) == first
    run("kill", "-KILL", str(first))
    wait_for_another(node, first)
    assert [one["hold"] for one in ask(node)["connections"]] == [hold]
    # Callers wait; one that stands still is found by the watchdog, and the next goes on.
    run("kill", "-KILL", server)
    run("systemd-run", f"--unit={CALLER}", "stat", f"{MOUNT}/x")
    node.machine.wait_for(lambda: ask(node)["connections"][0]["waiting"] == 1)
    second = keeper_pid(node)
    run("kill", "-STOP", str(second))
    wait_for_another(node, second)
    assert show(node, CALLER, "ActiveState") != "active"
    (one,) = ask(node)["connections"]
    assert (one["hold"], one["state"], one["waiting"]) == (hold, "holding", 0)
    # Removal lets go of everything.
    run("apt-get", "remove", "--yes", "fusewatchd")
    assert "keeper" not in node.machine.output("ps", "-e", "-o", "args=").replace(MOUNT, "")
    assert "keeper" not in node.machine.output("ls", "/run")
    node.machine.run("stat", f"{MOUNT}/x", check=False)
    run("umount", MOUNT)
