"""What FUSE servers of others show: a directory, an image, an sshd and an S3 bucket on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.timeouts import patient
from fusewatchd.linux import syscalls

BUCKET_SERVER = Path(__file__).parent / "servers" / "s3_bucket.py"
SSHD = "/usr/sbin/sshd"
_START_SECONDS = 20.0
_PORT_TRIES = 5

_SSHD_CONFIG = """
ListenAddress 127.0.0.1:{port}
HostKey {directory}/host
AuthorizedKeysFile {directory}/user.pub
PermitRootLogin prohibit-password
PidFile none
StrictModes no
Subsystem sftp internal-sftp
UsePAM no
"""
_SSH_CONFIG = """
Host lab
  HostName 127.0.0.1
  Port {port}
  User root
  HostKeyAlias lab
  UserKnownHostsFile {directory}/known
  IdentityFile {directory}/user
  IdentitiesOnly yes
"""
_RCLONE_CONFIG = """
[lab]
type = s3
provider = Other
access_key_id = user
secret_access_key = secret
endpoint = {url}
"""


@contextmanager
def backends(lab: str, files: dict[str, str]) -> Iterator[Backends]:
    """Show some files by whatever is asked for, until the end of a ``with`` block."""
    with ExitStack() as stack:
        yield Backends(lab, files, stack)


class Backends:
    """One directory, and servers that have the same files, started when first asked for."""

    def __init__(self, lab: str, files: dict[str, str], stack: ExitStack) -> None:
        """Made by ``backends``; ``stack`` ends what is started."""
        self.directory = os.path.join(lab, "content")
        self._lab = lab
        self._stack = stack
        for name, content in files.items():
            path = Path(self.directory, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")

    @cached_property
    def image(self) -> str:
        """A squashfs image."""
        path = os.path.join(self._lab, "image.squashfs")
        command = ["mksquashfs", self.directory, path, "-quiet", "-no-progress"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return path

    @cached_property
    def ssh_config(self) -> str:
        """An ssh client's configuration, to which the host ``lab`` is an sshd with its own keys."""
        directory = os.path.join(self._lab, "ssh")
        os.mkdir(directory, 0o700)
        for name in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{directory}/{name}"]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        public_key = Path(directory, "host.pub").read_text(encoding="ascii")
        Path(directory, "known").write_text(f"lab {public_key}", encoding="ascii")
        self._make_privilege_separation_directory()
        port = self._start_sshd(directory)
        path = Path(directory, "client.conf")
        path.write_text(_SSH_CONFIG.format(directory=directory, port=port), encoding="ascii")
        return str(path)

    @cached_property
    def s3_url(self) -> str:
        """An S3 server; the bucket is called ``bucket``, the user ``user``, ``secret``."""
        process = self._start(
            [sys.executable, str(BUCKET_SERVER), self.directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        assert url, "the S3 server did not start"
        return url

    @cached_property
    def s3_password_file(self) -> str:
        """The user of the S3 server, for s3fs."""
        path = os.path.join(self._lab, "s3-password")
        with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
            file.write("user:secret")
        return path

    @cached_property
    def rclone_config(self) -> str:
        """rclone's configuration, to which the remote ``lab`` is the S3 server."""
        path = os.path.join(self._lab, "rclone.conf")
        Path(path).write_text(_RCLONE_CONFIG.format(url=self.s3_url), encoding="ascii")
        return path

    def _make_privilege_separation_directory(self) -> None:
        """Debian's sshd insists on it, and it is there only once the service has run."""
        if not os.path.isdir("/run/sshd"):
            syscalls.mount("run", "/run", "tmpfs", 0, "mode=755")
            os.mkdir("/run/sshd", 0o755)

    def _start_sshd(self, directory: str) -> int:
        """Return the port.  A free one may be somebody else's a moment later."""
        for _ in range(_PORT_TRIES):
            with socket.create_server(("127.0.0.1", 0)) as taken:
                port = int(taken.getsockname()[1])
            config = Path(directory, "server.conf")
            config.write_text(_SSHD_CONFIG.format(directory=directory, port=port), encoding="ascii")
            process = self._start([SSHD, "-D", "-e", "-f", str(config)])
            if _answers(process, port):
                return port
        raise AssertionError("sshd did not start")

    def _start(
        self,
        command: list[str],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start what ends with the test."""
        process = subprocess.Popen(
            command, stdin=stdin, stdout=stdout, cwd="/", env=python_environment()
        )
        self._stack.enter_context(process)
        self._stack.callback(process.terminate)
        return process


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until sshd answers; false if it has ended instead."""
    end = time.monotonic() + patient(_START_SECONDS)
    while process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=patient(5)) as client:
                if client.recv(4) == b"SSH-":
                    return process.poll() is None
        except OSError:
            assert time.monotonic() < end, "sshd does not answer"
        time.sleep(0.005)
    return False
