"""Ansible's way into a booted machine: ``ansible_connection: nsenter``, the host's name its pid."""

from __future__ import annotations

import shlex
import subprocess

from ansible.plugins.connection import ConnectionBase

DOCUMENTATION = """
name: nsenter
short_description: run in the namespaces of a process
description: For tests on booted machines.
options: {}
"""


class Connection(ConnectionBase):
    """Runs everything as root by nsenter(1)."""

    transport = "nsenter"
    has_pipelining = True

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def _run(self, command: str, data: bytes | None = None) -> tuple[int, bytes, bytes]:
        leader = self._play_context.remote_addr
        enter = ["nsenter", "--target", leader, "--all", "--wd", "--"]
        done = subprocess.run([*enter, "sh", "-c", command], input=data, capture_output=True)
        return done.returncode, done.stdout, done.stderr

    def exec_command(
        self, cmd: str, in_data: bytes | None = None, sudoable: bool = True
    ) -> tuple[int, bytes, bytes]:
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        return self._run(cmd, in_data)

    def put_file(self, in_path: str, out_path: str) -> None:
        super().put_file(in_path, out_path)
        with open(in_path, "rb") as file:
            self._run(f"cat > {shlex.quote(out_path)}", file.read())

    def fetch_file(self, in_path: str, out_path: str) -> None:
        super().fetch_file(in_path, out_path)
        with open(out_path, "wb") as file:
            file.write(self._run(f"cat {shlex.quote(in_path)}")[1])

    def close(self) -> None:
        self._connected = False
