"""What the daemon and its front say to each other.

The front is not trusted: whatever it says is a value of one of these types, within bounds, or the
front is replaced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from fusewatchd.errors import ParseError
from fusewatchd.json_values import decode, encode

MAX_TEXT = 4096
MAX_TEXTS = 64
MAX_DOCUMENT = 6 << 20
"""Characters of a document in a message."""
MAX_COUNT = 1_000_000

# ---------------------------------------------------------------- from the front


class Topic(Enum):
    """What a front can ask for."""

    METRICS = "metrics"
    ALIVE = "alive"
    READY = "ready"
    STATUS = "status"
    WEB = "web"
    """The web configuration, with the files that it names."""
    KUBELET = "kubelet"
    """How to reach the kubelet now, with the files that this takes."""
    APISERVER = "apiserver"


@dataclass(frozen=True, slots=True)
class Ask:
    """A question; the answer bears the number."""

    number: int
    topic: Topic
    version: int = 0
    """Of what the front has of this; 0: it has nothing."""
    used: int = 0
    """The version that is in force at the front."""
    is_openmetrics: bool = False


@dataclass(frozen=True, slots=True)
class Serving:
    """The web pages are served, but for a problem."""

    problem: str


@dataclass(frozen=True, slots=True)
class PodsTold:
    """What one request to the kubelet brought."""

    generation: int
    """Of the orders that it followed."""
    asked_at: float
    """Monotonic clock."""
    code: str
    problem: str
    complaints: tuple[str, ...]
    document: str
    """A v1 PodList, as JSON; empty: as the last one, or there is a problem."""


@dataclass(frozen=True, slots=True)
class EventsTold:
    """What became of Events since it was told last."""

    posted: int
    failed: int
    dropped: int
    problems: tuple[str, ...]
    recovered: bool
    most_told: int


@dataclass(frozen=True, slots=True)
class EventsKept:
    """What is left to say to the API server: to be given to the next front."""

    taken: int
    """How many Events this front was given since it told of this last."""
    document: str


@dataclass(frozen=True, slots=True)
class ConditionTold:
    """Why the node condition cannot be posted; empty: it can."""

    problem: str


@dataclass(frozen=True, slots=True)
class ThreadFailed:
    """A thread of the front failed in a way that nobody foresaw, and goes on."""

    thread: str
    problem: str


@dataclass(frozen=True, slots=True)
class WebComplaint:
    """The web configuration became wrong."""

    problem: str


@dataclass(frozen=True, slots=True)
class Pong:
    """The front goes on: it was asked whether."""


FromFront = (
    Ask
    | Serving
    | PodsTold
    | EventsTold
    | EventsKept
    | ConditionTold
    | ThreadFailed
    | WebComplaint
    | Pong
)
_FROM_FRONT: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        Ask, Serving, PodsTold, EventsTold, EventsKept, ConditionTold, ThreadFailed, WebComplaint,
        Pong,
    )
}  # fmt: skip

# ----------------------------------------------------------------- to the front


@dataclass(frozen=True, slots=True)
class Answer:
    """Answers a question; what a document names stands in the descriptors that come along."""

    number: int
    is_good: bool
    text: str
    """A page, a document, a line for people; empty for what the front has already."""
    content_type: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True)
class Serve:
    """Answer clients: the listening sockets come along, and then the files of ``config``."""

    listeners: int
    shows_status: bool
    path: str
    """Of the web configuration, for people; empty: there is none."""
    config: str
    version: int


@dataclass(frozen=True, slots=True)
class Talk:
    """Ask and tell these from now on, in the place of those before."""

    generation: int
    """Counts these orders."""
    node_name: str
    refresh_seconds: float
    """Between two lists of pods; 0: the kubelet is not asked."""
    tells: bool
    """The API server is told."""
    cluster_nodes: int
    has_condition: bool
    kept: str
    """What an earlier front had left to say; empty: nothing."""


@dataclass(frozen=True, slots=True)
class Post:
    """Post an Event; ``draft`` is JSON as ``kube.events.series`` writes it."""

    draft: str


@dataclass(frozen=True, slots=True)
class Condition:
    """Say this of the node."""

    is_true: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Refresh:
    """Ask the kubelet soon."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Say that you go on."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Let out what is under way, for so long, and end."""

    seconds: float


ToFront = Answer | Serve | Talk | Post | Condition | Refresh | Ping | Stop
_TO_FRONT: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (Answer, Serve, Talk, Post, Condition, Refresh, Ping, Stop)
}


def to_json(message: FromFront | ToFront) -> Any:
    """Return a message as a JSON value."""
    return [type(message).__name__, encode(message)]


def from_front(value: Any) -> FromFront:
    """Return what a front says.

    Raises:
        ParseError: it is nothing that a front says, or exceeds a bound.
    """
    message: FromFront = _decoded(_FROM_FRONT, value)
    for field in fields(message):
        _require_bounded(field.name, getattr(message, field.name))
    return message


def to_front(value: Any) -> ToFront:
    """Return what the daemon says; raises ``ParseError``."""
    message: ToFront = _decoded(_TO_FRONT, value)
    return message


def _decoded(kinds: dict[str, type[Any]], value: Any) -> Any:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        raise ParseError("expected the name of a message, and the message")
    name, content = value
    if name not in kinds:
        raise ParseError("a message that nobody knows")
    return decode(kinds[name], content)


def _require_bounded(name: str, value: object) -> None:
    if isinstance(value, str):
        is_fine = len(value) <= MAX_DOCUMENT if name == "document" else _is_line(value)
    elif isinstance(value, tuple):
        is_fine = len(value) <= MAX_TEXTS and all(map(_is_line, value))
    elif isinstance(value, float):
        is_fine = math.isfinite(value)
    else:
        is_fine = not isinstance(value, int) or 0 <= value <= MAX_COUNT
    if not is_fine:
        raise ParseError(f"{name}: out of bounds")


def _is_line(text: str) -> bool:
    return len(text) <= MAX_TEXT and text.isprintable()
