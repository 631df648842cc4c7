"""Mounting a volume over the node's directory that a container has in the place of it.

The directory and its mount stay as they are, below the new mount.  Nothing is created in either,
and nothing in the directory is opened.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

from fusewatchd.act.build_mount import NewMount, Target, planned_children
from fusewatchd.act.target_path import opened_target
from fusewatchd.linux.mount_kernel import MountKernel, attribute_bits, fail, refuse, skip
from fusewatchd.linux.mount_stack import depth_of, opened, pile_of, top_at, tree_inside
from fusewatchd.model.actions import Outcome, OutcomeStatus, ReplaceMount
from fusewatchd.model.mounts import Mount
from fusewatchd.model.stacks import points
from fusewatchd.model.verdicts import Reason


def cover_directory(kernel: MountKernel, action: ReplaceMount, *, may_ask: bool) -> Outcome:
    """Mount a clone of the origin over the directory that ``expect`` describes, and prove it.

    Raises:
        Stop: the directory is not what was seen, or a rule forbids it.
        OSError: a system call failed; then nothing has changed.
    """
    with ExitStack() as kept:
        kernel.enter(action.namespace)
        target = _look(kernel, action, may_ask=may_ask)
        kernel.enter(None)
        made = NewMount(kernel, action, kept)
        clone = made.build(target)
        kernel.enter(action.namespace)
        with opened(kernel, action.expect.mount_point) as fd:
            there = kernel.mount_of(fd)
            _require_directory(there, action)
            if points(tree_inside(kernel, there)) != points(target.children):
                raise skip(Reason.RACED, "what is mounted inside the directory changed meanwhile")
            kernel.attach(clone, fd)
        new = kernel.mount_of(clone)
    top = top_at(kernel, action.expect.mount_point)
    if top is None or not top.has_id(new.mount_id, new.unique_id):
        raise fail(Reason.RACED, "another mount is on top")
    if attribute_bits(top.options) != attribute_bits(action.over) or top.root != made.root:
        raise fail(Reason.NOT_VERIFIED, f"options {top.options}, root {top.root}")
    return Outcome(action, OutcomeStatus.RECOVERED, mount=top, depth=depth_of(kernel, top))


def _look(kernel: MountKernel, action: ReplaceMount, *, may_ask: bool) -> Target:
    with opened_target(kernel, action, may_ask=may_ask) as fd:
        mount = kernel.mount_of(fd)
        _require_directory(mount, action)
        pile = pile_of(kernel, mount)
        children = planned_children(action, pile, "the directory")
        idmap = kernel.idmap_of(mount) if mount.is_idmapped else None
        kind = kernel.kind_of(fd)
        return Target(replace(mount, options=action.over), kind, children, idmap, pile)


def _require_directory(mount: Mount, action: ReplaceMount) -> None:
    expect = action.expect
    if not expect.is_met_by(mount) or mount.root != expect.root or mount.is_fuse:
        detail = f"mount {mount.mount_id} of {mount.device} is there now"
        raise skip(Reason.RACED, detail, mount)
    if mount.peer_group:
        raise refuse(Reason.FORBIDDEN, "a mount there would be mounted on the host as well")
    if mount.is_of_removed:
        # The kernel mounts nothing on a directory that was removed.
        raise refuse(Reason.DIRECTORY_DROPPED, "the directory was removed")
