"""Kubernetes Events before and after something is done about the server of a pod's volume."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import Enum

from fusewatchd.model.actions import OutcomeStatus
from fusewatchd.model.cycle import CycleReport
from fusewatchd.model.pods import Pod
from fusewatchd.model.server_actions import CommandEnd, CommandResult
from fusewatchd.report.events.draft import (
    EventDraft,
    ObjectReference,
    node_reference,
    pod_reference,
)
from fusewatchd.report.events.event_limit import MAX_PODS, EventLimit


class ServerActionEvent(Enum):
    """All that is ever said; value: reason, action, type, note."""

    STARTING = (
        "FuseServerRestarting",
        "RestartFuseServer",
        "Warning",
        "The server of a FUSE volume in this pod is gone. fusewatchd runs the restart command that"
        " the node's configuration has for it.",
    )
    STARTED = (
        "FuseServerRestarted",
        "RestartFuseServer",
        "Normal",
        "The restart command for the server of a FUSE volume in this pod succeeded. The volume is"
        " repaired when the server is back.",
    )
    FAILED = (
        "FuseServerRestartFailed",
        "RestartFuseServer",
        "Warning",
        "The restart command for the server of a FUSE volume in this pod failed, and is retried."
        " 'fusewatchd status' on the node says why.",
    )
    DETACHED = (
        "FuseSourceDetached",
        "DetachFuseSource",
        "Warning",
        "The dead mount of a FUSE volume in this pod was detached from where its server mounts, so"
        " that the server can start again.",
    )

    def draft(self, regarding: ObjectReference) -> EventDraft:
        """Return the Event about an object."""
        reason, action, type_, note = self.value
        return EventDraft(regarding, reason, action, note, type_)


class ServerActionEvents:
    """Tells the pods that wait for a server; nobody of whom the kubelet has not told."""

    def __init__(
        self,
        post: Callable[[EventDraft], None],
        node_name: str,
        most: Callable[[], int] = lambda: MAX_PODS,
    ) -> None:
        """Tell nobody of anything yet.

        Args:
            post: takes an Event and never waits.
            node_name: the Node that is told for a crowd of pods.
            most: how many pods of a storm get Events of their own.
        """
        self._post = post
        self._node = node_reference(node_name)
        self._event_limit = EventLimit(most)
        self._waiting: dict[str, frozenset[str]] = {}
        """Pods that wait for each dead source that is being detached, by its path."""

    def report(self, cycle: CycleReport) -> None:
        """Say what this cycle began and what it saw ended."""
        server_actions = cycle.server_actions
        for outcome in server_actions.outcomes:
            pods = self._waiting.pop(outcome.action.key.mount_point, frozenset())
            if outcome.status is OutcomeStatus.DETACHED:
                self._say(ServerActionEvent.DETACHED, pods, cycle)
        for end in server_actions.ends:
            self._say(_kind_of(end), end.command.pods, cycle)
        for command in server_actions.commands:
            self._say(ServerActionEvent.STARTING, command.pods, cycle)
        starting = {action.key.mount_point for action in server_actions.detaches}
        pods_of = {f.bind.key: f.bind.path.pod_uid for f in cycle.findings}
        for source in server_actions.dead_sources:
            if source.path in starting:
                self._waiting[source.path] = frozenset(pods_of[key] for key in source.binds)

    def close(self) -> None:
        """Nothing is held."""

    def _say(self, kind: ServerActionEvent, uids: Iterable[str], cycle: CycleReport) -> None:
        known = cycle.snapshot.pods or {}
        for pod in (known[uid] for uid in sorted(uids) if uid in known):
            if not pod.is_deleting:
                self._tell(kind, pod, cycle.started_at)

    def _tell(self, kind: ServerActionEvent, pod: Pod, now: float) -> None:
        if self._event_limit.admits(pod.uid, now):
            self._post(kind.draft(pod_reference(pod)))
        else:
            self._post(kind.draft(self._node))


def _kind_of(end: CommandEnd) -> ServerActionEvent:
    is_fine = end.result is CommandResult.SUCCEEDED
    return ServerActionEvent.STARTED if is_fine else ServerActionEvent.FAILED
