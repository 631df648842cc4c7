"""Which wake-ups start a cycle at once, and which wait for what belongs to them; pure.

A cycle costs the same however much has happened, and while it runs the loop does nothing else.
So what is sure to be followed by more is waited for: briefly, and never twice.
"""

from __future__ import annotations

from fusewatchd.model.cycle import Trigger

REST_FACTOR = 4
"""After a cycle that took t, what comes without pause starts the next one 4 t later."""

ANSWER_SECONDS = 0.002
"""How long a cycle waits for the answer to an urgent question, which decides what it does."""


class WakeUps:
    """Collects triggers until a cycle takes them all."""

    def __init__(self) -> None:
        """Begin with none."""
        self._due: dict[Trigger, float] = {}
        self._rested_at = float("-inf")
        self._held_until: float | None = None
        self._is_last = False
        """It is not held on any longer than this."""

    def add(self, trigger: Trigger, now: float) -> None:
        """Note a wake-up that wants a cycle now."""
        self._due[trigger] = min(now, self._due.get(trigger, now))

    def add_after_rest(self, trigger: Trigger, now: float) -> None:
        """Note one of a kind that may come without pause."""
        self._due.setdefault(trigger, max(now, self._rested_at))

    def hold(self, now: float) -> None:
        """Wait for answers; nothing happens if that has been done since the last cycle."""
        if self._held_until is None:
            self._held_until, self._is_last = now + ANSWER_SECONDS, False

    def hold_on(self, now: float) -> None:
        """Wait once more: a part of the answer is there, and the rest follows."""
        is_holding = self._held_until is not None and self._held_until > float("-inf")
        if is_holding and not self._is_last:
            self._held_until, self._is_last = now + ANSWER_SECONDS, True

    def release(self) -> None:
        """Wait no longer: what was asked is answered."""
        if self._held_until is not None:
            self._held_until = float("-inf")

    @property
    def may_hold(self) -> bool:
        """False once answers have been waited for since the last cycle."""
        return self._held_until is None

    @property
    def due_at(self) -> float | None:
        """When there is something to take; None: nothing has woken anybody."""
        if not self._due:
            return None
        first = min(self._due.values())
        return first if self._held_until is None else max(first, self._held_until)

    @property
    def held_until(self) -> float | None:
        """Until when nothing else matters, because an answer is waited for; None: it is not."""
        return self._held_until

    def is_due(self, now: float) -> bool:
        """True when a cycle shall start now."""
        due_at = self.due_at
        return due_at is not None and now >= due_at

    def take(self) -> list[Trigger]:
        """Return what a cycle starts with now, in the order in which it came."""
        triggers = list(self._due)
        self._due.clear()
        self._held_until = None
        return triggers

    def note_cycle(self, started_at: float, finished_at: float) -> None:
        """Take what the last cycle cost."""
        self._rested_at = finished_at + REST_FACTOR * (finished_at - started_at)
