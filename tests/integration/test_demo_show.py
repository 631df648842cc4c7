"""The demo as a person sees it."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.lab import ProcView, run_as_ordinary_user, run_fusewatchd, why_no_lab

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
    assert re.search(r"recovered 9 binds in [0-9.]+ ms", told)
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
