"""Golden cases of drivers: mount tables of a node that is well, broken and restarted.

A case is a directory of ``tests/data/drivers``.  ``healthy.mountinfo``: all is well;
``killed.mountinfo``: the servers died just now; ``broken.mountinfo``: what they had mounted was
detached; ``restarted.mountinfo``: it is mounted anew, the binds are still the old ones;
``dead.json``: which file systems answer ENOTCONN in each of them.  All of that is captured from a
kernel (``tests/drivercapture.py``), from what ``layout.json`` says that the driver does; the case
``captured`` is from a node with Kubernetes, without ``killed`` and ``dead.json``.  ``case.json``:

* ``namespaces`` of pods by uid; ``volume_data`` by ``uid/volume`` as [driver, handle, is inline];
  ``staging_data`` by staging path (``staging_data_restarted`` where it changes); ``templates``
  and ``fluid_mount_root`` of the configuration; ``tables`` where they are files of another name;
* ``binds`` by mount point, all that the tables have: the ``rule`` and the ``source`` while
  healthy; the reason while ``broken`` (and ``broken_rule``, where it is another), the reason or
  ``recovers`` once ``restarted``, both for a daemon that never saw the node healthy;
  ``remembered``: as ``restarted`` for one that did; ``without_namespaces``: as ``restarted``
  while the kubelet has not told; ``why``: what the answer's words must contain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusewatchd.config.settings import Settings, settings_from
from fusewatchd.diagnose import lineage, sources
from fusewatchd.drivers import drivers_for
from fusewatchd.drivers.base import Driver
from fusewatchd.model.findings import SourceAnswer
from fusewatchd.model.kubelet import plain_directory
from fusewatchd.model.ledger import Facts
from fusewatchd.model.mount_table import MountTable, parse_mount_table
from fusewatchd.model.mounts import Device, Mount
from fusewatchd.model.pods import BindPath, Pod, VolumeData
from fusewatchd.model.servers import Answer, Connection
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.parse.kubelet_paths import parse_bind_path

DIRECTORY = Path(__file__).parent / "data" / "drivers"
ROOT = "/var/lib/kubelet"
PODS = f"{ROOT}/pods"
RECOVERS = "recovers"


def case_names() -> list[str]:
    return sorted(path.name for path in DIRECTORY.iterdir())


@dataclass(frozen=True)
class Case:
    """One node before, during and after a crash of all its servers."""

    healthy: MountTable
    killed: MountTable | None
    broken: MountTable
    restarted: MountTable
    dead: Mapping[str, list[str]]
    """By state; empty where that was not captured."""
    document: Mapping[str, Any]

    @classmethod
    def load(cls, name: str) -> Case:
        directory = DIRECTORY / name
        document = json.loads((directory / "case.json").read_text())
        files = document.get("tables", {})
        is_captured = (directory / "dead.json").exists()

        def table(state: str) -> MountTable:
            return parse_mount_table(
                (directory / files.get(state, f"{state}.mountinfo")).read_bytes()
            )

        return cls(
            table("healthy"),
            table("killed") if is_captured else None,
            table("broken"),
            table("restarted"),
            json.loads((directory / "dead.json").read_text()) if is_captured else {},
            document,
        )

    @property
    def drivers(self) -> tuple[Driver, ...]:
        layouts: dict[str, Any] = {"templates": self.document.get("templates", [])}
        if "fluid_mount_root" in self.document:
            layouts["fluid"] = {"mount_root": self.document["fluid_mount_root"]}
        settings: Settings = settings_from({"drivers": layouts}, "case.json")
        return drivers_for(settings.drivers)

    def snapshot(self, table: MountTable, *, knows_pods: bool = True) -> Snapshot:
        """A look at one of the tables, with what its file systems answered."""
        dead = self._dead(table)
        connections = {
            mount.device: Connection(
                mount.device, Answer.DISCONNECTED if mount.device in dead else Answer.ANSWERED
            )
            for mount in table.fuse_mounts()
        }
        return Snapshot(
            0.0,
            table,
            plain_directory(ROOT),
            connections,
            pods=self._pods() if knows_pods else None,
            volume_data={
                (uid, volume): VolumeData(*entry)
                for key, entry in self.document.get("volume_data", {}).items()
                for uid, _, volume in (key.partition("/"),)
            },
            staging_data=self._staging_data(table),
        )

    def _dead(self, table: MountTable) -> set[Device]:
        """What is shown only by binds of pods has no server, where nobody has asked."""
        for state in ("healthy", "killed", "broken", "restarted"):
            if table is getattr(self, state) and self.dead:
                numbers = (device.split(":") for device in self.dead[state])
                return {Device(int(major), int(minor)) for major, minor in numbers}
        if table is self.healthy:
            return set()
        alive = {mount.device for mount in table.fuse_mounts() if not _is_inside(mount)}
        return {mount.device for mount in table.fuse_mounts()} - alive

    def _staging_data(self, table: MountTable) -> dict[str, VolumeData]:
        known = self.document.get("staging_data", {})
        if table is not self.healthy:
            known = self.document.get("staging_data_restarted", known)
        return {path: VolumeData(*entry) for path, entry in known.items() if table.at(path)}

    def _pods(self) -> dict[str, Pod]:
        return {
            uid: Pod(uid, uid, namespace, "p", "Running", is_deleting=False)
            for uid, namespace in self.document.get("namespaces", {}).items()
        }

    def facts(self) -> Facts:
        """What is remembered of the healthy node."""
        working = {mount.device for mount in self.healthy.fuse_mounts()}
        return lineage.learn({}, self.healthy, (), PODS, working)

    def answer(self, point: str, snapshot: Snapshot, facts: Facts | None = None) -> SourceAnswer:
        path, mount = next(
            bind for bind in binds_of(snapshot.table) if bind[1].mount_point == point
        )
        return sources.locate(path, mount, snapshot, facts or {}, self.drivers)

    def outcome(self, point: str, snapshot: Snapshot, facts: Facts | None = None) -> str:
        """The reason why a bind cannot be replaced, or where its new source is mounted."""
        mount = snapshot.table.top_at(point)
        assert mount is not None
        found = sources.resolve(self.answer(point, snapshot, facts), mount, snapshot)
        return found.mount.mount_point if found.mount else found.refusal.value


def binds_of(table: MountTable) -> list[tuple[BindPath, Mount]]:
    found = ((parse_bind_path(PODS, mount.mount_point), mount) for mount in table.fuse_mounts())
    return [(path, mount) for path, mount in found if path is not None]


def _is_inside(mount: Mount) -> bool:
    return mount.mount_point.startswith(PODS + "/")
