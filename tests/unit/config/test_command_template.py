"""Templates of commands and units, and the names of units."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.config.command_template import (
    UnusableValueError,
    argument,
    escape,
    escape_path,
    is_unit_name,
    problem_of,
    problem_of_command,
    problem_of_unit,
    unit,
)

VALUES = {
    "volume": "pv-1",
    "handle": "bucket/prefix",
    "driver": "csi.example.com",
    "target": "/var/lib/kubelet/pods/u/mount",
    "pod_uid": "u",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain:A_z.9", "plain:A_z.9"),
        ("a-b/c.d", r"a\x2db-c.d"),
        (".hidden", r"\x2ehidden"),
        ("ä b", r"\xc3\xa4\x20b"),
        ("@\\%", r"\x40\x5c\x25"),
        ("$(reboot)\n", r"\x24\x28reboot\x29\x0a"),
        ("", ""),
    ],
)
def test_names_are_escaped(text: str, expected: str) -> None:
    assert escape(text) == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", "-"),
        ("/var//lib/x-y/.z/", r"var-lib-x\x2dy-.z"),
        ("/.z", r"\x2ez"),
        ("/mnt/a b", r"mnt-a\x20b"),
    ],
)
def test_paths_are_escaped(path: str, expected: str) -> None:
    assert escape_path(path) == expected


@pytest.mark.skipif(not shutil.which("systemd-escape"), reason="systemd is not installed")
def test_escaped_as_systemd_does() -> None:
    texts = ["a-b/c.d", ".x", "ä b", "a:b_c", "x@y", "\\", "%n", "~", "a//b", "0.-"]
    done = subprocess.run(["systemd-escape", "--", *texts], capture_output=True, text=True)
    assert done.stdout.split() == [escape(text) for text in texts]
    paths = ["/", "/a/b-c", "//a//b/", "/.x/y", "/ä"]
    done = subprocess.run(
        ["systemd-escape", "--path", "--", *paths], capture_output=True, text=True
    )
    assert done.stdout.split() == [escape_path(path) for path in paths]


@given(st.text(min_size=1, max_size=60))
def test_whatever_a_volume_is_called_it_is_one_plain_name(text: str) -> None:
    name = f"fuse@{escape(text)}.service"
    assert is_unit_name(name) or len(name) > 255
    assert not set(escape(text)) & set(" \t\n/@'\"$`")


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("a@b.service", True),
        ("a.mount", True),
        ("a", False),
        ("-a.service", False),
        ("a@b@c.service", False),
        ("a b.service", False),
        ("a.socket", False),
        ("@b.service", False),
        ("x" * 248 + ".service", False),
    ],
)
def test_what_is_the_name_of_a_unit(name: str, is_one: bool) -> None:
    assert is_unit_name(name) is is_one


def test_units_have_their_values_escaped() -> None:
    assert unit("geesefs@{volume}.service", VALUES) == r"geesefs@pv\x2d1.service"
    assert unit("{target}.mount", VALUES) == "var-lib-kubelet-pods-u-mount.mount"
    assert unit("fixed.service", {}) == "fixed.service"


def test_arguments_have_their_values_as_they_are() -> None:
    assert argument("{target}", VALUES) == VALUES["target"]
    assert argument("--volume={handle}:{volume}", VALUES) == "--volume=bucket/prefix:pv-1"
    assert argument("{{literal}}", VALUES) == "{literal}"


@pytest.mark.parametrize(
    ("template", "values"),
    [
        ("{source}", {}),
        ("{source}", {"source": ""}),
        ("{handle}", {"handle": "a\nb"}),
        ("{handle}", {"handle": "a\0b"}),
        ("{handle}", {"handle": "\x1b[31m"}),
        ("{handle}", {"handle": "x" * 5000}),
        ("{handle}", {"handle": "--exec=/bin/sh"}),
        ("{handle}{volume}", {"handle": "-o", "volume": "x"}),
    ],
)
def test_values_that_are_not_passed_on(template: str, values: dict[str, str]) -> None:
    with pytest.raises(UnusableValueError):
        argument(template, values)


def test_a_unit_whose_name_would_be_too_long_is_no_unit() -> None:
    with pytest.raises(UnusableValueError):
        unit("fuse@{handle}.service", {"handle": "-" * 80})


FIELDS = "{target}, {source}, {volume}, {handle}, {driver}, {pod_uid}"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("", ""),
        ("plain {volume}", ""),
        ("{pod}", f"no other fields than {FIELDS}"),
        ("{}", f"no other fields than {FIELDS}"),
        ("{volume.x}", f"no other fields than {FIELDS}"),
        ("{volume!r}", f"no other fields than {FIELDS}"),
        ("{volume:10}", f"no other fields than {FIELDS}"),
        ("a\nb", "text without control characters"),
    ],
)
def test_templates_are_checked(template: str, problem: str) -> None:
    assert problem_of(template) == problem


def test_an_open_brace_is_told() -> None:
    assert problem_of("{volume").startswith("text with {target}")


@pytest.mark.parametrize(
    ("words", "is_fine"),
    [
        (("/bin/x", "{target}"), True),
        (("x",), False),
        (("./x",), False),
        (("/bin/{volume}",), False),
        (("/bin/x", "{nope}"), False),
    ],
)
def test_commands_are_checked(words: tuple[str, ...], is_fine: bool) -> None:
    assert (problem_of_command(words) == "") is is_fine


@pytest.mark.parametrize(
    ("template", "is_fine"),
    [
        ("a@{volume}.service", True),
        ("a@{volume}", False),
        ("a b@{volume}.service", False),
        ("--force.service", False),
        ("a@{nope}.service", False),
    ],
)
def test_units_are_checked(template: str, is_fine: bool) -> None:
    assert (problem_of_unit(template) == "") is is_fine
