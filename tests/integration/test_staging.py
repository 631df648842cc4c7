"""Copies in the making, while somebody mounts on what they are copies of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest

from fusewatchd.demo.node.world import PrivateWorld
from fusewatchd.linux import private_namespace as module
from fusewatchd.linux import syscalls
from fusewatchd.linux.mount_kernel import Stop
from fusewatchd.linux.private_namespace import Staging
from fusewatchd.model.actions import OutcomeStatus, Propagation
from fusewatchd.model.mounts import Mount
from fusewatchd.model.verdicts import Reason
from tests.lab import run_in_world
from tests.model.places import table_of

pytestmark = pytest.mark.kernel
MOMENTS = {
    "attached": (syscalls, "move_mount"),
    "set": (syscalls, "mount"),
    "out": (module, "_copy_out"),
}
"""Calls after which somebody acts: the copy is there, it has its propagation, it was copied out."""


@contextmanager
def after(owner: ModuleType, call: str, act: Callable[[], None]) -> Iterator[None]:
    """Let somebody act in the host's namespace after the first such call in staging."""
    real = getattr(owner, call)
    done: list[bool] = []

    def then_act(*arguments: Any, **more: Any) -> Any:
        result = real(*arguments, **more)
        if not done:
            done.append(True)
            act()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, call, then_act)
        yield
    assert done, f"{call} was not called: nothing is tested"


def shown(path: str) -> list[Mount]:
    return [m for m in table_of("self") if m.mount_point.startswith(path)]


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
@pytest.mark.parametrize("propagation", Propagation, ids=lambda p: p.value)
def test_what_is_mounted_on_the_original_reaches_no_copy(
    moment: tuple[ModuleType, str], propagation: Propagation
) -> None:
    """It would be given the flags that are meant for the copy, and take its place."""

    def body(world: PrivateWorld) -> None:
        source, target, other = (f"{world.lab}/{name}" for name in ("source", "target", "other"))
        for path in (source, target, other):
            os.mkdir(path)
        syscalls.mount("one", source, "tmpfs", 0, "size=64k")
        syscalls.mount(None, source, None, syscalls.MS_SHARED)
        syscalls.mount(source, target, None, syscalls.MS_BIND)
        syscalls.mount("two", other, "tmpfs", 0, "size=64k")
        staging = Staging()
        staging.prepare()

        def act() -> None:
            staging._home.go()
            syscalls.mount(other, target, None, syscalls.MS_BIND)
            syscalls.setns(staging.prepare(), syscalls.CLONE_NEWNS)

        def make() -> int:
            copy = syscalls.open_tree(syscalls.AT_FDCWD, target, syscalls.OPEN_TREE_CLONE)
            try:
                return staging.configure(copy, "ro,relatime", propagation, is_directory=True)
            finally:
                os.close(copy)

        original = (os.major(os.stat(target).st_dev), os.minor(os.stat(target).st_dev))
        with after(*moment, act):
            try:
                clone = make()
            except Stop as stop:
                assert (stop.status, stop.reason) == (OutcomeStatus.FAILED, Reason.RACED)
            else:
                assert syscalls.device_of(clone) == original
                os.close(clone)
        layers = [(m.mount_point, m.options) for m in shown(world.lab)]
        # What somebody mounted is there, and its copy at the peer; neither is read-only.
        assert not any("ro" in options.split(",") for _, options in layers)
        assert [point for point, _ in layers].count(target) == 2
        assert [point for point, _ in layers].count(source) == 2
        syscalls.umount2(target, syscalls.MNT_DETACH)
        before = shown(world.lab)
        for _ in range(2):
            clone = make()
            assert syscalls.device_of(clone) == original
            os.close(clone)
        assert shown(world.lab) == before
        staging.close()
        for path in (target, source, other):
            syscalls.umount2(path, syscalls.MNT_DETACH)

    run_in_world(body)
