"""What the log says of FUSE mounts that nothing explains: each of them once."""

from __future__ import annotations

from fusewatchd.log import Log
from fusewatchd.model.accounts import Account, MountClass
from fusewatchd.model.cycle import CycleReport
from fusewatchd.text import counted

_Key = tuple[MountClass, int, int]


class AccountLog:
    """A part of the log's reporter."""

    def __init__(self, log: Log) -> None:
        """Write everything to ``log``."""
        self._log = log
        self._written: frozenset[_Key] = frozenset()
        self._seen: tuple[Account, ...] = ()

    def report(self, cycle: CycleReport) -> None:
        """Say which mounts are newly unexplained, and that there are none any more."""
        unexplained = cycle.accounts.unexplained
        if unexplained is self._seen:
            return
        self._seen, before = unexplained, self._written
        self._written = frozenset(map(_key, unexplained))
        news = [one for one in unexplained if _key(one) not in before]
        for kind in (MountClass.STILL_DEAD, MountClass.NOT_UNDERSTOOD):
            self._warn(kind, [one for one in news if one.kind is kind])
        if before and not unexplained:
            self._log.info("all FUSE mounts are explained again", event="accounts_clear")

    def _warn(self, kind: MountClass, news: list[Account]) -> None:
        if not news:
            return
        first = news[0]
        what = "dead and not repaired" if kind is MountClass.STILL_DEAD else "not understood"
        self._log.warning(
            f"{counted(len(news), 'FUSE mount')} {what}",
            event=kind.value,
            pod_uid=first.pod_uid or None,
            namespace=first.namespace or None,
            mount_point=first.mount.mount_point,
            device=str(first.mount.device),
            detail=first.why,
            mounts=len(news),
        )


def _key(one: Account) -> _Key:
    return one.kind, one.namespace, one.mount.mount_id
