"""FUSE servers that are systemd units of the host: whom to look at when a source is missing.

* blobfuse-proxy, kubernetes-sigs/blob-csi-driver 0744a60b3, ``pkg/blobfuse-proxy``: one unit
  starts the servers of all volumes;
* geesefs, yandex-cloud/k8s-csi-s3 v0.43.7, ``pkg/mounter/geesefs.go``: a transient unit for each
  volume, named by its handle as ``PathBusEscape`` of go-systemd writes it.
"""

from __future__ import annotations

from fusewatchd.model.pods import VolumeData


def service_of(data: VolumeData) -> str:
    """Return the unit behind a volume's server; empty for volumes of other drivers."""
    match data.driver:
        case "blob.csi.azure.com":
            return "blobfuse-proxy.service"
        case "ru.yandex.s3.csi":
            return f"geesefs-{_bus_escaped(data.volume_handle)}.service"
        case _:
            return ""


def _bus_escaped(text: str) -> str:
    """Write every byte but ASCII letters and digits, and a digit in front, as ``_`` and hex."""
    escaped = "".join(
        chr(byte)
        if chr(byte).isascii() and chr(byte).isalnum() and not (at == 0 and chr(byte).isdigit())
        else f"_{byte:02x}"
        for at, byte in enumerate(text.encode("utf-8", "surrogateescape"))
    )
    return escaped or "_"
