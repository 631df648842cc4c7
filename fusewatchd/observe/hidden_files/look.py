"""Counts the files in a directory of the node, also where something is mounted over it.

A detached copy of the file system alone, without what is mounted inside, shows the directory.
Names and sizes are read, and no file is opened.  Done in a worker, within bounds.
"""

from __future__ import annotations

import os
import stat
import time
from typing import Any

from fusewatchd.json_values import decode, encode
from fusewatchd.linux import statmount, syscalls
from fusewatchd.linux.syscalls import closing_fd
from fusewatchd.model.hidden_files import DirectoryCount, DirectoryJob
from fusewatchd.workers.channel import Channel

MOST_ENTRIES = 10_000
LOOK_SECONDS = 0.5
"""For one directory."""
MOST_DEEP = 64


def serve_directory_looks(channel: Channel) -> None:
    """Main function of the worker."""
    os.nice(10)

    def answer(message: Any) -> None:
        jobs = [decode(DirectoryJob, item) for item in message]
        channel.send([encode(_looked(job)) for job in jobs])

    channel.serve(answer)


def _looked(job: DirectoryJob) -> DirectoryCount | None:
    try:
        return look(job)
    except OSError:
        return None


def look(job: DirectoryJob) -> DirectoryCount:
    """Count what is in a directory.

    Raises:
        OSError: ENOENT when it is gone, ESTALE when another mount is at its ground.
    """
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    with closing_fd(os.open(job.ground, flags | os.O_DIRECTORY)) as ground:
        if statmount.mount_id_of_fd(ground) != job.ground_id:
            raise OSError(116, os.strerror(116), job.ground)
        at = syscalls.AT_EMPTY_PATH | syscalls.OPEN_TREE_CLONE
        copy = syscalls.open_tree(ground, "", at)
    fd = copy
    for name in filter(None, job.inside.split("/")):
        below = fd
        try:
            fd = os.open(name, flags, dir_fd=below)
        finally:
            os.close(below)
    with closing_fd(fd):
        return _count(fd, time.monotonic() + LOOK_SECONDS)


def _count(fd: int, until: float) -> DirectoryCount:
    found = os.stat(fd)
    if not stat.S_ISDIR(found.st_mode):
        return DirectoryCount(1, found.st_size, is_whole=True)
    files = size = entries = 0
    names = [("", 0)]
    is_whole = True
    while names:
        name, depth = names.pop()
        how = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            directory = os.open(name or ".", how, dir_fd=fd)
        except OSError:
            is_whole = False
            continue
        with closing_fd(directory), os.scandir(directory) as listing:
            for entry in listing:
                entries += 1
                if entries > MOST_ENTRIES or time.monotonic() > until:
                    return DirectoryCount(files, size, is_whole=False)
                if entry.is_dir(follow_symlinks=False):
                    if depth < MOST_DEEP:
                        names.append((f"{name}/{entry.name}".lstrip("/"), depth + 1))
                    is_whole = is_whole and depth < MOST_DEEP
                    continue
                files += 1
                size += _size_of(entry)
    return DirectoryCount(files, size, is_whole)


def _size_of(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0
