"""Which steps are possible, and how likely each one is."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.model.places import PodState
from tests.model.shapes import SHAPES
from tests.model.stage import Stage
from tests.model.steps import Scenario, Step

MOST_PODS = 5
SETTLES = 0.7
WAYS = ("beneath", "on-top", "staged")

Weighted = tuple[float, tuple[str, ...]]


def choose_scenario(chance: random.Random, number: int, way: str) -> Scenario:
    """Return what an episode begins with; the ways take turns."""
    return Scenario(
        way or WAYS[number % len(WAYS)],
        chance.choice(["report", "report", "rebind"]),
        chance.random() < 0.4,
    )


def choose(chance: random.Random, stage: Stage, number: int) -> Step:
    """Draw the next step from those that are possible.

    It rests on nothing that depends on who was faster: what one seed chooses is always the same.
    """
    possible = list(_possible(chance, stage, number))
    weights = [weight for weight, _ in possible]
    (words,) = chance.choices([words for _, words in possible], weights)
    return Step(words, chance.random() < SETTLES)


def _possible(chance: random.Random, stage: Stage, number: int) -> Iterator[Weighted]:
    yield from _with_servers(stage)
    yield from _with_daemon(chance, stage)
    names = list(stage.sources)
    pods = {name: pod for name, pod in stage.pods.items() if not pod.is_ending}
    if len(pods) < MOST_PODS:
        one, two = chance.sample(names, 2)
        if all(stage.sources[name].answers for name in (one, two)):
            weight = 3.0 if len(pods) < 2 else 1.0
            yield weight, ("add-pod", f"p{number}", chance.choice(list(SHAPES)), one, two)
    for name, pod in pods.items():
        yield 0.25, ("delete", name)
        yield from _with_containers(name, pod)
        yield from _with_binds(chance, name, pod)


def _with_servers(stage: Stage) -> Iterator[Weighted]:
    for name, state in stage.sources.items():
        if state.is_hung:
            yield 3.0, ("resume", name)
            yield 0.5, ("crash", name)
        elif state.is_up:
            yield 1.0, ("crash", name)
            yield 0.7, ("upgrade", name)
            yield 0.25, ("hang", name)
        else:
            yield 3.0, ("start", name)
            if state.is_mounted:
                yield 0.4, ("take-away", name)
        if state.upgraded:
            yield 0.8, ("end-old", name)


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


def _with_binds(chance: random.Random, name: str, pod: PodState) -> Iterator[Weighted]:
    for volume in pod.pod.volumes:
        target = pod.on_host.get(pod.pod.volume_path(volume.name))
        if target is None:
            continue
        where = f"{name}/{volume.name}"
        if target.is_bare or target.is_leaving:
            yield 2.0, ("publish", where)
            continue
        yield 0.3, ("stack", where, str(chance.choice([1, 1, 2, 3])))
        yield 0.1, ("unpublish", where)
        yield 0.1, ("rebind", where)
