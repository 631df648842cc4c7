"""Containers that cannot start."""

from __future__ import annotations

import errno
from collections import Counter
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.model import kubelet
from tests.model.places import PodState
from tests.model.stage import Stage


def start(monkeypatch: pytest.MonkeyPatch, *, shows_old: bool) -> PodState:
    """Start a container of a pod whose bind the daemon puts right while the runtime works."""
    node = {"shows_old": shows_old}

    def start_container(*_: Any) -> None:
        node["shows_old"] = False
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    monkeypatch.setattr(kubelet, "_shows_old", lambda *_: node["shows_old"])
    stage = SimpleNamespace(
        node=SimpleNamespace(start_container=start_container), sources={}, counts=Counter()
    )
    pod = PodState(cast(Any, None), "plain", {})
    kubelet._start(cast(Stage, stage), pod, "app")
    return pod


def test_the_kubelet_tries_again_what_met_a_stale_bind(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = start(monkeypatch, shows_old=True)
    assert (pod.waiting, pod.inside) == (["app"], {})


def test_on_a_bind_that_is_well_a_container_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="not connected"):
        start(monkeypatch, shows_old=False)
