"""Where the web pages are served, and to whom: checked and opened before anybody is served."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from fusewatchd.config.settings import WebSettings
from fusewatchd.errors import ConfigError
from fusewatchd.serve.listeners import is_local, listen_on
from fusewatchd.serve.web_config import OPEN
from fusewatchd.serve.web_config_file import WebConfigFile


class Access:
    """The listening sockets and the file that says who is answered."""

    def __init__(self, settings: WebSettings, inherited: Sequence[socket.socket] = ()) -> None:
        """Listen; ``inherited`` are sockets that take the place of the addresses.

        Raises:
            ConfigError: the web configuration file cannot be used, or strangers would see the
                status page.
            OSError: an address is not to be had.
        """
        self.listeners: list[socket.socket] = []
        self.file: WebConfigFile | None = None
        self.is_tls = False
        if not inherited and not settings.addresses:
            return
        config = OPEN
        if settings.config_file:
            self.file = WebConfigFile(settings.config_file)
            config = self.file.current()
            self.is_tls = config.tls_server_config.is_on
        self.listeners = list(inherited) or listen_on(settings.addresses)
        is_open = not config.authenticates and not all(map(is_local, self.listeners))
        if settings.status_page and is_open:
            raise ConfigError(
                "web.status_page: needs users or client certificates (web.config_file),"
                " or addresses of loopback alone"
            )

    def close(self) -> None:
        """Listen no more."""
        for listener in self.listeners:
            listener.close()
