"""What systemd is told, by sd_notify(3)."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping

import sdnotify  # type: ignore[import-untyped]

from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.verdicts import ALARMING, Verdict
from fusewatchd.text import counted, duration_text, printable


class SystemdNotifier:
    """Tells systemd how the service is; does nothing where systemd did not start it.

    The watchdog hears of completed cycles only: a loop that turns without ever finishing a
    look at the node is as dead as one that hangs.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Find the socket and the watchdog in the environment.

        Args:
            monotonic: the clock that the times of a cycle are of.
            wall: seconds since the epoch.

        Raises:
            OSError: ``NOTIFY_SOCKET`` names a socket that cannot be reached.
        """
        self._monotonic = monotonic
        self._wall = wall
        self._link = _Link() if os.environ.get("NOTIFY_SOCKET") else None
        self.watchdog_seconds = _watchdog_seconds(os.environ)
        """The limit that systemd sets; None when it does not watch this process."""
        self._kicked_at: float | None = None
        self._status = ""
        self._last_recovery = ""

    def ready(self) -> None:
        """Say that starting, or reloading, is complete."""
        self._send("READY=1")

    def reloading(self) -> None:
        """Say that a reload begins; ``Type=notify-reload`` compares the time with its own."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(self._monotonic() * 1_000_000)}")

    def stopping(self) -> None:
        """Say that the service ends."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Set the line that ``systemctl status`` shows, unless it is there already."""
        text = printable(text)
        if text != self._status and self._send(f"STATUS={text}"):
            self._status = text

    def report(self, cycle: CycleReport) -> None:
        """Kick the watchdog at most every quarter of its limit, and refresh the status."""
        self._kick(cycle.finished_at)
        self._take_recovery(cycle)
        self.status(self._summary(cycle))

    def close(self) -> None:
        """Release the socket."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _kick(self, now: float) -> None:
        if self.watchdog_seconds is None:
            return
        if self._kicked_at is not None and now - self._kicked_at < self.watchdog_seconds / 4:
            return
        if self._send("WATCHDOG=1"):
            self._kicked_at = now

    def _take_recovery(self, cycle: CycleReport) -> None:
        for incident in cycle.incidents_closed:
            if incident.recovered_at is None:
                continue
            at = self._wall() - (self._monotonic() - incident.recovered_at)
            text = time.strftime("%H:%M:%S", time.localtime(at))
            if incident.recovery_seconds is not None:
                text = f"{text} in {duration_text(incident.recovery_seconds)}"
            self._last_recovery = f"last recovery {text}"

    def _summary(self, cycle: CycleReport) -> str:
        volumes = {(f.bind.path.pod_uid, f.bind.path.volume) for f in cycle.findings}
        parts = [counted(len(volumes), "volume")]
        for verdict in (v for v in Verdict if v in ALARMING):
            hit = {
                (f.bind.path.pod_uid, f.bind.path.volume)
                for f in cycle.findings
                if f.verdict is verdict
            }
            if hit:
                parts.append(f"{len(hit)} {verdict.value}")
        if cycle.gaps:
            parts.append("cannot see: " + " ".join(sorted({gap.source for gap in cycle.gaps})))
        if cycle.over_quota:
            parts.append(f"{counted(len(cycle.over_quota), 'quota')} met")
        if self._last_recovery:
            parts.append(self._last_recovery)
        return ", ".join(parts)

    def _send(self, message: str) -> bool:
        return self._link is not None and self._link.send(message)


class _Link:
    """The notification socket, never waited for."""

    def __init__(self) -> None:
        self._notifier = self._connected()

    def send(self, message: str) -> bool:
        """Send or drop; a socket that systemd has made anew is connected again."""
        try:
            self._try(message)
        except OSError as exc:
            if exc.errno == errno.EAGAIN:
                return False
            return self._send_again(message)
        return True

    def close(self) -> None:
        """Close the socket."""
        self._notifier.socket.close()

    def _send_again(self, message: str) -> bool:
        try:
            fresh = self._connected()
        except OSError:
            return False
        self.close()
        self._notifier = fresh
        try:
            self._try(message)
        except OSError:
            return False
        return True

    def _try(self, message: str) -> None:
        # The package encodes as Latin-1; this makes UTF-8 of it.
        self._notifier.notify(message.encode().decode("latin-1"))

    @staticmethod
    def _connected() -> sdnotify.SystemdNotifier:
        # Its debug mode is the one in which errors are not swallowed.
        notifier = sdnotify.SystemdNotifier(debug=True)
        notifier.socket.setblocking(False)
        return notifier


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """Read what sd_watchdog_enabled(3) reads."""
    limit, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if pid and pid != str(os.getpid()):
        return None
    return int(limit) / 1_000_000 if limit.isascii() and limit.isdigit() and int(limit) else None
