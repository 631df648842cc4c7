"""What a front asks for: pages, and how to reach and to trust others."""

from __future__ import annotations

from collections.abc import Callable

from fusewatchd.daemon.front.handover import EndpointFiles, Handover, WebFiles
from fusewatchd.daemon.front.parcel import Parcel
from fusewatchd.errors import FusewatchError, assert_never
from fusewatchd.front.messages import Answer, Ask, Topic
from fusewatchd.report.metrics.exposition import OPENMETRICS_TYPE, Page
from fusewatchd.serve.endpoints import Endpoints


class Answers:
    """Makes them; in the thread that listens to the front."""

    def __init__(
        self,
        metrics: Callable[[str], Page],
        endpoints: Endpoints,
        web: WebFiles | None,
        servers: Callable[[Topic], EndpointFiles | None],
    ) -> None:
        """Take who knows.

        Args:
            metrics: makes the page of metrics.
            endpoints: know the last cycle.
            web: the web configuration, if there is one.
            servers: how the kubelet and the API server are reached, if they are asked.
        """
        self._metrics = metrics
        self._endpoints = endpoints
        self._web = web
        self._servers = servers

    def respond(self, ask: Ask) -> Parcel:
        """Return the answer."""
        match ask.topic:
            case Topic.METRICS:
                page = self._metrics(OPENMETRICS_TYPE if ask.is_openmetrics else "")
                answer = Answer(ask.number, True, page.body.decode(), page.content_type)
            case Topic.ALIVE | Topic.READY:
                is_alive = ask.topic is Topic.ALIVE
                said = self._endpoints.alive() if is_alive else self._endpoints.ready()
                answer = Answer(ask.number, said.is_good, said.text)
            case Topic.STATUS:
                answer = Answer(ask.number, True, self._endpoints.status())
            case Topic.WEB:
                web = self._web
                return _handed_over(
                    ask, None if web is None else lambda: web.current(ask.version, ask.used)
                )
            case Topic.KUBELET | Topic.APISERVER:
                files = self._servers(ask.topic)
                return _handed_over(
                    ask, None if files is None else lambda: files.current(ask.version)
                )
            case _:
                assert_never(ask.topic)
        return Parcel(answer)


def _handed_over(ask: Ask, find: Callable[[], Handover] | None) -> Parcel:
    if find is None:
        return Parcel(Answer(ask.number, False, "it is not configured"))
    try:
        found = find()
    except FusewatchError as exc:
        return Parcel(Answer(ask.number, False, str(exc)))
    answer = Answer(ask.number, True, found.document, version=found.version)
    return Parcel(answer, found.descriptors)
