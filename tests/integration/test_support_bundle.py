"""``support-bundle``: everything in one archive, bounded, and no secret in it."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from fusewatchd.command import support_bundle
from fusewatchd.config.file import load
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.node import DemoNode
from tests.lab import in_lab, pod_with_container, run_fusewatchd

pytestmark = pytest.mark.kernel

TOKEN = "token-that-nobody-may-see-0123456789"
ARGUMENT = "argument-that-nobody-may-see"
IN_SOURCE = "source-that-nobody-may-see"


def read(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        assert len({member.name.partition("/")[0] for member in members}) == 1
        found = {}
        for member in members:
            file = archive.extractfile(member)
            assert file is not None
            found[member.name.partition("/")[2]] = file.read()
        return found


@in_lab(timeout=90)
def test_all_is_there_and_no_secret(node: DemoNode) -> None:
    source = node.add_source("one")
    pod, _ = pod_with_container(node, source, "web")
    token, config = Path(node.lab, "token"), Path(node.lab, "f.yaml")
    token.write_text(f"{TOKEN}\n")
    token.chmod(0o600)
    config.write_text(
        f"apiserver: {{url: 'https://127.0.0.1:1', token_file: {token}}}\n"
        f"drivers: {{on_stale: [{{driver: a, command: [/bin/true, {ARGUMENT}]}}]}}\n"
    )
    at = Path(node.lab, TOKEN)
    at.mkdir()
    mount = ["mount", "-t", "tmpfs", f"https://user:{IN_SOURCE}@host/", str(at)]
    subprocess.run(mount, check=True)
    out = Path(node.lab, "out.tar.gz")
    with DaemonProcess(node, config=str(config)) as daemon:
        daemon.wait_until_watching(2)
        sets = ["--config", str(config), "--set", f"runtime_dir={daemon.runtime_dir}"]
        done = run_fusewatchd("support-bundle", "--output", str(out), *sets, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{out}\n"
        again = run_fusewatchd("support-bundle", "--output", str(out), *sets, timeout=60)
        assert again.returncode == 2
        assert "File exists" in again.stderr
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    found = read(out)
    data = gzip.decompress(out.read_bytes())
    for secret in (TOKEN, ARGUMENT, IN_SOURCE):
        assert secret.encode() not in data
    # They were there to be found.
    assert b"https://<redacted>@host/" in found["mountinfo-self.txt"]
    status = json.loads(found["status.json"])
    assert {bind["pod"]["uid"] for bind in status["binds"]} == {pod.uid}
    keys = json.loads(found["configuration.json"])["keys"]
    rule = keys["drivers.on_stale[0]"]
    assert rule["value"]["command"] == ["/bin/true", "<redacted>"]
    assert rule["from"] == [str(config)]
    assert keys["apiserver.token_file"]["value"] == str(token)
    assert json.loads(found["versions.json"])["version"] == status["version"]
    assert json.loads(found["doctor.json"])
    manifest = json.loads(found["manifest.json"])
    parts = {file["name"]: file for file in manifest["files"]}
    assert parts.keys() == found.keys() - {"manifest.json"}
    for name, part in parts.items():
        assert part["sha256"] == hashlib.sha256(found[name]).hexdigest()
        assert part["bytes"] == len(found[name])
        assert bool(part["problem"]) == (not found[name])


def test_what_is_missing_is_named_and_what_is_long_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support_bundle, "MAX_PART_BYTES", 300)
    configuration = load(_file(tmp_path), {"runtime_dir": str(tmp_path)})
    path, parts = support_bundle.write_bundle(configuration, str(tmp_path / "b.tar.gz"))
    by_name = {part.name: part for part in parts}
    assert by_name["status.json"].problem.endswith("No such file or directory")
    assert by_name["mountinfo-self.txt"].is_cut
    manifest = json.loads(read(Path(path))["manifest.json"])
    (cut,) = (f for f in manifest["files"] if f["name"] == "mountinfo-self.txt")
    assert (cut["is_cut"], cut["bytes"]) == (True, 300)


def _file(directory: Path) -> str:
    (directory / "f.yaml").write_text("")
    return os.fspath(directory / "f.yaml")
