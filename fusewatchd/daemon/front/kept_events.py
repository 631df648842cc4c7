"""What is left to say to the API server, over an end of the front and of the daemon."""

from __future__ import annotations

import json
from typing import Any

from fusewatchd.errors import ParseError
from fusewatchd.state.file import StateWriter, read_state

NAME = "events.json"
REST_SECONDS = 1.0
"""Between two writes."""


class KeptEvents:
    """The text as a front wrote it; written down by a thread of its own."""

    def __init__(self, directory: str) -> None:
        """Keep it in this directory; without one (an empty path) in memory alone."""
        self._directory = directory
        self._writer = (
            StateWriter(directory, name=NAME, rest_seconds=REST_SECONDS) if directory else None
        )
        self.text = ""

    def load(self) -> str:
        """Read what an earlier run left; return what is wrong with it."""
        if not self._directory:
            return ""
        try:
            document = read_state(self._directory, NAME)
        except ParseError as exc:
            return str(exc)
        self.text = "" if document is None else json.dumps(document)
        return ""

    def take(self, text: str, document: Any) -> None:
        """Keep a text that says this document."""
        self.text = text
        if self._writer is not None:
            self._writer.save(lambda: document)

    def close(self) -> None:
        """Write what is left, and end the thread."""
        if self._writer is not None:
            self._writer.close()
