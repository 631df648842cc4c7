"""The kubelet and the API server, as far as they are configured.

Both are asked by threads of their own, which hand values over and are never waited for: what
is down or slow there costs a recovery nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fusewatchd.config.settings import Settings
from fusewatchd.daemon.policies import node_name_of
from fusewatchd.kube.endpoints import apiserver_endpoint, kubelet_endpoint
from fusewatchd.log import Log
from fusewatchd.model.cycle import Trigger
from fusewatchd.model.kubelet import KubeletDirectory
from fusewatchd.model.pods import Pod
from fusewatchd.observe.kubelet.pod_cache import Pods
from fusewatchd.report.events.draft import EventDraft, VolumeReference
from fusewatchd.report.events.event_limit import MAX_PODS
from fusewatchd.report.events.node_condition import NodeCondition, NodeConditionReporter
from fusewatchd.report.events.pods import PodEvents
from fusewatchd.report.events.server_actions import ServerActionEvents
from fusewatchd.report.events.volumes import VolumeEvents
from fusewatchd.report.metrics.metrics import EventOutcome, Metrics
from fusewatchd.report.reporter import Reporter
from fusewatchd.text import printable

if TYPE_CHECKING:
    from fusewatchd.kube.events.poster import EventPoster
    from fusewatchd.kube.http import Endpoint, EndpointSource
    from fusewatchd.kube.kubelet import KubeletPods
    from fusewatchd.kube.node_condition_poster import NodeConditionPoster

TALLY_SECONDS = 60.0
STOP_SECONDS = 2.0
"""For what the API server is still to be told when the daemon stops."""

Register = Callable[[int, Callable[[], Trigger | None]], None]


class Cluster:
    """Owns the two clients and passes on what they bring; a reload replaces the clients."""

    def __init__(
        self,
        settings: Settings,
        kubelet: KubeletDirectory,
        pods: Pods,
        metrics: Metrics,
        log: Log,
    ) -> None:
        """Build nothing yet."""
        self._settings = settings
        self._directory = kubelet
        self._pods = pods
        self._metrics = metrics
        self._log = log
        self._kubelet: KubeletPods | None = None
        self._poster: EventPoster | None = None
        self._condition: NodeConditionPoster | None = None
        self._condition_problem = ""
        self._complaints: frozenset[str] = frozenset()
        self._summed_up = _Tally()
        self._dropped = _Tally()

    @property
    def _node_name(self) -> str:
        return node_name_of(self._settings)

    def reporters(self) -> tuple[Reporter, ...]:
        """Return the reporters that tell the cluster."""
        name = self._node_name
        return (
            PodEvents(self.post, name, self.give_up, self.most_told),
            VolumeEvents(self.post, name, self.most_told),
            ServerActionEvents(self.post, name, self.most_told),
            NodeConditionReporter(self.set_condition),
        )

    def adopt(
        self, settings: Settings, register: Register, unregister: Callable[[int], None]
    ) -> None:
        """Go on with other settings; clients that are configured as before go on as they are."""
        before, self._settings = self._settings, settings
        if _clients_of(before) == _clients_of(settings):
            return
        self.stop(unregister)
        if before.kubelet != settings.kubelet:
            self._pods.change_kubelet()
        self.start(register)

    def start(self, register: Register) -> None:
        """Start the threads of what is configured; code of the rest is not even imported."""
        settings = self._settings
        refresh_seconds = settings.kubelet.refresh_seconds if settings.kubelet.url else 0.0
        self._pods.expect_lists(refresh_seconds, time.monotonic(), time.time())
        if settings.kubelet.url:
            from fusewatchd.kube.kubelet import KubeletPods

            endpoint = kubelet_endpoint(settings.kubelet, self._directory.root, self._node_name)
            self._kubelet = KubeletPods(endpoint, settings.kubelet.refresh_seconds)
            self._kubelet.start()
            register(self._kubelet.fileno(), self._on_pods)
        if settings.apiserver.is_configured:
            register(self._start_telling(apiserver_endpoint(settings)), self._on_news)

    def _start_telling(self, endpoint: Endpoint | EndpointSource) -> int:
        from fusewatchd.kube.events.poster import EventPoster

        self._poster = EventPoster(
            endpoint,
            self._node_name,
            nodes=self._settings.apiserver.cluster_nodes,
            state_dir=self._settings.state_dir,
        )
        self._poster.start()
        if self._settings.apiserver.node_condition:
            from fusewatchd.kube.node_condition_poster import NodeConditionPoster

            self._condition = NodeConditionPoster(
                endpoint, self._node_name, spread=self._poster.spread
            )
            self._condition.start()
        return self._poster.fileno()

    def stop(self, unregister: Callable[[int], None]) -> None:
        """Let what is under way go out, for at most two seconds."""
        end = time.monotonic() + STOP_SECONDS
        if self._condition is not None:
            self._condition.stop()
        if self._kubelet is not None:
            unregister(self._kubelet.fileno())
            self._kubelet.stop()
            self._kubelet = None
        if self._poster is not None:
            unregister(self._poster.fileno())
            self._poster.stop(end - time.monotonic())
            self._count(final=True)
            self._poster = None
        if self._condition is not None:
            self._condition.wait(end - time.monotonic())
            self._condition = None

    def pods_wanted(self) -> None:
        """Ask the kubelet soon: a bind came or went."""
        if self._kubelet is not None:
            self._kubelet.refresh()

    def post(self, draft: EventDraft) -> None:
        """Hand an Event over; without an API server it is nobody's business."""
        if self._poster is None:
            return
        is_on_volume = isinstance(draft.regarding, VolumeReference)
        if is_on_volume and not self._settings.apiserver.volume_events:
            return
        self._poster.post(draft)
        if draft.regarding.kind == "Node":
            self._metrics.event(EventOutcome.SUMMED_UP)
            self._tell_left_out(self._summed_up.add(1), "the rest is counted on the node")

    def set_condition(self, condition: NodeCondition) -> None:
        """Hand the node's condition over, if anybody wants it."""
        if self._condition is None:
            return
        self._condition.tell(condition)
        problem, before = self._condition.problem, self._condition_problem
        self._condition_problem = problem
        if problem and problem != before:
            text = "the node condition is not posted"
            self._log.warning(text, event="condition_failing", detail=problem)
        elif before and not problem:
            self._log.info("the node condition is posted again", event="condition_working")

    def most_told(self) -> int:
        """Return of how many pods, and of how many volumes, a storm is told one by one."""
        return MAX_PODS if self._poster is None else self._poster.most_told()

    def give_up(self, count: int) -> None:
        """Count Events that were not even handed over."""
        if self._poster is not None:
            self._count_dropped(count)

    def _count_dropped(self, count: int) -> None:
        self._metrics.event(EventOutcome.DROPPED, count)
        self._tell_left_out(self._dropped.add(count), "some are dropped")

    def _tell_left_out(self, count: int, what: str) -> None:
        if count:
            self._log.warning(f"too many events: {what}", event="events_left_out", count=count)

    # ------------------------------------------------------------------ what arrives

    def _on_pods(self) -> Trigger | None:
        assert self._kubelet is not None
        answers = self._kubelet.collect()
        for answer in answers:
            self._metrics.kubelet_request(answer.code)
            if answer.pods is None:
                self._pods.take_problem(answer.problem)
            else:
                is_whole = not answer.complaints and self._tells_of_this_node(answer.pods)
                self._pods.take_list(answer.pods, answer.asked_at, is_whole=is_whole)
                self._tell_complaints(frozenset(answer.complaints))
        return Trigger.PODS if answers else None

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

    def _on_news(self) -> None:
        self._count(final=False)

    def _count(self, *, final: bool) -> None:
        assert self._poster is not None
        news = self._poster.collect()
        self._metrics.event(EventOutcome.POSTED, news.posted)
        self._metrics.event(EventOutcome.FAILED, news.failed)
        self._count_dropped(news.dropped)
        for problem in news.problems:
            self._log.warning("events are not posted", event="events_failing", detail=problem)
        if news.recovered and not final:
            self._log.info("events are posted again", event="events_working")


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
