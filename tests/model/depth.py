"""How many layers a target may have, and why; pure."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile

from fusewatchd.model.mounts import Device, Mount
from tests.model.places import Layer


@dataclass(slots=True)
class Surplus:
    """What others' mounts brought to a place of a foreign namespace beyond those on the host.

    A peer that is left there has each of them once more.  Only these are counted: what comes there
    while nobody but the daemon mounts is none of it.
    """

    number: int = 0
    layers: set[Layer] = field(default_factory=set)
    """All that came there with them; which of them are the surplus nothing tells."""

    def add(self, there: set[Layer], on_host: set[Layer]) -> None:
        """Note what one mount of somebody else brought to the place there, and on the host."""
        if len(there) > len(on_host):
            self.number += len(there) - len(on_host)
            self.layers |= there

    def left(self, now: set[Layer]) -> int:
        """Return how many of it may be there still, and forget the rest."""
        self.layers &= now
        self.number = min(self.number, len(self.layers))
        return self.number


def living_below(
    stack: Sequence[Mount], foreign: set[Layer], base: int, is_alive: Callable[[Device], bool]
) -> set[Layer]:
    """Return the layers below others' of which the server answers: nobody takes those away.

    With BENEATH nothing of ours is ever below another layer of ours.
    """
    names = [_name(layer) for layer in stack]
    covering = [n for n, name in enumerate(names) if name in foreign]
    end = len(stack) - 1 if base == 1 else max(covering, default=0)
    return {name for name in names[:end] if is_alive(name[1])}


def dead_below(stack: Sequence[Mount], dead: Container[Device]) -> list[Layer]:
    """Return the layers between the top and the next one below that is not of these devices."""
    below = reversed(stack[:-1])
    return [_name(layer) for layer in takewhile(lambda m: m.device in dead, below)]


def stuck_below(
    stack: Sequence[Mount], new: set[Layer], is_alive: Callable[[Device], bool]
) -> dict[Layer, Device]:
    """Return the dead layers that others have just covered with what can be written to.

    In a container that is read-only a layer of ours takes the place of theirs.  With BENEATH that
    is all that goes: what theirs covered could only be taken away by showing it.  It goes when
    what covers it is dead too: by then that is another device, which is why it is told here.
    """
    return {
        _name(below): above.device
        for below, above in pairwise(stack)
        if _name(above) in new and not above.is_read_only and not is_alive(below.device)
    }


def most_layers(
    stack: Sequence[Mount],
    foreign: set[Layer],
    stuck: Mapping[Layer, Device],
    base: int,
    *,
    is_read_only: bool,
) -> int:
    """Return how deep a target may be: what it began with, what others put there, ours.

    ``foreign`` are those of others' layers that are there.

    What cannot be written to in a container stays so.  Without BENEATH a layer of ours goes on
    top of others' that can: to take theirs away first could show the dead mount below for a
    moment, and leave it there if that were the daemon's last one.  When theirs is dead it goes
    with ours.  So there may be one of ours on each run of theirs.  With BENEATH there is one of
    ours instead of theirs, and what that covered.
    """
    most = base + len(foreign)
    if not is_read_only:
        return most
    pairs = [pair for pair in pairwise(stack) if _name(pair[1]) not in foreign]
    if base == 1:
        return most + sum(stuck.get(_name(below)) == above.device for below, above in pairs)
    return most + sum(
        _name(below) in foreign and above.is_read_only and not below.is_read_only
        for below, above in pairs
    )


def _name(layer: Mount) -> Layer:
    return layer.mount_id, layer.device
