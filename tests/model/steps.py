"""Steps as values: printed, read back, left out one by one, and carried out again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

UNSETTLED = "&"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens to the node: ``crash one``, ``stack p3/v 2``, ``kill-daemon``."""

    words: tuple[str, ...]
    settles: bool = True
    """False: the next step follows at once, without waiting for what this one set off."""

    def __str__(self) -> str:
        return " ".join([*self.words, *([] if self.settles else [UNSETTLED])])


def parse(lines: Iterable[str]) -> list[Step]:
    """Read steps as they are printed, one a line; ``#`` begins a remark."""
    steps: list[Step] = []
    for line in lines:
        words = line.partition("#")[0].split()
        if words:
            settles = words[-1] != UNSETTLED
            steps.append(Step(tuple(words if settles else words[:-1]), settles))
    return steps


@dataclass(frozen=True, slots=True)
class Scenario:
    """What an episode begins with."""

    way: str = "beneath"
    superseded: str = "report"
    has_kubelet: bool = False
    detaches: bool = False
    """Dead sources are taken away."""
    is_old_kernel: bool = False
    """The daemon makes do without what newer kernels have."""

    def __str__(self) -> str:
        kubelet = "kubelet" if self.has_kubelet else "no-kubelet"
        more = " detach" * self.detaches + " old-kernel" * self.is_old_kernel
        return f"{self.way} {self.superseded} {kubelet}{more}"

    @staticmethod
    def parse(text: str) -> Scenario:
        """Read what ``str`` makes."""
        way, superseded, kubelet, *more = text.split()
        return Scenario(
            way, superseded, kubelet == "kubelet", "detach" in more, "old-kernel" in more
        )
