"""All checks, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fusewatchd.config.settings import Settings
from fusewatchd.daemon.check import look_once
from fusewatchd.doctor.account_checks import account_findings
from fusewatchd.doctor.cluster_checks import cluster_findings
from fusewatchd.doctor.cluster_facts import examine_cluster
from fusewatchd.doctor.degraded_checks import degraded_findings
from fusewatchd.doctor.findings import Finding, fail, ok, warn
from fusewatchd.doctor.gap_checks import gap_findings
from fusewatchd.doctor.keeper_checks import keeper_findings
from fusewatchd.doctor.node_checks import node_findings
from fusewatchd.doctor.node_facts import examine_node
from fusewatchd.doctor.pod_checks import pod_findings
from fusewatchd.doctor.quota_checks import quota_findings
from fusewatchd.doctor.source_checks import source_findings
from fusewatchd.doctor.source_facts import examine_sources
from fusewatchd.errors import ConfigError, FusewatchError
from fusewatchd.model.plan import RecoveryMode
from fusewatchd.serve.listeners import parse_address
from fusewatchd.serve.status_socket import ask
from fusewatchd.serve.web_security import rules_of_file


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; to be called before any thread exists.

    Raises:
        OSError: /proc cannot be read.
    """
    node = examine_node(settings)
    document, problem = _status(settings, is_running=bool(node.daemon_pid))
    cluster, pods = examine_cluster(settings, node.kubelet.root)
    findings = [*node_findings(node), *cluster_findings(cluster), *_web(settings)]
    if document is None:
        advice = "see the lines above; fusewatchd check says more"
        return [*findings, fail("pods", f"could not be looked at: {problem}", advice)]
    names = {pod.directory_uid: f"{pod.namespace}/{pod.name}" for pod in pods}
    is_report_only = settings.recovery.mode is RecoveryMode.REPORT
    findings += gap_findings(document["gaps"])
    findings += account_findings(document)
    findings += [*degraded_findings(document), *quota_findings(document)]
    findings += keeper_findings(document)
    findings += source_findings(examine_sources(document["sources"]))
    return [*findings, *pod_findings(document["binds"], names, is_report_only=is_report_only)]


def _status(settings: Settings, *, is_running: bool) -> tuple[Any, str]:
    """Return the status by the daemon, which remembers more; else by a look of our own."""
    try:
        return ask(settings.runtime_dir) if is_running else look_once(settings), ""
    except (FusewatchError, OSError) as exc:
        return None, str(exc)


def _web(settings: Settings) -> Iterator[Finding]:
    web = settings.web
    if not web.addresses:
        yield ok("metrics", "off (web.listen_address)")
        return
    try:
        rules = rules_of_file(web.config_file)
    except ConfigError as exc:
        yield fail("metrics", str(exc).partition("\n")[0], "put web.config_file right")
        return
    hosts = [parse_address(address)[0] for address in web.addresses]
    is_local = all(host == "::1" or host.startswith("127.") for host in hosts)
    where = ", ".join(web.addresses)
    if is_local or rules.config.authenticates:
        yield ok("metrics", f"at {where}{'' if rules.tls is None else ' by TLS'}")
    else:
        advice = "set web.config_file, with TLS and users or client certificates"
        yield warn("metrics", f"whoever reaches {where} can read them", advice)
