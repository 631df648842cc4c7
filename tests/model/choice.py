"""Which steps are possible, and how likely each one is."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator, Mapping

from tests.model.copies import PLACES
from tests.model.places import PodState
from tests.model.possible import may_unmount
from tests.model.shapes import SHAPES
from tests.model.stage import Stage
from tests.model.steps import Scenario, Step

MOST_PODS = 5
MOST_COPIES = 4
TYPES = ("fuse.demofs", "fuse.demofs2", "fuse")
SETTLES = 0.7
WAYS = ("beneath", "on-top", "staged")

Emphasis = Mapping[str, float]
EMPHASES: tuple[Emphasis, ...] = (
    {},
    {"copy": 3, "uncopy": 2, "take-away": 4, "start-daemon": 0.2, "kill-daemon": 3},
    {"err": 4, "serve": 0.5, "retype": 2, "start-daemon": 0.5},
    {"inside": 3, "crash": 2, "stack": 0.3, "rebind": 2},
    {"pile": 10, "stack": 2, "crash": 2},
)
"""Long chains of events would else be too rare to be met."""

Weighted = tuple[float, tuple[str, ...]]


def choose_scenario(chance: random.Random, number: int, way: str) -> Scenario:
    """Return what an episode begins with; the ways take turns."""
    return Scenario(
        way or WAYS[number % len(WAYS)],
        chance.choice(["report", "report", "rebind"]),
        chance.random() < 0.4,
        chance.random() < 0.3,
        chance.random() < 0.25,
    )


def choose_emphasis(chance: random.Random) -> Emphasis:
    """Return what happens more often than usual in an episode."""
    return chance.choice(EMPHASES)


def choose(chance: random.Random, stage: Stage, number: int, emphasis: Emphasis) -> Step:
    """Draw the next step from those that are possible.

    It rests on nothing that depends on who was faster: what one seed chooses is always the same.
    """
    possible = list(_possible(chance, stage, number))
    weights = [weight * emphasis.get(words[0], 1.0) for weight, words in possible]
    (words,) = chance.choices([words for _, words in possible], weights)
    return Step(words, chance.random() < SETTLES)


def _possible(chance: random.Random, stage: Stage, number: int) -> Iterator[Weighted]:
    yield from _with_servers(stage)
    yield from _with_daemon(chance, stage)
    yield from _with_copies(chance, stage, number)
    yield from _odd_servers(chance, stage)
    names = list(stage.sources)
    pods = {name: pod for name, pod in stage.pods.items() if not pod.is_ending}
    if len(pods) < MOST_PODS:
        one, two = chance.sample(names, 2)
        if all(stage.sources[name].answers for name in (one, two)):
            weight = 3.0 if len(pods) < 2 else 1.0
            yield weight, ("add-pod", f"p{number}", chance.choice(list(SHAPES)), one, two)
    for name, pod in pods.items():
        if may_unmount(stage, pod):
            yield 0.25, ("delete", name)
        yield from _with_containers(name, pod)
        yield from _with_binds(chance, stage, name, pod)


def _with_servers(stage: Stage) -> Iterator[Weighted]:
    for name, state in stage.sources.items():
        if state.is_hung:
            yield 3.0, ("resume", name)
            yield 0.5, ("crash", name)
        elif state.is_up:
            yield 1.0, ("crash", name)
            yield 0.7, ("upgrade", name)
            yield 0.15, ("over", name)
            yield 0.25, ("hang", name)
        else:
            yield 3.0, ("start", name)
            if state.is_mounted:
                yield 0.4, ("take-away", name)
        if state.upgraded:
            yield 0.8, ("end-old", name)


def _odd_servers(chance: random.Random, stage: Stage) -> Iterator[Weighted]:
    name = chance.choice(list(stage.sources))
    state = stage.sources[name]
    yield 0.5, ("retype", name, chance.choice(TYPES))
    if state.errno:
        yield 3.0, ("serve", name)
    elif not state.is_hung:
        answer = chance.choice([errno.EIO, errno.ENOTCONN, errno.ENOTCONN, errno.EACCES])
        yield 0.6, ("err", name, str(answer), chance.choice(["all", "files"]))
    if state.answers:
        yield 1.2, ("inside", name)


def _with_copies(chance: random.Random, stage: Stage, number: int) -> Iterator[Weighted]:
    """A place that was unmounted shows another volume the next time."""
    binds = [
        f"{name}/{volume.name}"
        for name, pod in stage.pods.items()
        for volume in pod.pod.volumes
        if not pod.is_ending
        and (target := pod.on_host.get(pod.pod.volume_path(volume.name)))
        and not (target.is_bare or target.is_leaving)
        and stage.sources[target.source].answers
    ]
    if binds and len(stage.copies) < MOST_COPIES:
        what = chance.choice([*binds, *binds, *(n for n, s in stage.sources.items() if s.answers)])
        yield 0.7, ("copy", f"{chance.choice(list(PLACES))}{number}", what)
    for name, made in stage.copies.items():
        if made.is_mounted:
            if not stage.sources[made.source].is_over:
                yield 0.2, ("uncopy", name)
            continue
        others = [n for n, s in stage.sources.items() if s.answers and n != made.source]
        if others:
            yield 0.6, ("copy", name, chance.choice(others))


def _with_daemon(chance: random.Random, stage: Stage) -> Iterator[Weighted]:
    if not stage.is_daemon_up:
        yield 5.0, ("start-daemon",)
        return
    yield 0.4, ("kill-daemon",)
    yield 0.2, ("stop-daemon",)
    yield 0.3, ("reload", chance.choice(["report", "rebind", "bad"]))


def _with_containers(name: str, pod: PodState) -> Iterator[Weighted]:
    for container in pod.pod.container_names:
        if container in pod.inside or container in pod.waiting:
            yield 0.1, ("stop-container", name, container)
            yield 0.2, ("restart-container", name, container)
        else:
            yield 1.0, ("start-container", name, container)


def _with_binds(
    chance: random.Random, stage: Stage, name: str, pod: PodState
) -> Iterator[Weighted]:
    for volume in pod.pod.volumes:
        target = pod.on_host.get(pod.pod.volume_path(volume.name))
        if target is None:
            continue
        where = f"{name}/{volume.name}"
        if target.is_bare or target.is_leaving:
            yield 2.0, ("publish", where)
            continue
        yield 0.3, ("stack", where, str(chance.choice([1, 1, 2, 3])))
        yield 0.06, ("pile", where, str(chance.choice([10, 30, 70, 100])))
        yield 0.2, ("inside", where)
        if may_unmount(stage, pod):
            yield 0.1, ("unpublish", where)
            yield 0.1, ("rebind", where)
