"""What must hold of every parser, whatever it is given.

Only the documented exception, text that is fit to be shown, an end that comes soon, and the
way back where there is one.
"""

from __future__ import annotations

import json
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from fusewatchd.config.file import load, parse_value
from fusewatchd.config.settings import Settings, override, settings_from
from fusewatchd.errors import ConfigError, ParseError
from fusewatchd.json_values import decode, encode
from fusewatchd.keeper.fuse_requests import Kind, fuse_request
from fusewatchd.keeper.protocol import MAX_PACKET, answer_of, packet_of, request_of
from fusewatchd.keeper.sorting import Sorter
from fusewatchd.model.actions import DetachOwnLayer, Propagation, ReplaceMount
from fusewatchd.model.findings import SourceAnswer, SourcePath
from fusewatchd.model.ledger import ContainerFacts, Fact, Ledger
from fusewatchd.model.mount_table import mount_from_line, parse_mount_table
from fusewatchd.model.mounts import Mount, MountNamespace, TargetKey
from fusewatchd.model.pods import BindKind, BindPath
from fusewatchd.model.servers import FuseServer
from fusewatchd.model.verdicts import Verdict
from fusewatchd.observe.kubelet.volume_data import read_volume_data
from fusewatchd.parse.cgroups import cgroup_lines, claim_of
from fusewatchd.parse.kubelet_paths import parse_bind_path
from fusewatchd.parse.pod_list import MAX_COMPLAINTS, MAX_TEXT, parse_pod_list
from fusewatchd.state.document import document_of, ledger_from
from fusewatchd.status.document import status_document
from fusewatchd.status.values import Clocks
from fusewatchd.text import printable
from tests.fuzz.mutation import ANY_TEXT, JSON, damaged, mutated, texts_in
from tests.unit.cycles import bind, cycle, finding
from tests.unit.keeper.test_fuse_requests import packet
from tests.unit.keeper.test_protocol import ANSWERS, REQUESTS
from tests.unit.keeper.test_sorting import ACCESS, WORLD, World
from tests.unit.model.test_mount_table import render

DATA = Path(__file__).parents[1] / "data"
SHIPPED = Path(__file__).parents[2] / "conf" / "fusewatchd.yaml"
CPU_SECONDS = 5.0
"""Of this thread, for one input of at most some hundred kilobytes: a hang, not a slow machine."""


@dataclass(frozen=True, slots=True)
class Property:
    """One rule and the inputs it is tried on."""

    name: str
    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], None]


PROPERTIES: list[Property] = []


def holds_for(inputs: st.SearchStrategy[Any]) -> Callable[[Callable[[Any], None]], None]:
    """List a check under its function's name."""

    def add(check: Callable[[Any], None]) -> None:
        PROPERTIES.append(Property(check.__name__, inputs, _in_bounded_time(check)))

    return add


def _in_bounded_time(check: Callable[[Any], None]) -> Callable[[Any], None]:
    def timed(value: Any) -> None:
        began = time.thread_time()
        check(value)
        assert time.thread_time() - began < CPU_SECONDS

    return timed


@contextmanager
def only(allowed: type[Exception]) -> Iterator[None]:
    """Let the documented exception pass if its text can be shown; no other one passes."""
    try:
        yield
    except allowed as exc:
        lines = str(exc).split("\n")
        assert all(line.isprintable() for line in lines), lines
        assert len(lines) <= 1000
        assert max(map(len, lines)) < 20_000


# ------------------------------------------------------------------------ mountinfo

TABLES = [path.read_bytes() for path in sorted((DATA / "mountinfo").iterdir())]
LINES = sorted({line for table in TABLES for line in table.splitlines()})
ODD_LINES = damaged(LINES) | st.binary(max_size=60)


@holds_for(ODD_LINES)
def a_line_that_parses_is_the_same_when_printed_again(line: bytes) -> None:
    with only(ParseError):
        mount = mount_from_line(line)
        assert mount_from_line(render(mount)) == mount


@holds_for(
    st.lists(st.sampled_from(LINES) | ODD_LINES, max_size=12) | damaged(TABLES).map(lambda x: [x])
)
def a_table_answers_every_question(lines: list[bytes]) -> None:
    data = b"".join(line + b"\n" for line in lines)
    previous = parse_mount_table(TABLES[0])
    with only(ParseError):
        table = parse_mount_table(data, previous)
        mounts = list(table)
        assert len(mounts) <= data.count(b"\n")
        assert len(table) == len(mounts)
        for mount in mounts:
            stack = table.stack_at(mount.mount_point)
            assert stack and table.top_at(mount.mount_point) is stack[-1]
            assert set(stack) <= set(table.at(mount.mount_point))
            assert len(table.children_of(mount.mount_id)) <= len(mounts)
            assert mount in table.on_device(mount.device)
            assert mount not in table.below(mount.mount_point)
        assert table.with_changes({m.mount_id for m in mounts}, mounts) == table


# --------------------------------------------------------------- kubelet's directory

ROOTS = st.sampled_from(["/var/lib/kubelet", "/data/kubelet", "/k\udcff"])
NAMES = ANY_TEXT | st.sampled_from([
    "pods", "volumes", "volume-subpaths", "kubernetes.io~csi", "lab~fuse", "kubernetes.io~local-volume", "kubernetes.io~empty-dir", "mount", "..", "", "0",
    "50a97417-eded-45b5-9699-867eb25c5bb8", "0123456789abcdef0123456789abcdef",
])  # fmt: skip


def path_of(root: str, found: BindPath) -> str:
    """Return the path that the kubelet makes for this bind."""
    pod = f"{root}/pods/{found.pod_uid}"
    match found.kind:
        case BindKind.PUBLISH:
            return f"{pod}/volumes/{found.plugin}/{found.volume}/mount"
        case BindKind.SUBPATH:
            return f"{pod}/volume-subpaths/{found.volume}/{found.container}/{found.index}"
        case BindKind.FLEXVOLUME | BindKind.LOCAL:
            return f"{pod}/volumes/{found.plugin}/{found.volume}"
        case BindKind.EMPTY_DIR:
            return "/".join(filter(None, (pod, "volumes", found.plugin, found.volume, found.index)))
        case _:
            raise AssertionError(found)


@holds_for(st.tuples(ROOTS, st.lists(NAMES, max_size=6).map("/".join), st.booleans()))
def a_path_of_a_bind_is_found_again(value: tuple[str, str, bool]) -> None:
    root, below, is_inside = value
    path = f"{root}/pods/{below}" if is_inside else below
    found = parse_bind_path(f"{root}/pods", path)
    if found is not None:
        assert path_of(root, found) == path
        assert ".." not in path.split("/")


UIDS = st.uuids().map(str) | st.uuids().map(lambda uid: uid.hex)
CONTAINERS = st.binary(min_size=32, max_size=32).map(bytes.hex)
SLICES = st.sampled_from(["", "besteffort", "burstable"])
BEFORE = st.sampled_from(["", "/kubelet.slice/docker-0.scope", "/lxc/\x85\u2028\r/node"])


@holds_for(st.tuples(UIDS, CONTAINERS, SLICES, BEFORE, st.booleans(), st.booleans()))
def a_pod_is_known_by_its_cgroup(value: tuple[str, str, str, str, bool, bool]) -> None:
    uid, container, quality, before, by_systemd, is_nested = value
    if by_systemd:
        parts = ["kubepods", *([quality] if quality else [])]
        slices = [f"{'-'.join(parts[: n + 1])}.slice" for n in range(len(parts))]
        pod = f"{'-'.join(parts)}-pod{uid.replace('-', '_')}.slice"
        path = "/".join([before, *slices, pod, f"cri-containerd-{container}.scope"])
    else:
        path = "/".join(
            [before, "kubepods", *([quality] if quality else []), f"pod{uid}", container]
        )
    text = f"12:pids:{path}{'/inner' if is_nested else ''}\n1:name=systemd:/\n"
    line, _ = cgroup_lines(text)
    found = claim_of(line.path)
    assert found is not None
    assert (found.pod_uid, found.container_id, found.anchor) == (uid, container, before)
    assert found.container == path


CGROUPS = [
    b"0::/kubepods/besteffort/pod50a97417-eded-45b5-9699-867eb25c5bb8/" + b"ab" * 32,
    b"9:name=systemd:/kubepods.slice/kubepods-pod50a97417_eded_45b5_9699_867eb25c5bb8.slice/"
    b"cri-containerd-" + b"cd" * 32 + b".scope",
]


@holds_for(damaged(CGROUPS) | st.binary())
def a_cgroup_names_a_pod_or_none(data: bytes) -> None:
    for line in cgroup_lines(data.decode("utf-8", "surrogateescape")):
        found = claim_of(line.path)
        if found is None:
            continue
        uid, container = found.pod_uid, found.container_id
        # A static pod may have any uid that can be the name of a directory.
        assert (uid.isprintable() and uid and "/" not in uid) or found.anchor is None
        assert len(container) <= 64 and (container.isalnum() or not container)
        assert line.path.startswith(found.container) and found.container.startswith(found.above)


# ------------------------------------------------------------------------- pod list

POD_LIST = json.loads((DATA / "kubelet-pods.json").read_text())
SMALL_POD_LIST = {**POD_LIST, "items": POD_LIST["items"][:2]}


@holds_for(mutated(SMALL_POD_LIST) | JSON)
def a_pod_list_is_read_or_refused(document: Any) -> None:
    with only(ParseError):
        found = parse_pod_list(document)
        items = document.get("items") or []
        assert len(found.pods) + len(found.complaints) == min(
            len(items), len(found.pods) + MAX_COMPLAINTS
        )
        assert all(line.isprintable() and len(line) < 1000 for line in found.complaints)
        for pod in found.pods:
            assert pod.uid and pod.name and pod.namespace
            assert max(map(len, texts_in(encode(pod)))) <= MAX_TEXT


# ------------------------------------------------------------------------- settings

DEFAULTS = yaml.safe_load(SHIPPED.read_text())
KEYS = st.sampled_from(
    [f"{name}.{key}" for name, part in DEFAULTS.items() if isinstance(part, dict) for key in part]
    + [*DEFAULTS, "drivers.fluid.mount_root", "recovery.", ".", "node_name.x"]
)  # fmt: skip
YAML = [
    SHIPPED.read_bytes(),
    b"log: {level: info}\n",
    b"- !!set {a}\n? !!set {a: 1}\n: !!binary aGVsbG8=\n",
    b"a: &x [*x, 2001-01-01, 0x1f, 1_0, .inf, ~, !!int '', !!float '', !!bool x]\n",
    b"look_seconds: 0x" + b"f" * 5000 + b"\nlog: 0b1\n",
    b"<<: {a: 1}\n? [a, b]\n: !!timestamp x\n= : !!omap [a: 1]\n%YAML 1.1\n--- |\n ...\n",
]


@holds_for(mutated(DEFAULTS) | JSON | st.dictionaries(KEYS, JSON, max_size=3))
def a_document_gives_settings_or_one_line_for_each_problem(document: Any) -> None:
    with only(ConfigError):
        settings = settings_from(document, "f")
        assert settings_from(encode(settings), "f") == settings


@holds_for(st.tuples(KEYS | ANY_TEXT, JSON))
def a_flag_overrides_one_key_or_is_refused(value: tuple[str, Any]) -> None:
    key, given = value
    with only(ConfigError):
        settings = override(Settings(), {key: given})
        assert settings_from(encode(settings), "f") == settings


@holds_for(damaged(YAML) | st.binary(max_size=60))
def a_file_gives_settings_or_one_line_for_each_problem(data: bytes) -> None:
    with tempfile.NamedTemporaryFile(prefix="fusewatchd-fuzz-") as file:
        file.write(data)
        file.flush()
        with only(ConfigError):
            load(file.name).require()


@holds_for(damaged(YAML).map(lambda data: data.decode("utf-8", "replace")) | ANY_TEXT)
def any_word_of_the_command_line_has_a_value(text: str) -> None:
    assert parse_value(text) is not None


# ----------------------------------------------------------------------------- wire

TRAVELLERS: list[Any] = [Mount, MountNamespace, FuseServer, ReplaceMount, DetachOwnLayer, Fact]


@st.composite
def travelling(draw: st.DrawFn) -> tuple[Any, Any]:
    kind = draw(st.sampled_from(TRAVELLERS))
    return kind, draw(st.from_type(kind))


@holds_for(travelling())
def a_value_survives_the_wire(pair: tuple[Any, Any]) -> None:
    kind, value = pair
    assert decode(kind, json.loads(json.dumps(encode(value)))) == value


@holds_for(travelling().flatmap(lambda p: st.tuples(st.just(p[0]), mutated(encode(p[1])) | JSON)))
def what_comes_off_the_wire_has_its_shape(pair: tuple[Any, Any]) -> None:
    kind, document = pair
    with suppress(ParseError):
        value = decode(kind, document)
        again = encode(value)
        assert decode(kind, again) == value
        assert {name: document[name] for name in again}.keys() == again.keys()
        _is_part_of(again, document)


def _is_part_of(part: Any, whole: Any) -> None:
    """Nothing was made up: what was decoded is what stood there, less what nobody knows."""
    if isinstance(part, dict):
        for name, value in part.items():
            _is_part_of(value, whole[name])
    elif isinstance(part, list):
        assert isinstance(whole, list) and len(part) == len(whole)
        for one, other in zip(part, whole, strict=True):
            _is_part_of(one, other)
    else:
        assert part == whole or part != part


SEEN = ContainerFacts(Propagation.SLAVE, True, "u")
STATE = json.loads(json.dumps(document_of(Ledger(containers={TargetKey(5, "/data"): SEEN}), "b")))


@holds_for(mutated(STATE) | JSON)
def a_state_document_is_believed_or_refused(document: Any) -> None:
    with only(ParseError):
        ledger = ledger_from(document, "b", parse_mount_table(TABLES[0]))
        assert ledger_from(document_of(ledger, "b"), "b", parse_mount_table(TABLES[0])) == ledger


@holds_for(
    damaged([b'{"driverName": "d", "volumeHandle": "h"}'])
    | st.integers(1, 60_000).map(lambda n: b"[" * n)
    | st.binary(max_size=60)
)
def vol_data_is_read_or_there_is_none(data: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="fusewatchd-fuzz-") as directory:
        Path(directory, "vol_data.json").write_bytes(data)
        read_volume_data(directory)


# ------------------------------------------------------------------- text for people


def unprintable(shown: str) -> str:
    """Undo ``printable`` on a text that was not cut."""
    text, rest = "", shown
    while rest:
        size = {"\\\\": 0, "\\x": 2, "\\u": 4, "\\U": 8}.get(rest[:2])
        if size is None:
            text, rest = text + rest[0], rest[1:]
            continue
        code = int(rest[2 : 2 + size], 16) if size else ord("\\")
        is_byte = size == 2 and code >= 0x80
        text += chr(code + 0xDC00) if is_byte else chr(code)
        rest = rest[2 + size :]
    return text


ESCAPABLE = ANY_TEXT | st.text(
    "\x80\x85\xa0\xad\udc80\udc85\udcad\\x8\u2028\U000e0001…", max_size=30
)


@holds_for(st.tuples(ESCAPABLE, st.integers(1, 400)))
def escaped_text_is_bounded_and_can_be_read_back(value: tuple[str, int]) -> None:
    text, limit = value
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    shown.encode("utf-8")
    whole = printable(text, 10 * len(text) + 1)
    assert unprintable(whole) == text
    assert shown in (whole, whole[: limit - 1] + "…")


@holds_for(st.tuples(ESCAPABLE, ESCAPABLE, ESCAPABLE, st.sampled_from(list(Verdict))))
def a_status_document_can_be_shown_and_names_the_very_path(
    value: tuple[str, str, str, Verdict],
) -> None:
    path, name, why, verdict = value
    of = bind(volume=name, driver=why)
    of = replace(of, key=of.key._replace(mount_point=f"/{path}"))
    of = replace(of, source=SourceAnswer(name, why, (SourcePath(f"/{path}"),)))
    clocks = Clocks(1_700_000_000.0, 100.0, 1_699_999_000.0)
    of_one = cycle(finding(of, verdict, evidence=why))
    made = status_document(of_one, clocks, version="1", way="staged")
    assert all(text.isprintable() for text in texts_in(made))
    json.dumps(made).encode("ascii")
    assert unprintable(made["binds"][0]["mount_point"]) == f"/{path}"
    assert unprintable(made["binds"][0]["source"]["path"]) == f"/{path}"


# ------------------------------------------------------------------------ the keeper

SAID = [packet_of(message) for message in (*REQUESTS, *ANSWERS)]


@holds_for(
    damaged(SAID)
    | st.sampled_from(SAID).map(json.loads).flatmap(mutated).map(lambda v: json.dumps(v).encode())
)
def a_packet_is_a_message_that_can_be_sent_again_or_refused(packet: bytes) -> None:
    for read in (request_of, answer_of):
        with suppress(ParseError):
            message = read(packet)
            if len(packet) < MAX_PACKET // 8:
                assert read(packet_of(message)) == message


ASKED = [packet(opcode, struct.pack("=QQ", 1, 40)) for opcode in range(55)]
"""Requests of the kernel."""


@holds_for(damaged(ASKED) | st.binary(max_size=80) | st.sampled_from(ASKED))
def a_request_of_the_kernel_is_sorted_or_refused(data: bytes) -> None:
    with suppress(ParseError):
        request = fuse_request(memoryview(data))
        assert len(data) >= 40
        assert request.kind is not Kind.INTERRUPT or data[4:8] == struct.pack("=I", 36)
        one = Sorter(ACCESS, World(dict(WORLD)))
        replies = one.take(request, 1.0)
        waits = request.kind is Kind.PATH and not replies
        assert one.waiting == waits
        assert len(replies) == (request.kind not in (Kind.NOTHING, Kind.INTERRUPT) and not waits)


# ----------------------------------------------------------------- what costs too much

FRAGMENTS = [b" - ", b" ", b"a", b"\\040", b"pod", b"/", b"kubepods", b"-", b"[", b"{", b"\n"]
FRAGMENTS += [LINES[0], CGROUPS[0], b"9", b" shared:1", b": ", b"- ", b"&a [*a]\n", b"\xff"]


@holds_for(
    st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=4)
    .map(b"".join)
    .flatmap(lambda part: st.integers(1, 60_000 // len(part)).map(lambda n: part * n))
)
def the_same_thing_many_times_costs_no_more_than_it_must(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    with suppress(ParseError):
        list(parse_mount_table(data))
    with suppress(ParseError):
        mount_from_line(LINES[0][:20] + data)
    for line in cgroup_lines(f"0::/kubepods/{text}"):
        claim_of(line.path)
    parse_bind_path("/k/pods", f"/k/pods/{text}")
    assert len(printable(text)) <= 256
    with suppress(ConfigError):
        settings_from({text: text, "log": {text: 1, "level": text}}, "f")
