"""What newer kernels have and older ones lack, each found by using it once.

A test says what it cannot do without: ``@needs(Feature.STATMOUNT)``.  Where the kernel has no
such thing the test is skipped, and named with the reason.  Run as a program, this tells what
is lacking here, for ``tests/kernels``, which knows what must be found on which kernel.
"""

from __future__ import annotations

import json
import os
import warnings
from enum import Enum
from functools import cache
from typing import NamedTuple

import pytest

from fusewatchd.demo.fuse import protocol as fuse
from fusewatchd.demo.node.world import NamespaceForbiddenError, PrivateWorld, run_in_private_world
from fusewatchd.errors import assert_never
from fusewatchd.linux import statmount, syscalls
from fusewatchd.linux.features import probe_features
from fusewatchd.linux.mount_kernel import Way
from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.observe.mounts.fanotify import MountEvents


class Feature(Enum):
    """One feature; the value is the reason that a test without it is skipped for."""

    MOUNT_SETATTR = "no mount_setattr(2), which Linux has since 5.12"
    BENEATH = "no mounting beneath another mount, which Linux has since 6.5"
    UNIQUE_IDS = "no unique mount ids, which Linux has since 6.8"
    FUSE_IDMAP = "no id-mapped FUSE mounts, which Linux has since 6.12"
    STATMOUNT = "no complete statmount(2), which Linux has since 6.13"
    MOUNT_EVENTS = "no mount events by fanotify(7), which Linux has since 6.14"
    MOUNTS_ON_DETACHED = "no mounts on detached trees, which Linux has since 6.15"
    FUSE_FDINFO = "no FUSE connection in fdinfo, which Linux has since 6.16"


_WAY_NEEDS = {
    Way.BENEATH: (Feature.BENEATH,),
    Way.ON_TOP: (Feature.MOUNT_SETATTR,),
    Way.STAGED: (),
}


def needs(*features: Feature) -> pytest.MarkDecorator:
    """Mark a test, or one of its parameters, that means nothing without these features."""
    missing = [feature.value for feature in features if feature in lacking()]
    return pytest.mark.skipif(bool(missing), reason="; ".join(missing))


def needs_way(way: Way) -> pytest.MarkDecorator:
    """Mark what means nothing where mounts cannot be replaced in this way."""
    return needs(*_WAY_NEEDS[way])


def require_way(way: Way) -> None:
    """Skip the running test where mounts cannot be replaced in this way."""
    for feature in _WAY_NEEDS[way]:
        if feature in lacking():
            pytest.skip(feature.value)


@cache
def lacking() -> frozenset[Feature]:
    """Return what this kernel lacks; nothing where no real mount can be made at all."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        return frozenset()
    reader, writer = os.pipe()
    with open(reader, encoding="ascii") as told, open(writer, "w", encoding="ascii") as teller:

        def tell(world: PrivateWorld) -> int:
            json.dump([feature.name for feature in Feature if not _has(feature, world)], teller)
            teller.flush()
            return 0

        try:
            with warnings.catch_warnings():
                # The forked child runs this thread only and leaves by os._exit.
                warnings.simplefilter("ignore", DeprecationWarning)
                status = run_in_private_world(tell, deadline_seconds=60)
        except NamespaceForbiddenError:
            return frozenset()
        finally:
            teller.close()
        assert status == 0, "the features of this kernel could not be found out"
        return frozenset(Feature[name] for name in json.load(told))


def _has(feature: Feature, world: PrivateWorld) -> bool:
    match feature:
        case Feature.MOUNT_SETATTR:
            return probe_features().mount_setattr
        case Feature.BENEATH:
            return probe_features().beneath
        case Feature.MOUNTS_ON_DETACHED:
            return probe_features().mounts_on_detached
        case Feature.UNIQUE_IDS:
            with closing_fd(os.open("/", os.O_PATH)) as fd:
                return statmount.mount_unique_id(fd) is not None
        case Feature.STATMOUNT:
            return statmount.is_supported()
        case Feature.MOUNT_EVENTS:
            return _has_mount_events()
        case Feature.FUSE_IDMAP:
            return bool(_fuse_mount(world.lab).offered_flags & fuse.ALLOW_IDMAP)
        case Feature.FUSE_FDINFO:
            return _fuse_mount(world.lab).is_in_fdinfo
        case _:
            assert_never(feature)


def _has_mount_events() -> bool:
    try:
        MountEvents().close()
    except OSError:
        return False
    return True


class _FuseMount(NamedTuple):
    """What the kernel says to a new FUSE server and of it."""

    offered_flags: int
    is_in_fdinfo: bool


def _fuse_mount(directory: str) -> _FuseMount:
    """Be a server that reads its first request, INIT, and goes."""
    with closing_fd(os.open("/dev/fuse", os.O_RDWR)) as fd:
        options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
        syscalls.mount("features", directory, "fuse", 0, options)
        try:
            body = os.read(fd, fuse.BUFFER_SIZE)[fuse.IN_HEADER.size :]
            with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
                is_in_fdinfo = "fuse_connection:" in file.read()
        finally:
            syscalls.umount2(directory, syscalls.MNT_DETACH)
    flags = fuse.INIT_IN.unpack_from(body)[3]
    if flags & fuse.INIT_EXT:
        flags |= fuse.INIT_IN_FLAGS2.unpack_from(body, fuse.INIT_IN.size)[0] << 32
    return _FuseMount(flags, is_in_fdinfo)


def best_way() -> Way:
    """Return the newest way of replacing a mount that works here."""
    return next(way for way in Way if lacking().isdisjoint(_WAY_NEEDS[way]))


def main() -> None:
    """Print as JSON what ``tests/kernels`` compares with its table."""
    found = {
        "release": os.uname().release,
        "way": probe_features().best_way.value,
        "lacks": sorted(feature.name for feature in lacking()),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
