"""Binds whose pod is gone, or that show the bare directory below the mount."""

from __future__ import annotations

from fusewatchd.detectors.base import Case, Opinion
from fusewatchd.verdicts import Reason, Verdict


def detect_bare(case: Case) -> Opinion | None:
    """Find a volume that was FUSE and is a plain directory of the node now.

    Never repaired: whoever unmounted it may be tearing the pod down.
    """
    if case.bind.mount is not None:
        return None
    return Opinion(Verdict.BARE, "unmounted while its pod goes on", Reason.VANISHED)


def detect_orphaned(case: Case) -> Opinion | None:
    """Find a bind whose pod the kubelet does not know, by a list newer than the bind."""
    snapshot = case.snapshot
    if snapshot.pods is None or not snapshot.pods_are_current:
        return None
    if case.bind.path.pod_uid in snapshot.pods:
        return None
    return Opinion(Verdict.ORPHANED, "the kubelet has no such pod", Reason.POD_UNKNOWN)
