"""The command line as a person uses it."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest

from fusewatchd import __version__
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.node.pods import PodMount, PodVolume
from fusewatchd.model.verdicts import Verdict
from fusewatchd.status.document import exit_code, status_document
from fusewatchd.status.values import Clocks
from tests.lab import fusewatchd_command, in_lab, run_command, run_fusewatchd
from tests.unit.cycles import bind, cycle, finding


def sets(daemon: DaemonProcess) -> list[str]:
    return [word for key, value in daemon.values.items() for word in ("--set", f"{key}={value}")]


def test_a_good_file_is_fine(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("recovery: {mode: report}\n")
    done = run_fusewatchd("config-check", "--config", str(file))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file}: fine\n", "")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("recovery: {mode: never}", "recovery.mode: expected recover or report, found never"),
        ("web:\n  listen_address: [", "line 2: expected the node content"),
        ("log: {level: info}\nlog: {}", "line 2: key log stands twice"),
        ("nonsense: 1", "nonsense: no such key"),
    ],
)
@pytest.mark.parametrize("command", ["config-check", "run", "check"])
def test_a_bad_file_is_one_line(tmp_path: Path, command: str, text: str, line: str) -> None:
    file = tmp_path / "f.yaml"
    file.write_text(text)
    more = ["--any-namespace"] if command == "run" else []
    done = run_fusewatchd(command, "--config", str(file), *more)
    assert done.returncode == (78 if command == "run" else 2)
    assert done.stdout == ""
    assert done.stderr.splitlines()[0].startswith(f"{file}: {line}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["config-check", "run", "check"])
def test_a_file_that_others_can_write_is_refused_in_one_line(tmp_path: Path, command: str) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("look_seconds: 5\n")
    file.chmod(0o666)
    more = ["--any-namespace"] if command == "run" else []
    done = run_fusewatchd(command, "--config", str(file), *more)
    assert (done.returncode, done.stdout) == (78 if command == "run" else 2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{file}: expected root's, and that nobody else can write it")


def test_a_file_that_is_not_there_is_one_line() -> None:
    done = run_fusewatchd("run", "--any-namespace", "--config", "/no/such/file")
    assert (done.returncode, done.stderr) == (
        78,
        "/no/such/file: No such file or directory\n",
    )


def test_every_bad_flag_is_told_with_what_was_meant() -> None:
    values = ("--set", "recvery.mode=report", "--set", "log.levl=info")
    done = run_fusewatchd("run", "--any-namespace", *values)
    assert done.returncode == 78
    assert done.stderr.splitlines() == [
        "command line: recvery.mode: no such key; did you mean recovery?",
        "command line: log.levl: no such key; did you mean level?",
    ]


@pytest.mark.parametrize("command", [("check",), ("doctor",), ("doctor", "--json")])
def test_a_reader_that_has_seen_enough_is_no_error(command: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as gone:
        done = subprocess.run(
            [*fusewatchd_command(), *command],
            stdout=gone,
            stderr=subprocess.PIPE,
            env=python_environment(),
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_status_without_a_daemon_says_so(tmp_path: Path) -> None:
    done = run_fusewatchd("status", "--set", f"runtime_dir={tmp_path}")
    assert done.returncode == 2
    assert done.stderr == (
        f"no fusewatchd is running ({tmp_path}); start it: systemctl start fusewatchd,"
        " or look once: fusewatchd check\n"
    )


@in_lab(timeout=60)
def test_a_mount_namespace_of_its_own_is_refused(node: DemoNode) -> None:
    done = run_command("unshare", "--mount", *fusewatchd_command("run"))
    assert done.returncode == 2
    assert "mount namespace of its own" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@in_lab(timeout=90)
def test_check_and_status_from_healthy_to_stale_and_back(node: DemoNode) -> None:
    source = node.add_source("one")
    pod = node.add_pod("app", [PodVolume("v", source)], [PodMount("v", "/data")])
    node.start_container(pod)
    daemon = DaemonProcess(node)
    before = run_fusewatchd("check", *sets(daemon))
    assert before.returncode == 0, before.stderr
    assert "2 healthy" in before.stdout
    with daemon:
        daemon.wait_until_watching(2)
        status = run_fusewatchd("status", "--all", *sets(daemon))
        assert status.returncode == 0, status.stderr
        container_id = pod.containers["app"].spec.container_id[:12]
        assert f"{container_id}:/data" in status.stdout
        assert source.path in status.stdout
        source.kill()
        daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == 2)
        assert run_fusewatchd("status", *sets(daemon)).returncode == 1
        check = run_fusewatchd("check", "--json", *sets(daemon))
        assert check.returncode == 1
        assert json.loads(check.stdout)["totals"]["verdicts"]["stale"] == 2
        source.restart()
        daemon.wait_until_watching(2)
        assert run_fusewatchd("check", *sets(daemon)).returncode == 0


def test_status_watch_goes_on_after_an_answer_that_was_cut(tmp_path: Path) -> None:
    clocks = Clocks(1_700_000_000.0, 100.0, 1_699_999_000.0)
    whole = json.dumps(status_document(cycle(), clocks, version="1", way="beneath")).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "fusewatchd.sock"))
        server.listen(1)
        server.settimeout(20)
        watch = subprocess.Popen(
            fusewatchd_command("status", "--watch", "--json", "--set", f"runtime_dir={tmp_path}"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env=python_environment(),
        )
        for answer in (whole, whole[:100], b"", whole):
            client, _ = server.accept()
            with client:
                client.sendall(answer)
        assert watch.stdout is not None
        assert watch.stderr is not None
        documents = [json.loads(watch.stdout.readline()) for _ in range(2)]
        watch.send_signal(signal.SIGINT)
        watch.wait(10)
        assert [document["cycle"] for document in documents] == [1, 1]
        assert watch.stderr.read().count("the daemon ended in the middle of its answer") == 2
        watch.stdout.close()
        watch.stderr.close()


def test_a_watch_fits_its_terminal_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    clocks = Clocks(1_700_000_000.0, 100.0, 1_699_999_000.0)
    stale = [finding(bind(f"uid-{n}", volume=f"v{n}"), Verdict.STALE) for n in range(40)]
    made = status_document(cycle(*stale), clocks, version="1", way="beneath")
    ours, theirs = os.openpty()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "fusewatchd.sock"))
        server.listen(1)
        server.settimeout(20)
        watch = subprocess.Popen(
            fusewatchd_command("status", "-w", "--set", f"runtime_dir={tmp_path}"),
            stdout=theirs,
            cwd="/",
            env={**python_environment(), "COLUMNS": "80", "LINES": "12", "NO_COLOR": "1"},
        )
        os.close(theirs)
        client, _ = server.accept()
        with client:
            client.sendall(json.dumps(made).encode())
        shown = ""
        while "Next: " not in shown:
            shown += os.read(ours, 1 << 16).decode()
        watch.send_signal(signal.SIGINT)
        assert watch.wait(20) == 1
        while not shown.endswith("\x1b[?1049l"):
            shown += os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert shown.startswith("\x1b[?1049h")
    screen = shown.partition("\x1b[2J")[2].partition("\x1b[?25h")[0].splitlines()
    assert screen[0].startswith("40 of 40 mounts broken (40 stale)")
    assert [len(line) <= 80 for line in screen] == [True] * 11
    assert screen[-2].endswith(" more lines)")


@in_lab(timeout=60)
def test_status_watch_goes_on_over_a_restart_until_interrupted(node: DemoNode) -> None:
    source = node.add_source("one")
    node.add_pod("app", [PodVolume("v", source)], [])
    with DaemonProcess(node) as daemon:
        daemon.wait_until_watching(1)
        watch = subprocess.Popen(
            fusewatchd_command("status", "--watch", "--json", *sets(daemon)),
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            env=python_environment(),
        )
        assert watch.stdout is not None
        documents = [json.loads(watch.stdout.readline())]
        daemon.stop()
        daemon.start()
        # Until the new daemon has looked at everything: what it does not know yet is exit status 2.
        while len({d["started_at"] for d in documents}) < 2 or exit_code(documents[-1]) != 0:
            documents.append(json.loads(watch.stdout.readline()))
        watch.send_signal(signal.SIGINT)
        assert watch.wait(10) == 0
        watch.stdout.close()
    assert documents[0]["printed_at"] < documents[-1]["printed_at"]


@in_lab(timeout=60)
def test_a_bad_file_at_reload_keeps_the_old_settings(node: DemoNode) -> None:
    source = node.add_source("one")
    node.add_pod("app", [PodVolume("v", source)], [])
    file = Path(node.lab) / "config.yaml"
    file.write_text("recovery: {mode: report}\n")
    with DaemonProcess(node, config=str(file)) as daemon:
        daemon.wait_until_watching(1)
        file.write_text("recovery: {mode: never}\n")
        os.kill(daemon.pid, signal.SIGHUP)
        wait_for_log(daemon, "configuration not reloaded")
        assert "expected recover or report, found never" in daemon.log()
        file.write_text("recovery: {mode: recover}\n")
        file.chmod(0o666)
        os.kill(daemon.pid, signal.SIGHUP)
        wait_for_log(daemon, "others can (mode 0666)")
        file.chmod(0o644)
        source.kill()
        source.restart()
        daemon.wait_for(lambda d: d["binds"][0]["refusal"] == "report_only")
        file.write_text("recovery: {mode: recover}\n")
        os.kill(daemon.pid, signal.SIGHUP)
        wait_for_log(daemon, "configuration reloaded")
        daemon.wait_until_watching(1)


def wait_for_log(daemon: DaemonProcess, text: str) -> None:
    end = time.monotonic() + 10
    while text not in daemon.log():
        assert time.monotonic() < end, daemon.log()
        time.sleep(0.02)


@in_lab(timeout=90)
def test_a_second_daemon_goes_away_and_the_first_one_stays(node: DemoNode) -> None:
    with DaemonProcess(node) as first:
        document = first.status()
        done = run_fusewatchd("run", "--any-namespace", *sets(first))
        assert done.returncode == 2
        line = f"runtime_dir {first.runtime_dir}: another fusewatchd runs (pid {first.pid})\n"
        assert (done.stdout, done.stderr) == ("", line)
        assert first.status()["started_at"] == document["started_at"]


@in_lab(timeout=90)
def test_what_a_killed_daemon_left_is_taken_over(node: DemoNode) -> None:
    with DaemonProcess(node) as first:
        socket_path = os.path.join(first.runtime_dir, "fusewatchd.sock")
        left = os.stat(socket_path).st_ino
        os.kill(first.pid, signal.SIGKILL)
        with DaemonProcess(node) as second:
            end = time.monotonic() + 20
            while os.stat(socket_path).st_ino == left:
                assert time.monotonic() < end, second.log()
                time.sleep(0.01)
            assert second.status()["cycle"] >= 1


@pytest.mark.parametrize(("group", "mode"), [("daemon", 0o660), ("no-such-group", 0o600)])
@in_lab(timeout=60)
def test_a_group_for_the_status(node: DemoNode, group: str, mode: int) -> None:
    with DaemonProcess(node, settings={"status_group": group}) as daemon:
        wait_for_log(daemon, "started")
        found = os.stat(os.path.join(daemon.runtime_dir, "fusewatchd.sock"))
        assert stat.S_IMODE(found.st_mode) == mode
        assert ("status is for root alone" in daemon.log()) is (mode == 0o600)
        assert daemon.status()["cycle"] >= 1


@in_lab(timeout=60)
def test_an_abort_by_the_watchdog_leaves_all_stacks_in_the_log(node: DemoNode) -> None:
    with DaemonProcess(node) as daemon:
        daemon.status()
        os.kill(daemon.pid, signal.SIGABRT)
        wait_for_log(daemon, "Current thread")
        wait_for_log(daemon, 'daemon.py", line ')
        assert "Fatal Python error: Aborted" in daemon.log()
        daemon.start()  # which is stopped in the end


def test_the_version_says_what_it_runs_on() -> None:
    done = run_fusewatchd("version", "--json")
    document = json.loads(done.stdout)
    assert document["version"] == __version__
    assert document["kernel"] == os.uname().release
    assert document["libraries"]["pyyaml"]
    assert run_fusewatchd("version").stdout.startswith(f"fusewatchd {__version__}, Python 3.")
