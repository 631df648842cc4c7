"""What servers and their drivers do."""

from __future__ import annotations

from fusewatchd.demo.node.sources import OldServer
from tests.model.others import note_layers
from tests.model.places import SourceState, Upgraded, options_of
from tests.model.possible import need, source_of
from tests.model.stage import Stage


def crash(stage: Stage, name: str) -> None:
    state = source_of(stage, name)
    need(state.is_up)
    state.source.kill()
    state.is_up = state.is_hung = False
    state.serve()


def start(stage: Stage, name: str) -> None:
    state = source_of(stage, name)
    need(not state.is_up)
    _note_source_gone(stage, state)
    state.source.restart()
    stage.note_source(state)


def take_away(stage: Stage, name: str) -> None:
    """The driver detaches the dead source, and mounts it again some time."""
    state = source_of(stage, name)
    need(not state.is_up and state.is_mounted)
    _note_source_gone(stage, state)
    state.source.unmount()
    state.is_mounted = state.is_over = False


def upgrade(stage: Stage, name: str) -> None:
    state = source_of(stage, name)
    need(state.answers)
    state.upgraded.append(Upgraded(state.device, state.source.server))
    _note_source_gone(stage, state)
    state.source.restart(old=OldServer.DRAINING)
    stage.note_source(state)


def over(stage: Stage, name: str) -> None:
    """A second server is mounted over the first, which lives; peers get its mount as well."""
    state = source_of(stage, name)
    need(state.answers)
    old, below = state.source.server, state.stacked
    with stage.frozen():
        before = stage.tables()
        state.source.start()
        state.source.draining.append(old)
        state.upgraded.append(Upgraded(state.device, old))
        stage.note_source(state)
        state.is_over = True
        now = stage.tables()
        top = now.host.top_at(state.source.path)
        assert top is not None
        note_layers(stage, before, now, options_of(top))
        state.stacked += below


def _note_source_gone(stage: Stage, state: SourceState) -> None:
    """Layers that are peers of those at the source go when these do, and show what they hid.

    Nor can a daemon that never saw a bind beside its source know what that had to do with it.
    """
    for _, target in stage.targets():
        if target.source == state.source.name:
            target.is_learned = target.is_learned and not state.stacked
            target.receives = target.receives and target.host.is_learned
    state.stacked = 0


def end_old(stage: Stage, name: str) -> None:
    state = source_of(stage, name)
    need(bool(state.upgraded))
    state.upgraded.pop(0).process.kill()


def hang(stage: Stage, name: str) -> None:
    state = source_of(stage, name)
    need(state.answers)
    state.source.pause()
    state.is_hung = True


def resume(stage: Stage, name: str) -> None:
    state = source_of(stage, name)
    need(state.is_hung)
    state.source.resume()
    state.is_hung = False


def retype(stage: Stage, name: str, fs_type: str) -> None:
    """A new package is installed: the server's next start brings another type."""
    source_of(stage, name).fs_type = fs_type
    source_of(stage, name).tell_server()


def err(stage: Stage, name: str, errno: str, which: str) -> None:
    """The backend is away: the server answers with errors, at once or when it is started."""
    state = source_of(stage, name)
    need(not state.is_hung)
    with stage.frozen():
        # From now on nothing may take the place of what is there.
        tables = stage.tables()
        for _, target in stage.targets():
            top = tables.of(target.container).top_at(target.path)
            if target.source == name:
                shown = top.device if top and state.is_up else None
                target.is_kept = shown == state.device
        state.errno, state.which = int(errno), which
        state.tell_server()


def serve(stage: Stage, name: str) -> None:
    """The backend is back."""
    state = source_of(stage, name)
    need(bool(state.errno))
    state.serve()
