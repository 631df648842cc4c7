"""A node with one pod on either kernel: volumes, containers, and the daemon's own plans."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

from fusewatchd.linux.mount_kernel import Way
from fusewatchd.model.actions import NamespaceRef
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount, NamespaceKind
from tests.contract.cycles import UID, Daemon
from tests.contract.worlds import World
from tests.fakes.propagation import Kind

DATA = "/data"


class Volumes(Enum):
    """``mountPropagation`` of a container's volume mounts."""

    NONE = Kind.PRIVATE
    HOST_TO_CONTAINER = Kind.SLAVE
    BIDIRECTIONAL = Kind.SHARED


@dataclass
class Volume:
    """A source, its bind for the pod, and what was mounted at the source so far."""

    source: str
    target: str
    subpath: str
    live: Device
    dead: tuple[Device, ...] = ()
    draining: tuple[Device, ...] = ()
    """Of old servers that still answer."""
    generation: int = 0


@dataclass(eq=False)
class Container:
    """A process of the pod; ``points`` are its volume mounts."""

    ref: NamespaceRef
    points: dict[str, Volume]
    propagation: Volumes = Volumes.NONE
    kind: NamespaceKind = NamespaceKind.CONTAINER
    has_ended: bool = False


@dataclass
class Stage:
    """Everything below ``base``; what happens to it is a method, or an actor's."""

    world: World
    way: Way
    number: int = 0
    volumes: list[Volume] = field(default_factory=list)
    containers: list[Container] = field(default_factory=list)
    extra_layers: int = 0
    """One, where something was mounted inside a layer of ours and nothing below it has it."""
    stale_looks: dict[Container, MountTable] = field(default_factory=dict)
    """What the daemon still takes the mounts of containers for."""
    pod_is_ending: bool = False
    pod_is_gone: bool = False

    def __post_init__(self) -> None:
        self.kernel = self.world.kernel(self.way)
        self.base = f"{self.world.lab}/stage{self.number}"
        self.root = f"{self.base}/kubelet"
        self.pod = f"{self.root}/pods/{UID}"
        self._inner = f"{self.base}/containers"
        self._mount_root = f"{self.base}/runtime-mnt"
        self.world.make_directory(self.pod)
        self.world.make_directory(self._inner)
        # pivot_root(2) wants the parent of the new root private.
        self.world.bind(self._inner, self._inner)
        self.world.set_propagation(self._inner, Kind.PRIVATE)
        self.daemon = Daemon(self, self._mount_root)

    # -------------------------------------------------------------------------- building

    def add_volume(
        self, name: str = "pv", *, options: str = "", subpath: str = "", is_apart: bool = False
    ) -> Volume:
        """Mount a source and publish it, as drivers do: the bind is a peer of its source.

        Then what is mounted inside the one is inside the other, and goes with the umount of a
        dead source before we are even asked; not so when it ``is_apart``.
        """
        # A layout that a driver knows: by lineage alone a layer that was never on top while
        # all was well has no known source.
        source = f"{self._mount_root}/juicefs/shop/{name}/juicefs-fuse"
        target = f"{self.pod}/volumes/kubernetes.io~csi/shop-{name}/mount"
        if subpath:
            target = f"{self.pod}/volume-subpaths/shop-{name}/app/0"
        self.world.make_directory(source)
        self.world.make_directory(target)
        volume = Volume(source, target, subpath, self._mount_source(source, "0"))
        self.bind(volume)
        if is_apart:
            self.world.set_propagation(target, Kind.PRIVATE)
            self.world.set_propagation(target, Kind.SHARED)
        if options:
            self.world.remount(target, options)
        self.volumes.append(volume)
        return volume

    def _mount_source(self, path: str, content: str) -> Device:
        device = self.world.mount_new(path, content)
        self.world.set_propagation(path, Kind.SHARED)
        return device

    def bind(self, volume: Volume) -> None:
        """Bind what is at the source now over what is at the target now."""
        self.world.bind(f"{volume.source}/{volume.subpath}".rstrip("/"), volume.target)

    def crash(self, volume: Volume) -> None:
        """The server dies; the driver unmounts the source and mounts it anew."""
        volume.dead += (volume.live,)
        self._mount_anew(volume)

    def upgrade(self, volume: Volume) -> None:
        """The driver mounts the source anew, and the old server goes on."""
        volume.draining += (volume.live,)
        self._mount_anew(volume)

    def _mount_anew(self, volume: Volume) -> None:
        while self.stack(volume.source):
            self.world.detach(volume.source)
        volume.generation += 1
        volume.live = self._mount_source(volume.source, str(volume.generation))
        self.forget(volume.live)

    def forget(self, new: Device) -> None:
        """The number of a file system that nothing shows any more is used again."""
        for volume in self.volumes:
            volume.dead = tuple(device for device in volume.dead if device != new)
            volume.draining = tuple(device for device in volume.draining if device != new)

    def nest(self, volume: Volume, levels: int = 1) -> list[str]:
        """Mount emptyDirs inside a volume on the host, one in the other; return where."""
        return self._nest(volume.target, levels)

    def _nest(self, place: str, levels: int) -> list[str]:
        made = []
        for level in range(levels):
            empty = f"{self.pod}/volumes/kubernetes.io~empty-dir/e{level}"
            self.world.make_directory(f"{empty}/inside")
            place += "/inside"
            self.world.bind(empty, place)
            made.append(place)
        return made

    def start_container(
        self,
        propagation: Volumes = Volumes.NONE,
        *,
        read_only: bool = False,
        points: dict[str, Volume] | None = None,
        levels: int = 0,
    ) -> Container:
        """Start a container as a runtime does, with emptyDirs inside its first volume."""
        points = points or {DATA: self.volumes[0]}
        root = f"{self._inner}/{len(self.containers)}"
        self.world.make_directory(root)
        ref = self.world.new_namespace()
        with self.world.inside(ref):
            if propagation is not Volumes.BIDIRECTIONAL:
                self.world.set_propagation("/", Kind.SLAVE, recursive=True)
            self.forget(self.world.mount_new(root))
            for point, volume in points.items():
                if not self.world.exists(root + point):
                    self.world.make_directory(root + point)
                self.world.bind(volume.target, root + point)
                self.world.set_propagation(root + point, propagation.value)
                if read_only:
                    self.world.remount(root + point, "ro,relatime")
            self._nest(root + next(iter(points)), levels)
            self.world.pivot(root)
        container = Container(ref, points, propagation)
        self.containers.append(container)
        return container

    def start_foreign(self, kind: Kind) -> Container:
        """Start a driver's or an agent's pod with a copy of the node's whole tree."""
        foreign = Container(self.world.new_namespace(), {}, kind=NamespaceKind.FOREIGN)
        if kind is not Kind.SHARED:
            with self.world.inside(foreign.ref):
                self.world.set_propagation("/", kind, recursive=True)
        self.containers.append(foreign)
        return foreign

    def end_container(self, container: Container) -> None:
        """Its last process exits."""
        if not container.has_ended:
            container.has_ended = True
            self.world.end_namespace(container.ref)

    # --------------------------------------------------------------------------- looking

    @property
    def volume(self) -> Volume:
        """The first volume: most stages have one."""
        return self.volumes[0]

    @property
    def most_layers(self) -> int:
        """How deep a target may be after a replacement."""
        return (1 if self.way is Way.BENEATH else 2) + self.extra_layers

    def mounts(self, container: Container | None = None) -> MountTable:
        """Return a mount table as the daemon would see it: the volumes are FUSE."""
        devices = {d for v in self.volumes for d in (v.live, *v.dead, *v.draining)}
        with self.world.inside(container.ref if container else None):
            seen = self.world.described()
        return MountTable.of(
            replace(m, fs_type="fuse.demofs") if m.device in devices else m for m in seen
        )

    def stack(self, path: str, container: Container | None = None) -> tuple[Mount, ...]:
        """Return the layers at a path, bottom first."""
        return self.mounts(container).stack_at(path)

    def read(self, path: str, container: Container | None = None) -> str:
        """Return which generation of a volume is seen at a path."""
        with self.world.inside(container.ref if container else None):
            return self.world.read(f"{path}/hello")

    def visible(self, path: str, container: Container | None = None) -> tuple[Device, str, str]:
        """Describe the mount that a path leads to: there may be others behind an old layer."""
        seen = self.visible_if_any(path, container)
        assert seen is not None, f"nothing is mounted at {path}"
        return seen

    def visible_if_any(
        self, path: str, container: Container | None = None
    ) -> tuple[Device, str, str] | None:
        """The same; None when the path leads to no mount of its own."""
        with self.world.inside(container.ref if container else None):
            if not self.world.exists(path):
                return None
            fd = self.kernel.open_mount(path)
            try:
                mount = self.kernel.mount_of(fd)
            finally:
                self.kernel.close(fd)
        is_there = mount.mount_point == path
        return (mount.device, mount.root, mount.options) if is_there else None

    def others(self) -> list[tuple[str, str, str]]:
        """Describe every mount of the host that is no target."""
        targets = {volume.target for volume in self.volumes}
        return sorted(
            (m.mount_point, str(m.device), m.options)
            for m in self.mounts()
            if m.mount_point not in targets
        )

    def living(self) -> list[Container]:
        return [c for c in self.containers if not c.has_ended]

    # -------------------------------------------------------------------------- checking

    def check_live(
        self, volume: Volume, path: str = "", container: Container | None = None
    ) -> None:
        """The present file system is on top, alone as far as this way can do that."""
        layers = self.stack(path or volume.target, container)
        shown = [f"{m.device} {m.root} {m.options}" for m in layers]
        assert layers and layers[-1].device == volume.live, shown
        assert len(layers) <= self.most_layers, shown

    def check_not_bare(self) -> None:
        """Something is mounted at every place of every volume."""
        for volume in self.volumes:
            assert self.stack(volume.target), "bare on the host"
        for container in self.living():
            for point in container.points:
                assert self.stack(point, container), "bare in a container"

    def check_recovered(self) -> None:
        """Every volume is live on the host and in each container that has it."""
        for volume in self.volumes:
            self.check_live(volume)
        for container in self.living():
            for point, volume in container.points.items():
                self.check_live(volume, point, container)

    def check_apart_from_sources(self) -> None:
        """What somebody stacks on a target must not be copied to its source."""
        sources = {v.source for v in self.volumes}
        groups = {m.peer_group for m in self.mounts() if m.mount_point in sources}
        for volume in self.volumes:
            assert self.stack(volume.target)[-1].peer_group not in groups

    def close(self) -> None:
        """Take everything away."""
        self.kernel.leave()
        for container in self.containers:
            self.end_container(container)
        while left := self.mounts().below(self.base):
            self.world.detach(min((m.mount_point for m in left), key=len))


def stale_stage(
    world: World, way: Way, number: int = 0, *, options: str = "", subpath: str = ""
) -> Stage:
    """One volume whose server has crashed and come back; the daemon knew it before."""
    stage = Stage(world, way, number)
    stage.add_volume(options=options, subpath=subpath)
    stage.daemon.settle()
    stage.crash(stage.volume)
    return stage
