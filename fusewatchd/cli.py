"""The command line."""

from __future__ import annotations

import argparse
import errno
import faulthandler
import gc
import json
import os
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fusewatchd import __version__
from fusewatchd.config.settings import Settings
from fusewatchd.errors import ConfigError, FusewatchError
from fusewatchd.text import is_coloured, printable

if TYPE_CHECKING:
    from fusewatchd.config.layers import Configuration

DEFAULT_CONFIG = "/etc/fusewatchd/fusewatchd.yaml"
COLLECTOR = (20_000, 10, 10)
"""How many objects are made before garbage is looked for, gc.set_threshold; in workers as well."""
EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h.  The unit does not restart the daemon after it."""
EXIT_BROKEN_PIPE = 141
"""What a shell shows of a program that ended by SIGPIPE."""
_EXAMPLES = """\
examples:
  fusewatchd status                    what is broken on this node, and what to type next
  fusewatchd explain shop/web-0        why a pod's mounts are as they are, and what to do
  fusewatchd explain source_dead       what a reason means
  fusewatchd doctor                    what would prevent a recovery here

manuals: fusewatchd(8), fusewatchd.yaml(5), fusewatchd-reasons(7)
"""
_NEEDS_ROOT = (errno.EPERM, errno.EACCES)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status.

    0: fine.  1: something is wrong.  2: it is unknown.  78: ``run`` cannot use the configuration.
    """
    options = make_parser().parse_args(arguments)
    try:
        status: int = options.command(options)
        sys.stdout.flush()
        return status
    except ConfigError as exc:
        print(exc, file=sys.stderr)
        return EXIT_CONFIG if options.command is _run else 2
    except FusewatchError as exc:
        print(exc, file=sys.stderr)
    except OSError as exc:
        if isinstance(exc, BrokenPipeError) and options.command is not _run:
            # The reader has seen enough (head, grep -q).  Python would complain at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_BROKEN_PIPE
        where = f": {exc.filename}" if exc.filename else ""
        as_root = "; run it as root" if exc.errno in _NEEDS_ROOT and os.geteuid() else ""
        print(f"fusewatchd: {exc.strerror or exc}{where}{as_root}", file=sys.stderr)
    return 2


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, of which manual and completions are made."""
    parser = argparse.ArgumentParser(
        prog="fusewatchd",
        description="Keeps the FUSE volumes of Kubernetes pods alive.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fusewatchd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    run = commands.add_parser("run", help="watch and repair, in the foreground")
    run.add_argument(
        "--dry-run", action="store_true", help="log what would be done, and change nothing"
    )
    run.add_argument("--way", choices=["beneath", "on-top", "staged"], help=argparse.SUPPRESS)
    run.add_argument("--as-old-kernel", action="store_true", help=argparse.SUPPRESS)
    run.add_argument("--any-namespace", action="store_true", help=argparse.SUPPRESS)
    run.set_defaults(command=_run)
    check = commands.add_parser(
        "check", help="look at the node once, without the daemon; exit 0, 1 or 2"
    )
    check.add_argument("--json", action="store_true", help="print JSON")
    check.set_defaults(command=_check)
    status = commands.add_parser("status", help="show all FUSE mounts and their state")
    status.add_argument(
        "target", nargs="?", default="", help="only NAMESPACE/POD, a volume, a claim or a path"
    )
    status.add_argument("--json", action="store_true", help="print JSON")
    status.add_argument("-w", "--watch", action="store_true", help="repeat every second")
    status.set_defaults(command=_status)
    explain = commands.add_parser(
        "explain", help="explain one mount or pod, or a reason: state, cause, what to do"
    )
    explain.add_argument(
        "target",
        help="NAMESPACE/POD, a volume, claim, path, uid, POD:/path, CONTAINER:/path, or a reason",
    )
    explain.add_argument("--json", action="store_true", help="print JSON")
    explain.set_defaults(command=_explain)
    config = commands.add_parser(
        "config-check", help="check the configuration and every file that it names"
    )
    config.set_defaults(command=_config_check)
    show = commands.add_parser(
        "config-show", help="print every key, its value, and the file that sets it"
    )
    show.add_argument("--changed", action="store_true", help="only the keys that a file sets")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(command=_config_show)
    doctor = commands.add_parser(
        "doctor", help="check this node for anything that would prevent recovery; exit 0 or 1"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(command=_doctor)
    for command in (check, status):
        command.add_argument("--all", action="store_true", help="show healthy mounts, too")
    for command in (check, status, doctor):
        command.add_argument(
            "--color",
            choices=["auto", "always", "never"],
            default="auto",
            help="auto: on a terminal, unless NO_COLOR is set",
        )
    recover = commands.add_parser(
        "recover", help="try now to recover a mount that waits for a retry (root)"
    )
    recover.add_argument("target", help="as of explain")
    recover.set_defaults(command=_recover)
    pause = commands.add_parser("pause", help="change nothing on this node for a while (root)")
    pause.add_argument("duration", help="such as 10m, 1h30m or 2d; at most 7d")
    pause.set_defaults(command=_pause)
    resume = commands.add_parser("resume", help="end a pause (root)")
    resume.set_defaults(command=_resume)
    bundle = commands.add_parser(
        "support-bundle", help="write one archive for a bug report; secrets are left out"
    )
    bundle.add_argument("--output", default="", metavar="FILE", help="default: named by node, time")
    bundle.set_defaults(command=_support_bundle)
    keeper = commands.add_parser(
        "keeper", help="hold the connections that the daemon hands over (keeper.hold)"
    )
    keeper.add_argument(
        "--stop", action="store_true", help="have the running one let go of everything, and end"
    )
    keeper.set_defaults(command=_keeper)
    for command in (
        run, check, status, explain, config, show, doctor, recover, pause, resume, bundle,
        keeper,
    ):  # fmt: skip
        command.add_argument("--config", default="", help=f"default: {DEFAULT_CONFIG} if there")
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="override one key"
        )
    version = commands.add_parser("version", help="print the version, and what it runs on")
    version.add_argument("--json", action="store_true")
    version.set_defaults(command=_version)
    demo = commands.add_parser("demo", help="show a recovery on this machine, no cluster needed")
    demo.add_argument("--server", default="", help="e.g. 'bindfs -f {backing} {mount}'")
    demo.add_argument(
        "--keep", action="store_true", help="leave its node up until Enter, to try commands on it"
    )
    demo.set_defaults(command=_demo)
    return parser


def _configuration(
    options: argparse.Namespace,
) -> tuple[Configuration, str, dict[str, object]]:
    from fusewatchd.config.file import load, parse_value

    file = options.config or (DEFAULT_CONFIG if os.path.lexists(DEFAULT_CONFIG) else "")
    pairs = (item.partition("=") for item in options.set)
    values = {key: parse_value(value) for key, _, value in pairs}
    if getattr(options, "dry_run", False):
        values["recovery.mode"] = "report"
    return load(file, values), file, values


def _settings(options: argparse.Namespace) -> Settings:
    configuration, _, _ = _configuration(options)
    return configuration.require()


def _run(options: argparse.Namespace) -> int:
    # What a cycle makes is freed by its reference counts: to look for garbage among ten thousands
    # of mounts in the middle of it costs a quarter of its time.  Before the modules are loaded:
    # they are a lot of objects, too.
    gc.set_threshold(*COLLECTOR)
    from fusewatchd.act.programs import problems_of_programs
    from fusewatchd.daemon.daemon import Daemon, Start
    from fusewatchd.daemon.placement import require_right_namespace, take_place
    from fusewatchd.linux.mount_kernel import Way
    from fusewatchd.serve.listeners import inherited

    # systemd's watchdog ends a daemon that hangs with SIGABRT: the stacks go to the journal.
    faulthandler.enable()
    configuration, file, values = _configuration(options)
    settings = configuration.require(*problems_of_programs(configuration.settings))
    if not options.any_namespace:
        require_right_namespace(settings.kubelet.root)
    way = Way(options.way) if options.way else None
    sockets = inherited(os.environ, os.getpid())
    start = Start(
        settings,
        file,
        tuple(values.items()),
        way,
        options.as_old_kernel,
        tuple(sockets),
        take_place(settings.kubelet.root),
    )
    if not settings.keeper.hold.drivers:
        return Daemon(start).run()
    from fusewatchd.daemon.keeper_child import keeper_beside

    with keeper_beside(settings.runtime_dir, os.environ):
        return Daemon(start).run()


def _check(options: argparse.Namespace) -> int:
    from fusewatchd.command.status import Wish, print_document
    from fusewatchd.daemon.check import look_once

    settings = _settings(options)
    wish = Wish(as_json=options.json, shows_all=options.all, color=options.color)
    return print_document(look_once(settings), wish)


def _status(options: argparse.Namespace) -> int:
    from fusewatchd.command.status import Wish, status

    settings = _settings(options)
    wish = Wish(options.target, options.json, options.watch, options.all, options.color)
    return status(settings.runtime_dir, wish)


def _explain(options: argparse.Namespace) -> int:
    from fusewatchd.command.explain import explain_target

    return explain_target(_settings(options), options.target, as_json=options.json)


def _recover(options: argparse.Namespace) -> int:
    from fusewatchd.command.control import recover

    text, status = recover(_settings(options).runtime_dir, options.target)
    print(text)
    return status


def _pause(options: argparse.Namespace) -> int:
    from fusewatchd.command.control import seconds_of, send
    from fusewatchd.status.orders import Order

    try:
        seconds = seconds_of(options.duration)
    except ValueError as exc:
        raise FusewatchError(f"pause: {exc}, found {printable(options.duration)}") from exc
    answer = send(_settings(options).runtime_dir, Order.PAUSE, seconds=seconds)
    print(f"paused until {answer['until']}: fusewatchd changes nothing on this node")
    if answer["under_way"]:
        print(f"{answer['under_way']} replacements were under way and are completed")
    return 0


def _resume(options: argparse.Namespace) -> int:
    from fusewatchd.command.control import send
    from fusewatchd.status.orders import Order

    answer = send(_settings(options).runtime_dir, Order.RESUME)
    print("recovery is resumed" if answer["was_paused"] else "it was not paused")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from fusewatchd.doctor.examination import examine
    from fusewatchd.doctor.findings import document, exit_code
    from fusewatchd.doctor.table import table

    settings = _settings(options)
    findings = examine(settings)
    if options.json:
        print(json.dumps(document(findings), indent=2))
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        print(table(findings, width, is_coloured(options.color, os.environ, sys.stdout.isatty())))
    return exit_code(findings)


def _config_check(options: argparse.Namespace) -> int:
    from fusewatchd.command.configuration import all_problems
    from fusewatchd.config.layers import COMMAND_LINE, DEFAULTS

    configuration, _, values = _configuration(options)
    problems = all_problems(configuration)
    if problems:
        raise ConfigError("\n".join(problems))
    read = [*(configuration.files or (DEFAULTS,)), *([COMMAND_LINE] if values else ())]
    print(f"{', '.join(read)}: fine")
    return 0


def _config_show(options: argparse.Namespace) -> int:
    from fusewatchd.command.configuration import in_force, in_force_document, in_force_text

    configuration, _, _ = _configuration(options)
    configuration.require()
    keys = in_force(configuration, changed=options.changed)
    if options.json:
        print(json.dumps(in_force_document(configuration, keys), indent=2))
    else:
        print(in_force_text(configuration, keys), end="")
    return 0


def _support_bundle(options: argparse.Namespace) -> int:
    from fusewatchd.command.support_bundle import write_bundle

    configuration, _, _ = _configuration(options)
    path, parts = write_bundle(configuration, options.output)
    for part in parts:
        if part.problem:
            print(f"{part.name}: left out: {part.problem}", file=sys.stderr)
    print(path)
    return 0


def _version(options: argparse.Namespace) -> int:
    from fusewatchd.command.versions import versions

    found = versions()
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print(f"fusewatchd {found['version']}, Python {found['python']}, Linux {found['kernel']}")
    return 0


def _keeper(options: argparse.Namespace) -> int:
    from fusewatchd.keeper.process import run, stop
    from fusewatchd.keeper.protocol import socket_path

    def path() -> str:
        # A service that systemd hands its socket needs no configuration, and not the memory.
        settings = _settings(options)
        return socket_path(settings.runtime_dir)

    if not options.stop:
        return run(path, os.environ)
    stop(path())
    return 0


def _demo(options: argparse.Namespace) -> int:
    from fusewatchd.demo.show import show

    return show(options.server, keep=options.keep)
