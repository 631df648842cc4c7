"""What may stand in ``drivers.templates``, and what is said of everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fusewatchd.config.settings import Settings, TemplateSettings, override, settings_from
from fusewatchd.errors import ConfigError

SHIPPED = Path(__file__).parents[3] / "conf" / "fusewatchd.yaml"
KEY = "f: drivers.templates"


def entry(**keys: object) -> dict[str, object]:
    return {"name": "acme", "csi_driver": "acme.example.com", "source": "/mnt/a", **keys}


def settings(*entries: object) -> Settings:
    return settings_from({"drivers": {"templates": list(entries)}}, "f")


@pytest.mark.parametrize(
    "source",
    [
        "/mnt/a",
        "/mnt/{volume}",
        "/mnt/v-{volume_handle}.d/x",
        "/{namespace}/{volume}/{pod_uid}",
        "{kubelet_root}/plugins/acme/{volume_handle_sha256}",
    ],
)
def test_sources_that_name_one_path(source: str) -> None:
    (template,) = settings(entry(source=source)).drivers.templates
    assert template == TemplateSettings("acme", "acme.example.com", "", source, in_pod=False)


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("mnt/a", "it must begin with / or {kubelet_root}/"),
        ("{volume}/a", "it must begin with / or {kubelet_root}/"),
        ("{kubelet_root}", "it must begin with / or {kubelet_root}/"),
        ("/mnt/", "it has an empty directory name, . or .."),
        ("/mnt//a", "it has an empty directory name, . or .."),
        ("/mnt/../{volume}", "it has an empty directory name, . or .."),
        ("/", "it has an empty directory name, . or .."),
        (
            "/mnt/{handle}",
            "there is no field {handle}; there are volume_handle, volume_handle_sha256, volume,"
            " namespace, pod_uid",
        ),
        (
            "/mnt/{}",
            "there is no field {}; there are volume_handle, volume_handle_sha256, volume,"
            " namespace, pod_uid",
        ),
        (
            "/a/{kubelet_root}/b",
            "there is no field {kubelet_root}; there are volume_handle, volume_handle_sha256,"
            " volume, namespace, pod_uid",
        ),
        (
            "/mnt/{namespace}-{volume}",
            "two fields in one directory name cannot be told apart: {namespace}-{volume}",
        ),
        ("/mnt/{volume", "a brace without its other one: {volume"),
        ("/mnt/{{volume}}", "a brace without its other one: {{volume}}"),
    ],
)
def test_sources_that_do_not(source: str, wrong: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings(entry(source=source))
    assert str(error.value) == f"{KEY}[0]: source: {wrong}"


@pytest.mark.parametrize(
    ("entries", "lines"),
    [
        ("x", [": expected a list of at most 1000 entries, found x"]),
        (["x"], ["[0]: expected keys and values, found x"]),
        ([{}], ["[0]: it needs a name"]),
        ([entry(nmae="x")], ["[0].nmae: no such key; did you mean name?"]),
        ([entry(name="A b")], ["[0].name: expected small letters, digits, . and -, at most 63, found A b"]),
        ([entry(csi_driver="")], ["[0]: it needs one of csi_driver and flexvolume, and not both"]),
        ([entry(flexvolume="a/b")], ["[0]: it needs one of csi_driver and flexvolume, and not both"]),
        ([entry(source="")], ["[0]: it needs a source, or in_pod: true, and not both"]),
        ([entry(in_pod=True)], ["[0]: it needs a source, or in_pod: true, and not both"]),
        (
            [{"name": "a", "flexvolume": "a~b", "in_pod": True}],
            ["[0].flexvolume: expected vendor/driver, or nothing, found a~b"],
        ),
        (
            [{"name": "a", "flexvolume": "a/b", "source": "/x/{volume_handle}"}],
            ["[0]: source: a FlexVolume has no volume handle"],
        ),
        ([entry(), entry(source="x")], ["[1]: source: it must begin with / or {kubelet_root}/"]),
        ([entry(source=5, in_pod="x")], ["[0].source: expected text, found 5", "[0].in_pod: expected true or false, found x"]),
    ],
)  # fmt: skip
def test_entries_that_say_nothing_clear(entries: Any, lines: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        settings_from({"drivers": {"templates": entries}}, "f")
    assert str(error.value).splitlines() == [KEY + line for line in lines]


@pytest.mark.parametrize(
    "other", [entry(csi_driver="other.example.com"), entry(name="other")], ids=["name", "driver"]
)
def test_two_entries_for_one_name_or_driver(other: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected one entry for each name and for each driver"):
        settings(entry(), other)


def test_another_problem_elsewhere_makes_none_here() -> None:
    with pytest.raises(ConfigError) as error:
        settings_from({"node_nmae": "x", "drivers": {"templates": [entry()]}}, "f")
    assert str(error.value) == "f: node_nmae: no such key; did you mean node_name?"


def test_templates_on_the_command_line() -> None:
    changed = override(Settings(), {"drivers.templates": [entry()]})
    assert [template.name for template in changed.drivers.templates] == ["acme"]
    with pytest.raises(ConfigError, match=r"drivers.templates\[0\]: it needs a name"):
        override(Settings(), {"drivers.templates": [{}]})


def test_the_example_in_the_shipped_file_is_a_good_one() -> None:
    lines = SHIPPED.read_text().splitlines()
    start = lines.index("  #   templates:")
    example = []
    for line in lines[start:]:
        if not line.startswith("  #   "):
            break
        example.append(line.removeprefix("  #   "))
    found = settings_from({"drivers": yaml.safe_load("\n".join(example))}, "f").drivers.templates
    assert [template.name for template in found] == ["acmefs", "oldfs", "podfs"]
