"""Latest exit of the server of each FUSE connection.

No clock and no I/O.  It is bounded by the connections that are shown.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from fusewatchd.model.mounts import Device
from fusewatchd.model.servers import Connection, ServerEnd

MAX_ANONYMOUS = 64


class ExitRecord:
    """Takes ends as they are seen."""

    def __init__(self) -> None:
        """Begin with an empty book."""
        self._by_device: dict[Device, ServerEnd] = {}
        self._anonymous: list[ServerEnd] = []
        """Of servers of which the kernel does not tell the connection."""

    def take(self, end: ServerEnd, devices: Collection[Device]) -> None:
        """Write down the end of a server of these connections; none: it is not known of which."""
        if not devices:
            self._anonymous = [*self._anonymous[1 - MAX_ANONYMOUS :], end]
        for device in devices:
            self._by_device[device] = end

    def take_hang_up(self, socket: str, devices: Collection[Device], now: float) -> None:
        """Write down that a socket hung up, where no process is known that has ended."""
        for device in devices:
            end = self._by_device.get(device, ServerEnd(now, None))
            self._by_device[device] = replace(end, socket=socket)

    def complete(self, fuller: Mapping[ServerEnd, ServerEnd]) -> None:
        """Put what is known by now in the place of what was taken."""
        for device, end in self._by_device.items():
            same = replace(end, socket="")
            if same in fuller:
                self._by_device[device] = replace(fuller[same], socket=end.socket)
        self._anonymous = [fuller.get(end, end) for end in self._anonymous]

    def forget(self, device: Device) -> None:
        """Forget a connection: the number may be another's from here on."""
        self._by_device.pop(device, None)

    def view(self, connections: Mapping[Device, Connection]) -> Mapping[Device, ServerEnd]:
        """Return the latest end of a server of each connection.

        One of which the connection is not told belongs to a dead one if it ended just when
        that was found to have lost its server, and no other one did.
        """
        for device, connection in connections.items() if self._anonymous else ():
            if connection.is_dead and device not in self._by_device:
                gone_at = connection.server_gone_at
                same = [end for end in self._anonymous if end.seen_at == gone_at]
                if len(same) == 1:
                    self._by_device[device] = same[0]
                    self._anonymous.remove(same[0])
        return dict(self._by_device)
