"""``fusewatchd status``: ask the running daemon once, or every second."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fusewatchd.errors import ParseError
from fusewatchd.serve.status_socket import ask
from fusewatchd.status.document import exit_code
from fusewatchd.status.find_binds import narrowed
from fusewatchd.status.table import View, status_table
from fusewatchd.status.values import Document
from fusewatchd.text import is_coloured, printable

WATCH_SECONDS = 1.0
NO_TERMINAL = 1000
"""Columns where the output is read by a program: nothing is cut there."""
NOT_ALLOWED = "only root and the members of status_group can read the status; try sudo"
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""The alternate screen of a terminal, without a cursor; xterm's control sequences."""
_CLEAR = "\x1b[H\x1b[2J"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person asked for on the command line."""

    target: str = ""
    """A pod, volume, claim or path; empty for all mounts."""
    as_json: bool = False
    watches: bool = False
    shows_all: bool = False
    color: str = "auto"


def status(runtime_dir: str, wish: Wish) -> int:
    """Print what the daemon knows; return the exit status, 2 where that is nothing."""
    if not wish.watches:
        return _once(runtime_dir, wish)
    with _screen(wish):
        return _watch(runtime_dir, wish)


def print_document(document: Document, wish: Wish, *, height: int = 0) -> int:
    """Print a status document for a person or as JSON; return its exit status."""
    if wish.as_json:
        print(json.dumps(document, indent=None if wish.watches else 2))
    else:
        width = shutil.get_terminal_size((NO_TERMINAL, 24)).columns
        shown_color = is_coloured(wish.color, os.environ, sys.stdout.isatty())
        view = View(width, height, shown_color, wish.shows_all or bool(wish.target))
        print(status_table(document, view), end="")
    return exit_code(document)


def no_daemon(runtime_dir: str) -> str:
    """Return what to say where no daemon runs."""
    start = "start it: systemctl start fusewatchd, or look once: fusewatchd check"
    return f"no fusewatchd is running ({runtime_dir}); {start}"


def _once(runtime_dir: str, wish: Wish) -> int:
    try:
        document = ask(runtime_dir)
    except PermissionError:
        return _fail(NOT_ALLOWED)
    except (OSError, ParseError) as exc:
        return _fail(_trouble(exc, runtime_dir))
    return _print_narrowed(document, wish)


def _print_narrowed(document: Document, wish: Wish, *, height: int = 0) -> int:
    if wish.target:
        found = narrowed(document, wish.target)
        if found is None:
            return _fail(f"no FUSE mount of {printable(wish.target)} is known")
        document = found
    return print_document(document, wish, height=height)


def _watch(runtime_dir: str, wish: Wish) -> int:
    code: int | None = None
    try:
        while True:
            try:
                document = ask(runtime_dir)
            except PermissionError:
                return _fail(NOT_ALLOWED)
            except (OSError, ParseError) as exc:
                print(_trouble(exc, runtime_dir), file=sys.stderr)
                # A watch survives a restart of the daemon.
                if code is None:
                    return 2
                code = 2
            else:
                # Known before it is printed: Ctrl-C may come as soon as the last line is read.
                code = exit_code(document)
                is_screen = _is_screen(wish)
                if is_screen:
                    print(_CLEAR, end="")
                height = shutil.get_terminal_size().lines - 1 if is_screen else 0
                code = _print_narrowed(document, wish, height=height)
                if not wish.as_json and not is_screen:
                    print()
            sys.stdout.flush()
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return 0 if code is None else code


def _is_screen(wish: Wish) -> bool:
    return not wish.as_json and sys.stdout.isatty()


@contextmanager
def _screen(wish: Wish) -> Iterator[None]:
    if not _is_screen(wish):
        yield
        return
    print(_ENTER, end="", flush=True)
    try:
        yield
    finally:
        print(_LEAVE, end="", flush=True)


def _trouble(exc: Exception, runtime_dir: str) -> str:
    is_gone = isinstance(exc, FileNotFoundError | ConnectionRefusedError)
    return no_daemon(runtime_dir) if is_gone else f"fusewatchd: {exc}"


def _fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 2
