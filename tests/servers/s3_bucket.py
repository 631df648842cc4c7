"""An S3 server on a free port of loopback, with a bucket of a directory's files: ``DIRECTORY``.

Prints its URL; it ends when its stdin does.
"""

from __future__ import annotations

import logging
import sys
import urllib.request
from pathlib import Path

from moto.server import ThreadedMotoServer

BUCKET = "bucket"


def put(url: str, content: bytes = b"") -> None:
    headers = {"Content-Type": "application/octet-stream"}
    request = urllib.request.Request(url, content, headers, method="PUT")
    urllib.request.urlopen(request, timeout=30).close()


def main() -> None:
    """Serve until nobody needs it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    directory = Path(sys.argv[1])
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    put(f"{url}/{BUCKET}")
    for path in directory.rglob("*"):
        if path.is_file():
            put(f"{url}/{BUCKET}/{path.relative_to(directory)}", path.read_bytes())
    print(url, flush=True)
    sys.stdin.read()


main()
