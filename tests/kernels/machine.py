"""One virtual machine, from its boot to the results that it leaves."""

from __future__ import annotations

import json
import subprocess
import tarfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from kernels import Kernel

PROCESSORS = 2
MEMORY = "2G"
_RESULTS_SIZE = 32 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """The files that a machine is made of."""

    kernel: Kernel
    image: Path
    initramfs: Path
    root: Path
    checkout: Path
    results: Path
    console: Path


@dataclass(frozen=True, slots=True)
class Run:
    """How it went."""

    kernel: Kernel
    seconds: float
    problem: str
    release: str = "?"
    way: str = "?"
    counts: str = ""

    def summary(self) -> str:
        """Return one line for people."""
        verdict = f"FAILED: {self.problem}" if self.problem else "ok"
        what = f"{self.kernel.suite} (Linux {self.release}, way {self.way})"
        return f"{what}: {self.counts} in {self.seconds:.0f} s: {verdict}"


def run(place: Place, seconds: int) -> Run:
    """Boot, let the tests run, print what they say, and end within ``seconds``."""
    with place.results.open("wb") as file:
        file.truncate(_RESULTS_SIZE)
    print(f"\n=== {place.kernel.suite}", flush=True)
    began = time.monotonic()
    problem = ""
    machine = subprocess.Popen(_command(place), stdin=subprocess.DEVNULL)
    try:
        if machine.wait(seconds):
            problem = f"QEMU ended with status {machine.returncode}"
    except subprocess.TimeoutExpired:
        problem = f"not over after {seconds} s"
    finally:
        machine.kill()
        machine.wait()
    return _judge(place, time.monotonic() - began, problem)


def _command(place: Place) -> list[str]:
    command = [
        "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max",
        "-smp", str(PROCESSORS), "-m", MEMORY, "-nodefaults", "-no-reboot",
        "-display", "none", "-net", "none",
        "-kernel", str(place.image), "-initrd", str(place.initramfs),
        "-append", "console=ttyS0 panic=-1 mitigations=off",
        "-chardev", f"file,id=console,path={place.console}", "-serial", "chardev:console",
        "-chardev", "stdio,id=tests,signal=off", "-serial", "chardev:tests",
    ]  # fmt: skip
    disks = (
        # Changes to the root go to a temporary file.
        f"file={place.root},snapshot=on,cache=unsafe",
        f"file={place.checkout},readonly=on",
        f"file={place.results}",
    )
    for disk in disks:
        command += ["-drive", f"if=virtio,format=raw,{disk}"]
    return command


def _judge(place: Place, seconds: float, problem: str) -> Run:
    """Read what the machine left; what is not there has failed."""
    kernel = place.kernel
    try:
        with tarfile.open(place.results) as tar:
            files = {
                name: tar.extractfile(f"./{name}").read().decode()  # type: ignore[union-attr]
                for name in ("status", "features.json", "junit.xml")
            }
    except (tarfile.TarError, KeyError) as exc:
        return Run(kernel, seconds, problem or f"no results ({exc}); see {place.console}")
    found = json.loads(files["features.json"])
    suite = ElementTree.fromstring(files["junit.xml"]).find("testsuite")
    assert suite is not None
    number = {key: int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")}
    passed = number["tests"] - number["failures"] - number["errors"] - number["skipped"]
    counts = f"{passed} passed, {number['skipped']} not applicable"
    if bad := number["failures"] + number["errors"]:
        counts += f", {bad} failed"
    status = int(files["status"])
    if not problem and status:
        problem = f"pytest ended with status {status}"
    if not problem and (found["way"], set(found["lacks"])) != (kernel.way, kernel.lacks):
        problem = f"expected way {kernel.way}, without {sorted(kernel.lacks)}; found {found}"
    return Run(kernel, seconds, problem, found["release"], found["way"], counts)
