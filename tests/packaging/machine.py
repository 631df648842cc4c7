"""A Debian that is really booted, systemd and all, in a container of systemd-nspawn.

Its root is an overlay over a release's image, and what is written goes with it: every machine
is a new one.  Only systemd-nspawn makes the container; see its manual page for what each
option is.  Nothing of it is mounted outside of namespaces of its own.
"""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from fusewatchd.demo.timeouts import patient

BOOT_SECONDS = 60.0
STOP_SECONDS = 20.0
COMMAND_SECONDS = 60.0
_POWER_OFF = signal.SIGRTMIN + 4
_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}
_SET_UP = """
set -eu
image=$1 root=$2
shift 2
mount -t tmpfs -o mode=755 machine "$root"
mkdir "$root/upper" "$root/work" "$root/merged"
mount -t overlay -o "lowerdir=$image,upperdir=$root/upper,workdir=$root/work" root "$root/merged"
exec "$@"
"""
# nspawn's /sys has no fusectl.
_FUSECTL = """
set -eu
mount -o remount,rw /sys
mkdir -p /sys/fs/fuse/connections
mount -t fusectl none /sys/fs/fuse/connections
mount -o remount,ro /sys
"""


class Machine:
    """One booted machine; a context manager."""

    def __init__(self, image: Path, *, shared: dict[Path, str]) -> None:
        """Describe it; ``shared`` directories of ours are seen in it, read-only."""
        self.name = f"fusewatchd-{secrets.token_hex(3)}"
        self._image = image
        self._shared = shared
        self._place = tempfile.TemporaryDirectory(prefix=self.name)
        self._console = Path(self._place.name, "console")
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> Machine:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self) -> None:
        root = Path(self._place.name, "root")
        root.mkdir()
        for group in self._cgroups():
            group.mkdir()
        binds = [f"--bind-ro={ours}:{theirs}" for ours, theirs in self._shared.items()]
        nspawn = [
            "systemd-nspawn", "--quiet", "--boot", "--directory", f"{root}/merged",
            "--machine", self.name, "--hostname=node", "--private-network", "--register=no",
            "--keep-unit", "--console=pipe", "--capability=all", "--bind=/dev/fuse", *binds,
        ]  # fmt: skip
        procs = [str(group / "cgroup.procs") for group in self._cgroups()]
        move = "".join(f"echo $$ > {shlex.quote(path)}\n" for path in procs)
        unshare = ["unshare", "--mount", "--propagation", "private"]
        set_up = ["bash", "-c", move + _SET_UP, "set-up", str(self._image), str(root)]
        environ = {"SYSTEMD_SECCOMP": "0", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        with self._console.open("wb") as console:
            self._process = subprocess.Popen(
                [*unshare, *set_up, *nspawn],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={**os.environ, **environ},
                start_new_session=True,
            )
        self.wait_for(self._is_up, BOOT_SECONDS)
        self.run("bash", "-c", _FUSECTL)

    def _is_up(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"it did not boot:\n{self._console.read_text(errors='replace')}")
        self._leader = self._leader or self._find_leader()
        if not self._leader:
            return False
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def _find_leader(self) -> int:
        """Return the pid of the machine's init; 0 while there is none."""
        assert self._process is not None
        pid = self._process.pid
        with suppress(OSError):
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    return int(child)
        return 0

    def _cgroups(self) -> Iterator[Path]:
        """Yield a cgroup of its own in each hierarchy: without one it would use the root's."""
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            words = after.split()
            if words[0] == "cgroup2" or (words[0] == "cgroup" and "name=systemd" in words[2]):
                yield Path(before.split()[4], self.name)

    def stop(self) -> None:
        """Shut down; whatever does not follow is killed by its cgroup.  Safe to repeat."""
        if self._process is not None:
            if self._leader and self._process.poll() is None:
                with suppress(ProcessLookupError):
                    os.kill(self._leader, _POWER_OFF)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(patient(STOP_SECONDS))
            for group in self._cgroups():
                with suppress(OSError):
                    (group / "cgroup.kill").write_text("1")
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait(patient(STOP_SECONDS))
            self._process = None
            self._leader = 0
        for group in self._cgroups():
            for directory, _, _ in os.walk(group, topdown=False):
                with suppress(OSError):
                    os.rmdir(directory)
        self._place.cleanup()

    # ---------------------------------------------------------------------------- inside

    @property
    def leader(self) -> int:
        """The pid of the machine's init here."""
        return self._leader

    def command(self, *words: str) -> list[str]:
        """Return the command line that runs ``words`` in the machine."""
        return ["nsenter", "--target", str(self._leader), "--all", "--wd", "--", *words]

    def run(
        self, *words: str, check: bool = True, timeout: float = COMMAND_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine.

        Raises:
            AssertionError: it failed, unless ``check`` is false; with all that it said.
        """
        done = subprocess.run(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=patient(timeout),
            env=_ENVIRONMENT,
            start_new_session=True,
        )
        if check and done.returncode:
            raise AssertionError(
                f"{shlex.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def output(self, *words: str) -> str:
        """Run a command and return what it printed, without the last newline."""
        return self.run(*words).stdout.rstrip("\n")

    def start(self, words: Sequence[str]) -> subprocess.Popen[str]:
        """Start a command that is talked to."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command(*words),
            stdin=pipe,
            stdout=pipe,
            text=True,
            env=_ENVIRONMENT,
            start_new_session=True,
        )

    def path(self, path: str) -> Path:
        """Return a path that leads from here to the machine's ``path``, no links followed."""
        return Path(f"/proc/{self._leader}/root{path}")

    def wait_for(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        """Wait until a condition holds.

        Raises:
            TimeoutError: it does not.
        """
        end = time.monotonic() + patient(seconds)
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"not reached in {seconds} s: {condition}")
            time.sleep(0.1)
