#!/usr/bin/env python3
"""Write the man pages and the completions: python3 packaging/generate.py DIRECTORY.

Commands and options are read off the parser, keys off ``conf/fusewatchd.yaml``: neither page
nor completion can fall behind.  Needs nothing but Python and the source tree.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP))

# The path comes first: this runs where the package is not installed.
from fusewatchd import __version__  # noqa: E402
from fusewatchd.cli import make_parser  # noqa: E402
from fusewatchd.model.verdicts import Reason  # noqa: E402
from fusewatchd.status.advice import VERDICTS, Advice, filled  # noqa: E402
from fusewatchd.status.reasons import REASONS  # noqa: E402

_FILE_OPTIONS = ("--config",)


def main() -> int:
    """Write all files."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    commands = commands_of(make_parser())
    page = (TOP / "packaging/man/fusewatchd.8.in").read_text()
    settings = (TOP / "packaging/man/fusewatchd.yaml.5.in").read_text()
    entries = entries_of((TOP / "conf/fusewatchd.yaml").read_text())
    files = {
        "fusewatchd.8": _filled(page, COMMANDS=commands_page(commands)),
        "fusewatchd.yaml.5": _filled(settings, KEYS=keys_page(entries)),
        "fusewatchd-reasons.7": _filled(
            (TOP / "packaging/man/fusewatchd-reasons.7.in").read_text(),
            VERDICTS=advice_page((key.value, advice) for key, advice in VERDICTS.items()),
            REASONS=advice_page((key.value, advice) for key, advice in sorted_reasons()),
        ),
        "fusewatchd": bash_completion(commands),
        "_fusewatchd": zsh_completion(commands),
    }
    for name, text in files.items():
        (directory / name).write_text(text)
    return 0


def _filled(template: str, **parts: str) -> str:
    moment = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time())))
    parts |= {"VERSION": __version__, "DATE": time.strftime("%Y-%m-%d", moment)}
    return re.sub(r"@([A-Z]+)@", lambda found: parts[found[1]], template)


# ------------------------------------------------------------------------- the command line


@dataclass(frozen=True, slots=True)
class Option:
    """One option, or argument without a flag, as a person sees it."""

    flag: str
    value: str
    """Name of its value; empty when it takes none."""
    help: str
    is_required: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """One command and its options."""

    name: str
    help: str
    options: tuple[Option, ...]

    @property
    def flags(self) -> list[str]:
        """What begins with a dash."""
        return [option.flag for option in self.options if option.flag.startswith("-")]


def commands_of(parser: argparse.ArgumentParser) -> tuple[Command, ...]:
    """Return what the parser takes, without what is hidden."""
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
    return tuple(
        Command(name, helps[name], tuple(_options(sub)))
        for name, sub in action.choices.items()
        if name in helps
    )


def _options(parser: argparse.ArgumentParser) -> Iterator[Option]:
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or "--help" in action.option_strings:
            continue
        metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        if action.option_strings:
            value = "" if action.nargs == 0 else metavar
            yield Option(action.option_strings[-1], value, action.help or "")
        else:
            yield Option(metavar, "", action.help or "", action.nargs != "?")


def commands_page(commands: tuple[Command, ...]) -> str:
    """Return the list of commands in man(7), what several of them take at its end."""
    everywhere = Counter(option for command in commands for option in command.options)
    common = [option for option, times in everywhere.items() if times > 1 and option.help]
    lines: list[str] = []
    for command in commands:
        usage = "".join(f" {_usage(option)}" for option in command.options)
        lines += [".TP", f"\\fB{roff(command.name)}\\fR{usage}", _sentence(command.help)]
        for option in command.options:
            if option.help and option not in common:
                lines += [".RS", *_option_page(option), ".RE"]
    lines += [".PP", "Options of more than one command:"]
    return "\n".join([*lines, *(line for option in common for line in _option_page(option))])


def _usage(option: Option) -> str:
    shown = roff(_shown(option))
    return shown if option.is_required else f"[{shown}]"


def _option_page(option: Option) -> list[str]:
    return [".TP", f"\\fB{roff(_shown(option))}\\fR", _sentence(option.help)]


def _shown(option: Option) -> str:
    return f"{option.flag} {option.value}".rstrip()


def _sentence(text: str) -> str:
    return roff(text[:1].upper() + text[1:] + ("" if text.endswith(".") else "."))


def bash_completion(commands: tuple[Command, ...]) -> str:
    """Return a completion for bash(1)."""
    names = " ".join(command.name for command in commands)
    cases = "\n".join(
        f"        {command.name}) words='{' '.join(command.flags)}' ;;"
        for command in commands
        if command.options
    )
    return f"""\
# bash completion for fusewatchd
_fusewatchd() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=''
    COMPREPLY=()
    case $before in
        {"|".join(_FILE_OPTIONS)}) mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    esac
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
    if [ "$COMP_CWORD" -eq 1 ]; then words='{names} --help --version'; fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}}
complete -F _fusewatchd fusewatchd
"""


def zsh_completion(commands: tuple[Command, ...]) -> str:
    """Return a completion for zsh(1)."""
    names = "\n".join(f"    {_zsh_quoted(f'{c.name}:{c.help}')}" for c in commands)
    cases = "\n".join(
        f"    {c.name}) _arguments {' '.join(_zsh_option(o) for o in c.options)} ;;"
        for c in commands
        if c.options
    )
    return f"""\
#compdef fusewatchd
local -a commands
commands=(
{names}
)
if (( CURRENT == 2 )); then
  _describe command commands
  _values option --help --version
  return
fi
local command=$words[2]
shift words
(( CURRENT-- ))
case $command in
{cases}
esac
"""


def _zsh_option(option: Option) -> str:
    if not option.flag.startswith("-"):
        return f":{option.flag.lower()}:"
    help_text = re.sub(r"[\[\]:]", " ", option.help)
    action = "_files" if option.flag in _FILE_OPTIONS else ""
    value = f":{option.value}:{action}" if option.value else ""
    many = "*" if option.flag == "--set" else ""
    return _zsh_quoted(f"{many}{option.flag}[{help_text}]{value}")


def _zsh_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# ------------------------------------------------------------------------ the configuration


@dataclass(slots=True)
class Entry:
    """Keys that one comment of the file describes; a section has no default."""

    keys: list[tuple[str, str | None]] = field(default_factory=list)
    comment: str = ""


def entries_of(text: str) -> list[Entry]:
    """Return what the file says about each key, in its order; the head of the file is left out."""
    entries: list[Entry] = []
    comment: list[str] = []
    sections: list[tuple[int, str]] = []
    items: list[str] = []
    for line in text.split("\n\n", 1)[1].splitlines():
        bare = line.strip()
        indent = len(line) - len(line.lstrip())
        if bare.startswith("#"):
            comment.append(bare[1:].strip())
        elif bare.startswith("- "):
            items.append(bare[2:])
            key, _ = entries[-1].keys[-1]
            entries[-1].keys[-1] = (key, f"[{', '.join(items)}]")
        elif bare:
            items = []
            name, _, value = bare.partition(":")
            sections = [(i, n) for i, n in sections if i < indent]
            key = ".".join([*(n for _, n in sections), name])
            sections.append((indent, name))
            if comment or not value or not entries or not entries[-1].comment:
                entries.append(Entry(comment=" ".join(comment)))
            entries[-1].keys.append((key, value.strip() or None))
            comment = []
    return entries


def keys_page(entries: list[Entry]) -> str:
    """Return the list of keys in man(7)."""
    lines: list[str] = []
    for entry in entries:
        tag = ".TP"
        for key, value in entry.keys:
            default = f" ({roff(value)})" if value is not None else ""
            lines += [tag, f"\\fB{roff(key)}\\fR{default}"]
            tag = ".TQ"
        lines += [roff(entry.comment)] if entry.comment else ["\\&"]
    return "\n".join(lines)


# --------------------------------------------------------------------------- the reasons


def sorted_reasons() -> list[tuple[Reason, Advice]]:
    """Return all reasons by name, without the one that says that there is none."""
    found = [(reason, advice) for reason, advice in REASONS.items() if reason is not Reason.NONE]
    return sorted(found, key=lambda pair: pair[0].value)


def advice_page(entries: Iterable[tuple[str, Advice]]) -> str:
    """Return what verdicts or reasons mean in man(7)."""
    lines: list[str] = []
    for name, advice in entries:
        lines += [".TP", f"\\fB{roff(name)}\\fR", _marked(advice.meaning)]
        for head, text in (("To do: ", advice.todo), ("Next: ", advice.then)):
            lines += [".br", f"\\fI{head}\\fR{_marked(text)}"]
    return "\n".join(lines)


def _marked(text: str) -> str:
    """Return a text with its commands in bold."""
    return re.sub(r"`([^`]*)`", r"\\fB\1\\fR", roff(filled(text)))


def roff(text: str) -> str:
    """Return plain text for man(7), one sentence to a line."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "\\&...")
    text = re.sub(r"(?<=[.:;]) {2,}", "\n", text)
    return "\n".join(f"\\&{line}" if line[:1] in ".'" else line for line in text.split("\n"))


if __name__ == "__main__":
    sys.exit(main())
