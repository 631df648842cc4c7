"""A driver that the configuration describes: which volumes, and where their sources are.

It is believed as written, so it is asked before the drivers that are built in.  A volume of
which a field is not known, or is no single directory name, has no source by it.
"""

from __future__ import annotations

from fusewatchd.config.settings import TemplateSettings
from fusewatchd.config.source_template import ROOT_FIELD, fields_of, fill
from fusewatchd.drivers.base import Layout, is_one_name, namespace_of, volume_data
from fusewatchd.model.findings import SourceAnswer, SourcePath
from fusewatchd.model.mounts import Mount
from fusewatchd.model.pods import BindKind, BindPath
from fusewatchd.model.snapshot import Snapshot
from fusewatchd.model.verdicts import Reason


class Template:
    """One entry of ``drivers.templates``."""

    layouts = (
        Layout("yours", "its CSI or FlexVolume driver", "the path that you configure, with fields"),
    )

    def __init__(self, settings: TemplateSettings) -> None:
        """Take an entry that was checked."""
        self.name = settings.name
        self._settings = settings
        self._plugin = settings.flexvolume.replace("/", "~")
        self._fields = fields_of(settings.source) - {ROOT_FIELD}

    def locate(self, bind: BindPath, mount: Mount, snapshot: Snapshot) -> SourceAnswer | None:
        """Fill in the template for a volume that it is for."""
        if not self._is_for(bind, mount, snapshot):
            return None
        if self._settings.in_pod:
            why = "drivers.templates says that it is mounted in the pod"
            return SourceAnswer(self.name, why, refusal=Reason.DIRECT_MOUNT)
        values = _values(bind, mount, snapshot)
        for field in sorted(self._fields):
            if field not in values:
                return SourceAnswer(self.name, f"{{{field}}} is not known")
            if not is_one_name(values[field]):
                return SourceAnswer(self.name, f"{{{field}}} is no single directory name")
        path = snapshot.kubelet.real(fill(self._settings.source, values, snapshot.kubelet.root))
        top = snapshot.table.top_at(path)
        source = SourcePath(path, top.root if top else "/")
        return SourceAnswer(self.name, "by drivers.templates", (source,))

    def _is_for(self, bind: BindPath, mount: Mount, snapshot: Snapshot) -> bool:
        if self._settings.csi_driver:
            data = volume_data(bind, mount, snapshot)
            return data is not None and data.driver == self._settings.csi_driver
        if bind.kind is not BindKind.SUBPATH:
            return bind.kind is BindKind.FLEXVOLUME and bind.plugin == self._plugin
        volume = f"{snapshot.kubelet.pods}/{bind.pod_uid}/volumes/{self._plugin}/{bind.volume}"
        return any(other.device == mount.device for other in snapshot.table.at(volume))


def _values(bind: BindPath, mount: Mount, snapshot: Snapshot) -> dict[str, str]:
    values = {"volume": bind.volume, "pod_uid": bind.pod_uid}
    data, namespace = volume_data(bind, mount, snapshot), namespace_of(bind, snapshot)
    if data is not None:
        values["volume_handle"] = data.volume_handle
        values["volume_handle_sha256"] = data.handle_digest
    if namespace is not None:
        values["namespace"] = namespace
    return values
