"""The words that ``recover``, ``pause`` and ``resume`` and the daemon say to each other."""

from __future__ import annotations

from enum import Enum


class Order(Enum):
    """What the daemon shall do."""

    RECOVER = "recover"
    PAUSE = "pause"
    RESUME = "resume"


class Tried(Enum):
    """What became of the order to recover a mount."""

    BEGUN = "begun"
    """Its replacement is under way."""
    NOT_NEEDED = "not_needed"
    """It works."""
    REFUSED = "refused"
    """A reason holds it back."""
