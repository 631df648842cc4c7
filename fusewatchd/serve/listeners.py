"""Sockets to listen on: made from addresses, or handed over by systemd (sd_listen_fds(3))."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, MutableMapping

from fusewatchd.errors import ConfigError
from fusewatchd.text import printable

FIRST_FD = 3
"""``SD_LISTEN_FDS_START``"""
BACKLOG = 64


def parse_address(text: str) -> tuple[str, int]:
    """Split ``host:port``, ``[v6]:port`` or ``:port``; an empty host means every address.

    Only numeric hosts and ``localhost``: a start must not wait for a name server.

    Raises:
        ConfigError: the text has another form.
    """
    host, colon, port = text.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if is_bracketed else host
    problem = ConfigError(f"web.listen_address: host:port expected, not {printable(text)!r}")
    is_number = port.isascii() and port.isdigit() and len(port) <= 5
    if not colon or not is_number or int(port) > 65535:
        raise problem
    if bare == "localhost":
        bare = "127.0.0.1"
    family = socket.AF_INET6 if is_bracketed else socket.AF_INET
    if bare or is_bracketed:
        try:
            socket.inet_pton(family, bare.partition("%")[0])
        except OSError:
            raise problem from None
    return bare, int(port)


def listen_on(addresses: Iterable[str]) -> list[socket.socket]:
    """Listen on all addresses, or on none.

    Raises:
        ConfigError: one cannot be parsed.
        OSError: one is taken, or not an address of this node; the message names it.
    """
    listeners: list[socket.socket] = []
    try:
        for address in addresses:
            listeners.append(_listen(address))
    except (ConfigError, OSError):
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _listen(address: str) -> socket.socket:
    host, port = parse_address(address)
    try:
        if not host and socket.has_dualstack_ipv6():
            family, is_dual = socket.AF_INET6, True
        else:
            family, is_dual = socket.AF_INET6 if ":" in host else socket.AF_INET, False
        return socket.create_server(
            (host, port), family=family, dualstack_ipv6=is_dual, backlog=BACKLOG
        )
    except OSError as exc:
        code = exc.errno or errno.EADDRNOTAVAIL
        raise OSError(code, os.strerror(code), f"web.listen_address {printable(address)}") from exc


def inherited(environ: MutableMapping[str, str], pid: int) -> list[socket.socket]:
    """Take over the sockets that systemd made for this process; children will not see them.

    Args:
        environ: of the process; what is about the sockets is taken out.
        pid: of the process.

    Raises:
        ConfigError: what was handed over cannot be listened on.
    """
    count = environ.pop("LISTEN_FDS", "")
    meant_for = environ.pop("LISTEN_PID", "")
    environ.pop("LISTEN_FDNAMES", None)
    if meant_for != str(pid) or not (count.isascii() and count.isdigit() and len(count) <= 5):
        return []
    return [_take_over(fd) for fd in range(FIRST_FD, FIRST_FD + int(count))]


def _take_over(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        found = socket.socket(fileno=fd)
        is_listening = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as exc:
        raise ConfigError(f"descriptor {fd} of LISTEN_FDS: {exc.strerror}") from exc
    if not is_listening or found.type is not socket.SOCK_STREAM:
        raise ConfigError(f"descriptor {fd} of LISTEN_FDS: expected a listening stream socket")
    return found


def name_of(listener: socket.socket) -> str:
    """Return where a socket listens, as a person writes it."""
    where = listener.getsockname()
    if listener.family not in (socket.AF_INET, socket.AF_INET6):
        return f"unix:{printable(where) or '(unnamed)'}"
    host, port = where[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_local(sock: socket.socket) -> bool:
    """Return True when nobody but this node can be at the other end."""
    if sock.family == socket.AF_UNIX:
        return True
    host: str = sock.getsockname()[0]
    return host == "::1" or host.removeprefix("::ffff:").startswith("127.")
