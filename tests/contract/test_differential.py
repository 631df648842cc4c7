"""The fake kernel against the real one: the same operations, the same trees and errors.

Whatever the suite proves on the fake rests on this.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fusewatchd.demo.node.world import PrivateWorld
from fusewatchd.linux.mount_kernel import Attributes, Way
from fusewatchd.model.actions import NamespaceRef, Propagation
from fusewatchd.model.mounts import Device
from tests.contract.shapes import Shape, as_text, shape_of
from tests.contract.worlds import REAL_WAYS, FakeWorld, RealWorld, World
from tests.fakes.propagation import Kind
from tests.features import Feature, lacking, needs, needs_way
from tests.lab import run_in_world

pytestmark = pytest.mark.kernel

MOST_MOUNTS = 120
"""A sequence ends here: peers of peers double with every bind."""
DIRECTORIES = ("a", "b", "c", "a/inside", "b/inside", "c/inside")
PLACES = (*DIRECTORIES, "a/hello", "b/hello")
OPTIONS = ("rw,relatime", "ro,relatime", "rw,nosuid,noexec,noatime", "ro,nodev,nodiratime")

Step = Callable[["Side"], None]
Steps = Sequence[list[Step]]


class Side:
    """One of the two worlds, and what the steps need of it."""

    def __init__(self, world: World, way: Way, number: int, second: Kind | None) -> None:
        self.world = world
        self.kernel = world.kernel(way)
        self.base = f"{world.lab}/example{number}"
        self.names: dict[Device, str] = {}
        self.made = 0
        world.make_directory(self.base)
        self.mount_new("")
        world.set_propagation(self.base, Kind.SHARED)
        for place in DIRECTORIES:
            world.make_directory(self.path(place))
        self.namespaces: list[NamespaceRef | None] = [None, world.new_namespace()]
        if second is not None:
            with world.inside(self.namespaces[1]):
                world.set_propagation(self.base, second, recursive=True)

    def path(self, place: str) -> str:
        return f"{self.base}/{place}".rstrip("/")

    def mount_new(self, place: str) -> None:
        device = self.world.mount_new(self.path(place))
        # The numbers of devices are used again at once.
        self.made += 1
        self.names[device] = f"fs{self.made}"

    def shape(self) -> list[Shape]:
        tables = []
        for namespace in self.namespaces:
            with self.world.inside(namespace):
                tables.append(self.world.described())
        return shape_of(tables, self.base, self.names)

    def close(self) -> None:
        second = self.namespaces[1]
        assert second is not None
        self.kernel.leave()
        self.world.end_namespace(second)
        while self.world.table().at(self.base):
            self.world.detach(self.base)


@dataclass(frozen=True)
class New:
    namespace: int
    place: str

    def __call__(self, side: Side) -> None:
        with side.world.inside(side.namespaces[self.namespace]):
            side.mount_new(self.place)


@dataclass(frozen=True)
class Bind:
    namespace: int
    source: str
    target: str
    recursive: bool

    def __call__(self, side: Side) -> None:
        with side.world.inside(side.namespaces[self.namespace]):
            source, target = side.path(self.source), side.path(self.target)
            side.world.bind(source, target, recursive=self.recursive)


@dataclass(frozen=True)
class SetPropagation:
    namespace: int
    place: str
    kind: Kind
    recursive: bool

    def __call__(self, side: Side) -> None:
        with side.world.inside(side.namespaces[self.namespace]):
            side.world.set_propagation(side.path(self.place), self.kind, recursive=self.recursive)


@dataclass(frozen=True)
class Remount:
    namespace: int
    place: str
    options: str

    def __call__(self, side: Side) -> None:
        with side.world.inside(side.namespaces[self.namespace]):
            side.world.remount(side.path(self.place), self.options)


@dataclass(frozen=True)
class Unmount:
    namespace: int
    place: str

    def __call__(self, side: Side) -> None:
        with side.world.inside(side.namespaces[self.namespace]):
            side.world.unmount(side.path(self.place))


@dataclass(frozen=True)
class UnmountWhileHeld:
    """A plain umount while somebody has a descriptor of some mount."""

    namespace: int
    place: str
    held: str

    def __call__(self, side: Side) -> None:
        fd = side.kernel.open_mount(side.path(self.held))
        try:
            Unmount(self.namespace, self.place)(side)
        finally:
            side.kernel.close(fd)


@dataclass(frozen=True)
class Detach:
    namespace: int
    place: str

    def __call__(self, side: Side) -> None:
        side.kernel.enter(side.namespaces[self.namespace])
        try:
            fd = side.kernel.open_mount(side.path(self.place))
            try:
                side.kernel.detach(fd)
            finally:
                side.kernel.close(fd)
        finally:
            side.kernel.leave()


@dataclass(frozen=True)
class Remove:
    """rmdir, and the directory made again: what was mounted there elsewhere is gone."""

    namespace: int
    place: str

    def __call__(self, side: Side) -> None:
        with side.world.inside(side.namespaces[self.namespace]):
            side.world.remove(side.path(self.place))
            side.world.make_directory(side.path(self.place))


@dataclass(frozen=True)
class Attach:
    """What a replacement does: copy, configure, attach, beneath or on top."""

    namespace: int
    source: str
    below: str
    target: str
    propagation: Propagation
    options: str
    beneath: bool
    recursive: bool

    def __call__(self, side: Side) -> None:
        kernel, held = side.kernel, []
        try:
            copy = kernel.copy(side.path(self.source), self.below, recursive=self.recursive)
            held.append(copy)
            held.append(kernel.configure(copy, Attributes(self.options, self.propagation)))
            kernel.enter(side.namespaces[self.namespace])
            held.append(kernel.open_mount(side.path(self.target)))
            if self.beneath:
                kernel.attach_beneath(held[1], held[2])
            else:
                kernel.attach(held[1], held[2])
        finally:
            for fd in held:
                kernel.close(fd)
            kernel.leave()


def _attach(source: str, target: str, *, beneath: bool) -> Attach:
    options = OPTIONS[0]
    return Attach(0, source, "", target, Propagation.OWN_GROUP, options, beneath, False)


namespaces = st.integers(0, 1)
places = st.sampled_from(DIRECTORIES)
anywhere = st.sampled_from(PLACES)
STEPS = st.one_of(
    st.builds(New, namespaces, places),
    st.builds(Bind, namespaces, st.sampled_from(("", *PLACES)), anywhere, st.booleans()),
    st.builds(SetPropagation, namespaces, places, st.sampled_from(Kind), st.booleans()),
    st.builds(Remount, namespaces, places, st.sampled_from(OPTIONS)),
    st.builds(Unmount, namespaces, anywhere),
    st.builds(UnmountWhileHeld, namespaces, places, places),
    st.builds(Detach, namespaces, anywhere),
    st.builds(Remove, namespaces, places),
    st.builds(
        Attach,
        namespaces,
        anywhere,
        st.sampled_from(("", "", "inside", "hello", "..")),
        anywhere,
        st.sampled_from(Propagation),
        st.sampled_from(OPTIONS),
        st.just(False) if Feature.BENEATH in lacking() else st.booleans(),
        st.booleans(),
    ),
)


def outcome_of(step: Step, side: Side) -> str:
    try:
        step(side)
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    return "done"


def compare(sides: Sequence[Side], done: Sequence[Step], results: Sequence[str]) -> bool:
    """Return whether to go on."""
    (real, fake) = (side.shape() for side in sides)
    if real != fake or len(set(results)) > 1:
        lines = [f"{step}" for step in done] + [f"real: {results[0]}, fake: {results[1]}"]
        for name, shape in (("real", real), ("fake", fake)):
            for number, namespace in enumerate(shape):
                lines += [f"--- {name}, namespace {number}", as_text(namespace)]
        raise AssertionError("\n".join(lines))
    return sum(as_text(namespace).count("\n") for namespace in fake) < MOST_MOUNTS


PEERS: Steps = (
    # Tucked under what is there; a copy that is covered goes from below.
    [New(0, "a"), New(1, "a"), Bind(0, "", "a", False), Bind(1, "", "a", True), Unmount(0, "a")],
    # A copy that something is mounted in stays.
    [New(0, "a"), SetPropagation(1, "a", Kind.PRIVATE, False), New(1, "a/inside"), Detach(0, "a")],
    # Somebody is in a copy of it.
    [New(0, "a"), UnmountWhileHeld(1, "a", "a"), Unmount(1, "a")],
    # Beneath a peer of the mount that it stands on: the copy would land on top.
    [Bind(0, "a", "a", False), _attach("b", "a", beneath=True)],
    [New(0, "a"), New(0, "a"), _attach("b", "a", beneath=True), Detach(0, "a")],
)
SLAVES: Steps = (
    # The last member of a group hands its slaves on to the master, or sets them free.
    [New(0, "a"), SetPropagation(0, "a", Kind.PRIVATE, False)],
    [
        New(0, "a"), SetPropagation(1, "a", Kind.SHARED, False), Bind(1, "a", "b", False),
        SetPropagation(1, "b", Kind.SLAVE, False), SetPropagation(1, "a", Kind.PRIVATE, False),
        New(0, "a/inside"),
    ],
    [New(0, "a"), _attach("b", "a", beneath=True), Unmount(0, "a"), Unmount(1, "a")],
)  # fmt: skip


@needs_way(Way.BENEATH)
@pytest.mark.parametrize(
    ("second", "steps"), [(None, s) for s in PEERS] + [(Kind.SLAVE, s) for s in SLAVES]
)
def test_what_the_engine_rests_on_most(second: Kind | None, steps: list[Step]) -> None:
    def body(private: PrivateWorld) -> None:
        real = RealWorld(private)
        run_both(real, Way.BENEATH, 0, second, steps)
        real.close()

    run_in_world(body)


@pytest.mark.parametrize("way", [pytest.param(way, marks=needs_way(way)) for way in Way])
@pytest.mark.parametrize("target", ["b", "b/hello"])
@pytest.mark.parametrize(
    "beneath", [False, pytest.param(True, marks=needs(Feature.BENEATH))], ids=["on-top", "beneath"]
)
def test_a_copy_of_a_removed_directory_goes_nowhere(way: Way, target: str, beneath: bool) -> None:
    """The oldest way notices it in its staging mount, before the target is looked at."""
    steps = [
        Bind(0, "c/inside", "a", False),
        Remove(0, "c/inside"),
        _attach("a", target, beneath=beneath),
    ]

    def body(private: PrivateWorld) -> None:
        real = RealWorld(private)
        run_both(real, way, 0, None, steps)
        real.close()

    run_in_world(body)


def run_both(
    real: RealWorld, way: Way, number: int, second: Kind | None, steps: Sequence[Step]
) -> None:
    sides = [Side(real, way, number, second), Side(FakeWorld(), way, number, second)]
    try:
        for done, step in enumerate(steps, 1):
            results = [outcome_of(step, side) for side in sides]
            if not compare(sides, steps[:done], results):
                break
    finally:
        for side in sides:
            side.close()


def run_examples(way: Way, count: int, seed: int) -> None:
    def body(private: PrivateWorld) -> None:
        real, number = RealWorld(private), iter(range(1_000_000))

        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            derandomize=seed == 0 or "CI" in os.environ,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )
        @given(st.sampled_from((None, *Kind)), st.lists(STEPS, min_size=10, max_size=30))
        def run(second: Kind | None, steps: list[Step]) -> None:
            run_both(real, way, next(number), second, steps)

        run()
        real.close()

    run_in_world(body, timeout=600)


@REAL_WAYS
def test_the_fake_kernel_does_as_the_real_one(way: Way) -> None:
    run_examples(way, 40, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(620)
@REAL_WAYS
def test_the_fake_kernel_does_as_the_real_one_for_minutes(way: Way) -> None:
    run_examples(way, 400, seed=1)
