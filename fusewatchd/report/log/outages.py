"""What the log says of outages: the server is gone, its source is back, all is well again."""

from __future__ import annotations

from dataclasses import dataclass, field

from fusewatchd.log import Level, Log, Value
from fusewatchd.model.accounts import MAX_NAMED, Account
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.mounts import Device
from fusewatchd.model.outages import Incident
from fusewatchd.model.servers import Service
from fusewatchd.model.verdicts import Verdict
from fusewatchd.report.log.fields import device_of, grouped, milliseconds, whose
from fusewatchd.report.server_fields import end_fields, server_name, server_text
from fusewatchd.text import counted, cut_text, duration_text, first_few


@dataclass(slots=True)
class _Outage:
    """What was told of an open incident."""

    incident: Incident
    told_source: Device | None = None
    whose: dict[str, Value] = field(default_factory=dict)
    """Volumes and pods that were hit, so that each line is found by them."""


class OutageLog:
    """A part of the log's reporter."""

    def __init__(self, log: Log) -> None:
        """Tell everything to ``log``."""
        self._log = log
        self._outages: dict[Device, _Outage] = {}

    def tell_opened(self, cycle: CycleReport) -> None:
        """Say whose server is gone, and what is known of its end."""
        self._take_over(cycle)
        by_device = grouped(cycle.findings, device_of) if cycle.incidents_opened else {}
        for incident in cycle.incidents_opened:
            hit = by_device.get(incident.device, [])
            outage = self._outages[incident.device] = _Outage(incident)
            outage.whose = whose(hit, cycle.snapshot)
            end, gone = incident.end, incident.server_gone_at
            has_name = end is not None and end.server is not None
            of_whom = f": {server_text(end)}" if end is not None and has_name else ""
            servers = cycle.snapshot.servers.get(incident.device, ())
            is_cut = bool(servers) and end is None and gone is None
            text = f"FUSE server is gone{of_whom}"
            waited = 0.0
            if is_cut:
                name, pid = server_name(servers[0]), servers[0].pid
                waited = _waited(incident, cycle)
                text = (
                    f"FUSE connection is cut, and no end was seen of its server {name} (pid {pid}):"
                    f" {cut_text(waited)}"
                )
            if len(hit) > 0:
                text = f"{text}; {counted(len(hit), 'mount')} stale"
            self._log.warning(
                text,
                event="connection_cut" if is_cut else "server_gone",
                **_fields(incident),
                **outage.whose,
                **end_fields(end, cycle.snapshot),
                waited_ms=milliseconds(waited) if waited else None,
                outages=_service(incident, cycle).outages or None,
                noticed_after_ms=None if gone is None else milliseconds(incident.noticed_at - gone),
            )

    def _take_over(self, cycle: CycleReport) -> None:
        """Say which outages of an earlier run go on, once they are seen again."""
        opened = {incident.device for incident in cycle.incidents_opened}
        for device, incident in cycle.ledger.incidents.items():
            if device in self._outages or device in opened or not incident.targets:
                continue
            hit = [f for f in cycle.findings if device_of(f) == device]
            outage = self._outages[device] = _Outage(incident, whose=whose(hit, cycle.snapshot))
            self._log.info(
                f"outage continues: {counted(len(incident.open_targets), 'mount')} open",
                event="outage_goes_on",
                **_fields(incident),
                **outage.whose,
                **end_fields(incident.end, cycle.snapshot),
            )

    def tell_sources(self, cycle: CycleReport) -> None:
        """Say which sources are back: one may be so several times before its binds are on it."""
        for finding in cycle.findings:
            mount, source = finding.bind.mount, finding.source_mount
            outage = self._outages.get(mount.device) if mount is not None else None
            if outage is None or source is None or not finding.bind.key.is_host:
                continue
            if finding.verdict is not Verdict.STALE or outage.told_source == source.device:
                continue
            outage.told_source = source.device
            up_at = cycle.snapshot.seen_at.get(source.device, cycle.started_at)
            down = max(0.0, up_at - outage.incident.began_at)
            self._log.info(
                f"source is back after {duration_text(down)}",
                event="source_back",
                **{**_fields(outage.incident), "source": source.mount_point},
                **outage.whose,
                new_device=str(source.device),
            )
            connection = cycle.snapshot.connections.get(source.device)
            if connection is not None and connection.root.is_slow:
                self._log.warning(
                    "the new source does not show its root in time, and is used anyway",
                    event="source_slow",
                    source=source.mount_point,
                    **outage.whose,
                    new_device=str(source.device),
                )

    def tell_closed(self, cycle: CycleReport) -> None:
        """Say which outages are over, and how long they were."""
        for incident in cycle.incidents_closed:
            outage = self._outages.pop(incident.device, _Outage(incident))
            fields = {**_fields(incident), **outage.whose}
            if incident.recovered_at is None:
                why = "unmounted, mounted again by others, or excluded"
                text = f"outage ended, nothing was replaced: {why}"
                self._log.info(text, event="outage_over", **fields)
            else:
                self._tell_recovered(incident, incident.recovered_at, fields, cycle)

    def _tell_recovered(
        self, incident: Incident, at: float, fields: dict[str, Value], cycle: CycleReport
    ) -> None:
        lasted = max(0.0, at - incident.began_at)
        took = incident.recovery_seconds
        words = "" if took is None else f" in {duration_text(took)}"
        binds = len(incident.recovered_targets)
        held = cycle.snapshot.keeper.held.get(incident.device)
        left = cycle.accounts.still_showing(incident.device)
        self._log.write(
            Level.WARNING if left else Level.INFO,
            f"{_recovered(binds, left)}{words}, outage {duration_text(lasted)}",
            {
                "event": "recovered",
                **fields,
                "binds": binds,
                "recovery_ms": None if took is None else milliseconds(took),
                "outage_ms": milliseconds(lasted),
                "restarts": _service(incident, cycle).restarts or None,
                "callers_waiting": None if held is None else held.waiting,
                "still_dead": len(left) or None,
            },
        )


def _recovered(binds: int, left: tuple[Account, ...]) -> str:
    """Say what was recovered, and name what still shows the dead file system."""
    what = counted(binds, "mount")
    if not left:
        return f"recovered {what}"
    verb = "place still shows" if len(left) == 1 else "places still show"
    places = first_few([one.place() for one in left], MAX_NAMED)
    return f"recovered on the host, {len(left)} {verb} the dead one: {places}; {what}"


def _waited(incident: Incident, cycle: CycleReport) -> float:
    connection = cycle.snapshot.connections.get(incident.device)
    return connection.waited_seconds if connection is not None else 0.0


def _fields(incident: Incident) -> dict[str, Value]:
    return {
        "device": str(incident.device),
        "driver": incident.driver,
        "source": incident.source_path or None,
    }


def _service(incident: Incident, cycle: CycleReport) -> Service:
    return cycle.ledger.services.get(incident.source_path, Service())
