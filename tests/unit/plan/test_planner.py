"""In which order a plan does its actions, and what it says of each."""

from __future__ import annotations

from dataclasses import replace

from fusewatchd.model.mounts import Device
from tests.unit.scenes import SOURCE, UID, Scene, publish_path, replacements


def test_names_that_a_pod_chooses_say_nothing_of_the_order() -> None:
    """What the runtime started comes before what its processes made, and the older one first."""
    scene = Scene()
    source = scene.mount(SOURCE)
    scene.mount(publish_path(), peer_group=6)
    ages = {"/data": (True, 50), "/!0": (False, 70), "/!1": (False, 60), "/!2": (True, 80)}
    for point, (is_own, start_time) in ages.items():
        scene.container(scene.inside(point))
        made = scene.namespaces.pop()
        scene.namespaces.append(replace(made, is_own=is_own, start_time=start_time))
    scene.look()
    scene.crash_and_restart(source)
    _, todo = scene.plan()
    points = [action.key.mount_point for action in replacements(todo)]
    assert points == [publish_path(), "/data", "/!2", "/!1", "/!0"]
    assert {action.pod_uid for action in replacements(todo)} == {UID}


def test_what_is_found_only_with_the_answer_of_a_server_is_marked() -> None:
    scene = Scene()
    source, outer = scene.mount(SOURCE), scene.mount("/outer", Device(0, 77))
    scene.mount(publish_path(), peer_group=6)
    above = scene.inside("/sub", outer.device)
    scene.container(above, scene.inside("/sub/data", parent=above.mount_id), scene.inside())
    scene.look()
    scene.crash_and_restart(source)
    _, todo = scene.plan()
    assert {a.key.mount_point: a.asks for a in replacements(todo)} == {
        publish_path(): False, "/sub/data": True, "/data": False,
    }  # fmt: skip
