"""Who could never write goes on like that, if that is wanted; who could, may."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fusewatchd.model.mounts import Mount
from fusewatchd.model.rights import Rights, rights_after
from fusewatchd.model.servers import Answer, Connection
from fusewatchd.plan.planner import Policy
from tests.unit.scenes import NEW, OLD, SOURCE, Scene, publish_path, replacements

READ_ONLY = "ro,user_id=0,group_id=0,allow_other"
ALIVE, DEAD = (Connection(OLD, a) for a in (Answer.ANSWERED, Answer.DISCONNECTED))


def shown(options: str = "rw", superblock: str = "rw") -> Mount:
    return Mount(1, 1, OLD, "/", "/data", options, 0, 0, "fuse.x", "x", superblock)


@pytest.mark.parametrize(
    ("before", "mount", "connection", "after"),
    [
        (Rights.UNSEEN, shown(superblock="ro"), None, Rights.UNSEEN),
        (Rights.UNSEEN, shown(superblock="ro"), DEAD, Rights.UNSEEN),
        (Rights.UNSEEN, shown(superblock="ro"), ALIVE, Rights.DENIED),
        (Rights.UNSEEN, shown(), ALIVE, Rights.ALLOWED),
        (Rights.DENIED, shown(options="ro"), ALIVE, Rights.DENIED),
        (Rights.DENIED, shown(), DEAD, Rights.DENIED),
        (Rights.DENIED, shown(), ALIVE, Rights.ALLOWED),
        (Rights.ALLOWED, shown(superblock="ro"), ALIVE, Rights.ALLOWED),
    ],
)
def test_what_was_seen_while_the_server_answered_counts(
    before: Rights, mount: Mount, connection: Connection | None, after: Rights
) -> None:
    assert rights_after(before, mount, connection) is after


def read_only_node(*, master: int = 0, keeps: bool = True) -> Scene:
    """A source whose superblock denies writing, a bind, a container; all seen while healthy."""
    scene = Scene(policy=Policy(keep_read_only=keeps))
    made = [scene.mount(SOURCE), scene.mount(publish_path(), peer_group=6)]
    scene.mounts = [replace(mount, super_options=READ_ONLY) for mount in made]
    inside = replace(scene.inside(master=master), super_options=READ_ONLY)
    scene.container(inside)
    scene.look()
    return scene


def planned(scene: Scene) -> dict[bool, tuple[bool, str]]:
    """By whether it is on the host: is it to be read-only, and what is gained."""
    scene.crash_and_restart(scene.mounts[0])
    scene.look()
    actions = replacements(scene.plan()[1])
    return {action.key.is_host: (action.read_only, action.wider) for action in actions}


def test_without_being_asked_for_it_is_only_told() -> None:
    assert planned(read_only_node(keeps=False)) == {
        True: (False, "with rw"),
        False: (False, "with rw"),
    }


def test_a_container_is_kept_from_writing_and_the_next_one_is_not() -> None:
    assert planned(read_only_node()) == {True: (False, ""), False: (True, "")}


def test_what_a_container_receives_is_read_only_before_it_arrives() -> None:
    assert planned(read_only_node(master=6)) == {True: (True, ""), False: (True, "")}


def test_a_new_container_begins_without_it() -> None:
    scene = read_only_node()
    (namespace,) = scene.namespaces
    scene.namespaces = [replace(namespace, container_id="d" * 64)]
    scene.answers[OLD] = Answer.DISCONNECTED
    scene.look()
    assert planned(scene)[False] == (False, "with rw")


def test_another_one_of_the_pod_that_wrote_is_no_reason_to_be_silent() -> None:
    scene = read_only_node()
    scene.container(scene.inside())
    scene.look()
    found = planned(scene)
    assert found[True] == (False, "with rw")


def test_a_source_that_denies_it_too_needs_no_flag() -> None:
    scene = read_only_node()
    new = replace(scene.crash_and_restart(scene.mounts[0]), super_options=READ_ONLY)
    scene.mounts = [new if mount.device == NEW else mount for mount in scene.mounts]
    scene.look()
    assert not any(action.read_only for action in replacements(scene.plan()[1]))
