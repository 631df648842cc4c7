"""What looks like a secret is gone from a text, and what does not stays."""

from __future__ import annotations

import pytest

from fusewatchd.command.redaction import GONE, redacted

SECRET = "s3cr3t-VALUE-0123456789"


@pytest.mark.parametrize(
    "text",
    [
        f"36 35 0:31 / /mnt rw - fuse.s3fs https://user:{SECRET}@host/bucket rw",
        f"//nas/share /mnt cifs rw,username=a,password={SECRET},uid=0",
        f"passwd={SECRET}",
        f'"password": "{SECRET}"',
        f"aws_secret_access_key = {SECRET}",
        f"AccountKey={SECRET};EndpointSuffix=core.windows.net",
        f"Authorization: Bearer {SECRET}",
        f"token={SECRET}&x=1",
        f"client_secret: {SECRET}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}",
        f"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0123.{SECRET}",
        f"said {SECRET} aloud",
    ],
)
def test_a_secret_is_gone(text: str) -> None:
    assert SECRET not in redacted(text, [SECRET] if "aloud" in text else [])
    assert GONE in redacted(text, [SECRET] if "aloud" in text else [])


@pytest.mark.parametrize(
    "text",
    [
        "36 35 0:31 / /var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/token-pv/mount rw - fuse",
        "kubelet.token_file: /etc/fusewatchd/token",
        '"kubelet.token_file": {"value": "/etc/fusewatchd/token", "from": []}',
        "reason=source_dead event=stale volume=passwords-of-nobody",
        "tmpfs rw,size=1024k,mode=755,inode64",
        "https://10.0.0.1:6443/api/v1/nodes",
    ],
)
def test_what_is_none_stays(text: str) -> None:
    assert redacted(text, ["short"]) == text
