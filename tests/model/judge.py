"""What must be true when nothing happens any more, by the kernel's facts.

The daemon is believed in nothing: of what it says only that is looked at which it owes when
a bind does not show its source, and that must fit what the model did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from fusewatchd.diagnose.lineage import plain_root
from fusewatchd.model.mounts import Mount
from tests.model.depth import dead_below, living_below, most_layers
from tests.model.places import PodState, SourceState, Tables, Target, content, layers_at, options_of
from tests.model.shapes import KEPT
from tests.model.stage import Stage

MOST_PROCESSES = 24
MOST_DESCRIPTORS = 400
ANY_NUMBER = 10_000
WAITING = {"source_missing", "source_unproven", "source_dead"}
"""Why a bind is not replaced whose source has no server."""

Binds = dict[tuple[int | None, str], Any]


def is_readable(target: Target, source: SourceState, top: Mount | None) -> bool:
    """True when the file system there may be read: whoever reads from one that hangs waits for ever.

    One that shows an old server may be given the new one, which hangs, at any moment.
    """
    if target.is_bare or source.is_hung:
        return False
    if source.errno and top is not None and top.device == source.device:
        return False
    return top is not None and source.is_served(top.device)


class Judge:
    """Looks at the whole node once; ``violations`` is empty when all is as promised."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._tables: Tables
        self._binds: Binds = {}
        self._unclaimed: set[tuple[int | None, str]] = set()
        self._has_status = False

    def violations(self) -> list[str]:
        """Say what is not, or not yet, as it must be."""
        stage = self._stage
        self._tables = stage.tables()
        found = list(stage.untouched(self._tables))
        self._has_status, self._binds = False, {}
        if stage.is_daemon_up:
            found += self._daemon()
        readable: list[Target] = []
        for pod, target in stage.targets():
            if pod.is_ending:
                continue
            problems = [f"{target}: {problem}" for problem in self._target(target)]
            found += problems
            top = self._tables.of(target.container).top_at(target.path)
            if not problems and is_readable(target, stage.sources[target.source], top):
                readable.append(target)
        found += self._table_size()
        if not found:
            found += self._contents(readable)
        if not found:
            self._take_note()
        return found

    # ----------------------------------------------------------------------- daemon

    def _daemon(self) -> Iterator[str]:
        if not self._stage.is_daemon_running():
            yield "the daemon has ended"
            return
        document = self._stage.status()
        if document is None:
            yield "the daemon tells nothing"
            return
        self._has_status = True
        self._binds = {(b["namespace"], b["mount_point"]): b for b in document["binds"]}
        self._unclaimed = {
            (u["namespace"], u["mount_point"])
            for u in document["unclaimed"]
            if u["verdict"] == "stale"
        }
        processes = self._stage.daemon_processes()
        for name, number, most in (
            ("processes", len(processes), MOST_PROCESSES),
            ("descriptors", sum(processes.values()), MOST_DESCRIPTORS),
        ):
            self._stage.counts[f"most {name}"] = max(self._stage.counts[f"most {name}"], number)
            if number > most:
                yield f"the daemon has {number} {name}"

    def _bind(self, target: Target) -> Any:
        return self._binds.get(self._place(target))

    @staticmethod
    def _place(target: Target) -> tuple[int | None, str]:
        namespace = None if target.container is None else target.container.mount_namespace
        return namespace, target.path

    # ----------------------------------------------------------------------- target

    def _target(self, target: Target) -> Iterator[str]:
        stage, source = self._stage, self._stage.sources[target.source]
        stack = self._tables.of(target.container).stack_at(target.path)
        if target.is_bare:
            if any(mount.is_fuse for mount in stack):
                yield "mounted by nobody of the model"
            return
        if not stack or not stack[-1].is_fuse:
            yield f"nothing is mounted there: {stack}"
            return
        for layer in stack:
            if stage.owners.get(layer.device) != target.source:
                yield f"shows {layer.device} of {stage.owners.get(layer.device)}"
                return
        most = self._most_layers(target)
        if len(stack) > most:
            layers = ", ".join(f"{m.mount_id} of {m.device}" for m in stack)
            yield f"{len(stack)} layers, at most {most}: {layers}; new is {source.device}"
        top = stack[-1]
        if plain_root(top.root) != target.root:
            yield f"root {top.root} instead of {target.root}"
        yield from self._flags(target, top)
        yield from self._dead_layers(target, stack)
        if top.device == source.device and source.answers:
            yield from self._current(target, top)
        elif target.is_kept and source.errno:
            yield from self._kept(target, top)
        elif top.device == source.device and source.is_unproven:
            yield f"shows {top.device}, whose server has served nothing yet"
        elif stage.is_daemon_up:
            yield from self._not_current(target, top)

    def _most_layers(self, target: Target) -> int:
        stage, source = self._stage, self._stage.sources[target.source]
        base = stage.base_depth
        stack = self._tables.of(target.container).stack_at(target.path)
        # What others put their layers on stays below them while it lives, and is counted.
        target.foreign |= living_below(stack, target.foreign, base, source.is_served)
        # A daemon that is killed between attach and detach leaves the end to the next one.
        unfinished = not stage.is_daemon_up
        there = target.foreign & layers_at(self._tables.of(target.container), target.path)
        most = most_layers(stack, there, target.stuck, base, is_read_only=target.is_read_only)
        return most + unfinished

    def _dead_layers(self, target: Target, stack: Sequence[Mount]) -> Iterator[str]:
        """What was dead before the mount on top was made goes, but for one where that is kept."""
        source = self._stage.sources[target.source]
        top = (stack[-1].mount_id, stack[-1].device)
        if not self._stage.is_daemon_up or not source.answers or top in target.foreign:
            return
        dead = dead_below(stack, source.dead_before)
        stuck = sum(layer in target.stuck for layer in dead)
        if top[1] == source.device and len(dead) > self._stage.base_depth - 1 + stuck:
            yield f"{len(dead)} dead layers are below the mount that works"

    def _kept(self, target: Target, top: Mount) -> Iterator[str]:
        """A server that answers with errors lives: what shows it stays, and is not called stale."""
        source = self._stage.sources[target.source]
        if top.device != source.device:
            yield f"shows {top.device} instead of {source.device}, whose server lives"
        bind = self._bind(target)
        if bind is not None and bind["mount_id"] == top.mount_id and bind["verdict"] == "stale":
            yield f"is called stale, and its server lives: {bind['evidence']}"

    def _flags(self, target: Target, top: Mount) -> Iterator[str]:
        options = options_of(top)
        if options in target.options:
            return
        # A layer of somebody else stays as long as there is no daemon to take it away, or nothing
        # that answers to put in its place.  Nor is anything done in a container whose bind on the
        # host is gone: its pod may be about to end.
        source = self._stage.sources[target.source]
        is_busy = self._stage.is_daemon_up and source.is_served(top.device)
        is_busy = is_busy and not target.host.is_bare
        if is_busy or not target.is_overlaid:
            wanted = " or ".join(",".join(sorted(o)) for o in target.options)
            yield f"options {','.join(sorted(options))} instead of {wanted}"

    def _current(self, target: Target, top: Mount) -> Iterator[str]:
        """A bind on the host that works must be known, with its source, by the daemon."""
        stage = self._stage
        source = stage.sources[target.source]
        if not self._has_status or target.container is not None:
            return
        bind = self._bind(target)
        if bind is None or bind["mount_id"] != top.mount_id:
            # A status from before somebody stacked the same file system tells nothing of this.
            yield "works and is not in the status"
        elif bind["verdict"] != "healthy":
            yield f"works and is called {bind['verdict']}: {bind['evidence']}"
        elif bind["source"]["path"] != source.source.path:
            yield f"works and its source is said to be {bind['source']}"

    def _not_current(self, target: Target, top: Mount) -> Iterator[str]:
        stage = self._stage
        source = stage.sources[target.source]
        must = source.answers and self._must_follow(target)
        if source.is_served(top.device):
            if must and stage.superseded == "rebind":
                told = self._bind(target)
                yield f"shows {top.device}, the old server, instead of {source.device}: {told}"
            return
        if must:
            yield f"shows {top.device} instead of {source.device}: {self._bind(target)}"
            return
        bind = self._bind(target)
        if bind is None and target.is_lost and not target.host.is_bare:
            if self._place(target) not in self._unclaimed:
                yield f"shows {top.device} without a server, and nobody says so"
            return
        if bind is None:
            if not target.host.is_bare:
                yield f"shows {top.device} without a server and is not in the status"
            return
        is_hung = source.is_hung and top.device == source.device
        verdict = "hung" if is_hung else "stale"
        if is_hung and bind["verdict"] == "held" and not stage.knows_servers:
            return  # a server of another source has just ended, and may have been this one's
        if bind["source"]["path"] in {copy.place for copy in stage.copies.values()}:
            yield f"its source is said to be a copy: {bind['source']}"
        if bind["verdict"] != verdict:
            yield f"is {verdict} and is called {bind['verdict']}: {bind['evidence']}"
        elif not is_hung and bind["refusal"] not in self._right_refusals(target, bind):
            yield f"is stale, and the reason is said to be {bind['refusal']}: {bind['evidence']}"

    def _must_follow(self, target: Target) -> bool:
        if target.is_lost and self._bind(target) is None:
            # Nothing on the node tells whose copy it is; that it is there must be told.
            return False
        if self._is_of_other_type(target.host):
            return False
        return target.host.is_learned and not target.host.is_bare

    def _is_of_other_type(self, host: Target) -> bool:
        """True when the type changed at a place that the daemon never saw serving this mount."""
        top = self._tables.host.top_at(host.path)
        new = self._tables.host.top_at(self._stage.sources[host.source].source.path)
        if top is None or new is None or top.mount_id == host.served_id:
            return False
        return top.fs_type != new.fs_type

    def _right_refusals(self, target: Target, bind: Any) -> set[str]:
        right = set() if self._stage.sources[target.source].answers else set(WAITING)
        if self._stage.sources[target.source].errno:
            # A root that refuses us was bound: the way to a part of it is refused as well.
            right |= {"system_call", "host_bind_stale"}
        if self._stage.sources[target.source].is_hung and target.container is not None:
            # The bind on the host may show the new file system already.
            right |= {"host_bind_stale"}
        if not target.host.is_learned:
            right |= {"no_source"}
            if bind["source"]["path"]:
                # A part of its pod's own mount, of which in turn nothing is known.
                right |= WAITING
        if target.host.is_bare:
            right |= {"host_bind_stale", "unmounted_on_host"}
        if self._is_of_other_type(target.host):
            right |= {"source_type"}
        return right

    # ---------------------------------------------------------------------- contents

    def _contents(self, targets: list[Target]) -> Iterator[str]:
        for target in targets:
            try:
                shown, expected = content(target)
            except OSError as exc:
                yield f"{target}: {exc}"
                continue
            if shown != expected:
                yield f"{target}: shows {shown!r} instead of {expected!r}"
        for pod in self._stage.pods.values():
            if pod.shape == "nested" and not pod.is_ending:
                yield from self._volume_inside(pod, targets)

    def _volume_inside(self, pod: PodState, readable: list[Target]) -> Iterator[str]:
        for targets in pod.inside.values():
            for target in targets:
                if target in readable and target.container is not None:
                    try:
                        kept = target.container.read("/data/cache/mine")
                    except OSError as exc:
                        kept = str(exc)
                    if kept != KEPT:
                        yield f"{target}: the volume inside says {kept!r}"

    # -------------------------------------------------------------------- table size

    def _table_size(self) -> Iterator[str]:
        stage, host = self._stage, self._tables.host
        plain = stage.count_plain_mounts(self._tables)
        if plain != stage.plain_mounts:
            yield f"{plain} mounts that are not FUSE, {stage.plain_mounts} before"
        allowed: Counter[str] = Counter()
        for copy in stage.copies.values():
            allowed[copy.place] = copy.is_mounted + copy.layers
        for state in stage.sources.values():
            allowed[state.source.path] = state.is_mounted + state.stacked
        for pod in stage.pods.values():
            for path, target in pod.on_host.items():
                allowed[path] = self._most_layers(target)
                if pod.is_ending:
                    allowed[path] += ANY_NUMBER
        yield from self._too_many(host.fuse_mounts(), allowed, 0, "the host")
        for copy in stage.copies.values():
            # The kernel leaves there what came to a copy that is only a slave.
            allowed[copy.place] += ANY_NUMBER
        for which, table in enumerate(stage.foreign_tables(self._tables)):
            most = Counter(allowed)
            for path in {mount.mount_point for mount in table.fuse_mounts()}:
                most[path] += stage.surplus[which, path].left(layers_at(table, path))
            yield from self._too_many(table.fuse_mounts(), most, 1, "a foreign namespace")

    def _too_many(
        self, mounts: tuple[Mount, ...], allowed: Counter[str], more: int, where: str
    ) -> Iterator[str]:
        outside = self._stage.node.lab + "/outside/"
        for path, number in Counter(mount.mount_point for mount in mounts).items():
            if path.startswith(outside):
                continue
            if number > allowed[path] + more:
                yield f"{path}: {number} mounts in {where}, at most {allowed[path] + more}"

    # ------------------------------------------------------------------- afterwards

    def _take_note(self) -> None:
        """Remember what the daemon knows now, and which layers are gone."""
        stage = self._stage
        for _, target in stage.targets():
            target.foreign &= layers_at(self._tables.of(target.container), target.path)
            top = self._tables.of(target.container).top_at(target.path)
            if top is not None and options_of(top) in target.options:
                target.is_overlaid = False
            bind = self._bind(target) if self._has_status else None
            if bind is None or top is None or bind["mount_id"] != top.mount_id:
                continue
            if target.container is not None:
                target.is_lost = False
            # That a part of a pod's mount comes from there says nothing of where that comes from.
            elif (
                bind["source"]["path"] == stage.sources[target.source].source.path
                and not target.is_bare
            ):
                target.is_learned = True
                if bind["verdict"] == "healthy":
                    target.served_id = top.mount_id
