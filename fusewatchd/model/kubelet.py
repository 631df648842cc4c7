"""Where the kubelet of this node keeps what it mounts."""

from __future__ import annotations

from dataclasses import dataclass

from fusewatchd.model.mount_table import below


@dataclass(frozen=True, slots=True)
class KubeletDirectory:
    """The kubelet's directory and what is in it, each as the mount table spells it.

    A node may keep each of them on a disk of its own, behind a symbolic link.  mountinfo shows
    real paths only, so one is not made of the other by joining names.
    """

    root: str
    """Empty: it was not found, and so are the others."""
    pods: str
    """Holds one directory for each pod."""
    plugins: str
    staging: str
    """``plugins/kubernetes.io/csi``."""
    spelling: str
    """The path of ``root`` by which the node's configuration calls it."""

    @property
    def is_found(self) -> bool:
        """False as long as there is no directory with pods."""
        return bool(self.root)

    def real(self, path: str) -> str:
        """Return a path that may be spelled through the links as the mount table spells it."""
        for root in (self.root, self.spelling):
            for name, real in ((STAGING, self.staging), (PLUGINS, self.plugins), (PODS, self.pods)):
                inside = below(path, f"{root}/{name}")
                if inside is not None:
                    return f"{real}/{inside}".rstrip("/")
            inside = below(path, root)
            if inside:
                return f"{self.root}/{inside}"
        return path


PODS = "pods"
PLUGINS = "plugins"
STAGING = f"{PLUGINS}/kubernetes.io/csi"
NOT_FOUND = KubeletDirectory("", "", "", "", "")


def plain_directory(root: str) -> KubeletDirectory:
    """Return a kubelet's directory in which nothing is a link."""
    pods, plugins, staging = (f"{root}/{name}" for name in (PODS, PLUGINS, STAGING))
    return KubeletDirectory(root, pods, plugins, staging, root)
