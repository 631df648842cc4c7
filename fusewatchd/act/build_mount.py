"""The mount that will take the place of a stale one, made out of sight.

A detached copy of the source gets its flags, its propagation, its id mapping and its child
mounts before anybody can see it.  Nothing here changes what is mounted anywhere.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum

from fusewatchd.linux.mount_kernel import Attributes, FileKind, MountKernel, Stop, refuse, skip
from fusewatchd.linux.mount_stack import depth_of, opened, tree_inside
from fusewatchd.model.actions import (
    RECEIVES,
    ChildMount,
    Expect,
    Propagation,
    ReplaceMount,
)
from fusewatchd.model.mount_table import below
from fusewatchd.model.mounts import Mount, UserNamespaceRef, is_of_another_user
from fusewatchd.model.stacks import Pile
from fusewatchd.model.verdicts import Reason


@dataclass(frozen=True, slots=True)
class Target:
    """The target as it was when the attempt began."""

    mount: Mount
    kind: FileKind
    children: tuple[Mount, ...]
    idmap: tuple[str, str] | None
    pile: Pile
    """It, and the layers below it at the same path."""


class _Inside(Enum):
    """What of the mounts inside the origin is in the copy of it."""

    NOTHING = "nothing"
    RECEIVED = "received"
    """What arrived there; what the old mount had for itself is still to come."""
    ALL = "all"


class NewMount:
    """One mount in the making; ``kept`` closes what outlives ``build``."""

    def __init__(self, kernel: MountKernel, action: ReplaceMount, kept: ExitStack) -> None:
        """Make nothing yet."""
        self._kernel = kernel
        self._action = action
        self._kept = kept
        self._parts = ExitStack()
        """Descriptors that are only needed while it is built."""
        self.root = ""
        """What mountinfo must show as its root."""

    def build(self, target: Target) -> int:
        """Return a descriptor of the detached new mount; it is closed with ``kept``.

        Raises:
            Stop: a rule forbids it, or the source is not what it was.
            OSError: a system call failed.
        """
        with self._parts:
            return self._build(target)

    def _build(self, target: Target) -> int:
        action = self._action
        present = {mount.mount_id: mount for mount in target.children}
        carried = [
            (child, old)
            for child in action.children
            if (old := present.get(child.expect.mount_id, child.wanted)) is not None
        ]
        options = options_of(target.mount, read_only=action.read_only)
        copy, origin, inside = self._copy_for(options, carried)
        if self._kernel.device_of(copy) != origin.device:
            raise skip(Reason.SOURCE_CHANGED, f"{action.origin.mount_point} was just replaced")
        if not (origin.is_fuse if action.over else _may_replace(origin, target.mount)):
            detail = f"{origin.fs_type} cannot replace {target.mount.fs_type}"
            raise refuse(Reason.SOURCE_TYPE, detail)
        # What goes over a directory is the pod's own mount on the host.
        if not action.over and is_of_another_user(target.mount, origin):
            self._require_place(origin)
        self.root = _joined(origin.root, action.subpath)
        kind = self._kernel.kind_of(copy)
        if kind is FileKind.OTHER:
            raise refuse(Reason.SUBPATH_UNSAFE, "the source is neither directory nor file")
        if kind is not target.kind:
            raise refuse(Reason.TYPE_MISMATCH, f"{kind.value} cannot replace {target.kind.value}")
        attributes = Attributes(
            options=options,
            propagation=_attainable(_wanted(action, target.mount, options, origin), origin),
            idmap=self._users_of(target.mount, target.idmap),
            is_tree=inside is not _Inside.NOTHING,
        )
        clone = self._configured(copy, attributes)
        if carried and inside is not _Inside.ALL:
            clone = self._with_children(clone, carried)
        return clone

    def _require_place(self, origin: Mount) -> None:
        """Refuse another user's server where he may have mounted it unasked."""
        problem = self._problem_of_place(self._action.source_place, origin)
        if problem:
            detail = f"the new server is user {origin.user_id}'s, and {problem}"
            raise refuse(Reason.SOURCE_OWNER, detail)

    def _problem_of_place(self, place: str, origin: Mount) -> str:
        if not place:
            return "where it is mounted is not known"
        with opened(self._kernel, place) as fd:
            mount = self._kernel.mount_of(fd)
        if mount.device != origin.device or mount.mount_point != place:
            return f"it is not what is mounted at {place}"
        if depth_of(self._kernel, mount) > 1:
            # A server tells what it likes of its root: one that all may write can be mounted on.
            return f"it covers another mount at {place}"
        return self._kernel.problem_of_place(place, origin.user_id)

    def _copy_for(
        self, options: str, carried: list[tuple[ChildMount, Mount]]
    ) -> tuple[int, Mount, _Inside]:
        """Copy the origin, with what is mounted inside it where that is to be in the new mount."""
        action = self._action
        if action.propagation is Propagation.PEER:
            # Attaching children to a peer of the host bind would copy them to the host: there
            # they are already, so the copy takes them along instead.  All of them: when the old
            # host bind went, those in here may have gone with it, as its peers do.
            copy, origin = self._copy(action.origin, action.subpath, recursive=True)
            self._check_shown(carried, origin)
            return copy, origin, _Inside.ALL
        if action.propagation in RECEIVES and not options.startswith("ro"):
            # Had this mount been there already, it would have received what is in the origin.
            copy, origin = self._copy(action.origin, action.subpath, recursive=True)
            if not self._is_in_the_way(carried, origin):
                return copy, origin, _Inside.RECEIVED
        copy, origin = self._copy(action.origin, action.subpath)
        return copy, origin, _Inside.NOTHING

    def _is_in_the_way(self, carried: list[tuple[ChildMount, Mount]], origin: Mount) -> bool:
        """True where the mount has something of its own at a path that it would receive."""
        if not origin.peer_group and not origin.master:
            return True
        if not carried:
            return False
        top = f"{origin.mount_point}/{self._action.subpath}".rstrip("/")
        received = [m.mount_point for m in tree_inside(self._kernel, origin)]
        own = [f"{top}/{child.relative_path}" for child, _ in carried]
        return any(
            below(a, b) is not None or below(b, a) is not None for a in own for b in received
        )

    def _check_shown(self, carried: list[tuple[ChildMount, Mount]], origin: Mount) -> None:
        """Refuse when something inside is not inside the mount that is copied as a whole."""
        if not carried:
            return
        shown = {m.mount_point for m in tree_inside(self._kernel, origin)}
        for child, _ in carried:
            if f"{origin.mount_point}/{child.relative_path}" not in shown:
                detail = f"{child.relative_path} is not mounted in {origin.mount_point}"
                raise refuse(Reason.CHILD_MOUNT, detail)

    def _keep(self, fd: int, stack: ExitStack) -> int:
        stack.callback(self._kernel.close, fd)
        return fd

    def _copy(self, expect: Expect, below: str, *, recursive: bool = False) -> tuple[int, Mount]:
        """Return a detached copy of what ``expect`` describes, and the mount it is a copy of."""
        try:
            copy = self._kernel.copy(expect.mount_point, below, recursive=recursive)
        except OSError as exc:
            self._origin(expect)
            if below and exc.errno == errno.ENOENT:
                raise refuse(Reason.SUBPATH_MISSING, f"{below} is not in the source") from exc
            if below and exc.errno in (errno.ELOOP, errno.EXDEV, errno.ENOTDIR):
                detail = f"{below} leads through a link, a file or another mount"
                raise refuse(Reason.SUBPATH_UNSAFE, detail) from exc
            raise
        self._keep(copy, self._parts)
        # Looked at last: had it been replaced before, the copy would be of another device.
        return copy, self._origin(expect)

    def _origin(self, expect: Expect) -> Mount:
        """Return the mount that ``expect`` describes, if it still is what that says."""
        try:
            if expect.mount_id or expect.unique_id:
                mount = self._kernel.mount_by_id(expect.mount_id, expect.unique_id)
            else:
                with opened(self._kernel, expect.mount_point) as fd:
                    mount = self._kernel.mount_of(fd)
        except FileNotFoundError:
            raise self._origin_changed(f"{expect.mount_point} is not mounted any more") from None
        if not expect.is_met_by(mount):
            raise self._origin_changed(f"{expect.mount_point} shows device {mount.device} now")
        return mount

    def _origin_changed(self, detail: str) -> Stop:
        is_container = self._action.namespace is not None
        return skip(Reason.HOST_BIND_STALE if is_container else Reason.SOURCE_CHANGED, detail)

    def _users_of(self, mount: Mount, idmap: tuple[str, str] | None) -> UserNamespaceRef | None:
        if not mount.is_idmapped:
            return None
        namespace = self._action.namespace
        if namespace is None:
            raise refuse(Reason.IDMAP, "an id-mapped bind on the host has no known mapping")
        if namespace.users is None:
            # Whoever is in there may have made the mapping himself.
            raise refuse(Reason.IDMAP, "the container's own user namespace is not known")
        mapping = self._kernel.idmap_of_users(namespace.users)
        if idmap is not None and idmap != mapping:
            raise refuse(Reason.IDMAP, "the mount's id mapping is not its container's")
        return namespace.users

    def _configured(self, copy: int, attributes: Attributes) -> int:
        try:
            return self._keep(self._kernel.configure(copy, attributes), self._kept)
        except OSError as exc:
            if attributes.idmap and exc.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                detail = "the new file system does not allow id-mapped mounts"
                raise refuse(Reason.IDMAP, detail) from exc
            raise

    # -------------------------------------------------------------------- children

    def _with_children(self, clone: int, carried: list[tuple[ChildMount, Mount]]) -> int:
        places: dict[str, int] = {"": clone}
        parts: list[tuple[int, int]] = []
        try:
            for child, old in sorted(carried, key=lambda pair: len(pair[0].relative_path)):
                copy = self._clone_child(child, old)
                parts.append((copy, self._place_of(child.relative_path, places)))
                places[child.relative_path] = copy
            return self._keep(self._kernel.assemble(clone, parts), self._kept)
        except OSError as exc:
            # A pod without the volume inside is worse off than one that sees ENOTCONN.
            detail = f"a mount inside the volume cannot be carried over: {exc.strerror}"
            raise refuse(Reason.CHILD_MOUNT, detail) from exc

    def _clone_child(self, child: ChildMount, old: Mount) -> int:
        copy, origin = self._copy(child.origin, child.origin_subpath)
        shown = _joined(origin.root, child.origin_subpath)
        if origin.device == old.device and shown != old.root:
            raise refuse(Reason.CHILD_MOUNT, f"{child.origin.mount_point} shows {shown} now")
        propagation = _attainable(_propagation_of(old), origin)
        idmap = self._kernel.idmap_of(old) if old.is_idmapped else None
        attributes = Attributes(old.options, propagation, self._users_of(old, idmap))
        return self._configured(copy, attributes)

    def _place_of(self, relative: str, places: dict[str, int]) -> int:
        """Open the directory to mount on, inside the nearest clone above it."""
        above = max((p for p in places if not p or relative.startswith(p + "/")), key=len)
        below = self._kernel.open_below(places[above], relative[len(above) :])
        return self._keep(below, self._parts)


def _may_replace(origin: Mount, old: Mount) -> bool:
    """Return False where a volume would turn into something else: a file system of the host."""
    return (origin.is_fuse and old.is_fuse) or origin.fs_type == old.fs_type


def planned_children(action: ReplaceMount, pile: Pile, where: str) -> tuple[Mount, ...]:
    """Return the mounts inside the top of a stack; one that is not in the plan is refused."""
    known = {child.expect.mount_id for child in action.children}
    children = pile.inside(pile.top)
    for child in children:
        if child.mount_id not in known:
            detail = f"mount {child.mount_id} inside {where} is not in the plan"
            raise refuse(Reason.CHILD_MOUNT, detail)
    return children


def _joined(root: str, below: str) -> str:
    return "/" + "/".join(part for part in (root + "/" + below).split("/") if part)


def options_of(mount: Mount, *, read_only: bool) -> str:
    """Return the per-mount options of ``mount``, with ``ro`` where it must be added."""
    words = [word for word in mount.options.split(",") if word not in ("rw", "ro")]
    first = "ro" if read_only or mount.is_read_only else "rw"
    return ",".join([first, *words])


def _wanted(action: ReplaceMount, old: Mount, options: str, origin: Mount) -> Propagation:
    """Refine what the plan says of a slave by what the mounts are now."""
    if action.propagation is not Propagation.SLAVE:
        return action.propagation
    if origin.master and options.startswith("ro"):
        # A server that is mounted over the source would arrive here with flags of its own.
        return Propagation.PRIVATE
    return Propagation.RECEIVER if old.peer_group else Propagation.SLAVE


def _attainable(wanted: Propagation, origin: Mount) -> Propagation:
    """A clone can only receive as a peer or a slave of a group, or with the same master.

    It can only be a peer of a group that its origin is in.
    """
    if wanted is Propagation.PEER and not origin.peer_group:
        return Propagation.PRIVATE
    if not (origin.peer_group or origin.master):
        alone = {
            Propagation.SLAVE: Propagation.PRIVATE,
            Propagation.RECEIVER: Propagation.OWN_GROUP,
        }
        return alone.get(wanted, wanted)
    return wanted


def _propagation_of(mount: Mount) -> Propagation:
    if mount.master:
        return Propagation.RECEIVER if mount.peer_group else Propagation.SLAVE
    return Propagation.OWN_GROUP if mount.peer_group else Propagation.PRIVATE
