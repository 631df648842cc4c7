"""The programs that the configuration names: whether they are there, and whose they are."""

from __future__ import annotations

import os
import shutil
import stat

from fusewatchd.act.run_command import ENVIRONMENT
from fusewatchd.config.credential_files import require_own_place
from fusewatchd.config.settings import Settings
from fusewatchd.errors import ConfigError, CredentialsError


def find_systemctl(search: str = ENVIRONMENT["PATH"]) -> str:
    """Return the path of ``systemctl``; empty when there is none."""
    return shutil.which("systemctl", path=search) or ""


def require_programs(settings: Settings, search: str = ENVIRONMENT["PATH"]) -> None:
    """Make sure that what ``drivers.on_stale`` runs can be run, by root and as root wrote it.

    Raises:
        ConfigError: one line for each program that cannot.
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
    if problems:
        raise ConfigError("\n".join(problems))


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
