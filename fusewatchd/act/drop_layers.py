"""Take layers off the top of a stack, down to one that may be seen.

A driver that mounts again and again leaves thousands of layers on one target.  Each detach
walks the path through all that are left, and a listing of the mounts costs as much as all of
them: so one listing is believed for half of the layers that it shows, and no longer than that.
Then whatever somebody else did meanwhile, the last layer is never taken away.

What lies under a layer that is to be seen stays: no path leads to it, and to take it away would
show it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

from fusewatchd.linux.mount_kernel import MountKernel, fail, refuse, skip
from fusewatchd.linux.mount_stack import mounts_on, opened, pile_of
from fusewatchd.model.actions import DropLayers, Outcome, OutcomeStatus, OwnLayer
from fusewatchd.model.mounts import Device, Mount
from fusewatchd.model.stacks import Pile, Points, points
from fusewatchd.model.verdicts import Reason

DROP_SECONDS = 0.5
"""So long layers are taken off before a new mount is attached: a pod waits for it."""
MANY_LAYERS = 64
"""A look at fewer than these costs next to nothing."""
SLICE_SECONDS = 0.2
"""So long where nothing new is there yet: it may be there by then."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Which layers may be seen for a moment in the place of what covers them; pure."""

    stale: frozenset[Device]
    """Proven dead."""
    own: tuple[OwnLayer, ...] = ()
    """Put there by this daemon: what they cover was to be replaced, and is no better."""
    read_only: bool = False
    """Layers that can be written to are unwanted."""

    def may_show(self, above: Mount, layer: Mount) -> bool:
        """True when ``layer`` may be seen for a moment, in the place of what covers it."""
        if self.is_unwanted(above):
            # It is one of several that somebody put on a read-only mount; it alone may go.
            is_like = above.device == layer.device and above.root == layer.root
            return is_like and self.is_unwanted(layer)
        return layer.device in self.stale or any(own.is_about(above) for own in self.own)

    def is_unwanted(self, mount: Mount) -> bool:
        """True for a living layer whose only fault is that it can be written to."""
        return self.read_only and mount.device not in self.stale and not mount.is_read_only


def count_to_drop(pile: Pile, rules: Rules, seen: Points = frozenset()) -> int:
    """Count the layers that may go, each of which covers one that is no better.

    What is ``seen`` inside the top, and is not made again in any case, must be inside every layer
    that is shown: should this attempt end there, nobody else could bring it back.  What a covered
    layer has inside nobody sees, and goes along with it.
    """
    precious = _groups_below_living(pile, rules)
    count = 0
    for above, layer in zip(pile.layers, pile.layers[1:], strict=False):
        if not rules.may_show(above, layer):
            break
        if above.device in rules.stale and layer.peer_group in precious:
            break
        if seen and not seen <= points(pile.inside(layer)):
            break
        count += 1
    return count


def _groups_below_living(pile: Pile, rules: Rules) -> frozenset[int]:
    """Return the groups in which an umount propagates to what a living layer stands on."""
    pairs = zip(pile.layers, pile.layers[1:], strict=False)
    below = (layer for above, layer in pairs if above.device not in rules.stale)
    return frozenset(g for layer in below for g in (layer.peer_group, layer.master) if g)


class Dropping:
    """Takes layers off one stack, for as long as an action may do that."""

    def __init__(
        self,
        kernel: MountKernel,
        path: str,
        rules: Rules,
        *,
        until: float,
        may_be_locked: bool = False,
    ) -> None:
        """Stop when ``kernel.now()`` is ``until``, or at the first layer after that.

        Layers ``may_be_locked`` where another user namespace inherited them: those stay.
        """
        self._kernel = kernel
        self._may_be_locked = may_be_locked
        self._path = path
        self._rules = rules
        self._ends_at = until

    def drop(self, pile: Pile, count: Callable[[Pile], int]) -> Pile:
        """Take off as many layers as ``count`` says, and return what is there then.

        It is asked again after each listing: what it said of an earlier one may be wrong by
        then.
        """
        while number := count(pile):
            taken = self._take_off(pile, min(number, max(1, len(pile.layers) // 2)))
            if self._kernel.now() >= self._ends_at:
                # A listing of all that is left would take long as well.
                return pile.without(taken)
            before, pile = pile.top, self._listed()
            if pile.top == before:
                break
        return pile

    def _listed(self) -> Pile:
        with opened(self._kernel, self._path) as fd:
            top = self._kernel.mount_of(fd)
        if top.mount_point != self._path:
            raise skip(Reason.VANISHED, "nothing is mounted there any more")
        return pile_of(self._kernel, top)

    def _take_off(self, pile: Pile, number: int) -> int:
        """Detach the uppermost layers and return how many went.

        Ends early where another one than expected is on top, or when the time is over.
        """
        for done, layer in enumerate(pile.layers[:number]):
            with opened(self._kernel, self._path) as fd:
                if not (self._is_it(fd, layer) and self._is_detached(fd, layer, pile)):
                    return done
            if self._kernel.now() >= self._ends_at:
                return done + 1
        return number

    def _is_detached(self, fd: int, layer: Mount, pile: Pile) -> bool:
        is_first = layer is pile.top
        try:
            if layer.device not in self._rules.stale or (is_first and pile.inside(layer)):
                detach_known(self._kernel, fd, layer, points(pile.inside(layer)))
            else:
                # Hardly anything can be mounted in a dead file system after the listing.
                self._kernel.detach(fd)
        except OSError as exc:
            # mount_namespaces(7): what came as a unit cannot be taken apart.
            if self._may_be_locked and exc.errno in (errno.EINVAL, errno.EPERM):
                return False
            raise
        return True

    def _is_it(self, fd: int, layer: Mount) -> bool:
        is_same = layer.has_id(*self._kernel.ids_of(fd))
        return is_same and self._kernel.device_of(fd) == layer.device


def drop_layers(kernel: MountKernel, action: DropLayers) -> Outcome:
    """Take dead layers off, and show none that has something inside: that would be seen then."""
    path, rules = action.expect.mount_point, Rules(frozenset(action.stale_devices))
    began_at = kernel.now()
    with opened(kernel, path) as fd:
        top = kernel.mount_of(fd)
    if not action.expect.is_met_by(top):
        raise skip(Reason.RACED, f"mount {top.mount_id} of {top.device} is there now")
    pile = pile_of(kernel, top)

    def count(pile: Pile) -> int:
        most = count_to_drop(pile, rules)
        plain = takewhile(lambda layer: not pile.inside(layer), pile.layers[: most + 1])
        return max(0, sum(1 for _ in plain) - 1)

    # At least as long as it took to list them, or most of the time would go into listings.
    listed_at = kernel.now()
    until = listed_at + max(SLICE_SECONDS, listed_at - began_at)
    left = Dropping(kernel, path, rules, until=until).drop(pile, count)
    if left.top == top:
        raise refuse(Reason.CHILD_MOUNT, "something is mounted inside, or what is below lives")
    return Outcome(action, OutcomeStatus.DETACHED, depth=len(left.layers))


def detach_known(kernel: MountKernel, fd: int, top: Mount, within: Points) -> None:
    """Detach the topmost mount at ``fd`` if it is ``top`` and holds just what is known.

    One look, the last thing before the call, which takes whatever is on top, and all that
    is mounted inside.  What comes between the two goes along, and the kernel has no way to
    look at the old mount where nobody gets at it any more: it cannot be moved away first
    (EINVAL: it stands on the new one, which is shared as its parent is), and what is
    detached has lost its inside.  In a dead file system hardly anything can be mounted.
    """
    if points(mounts_on(kernel, top)) != within:
        raise fail(Reason.RACED, "somebody else mounted there or inside before the detach")
    kernel.detach(fd)
