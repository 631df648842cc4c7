"""Run a test body on a demo node in a private world, and look for what it leaves behind.

    from tests.lab import in_lab

    @in_lab(timeout=60)
    def test_reads(node: DemoNode) -> None:
        source = node.add_source("one")
        pod = node.add_pod("app", [PodVolume("v", source)], [PodMount("v", "/data")])
        assert node.start_container(pod).read("/data/hello") == "one"

The body runs in a forked child: what it changes is not seen here, but its failure, skip and
output are.  Other arguments (fixtures, parameters) follow the node.  After the body the node
is closed; a mount below the lab or a process that is still there fails the test.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from enum import Enum
from typing import IO, Any, Concatenate, ParamSpec

import pytest

import fusewatchd
from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import DemoPod, PodMount, PodVolume
from fusewatchd.demo.node.sources import Source
from fusewatchd.demo.node.unmounting import mount_points_below
from fusewatchd.demo.node.world import NamespaceForbiddenError, PrivateWorld, run_in_private_world
from fusewatchd.demo.timeouts import patient
from fusewatchd.linux.mount_kernel import Way
from fusewatchd.linux.private_namespace import Staging
from fusewatchd.linux.running_kernel import RealKernel
from tests.features import Feature, best_way, lacking, needs_way, require_way

P = ParamSpec("P")


def _is_older(way: Way) -> bool:
    return list(Way).index(way) > list(Way).index(best_way())


WAYS = pytest.mark.parametrize(
    "way",
    [
        pytest.param(
            way.value,
            marks=[needs_way(way), *([pytest.mark.slow] if _is_older(way) else [])],
        )
        for way in Way
    ],
)
"""Every way of replacing a mount that this kernel has; older than its newest one is slow."""

_LEFTOVER_GRACE_SECONDS = 3.0


class LabFailure(AssertionError):
    """What failed in the lab, with the child's own traceback as text."""


def why_no_lab() -> str:
    """Return why real FUSE mounts cannot be made here, or nothing."""
    if os.geteuid() != 0:
        return "needs root"
    if not os.path.exists("/dev/fuse"):
        return "needs /dev/fuse"
    return ""


def in_lab(
    *, timeout: float = 60.0
) -> Callable[[Callable[Concatenate[DemoNode, P], None]], Callable[P, None]]:
    """Give a test a fresh ``DemoNode`` as its first argument; ``timeout`` is in seconds."""

    def decorate(test: Callable[Concatenate[DemoNode, P], None]) -> Callable[P, None]:
        @functools.wraps(test)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
            run_in_lab(lambda node: test(node, *args, **kwargs), timeout=timeout)

        signature = inspect.signature(test)
        rest = list(signature.parameters.values())[1:]
        # pytest must see the fixtures only, not the node.
        wrapper.__signature__ = signature.replace(parameters=rest)  # type: ignore[attr-defined]
        del wrapper.__dict__["__wrapped__"]
        limit = pytest.mark.timeout(patient(timeout + 30))
        marked: Callable[P, None] = pytest.mark.kernel(limit(wrapper))
        return marked

    return decorate


def run_in_lab(body: Callable[[DemoNode], Any], *, timeout: float = 60.0) -> Any:
    """Run ``body`` with a node in a private world; returns its (JSON-able) value.

    Raises:
        LabFailure: the body failed, left something behind, or ran into the deadline.
    """

    def with_node(world: PrivateWorld) -> Any:
        with DemoNode(world) as node:
            return body(node)

    return run_in_world(with_node, timeout=timeout)


def run_in_world(body: Callable[[PrivateWorld], Any], *, timeout: float = 60.0) -> Any:
    """As ``run_in_lab`` for a body that wants the bare world."""
    if problem := why_no_lab():
        pytest.skip(f"no lab: {problem}")
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile("w+") as outcome:
        try:
            with warnings.catch_warnings():
                # The forked child runs this thread only and leaves by os._exit.
                warnings.simplefilter("ignore", DeprecationWarning)
                status = run_in_private_world(
                    lambda world: _run_body(body, world, output.fileno(), outcome),
                    deadline_seconds=patient(timeout),
                )
        except NamespaceForbiddenError as error:
            pytest.skip(f"no lab: {error}")
        except TimeoutError:
            status = None
        output.seek(0)
        text = output.read().decode(errors="backslashreplace")
        outcome.seek(0)
        written = outcome.read()
    sys.stdout.write(text)
    if status is None:
        raise LabFailure(f"the lab did not end in {timeout} s; its output:\n{text}")
    if not written:
        raise LabFailure(f"the lab died with status {status}; its output:\n{text}")
    result = json.loads(written)
    if result["skipped"]:
        pytest.skip(result["skipped"])
    if result["failure"]:
        pytest.fail(result["failure"], pytrace=False)
    return result["value"]


def _run_body(
    body: Callable[[PrivateWorld], Any], world: PrivateWorld, output: int, outcome: IO[str]
) -> int:
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    result: dict[str, Any] = {"failure": "", "skipped": "", "value": None}
    runner = os.getpid()
    try:
        # As init's child we adopt what the body's children leave: nothing gets away unseen.
        _adopt_orphans()
        result["value"] = body(world)
        if left := leftovers(world):
            result["failure"] = "left behind in the lab: " + "; ".join(left)
    except pytest.skip.Exception as skipped:
        result["skipped"] = str(skipped) or "skipped in the lab"
    except BaseException:
        result["failure"] = traceback.format_exc()
    if os.getpid() != runner:
        # A child that the body forked came up here instead of leaving by os._exit.
        print(result["failure"], file=sys.stderr)
        os._exit(1)
    json.dump(result, outcome)
    outcome.flush()
    return 0


def _adopt_orphans() -> None:
    import ctypes

    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, ctypes.c_ulong(1), 0, 0, 0)


def leftovers(world: PrivateWorld) -> list[str]:
    """Return the mounts below the lab and the processes of ours that are still there."""
    left = [f"mount {path!r}" for path in mount_points_below(world.lab)]
    end = time.monotonic() + patient(_LEFTOVER_GRACE_SECONDS)
    while (children := _living_children()) and time.monotonic() < end:
        time.sleep(0.01)
    return left + [f"process {child}" for child in children]


def _living_children() -> list[str]:
    """Reap what has ended and describe the children that have not."""
    try:
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
    except ChildProcessError:
        return []
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="utf-8") as file:
        pids = file.read().split()
    return [f"{pid} {_command_line(pid)}" for pid in pids]


def _command_line(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().replace(b"\0", b" ").decode(errors="backslashreplace").strip()
    except OSError:
        return "(gone)"


def real_kernel(way: Way) -> RealKernel:
    """Return the mount calls of the running kernel; skips the test where it has no such way."""
    require_way(way)
    detached = way is Way.BENEATH and Feature.MOUNTS_ON_DETACHED not in lacking()
    staging = Staging()
    if not detached:
        staging.prepare()
    return RealKernel(way, staging, mounts_on_detached=detached)


def pod_with_container(node: DemoNode, source: Source, name: str) -> tuple[DemoPod, Container]:
    """Publish a source in a new pod, at ``/data`` of its only container."""
    pod = node.add_pod(name, [PodVolume("v", source)], [PodMount("v", "/data")])
    return pod, node.start_container(pod)


def fusewatchd_command(*arguments: str) -> list[str]:
    """Return the command line, for an environment of ``python_environment``."""
    return [sys.executable, "-m", "fusewatchd", *arguments]


def run_fusewatchd(*arguments: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person does, and return what it said."""
    return run_command(*fusewatchd_command(*arguments), timeout=timeout)


def run_command(*words: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run a command that finds this package; ``timeout`` is in seconds."""
    return subprocess.run(
        words,
        capture_output=True,
        text=True,
        cwd="/",
        env=python_environment(),
        timeout=patient(timeout),
        check=False,
    )


_AS_ORDINARY_USER = """
set -eu
mount -t tmpfs -o mode=755 fuse-device "$1"
mknod "$1/fuse" c 10 229
chmod 666 "$1/fuse"
mount --bind "$1/fuse" /dev/fuse
if [ "$2" = masked ]; then mount -t tmpfs masked /proc/fs; fi
shift 2
exec setpriv --reuid 65534 --regid 65534 --clear-groups -- sh -c 'exec "$@"' sh "$@"
"""
# The shell in between is no ornament: setpriv keeps its capabilities for the one exec it does.


class ProcView(Enum):
    """How an ordinary user sees /proc."""

    WHOLE = "whole"
    MASKED = "masked"
    """Part of it is covered, as container runtimes do: no new procfs may be mounted."""


def run_as_ordinary_user(
    arguments: Sequence[str], *, proc: ProcView = ProcView.WHOLE, timeout: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run ``python arguments...`` as uid 65534, with a /dev/fuse that it may open.

    The run-time packages are copied along.  Where /dev/fuse is not for everyone (0600 on a bare machine) a node of our own with mode
    0666 is bound over it in a private mount namespace.  The package is copied to where that
    user can read it, and the interpreter is the system's when ours is out of his reach.
    """
    if problem := why_no_lab():
        pytest.skip(f"no lab: {problem}")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        package = os.path.dirname(os.path.abspath(fusewatchd.__file__))
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(package, f"{directory}/fusewatchd", ignore=ignored)
        _copy_packages(directory)
        device = os.path.join(directory, "device")
        os.mkdir(device)
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _AS_ORDINARY_USER]
        return subprocess.run(
            [*enter, "sh", device, proc.value, _python_for_everyone(), *arguments],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": directory},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=patient(timeout),
            check=False,
        )


_RUN_TIME_PACKAGES = (
    "yaml", "sdnotify", "pyinotify", "prometheus_client", "asyncore",
    "requests", "urllib3", "idna", "certifi", "charset_normalizer",
)  # fmt: skip


def _copy_packages(directory: str) -> None:
    """Copy what a Python of another place does not have; what it has itself is not looked for."""
    for name in _RUN_TIME_PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None or "site-packages" not in spec.origin:
            continue
        if spec.submodule_search_locations:
            shutil.copytree(os.path.dirname(spec.origin), f"{directory}/{name}")
        else:
            shutil.copy(spec.origin, directory)


def _python_for_everyone() -> str:
    """Return an interpreter that any user can start."""
    for python in (sys.executable, "/usr/bin/python3"):
        probe = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]
        probe += ["sh", "-c", 'exec "$@"', "sh", python]
        code = "import sys; sys.exit(sys.version_info < (3, 10))"
        try:
            subprocess.run(
                [*probe, "-c", code], check=True, capture_output=True, timeout=patient(20)
            )
        except (subprocess.CalledProcessError, FileNotFoundError):
            continue
        return python
    raise LabFailure("no Python 3.10 or newer that an ordinary user can start")
