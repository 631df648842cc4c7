"""Memory in which a scan notes what it has proven, and others read while it writes."""

from __future__ import annotations

import errno
import os

import pytest

from fusewatchd.linux.procfs import process_start_time
from fusewatchd.model.actions import NamespaceRef
from fusewatchd.observe.namespaces.proven import COUNT, ProvenContainers

UID = "0b1f2c1e-7a5e-4d8c-9a55-0123456789ab"


class Counted(ProvenContainers):
    """Answers instead of a look at the process."""

    def __init__(self, answer: str | None) -> None:
        super().__init__()
        self.answer = answer
        self.looks = 0

    def _look(self, namespace: NamespaceRef) -> str | None:
        self.looks += 1
        return self.answer


def told(inode: int, pod_uid: str = UID, container_id: str = "ab" * 32) -> dict[str, object]:
    return {
        "inode": inode, "pid": 7, "start_time": 9, "pod_uid": pod_uid, "container_id": container_id,
    }  # fmt: skip


def ref(inode: int) -> NamespaceRef:
    return NamespaceRef(inode, 7, 9)


def test_what_was_noted_is_known_without_a_look() -> None:
    proven = Counted(None)
    proven.note([told(10), 11, told(12, ""), told(13, "", "")])
    assert [proven.pod_of(ref(inode)) for inode in (10, 12)] == [UID, ""]
    assert proven.looks == 0
    assert [proven.pod_of(ref(inode)) for inode in (11, 13)] == [None, None]
    assert proven.looks == 2


def test_a_look_that_proves_is_made_once_and_one_that_does_not_again() -> None:
    container, stranger = Counted(UID), Counted(None)
    for proven, answer, looks in ((container, UID, 1), (stranger, None, 3)):
        assert [proven.pod_of(ref(10)) for _ in range(3)] == [answer] * 3
        assert proven.looks == looks


def test_two_that_share_a_slot_are_never_taken_for_each_other() -> None:
    proven = Counted("other")
    proven.note([told(10)])
    assert proven.pod_of(ref(10 + COUNT)) == "other"
    assert proven.looks == 1
    proven.note([told(10)])
    assert (proven.pod_of(ref(10)), proven.looks) == (UID, 1)


def test_a_slot_that_is_half_written_is_not_believed() -> None:
    proven = Counted(None)
    proven.note([told(10)])
    size = len(proven._memory) // COUNT
    for at in range(size):
        proven.note([told(10)])
        where = 10 * size + at
        proven._memory[where] = proven._memory[where] ^ 0x55
        assert proven.pod_of(ref(10)) is None


def test_a_uid_that_does_not_fit_is_looked_at_each_time() -> None:
    proven = Counted("u" * 37)
    for looks in (1, 2):
        assert proven.pod_of(ref(10)) == "u" * 37
        assert proven.looks == looks


def test_a_process_that_is_in_no_container_or_has_ended() -> None:
    proven, own = ProvenContainers(), process_start_time(os.getpid())
    assert own is not None
    with pytest.raises(ProcessLookupError) as error:
        proven.pod_of(NamespaceRef(10, os.getpid(), own + 1))
    assert error.value.errno == errno.ESRCH
    with pytest.raises(ProcessLookupError):
        proven.pod_of(NamespaceRef(10, 1 << 30, 1))
