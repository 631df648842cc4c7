"""Whether a step can be carried out, and whom it is about."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

from tests.model.places import PodState, SourceState, Target, Violation
from tests.model.stage import Stage

BUSY_SECONDS = 5.0
BUSY_SECONDS_WHILE_HUNG = 0.3
"""A probe that waits for a hung server holds the mount that it asks at."""


class NotPossible(Exception):
    """The step makes no sense as things are; a shortened sequence may hold such."""


def need(condition: bool) -> None:
    if not condition:
        raise NotPossible


def source_of(stage: Stage, name: str) -> SourceState:
    return stage.sources[name]


def pod_of(stage: Stage, name: str) -> PodState:
    need(name in stage.pods and not stage.pods[name].is_ending)
    return stage.pods[name]


def volume_of(stage: Stage, where: str) -> tuple[PodState, Target, str]:
    name, _, volume = where.partition("/")
    pod = pod_of(stage, name)
    target = pod.on_host.get(pod.pod.volume_path(volume))
    need(target is not None and not target.is_leaving)
    assert target is not None
    return pod, target, volume


def may_unmount(stage: Stage, pod: PodState) -> bool:
    """False where a plain unmount would take a source away as well."""
    return not any(stage.sources[target.source].is_over for target in pod.on_host.values())


def insist(stage: Stage, work: Callable[[], object], *, may_fail: bool) -> bool:
    """Try again while it is busy, as the kubelet does; False when that may be and is so."""
    end = time.monotonic() + (BUSY_SECONDS_WHILE_HUNG if may_fail else BUSY_SECONDS)
    while True:
        try:
            work()
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise Violation(f"could not be taken away: {exc}") from exc
            stage.counts["busy"] += 1
            if time.monotonic() > end:
                if may_fail:
                    return False
                raise Violation(f"busy for {BUSY_SECONDS} s: {exc}") from exc
            time.sleep(0.002)
        else:
            return True
