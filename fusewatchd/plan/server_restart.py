"""What ``drivers.on_stale`` says is to be done when a server is gone; pure.

For drivers of which nobody else starts the server again, above all those that mount straight into
the pod, where there is no source to bind from.  One command at a time for each place where a
server mounts, however many binds show it, only for a file system that is proven dead and that no
process serves, and never for one that somebody switched off.

A command that ended well proves nothing: until the mount table shows a new server it counts as an
attempt, and the next one waits longer.  All of a node share one budget.

Units take the dead mount away before they start a server, as libfuse wants it: one that fails after
that leaves nothing that is stale.  Such a place goes on being tried, as long as its pod goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from fusewatchd.config.command_template import UnusableValueError, argument, unit
from fusewatchd.config.settings import OnStaleSettings
from fusewatchd.diagnose.exclusions import SWITCHED_OFF, Scope, Switches, is_left_alone, owner_of
from fusewatchd.model.actions import OutcomeStatus
from fusewatchd.model.findings import Bind, Finding, SourceAnswer
from fusewatchd.model.ledger import Ledger
from fusewatchd.model.mounts import Device, NamespaceKind, TargetKey
from fusewatchd.model.plan import RecoveryMode
from fusewatchd.model.pods import BindKind, BindPath
from fusewatchd.model.server_actions import Attempts, CommandEnd, CommandKind, RunCommand, Trouble
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason, Verdict
from fusewatchd.parse.kubelet_paths import parse_bind_path
from fusewatchd.plan.back_off import BackOff
from fusewatchd.plan.budget import source_of
from fusewatchd.rate_limit import Bucket, Rate

RESTART = ("--no-ask-password", "restart", "--")
"""What ``systemctl`` is told before the name of a unit."""
ROUNDING = 1e-6
DEFAULT_RATE = Rate(per_second=0.1, burst=20.0)
_WITHOUT_SERVER = frozenset(
    {Reason.NO_SOURCE, Reason.DIRECT_MOUNT, Reason.SOURCE_MISSING, Reason.SOURCE_UNPROVEN}
)
_TARGETS = frozenset({BindKind.PUBLISH, BindKind.FLEXVOLUME})
"""Where a server can mount straight into a pod."""


_NOT_AWAITED = (Reason.ARGUMENT, Reason.REPORT_ONLY, Reason.PAUSED, Reason.SERVER_ALIVE)
"""No command will be run: mounts keep the reason that they have."""


@dataclass(frozen=True, slots=True)
class ActionPolicy:
    """The rules, and how much of it a node may have."""

    rules: tuple[OnStaleSettings, ...] = ()
    rate: Rate = DEFAULT_RATE
    systemctl: str = ""
    """Path of the program; empty: there is none."""


@dataclass(frozen=True, slots=True)
class Step:
    """The places without a server and what to run for them."""

    troubles: tuple[Trouble, ...]
    commands: tuple[RunCommand, ...]
    attempts: Mapping[str, Attempts]
    bucket: Bucket
    reasons: Mapping[TargetKey, Reason]
    due_at: float | None
    wants_look: bool


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one dead server had mounted, and every bind on the host that shows it."""

    path: str
    device: Device
    since: float
    """What is looked at must have been seen after this."""
    begins_at: float
    rule: OnStaleSettings
    driver: str
    bind: BindPath
    target: str
    source: str
    hit: tuple[Finding, ...] = ()
    """Empty where the dead mount was taken away by what was run for it."""

    @property
    def kind(self) -> CommandKind:
        return CommandKind.UNIT if self.rule.unit else CommandKind.COMMAND


def step(
    findings: Iterable[Finding],
    snapshot: Snapshot,
    ledger: Ledger,
    ends: Iterable[CommandEnd],
    policy: ActionPolicy,
    scope: Scope,
    now: float,
) -> Step:
    """Decide for every place without a server whether something is to be run."""
    rate, bucket = policy.rate, ledger.server_actions.bucket
    attempts = _seen(_ended(ledger.server_actions.attempts, ends, policy), snapshot)
    places = _places(findings, snapshot, policy.rules)
    places += _left_bare(attempts, snapshot, ledger, policy.rules, scope.switches)
    troubles: list[Trouble] = []
    commands: list[RunCommand] = []
    reasons: dict[TargetKey, Reason] = {}
    for place in places:
        known = attempts.get(place.path, Attempts())
        command = _command(place, snapshot, policy.systemctl, known.count + 1)
        reason, retry_at = _held_back(place, known, command, snapshot, ledger, scope.mode, now)
        if reason is Reason.NONE and command is not None and not known.is_running:
            if bucket.left(rate, now) + ROUNDING < 1.0:
                reason, retry_at = Reason.BUDGET, now + 1.0 / rate.per_second
            else:
                bucket = bucket.take(1.0, rate, now)
                commands.append(command)
                known = Attempts(command.attempt, is_running=True, command=command, last=known.last)
                attempts[place.path] = known
        about = (place.path, place.driver, place.kind)
        troubles.append(Trouble(*about, known.count, reason, retry_at, known.last))
        if reason not in _NOT_AWAITED:
            reasons |= {finding.bind.key: Reason.AWAITS_ACTION for finding in place.hit}
    paths = {place.path for place in places}
    return Step(
        tuple(troubles),
        tuple(commands),
        {p: a for p, a in attempts.items() if p in paths or _is_fresh(a, policy.rules, now)},
        bucket,
        reasons,
        min((t.retry_at for t in troubles if t.retry_at is not None), default=None),
        any(trouble.held_back is Reason.UNCONFIRMED for trouble in troubles),
    )


def _held_back(
    place: _Place,
    known: Attempts,
    command: RunCommand | None,
    snapshot: Snapshot,
    ledger: Ledger,
    mode: RecoveryMode,
    now: float,
) -> tuple[Reason, float | None]:
    """Return why nothing is run but for the budget, and when to think again."""
    if known.is_running:
        return Reason.NONE, None
    if mode.withholds is not Reason.NONE:
        return mode.withholds, None
    if now < place.begins_at:
        return Reason.GRACE, place.begins_at
    if snapshot.namespaces_looked_at < place.since:
        return Reason.UNCONFIRMED, None
    if snapshot.servers.get(place.device) and not _was_aborted(place, ledger):
        return Reason.SERVER_ALIVE, None
    if command is None:
        return Reason.ARGUMENT, None
    return (Reason.BACK_OFF, known.retry_at) if now < known.retry_at else (Reason.NONE, None)


def _was_aborted(place: _Place, ledger: Ledger) -> bool:
    """The server of an aborted connection may hang on for ever, and is of no more use."""
    outcomes = (ledger.state(finding.bind.key).last_outcome for finding in place.hit)
    return any(o is not None and o.status is OutcomeStatus.ABORTED for o in outcomes)


def _command(place: _Place, snapshot: Snapshot, systemctl: str, attempt: int) -> RunCommand | None:
    """Return what the rule asks for; None where a value cannot be an argument."""
    rule, values = place.rule, _values(place, snapshot)
    try:
        if rule.unit:
            argv: tuple[str, ...] = (systemctl, *RESTART, unit(rule.unit, values))
        else:
            argv = tuple(argument(word, values) for word in rule.command)
    except UnusableValueError:
        return None
    pods = tuple(dict.fromkeys(f.bind.path.pod_uid for f in place.hit)) or (place.bind.pod_uid,)
    about = (place.path, place.device, place.driver, place.kind)
    return RunCommand(*about, argv, rule.timeout_seconds, attempt, pods)


def _places(
    findings: Iterable[Finding], snapshot: Snapshot, rules: tuple[OnStaleSettings, ...]
) -> list[_Place]:
    if not rules:
        return []
    dead: dict[Device, list[Finding]] = {}
    for finding in findings:
        bind = finding.bind
        if bind.mount is None or not bind.key.is_host or finding.verdict is not Verdict.STALE:
            continue
        if finding.refusal in _WITHOUT_SERVER | SWITCHED_OFF:
            dead.setdefault(bind.mount.device, []).append(finding)
    found: dict[str, _Place] = {}
    for device, hit in sorted(dead.items()):
        place = _place(device, hit, snapshot, rules)
        if place is not None:
            found.setdefault(place.path, place)
    return list(found.values())


def _place(
    device: Device, hit: list[Finding], snapshot: Snapshot, rules: tuple[OnStaleSettings, ...]
) -> _Place | None:
    """Return where the server of a device had mounted; None where nothing is to be run."""
    connection = snapshot.connections.get(device)
    if connection is None or connection.disconnected_at is None:
        return None
    if any(finding.refusal in SWITCHED_OFF for finding in hit):
        return None  # one pod that is to be left alone speaks for all that share it
    hit = sorted(hit, key=_rank)
    first = hit[0]
    rule = _rule_for(first.bind.driver, rules)
    source = source_of(first)
    if rule is None or not (source or first.bind.path.kind in _TARGETS):
        return None
    target, since = first.bind.key.mount_point, connection.disconnected_at
    own = parse_bind_path(snapshot.kubelet.pods, source) if source else None
    if own is not None:
        # What is left is a part of the pod's own mount: that is where its server mounts.
        if not snapshot.table.at(source):
            return None
        target, source = source, ""
    return _Place(
        source or target,
        device,
        since,
        since + rule.grace_seconds,
        rule,
        first.bind.driver,
        first.bind.path,
        target,
        source,
        tuple(hit),
    )


def _left_bare(
    attempts: Mapping[str, Attempts],
    snapshot: Snapshot,
    ledger: Ledger,
    rules: tuple[OnStaleSettings, ...],
    switches: Switches,
) -> list[_Place]:
    """Return the targets where nothing is mounted since something was run for them."""
    found = []
    for path, known in attempts.items():
        bind = parse_bind_path(snapshot.kubelet.pods, path)
        if bind is None or bind.kind not in _TARGETS or snapshot.table.at(path):
            continue
        if known.command is None or known.came_back:
            continue
        device, driver = known.command.device, known.command.driver
        ended_at = known.last.finished_at if known.last is not None else 0.0
        rule = _rule_for(driver, rules)
        pod = (snapshot.pods or {}).get(bind.pod_uid)
        owner = owner_of(pod) if pod else ledger.owners.get(bind.pod_uid)
        bare = Bind(TargetKey(0, path), bind, None, 0, driver, SourceAnswer("", ""))
        if rule is None or is_left_alone(bare, switches, owner):
            continue
        if _goes_on(bind.pod_uid, device, snapshot):
            found.append(_Place(path, device, ended_at, ended_at, rule, driver, bind, path, ""))
    return found


def _goes_on(pod_uid: str, device: Device, snapshot: Snapshot) -> bool:
    """True for a pod that still wants its volume: nothing is mounted for one that ends."""
    if snapshot.pods is not None:
        pod = snapshot.pods.get(pod_uid)
        if pod is not None and pod.is_deleting:
            return False
        if snapshot.pods_are_current:
            return pod is not None and pod.phase == "Running"
    # The kubelet unmounts volumes when all containers have ended.
    containers = (n for n in snapshot.namespaces if n.kind is NamespaceKind.CONTAINER and n.pid)
    mounts = (m for n in containers if n.pod_uid == pod_uid for m in n.mounts)
    return snapshot.is_dead(device) and any(mount.device == device for mount in mounts)


def _seen(attempts: dict[str, Attempts], snapshot: Snapshot) -> dict[str, Attempts]:
    """Note which servers are back: whoever unmounts what they mounted has his reasons."""
    for path, known in attempts.items():
        top = snapshot.table.top_at(path)
        if top is None or known.is_running or known.came_back:
            continue
        if top.is_fuse and not snapshot.is_dead(top.device):
            attempts[path] = replace(known, came_back=True)
    return attempts


def _rule_for(driver: str, rules: Iterable[OnStaleSettings]) -> OnStaleSettings | None:
    return next((rule for rule in rules if fnmatchcase(driver, rule.driver)), None)


def _rank(finding: Finding) -> tuple[bool, str]:
    return finding.bind.path.kind not in _TARGETS, finding.bind.key.mount_point


def _values(place: _Place, snapshot: Snapshot) -> dict[str, str]:
    data = snapshot.volume_data.get((place.bind.pod_uid, place.bind.volume))
    return {
        "target": place.target,
        "source": place.source,
        "volume": place.bind.volume,
        "handle": data.volume_handle if data is not None else "",
        "driver": place.driver,
        "pod_uid": place.bind.pod_uid,
    }


def _ended(
    attempts: Mapping[str, Attempts], ends: Iterable[CommandEnd], policy: ActionPolicy
) -> dict[str, Attempts]:
    after = dict(attempts)
    for end in ends:
        place, count = end.command.place, end.command.attempt
        rule = _rule_for(end.command.driver, policy.rules)
        initial = rule.back_off_initial_seconds if rule else 1.0
        back_off = BackOff(initial, rule.back_off_max_seconds if rule else 60.0)
        retry_at = end.finished_at + back_off.delay(TargetKey(0, place), count)
        after[place] = Attempts(count, retry_at, command=end.command, last=end)
    return after


def _is_fresh(known: Attempts, rules: tuple[OnStaleSettings, ...], now: float) -> bool:
    """A server that dies again soon goes on where the last trouble ended."""
    longest = max((rule.back_off_max_seconds for rule in rules), default=0.0)
    return known.is_running or now < known.retry_at + longest
