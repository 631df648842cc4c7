"""What became of Events, handed from the thread that posts them to the loop of the daemon."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PosterNews:
    """What happened since it was asked last."""

    posted: int = 0
    failed: int = 0
    """Refused by the server for good."""
    dropped: int = 0
    """Too many, too late, or about a namespace that goes."""
    problems: tuple[str, ...] = ()
    """One line each, not repeated while it lasts."""
    recovered: bool = False
    """The server takes Events again after a problem was told."""


class NewsBox:
    """Collects news and wakes the loop; not thread safe, so the poster's lock is held."""

    def __init__(self) -> None:
        """Begin without news; raises ``OSError``."""
        self._news = PosterNews()
        self._problem = ""
        self._told_missing: set[str] = set()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Return what becomes readable when ``collect`` has something."""
        return self._event

    def collect(self) -> PosterNews:
        """Return what happened since the last call."""
        if self._event >= 0:
            with suppress(BlockingIOError):
                os.eventfd_read(self._event)
        news, self._news = self._news, PosterNews()
        return news

    def close(self) -> None:
        """Wake nobody any more; what is there can still be collected."""
        os.close(self._event)
        self._event = -1

    def tell_posted(self) -> None:
        """One was posted: a problem that was told is over."""
        had_problem, self._problem = bool(self._problem), ""
        self.tell(posted=1, recovered=had_problem)

    def complain(self, problem: str) -> None:
        """Tell of a problem, once while it lasts."""
        if problem != self._problem:
            self._problem = problem
            self.tell(problem=problem)

    def complain_of_missing(self, permission: str, problem: str) -> None:
        """Tell of a permission that is missing, once."""
        if permission not in self._told_missing:
            self._told_missing.add(permission)
            self.tell(problem=problem)

    def tell(
        self,
        *,
        posted: int = 0,
        failed: int = 0,
        dropped: int = 0,
        problem: str = "",
        recovered: bool = False,
    ) -> None:
        """Add to the news."""
        news = self._news
        self._news = PosterNews(
            news.posted + posted,
            news.failed + failed,
            news.dropped + dropped,
            news.problems + ((problem,) if problem else ()),
            recovered or (news.recovered and not problem),
        )
        if self._event >= 0:
            os.eventfd_write(self._event, 1)
