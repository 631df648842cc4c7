"""What is sent to the front: a message, and open files that go with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from fusewatchd.front.messages import ToFront


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message and the descriptors that go with it, which are closed with it."""

    message: ToFront
    descriptors: Sequence[int] = ()

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self.descriptors:
            os.close(fd)
