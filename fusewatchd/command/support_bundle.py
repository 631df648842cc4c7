"""``support-bundle``: what is needed to find the cause of a problem, in one archive.

Every part is bounded in time and size, and says in the manifest when it is missing or cut.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fusewatchd.command.configuration import all_problems, in_force, in_force_document
from fusewatchd.command.redaction import GONE, redacted
from fusewatchd.command.versions import versions
from fusewatchd.config.credential_files import read_secret
from fusewatchd.config.layers import Configuration
from fusewatchd.doctor.examination import examine
from fusewatchd.doctor.findings import document as document_of_findings
from fusewatchd.errors import FusewatchError
from fusewatchd.serve.status_socket import ask
from fusewatchd.text import printable

MAX_PART_BYTES = 4 << 20
PART_SECONDS = 30.0
JOURNAL_LINES = "5000"
_MAX_SECRET_BYTES = 1 << 20
_SECRET_KEYS = ("token_file", "client_key_file", "client_cert_file", "kubeconfig")


@dataclass(frozen=True, slots=True)
class Part:
    """One file of the archive."""

    name: str
    text: str
    problem: str = ""
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    make: Callable[[], str]


def write_bundle(configuration: Configuration, path: str) -> tuple[str, list[Part]]:
    """Write the archive; return its path and its parts.

    Args:
        configuration: in force, as far as it can be read.
        path: a new file; empty: one in the working directory, named after node and time.

    Raises:
        OSError: it cannot be written, or there is one of this name.
    """
    now = time.gmtime()
    name = f"fusewatchd-support-{os.uname().nodename}-{time.strftime('%Y%m%dT%H%M%SZ', now)}"
    path = path or f"{name}.tar.gz"
    secrets = list(_secrets(configuration))
    parts = [_part(source, secrets) for source in _sources(configuration)]
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with (
        open(os.open(path, flags, 0o600), "wb") as file,
        tarfile.open(fileobj=file, mode="w:gz") as archive,
    ):
        for part in [_manifest(parts), *parts]:
            data = part.text.encode("utf-8", "replace")
            member = tarfile.TarInfo(f"{name}/{part.name}")
            member.size, member.mode, member.mtime = len(data), 0o600, int(time.time())
            archive.addfile(member, io.BytesIO(data))
    return path, parts


def _sources(configuration: Configuration) -> Iterator[_Source]:
    runtime_dir = configuration.settings.runtime_dir
    yield _Source("versions.json", lambda: _json(versions()))
    yield _Source("configuration.json", lambda: _json(_configuration(configuration)))
    yield _Source("status.json", lambda: _json(ask(runtime_dir)))
    yield _Source("doctor.json", lambda: _doctor(configuration))
    yield _Source("journal.txt", lambda: _output(
        "journalctl", "--unit=fusewatchd", "--no-pager", "--lines", JOURNAL_LINES,
        "--output=short-iso-precise",
    ))  # fmt: skip
    yield _Source("unit.txt", lambda: _output(
        "systemctl", "show", "fusewatchd.service", "--no-pager", "--property",
        "ActiveState,SubState,Result,NRestarts,ExecMainStatus,ActiveEnterTimestamp,FragmentPath,"
        "DropInPaths,MemoryCurrent,TasksCurrent,NeedDaemonReload,UnitFileState",
    ))  # fmt: skip
    yield _Source("mountinfo-1.txt", lambda: _file("/proc/1/mountinfo"))
    yield _Source("mountinfo-self.txt", lambda: _file("/proc/self/mountinfo"))
    yield _Source("os-release.txt", lambda: _file("/etc/os-release"))


def _part(source: _Source, secrets: list[str]) -> Part:
    try:
        text = source.make()
    except (OSError, FusewatchError, ValueError, subprocess.SubprocessError) as exc:
        text, problem = "", redacted(printable(str(exc), 500), secrets)
        return Part(source.name, text, problem)
    # Before it is cut, for half a secret is one as well.
    text = redacted(text, secrets)
    is_cut = len(text) > MAX_PART_BYTES
    return Part(source.name, text[-MAX_PART_BYTES:] if is_cut else text, is_cut=is_cut)


def _manifest(parts: list[Part]) -> Part:
    document = {
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "node": os.uname().nodename,
        "redacted": "passwords, tokens, keys and their like are replaced",
        "files": [
            {
                "name": part.name,
                "bytes": len(part.text.encode("utf-8", "replace")),
                "sha256": hashlib.sha256(part.text.encode("utf-8", "replace")).hexdigest(),
                "is_cut": part.is_cut,
                "problem": part.problem or None,
            }
            for part in parts
        ],
    }
    return Part("manifest.json", _json(document))


def _configuration(configuration: Configuration) -> dict[str, Any]:
    """Return what is in force; arguments of commands may be secrets and are left out."""
    keys = in_force(configuration, changed=False)
    document = in_force_document(configuration, keys)
    for value in document["keys"].values():
        rule = value["value"]
        for one in rule if isinstance(rule, list) else [rule]:
            if isinstance(one, dict) and one.get("command"):
                one["command"] = [one["command"][0], *[GONE] * (len(one["command"]) - 1)]
    return {**document, "problems": list(all_problems(configuration))}


def _doctor(configuration: Configuration) -> str:
    return _json(document_of_findings(examine(configuration.settings)))


def _output(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, timeout=PART_SECONDS, check=False, stdin=subprocess.DEVNULL
    )
    text = done.stdout.decode("utf-8", "replace")
    if text:
        return text
    problem = done.stderr.decode("utf-8", "replace").strip() or "no output"
    raise FusewatchError(f"{os.path.basename(command[0])}: {problem} (status {done.returncode})")


def _file(path: str) -> str:
    with open(path, "rb") as file:
        return file.read(2 * MAX_PART_BYTES).decode("utf-8", "replace")


def _json(document: object) -> str:
    return json.dumps(document, indent=2) + "\n"


def _secrets(configuration: Configuration) -> Iterator[str]:
    """Return what stands in the credential files, to look for it elsewhere."""
    settings = configuration.settings
    for section in (settings.kubelet, settings.apiserver):
        for key in _SECRET_KEYS:
            path = getattr(section, key, "")
            with suppress(FusewatchError):
                if path:
                    text = read_secret(path, _MAX_SECRET_BYTES)
                    yield from (word for word in text.split() if len(word) >= 16)
