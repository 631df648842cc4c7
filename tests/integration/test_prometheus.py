"""A real Prometheus scrapes the real daemon through a crash, over TLS and with a password."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import yaml

from fusewatchd.demo.cluster.loopback import free_port
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from fusewatchd.demo.timeouts import patient
from tests.certificates import make_authority, make_certificate
from tests.lab import in_lab, pod_with_container

pytestmark = pytest.mark.slow

FILES = Path(__file__).parents[2] / "conf/prometheus"
DEADLINE = 30.0
USERS = (
    "basic_auth_users: {prometheus: $2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW}\n"
)
SCRAPE = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: fusewatchd
    scheme: https
    tls_config: {{ca_file: {ca}}}
    basic_auth: {{username: prometheus, password: secret}}
    static_configs: [{{targets: ['{address}']}}]
"""


def promtool(*words: str, given: str = "") -> None:
    done = subprocess.run(
        ["promtool", *words], input=given, cwd=FILES, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not given or not done.stdout + done.stderr


def test_the_shipped_files() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("test", "rules", "rules_test.yml", "rules_days_test.yml")


def test_the_scraping_of_the_collector_is_a_configuration_of_prometheus(tmp_path: Path) -> None:
    document = yaml.safe_load((FILES.parent / "collectors/otel-collector.yaml").read_text())
    config = document["receivers"]["prometheus/fusewatchd"]["config"]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    promtool("check", "config", str(tmp_path / "prometheus.yml"))


class Prometheus:
    """Answers queries, in process and API of its own."""

    def __init__(self, address: str) -> None:
        self._url = f"http://{address}/api/v1"

    def query(self, expression: str) -> list[Any]:
        """Return the samples of an instant query."""
        query = urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(f"{self._url}/query?{query}", timeout=30) as page:
                result: list[Any] = json.load(page)["data"]["result"]
        except urllib.error.HTTPError as exc:
            if exc.code == HTTPStatus.SERVICE_UNAVAILABLE:
                raise  # it is starting
            raise AssertionError(f"{expression}: {exc.read().decode()}") from exc
        return result

    def value(self, expression: str) -> float | None:
        """Return the value of the only sample; None while there is none, or no answer."""
        try:
            result = self.query(expression)
        except (urllib.error.URLError, ConnectionError):
            return None
        return float(result[0]["value"][1]) if len(result) == 1 else None

    def wait(self, expression: str, is_reached: Callable[[float], bool]) -> None:
        """Query until the value is as expected."""
        end = time.monotonic() + patient(DEADLINE)
        while (found := self.value(expression)) is None or not is_reached(found):
            assert time.monotonic() < end, (expression, found)
            time.sleep(0.1)


@contextmanager
def prometheus(directory: Path, address: str, ca: str) -> Iterator[Prometheus]:
    own = f"127.0.0.1:{free_port()}"
    config = directory / "prometheus.yml"
    config.write_text(SCRAPE.format(rules=FILES / "rules.yml", ca=ca, address=address))
    with open(directory / "prometheus.log", "wb") as log:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={directory}/data",
             f"--web.listen-address={own}"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield Prometheus(own)
    finally:
        process.terminate()
        process.wait(patient(30))


@in_lab(timeout=110)
def test_a_crash_as_prometheus_sees_it(node: DemoNode) -> None:
    directory = Path(node.lab) / "prometheus"
    directory.mkdir()
    authority = make_authority(directory)
    make_certificate(authority, "server", "server", "IP:127.0.0.1")
    (directory / "server.key").chmod(0o600)
    web = directory / "web.yml"
    web.write_text(f"tls_server_config: {{cert_file: server.crt, key_file: server.key}}\n{USERS}")
    source = node.add_source("one")
    _, container = pod_with_container(node, source, "web")
    address = f"127.0.0.1:{free_port()}"
    settings = {"web.listen_address": address, "web.config_file": str(web)}
    with (
        DaemonProcess(node, settings=settings) as daemon,
        prometheus(directory, address, authority.certificate) as asked,
    ):
        daemon.wait_until_watching(2)
        unusable = "instance_driver:fusewatchd_unusable_mounts:sum"
        asked.wait('up{job="fusewatchd"}', lambda value: value == 1)
        asked.wait('sum(fusewatchd_mounts{verdict="healthy"})', lambda value: value == 2)
        asked.wait(unusable, lambda value: value == 0)
        source.kill()
        asked.wait(unusable, lambda value: value == 2)
        asked.wait('fusewatchd_waiting_mounts{reason="source_missing"}', lambda value: value >= 1)
        source.restart()
        container.wait_until_readable("/data/hello", DEADLINE)
        asked.wait(unusable, lambda value: value == 0)
        recovered = 'sum(increase(fusewatchd_recoveries_total{outcome="recovered"}[1m]))'
        asked.wait(recovered, lambda value: value > 1)
        asked.wait("sum(fusewatchd_outage_duration_seconds_count)", lambda value: value == 1)
        every_panel_is_answered(asked)
        promtool("check", "metrics", given=scraped(address, authority.certificate))


def every_panel_is_answered(asked: Prometheus) -> None:
    """What Grafana would send; it is understood, and the panels of one crash are not all empty."""
    dashboard = json.loads((FILES / "grafana-dashboard.json").read_text())
    filled = 0
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expression = target["expr"].replace("$instance", ".*")
            for span in ("$__rate_interval", "$__range"):
                expression = expression.replace(span, "1m")
            filled += bool(asked.query(expression))
    assert filled >= 10


def scraped(address: str, ca: str) -> str:
    done = subprocess.run(
        ["curl", "-sf", "--cacert", ca, "-u", "prometheus:secret", f"https://{address}/metrics"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout
