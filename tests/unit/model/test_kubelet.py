"""A kubelet's directory with its parts on other disks."""

from __future__ import annotations

import pytest

from fusewatchd.model.kubelet import KubeletDirectory, plain_directory

LINKED = KubeletDirectory(
    "/data/kubelet", "/fast/p", "/slow/plugins", "/slow/csi", "/var/lib/kubelet"
)


@pytest.mark.parametrize("root", ["/data/kubelet", "/var/lib/kubelet"])
@pytest.mark.parametrize(
    ("below", "real"),
    [
        ("pods/x", "/fast/p/x"),
        ("plugins/acme/h", "/slow/plugins/acme/h"),
        ("plugins/kubernetes.io/csi/d/h/globalmount", "/slow/csi/d/h/globalmount"),
        ("plugins", "/slow/plugins"),
        ("podsx/y", "/data/kubelet/podsx/y"),
    ],
)
def test_either_spelling_leads_to_the_real_path(root: str, below: str, real: str) -> None:
    assert LINKED.real(f"{root}/{below}") == real


@pytest.mark.parametrize("path", ["/mnt/a", "/data/kubelets/pods/x", "/"])
def test_what_is_elsewhere_stays(path: str) -> None:
    assert LINKED.real(path) == path
    assert plain_directory("/k").real(path) == path
