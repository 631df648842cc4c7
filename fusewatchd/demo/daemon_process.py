"""The real daemon as a process of its own, on a demo node."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from fusewatchd.demo.environment import python_environment
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.timeouts import patient
from fusewatchd.errors import ParseError
from fusewatchd.serve.status_socket import CLIENT_SECONDS, ask


class DaemonProcess:
    """``fusewatchd run`` with a configuration that fits the node."""

    def __init__(
        self,
        node: DemoNode,
        *,
        way: str = "",
        settings: dict[str, str] | None = None,
        config: str = "",
        as_old_kernel: bool = False,
        environment: dict[str, str] | None = None,
        by: Sequence[str] = (),
    ) -> None:
        """Prepare the command line; ``start`` runs it with ``values`` as they are then.

        ``by`` is a command that runs it, as unshare(1) does.
        """
        self._by = by
        self._environment = environment or python_environment()
        self.runtime_dir = os.path.join(node.lab, "run")
        self.log_path = os.path.join(node.lab, "fusewatchd.log")
        self.values = {
            "node_name": node.name,
            "kubelet.root": node.kubelet_root,
            "drivers.fluid.mount_root": node.runtime_mount_root,
            "runtime_dir": self.runtime_dir,
            "state_dir": os.path.join(node.lab, "state"),
            "web.listen_address": '""',
            "log.format": "logfmt",
            **(settings or {}),
        }
        self.flags = ["--way", way] if way else []
        """Further words of the command line."""
        self.flags += ["--config", config] if config else []
        self.flags += ["--as-old-kernel"] if as_old_kernel else []
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DaemonProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _sets(self) -> list[str]:
        return [word for k, v in self.values.items() for word in ("--set", f"{k}={v}")]

    @property
    def pid(self) -> int:
        """Process id of the running daemon."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """False once the process has ended, for whatever reason."""
        return self._process is not None and self._process.poll() is None

    def start(self, timeout: float = 20.0) -> None:
        """Start the daemon and wait until it answers its status socket."""
        command = [*self._by, sys.executable, "-m", "fusewatchd", "run", "--any-namespace"]
        command += [*self.flags, *self._sets]
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
            )
        end = time.monotonic() + patient(timeout)
        while not self._is_listening():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the daemon did not start:\n{self.log()}")
            time.sleep(0.01)

    def _is_listening(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(os.path.join(self.runtime_dir, "fusewatchd.sock")) == 0

    def stop(self, timeout: float = 10.0) -> int:
        """SIGTERM; return the exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(patient(timeout))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise

    def kill(self) -> None:
        """SIGKILL, as the OOM killer would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        # Its successor makes a socket of its own; this one would look like an answer.
        os.unlink(os.path.join(self.runtime_dir, "fusewatchd.sock"))

    def status(self) -> Any:
        """Return the status document.

        Raises:
            RuntimeError: the daemon does not answer.
        """
        end = time.monotonic() + patient(CLIENT_SECONDS)
        while True:
            try:
                return ask(self.values["runtime_dir"])
            except (OSError, ParseError) as error:
                is_slow = isinstance(error, (TimeoutError, BlockingIOError))
                if not is_slow or time.monotonic() >= end:
                    raise RuntimeError(f"no status: {error}\n{self.log()}") from error

    def table(self) -> str:
        """Return the status as a person sees it on a wide terminal."""
        command = [sys.executable, "-m", "fusewatchd", "status", *self._sets]
        environment = {**python_environment(), "COLUMNS": "400"}
        done = subprocess.run(command, capture_output=True, env=environment, timeout=patient(30))
        if not done.stdout:
            raise RuntimeError(done.stderr.decode() + self.log())
        return done.stdout.decode()

    def wait_for(self, condition: Callable[[Any], bool], timeout: float = 15.0) -> Any:
        """Ask for the status until ``condition`` holds; return the document."""
        end = time.monotonic() + patient(timeout)
        while True:
            document = self.status()
            if condition(document):
                return document
            if time.monotonic() > end:
                raise RuntimeError(f"not reached: {json.dumps(document)[:4000]}\n{self.log()}")
            time.sleep(0.02)

    def wait_until_watching(self, binds: int, timeout: float = 15.0) -> Any:
        """Wait until this many binds, on the host and in containers, are known and healthy."""
        return self.wait_for(
            lambda d: sum(b["verdict"] == "healthy" for b in d["binds"]) >= binds, timeout
        )

    def log(self) -> str:
        """Return what the daemon has logged so far."""
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()
