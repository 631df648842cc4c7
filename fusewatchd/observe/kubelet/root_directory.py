"""Finding the kubelet's directory.

mountinfo shows real paths only, so the answer is one: many nodes keep the directory on a data
disk behind a symbolic link.
"""

from __future__ import annotations

import os

KNOWN_PLACES = (
    "/var/lib/kubelet",
    "/var/lib/k0s/kubelet",
    "/var/snap/microk8s/common/var/lib/kubelet",
    "/var/lib/rancher/k3s/agent/kubelet",
)


def find_kubelet_root(configured: str) -> str:
    """Return the real path of the kubelet's directory; empty when there is none yet."""
    for place in KNOWN_PLACES if configured == "auto" else (configured,):
        root = os.path.realpath(place)
        if os.path.isdir(f"{root}/pods"):
            return root
    return ""
