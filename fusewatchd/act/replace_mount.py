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
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from itertools import takewhile

from fusewatchd.act.abort_connection import abort_connection
from fusewatchd.act.build_mount import NewMount, Target, options_of, planned_children
from fusewatchd.act.cover_directory import cover_directory
from fusewatchd.act.detach_dead_source import detach_dead_source
from fusewatchd.act.detach_layer import detach_orphan, detach_own_layer
from fusewatchd.act.drop_layers import (
    DROP_SECONDS,
    MANY_LAYERS,
    Dropping,
    Rules,
    count_to_drop,
    detach_known,
    drop_layers,
)
from fusewatchd.act.place_stand_ins import NoteStandIn, ignore_stand_in, place_stand_ins
from fusewatchd.act.target_path import opened_target
from fusewatchd.errors import assert_never
from fusewatchd.linux.limits import NamespaceShortageError
from fusewatchd.linux.mount_kernel import MountKernel, Stop, Way, attribute_bits, fail, refuse, skip
from fusewatchd.linux.mount_stack import depth_of, opened, pile_of, top_at, tree_inside
from fusewatchd.model.actions import (
    AbortConnection,
    Action,
    DetachDeadSource,
    DetachOrphan,
    DetachOwnLayer,
    DropLayers,
    Outcome,
    OutcomeStatus,
    OwnLayer,
    PlaceStandIns,
    Propagation,
    ReplaceMount,
)
from fusewatchd.model.mounts import Mount, TargetKey
from fusewatchd.model.stacks import Pile, Points, points
from fusewatchd.model.verdicts import Reason

Note = Callable[[TargetKey, OwnLayer], None]


def ignore(key: TargetKey, layer: OwnLayer) -> None:
    """Take no note of a layer."""


def carry_out(
    kernel: MountKernel,
    action: Action,
    note: Note = ignore,
    note_stand_in: NoteStandIn = ignore_stand_in,
    *,
    may_ask: bool = True,
) -> Outcome:
    """Do one action and say how it ended; never raises for what a kernel may answer.

    Unless it ``may_ask``, a mount whose target is found only with the answer of a file system is
    not replaced, and ``WouldAsk`` is raised.

    ``note`` gets a layer of our own before it is attached, and ``note_stand_in`` a stand-in:
    whatever happens after that, it must be known whose that is.
    """
    stacked: list[OwnLayer] = []

    def take_note(layer: OwnLayer) -> None:
        stacked.append(layer)
        note(action.key, layer)

    outcome = _carry_out(kernel, action, take_note, note_stand_in, may_ask=may_ask)
    return replace(outcome, layer=stacked[-1]) if stacked else outcome


def _carry_out(
    kernel: MountKernel,
    action: Action,
    note: Callable[[OwnLayer], None],
    note_stand_in: NoteStandIn,
    *,
    may_ask: bool,
) -> Outcome:
    try:
        try:
            match action:
                case ReplaceMount(over=str(over)) if over:
                    return cover_directory(kernel, action, may_ask=may_ask)
                case ReplaceMount():
                    return _Replacement(kernel, action, note).run(may_ask=may_ask)
                case DropLayers():
                    return drop_layers(kernel, action)
                case DetachOwnLayer():
                    return detach_own_layer(kernel, action)
                case DetachOrphan():
                    return detach_orphan(kernel, action)
                case DetachDeadSource():
                    return detach_dead_source(kernel, action)
                case AbortConnection():
                    return abort_connection(kernel, action)
                case PlaceStandIns():
                    return place_stand_ins(kernel, action, note_stand_in)
                case _:
                    assert_never(action)
        finally:
            kernel.leave()
    except (Stop, OSError) as exc:
        return outcome_of(action, exc)


def outcome_of(action: Action, exc: Stop | OSError) -> Outcome:
    """Return how an action ended that got no further."""
    if isinstance(exc, Stop):
        return Outcome(action, exc.status, exc.reason, detail=exc.detail, found=exc.found)
    number = exc.errno or 0
    if isinstance(exc, NamespaceShortageError):
        why = str(exc.strerror)
        return Outcome(action, OutcomeStatus.FAILED, Reason.NAMESPACE_LIMIT, number, why)
    detail = f"{exc.strerror}: {exc.filename}" if exc.filename else str(exc.strerror)
    if number == errno.ESRCH:
        return Outcome(action, OutcomeStatus.SKIPPED, Reason.NAMESPACE_GONE, number, detail)
    return Outcome(action, OutcomeStatus.FAILED, Reason.SYSTEM_CALL, number, detail)


def _is_same(one: Mount, other: Mount) -> bool:
    return one.device == other.device and one.has_id(other.mount_id, other.unique_id)


class _Replacement:
    """One attempt; every descriptor is on a stack that closes them all."""

    def __init__(
        self, kernel: MountKernel, action: ReplaceMount, note: Callable[[OwnLayer], None]
    ) -> None:
        self._kernel = kernel
        self._note = note
        self._action = action
        self._path = action.expect.mount_point
        self._open = ExitStack()
        self._new = NewMount(kernel, action, self._open)
        self._began_at = kernel.now()
        self._left = 1
        """Layers that were not dropped."""
        self._wanted = points(c.wanted for c in action.children if c.wanted is not None)
        self._rules = Rules(frozenset(action.stale_devices), action.own_layers, action.read_only)

    def run(self, *, may_ask: bool) -> Outcome:
        with self._open:
            self._kernel.enter(self._action.namespace)
            target = self._look(may_ask=may_ask)
            if target is None:
                return self._read_back(None, "")
            self._kernel.enter(None)
            clone = self._new.build(target)
            self._kernel.enter(self._action.namespace)
            new = self._put_in_place(clone, target)
            options = options_of(target.mount, read_only=self._action.read_only)
            return self._read_back(new, options)

    # ------------------------------------------------------------------------ look

    def _look(self, *, may_ask: bool) -> Target | None:
        """Describe what is to be replaced; None when uncovering was all there was to do.

        What is taken off a layer that is as it shall be is what an attempt left that was cut
        after its attach, or what somebody put there who stacks writable layers on a read-only
        mount.
        """
        with opened_target(self._kernel, self._action, may_ask=may_ask) as fd:
            mount = self._kernel.mount_of(fd)
            if mount.mount_point != self._path:
                raise skip(Reason.VANISHED, "nothing is mounted there any more")
            pile = pile_of(self._kernel, mount)
            if not self._count_to_uncover(pile):
                return self._target(fd, pile)
        left = self._count_to_uncover(self._dropping().drop(pile, self._count_to_uncover))
        if left:
            raise fail(Reason.DEEP_STACK, f"{left} layers more cover the one that shall be seen")
        return None

    def _target(self, fd: int, pile: Pile) -> Target:
        mount = pile.top
        if not self._action.expect.is_met_by(mount):
            is_live = mount.device == self._action.origin.device
            reason = Reason.ALREADY_LIVE if is_live else Reason.RACED
            raise skip(reason, f"mount {mount.mount_id} of {mount.device} is there now", mount)
        kind = self._kernel.kind_of(fd)
        if mount.is_of_removed and self._kernel.way is not Way.BENEATH:
            # The kernel mounts nothing on a directory that was removed.
            raise refuse(Reason.SUBPATH_MISSING, "what it shows was removed while it was mounted")
        children = planned_children(self._action, pile, "the volume")
        idmap = self._kernel.idmap_of(mount) if mount.is_idmapped else None
        return Target(mount, kind, children, idmap, pile)

    def _count_to_uncover(self, pile: Pile) -> int:
        """Count the layers that cover, one after the other, one that is as it shall be."""
        layers, lowest = pile.layers, 0
        for number, top in enumerate(layers):
            # The layer below this one and below others that are unwanted as it is.
            lowest = max(lowest, number + 1)
            while lowest < len(layers) and self._is_one_of_many(layers[lowest - 1], layers[lowest]):
                lowest += 1
            if lowest == len(layers) or not self._may_uncover(top, layers[lowest], pile):
                return number
        return 0

    def _is_one_of_many(self, above: Mount, layer: Mount) -> bool:
        return self._rules.is_unwanted(above) and self._rules.may_show(above, layer)

    def _may_uncover(self, top: Mount, below: Mount, pile: Pile) -> bool:
        if below.device != self._action.origin.device:
            return False
        inside_below = pile.inside(below)
        within, within_below = points(pile.inside(top)), points(inside_below)
        # A peer of the old host bind lost with it what was mounted inside, and the new one has it.
        is_peer = self._action.propagation is Propagation.PEER
        has_more = is_peer or self._has_received(inside_below, within)
        if within != within_below and not (has_more and within < within_below):
            return False
        if self._action.read_only:
            return below.is_read_only and not top.is_read_only
        same_flags = attribute_bits(below.options) == attribute_bits(top.options)
        return top.device in self._rules.stale and same_flags

    def _has_received(self, tree: Iterable[Mount], within: Points) -> bool:
        """True when what is inside a bind of the host and not ``within`` came from its source."""
        more = [mount for mount in tree if not points([mount]) <= within]
        return self._action.propagation is Propagation.RECEIVER and all(m.master for m in more)

    # ---------------------------------------------------------------------- attach

    def _drop_layers(self, target: Target) -> tuple[Mount, ...]:
        """Bring the stack down to the last layer that may be seen; return what may be there now.

        Only layers that were there at the look: the path may lead to another stack by now.
        """
        seen = points(target.children) - self._wanted
        most = count_to_drop(target.pile, self._rules, seen)
        known = target.pile.layers[: most + 1]
        ids = {mount.unique_id or mount.mount_id for mount in known}

        def count(pile: Pile) -> int:
            below = (mount.unique_id or mount.mount_id for mount in pile.layers[1:])
            still = sum(1 for _ in takewhile(ids.__contains__, below))
            return min(still, count_to_drop(pile, self._rules, seen))

        self._left = len(self._dropping().drop(target.pile, count).layers)
        return known

    def _dropping(self) -> Dropping:
        namespace = self._action.namespace
        may_be_locked = namespace is not None and namespace.own_user_namespace
        # Whatever the look has taken of the time, half of it is left.
        until = max(self._began_at + DROP_SECONDS, self._kernel.now() + DROP_SECONDS / 2)
        return Dropping(
            self._kernel, self._path, self._rules, until=until, may_be_locked=may_be_locked
        )

    def _put_in_place(self, clone: int, target: Target) -> OwnLayer:
        known = self._drop_layers(target)
        with opened(self._kernel, self._path) as fd:
            old = self._kernel.mount_of(fd)
            if old.mount_point != self._path or not any(_is_same(old, mount) for mount in known):
                raise skip(Reason.RACED, "the target changed while the new mount was built")
            within = points(tree_inside(self._kernel, old))
            if _is_same(old, target.mount) and within != points(target.children):
                raise skip(Reason.RACED, "what is mounted inside the volume changed meanwhile")
            match self._kernel.way:
                case Way.BENEATH:
                    return self._attach_beneath(clone, fd, old, within)
                case Way.ON_TOP | Way.STAGED:
                    return self._attach_on_top(clone, fd, old, within)
                case _:
                    assert_never(self._kernel.way)

    def _attach_beneath(self, clone: int, fd: int, old: Mount, within: Points) -> OwnLayer:
        try:
            self._kernel.attach_beneath(clone, fd)
        except OSError as exc:
            namespace = self._action.namespace
            if exc.errno != errno.EINVAL or not (namespace and namespace.own_user_namespace):
                raise
            # A mount that it inherited: nothing goes beneath it, and it can never be taken away.
            return self._attach_on_top(clone, fd, old, within)
        new = self._let_go(clone)
        detach_known(self._kernel, fd, old, within)
        return new

    def _attach_on_top(self, clone: int, fd: int, old: Mount, within: Points) -> OwnLayer:
        # Else the new layer would be copied to every peer of the old mount.
        self._kernel.make_private(fd)
        self._note(OwnLayer(*self._kernel.ids_of(clone), self._action.origin.device))
        try:
            self._kernel.attach(clone, fd)
        except FileNotFoundError:
            # A look-up that fails when a server dies can drop a directory (d_invalidate), for
            # every mount of it, and nothing is mounted on what is dropped (d_set_mounted).
            raise refuse(Reason.DIRECTORY_DROPPED, "its root is no directory any more") from None
        new = self._let_go(clone)
        if points(tree_inside(self._kernel, old)) != within:
            # It would be hidden for good: rather take our own layer away again.
            self._take_back(new)
            raise fail(Reason.RACED, "somebody mounted inside the volume just before the attach")
        return new

    def _take_back(self, new: OwnLayer) -> None:
        """Detach our own layer, and nothing of the mount it may be a peer of."""
        with opened(self._kernel, self._path) as fd:
            top = self._kernel.mount_of(fd)
            if new.is_about(top):
                self._kernel.make_private(fd)
                within = points(tree_inside(self._kernel, top))
                detach_known(self._kernel, fd, top, within)

    def _let_go(self, clone: int) -> OwnLayer:
        """Say which one the new mount is, and hold it no longer than that: it is in use now."""
        new = OwnLayer(*self._kernel.ids_of(clone), self._action.origin.device)
        self._open.close()
        return new

    # ------------------------------------------------------------------- read back

    def _read_back(self, new: OwnLayer | None, options: str) -> Outcome:
        top = top_at(self._kernel, self._path)
        if top is None:
            raise fail(Reason.VANISHED, "the target was unmounted meanwhile")
        if new is not None and not new.is_about(top):
            raise fail(Reason.RACED, f"mount {top.mount_id} of {top.device} is on top")
        problem = self._difference(top, options)
        if problem:
            raise fail(Reason.NOT_VERIFIED, problem)
        # To count again what is left of thousands would take as long as to take them off.
        depth = self._left if self._left >= MANY_LAYERS else depth_of(self._kernel, top)
        return Outcome(self._action, OutcomeStatus.RECOVERED, mount=top, depth=depth)

    def _difference(self, top: Mount, options: str) -> str:
        if top.device != self._action.origin.device:
            return f"device {top.device} instead of {self._action.origin.device}"
        if self._new.root and top.root != self._new.root:
            return f"root {top.root} instead of {self._new.root}"
        if options and attribute_bits(top.options) != attribute_bits(options):
            return f"options {top.options} instead of {options}"
        return ""
