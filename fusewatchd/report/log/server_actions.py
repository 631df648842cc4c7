"""What the log says of dead sources and of servers that are started again."""

from __future__ import annotations

import shlex

from fusewatchd.errors import assert_never
from fusewatchd.log import Level, Log, Value
from fusewatchd.model.actions import Outcome, OutcomeStatus
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.server_actions import (
    CommandEnd,
    CommandResult,
    DeadSource,
    RunCommand,
    Trouble,
)
from fusewatchd.model.verdicts import Reason
from fusewatchd.report.log.fields import why
from fusewatchd.text import counted

_PASSING = frozenset(
    {Reason.NONE, Reason.GRACE, Reason.UNCONFIRMED, Reason.BACK_OFF, Reason.SOURCE_DEAD}
)
"""Why nothing is done just now, which is no news by itself."""


SHOWN = 200
"""Characters of a command's output, the last ones: what went wrong stands there."""


class ServerActionLog:
    """Writes down what is done about servers, each thing once."""

    def __init__(self, log: Log) -> None:
        """Tell everything to ``log``, which stays its owner's."""
        self._log = log
        self._dead: dict[str, Reason] = {}
        self._troubles: dict[str, Reason] = {}

    def report(self, cycle: CycleReport) -> None:
        """Say what this cycle brought, in the order in which it happened."""
        server_actions = cycle.server_actions
        for outcome in server_actions.outcomes:
            self._tell_outcome(outcome)
        for end in server_actions.ends:
            self._tell_end(end)
        self._tell_sources(server_actions.dead_sources, cycle.started_at)
        self._tell_troubles(server_actions.troubles)
        for action in server_actions.detaches:
            self._log.warning(
                "detaching a dead source mount",
                event="source_detaching",
                source=action.expect.mount_point,
                mount_id=action.expect.mount_id,
                device=str(action.expect.device),
            )
        for command in server_actions.commands:
            self._log.warning(
                "running the restart command",
                event="action_started",
                **_fields(command),
                argv=shlex.join(command.argv),
            )

    def _tell_sources(self, sources: tuple[DeadSource, ...], now: float) -> None:
        known = {source.path: source for source in sources}
        for path, source in known.items():
            before = self._dead.get(path)
            if before is not None and (source.held_back is before or source.held_back in _PASSING):
                continue
            fields: dict[str, Value] = {
                "event": "source_dead",
                "source": path,
                "device": str(source.mount.device),
                "driver": source.driver,
                "layers": source.layers,
                "binds": len(source.binds),
                "dead_seconds": round(max(0.0, now - source.since), 1),
                "reason": source.held_back.value if source.held_back is not Reason.NONE else None,
            }
            text = "source mount is dead: a server may refuse to start there"
            self._log.write(Level.WARNING, text, fields)
        for path in self._dead.keys() - known.keys():
            self._log.info("source mount is no longer dead", event="source_clear", source=path)
        self._dead = {path: source.held_back for path, source in known.items()}

    def _tell_troubles(self, troubles: tuple[Trouble, ...]) -> None:
        known = {trouble.place: trouble for trouble in troubles}
        for place, trouble in known.items():
            reason = trouble.held_back
            if reason in _PASSING or reason is self._troubles.get(place):
                continue
            self._log.warning(
                "the server is not restarted",
                event="action_refused",
                place=place,
                driver=trouble.driver,
                kind=trouble.kind.value,
                reason=reason.value,
            )
        self._troubles = {place: trouble.held_back for place, trouble in known.items()}

    def _tell_outcome(self, outcome: Outcome) -> None:
        fields: dict[str, Value] = {
            "source": outcome.action.expect.mount_point,
            "mount_id": outcome.action.expect.mount_id,
            "device": str(outcome.action.expect.device),
        }
        if outcome.status is OutcomeStatus.DETACHED:
            self._log.warning("dead source mount detached", event="source_detached", **fields)
            return
        self._log.warning(
            "dead source mount not detached",
            event=f"source_detach_{outcome.status.value}",
            **fields,
            **why(outcome),
        )

    def _tell_end(self, end: CommandEnd) -> None:
        level, saying = _saying(end.result)
        fields: dict[str, Value] = {
            "event": f"action_{end.result.value}",
            **_fields(end.command),
            "status": end.status,
            "meaning": _MEANING if end.status == _EXIT_NAMESPACE else None,
            "took_seconds": round(max(0.0, end.finished_at - end.started_at), 2),
            "waits_for": counted(len(end.command.pods), "pod"),
            "output": end.detail.strip()[-SHOWN:] or None,
        }
        self._log.write(level, saying, fields)


_EXIT_NAMESPACE = 226
"""Of systemd, systemd.exec(5)."""
_MEANING = (
    "systemd could not set up a mount namespace: any dead mount of the node may be in its way,"
    " see 'findmnt -t fuse' and 'fusewatchd status'"
)


def _saying(result: CommandResult) -> tuple[Level, str]:
    match result:
        case CommandResult.SUCCEEDED:
            return Level.INFO, "restart command succeeded"
        case CommandResult.FAILED:
            return Level.WARNING, "restart command failed"
        case CommandResult.TIMED_OUT:
            return Level.WARNING, "restart command timed out"
        case CommandResult.NOT_STARTED:
            return Level.ERROR, "restart command could not be run"
        case _:
            assert_never(result)


def _fields(command: RunCommand) -> dict[str, Value]:
    return {
        "place": command.place,
        "device": str(command.device),
        "driver": command.driver,
        "kind": command.kind.value,
        "attempt": command.attempt,
    }
