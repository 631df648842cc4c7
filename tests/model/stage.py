"""The node of one episode, and what the model knows of it without asking the daemon."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fusewatchd.demo.cluster.kubelet import DemoKubelet
from fusewatchd.demo.daemon_process import DaemonProcess
from fusewatchd.demo.node.container import Container
from fusewatchd.demo.node.container_spec import Access, MountPropagation
from fusewatchd.demo.node.node import DemoNode, ForeignKind
from fusewatchd.demo.timeouts import patient
from fusewatchd.linux import syscalls
from fusewatchd.model.mount_table import MountTable
from fusewatchd.model.mounts import Device, Mount
from fusewatchd.serve.status_socket import ask
from tests.model.depth import Surplus
from tests.model.places import (
    Copy,
    Options,
    PodState,
    SourceState,
    Tables,
    Target,
    Violation,
    options_of,
    table_of,
)
from tests.model.shapes import FLUID, files_of
from tests.model.steps import Scenario

QUICK = {
    "probe.interval_seconds": "0.5",
    "probe.deadline_seconds": "0.3",
    "hung.after_seconds": "0.6",
    "look_seconds": "2",
    "kubelet.refresh_seconds": "5",
}
DETACHING = {"dead_sources.detach": "true", "dead_sources.grace_seconds": "0.5"}
READY_SECONDS = 20.0
LAYERS_TOLD = 12


class Stage:
    """Sources, outside mounts, foreign namespaces, pods, and the daemon."""

    def __init__(self, node: DemoNode, scenario: Scenario) -> None:
        self.node = node
        self.scenario = scenario
        self.superseded = scenario.superseded
        self.owners: dict[Device, str] = {}
        """Which source a device belongs to; a device that is mounted is not used again."""
        self.sources: dict[str, SourceState] = {}
        self.pods: dict[str, PodState] = {}
        self.copies: dict[str, Copy] = {}
        """Binds of a pod's mount or of a source that somebody made elsewhere, by name."""
        self.surplus: defaultdict[tuple[int, str], Surplus] = defaultdict(Surplus)
        """By which of the foreign namespaces, and path."""
        self.counts: Counter[str] = Counter()
        self.is_daemon_up = True
        self._add_sources()
        self._outside = self._add_outside()
        self._foreign = [node.add_foreign(kind) for kind in ForeignKind]
        self._seen_by_agent: dict[int, Mount] = {}
        self._log_read = 0
        self._pod_list = node.pod_list()
        self._config = os.path.join(node.lab, "fusewatchd.yaml")
        self.kubelet: DemoKubelet | None = None
        settings = dict(QUICK)
        if scenario.detaches:
            settings |= DETACHING
        if scenario.has_kubelet:
            self.kubelet = DemoKubelet(lambda: self._pod_list)
            self.kubelet.start()
            settings["kubelet.url"] = self.kubelet.url
        self.write_config()
        self.daemon = DaemonProcess(
            node,
            way=scenario.way,
            settings=settings,
            config=self._config,
            as_old_kernel=scenario.is_old_kernel,
        )
        self.knows_servers = not scenario.is_old_kernel
        """The kernel tells which process serves which connection."""
        self.base_depth = 1 if scenario.way == "beneath" else 2
        self.plain_mounts = self.count_plain_mounts(self.tables())
        self.daemon.start()
        self.wait_for_daemon()

    def close(self) -> None:
        """End the daemon; the node takes care of the rest."""
        if self.is_daemon_up:
            self.daemon.stop()
        if self.kubelet is not None:
            self.kubelet.stop()

    # ------------------------------------------------------------------------- set up

    def _add_sources(self) -> None:
        places = {FLUID: self.node.fluid_path("juicefs", "demo", "data"), "one": "", "two": ""}
        for name, path in places.items():
            backing = os.path.join(self.node.lab, "backing", name)
            command = (sys.executable, "-m", "tests.servers.erring", f"{backing}.control")
            source = self.node.add_source(
                name,
                path=path,
                files=files_of(name),
                command=(*command, "--mount", "{mount}", "--backing", "{backing}"),
                starts=False,
            )
            self.sources[name] = SourceState(source, is_up=False)
            self.sources[name].tell_server()
            source.launch()
        for state in self.sources.values():
            state.source.wait_ready()
            self.note_source(state)

    def _add_outside(self) -> list[Mount]:
        """Make mounts that are nobody's business: a bind of a source, a file system below."""
        places = [os.path.join(self.node.lab, "outside", name) for name in ("bind", "tmp")]
        for place in places:
            os.makedirs(place)
        syscalls.mount(self.sources["one"].source.path, places[0], None, syscalls.MS_BIND)
        syscalls.mount("outside", places[1], "tmpfs", 0, "size=64k")
        tables = Tables([])
        return [mount for place in places for mount in tables.host.at(place)]

    def write_config(self, text: str | None = None) -> None:
        """Write the configuration file that SIGHUP makes the daemon read."""
        with open(self._config, "w", encoding="utf-8") as file:
            file.write(text or f"recovery: {{superseded: {self.superseded}}}\n")

    def tell_kubelet(self) -> None:
        """Let the kubelet say what is true of the pods now."""
        self._pod_list = self.node.pod_list()

    # -------------------------------------------------------------------------- facts

    def containers(self) -> list[Container]:
        """Return every container that runs, foreign ones too."""
        ours = [t[0].container for pod in self.pods.values() for t in pod.inside.values() if t]
        return [c for c in (*ours, *self._foreign) if c is not None and c.is_running]

    def tables(self) -> Tables:
        """Look at every mount table now."""
        return Tables(self.containers())

    def note_source(self, state: SourceState) -> None:
        """Take down the mount that a server just made."""
        top = table_of("self").top_at(state.source.path)
        assert top is not None
        own = {d for d, name in self.owners.items() if name == state.source.name}
        state.dead_before = {d for d in own if not state.is_served(d)} - {top.device}
        state.device, state.mount_id = top.device, top.mount_id
        state.is_mounted = state.is_up = True
        state.is_hung, state.stacked, state.is_over = False, 0, False
        # Root may be the only one who is refused.
        state.is_unproven = state.errno not in (0, errno.EACCES)
        state.tell_server()
        self.owners[top.device] = state.source.name
        for other in self.sources.values():
            # Nothing showed it any more, its server has ended, and the number is free again.
            for old in other.upgraded:
                old.is_gone |= old.device == top.device

    def status(self) -> Any:
        """Return the daemon's document; None while there is none."""
        try:
            return ask(self.daemon.runtime_dir)
        except (FileNotFoundError, ConnectionError):
            return None

    def targets(self) -> Iterator[tuple[PodState, Target]]:
        """Return every place of every pod."""
        for pod in self.pods.values():
            for target in pod.targets():
                yield pod, target

    def host_targets(self, pod: PodState) -> dict[str, Target]:
        """Describe the binds that a pod has just been given."""
        table = table_of("self")
        found: dict[str, Target] = {}
        roots = {pod.pod.volume_path(v.name): (v.name, "/") for v in pod.pod.volumes if v.source}
        roots |= {
            pod.pod.subpath_path(m): (m.volume, f"/{m.sub_path}")
            for m in pod.pod.mounts
            if m.sub_path
        }
        for path, (volume, root) in roots.items():
            source = pod.pod.volume(volume).source
            top = table.top_at(path)
            assert source is not None and top is not None
            found[path] = Target(path, source.name, root, {options_of(top)})
            self.note_bound(found[path])
        return found

    def note_bound(self, target: Target) -> None:
        """Note what the driver bound there, and whether it is a peer of its source."""
        table = table_of("self")
        top, source = (
            table.top_at(target.path),
            table.top_at(self.sources[target.source].source.path),
        )
        assert top is not None and source is not None
        target.published.add(top.mount_id)
        target.receives = 0 < source.peer_group == top.peer_group

    def container_targets(self, pod: PodState, name: str) -> list[Target]:
        """Describe what a container that has just been started sees."""
        found: list[Target] = []
        inside = table_of(str(pod.pod.containers[name].pid))
        for mount in pod.pod.container_mounts(name):
            origin = pod.on_host.get(pod.pod.host_path_of(mount))
            if origin is None:
                continue
            added: Options = frozenset({"ro"} if mount.access is Access.READ_ONLY else ())
            top = inside.top_at(mount.mount_path)
            is_read_only = bool(added) or (top is not None and top.is_read_only)
            options = {known | added for known in origin.options}
            found.append(
                Target(
                    mount.mount_path,
                    origin.source,
                    origin.root,
                    {o for o in options if "ro" in o or not is_read_only},
                    is_read_only,
                    pod.pod.containers[name],
                    origin,
                    published={top.mount_id} if top else set(),
                    receives=origin.receives and mount.propagation is not MountPropagation.NONE,
                    is_private=mount.propagation is MountPropagation.NONE,
                )
            )
            if is_read_only and not found[-1].is_private:
                # What can be written to would reach it with all that reaches its bind.
                origin.receives = False
        return found

    # --------------------------------------------------------- what nobody may touch

    def count_plain_mounts(self, tables: Tables) -> int:
        """Count what is not FUSE in the lab; outside of it the machine may do what it likes."""
        return sum(not mount.is_fuse for mount in tables.host.below(self.node.lab))

    def untouched(self, tables: Tables) -> Iterator[str]:
        """Say which mount outside the pods is not the one that it was."""
        for was in self._outside:
            now = tables.host.by_id(was.mount_id)
            if now is None or (now.mount_point, now.device) != (was.mount_point, was.device):
                yield f"the mount at {was.mount_point} was touched"
        for copy in self.copies.values():
            there = tables.host.by_id(copy.mount_id) if copy.is_mounted else None
            if copy.is_mounted and (there is None or there.device != copy.device):
                yield f"the copy at {copy.place} was touched"
        for state in self.sources.values():
            if not state.is_mounted or (self.scenario.detaches and not state.is_up):
                continue
            now = tables.host.by_id(state.mount_id)
            if now is None or now.mount_point != state.source.path:
                yield f"the source mount at {state.source.path} was touched"
        agent = tables.of(self._foreign[list(ForeignKind).index(ForeignKind.NODE_AGENT)])
        mounts = {mount.mount_id: mount for mount in agent.fuse_mounts()}
        if not self._seen_by_agent:
            self._seen_by_agent = mounts
        for number, mount in mounts.items():
            if number not in self._seen_by_agent:
                yield f"{mount.mount_point} was mounted in a node agent's namespace"

    def foreign_tables(self, tables: Tables) -> Iterator[MountTable]:
        """Return the namespaces that the host's mounts propagate to."""
        for kind, container in zip(ForeignKind, self._foreign, strict=True):
            if kind is not ForeignKind.NODE_AGENT:
                yield tables.of(container)

    # ---------------------------------------------------------------------- processes

    def daemon_processes(self) -> dict[int, int]:
        """Return the number of descriptors of the daemon and of each of its workers."""
        found: dict[int, int] = {}
        queue = [self.daemon.pid]
        while queue:
            pid = queue.pop()
            with suppress(FileNotFoundError, ProcessLookupError):
                found[pid] = len(os.listdir(f"/proc/{pid}/fd"))
                with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
                    queue += map(int, file.read().split())
        return found

    def what_is_mounted(self) -> str:
        """Return the mounts of every pod, on the host and in its containers."""
        tables, lines = self.tables(), []
        for pod, target in self.targets():
            lines.append(f"{pod.shape} {target}")
            table = tables.of(target.container)
            for m in (*table.stack_at(target.path), *table.below(target.path))[-LAYERS_TOLD:]:
                group = f"group {m.peer_group} master {m.master}"
                place = f"{m.mount_id} on {m.parent_id} {m.mount_point} {m.root}"
                lines.append(f"  {place} of {m.device} {m.fs_type} {m.options} {group}")
        return "\n".join(lines)

    def what_they_do(self) -> str:
        """Say of every process of the daemon what it waits for."""
        lines = []
        for pid in self.daemon_processes():
            with suppress(OSError):
                words = []
                for name in ("comm", "wchan", "syscall", "stat"):
                    with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:
                        words.append(file.read().rpartition(")")[2].strip()[:80])
                lines.append(f"process {pid}: {'; '.join(words)}")
        return "\n".join(lines)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the daemon and its workers wherever they are, for as long as things are counted.

        What they do between two looks of the model would be taken for somebody else's work.
        """
        stopped: set[int] = set()
        try:
            while self.is_daemon_up and (left := self.daemon_processes().keys() - stopped):
                for pid in left:
                    self._freeze(pid)
                stopped |= left
            yield
        finally:
            for pid in stopped:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    @staticmethod
    def _freeze(pid: int) -> None:
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            # One that waits for a hung server is stopped already, in a way, and mounts nothing.
            while _state_of(pid) not in "TDZX":
                time.sleep(0.0005)

    def new_log(self) -> str:
        """Return what the daemon has logged since the last call."""
        with open(self.daemon.log_path, "rb") as file:
            file.seek(self._log_read)
            data = file.read()
        self._log_read += len(data)
        return data.decode("utf-8", "replace")

    def is_daemon_running(self) -> bool:
        """True when its process is there and has not ended."""
        try:
            return _state_of(self.daemon.pid) not in "ZX"
        except FileNotFoundError:
            return False

    def wait_for_daemon(self) -> None:
        """Wait until it is ready: before that no init system would send it a signal."""
        self._wait_until(lambda: self.status() is not None, "the daemon did not start")

    def hang_up(self) -> None:
        """SIGHUP, until the file was read: of two that come together one alone is read."""
        before = self._files_read()
        os.kill(self.daemon.pid, signal.SIGHUP)
        self._wait_until(lambda: self._files_read() != before, "the daemon read no configuration")

    def _wait_until(self, is_so: Callable[[], bool], problem: str) -> None:
        end = time.monotonic() + patient(READY_SECONDS)
        while not is_so():
            if not self.is_daemon_running() or time.monotonic() > end:
                raise Violation(f"{problem}:\n{self.daemon.log()[-3000:]}")
            time.sleep(0.005)

    def _files_read(self) -> int:
        return self.daemon.log().count("reloaded")


def _state_of(pid: int) -> str:
    """Return the letter that proc_pid_stat(5) has for the state of a process."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0]
