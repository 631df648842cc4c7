"""CSI drivers that mount once for the node at the kubelet's staging path, and bind that to pods.

The kubelet says which volume is staged where (``kubelet_paths.staging_paths``), so this needs to
know nothing of the driver: what is mounted as FUSE at the volume's own staging path is its
source.  Of the path of older kubelets, which is the name of a PersistentVolume, the
``vol_data.json`` beside it must name this very volume.

Known to do so, so that a source that is not mounted is told as missing:

* SeaweedFS: seaweedfs/seaweedfs-csi-driver 05c90b2, ``pkg/driver/nodeserver.go``, ``volume.go``;
* CubeFS: cubefs/cubefs-csi b3768c25, ``pkg/cubefs/nodeserver.go``;
* ceph-fuse: ceph/ceph-csi 52fcb7b00, ``internal/cephfs/nodeserver.go``; Rook puts the namespace
  of its operator before the driver's name;
* blobfuse: kubernetes-sigs/blob-csi-driver 0744a60b3, ``pkg/blob/nodeserver.go``;
* geesefs: yandex-cloud/k8s-csi-s3 v0.43.7, ``pkg/driver/nodeserver.go``.
"""

from __future__ import annotations

from fusewatchd.drivers.base import Layout, is_one_name, sources_at, volume_data
from fusewatchd.drivers.host_service import service_of
from fusewatchd.model.findings import SourceAnswer
from fusewatchd.model.mounts import Mount
from fusewatchd.model.pods import BindPath
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.parse.kubelet_paths import staging_paths

_STAGERS = frozenset(
    {
        "seaweedfs-csi-driver",
        "csi.cubefs.com",
        "cephfs.csi.ceph.com",
        "blob.csi.azure.com",
        "ru.yandex.s3.csi",
    }
)
_ROOK_SUFFIX = ".cephfs.csi.ceph.com"
_NO_DRIVER = "pv"
"""What older kubelets have in the place of the driver's name."""


class Staging:
    """Every CSI driver that stages; ``vol_data.json`` says which volume it is."""

    name = "csi-staging"
    layouts = (
        Layout(
            "SeaweedFS, CubeFS, ceph-fuse, blobfuse, geesefs, and every driver that stages",
            "the kubelet's `vol_data.json`",
            "`<kubelet>/plugins/kubernetes.io/csi/<driver>/<SHA-256 of the handle>/globalmount`;"
            " before Kubernetes 1.24 `…/csi/pv/<volume>/globalmount`",
        ),
    )

    def locate(self, bind: BindPath, mount: Mount, snapshot: Snapshot) -> SourceAnswer | None:
        """Look at the two places where a kubelet has this volume staged."""
        data = volume_data(bind, mount, snapshot)
        if data is None or data.is_ephemeral or not data.volume_handle:
            return None
        if not is_one_name(data.driver) or data.driver == _NO_DRIVER:
            return None
        path, by_name = staging_paths(snapshot.kubelet, data, bind.volume)
        is_its_name = snapshot.staging_data.get(by_name) == data
        found = sources_at([path, by_name] if is_its_name else [path], snapshot)
        service = service_of(data)
        by = f", served by {service} of the host" if service else ""
        if found:
            return SourceAnswer(self.name, f"staged by {data.driver}{by}", found)
        if data.driver in _STAGERS or data.driver.endswith(_ROOK_SUFFIX):
            return SourceAnswer(self.name, f"not staged by {data.driver}{by}")
        return None
