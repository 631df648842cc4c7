"""The demo as a person sees it."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.lab import ProcView, fusewatchd_command, run_as_ordinary_user, run_fusewatchd, why_no_lab

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

PODS = ("web", "batch", "reader", "notebook")


def check_story(told: str) -> None:
    assert told.count("the FUSE server is killed") == 3
    assert told.count("Transport endpoint is not connected: web, batch, reader, notebook") == 3
    for pod in PODS:
        assert len(re.findall(rf"{pod} reads again, [0-9.]+ ms after that", told)) == 3
        assert re.search(rf"Warning {pod} +FuseMountStale +x3 ", told)
        assert re.search(rf"Normal +{pod} +FuseMountRecovered +x3 ", told)
    assert 'fusewatchd_events_total{outcome="posted"} 24.0' in told
    assert re.search(r"recovered 9 mounts in [0-9.]+ ms", told)
    assert told.rstrip().endswith("Everything works again.")


@pytest.mark.parametrize("server", ["", "bindfs -f {backing} {mount}"], ids=["own", "bindfs"])
def test_as_root(server: str) -> None:
    if problem := why_no_lab() or ("" if shutil.which("bindfs") else "needs bindfs"):
        pytest.skip(problem)
    with open("/proc/self/mountinfo") as file:
        before = file.read()
    done = run_fusewatchd("demo", *(["--server", server] if server else []), timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    check_story(done.stdout)
    with open("/proc/self/mountinfo") as file:
        assert file.read() == before


@pytest.mark.parametrize("view", ProcView)
def test_as_an_ordinary_user(view: ProcView) -> None:
    done = run_as_ordinary_user(["-m", "fusewatchd", "demo"], proc=view, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    check_story(done.stdout)


def test_a_server_that_does_not_start_is_said() -> None:
    if problem := why_no_lab():
        pytest.skip(problem)
    done = run_fusewatchd("demo", "--server", "false {mount}", timeout=100)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_it_stays_for_commands_until_an_empty_line() -> None:
    if problem := why_no_lab():
        pytest.skip(problem)
    typed = "nonsense\nstatus --all\nkill\nkill\nexplain batch\nstart\nfusewatchd status\n\n"
    done = subprocess.run(
        fusewatchd_command("demo", "--keep"),
        input=typed, capture_output=True, text=True, timeout=150, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    story, _, kept = done.stdout.partition("stays until you press Enter")
    assert story.count("the FUSE server is killed") == 3
    assert kept.count("demo> ") == 8
    assert "here you can type: kill, start, status" in kept
    assert "it is down already" in kept
    assert "source_missing" in kept.partition("it is down already")[2]
    assert kept.rstrip().endswith("Everything works again.")
