"""A demo container seen from outside: a process in a mount namespace built as runc builds it.

The inside is ``container_init``.  Times are seconds of CLOCK_MONOTONIC.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.node import cgroups
from fusewatchd.demo.node.container_spec import (
    Access,
    BoundVolume,
    CgroupKind,
    ContainerSpec,
    MountPropagation,
    OpenLoopReport,
    RootKind,
    Transition,
    UserNamespace,
)
from fusewatchd.demo.timeouts import patient
from fusewatchd.errors import FusewatchError
from fusewatchd.linux import syscalls


class Container:
    """Parent's side; start it, talk to it, stop it.  Also a context manager."""

    def __init__(self, spec: ContainerSpec) -> None:
        self.spec = spec
        self.cgroup_kind = CgroupKind.KERNEL
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._cgroup_directory: str | None = None
        self._stand_in = ""
        self._received = bytearray()
        self._answers: dict[int, dict[str, Any]] = {}
        self._last_id = 0

    def __enter__(self) -> Container:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The container's process."""
        return self._running().pid

    @property
    def cgroup_directory(self) -> str | None:
        """Where its cgroup is; None where there is no hierarchy to make one in."""
        return self._cgroup_directory

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def mount_namespace(self) -> int:
        """Inode of the mount namespace."""
        return os.stat(f"/proc/{self.pid}/ns/mnt").st_ino

    def start(self, timeout: float = 30.0) -> None:
        """Start and wait until the volumes are there.

        Raises:
            OSError: what the runtime would fail with: ENOTCONN for a dead volume, EINVAL for
                a file system without idmapped mounts.
            TimeoutError: not up in ``timeout`` seconds, a volume hangs; it has been stopped.
        """
        self.launch()
        self.wait_ready(timeout)

    def launch(self) -> None:
        """Begin to start; ``wait_ready`` ends it.  Many containers start faster this way."""
        if self._process is not None:
            raise FusewatchError("this container has been started before")
        ours, theirs = socket.socketpair()
        self._channel = ours
        os.makedirs(os.path.join(self.spec.stage, "rootfs"), exist_ok=True)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fusewatchd.demo.node.container_init"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                cwd="/",
                env=python_environment(),
            )
        self._cgroup_directory = cgroups.create(self.spec.cgroup)
        if self._cgroup_directory is None:
            self.cgroup_kind = CgroupKind.BOUND_FILE
            self._bind_cgroup_file()
            self._stand_in = cgroups.create_stand_in(self.spec.cgroup, self.pid)
        volumes = [
            {
                "source": volume.source,
                "mount_path": volume.mount_path,
                "propagation": volume.propagation.value,
                "read_only": volume.access is Access.READ_ONLY,
            }
            for volume in self.spec.volumes
        ]
        self._send(
            {
                "stage": self.spec.stage,
                "cgroup_directory": self._cgroup_directory,
                "has_user_namespace": self.spec.user_namespace is not None,
                "has_own_root": self.spec.root is RootKind.OWN_ROOT,
                "volumes": volumes,
            }
        )

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait for what ``launch`` began; raises as ``start`` does."""
        try:
            if self.spec.user_namespace is not None:
                self._expect_phase("user namespace", timeout)
                self._map_ids(self.spec.user_namespace)
            self._expect_phase("running", timeout)
        except (OSError, FusewatchError):
            self.stop()
            raise

    def stop(self, timeout: float = 5.0) -> None:
        """Kill the container and take its cgroup away; does nothing the second time.

        Raises:
            TimeoutError: the process cannot be killed: it waits for a hung FUSE server.
        """
        if self._process is None or self._channel is None:
            return
        self._channel.close()
        self._process.kill()
        try:
            self._process.wait(patient(timeout))
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"container {self._process.pid} cannot be killed") from error
        if self._stand_in:
            cgroups.remove_stand_in(self._stand_in)
        if self._cgroup_directory is not None:
            end = time.monotonic() + patient(timeout)
            while not cgroups.remove(self._cgroup_directory) and time.monotonic() < end:
                time.sleep(0.002)
            cgroups.remove(os.path.dirname(self._cgroup_directory))

    def kill(self) -> None:
        """SIGKILL without cleaning up, as the kernel's OOM killer would do it."""
        os.kill(self.pid, signal.SIGKILL)

    # ---------------------------------------------------------------------- commands

    def begin(self, do: str, **arguments: object) -> int:
        """Send a command (a method of ``container_init.Commands``) without waiting for it."""
        self._last_id += 1
        self._send({"id": self._last_id, "do": do, "arguments": arguments})
        return self._last_id

    def finish(self, request: int, timeout: float = 30.0) -> Any:
        """Return the value of a command sent by ``begin``.

        Raises:
            OSError: what the command failed with inside the container.
            TimeoutError: no answer in ``timeout`` seconds; it may still come.
            EOFError: the container is gone.
        """
        end = time.monotonic() + patient(timeout)
        while request not in self._answers:
            message = self._receive(end)
            self._answers[message["id"]] = message
        answer = self._answers.pop(request)
        if "errno" in answer:
            raise OSError(answer["errno"], answer["message"], answer["path"])
        return answer["value"]

    def call(self, do: str, *, timeout: float = 30.0, **arguments: object) -> Any:
        """Carry out one command; raises as ``finish`` does."""
        return self.finish(self.begin(do, **arguments), timeout)

    def read(self, path: str) -> str:
        """Return a file's content (UTF-8, surrogateescape)."""
        return str(self.call("read", path=path))

    def write(self, path: str, content: str) -> None:
        """Create or overwrite a file."""
        self.call("write", path=path, content=content)

    def list(self, path: str) -> list[str]:
        """Return a directory's names, sorted."""
        return list(self.call("list", path=path))

    def mountinfo(self) -> str:
        """Return the container's own mount table."""
        return str(self.call("mountinfo"))

    def wait_until_readable(
        self, path: str, deadline_seconds: float, interval: float = 0.0002
    ) -> float:
        """Open and read in a tight loop inside; returns when it first worked."""
        return float(
            self.call(
                "wait_until_readable",
                timeout=deadline_seconds + 10,
                path=path,
                seconds=patient(deadline_seconds),
                interval=interval,
            )
        )

    def start_open_loop(self, path: str, interval: float = 0.001) -> None:
        """Let a thread in the container open and read ``path`` every ``interval`` seconds."""
        self.call("start_open_loop", path=path, interval=interval)

    def open_loop(self, path: str) -> OpenLoopReport:
        """Return what the open loop has seen so far."""
        return _report(self.call("open_loop", path=path))

    def stop_open_loop(self, path: str) -> OpenLoopReport:
        """End the open loop and return what it saw."""
        return _report(self.call("stop_open_loop", path=path))

    # ----------------------------------------------------------------------- protocol

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise FusewatchError("the container has not been started")
        return self._process

    def _open_channel(self) -> socket.socket:
        if self._channel is None:
            raise FusewatchError("the container has not been started")
        return self._channel

    def _send(self, message: dict[str, Any]) -> None:
        self._open_channel().sendall(json.dumps(message).encode() + b"\n")

    def _receive(self, end: float) -> dict[str, Any]:
        channel = self._open_channel()
        while b"\n" not in self._received:
            channel.settimeout(max(0.001, end - time.monotonic()))
            part = channel.recv(1 << 20)
            channel.settimeout(None)
            if not part:
                raise EOFError(f"container {self.pid} is gone")
            self._received += part
        line, _, rest = self._received.partition(b"\n")
        self._received = bytearray(rest)
        message: dict[str, Any] = json.loads(line)
        return message

    def _expect_phase(self, phase: str, timeout: float) -> None:
        try:
            message = self._receive(time.monotonic() + patient(timeout))
        except EOFError as error:
            raise FusewatchError(f"the container ended before phase {phase!r}") from error
        if message["phase"] != phase:
            raise OSError(message["errno"], message["message"], message["path"])

    # ------------------------------------------------------------------ what only we may

    def _map_ids(self, ids: UserNamespace) -> None:
        """Write the id mapping and hand over idmapped mounts of the volumes."""
        pid = self.pid
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{name}", "w", encoding="utf-8") as file:
                file.write(f"0 {ids.first_id} {ids.count}")
        if self._cgroup_directory is not None:
            cgroups.give_away(self._cgroup_directory, ids.first_id)
        mounts: list[int] = []
        user_namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            for volume in self.spec.volumes:
                mounts.append(_idmapped_clone(volume, user_namespace))
            socket.send_fds(self._open_channel(), [b"."], mounts)
        finally:
            for fd in (user_namespace, *mounts):
                os.close(fd)

    def _bind_cgroup_file(self) -> None:
        """Bind a file over ``/proc/<pid>/cgroup``; the mount goes when the process does."""
        path = os.path.join(self.spec.stage, f"cgroup-{self.spec.container_id[:12]}")
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"0::{self.spec.cgroup}\n")
        target = f"/proc/{self.pid}/cgroup"
        syscalls.mount(path, target, None, syscalls.MS_BIND)
        syscalls.mount(None, target, None, syscalls.MS_PRIVATE)
        os.unlink(path)


_PROPAGATION_BITS = {
    MountPropagation.NONE: syscalls.MS_PRIVATE,
    MountPropagation.HOST_TO_CONTAINER: syscalls.MS_SLAVE,
}


def _idmapped_clone(volume: BoundVolume, user_namespace: int) -> int:
    """Clone a volume's mount with the container's ids, as runc does for ``hostUsers: false``."""
    propagation = _PROPAGATION_BITS.get(volume.propagation)
    if propagation is None:
        message = "Bidirectional propagation needs the host's users"
        raise OSError(errno.EINVAL, message, volume.source)
    fd = syscalls.open_tree(syscalls.AT_FDCWD, volume.source, syscalls.OPEN_TREE_CLONE)
    attributes = syscalls.MOUNT_ATTR_IDMAP
    if volume.access is Access.READ_ONLY:
        attributes |= syscalls.MOUNT_ATTR_RDONLY
    try:
        syscalls.mount_setattr(
            fd,
            attr_set=attributes,
            propagation=propagation,
            userns_fd=user_namespace,
            path=volume.source,
        )
    except OSError:
        os.close(fd)
        raise
    return fd


def _report(answer: dict[str, Any]) -> OpenLoopReport:
    transitions = tuple(Transition(*item) for item in answer["transitions"])
    return OpenLoopReport(answer["attempts"], transitions, answer["refused"], answer["longest"])
