"""A new source must serve; a living server is judged by whether it lives, and gets a word."""

from __future__ import annotations

import errno

import pytest

from fusewatchd.diagnose.proof import doubt_about
from fusewatchd.model.plan import SupersededPolicy
from fusewatchd.model.servers import SERVED, Answer, Connection, Root
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.plan.planner import Policy
from tests.unit.scenes import NEW, OLD, SOURCE, Scene, replacements, usual

GOOD = Connection(NEW, Answer.ANSWERED)
UNPROVEN = {Reason.SOURCE_UNPROVEN}


@pytest.mark.parametrize(
    ("connection", "text", "number"),
    [
        (None, "has not answered yet", 0),
        (Connection(NEW, None), "has not answered yet", 0),
        (Connection(NEW, Answer.ANSWERED, is_overdue=True), "has not answered yet", 0),
        (Connection(NEW, Answer.ANSWERED, is_outdated=True), "has not answered since", 0),
        (Connection(NEW, Answer.ERROR, errno=5), "answers with EIO", 5),
        (Connection(NEW, Answer.REFUSED, errno=107), "answers with ENOTCONN", 107),
        (Connection(NEW, Answer.NOT_ALLOWED, errno=13), "may not be asked", 13),
        (Connection(NEW, Answer.DISCONNECTED, errno=107), "no server any more", 0),
        (Connection(NEW, Answer.ANSWERED, root=Root(is_pending=True)), "not been looked at", 0),
        (Connection(NEW, Answer.ANSWERED, root=Root(errno.ESTALE)), "root gives ESTALE", 116),
    ],
)
def test_what_is_in_doubt(connection: Connection | None, text: str, number: int) -> None:
    doubt = doubt_about(connection)
    assert doubt is not None
    assert text in doubt.text
    assert doubt.errno == number


@pytest.mark.parametrize(
    "root",
    [SERVED, Root(errno.EACCES), Root(errno.EPERM), Root(errno.ENOSYS), Root(is_slow=True)],
)
def test_what_is_proven(root: Root) -> None:
    assert doubt_about(Connection(NEW, Answer.ANSWERED, root=root)) is None


def restarted() -> Scene:
    scene, source, _ = usual()
    scene.crash_and_restart(source)
    return scene


def test_a_new_source_whose_root_fails_is_not_bound_and_says_why() -> None:
    scene = restarted()
    assert replacements(scene.plan()[1])
    scene.roots[NEW] = Root(errno.EIO)
    findings, todo = scene.plan()
    assert not todo.actions
    hit = [f for f in findings if f.bind.mount is not None and f.bind.mount.device == OLD]
    assert {f.refusal for f in hit} == UNPROVEN
    assert {f.source_errno for f in hit} == {errno.EIO}
    assert any("root gives EIO" in f.evidence for f in hit)


def test_a_living_one_whose_root_fails_is_healthy_with_a_word_and_left_alone() -> None:
    scene, _, _ = usual()
    scene.roots[OLD] = Root(errno.EIO)
    findings, todo = scene.plan()
    assert {f.verdict for f in findings} == {Verdict.HEALTHY}
    assert {f.evidence for f in findings} == {"answers, but its root gives EIO"}
    assert not todo.actions


# --------------------------------------------------------------- a server that says ENOTCONN


def refusing(root: Root) -> Scene:
    """Its server lives, and a new one is mounted at its source."""
    scene, source, _ = usual()
    scene.answers[OLD], scene.errnos[OLD], scene.roots[OLD] = Answer.REFUSED, 107, root
    findings, todo = scene.plan()
    assert {f.verdict for f in findings} == {Verdict.UNKNOWN}
    assert {f.evidence for f in findings} == {"answers ENOTCONN, its server lives"}
    assert not todo.actions
    scene.unmount(source)
    scene.mount(SOURCE, NEW)
    return scene


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ECONNABORTED])
def test_one_that_refuses_everything_gives_way_to_a_new_source(number: int) -> None:
    scene = refusing(Root(number))
    assert {f.verdict for f in scene.look().findings} == {Verdict.SUPERSEDED}
    assert {a.origin.device for a in replacements(scene.plan()[1])} == {NEW}
    scene.roots[NEW] = Root(errno.EIO)
    assert not scene.plan()[1].actions


@pytest.mark.parametrize("root", [SERVED, Root(errno.EIO), Root(is_slow=True)])
def test_one_that_refuses_statfs_alone_is_as_any_other_that_lives(root: Root) -> None:
    scene = refusing(root)
    assert not scene.plan()[1].actions
    scene.policy = Policy(superseded=SupersededPolicy.REBIND)
    assert {a.origin.device for a in replacements(scene.plan()[1])} == {NEW}
