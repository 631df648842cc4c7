"""The status page as a browser has it: headless Chromium, the real daemon, a real outage."""

from __future__ import annotations

import os
import re
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.cluster.loopback import free_port
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.timeouts import patient
from tests.lab import in_lab, pod_with_container, run_fusewatchd

pytestmark = pytest.mark.kernel

SIZES = {"phone": "390,844", "desk": "1200,800"}


def chromium(directory: Path, url: str, *flags: str) -> str:
    """Load a page; return its document as the browser has it, and what it complains of."""
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--enable-logging=stderr", "--v=0", f"--user-data-dir={directory}/profile", *flags, url],
        capture_output=True, text=True, timeout=patient(90), check=True,
    )  # fmt: skip
    complaints = re.findall(r"CONSOLE.*", done.stderr)
    assert not complaints
    return done.stdout


@pytest.mark.slow
@in_lab(timeout=110)
def test_an_outage_in_a_browser(node: DemoNode) -> None:
    good, bad = node.add_source("one"), node.add_source("two")
    _, container = pod_with_container(node, good, "web")
    pod_with_container(node, bad, "reader")
    pictures = Path(os.environ.get("SCREENSHOTS", node.lab))
    address = f"127.0.0.1:{free_port()}"
    with DemoKubelet(node.pod_list) as kubelet:
        settings = {
            "web.listen_address": address,
            "web.status_page": "true",
            "kubelet.url": kubelet.url,
        }
        with DaemonProcess(node, settings=settings) as daemon:
            daemon.wait_for(lambda d: d["pods_known"] and d["totals"]["verdicts"]["healthy"] == 4)
            good.kill()
            good.restart()
            container.wait_until_readable("/data/hello", 10.0)
            bad.kill()
            daemon.wait_for(lambda d: d["totals"]["verdicts"]["stale"] == 2)
            url = f"http://{address}/status"
            page = chromium(Path(node.lab), url, "--dump-dom")
            assert "demo/web" in page
            assert "demo/reader" in page
            assert "source_missing" in page
            # The browser itself took the style: by its hash, or the page would be bare.
            for name, size in SIZES.items():
                for scheme in ("light", "dark"):
                    picture = pictures / f"status-{name}-{scheme}.png"
                    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
                    chromium(
                        Path(node.lab),
                        url,
                        f"--screenshot={picture}",
                        f"--window-size={size}",
                        *dark,
                    )
                    assert picture.stat().st_size > 10_000
            bad.restart()
            daemon.wait_for(lambda d: d["totals"]["verdicts"]["healthy"] == 4)
            assert "1 outage" in chromium(Path(node.lab), url, "--dump-dom")


def status(address: str, host: str = "") -> int:
    request = urllib.request.Request(f"http://{address}/status")
    if host:
        request.add_header("Host", host)
    try:
        with urllib.request.urlopen(request, timeout=30) as page:
            assert "default-src 'none'" in page.headers["Content-Security-Policy"]
            return int(page.status)
    except urllib.error.HTTPError as exc:
        return exc.code


@in_lab(timeout=60)
def test_strangers_do_not_see_it(node: DemoNode) -> None:
    node.add_source("one")
    address = f"127.0.0.1:{free_port()}"
    settings = {"web.listen_address": address, "web.status_page": "true"}
    with DaemonProcess(node, settings=settings) as daemon:
        daemon.wait_until_watching(0)
        assert status(address) == 200
        assert status(address, "localhost:9847") == 200
        assert status(address, "evil.example:80") == 403
    with DaemonProcess(node, settings={"web.listen_address": address}):
        assert status(address) == 404


def test_it_is_refused_where_strangers_could_come(tmp_path: Path) -> None:
    sets = {
        "web.listen_address": f"0.0.0.0:{free_port()}",
        "web.status_page": "true",
        "runtime_dir": str(tmp_path),
        "state_dir": str(tmp_path),
    }
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    done = run_fusewatchd("run", "--any-namespace", *words)
    assert done.returncode == 78
    assert done.stderr.splitlines()[-1].startswith("web.status_page: needs users")
