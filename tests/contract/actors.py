"""Others who mount and unmount at the same places, one system call after the other.

Each actor is a generator: it says where it may be interrupted, and with what it waits for
others to let go.  What must be true when it and the daemon have come to rest is its check.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from fusewatchd.linux.mount_kernel import Way
from fusewatchd.model.mounts import Device
from tests.contract.faults import Steps, Wait, until_not_busy
from tests.contract.stage import DATA, Container, Stage
from tests.fakes.propagation import Kind

MOST_RETRIES = 3
"""Times that somebody may be told EBUSY once the engine is through with what it was at."""


class Actor:
    """Somebody else at work on a stage whose daemon is at work too."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.target = stage.volume.target
        self.prepare()

    def prepare(self) -> None:
        """Make what the actor needs before anything happens."""

    def steps(self) -> Steps:
        """Do it."""
        raise NotImplementedError

    def check(self) -> None:
        """Say what must be true in the end; the volumes are recovered if nothing else is said."""
        self.stage.check_recovered()

    def is_blind_at(self, call: str) -> bool:
        """True for a call with no look between it and what the actor does: nothing is promised."""
        return False

    def check_gone(self) -> None:
        """No mount, no directory, and none of both made by us."""
        assert not self.stage.world.exists(self.target), "the target's directory is there"
        left = [m for m in self.stage.mounts() if m.mount_point.startswith(self.stage.pod + "/")]
        assert not left, left


# ------------------------------------------------------------------------ end of the pod


class CleanUp(Actor):
    """The kubelet's CleanupMountPoint: umount until it is no mount point, then rmdir."""

    def steps(self) -> Steps:
        stage = self.stage
        stage.pod_is_ending = True
        for container in stage.living():
            stage.end_container(container)
            yield Wait.NEXT
        while stage.world.exists(self.target):
            if stage.stack(self.target):
                yield from until_not_busy(lambda: stage.world.unmount(self.target))
                yield Wait.NEXT
                continue
            try:
                stage.world.remove(self.target)
            except OSError as exc:
                assert exc.errno == errno.EBUSY
                yield Wait.BUSY
        stage.pod_is_gone = True

    def check(self) -> None:
        self.check_gone()


class Unpublish(Actor):
    """A CSI driver with a namespace of its own: one umount, one rmdir, again if that fails."""

    kind = Kind.SHARED

    def prepare(self) -> None:
        self.driver = self.stage.start_foreign(self.kind)
        self.umounts = 0

    def steps(self) -> Steps:
        stage = self.stage
        stage.pod_is_ending = True
        for container in stage.living():
            if container is not self.driver:
                stage.end_container(container)
                yield Wait.NEXT
        while stage.world.exists(self.target):
            try:
                self._umount_if_mounted()
                yield Wait.NEXT
                with stage.world.inside(self.driver.ref):
                    stage.world.remove(self.target)
            except OSError as exc:
                assert exc.errno == errno.EBUSY, exc
                yield Wait.BUSY
        stage.pod_is_gone = True

    def _umount_if_mounted(self) -> None:
        if self.stage.stack(self.target, self.driver):
            with self.stage.world.inside(self.driver.ref):
                self.stage.world.unmount(self.target)
            self.umounts += 1

    def check(self) -> None:
        self.check_gone()
        assert not self.stage.stack(self.target, self.driver)


class UnpublishFromSlave(Unpublish):
    """The same in a namespace that only receives: its umounts are not seen on the host."""

    kind = Kind.SLAVE


# ------------------------------------------------------------------------- other repairs


class PublishAgain(Actor):
    """A driver that repairs its bind itself: umount, bind, remount with its flags."""

    options = "ro,nosuid,relatime"

    def steps(self) -> Steps:
        stage = self.stage
        while stage.stack(self.target):
            yield from until_not_busy(lambda: stage.world.unmount(self.target))
            yield Wait.NEXT
        stage.bind(stage.volume)
        self.mount = stage.stack(self.target)[-1]
        yield Wait.NEXT
        stage.world.remount(self.target, self.options)

    def check(self) -> None:
        layers = self.stage.stack(self.target)
        ids = [m.unique_id for m in layers]
        assert self.mount.unique_id in ids, "the driver's own mount was taken away"
        assert layers[-1].device == self.stage.volume.live
        assert layers[-1].options == self.options, "its flags are covered"
        assert len(layers) <= self.stage.most_layers


class SubPathRepair(Actor):
    """The kubelet at the start of a container: one umount of the subPath, and a new bind."""

    def steps(self) -> Steps:
        stage = self.stage
        yield from until_not_busy(lambda: stage.world.unmount(self.target))
        yield Wait.NEXT
        stage.bind(stage.volume)


class StackOnce(Actor):
    """Another recoverer: ``mount --bind`` over whatever is there, in its source's group."""

    times = 1

    def steps(self) -> Steps:
        for _ in range(self.times):
            self.stage.bind(self.stage.volume)
            yield Wait.NEXT

    def check(self) -> None:
        """Live now; its layers are its own while they live, and go with the next outage."""
        stage = self.stage
        assert stage.stack(self.target)[-1].device == stage.volume.live
        assert not stage.daemon.look()
        stage.crash(stage.volume)
        stage.daemon.settle()
        stage.check_recovered()


class StackThreeTimes(StackOnce):
    """The same, as Fluid does it when it is restarted: copies of copies."""

    times = 3


class CrashAgain(Actor):
    """The server crashed again and came back again."""

    def steps(self) -> Steps:
        self.stage.crash(self.stage.volume)
        yield Wait.NEXT


# ------------------------------------------------------------------------ inside volumes


@dataclass
class Child:
    """A mount inside a volume, as it is seen."""

    path: str
    container: Container | None
    seen: tuple[Device, str, str]


class AddChild(Actor):
    """A mount appears inside the volume: an emptyDir on the host."""

    def is_blind_at(self, call: str) -> bool:
        """What is inside goes along with the old mount.

        In a file system that is dead nothing can be mounted, and nothing unmounted: a path in
        it answers ENOTCONN.
        """
        return self.stage.way is Way.BENEATH and call == "detach"

    def steps(self) -> Steps:
        (path,) = self.stage.nest(self.stage.volume)
        self.child = Child(path, None, self.stage.visible(path))
        yield Wait.NEXT

    def check(self) -> None:
        child, stage = self.child, self.stage
        assert stage.visible(child.path, child.container) == child.seen, "the child is lost"
        check_live_for_good(stage)
        assert stage.visible(child.path, child.container) == child.seen, "the child is lost"


def check_live_for_good(stage: Stage) -> None:
    """A layer whose inside nothing below it has stays, but it never becomes more."""
    for _ in range(3):
        layers = stage.stack(stage.volume.target)
        assert layers[-1].device == stage.volume.live
        assert len(layers) <= stage.most_layers + 1
        stage.crash(stage.volume)
        stage.daemon.settle()


class AddChildInContainer(AddChild):
    """The same made inside a container, of a tmpfs that nobody else has: refused for good."""

    def steps(self) -> Steps:
        container = self.stage.living()[0]
        with self.stage.world.inside(container.ref):
            self.stage.world.mount_plain(f"{DATA}/inside")
        path = f"{DATA}/inside"
        self.child = Child(path, container, self.stage.visible(path, container))
        self.stage.forget(self.child.seen[0])
        yield Wait.NEXT

    def check(self) -> None:
        child = self.child
        assert self.stage.visible(child.path, child.container) == child.seen, "the child is lost"


class AddChildInChild(Actor):
    """A mount appears in a mount that a container and the host have inside their volume."""

    def prepare(self) -> None:
        self.on_host = f"{self.target}/inside"
        self.before = self.stage.visible(self.on_host)

    def steps(self) -> Steps:
        container, path = self.stage.living()[0], f"{DATA}/inside/inside"
        with self.stage.world.inside(container.ref):
            self.stage.world.mount_plain(path)
        self.stage.forget(self.stage.visible(path, container)[0])
        yield Wait.NEXT

    def check(self) -> None:
        assert self.stage.visible(self.on_host) == self.before, "lost on the host"


class RemoveChild(Actor):
    """A mount inside the volume goes, on the host."""

    def is_blind_at(self, call: str) -> bool:
        """As ``AddChild``: it would be back."""
        return self.stage.way is Way.BENEATH and call == "detach"

    def prepare(self) -> None:
        (self.path,) = self.stage.nest(self.stage.volume)

    def steps(self) -> Steps:
        stage = self.stage
        yield from until_not_busy(lambda: stage.world.unmount(self.path))

    def check(self) -> None:
        check_live_for_good(self.stage)
        directory = self.stage.world.device_at(self.path)
        assert directory == self.stage.volume.live, "the child is back"


# ---------------------------------------------------------------------------- containers


class Exit(Actor):
    """The pod's containers exit."""

    def steps(self) -> Steps:
        for container in self.stage.living():
            self.stage.end_container(container)
            yield Wait.NEXT


class Restart(Actor):
    """Each container exits and is started again from what its bind on the host shows then."""

    def steps(self) -> Steps:
        for container in self.stage.living():
            self.stage.end_container(container)
            yield Wait.NEXT
            self.stage.start_container(container.propagation)
            yield Wait.NEXT


ACTORS: tuple[type[Actor], ...] = (
    CleanUp,
    Unpublish,
    UnpublishFromSlave,
    PublishAgain,
    StackOnce,
    StackThreeTimes,
    CrashAgain,
    AddChild,
    RemoveChild,
    Exit,
    Restart,
)
