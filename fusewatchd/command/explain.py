"""``fusewatchd explain``: why a mount is as it is, and what to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from fusewatchd.command.status import NOT_ALLOWED
from fusewatchd.config.settings import Settings
from fusewatchd.daemon.check import look_once
from fusewatchd.linux.real_path import real_path
from fusewatchd.model.mount_table import parse_mount_table
from fusewatchd.serve.status_socket import ask
from fusewatchd.status.explain import Asked, exit_code, explain
from fusewatchd.status.explanation_text import explanation_text, token_text
from fusewatchd.status.find_binds import find, near
from fusewatchd.status.values import PATH_LIMIT, Document
from fusewatchd.text import printable


def explain_target(settings: Settings, wanted: str, *, as_json: bool) -> int:
    """Print what is known of a mount, pod, volume, path or reason; return the exit status."""
    text = token_text(wanted)
    if text is not None and not as_json:
        print(text, end="")
        return 0
    asked = Asked.DAEMON
    try:
        document = ask(settings.runtime_dir)
    except (FileNotFoundError, ConnectionRefusedError):
        asked, document = Asked.LOOK, look_once(settings)
    except PermissionError:
        print(NOT_ALLOWED, file=sys.stderr)
        return 2
    binds = find(document, wanted) or find(document, _without_links(wanted))
    if not binds:
        print(_unknown(document, wanted, near(document, wanted)), file=sys.stderr)
        return 2
    explanation = explain(document, binds, printable(wanted, PATH_LIMIT), asked)
    if as_json:
        print(json.dumps(explanation, indent=2))
    else:
        print(explanation_text(explanation), end="")
    return exit_code(explanation)


def _without_links(path: str) -> str:
    """Return a path as the mount table has it; what may hang is not asked."""
    if not path.startswith("/"):
        return path
    with open("/proc/self/mountinfo", "rb", 0) as file:
        return real_path(path, parse_mount_table(file.read()).fuse_points("/"))


def _unknown(document: Document, wanted: str, near: Sequence[str]) -> str:
    text = f"nothing is known of {printable(wanted)}"
    if not document["pods_known"] and not wanted.startswith("/"):
        text += "; names of pods are not known here, only uids"
    return f"{text}; near: {', '.join(near)}" if near else text
