"""What is mounted inside a source for a moment: whom it reaches, and that nothing goes back."""

from __future__ import annotations

from collections.abc import Iterator

from fusewatchd.linux import syscalls
from fusewatchd.model.mounts import Device, Mount
from tests.model.places import SourceState, Tables, Target, Violation, options_of
from tests.model.possible import need, source_of, volume_of
from tests.model.stage import Stage

BELOW = {"/": "/sub/dir/inside", "/sub/dir": "/inside"}
"""Where the mount is, by the root of a bind; one of a single file has nothing inside."""


def inside(stage: Stage, where: str) -> None:
    """A server, or an automounter, mounts inside a source (``one``) or a pod's bind (``p1/v``).

    Raises:
        Violation: it did not reach whom it reached before, or reached whom it must not.
    """
    target = volume_of(stage, where)[1] if "/" in where else None
    state = source_of(stage, target.source if target else where)
    need(state.answers and not (target and target.is_bare))
    path = (target.path if target else state.source.path) + BELOW["/"]
    with stage.frozen():
        if not is_sound(stage.tables(), state, target):
            return
        syscalls.mount("inner", path, "tmpfs", 0, "size=16k")
        try:
            tables = stage.tables()
        finally:
            syscalls.umount2(path, syscalls.MNT_DETACH)
    top = tables.host.top_at(path)
    assert top is not None
    problems = list(
        sent_back(stage, tables, top.device, target)
        if target
        else arrived(stage, tables, top.device, state)
    )
    if problems:
        raise Violation("\n".join([*problems, stage.what_is_mounted()]))


def is_sound(tables: Tables, state: SourceState, target: Target | None) -> bool:
    """True when what a path leads to is the mount that the others may be peers or slaves of."""
    if len(tables.host.at(state.source.path)) != 1:
        return False
    top = tables.host.top_at(target.path) if target else None
    return target is None or (top is not None and top.device == state.device)


def inner_at(tables: Tables, target: Target, device: Device) -> Mount | None:
    """Return the mount inside as it is seen at this place."""
    place = target.path + BELOW.get(target.root, "/nowhere")
    found = [m for m in tables.of(target.container).at(place) if m.device == device]
    return found[0] if found else None


def arrived(stage: Stage, tables: Tables, device: Device, state: SourceState) -> Iterator[str]:
    """Say whom it did not reach although it did before, and whom it must not have reached."""
    source = tables.host.top_at(state.source.path)
    assert source is not None
    for pod, target in stage.targets():
        if target.source != state.source.name or target.root not in BELOW or pod.is_ending:
            continue
        found = inner_at(tables, target, device)
        if found and target.is_private:
            yield f"{target}: what was mounted inside the source reached it"
        top, host = (tables.of(t.container).top_at(t.path) for t in (target, target.host))
        if top is None or host is None or not _is_plain(target, top, host, state):
            continue
        is_narrower = bool(options_of(host) - options_of(source))
        if target.receives and target.host.receives and not found and not is_narrower:
            yield f"{target}: what was mounted inside the source did not reach it"
        is_ours = top.mount_id not in target.published
        if is_ours and found and top.is_read_only and not found.is_read_only:
            yield f"{target}: is read-only, and what was mounted inside is writable"


def _is_plain(target: Target, top: Mount, host: Mount, state: SourceState) -> bool:
    """True when this place and its bind on the host show the source, and others did nothing."""
    if target.foreign or target.host.foreign or target.is_lost or target.host.is_bare:
        return False
    return top.device == host.device == state.device


def sent_back(stage: Stage, tables: Tables, device: Device, origin: Target) -> Iterator[str]:
    """Say where a mount inside a pod's bind arrived that came from fusewatchd."""
    top = tables.host.top_at(origin.path)
    assert top is not None
    if origin.foreign or top.mount_id in origin.published:
        return
    source = stage.sources[origin.source].source.path
    if any(mount.device == device for mount in tables.host.below(source)):
        yield f"{origin}: what was mounted inside it reached the source"
    for _, target in stage.targets():
        if target.host.path.split("/volumes")[0] == origin.path.split("/volumes")[0]:
            continue
        if inner_at(tables, target, device):
            yield f"{origin}: what was mounted inside it reached {target}"
