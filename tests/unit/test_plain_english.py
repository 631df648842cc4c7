"""What people read is in plain English: short sentences, known words; no text gets worse.

Texts in ``STRICT`` keep every rule.  All others have at most as many faults as ``faults.json``
says for their file, a number that may only fall: ``python -m tests.unit.test_plain_english`` writes
it down anew after texts were mended.
"""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from argparse import SUPPRESS, ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import pytest

from fusewatchd.cli import make_parser
from fusewatchd.report.events.server_actions import ServerActionEvent
from fusewatchd.report.events.volumes import ON_CLAIM
from fusewatchd.report.events.wording import EventKind
from fusewatchd.status.advice import DETACHES, REFUSED, UNCLAIMED, UNREACHED, VERDICTS
from fusewatchd.status.reasons import REASONS

ROOT = Path(__file__).parents[2]
ALLOWED = ROOT / "tests/data/plain_english/faults.json"
LONGEST = 25
"""Words in a sentence."""
BANNED = re.compile(
    r"\b(anew|told|somebody|nobody|whoever|whom|by (?:itself|themselves)|for ever|lest|"
    r"over (?:a )?restarts?|put (?:right|in order)|in (?:its|their) stead|come along|"
    r"for lack of memory|tell of|tells of|to know of|binds?)\b",
    re.IGNORECASE,
)
STRICT = (
    "CONTRIBUTING.md",
    "README.md",
    "conf/fusewatchd.yaml",
    "conf/README.md",
    "conf/prometheus/README.md",
    "fusewatchd/drivers/README.md",
    "tests/README.md",
    "tests/bench/README.md",
    "conf/prometheus/rules.yml",
    "packaging/man/fusewatchd.8.in",
    "packaging/man/fusewatchd.yaml.5.in",
    "packaging/man/fusewatchd-reasons.7.in",
)
MARKDOWN = tuple(
    str(path.relative_to(ROOT))
    for folder in ("", "conf", "fusewatchd", "packaging", "systemd", "tests")
    for path in sorted((ROOT / folder).glob("*.md" if not folder else "**/*.md"))
)
MODULES = tuple(str(path.relative_to(ROOT)) for path in sorted((ROOT / "fusewatchd").rglob("*.py")))
OTHERS = (
    "conf/fusewatchd.yaml",
    "conf/prometheus/rules.yml",
    "packaging/man/fusewatchd.8.in",
    "packaging/man/fusewatchd.yaml.5.in",
    "packaging/man/fusewatchd-reasons.7.in",
)


def faults(text: str) -> Iterator[str]:
    """Yield what is wrong with a plain text of paragraphs."""
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=[.!?])[)*\"]*(?:\s+|$)", " ".join(paragraph.split())):
            words = re.findall(r"[A-Za-z0-9][^\s]*", sentence)
            if len(words) > LONGEST:
                yield f"{len(words)} words: {sentence}"
            for found in BANNED.findall(sentence):
                yield f"{found!r}: {sentence}"


def markdown_text(page: str) -> str:
    """Return the prose of a page: no code, one paragraph for each item, cell and heading."""
    page = re.sub(r"^## Glossary\n.*?(?=^## |\Z)", "", page, flags=re.MULTILINE | re.DOTALL)
    page = re.sub(r"```.*?```|<!--.*?-->", "", page, flags=re.DOTALL)
    page = re.sub(r"(?:\A|(?<=\n\n))(?: {4}.*\n+)+", "\n", page)
    page = re.sub(r"``?[^`]+``?", "Code", page)
    page = re.sub(r"Code(?:, Code)+", "Code", page)
    page = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", page)
    page = re.sub(r"^\s*(?:[*-]|\d+\.) |^#+ .*$|\|", "\n\n", page, flags=re.MULTILINE)
    return page.replace("**", "").replace(" · ", "\n\n")


def comments_text(page: str) -> str:
    """Return the prose of a file whose comments begin with ``#``; examples are indented there."""
    lines = [line.strip() for line in page.splitlines()]
    bare = (line[1:] if line.startswith("#") else "" for line in lines)
    text = "\n".join("" if line.startswith("   ") else line for line in bare)
    return re.sub(r"\([^)]*\)", "", text)


def python_text(source: str) -> str:
    """Return docstrings and comments; what is in backquotes is code."""
    tree = ast.parse(source)
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    texts = [
        ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            texts.append(cleandoc(str(node.value.value)))
    comments = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments += token.string.lstrip("#: ") + "\n"
        elif token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            comments += "\n" if not comments.endswith("\n\n") else ""
    text = "\n\n".join(dict.fromkeys([*texts, comments]))
    return re.sub(r"``[^`]+``", "Code", re.sub(r"^\s*\* ", "\n\n", text, flags=re.MULTILINE))


def rules_text(page: str) -> str:
    """Return summaries and descriptions of alerts."""
    texts = re.findall(r"(?:summary|description): (?:>-\n)?((?:.|\n(?= {12}))*)", page)
    return "\n\n".join(re.sub(r"\{\{[^}]*\}\}|`[^`]*`", "Code", text.strip("'")) for text in texts)


def roff_text(page: str) -> str:
    """Return the text of a manual page."""
    return re.sub(
        r"\\fB|\\fR", "", re.sub(r"^\.(TP|PP|SH|EX|EE|TH).*$", "\n", page, flags=re.MULTILINE)
    )


def faults_of(name: str) -> list[str]:
    """Return what is wrong with one file of the project."""
    page = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".md"):
        return list(faults(markdown_text(page)))
    if name.endswith(".py"):
        return list(faults(python_text(page)))
    if name.endswith("rules.yml"):
        return list(faults(rules_text(page)))
    return list(faults(roff_text(page) if name.endswith(".in") else comments_text(page)))


def _spoken() -> Iterator[str]:
    """Yield what the program itself says: advice, help, Events."""
    for advice in (*VERDICTS.values(), *REASONS.values(), DETACHES, UNREACHED, UNCLAIMED, REFUSED):
        yield from (advice.meaning, advice.todo, advice.then)
    for parser in (make_parser(), *_commands(make_parser())):
        yield from (action.help or "" for action in parser._actions if action.help != SUPPRESS)
    for kind in (*EventKind, *ServerActionEvent):
        yield kind.value[-1]
    yield from ON_CLAIM.values()


def _commands(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            yield from action.choices.values()


def _allowed() -> dict[str, int]:
    found: dict[str, int] = json.loads(ALLOWED.read_text()) if ALLOWED.exists() else {}
    return found


@pytest.mark.parametrize("name", [*MARKDOWN, *OTHERS])
def test_a_text_is_plain(name: str) -> None:
    found = faults_of(name)
    assert len(found) <= _allowed().get(name, 0), "\n".join(found)


def test_no_docstring_or_comment_gets_worse() -> None:
    allowed = _allowed()
    worse = {
        name: found for name in MODULES if len(found := faults_of(name)) > allowed.get(name, 0)
    }
    assert not worse, json.dumps(worse, indent=1)


@pytest.mark.parametrize("text", list(dict.fromkeys(_spoken())))
def test_what_the_program_says_is_plain(text: str) -> None:
    assert not list(faults(re.sub(r"`[^`]*`", "Code", text)))


def test_what_must_keep_every_rule_is_not_excused() -> None:
    assert not set(STRICT) & set(_allowed())


def test_a_long_sentence_and_a_strange_word_are_found() -> None:
    assert len(list(faults("It is bound anew by somebody.  " + "word " * 26 + "."))) == 3
    assert not list(
        faults(markdown_text("`mount --bind` is code. " + "word " * 24 + ". Another one."))
    )
    assert list(faults(markdown_text("A *bind* is old.\n\n    bind\n"))) == [
        "'bind': A *bind* is old."
    ]


def test_the_readme_fits_two_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_the_readme_runs_what_the_pipeline_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    steps = (ROOT / ".ci/run").read_text(encoding="utf-8")
    for command in ("make demo", "make test"):
        assert f"\n    {command}\n" in readme
        assert re.search(rf"^{command}\b", steps, re.MULTILINE)


def test_every_link_leads_somewhere() -> None:
    for name in MARKDOWN:
        page = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page):
            if "://" not in target:
                assert ((ROOT / name).parent / target).exists(), f"{name}: {target}"


def _write_down() -> None:
    before = _allowed()
    found = {name: len(faults_of(name)) for name in (*MARKDOWN, *OTHERS, *MODULES)}
    found = {name: min(count, before.get(name, count)) for name, count in found.items()}
    ALLOWED.parent.mkdir(exist_ok=True)
    kept = {name: count for name, count in found.items() if count and name not in STRICT}
    ALLOWED.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    _write_down()
