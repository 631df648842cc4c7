"""The programs that the configuration names: whether they are there, and whose they are."""

from __future__ import annotations

import os
import shutil
import stat

from fusewatchd.act.run_command import ENVIRONMENT
from fusewatchd.config.credential_files import require_own_place
from fusewatchd.config.settings import Settings
from fusewatchd.errors import CredentialsError


def find_systemctl(search: str = ENVIRONMENT["PATH"]) -> str:
    """Return the path of ``systemctl``; empty when there is none."""
    return shutil.which("systemctl", path=search) or ""


def problems_of_programs(settings: Settings, search: str = ENVIRONMENT["PATH"]) -> list[str]:
    """Return what of ``drivers.on_stale`` cannot be run, by root and as root wrote it.

    One line for each, which begins with its key.
    """
    problems = []
    for number, rule in enumerate(settings.drivers.on_stale):
        key = f"drivers.on_stale[{number}]"
        if rule.unit and not find_systemctl(search):
            problems.append(f"{key}.unit: needs systemctl, found none in {search}")
        problem = _problem_of(rule.command[0]) if rule.command else ""
        if problem:
            problems.append(
                f"{key}.command: expected a program, found {rule.command[0]}: {problem}"
            )
    return problems


def _problem_of(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError as exc:
        return str(exc.strerror)
    if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
        return "not a program"
    try:
        require_own_place(path)
    except CredentialsError as exc:
        return str(exc).removeprefix(f"{path}: ")
    return ""
