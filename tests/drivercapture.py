"""Captures the golden cases of drivers: ``python -m tests.drivercapture [CASE …]``, as root.

``layout.json`` of a case says what the driver does: where its servers mount, as what, and what is
bound from where, in order.  That is done for real in a private mount namespace, below a root of
its own that stands for the node's: real FUSE servers (the demo's, with the type and the source
that the driver's have), killed for real.  The mount tables are the kernel's own, as a process reads
them whose root that is:

* ``healthy``: all is well;
* ``killed``: the servers got SIGKILL, and nobody has done anything about it;
* ``broken``: what they had mounted outside of pods was detached, as drivers do;
* ``restarted``: new servers are mounted, and nothing is bound anew.

``dead.json`` has the file systems that answer ENOTCONN in each of them.  Numbers that differ from
run to run (of mounts, devices and peer groups) are given anew in the order in which the things
came; nothing else is changed.  Keys of a server: ``at``, ``type``, ``source``, ``flags`` of its
mount, ``comes_back_at`` (elsewhere), ``lives_on`` (is not killed); of a bind: ``of``, ``at``,
``flags``.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusewatchd.demo.node.sources import ServerOptions, Source
from fusewatchd.demo.node.world import PrivateWorld, run_in_private_world
from fusewatchd.linux import syscalls
from fusewatchd.linux.statmount import listmount, reused_ids
from fusewatchd.linux.syscalls import closing_fd

DIRECTORY = Path(__file__).parent / "data" / "drivers"
LAYOUT = "layout.json"
DEAD = "dead.json"
STATES = ("healthy", "killed", "broken", "restarted")
DEADLINE = 90.0
KUBELET = "/var/lib/kubelet"
PODS = f"{KUBELET}/pods/"
_TMPFS = "size=65536k,nr_inodes=4096,mode=755,inode64"
_FLAGS = {"ro": syscalls.MS_RDONLY, "noatime": syscalls.MS_NOATIME}
_ALWAYS = syscalls.MS_NOSUID | syscalls.MS_NODEV
"""What the servers mount with; a bind that is remounted must say it again."""
FIRST = {"mount": 20, "device": 40, "group": 1}
"""The numbers that are given."""


def case_names() -> list[str]:
    """Return the cases that have a layout."""
    return sorted(path.parent.name for path in DIRECTORY.glob(f"*/{LAYOUT}"))


@dataclass(frozen=True, slots=True)
class Line:
    """One line of mountinfo, taken apart as far as its numbers need it."""

    unique_id: int
    mount_id: int
    parent_id: int
    device: str
    fields: tuple[str, ...]
    """Root, mount point and options."""
    tags: tuple[tuple[str, int], ...]
    """Optional fields, as (shared, 5)."""
    rest: str


# ------------------------------------------------------------------------ the stage


class Stage:
    """A node's tree, and on it what a driver does."""

    def __init__(self, world: PrivateWorld, layout: Mapping[str, Any]) -> None:
        self._root = os.path.join(world.lab, "root")
        self._layout = layout
        os.mkdir(self._root)
        syscalls.mount("rootfs", self._root, "tmpfs", 0, _TMPFS)
        for path, kind, flags in (
            ("/proc", "proc", _ALWAYS | syscalls.MS_NOEXEC),
            ("/sys", "sysfs", _ALWAYS | syscalls.MS_NOEXEC),
            ("/sys/fs/fuse/connections", "fusectl", _ALWAYS | syscalls.MS_NOEXEC),
            ("/run", "tmpfs", _ALWAYS),
            (KUBELET, "tmpfs", 0),
        ):
            os.makedirs(self._at(path), exist_ok=True)
            data = _TMPFS if kind == "tmpfs" else ""
            syscalls.mount(kind, self._at(path), kind, flags, data)
        self._servers = [
            (server, self._source(number, server, world))
            for number, server in enumerate(layout["servers"])
        ]

    def _at(self, path: str) -> str:
        return self._root + path

    def _source(self, number: int, server: Mapping[str, str], world: PrivateWorld) -> Source:
        backing = os.path.join(world.lab, "backing", str(number))
        os.makedirs(backing)
        options = ServerOptions(fs_type=server["type"], source=server["source"])
        return Source(str(number), self._at(server["at"]), backing, options)

    def lay_out(self) -> None:
        """Let the servers mount, the driver and the kubelet bind."""
        for server, source in self._servers:
            self._start(server, source)
        for bind in self._layout["binds"]:
            of, at = self._at(bind["of"]), self._at(bind["at"])
            os.makedirs(of, exist_ok=True)
            os.makedirs(at, exist_ok=True)
            syscalls.mount(of, at, None, syscalls.MS_BIND)
            _set_flags(at, bind.get("flags", ""))

    def kill(self) -> None:
        """SIGKILL."""
        for _, source in self._dying():
            source.kill()

    def detach(self) -> None:
        """Take away what is mounted outside of pods."""
        for server, source in self._dying():
            if not server["at"].startswith(PODS):
                source.unmount()

    def restart(self) -> None:
        """Start new servers, as whoever started the first ones does."""
        for server, source in self._dying():
            source.unmount()
            source.path = self._at(server.get("comes_back_at", server["at"]))
            self._start(server, source)

    def close(self) -> None:
        """End the servers; the mounts end with the namespace."""
        for _, source in self._servers:
            source.close()

    def _dying(self) -> Iterator[tuple[Mapping[str, str], Source]]:
        return (pair for pair in self._servers if not pair[0].get("lives_on"))

    @staticmethod
    def _start(server: Mapping[str, str], source: Source) -> None:
        os.makedirs(source.path, exist_ok=True)
        source.start()
        _set_flags(source.path, server.get("flags", ""))

    # ------------------------------------------------------------------------- looking

    def look(self) -> list[Line]:
        """Return the table, as a process of the node reads it."""
        known = {mount_id: unique_id for unique_id, mount_id in reused_ids(listmount()).items()}
        return [_line(text, known) for text in _read_below(self._root).splitlines()]

    def dead(self, lines: Sequence[Line]) -> set[str]:
        """Return the devices of which each mount answers ENOTCONN."""
        answers: dict[str, set[int]] = {}
        for line in lines:
            if line.rest.startswith("fuse") and not line.rest.startswith("fusectl"):
                number = _errno_of(self._at(line.fields[1]))
                answers.setdefault(line.device, set()).add(number)
        odd = {d: found for d, found in answers.items() if found not in ({0}, {errno.ENOTCONN})}
        assert not odd, f"neither alive nor dead: {odd}"
        return {device for device, found in answers.items() if found == {errno.ENOTCONN}}


def _set_flags(path: str, words: str) -> None:
    if words:
        flags = sum(_FLAGS[word] for word in words.split(","))
        remount = syscalls.MS_REMOUNT | syscalls.MS_BIND
        syscalls.mount(None, path, None, remount | _ALWAYS | flags)


def _errno_of(path: str) -> int:
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno or -1
    return 0


def _read_below(root: str) -> str:
    """Return the mountinfo of a process whose root this is: its mounts, by its names."""
    read_end, write_end = os.pipe()
    proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            os.chroot(root)
            with closing_fd(os.open("self/mountinfo", os.O_RDONLY, dir_fd=proc)) as fd:
                while data := os.read(fd, 1 << 16):
                    os.write(write_end, data)
        finally:
            os._exit(0)
    os.close(write_end)
    os.close(proc)
    with open(read_end, encoding="utf-8") as reader:
        text = reader.read()
    os.waitpid(child, 0)
    return text


_MOUNTINFO = re.compile(r"(\d+) (\d+) (\d+:\d+) (\S+ \S+ \S+)((?: \w+:\d+)*) - (.*)")


def _line(text: str, unique_ids: Mapping[int, int]) -> Line:
    found = _MOUNTINFO.fullmatch(text)
    assert found is not None, text
    mount_id, parent_id, device, fields, tags, rest = found.groups()
    pairs = (tag.split(":") for tag in tags.split())
    return Line(
        unique_ids[int(mount_id)],
        int(mount_id),
        int(parent_id),
        device,
        tuple(fields.split(" ")),
        tuple((name, int(number)) for name, number in pairs),
        rest,
    )


# ------------------------------------------------------------------------ its numbers


@dataclass
class Numbers:
    """New numbers for those that the kernel happened to give, the same from table to table.

    The kernel gives each of its numbers again once it is free, or another one, as chance has it.  So
    what has a number is the same as before only where a mount that was there before shows it.
    """

    _next: dict[str, int] = field(default_factory=lambda: dict(FIRST))
    _mounts: dict[int, int] = field(default_factory=dict)
    _before: dict[int, tuple[Line, dict[str, dict[Any, int]]]] = field(default_factory=dict)

    def table(self, lines: Sequence[Line]) -> tuple[str, dict[str, str]]:
        """Return a table as text, and the number that each device has in it."""
        for line in lines:
            if line.unique_id not in self._mounts:
                self._mounts[line.unique_id] = self._new("mount")
        ids = {line.mount_id: self._mounts[line.unique_id] for line in lines}
        given: dict[str, dict[Any, int]] = {"device": {}, "group": {}}
        for line in lines:
            for kind, number in _numbers(line):
                old, had = self._before.get(line.unique_id, (line, {}))
                if (kind, number) in _numbers(old) and number in had.get(kind, {}):
                    given[kind].setdefault(number, had[kind][number])
        for line in lines:
            for kind, number in _numbers(line):
                if number not in given[kind]:
                    given[kind][number] = self._new(kind)
        self._before = {line.unique_id: (line, given) for line in lines}
        devices = {device: f"0:{number}" for device, number in given["device"].items()}
        texts = [_text(line, ids, devices, given["group"]) for line in lines]
        return "".join(f"{text}\n" for text in texts), devices

    def _new(self, kind: str) -> int:
        number = self._next[kind]
        self._next[kind] += 1
        return number


def _numbers(line: Line) -> list[tuple[str, Any]]:
    return [("device", line.device), *(("group", number) for _, number in line.tags)]


def _text(
    line: Line, ids: Mapping[int, int], devices: Mapping[str, str], groups: Mapping[int, int]
) -> str:
    parent = ids.get(line.parent_id, 1)
    tags = [f"{name}:{groups[number]}" for name, number in line.tags]
    words = [str(ids[line.mount_id]), str(parent), devices[line.device], *line.fields, *tags]
    return f"{' '.join(words)} - {line.rest}"


# ------------------------------------------------------------------------------- main


def capture(layout: Mapping[str, Any]) -> dict[str, str]:
    """Return the files of a case, by name."""
    with tempfile.TemporaryFile("w+") as outcome:

        def body(world: PrivateWorld) -> int:
            json.dump(_captured(world, layout), outcome)
            outcome.flush()
            return 0

        status = run_in_private_world(body, deadline_seconds=DEADLINE)
        assert status == 0, f"the capture ended with status {status}"
        outcome.seek(0)
        files: dict[str, str] = json.load(outcome)
    return files


def _captured(world: PrivateWorld, layout: Mapping[str, Any]) -> dict[str, str]:
    stage, numbers = Stage(world, layout), Numbers()
    acts: Sequence[Callable[[], None]] = (stage.lay_out, stage.kill, stage.detach, stage.restart)
    files, dead = {}, {}
    try:
        for state, act in zip(STATES, acts, strict=True):
            act()
            lines = stage.look()
            files[f"{state}.mountinfo"], devices = numbers.table(lines)
            dead[state] = sorted(devices[device] for device in stage.dead(lines))
    finally:
        stage.close()
    files[DEAD] = json.dumps(dead, indent=2) + "\n"
    return files


def layout_of(case: str) -> Mapping[str, Any]:
    """Read what a case's driver does."""
    layout: Mapping[str, Any] = json.loads((DIRECTORY / case / LAYOUT).read_text())
    return layout


def main(arguments: Sequence[str]) -> int:
    """Write the files of these cases, of all by default."""
    parser = argparse.ArgumentParser(prog="drivercapture", description="Capture golden cases.")
    parser.add_argument("case", nargs="*", choices=[[], *case_names()])
    for case in parser.parse_args(arguments).case or case_names():
        for name, text in capture(layout_of(case)).items():
            (DIRECTORY / case / name).write_text(text)
        print(case)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
