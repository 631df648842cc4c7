from __future__ import annotations

from dataclasses import replace

import pytest

from fusewatchd.config.settings import DriverSettings, FluidSettings
from fusewatchd.diagnose import lineage, sources
from fusewatchd.drivers import drivers_for
from fusewatchd.model.findings import SourceAnswer, SourcePath
from fusewatchd.model.kubelet import plain_directory
from fusewatchd.model.ledger import Fact, Facts
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount
from fusewatchd.model.pods import BindKind, BindPath, Pod, VolumeData
from fusewatchd.model.servers import Answer, Connection
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason

PODS = "/k/pods"
OLD, NEW, OTHER = Device(0, 40), Device(0, 41), Device(0, 42)
TARGET = f"{PODS}/50a97417-eded-45b5-9699-867eb25c5bb8/volumes/kubernetes.io~csi/a-b-c/mount"
PATH = BindPath(BindKind.PUBLISH, "50a97417-eded-45b5-9699-867eb25c5bb8", "a-b-c")


def mount(number: int, point: str, device: Device = OLD, root: str = "/") -> Mount:
    return Mount(number, 1, device, root, point, "rw", 0, 0, "fuse.x", "s", "rw", number + 1000)


BIND, SOURCE = mount(10, TARGET), mount(5, "/source")


def learned(
    *mounts: Mount,
    facts: Facts | None = None,
    bind: Mount = BIND,
    working: tuple[Device, ...] = (OLD,),
) -> dict[int, Fact]:
    table = MountTable.of((*mounts, bind))
    return lineage.learn(facts or {}, table, frozenset({"fuse.lxcfs"}), "/k/pods", working)


def places(facts: Facts, bind: Mount = BIND) -> list[str]:
    """Where a mount can have come from, as far as it is known."""
    fact = facts.get(bind.mount_id)
    return [place.mount_point for place in fact.candidates] if fact else []


def answered(facts: Facts, bind: Mount = BIND) -> list[str]:
    """What would be acted on."""
    found = lineage.answer(facts, bind)
    return [path.mount_point for path in found.candidates] if found else []


def snapshot(
    *mounts: Mount, answered: tuple[Device, ...] = (NEW, OTHER), pods: dict[str, Pod] | None = None
) -> Snapshot:
    connections = {d: Connection(d, Answer.ANSWERED) for d in answered}
    data = {(PATH.pod_uid, PATH.volume): VolumeData("fuse.csi.fluid.io", PATH.volume)}
    table = MountTable.of(mounts)
    return Snapshot(0.0, table, plain_directory("/k"), connections, pods=pods, volume_data=data)


def test_a_healthy_bind_teaches_its_source() -> None:
    assert answered(learned(SOURCE)) == ["/source"]


def test_it_is_remembered_when_the_source_is_gone() -> None:
    assert answered(learned(facts=learned(SOURCE))) == ["/source"]


def test_another_mount_at_the_same_path_with_the_same_device_knows_nothing() -> None:
    impostor = replace(BIND, unique_id=2222)
    assert places(learned(facts=learned(SOURCE), bind=impostor), impostor) == []


def test_without_unique_ids_mount_id_and_device_decide() -> None:
    old = replace(BIND, unique_id=0)
    facts = learned(replace(SOURCE, unique_id=0), bind=old)
    assert answered(learned(facts=facts, bind=old), old) == ["/source"]
    other = replace(old, device=OTHER)
    assert places(learned(facts=facts, bind=other), other) == []


def test_binds_of_other_pods_are_no_source() -> None:
    other = mount(6, TARGET.replace("50a9", "60a9"))
    assert places(learned(other)) == []


def test_what_is_ignored_is_no_source_and_has_none() -> None:
    assert learned(replace(SOURCE, fs_type="fuse.lxcfs")).keys() == {BIND.mount_id}
    assert learned(bind=replace(BIND, fs_type="fuse.lxcfs")) == {}


def test_the_servers_own_mount_comes_first_and_stays_first() -> None:
    late = mount(7, "/bind-of-it")
    facts = learned(late, SOURCE)
    assert places(facts) == ["/source", "/bind-of-it"]
    assert answered(facts) == ["/source"]
    assert answered(learned(late, facts=facts)) == ["/source"]


def test_what_was_mounted_after_the_bind_is_not_where_it_came_from() -> None:
    later = mount(11, "/bind-of-it")
    assert places(learned(later, SOURCE)) == ["/source"]
    assert answered(learned(later)) == []
    assert places(learned(later, facts=learned(SOURCE))) == ["/source"]


def test_without_ages_what_the_table_has_first_was_there_first() -> None:
    ageless = [replace(m, unique_id=0) for m in (SOURCE, mount(3, "/bind-of-it"), BIND)]
    assert answered(learned(*ageless[:2], bind=ageless[2]), ageless[2]) == ["/source"]


LEFTOVER = mount(7, "/bind-of-it")


def test_a_bind_that_is_left_over_knows_where_a_bind_seen_for_the_first_time_came_from() -> None:
    facts = lineage.learn({}, MountTable.of([SOURCE, LEFTOVER]), (), "/k/pods", [OLD])
    assert places(learned(LEFTOVER, facts=facts)) == ["/source", "/bind-of-it"]


def test_so_does_the_bind_of_another_pod() -> None:
    other = mount(6, TARGET.replace("50a9", "60a9"))
    facts = lineage.learn({}, MountTable.of([SOURCE, other]), (), "/k/pods", [OLD])
    assert answered(learned(other, LEFTOVER, facts=facts)) == ["/source"]
    # ... but not when its number is another file system's by now.
    elsewhere = replace(other, device=OTHER)
    assert answered(learned(elsewhere, LEFTOVER, facts=facts)) == ["/bind-of-it"]


def test_a_mount_that_was_not_there_all_the_time_neither_tells_nor_is_told() -> None:
    """Its number can be another file system's in the same table."""
    other = mount(6, TARGET.replace("50a9", "60a9"))
    facts = lineage.learn({}, MountTable.of([SOURCE, other]), (), "/k/pods", [OLD])
    fleeting = replace(other, unique_id=0)
    after = learned(fleeting, mount(30, "/another"), facts=facts, bind=mount(31, TARGET))
    assert answered(after, mount(31, TARGET)) == ["/another"]
    assert answered(after, other) == ["/source"]
    late = replace(mount(31, TARGET), unique_id=0)
    assert answered(learned(other, facts=facts, bind=late), late) == []
    # Once it has its id it is known for what it is.
    assert answered(learned(other, facts=facts, bind=mount(31, TARGET)), late) == ["/source"]


def test_a_fact_from_a_hurried_look_is_made_whole() -> None:
    late = replace(BIND, unique_id=0)
    facts = learned(LEFTOVER, bind=late)
    facts |= lineage.learn({}, MountTable.of([SOURCE, LEFTOVER]), (), "/k/pods", [OLD])
    whole = learned(LEFTOVER, facts=facts)
    assert (answered(whole), whole[BIND.mount_id].unique_id) == (["/source"], BIND.unique_id)


def test_what_is_mounted_later_than_a_bind_is_a_copy_and_knows_where_that_came_from() -> None:
    other = mount(6, TARGET.replace("50a9", "60a9"))
    facts = lineage.learn({}, MountTable.of([SOURCE, other]), (), "/k/pods", [OLD])
    fresh = mount(30, "/another")
    facts = learned(other, facts=facts, bind=fresh)
    assert answered(facts, fresh) == ["/source"]
    # When all that it could be a copy of is gone, it still is none to come from.
    late = mount(31, TARGET)
    assert places(learned(fresh, facts=facts, bind=late), late) == ["/source"]


def test_a_part_of_it_takes_over_only_places_that_show_that_part() -> None:
    other = mount(6, TARGET.replace("50a9", "60a9"), root="/a")
    facts = lineage.learn(
        {}, MountTable.of([mount(5, "/source", root="/a"), other]), (), "/k/pods", [OLD]
    )
    assert places(learned(other, facts=facts, bind=replace(BIND, root="/b"))) == []
    part = replace(BIND, root="/a/b")
    assert answered(learned(other, facts=facts, bind=part), part) == ["/source"]


def ageless(facts: Facts) -> dict[int, Fact]:
    """As an older kernel, or an older version, would have it."""
    return {
        number: replace(
            fact, candidates=tuple(replace(place, unique_id=0) for place in fact.candidates)
        )
        for number, fact in facts.items()
    }


def test_what_is_remembered_without_ages_comes_before_what_is_only_seen_now() -> None:
    other = mount(6, TARGET.replace("50a9", "60a9"))
    facts = ageless(lineage.learn({}, MountTable.of([SOURCE, other]), (), "/k/pods", [OLD]))
    assert answered(learned(other, mount(3, "/z"), facts=facts)) == ["/source"]


def test_two_places_that_nothing_tells_apart_are_both_possible() -> None:
    one, two = (mount(n, TARGET.replace("50a9", f"60a{n}")) for n in (8, 9))
    facts = lineage.learn({}, MountTable.of([SOURCE, one]), (), "/k/pods", [OLD])
    facts |= lineage.learn({}, MountTable.of([LEFTOVER, two]), (), "/k/pods", [OLD])
    assert answered(learned(one, two, facts=facts)) == ["/source"]
    assert answered(learned(one, two, facts=ageless(facts))) == ["/source", "/bind-of-it"]
    tied = {BIND.mount_id: learned(one, two, facts=ageless(facts))[BIND.mount_id]}
    next_one = mount(40, TARGET.replace("50a9", "60aa"))
    after = learned(next_one, facts=tied)
    assert answered(after, next_one) == ["/source", "/bind-of-it"]
    seen = snapshot(BIND, mount(20, "/source", NEW))
    found = lineage.answer(learned(one, two, facts=ageless(facts)), BIND)
    assert found is not None
    assert sources.resolve(found, BIND, seen).refusal is Reason.AMBIGUOUS_SOURCE


def test_a_covered_layer_keeps_what_is_known_of_it() -> None:
    cover = replace(mount(12, TARGET, NEW), parent_id=BIND.mount_id)
    facts = learned(SOURCE)
    facts = learned(cover, mount(11, "/source", NEW), facts=facts)
    assert (answered(facts), answered(facts, cover)) == (["/source"], ["/source"])
    assert answered(learned(facts=facts)) == ["/source"]


@pytest.mark.parametrize(
    ("working", "words"),
    [((OLD,), "mounted there while healthy"), ((), "mounted there, never seen healthy")],
)
def test_it_is_said_whether_it_was_ever_seen_to_work(
    working: tuple[Device, ...], words: str
) -> None:
    facts = learned(SOURCE, working=working)
    # Later answers of the same device say nothing of a place that was given up.
    found = lineage.answer(learned(facts=facts), BIND)
    assert found is not None and found.why == words


def test_a_source_that_shows_another_directory_is_none() -> None:
    part = replace(BIND, root="/sub")
    assert places(learned(mount(5, "/source", root="/elsewhere"), bind=part), part) == []


def test_restored_only_for_the_very_mount() -> None:
    facts = {BIND.mount_id: learned(SOURCE)[BIND.mount_id]}
    assert lineage.restore(facts.values(), MountTable.of([BIND])) == facts
    assert lineage.restore(facts.values(), MountTable.of([replace(BIND, unique_id=1)])) == {}
    assert lineage.restore(facts.values(), MountTable.of([])) == {}


def test_a_thousand_binds_with_as_many_copies_are_learned_in_one_pass() -> None:
    binds = [mount(1000 + n, TARGET.replace("50a9", f"{n:04x}")) for n in range(1000)]
    copies = [mount(3000 + n, f"/copy/{n}") for n in range(1000)]
    table = MountTable.of([SOURCE, *binds, *copies])
    facts = lineage.learn({}, table, (), "/k/pods", [OLD])
    assert all(answered(facts, bind) == ["/source"] for bind in binds)
    assert lineage.learn(facts, table, (), "/k/pods", [OLD]) == facts


@pytest.mark.parametrize(
    ("now", "answered", "expected"),
    [
        ((), (NEW,), Reason.SOURCE_MISSING),
        ((SOURCE,), (NEW,), Reason.SOURCE_MISSING),
        ((mount(20, "/source", NEW),), (), Reason.SOURCE_UNPROVEN),
        ((mount(20, "/source", NEW),), (NEW,), Reason.NONE),
        ((replace(mount(20, "/source", NEW), fs_type="fuse.y"),), (NEW,), Reason.NONE),
        ((replace(mount(20, "/source", NEW), fs_type="fuse"),), (NEW,), Reason.NONE),
        ((replace(mount(20, "/source", NEW), fs_type="fuseblk"),), (NEW,), Reason.SOURCE_TYPE),
        ((replace(mount(20, "/source", NEW), fs_type="fusectl"),), (NEW,), Reason.SOURCE_TYPE),
        ((replace(mount(20, "/source", NEW), fs_type="fuse.lxcfs"),), (), Reason.SOURCE_TYPE),
        ((replace(mount(20, "/source", NEW), fs_type="ext4"),), (NEW,), Reason.SOURCE_TYPE),
        ((mount(20, "/source", NEW, "/sub"),), (NEW,), Reason.SOURCE_ROOT),
        ((mount(20, "/other", NEW),), (NEW,), Reason.SOURCE_MISSING),
    ],
)
def test_what_counts_as_a_new_source(
    now: tuple[Mount, ...], answered: tuple[Device, ...], expected: Reason
) -> None:
    seen = snapshot(BIND, *now, answered=answered)
    found = lineage.answer(learned(SOURCE), BIND)
    assert found is not None
    ignored = frozenset({"fuse.lxcfs"})
    assert sources.resolve(found, BIND, seen, ignored_fs_types=ignored).refusal is expected


@pytest.mark.parametrize(
    ("source", "fs_type", "expected"),
    [("s", "fuse.x", Reason.NONE), ("t", "fuse.x", Reason.SOURCE_TYPE),
     ("s", "fuse.y", Reason.SOURCE_TYPE)],
)  # fmt: skip
def test_what_is_at_a_place_that_nobody_saw_serving_must_call_itself_the_same(
    source: str, fs_type: str, expected: Reason
) -> None:
    new = replace(mount(20, "/source", NEW), source=source, fs_type=fs_type)
    found = lineage.answer(learned(SOURCE, working=()), BIND)
    assert found is not None
    assert sources.resolve(found, BIND, snapshot(BIND, new)).refusal is expected


FLUID = drivers_for(DriverSettings(FluidSettings("/r")))
FIRST, SECOND = (
    mount(20, "/r/juicefs/a/b-c/juicefs-fuse", NEW),
    mount(21, "/r/thin/a-b/c/thin-fuse", OTHER),
)


def pod(namespace: str) -> dict[str, Pod]:
    return {PATH.pod_uid: Pod(PATH.pod_uid, PATH.pod_uid, namespace, "p", "Running", False)}


@pytest.mark.parametrize(
    ("at_source", "expected"),
    [
        ((mount(20, "/source", NEW), mount(40, "/source", NEW)), Reason.NONE),
        ((mount(40, "/source", NEW),), Reason.SOURCE_MISSING),
        ((mount(20, "/source", OTHER), mount(40, "/source", NEW)), Reason.SOURCE_MISSING),
    ],
    ids=["of-its-own", "copied-there", "copied-over-another"],
)
def test_a_copy_over_the_servers_own_mount_hides_no_source(
    at_source: tuple[Mount, ...], expected: Reason
) -> None:
    """Who mounts over the bind of another pod mounts over its source as well, its peer."""
    other = mount(30, TARGET.replace("50a97417", "60a97417"), NEW)
    facts = learned(SOURCE)
    seen = snapshot(*at_source, other, BIND)
    facts = lineage.learn(facts, seen.table, frozenset(), "/k/pods", (NEW,))
    found = lineage.answer(facts, BIND)
    assert found is not None
    assert sources.resolve(found, BIND, seen, facts).refusal is expected


@pytest.mark.parametrize(
    ("mounts", "pods", "expected"),
    [
        ((FIRST,), None, Reason.AMBIGUOUS_SOURCE),
        ((FIRST,), pod("a"), NEW),
        ((FIRST, SECOND), None, Reason.AMBIGUOUS_SOURCE),
        ((FIRST, SECOND), pod("a"), NEW),
        ((FIRST, SECOND), pod("a-b"), OTHER),
        ((FIRST,), pod("a-b"), Reason.SOURCE_MISSING),
    ],
)
def test_fluid_datasets_with_names_that_run_together(
    mounts: tuple[Mount, ...], pods: dict[str, Pod] | None, expected: Device | Reason
) -> None:
    seen = snapshot(BIND, *mounts, pods=pods)
    found = sources.resolve(sources.locate(PATH, BIND, seen, {}, FLUID), BIND, seen)
    assert (found.mount.device if found.mount else found.refusal) == expected


def test_a_driver_that_contradicts_lineage_is_refused() -> None:
    seen = snapshot(BIND, FIRST, mount(22, "/source", OTHER))
    answer = sources.locate(PATH, BIND, seen, learned(SOURCE), FLUID)
    assert sources.resolve(answer, BIND, seen).refusal is Reason.AMBIGUOUS_SOURCE


class Staging:
    """A driver that binds its servers' mounts to where the kubelet wants them."""

    name = "staging"

    def locate(self, bind: BindPath, mount: Mount, snapshot: Snapshot) -> SourceAnswer | None:
        return SourceAnswer(self.name, "staged there", (SourcePath("/k/globalmount"),))


def test_of_several_places_the_one_that_a_driver_names_is_the_source() -> None:
    staged = mount(6, "/k/globalmount")
    facts = learned(SOURCE, staged)
    assert answered(facts) == ["/source"]
    found = sources.locate(PATH, BIND, snapshot(BIND), facts, [Staging()])
    assert found.candidates == (SourcePath("/k/globalmount"),)
    # One that lineage never saw there is another matter.
    doubted = sources.locate(PATH, BIND, snapshot(BIND), learned(SOURCE), [Staging()])
    assert len(doubted.candidates) == 2


@pytest.mark.parametrize(
    ("before", "after", "less", "more"),
    [
        ("rw,user_id=0,allow_other", "rw,user_id=0,allow_other", "", ""),
        (
            "rw,user_id=0,group_id=0,allow_other",
            "ro,user_id=5,group_id=0,default_permissions",
            "without allow_other, without rw, with default_permissions, user_id 0 → 5",
            "",
        ),
        ("ro,user_id=0", "rw,user_id=0,allow_other", "", "with allow_other, with rw"),
        ("rw,default_permissions", "rw", "", "without default_permissions"),
        ("ro,allow_other", "rw", "without allow_other", "with rw"),
    ],
)
def test_what_a_new_superblock_allows_less_and_more(
    before: str, after: str, less: str, more: str
) -> None:
    old, new = (replace(BIND, super_options=options) for options in (before, after))
    assert sources.compare(old, new) == (less, more)


@pytest.mark.parametrize(
    ("before", "after", "is_another"),
    [
        ("rw,user_id=0", "rw,user_id=0", False),
        ("rw,user_id=0", "rw,user_id=5", True),
        ("rw,user_id=5", "rw,user_id=5", False),
        ("rw,user_id=5", "rw,user_id=0", False),
        ("rw,user_id=5", "rw,user_id=6,allow_other", True),
        ("rw", "rw,user_id=6", True),
        ("rw", "rw", False),
        ("rw,user_id=0", "rw,user_id=x", True),
        ("rw,user_id=0", "rw,user_id=²", True),
    ],
)
def test_where_a_server_is_that_is_another_users_than_before(
    before: str, after: str, is_another: bool
) -> None:
    old, new = (replace(BIND, super_options=options) for options in (before, after))
    one, other = SourcePath("/a"), SourcePath("/b")
    for candidates, place in (((one,), "/a"), ((), ""), ((one, other), "")):
        answer = SourceAnswer("lineage", "", candidates)
        expected = place if is_another else ""
        assert sources.place_of_another_user(answer, old, new) == expected


def test_what_is_kept_from_a_pod_is_no_gain_and_no_loss() -> None:
    read_only, writable = (replace(BIND, super_options=options) for options in ("ro", "rw"))
    assert sources.compare(read_only, writable, is_kept_read_only=True) == ("", "")
    assert sources.compare(writable, writable, is_kept_read_only=True) == ("", "")
