#!/usr/bin/env python3
"""Run the tests of real mounts on real older kernels, each in a virtual machine.

    python3 tests/kernels/run.py [--kernel NAME ...] [--seconds N] [-- PYTEST ARGUMENTS]

As root on Debian.  What is missing of QEMU and its like is installed by apt; kernels and the
root file system are Debian's own packages, kept in ``build/kernels``.  Nothing is mounted on
this machine, and its apt sources are not touched.  Without KVM a machine is about ten times
slower than this one; the tests' patience is set for that.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import disks
import machine
from kernels import KERNELS, Kernel
from packages import fetch_kernel, install_tools

TOP = Path(__file__).resolve().parents[2]
BUILD = TOP / "build" / "kernels"
DEFAULT_SELECTION = (
    "tests/contract",
    "tests/integration/test_recovery.py",
    "tests/integration/test_containers.py",
    "tests/integration/test_other_servers.py",
    "tests/integration/test_watch_mount_table.py",
    "tests/integration/test_watch_servers.py",
    "tests/integration/test_watch_statmount.py",
    "tests/integration/test_probe.py",
    "tests/integration/test_hostile_cgroups.py",
    "tests/integration/test_reused_pids.py",
    "tests/integration/test_source_owner.py",
    "-m",
    "not slow",
)
"""What depends on the kernel, and ends in minutes."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    kernels: tuple[Kernel, ...]
    seconds: int
    patience: float
    workers: int
    pytest: tuple[str, ...]


def main() -> int:
    """Run every kernel that was asked for; return 1 when one of them failed."""
    options = _options()
    install_tools()
    BUILD.mkdir(parents=True, exist_ok=True)
    root = disks.root_file_system(BUILD)
    runs = [_run(kernel, root, options) for kernel in options.kernels]
    print()
    for run in runs:
        print(run.summary())
    return int(any(run.problem for run in runs))


def _options() -> Options:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kernel", action="append", choices=list(KERNELS), help="(all)")
    parser.add_argument("--seconds", type=int, default=900, help="limit for one kernel (900)")
    parser.add_argument("--patience", type=float, default=4.0, help="factor on deadlines (4)")
    parser.add_argument("--workers", type=int, default=4, help="tests at a time (4)")
    parser.add_argument("pytest", nargs="*", metavar="PYTEST ARGUMENT")
    arguments = parser.parse_args()
    return Options(
        kernels=tuple(KERNELS[name] for name in arguments.kernel or KERNELS),
        seconds=arguments.seconds,
        patience=arguments.patience,
        workers=arguments.workers,
        pytest=tuple(arguments.pytest) or DEFAULT_SELECTION,
    )


def _run(kernel: Kernel, root: Path, options: Options) -> machine.Run:
    directory = BUILD / kernel.suite
    unpacked = fetch_kernel(kernel, directory)
    place = machine.Place(
        kernel=kernel,
        image=disks.kernel_image(unpacked),
        initramfs=disks.initramfs(unpacked, root, directory / "initramfs"),
        root=root,
        checkout=disks.checkout(TOP, _script(options), directory / "checkout.tar"),
        results=directory / "results.tar",
        console=directory / "console.log",
    )
    return machine.run(place, options.seconds)


def _script(options: Options) -> str:
    tests = [
        "timeout", "--signal=INT", "--kill-after=20", str(max(60, options.seconds - 60)),
        "python3", "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider",
        "-n", str(options.workers), "-o", f"timeout={120 * options.patience:.0f}",
        "--junitxml=/results/junit.xml", *options.pytest,
    ]  # fmt: skip
    return f"""\
export FUSEWATCHD_PATIENCE={options.patience}
python3 -m tests.features | tee /results/features.json
exec {shlex.join(tests)}
"""


if __name__ == "__main__":
    sys.exit(main())
