"""To which class each FUSE mount of the node belongs; pure.

Every mount gets the class of the first rule that fits, and the last rule fits all: none is
counted twice or never.  What looks like a pod's volume and fits no rule is *not understood*.

A container without CAP_SYS_ADMIN cannot mount anything.  So what is in its own mount namespace
was put there for it, and when that is dead the pod cannot read it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from fusewatchd.diagnose.spec_entries import entries_at
from fusewatchd.model.accounts import Account, MountClass
from fusewatchd.model.findings import Finding
from fusewatchd.model.ledger import Ledger
from fusewatchd.model.mount_table import below
from fusewatchd.model.mounts import Device, Mount, MountNamespace, NamespaceKind
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.stacks import Grounds, ground_of
from fusewatchd.parse.cgroups import may_be_pod
from fusewatchd.parse.kubelet_paths import is_in_a_pod, kubelet_root_of

_IMAGE_LAYER = re.compile(r"/snapshots/[^/]+/(?:fs|mnt|work)(?:/|$)|/containers/storage/overlay/")
"""containerd, snapshots/overlay: ``<root>/snapshots/<id>/fs``; its remote snapshotters do alike."""
_OF_VOLUMES = frozenset({"persistentVolumeClaim", "ephemeral", "csi", "flexVolume"})
"""Kinds of volumes in a pod's spec that a driver or the kubelet mounts."""
_K = MountClass


class Accountant:
    """Knows what is on the host; classes every mount of it and of other namespaces."""

    def __init__(
        self,
        snapshot: Snapshot,
        findings: Iterable[Finding],
        ledger: Ledger,
        ignored_fs_types: frozenset[str],
        over_quota: Collection[str],
    ) -> None:
        """Index the host.  ``over_quota``: uids of pods with more volumes than are looked at."""
        self._snapshot, self._ledger = snapshot, ledger
        self._ignored, self._over_quota = ignored_fs_types, over_quota
        self._ours: dict[int, dict[str, str]] = {0: {}}
        self._of_pod: dict[str, set[Device]] = {}
        self._labels: dict[Device, str] = {}
        self._sources: set[str] = set()
        self._groups: set[int] = set()
        for uid, device, _ in ledger.former:
            self._of_pod.setdefault(uid, set()).add(device)
            self._labels.setdefault(device, f"pod {uid}")
        for finding in findings:
            self._take(finding)
        self._first: dict[Device, Mount] = {}
        for mount in snapshot.table.fuse_mounts():
            if mount.mount_point not in self._ours[0]:
                first = self._first.setdefault(mount.device, mount)
                if _age(mount) < _age(first):
                    self._first[mount.device] = mount
        self._of_pods = frozenset(device for shown in self._of_pod.values() for device in shown)
        for device, mount in self._first.items():
            if mount.mount_point in self._sources or device not in self._of_pods:
                self._labels[device] = mount.mount_point

    def _take(self, finding: Finding) -> None:
        bind = finding.bind
        if bind.mount is None:
            return
        uid, inode = bind.path.pod_uid, bind.key.namespace
        self._ours.setdefault(inode, {})[bind.key.mount_point] = uid
        self._of_pod.setdefault(uid, set()).add(bind.mount.device)
        self._labels.setdefault(bind.mount.device, f"pod {uid}")
        if bind.namespace is None:
            ground = ground_of(bind.mount, self._snapshot.table)
            if ground is not None and ground.peer_group:
                self._groups.add(ground.peer_group)
        self._sources.update(place.mount_point for place in bind.source.candidates[:1])

    # ---------------------------------------------------------------------- the host

    def of_host(self) -> Iterator[Account]:
        """Class every FUSE mount of the host's table."""
        for mount in self._snapshot.table.fuse_mounts():
            yield self._on_host(mount)

    def _on_host(self, mount: Mount) -> Account:
        point = mount.mount_point
        if point in self._ours[0]:
            return self._made(_K.BIND_HOST, mount, whose=self._ours[0][point])
        rule = self._exception(mount)
        if rule:
            return self._made(_K.EXCEPTION, mount, whose=rule)
        outer = self._volume_above(point)
        if outer:
            return self._made(_K.COPY, mount, whose=outer)
        why = self._looks_like_a_volume(mount)
        if why:
            return self._unexplained(mount, why)
        is_first = self._first.get(mount.device) is mount
        if point in self._sources or (is_first and mount.device not in self._of_pods):
            return self._made(_K.SOURCE, mount, whose=point)
        return self._made(_K.COPY, mount, whose=self._labels.get(mount.device, ""))

    def _exception(self, mount: Mount) -> str:
        if mount.fs_type in self._ignored:
            return f"ignore_fs_types: {mount.fs_type}"
        return "image layer" if _IMAGE_LAYER.search(mount.mount_point) else ""

    def _volume_above(self, point: str) -> str:
        """Return the volume on the host inside which a path is; empty for none."""
        ours = self._ours[0]
        end = point.rfind("/")
        while end > 0:
            if point[:end] in ours:
                return point[:end]
            end = point.rfind("/", 0, end)
        return ""

    def _looks_like_a_volume(self, mount: Mount) -> str:
        """Say what of a mount of the host looks like a pod's volume; empty for nothing."""
        point, pods = mount.mount_point, self._snapshot.kubelet.pods
        if pods and below(point, pods):
            return "it is in the kubelet's pods directory, at no path of a volume"
        root = kubelet_root_of(point)
        if not root or mount.user_id:
            return ""
        twin = pods + point[len(f"{root}/pods") :]
        if pods and twin in self._ours[0]:
            return ""  # the kubelet's directory is mounted at a second place
        return f"it is a pod's volume below another kubelet's directory, {root}"

    # -------------------------------------------------------------- other namespaces

    def signature(self, namespace: MountNamespace) -> tuple[object, ...]:
        """Return all that the classes of a namespace's mounts depend on, beside its table."""
        devices = {mount.device for mount in namespace.mounts if mount.is_fuse}
        uid, is_dead = namespace.pod_uid, self._snapshot.is_dead
        return (
            (namespace.kind, uid, namespace.container_id, namespace.container_name),
            (namespace.is_own, namespace.is_agent, namespace.own_user_namespace),
            self._ours.get(namespace.inode),
            devices & self._of_pod.get(uid, set()),
            uid in self._over_quota,
            self._snapshot.has_gap("containers"),
            (self._snapshot.pods or {}).get(uid),
            [
                (device, is_dead(device), self._labels.get(device), self._serves(uid, device))
                for device in devices
            ],
            self._groups,
            self._of_host_below(namespace),
        )

    def _of_host_below(self, namespace: MountNamespace) -> list[bool]:
        """Return what the host's table says about the place of each FUSE mount."""
        tables, uid = self._snapshot.tables, namespace.pod_uid
        fuse = [mount for mount in namespace.mounts if mount.is_fuse]
        if namespace.kind is NamespaceKind.FOREIGN:
            return [bool(self._snapshot.table.at(mount.mount_point)) for mount in fuse]
        grounds = Grounds(tables.of(namespace))
        found = (grounds.of(mount) for mount in fuse)
        return [ground is not None and self._is_of_host(ground, uid) for ground in found]

    def _is_of_host(self, ground: Mount, uid: str) -> bool:
        """Return True for a directory of the host in a container, as a node agent has.

        What a container has else is its root, a volume of its own pod, or nowhere on the host.
        """
        own = f"/pods/{uid}/"
        if ground.mount_point == "/" or ground.is_fuse or own in ground.root:
            return False
        on_host = self._snapshot.table.on_device(ground.device)
        return any(own not in mount.mount_point for mount in on_host)

    def of_namespace(self, namespace: MountNamespace) -> Iterator[Account]:
        """Class every FUSE mount of another namespace."""
        table = self._snapshot.tables.of(namespace)
        ours = self._ours.get(namespace.inode, {})
        grounds = Grounds(table)
        for mount in table.fuse_mounts():
            if mount.mount_point in ours:
                yield self._made(_K.BIND_CONTAINER, mount, namespace, ours[mount.mount_point])
            elif rule := self._exception(mount):
                yield self._made(_K.EXCEPTION, mount, namespace, rule)
            elif mount.mount_point == "/":
                yield self._made(_K.EXCEPTION, mount, namespace, "root of a container")
            elif namespace.kind is NamespaceKind.FOREIGN:
                yield self._of_no_pod(namespace, mount)
            else:
                yield self._of_a_pod(namespace, mount, grounds.of(mount))

    def _of_no_pod(self, namespace: MountNamespace, mount: Mount) -> Account:
        if namespace.container_id:
            devices = self._labels
            is_open = self._snapshot.has_gap("containers") and not namespace.pod_uid
            if is_open and mount.device in devices and not _has_kubelets_tree(namespace):
                why = "it shows a pod's volume, and nothing says whose container it is in"
                return self._unexplained(mount, why, namespace)
            whose = f"container {namespace.container_id[:12]}"
            return self._made(_K.OTHER_CONTAINER, mount, namespace, whose)
        whose = f"pid {namespace.pid}"
        if not namespace.is_agent:
            return self._made(_K.OWN, mount, namespace, whose)
        pods, point = self._snapshot.kubelet.pods, mount.mount_point
        is_at_home = bool(pods) and below(point, pods) is not None and not namespace.pod_uid
        if is_at_home and mount.device not in self._labels and not self._snapshot.table.at(point):
            why = f"it is in the kubelet's pods directory, in the mount namespace of {whose} alone"
            return self._unexplained(mount, why, namespace)
        return self._made(_K.AGENT_COPY, mount, namespace, whose)

    def _of_a_pod(self, namespace: MountNamespace, mount: Mount, ground: Mount | None) -> Account:
        uid, device = namespace.pod_uid, mount.device
        label = self._labels.get(device, "")
        if self._serves(uid, device):
            return self._made(_K.OWN, mount, namespace, uid)
        if is_in_a_pod(mount.mount_point):
            return self._made(_K.AGENT_COPY, mount, namespace, uid)
        if ground is not None and self._groups & {ground.peer_group, ground.master}:
            return self._made(_K.COPY, mount, namespace, label)
        showed = device in self._of_pod.get(uid, ())
        if showed and uid in self._over_quota:
            return self._made(_K.NOT_READ, mount, namespace, uid)
        if not namespace.is_own:
            return self._made(_K.OWN, mount, namespace, uid)
        if ground is not None and self._is_of_host(ground, uid):
            return self._made(_K.AGENT_COPY, mount, namespace, uid)
        return self._given(namespace, mount, showed=showed)

    def _given(self, namespace: MountNamespace, mount: Mount, *, showed: bool) -> Account:
        """Class what is in a container's own namespace, and in no copy of the host's tree."""
        uid = namespace.pod_uid
        pod = (self._snapshot.pods or {}).get(uid)
        if pod is not None and pod.is_deleting:
            return self._copy(namespace, mount)
        entries = entries_at(pod, namespace, mount.mount_point) if pod is not None else ()
        kinds = {volume.name: volume.kind for volume in pod.volumes} if pod is not None else {}
        is_volume = any(kinds.get(entry.volume) in _OF_VOLUMES for entry in entries)
        if is_volume:
            return self._unexplained(mount, "the pod's spec has a volume there", namespace)
        if namespace.is_agent or namespace.own_user_namespace:
            # It can mount what it likes.  What it has of its volumes else is known, or listed.
            has_more = pod is not None or bool(self._ours.get(namespace.inode))
            if has_more or not self._is_lost(mount, showed=showed):
                return self._made(_K.OWN, mount, namespace, uid)
        if showed:
            return self._unexplained(mount, "it shows a volume of its pod", namespace)
        if self._snapshot.is_dead(mount.device):
            return self._unexplained(mount, "it was given to the container", namespace)
        return self._copy(namespace, mount)

    def _is_lost(self, mount: Mount, *, showed: bool) -> bool:
        """Return True for a dead mount that may be a volume: nothing else shows what it shows."""
        if not self._snapshot.is_dead(mount.device):
            return False
        return showed or mount.device not in self._labels

    def _copy(self, namespace: MountNamespace, mount: Mount) -> Account:
        label = self._labels.get(mount.device, "")
        kind = _K.COPY if label else _K.OWN
        return self._made(kind, mount, namespace, label or namespace.pod_uid)

    def _serves(self, uid: str, device: Device) -> bool:
        """Return True when a process of the pod serves, or served, this file system."""
        servers = self._snapshot.servers.get(device, ())
        if any(may_be_pod(server.pod_uid, uid) for server in servers):
            return True
        end = self._snapshot.ends.get(device)
        return end is not None and end.server is not None and end.server.pod_uid == uid != ""

    # ------------------------------------------------------------------------ values

    def _made(
        self,
        kind: MountClass,
        mount: Mount,
        namespace: MountNamespace | None = None,
        whose: str = "",
        why: str = "",
    ) -> Account:
        inode, uid = (namespace.inode, namespace.pod_uid) if namespace is not None else (0, "")
        is_dead = self._snapshot.is_dead(mount.device)
        devices = self._of_pods if namespace is None else self._of_pod.get(uid, ())
        return Account(kind, mount, inode, whose, uid, why, is_dead, mount.device in devices)

    def _unexplained(
        self, mount: Mount, why: str, namespace: MountNamespace | None = None
    ) -> Account:
        is_dead = self._snapshot.is_dead(mount.device)
        kind = _K.STILL_DEAD if is_dead else _K.NOT_UNDERSTOOD
        whose = namespace.pod_uid or f"pid {namespace.pid}" if namespace is not None else ""
        return self._made(kind, mount, namespace, whose, why)


def _age(mount: Mount) -> tuple[bool, int]:
    """The older, the smaller; a place that looks like a pod's comes last."""
    return is_in_a_pod(mount.mount_point), mount.unique_id or mount.mount_id


def _has_kubelets_tree(namespace: MountNamespace) -> bool:
    return any(is_in_a_pod(mount.mount_point) for mount in namespace.mounts)
