"""statmount(2) against mountinfo, mount by mount and field by field."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fusewatchd.demo.node.world import PrivateWorld
from fusewatchd.linux import statmount, syscalls
from fusewatchd.linux.syscalls import closing_fd, mount
from fusewatchd.model.mount_table import MountTable, parse_mount_table
from tests.features import Feature, needs
from tests.lab import run_in_world

CLONE_NEWUSER = 0x10000000
MS_SYNCHRONOUS = 0x10
MS_DIRSYNC = 0x80
MS_LAZYTIME = 1 << 25
MS_UNBINDABLE = 1 << 17
MS_MOVE = 0x2000

pytestmark = needs(Feature.STATMOUNT)


def read_table() -> MountTable:
    return parse_mount_table(Path("/proc/self/mountinfo").read_bytes())


def mount_dead_fuse(target: str, fs_type: str = "fuse", source: str = "src") -> None:
    """Mount a FUSE file system whose only descriptor is closed at once."""
    with closing_fd(os.open("/dev/fuse", os.O_RDWR)) as fd:
        mount(source, target, fs_type, 0, f"fd={fd},rootmode=40000,user_id=0,group_id=0")


def make_directory(lab: str, name: str | bytes) -> str:
    path = os.path.join(lab, os.fsdecode(name))
    os.makedirs(path, exist_ok=True)
    return path


def bind(source: str, target: str, flags: int = 0) -> str:
    mount(source, target, None, syscalls.MS_BIND)
    if flags:
        mount(None, target, None, syscalls.MS_BIND | syscalls.MS_REMOUNT | flags)
    return target


def set_idmap(target: str) -> None:
    """Map ids of a mount by a user namespace made for that."""
    with closing_fd(user_namespace("0 100000 1000\n5000 7000 1")) as userns:
        flags = syscalls.OPEN_TREE_CLONE
        with closing_fd(syscalls.open_tree(syscalls.AT_FDCWD, target, flags)) as clone:
            syscalls.mount_setattr(clone, syscalls.MOUNT_ATTR_IDMAP, userns_fd=userns)
            with closing_fd(os.open(target, os.O_PATH)) as place:
                syscalls.move_mount(clone, place)


def user_namespace(mapping: str) -> int:
    ready, release = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.unshare(CLONE_NEWUSER)
            os.write(ready[1], b"x")
            os.close(release[1])
            os.read(release[0], 1)
        finally:
            os._exit(0)
    os.close(ready[1])
    os.read(ready[0], 1)
    Path(f"/proc/{pid}/uid_map").write_text(mapping)
    Path(f"/proc/{pid}/gid_map").write_text(mapping)
    fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    for end in (ready[0], release[0], release[1]):
        os.close(end)
    os.waitpid(pid, 0)
    return fd


def plain(lab: str) -> None:
    mount("plain", make_directory(lab, "plain"), "tmpfs", 0)


def strange_names(lab: str) -> None:
    for name in (b"a b", b"tab\there", b"line\nfeed", b"back\\slash", b"hash#", b"not utf8 \xff\xfe",
                 b"cr\rvt\x0bff\x0c", b"\\040", b"comma,=\"'", "名".encode()):  # fmt: skip
        target = make_directory(lab, b"names/" + name)
        mount(f"so urce\t{len(name)}\\#", target, "tmpfs", 0)
        inner = make_directory(target, name)
        bind(inner, make_directory(lab, b"bound/" + name))


def strange_sources(lab: str) -> None:
    for number, source in enumerate(("", "-", " - fuse x", "none", "\\040")):
        mount(source, make_directory(lab, f"source{number}"), "tmpfs", 0)


def long_names(lab: str) -> None:
    deep = make_directory(lab, "/".join(["x" * 200 + " \\"] * 15))
    mount("s" * 4000, deep, "tmpfs", 0)


def fuse(lab: str) -> None:
    mount_dead_fuse(make_directory(lab, "f1"))
    mount_dead_fuse(make_directory(lab, "f2"), "fuse.juicefs", "JuiceFS:my vol")
    mount_dead_fuse(make_directory(lab, "f3"), "fuse.a b\\c", "-")
    mount_dead_fuse(make_directory(lab, "f4"), "fuse.s3fs", "none")


def flags(lab: str) -> None:
    source = make_directory(lab, "flagged")
    mount("flagged", source, "tmpfs", 0)
    one_by_one = (
        syscalls.MS_RDONLY, syscalls.MS_NOSUID, syscalls.MS_NODEV, syscalls.MS_NOEXEC,
        syscalls.MS_NOATIME, syscalls.MS_NODIRATIME, syscalls.MS_RELATIME,
        syscalls.MS_STRICTATIME, syscalls.MS_NOSYMFOLLOW,
    )  # fmt: skip
    for number, flag in enumerate(one_by_one):
        bind(source, make_directory(lab, f"flag{number}"), flag)
    everything = sum(one_by_one) - syscalls.MS_RELATIME - syscalls.MS_STRICTATIME
    bind(source, make_directory(lab, "flags"), everything)


def super_block_flags(lab: str) -> None:
    for number, flag in enumerate((syscalls.MS_RDONLY, MS_SYNCHRONOUS, MS_DIRSYNC, MS_LAZYTIME)):
        options = "size=1m,mode=700" if number % 2 else ""
        mount("sb", make_directory(lab, f"sb{number}"), "tmpfs", flag, options)


def propagation(lab: str) -> None:
    origin = make_directory(lab, "origin")
    mount("origin", origin, "tmpfs", 0)
    mount(None, origin, None, syscalls.MS_SHARED)
    slave = bind(origin, make_directory(lab, "slave"))
    mount(None, slave, None, syscalls.MS_SLAVE)
    both = bind(slave, make_directory(lab, "both"))
    mount(None, both, None, syscalls.MS_SHARED)
    private = bind(origin, make_directory(lab, "private"))
    mount(None, private, None, syscalls.MS_PRIVATE)
    unbindable = bind(origin, make_directory(lab, "unbindable"))
    mount(None, unbindable, None, MS_UNBINDABLE)


def deleted_root(lab: str) -> None:
    source = make_directory(lab, "short lived")
    bind(source, make_directory(lab, "keeps it"))
    os.rmdir(source)


def stacked(lab: str) -> None:
    for layer in range(3):
        mount(f"layer{layer}", make_directory(lab, "stack"), "tmpfs", 0)


def idmapped(lab: str) -> None:
    target = make_directory(lab, "mapped")
    mount("mapped", target, "tmpfs", 0)
    set_idmap(target)


def file_bind(lab: str) -> None:
    for name in ("file", "over"):
        Path(lab, name).touch()
    bind(os.path.join(lab, "file"), os.path.join(lab, "over"))


def other_types(lab: str) -> None:
    for fs_type in ("proc", "sysfs", "cgroup2", "mqueue", "devpts"):
        mount(fs_type, make_directory(lab, fs_type), fs_type, 0)
    layers = [make_directory(lab, f"over, {name}:") for name in ("u", "w")]
    mount("t", make_directory(lab, "layers"), "tmpfs", 0)
    lower = make_directory(lab, "layers/lo wer")
    upper, work = make_directory(lab, "layers/up"), make_directory(lab, "layers/work")
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    mount("over lay", layers[0], "overlay", 0, options)


WORLDS: tuple[Callable[[str], None], ...] = (
    plain, strange_names, strange_sources, long_names, fuse, flags, super_block_flags, propagation, deleted_root,
    stacked, idmapped, file_bind, other_types,
)  # fmt: skip


@pytest.mark.parametrize("build", WORLDS, ids=lambda build: build.__name__)
def test_says_what_mountinfo_says(build: Callable[[str], None]) -> None:
    def body(world: PrivateWorld) -> Any:
        before = len(read_table())
        build(world.lab)
        table = read_table()
        described = [statmount.statmount(unique_id) for unique_id in statmount.listmount()]
        unmount_all(world.lab)
        shown = {mount.mount_id: mount for mount in table}
        differences = [
            (repr(shown.get(mount.mount_id)), repr(mount))
            for mount in described
            if shown.get(mount.mount_id) != replace(mount, unique_id=0)
        ]
        return [len(described) - before, len(described) - len(table), differences]

    grown, missing, differences = run_in_world(body)
    assert differences == []
    assert grown > 0
    assert missing == 0


def unmount_all(lab: str) -> None:
    """Leave nothing in the lab: each detach takes the whole tree below along."""
    for mount_ in reversed(read_table().below(lab)):
        try:
            syscalls.umount2(mount_.mount_point, syscalls.MNT_DETACH)
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.ENOENT):
                raise


def test_a_mount_that_is_gone_is_enoent() -> None:
    def body(world: PrivateWorld) -> None:
        target = make_directory(world.lab, "t")
        mount("t", target, "tmpfs", 0)
        with closing_fd(os.open(target, os.O_PATH)) as fd:
            unique_id = statmount.mount_unique_id(fd)
            shown = statmount.mount_id_of_fd(fd)
        assert unique_id is not None
        assert statmount.statmount(unique_id).mount_id == shown
        assert statmount.reused_ids([unique_id]) == {unique_id: shown}
        assert statmount.parent_unique_id(unique_id) in statmount.listmount()
        syscalls.umount2(target)
        assert statmount.reused_ids([unique_id]) == {}
        for call in (statmount.statmount, statmount.idmap_of):
            with pytest.raises(FileNotFoundError):
                call(unique_id)
        with pytest.raises(FileNotFoundError):
            statmount.listmount(unique_id)

    run_in_world(body)


def test_three_ways_to_the_same_mount_id() -> None:
    def body(world: PrivateWorld) -> None:
        target = make_directory(world.lab, "f")
        mount_dead_fuse(target)
        with closing_fd(os.open(target, os.O_PATH)) as fd:
            by_statx = statmount.mount_id_of_fd(fd)
            by_fdinfo = statmount.fdinfo_mount_id(fd)
            unique_id = statmount.mount_unique_id(fd)
        top = read_table().top_at(target)
        syscalls.umount2(target)
        assert top is not None and unique_id is not None
        assert by_statx == by_fdinfo == top.mount_id
        # The dead server answers nobody; the id came all the same.
        assert unique_id > 2**31

    run_in_world(body)


def test_listmount_pages_and_lists_what_is_inside() -> None:
    def body(world: PrivateWorld) -> None:
        base = make_directory(world.lab, "many")
        mount("many", base, "tmpfs", 0)
        inside = []
        for number in range(40):
            path = make_directory(base, str(number))
            mount("one", path, "tmpfs", 0)
            inside.append(path)
        with closing_fd(os.open(base, os.O_PATH)) as fd:
            unique_id = statmount.mount_unique_id(fd)
        assert unique_id is not None
        whole = statmount.listmount(unique_id)
        in_pieces: list[int] = []
        while chunk := statmount._list_chunk(unique_id, in_pieces[-1] if in_pieces else 0, 7):
            in_pieces += chunk
        syscalls.umount2(base, syscalls.MNT_DETACH)
        assert in_pieces == whole
        assert len(whole) == len(inside)

    run_in_world(body)


def test_idmap_as_text() -> None:
    def body(world: PrivateWorld) -> Any:
        idmapped(world.lab)
        mounts = [statmount.statmount(unique_id) for unique_id in statmount.listmount()]
        at = [m for m in mounts if m.mount_point == os.path.join(world.lab, "mapped")]
        maps = [(m.is_idmapped, statmount.idmap_of(m.unique_id)) for m in at]
        unmount_all(world.lab)
        return maps

    plain_map, mapped = run_in_world(body)
    assert plain_map == [False, None]
    text = "0 100000 1000\n5000 7000 1"
    assert mapped == [True, [text, text]]


def test_statmount_takes_a_reply_larger_than_its_first_buffer() -> None:
    def body(world: PrivateWorld) -> int:
        long_names(world.lab)
        longest = max(
            (statmount.statmount(unique_id) for unique_id in statmount.listmount()),
            key=lambda m: len(m.mount_point) + len(m.source),
        )
        unmount_all(world.lab)
        return len(longest.mount_point) + len(longest.source)

    assert run_in_world(body) > statmount._FIRST_SIZE


def test_an_unsupported_call_is_found_by_calling() -> None:
    """The calls are taken away by seccomp(2), as container runtimes do."""

    def body(world: PrivateWorld) -> list[bool]:
        before = statmount.is_supported()
        statmount.is_supported.cache_clear()
        refuse(statmount.SYS_STATMOUNT)
        return [before, statmount.is_supported()]

    assert run_in_world(body) == [True, False]


class _Filter(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )  # fmt: skip


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(_Filter)))


def refuse(number: int) -> None:
    """Make a system call answer ENOSYS for this process from now on, seccomp(2)."""
    load_number, jump_if_equal, answer = 0x20, 0x15, 0x06
    refuse_it, allow = 0x00050000 | errno.ENOSYS, 0x7FFF0000
    code = (_Filter * 4)(
        _Filter(load_number, 0, 0, 0),
        _Filter(jump_if_equal, 0, 1, number),
        _Filter(answer, 0, 0, refuse_it),
        _Filter(answer, 0, 0, allow),
    )
    program = _Program(4, code)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, ctypes.c_ulong(1), 0, 0, 0) == 0
    assert libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(program)) == 0
