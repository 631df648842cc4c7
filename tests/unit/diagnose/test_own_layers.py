"""Which mount is a layer of our own, without a doubt; and what is written down of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fusewatchd.act import layer_journal
from fusewatchd.act.layer_journal import LayerJournal, read_journal
from fusewatchd.diagnose.own_layers import MAX_OWN_LAYERS, dead_layers, recalled, with_layers
from fusewatchd.model.actions import DetachOwnLayer, OwnLayer
from fusewatchd.model.mounts import Device, Mount, TargetKey
from fusewatchd.model.servers import Answer
from tests.unit.scenes import NEW, OLD, SOURCE, THIRD, Scene, pod, publish_path, usual

KEY = TargetKey(0, publish_path())

# ------------------------------------------------------------------- without unique ids


def left_alone(*, peer_group: int = 9, source_group: int = 5) -> tuple[Scene, Mount]:
    """Our layer, as it is when somebody took the mount below it away, on Linux before 6.8."""
    scene = Scene()
    scene.mounts = [
        replace(scene.mount(SOURCE, NEW, peer_group=source_group), unique_id=0),
        replace(scene.mount(publish_path(), NEW, peer_group=peer_group), unique_id=0),
    ]
    layer = scene.mounts[1]
    scene.ledger = replace(scene.ledger, own_layers={KEY: (OwnLayer.of(layer),)})
    return scene, layer


def detached(scene: Scene) -> list[DetachOwnLayer]:
    return [a for a in scene.plan()[1].actions if isinstance(a, DetachOwnLayer)]


def test_a_layer_in_a_group_of_its_own_is_ours() -> None:
    scene, layer = left_alone()
    (action,) = detached(scene)
    assert (action.expect.mount_id, action.peer_group) == (layer.mount_id, layer.peer_group)


def bound_again_from_the_source(scene: Scene) -> None:
    scene.mounts[1] = replace(scene.mounts[1], peer_group=scene.mounts[0].peer_group)


def bound_again_and_made_private(scene: Scene) -> None:
    scene.mounts[1] = replace(scene.mounts[1], peer_group=0)


def bound_again_in_another_group(scene: Scene) -> None:
    scene.mounts[1] = replace(scene.mounts[1], peer_group=10)


def bound_again_and_the_source_has_our_old_group(scene: Scene) -> None:
    scene.mounts = [replace(mount, peer_group=9) for mount in scene.mounts]


def bound_again_from_a_private_source(scene: Scene) -> None:
    """Then the kernel makes a new group for the bind, and may use the number of ours."""
    scene.mounts[0] = replace(scene.mounts[0], peer_group=0)


def bound_again_from_another_file_system(scene: Scene) -> None:
    scene.mounts[1] = replace(scene.mounts[1], device=Device(0, 99))


@pytest.mark.parametrize(
    "happens",
    [
        bound_again_from_the_source,
        bound_again_and_made_private,
        bound_again_in_another_group,
        bound_again_and_the_source_has_our_old_group,
        bound_again_from_a_private_source,
        bound_again_from_another_file_system,
    ],
)
@pytest.mark.parametrize("is_ending", [False, True])
def test_a_bind_with_the_number_of_our_layer_is_never_taken(
    happens: Callable[[Scene], None], is_ending: bool
) -> None:
    scene, _ = left_alone()
    if is_ending:
        scene.pods = {p.uid: p for p in [pod(is_deleting=True)]}
    happens(scene)
    assert detached(scene) == []


def test_the_unique_id_alone_proves_enough() -> None:
    scene, layer = left_alone()
    layer = scene.mounts[1] = replace(layer, unique_id=10_500, peer_group=0)
    scene.ledger = replace(scene.ledger, own_layers={KEY: (OwnLayer.of(layer),)})
    assert len(detached(scene)) == 1
    scene.mounts[1] = replace(layer, unique_id=10_501)
    assert detached(scene) == []


def stacked(scene: Scene, *, below_group: int) -> Mount:
    """Our layer on the mount that was made private for it; its group was not seen yet."""
    scene.mounts[1] = replace(scene.mounts[1], peer_group=below_group)
    top = scene.mount(publish_path(), NEW, peer_group=9, parent=scene.mounts[1].mount_id)
    scene.mounts[-1] = replace(top, unique_id=0)
    weak = OwnLayer(top.mount_id, 0, NEW)
    scene.ledger = replace(scene.ledger, own_layers={KEY: (weak,)})
    return scene.mounts[-1]


@pytest.mark.parametrize(("below_group", "is_known"), [(0, True), (4, False)])
def test_a_layer_that_was_only_written_down_is_proven_by_what_it_stands_on(
    below_group: int, is_known: bool
) -> None:
    scene, _ = left_alone()
    top = stacked(scene, below_group=below_group)
    scene.look()
    (layer,) = scene.ledger.own_layers[KEY]
    assert layer.peer_group == (top.peer_group if is_known else 0)
    # What it covered goes, by the umount of a driver elsewhere.
    del scene.mounts[1]
    assert len(detached(scene)) == is_known


def test_a_layer_that_is_gone_is_forgotten() -> None:
    scene, layer = left_alone()
    scene.look()
    assert scene.ledger.own_layers
    scene.mounts[1] = replace(layer, mount_id=layer.mount_id + 1)
    scene.look()
    assert scene.ledger.own_layers == {}


def test_one_in_a_container_is_known_as_long_as_that_is_there() -> None:
    """A look into it may have begun before the layer was made."""
    scene, _, _ = usual()
    key = TargetKey(scene.namespaces[0].inode, "/data")
    layers = (OwnLayer(7, 8, NEW),)
    scene.ledger = replace(scene.ledger, own_layers={key: layers})
    scene.look()
    assert scene.ledger.own_layers == {key: layers}
    scene.namespaces, scene.looked_at = [], 0.0
    scene.look()
    assert scene.ledger.own_layers == {key: layers}
    scene.looked_at = None
    scene.look()
    assert scene.ledger.own_layers == {}


def test_what_is_known_better_is_not_replaced_by_what_was_written_in_passing() -> None:
    known = {KEY: (OwnLayer(7, 0, NEW, 9),)}
    assert recalled(known, [(KEY, OwnLayer(7, 0, NEW))]) == known
    both = recalled(known, [(KEY, OwnLayer(8, 0, NEW))])
    assert both[KEY] == (OwnLayer(7, 0, NEW, 9), OwnLayer(8, 0, NEW))
    again = with_layers({KEY: (OwnLayer(7, 0, NEW),)}, [(KEY, OwnLayer(7, 0, NEW, 9))])
    assert again == known
    many = with_layers({}, [(KEY, OwnLayer(n, 0, NEW)) for n in range(100)])
    assert [layer.mount_id for layer in many[KEY]] == list(range(100 - MAX_OWN_LAYERS, 100))


# ------------------------------------------------------------------------------ journal

LAYER = OwnLayer(7, 10_007, NEW)
ODD = TargetKey(0, "/a b\n\udcff")


def written(directory: Path) -> Path:
    journal = LayerJournal(str(directory), "boot")
    journal.note(KEY, LAYER)
    journal.note(ODD, LAYER)
    return directory / layer_journal.NAME


def test_what_is_written_down_is_read_back(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert read_journal(str(tmp_path), "boot") == [(KEY, LAYER), (ODD, LAYER)]
    assert read_journal(str(tmp_path), "another boot") == []
    assert path.stat().st_mode & 0o777 == 0o600


def test_torn_and_foreign_lines_are_left_out(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(b'{"a": 1}\n[]\n\xff\n' + whole + whole[:40])
    assert read_journal(str(tmp_path), "boot") == [(KEY, LAYER), (ODD, LAYER)]


def test_one_that_others_could_write_to_is_not_believed(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.chmod(0o666)
    assert read_journal(str(tmp_path), "boot") == []
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert read_journal(str(tmp_path), "boot") == []
    path.unlink()
    os.mkfifo(path)
    assert read_journal(str(tmp_path), "boot") == []


def test_it_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_bytes(path.read_bytes() + b" " * layer_journal.MAX_BYTES)
    journal = LayerJournal(str(tmp_path), "boot")
    journal.note(KEY, replace(LAYER, mount_id=8))
    journal.note(KEY, replace(LAYER, mount_id=9))
    assert path.stat().st_size < 1000
    assert [layer.mount_id for _, layer in read_journal(str(tmp_path), "boot")] == [7, 7, 8, 9]


def test_where_nothing_can_be_written_nothing_fails(tmp_path: Path) -> None:
    LayerJournal(str(tmp_path / "missing"), "boot").note(KEY, LAYER)
    (tmp_path / layer_journal.NAME).mkdir()
    LayerJournal(str(tmp_path), "boot").note(KEY, LAYER)
    assert read_journal(str(tmp_path), "boot") == []


# ------------------------------------------------------------------ dead below what works


def dead_below(*devices: Device, is_own: bool = False, dies: bool = False) -> int:
    """Stack mounts on one target, the lowest first; the old one and the third are dead."""
    scene = Scene()
    scene.mount(SOURCE, NEW)
    below = 1
    for device in devices:
        below = scene.mount(publish_path(), device, parent=below).mount_id
    scene.answers |= {OLD: Answer.DISCONNECTED, THIRD: Answer.DISCONNECTED}
    if dies:
        scene.answers[NEW] = Answer.DISCONNECTED
    own = {KEY: (OwnLayer.of(scene.mounts[-1]),)} if is_own else {}
    (finding,) = scene.look().findings
    return dead_layers([finding.bind], scene.snapshot(), own).get(KEY, 0)


def test_dead_layers_below_what_works_are_counted() -> None:
    assert dead_below(NEW) == 0
    assert dead_below(*[OLD, THIRD] * 50, NEW) == 100
    assert dead_below(OLD, NEW, THIRD, NEW) == 2
    assert dead_below(OLD, OLD, NEW, dies=True) == 0, "they go at once"


def test_the_one_below_a_layer_of_ours_is_no_news() -> None:
    assert dead_below(OLD, NEW, is_own=True) == 0
    assert dead_below(OLD, OLD, NEW, is_own=True) == 1
    assert dead_below(NEW, NEW, is_own=True) == 0
