"""The mount table as a value: parsing, looking things up, applying changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusewatchd.errors import ParseError
from fusewatchd.model.mount_table import MountTable, mount_from_line, parse_mount_table, unescape
from fusewatchd.model.mounts import Device, Mount

CAPTURES = Path(__file__).parents[2] / "data" / "mountinfo"

FUSE_LINE = (
    b"101 43 0:133 / /var/lib/kubelet/pods/a/volumes/x~y/pv/mount rw,nosuid,nodev,relatime"
    b" shared:7 master:3 - fuse.bindfs /srv/data rw,user_id=0,group_id=0,allow_other"
)


def mount(mount_id: int, parent_id: int, point: str, **fields: object) -> Mount:
    base = Mount(
        mount_id=mount_id,
        parent_id=parent_id,
        device=Device(0, mount_id),
        root="/",
        mount_point=point,
        options="rw,relatime",
        peer_group=0,
        master=0,
        fs_type="tmpfs",
        source="tmpfs",
        super_options="rw",
    )
    return replace(base, **fields)  # type: ignore[arg-type]


# ------------------------------------------------------------------------- one line


def test_every_field_of_a_fuse_line() -> None:
    assert mount_from_line(FUSE_LINE) == Mount(
        mount_id=101,
        parent_id=43,
        device=Device(0, 133),
        root="/",
        mount_point="/var/lib/kubelet/pods/a/volumes/x~y/pv/mount",
        options="rw,nosuid,nodev,relatime",
        peer_group=7,
        master=3,
        fs_type="fuse.bindfs",
        source="/srv/data",
        super_options="rw,user_id=0,group_id=0,allow_other",
    )


@pytest.mark.parametrize(
    ("optional", "peer_group", "master"),
    [
        (b"", 0, 0),
        (b" shared:12", 12, 0),
        (b" master:9", 0, 9),
        (b" shared:12 master:9", 12, 9),
        (b" master:9 propagate_from:2", 0, 9),
        (b" shared:12 master:9 propagate_from:2", 12, 9),
        (b" unbindable", 0, 0),
        (b" some_future_tag:4 shared:12 another", 12, 0),
    ],
)
def test_any_number_of_optional_fields(optional: bytes, peer_group: int, master: int) -> None:
    parsed = mount_from_line(b"2 1 8:1 / /x rw" + optional + b" - ext4 /dev/sda1 rw")
    assert (parsed.peer_group, parsed.master) == (peer_group, master)
    assert parsed.fs_type == "ext4"


@pytest.mark.parametrize(
    ("field", "text"),
    [
        (b"/plain", "/plain"),
        (rb"/a\040b", "/a b"),
        (rb"\011\012\134\043", "\t\n\\#"),
        (rb"\134040", "\\040"),
        (rb"/\303\251", "/é"),
        (rb"/\377", "/\udcff"),
        (b"/\xff\xfe", "/\udcff\udcfe"),
        ("/名".encode(), "/名"),
        (b"/cr\rvt\x0bff\x0cnel\xc2\x85", "/cr\rvt\x0bff\x0cnel\x85"),
        (rb"\777", "\\777"),
        (rb"\04", "\\04"),
        (rb"\089", "\\089"),
        (rb"/x//deleted", "/x//deleted"),
    ],
)
def test_unescape(field: bytes, text: str) -> None:
    assert unescape(field) == text


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("empty source", b"2 1 0:5 / /x rw - tmpfs  rw", {"source": ""}),
        ("source is a dash", b"2 1 0:5 / /x rw - fuse.s3fs - rw", {"source": "-"}),
        ("separator look-alike", rb"2 1 0:5 / /x\040-\040fuse rw - tmpfs t rw",
         {"mount_point": "/x - fuse", "fs_type": "tmpfs"}),
        ("deleted root", b"2 1 0:5 /sub//deleted /x rw - fuse.x s rw", {"root": "/sub//deleted"}),
        ("namespace root", b"2 1 0:4 mnt:[4026531841] /x rw - nsfs nsfs rw",
         {"root": "mnt:[4026531841]"}),
        ("carriage return", b"2 1 0:5 / /a\rb rw - tmpfs t rw", {"mount_point": "/a\rb"}),
        ("subtype with a space", rb"2 1 0:5 / /x rw - fuse.a\040b s rw", {"fs_type": "fuse.a b"}),
        ("options stay escaped", rb"2 1 0:5 / /x rw - overlay o rw,lowerdir=/a\054b",
         {"super_options": r"rw,lowerdir=/a\054b"}),
        ("space in options", b"2 1 0:5 / /x rw - odd o rw,label=a b", {"super_options": "rw,label=a b"}),
        ("32-bit ids", b"4294967295 2147483648 4095:1048575 / /x rw - fuseblk s rw",
         {"mount_id": 4294967295, "device": Device(4095, 1048575)}),
        ("idmapped", b"2 1 0:5 / /x ro,idmapped - tmpfs t rw", {"is_idmapped": True, "is_read_only": True}),
        ("own parent", b"1 1 0:2 / / rw - rootfs rootfs rw", {"parent_id": 1}),
    ],
)  # fmt: skip
def test_odd_lines(name: str, line: bytes, expected: dict[str, object]) -> None:
    parsed = mount_from_line(line)
    assert {field: getattr(parsed, field) for field in expected} == expected, name


BAD_LINES = [
    b"",
    b"garbage",
    b"2 1 0:5 / /x rw",
    b"2 1 0:5 / /x rw - fuse.x",
    b"2 1 0:5 / /x rw - fuse.x src",
    b"x 1 0:5 / /x rw - fuse.x s rw",
    b"2 -1 0:5 / /x rw - fuse.x s rw",
    b"2 1 0-5 / /x rw - fuse.x s rw",
    b"2 1 0:5 /  rw - fuse.x s rw",
    b"2 1 0:5  /x rw - fuse.x s rw",
    b"2_0 1 0:5 / /x rw - fuse.x s rw",
    b" 2 1 0:5 / /x rw - fuse.x s rw",
    b"2 1 0:" + b"9" * 5000 + b" / /x rw - fuse.x s rw",
]


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_is_an_error_with_its_text(line: bytes) -> None:
    with pytest.raises(ParseError, match="not a mountinfo line"):
        mount_from_line(line)


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_of_a_table_is_named_by_its_number(line: bytes) -> None:
    with pytest.raises(ParseError, match="mountinfo line 2"):
        len([*parse_mount_table(FUSE_LINE + b"\n" + line + b"\n" + FUSE_LINE + b"\n")])


def test_an_error_shows_no_control_characters() -> None:
    with pytest.raises(ParseError) as caught:
        mount_from_line(b"2 1 \x1b[31m\xff\n")
    assert "\\x1b[31m\\xff\\x0a" in str(caught.value)


def test_a_table_cut_within_a_line_is_an_error() -> None:
    with pytest.raises(ParseError, match="middle of a line"):
        parse_mount_table(FUSE_LINE + b"\n" + FUSE_LINE)


# ----------------------------------------------------------------- render and parse

_TEXT = st.text(st.characters(min_codepoint=1, exclude_categories=["Cs"]), min_size=1, max_size=12)
_BYTES = st.binary(min_size=1, max_size=8).filter(lambda data: b"\0" not in data)
_NAMES = st.one_of(_TEXT, _BYTES.map(lambda data: data.decode("utf-8", "surrogateescape")))
_PATHS = st.lists(_NAMES, max_size=3).map(lambda names: "/" + "/".join(names))
_IDS = st.integers(0, 2**32 - 1)
_OPTIONS = st.lists(
    st.sampled_from(["nosuid", "nodev", "noexec", "relatime", "idmapped"]), unique=True
).map(lambda words: ",".join(["rw", *words]))
MOUNTS = st.builds(
    Mount,
    mount_id=_IDS,
    parent_id=_IDS,
    device=st.builds(Device, st.integers(0, 4095), st.integers(0, 2**20 - 1)),
    root=_PATHS,
    mount_point=_PATHS,
    options=_OPTIONS,
    peer_group=_IDS,
    master=_IDS,
    fs_type=st.one_of(
        st.sampled_from(["fuse", "fuseblk", "fusectl", "tmpfs"]), _NAMES.map("fuse.".__add__)
    ),
    source=st.one_of(st.just(""), _NAMES),
    super_options=_OPTIONS,
)


def render(shown: Mount) -> bytes:
    """Print a mount as the kernel does (fs/proc_namespace.c, show_mountinfo)."""
    tags = [f"shared:{shown.peer_group}"] if shown.peer_group else []
    tags += [f"master:{shown.master}"] if shown.master else []
    fields = [
        str(shown.mount_id), str(shown.parent_id), str(shown.device), escape(shown.root),
        escape(shown.mount_point), shown.options, *tags, "-", escape(shown.fs_type),
        escape(shown.source), shown.super_options,
    ]  # fmt: skip
    return " ".join(fields).encode("utf-8", "surrogateescape")


def escape(text: str) -> str:
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\#" else c for c in text)


def render_table(mounts: Sequence[Mount]) -> bytes:
    return b"".join(render(one) + b"\n" for one in mounts)


@given(MOUNTS)
def test_a_rendered_line_parses_to_the_same_mount(shown: Mount) -> None:
    # Bytes that happen to be UTF-8 come back as the text that they are.
    assert mount_from_line(render(shown)) == normal(shown)


def normal(shown: Mount) -> Mount:
    def again(text: str) -> str:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")

    return replace(
        shown,
        root=again(shown.root),
        mount_point=again(shown.mount_point),
        fs_type=again(shown.fs_type),
        source=again(shown.source),
    )


TABLES = st.lists(MOUNTS, max_size=8, unique_by=lambda one: one.mount_id)


@settings(max_examples=40)
@given(TABLES)
def test_a_rendered_table_parses_to_the_same_mounts(mounts: list[Mount]) -> None:
    table = parse_mount_table(render_table(mounts))
    assert len(table) == len(mounts)
    assert list(table.fuse_mounts()) == [normal(one) for one in mounts if one.is_fuse]
    assert list(table) == [normal(one) for one in mounts]
    assert table == MountTable.of(map(normal, mounts))


@settings(max_examples=40)
@given(TABLES, TABLES)
def test_a_previous_table_changes_nothing_but_the_work(
    earlier: list[Mount], later: list[Mount]
) -> None:
    previous = parse_mount_table(render_table(earlier))
    assert len(list(previous)) == len(earlier)
    data = render_table([*earlier[::2], *(m for m in later if m not in earlier)])
    fresh, reused = parse_mount_table(data), parse_mount_table(data, previous)
    assert reused.fuse_mounts() == fresh.fuse_mounts()
    assert reused == fresh


def test_unchanged_lines_are_not_parsed_again() -> None:
    other = FUSE_LINE.replace(b"101 43", b"102 43")
    first = parse_mount_table(FUSE_LINE + b"\n")
    second = parse_mount_table(other + b"\n" + FUSE_LINE + b"\n", first)
    third = parse_mount_table(FUSE_LINE + b"\n", second)
    assert third.by_id(101) is first.by_id(101)


def test_lines_without_fuse_are_parsed_when_asked_for() -> None:
    table = parse_mount_table(b"not parsed - yet\n" + FUSE_LINE + b"\n")
    assert [one.mount_id for one in table.fuse_mounts()] == [101]
    with pytest.raises(ParseError, match="line 1"):
        table.by_id(101)


# ------------------------------------------------------------------------- captures


@pytest.mark.parametrize("path", sorted(CAPTURES.iterdir()), ids=lambda path: path.name)
def test_captures_render_back_to_what_was_captured(path: Path) -> None:
    data = path.read_bytes()
    assert render_table(list(parse_mount_table(data))) == data


def test_a_captured_node() -> None:
    table = parse_mount_table((CAPTURES / "restarted-node.mountinfo").read_bytes())
    types = Counter(one.fs_type for one in table)
    assert len(table) == sum(types.values()) == 68
    assert {one.fs_type for one in table.fuse_mounts()} == {"fuse"}
    assert len(table.fuse_mounts()) == types["fuse"] == 8
    # A stack from the capture: /dev/shm was mounted over by the machine's own set-up.
    assert [one.mount_id for one in table.stack_at("/dev/shm")] == [59, 60]


def test_death_changes_no_byte_and_restart_changes_the_sources() -> None:
    healthy, stale, restarted = (
        parse_mount_table((CAPTURES / f"{name}-node.mountinfo").read_bytes())
        for name in ("healthy", "stale", "restarted")
    )
    assert healthy == stale
    assert healthy != restarted
    changed = {one.mount_point for one in restarted if healthy.by_id(one.mount_id) != one}
    assert changed == {
        "/mnt/fuse/g1",
        "/var/lib/kubelet/plugins/kubernetes.io/csi/pv/pv-stage/globalmount",
    }


# --------------------------------------------------------------------- looking up

STACKED = MountTable.of(
    [
        mount(3, 2, "/a"),
        mount(1, 1, "/"),
        mount(2, 1, "/a"),
        mount(4, 3, "/a"),
        mount(5, 4, "/a/b", device=Device(0, 2)),
    ]
)


def ids(mounts: Sequence[Mount]) -> list[int]:
    return [one.mount_id for one in mounts]


def test_a_stack_is_ordered_by_parents() -> None:
    assert ids(STACKED.stack_at("/a")) == [2, 3, 4]
    assert STACKED.top_at("/a") == STACKED.by_id(4)
    assert ids(STACKED.stack_at("/a/b")) == [5]
    assert STACKED.stack_at("/nothing") == ()
    assert STACKED.top_at("/nothing") is None
    assert ids(STACKED.stack_at("/")) == [1]


def test_children_devices_and_prefixes() -> None:
    assert ids(STACKED.children_of(1)) == [2]
    assert ids(STACKED.children_of(3)) == [4]
    assert STACKED.children_of(5) == ()
    assert sorted(ids(STACKED.on_device(Device(0, 2)))) == [2, 5]
    assert STACKED.on_device(Device(9, 9)) == ()
    assert ids(STACKED.below("/a")) == ids(STACKED.below("/a/")) == [5]
    assert sorted(ids(STACKED.below("/"))) == [2, 3, 4, 5]
    assert ids(MountTable.of([mount(1, 0, "/ab"), mount(2, 0, "/a")]).below("/a")) == []


def test_of_two_stacks_with_one_path_the_reachable_one_counts() -> None:
    hidden, visible = mount(3, 2, "/a/b"), mount(5, 4, "/a/b")
    on_top = mount(6, 5, "/a/b")
    base = [mount(1, 1, "/"), mount(2, 1, "/a"), mount(4, 2, "/a")]
    for order in ([hidden, visible, on_top], [on_top, visible, hidden]):
        table = MountTable.of([*base, *order])
        assert ids(table.stack_at("/a/b")) == [5, 6]
        assert sorted(ids(table.at("/a/b"))) == [3, 5, 6]


def test_a_stacked_root() -> None:
    table = MountTable.of([mount(1, 1, "/"), mount(2, 1, "/"), mount(3, 2, "/x")])
    assert ids(table.stack_at("/")) == [1, 2]
    assert ids(table.children_of(1)) == [2]


@pytest.mark.parametrize("cycle", [[(1, 2), (2, 1)], [(1, 1), (2, 2)], [(1, 2), (2, 3), (3, 2)]])
def test_a_table_that_makes_no_sense_still_has_an_answer(cycle: list[tuple[int, int]]) -> None:
    table = MountTable.of([mount(one, parent, "/x") for one, parent in cycle])
    assert set(ids(table.stack_at("/x"))) <= {one for one, _ in cycle}
    assert table.top_at("/x") is not None


# -------------------------------------------------------------------------- changes


def test_equality_is_by_content_and_tables_have_no_hash() -> None:
    one, two = mount(1, 1, "/"), mount(2, 1, "/a")
    assert MountTable.of([one, two]) == MountTable.of([two, one])
    assert MountTable.of([one]) != MountTable.of([one, two])
    assert MountTable.of([one]) != MountTable.of([replace(one, options="ro")])
    assert MountTable.of([one]) != [one]
    with pytest.raises(TypeError, match="unhashable"):
        hash(MountTable.of([one]))


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from("abc"))),
    st.sets(st.integers(1, 12)),
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12), st.sampled_from("abc"))),
    st.booleans(),
)
def test_changes_give_what_a_new_table_would_give(
    old: list[tuple[int, int, str]],
    removed: set[int],
    added: list[tuple[int, int, str]],
    is_indexed: bool,
) -> None:
    def made(rows: list[tuple[int, int, str]]) -> dict[int, Mount]:
        kind = {"a": "fuse.a", "b": "tmpfs", "c": "fuse"}
        return {
            one: mount(one, parent, f"/{point}", fs_type=kind[point], device=Device(0, parent))
            for one, parent, point in rows
        }

    before, new = made(old), made(added)
    table = MountTable.of(before.values())
    if is_indexed:  # what was looked up before must be carried along rightly
        table.children_of(1)
        table.stack_at("/a")
        table.on_device(Device(0, 1))
    after = table.with_changes(removed, new.values())
    left = {key: value for key, value in before.items() if key not in removed} | new
    fresh = MountTable.of(left.values())
    assert after == fresh
    assert table == MountTable.of(before.values())
    assert {one.mount_id for one in after.fuse_mounts()} == {
        one.mount_id for one in left.values() if one.is_fuse
    }
    for key in range(1, 13):
        assert set(after.children_of(key)) == set(fresh.children_of(key))
        assert set(after.on_device(Device(0, key))) == set(fresh.on_device(Device(0, key)))
    for point in ("/a", "/b", "/c"):
        assert set(after.at(point)) == set(fresh.at(point))


def test_unique_ids_are_set_and_taken_back() -> None:
    data = render_table([mount(1, 1, "/"), mount(2, 1, "/f", fs_type="fuse")])
    table = parse_mount_table(data, None, {1: 1001, 2: 1002})
    assert [one.unique_id for one in table] == [1001, 1002]
    assert [one.unique_id for one in table.fuse_mounts()] == [1002]
    # The same lines again, and mount 2 is another one: its old id must not survive.
    again = parse_mount_table(data, table, {1: 1001, 2: 1003})
    assert [one.unique_id for one in again] == [1001, 1003]
    assert [one.unique_id for one in again.fuse_mounts()] == [1003]
    assert again != table
    assert [one.unique_id for one in parse_mount_table(data, again)] == [0, 0]
    # Nothing is made anew for what is still the same mount.
    assert parse_mount_table(data, table, {1: 1001, 2: 1002}).by_id(2) is table.by_id(2)
    changed = table.with_changes({1}, [])
    assert parse_mount_table(data, changed, {2: 1002}).by_id(2) is table.by_id(2)


def test_a_change_keeps_the_order_of_fuse_mounts() -> None:
    mounts = [mount(one, 0, f"/{one}", fs_type="fuse") for one in (3, 1, 2)]
    table = MountTable.of(mounts).with_changes((), [replace(mounts[1], unique_id=11)])
    assert ids(table.fuse_mounts()) == [3, 1, 2]


@given(st.lists(st.sampled_from(["/a", "/a/b", "/a/b", "/ab", "/b", "/", "/a-b", "/\udcff"])))
def test_fuse_points_are_those_that_begin_so(points: list[str]) -> None:
    mounts = [
        mount_from_line(b"%d 1 0:%d / /x rw - fuse s rw" % (n, n)) for n in range(len(points))
    ]
    made = [replace(m, mount_point=p) for m, p in zip(mounts, points, strict=True)]
    plain = replace(mount_from_line(b"99 1 0:99 / /a/b/c rw - ext4 s rw"))
    table = MountTable.of([*made, plain])
    for prefix in ("", "/", "/a", "/a/", "/c"):
        assert table.fuse_points(prefix) == sorted({p for p in points if p.startswith(prefix)})
    changed = table.with_changes((), [replace(plain, fs_type="fuse")])
    assert "/a/b/c" in changed.fuse_points("/a/")
