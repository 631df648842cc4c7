"""The way to a mount that is to be replaced, which may lead over a dead file system."""

from __future__ import annotations

import errno

from fusewatchd.errors import error_name
from fusewatchd.linux.mount_kernel import MountKernel, fail
from fusewatchd.linux.mount_stack import Held
from fusewatchd.model.actions import ReplaceMount
from fusewatchd.model.verdicts import Reason

_OF_DEAD = frozenset(
    {errno.ENOTCONN, errno.ECONNABORTED, errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EHOSTDOWN}
)
"""What a path gives that leads over a file system whose server, disk or other side is gone."""


def opened_target(kernel: MountKernel, action: ReplaceMount, *, may_ask: bool) -> Held:
    """Hold a descriptor of the topmost mount at the target for the length of a block.

    Raises:
        Stop: ``path_dead``, with the name of the file system that is.
        OSError: the path cannot be opened for another reason.
    """
    try:
        return Held(kernel, kernel.open_mount(action.key.mount_point, may_ask=may_ask))
    except OSError as exc:
        if exc.errno not in _OF_DEAD:
            raise
        detail = f"{_what_it_stands_on(kernel, action)} answers {error_name(exc.errno)}"
        raise fail(Reason.PATH_DEAD, detail) from exc


def _what_it_stands_on(kernel: MountKernel, action: ReplaceMount) -> str:
    """Name the file system in which the target's path is looked up last."""
    try:
        mount = kernel.mount_by_id(action.expect.mount_id, 0)
        above = kernel.mount_by_id(mount.parent_id, 0)
    except OSError:
        return "a file system on the way"
    is_root = above.mount_point == "/" and action.namespace is not None
    return f"{'the root of the container' if is_root else above.mount_point} ({above.fs_type})"
