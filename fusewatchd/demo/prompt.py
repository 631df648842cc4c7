"""``fusewatchd demo --keep``: the demo's node stays, and commands can be tried on it."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time

from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.node.sources import Source

COMMANDS = ("status", "explain", "recover", "pause", "resume", "check", "doctor", "config-show")
"""Those that need nothing but the runtime directory of the demo's daemon."""
DOWN_SECONDS = 0.3
"""How long the server is away in a crash."""


def prompt(daemon: DaemonProcess, source: Source, address: str) -> None:
    """Run what is typed, until an empty line or the end of the input."""
    print(
        "\nThe demo's node stays until you press Enter.  Try, here at the prompt:\n"
        "  status --all           all mounts and their state\n"
        "  explain batch          one pod: since when, why, what to do\n"
        "  kill                   the FUSE server dies; then look at status and explain\n"
        "  start                  it comes back, and fusewatchd recovers the pods\n"
        "  pause 10m, resume      maintenance: nothing is changed in between\n"
        f"And in a browser: http://{address}/status, http://{address}/metrics",
        flush=True,
    )
    is_down = False
    while True:
        print("demo> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line.strip():
            break
        try:
            words = shlex.split(line)
        except ValueError as exc:
            print(exc, flush=True)
            continue
        if words[0] in ("kill", "start"):
            is_down = _change(source, words[0], is_down=is_down)
        else:
            _run(daemon, words)
    if is_down:
        source.restart()


def _change(source: Source, word: str, *, is_down: bool) -> bool:
    """Kill the server, or start it again; return whether it is down afterwards."""
    if (word == "kill") == is_down:
        print("it is down already" if is_down else "it runs", flush=True)
    elif word == "kill":
        source.kill()
    else:
        source.restart()
        # What is typed next shows the state after the recovery.
        time.sleep(DOWN_SECONDS)
    return word == "kill"


def _run(daemon: DaemonProcess, words: list[str]) -> None:
    if words[0] == "fusewatchd":
        words = words[1:]
    if not words or words[0] not in COMMANDS:
        print(f"here you can type: kill, start, {', '.join(COMMANDS)}", flush=True)
        return
    settings = ["--set", f"runtime_dir={daemon.runtime_dir}"]
    subprocess.run(
        [sys.executable, "-m", "fusewatchd", *words, *settings],
        env=python_environment(),
        stdin=subprocess.DEVNULL,
        check=False,
    )
