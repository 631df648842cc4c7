"""A booted machine that plays a Kubernetes node, as the tests see it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusewatchd.demo.timeouts import patient
from tests.packaging.images import image
from tests.packaging.machine import Machine

TOP = Path(__file__).resolve().parents[2]
PACKAGES = "/packages"
STAGE = "/opt/stage"
UNIT = "fusewatchd.service"
DEADLINE = 30.0
METRICS = "http://127.0.0.1:9847/metrics"

_VOLATILE = ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/cache", "/var/log", "/srv/node",
             "/var/lib/apt", "/var/lib/dpkg", "/var/lib/rpm", "/usr/lib/sysimage", "/root",
             "/var/tmp", "/var/lib/systemd", "/var/backups")  # fmt: skip
"""Places of which packages say nothing."""


@dataclass(slots=True)
class PackagedNode:
    """The machine, and what happens on it."""

    machine: Machine
    stage: subprocess.Popen[str]

    def do(self, what: str, **arguments: object) -> Any:
        """Let something happen on the node: a method of ``stage.Stage``."""
        assert self.stage.stdin is not None
        assert self.stage.stdout is not None
        self.stage.stdin.write(json.dumps({"do": what, "with": arguments}) + "\n")
        self.stage.stdin.flush()
        line = self.stage.stdout.readline()
        assert line, f"the stage ended at {what}"
        answer = json.loads(line)
        assert "error" not in answer, f"{what}: {answer['error']}\n{self.journal('-n', '60')}"
        return answer["value"]

    def add(self, name: str, *, command: tuple[str, ...] = (), user_id: int = 0) -> None:
        """Start a FUSE server and a pod that uses it."""
        self.do("add", name=name, command=command, user_id=user_id)

    def reads(self, name: str) -> bool:
        """Wait until the pod reads its volume."""
        return bool(self.do("read", name=name, seconds=patient(DEADLINE)) == name)

    def tables(self) -> dict[str, str]:
        """Return the mount tables of host and containers, mount ids and all."""
        tables: dict[str, str] = self.do("tables")
        return tables

    # ------------------------------------------------------------------------ the service

    def install(self, package: Path, *options: str) -> str:
        """Install, upgrade or downgrade by apt; return what it said."""
        words = ("apt-get", "install", "--yes", *options, f"{PACKAGES}/{package.name}")
        done = self.machine.run(*words)
        return done.stdout + done.stderr

    def show(self, name: str) -> str:
        """Return a property of the service."""
        return self.machine.output("systemctl", "show", "--value", "--property", name, UNIT)

    @property
    def pid(self) -> int:
        """The daemon's process, as the machine numbers it."""
        pid = int(self.show("MainPID"))
        assert pid, "the daemon does not run"
        return pid

    def wait_until_up(self, besides: int = 0) -> int:
        """Wait until the service is active, with another process than ``besides``."""

        def is_up() -> bool:
            pid = int(self.show("MainPID"))
            return self.show("ActiveState") == "active" and pid not in (0, besides)

        self.machine.wait_for(is_up)
        return self.pid

    def wait_until_watching(self, binds: int) -> None:
        """Wait until so many binds are known and healthy."""
        self.machine.wait_for(lambda: self.healthy() >= binds)

    def healthy(self) -> int:
        """Return how many binds are healthy."""
        return sum(bind["verdict"] == "healthy" for bind in self.status()["binds"])

    def status(self) -> Any:
        """Return the status document."""
        text = self.machine.run("fusewatchd", "status", "--json", check=False).stdout
        return json.loads(text) if text else {"binds": []}

    def journal(self, *options: str) -> str:
        """Return what the service has logged."""
        return self.machine.output("journalctl", "-u", UNIT, "-o", "cat", "--no-pager", *options)

    def entries(self, event: str) -> list[dict[str, Any]]:
        """Return the entries of the service's log whose event begins like that, oldest first."""
        text = self.machine.output("journalctl", "-u", UNIT, "-o", "json", "--all", "--no-pager")
        found = [json.loads(line) for line in text.splitlines()]
        return [one for one in found if str(one.get("FUSEWATCHD_EVENT", "")).startswith(event)]

    def metric(self, start: str) -> float:
        """Return the sum of the samples whose line starts like that."""
        page = self.machine.output("curl", "--silent", "--fail", METRICS)
        return sum(float(x.split()[-1]) for x in page.splitlines() if x.startswith(start))

    def write(self, path: str, content: str) -> None:
        """Write a file on the machine."""
        script = 'mkdir -p "$(dirname "$1")"; printf %s "$2" > "$1"'
        self.machine.run("sh", "-c", script, "sh", path, content)

    def drop_in(self, name: str, content: str) -> None:
        """Give the service a drop-in until the machine ends; an empty one is taken away."""
        path = f"/run/systemd/system/{UNIT}.d/{name}.conf"
        if content:
            self.write(path, f"[Service]\n{content}\n")
        else:
            self.machine.run("rm", path)
        self.machine.run("systemctl", "daemon-reload")

    def files(self) -> set[str]:
        """Return every file whose coming and going is a package's business."""
        prune = [w for path in _VOLATILE for w in ("-path", path, "-prune", "-o")]
        found = self.machine.output("find", "/", "-xdev", *prune, "-print").splitlines()
        return {path for path in found if "__pycache__" not in path or "fusewatchd" in path}

    def processes(self) -> list[str]:
        """Return the command names of all processes of ours."""
        names = self.machine.output("ps", "-e", "-o", "comm=").split()
        return [name for name in names if name.startswith("fusewatchd")]


@contextmanager
def packaged_node(suite: str, packages: Path) -> Iterator[PackagedNode]:
    """Boot a machine in which ``packages`` are at hand, and start the stage in it."""
    with tempfile.TemporaryDirectory() as directory:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(TOP / "fusewatchd", f"{directory}/fusewatchd", ignore=ignored)
        for program in ("stage.py", "sandbox_probe.py"):
            shutil.copy(Path(__file__).with_name(program), directory)
        shared = {packages: PACKAGES, Path(directory): STAGE}
        with Machine(image(suite), shared=shared) as machine:
            command = ["systemd-run", "--quiet", "--pipe", "--wait", "--unit=stage"]
            command += ["--setenv=PYTHONDONTWRITEBYTECODE=1"]
            stage = machine.start([*command, "/usr/bin/python3", f"{STAGE}/stage.py"])
            try:
                yield PackagedNode(machine, stage)
            finally:
                assert stage.stdin is not None
                stage.stdin.close()
                with suppress(subprocess.TimeoutExpired):
                    stage.wait(patient(DEADLINE))
                stage.kill()
                stage.wait()
