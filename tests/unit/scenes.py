"""A node as pure values: sources, binds, containers; looked at and planned for cycle by cycle."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fusewatchd.config.settings import DriverSettings
from fusewatchd.diagnose.diagnosis import Diagnosis, Knowledge, diagnose
from fusewatchd.diagnose.exclusions import Switches
from fusewatchd.drivers import drivers_for
from fusewatchd.model.actions import ReplaceMount
from fusewatchd.model.findings import Finding, Gap
from fusewatchd.model.kubelet import plain_directory
from fusewatchd.model.ledger import Ledger
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount, MountNamespace, NamespaceKind
from fusewatchd.model.plan import Plan
from fusewatchd.model.pods import Pod, Volume, VolumeData, VolumeMount
from fusewatchd.model.servers import SERVED, Answer, Connection, FuseServer, Root
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason
from fusewatchd.observe.namespaces.container_owners import ListedPods, settle
from fusewatchd.plan.planner import Policy, plan
from fusewatchd.reconcile.ledger_update import take_diagnosis

ROOT = "/var/lib/kubelet"
UID = "aaaaaaaa-0000-4000-8000-000000000001"
OTHER_UID = "bbbbbbbb-0000-4000-8000-000000000002"
SOURCE = "/mnt/source"
OLD, NEW, THIRD = Device(0, 50), Device(0, 60), Device(0, 70)
NAMESPACE = 4026531999


def publish_path(uid: str = UID, volume: str = "pv") -> str:
    return f"{ROOT}/pods/{uid}/volumes/kubernetes.io~csi/{volume}/mount"


def subpath_path(uid: str = UID, volume: str = "pv") -> str:
    return f"{ROOT}/pods/{uid}/volume-subpaths/{volume}/app/0"


def pod(
    uid: str = UID, *, namespace: str = "shop", is_deleting: bool = False, **annotations: str
) -> Pod:
    ours = {f"fusewatchd.io/{name}": value for name, value in annotations.items()}
    containers = {container_id(uid): "app"}
    return Pod(
        uid, uid, namespace, "web", "Running", is_deleting, annotations=ours, containers=containers
    )


def container_id(uid: str) -> str:
    return ("c" if uid == UID else "e") * 64


def spec(volume: Volume, *mounts: VolumeMount) -> dict[str, Pod]:
    """The pod list, with this volume at /data of the container ``app`` if nothing is said."""
    entries = mounts or (entry(),)
    return {UID: replace(pod(), volumes=(volume,), volume_mounts=entries)}


def entry(**keys: object) -> VolumeMount:
    """A volumeMount, as ``spec`` has it but for these keys."""
    made = VolumeMount("app", "v", "/data", read_only=False, propagation="None")
    return replace(made, **keys)  # type: ignore[arg-type]


@dataclass
class Scene:
    """What there is; change it, then look."""

    mounts: list[Mount] = field(default_factory=list)
    namespaces: list[MountNamespace] = field(default_factory=list)
    answers: dict[Device, Answer | None] = field(default_factory=dict)
    first_asked_at: dict[Device, float] = field(default_factory=dict)
    hung: set[Device] = field(default_factory=set)
    slow: set[Device] = field(default_factory=set)
    confirmations: dict[Device, int] = field(default_factory=dict)
    errnos: dict[Device, int] = field(default_factory=dict)
    roots: dict[Device, Root] = field(default_factory=dict)
    waiting: int | None = 3
    pods: dict[str, Pod] | None = None
    pods_are_current: bool = False
    pods_asked_at: float = 0.0
    listed_at: float = 0.0
    """When the kubelet was asked for a whole list; no container was first seen before 0."""
    servers: dict[Device, tuple[FuseServer, ...]] = field(default_factory=dict)
    volume_data: dict[tuple[str, str], VolumeData] = field(default_factory=dict)
    gaps: tuple[Gap, ...] = ()
    looked_at: float | None = None
    """When the other namespaces were looked at; None: just now."""
    seen_at: dict[Device, float] = field(default_factory=dict)
    policy: Policy = field(default_factory=Policy)
    switches: Switches = field(default_factory=Switches)
    ledger: Ledger = field(default_factory=Ledger)
    now: float = 100.0
    last_id: int = 100

    def mount(
        self,
        point: str,
        device: Device = OLD,
        *,
        root: str = "/",
        options: str = "rw,relatime",
        parent: int = 1,
        peer_group: int = 5,
        master: int = 0,
        fs_type: str = "fuse.demofs",
        on_host: bool = True,
    ) -> Mount:
        self.last_id += 1
        made = Mount(
            self.last_id, parent, device, root, point, options, peer_group, master, fs_type,
            "demofs", "rw,user_id=0,group_id=0,allow_other", self.last_id + 10_000,
        )  # fmt: skip
        if on_host:
            self.mounts.append(made)
        self.answers.setdefault(device, Answer.ANSWERED)
        return made

    def unmount(self, mount: Mount) -> None:
        self.mounts.remove(mount)

    def container(
        self, *mounts: Mount, uid: str = UID, kind: NamespaceKind = NamespaceKind.CONTAINER
    ) -> None:
        inode = NAMESPACE + len(self.namespaces)
        pod_uid = uid if kind is NamespaceKind.CONTAINER else ""
        made = MountNamespace(inode, 4000, 1, kind, pod_uid, container_id(uid), mounts)
        self.namespaces.append(made)

    def inside(self, point: str = "/data", device: Device = OLD, **more: object) -> Mount:
        defaults: dict[str, object] = {"peer_group": 0, "parent": 900}
        return self.mount(point, device, on_host=False, **{**defaults, **more})  # type: ignore[arg-type]

    def snapshot(self) -> Snapshot:
        connections = {
            device: Connection(
                device,
                Answer.PENDING if device in self.hung | self.slow else answer,
                first_asked_at=self.first_asked_at.get(device),
                answered_at=self.now,
                is_overdue=device in self.slow | self.hung,
                is_hung=device in self.hung,
                waiting=self.waiting,
                confirmations=self.confirmations.get(device, 0),
                errno=self.errnos.get(device, 0),
                root=self.roots.get(device, SERVED),
            )
            for device, answer in self.answers.items()
        }
        return Snapshot(
            self.now,
            MountTable.of(self.mounts),
            plain_directory(ROOT),
            connections,
            self.servers,
            settle(self.namespaces, ListedPods(self.pods, self.listed_at), {}),
            self.pods,
            self.pods_are_current,
            self.volume_data,
            self.seen_at,
            pods_asked_at=self.pods_asked_at,
            namespaces_looked_at=self.now if self.looked_at is None else self.looked_at,
            gaps=self.gaps,
        )

    def look(self) -> Diagnosis:
        snapshot = self.snapshot()
        knowledge = Knowledge(
            drivers_for(DriverSettings()), frozenset({"fuse.lxcfs"}), self.switches
        )
        diagnosis = diagnose(snapshot, self.ledger, knowledge)
        self.ledger = take_diagnosis(self.ledger, diagnosis, snapshot)
        self.now += 1
        return diagnosis

    def plan(self) -> tuple[tuple[Finding, ...], Plan]:
        findings = self.look().findings
        return findings, plan(findings, self.snapshot(), self.ledger, self.policy, self.now)

    def crash_and_restart(self, source: Mount, *, new: Device = NEW) -> Mount:
        """The server of ``source`` dies and comes back at the same place."""
        self.unmount(source)
        self.answers[source.device] = Answer.DISCONNECTED
        return self.mount(source.mount_point, new)


def usual() -> tuple[Scene, Mount, Mount]:
    """One source, one publish bind, one container; all seen while healthy."""
    scene = Scene()
    source = scene.mount(SOURCE)
    bind = scene.mount(publish_path(), peer_group=6)
    scene.container(scene.inside())
    scene.look()
    return scene, source, bind


def reasons(of: Plan) -> set[Reason]:
    return {refusal.reason for refusal in of.refused}


def replacements(of: Plan) -> list[ReplaceMount]:
    return [action for action in of.actions if isinstance(action, ReplaceMount)]


def with_root(mount: Mount, root: str) -> Mount:
    return replace(mount, root=root)
