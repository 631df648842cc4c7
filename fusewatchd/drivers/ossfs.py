"""Alibaba Cloud OSS (ossfs, ossfs2): a proxy mounts each volume once for the node below ``/run``.

Layout: kubernetes-sigs/alibaba-cloud-csi-driver v1.37.1, ``pkg/mounter/utils/utils.go``
(``GetAttachPath``: ``/run/fuse.ossfs/<sha256 of the volume handle>/globalmount``, whatever the
kind of server), bound to the pod by ``pkg/oss/nodeserver.go``.
"""

from __future__ import annotations

from fusewatchd.config.settings import DriverSettings
from fusewatchd.drivers.base import Driver, Layout, sources_at, volume_data
from fusewatchd.model.findings import SourceAnswer
from fusewatchd.model.mounts import Mount
from fusewatchd.model.pods import BindPath
from fusewatchd.model.snapshot import Snapshot

CSI_DRIVER = "ossplugin.csi.alibabacloud.com"
ATTACH_ROOT = "/run/fuse.ossfs"


def driver(_: DriverSettings) -> Driver:
    """Return this driver, which has nothing to configure."""
    return Ossfs()


class Ossfs:
    """The OSS driver of Alibaba Cloud."""

    name = "ossfs"
    layouts = (
        Layout(
            "ossfs and ossfs2 of Alibaba Cloud",
            "CSI driver `ossplugin.csi.alibabacloud.com`",
            "`/run/fuse.ossfs/<SHA-256 of the handle>/globalmount`",
        ),
    )

    def locate(self, bind: BindPath, mount: Mount, snapshot: Snapshot) -> SourceAnswer | None:
        """Look at the one place that belongs to this volume handle."""
        data = volume_data(bind, mount, snapshot)
        if data is None or data.driver != CSI_DRIVER or not data.volume_handle:
            return None
        path = f"{ATTACH_ROOT}/{data.handle_digest}/globalmount"
        if found := sources_at([path], snapshot):
            return SourceAnswer(self.name, "attached by its volume handle", found)
        return SourceAnswer(self.name, f"nothing is mounted at {path}")
