"""Pods that are written down as a list and read again."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from fusewatchd.model.pods import Pod, Volume, VolumeMount
from fusewatchd.parse.pod_document import pod_list_of
from fusewatchd.parse.pod_list import ANNOTATION_PREFIX, MAX_ENTRIES, parse_pod_list

TEXT = st.text(min_size=1, max_size=20)
ANY = st.text(max_size=20)
KIND = st.one_of(st.just(""), TEXT.filter(lambda text: text != "name"))


@st.composite
def volumes(draw: st.DrawFn) -> Volume:
    kind = draw(KIND)
    more = [draw(ANY) for _ in range(3)] if kind else [""] * 3
    return Volume(draw(TEXT), kind, *more)


MOUNTS = st.builds(
    VolumeMount, TEXT, TEXT, TEXT, st.booleans(), st.sampled_from(["None", "x"]), ANY
)
ANNOTATIONS = st.dictionaries(ANY.map(lambda text: ANNOTATION_PREFIX + text), ANY, max_size=3)


@st.composite
def pods(draw: st.DrawFn) -> Pod:
    uid = draw(TEXT.filter(lambda text: not {"/", "\0"} & {*text} and text not in (".", "..")))
    ids = TEXT.filter(lambda text: "://" not in text)
    return Pod(
        uid,
        uid,
        draw(TEXT),
        draw(TEXT),
        draw(ANY),
        draw(st.booleans()),
        tuple(draw(st.lists(volumes(), max_size=3))),
        tuple(draw(st.lists(MOUNTS, max_size=5))),
        draw(ANNOTATIONS),
        draw(st.booleans()),
        draw(st.dictionaries(ids, TEXT, max_size=3)),
    )


@given(st.lists(pods(), max_size=4))
def test_what_is_read_again_is_what_was_written(written: list[Pod]) -> None:
    found = parse_pod_list(json.loads(json.dumps(pod_list_of(written))))
    assert (found.pods, found.complaints) == (tuple(written), ())


def test_as_many_entries_as_a_list_can_have() -> None:
    mounts = tuple(
        VolumeMount(f"c{n // 2}", f"v{n}", "/data", False, "None") for n in range(3 * MAX_ENTRIES)
    )
    one = tuple(VolumeMount("c", f"v{n}", "/data", False, "None") for n in range(2 * MAX_ENTRIES))
    containers = {f"id{n}": f"c{n}" for n in range(3 * MAX_ENTRIES)}
    written = tuple(
        Pod(uid, uid, "ns", "name", "Running", False, volume_mounts=each, containers=containers)
        for uid, each in (("one", mounts), ("other", one))
    )
    assert parse_pod_list(pod_list_of(written)).pods == written
