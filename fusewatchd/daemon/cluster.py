"""The kubelet and the API server, as far as they are configured.

Both are asked by the front, which hands values over and is never waited for: what is down or slow
there costs a recovery nothing.  What a front tells of pods is read here as if the kubelet told it.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence

from fusewatchd.config.settings import Settings
from fusewatchd.daemon.front.handover import EndpointFiles
from fusewatchd.daemon.front.kept_events import KeptEvents
from fusewatchd.daemon.front.process import Front, Told
from fusewatchd.daemon.policies import node_name_of
from fusewatchd.front.messages import (
    Condition,
    ConditionTold,
    EventsKept,
    EventsTold,
    PodsTold,
    Post,
    Refresh,
    Talk,
    ToFront,
    Topic,
)
from fusewatchd.kube.endpoints import apiserver_endpoint, kubelet_endpoint
from fusewatchd.kube.events.pace import MIN_TOLD
from fusewatchd.kube.events.series import draft_document
from fusewatchd.log import Log
from fusewatchd.model.cycle import Trigger
from fusewatchd.model.kubelet import KubeletDirectory
from fusewatchd.model.pods import Pod
from fusewatchd.observe.kubelet.pod_cache import Pods
from fusewatchd.parse.pod_list import PodList
from fusewatchd.report.events.draft import EventDraft, VolumeReference
from fusewatchd.report.events.event_limit import MAX_PODS
from fusewatchd.report.events.node_condition import NodeCondition, NodeConditionReporter
from fusewatchd.report.events.pods import PodEvents
from fusewatchd.report.events.server_actions import ServerActionEvents
from fusewatchd.report.events.volumes import VolumeEvents
from fusewatchd.report.metrics.metrics import EventOutcome, Metrics
from fusewatchd.report.reporter import Reporter
from fusewatchd.text import printable

TALLY_SECONDS = 60.0
MAX_UNTAKEN = 1024
"""Events that no front has taken yet; the oldest gives way."""


class Cluster:
    """Says what the front is to ask and to tell, and takes what comes of it."""

    def __init__(
        self, settings: Settings, kubelet: KubeletDirectory, pods: Pods, metrics: Metrics, log: Log
    ) -> None:
        """Ask nobody yet."""
        self._settings = settings
        self._directory = kubelet
        self._pods = pods
        self._metrics = metrics
        self._log = log
        self._front: Front | None = None
        self._generation = 0
        self._files: dict[Topic, EndpointFiles] = {}
        self._last_list: PodList | None = None
        """Of this front and generation."""
        self._most_told = MAX_PODS
        self._untaken: deque[EventDraft] = deque()
        self._kept = KeptEvents(settings.state_dir)
        self._condition: NodeCondition | None = None
        self._condition_problem = ""
        self._complaints: frozenset[str] = frozenset()
        self._summed_up = _Tally()
        self._dropped = _Tally()

    @property
    def _node_name(self) -> str:
        return node_name_of(self._settings)

    @property
    def is_configured(self) -> bool:
        """True when there is somebody to ask or to tell."""
        return bool(self._settings.kubelet.url) or self._settings.apiserver.is_configured

    @property
    def _has_condition(self) -> bool:
        apiserver = self._settings.apiserver
        return apiserver.is_configured and apiserver.node_condition

    def reporters(self) -> tuple[Reporter, ...]:
        """Return the reporters that tell the cluster."""
        name = self._node_name
        return (
            PodEvents(self.post, name, self.give_up, self.most_told),
            VolumeEvents(self.post, name, self.most_told),
            ServerActionEvents(self.post, name, self.most_told),
            NodeConditionReporter(self.set_condition),
        )

    def start(self, front: Front) -> None:
        """Ask and tell by this front from now on."""
        self._front = front
        problem = self._kept.load()
        if problem:
            self._tell_problem(f"what an earlier run left to say is left out: {problem}")
        self._begin()

    def adopt(self, settings: Settings) -> bool:
        """Go on with other settings; True when the front has to be told."""
        before, self._settings = self._settings, settings
        if _clients_of(before) == _clients_of(settings):
            return False
        if before.kubelet != settings.kubelet:
            self._pods.change_kubelet()
        self._begin()
        return True

    def _begin(self) -> None:
        settings = self._settings
        self._generation += 1
        self._last_list = None
        before, self._files = self._files, {}
        for files in before.values():
            files.close()
        refresh_seconds = settings.kubelet.refresh_seconds if settings.kubelet.url else 0.0
        self._pods.expect_lists(refresh_seconds, time.monotonic(), time.time())
        if settings.kubelet.url:
            endpoint = kubelet_endpoint(settings.kubelet, self._directory.root, self._node_name)
            self._files[Topic.KUBELET] = EndpointFiles(endpoint)
        if settings.apiserver.is_configured:
            self._files[Topic.APISERVER] = EndpointFiles(apiserver_endpoint(settings))
        if not self._has_condition:
            self._condition = None

    def files(self, topic: Topic) -> EndpointFiles | None:
        """Return how a server is reached, if it is asked; from any thread."""
        return self._files.get(topic)

    def greeting(self) -> Sequence[ToFront]:
        """Return what a new front is told first, with the Events that no other one has taken."""
        self._last_list = None
        return [*self.orders(), *map(_posted, self._untaken)]

    def orders(self) -> Sequence[ToFront]:
        """Return whom to ask and to tell, and what holds of the node."""
        settings = self._settings
        talk = Talk(
            self._generation,
            self._node_name,
            settings.kubelet.refresh_seconds if settings.kubelet.url else 0.0,
            settings.apiserver.is_configured,
            settings.apiserver.cluster_nodes,
            self._has_condition,
            self._kept.text,
        )
        return [talk] if self._condition is None else [talk, _said(self._condition)]

    def close(self) -> None:
        """Write down what is left to say, and let go of the files."""
        self._kept.close()
        for files in self._files.values():
            files.close()

    def pods_wanted(self) -> None:
        """Ask the kubelet soon: a bind came or went."""
        if self._settings.kubelet.url:
            self._send(Refresh())

    def post(self, draft: EventDraft) -> None:
        """Hand an Event over; without an API server it is nobody's business."""
        if not self._settings.apiserver.is_configured:
            return
        is_on_volume = isinstance(draft.regarding, VolumeReference)
        if is_on_volume and not self._settings.apiserver.volume_events:
            return
        if len(self._untaken) >= MAX_UNTAKEN:
            self._untaken.popleft()
            self._count_dropped(1)
        self._untaken.append(draft)
        self._send(_posted(draft))
        if draft.regarding.kind == "Node":
            self._metrics.event(EventOutcome.SUMMED_UP)
            self._tell_left_out(self._summed_up.add(1), "the rest is counted on the node")

    def set_condition(self, condition: NodeCondition) -> None:
        """Hand the node's condition over, if anybody wants it."""
        if self._has_condition and condition != self._condition:
            self._condition = condition
            self._send(_said(condition))

    def most_told(self) -> int:
        """Return of how many pods, and of how many volumes, a storm is told one by one."""
        return self._most_told if self._settings.apiserver.is_configured else MAX_PODS

    def give_up(self, count: int) -> None:
        """Count Events that were not even handed over."""
        if self._settings.apiserver.is_configured:
            self._count_dropped(count)

    def _send(self, message: ToFront) -> None:
        if self._front is not None:
            self._front.send(message)

    def _count_dropped(self, count: int) -> None:
        self._metrics.event(EventOutcome.DROPPED, count)
        self._tell_left_out(self._dropped.add(count), "some are dropped")

    def _tell_left_out(self, count: int, what: str) -> None:
        if count:
            self._log.warning(f"too many events: {what}", event="events_left_out", count=count)

    # ------------------------------------------------------------------ what arrives

    def take(self, told: Told, *, is_last: bool = False) -> Trigger | None:
        """Take what the front told; ``is_last``: the daemon ends."""
        message = told.message
        if isinstance(message, PodsTold):
            return self._take_pods(message, told.content)
        if isinstance(message, EventsTold):
            self._take_news(message, is_last=is_last)
        elif isinstance(message, EventsKept):
            for _ in range(min(message.taken, len(self._untaken))):
                self._untaken.popleft()
            self._kept.take(message.document, told.content)
        elif isinstance(message, ConditionTold):
            self._take_condition_problem(message.problem)
        return None

    def _take_pods(self, told: PodsTold, listed: PodList | None) -> Trigger | None:
        if told.generation != self._generation:
            return None
        self._metrics.kubelet_request(told.code)
        if listed is not None:
            self._last_list = listed
        if told.problem or self._last_list is None:
            self._pods.take_problem(told.problem or "no list of pods came")
            return Trigger.PODS
        pods = self._last_list.pods
        complaints = (*told.complaints, *self._last_list.complaints)
        is_whole = not complaints and self._tells_of_this_node(pods)
        asked_at = min(told.asked_at, time.monotonic())
        self._pods.take_list(pods, asked_at, is_whole=is_whole)
        self._tell_complaints(frozenset(complaints))
        return Trigger.PODS

    def _tells_of_this_node(self, pods: Iterable[Pod]) -> bool:
        """Return True when the API server has told this node's kubelet of its pods.

        A kubelet that was just started lists the static pods alone, for as long as the API
        server does not answer it; and the address may be that of another node.
        """
        return any(not pod.is_static and self._has_directory(pod) for pod in pods)

    def _has_directory(self, pod: Pod) -> bool:
        return os.path.isdir(f"{self._directory.pods}/{pod.directory_uid}")

    def _tell_complaints(self, complaints: frozenset[str]) -> None:
        for complaint in sorted(complaints - self._complaints):
            self._log.warning("a pod of the kubelet's list is left out", detail=complaint)
        self._complaints = complaints

    def _take_news(self, news: EventsTold, *, is_last: bool) -> None:
        self._metrics.event(EventOutcome.POSTED, news.posted)
        self._metrics.event(EventOutcome.FAILED, news.failed)
        self._count_dropped(news.dropped)
        self._most_told = max(MIN_TOLD, min(MAX_PODS, news.most_told))
        for problem in news.problems:
            self._tell_problem(problem)
        if news.recovered and not is_last:
            self._log.info("events are posted again", event="events_working")

    def _tell_problem(self, problem: str) -> None:
        self._log.warning("events are not posted", event="events_failing", detail=problem)

    def _take_condition_problem(self, problem: str) -> None:
        before, self._condition_problem = self._condition_problem, problem
        if problem and problem != before:
            text = "the node condition is not posted"
            self._log.warning(text, event="condition_failing", detail=problem)
        elif before and not problem:
            self._log.info("the node condition is posted again", event="condition_working")


def _posted(draft: EventDraft) -> Post:
    return Post(json.dumps(draft_document(draft)))


def _said(condition: NodeCondition) -> Condition:
    return Condition(condition.is_true, condition.reason, condition.message)


def _clients_of(settings: Settings) -> tuple[object, ...]:
    return settings.kubelet, settings.apiserver, settings.node_name


class _Tally:
    """What is left out: told when it begins, and then at most once a minute."""

    def __init__(self) -> None:
        self._count = 0
        self._tell_at = 0.0

    def add(self, count: int) -> int:
        """Return how many to tell of now; 0: the time has not come, or there are none."""
        self._count += count
        now = time.monotonic()
        if not self._count or now < self._tell_at:
            return 0
        count, self._count, self._tell_at = self._count, 0, now + TALLY_SECONDS
        return count


def describe(settings: Settings) -> dict[str, str]:
    """Say for the log whom this daemon talks to; never with a secret."""
    apiserver = settings.apiserver
    return {
        "kubelet": printable(settings.kubelet.url) or "not asked",
        "apiserver": printable(apiserver.url or apiserver.kubeconfig) or "not told",
    }
