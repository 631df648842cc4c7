"""How much one owner may have told of his namespaces."""

from __future__ import annotations

from fusewatchd.model.quota import OF_POD, Collected, Resource, pod
from fusewatchd.observe.namespaces.mount_lines import Told
from fusewatchd.observe.namespaces.rooms import Rooms


def test_a_container_has_so_many_namespaces_and_a_pod_as_well() -> None:
    over = Collected()
    rooms = Rooms(pod("a"), over)

    def admitted(container: str) -> bool:
        has_room = bool(rooms.room(container, OF_POD, "pid 7"))
        if has_room:
            rooms.take(container, OF_POD, Told((), 1, 1), "pid 7")
        return has_room

    assert sum(admitted("c1") for _ in range(100)) == OF_POD.namespaces_of_container
    assert [(one.resource, one.limit) for one in over.all()] == [
        (Resource.NAMESPACES, OF_POD.namespaces_of_container)
    ]
    assert admitted("c2")
    assert sum(admitted(f"d{n}") for n in range(100)) == OF_POD.namespaces - 5


def test_all_namespaces_of_a_container_share_its_mounts() -> None:
    over = Collected()
    rooms = Rooms(pod("a"), over)
    assert rooms.room("c1", OF_POD, "") == OF_POD.table_mounts
    rooms.take("c1", OF_POD, Told((), 200, 200), "")
    assert rooms.room("c1", OF_POD, "") == OF_POD.table_mounts - 200
    assert rooms.room("c2", OF_POD, "") == OF_POD.table_mounts
    assert over.all() == ()
    left = OF_POD.table_mounts - 200
    rooms.take("c1", OF_POD, Told((), left, 9000), "pid 9")
    assert rooms.room("c1", OF_POD, "pid 10") == 0
    (refused,) = over.all()
    assert (refused.resource, refused.wanted) == (Resource.TABLE, 9000)


def test_a_table_that_was_cut_is_told() -> None:
    over = Collected()
    Rooms(pod("a"), over).take("c1", OF_POD, Told((), 1, 1, is_cut=True), "pid 9")
    assert [(one.resource, one.example) for one in over.all()] == [(Resource.TABLE, "pid 9")]
