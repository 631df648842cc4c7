"""Lives that once went wrong, as short as they can be told."""

from __future__ import annotations

import pytest

from fusewatchd.demo.timeouts import patient
from fusewatchd.linux.mount_kernel import Way
from tests.features import needs_way
from tests.model.episode import EPISODE_SECONDS, replay
from tests.model.steps import Scenario, parse

LIVES = {
    # The volume is read-only on the host: the pod itself says nothing of that.
    "writable-on-dead": """
        add-pod p1 flagged two fluid
        crash two
        start two
        kill-daemon
        crash two
        start two
        stack p1/v 3
        start-daemon
        kill-daemon
        start-daemon
        crash two
        start two
    """,
    # A layer reaches a read-only container whose own bind is gone: it is right again with that.
    "writable-without-bind": """
        add-pod p1 twins two one
        add-pod p2 twins two one
        unpublish p1/v
        stack p2/v 2
        publish p1/v
    """,
    # It ends before it can write down the new mount, which has the number of the one before.
    "killed-after-a-rebind": """
        add-pod p1 pair fluid two
        stop-daemon
        start-daemon
        rebind p1/w
        crash two
        kill-daemon &
        take-away two
        start-daemon
    """,
    # Where its pod's own mount came from was never seen: nothing follows the source.
    "parts-of-an-unknown": """
        reload rebind
        stop-daemon
        add-pod p1 parts two fluid &
        upgrade two &
        start-daemon
        crash fluid
        end-old two
    """,
    # The layer arrives at the other pod too, and its source is gone before there is a daemon.
    "stacked-on-a-peer": """
        reload rebind
        add-pod p1 nested one two
        add-pod p2 twins one two
        kill-daemon &
        upgrade one
        start-daemon &
        stack p1/v 1 &
        upgrade one
    """,
    # What must be refused comes before what must be taken over was read.
    "two-files-at-once": """
        reload rebind &
        reload bad
        add-pod p1 plain one two
        upgrade one
    """,
    # The copy is all that is left of the volume when the daemon starts; then it shows another.
    "a-copy-and-no-source": """
        kill-daemon
        add-pod p1 plain two one
        copy plain2 p1/v
        crash two &
        take-away two &
        start-daemon
        add-pod p2 plain one fluid
        uncopy plain2
        copy plain2 one
        start two
    """,
    # As above, with mounts of another kubelet's pods.
    "another-kubelet": """
        kill-daemon
        add-pod p1 parts two one
        copy root2 p1/v
        copy part3 p1/v
        crash two
        take-away two
        start-daemon
        add-pod p2 plain one fluid
        uncopy root2
        copy root2 one
        uncopy part3
        copy part3 fluid
        start two
    """,
    # The package of the server is upgraded to one that says another type.
    "another-type": """
        add-pod p1 parts one two
        add-pod p2 twins fluid two
        retype one fuse
        retype fluid fuse.demofs2
        crash one
        start one
        upgrade fluid
        end-old fluid
        retype one fuse.demofs2
        crash one
        start one
    """,
    # Nobody saw the source serve this bind: what comes there with another type may be anything.
    "another-type-at-an-uncertain-place": """
        kill-daemon
        add-pod p1 plain one two
        crash one &
        start-daemon
        retype one fuse
        start one
    """,
    # What is mounted over a bind of the new server covers that at the source too, its peer.
    "stacked-on-the-source": """
        add-pod p1 plain one two
        upgrade one
        add-pod p2 plain one two
        stack p2/v 2
        end-old one
    """,
    # The server lives, and what it says of its backend sounds as if there were none.
    "answers-not-connected": """
        add-pod p1 twins one two
        err one 107 all
        serve one
        err one 107 files
        serve one
        err one 5 all
        crash one
        start one
    """,
    # The new server is mounted and tells how much room there is, and nothing else.
    "nothing-but-statistics": """
        add-pod p1 twins one two
        crash one
        err one 5 files
        start one
        serve one
    """,
    # An automounter mounts inside the source.
    "mounted-inside": """
        add-pod p1 plain one two
        add-pod p2 listener one two
        add-pod p3 talker one two
        add-pod p4 flagged one two
        inside one
        crash one
        start one
        inside one
        inside p1/v
        inside p3/v
        upgrade one
        end-old one
        inside one
        inside p2/v
    """,
    # A second server is mounted over the first, and arrives wherever that is received.
    "one-over-another": """
        add-pod p1 twins one two
        add-pod p2 flagged one two
        over one
        end-old one
        crash one
        start one
        over one
        crash one
        end-old one
        start one
        delete p1
    """,
    # A driver that mounts once more at each call of the kubelet.
    "a-pile": """
        add-pod p1 twins one two
        pile p1/v 100
        crash one
        start one
        pile p1/v 70
        crash one
        start one
        delete p1
    """,
}


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.timeout(patient(EPISODE_SECONDS))
@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES)
@pytest.mark.parametrize("way", [pytest.param(way, marks=needs_way(way)) for way in Way])
def test_a_life_that_once_went_wrong(way: Way, life: str) -> None:
    steps = parse(life.splitlines())
    result = replay(Scenario(way.value), steps)
    assert not result.failure, f"{result.story()}\n\n{result.failure}\n{result.log}"
    assert len(result.steps) == len(steps)
