"""What somebody else on the node does to a pod's binds: other recoverers, its driver."""

from __future__ import annotations

import errno
import os

from fusewatchd.linux import syscalls
from tests.model.depth import living_below, stuck_below
from tests.model.places import Options, Tables, Target, layers_at, options_of
from tests.model.possible import insist, may_unmount, need, volume_of
from tests.model.stage import Stage


def try_again(stage: Stage) -> None:
    """Unmount what a probe held that waited for a hung server."""
    for _, target in stage.targets():
        if target.is_leaving and not stage.sources[target.source].is_hung:
            _unpublish(stage, target)


def stack(stage: Stage, where: str, times: str) -> None:
    """``mount --bind`` of the source over a bind, as many recoverers do it."""
    _, target, _ = volume_of(stage, where)
    state = stage.sources[target.source]
    need(state.answers and not target.is_bare)
    for _ in range(int(times)):
        with stage.frozen():
            before = stage.tables()
            source = before.host.top_at(state.source.path)
            assert source is not None
            syscalls.mount(state.source.path, target.path, None, syscalls.MS_BIND)
            note_layers(stage, before, stage.tables(), options_of(source))


def note_layers(stage: Stage, before: Tables, now: Tables, options: Options) -> None:
    """Note the new mount, and its copies wherever it was propagated to."""
    for _, target in stage.targets():
        container = target.container
        new = layers_at(now.of(container), target.path) - layers_at(
            before.of(container), target.path
        )
        if new:
            target.foreign |= new
            alive = stage.sources[target.source].is_served
            stack = now.of(container).stack_at(target.path)
            target.stuck |= stuck_below(stack, new, alive)
            # Now, since what lives may be dead when the judge looks.
            target.foreign |= living_below(stack, target.foreign, stage.base_depth, alive)
            target.is_overlaid = True
            # Wherever it arrived it is a mount that the daemon has yet to see beside its source.
            target.is_learned = False
            target.add_options(options)
    for copy in stage.copies.values():
        copy.layers += len(layers_at(now.host, copy.place) - layers_at(before.host, copy.place))
    for state in stage.sources.values():
        path = state.source.path
        state.stacked += len(layers_at(now.host, path) - layers_at(before.host, path))
    _note_surplus(stage, before, now)


def _note_surplus(stage: Stage, before: Tables, now: Tables) -> None:
    for which, (old, new) in enumerate(
        zip(stage.foreign_tables(before), stage.foreign_tables(now), strict=True)
    ):
        for path in {mount.mount_point for mount in new.fuse_mounts()}:
            on_host = layers_at(now.host, path) - layers_at(before.host, path)
            stage.surplus[which, path].add(layers_at(new, path) - layers_at(old, path), on_host)


def pile(stage: Stage, where: str, times: str) -> None:
    """A driver that mounts once more whatever is there already, far from its source's group.

    As peers of the source these mounts would double with each one.
    """
    _, target, _ = volume_of(stage, where)
    state = stage.sources[target.source]
    need(state.answers and not target.is_bare)
    with stage.frozen():
        before = stage.tables()
        source, top = (before.host.top_at(p) for p in (state.source.path, target.path))
        assert source is not None and top is not None
        if top.peer_group == source.peer_group:
            _leave_group(target)
        origin = os.path.join(stage.node.lab, "origin")
        os.makedirs(origin, exist_ok=True)
        syscalls.mount(state.source.path, origin, None, syscalls.MS_BIND)
        syscalls.mount(None, origin, None, syscalls.MS_PRIVATE)
        for _ in range(int(times)):
            syscalls.mount(origin, target.path, None, syscalls.MS_BIND)
        syscalls.umount2(origin, syscalls.MNT_DETACH)
        note_layers(stage, before, stage.tables(), options_of(source))
        for _, one in stage.targets():
            one.receives = one.receives and one.host is not target


def _leave_group(target: Target) -> None:
    for kind in (syscalls.MS_PRIVATE, syscalls.MS_SHARED):
        syscalls.mount(None, target.path, None, kind)


def unpublish(stage: Stage, where: str) -> None:
    """Somebody unmounts a bind under a running pod."""
    pod, target, _ = volume_of(stage, where)
    need(not target.is_bare and may_unmount(stage, pod))
    _unpublish(stage, target)


def _unpublish(stage: Stage, target: Target) -> None:
    hung = stage.sources[target.source].is_hung
    target.is_leaving = not insist(stage, lambda: _until_bare(target.path), may_fail=hung)
    if not target.is_leaving:
        target.is_bare, target.is_learned = True, False
        target.foreign.clear()


def _until_bare(path: str) -> None:
    while True:
        try:
            syscalls.umount2(path, syscalls.UMOUNT_NOFOLLOW)
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                return
            raise


def publish(stage: Stage, where: str) -> None:
    """The driver publishes again what is bare."""
    pod, target, volume = volume_of(stage, where)
    need(target.is_bare and stage.sources[target.source].answers)
    stage.node.publish(pod.pod, pod.pod.volume(volume))
    _note_published(stage, target)


def rebind(stage: Stage, where: str) -> None:
    """Another recoverer: lazily off with the old one, on with the new one."""
    pod, target, volume = volume_of(stage, where)
    need(not target.is_bare and stage.sources[target.source].answers)
    need(may_unmount(stage, pod))
    while any(mount.is_fuse for mount in Tables([]).host.at(target.path)):
        syscalls.umount2(target.path, syscalls.MNT_DETACH)
    stage.node.publish(pod.pod, pod.pod.volume(volume))
    _note_published(stage, target)


def _note_published(stage: Stage, target: Target) -> None:
    top = Tables([]).host.top_at(target.path)
    assert top is not None
    target.is_bare, target.is_learned = False, False
    target.foreign.clear()
    target.options.add(options_of(top))
    stage.note_bound(target)
