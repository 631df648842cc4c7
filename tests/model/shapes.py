"""Pods of every sort that the model knows."""

from __future__ import annotations

from collections.abc import Callable

from fusewatchd.demo.node.container_spec import Access, MountPropagation
from fusewatchd.demo.node.pods import PodMount, PodVolume, VolumeKind
from fusewatchd.demo.node.sources import Source

FLUID = "fluid"
"""The source in Fluid's layout; of the others nothing is known but lineage."""
KEPT = "kept"
"""What a file in an emptyDir inside a volume must still say after every recovery."""

Shape = Callable[[Source, Source], tuple[list[PodVolume], list[PodMount]]]
SHAPES: dict[str, Shape] = {}


def files_of(name: str) -> dict[str, str]:
    """Return what a source holds; every file says whose it is."""
    return {
        "hello": name,
        "sub/dir/hello": f"{name} sub",
        "single": f"{name} single",
        "cache/.keep": "",
        "sub/dir/inside/.keep": "",
    }


def marker(root: str, name: str) -> tuple[str, str]:
    """Return which file below a bind of this root to read, and what it must say."""
    match root:
        case "/":
            return "/hello", name
        case "/sub/dir":
            return "/hello", f"{name} sub"
        case _:
            return "", f"{name} single"


def _volume(source: Source, name: str = "v", flags: str = "") -> PodVolume:
    if source.name == FLUID:
        return PodVolume(
            name, source, directory="demo-data", driver="fuse.csi.fluid.io", flags=flags
        )
    return PodVolume(name, source, flags=flags)


def _shape(shape: Shape) -> Shape:
    SHAPES[shape.__name__] = shape
    return shape


@_shape
def plain(one: Source, two: Source) -> tuple[list[PodVolume], list[PodMount]]:
    return [_volume(one)], [PodMount("v", "/data")]


@_shape
def listener(one: Source, two: Source) -> tuple[list[PodVolume], list[PodMount]]:
    propagation = MountPropagation.HOST_TO_CONTAINER
    return [_volume(one)], [
        PodMount("v", "/data", propagation=propagation, access=Access.READ_ONLY)
    ]


@_shape
def talker(one: Source, two: Source) -> tuple[list[PodVolume], list[PodMount]]:
    return [_volume(one)], [PodMount("v", "/data", propagation=MountPropagation.BIDIRECTIONAL)]


@_shape
def flagged(one: Source, two: Source) -> tuple[list[PodVolume], list[PodMount]]:
    propagation = MountPropagation.HOST_TO_CONTAINER
    volume = _volume(one, flags="ro,noexec,noatime")
    return [volume], [PodMount("v", "/data", propagation=propagation)]


@_shape
def twins(one: Source, two: Source) -> tuple[list[PodVolume], list[PodMount]]:
    propagation = MountPropagation.HOST_TO_CONTAINER
    return [_volume(one)], [
        PodMount("v", "/data"),
        PodMount("v", "/data", container="side", propagation=propagation, access=Access.READ_ONLY),
    ]


@_shape
def parts(one: Source, two: Source) -> tuple[list[PodVolume], list[PodMount]]:
    return [_volume(one)], [
        PodMount("v", "/dir", sub_path="sub/dir", access=Access.READ_ONLY),
        PodMount("v", "/file", sub_path="single"),
        PodMount("v", "/data"),
    ]


@_shape
def pair(one: Source, two: Source) -> tuple[list[PodVolume], list[PodMount]]:
    volumes = [_volume(one), _volume(two, "w", flags="noexec")]
    return volumes, [PodMount("v", "/data"), PodMount("w", "/more", access=Access.READ_ONLY)]


@_shape
def nested(one: Source, two: Source) -> tuple[list[PodVolume], list[PodMount]]:
    volumes = [_volume(one), PodVolume("e", kind=VolumeKind.EMPTY_DIR)]
    return volumes, [PodMount("v", "/data"), PodMount("e", "/data/cache")]


@_shape
def flex(one: Source, two: Source) -> tuple[list[PodVolume], list[PodMount]]:
    return [PodVolume("v", one, kind=VolumeKind.FLEX)], [PodMount("v", "/data")]
