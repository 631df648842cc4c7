"""Certificates for servers and clients on loopback, made by openssl(1)."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority in a directory of its own."""

    directory: Path
    name: str = "ca"

    @property
    def certificate(self) -> str:
        """PEM file to trust."""
        return str(self.directory / f"{self.name}.crt")

    @property
    def key(self) -> str:
        return str(self.directory / f"{self.name}.key")


def make_authority(directory: Path, name: str = "ca") -> Authority:
    """Make a self-signed authority."""
    authority = Authority(directory, name)
    _openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-keyout", authority.key, "-out", authority.certificate, "-days", "2",
        "-subj", f"/CN={name}",
    )  # fmt: skip
    return authority


def make_certificate(authority: Authority, name: str, subject: str, names: str = "") -> str:
    """Make a certificate; returns a PEM file with key, certificate and chain.

    Args:
        authority: signs it.
        name: of the file.
        subject: common name.
        names: ``subjectAltName`` as openssl takes it, ``DNS:node-1,IP:127.0.0.1``.
    """
    directory = authority.directory
    base = str(directory / name)
    _openssl(
        "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-keyout", f"{base}.key", "-out", f"{base}.csr", "-subj", f"/CN={subject}",
    )  # fmt: skip
    extensions = directory / f"{name}.ext"
    extensions.write_text(f"subjectAltName={names}\n" if names else "")
    _openssl(
        "x509", "-req", "-in", f"{base}.csr", "-CA", authority.certificate, "-CAkey",
        authority.key, "-CAcreateserial", "-days", "2", "-extfile", str(extensions),
        "-out", f"{base}.crt",
    )  # fmt: skip
    parts = [Path(f"{base}.key"), Path(f"{base}.crt"), Path(authority.certificate)]
    whole = Path(f"{base}.pem")
    whole.touch(mode=0o600)
    whole.write_text("".join(part.read_text() for part in parts))
    return str(whole)


_OLD_OR_EARLY = """
[ca]
default_ca = one
[one]
database = {base}.index
new_certs_dir = {directory}
serial = {base}.serial
default_md = sha256
policy = any
[any]
commonName = supplied
"""


def make_certificate_valid(authority: Authority, name: str, names: str, valid: str) -> str:
    """As ``make_certificate``, valid between ``start,end`` in openssl's YYYYMMDDHHMMSSZ."""
    base = str(authority.directory / name)
    start, end = valid.split(",")
    whole = Path(make_certificate(authority, name, name, names))
    Path(f"{base}.index").touch()
    Path(f"{base}.serial").write_text("1000")
    config = Path(f"{base}.cnf")
    config.write_text(_OLD_OR_EARLY.format(base=base, directory=authority.directory))
    _openssl(
        "ca", "-batch", "-notext", "-config", str(config), "-in", f"{base}.csr",
        "-cert", authority.certificate, "-keyfile", authority.key,
        "-extfile", f"{base}.ext", "-startdate", start, "-enddate", end, "-out", f"{base}.crt",
    )  # fmt: skip
    parts = [Path(f"{base}.key"), Path(f"{base}.crt"), Path(authority.certificate)]
    whole.write_text("".join(part.read_text() for part in parts))
    return str(whole)


def make_self_signed(directory: Path, name: str, host: str) -> str:
    """Make what a kubelet makes for itself; returns a PEM file with key and certificate."""
    whole = directory / f"{name}.pem"
    key, certificate = directory / f"{name}.key", directory / f"{name}.crt"
    _openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", f"/CN={host}",
        "-addext", f"subjectAltName=DNS:{host}", "-addext", "basicConstraints=critical,CA:FALSE",
    )  # fmt: skip
    whole.write_text(key.read_text() + certificate.read_text())
    return str(whole)


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"openssl {arguments[0]}: {done.stderr}")
