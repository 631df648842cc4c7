"""What a mount worker refuses to do, whoever orders it.

The worker decides by what it was given at the start and by what the kernel shows, not by the
order.  So a daemon that errs, or is taken over, can order no mount outside of these rules:

* On the host only the binds of pods below the kubelet's directory of pods are touched.
* A mount namespace is entered when its process is proven to be in a pod's container, by the
  rules of cgroups that the scan goes by.
* What a pod gets comes from outside of all pods, or from that pod itself.

Two actions go beyond these places.  The detach of a dead source proves for itself that the mount is
FUSE and that its server is gone (``detach_dead_source``), and is no pod's.  A dead mount is put in
the place of FUSE mounts only (``place_stand_ins``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from fusewatchd.act.replace_mount import outcome_of
from fusewatchd.errors import assert_never
from fusewatchd.linux.mount_kernel import Stop, refuse
from fusewatchd.model.actions import (
    AbortConnection,
    Action,
    DetachDeadSource,
    DetachOrphan,
    DetachOwnLayer,
    DropLayers,
    NamespaceRef,
    Outcome,
    PlaceStandIns,
    ReplaceMount,
)
from fusewatchd.model.mount_table import below
from fusewatchd.model.verdicts import Reason
from fusewatchd.parse.cgroups import may_be_pod
from fusewatchd.parse.kubelet_paths import parse_bind_path

_POD_OF_PATH = re.compile(r"/pods/([^/]+)/(?:volumes|volume-subpaths|plugins)/.")

ContainersPod = Callable[[NamespaceRef], "str | None"]
"""Returns the uid of the pod in whose container a namespace is proven to be.

Empty where only the kubelet's list tells of which pod; None where it is in no container.  Raises
``OSError``, ESRCH when its process has ended.
"""


class LastWord:
    """Asked before each action."""

    def __init__(self, pods: str, pod_of: ContainersPod, *, aborts: bool) -> None:
        """Take the rules of this node.

        Args:
            pods: the directory of pods, empty for none.
            pod_of: how a container is recognised.
            aborts: this worker aborts connections and does nothing else; else never that.
        """
        self._aborts = aborts
        self._directory = pods
        self._pod_of = pod_of

    def refusal(self, action: Action) -> Outcome | None:
        """Return the end of an action that is not to be tried, with the reason ``forbidden``.

        So it ends, too, where it cannot be found out.  None: it may be tried.
        """
        try:
            self._require_allowed(action)
        except (Stop, OSError) as exc:
            return outcome_of(action, exc)
        return None

    def _require_allowed(self, action: Action) -> None:
        if isinstance(action, AbortConnection) is not self._aborts:
            raise _forbidden("this worker is of another kind")
        match action:
            case DetachDeadSource():
                if self._pod_of_path(action.expect.mount_point):
                    raise _forbidden(f"{action.expect.mount_point} is a pod's, and no source")
            case PlaceStandIns():
                self._require_fuse(action)
            case ReplaceMount():
                self._require_own(action, self._owner(action))
            case AbortConnection() | DropLayers() | DetachOwnLayer() | DetachOrphan():
                self._owner(action)
            case _:
                assert_never(action)

    def _require_fuse(self, action: PlaceStandIns) -> None:
        """Allow it everywhere on the host: what it shows has nothing in it."""
        for mount in action.mounts:
            if not mount.is_fuse or mount.device != action.expect.device or mount.device.major:
                raise _forbidden(f"{mount.mount_point} is of no connection that can be held")

    def _owner(
        self, action: ReplaceMount | AbortConnection | DropLayers | DetachOwnLayer | DetachOrphan
    ) -> str:
        """Return the uid of the pod at whose mount an action is; empty: not known here."""
        if isinstance(action, (ReplaceMount, AbortConnection)) and action.namespace is not None:
            return self._container(action.namespace)
        point = action.expect.mount_point
        bind = parse_bind_path(self._directory, point)
        if bind is None:
            place = self._directory or "any directory"
            raise _forbidden(f"{point} is no bind of a pod below {place}")
        return bind.pod_uid

    def _container(self, namespace: NamespaceRef) -> str:
        found = self._pod_of(namespace)
        if found is None:
            raise _forbidden(f"process {namespace.pid} is in no container of a pod")
        return found

    def _require_own(self, action: ReplaceMount, owner: str) -> None:
        for point in _origins(action):
            whose = self._pod_of_path(point)
            if owner and whose and not may_be_pod(owner, whose):
                raise _forbidden(f"{point} is not of pod {owner}")
        if not action.over:
            return
        uid = self._pod_of_path(action.origin.mount_point)
        if not uid or action.namespace is None or f"/{uid}/volume" not in action.expect.root:
            raise _forbidden(f"{action.expect.root} is no directory of a volume of the pod")

    def _pod_of_path(self, point: str) -> str:
        """Return the uid of the pod in whose directory a path is, of whichever kubelet."""
        inside = below(point, self._directory) if self._directory else None
        if inside:
            return inside.partition("/")[0]
        found = _POD_OF_PATH.search(point)
        return found.group(1) if found else ""


def _origins(action: ReplaceMount) -> Iterator[str]:
    """Yield where each mount that is copied is mounted on the host."""
    yield action.origin.mount_point
    for child in action.children:
        yield f"{child.origin.mount_point.rstrip('/')}/{child.origin_subpath}"


def _forbidden(detail: str) -> Stop:
    return refuse(Reason.FORBIDDEN, detail)
