"""How many nodes the cluster has: one small request now and then."""

from __future__ import annotations

from collections.abc import Callable

from fusewatchd.errors import KubeError
from fusewatchd.kube.http import Client

FIRST_SECONDS = 300.0
"""Within so long after the start it is asked for, at a moment by chance: a whole cluster may
have been upgraded in one go."""
AGAIN_SECONDS = 6 * 3600.0
_PATH = "/api/v1/nodes?limit=1"


class ClusterSize:
    """Asks when it is time; who is not allowed to know goes on with what is known."""

    def __init__(self, chance: Callable[[], float], now: float) -> None:
        """Ask some time after ``now``, seconds of a monotonic clock."""
        self._chance = chance
        self.due_at = now + chance() * FIRST_SECONDS

    def ask(self, client: Client, now: float) -> int | None:
        """Return the number of nodes; None: nobody tells."""
        self.due_at = now + AGAIN_SECONDS * (0.5 + self._chance())
        try:
            answer = client.request("GET", _PATH)
        except KubeError:
            return None
        # meta/v1 ListMeta: with a limit the server says how many it has left out.
        metadata = answer.get("metadata") if isinstance(answer, dict) else None
        left = metadata.get("remainingItemCount", 0) if isinstance(metadata, dict) else None
        return 1 + left if isinstance(left, int) and left >= 0 else None
