"""A Kubernetes node in miniature, real as far as mounts go: sources, pods, containers.

To be used inside a private world (``world``); everything is below the world's tmpfs and
is taken away by ``close``, which is also the end of a ``with`` block.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

from fusewatchd.demo.node import cgroups, pods
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.container_spec import (
    BoundVolume,
    ContainerSpec,
    MountPropagation,
    RootKind,
    UserNamespace,
)
from fusewatchd.demo.node.pods import ContainerRole, DemoPod, PodMount, PodVolume, VolumeKind
from fusewatchd.demo.node.sources import ServerOptions, Source, detach_all
from fusewatchd.demo.node.unmounting import (
    Unmounting,
    abort_connection,
    fuse_devices,
    mount_points_below,
    take_away,
)
from fusewatchd.demo.node.world import PrivateWorld
from fusewatchd.errors import FusewatchError
from fusewatchd.linux import syscalls

_FLAGS = {
    "ro": syscalls.MS_RDONLY,
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
    "noatime": syscalls.MS_NOATIME,
    "nodiratime": syscalls.MS_NODIRATIME,
    "relatime": syscalls.MS_RELATIME,
    "nosymfollow": syscalls.MS_NOSYMFOLLOW,
}


class ForeignKind(Enum):
    """Mount namespaces of a real node that see pods' volumes and are nobody's volume."""

    CSI_PLUGIN = "csi-plugin"
    """A pod with the kubelet's directory mounted Bidirectional."""
    NODE_AGENT = "node-agent"
    """A pod with a private copy of the host's whole tree at /host."""
    SYSTEM_UNIT = "system-unit"
    """A systemd unit with PrivateTmp=: its own namespace, slave of the host's, no pod."""


class DemoNode:
    """The node.  Its methods are the actors of a real one: driver, kubelet, runtime."""

    def __init__(self, world: PrivateWorld, *, name: str = "demo-node") -> None:
        """Lay out the kubelet's root."""
        self.world = world
        self.lab = world.lab
        self.name = name
        self.kubelet_root = os.path.join(self.lab, "kubelet")
        self.pods_directory = os.path.join(self.kubelet_root, "pods")
        self.runtime_mount_root = os.path.join(self.lab, "runtime-mnt")
        """Fluid's mount root."""
        self.sources: dict[str, Source] = {}
        self.pods: dict[str, DemoPod] = {}
        """By uid."""
        self.foreign: list[Container] = []
        self._owner = os.getpid()
        self._inherited_devices = fuse_devices("self")
        self._stage = os.path.join(self.lab, "runtime")
        os.mkdir(self._stage)
        syscalls.mount("runtime", self._stage, "tmpfs", 0, "mode=755")
        syscalls.mount(None, self._stage, None, syscalls.MS_PRIVATE)
        os.makedirs(self.pods_directory)
        os.makedirs(os.path.join(self.kubelet_root, "plugins"))

    def __enter__(self) -> DemoNode:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------------------------------------------------------------- the FUSE driver

    def fluid_path(self, runtime: str, namespace: str, dataset: str) -> str:
        """Return where a Fluid runtime mounts a dataset."""
        parts = (runtime, namespace, dataset, f"{runtime}-fuse")
        return os.path.join(self.runtime_mount_root, *parts)

    def staging_path(self, driver: str, handle: str) -> str:
        """Return the kubelet's staging target of a CSI volume (1.24 and newer)."""
        digest = hashlib.sha256(handle.encode()).hexdigest()
        parts = ("plugins", "kubernetes.io", "csi", driver, digest, "globalmount")
        return os.path.join(self.kubelet_root, *parts)

    def add_source(
        self,
        name: str,
        *,
        path: str = "",
        options: ServerOptions | None = None,
        command: Sequence[str] = (),
        detaches: bool = False,
        files: Mapping[str, str] | None = None,
        backing: str = "",
        starts: bool = True,
    ) -> Source:
        """Make a source and start its server.

        Args:
            name: also the content of the file ``hello`` in it, when ``files`` is not given.
            path: where it is mounted; ``<lab>/sources/<name>`` when empty.
            options: of the demo's own server.
            command: another server, ``("bindfs", "-f", "{backing}", "{mount}")``.
            detaches: that server goes into the background by itself.
            files: relative path to content, put into the backing directory.
            backing: what the server shows; a new directory when empty.
            starts: False leaves that to ``Source.start``.
        """
        if name in self.sources:
            raise FusewatchError(f"there is a source {name} already")
        source = Source(
            name,
            path or os.path.join(self.lab, "sources", name),
            backing or os.path.join(self.lab, "backing", name),
            options or ServerOptions(),
            command,
            detaches,
        )
        os.makedirs(source.backing, exist_ok=True)
        for file, content in ({"hello": name} if files is None else files).items():
            source.put(file, content)
        self.sources[name] = source
        if starts:
            source.start()
        return source

    # --------------------------------------------------------- the kubelet, the driver

    def add_pod(
        self,
        name: str,
        volumes: Iterable[PodVolume] = (),
        mounts: Iterable[PodMount] = (),
        *,
        namespace: str = "demo",
        uid: str = "",
        api_uid: str = "",
        annotations: Mapping[str, str] | None = None,
        roles: Mapping[str, ContainerRole] | None = None,
    ) -> DemoPod:
        """Make the pod's directories, publish its volumes and bind its subPaths."""
        pod = DemoPod(
            namespace=namespace,
            name=name,
            uid=uid or pods.new_uid(),
            pods_directory=self.pods_directory,
            volumes=tuple(volumes),
            mounts=tuple(mounts),
            api_uid=api_uid,
            annotations=annotations or {},
            roles=roles or {},
        )
        for part in ("volumes", "plugins", "containers"):
            os.makedirs(os.path.join(pod.directory, part))
        self.pods[pod.uid] = pod
        for volume in pod.volumes:
            self.publish(pod, volume)
        for mount in pod.mounts:
            if mount.sub_path:
                self.bind_subpath(pod, mount)
        return pod

    def publish(self, pod: DemoPod, volume: PodVolume) -> None:
        """Do what NodePublishVolume does: bind the source onto the target, set flags."""
        if volume.kind is VolumeKind.HOST_PATH:
            return
        target = pod.volume_path(volume.name)
        os.makedirs(target, exist_ok=True)
        if volume.is_csi:
            path = os.path.join(pod.volume_directory(volume), "vol_data.json")
            with open(path, "w", encoding="utf-8") as file:
                file.write(pods.volume_data(volume, self.name))
        if volume.source is None:
            return
        source = os.path.join(volume.source.path, volume.root).rstrip("/")
        syscalls.mount(source, target, None, syscalls.MS_BIND)
        if volume.flags:
            flags = syscalls.MS_REMOUNT | syscalls.MS_BIND
            for word in volume.flags.split(","):
                flags |= _FLAGS[word]
            syscalls.mount(None, target, None, flags)

    def bind_subpath(self, pod: DemoPod, mount: PodMount) -> None:
        """Bind a subPath as the kubelet does, making the directory in the volume if needed."""
        origin = os.path.join(pod.volume_path(mount.volume), mount.sub_path)
        target = pod.subpath_path(mount)
        if not os.path.lexists(origin):
            os.makedirs(origin)
        if os.path.isdir(origin):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        syscalls.mount(origin, target, None, syscalls.MS_BIND)

    def remove_pod(self, pod: DemoPod, unmounting: Unmounting = Unmounting.UNTIL_BARE) -> int:
        """End a pod as kubelet and driver do: stop, plain umount (never lazy), rmdir.

        Returns how many mounts had to be unmounted.  May be repeated after a failure.

        Raises:
            OSError: EBUSY when somebody holds a mount or a layer is left, ENOTEMPTY when
                something was written into a bare mount point.
        """
        pod.is_deleting = True
        for container in pod.containers.values():
            container.stop()
        count = 0
        for mount in pod.mounts:
            if mount.sub_path:
                count += take_away(pod.subpath_path(mount), unmounting)
        for volume in pod.volumes:
            count += self._unpublish(pod, volume, unmounting)
        for directory, _, _ in os.walk(pod.directory, topdown=False):
            os.rmdir(directory)
        del self.pods[pod.uid]
        return count

    def _unpublish(self, pod: DemoPod, volume: PodVolume, unmounting: Unmounting) -> int:
        if volume.kind is VolumeKind.HOST_PATH:
            return 0
        target = pod.volume_path(volume.name)
        if volume.kind is VolumeKind.EMPTY_DIR:
            shutil.rmtree(target, ignore_errors=True)
            return 0
        count = take_away(target, unmounting)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(pod.volume_directory(volume), "vol_data.json"))
        return count

    def pod_list(self) -> dict[str, Any]:
        """Return what this node's kubelet answers at ``/pods``."""
        return pods.pod_list(list(self.pods.values()), self.name)

    # ------------------------------------------------------------ the container runtime

    def start_container(
        self,
        pod: DemoPod,
        name: str = "app",
        *,
        user_namespace: UserNamespace | None = None,
    ) -> Container:
        """Start one container of a pod; a running one of that name is stopped first.

        Raises:
            OSError: what the runtime fails with, ENOTCONN for a stale volume.
        """
        container = self.launch_container(pod, name, user_namespace=user_namespace)
        container.wait_ready()
        return container

    def launch_container(
        self,
        pod: DemoPod,
        name: str = "app",
        *,
        user_namespace: UserNamespace | None = None,
        mounts: Sequence[PodMount] = (),
    ) -> Container:
        """Begin to start a container; ``Container.wait_ready`` ends it.

        ``mounts`` stand in for those of the pod's spec, as those of an ephemeral container.
        """
        if name in pod.containers:
            pod.containers[name].stop()
            pod.restarts[name] = pod.restarts.get(name, 0) + 1
        volumes = tuple(
            BoundVolume(pod.host_path_of(mount), mount.mount_path, mount.propagation, mount.access)
            for mount in mounts or pod.container_mounts(name)
        )
        container_id = secrets.token_hex(32)
        cgroup = cgroups.pod_cgroup(self.world.cgroup, pod.uid, container_id)
        spec = ContainerSpec(
            self._stage, cgroup, volumes, user_namespace, container_id=container_id
        )
        container = Container(spec)
        pod.containers[name] = container
        container.launch()
        return container

    def add_foreign(self, kind: ForeignKind) -> Container:
        """Start a namespace that must be left alone."""
        if kind is ForeignKind.SYSTEM_UNIT:
            cgroup = f"/{self.world.cgroup}/system.slice/demo.service/main"
            spec = ContainerSpec(self._stage, cgroup, root=RootKind.HOST_ROOT)
            container = Container(spec)
            self.foreign.append(container)
            container.start()
            return container
        if kind is ForeignKind.CSI_PLUGIN:
            path, inside = self.kubelet_root, self.kubelet_root
            propagation = MountPropagation.BIDIRECTIONAL
        else:
            path, inside, propagation = "/", "/host", MountPropagation.NONE
        volume = PodVolume("host", kind=VolumeKind.HOST_PATH, host_path=path)
        mount = PodMount("host", inside, propagation=propagation)
        pod = self.add_pod(kind.value, [volume], [mount], namespace="kube-system")
        container = self.start_container(pod)
        self.foreign.append(container)
        return container

    # --------------------------------------------------------------------- the end

    def close(self) -> None:
        """Kill servers and containers, detach every mount below the lab; safe to repeat.

        Raises:
            TimeoutError: a process could not be killed; the rest has been cleaned up.
        """
        if os.getpid() != self._owner:
            # A forked copy of us; the node lives on.
            return
        for source in self.sources.values():
            source.close()
        containers = [c for pod in self.pods.values() for c in pod.containers.values()]
        containers += self.foreign
        # Somebody may hold a connection whose server is gone, and a container wait for it.
        devices = fuse_devices("self")
        for container in containers:
            if container.is_running:
                devices |= fuse_devices(str(container.pid))
        for device in devices - self._inherited_devices:
            abort_connection(device)
        stuck: list[str] = []
        for container in containers:
            try:
                container.stop()
            except TimeoutError as error:
                stuck.append(str(error))
        for path in reversed(mount_points_below(self.lab)):
            detach_all(path)
        if stuck:
            raise TimeoutError("; ".join(stuck))
