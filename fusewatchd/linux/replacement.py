"""Put a live mount in the place of a stale one, and prove it.

The steps follow one rule each:

1. Look: the target must still be the mount that was diagnosed, and every mount inside it
   must be known to the plan, or nothing happens.
2. Build out of sight: the clone of the source gets its flags, its propagation, its id
   mapping and its child mounts while it is detached.
3. Attach so that the bare directory is never visible: beneath the old top, or on top of it.
4. Look again before the old top is taken away: a second recoverer may have put something
   on it, and a detach takes whatever is on top.
5. Read back, and believe only that.

Any step may fail or be the last one that runs.  What is left then is either what was there
before, or a stack whose top is stale and whose next layer is live; the next attempt finds
and ends that.  No descriptor of a watched mount outlives a call: even one opened with O_PATH
makes other people's umount(8) answer EBUSY.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack
from dataclasses import dataclass

from fusewatchd.decision import (
    Action,
    ChildMount,
    DetachOwnLayer,
    Expect,
    Outcome,
    OutcomeStatus,
    Propagation,
    ReplaceMount,
)
from fusewatchd.linux.mountkernel import (
    Attributes,
    FileKind,
    MountKernel,
    Way,
    attribute_bits,
)
from fusewatchd.linux.mountstack import (
    MAX_LAYERS,
    depth_of,
    layer_below,
    opened,
    top_at,
    tree_inside,
)
from fusewatchd.model import Mount, Reason, assert_never


class _Stop(Exception):
    """An attempt ends here; nothing further is done to the target."""

    def __init__(self, status: OutcomeStatus, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail


def _refuse(reason: Reason, detail: str) -> _Stop:
    return _Stop(OutcomeStatus.REFUSED, reason, detail)


def _skip(reason: Reason, detail: str) -> _Stop:
    return _Stop(OutcomeStatus.SKIPPED, reason, detail)


def _fail(reason: Reason, detail: str) -> _Stop:
    return _Stop(OutcomeStatus.FAILED, reason, detail)


def carry_out(kernel: MountKernel, action: Action) -> Outcome:
    """Do one action and say how it ended; never raises for what a kernel may answer."""
    try:
        try:
            match action:
                case ReplaceMount():
                    return _Replacement(kernel, action).run()
                case DetachOwnLayer():
                    return _detach_own_layer(kernel, action)
                case _:
                    assert_never(action)
        finally:
            kernel.enter(None)
    except _Stop as stop:
        return Outcome(action, stop.status, stop.reason, detail=stop.detail)
    except OSError as exc:
        return _outcome_of_error(action, exc)


def _outcome_of_error(action: Action, exc: OSError) -> Outcome:
    number = exc.errno or 0
    detail = f"{exc.strerror}: {exc.filename}" if exc.filename else str(exc.strerror)
    if number == errno.ESRCH:
        return Outcome(action, OutcomeStatus.SKIPPED, Reason.NAMESPACE_GONE, number, detail)
    return Outcome(action, OutcomeStatus.FAILED, Reason.SYSTEM_CALL, number, detail)


def _detach_own_layer(kernel: MountKernel, action: DetachOwnLayer) -> Outcome:
    with opened(kernel, action.expect.mount_point) as fd:
        mount = kernel.mount_of(fd)
        if not _is_expected(mount, action.expect):
            raise _skip(Reason.VANISHED, "our layer is not on top any more")
        kernel.detach(fd)
    return Outcome(action, OutcomeStatus.DETACHED)


def _is_expected(mount: Mount, expect: Expect) -> bool:
    if mount.mount_point != expect.mount_point or mount.device != expect.device:
        return False
    is_any = not (expect.mount_id or expect.unique_id)
    return is_any or mount.has_id(expect.mount_id, expect.unique_id)


def _is_same(one: Mount, other: Mount) -> bool:
    return one.device == other.device and one.has_id(other.mount_id, other.unique_id)


@dataclass(frozen=True, slots=True)
class _Target:
    """The target as it was when the attempt began."""

    mount: Mount
    kind: FileKind
    children: tuple[Mount, ...]
    idmap: tuple[str, str] | None
    has_stale_layers: bool
    """There is a stale mount below it at the same path."""


class _Replacement:
    """One attempt; every descriptor is on one of two stacks, which close them all."""

    def __init__(self, kernel: MountKernel, action: ReplaceMount) -> None:
        self._kernel = kernel
        self._action = action
        self._path = action.expect.mount_point
        self._open = ExitStack()
        self._sources = ExitStack()
        """Descriptors that are only needed while the new mount is built."""
        self._root = ""
        """What mountinfo must show as the root of the new mount."""

    def run(self) -> Outcome:
        with self._open:
            self._kernel.enter(self._action.namespace)
            target = self._look()
            if target is None:
                return self._read_back(None, "")
            self._kernel.enter(None)
            with self._sources:
                clone = self._build(target)
            self._kernel.enter(self._action.namespace)
            new = self._put_in_place(clone, target)
            options = _options(target.mount, read_only=self._action.read_only)
            return self._read_back(new, options)

    # ------------------------------------------------------------------------ look

    def _look(self) -> _Target | None:
        """Describe what is to be replaced; None when uncovering was all there was to do."""
        with opened(self._kernel, self._path) as fd:
            mount = self._kernel.mount_of(fd)
            if mount.mount_point != self._path:
                raise _skip(Reason.VANISHED, "nothing is mounted there any more")
            below = layer_below(self._kernel, mount)
            if below is not None and self._may_uncover(mount, below):
                # What an attempt left that was cut after its attach, or somebody who put a
                # writable layer on a read-only mount.
                self._kernel.detach(fd)
                return None
            if not _is_expected(mount, self._action.expect):
                is_live = mount.device == self._action.origin.device
                reason = Reason.ALREADY_LIVE if is_live else Reason.RACED
                raise _skip(reason, f"mount {mount.mount_id} of {mount.device} is there now")
            kind = self._kernel.kind_of(fd)
        children = tree_inside(self._kernel, mount)
        known = {child.expect.mount_id for child in self._action.children}
        for child in children:
            if child.mount_id not in known:
                detail = f"mount {child.mount_id} inside the volume is not in the plan"
                raise _refuse(Reason.CHILD_MOUNT, detail)
        idmap = self._kernel.idmap_of(mount) if mount.is_idmapped else None
        has_layers = below is not None and self._is_stale_here(below)
        return _Target(mount, kind, children, idmap, has_layers)

    def _may_uncover(self, top: Mount, below: Mount) -> bool:
        if below.device != self._action.origin.device:
            return False
        if self._action.read_only:
            return below.is_read_only and not top.is_read_only
        same_flags = attribute_bits(below.options) == attribute_bits(top.options)
        return top.device in self._action.stale_devices and same_flags

    def _is_stale_here(self, mount: Mount) -> bool:
        return mount.mount_point == self._path and mount.device in self._action.stale_devices

    # ----------------------------------------------------------------------- build

    def _build(self, target: _Target) -> int:
        action = self._action
        fd, origin = self._open_origin(action.origin)
        if action.subpath:
            fd = self._open_subpath(fd, action.subpath)
        self._root = _joined(origin.root, action.subpath)
        kind = self._kernel.kind_of(fd)
        if kind is FileKind.OTHER:
            raise _refuse(Reason.SUBPATH_UNSAFE, "the source is neither directory nor file")
        if kind is not target.kind:
            raise _refuse(Reason.TYPE_MISMATCH, f"{kind.value} cannot replace {target.kind.value}")
        present = {mount.mount_id: mount for mount in target.children}
        carried = [
            (child, present[child.expect.mount_id])
            for child in action.children
            if child.expect.mount_id in present
        ]
        # Attaching children to a peer of the host bind would copy them to the host: there
        # they are already, so the clone takes them along instead.
        is_peer = action.propagation is Propagation.PEER and bool(origin.peer_group)
        attributes = Attributes(
            options=_options(target.mount, read_only=action.read_only),
            propagation=_attainable(action.propagation, origin),
            idmap_pid=self._idmap_pid(target.mount, target.idmap),
            recursive=is_peer and bool(carried),
        )
        clone = self._clone(fd, attributes)
        if carried and not attributes.recursive:
            clone = self._with_children(clone, carried)
        return clone

    def _keep(self, fd: int, stack: ExitStack) -> int:
        stack.callback(self._kernel.close, fd)
        return fd

    def _open_origin(self, expect: Expect) -> tuple[int, Mount]:
        fd = self._keep(self._kernel.open_mount(expect.mount_point), self._sources)
        mount = self._kernel.mount_of(fd)
        if not _is_expected(mount, expect):
            is_container = self._action.namespace is not None
            reason = Reason.HOST_BIND_STALE if is_container else Reason.SOURCE_CHANGED
            raise _skip(reason, f"{expect.mount_point} shows device {mount.device} now")
        return fd, mount

    def _open_subpath(self, origin: int, subpath: str) -> int:
        try:
            return self._keep(self._kernel.open_below(origin, subpath), self._sources)
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                raise _refuse(Reason.SUBPATH_MISSING, f"{subpath} is not in the source") from exc
            if exc.errno in (errno.ELOOP, errno.EXDEV, errno.ENOTDIR):
                detail = f"{subpath} leads through a link, a file or another mount"
                raise _refuse(Reason.SUBPATH_UNSAFE, detail) from exc
            raise

    def _idmap_pid(self, mount: Mount, idmap: tuple[str, str] | None) -> int:
        if not mount.is_idmapped:
            return 0
        namespace = self._action.namespace
        if namespace is None:
            raise _refuse(Reason.IDMAP, "an id-mapped bind on the host has no known mapping")
        mapping = self._kernel.idmap_of_process(namespace.pid)
        if idmap is not None and idmap != mapping:
            raise _refuse(Reason.IDMAP, "the mount's id mapping is not its container's")
        return namespace.pid

    def _clone(self, fd: int, attributes: Attributes) -> int:
        try:
            return self._keep(self._kernel.clone(fd, attributes), self._open)
        except OSError as exc:
            if attributes.idmap_pid and exc.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                detail = "the new file system does not allow id-mapped mounts"
                raise _refuse(Reason.IDMAP, detail) from exc
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
            return self._keep(self._kernel.assemble(clone, parts), self._open)
        except OSError as exc:
            # A pod without the volume inside is worse off than one that sees ENOTCONN.
            detail = f"a mount inside the volume cannot be carried over: {exc.strerror}"
            raise _refuse(Reason.CHILD_MOUNT, detail) from exc

    def _clone_child(self, child: ChildMount, old: Mount) -> int:
        fd, origin = self._open_origin(child.origin)
        if child.origin_subpath:
            fd = self._open_subpath(fd, child.origin_subpath)
        shown = _joined(origin.root, child.origin_subpath)
        if origin.device == old.device and shown != old.root:
            raise _refuse(Reason.CHILD_MOUNT, f"{child.origin.mount_point} shows {shown} now")
        propagation = _attainable(_propagation_of(old), origin)
        idmap = self._kernel.idmap_of(old) if old.is_idmapped else None
        return self._clone(fd, Attributes(old.options, propagation, self._idmap_pid(old, idmap)))

    def _place_of(self, relative: str, places: dict[str, int]) -> int:
        """Open the directory to mount on, inside the nearest clone above it."""
        above = max((p for p in places if not p or relative.startswith(p + "/")), key=len)
        below = self._kernel.open_below(places[above], relative[len(above) :])
        return self._keep(below, self._sources)

    # ---------------------------------------------------------------------- attach

    def _drop_stale_layers(self) -> None:
        """Take a stack down to its last stale layer; never a live one, never the last."""
        for _ in range(MAX_LAYERS):
            with opened(self._kernel, self._path) as fd:
                top = self._kernel.mount_of(fd)
                below = layer_below(self._kernel, top)
                if below is None or not (self._is_stale_here(top) and self._is_stale_here(below)):
                    return
                self._kernel.detach(fd)

    def _put_in_place(self, clone: int, target: _Target) -> Mount:
        if target.has_stale_layers:
            self._drop_stale_layers()
        with opened(self._kernel, self._path) as fd:
            old = self._kernel.mount_of(fd)
            is_same = _is_same(old, target.mount) or self._is_stale_here(old)
            if old.mount_point != self._path or not is_same:
                raise _skip(Reason.RACED, "the target changed while the new mount was built")
            match self._kernel.way:
                case Way.BENEATH:
                    return self._attach_beneath(clone, fd, old)
                case Way.ON_TOP | Way.STAGED:
                    # Else the new layer would be copied to every peer of the old mount.
                    self._kernel.make_private(fd)
                    self._kernel.attach(clone, fd)
                    return self._let_go(clone)
                case _:
                    assert_never(self._kernel.way)

    def _attach_beneath(self, clone: int, fd: int, old: Mount) -> Mount:
        self._kernel.attach_beneath(clone, fd)
        new = self._let_go(clone)
        is_above = self._kernel.mount_of(fd).parent_id == new.mount_id
        # Last of all before the detach, which takes whatever is on top.
        top = top_at(self._kernel, self._path)
        if not (is_above and top is not None and _is_same(top, old)):
            raise _fail(Reason.RACED, "somebody else mounted there between attach and detach")
        self._kernel.detach(fd)
        return new

    def _let_go(self, clone: int) -> Mount:
        """Describe the new mount, and hold it no longer than that: it is in use now."""
        new = self._kernel.mount_of(clone)
        self._open.close()
        return new

    # ------------------------------------------------------------------- read back

    def _read_back(self, new: Mount | None, options: str) -> Outcome:
        top = top_at(self._kernel, self._path)
        if top is None:
            raise _fail(Reason.VANISHED, "the target was unmounted meanwhile")
        if new is not None and top.mount_id != new.mount_id:
            raise _fail(Reason.RACED, f"mount {top.mount_id} of {top.device} is on top")
        problem = self._difference(top, options)
        if problem:
            raise _fail(Reason.NOT_VERIFIED, problem)
        depth = depth_of(self._kernel, top)
        return Outcome(self._action, OutcomeStatus.RECOVERED, mount=top, depth=depth)

    def _difference(self, top: Mount, options: str) -> str:
        if top.device != self._action.origin.device:
            return f"device {top.device} instead of {self._action.origin.device}"
        if self._root and top.root != self._root:
            return f"root {top.root} instead of {self._root}"
        if options and attribute_bits(top.options) != attribute_bits(options):
            return f"options {top.options} instead of {options}"
        return ""


def _joined(root: str, below: str) -> str:
    return "/" + "/".join(part for part in (root + "/" + below).split("/") if part)


def _options(mount: Mount, *, read_only: bool) -> str:
    words = [word for word in mount.options.split(",") if word not in ("rw", "ro")]
    first = "ro" if read_only or mount.is_read_only else "rw"
    return ",".join([first, *words])


def _attainable(wanted: Propagation, origin: Mount) -> Propagation:
    """A clone can only be a slave or a peer of a group that its origin is in."""
    if wanted in (Propagation.SLAVE, Propagation.PEER) and not origin.peer_group:
        return Propagation.PRIVATE
    return wanted


def _propagation_of(mount: Mount) -> Propagation:
    if mount.master:
        return Propagation.SLAVE
    return Propagation.OWN_GROUP if mount.peer_group else Propagation.PRIVATE
