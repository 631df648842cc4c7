"""What is told of a table: all that recovery needs, whatever else is in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.errors import ParseError
from fusewatchd.model.mount_table import mount_from_line
from fusewatchd.model.quota import LINE_BYTES, TOLD_FACTOR
from fusewatchd.observe.namespaces.mount_lines import Told, relevant, shows_directory


def line(number: int, parent: int, point: str, fs_type: str = "fuse.x") -> bytes:
    return f"{number} {parent} 0:{number} / {point} rw - {fs_type} s rw\n".encode()


ROOT = line(1, 0, "/", "overlay")


def told(
    *lines: bytes, most_lines: int = 5000, most_fuse: int = 256, most_bytes: int = 1 << 20
) -> Told:
    return relevant(b"".join(lines), most_lines, most_fuse, most_bytes)


def ids(of: Told) -> list[int]:
    return [mount.mount_id for mount in of.mounts]


def test_fuse_mounts_with_what_is_below_and_inside_them_are_told() -> None:
    found = told(
        ROOT, line(2, 1, "/proc", "proc"), line(3, 1, "/a", "tmpfs"), line(4, 3, "/a/b"),
        line(5, 4, "/a/b/c", "tmpfs"), line(6, 5, "/a/b/c/d", "tmpfs"), line(7, 2, "/proc/x", "bpf"),
    )  # fmt: skip
    assert ids(found) == [1, 3, 4, 5, 6]
    assert (found.fuse, found.wanted, found.is_cut) == (1, 1, False)


def test_the_first_ones_have_their_place() -> None:
    found = told(ROOT, *(line(n, 1, f"/{n}") for n in range(2, 100)), most_fuse=10)
    assert ids(found) == list(range(1, 12))
    assert (found.fuse, found.wanted, found.is_cut) == (10, 98, False)


def test_what_is_inside_one_of_them_has_a_bound() -> None:
    inside = (line(n, 2, f"/v/{n}", "tmpfs") for n in range(3, 5000))
    found = told(ROOT, line(2, 1, "/v"), *inside, most_fuse=10)
    assert len(found.mounts) == TOLD_FACTOR * 10
    assert found.is_cut


def test_a_chain_of_mounts_is_told_as_a_whole_or_not_at_all() -> None:
    chain = [line(n, n - 1, "/c" * n, "tmpfs") for n in range(3, 60)]
    found = told(ROOT, line(2, 1, "/v"), *chain, line(60, 59, "/c/x"), most_fuse=10)
    assert ids(found)[:2] == [1, 2]
    assert 60 not in ids(found)
    assert found.is_cut


def test_long_names_have_a_bound_together() -> None:
    long = "/" + "x" * 4000
    lines = (line(n, 1, f"{long}{n}") for n in range(2, 100))
    found = told(ROOT, *lines, most_bytes=50_000)
    assert (found.fuse, found.is_cut) == (12, True)


def test_a_long_line_is_left_out_with_all_that_stands_on_it() -> None:
    long = line(2, 1, "/" + r"\012" * LINE_BYTES, "tmpfs")
    found = told(ROOT, long, line(3, 2, "/long/x"), line(4, 1, "/v"), line(5, 3, "/long/x/y"))
    assert ids(found) == [1, 4]
    assert found.is_cut


def test_what_comes_after_so_many_lines_is_not_looked_at() -> None:
    many = [line(n, 1, f"/{n}", "tmpfs") for n in range(3, 100)]
    found = told(ROOT, line(2, 1, "/v"), *many, line(100, 1, "/late"), most_lines=50)
    assert ids(found) == [1, 2]
    assert found.is_cut


def test_a_line_that_was_not_read_to_its_end_counts_for_nothing() -> None:
    found = told(ROOT, line(2, 1, "/v"), line(3, 2, "/v/x")[:-4])
    assert ids(found) == [1, 2]
    assert found.is_cut


@pytest.mark.parametrize("bad", [b"\n", b"x 1 0:2\n", b"12\n", b"2 1 0:2 / - fuse\n"])
def test_a_malformed_line_is_an_error(bad: bytes) -> None:
    with pytest.raises(ParseError):
        told(ROOT, bad)


Rows = st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=12)


@given(rows=Rows, cut=st.integers(0, 13))
def test_nothing_is_told_without_what_it_stands_on(rows: list[tuple[int, bool]], cut: int) -> None:
    lines = [ROOT]
    for number, (parent, is_fuse) in enumerate(rows, 2):
        lines.append(line(number, parent, f"/{number}", "fuse.x" if is_fuse else "tmpfs"))
    found = told(*lines, most_lines=cut)
    known = {mount.mount_id for mount in found.mounts}
    whole = {m.mount_id: m for m in map(mount_from_line, b"".join(lines).splitlines())}
    assert all(whole[mount.mount_id] == mount for mount in found.mounts)
    if not found.is_cut:
        assert found.fuse == sum(is_fuse for _, is_fuse in rows)
    for mount in found.mounts if found.is_cut else ():
        if mount.is_fuse:
            assert mount.parent_id in known, "whether it may be replaced is not to be told"


POD = "/var/lib/kubelet/pods/uid"
DIRECTORY = f"{POD}/volumes/kubernetes.io~csi/pv/mount"


def directory(number: int, parent: int, point: str, root: str) -> bytes:
    return f"{number} {parent} 8:1 {root} {point} rw - ext4 /dev/sda1 rw\n".encode()


@pytest.mark.parametrize(
    ("root", "is_one"),
    [
        (DIRECTORY, True),
        (f"{DIRECTORY}/sub", True),
        (f"{DIRECTORY}//deleted", True),
        ("/uid/volumes/kubernetes.io~csi/pv/mount", True),
        ("/@/pods/uid/volumes/kubernetes.io~local-volume/disk", True),
        (f"{POD}/volumes/acme~fuse/v", True),
        (f"{POD}/volume-subpaths/pv/app/0", True),
        (f"{POD}/volumes/kubernetes.io~empty-dir/cache", False),
        (f"{POD}/volumes/kubernetes.io~configmap/c/..data", False),
        (f"{POD}/etc-hosts", False),
        ("/srv/volumes/data", False),
        ("/", False),
    ],
)
def test_a_directory_in_which_a_volume_is_mounted_is_told(root: str, is_one: bool) -> None:
    lines = ROOT, directory(2, 1, "/data", root), line(3, 2, "/data/in", "tmpfs")
    assert shows_directory(b"".join(lines)) is is_one
    found = told(*lines)
    assert found.directories == ((2,) if is_one else ())
    assert ids(found) == ([1, 2, 3] if is_one else [])


def test_what_is_mounted_somewhere_below_pods_is_no_directory() -> None:
    agent = ROOT, directory(2, 1, DIRECTORY, "/srv/x"), line(3, 1, DIRECTORY)
    assert not shows_directory(b"".join(agent))
    assert told(*agent).directories == ()


def test_directories_have_the_room_that_is_left_and_need_the_whole_table() -> None:
    many = [directory(n, 1, f"/{n}", f"{DIRECTORY}/{n}") for n in range(3, 50)]
    found = told(ROOT, line(2, 1, "/v"), *many, most_fuse=10)
    assert found.directories == tuple(range(3, 12))
    assert found.is_cut
    assert told(ROOT, line(2, 1, "/v"), *many, most_lines=20).directories == ()
