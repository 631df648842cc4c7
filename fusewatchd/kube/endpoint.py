"""A server to ask, and by what it is trusted; known without any code that asks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

from fusewatchd.errors import CredentialsError

MAX_TOKEN_BYTES = 64 << 10
MAX_CERTIFICATE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server and what is needed to trust it and to be trusted by it."""

    url: str
    """``http`` or ``https``, without a path."""
    server_name: str = ""
    """Name to expect in its certificate instead of the host of the URL."""
    token_file: str = ""
    ca_file: str = ""
    default_ca_files: tuple[str, ...] = ()
    """Trusted when ``ca_file`` is empty, as far as they exist."""
    client_cert_file: str = ""
    client_key_file: str = ""
    skip_verify: bool = False
    timeout_seconds: float = 10.0
    """For a whole request."""

    def authorities(self) -> tuple[str, ...]:
        """Return the files with the authorities that are trusted.

        Raises:
            CredentialsError: the server is to be verified, and there is none.
        """
        if not self.url.startswith("https:") or self.skip_verify:
            return ()
        if self.ca_file:
            return (self.ca_file,)
        files = tuple(path for path in self.default_ca_files if os.path.exists(path))
        if not files:
            known = ", ".join(self.default_ca_files) or "nothing is configured"
            raise CredentialsError(f"no certificate authority to verify {self.url}: {known}")
        return files


class EndpointSource(Protocol):
    """An endpoint that can change while it is used."""

    def current(self) -> Endpoint:
        """Return how to reach the server now.

        Raises:
            CredentialsError: nobody can say it.
        """
