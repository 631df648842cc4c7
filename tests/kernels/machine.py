"""One virtual machine, from its boot to the results that it leaves."""

from __future__ import annotations

import json
import subprocess
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from kernels import Kernel

PROCESSORS = 2
MEMORY = "2G"
_RESULTS_SIZE = 32 << 20
_RESULTS = ("status", "features.json", "junit.xml")


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
class Counts:
    """Tests by how they ended; what is not applicable, by the feature that it needs."""

    passed: int = 0
    failed: int = 0
    not_applicable: tuple[tuple[str, str], ...] = ()
    """Reason and name of each."""


@dataclass(frozen=True, slots=True)
class Run:
    """How it went."""

    kernel: Kernel
    seconds: float
    problem: str
    release: str = "unknown"
    way: str = "unknown"
    counts: Counts = Counts()

    def summary(self) -> str:
        """Return one line for people."""
        counts = self.counts
        return (
            f"{self.kernel.suite}: Linux {self.release}, way {self.way}: {counts.passed} passed, "
            f"{counts.failed} failed, {len(counts.not_applicable)} not applicable "
            f"in {self.seconds:.0f} s: {self.problem or 'ok'}"
        )


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
        # On a busy machine the timer may seem not to work: the kernel is told not to try it.
        "-append", "console=ttyS0 panic=-1 mitigations=off no_timer_check",
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
        files = _read_results(place.results)
    except (tarfile.TarError, KeyError) as exc:
        problem = problem or f"no results ({exc}); its console is in {place.console}"
        return Run(kernel, seconds, problem)
    found = json.loads(files["features.json"])
    if found["way"] != kernel.way or set(found["lacks"]) != kernel.lacks:
        problem = problem or f"expected {kernel}, found {found}"
    if status := int(files["status"]):
        problem = problem or f"pytest ended with status {status}"
    counts = _count(files["junit.xml"])
    for reason in sorted({reason for reason, _ in counts.not_applicable}):
        print(f"\nNot applicable: {reason}")
        for name in (name for why, name in counts.not_applicable if why == reason):
            print(f"    {name}")
    return Run(kernel, seconds, problem, found["release"], found["way"], counts)


def _read_results(archive: Path) -> dict[str, str]:
    files = {}
    with tarfile.open(archive) as tar:
        for name in _RESULTS:
            file = tar.extractfile(f"./{name}")
            assert file is not None, f"{name} is no file"
            files[name] = file.read().decode()
    return files


def _count(junit: str) -> Counts:
    passed = failed = 0
    not_applicable = []
    for case in ElementTree.fromstring(junit).iter("testcase"):
        skipped = case.find("skipped")
        if skipped is not None:
            name = f"{case.get('classname')}::{case.get('name')}"
            not_applicable.append((skipped.get("message", ""), name))
        elif case.find("failure") is not None or case.find("error") is not None:
            failed += 1
        else:
            passed += 1
    return Counts(passed, failed, tuple(not_applicable))
